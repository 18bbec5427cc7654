"""TF Serving's REST API as a client sees it: bytes over HTTP, status codes, texts and forms.

Texts that TF Serving's contract does not fix are compared only with our own server; see tests.serve.models for testing
another one.
"""

import gzip
import http.client
import json
import os

import tensorflow as tf

from tests.serve import servers

OURS = "TFZOO_SERVER_REST" not in os.environ
TWO, THREE = "/v1/models/half_plus_two", "/v1/models/half_plus_three"


class RestCase(tf.test.TestCase):
    def ask(self, method: str, path: str, body: bytes | str = b"", **headers: str) -> tuple[int, bytes]:
        host, _, port = servers.rest_address().rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        try:
            body = body.encode() if isinstance(body, str) else body
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 404 or content:
                self.assertEqual(answer.headers["content-type"], "application/json")
            return answer.status, content
        finally:
            connection.close()

    def post(self, path: str, body: str):
        """Returns the parsed answer, which must be 200."""
        status, content = self.ask("POST", path, body)
        self.assertEqual(status, 200, content)
        return json.loads(content)

    def refused(self, status: int, text: str, method: str, path: str, body: str = "", exact: bool = True) -> None:
        """Checks the code of an error, and its text; an inexact text must be contained in that of our server."""
        actual, content = self.ask(method, path, body)
        message = json.loads(content)["error"]
        self.assertEqual(actual, status, message)
        if exact:
            self.assertEqual(message, text)
        elif OURS:
            self.assertIn(text, message)


class PredictTest(RestCase):
    def test_rows(self) -> None:
        self.assertEqual(
            self.post(f"{TWO}:predict", '{"instances": [1.0, 2.0, 5.0]}'), {"predictions": [2.5, 3.0, 4.5]}
        )
        self.assertEqual(self.post(f"{TWO}:predict", '{"instances": [{"x": 1}]}'), {"predictions": [2.5]})
        answer = self.post(f"{TWO}:predict", '{"signature_name": "serving_default", "instances": [1]}')
        self.assertEqual(answer, {"predictions": [2.5]})

    def test_columns(self) -> None:
        self.assertEqual(self.post(f"{TWO}:predict", '{"inputs": [1, 2]}'), {"outputs": [2.5, 3.0]})
        self.assertEqual(self.post(f"{TWO}:predict", '{"inputs": {"x": [1], "y": 0}}'), {"outputs": [2.5]})
        request = '{"signature_name": "several", "inputs": {"ids": [[1, 2, 3], [4, 5, 6]], "scale": 0.5}}'
        self.assertEqual(self.post(f"{TWO}:predict", request), {"outputs": {"sum": [3.0, 7.5], "first": [1, 4]}})

    def test_strings(self) -> None:
        request = '{"signature_name": "upper", "inputs": ["b\\u00e9", {"b64": "YQ=="}]}'
        answer = self.post(f"{TWO}:predict", request)
        self.assertEqual(answer, {"outputs": {"upper": ["Bé", "A"], "length_bytes": [3, 1], "count": 2}})

    def test_the_numbers_are_those_of_float32(self) -> None:
        body = self.ask("POST", f"{TWO}:predict", '{"instances": [0.2, NaN, -Infinity, 1e-3]}')[1]
        for text in (b"2.1", b"NaN", b"-Infinity", b"2.0005"):
            self.assertRegex(body, rb"[\[ ,]" + text + rb"[\],\s]")

    def test_versions_and_labels(self) -> None:
        for path, bias in (
            (THREE, 5),
            (f"{THREE}/versions/3", 3),
            (f"{THREE}/labels/stable", 3),
            (f"{THREE}/labels/canary", 5),
        ):
            self.assertEqual(self.post(f"{path}:predict", '{"instances": [0]}'), {"predictions": [bias]})

    def test_paths_ignore_case_and_names_are_decoded(self) -> None:
        answer = self.post("/V1/Models/half%5fplus_three/Versions/3:PREDICT", '{"instances": [0]}')
        self.assertEqual(answer, {"predictions": [3.0]})
        self.refused(
            404, "Servable not found for request: Latest(HALF_plus_two)", "POST", "/v1/models/HALF_plus_two:predict",
            '{"instances": [0]}',
        )  # fmt: skip

    def test_gzip(self) -> None:
        body = gzip.compress(b'{"instances": [1.0]}')
        status, content = self.ask("POST", f"{TWO}:predict", body, content_encoding="gzip")
        self.assertEqual((status, json.loads(content)), (200, {"predictions": [2.5]}))

    def test_models_that_do_not_exist(self) -> None:
        body = '{"instances": [1]}'
        for path, status, text in (
            ("/v1/models/nobody", 404, "Servable not found for request: Latest(nobody)"),
            (f"{TWO}/versions/9", 404, "Servable not found for request: Specific(half_plus_two, 9)"),
            (f"{TWO}/labels/x", 400, "Unrecognized servable version label: x"),
        ):
            self.refused(status, text, "POST", f"{path}:predict", body)
        self.refused(400, "to numeric", "POST", f"{TWO}/versions/{10**19}:predict", body, exact=False)
        text = 'Serving signature name: "x" not found in signature def'
        self.refused(400, text, "POST", f"{TWO}:predict", '{"signature_name": "x", "instances": [1]}')

    def test_paths_that_do_not_exist(self) -> None:
        for method, path in (
            ("POST", "/v1/models"),
            ("POST", f"{TWO}:explain"),
            ("POST", f"{TWO}/versions/x:predict"),
            ("POST", f"{TWO}/versions/1/labels/stable:predict"),
            ("POST", f"{TWO}/:predict"),
            ("GET", f"{TWO}:predict"),
            ("PUT", f"{TWO}:predict"),
            ("GET", "/v1/nothing"),
        ):
            self.refused(400, f"Malformed request: {method} {path}", method, path, '{"instances": [1]}')
        for path in (
            "/v1/models/..%2fhalf_plus_two",
            "/v1/models/half_plus_two%00",
            "/v1/models/a%3Ab",
            "/v1/models/%ff",
        ):
            self.refused(400, "Malformed request: POST", "POST", f"{path}:predict", "{}", exact=False)
        self.assertEqual(self.ask("GET", "/nothing")[0], 404)

    def test_bodies_that_are_not_requests(self) -> None:
        for body, text in (
            ("", "JSON Parse error: "),
            ("{", "JSON Parse error: "),
            ("[]", "Is not object"),
            ("{}", "Missing 'inputs' or 'instances' key"),
            ('{"instances": [1], "inputs": [1]}', "only one of"),
            ('{"instances": []}', "No values in 'instances' array"),
            ('{"instances": 1}', "to be an list/array"),
            ('{"instances": ["a"]}', "is not of expected type: float"),
            ('{"instances": [1e39]}', "without loss of precision"),
            ('{"instances": [{"z": 1}]}', "keys must be equal to: x"),
            ('{"instances": [{"x": 1}, 1]}', "Expecting object but got list at item 1 of input list"),
            ('{"signature_name": 1, "instances": [1]}', "'signature_name' key must be a string value."),
            ('{"signature_name": "several", "inputs": {"ids": [[1, 2, 3]]}}', "Missing named input: scale"),
            ('{"signature_name": "several", "inputs": {"ids": [[1, 2]], "scale": 1}}', "incompatible"),
            ('{"signature_name": "upper", "instances": ["a"]}', "Tensor name: count has no shape information"),
            ('{"inputs": [[1]]}', "incompatible"),
        ):
            self.refused(400, text, "POST", f"{TWO}:predict", body, exact=False)


class ClassifyAndRegressTest(RestCase):
    def test_answers(self) -> None:
        request = '{"signature_name": "classify", "examples": [{"x": 1.0}, {"x": 2.0}]}'
        self.assertEqual(
            self.post(f"{TWO}:classify", request),
            {"results": [[["2.500000", 2.5], ["other", -1.5]], [["3.000000", 3.0], ["other", -2.0]]]},
        )
        request = '{"signature_name": "regress", "context": {"x": 0.2}, "examples": [{}, {"x": [1.0]}]}'
        self.assertEqual(self.post(f"{TWO}:regress", request), {"results": [2.1, 2.5]})
        self.assertEqual(
            self.post("/v1/models/old_style:regress", '{"signature_name": "regress", "examples": [{"x": 2.0}]}'),
            {"results": [3.0]},
        )

    def test_errors(self) -> None:
        for method in ("classify", "regress"):
            request = '{"signature_name": "x", "examples": [{"x": 1.0}]}'
            self.refused(400, "No signature was found with the name: x", "POST", f"{TWO}:{method}", request)
            self.refused(400, "examples", "POST", f"{TWO}:{method}", "{}", exact=False)
        request = '{"signature_name": "classify", "examples": [{"x": "text"}]}'
        self.refused(400, "x", "POST", f"{TWO}:classify", request, exact=False)


class StatusTest(RestCase):
    def get(self, path: str):
        status, content = self.ask("GET", path)
        self.assertEqual(status, 200, content)
        return json.loads(content)

    def state(self, version: int) -> dict:
        status = {"error_code": "OK", "error_message": ""}
        return {"version": str(version), "state": "AVAILABLE", "status": status}

    def test_status(self) -> None:
        self.assertEqual(self.get(TWO), {"model_version_status": [self.state(1)]})
        self.assertEqual(self.get(THREE), {"model_version_status": [self.state(5), self.state(3)]})
        for path in (f"{THREE}/versions/3", f"{THREE}/labels/stable"):
            self.assertEqual(self.get(path), {"model_version_status": [self.state(3)]})
        self.refused(400, "Missing model name in request.", "GET", "/v1/models")
        self.refused(404, "nobody", "GET", "/v1/models/nobody", exact=False)
        self.refused(404, "9", "GET", f"{TWO}/versions/9", exact=False)

    def test_metadata(self) -> None:
        answer = self.get(f"{THREE}/labels/stable/metadata")
        self.assertEqual(answer["model_spec"], {"name": "half_plus_three", "signature_name": "", "version": "3"})
        signatures = answer["metadata"]["signature_def"]["signature_def"]
        signature = signatures["serving_default"]
        self.assertEqual(signature["method_name"], "tensorflow/serving/predict")
        x = signature["inputs"]["x"]
        self.assertEqual((x["dtype"], x["tensor_shape"]["dim"]), ("DT_FLOAT", [{"size": "-1", "name": ""}]))
        self.assertIs(x["tensor_shape"]["unknown_rank"], False)
        self.refused(
            404, "Servable not found for request: Latest(nobody)", "GET", "/v1/models/nobody/metadata", exact=False
        )


if __name__ == "__main__":
    tf.test.main()
