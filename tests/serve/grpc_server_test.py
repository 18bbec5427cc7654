"""The gRPC server's options: TLS, keys, sockets, health, reflection, limits, metrics and logs, without TensorFlow."""

import contextlib
import http.client
import ssl
import subprocess
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.helpers import ROOT, temporary_folder
from tests.serve import onnx_folders
from tfzoo.errors import UserError
from tfzoo.serve import messages, policies, records, request_log, tensors, tls, warmup
from tfzoo.serve.core import Core
from tfzoo.serve.errors import StatusError
from tfzoo.serve.grpc_server import GrpcServer, Held
from tfzoo.serve.limits import Limits
from tfzoo.serve.loading import Loader
from tfzoo.serve.manager import Manager
from tfzoo.serve.metrics import Metrics
from tfzoo.serve.rest import http as rest_http
from tfzoo.serve.rest import server as rest
from tfzoo.serve.servable import ModelSpec

CODE = grpc.StatusCode


def request(name: str = "linear", **inputs: np.ndarray) -> bytes:
    message = messages.PredictRequest(model_spec={"name": name})
    for key, value in (inputs or {"x": np.array([1.0, 2.0], np.float32)}).items():
        message.inputs[key].CopyFrom(tensors.to_proto(value))
    return message.SerializeToString()


def predict(channel: grpc.Channel, data: bytes | None = None, timeout: float = 60, key: str = "") -> list[float]:
    """Sends a Predict request and returns y."""
    call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    metadata = [("authorization", f"Bearer {key}")] if key else []
    response = messages.PredictResponse.FromString(call(data or request(), timeout=timeout, metadata=metadata))
    return tensors.to_array(response.outputs["y"], "y", 100).tolist()


class GrpcServerTest(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = temporary_folder(self)
        onnx_folders.save_linear(self.folder / "linear" / "1", 2.0)
        self.config = policies.single("linear", str(self.folder / "linear"))
        self.metrics = Metrics()

    def core(self, **limits) -> Core:
        manager = Manager(Loader(self.metrics), poll_seconds=0, max_retries=0)
        self.addCleanup(manager.stop)
        logs = request_log.RequestLogs()
        self.addCleanup(logs.close)
        core = Core(manager, self.metrics, Limits(**limits), logs=logs)
        core.reload(self.config)
        return core

    def start(self, core: Core | None = None, addresses=None, **options) -> GrpcServer:
        addresses = addresses or {"port=0": "localhost:0"}
        server = GrpcServer(core or self.core(), addresses, **({"threads": 8} | options))
        self.addCleanup(server.stop, 0)
        return server

    def channel(self, server: GrpcServer) -> grpc.Channel:
        return self.enterContext(grpc.insecure_channel(f"localhost:{server.port}"))

    @contextlib.contextmanager
    def refused(self, code: grpc.StatusCode, text: str = ""):
        with self.assertRaises(grpc.RpcError) as raised:
            yield
        self.assertEqual(raised.exception.code(), code, raised.exception.details())
        if text:
            self.assertRegex(raised.exception.details(), text)

    def test_a_unix_socket(self) -> None:
        path = self.folder / "socket"
        self.start(addresses={"port=0": "localhost:0", "grpc_socket_path": f"unix:{path}"})
        with grpc.insecure_channel(f"unix:{path}") as channel:
            self.assertEqual(predict(channel), [2.5, 3.0])

    def test_a_port_in_use(self) -> None:
        server = self.start()
        with self.assertRaisesRegex(UserError, r"^--port=1: cannot listen on localhost:\d+ .*; choose another$"):
            GrpcServer(self.core(), {"port=1": f"localhost:{server.port}"}, threads=1)

    def test_keys(self) -> None:
        server = self.start(api_keys=(b"first", b"second"))
        channel = self.channel(server)
        self.assertEqual(predict(channel, key="second"), [2.5, 3.0])
        for key in ("", "third", "firs"):
            with self.refused(CODE.UNAUTHENTICATED, "^Add the metadata authorization: Bearer KEY$"):
                predict(channel, key=key)
        response = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
        self.assertEqual(response.status, health_pb2.HealthCheckResponse.SERVING)

    def test_tls_and_mutual_tls(self) -> None:
        subprocess.run(["sh", ROOT / "serving" / "tls.sh", self.folder / "tls"], check=True, capture_output=True)
        files = {path.name: path.read_bytes() for path in (self.folder / "tls").iterdir()}
        core = self.core()
        trusting = grpc.ssl_channel_credentials(files["ca.pem"])
        with_certificate = grpc.ssl_channel_credentials(files["ca.pem"], files["client.key"], files["client.pem"])
        for name, accepted, refused in (
            ("tls.config", [trusting, with_certificate], []),
            ("mutual_tls.config", [with_certificate], [trusting]),
        ):
            config = messages.parse_text(files[name].decode(), messages.SSLConfig, name)
            server = self.start(core, credentials=tls.grpc_credentials(config))
            for credentials in accepted:
                with grpc.secure_channel(f"localhost:{server.port}", credentials) as channel:
                    self.assertEqual(predict(channel), [2.5, 3.0])
            for credentials in refused:
                channel = self.enterContext(grpc.secure_channel(f"localhost:{server.port}", credentials))
                with self.refused(CODE.UNAVAILABLE):
                    predict(channel)
            with self.refused(CODE.UNAVAILABLE):
                predict(self.channel(server))
            self.check_https(core, tls.http_context(config, name), name == "mutual_tls.config")
        with self.assertRaisesRegex(UserError, "^--ssl_config_file=x: server_key, server_cert or custom_ca is not val"):
            tls.http_context(messages.SSLConfig(server_key="no", server_cert="no"), "--ssl_config_file=x")

    def check_https(self, core: Core, context: ssl.SSLContext, is_mutual: bool) -> None:
        app = rest.application(core, rest_http.Settings(max_request_bytes=1000, max_requests=2))
        server = rest.Server(app, rest.listen("localhost", 0), context)
        self.addCleanup(server.stop, 0)
        trusting, with_certificate = (ssl.create_default_context(cafile=self.folder / "tls" / "ca.pem") for _ in "12")
        with_certificate.load_cert_chain(self.folder / "tls" / "client.pem", self.folder / "tls" / "client.key")

        def ask(client: ssl.SSLContext) -> int:
            with contextlib.closing(
                http.client.HTTPSConnection("localhost", server.port, context=client)
            ) as connection:
                connection.request("GET", "/v1/models/linear")
                return connection.getresponse().status

        self.assertEqual(ask(with_certificate), 200)
        if is_mutual:
            with self.assertRaises((ssl.SSLError, ConnectionError)):
                ask(trusting)
        else:
            self.assertEqual(ask(trusting), 200)

    def test_health_follows_the_models_and_the_drain(self) -> None:
        core = self.core()
        channel = self.channel(self.start(core))
        statuses = health_pb2.HealthCheckResponse
        watched = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service="tensorflow.serving.PredictionService"), timeout=60
        )
        self.assertEqual(next(watched).status, statuses.SERVING)
        core.drain()
        self.assertEqual(next(watched).status, statuses.NOT_SERVING)
        with self.refused(CODE.NOT_FOUND):
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="x"), timeout=60)

    def test_reflection(self) -> None:
        stub = reflection_pb2_grpc.ServerReflectionStub(self.channel(self.start()))
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="tensorflow.serving.PredictionService"),
        ]
        services, file = stub.ServerReflectionInfo(iter(asked), timeout=60)
        self.assertEqual(
            {each.name for each in services.list_services_response.service},
            {
                "tensorflow.serving.PredictionService",
                "tensorflow.serving.ModelService",
                "grpc.health.v1.Health",
                "grpc.reflection.v1alpha.ServerReflection",
            },
        )
        self.assertTrue(file.file_descriptor_response.file_descriptor_proto)
        stop = threading.Event()

        def silent():
            yield asked[0]
            stop.wait()

        self.addCleanup(stop.set)
        streams = [stub.ServerReflectionInfo(silent(), timeout=60) for _ in range(5)]
        codes = []
        for stream in streams:
            try:
                next(stream)
                codes.append(CODE.OK)
            except grpc.RpcError as error:
                codes.append(error.code())
        self.assertEqual(codes, [CODE.OK] * 4 + [CODE.RESOURCE_EXHAUSTED])

    def test_outputs_in_tensor_content(self) -> None:
        call = self.channel(self.start(as_content=True)).unary_unary("/tensorflow.serving.PredictionService/Predict")
        response = messages.PredictResponse.FromString(call(request(), timeout=60))
        self.assertEqual(response.outputs["y"].tensor_content, np.array([2.5, 3.0], np.float32).tobytes())

    def test_limits_of_requests(self) -> None:
        channel = self.channel(self.start(self.core(max_tensor_elements=10, max_request_bytes=1000)))
        with self.refused(
            CODE.INVALID_ARGUMENT, "^tensor parsing error: x has the shape .11., more than the limit of 10"
        ):
            predict(channel, request(x=np.zeros(11, np.float32)))
        with self.refused(CODE.RESOURCE_EXHAUSTED):
            predict(channel, request(x=np.zeros(1000, np.float32)))
        self.assertEqual(predict(channel), [2.5, 3.0])

    def test_the_bytes_of_all_requests_are_bounded(self) -> None:
        held = Held(100)
        with held.hold(60):
            with (
                self.assertRaisesRegex(StatusError, "^The server holds too many bytes of other requests"),
                held.hold(41),
            ):
                self.fail("more than the limit was held")
            with held.hold(40):
                pass
        with held.hold(100):
            pass

    def test_overload_is_refused_and_deadlines_hold_while_waiting(self) -> None:
        core = self.core(max_running_requests=1, max_queued_requests=1)
        channel = self.channel(self.start(core, threads=32))
        runs = []
        may_run = threading.Event()
        with core.servable(ModelSpec("linear")) as servable:
            original = servable.run

            def slow(*arguments):
                runs.append(arguments)
                may_run.wait()
                return original(*arguments)

            servable.run = slow  # type: ignore[method-assign]
        with ThreadPoolExecutor(8) as pool:
            running = pool.submit(predict, channel)
            wait_until(lambda: len(runs) == 1)
            late = pool.submit(predict, channel, timeout=0.2)
            wait_until(lambda: core._admission.inside() == 2)
            with self.refused(CODE.RESOURCE_EXHAUSTED, "^The server is busy with 2 requests; try again later"):
                predict(channel)
            with self.refused(CODE.RESOURCE_EXHAUSTED):  # Before the message is read.
                predict(channel, b"damaged")
            status = messages.GetModelStatusRequest(model_spec={"name": "linear"}).SerializeToString()
            channel.unary_unary("/tensorflow.serving.ModelService/GetModelStatus")(status, timeout=60)
            error = late.exception()
            assert isinstance(error, grpc.RpcError)
            self.assertEqual(error.code(), CODE.DEADLINE_EXCEEDED)
            wait_until(lambda: core._admission.inside() == 1)
            may_run.set()
            self.assertEqual(running.result(), [2.5, 3.0])
        self.assertEqual(len(runs), 1)  # The late request was not run.

    def test_stopping_answers_what_was_accepted(self) -> None:
        core = self.core()
        server = self.start(core)
        channel = self.channel(server)
        started, may_run = threading.Event(), threading.Event()
        with core.servable(ModelSpec("linear")) as servable:
            original = servable.run

            def slow(*arguments):
                started.set()
                may_run.wait()
                return original(*arguments)

            servable.run = slow  # type: ignore[method-assign]
        with ThreadPoolExecutor(2) as pool:
            accepted = pool.submit(predict, channel)
            started.wait()
            stopped = pool.submit(server.stop, 60)
            with grpc.insecure_channel(f"localhost:{server.port}") as other:
                wait_until(lambda: refuses(other))
            may_run.set()
            self.assertEqual(accepted.result(), [2.5, 3.0])
            stopped.result()

    def test_metrics(self) -> None:
        core = self.core()
        channel = self.channel(self.start(core))
        predict(channel)
        for name in ("linear", "a", "b", "c"):
            with self.refused(CODE.FAILED_PRECONDITION if name == "linear" else CODE.NOT_FOUND):
                message = messages.PredictRequest(model_spec={"name": name, "signature_name": "x"})
                predict(channel, message.SerializeToString())
        text = core.metrics().decode()
        for line in (
            "# TYPE :tensorflow:serving:request_count counter",
            ':tensorflow:serving:request_count{model_name="linear",status="OK"} 1.0',
            ':tensorflow:serving:request_count{model_name="linear",status="FAILED_PRECONDITION"} 1.0',
            ':tensorflow:serving:request_count{model_name="(unknown)",status="NOT_FOUND"} 3.0',
            ':tensorflow:serving:request_latency_count{model_name="linear",API="Predict",entrypoint="GRPC"} 1.0',
            ':tensorflow:serving:runtime_latency_count{model_name="linear",API="Predict",runtime="onnxruntime"} 1.0',
        ):
            self.assertIn(line, text.splitlines())
        self.assertRegex(
            text,
            r'signature_request_count\{model_name="linear",signature="serving_default",API="Predict",status="OK"\} 1',
        )
        buckets = [line for line in text.splitlines() if line.startswith(":tensorflow:serving:request_latency_bucket")]
        self.assertEqual(len(buckets), 34)
        self.assertIn('le="10.0"', buckets[0])
        self.assertIn('le="18.0"', buckets[1])

    def test_requests_are_logged(self) -> None:
        model = self.config.model_config_list.config[0]
        model.logging_config.log_collector_config.filename_prefix = str(self.folder / "log")
        model.logging_config.sampling_config.sampling_rate = 1.0
        core = self.core()
        predict(self.channel(self.start(core)))
        (path,) = self.folder.glob("log.*.tfrecord")
        (data,) = records.read(path)
        log = messages.PredictionLog.FromString(data).predict_log
        self.assertEqual(tensors.to_array(log.request.inputs["x"], "x", 9).tolist(), [1.0, 2.0])
        self.assertEqual(tensors.to_array(log.response.outputs["y"], "y", 9).tolist(), [2.5, 3.0])
        self.assertEqual((log.request.model_spec.name, log.response.model_spec.version.value), ("linear", 1))
        # The log can be the warm-up of a version.
        target = self.folder / "linear" / "2" / warmup.FILE
        onnx_folders.save_linear(self.folder / "linear" / "2", 3.0)
        target.parent.mkdir()
        path.rename(target)
        core.reload(self.config)
        model.logging_config.log_collector_config.type = "x"
        with self.assertRaisesRegex(StatusError, "^Cannot find LogCollector::Factory for type: x$"):
            core.reload(self.config)


def refuses(channel: grpc.Channel) -> bool:
    """Returns whether the server refuses new requests."""
    call = channel.unary_unary("/tensorflow.serving.ModelService/GetModelStatus")
    try:
        call(messages.GetModelStatusRequest(model_spec={"name": "linear"}).SerializeToString(), timeout=60)
    except grpc.RpcError as error:
        return error.code() == CODE.UNAVAILABLE
    return False


def wait_until(holds) -> None:
    while not holds():
        time.sleep(0.002)


if __name__ == "__main__":
    unittest.main()
