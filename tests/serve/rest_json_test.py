"""The JSON of the REST front end, as functions: without a server, a model or TensorFlow."""

import json
import math
import struct
import unittest

import numpy as np

from tfzoo.serve import messages
from tfzoo.serve.errors import StatusError
from tfzoo.serve.limits import Limits
from tfzoo.serve.rest import example_json, json_text, predict_json
from tfzoo.serve.servable import PREDICT, Signature, TensorSpec

DTYPES = {"float": (np.float32, 1), "double": (np.float64, 2), "int32": (np.int32, 3), "uint8": (np.uint8, 4),
          "int64": (np.int64, 9), "bool": (np.bool_, 10), "string": (object, 7), "half": (np.float16, 19),
          "uint64": (np.uint64, 23)}  # fmt: skip


def signature(**kinds: str) -> Signature:
    """Returns a signature with inputs of these types; their shapes are not checked when JSON is read."""
    inputs = {
        name: TensorSpec(f"{name}:0", np.dtype(DTYPES[kind][0]), None, DTYPES[kind][1]) for name, kind in kinds.items()
    }
    return Signature("serving_default", PREDICT, inputs, {})


def read(text: str, limits: Limits | None = None, **kinds: str) -> dict[str, np.ndarray]:
    return predict_json.read(json_text.parse(text.encode()), signature(**kinds), limits or Limits())


class ReadTest(unittest.TestCase):
    def check(self, text, kinds, **expected):
        got = read(text, **kinds)
        self.assertEqual(got.keys(), expected.keys())
        for name, values in expected.items():
            values = np.array(values, DTYPES[kinds[name]][0])
            self.assertEqual((got[name].dtype, got[name].shape), (values.dtype, values.shape))
            np.testing.assert_array_equal(got[name], values)

    def refused(self, text, message, code="INVALID_ARGUMENT", limits=None, **kinds):
        with self.assertRaises(StatusError) as context:
            read(text, limits, **(kinds or {"x": "float"}))
        self.assertEqual(context.exception.code, code)
        self.assertIn(message, context.exception.message)

    def test_rows_and_columns(self):
        self.check('{"instances": [1, 2.5, -3e2]}', {"x": "float"}, x=[1, 2.5, -300])
        self.check('{"instances": [{"x": 1}, {"x": 2}]}', {"x": "int32"}, x=[1, 2])
        self.check('{"instances": [[[1], [2]], [[3], [4]]]}', {"x": "int64"}, x=[[[1], [2]], [[3], [4]]])
        two = {"a": "int32", "b": "string"}
        self.check('{"instances": [{"a": 1, "b": "x"}, {"b": "y", "a": 2}]}', two, a=[1, 2], b=[b"x", b"y"])
        self.check('{"inputs": {"a": [1, 2], "b": [["x"], ["y"]], "other": 0}}', two, a=[1, 2], b=[[b"x"], [b"y"]])
        self.check('{"inputs": [1.5]}', {"x": "float"}, x=[1.5])
        self.check('{"inputs": 1.5}', {"x": "float"}, x=1.5)
        self.check('{"inputs": {"x": 1.5}}', {"x": "float"}, x=1.5)
        self.check('{"inputs": [[], []]}', {"x": "float"}, x=np.zeros((2, 0)))
        self.check('{"inputs": []}', {"x": "string"}, x=np.zeros(0))

    def test_values(self):
        self.check('{"inputs": [NaN, Infinity, -Infinity]}', {"x": "float"}, x=[math.nan, math.inf, -math.inf])
        self.check('{"inputs": [true, false]}', {"x": "bool"}, x=[True, False])
        self.check('{"inputs": [18446744073709551615]}', {"x": "uint64"}, x=[2**64 - 1])
        self.check('{"inputs": [16777215, 3.4028234e38]}', {"x": "float"}, x=[16777215, 3.4028234e38])
        self.check('{"inputs": [9007199254740991, 1e308]}', {"x": "double"}, x=[2**53 - 1, 1e308])
        self.check('{"inputs": ["é", "\\u0000", {"b64": "/wA="}, {"b64": "YQ"}]}', {"x": "string"},
                   x=["é".encode(), b"\0", b"\xff\0", b"a"])  # fmt: skip
        self.check('{"instances": [{"b64": "YQ=="}]}', {"x": "string"}, x=[b"a"])
        self.check('{"instances": [{"x": {"b64": "YQ=="}}]}', {"x": "string"}, x=[b"a"])
        self.check('{"inputs": {"b64": "YQ=="}}', {"x": "string"}, x=b"a")

    def test_wrong_forms(self):
        self.refused('{"x": 1}', "Missing 'inputs' or 'instances' key")
        self.refused('{"inputs": [1], "instances": [1]}', "only one of")
        self.refused('{"instances": 1}', "to be an list/array")
        self.refused('{"instances": []}', "No values in 'instances' array")
        self.refused('{"instances": [{"y": 1}]}', "keys must be equal to: x")
        self.refused('{"instances": [{"x": 1}, {"x": 1, "y": 1}]}', "Failed to process element: 1 ")
        self.refused('{"instances": [{"x": 1}, 2]}', "Expecting object but got list at item 1 of input list")
        self.refused('{"instances": [1, {"x": 1}]}', "Expecting value/list but got object at item 1 of input list")
        self.refused('{"instances": [1]}', "instances is a plain list", a="float", b="float")
        self.refused('{"inputs": [1]}', "inputs is a plain value/list", a="float", b="float")
        self.refused('{"inputs": {"a": [1]}}', "Missing named input: b in 'inputs' object.", a="float", b="float")

    def test_wrong_values(self):
        wrong = "is not of expected type: "
        for kind, text in [
            ("float", '"1"'), ("float", "true"), ("float", "null"), ("float", "{}"), ("int32", "1.0"),
            ("int32", "2147483648"), ("int32", "-2147483649"), ("uint8", "256"), ("uint8", "-1"), ("bool", "1"),
            ("int64", "9223372036854775808"), ("string", "1"), ("int32", "NaN"), ("int32", '{"b64": "YQ=="}'),
            ("int64", "1" * 500),
        ]:  # fmt: skip
            self.refused(f'{{"inputs": [{text}]}}', wrong + kind, x=kind)
        self.refused('{"instances": [1, "a"]}', "Failed to process element: 1 of 'instances' list. Error: INVALID")
        for text in ("16777216", "-16777216", "1e39", "1" * 400):
            self.refused(f'{{"inputs": [{text}]}}', "to float without loss of precision.")
        self.refused('{"inputs": [9007199254740992]}', "to double without loss of precision.", x="double")
        self.refused('{"inputs": [{"b64": "*"}]}', "Unable to base64 decode", x="string")
        self.refused('{"inputs": [{"b64": 1}]}', "not formatted correctly for base64 data", x="string")
        self.refused('{"inputs": ["\\ud800"]}', "surrogate", x="string")
        self.refused('{"inputs": [1.5]}', "to type: half", "UNIMPLEMENTED", x="half")

    def test_wrong_shapes(self):
        self.refused('{"inputs": [[1, 2], [3]]}', "at unexpected size: 1 at level: 1 expected size: 2")
        self.refused('{"inputs": [1, [2]]}', "Encountered list at unexpected level: 1")
        self.refused('{"inputs": [[1], 2]}', "found at incorrect level: 2")
        self.refused('{"instances": [[1, 2], [3]]}', "Failed to process element: 1 of 'instances' list. Error:")
        self.refused('{"instances": [[1, 2], [3]]}', "Expecting shape [2] but got: [1]")

    def test_limits(self):
        few = Limits(max_tensor_elements=3, max_json_depth=2)
        self.refused('{"inputs": [1, 2, 3, 4]}', "4 values are more than the limit of 3", limits=few)
        self.refused('{"inputs": [[[1]]]}', "more deeply than the limit of 2", limits=few)
        for deep in ("[" * 100_000, '{"a":' * 100_000):
            self.refused(deep, "nested too deeply")
        self.refused("[" * 900 + "]" * 900, "Is not object")
        self.refused('{"instances": [' + "[" * 700 + "1" + "]" * 700 + "]}", "more deeply than the limit of 64")
        self.refused("[" + "[]," * 2**21 + "1]", "more than the limit of 2097152")

    def test_texts_that_are_not_json(self):
        for text, message in [
            ("", "JSON Parse error: The document is empty"),
            ("{", "JSON Parse error: "),
            ('{"inputs": [1,]}', "at offset: 14"),
            ('{"inputs": [01]}', "JSON Parse error: "),
            ('{"inputs": [1]} x', "JSON Parse error: "),
            ('{"inputs": 1, "inputs": 2}', 'the key "inputs" appears twice'),
            ('{"inputs": [1e999]}', "Number too big to be stored in double"),
            ('{"inputs": [1' + "0" * 400 + ".0]}", "Number too big"),
            ('{"inputs": [' + "1" * 5000 + "]}", "JSON Parse error: "),
            ("[1]", "Is not object"),
        ]:
            self.refused(text, message)
        with self.assertRaisesRegex(StatusError, "Invalid encoding in string at offset: 1"):
            json_text.parse(b'"\xff"')


class WriteTest(unittest.TestCase):
    def test_rows_and_columns(self):
        a, b = np.array([[1, 2], [3, 4]], np.int32), np.array([b"x", "é".encode()], object)
        write = predict_json.write
        self.assertEqual(write({"a": a}, rows=True), b'{"predictions":[[1,2],[3,4]]}')
        self.assertEqual(write({"a": a}, rows=False), b'{"outputs":[[1,2],[3,4]]}')
        both = {"a": a, "b": b}
        self.assertEqual(write(both, rows=True).decode(), '{"predictions":[{"a":[1,2],"b":"x"},{"a":[3,4],"b":"é"}]}')
        self.assertEqual(write(both, rows=False).decode(), '{"outputs":{"a":[[1,2],[3,4]],"b":["x","é"]}}')
        self.assertEqual(write({"a_bytes": b[:1]}, rows=True), b'{"predictions":[{"b64":"eA=="}]}')
        self.assertEqual(write({"a": np.array(True)}, rows=False), b'{"outputs":true}')
        self.assertEqual(write({"a": a[:0]}, rows=True), b'{"predictions":[]}')

    def test_outputs_that_are_not_rows(self):
        for outputs, message in [
            ({"a": np.array(1)}, "Tensor name: a has no shape information"),
            ({"a": np.zeros(1), "b": np.zeros(2)}, "Tensor name: b has inconsistent batch size: 2 expecting: 1"),
            ({}, "Cannot convert empty tensor map to JSON"),
        ]:
            with self.assertRaises(StatusError) as context:
                predict_json.write(outputs, rows=True)
            self.assertEqual(context.exception.code, "INVALID_ARGUMENT")
            self.assertIn(message, context.exception.message)

    def test_numbers_have_their_shortest_form(self):
        texts = (
            "0.1 1.0 -2.5 1e-07 3.4028235e+38 1e-45 1.17549435e-38 16777216.0 0.33333334 NaN Infinity -Infinity -0.0"
        )
        values = np.array([float(text) for text in texts.split()], np.float32)
        written = predict_json.write({"x": values}, rows=False).decode()
        self.assertEqual(written, '{"outputs":[' + texts.replace(" ", ",").replace("1.17549435", "1.1754944") + "]}")

    def test_every_float32_survives_and_no_shorter_text_would(self):
        random = np.random.default_rng(0)
        bits = random.integers(0, 2**32, 20_000, dtype=np.uint32)
        values = np.concatenate([bits.view(np.float32), random.normal(size=20_000).astype(np.float32)])
        values = values[np.isfinite(values)]
        written = json.loads(json_text.dump(json_text.to_list(values)))
        np.testing.assert_array_equal(np.array(written, np.float32), values)

        def digits(text):
            return len(text.partition("e")[0].replace(".", "").replace("-", "").strip("0"))

        for value, number in zip(values, written):
            self.assertLessEqual(digits(repr(number)), digits(str(value)))

    def test_float64_and_float16(self):
        self.assertEqual(json_text.to_list(np.array([0.1, 1 / 3])), [0.1, 1 / 3])
        self.assertEqual(json_text.to_list(np.array([0.5], np.float16)), [0.5])

    def test_bytes_that_are_not_unicode(self):
        self.assertEqual(predict_json.write({"x": np.array([b"\xff"], object)}, rows=True).decode(),
                         '{"predictions":["\N{REPLACEMENT CHARACTER}"]}')  # fmt: skip


class ExamplesTest(unittest.TestCase):
    def refused(self, text, message):
        with self.assertRaises(StatusError) as context:
            example_json.read(json_text.parse(text.encode()))
        self.assertEqual(context.exception.code, "INVALID_ARGUMENT")
        self.assertIn(message, context.exception.message)

    def test_features(self):
        text = '{"examples": [{"a": "x", "b": [1, true], "c": 0.5, "d": [], "e": {"b64": "/w=="}}, {}]}'
        examples = example_json.read(json_text.parse(text.encode())).example_list.examples
        self.assertEqual(len(examples), 2)
        feature = examples[0].features.feature
        self.assertEqual(list(feature["a"].bytes_list.value), [b"x"])
        self.assertEqual(list(feature["b"].int64_list.value), [1, 1])
        self.assertEqual(list(feature["c"].float_list.value), [0.5])
        self.assertIsNone(feature["d"].WhichOneof("kind"))
        self.assertEqual(list(feature["e"].bytes_list.value), [b"\xff"])

    def test_context(self):
        text = '{"context": {"a": 1}, "examples": [{"b": 2}]}'
        read = example_json.read(json_text.parse(text.encode())).example_list_with_context
        self.assertEqual(list(read.context.features.feature["a"].int64_list.value), [1])
        self.assertEqual(list(read.examples[0].features.feature["b"].int64_list.value), [2])

    def test_wrong_forms(self):
        self.refused("{}", "key 'examples' is expected and was not found")
        self.refused('{"examples": 1}', "to be an list/array")
        self.refused('{"examples": []}', "is an empty array")
        self.refused('{"examples": [1]}', "Example must be JSON object but got JSON Number")
        self.refused('{"examples": [{"a": null}]}', "Feature: a has element with unexpected JSON type: Null")
        self.refused('{"examples": [{"a": [[1]]}]}', "unexpected JSON type: Array")
        self.refused('{"examples": [{"a": [1, 0.5]}]}', "Unexpected element type in feature: a expecting type: int64")
        self.refused('{"examples": [{"a": 9223372036854775808}]}', "Only int64 is supported")
        self.refused('{"examples": [{"a": 1e39}]}', "without loss of precision")
        self.refused('{"examples": [{"\\ud800": 1}]}', "surrogate")

    def test_results(self):
        classes = messages.ClassificationResult()
        one = classes.classifications.add().classes
        one.add(label="a", score=0.1)
        one.add(label="b", score=0.9)
        self.assertEqual(example_json.classifications(classes), b'{"results":[[["a",0.1],["b",0.9]]]}')
        values = messages.RegressionResult()
        values.regressions.add(value=0.1)
        values.regressions.add(value=struct.unpack("f", struct.pack("f", 1 / 3))[0])
        self.assertEqual(example_json.regressions(values), b'{"results":[0.1,0.33333334]}')


if __name__ == "__main__":
    unittest.main()
