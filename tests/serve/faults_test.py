"""Faults and load: malformed requests, overload, broken versions, slow clients and signals, over real connections.

One server in a process of its own is asked by all tests, and the last one stops it. `make test` makes a few of each
kind of request, `make faults` more; TFZOO_TEST_TRIES=50000 sets the number of malformed requests of `make faults`, and
as many requests over each of gRPC and HTTP are made to watch memory. Counts are asserted, never times.
"""

import collections
import concurrent.futures
import contextlib
import http.client
import itertools
import json
import os
import pathlib
import shutil
import socket
import tempfile
import threading

import grpc
import pytest
import tensorflow as tf

from tests import helpers
from tests.helpers import PATIENCE
from tests.serve import breakages, malformed, models
from tests.serve.malformed import LENGTH, VOCAB
from tests.serve.process import ServerProcess, wait_until
from tfzoo.serve import messages

TRIES = int(os.environ.get("TFZOO_TEST_TRIES", 5000))
SEED = int(os.environ.get("TFZOO_TEST_SEED", 0))
RUNNING, QUEUED = 2, 8
MAX_BYTES = 2**20
MEGABYTE = 2**20


SLOW = 20_000  # A few tenths of a second.


parts = contextlib.ExitStack()  # Closed after the last test.
folder: pathlib.Path
server: ServerProcess


def setUpModule() -> None:
    global folder, server
    folder = pathlib.Path(parts.enter_context(tempfile.TemporaryDirectory())).resolve()
    models.save_all(folder)
    for name, module in (("tokens", models.Tokens(VOCAB, LENGTH)), ("slow", models.Slow())):
        tf.saved_model.save(module, str(folder / name / "1"), signatures=module.__call__.get_concrete_function())
    models.save(folder / "sources" / "0", 2.0)
    models.save(folder / "sources" / "1", 3.0)
    install("swapped")
    (folder / "models.config").write_text(str(configuration()))
    (folder / "monitoring.config").write_text("prometheus_config { enable: true }")
    server = ServerProcess(
        f"--model_config_file={folder / 'models.config'}",
        f"--monitoring_config_file={folder / 'monitoring.config'}",
        "--max_num_load_retries=0",
        "--file_system_poll_wait_seconds=0",
        "--allow_version_labels_for_unavailable_models",
        f"--max_running_requests={RUNNING}",
        f"--max_queued_requests={QUEUED}",
        f"--max_queue_seconds={PATIENCE}",
        f"--max_request_bytes={MAX_BYTES}",
    )
    parts.callback(server.close)


def tearDownModule() -> None:
    parts.close()


def configuration(**versions: int):
    """Returns the ModelServerConfig of all models; `versions` names the version of some of them."""
    config = messages.ModelServerConfig()
    for name in ("half_plus_two", "half_plus_three", "old_style", "tokens", "slow", "swapped"):
        added = config.model_config_list.config.add(
            name=name, base_path=str(folder / name), model_platform="tensorflow"
        )
        if name in versions:
            added.model_version_policy.specific.versions.append(versions[name])
    return config


def install(name: str, breakage=None) -> int:
    """Adds a version of a model and returns its number, the next one; its bias is 2 or 3 as the number is even or odd.
    `breakage` damages its folder."""
    present = [int(path.name) for path in (folder / name).glob("[0-9]*")]
    version, partial = max(present, default=0) + 1, folder / name / "partial"
    shutil.copytree(folder / "sources" / str(version % 2), partial)
    if breakage is not None:
        breakage(partial)
    partial.rename(partial.with_name(str(version)))
    return version


def predict_request(model: str, name: str, values, dtype=tf.float32) -> bytes:
    request = messages.PredictRequest(model_spec={"name": model})
    request.inputs[name].ParseFromString(tf.make_tensor_proto(values, dtype).SerializeToString())
    return request.SerializeToString()


def predict(data: bytes) -> tuple[int, list[float]]:
    """Returns the version that answered a Predict request with one output, and its values."""
    answer = messages.PredictResponse.FromString(server.method("PredictionService/Predict")(data, timeout=PATIENCE))
    (output,) = answer.outputs.values()
    return answer.model_spec.version.value, list(output.float_val)


def reload(config) -> None:
    request = messages.ReloadConfigRequest(config=config).SerializeToString()
    server.method("ModelService/HandleReloadConfigRequest")(request, timeout=PATIENCE)


class Case(tf.test.TestCase):
    def assert_healthy(self) -> None:
        """The server runs, has logged no bug and answers right over gRPC and HTTP."""
        self.assertTrue(server.is_running(), server.log()[-3000:])
        self.assertNotIn("Traceback", server.log())
        _, values = predict(predict_request("half_plus_two", "x", [1.0, 3.0]))
        self.assertAllEqual(values, [2.5, 3.5])
        status, body = server.ask("POST", "/v1/models/half_plus_two:predict", '{"inputs": [1.0, 3.0]}')
        self.assertEqual((status, json.loads(body)), (200, {"outputs": [2.5, 3.5]}))

    def fill(self) -> list[grpc.Future]:
        """Sends slow requests until the server refuses one of them; returns all of them."""
        method = server.method("PredictionService/Predict")
        data = predict_request("slow", "n", SLOW, tf.int32)
        sent: list[grpc.Future] = []
        while not any(future.done() and future.code() is grpc.StatusCode.RESOURCE_EXHAUSTED for future in sent):
            self.assertLess(len(sent), 1000)
            sent.append(method.future(data, timeout=PATIENCE))
            if len(sent) > RUNNING + QUEUED:
                threading.Event().wait(0.01)
        return sent


class MalformedTest(Case):
    def check(self, tries: int) -> None:
        outcomes = malformed.refusals(server, malformed.Requests(SEED), ("grpc", "http"), tries)
        for outcome in ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", 400, 404):
            self.assertGreater(outcomes[outcome], 0, outcome)
        self.assert_healthy()

    def test_some(self) -> None:
        self.check(200)

    @pytest.mark.faults
    def test_many(self) -> None:
        self.check(TRIES)

    def test_ids_and_lengths(self) -> None:
        for ids in ([[-1]], [[VOCAB]], [[2**31 - 1]], [[0] * (LENGTH + 1)], [[0] * 10_000]):
            with self.assertRaises(grpc.RpcError) as raised:
                predict(predict_request("tokens", "token_ids", ids, tf.int32))
            self.assertEqual(raised.exception.code(), grpc.StatusCode.INVALID_ARGUMENT, ids[0][0])
            self.assertEqual(server.ask("POST", "/v1/models/tokens:predict", json.dumps({"inputs": ids}))[0], 400)
        _, sums = predict(predict_request("tokens", "token_ids", [[0, VOCAB - 1]], tf.int32))
        self.assertAllEqual(sums, [16.0])

    def test_a_few_bytes_do_not_take_much_memory(self) -> None:
        """Tensors that repeat one value."""
        refused = 0
        before = server.memory("VmHWM")
        for dtype, field, value in ((1, "float_val", 1.0), (7, "string_val", b"a"), (9, "int64_val", 1)):
            for sizes in ([2**26], [2**23], [3, 2**24], [2**62, 4], [0, 2**62, 2**62]):
                request = messages.PredictRequest(model_spec={"name": "half_plus_two"})
                getattr(request.inputs["x"], field).append(value)
                request.inputs["x"].dtype = dtype
                for size in sizes:
                    request.inputs["x"].tensor_shape.dim.add(size=size)
                with self.assertRaises(grpc.RpcError) as raised:
                    predict(request.SerializeToString())
                refused += raised.exception.code() is grpc.StatusCode.INVALID_ARGUMENT
        self.assertEqual(refused, 15)
        self.assertLess(server.memory("VmHWM") - before, 64 * MEGABYTE)

    def test_bodies_that_are_too_large(self) -> None:
        data = predict_request("half_plus_two", "x", [0.0] * (MAX_BYTES // 4))
        with self.assertRaises(grpc.RpcError) as raised:
            predict(data)
        self.assertEqual(raised.exception.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        body = b'{"inputs": [%s]}' % b",".join([b"1"] * (MAX_BYTES // 2))
        self.assertEqual(server.ask("POST", "/v1/models/half_plus_two:predict", body)[0], 413)
        self.assert_healthy()

    def test_names_that_are_not_names(self) -> None:
        for name in (
            "..",
            "%2e%2e",
            "%2f",
            "a%2fb",
            "..%2f..%2fetc",
            "%00",
            "tokens%00",
            "tokens%2f",
            "%ff",
        ):
            for path in (f"/v1/models/{name}:predict", f"/v1/models/{name}", f"/v1/models/{name}/metadata"):
                status, _ = server.ask("POST" if path.endswith("predict") else "GET", path, b'{"inputs": [1.0]}')
                self.assertIn(status, (400, 404), path)
        for name in ("..", "../half_plus_two", "half_plus_two/", "half_plus_two\0", "/"):
            with self.assertRaises(grpc.RpcError) as raised:
                predict(predict_request(name, "x", [1.0]))
            self.assertEqual(raised.exception.code(), grpc.StatusCode.NOT_FOUND)


class OverloadTest(Case):
    def assert_accepted_or_refused(self, sent: list[grpc.Future]) -> None:
        """At least as many as run and wait are answered, and the others are refused with RESOURCE_EXHAUSTED."""
        codes = collections.Counter(future.code().name for future in sent)
        self.assertLessEqual(codes.keys(), {"OK", "RESOURCE_EXHAUSTED"})
        self.assertGreaterEqual(codes["OK"], RUNNING + QUEUED)
        for future in sent:
            if future.code() is grpc.StatusCode.OK:
                answer = messages.PredictResponse.FromString(future.result())
                self.assertEqual(list(answer.outputs["sum"].int_val), [SLOW])

    def test_what_is_too_much_is_refused(self) -> None:
        before = metric("runtime_latency_count", model_name="tokens")
        sent = self.fill()
        # It still tells about itself.
        self.assertEqual(server.ask("GET", "/readyz")[0], 200)
        self.assertEqual(server.available("slow"), [1])
        answers: list[http.client.HTTPResponse] = []
        while not answers or answers[-1].status == 200:
            self.assertLess(len(answers), 100)
            answers.append(self.ask_over_http())
        self.assertEqual((answers[-1].status, answers[-1].headers["Retry-After"]), (429, "1"))
        # The deadline of a request that waits for its turn passes, so it is not run.
        wait_until(lambda: any(future.done() and future.code() is grpc.StatusCode.OK for future in sent))
        with self.assertRaises(grpc.RpcError) as raised:
            data = predict_request("tokens", "token_ids", [[1]], tf.int32)
            server.method("PredictionService/Predict")(data, timeout=0.02)
        self.assertIn(raised.exception.code().name, ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"))
        self.assert_accepted_or_refused(sent)
        self.assert_healthy()
        self.assertEqual(metric("runtime_latency_count", model_name="tokens"), before)

    def ask_over_http(self) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=PATIENCE)
        self.addCleanup(connection.close)
        connection.request("POST", "/v1/models/half_plus_two:predict", '{"inputs": [1.0]}')
        answer = connection.getresponse()
        answer.read()
        return answer


def metric(name: str, **labels: str) -> float:
    """Returns the sum of a metric over all of its labels but these."""
    text = server.ask("GET", "/monitoring/prometheus/metrics")[1].decode()
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    lines = [line for line in text.splitlines() if line.startswith(f":tensorflow:serving:{name}{{")]
    return sum(float(line.split()[-1]) for line in lines if all(label in line for label in wanted))


class SwapTest(Case):
    def check(self, swaps: int) -> None:
        """Versions are swapped while four clients ask: none of them sees it, and broken versions replace nothing."""
        stop, counts = threading.Event(), collections.Counter[object]()
        failures: list[object] = []
        data = predict_request("swapped", "x", [2.0])
        bias = {2.0: 0, 3.0: 1}

        def ask_grpc() -> None:
            version, (value,) = predict(data)
            if bias[value - 1.0] != version % 2:
                failures.append((version, value))
            counts[version] += 1

        def ask_http() -> None:
            status, body = server.ask("POST", "/v1/models/swapped:predict", '{"instances": [2.0]}')
            if status != 200 or json.loads(body)["predictions"][0] not in (3.0, 4.0):
                failures.append((status, body))
            counts["HTTP"] += 1

        def ask(function) -> None:
            while not stop.is_set():
                try:
                    function()
                except Exception as error:
                    failures.append(error)

        (current,) = server.available("swapped")
        damages = itertools.cycle(breakages.ALL)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(ask, function) for function in (ask_grpc, ask_http) * 2]
            try:
                for swap in range(swaps):
                    breakage = next(damages) if swap % 3 == 1 else None
                    version = install("swapped", breakage)
                    reload(configuration(swapped=version))
                    if breakage is None:
                        current = version
                        wait_until(lambda: server.available("swapped") == [current])  # noqa: B023
                    else:
                        wait_until(lambda: is_ended("swapped", version))  # noqa: B023
                        self.assertEqual(server.available("swapped"), [current], breakage.__name__)
                    before = counts.total()
                    wait_until(lambda: bool(failures) or counts.total() >= before + 8)  # noqa: B023
            finally:
                stop.set()
        for client in clients:
            client.result()
        print(f"{swaps} swaps under {counts.total()} requests: {dict(counts)}")
        self.assertEqual(failures, [])
        self.assert_healthy()

    def test_a_few_swaps(self) -> None:
        self.check(4)

    @pytest.mark.faults
    def test_many_swaps(self) -> None:
        self.check(30)  # 20 good versions.

    def test_a_folder_that_vanishes(self) -> None:
        """What is loaded goes on, and a version that was half-written is served once it is whole."""
        shutil.move(folder / "old_style", folder / "elsewhere")
        reload(configuration())
        self.assertAllEqual(predict(predict_request("old_style", "x", [1.0]))[1], [2.5])
        self.assertEqual(server.available("old_style"), [123])
        install("old_style", breakages.half_a_graph)
        reload(configuration())
        wait_until(lambda: is_ended("old_style", 1))
        self.assertAllEqual(predict(predict_request("old_style", "x", [1.0]))[1], [2.5])
        shutil.rmtree(folder / "old_style" / "1")
        install("old_style")
        reload(configuration())
        wait_until(lambda: server.available("old_style") == [1])
        self.assertAllEqual(predict(predict_request("old_style", "x", [1.0]))[1], [3.5])
        self.assert_healthy()


def is_ended(model: str, version: int) -> bool:
    """Returns whether a version could not be loaded, and will not be tried again."""
    request = messages.GetModelStatusRequest(model_spec={"name": model}).SerializeToString()
    answer = server.method("ModelService/GetModelStatus")(request, timeout=PATIENCE)
    statuses = messages.GetModelStatusResponse.FromString(answer).model_version_status
    return any(each.version == version and each.state == 50 and each.status.error_code for each in statuses)


class LeakTest(Case):
    def check(self, requests: int, reloads: int, warm_up: int) -> None:
        """Memory and descriptors remain as they are over many requests, and over reloads of models."""
        data = predict_request("half_plus_two", "x", [1.0, 3.0])
        connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=PATIENCE)

        def ask(count: int) -> None:
            for _ in range(count):
                predict(data)
                connection.request("POST", "/v1/models/half_plus_two:predict", '{"inputs": [1.0, 3.0]}')
                self.assertEqual(connection.getresponse().read(), b'{"outputs":[2.5,3.5]}')

        ask(warm_up)
        memory, descriptors = server.memory(), server.descriptors()
        ask(requests)
        grown = server.memory() / memory - 1
        print(f"{2 * requests} requests: memory {grown:+.2%}, descriptors {descriptors} -> {server.descriptors()}")
        self.assertLess(grown, 0.02)
        self.assertEqual(server.descriptors(), descriptors)

        def swap() -> None:
            version = install("swapped")
            reload(configuration(swapped=version))
            wait_until(lambda: server.available("swapped") == [version])
            predict(predict_request("swapped", "x", [2.0]))

        def lowest_memory(count: int) -> int:
            """Returns the lowest of the memory after each of some swaps. It goes up and down by 2 %, because TensorFlow
            frees what is unloaded later."""
            memory = []
            for _ in range(count):
                swap()
                memory.append(server.memory())
            return min(memory)

        for _ in range(3):  # The pools of the allocator grow at first.
            swap()
        half = reloads // 2
        descriptors = server.descriptors()
        memory = lowest_memory(half)
        for _ in range(reloads - half):
            swap()
        grown = lowest_memory(half) / memory - 1
        print(f"{reloads} reloads: memory {grown:+.2%}, descriptors {descriptors} -> {server.descriptors()}")
        self.assertLess(grown, 0.02)
        wait_until(lambda: server.descriptors() <= descriptors)  # What is unloaded is closed a little later.
        connection.close()

    def test_a_few_requests(self) -> None:
        self.check(requests=200, reloads=2, warm_up=200)

    @pytest.mark.faults
    def test_many_requests(self) -> None:
        self.check(requests=TRIES, reloads=20, warm_up=2000)

    def test_silent_and_slow_clients(self) -> None:
        """Connections that send nothing, or half a request, and then nothing more, hinder nobody."""
        before = server.descriptors()
        beginnings = (b"", b"POST /v1/models/half_plus_two:predict HTTP/1.1\r\nHost: h\r\nContent-Length: 99\r\n\r\n{",
                      b"GET / HTTP/1.1\r\nHos", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")  # fmt: skip
        with contextlib.ExitStack() as connections:
            for number in range(120):
                port = server.port if number % 2 else server.rest_port
                connection = connections.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE))
                connection.sendall(beginnings[number // 2 % len(beginnings)])
            self.assert_healthy()
        wait_until(lambda: server.descriptors() <= before)


class ProcessTest(Case):
    def test_a_port_in_use(self) -> None:
        for flag in (f"--port={server.port}", f"--rest_api_port={server.rest_port}"):
            flags = {"--port": "0", "--rest_api_port": "0"} | dict([flag.split("=")])
            done = helpers.python(
                "-m", "tfzoo.serve", f"--model_base_path={folder / 'tokens'}",
                *(f"{name}={value}" for name, value in flags.items()), check=False,
            )  # fmt: skip
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertRegex(
                done.stderr, rf"\A(.* INFO gRPC at .*\n)?error: {flag}: cannot listen on .* already in use\)"
            )
            self.assertRegex(done.stderr, r"; choose another port\n\Z")
        self.assert_healthy()

    def test_the_load_test_over_grpc(self) -> None:
        done = helpers.python(
            helpers.ROOT / "serving" / "load_test.py", f"grpc://127.0.0.1:{server.port}", "half_plus_two",
            '{"x": [1, 3]}', "--clients=2", "--seconds=0.2", "--warmup=0", f"--server_pid={server.process.pid}",
        )  # fmt: skip
        self.assertRegex(
            done.stdout.splitlines()[-1], r"^\| 2 clients \| [\d.]+ \|( [\d.]+ \|){3} 0 \| 0 \| [\d.]+ \| \d+% \|$"
        )


class StopTest(Case):
    """The last test, because it stops the server."""

    def test_sigterm_loses_nothing(self) -> None:
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            body = json.dumps({"inputs": SLOW})
            over_http = [pool.submit(server.ask, "POST", "/v1/models/slow:predict", body) for _ in range(2)]
            for _ in range(2):  # By now, their connections are accepted.
                self.assertEqual(server.ask("GET", "/readyz")[0], 200)
            sent = self.fill()
            server.terminate()
            self.assertEqual(server.wait(), 0, server.log()[-3000:])
            codes = collections.Counter(future.code().name for future in sent)
            self.assertLessEqual(codes.keys(), {"OK", "RESOURCE_EXHAUSTED", "UNAVAILABLE"})
            answers = [future.result() for future in over_http]
        accepted = codes["OK"] + sum(status == 200 for status, _ in answers)
        self.assertLessEqual({status for status, _ in answers}, {200, 429, 503})
        self.assertGreaterEqual(accepted, RUNNING + QUEUED)
        self.assertNotIn("Traceback", server.log())


if __name__ == "__main__":
    tf.test.main()
