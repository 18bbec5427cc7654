"""One export, replayed, inspected and damaged."""

import contextlib
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime_genai as genai
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tests.export import small
from tfzoo import cli, embeddings
from tfzoo.errors import CheckFailed, UserError
from tfzoo.export import __main__ as entry_point
from tfzoo.export import answers, artifact, golden, interface, manifest, precision, publish, variants, verify
from tfzoo.export.genai import write as write_genai
from tfzoo.export.onnx import check as onnx_check
from tfzoo.export.onnx import emit as onnx_emit
from tfzoo.export.onnx import graph as onnx_graph
from tfzoo.export.onnx import tower
from tfzoo.export.precision import Limits, with_precision
from tfzoo.models.record import FolderRecord
from tfzoo.text.framing import TEXT
from tfzoo.text.wordpiece import WordPiece
from tfzoo.training import history, runs
from tfzoo.weights import model_card

ROOT = pathlib.Path(__file__).parents[2]
VERIFY = ROOT / "export" / "verify.py"  # It runs the one of the package.

# A separate process, which replays the artifacts and then sends the SavedModel requests of an independent program.
OUTSIDER = """
import json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tfzoo":
            raise ImportError(f"{name} is not to be used here")

sys.meta_path.insert(0, Refuse())
folder, exports, savedmodel, classifier = sys.argv[1:]
sys.path.insert(0, folder)
import verify
report = {"verify": verify.main([exports + "/onnx", savedmodel])}

import pathlib
import tensorflow as tf
import tensorflow_text
print("ok ", verify.verify(pathlib.Path(classifier)))  # Without a process of its own, which would take longer.
loaded = tf.saved_model.load(savedmodel)
text, tokens = loaded.signatures["serving_default"], loaded.signatures["tokens"]

def ask(texts):
    outputs = text(text=tf.constant(texts, tf.string))
    answer = {name: value.numpy().tolist() for name, value in outputs.items()}
    return answer | {"shape": outputs["words"].shape.as_list()}

def refusal(ids, segments, mask=None):
    ids, segments = tf.constant(ids, tf.int32), tf.constant(segments, tf.int32)
    mask = tf.ones(ids.shape, tf.bool) if mask is None else tf.constant(mask)
    try:
        tokens(token_ids=ids, segment_ids=segments, padding_mask=mask)
    except tf.errors.InvalidArgumentError as error:
        return error.message
    return ""

report |= {
    "none": ask([]),
    "plain": ask(["", "the function"]),
    "mixed": ask(["the [MASK] of [MASK]", "", "[MASK]"]),
    "long": ask(["[MASK] " + "a " * 28 + "[MASK]", "[MASK] " + "a " * 29 + "[MASK]"]),
    "not_utf8": ask([b"\\xff\\xfe [MASK]"]),
    "fine": refusal([[1, 2]], [[0, 1]]),
    "negative": refusal([[1, -1]], [[0, 1]]),
    "beyond": refusal([[1, VOCAB]], [[0, 1]]),
    "segment": refusal([[1, 2]], [[0, 2]]),
    "too_long": refusal([[1] * 33], [[0] * 33]),
    "no_length": refusal([[]], [[]]),
    "shapes": refusal([[1, 2]], [[0]]),
    "mask_shape": refusal([[1, 2]], [[0, 0]], [[True]]),
}
classifier = tf.saved_model.load(classifier)
from tensorflow_serving.apis import prediction_log_pb2  # As TF Serving warms a version up.
warmed = []
for record in tf.data.TFRecordDataset(sys.argv[4] + "/assets.extra/tf_serving_warmup_requests"):
    log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
    kind = log.WhichOneof("log_type")
    request = getattr(log, kind).request
    if kind == "predict_log":
        inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
    else:
        examples = request.input.example_list.examples
        inputs = {"inputs": tf.constant([example.SerializeToString() for example in examples])}
    outputs = classifier.signatures[request.model_spec.signature_name](**inputs)
    warmed.append([kind, request.model_spec.name, request.model_spec.signature_name, len(outputs)])
report["warmed"] = sorted(map(list, set(map(tuple, warmed))))
none = classifier.signatures["classify"](inputs=tf.constant([], tf.string))
report["no_examples"] = [none["classes"].shape.as_list(), none["scores"].shape.as_list()]
report = json.dumps(report, default=lambda value: value.decode())
print("REPORT", report)
"""


FOLDER: pathlib.Path
MODEL: Any
TOKENIZER: WordPiece
EXPORTED: dict[str, pathlib.Path]
OTHERS: dict[str, dict[str, pathlib.Path]]
# Further exports: name -> family, options of the model, options of the export.
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "classifier": ("bert", dict(heads=("classify",), num_labels=2), dict(text_pair=True, formats=["savedmodel"])),
    "translator": ("t5", {}, dict(formats=["onnx"], onnx_variants=["int8"])),
    "speaker": (
        "llama",
        dict(head_dim=8),
        dict(formats=["onnx"], onnx_profile="genai", max_new_tokens=8, onnx_variants=["int4_weights"]),
    ),
}
# Slower ones, for `make faults`.
MORE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "spans": ("bert", dict(heads=("span",)), {}),
    "follows": ("albert", dict(heads=("next_sentence",)), {}),
    "pairs": ("electra", dict(heads=("relation",)), {}),
    "replaced": ("electra", dict(heads=("discriminate",)), {}),
    "vectors": ("bert", dict(heads=()), dict(pooling="pooled")),
    "mean": ("xlnet", dict(heads=()), dict(long_texts="refuse")),
    "streams": ("xlnet", {}, dict(precision="float16")),
    "value": ("t5", dict(heads=("classify",), num_labels=1), {}),
    "both_sides": ("bart", dict(heads=("classify",)), dict(text_pair=True)),
    "tagger": ("distilbert", dict(heads=("tag",)), dict(precision="bfloat16")),
    "entities": ("roberta", dict(heads=("tag",)), {}),
    "last": ("llama", dict(heads=("classify",)), {}),
    "features": ("performer", {}, {}),
    "writer": ("gpt2", {}, dict(max_new_tokens=6, onnx_variants=["int8", "float16"])),
    "answers": ("t5", {}, dict(max_new_tokens=6)),
    "answers_by_row": ("gpt2", {}, dict(max_new_tokens=6, refuse="row", long_texts="refuse")),
    "static": ("reformer", dict(heads=("classify",)), {}),
    "reader": ("roberta", dict(heads=("span",)), dict(onnx_profile="compat", onnx_variants=["float16"])),
}


def setUpModule():
    global FOLDER, MODEL, TOKENIZER, EXPORTED, OTHERS
    FOLDER = pathlib.Path(tempfile.mkdtemp())
    unittest.addModuleCleanup(shutil.rmtree, FOLDER)
    MODEL, TOKENIZER = small.model(num_layers=1), small.tokenizer()
    with mock.patch.object(publish, "replay"):  # ArtifactTest replays all of them; PublishTest runs the real function.
        EXPORTED = artifact.export(MODEL, TOKENIZER, FOLDER / "exports")
        OTHERS = {
            name: artifact.export(
                small.model(family, num_layers=1, **options), TOKENIZER, FOLDER / "exports", name, **asked
            )
            for name, (family, options, asked) in MODELS.items()
        }


def run_verify(*arguments):
    return subprocess.run([sys.executable, VERIFY, *arguments], capture_output=True, text=True)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


class ArtifactTest(tf.test.TestCase):
    def test_folders_and_files(self):
        self.assertEqual(
            EXPORTED,
            {kind: FOLDER / "exports" / kind / "bert" / "1" for kind in ("savedmodel", "onnx")},
        )
        for kind, folder in EXPORTED.items():
            self.assertEqual([path.name for path in folder.parent.iterdir()], ["1"])
            stated = json.loads((folder / "manifest.json").read_text())
            found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
            self.assertEqual(stated["files"].keys(), found - {"manifest.json"})
            self.assertLessEqual({"golden.npz", "README.md", "verify.py", verify.MODELS[kind][0]}, found)
            self.assertEqual((folder / "verify.py").read_bytes(), pathlib.Path(verify.__file__).read_bytes())
            allowed = stated["tolerances"]["tokens"]["logits"]["allowed"]
            self.assertLess(stated["measured"]["tokens/logits"]["difference"], allowed)
            self.assertEqual(stated["tokenizer"]["fingerprint"], TOKENIZER.fingerprint())
            self.assertEqual(stated["tools"]["tensorflow"], tf.__version__)
            self.assertEqual(stated["least"], {"batch": int(kind == "onnx"), "sequence": 1})
            self.assertIsNone(stated["float32_error"])
            card = (folder / "README.md").read_text()
            self.assertIn(f"{MODEL.count_params():,} parameters", card)
            self.assertIn("\npipeline_tag: fill-mask\n", card)
            self.assertEqual("curl -s http://localhost:8501/v1/models/bert:predict" in card, kind == "savedmodel")
        self.assertEqual(stated["opset"], {"ai.onnx": 23})

    def test_golden_covers_what_it_should(self):
        for folder, ids, mask in (
            (EXPORTED["onnx"], "input_ids", "attention_mask"),
            (EXPORTED["savedmodel"], "token_ids", "padding_mask"),
        ):
            cases = verify.read_golden(folder)
            shapes = [case["inputs"][ids].shape for (signature, _), case in cases.items() if signature == "tokens"]
            self.assertGreaterEqual(len({batch for batch, _ in shapes}), 3)
            self.assertGreaterEqual(len({length for _, length in shapes}), 3)
            self.assertEqual(max(length for _, length in shapes), MODEL.config.max_positions)
            self.assertTrue(any((case["inputs"][mask] == 0).any() for case in cases.values() if mask in case["inputs"]))
            self.assertIn(small.VOCAB.index("京"), cases["tokens", "text"]["inputs"][ids])
            logits = [case["outputs"]["logits"] for case in cases.values() if "logits" in case["outputs"]]
            self.assertGreater(np.concatenate([each["decided"][each["real"]] for each in logits]).mean(), 0.9)

    def test_an_outsider_can_use_it(self):
        code = OUTSIDER.replace("VOCAB", str(len(small.VOCAB)))
        done = subprocess.run(
            [
                sys.executable,
                "-P",
                "-c",
                code,
                EXPORTED["savedmodel"],
                FOLDER / "exports",
                EXPORTED["savedmodel"],
                OTHERS["classifier"]["savedmodel"],
            ],
            capture_output=True,
            text=True,
        )
        self.assertEqual(done.returncode, 0, done.stderr[-2000:])
        *lines, last = done.stdout.splitlines()
        count = len(EXPORTED) + sum(map(len, OTHERS.values()))
        self.assertLen([line for line in lines if line.startswith("ok ") and "largest difference" in line], count)
        report = json.loads(last.removeprefix("REPORT "))
        self.assertEqual(report["verify"], 0)

        self.assertEqual((report["none"]["shape"], report["none"]["num_masks"]), ([0, 0, 5], []))
        self.assertEqual((report["plain"]["shape"], report["plain"]["num_masks"]), ([2, 0, 5], [0, 0]))
        mixed = report["mixed"]
        self.assertEqual((mixed["shape"], mixed["num_masks"]), ([3, 2, 5], [2, 0, 1]))
        self.assertEqual((mixed["words"][2][1], mixed["probabilities"][2][1]), ([""] * 5, [0.0] * 5))
        answer = answers.find(MODEL, TOKENIZER, answers.Options(32))
        expected = answer.expected({"text": ["the [MASK] of [MASK]", "", "[MASK]"]}, Limits(2e-5))
        self.assertEqual(mixed["words"], expected["words"]["values"].tolist())
        self.assertAllClose(mixed["probabilities"], expected["probabilities"], rtol=1e-4)
        self.assertEqual(report["long"]["truncated"], [False, True])
        self.assertEqual(report["long"]["num_masks"], [2, 1])
        self.assertEqual(report["not_utf8"]["words"][0], mixed["words"][2][:1])

        self.assertEqual(
            report["warmed"],
            [
                ["classify_log", "classifier", "classify", 2],
                ["predict_log", "classifier", "serving_default", 4],
                ["predict_log", "classifier", "tokens", 1],
                ["regress_log", "classifier", "regress", 1],
            ],
        )
        self.assertEqual(report["no_examples"], [[0, 2], [0, 2]])
        self.assertEqual(report["fine"], "")
        self.assertIn(f"token_ids must be from 0 to {len(small.VOCAB) - 1}", report["negative"])
        self.assertIn(f"token_ids must be from 0 to {len(small.VOCAB) - 1}", report["beyond"])
        self.assertIn("segment_ids must be from 0 to 1", report["segment"])
        self.assertIn("the length of token_ids must be from 1 to 32", report["too_long"])
        self.assertIn("the length of token_ids must be from 1 to 32", report["no_length"])
        self.assertIn("segment_ids must have the shape of token_ids", report["shapes"])
        self.assertIn("padding_mask must have the shape of token_ids", report["mask_shape"])

    def test_onnxruntime_genai_writes_what_the_model_writes(self):
        folder = OTHERS["speaker"]["onnx"]
        stated = json.loads((folder / "manifest.json").read_text())
        self.assertEqual((stated["profile"], stated["opset"]), ("genai", {"ai.onnx": 23, "com.microsoft": 1}))
        self.assertIn("onnxruntime-genai:generate/generated_ids", stated["measured"])
        self.assertIn("int4_weights:generate/generated_ids", stated["measured"])
        runner = genai.Model(str(folder))
        compared = 0
        for case in ("ids", "text"):
            arrays = verify.read_golden(folder)["generate", case]
            asked = genai.GeneratorParams(runner)
            prompts, expected = arrays["inputs"]["input_ids"], arrays["outputs"]["generated_ids"]
            count, length = int(arrays["inputs"]["max_new_tokens"]), prompts.shape[1]
            asked.set_search_options(do_sample=False, batch_size=len(prompts), max_length=length + count)
            generator = genai.Generator(runner, asked)
            generator.append_tokens(prompts.astype(np.int32))
            while not generator.is_done():
                generator.generate_next_token()
            for i, row in enumerate(expected["values"].tolist()):
                written = generator.get_sequence(i).tolist()[length:]
                end = row.index(0) if 0 in row else count  # Generation stops at [PAD], which ends a text here.
                end = min(end, int(expected["decided"][i].sum()))
                self.assertEqual(written[:end], row[:end])
                compared += end
        self.assertGreater(compared, count)

    def test_several_tokens_that_end_a_text(self):
        model, folder = small.model("llama", num_layers=1, head_dim=8), FOLDER / "several"
        model.record = FolderRecord({"eos_token_id": [3, 7]})
        folder.mkdir()
        onnx_emit.save(model, folder, profile="genai")
        write_genai(model, TOKENIZER, folder, "model.onnx")
        stated = json.loads((folder / "genai_config.json").read_text())["model"]
        self.assertEqual((stated["bos_token_id"], stated["eos_token_id"]), (3, [3, 7]))
        genai.Model(str(folder))  # Reads it.
        verify.check_genai(folder)

    def test_signatures_for_classify_and_regress(self):
        folder = OTHERS["classifier"]["savedmodel"]
        saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
        methods = {name: s.method_name for name, s in saved.meta_graphs[0].signature_def.items()}
        for name in ("classify", "regress"):
            self.assertEqual(methods[name], f"tensorflow/serving/{name}")
        self.assertEqual(methods["serving_default"], "tensorflow/serving/predict")

    def test_no_operator_needs_python_or_xla(self):
        for folders in (EXPORTED, *OTHERS.values()):
            if "savedmodel" in folders:
                data = (folders["savedmodel"] / "saved_model.pb").read_bytes()
                graph = saved_model_pb2.SavedModel.FromString(data).meta_graphs[0].graph_def
                functions = graph.library.function
                operators = {node.op for node in [*graph.node, *(n for f in functions for n in f.node_def)]}
                self.assertFalse(operators & {"PyFunc", "EagerPyFunc", "PyFuncStateless", "XlaLaunch"})
                self.assertFalse([f for f in functions if f.attr["_XlaMustCompile"].b])

    @pytest.mark.faults
    def test_vectors_are_sentence_transformers(self):
        folder = ROOT / "tests" / "assets" / "golden_sentence" / "roberta"
        model, tokenizer = runs.load(folder)
        wanted = np.load(folder / "golden.npz")
        texts = wanted["texts"].tolist()
        with mock.patch.object(publish, "replay"):
            folders = artifact.export(model, tokenizer, FOLDER / "vectors", prompt_name="long")
        loaded = tf.saved_model.load(str(folders["savedmodel"]))
        got = loaded.signatures["serving_default"](text=tf.constant(texts))["embeddings"]
        self.assertAllClose(got, wanted["vectors/long"], rtol=0, atol=2e-6)
        inputs = embeddings.reader_of(model, tokenizer, prompt_name="long").read({TEXT: tf.constant(texts)}).inputs
        read, _ = verify.load_graphs({"model": str(folders["onnx"] / "model.onnx")}, False)
        got = read("tokens", interface.to_onnx(inputs))["sentence_embedding"]
        self.assertAllClose(got, wanted["vectors/long"], rtol=0, atol=2e-6)
        for path in folders.values():
            self.assertEqual(json.loads((path / "manifest.json").read_text())["prompt_tokens"], 20)

    def test_an_answer_for_each_row(self):
        with mock.patch.object(publish, "replay"):
            folder = artifact.export(
                small.model(heads=("classify",), num_layers=1), TOKENIZER, FOLDER / "rows", formats=["savedmodel"],
                refuse="row", long_texts="refuse", sequence_length=12,
            )["savedmodel"]  # fmt: skip
        self.assertIn("answers of serving_default equal", verify.verify(folder))
        stated = json.loads((folder / "manifest.json").read_text())["signatures"]
        for signature in ("serving_default", "tokens"):
            self.assertEqual(stated[signature]["outputs"]["error"], {"dtype": "string", "shape": ["batch"]})
        # TF Serving's Classify supports only these outputs.
        self.assertEqual(stated["classify"]["outputs"].keys(), {"classes", "scores"})
        errors = [case["outputs"].get("error") for case in verify.read_golden(folder).values()]
        self.assertIn(
            "the text is longer than 12 tokens", np.concatenate([each for each in errors if each is not None])
        )

    def test_tolerances_that_verify_accepts(self):
        most = {name: 2 * value for name, value in variants.MOST.items()}
        self.assertEqual((verify.VARIANTS, verify.TOLERANCES["float32"]), (most, precision.MOST))
        halves = {name: value for name, value in precision.USUAL.items() if name != "float32"}
        self.assertEqual(verify.TOLERANCES, {"float32": precision.MOST, **halves})

    def test_variants_are_beside_the_graphs(self):
        folder = OTHERS["translator"]["onnx"]
        stated = json.loads((folder / "manifest.json").read_text())
        self.assertEqual(stated["signatures"].keys(), {"encoder_model", "decoder_with_past_model"})
        self.assertLessEqual(
            {"encoder_model_int8.onnx", "decoder_with_past_model_int8.onnx", "encoder_model.onnx"},
            stated["files"].keys(),
        )
        self.assertIn("int8:tokens/logits", stated["measured"])

    def test_verify_refuses_every_damaged_copy(self):
        expected: dict[pathlib.Path, str] = {}
        for kind, folder in EXPORTED.items():
            damages = {p.relative_to(folder).as_posix(): flip for p in folder.rglob("*") if p.is_file()}
            damages |= {"extra.txt": lambda path: path.write_text("new")}
            damages |= {f"{name} ": pathlib.Path.unlink for name in ("golden.npz", "manifest.json")}
            for name, damage in damages.items():
                copy = FOLDER / "damaged" / kind / str(len(expected))
                shutil.copytree(folder, copy)
                damage(copy / name.strip())
                expected[copy] = name.strip()
        self.assertEqual(verify.artifacts(FOLDER / "damaged"), sorted(expected))
        for copy, name in expected.items():
            with self.assertRaises(Exception) as caught:
                verify.verify(copy)
            if name != "manifest.json":  # The effect of a flipped byte on JSON is unpredictable.
                self.assertRegex(str(caught.exception), f"^{re.escape(name)}: ")

    def test_verify_refuses_other_answers(self):
        """Damage with a matching manifest, which only the replay can detect."""
        folder = EXPORTED["onnx"]
        stated = json.loads((folder / "manifest.json").read_text())

        def refused(change, pattern):
            with tempfile.TemporaryDirectory(dir=FOLDER) as copy:
                copy = shutil.copytree(folder, copy, dirs_exist_ok=True)
                content = {key: stated[key] for key in stated if key not in ("files", "manifest_sha256")}
                change(pathlib.Path(copy), content)
                (pathlib.Path(copy) / "manifest.json").unlink()
                manifest.write(pathlib.Path(copy), content)
                with self.assertRaisesRegex(verify.Failure, pattern):
                    verify.verify(pathlib.Path(copy))

        def rewrite(change):
            def graph(copy, _):
                model = onnx.load(copy / "model.onnx")
                change(model.graph)
                onnx.save_model(model, copy / "model.onnx")

            return graph

        def one_weight(graph):
            (tensor,) = (t for t in graph.initializer if t.name.endswith("layer_0/mlp/up/kernel"))
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[3, 3] += 0.01
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))

        def stale(copy, _):
            arrays = dict(np.load(copy / "golden.npz"))
            arrays["tokens/2x32/outputs/logits/argmax"][1, 5] += 1
            np.savez(copy / "golden.npz", **arrays)

        refused(rewrite(one_weight), "differs by|arg-max")
        refused(rewrite(lambda graph: rename(graph, "logits", "logit")), "outputs")
        refused(rewrite(lambda graph: rename(graph, "attention_mask", "mask")), "inputs")
        refused(stale, "arg-max differs at 1 of")
        refused(lambda _, content: content["signatures"]["model"]["inputs"].pop("token_type_ids"), "inputs")

    def test_what_is_still_being_written_is_not_replayed(self):
        folder = FOLDER / "writing"
        for name in ("1", "2.77.partial", "mine.partial"):
            (folder / "bert" / name).mkdir(parents=True)
            (folder / "bert" / name / "golden.npz").write_text("")
        self.assertEqual(verify.artifacts(folder), [folder / "bert" / "1", folder / "bert" / "mine.partial"])
        self.assertEqual(verify.artifacts(folder / "bert" / "2.77.partial"), [folder / "bert" / "2.77.partial"])

    def test_wrong_use_of_verify(self):
        empty = FOLDER / "empty"
        empty.mkdir()
        for arguments in ([], ["--halp"], [str(empty)], [str(FOLDER / "nowhere")]):
            with contextlib.redirect_stderr(io.StringIO()) as stderr:
                self.assertEqual(verify.main(arguments), 2)
            self.assertLen(stderr.getvalue().splitlines(), 1)


@pytest.mark.faults
class EveryHeadTest(tf.test.TestCase):
    def test_every_head(self):
        folder = FOLDER / "more"
        with mock.patch.object(publish, "replay"):
            for name, (family, options, asked) in MORE.items():
                with self.subTest(name):
                    artifact.export(small.model(family, **options), TOKENIZER, folder, name, **asked)
        done = run_verify(folder)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertLen(done.stdout.splitlines(), 2 * len(MORE))
        self.assertEqual(json.loads((folder / "onnx/reader/1/manifest.json").read_text())["opset"], {"ai.onnx": 18})


def rename(graph, old, new):
    for value in [*graph.input, *graph.output]:
        if value.name == old:
            value.name = new
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new


class PublishTest(tf.test.TestCase):
    """ONNX only: a process that replays it does not need TensorFlow and starts quickly."""

    def setUp(self):
        super().setUp()
        self.output_dir = FOLDER / self.id().rsplit(".", 1)[-1]
        if "command" not in self.id():  # Tested in onnx_emit_test.py.
            self.enterContext(mock.patch.object(onnx_check, "check_twin"))

    def export(self, **keywords):
        return artifact.export(MODEL, TOKENIZER, self.output_dir, formats=["onnx"], **keywords)["onnx"]

    def test_nothing_that_does_not_verify_is_published(self):
        write = manifest.write
        for name in ("model.onnx", "golden.npz", "tokenizer/vocab.txt", "manifest.json", "verify.py"):

            def damaging(folder, content, name=name):
                write(folder, content)
                flip(folder / name)

            with self.subTest(name), mock.patch.object(manifest, "write", damaging):
                with self.assertRaisesRegex(CheckFailed, "nothing was published"):
                    self.export()
                self.assertFalse(self.output_dir.exists())

    def test_a_large_model_is_replayed_once(self):
        self.enterContext(mock.patch.object(artifact, "_LARGE", 0))
        write, alone, replayed = manifest.write, verify.verify_alone, []

        def counted(*arguments):
            replayed.append(arguments)
            return alone(*arguments)

        self.enterContext(mock.patch.object(verify, "verify_alone", counted))
        folder = self.export()
        self.assertLen(replayed, 1)
        self.assertIn("difference", json.loads((folder / "manifest.json").read_text())["measured"]["tokens/logits"])
        self.assertStartsWith(verify.verify(folder), "onnx bert version 1: largest difference")
        for last, pattern in (
            (False, "does not reproduce .* model.onnx: its SHA-256 differs"),
            (True, "nothing was published: .* model.onnx: its SHA-256 differs"),
        ):

            def damaging(folder, content, listed=None, last=last):
                listed = write(folder, content, listed)
                if ("measured" in content) == last:
                    flip(folder / "model.onnx")
                return listed

            with mock.patch.object(manifest, "write", damaging), self.assertRaisesRegex(CheckFailed, pattern):
                self.export()
            self.assertEqual([path.name for path in folder.parent.iterdir()], ["1"])
        ask = mock.Mock(return_value={"missing": "No module named 'onnxruntime'"})
        with mock.patch.object(verify, "verify_alone", ask), self.assertRaisesRegex(CheckFailed, "cannot be replayed"):
            self.export()

    def test_a_wrong_graph_is_not_published(self):
        emit, bias = onnx_emit.emit, tower._padding_bias

        def swapped(*arguments, **options):
            graphs = emit(*arguments, **options)
            for old, new in (("input_ids", "x"), ("token_type_ids", "input_ids"), ("x", "token_type_ids")):
                rename(graphs["model"].graph, old, new)
            return graphs

        def ignored(graph, attention_mask, length, at):
            all_true = graph.add("Equal", attention_mask, attention_mask, at=at)
            return bias(graph, graph.add("Cast", all_true, at=at, to=onnx.TensorProto.INT64), length, at)

        self.output_dir.mkdir()
        (self.output_dir / "mine.txt").write_text("stays")
        for module, name, wrong in ((onnx_emit, "emit", swapped), (tower, "_padding_bias", ignored)):
            with self.subTest(name), mock.patch.object(module, name, wrong):
                with self.assertRaises(CheckFailed):
                    self.export()
                self.assertEqual([path.name for path in self.output_dir.iterdir()], ["mine.txt"])

    def test_versions(self):
        self.assertEqual(self.export(version=7).name, "7")
        self.assertEqual(self.export().name, "8")
        with self.assertRaisesRegex(UserError, "--version=7: .*exists"):
            self.export(version=7)
        folder = self.export(version=10, keep_versions=2)
        self.assertCountEqual([path.name for path in folder.parent.iterdir()], ["8", "10"])
        (folder.parent / "0002").mkdir()
        self.export(version=3, keep_versions=2)  # The new version stays, whatever its number.
        self.assertCountEqual([path.name for path in folder.parent.iterdir()], ["3", "8", "10"])
        self.export(keep_versions=9)  # More than there are versions.
        self.assertCountEqual([path.name for path in folder.parent.iterdir()], ["3", "8", "10", "11"])

    def test_halves_in_opset_18(self):
        """Rows without tokens, whose outputs differ in float16, are in no case for ONNX."""
        for family, heads in (("bert", ("classify",)), ("distilbert", ("span",))):
            options = dict(formats=["onnx"], onnx_profile="compat", onnx_variants=["float16"])
            with self.subTest(family), mock.patch.object(publish, "replay"):
                model = small.model(family, heads=heads)
                folder = artifact.export(model, TOKENIZER, self.output_dir, **options)["onnx"]
                cases = verify.read_golden(folder)
                self.assertIn(("tokens", "text"), cases)
                for case in cases.values():
                    self.assertTrue(case["inputs"]["attention_mask"].any(1).all())

    def test_a_graph_that_ends_the_process(self):
        kill = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
        run = subprocess.run
        with (
            mock.patch.object(
                variants.subprocess, "run", lambda command, **kw: run([sys.executable, "-c", kill], **kw)
            ),
            self.assertRaisesRegex(
                CheckFailed, "onnxruntime is terminated by SIGSEGV when it loads model_int8.onnx; omit it"
            ),
        ):
            self.export(onnx_variants=["int8"])
        self.assertFalse(self.output_dir.exists())

    def test_another_export_of_the_same_version(self):
        """The slower export is refused and removes only its own files."""
        kinds = ["litert", "onnx"]
        made = publish.replay

        def overtaken(folders):
            made(folders)
            (self.output_dir / "onnx" / "bert" / "1").mkdir()
            (self.output_dir / "onnx" / "bert" / "1" / "theirs.txt").write_text("stays")

        def written(model, tokenizer, folder, options, limits, **_):
            (folder / "model.tflite").write_text("")
            return {"signatures": {}}

        with (
            mock.patch.object(publish, "replay", overtaken),
            mock.patch.dict(artifact.TARGETS, litert=artifact.Target("", written)),
            mock.patch.object(artifact, "_finish"),
            mock.patch.object(publish.subprocess, "run", lambda *_, **__: mock.Mock(returncode=0)),
        ):
            for order in (kinds, kinds[::-1]):
                with (
                    self.subTest(order),
                    self.assertRaisesRegex(
                        UserError, "^--version=1: .*(already exists|exists already); choose another version"
                    ),
                ):
                    artifact.export(MODEL, TOKENIZER, self.output_dir, formats=order)
                found = [path.relative_to(self.output_dir) for path in self.output_dir.rglob("*") if path.is_file()]
                self.assertEqual(list(map(str, found)), ["onnx/bert/1/theirs.txt"])
                shutil.rmtree(self.output_dir)

    def test_a_target_of_ones_own(self):
        """It writes a folder and has a reader in verify.py."""

        def write(model, tokenizer, folder, options, limits, **_):
            (graph,) = onnx_emit.emit(model, cache=False).values()
            (folder / "graph.bin").write_bytes(graph.SerializeToString())
            cases = golden.token_cases(model, tokenizer, options)
            arrays = {case: golden.onnx_case(model, inputs, limits) for case, inputs in cases.items()}
            golden.write(folder / "golden.npz", {"tokens": arrays})
            stated = interface.stated(onnx_graph.describe(graph))
            return {"signatures": {"model": stated}, "tolerances": {"tokens": limits.of(["logits"])}}

        def read(folder, manifest):
            run, found = verify.load_graphs({"model": (folder / "graph.bin").read_bytes()})
            verify.check_signatures(found, manifest["signatures"])
            return verify.compare_all(run, verify.read_golden(folder), manifest["tolerances"])

        model = small.model(heads=("tag",), num_layers=1)
        with (
            mock.patch.dict(artifact.TARGETS, binary=artifact.Target("a binary file", write)),
            mock.patch.dict(verify.READERS, binary=read),
            mock.patch.object(publish, "replay"),
        ):
            folder = artifact.export(model, TOKENIZER, self.output_dir, "mine", formats=["binary"])["binary"]
            self.assertEqual(folder, self.output_dir / "binary" / "mine" / "1")
            self.assertStartsWith(verify.verify(folder), "binary mine version 1: largest difference")
        with self.assertRaisesRegex(verify.Failure, "manifest.json: the kind 'binary' is not supported"):
            verify.verify(folder)

    def test_another_precision_has_the_folder_s_configuration(self):
        model = small.model("gpt2", num_layers=1)
        model.record = FolderRecord({"eos_token_id": 3}, {"eos_token_id": [3, 7]})
        twin = with_precision(model, "bfloat16")
        self.assertEqual(
            answers.find(twin, TOKENIZER, answers.Options(32, max_new_tokens=2)).ids["eos_token_id"], [3, 7]
        )
        self.assertEqual(twin.record, model.record)

    def test_arguments(self):
        for pattern, keywords in (
            ("--name=a/b", dict(name="a/b")),
            ("--name=..", dict(name="..")),
            ("--name=my.partial", dict(name="my.partial")),
            ("--version=0", dict(version=0)),
            ("--formats=tflite: choose from savedmodel, onnx", dict(formats=["tflite"])),
            ("--formats=:", dict(formats=[])),
            ("--formats=onnx,onnx: .*each at most once", dict(formats=["onnx", "onnx"])),
            ("--precision=int4: choose from", dict(precision="int4")),
            ("--onnx_variants=int3: choose from", dict(onnx_variants=["int3"])),
            ("--keep_versions=0", dict(keep_versions=0)),
            ("--sequence_length=33: must be from 1 to 32", dict(sequence_length=33)),
        ):
            with self.assertRaisesRegex(UserError, pattern):
                artifact.export(MODEL, TOKENIZER, self.output_dir, **keywords)
        with self.assertRaisesRegex(UserError, "the tokenizer has 65 tokens, but the model's vocab_size is only 64"):
            artifact.export(small.model(vocab_size=64), TOKENIZER, self.output_dir)
        self.assertFalse(self.output_dir.exists())
        self.output_dir.write_text("a file")
        for place, pattern in (
            (self.output_dir, "--output_dir=(.*): \\1 is not a folder; choose another"),
            (self.output_dir / "in_it", "--output_dir=.*in_it: cannot be created in .*; specify a writable folder"),
            (pathlib.Path("/proc/x"), "/proc/x.* cannot be "),  # Even root cannot create this folder.
        ):
            with self.assertRaisesRegex(UserError, pattern):
                artifact.export(MODEL, TOKENIZER, place, formats=["onnx"])
        self.output_dir.unlink()
        (self.output_dir / "onnx").mkdir(parents=True)
        (self.output_dir / "onnx" / "bert").write_text("a file")
        with self.assertRaisesRegex(UserError, "--output_dir=.*: .*/onnx/bert is not a folder; choose another"):
            artifact.export(MODEL, TOKENIZER, self.output_dir, formats=["onnx"])
        shutil.rmtree(self.output_dir)

    def test_the_command(self):
        arguments = [f"--flagfile={ROOT / 'export' / 'bert.cfg'}", "--model_dir=RUN", f"--output_dir={self.output_dir}"]
        with (
            mock.patch.object(runs, "load", lambda *_, role: (MODEL, TOKENIZER)),
            mock.patch.object(history, "origin_of", lambda *_: model_card.Origin("mine", steps=123)),
        ):
            with contextlib.redirect_stdout(io.StringIO()) as stdout:
                code = cli.run(entry_point.main, entry_point.define_flags, [*arguments, "--formats=onnx"])
            self.assertEqual(code, 0)
            self.assertIn(str(self.output_dir / "onnx" / "bert" / "1"), stdout.getvalue())
            self.assertIn("- Steps: 123\n", (self.output_dir / "onnx" / "bert" / "1" / "README.md").read_text())
            with contextlib.redirect_stderr(io.StringIO()) as stderr:
                code = cli.run(entry_point.main, entry_point.define_flags, arguments[:1])
            self.assertEqual((code, len(stderr.getvalue().splitlines())), (2, 1))
            blank = FOLDER / "blank.jsonl"
            blank.write_text('{"text": "  "}\n')
            with contextlib.redirect_stderr(io.StringIO()) as stderr:
                arguments.append(f"--calibration_file={blank}")
                code = cli.run(entry_point.main, entry_point.define_flags, arguments)
            self.assertEqual(code, 2)
            self.assertRegex(
                stderr.getvalue(), "^error: --calibration_file=.*: contains no text; write one text per line\n$"
            )


if __name__ == "__main__":
    tf.test.main()
