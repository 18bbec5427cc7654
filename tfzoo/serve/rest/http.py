"""HTTP for functions: an ASGI application that reads requests, calls a function in a thread and sends what it returns.

What every route needs is here: limits of the size and number of requests, gzip, API keys, CORS, time-outs, and errors
as JSON. A request whose client disconnects is cancelled.
"""

import asyncio
import concurrent.futures
import dataclasses
import logging
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tfzoo.serve import keys
from tfzoo.serve.errors import StatusError
from tfzoo.serve.limits import STATUS_THREADS, most_held
from tfzoo.serve.rest.json_text import dump

JSON, HTML, EVENTS = "application/json", "text/html; charset=utf-8", "text/event-stream"
_MIN_GZIP = 1024  # Smaller answers are sent as they are.
_RETRY_AFTER = {429: b"1", 503: b"1"}  # Seconds.

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Request:
    """A request whose body has been read and decompressed.

    Attributes:
      method: such as "POST".
      path: still percent-encoded.
      headers: by their names in lower case.
      deadline: the time.monotonic() at which the client is told that it took too long.
      cancelled: set when the client has disconnected, or the deadline has passed.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    deadline: float
    cancelled: threading.Event


@dataclasses.dataclass(frozen=True)
class Response:
    """An answer; `body` is bytes, or an iterator of parts that are sent as they come."""

    body: bytes | Iterator[bytes]
    content_type: str = JSON
    status: int = 200
    headers: Sequence[tuple[bytes, bytes]] = ()


@dataclasses.dataclass(frozen=True)
class Route:
    """A function for the requests whose method and complete path match; its groups are passed as arguments.

    Attributes:
      is_public: whether it needs no API key.
      refusal: returns the error with which a request must be refused before its body is read, or None; None if no
        request is refused.
    """

    method: str
    pattern: re.Pattern
    function: Callable[..., Response]
    is_public: bool = False
    refusal: Callable[[], StatusError | None] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What the application allows.

    Attributes:
      max_request_bytes: the largest body, after decompression.
      max_requests: how many requests run or wait for their turn at a time.
      timeout: seconds from a request's first byte to its answer, or to the first part of a streamed answer.
      api_keys: one of them must come with every request, unless there are none.
      cors: whether pages of other origins may send requests.
    """

    max_request_bytes: int
    max_requests: int
    timeout: float = 30.0
    api_keys: tuple[bytes, ...] = ()
    cors: bool = False


def error_body(message: str) -> bytes:
    """Returns TF Serving's JSON for an error."""
    return dump({"error": message})


class _Refused(Exception):
    """A request that is refused before a function sees it."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.response = Response(error_body(message), status=status)


class Application:
    """The ASGI application. `close` ends its threads.

    Args:
      routes: the first route that matches is taken.
      settings: the limits.
      other: called for a request that no route matches.
    """

    def __init__(self, routes: Iterable[Route], settings: Settings, other: Callable[[Request], Response]):
        self._routes, self._settings, self._other = tuple(routes), settings, other
        self._threads = settings.max_requests + STATUS_THREADS
        self._pool = concurrent.futures.ThreadPoolExecutor(self._threads, "rest")
        self._active = 0  # Requests that have been accepted.
        self._held = 0  # Bytes of their bodies.

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, scope: Any, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            return
        deadline = time.monotonic() + self._settings.timeout
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        head = Request(scope["method"], scope["raw_path"].decode("latin-1"), headers, b"", deadline, threading.Event())
        if self._settings.cors and head.method == "OPTIONS":
            await self._send(send, head, Response(b"", status=204))
            return
        held = [0]
        try:
            function = await self._checked(head, receive)
            body = await self._body(receive, head, held)
            if body is None:
                return
            if self._active >= self._threads:
                raise _Refused(429, f"The server is busy with {self._active} requests; try again later")
            self._active += 1
            try:
                await self._answer(function, dataclasses.replace(head, body=body), receive, send)
            finally:
                self._active -= 1
        except _Refused as refused:
            await self._send(send, head, refused.response)
        finally:
            self._held -= held[0]

    async def _checked(self, request: Request, receive: Callable) -> Callable[[Request], Response]:
        """Returns the function for a request, after checking its key and whether it must be refused."""
        refusal = None
        for route in self._routes:
            match = route.pattern.fullmatch(request.path)
            if match and route.method == request.method:
                function, is_public, refusal = _bound(route, match), route.is_public, route.refusal
                break
        else:
            function, is_public = self._other, False
        if self._settings.api_keys and not is_public:
            if not keys.is_authorized(request.headers.get("authorization", ""), self._settings.api_keys):
                await self._discard(receive, request.deadline)
                raise _Refused(401, "The header Authorization must be: Bearer and one of the server's API keys")
        if refusal is not None and (error := refusal()) is not None:
            await self._discard(receive, request.deadline)
            raise _Refused(error.http_status, error.message)
        return function

    async def _body(self, receive: Callable, request: Request, held: list[int]) -> bytes | None:
        """Reads and decompresses the body; None if the client has disconnected."""
        limit = self._settings.max_request_bytes
        too_large = _Refused(413, f"The request has more than {limit} bytes, the limit")
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > limit:
            await self._discard(receive, request.deadline)
            raise too_large
        parts: list[bytes] = []
        while True:
            try:
                async with asyncio.timeout(request.deadline - time.monotonic()):
                    event = await receive()
            except TimeoutError:
                raise _Refused(408, f"The request did not arrive within {self._settings.timeout:g} seconds") from None
            if event["type"] == "http.disconnect":
                return None
            parts.append(event["body"])
            held[0] += len(event["body"])
            self._held += len(event["body"])
            if held[0] > limit or self._held > most_held(limit):
                parts.clear()
                if event["more_body"]:
                    await self._discard(receive, request.deadline)
                if held[0] > limit:
                    raise too_large
                raise _Refused(429, "The server holds as many bytes of requests as it may; try again later")
            if not event["more_body"]:
                break
        body = b"".join(parts)
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding == "identity":
            return body
        if encoding != "gzip":
            raise _Refused(415, f"The Content-Encoding {encoding[:40]} is not supported; send gzip or identity")
        before = len(body)
        body = await asyncio.get_running_loop().run_in_executor(self._pool, _decompressed, body, limit, too_large)
        held[0] += len(body) - before
        self._held += len(body) - before
        return body

    async def _discard(self, receive: Callable, deadline: float) -> None:
        """Reads the rest of a refused request, within limits: some clients read an answer only after they sent all."""
        discarded, until = 0, min(deadline, time.monotonic() + 5)
        try:
            async with asyncio.timeout(until - time.monotonic()):
                while discarded <= self._settings.max_request_bytes:
                    event = await receive()
                    if event["type"] == "http.disconnect" or not event["more_body"]:
                        return
                    discarded += len(event["body"])
        except TimeoutError:
            pass

    async def _answer(self, function: Callable, request: Request, receive: Callable, send: Callable) -> None:
        """Calls the function in a thread, and sends its answer unless the client disconnects first."""
        job = self._pool.submit(_guarded, function, request)
        work = asyncio.wrap_future(job)
        gone = asyncio.ensure_future(_disconnected(receive))
        gone.add_done_callback(lambda _: request.cancelled.set())
        try:
            futures: list[asyncio.Future] = [work, gone]
            await asyncio.wait(futures, timeout=request.deadline - time.monotonic(), return_when="FIRST_COMPLETED")
            if not work.done():
                request.cancelled.set()
                if not job.cancel():  # A thread has begun it.
                    job.add_done_callback(_close_stream)
                if not gone.done():
                    text = f"Timeout: no answer within {self._settings.timeout:g} seconds"
                    await self._send(send, request, Response(error_body(text), status=504))
                return
            response = work.result()
            if isinstance(response.body, bytes):
                await self._send(send, request, response)
            else:
                await self._stream(send, response, response.body, gone)
        finally:
            gone.cancel()

    async def _stream(self, send: Callable, response: Response, parts: Iterator[bytes], gone: asyncio.Future) -> None:
        loop = asyncio.get_running_loop()
        await send(self._start(response, [(b"cache-control", b"no-store")]))
        try:
            while not gone.done():
                part = await loop.run_in_executor(self._pool, next, parts, None)
                if part is None:
                    break
                await send({"type": "http.response.body", "body": part, "more_body": True})
        finally:
            await loop.run_in_executor(self._pool, getattr(parts, "close", lambda: None))
        if not gone.done():
            await send({"type": "http.response.body", "body": b""})

    async def _send(self, send: Callable, request: Request, response: Response) -> None:
        body, headers = response.body, []
        assert isinstance(body, bytes)
        accepted = request.headers.get("accept-encoding", "").lower()
        if len(body) >= _MIN_GZIP:
            headers.append((b"vary", b"accept-encoding"))
            if re.search(r"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))", accepted):
                body = await asyncio.get_running_loop().run_in_executor(self._pool, _compressed, body)
                headers.append((b"content-encoding", b"gzip"))
        headers.append((b"content-length", str(len(body)).encode()))
        await send(self._start(response, headers))
        await send({"type": "http.response.body", "body": body})

    def _start(self, response: Response, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
        headers += [(b"content-type", response.content_type.encode()), (b"x-content-type-options", b"nosniff")]
        if response.status in _RETRY_AFTER:
            headers.append((b"retry-after", _RETRY_AFTER[response.status]))
        if response.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if self._settings.cors:
            headers += [
                (b"access-control-allow-origin", b"*"),
                (b"access-control-allow-methods", b"POST, GET, OPTIONS"),
                (b"access-control-allow-headers", b"Authorization, Content-Encoding, Content-Type"),
            ]
        return {"type": "http.response.start", "status": response.status, "headers": [*headers, *response.headers]}


def _bound(route: Route, match: re.Match) -> Callable[[Request], Response]:
    return lambda request: route.function(request, *match.groups())


def _guarded(function: Callable[[Request], Response], request: Request) -> Response:
    """Calls a function; its errors become answers."""
    try:
        if request.cancelled.is_set():
            raise StatusError("CANCELLED", "The client has disconnected")
        return function(request)
    except StatusError as error:
        return Response(error_body(error.message), status=error.http_status)
    except Exception:
        _log.exception("%s %s: internal error", request.method, request.path)
        return Response(error_body("Internal error, see the server's log"), status=500)


def _close_stream(job: concurrent.futures.Future) -> None:
    """Closes the stream with which a function answered too late."""
    if not isinstance(body := job.result().body, bytes):
        body.close()


async def _disconnected(receive: Callable) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _decompressed(body: bytes, limit: int, too_large: Exception) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    try:
        data = stream.decompress(body, limit + 1)
    except zlib.error:
        raise _Refused(400, "The request's body is not valid gzip") from None
    if len(data) > limit:
        raise too_large
    if not stream.eof:
        raise _Refused(400, "The request's body ends before its gzip data does")
    return data


def _compressed(body: bytes) -> bytes:
    stream = zlib.compressobj(1, wbits=31)
    return stream.compress(body) + stream.flush()
