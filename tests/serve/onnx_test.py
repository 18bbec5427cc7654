"""ONNX graphs are served with signatures of their own, and texts with those of a SavedModel, without TensorFlow."""

import json
import pathlib
import unittest

import numpy as np
import onnx

from tests.helpers import python, temporary_folder
from tests.serve import onnx_folders
from tests.serve.onnx_folders import LABELS
from tfzoo.errors import UserError
from tfzoo.export import manifest
from tfzoo.prediction import folders
from tfzoo.serve import inference, messages
from tfzoo.serve.errors import StatusError
from tfzoo.serve.onnx import Onnx
from tfzoo.serve.servable import ModelSpec


def texts(*values: str | bytes) -> dict[str, np.ndarray]:
    return {"text": np.array([value.encode() if isinstance(value, str) else value for value in values], object)}


class GraphTest(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = temporary_folder(self) / "1"

    def test_a_graph_from_anyone(self) -> None:
        onnx_folders.save_linear(self.folder, 2.0)
        model = Onnx("linear", 1, self.folder)
        signature = model.signatures["serving_default"]
        self.assertEqual((signature.inputs["x"].shape, signature.inputs["x"].data_type), ((None,), 1))
        values = model.run("serving_default", {"x": np.array([1, 2], np.float32)})
        self.assertEqual(values["y"].tolist(), [2.5, 3.0])
        definitions = messages.SignatureDefMap.FromString(model.signature_def_map())
        definition = definitions.signature_def["serving_default"]
        self.assertEqual(definition.method_name, "tensorflow/serving/predict")
        self.assertEqual([dim.size for dim in definition.outputs["y"].tensor_shape.dim], [-1])

    def test_what_the_graph_rejects_is_the_clients_error(self) -> None:
        onnx_folders.save_linear(self.folder, 2.0)
        model = Onnx("linear", 1, self.folder)
        for value in (np.zeros((2, 2), np.float32), np.zeros(2)):
            with self.assertRaises(StatusError) as raised:
                model.run("serving_default", {"x": value})
            self.assertEqual(raised.exception.code, "INVALID_ARGUMENT")

    def test_damaged_folders(self) -> None:
        self.folder.mkdir()
        (self.folder / "model.onnx").write_bytes(b"no graph")
        with self.assertRaisesRegex(StatusError, "^.*/1: is damaged"):
            Onnx("m", 1, self.folder)
        classifier = self.folder.with_name("2")
        onnx_folders.save_classifier(classifier)
        (classifier / "tokenizer" / "tokenizer.json").write_text("{}")
        with self.assertRaisesRegex(StatusError, "/2: is damaged .tokenizer/tokenizer.json: its SHA-256 differs"):
            Onnx("m", 1, classifier)

    def test_fields_of_the_manifest(self) -> None:
        """The command and the server refuse them in the same words."""
        onnx_folders.save_classifier(self.folder)
        whole = json.loads((self.folder / "manifest.json").read_text())
        del whole["files"], whole["manifest_sha256"]
        signature, model, options = whole["signatures"]["model"], whole["model"], whole["options"]
        for message, changes in (
            ("manifest.json: has no model", {"model": None}),
            ("model: heads is 'classify', not a list", {"model": {"heads": "classify", "config": {}}}),
            ("config: vocab_size is 0, not a whole number from 1", {"model": model | {"config": {"vocab_size": 0}}}),
            ("options: long_texts is 'cut', not one of truncate, refuse", {"options": options | {"long_texts": "cut"}}),
            ("options: has no refuse", {"options": {"sequence_length": 6, "long_texts": "truncate"}}),
            ("options: pooling is 'max'", {"options": options | {"pooling": "max"}}),
            ("options: max_new_tokens is 0", {"options": options | {"max_new_tokens": 0}}),
            ("manifest.json: labels is None, not a list in which each item is a string", {"labels": None}),
            ("manifest.json: labels is .3.", {"labels": [3]}),
            ("manifest.json: problem_type is 'many'", {"problem_type": "many"}),
            ("manifest.json: texts is 'text'", {"texts": "text"}),
            ("manifest.json: prompt_tokens is -1", {"prompt_tokens": -1}),
            ("manifest.json: decoder_start_token_id is 4294967296", {"decoder_start_token_id": 2**32}),
            ("generation: eos_token_id is 'x'", {"generation": {"eos_token_id": "x"}}),
            ("frame: id is -1, not a whole number from 0", {"frame": [{"id": -1, "segment": 0}]}),
            ("frame: has no segment", {"frame": [{"id": 1}]}),
            ("frame: .* is not an id or a text", {"frame": [{"segment": 0}]}),
            ("frame: text is 'x'", {"frame": [{"text": "x", "segment": 0}]}),
            ("manifest.json: markers is '.'", {"markers": "$"}),
            ("tokenizer: fingerprint is 3", {"tokenizer": {"fingerprint": 3}}),
            ("signatures: model has no inputs", {"signatures": {"model": signature | {"inputs": {}}}}),
            ("signatures: model has no inputs", {"signatures": {"model": signature | {"outputs": "x"}}}),
        ):  # fmt: skip
            with self.subTest(message):
                manifest.write(self.folder, whole | changes)
                with self.assertRaisesRegex(StatusError, message) as refused:
                    Onnx("m", 1, self.folder)
                self.assertEqual(refused.exception.code, "DATA_LOSS")
                with self.assertRaisesRegex(UserError, message):
                    folders.open_folder(self.folder)
        # What the types do not say.
        for message, changes in (
            ("has no labels", {"labels": []}),
            ("frame does not fit to texts", {"frame": onnx_folders.FRAME[:1]}),
            ("frame does not fit to texts", {"frame": onnx_folders.FRAME, "options": options | {"sequence_length": 2}}),
            ("its tokenizer has 7 tokens, more than the model's 6", {"model": model | {"config": {"vocab_size": 6}}}),
        ):  # fmt: skip
            manifest.write(self.folder, whole | changes)
            with self.assertRaisesRegex(UserError, message):
                folders.open_folder(self.folder)
        manifest.write(self.folder, whole | {"labels": ["one"]})
        with self.assertRaisesRegex(UserError, "manifest.json has 1 labels, but model.onnx 2"):
            folders.open_folder(self.folder).answer([("good",)])
        outputs = {"logits": {"dtype": "float32", "shape": ["batch", 3]}}
        manifest.write(self.folder, whole | {"signatures": {"model": signature | {"outputs": outputs}}})
        with self.assertRaisesRegex(StatusError, "manifest.json does not state the outputs of model.onnx"):
            Onnx("m", 1, self.folder)

    def test_weights_outside_of_the_folder_are_refused(self) -> None:
        onnx_folders.save_linear(self.folder, 2.0)
        model = onnx.load(self.folder / "model.onnx")
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../secret")
        (self.folder / "model.onnx").write_bytes(model.SerializeToString())
        with self.assertRaisesRegex(StatusError, "the graph reads '../secret', which is outside of its folder"):
            Onnx("m", 1, self.folder)


class TextsTest(unittest.TestCase):
    folder: pathlib.Path
    model: Onnx

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.folder = temporary_folder(cls)
        onnx_folders.save_classifier(cls.folder / "1")
        cls.model = Onnx("films", 1, cls.folder / "1")

    def test_answers_have_the_form_of_a_savedmodel(self) -> None:
        values = self.model.run("serving_default", texts("good film", "bad", "film film film film good good", ""))
        expected = onnx_folders.expected("good film", "bad", "film film film film", "")
        np.testing.assert_allclose(values["scores"], expected, atol=1e-6)
        self.assertEqual(values["scores"].dtype, np.float32)
        self.assertEqual(values["label"].tolist(), [LABELS[i].encode() for i in expected.argmax(1)])
        self.assertEqual(values["labels"].tolist(), [[label.encode() for label in LABELS]] * 4)
        self.assertEqual(values["truncated"].tolist(), [False, False, True, False])
        self.assertEqual(self.model.run("serving_default", texts())["scores"].shape, (0, 2))
        self.assertEqual(set(self.model.run("serving_default", texts("a"), ("label",))), {"label"})

    def test_classify_and_regress(self) -> None:
        examples = messages.Input()
        for text in (b"good film", b"bad"):
            feature = examples.example_list.examples.add().features.feature["text"]
            feature.bytes_list.value.append(text)
        spec = ModelSpec("films", signature_name="classify")
        result = inference.classify(self.model, self.model.run, spec, examples, check_methods=True)
        expected = onnx_folders.expected("good film", "bad")
        scores = [[each.score for each in row.classes] for row in result.classifications]
        np.testing.assert_allclose(scores, expected, atol=1e-6)
        self.assertEqual([each.label for each in result.classifications[0].classes], LABELS)
        spec = ModelSpec("films", signature_name="regress")
        result = inference.regress(self.model, self.model.run, spec, examples, check_methods=True)
        np.testing.assert_allclose([each.value for each in result.regressions], expected[:, 1], atol=1e-6)
        with self.assertRaisesRegex(StatusError, r"^Feature: text \(data type: string\) is required"):
            self.model.run("classify", {"inputs": np.array([b""], object)})

    def test_a_context_is_not_repeated_without_a_limit(self) -> None:
        examples = messages.Input()
        feature = examples.example_list_with_context.context.features.feature["text"]
        feature.bytes_list.value.append(b"x" * 2**20)
        for _ in range(300):
            examples.example_list_with_context.examples.add()
        with self.assertRaisesRegex(StatusError, r"^The context has \d+ bytes, which are repeated for 300 examples"):
            inference.serialized(examples)
        del examples.example_list_with_context.examples[2:]
        self.assertEqual([len(row) > 2**20 for row in inference.serialized(examples)], [True, True])

    def test_ids_are_those_of_the_vocabulary(self) -> None:
        mask = np.ones((1, 2), np.int64)
        values = self.model.run("tokens", {"input_ids": np.array([[1, 5]]), "attention_mask": mask})
        np.testing.assert_allclose(values["logits"], onnx_folders.LOGITS[[1, 5]].sum(0)[None])
        for wrong in (-1, len(onnx_folders.WORDS), 2**31 - 1):
            with self.assertRaisesRegex(StatusError, f"^input_ids must be at least 0 and below 7, but is {wrong}$"):
                self.model.run("tokens", {"input_ids": np.array([[1, wrong]]), "attention_mask": mask})

    def test_texts_that_are_refused(self) -> None:
        with self.assertRaisesRegex(StatusError, "^text: is not UTF-8 at byte 1 of a text$"):
            self.model.run("serving_default", texts(b"a\xff"))
        long = "film " * 9
        onnx_folders.save_classifier(self.folder / "2", long_texts="refuse")
        with self.assertRaisesRegex(StatusError, "^the text is longer than 6 tokens, in row 1$"):
            Onnx("films", 2, self.folder / "2").run("serving_default", texts("good", long))
        onnx_folders.save_classifier(self.folder / "3", refuse="row", long_texts="refuse")
        values = Onnx("films", 3, self.folder / "3").run("serving_default", texts("good", long))
        self.assertEqual(values["error"].tolist(), [b"", b"the text is longer than 6 tokens"])
        self.assertEqual((values["label"][1], values["scores"][1].tolist()), (b"", [0, 0]))
        np.testing.assert_allclose(values["scores"][:1], onnx_folders.expected("good"), atol=1e-6)

    def test_tensorflow_is_not_imported(self) -> None:
        code = """import pathlib, sys
from tfzoo.serve import __main__
from tfzoo.serve.loading import Loader
from tfzoo.serve.metrics import Metrics
model = Loader(Metrics())("films", 1, pathlib.Path(sys.argv[1]))
texts = [b"GOOD film", b"bad", b"", b"film " * 9]
values = model.run("serving_default", {"text": np.array(texts, object)})
print(sorted(model.signatures), "tensorflow" in sys.modules, values["scores"].tolist(), values["truncated"].tolist())"""
        onnx_folders.save_classifier(self.folder / "sentencepiece", sentencepiece=True)
        for name, first in (("1", "GOOD film"), ("sentencepiece", "good film")):
            done = python("-c", f"import numpy as np\n{code}", self.folder / name)
            start = "['classify', 'regress', 'serving_default', 'tokens'] False "
            self.assertTrue(done.stdout.startswith(start), done.stdout)
            scores, truncated = json.loads(f"[{done.stdout.removeprefix(start).lower().replace('] [', '], [')}]")
            np.testing.assert_allclose(scores, onnx_folders.expected(first, "bad", "", "film " * 9), atol=1e-6)
            self.assertEqual(truncated, [False, False, False, True])


if __name__ == "__main__":
    unittest.main()
