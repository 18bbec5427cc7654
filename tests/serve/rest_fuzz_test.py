"""Malformed requests over REST: damaged JSON, wrong values, paths, headers and HTTP. None crashes the server or is its
fault."""

import asyncio
import collections
import json
import os
import pathlib
import random
import socket
import unittest

import pytest

from tests.helpers import PATIENCE
from tests.serve import servers
from tfzoo.serve.rest import server as rest_server
from tfzoo.serve.rest.http import Settings

TRIED = int(os.environ.get("TFZOO_FUZZ", 50_000))
TWO = "/v1/models/half_plus_two"
REQUESTS: list[tuple[str, object]] = [
    (f"{TWO}:predict", {"instances": [1.0, 2.0]}),
    (f"{TWO}:predict", {"instances": [{"x": 1.0}, {"x": 2.0}]}),
    (f"{TWO}:predict", {"inputs": {"x": [1.0, 2.0]}, "signature_name": "serving_default"}),
    (f"{TWO}:predict", {"inputs": ["a", {"b64": "YQ=="}], "signature_name": "upper"}),
    (f"{TWO}:predict", {"inputs": {"ids": [[1, 2, 3]], "scale": 0.5}, "signature_name": "several"}),
    (f"{TWO}:classify", {"examples": [{"x": 1.0}], "signature_name": "classify"}),
    (f"{TWO}:regress", {"examples": [{}], "context": {"x": [1.0]}, "signature_name": "regress"}),
    ("/v1/models/old_style:predict", {"instances": [[1.0], [2.0]]}),
    ("/v1/models/half_plus_three/labels/stable:predict", {"instances": [1.0]}),
    ("/v1/embeddings", {"model": "half_plus_two", "input": ["a"], "encoding_format": "float"}),
    ("/v1/completions", {"model": "half_plus_two", "prompt": "a", "max_tokens": 3, "stop": ["x"]}),
    (
        "/v1/chat/completions",
        {"model": "half_plus_two", "messages": [{"role": "user", "content": "a"}], "stream": True},
    ),
    ("/v1/rerank", {"model": "half_plus_two", "query": "a", "documents": ["b", {"text": "c"}], "top_n": 1}),
]
VALUES: list = [
    None, True, False, 0, -1, 1, 2**31 - 1, 2**31, -(2**63) - 1, 2**64, 10**400, 1e39, -1e-320, 0.5, "", "text", "\0",
    "\ud800", "é" * 50, [], {}, [[]], [[], [1]], [1, "a"], [[1, 2], [3]], {"b64": "*"}, {"b64": 1}, {"b64": "YQ"},
    {"x": {"x": {}}}, [None], "x" * 10_000, [0] * 5000, [[[[[[1]]]]]],
]  # fmt: skip
TEXTS = [
    b"NaN", b"-Infinity", b"Infinity", b"1e999", b"-1e999", b"[" * 2000, b'{"a":' * 2000, b'{"x": 1, "x": 2}', b"01",
    b"+1", b"'a'", b'"\xff\xfe"', b"1" * 5000, b"\xef\xbb\xbf1", b'"\\ud800"', b"[1,]", b"/**/1", b"",
]  # fmt: skip
PATHS = [
    "/v1/models/%2e%2e%2f{}:predict", "/v1/models/{}%00:predict", "/v1/models/{}/versions/99999999999999999999:predict",
    "/v1/models/{}/versions/-1:predict", "/v1/models/{}/labels/%ff:predict", "/v1/models/{}:predict:predict",
    "/V1/MODELS/{}:PREDICT", "//v1/models/{}:predict", "/v1/models/{}:predict/", "/v1/models/" + "a" * 5000, "/v1/",
    "/v1/models/{}/versions/1/metadata", "/v1/models/{}/metadata:predict", "*", "/v1/models/%F0%9F%98%80:predict",
]  # fmt: skip
HEADERS = [
    (b"content-encoding", b"gzip"), (b"content-encoding", b"zstd"), (b"content-length", b"99999999999"),
    (b"content-length", b"x"), (b"authorization", b"Bearer \xff"), (b"accept-encoding", b"gzip;q=\xff"),
    (b"content-type", b"text/xml"),
]  # fmt: skip


def places(value, path=()):
    """Yields the paths of all values in lists and objects."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def malformed(draw: random.Random) -> tuple[str, str, bytes, list[tuple[bytes, bytes]]]:
    """Returns the method, path, body and headers of a request."""
    path, body = draw.choice(REQUESTS)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        body = replaced(body, draw.choice([*places(body)]), draw.choice([*VALUES, "MARK"]))
    text = json.dumps(body).encode().replace(b'"MARK"', draw.choice(TEXTS))
    kind = draw.random()
    if kind < 0.1:
        text = text[: draw.randrange(len(text) + 1)]
    elif kind < 0.2 and text:
        data = bytearray(text)
        for _ in range(draw.randrange(1, 5)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        text = bytes(data)
    if draw.random() < 0.1:
        path = draw.choice(PATHS).format(draw.choice(["half_plus_two", "nobody", ""]))
    headers = [draw.choice(HEADERS)] if draw.random() < 0.1 else []
    return draw.choice(("POST",) * 9 + ("GET", "PUT", "OPTIONS", "DELETE")), path, text, headers


def memory() -> int:
    """Returns the resident memory of this process in MiB."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


async def answer(app, method, path, body, headers) -> tuple[int, bytes]:
    """Returns the status and body with which an application answers."""
    events, sent = [{"type": "http.request", "body": body, "more_body": False}], []

    async def receive():
        if events:
            return events.pop()
        await asyncio.sleep(PATIENCE)

    async def send(event):
        sent.append(event)

    scope = {"type": "http", "method": method, "raw_path": path.encode(), "headers": headers}
    await app(scope, receive, send)
    return sent[0]["status"], b"".join(event["body"] for event in sent[1:])


@pytest.mark.faults
class FuzzTest(unittest.TestCase):
    def test_malformed_requests_are_refused(self):
        settings = Settings(max_request_bytes=2**20, max_requests=8)
        app = rest_server.application(servers.core(), settings)
        self.addCleanup(app.close)
        draw, statuses = random.Random(1), collections.Counter()
        before = 0

        async def ask_all():
            nonlocal before
            for number in range(TRIED):
                request = malformed(draw)
                status, body = await answer(app, *request)
                statuses[status] += 1
                # 501: a type without a form in JSON.
                self.assertTrue(status < 500 or status == 501, (status, request[:2], request[2][:300], body[:300]))
                if number == TRIED // 10:
                    before = memory()
            return await answer(app, "POST", f"{TWO}:predict", b'{"instances": [1.0]}', [])

        with self.assertNoLogs("tfzoo.serve", "ERROR"):
            self.assertEqual(asyncio.run(ask_all()), (200, b'{"predictions":[2.5]}'))
        print(f"{TRIED:,} malformed requests over REST: {dict(sorted(statuses.items()))}")
        self.assertGreater(statuses[400], TRIED // 2)
        self.assertGreater(statuses[200], 0)  # Some remain valid.
        self.assertLess(memory() - before, 64)

    def test_bytes_that_are_not_http(self):
        host, _, port = servers.rest_address().rpartition(":")
        draw = random.Random(2)
        valid = (
            f"POST {TWO}:predict HTTP/1.1\r\nHost: h\r\nContent-Length: 20\r\n\r\n".encode() + b'{"instances": [1.0]}'
        )
        for _ in range(300):
            data = bytearray(valid)
            for _ in range(draw.randrange(1, 6)):
                data[draw.randrange(len(data))] = draw.randrange(256)
            with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
                connection.sendall(bytes(data[: draw.randrange(1, len(data) + 1)]))
                connection.shutdown(socket.SHUT_WR)
                received = b""
                try:
                    while part := connection.recv(65536):
                        received += part
                except ConnectionResetError:
                    pass
            self.assertNotRegex(received, rb"^HTTP/1.1 5")
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
            connection.sendall(valid)
            self.assertTrue(connection.recv(100).startswith(b"HTTP/1.1 200 "))


if __name__ == "__main__":
    unittest.main()
