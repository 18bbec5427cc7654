"""The REST server: uvicorn in a thread."""

import asyncio
import logging
import re
import socket
import ssl
import threading
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tfzoo.errors import UserError, one_line
from tfzoo.serve.core import Core
from tfzoo.serve.rest import openai, openapi, page, tf_serving
from tfzoo.serve.rest.http import Application, Request, Response, Route, Settings

_MAX_HEAD = 2**16  # Bytes of a request's line and headers.
_SILENCE = 30  # Seconds after which a connection without a complete request's head is closed.


def application(core: Core, settings: Settings, metrics_path: str | None = None, has_page: bool = True) -> Application:
    """Returns the ASGI application with all routes.

    Args:
      core: the models.
      settings: the limits of HTTP.
      metrics_path: the path of the metrics for Prometheus; None means that there are none.
      has_page: whether there is a page for people at `/`.
    """
    routes = [*openai.routes(core), *tf_serving.routes(core), *_health(core)]
    routes += openapi.routes(core, has_page, metrics_path)
    if has_page:
        routes += page.routes(core)
    if metrics_path:
        routes.append(
            Route("GET", re.compile(re.escape(metrics_path)), lambda _: Response(core.metrics(), "text/plain"))
        )
    return Application(routes, settings, tf_serving.other)


def _health(core: Core) -> list[Route]:
    def live(_: Request) -> Response:
        return Response(b'{"status":"alive"}')

    def ready(_: Request) -> Response:
        is_ready = core.is_ready()
        return Response(
            b'{"status":"ready"}' if is_ready else b'{"status":"not ready"}', status=200 if is_ready else 503
        )

    return [
        Route("GET", re.compile("/livez"), live, is_public=True),
        Route("GET", re.compile("/readyz"), ready, is_public=True),
    ]


class _Joining:
    """A transport that sends at once what is written in a row: uvicorn writes the head and the body of an answer one
    after the other, and each would be a system call and a packet of its own."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop):
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def _flush(self) -> None:
        if self._parts:
            self._transport.write(b"".join(self._parts))
            self._parts.clear()

    def close(self) -> None:
        self._flush()
        self._transport.close()


class _Protocol(HttpToolsProtocol):
    """Bounds the head of a request, its line and headers, and the time in which it must arrive.

    Every _SILENCE seconds, it closes the connection if no head has arrived since the last time. uvicorn's other
    parser, h11, has a limit of its own, but costs a request 0.13 ms more.
    """

    def connection_made(self, transport: Any) -> None:
        joining: Any = _Joining(transport, self.loop)
        super().connection_made(joining)
        self._head: int | None = 0  # Bytes of the head that arrives; None while a body does.
        self._seen: Any = None  # The request of the previous tick.
        self._ticking = self.loop.call_later(_SILENCE, self._tick)

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            self._head += len(data)
        super().data_received(data)
        if self._head is not None and self._head > _MAX_HEAD and not self.transport.is_closing():
            self.send_400_response(f"The head of a request has more than {_MAX_HEAD} bytes, the limit.")

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._head = None

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._head = 0

    def connection_lost(self, exc: Exception | None) -> None:
        self._ticking.cancel()
        super().connection_lost(exc)

    def _tick(self) -> None:
        waiting = self.cycle is None or self.cycle.response_complete
        if waiting and self._seen is self.cycle:
            self.transport.close()
            return
        self._seen = self.cycle
        self._ticking = self.loop.call_later(_SILENCE, self._tick)


class Server:
    """A running REST server.

    Attributes:
      port: the port that it listens at.
    """

    def __init__(self, app: Application, listener: socket.socket, context: ssl.SSLContext | None):
        self.port = listener.getsockname()[1] if listener.family != socket.AF_UNIX else 0
        self._app = app
        config = uvicorn.Config(
            app, http=_Protocol, loop="asyncio", ws="none", lifespan="off", log_config=None, access_log=False,
            proxy_headers=False, server_header=False, timeout_keep_alive=2 * _SILENCE,
            ssl_context_factory=(lambda *_: context) if context else None,
        )  # fmt: skip
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, args=(listener,), name="rest", daemon=True)
        self._thread.start()

    def _run(self, listener: socket.socket) -> None:
        asyncio.run(self._server.serve([listener]))

    def stop(self, seconds: float) -> None:
        """Accepts no more requests, and waits for those that run, for some seconds."""
        self._server.config.timeout_graceful_shutdown = max(1, round(seconds))
        self._server.should_exit = True
        self._thread.join(seconds + 5)
        self._app.close()


def listen(host: str, port: int, flag: str = "rest_api_port") -> socket.socket:
    """Returns a socket that listens at a port; 0 means any free one.

    Raises:
      UserError: the port is in use, or not allowed.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Without the protocol's name, asyncio leaves Nagle's algorithm on, which delays answers by 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # Not REUSEPORT: two servers would share a port.
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        reason = (error.strerror or one_line(error)).lower()
        raise UserError(f"--{flag}={port}: cannot listen on {host} ({reason}); choose another port") from None
    listener.listen(1024)
    listener.setblocking(False)
    return listener
