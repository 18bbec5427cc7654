"""serving/client.py, against the embedded server and servers that fail."""

import concurrent.futures
import contextlib
import http.server
import importlib.machinery
import io
import json
import threading
import types
from typing import Any

import grpc
import numpy as np
import tensorflow as tf

from tests import helpers
from tests.serve import servers
from tfzoo.serve import messages


def load() -> Any:
    """Returns serving/client.py as a module."""
    loader = importlib.machinery.SourceFileLoader("client", str(helpers.ROOT / "serving" / "client.py"))
    module = types.ModuleType(loader.name)
    loader.exec_module(module)
    return module


client = load()


class ClientTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        addresses = [f"grpc://{servers.grpc_address()}", f"http://{servers.rest_address()}"]
        cls.clients = [cls.enterClassContext(client.connect(address, timeout=60)) for address in addresses]

    def both(self, function):
        """Returns what a function returns for the gRPC client, after comparing it with that for the REST client."""
        first, second = map(function, self.clients)
        self.assertEqual(first.keys(), second.keys())
        for name in first:
            self.assertEqual(first[name].dtype, second[name].dtype)
            np.testing.assert_array_equal(first[name], second[name])
        return first

    def refused(self, code: str, function) -> None:
        for each in self.clients:
            with self.assertRaises(client.ServingError) as raised:
                function(each)
            self.assertEqual(raised.exception.code, code)

    def test_predict(self) -> None:
        self.assertEqual(self.both(lambda c: c.predict("half_plus_two", {"x": [1.0, 0.2]}))["y"].dtype, np.float32)
        outputs = self.both(lambda c: c.predict("half_plus_three", {"x": np.zeros(1, np.float32)}, label="stable"))
        self.assertAllEqual(outputs["y"], [3.0])
        outputs = self.both(lambda c: c.predict("half_plus_three", {"x": np.zeros(1, np.float32)}, version=5))
        self.assertAllEqual(outputs["y"], [5.0])
        texts = {"text": ["a", "é", b"\xff", b"a\0"]}
        outputs = self.both(lambda c: c.predict("half_plus_two", texts, signature="upper"))
        self.assertEqual(outputs["upper"].tolist(), ["A", "é", "\N{REPLACEMENT CHARACTER}", "A\0"])
        self.assertAllEqual(outputs["length_bytes"], [1, 2, 1, 2])
        several = {"ids": np.array([[1, 2, 3]]), "scale": np.float64(0.5)}
        self.assertAllEqual(self.both(lambda c: c.predict("half_plus_two", several, signature="several"))["sum"], [3.0])
        self.both(lambda c: c.predict("half_plus_two", {"ids": [[1, 2, 3]], "scale": 2}, signature="several"))
        self.assertEqual(self.both(lambda c: c.predict("half_plus_two", {"x": []}))["y"].shape, (0,))

    def test_errors(self) -> None:
        one = {"x": [1.0]}
        self.refused("NOT_FOUND", lambda c: c.predict("nobody", one))
        self.refused("NOT_FOUND", lambda c: c.status("half_plus_two", version=9))
        self.refused("INVALID_ARGUMENT", lambda c: c.predict("half_plus_two", one, label="x"))
        self.refused("INVALID_ARGUMENT", lambda c: c.predict("half_plus_two", {"z": [1.0]}))
        self.refused("DEADLINE_EXCEEDED", lambda c: c.predict("half_plus_two", one, timeout=0))
        self.refused("DEADLINE_EXCEEDED", lambda c: c.wait_until_available("nobody", timeout=0))
        for name, value in (
            ("x", [["a"], "b"]), ("x", [object()]), ("x", np.zeros(1, np.complex64)),
            ("ids", [[1.5, 2, 3]]), ("ids", [[2**63, 2, 3]]),
        ):  # fmt: skip
            with self.assertRaisesRegex(ValueError, f"^{name}: (must|has)|inhomogeneous"):
                inputs = {name: value, "scale": 1.0} if name == "ids" else {name: value}
                self.clients[0].predict("half_plus_two", inputs, signature="several" if name == "ids" else "upper")
        for address in ("localhost:8500", "ftp://localhost:1", "grpc://localhost"):
            with self.assertRaisesRegex(ValueError, "is not an address"):
                client.connect(address)

    def test_status(self) -> None:
        for each in self.clients:
            self.assertEqual(each.status("half_plus_three"), {5: "AVAILABLE", 3: "AVAILABLE"})
            self.assertEqual(each.status("half_plus_three", label="stable"), {3: "AVAILABLE"})
            each.wait_until_available("half_plus_two")

    def test_rows_are_answered_in_order_and_read_only_as_needed(self) -> None:
        for each in self.clients:
            read: list[int] = []

            def rows(read=read):
                for i in range(100):
                    read.append(i)
                    yield {"x": np.float32(i)}

            answers = each.predict_rows("half_plus_two", rows(), batch_size=4, concurrency=2)
            first = next(answers)
            self.assertEqual((first["y"], len(read)), (2.0, 12))  # Two batches on their way, and one to be submitted.
            self.assertEqual([float(answer["y"]) for answer in answers], [i / 2 + 2 for i in range(1, 100)])
            self.assertEqual(list(each.predict_rows("half_plus_two", [])), [])
            with self.assertRaisesRegex(client.ServingError, "one value per row"):
                list(each.predict_rows("half_plus_two", [{"text": "a"}], signature="upper"))

    def test_the_command(self) -> None:
        for address in (f"grpc://{servers.grpc_address()}", f"http://{servers.rest_address()}"):
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                code = client.main([address, "half_plus_two", '{"text": ["a"]}', "--signature=upper", "--wait=10"])
            self.assertEqual(code, 0)
            self.assertEqual(json.loads(out.getvalue()), {"upper": ["A"], "length_bytes": [1], "count": 1})
            err = io.StringIO()
            with contextlib.redirect_stderr(err):
                self.assertEqual(client.main([address, "nobody", "{}"]), 1)
            self.assertTrue(err.getvalue().startswith("error: NOT_FOUND: "))

    def test_wrong_use_of_the_command(self) -> None:
        address = f"grpc://{servers.grpc_address()}"
        for arguments, code, line in (
            ([address, "m", "[1]"], 2, "[1]: is not an object; write {"),
            ([address, "m", "{"], 2, "{: is not JSON (Expecting property name"),
            ([address, "m", "{}", "--version=1", "--label=x"], 2, "--label: not allowed with argument --version"),
            ([address, "half_plus_two", '{"text": [1]}', "--signature=upper"], 1, "text: must consist of strings, in"),
            ([f"http://{servers.grpc_address()}", "m", "{}", "--timeout=1"], 1, "not HTTP; is this the gRPC port?"),
        ):
            err = io.StringIO()
            with contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
                self.assertEqual(client.main(arguments), code)
            self.assertIn(line, err.getvalue().splitlines()[-1])


class RetryTest(tf.test.TestCase):
    def setUp(self) -> None:
        super().setUp()
        client.FIRST_WAIT = 0.001

    def test_rest_requests_are_repeated(self) -> None:
        statuses = [503, 429, 200]
        asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                asked.append((self.path, self.headers["Authorization"]))
                status = statuses.pop(0)
                version = {"version": "1", "state": "AVAILABLE", "status": {}}
                body = json.dumps({"model_version_status": [version]} if status == 200 else {"error": "busy"}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = self.enterContext(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(server.shutdown)
        with client.connect(f"http://127.0.0.1:{server.server_port}", api_key="key", timeout=60) as connected:
            self.assertEqual(connected.status("a/b"), {1: "AVAILABLE"})
            self.assertEqual(asked, [("/v1/models/a%2Fb", "Bearer key")] * 3)
            statuses[:] = [400, 200]
            with self.assertRaisesRegex(client.ServingError, "INVALID_ARGUMENT: busy"):
                connected.status("a")
            self.assertEqual(statuses, [200])

    def test_grpc_requests_are_repeated(self) -> None:
        codes = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, None]
        seen = []

        def answer(_, context):
            seen.append(dict(context.invocation_metadata()).get("authorization"))
            code = codes.pop(0)
            if code:
                context.abort(code, "busy")
            return messages.GetModelStatusResponse(model_version_status=[{"version": 7, "state": 30}])

        handler = grpc.unary_unary_rpc_method_handler(
            answer, messages.GetModelStatusRequest.FromString, messages.GetModelStatusResponse.SerializeToString
        )
        server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("tensorflow.serving.ModelService", {"GetModelStatus": handler})]
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        self.addCleanup(server.stop, None)
        with client.connect(f"grpc://127.0.0.1:{port}", api_key="key", timeout=60) as connected:
            self.assertEqual(connected.status("a"), {7: "AVAILABLE"})
        self.assertEqual(seen, ["Bearer key"] * 3)

    def test_a_server_that_is_not_there(self) -> None:
        for address in ("http://127.0.0.1:1", "grpc://127.0.0.1:1"):
            with client.connect(address, timeout=0.2) as connected:
                with self.assertRaises(client.ServingError) as raised:
                    connected.status("a")
                self.assertIn(raised.exception.code, ("UNAVAILABLE", "DEADLINE_EXCEEDED"))


class MessagesTest(tf.test.TestCase):
    def test_the_fields_are_those_of_tf_serving(self) -> None:
        official = {
            "Dim": messages.TensorProto.DESCRIPTOR.fields_by_name["tensor_shape"].message_type.nested_types_by_name[
                "Dim"
            ],
            "TensorShapeProto": messages.TensorProto.DESCRIPTOR.fields_by_name["tensor_shape"].message_type,
            "TensorProto": messages.TensorProto.DESCRIPTOR,
            "Version": messages.POOL.FindMessageTypeByName("google.protobuf.Int64Value"),
            "ModelSpec": messages.ModelSpecMessage.DESCRIPTOR,
            "Any": messages.POOL.FindMessageTypeByName("google.protobuf.Any"),
            "TensorInfo": messages.POOL.FindMessageTypeByName("tensorflow.TensorInfo"),
            "SignatureDef": messages.POOL.FindMessageTypeByName("tensorflow.SignatureDef"),
            "ModelVersionStatus": messages.POOL.FindMessageTypeByName("tensorflow.serving.ModelVersionStatus"),
        }
        enumerated = {"dtype", "state"}
        for name, fields in client.MESSAGES.items():
            descriptor = official.get(name) or getattr(messages, name).DESCRIPTOR
            ours = client._messages()[name].DESCRIPTOR
            for field in fields:
                theirs, mine = descriptor.fields_by_name[field], ours.fields_by_name[field]
                self.assertEqual(
                    (theirs.number, theirs.is_repeated), (mine.number, mine.is_repeated), f"{name}.{field}"
                )
                if field not in enumerated:
                    self.assertEqual(theirs.type, mine.type, f"{name}.{field}")


if __name__ == "__main__":
    tf.test.main()
