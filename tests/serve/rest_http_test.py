"""HTTP of the REST front end: limits, gzip, keys, time-outs and clients that disconnect, over real connections."""

import contextlib
import gzip
import http.client
import json
import re
import socket
import threading
import unittest
from unittest import mock

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tests.helpers import PATIENCE
from tfzoo.errors import UserError
from tfzoo.serve.errors import StatusError
from tfzoo.serve.rest import server as rest_server
from tfzoo.serve.rest.http import EVENTS, Application, Response, Route, Settings

LIMIT = 10_000  # Bytes of a request.


class HttpTest(unittest.TestCase):
    """Runs a server whose functions the test defines."""

    def setUp(self):
        self.began, self.release, self.cancelled = threading.Event(), threading.Event(), threading.Event()
        self.addCleanup(self.release.set)
        self.kept: list = []

    def start(self, **settings) -> int:
        def route(path, function, method="POST", **options):
            return Route(method, re.compile(path), function, **options)

        def fail(request):
            raise {"status": StatusError("RESOURCE_EXHAUSTED", "busy"), "bug": ZeroDivisionError("1/0")}[
                request.body.decode()
            ]

        def wait(request):
            self.began.set()
            self.release.wait(PATIENCE)
            return Response(b"done")

        def cancelled(request):
            self.began.set()
            if request.cancelled.wait(PATIENCE):
                self.cancelled.set()
            return Response(b"")

        def late(request):
            self.began.set()
            self.release.wait(PATIENCE)

            def parts():
                try:
                    yield b"first"
                finally:
                    self.cancelled.set()

            made = parts()
            self.kept.append(made)  # Otherwise it would be closed when nothing refers to it.
            next(made)
            return Response(made, EVENTS)

        def stream(request):
            def parts():
                try:
                    for number in range(10**6):
                        if number == 3:
                            self.release.wait(PATIENCE)
                        yield b"%d\n" % number
                        self.began.set()
                finally:
                    self.cancelled.set()

            return Response(parts(), EVENTS)

        routes = [
            route("/echo", lambda request: Response(request.body)),
            route("/fail", fail),
            route("/wait", wait),
            route("/cancelled", cancelled),
            route("/late", late),
            route("/stream", stream),
            route("/public", lambda _: Response(b"public"), "GET", is_public=True),
            route("/busy", lambda request: Response(request.body), refusal=lambda: self.refusal),
            route("/few", lambda _: Response(iter([b"a", b"b"]), EVENTS)),
        ]
        limits = Settings(**{"max_request_bytes": LIMIT, "max_requests": 4, "timeout": PATIENCE} | settings)
        app = Application(routes, limits, lambda request: Response(b"", status=404))
        server = rest_server.Server(app, rest_server.listen("127.0.0.1", 0), None)
        self.addCleanup(server.stop, 5)
        self.server = server
        return server.port

    def ask(self, method, path, body=b"", headers=()):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE)
        self.addCleanup(connection.close)
        connection.request(method, path, body, dict(headers), encode_chunked=not isinstance(body, bytes))
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()

    def open(self, text: bytes) -> socket.socket:
        """Returns a connection to which a text was sent."""
        connection = socket.create_connection(("127.0.0.1", self.server.port), timeout=PATIENCE)
        self.addCleanup(connection.close)
        connection.sendall(text)
        return connection

    def test_answers_and_errors(self):
        self.start()
        status, headers, body = self.ask("POST", "/echo", b"text")
        self.assertEqual((status, body, headers["content-type"]), (200, b"text", "application/json"))
        status, headers, body = self.ask("POST", "/fail", b"status")
        self.assertEqual((status, json.loads(body), headers["retry-after"]), (429, {"error": "busy"}, "1"))
        with self.assertLogs("tfzoo.serve.rest.http", "ERROR") as logs:
            status, _, body = self.ask("POST", "/fail", b"bug")
        self.assertEqual(status, 500)
        self.assertNotIn(b"1/0", body)
        self.assertIn("ZeroDivisionError", logs.output[0])
        self.assertEqual(self.ask("GET", "/echo")[0], 404)
        self.assertEqual(self.ask("POST", "/few")[2], b"ab")

    def test_a_refusal_before_the_body_is_read_keeps_the_connection(self):
        port = self.start(api_keys=(b"key",))
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
            for refusal, key, answer in (
                (StatusError("RESOURCE_EXHAUSTED", "busy"), "key", (429, b'{"error":"busy"}')),
                (StatusError("UNAVAILABLE", "stopping"), "key", (503, b'{"error":"stopping"}')),
                (StatusError("UNAVAILABLE", "stopping"), "other", (401, None)),
                (None, "key", (200, b"body")),
            ):
                self.refusal = refusal
                connection.request("POST", "/busy", b"body", {"Authorization": f"Bearer {key}"})
                address = connection.sock.getsockname()
                received = connection.getresponse()
                body = received.read()
                self.assertEqual((received.status, body if received.status != 401 else None), answer)
                self.assertEqual(received.headers["retry-after"], "1" if received.status in (429, 503) else None)
                self.assertEqual(connection.sock.getsockname(), address)

    def test_gzip(self):
        self.start()
        text = b"a" * 5000
        status, headers, body = self.ask(
            "POST", "/echo", gzip.compress(text), {"Content-Encoding": "gzip", "Accept-Encoding": "br, gzip;q=0.5"}
        )
        self.assertEqual((status, headers["content-encoding"], gzip.decompress(body)), (200, "gzip", text))
        for accepted in ("", "br", "gzip;q=0"):
            status, headers, body = self.ask("POST", "/echo", text, {"Accept-Encoding": accepted})
            self.assertEqual((headers["content-encoding"], body), (None, text))
        for data, status in [
            (b"text", 400),
            (gzip.compress(text)[:-3], 400),
            (gzip.compress(b"a" * (LIMIT + 1)), 413),
            (gzip.compress(bytes(2**24)), 413),
        ]:
            self.assertEqual(self.ask("POST", "/echo", data, {"Content-Encoding": "gzip"})[0], status)
        self.assertEqual(self.ask("POST", "/echo", text, {"Content-Encoding": "br"})[0], 415)

    def test_sizes(self):
        self.start()
        self.assertEqual(self.ask("POST", "/echo", b"a" * LIMIT)[0], 200)
        status, _, body = self.ask("POST", "/echo", b"a" * (LIMIT + 1))
        self.assertEqual(
            (status, json.loads(body)["error"]), (413, f"The request has more than {LIMIT} bytes, the limit")
        )
        chunks = iter([b"a" * 6000, b"b" * 6000])
        self.assertEqual(self.ask("POST", "/echo", chunks, {"Transfer-Encoding": "chunked"})[0], 413)
        large = self.open(b"GET /public HTTP/1.1\r\nHost: h\r\nX: " + b"a" * 100_000)
        self.assertRegex(large.recv(100), rb"HTTP/1.1 4\d\d ")
        self.assertEqual(self.ask("POST", "/echo", b"after")[2], b"after")

    def test_keys(self):
        self.start(api_keys=(b"first", b"second"))
        for given in ("", "Bearer third", "Bearer", "Basic first", "Bearer \xff"):
            status, headers, body = self.ask("POST", "/echo", b"", {"Authorization": given})
            self.assertEqual((status, headers["www-authenticate"]), (401, "Bearer"), given)
            self.assertNotIn(b"first", body)
        self.assertEqual(self.ask("POST", "/echo", b"x", {"Authorization": "Bearer second"})[2], b"x")
        self.assertEqual(self.ask("GET", "/public")[2], b"public")
        self.assertEqual(self.ask("GET", "/nowhere")[0], 401)

    def test_answers_are_not_delayed(self):
        with contextlib.closing(rest_server.listen("127.0.0.1", 0)) as listener:
            self.assertEqual(listener.proto, socket.IPPROTO_TCP)  # asyncio sets TCP_NODELAY for these alone.

    def test_cors(self):
        self.start(cors=True, api_keys=(b"key",))
        status, headers, _ = self.ask("OPTIONS", "/echo")
        self.assertEqual((status, headers["access-control-allow-origin"]), (204, "*"))
        self.assertIn("Authorization", headers["access-control-allow-headers"])
        headers = self.ask("POST", "/echo", b"", {"Authorization": "Bearer key"})[1]
        self.assertEqual(headers["access-control-allow-origin"], "*")

    def test_no_cors_without_the_setting(self):
        self.start()
        status, headers, _ = self.ask("OPTIONS", "/echo")
        self.assertEqual((status, headers["access-control-allow-origin"]), (404, None))

    def test_a_request_that_takes_too_long_is_answered(self):
        self.start(timeout=0.5)
        status, _, body = self.ask("POST", "/wait")
        self.assertEqual((status, json.loads(body)["error"]), (504, "Timeout: no answer within 0.5 seconds"))
        slow = self.open(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhalf")
        self.assertTrue(slow.recv(100).startswith(b"HTTP/1.1 408 "))

    def test_too_many_requests_are_refused_and_others_are_answered_meanwhile(self):
        self.start(max_requests=1)
        waiting = [self.open(b"POST /wait HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n") for _ in range(17)]
        self.assertTrue(self.began.wait(PATIENCE))
        # The server has accepted the seventeen when it refuses another.
        for _ in range(1000):
            status, headers, _ = self.ask("POST", "/echo", b"x")
            if status == 429:
                break
        self.assertEqual((status, headers["retry-after"]), (429, "1"))
        self.release.set()
        for connection in waiting:
            self.assertTrue(connection.recv(1000).startswith(b"HTTP/1.1 200 "))
        self.assertEqual(self.ask("POST", "/echo", b"x")[0], 200)

    def test_a_client_that_disconnects_cancels_its_request(self):
        self.start()
        connection = self.open(b"POST /cancelled HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
        self.assertTrue(self.began.wait(PATIENCE))
        connection.close()
        self.assertTrue(self.cancelled.wait(PATIENCE))

    def test_a_client_that_disconnects_ends_a_stream(self):
        self.start()
        connection = self.open(b"POST /stream HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
        received = b""
        while b"2\n" not in received:
            received += connection.recv(1000)
        self.assertIn(b"text/event-stream", received)
        connection.close()
        self.release.set()
        self.assertTrue(self.cancelled.wait(PATIENCE))

    def test_a_stream_that_begins_after_its_client_has_gone_is_closed(self):
        self.start()
        connection = self.open(b"POST /late HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
        self.assertTrue(self.began.wait(PATIENCE))
        connection.close()
        # The server sees the disconnection before it answers another connection's request.
        self.assertEqual(self.ask("POST", "/echo", b"x")[2], b"x")
        self.release.set()
        self.assertTrue(self.cancelled.wait(PATIENCE))

    def test_silent_connections_do_not_block_others(self):
        self.start()
        for text in (
            b"",
            b"POST /ec",
            b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n",
            b"\0\xff\r\n\r\n",
        ):
            for _ in range(20):
                self.open(text)
        self.assertEqual(self.ask("POST", "/echo", b"x")[2], b"x")

    def test_the_head_of_a_request_is_bounded(self):
        self.start()
        endless = b"a" * 2**20
        line = b"GET / HTTP/1.1\r\n"
        for text in (endless, b"GET /" + endless, line + endless, line + b"a: b\r\n" * 2**15):
            connection, received = self.open(b""), b""
            with contextlib.suppress(ConnectionError):  # The server may close before it has read everything.
                connection.sendall(text)
            with contextlib.suppress(ConnectionError):
                while part := connection.recv(1000):
                    received += part
            self.assertTrue(not received or received.startswith(b"HTTP/1.1 400 "), received)
        large = b"x" * 2**17  # A body has another limit.
        connection = self.open(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(large) + large)
        self.assertTrue(connection.recv(1000).startswith(b"HTTP/1.1 413 "))

    def test_silent_connections_are_closed(self):
        with mock.patch.object(rest_server, "_SILENCE", 0.1):
            self.start()
            for text in (b"", b"POST /ec", b"GET /public HTTP/1.1\r\nHost: h\r\n\r\n"):
                connection = self.open(text)
                while connection.recv(1000):
                    pass
            waiting = self.open(b"POST /wait HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
            self.assertTrue(self.began.wait(PATIENCE))
            connection = self.open(b"")
            while connection.recv(1000):  # As long as it takes to close one, a request that runs is not.
                pass
            self.release.set()
            self.assertTrue(waiting.recv(1000).startswith(b"HTTP/1.1 200 "))

    def test_connections_with_requests_stay_open(self):
        connection = rest_server._Protocol.__new__(rest_server._Protocol)
        connection.loop = mock.Mock()
        with mock.patch.object(HttpToolsProtocol, "connection_made"):
            connection.connection_made(mock.Mock())
        connection.transport = transport = mock.Mock()
        for _ in range(3):  # Between two ticks there was a request, which has been answered.
            connection.cycle = mock.Mock(response_complete=True)
            connection._tick()
        transport.close.assert_not_called()
        connection._tick()
        transport.close.assert_called_once()

    def test_requests_that_run_are_answered_when_the_server_stops(self):
        self.start()
        connection = self.open(b"POST /wait HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
        self.assertTrue(self.began.wait(PATIENCE))
        stopping = threading.Thread(target=self.server.stop, args=(PATIENCE,))
        stopping.start()
        while True:
            try:
                self.open(b"").close()
            except (ConnectionRefusedError, ConnectionResetError):
                break
        self.release.set()
        self.assertTrue(connection.recv(1000).startswith(b"HTTP/1.1 200 "))
        stopping.join()

    def test_a_port_in_use_is_refused(self):
        port = self.start()
        with self.assertRaisesRegex(UserError, f"--rest_api_port={port}: cannot listen on 127.0.0.1 .*in use"):
            rest_server.listen("127.0.0.1", port)


if __name__ == "__main__":
    unittest.main()
