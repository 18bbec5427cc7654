"""serving/load_test.py: loops, latencies and refusals, against functions and a small HTTP server."""

import contextlib
import http.server
import importlib.util
import io
import json
import os
import sys
import threading
import time
import unittest
from unittest import mock

import numpy as np

from tests import helpers

FOLDER = helpers.ROOT / "serving"


def _load():
    spec = importlib.util.spec_from_file_location("load_test", FOLDER / "load_test.py")
    module = importlib.util.module_from_spec(spec)
    with mock.patch.object(sys, "path", [str(FOLDER), *sys.path]):  # It imports client.py.
        sys.modules["load_test"] = module
        spec.loader.exec_module(module)
    return module


load_test = _load()


class Server(http.server.ThreadingHTTPServer):
    """Refuses every third request, and fails every fourth."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[dict] = []
        self.lock = threading.Lock()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.bodies.append({"path": self.path, "key": self.headers["Authorization"], **json.loads(body)})
            number = len(self.server.bodies)
        self.send_response(429 if number % 3 == 0 else 500 if number % 4 == 0 else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


class LoopTest(unittest.TestCase):
    def test_in_a_closed_loop_each_client_waits_for_its_answer(self) -> None:
        inside, most, sent = [0], [0], []
        lock = threading.Lock()

        def send() -> str:
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                sent.append(time.perf_counter())
            time.sleep(0.005)
            with lock:
                inside[0] -= 1
            return "OK"

        result = load_test._measure([send] * 3, load_test.Load(clients=3), 0.2, 0, 0)
        self.assertEqual(most[0], 3)
        self.assertEqual(result.codes, {"OK": len(sent)})
        self.assertGreaterEqual(result.latencies[0], 0.005)
        self.assertLess(max(sent) - min(sent), result.seconds)
        self.assertTrue(np.isnan(result.cpu_per_request()))

    def test_in_an_open_loop_latencies_count_from_the_time_at_which_requests_were_due(self) -> None:
        load, seconds, pause = load_test.Load(rate=200), 0.3, 0.02
        due = np.array(list(load_test._due_times(load, 0.0, seconds, seed=1)))

        def send() -> str:
            time.sleep(pause)
            return "OK"

        result = load_test._measure([send], load, seconds, 0, 1)
        self.assertEqual(result.codes["OK"], len(due))
        # With one worker, the request k is answered after k + 1 pauses at the earliest.
        earliest = pause * (1 + np.arange(len(due))) - due
        self.assertTrue((np.sort(result.latencies) >= np.sort(np.maximum(earliest, pause)) - 1e-6).all())

    def test_arrivals_are_random_with_the_mean_rate(self) -> None:
        due = np.array(list(load_test._due_times(load_test.Load(rate=50), 10.0, 210.0, seed=0)))
        gaps = np.diff(due)
        self.assertTrue((gaps > 0).all() and due[0] > 10 and due[-1] < 210)
        self.assertAlmostEqual(gaps.mean(), 0.02, delta=0.001)  # 10,000 gaps: five standard errors.
        self.assertAlmostEqual(gaps.std(), 0.02, delta=0.002)  # Of an exponential distribution, that is the mean.

    def test_cpu_time(self) -> None:
        before = load_test.cpu_of(os.getpid())
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
        used = load_test.cpu_of(os.getpid()) - before
        self.assertGreaterEqual(used, 0.04)
        self.assertIsNone(load_test.cpu_of(0))
        with self.assertRaises(OSError):
            load_test.cpu_of(2**22 + 1)


class CommandTest(unittest.TestCase):
    def run_main(self, *argv: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = load_test.main(argv)
            except SystemExit as stop:
                code = stop.code
        return code, out.getvalue(), err.getvalue()

    def test_http(self) -> None:
        server = Server()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        address, picture = f"http://127.0.0.1:{server.server_port}", helpers.temporary_folder(self) / "load.png"
        code, out, err = self.run_main(
            address, "m/1", '{"x": [1.5]}', "--signature=s", "--clients=1,3", "--seconds=0.2", "--warmup=0",
            f"--plot={picture}", f"--server_pid={os.getpid()}", "--api_key=secret",
        )  # fmt: skip
        self.assertEqual((code, err), (0, ""))
        expected = {"path": "/v1/models/m%2F1:predict", "key": "Bearer secret", "signature_name": "s",
                    "inputs": {"x": [1.5]}}  # fmt: skip
        self.assertTrue(all(body == expected for body in server.bodies))
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines()[2:]]
        self.assertEqual([row[0] for row in rows], ["1 client", "3 clients"])
        total = len(server.bodies)
        self.assertEqual(sum(int(row[5]) for row in rows), total // 3)
        self.assertEqual(sum(int(row[6].split()[0]) for row in rows), total // 4 - total // 12)
        self.assertLessEqual({row[6].partition(" ")[2] for row in rows}, {"500", ""})
        self.assertTrue(all(float(row[7]) >= 0 for row in rows))
        self.assertEqual(picture.read_bytes()[:4], b"\x89PNG")
        code, out, _ = self.run_main(address, "m", "{}", "--rates=100", "--seconds=0.2", "--warmup=0")
        self.assertEqual(code, 0)
        self.assertRegex(out.splitlines()[2], r"^\| 100 requests/s \| [\d.]+ \| [\d.]+ \| [\d.]+ \| [\d.]+ \| \d+ \| ")

    def test_wrong_use(self) -> None:
        for arguments, text in (
            (["http://127.0.0.1:1", "m", "{}"], "specify either --clients or --rates"),
            (["http://example.org:80", "m", "{}", "--clients=1"], "is another machine, whose users a load"),
            (["http://127.0.0.1:1", "m", "{}", "--clients=0"], "0 must consist of positive numbers"),
            (["http://127.0.0.1:1", "m", "{}", "--clients=1", "--seconds=1e9"], "must be at most 600 seconds"),
            (["127.0.0.1:1", "m", "{}", "--clients=1", "--remote"], "'127.0.0.1:1' is not an address"),
            (["grpc://127.0.0.1:1", "m", "{}", "--clients=1", "--timeout=5"], "m: UNAVAILABLE: "),
            (["http://127.0.0.1:1", "m", "{}", "--clients=1", "--server_pid=4194305"], "--server_pid=4194305: "),
        ):  # fmt: skip
            code, _, err = self.run_main(*arguments)
            self.assertEqual(code, 2)
            self.assertIn(text, err.splitlines()[-1])
        code, out, _ = self.run_main("http://127.0.0.1:1", "m", "{}", "--clients=1", "--seconds=0.05", "--warmup=0")
        self.assertEqual(code, 1)
        self.assertIn("ConnectionRefusedError", out)


if __name__ == "__main__":
    unittest.main()
