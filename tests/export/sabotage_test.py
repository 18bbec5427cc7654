"""Damaged artifacts, and artifacts that refer to files outside their folder, fail even with a matching manifest."""

import contextlib
import importlib
import io
import json
import os
import pathlib
import pickle
import shutil
import tempfile
import unittest
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry

from tests.export import small
from tfzoo.errors import CheckFailed, UserError
from tfzoo.export import artifact, golden, manifest, publish, savedmodel, verify
from tfzoo.prediction import folders
from tfzoo.text.wordpiece import WordPiece
from tfzoo.training import runs

FOLDER: pathlib.Path
# The vocabulary of another model: of the same size, in another order.
OTHER = WordPiece([*small.SPECIAL, *reversed(small.VOCAB[len(small.SPECIAL) :])])


def setUpModule():
    global FOLDER
    FOLDER = pathlib.Path(tempfile.mkdtemp())
    unittest.addModuleCleanup(shutil.rmtree, FOLDER)


def export(kind: str, tokenizer=None, **options) -> pathlib.Path:
    model = small.model("bert", heads=("classify",), num_layers=1, **options)
    place = pathlib.Path(tempfile.mkdtemp(dir=FOLDER))
    with mock.patch.object(publish, "replay"):
        return artifact.export(model, tokenizer or small.tokenizer(), place, formats=[kind])[kind]


class Sabotage(tf.test.TestCase):
    def changed(self, folder: pathlib.Path, change: Callable[[pathlib.Path], Any], stated=None) -> pathlib.Path:
        """Returns a changed copy of the artifact with a matching manifest, `stated` if given."""
        copy = shutil.copytree(folder, pathlib.Path(tempfile.mkdtemp(dir=FOLDER)), dirs_exist_ok=True)
        stated = stated or json.loads((copy / "manifest.json").read_text())
        change(copy)
        content = {key: stated[key] for key in stated if key not in ("files", "manifest_sha256")}
        (copy / "manifest.json").unlink()
        manifest.write(copy, content)
        return copy

    def refused(self, folder: pathlib.Path, pattern: str, change: Callable[[pathlib.Path], Any], stated=None) -> None:
        """Asserts that verify.py refuses such a copy."""
        with self.assertRaisesRegex(Exception, pattern):
            verify.verify(self.changed(folder, change, stated))

    def not_opened(self, folder: pathlib.Path, pattern: str, change: Callable[[pathlib.Path], Any]) -> None:
        """Asserts that tfzoo.predict refuses such a copy."""
        with self.assertRaisesRegex(UserError, pattern):
            folders.open_folder(self.changed(folder, change))


def take(source: pathlib.Path, name: str) -> Callable[[pathlib.Path], Any]:
    """Returns a change that replaces a file or folder by that of another artifact."""

    def change(copy: pathlib.Path) -> None:
        if (source / name).is_dir():
            shutil.copytree(source / name, copy / name, dirs_exist_ok=True)
        else:
            shutil.copy(source / name, copy / name)

    return change


class OnnxTest(Sabotage):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = export("onnx")

    def test_what_leaves_the_folder(self):
        folder = self.folder
        secret = FOLDER / "secret.bin"
        secret.write_bytes(bytes(10_000))

        def beside(location):
            """Returns a change that moves all weights into a separate file, which the graph then calls `location`."""

            def change(copy):
                model = onnx.load(copy / "model.onnx")
                (copy / "model.onnx").unlink()
                onnx.save_model(model, copy / "model.onnx", save_as_external_data=True, location="w.data")
                model = onnx.load(copy / "model.onnx", load_external_data=False)
                for tensor in model.graph.initializer:
                    for entry in tensor.external_data:
                        entry.value = location if entry.key == "location" else entry.value
                (copy / "model.onnx").write_bytes(model.SerializeToString())

            return change

        copy = shutil.copytree(folder, FOLDER / "beside")
        beside("w.data")(copy)
        self.assertEqual(set(verify.external_data(copy / "model.onnx")), {"w.data"})
        for location in ("../secret.bin", str(secret), "sub/../w.data", "x" * 300):
            self.refused(
                folder, "^model.onnx: stores tensors in '.*, which is not a file of the artifact", beside(location)
            )
        link = "is a link or a device, but an artifact may contain only regular files"
        self.refused(folder, f"^w.data: {link}", lambda copy: (copy / "w.data").symlink_to(secret))
        self.refused(folder, f"^sub: {link}", lambda copy: (copy / "sub").symlink_to(FOLDER, target_is_directory=True))
        self.refused(folder, f"^pipe: {link}", lambda copy: os.mkfifo(copy / "pipe"))

        def elsewhere(copy):
            shutil.move(copy / "tokenizer", FOLDER / "moved")
            (copy / "tokenizer").symlink_to(FOLDER / "moved", target_is_directory=True)

        self.refused(folder, f"^tokenizer: {link}", elsewhere)
        stated = json.loads((folder / "manifest.json").read_text())
        for name in ("../secret.bin", str(secret)):
            with self.assertRaisesRegex(verify.Failure, "missing"):
                verify.check_files(folder, stated["files"] | {name: {"sha256": "", "bytes": 0}})

        def pickled(copy):
            np.savez(copy / "golden.npz", **{"tokens/1/inputs/x": np.array([{}], object)})

        self.refused(folder, "allow_pickle=False", pickled)

    def test_places_written_otherwise(self):
        """All encodings that ONNX's readers accept: the value before the key, overlong numbers, in a node, in a field
        that is split in two."""

        def external(*entries):
            return b"".join(b"\x6a" + bytes([len(entry)]) + entry for entry in entries)

        key, value = b"\x0a\x08location", b"\x12\x06/x.bin"
        found = []
        for entry in (key + value, value + key, b"\x0a\x88\x00location" + value, b"\x0a\x01x" + key + value):
            tensor = b"\x08\x01" + external(b"\x0a\x06offset\x12\x010", entry) + b"\x70\x01"
            attribute = b"\x2a" + bytes([len(tensor)]) + tensor  # In a node, as in an initializer: both are field 5.
            node = b"\x2a" + bytes([len(attribute)]) + attribute
            inner = b"\x0a" + bytes([len(node)]) + node
            for graph in (attribute, inner):
                path = FOLDER / "places.onnx"
                path.write_bytes(b"\x08\x0a\x3a\x00\x3a" + bytes([len(graph)]) + graph)
                found += verify.external_data(path)
        self.assertEqual(found, ["/x.bin"] * 8)
        # A truncated file, and a field number of which other readers use the last 32 bits.
        for data in (b"\x3a\x7f", b"\xba\x80\x80\x80\x10\x00"):
            (FOLDER / "places.onnx").write_bytes(data)
            with self.assertRaisesRegex(verify.Failure, "is not an ONNX file"):
                list(verify.external_data(FOLDER / "places.onnx"))

    def test_what_is_not_the_folders_is_not_loaded(self):
        def elsewhere(copy):
            stated["signatures"] = {f"{FOLDER}/model": stated["signatures"]["model"]}

        def library(copy):
            (copy / "genai_config.json").write_text('{"model": {"decoder": {"session_options": {}}}}')

        stated = json.loads((self.folder / "manifest.json").read_text())
        self.refused(self.folder, "^manifest.json: signatures is not an object of names", elsewhere, stated)
        self.refused(self.folder, "^genai_config.json: is not formatted as an export formats it", library)

    def test_golden_answers_that_are_no_numbers(self):
        def spoilt(copy):
            arrays = dict(np.load(copy / "golden.npz"))
            key = next(key for key in arrays if key.endswith("outputs/logits/values"))
            arrays[key] = np.full_like(arrays[key], np.nan)
            np.savez(copy / "golden.npz", **arrays)

        self.refused(self.folder, "values are not finite in golden.npz", spoilt)

    def test_a_tokenizer_that_takes_exponential_time(self):
        def exponential(copy):
            path = copy / "tokenizer" / "tokenizer.json"
            record = json.loads(path.read_text())
            record["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated"}
            path.write_text(json.dumps(record))

        self.not_opened(self.folder, "tokenizer.json: pre_tokenizer: .* exponential time", exponential)

    def test_a_tokenizer_of_another_model(self):
        self.refused(self.folder, "^tokenizer.json: input_ids of ", take(export("onnx", OTHER), "tokenizer"))

    @pytest.mark.faults
    def test_a_stale_golden_file(self):
        self.refused(self.folder, "differs", take(export("onnx", norm_epsilon=1.0), "golden.npz"))


class GenaiTest(Sabotage):
    def test_what_its_configuration_may_not_say(self):
        """onnxruntime-genai would load the library in custom_ops_library, which could then do anything."""
        place = pathlib.Path(tempfile.mkdtemp(dir=FOLDER))
        model = small.model("gpt2", num_layers=1, hidden_size=32)
        with mock.patch.object(publish, "replay"):
            made = artifact.export(
                model, None, place, formats=["onnx"], onnx_profile="genai", sequence_length=16, max_new_tokens=4
            )
        folder = made["onnx"]

        def says(change):
            def rewrite(copy):
                stated = json.loads((copy / "genai_config.json").read_text())
                change(stated["model"]["decoder"], stated)
                (copy / "genai_config.json").write_text(json.dumps(stated, indent=1) + "\n")

            return rewrite

        for pattern, change in (
            ("session_options", lambda decoder, _: decoder["session_options"].update(custom_ops_library="ops.so")),
            ("session_options", lambda decoder, _: decoder["session_options"].update(provider_options=[{"cuda": {}}])),
            ("the graph '../model.onnx'", lambda decoder, _: decoder.update(filename="../model.onnx")),
            ("the graph 'golden.npz'", lambda decoder, _: decoder.update(filename="golden.npz")),
            ("contains decoder.pipeline", lambda decoder, _: decoder.update(pipeline=[])),
            ("contains model.vision", lambda _, stated: stated["model"].update(vision={})),
            ("contains engine", lambda _, stated: stated.update(engine={})),
        ):
            self.refused(folder, f"^genai_config.json: .*{pattern}", says(change))

        def twice(copy):
            text = (copy / "genai_config.json").read_text()
            before = '"session_options": '
            (copy / "genai_config.json").write_text(
                text.replace(before, f'{before}{{"custom_ops_library": "x"}}, {before}')
            )

        self.refused(folder, "^genai_config.json: is not formatted as an export formats it", twice)
        self.refused(folder, "genai_config.json", lambda copy: (copy / "genai_config.json").unlink())
        with mock.patch.object(verify.importlib.util, "find_spec", return_value=None):
            self.assertIn("genai_config.json not replayed: onnxruntime-genai is not installed", verify.verify(folder))


class SavedModelTest(Sabotage):
    @pytest.mark.faults
    def test_damage_with_a_manifest_that_fits(self):
        folder, other = export("savedmodel"), export("savedmodel", OTHER)
        trained = export("savedmodel", norm_epsilon=1.0)
        self.assertRegex(verify.verify(folder), "answers of serving_default equal, .* answers of classify equal$")

        def one_byte(copy):
            (path,) = (copy / "variables").glob("variables.data*")
            data = bytearray(path.read_bytes())
            weight = small.model("bert", heads=("classify",), num_layers=1).heads["classify"].weights[0].numpy()
            data[data.index(weight.tobytes()) + 2] ^= 0x40
            path.write_bytes(data)

        def swapped(copy):
            saved = saved_model_pb2.SavedModel.FromString((copy / "saved_model.pb").read_bytes())
            inputs = saved.meta_graphs[0].signature_def["tokens"].inputs
            one, two = inputs["token_ids"].name, inputs["segment_ids"].name
            inputs["token_ids"].name, inputs["segment_ids"].name = two, one
            (copy / "saved_model.pb").write_bytes(saved.SerializeToString())

        def exchanged(copy):
            saved = saved_model_pb2.SavedModel.FromString((copy / "saved_model.pb").read_bytes())
            outputs = saved.meta_graphs[0].signature_def["serving_default"].outputs
            outputs["label"].name, outputs["labels"].name = outputs["labels"].name, outputs["label"].name
            (copy / "saved_model.pb").write_bytes(saved.SerializeToString())

        def asset(name):
            def change(copy):
                saved = saved_model_pb2.SavedModel.FromString((copy / "saved_model.pb").read_bytes())
                saved.meta_graphs[0].asset_file_def.add(filename=name)
                (copy / "saved_model.pb").write_bytes(saved.SerializeToString())

            return change

        self.refused(folder, "DataLoss|[Cc]hecksum|differs", one_byte)
        self.refused(folder, "tokens maps (segment|token)_ids to a different tensor from its function", swapped)
        self.refused(folder, "serving_default maps labels? to a different tensor", exchanged)
        self.refused(folder, "differs", take(trained, "golden.npz"))  # A stale golden file.
        self.refused(folder, "serving_default", take(other, "golden.npz"))  # A tokenizer of another model.
        for name in ("../../secret.bin", str(FOLDER / "secret.bin"), "missing.txt"):
            self.refused(folder, "reads '.*', which is not a file in assets/", asset(name))

    def test_what_reaches_out(self):
        folder = export("savedmodel")

        def add(op, inputs=(), function=False):
            def change(copy):
                saved = saved_model_pb2.SavedModel.FromString((copy / "saved_model.pb").read_bytes())
                graph = saved.meta_graphs[0].graph_def
                nodes = graph.library.function[0].node_def if function else graph.node
                nodes.add(name="secret", op="Const")
                nodes.add(name="mine", op=op, input=inputs)
                (copy / "saved_model.pb").write_bytes(saved.SerializeToString())

            return change

        for op in ("ReadFile", "DumpTensor", "SaveV2"):  # verify_graphs_test.py has more.
            for function in (False, True):
                self.refused(folder, f"mine \\({op}\\) is not an operation that only computes", add(op, (), function))
        table = "InitializeTableFromTextFileV2"
        for function in (False, True):
            self.refused(folder, f"mine \\({table}\\) is not an operation", add(table, ["table", "secret"], function))

        self.not_opened(folder, "mine .ReadFile. is not an operation that only computes", add("ReadFile"))

        def saves(copy):
            """Lets the function of a signature call that of the saver."""
            saved = saved_model_pb2.SavedModel.FromString((copy / "saved_model.pb").read_bytes())
            graph = saved.meta_graphs[0]
            (saver,) = (n for n in graph.graph_def.node if f"{n.name}:0" == graph.saver_def.save_tensor_name)
            call = graph.graph_def.library.function[0].node_def.add(name="mine", op="StatefulPartitionedCall")
            call.attr["f"].func.name = saver.attr["f"].func.name
            (copy / "saved_model.pb").write_bytes(saved.SerializeToString())

        self.refused(folder, "mine \\(StatefulPartitionedCall\\) saves or restores variables", saves)

        def restores_elsewhere(op, inputs):
            """Returns a change of the function that a server calls to read the variables."""

            def change(copy):
                saved = saved_model_pb2.SavedModel.FromString((copy / "saved_model.pb").read_bytes())
                graph = saved.meta_graphs[0]
                (saver,) = (n for n in graph.graph_def.node if n.name == graph.saver_def.restore_op_name)
                functions = {f.signature.name: f for f in graph.graph_def.library.function}
                nodes = functions[saver.attr["f"].func.name].node_def
                nodes.add(name="secret", op="Const")
                nodes.add(name="mine", op=op, input=inputs)
                (copy / "saved_model.pb").write_bytes(saved.SerializeToString())

            return change

        self.refused(folder, "mine \\(SaveV2\\) is not an operation", restores_elsewhere("SaveV2", ["file_prefix"]))
        self.refused(folder, "mine \\(RestoreV2\\) is not an operation", restores_elsewhere("RestoreV2", ["secret"]))

        def one_more(of_saver):
            def change(copy):
                saved = saved_model_pb2.SavedModel.FromString((copy / "saved_model.pb").read_bytes())
                graph = saved.meta_graphs[0]
                graph.signature_def["mine"].CopyFrom(graph.signature_def["tokens"])
                if of_saver:
                    graph.signature_def["mine"].outputs["x"].name = graph.saver_def.save_tensor_name
                (copy / "saved_model.pb").write_bytes(saved.SerializeToString())

            return change

        self.refused(folder, "the signature mine is only in one of saved_model.pb and manifest.json", one_more(False))
        self.refused(folder, "saves or restores variables", one_more(True))

    def test_what_others_export(self):
        """A vocabulary in assets/, as TensorFlow 2 and 1 write it; every operation that is allowed exists."""
        importlib.import_module("tensorflow_text")
        named = verify.OPERATIONS | verify.FROM_FILE
        self.assertEqual([name for name in named if op_def_registry.get(name) is None], [])
        words = FOLDER / "words.txt"
        words.write_text("a\nb\n")

        def table():
            line, index = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
            made = tf.lookup.TextFileInitializer(str(words), tf.string, line, tf.int64, index)
            return tf.lookup.StaticHashTable(made, -1)

        module = tf.Module()
        module.table, module.scale = table(), tf.Variable(2)
        call = tf.function(lambda text: {"id": tf.cast(module.table.lookup(text), tf.int32) * module.scale})
        signature = call.get_concrete_function(tf.TensorSpec([None], tf.string, "text"))
        tf.saved_model.save(module, str(FOLDER / "two"), signatures=signature)
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            made = table()
            text = tf.compat.v1.placeholder(tf.string, [None])
            scale = tf.compat.v1.get_variable("scale", (), tf.int64)
            result = made.lookup(text) * scale
            session.run([tf.compat.v1.global_variables_initializer(), tf.compat.v1.tables_initializer()])
            builder = tf.compat.v1.saved_model.Builder(str(FOLDER / "one"))
            builder.add_meta_graph_and_variables(
                session,
                ["serve"],
                {"serving_default": tf.compat.v1.saved_model.predict_signature_def({"text": text}, {"id": result})},
                tf.compat.v1.get_collection(tf.compat.v1.GraphKeys.ASSET_FILEPATHS),
                main_op=tf.compat.v1.tables_initializer(),
            )
            builder.save()
        for name in ("one", "two"):
            saved = saved_model_pb2.SavedModel.FromString((FOLDER / name / "saved_model.pb").read_bytes())
            self.assertTrue((FOLDER / name / "assets" / "words.txt").exists())
            verify.check_graph(saved.meta_graphs[0], FOLDER / name)
            (FOLDER / name / "assets" / "words.txt").unlink()
            with self.assertRaisesRegex(verify.Failure, "reads 'words.txt', which is not a file in assets/"):
                verify.check_graph(saved.meta_graphs[0], FOLDER / name)

    @pytest.mark.faults
    def test_a_wrong_graph_is_not_published(self):
        """Swapped inputs and an ignored mask in the function that is exported."""
        calling = savedmodel._calling

        def wrong(change):
            return mock.patch.object(
                savedmodel, "_calling", lambda model: lambda inputs: calling(model)(change(dict(inputs)))
            )

        def swapped(inputs):
            return inputs | {"token_ids": inputs["segment_ids"], "segment_ids": inputs["token_ids"] % 2}

        def unmasked(inputs):
            return inputs | {"padding_mask": tf.ones_like(inputs["padding_mask"])}

        for change in (swapped, unmasked):
            with self.subTest(change.__name__), wrong(change):
                with self.assertRaisesRegex(CheckFailed, "does not reproduce the model's answers: .*differs by"):
                    export("savedmodel")


@pytest.mark.faults
class LimitsTest(tf.test.TestCase):
    """SavedModels of operations that are allowed; each ends in one line, and the good one after them is replayed."""

    def write(self, name: str, compute: Callable[[tf.Tensor], tf.Tensor]) -> None:
        folder = FOLDER / "limits" / name
        dtypes = {"token_ids": "int32", "padding_mask": "bool"}
        specs = [tf.TensorSpec([None, None], dtype, name) for name, dtype in dtypes.items()]
        module = tf.Module()
        module.call = tf.function(
            lambda ids, mask: {"logits": compute(tf.cast(ids, tf.float32))}, input_signature=specs
        )
        call = module.call.get_concrete_function()
        tf.saved_model.save(module, str(folder), signatures={"tokens": call, "serving_default": call})
        arrays = {}
        for rows, length in ((1, 1), (3, 2), (2, 8)):
            ids = np.arange(rows * length, dtype=np.int32).reshape(rows, length)
            real = np.arange(length) < np.linspace(length, max(1, length // 3), rows)[:, None]
            inputs = {"token_ids": ids, "padding_mask": real}
            outputs = {"logits": {"values": ids / np.float32(2), "real": real}}
            arrays[f"{rows}x{length}"] = {"inputs": inputs, "outputs": outputs}
        golden.write(folder / "golden.npz", {"tokens": arrays, "serving_default": arrays})
        sides = {
            "inputs": {spec.name: {"dtype": spec.dtype.name, "shape": ["batch", "sequence"]} for spec in specs},
            "outputs": {"logits": {"dtype": "float32", "shape": ["batch", "sequence"]}},
        }
        limit = {"logits": {"of": "largest", "allowed": 2e-5}}
        names = ("tokens", "serving_default")
        content = {"kind": "savedmodel", "name": "half", "version": 1, "options": {"sequence_length": 8}}
        content |= {"signatures": dict.fromkeys(names, sides), "tolerances": dict.fromkeys(names, limit)}
        manifest.write(folder, content)

    def test_what_takes_too_much(self):
        def endless(values):
            return tf.while_loop(lambda x: tf.reduce_all(x < np.inf), lambda x: (x * 0.5,), (values,))[0]

        self.write("a", endless)
        self.write("b", lambda x: x / 2 + tf.reduce_sum(tf.fill([tf.cast(2e9 + x[0, 0], tf.int32)], 0.0)))
        self.write("c", lambda values: values / 2)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            code = verify.main(["--time_limit=120", "--memory_limit=2000", str(FOLDER / "limits")])
        self.assertEqual(code, 4)
        for line, pattern in zip(
            out.getvalue().splitlines(),
            (
                "FAILED  .*/a: took longer than --time_limit=120 seconds",
                "FAILED  .*/b: needs more memory than --memory_limit=2000 MiB",
                "ok      .*/c: savedmodel half version 1",
            ),
            strict=True,
        ):
            self.assertRegex(line, f"^{pattern}")


class ThirdPartyTest(unittest.TestCase):
    def test_code_in_a_folder_is_not_run(self):
        """A Hugging Face folder with custom code or pickles is refused without reading either."""
        folder = pathlib.Path(tempfile.mkdtemp(dir=FOLDER))
        trace = folder / "ran"
        (folder / "modeling_mine.py").write_text(f"open({str(trace)!r}, 'w')\n")
        own = {"AutoModel": "modeling_mine.Mine", "AutoConfig": "modeling_mine.Mine"}
        (folder / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": own}))

        class Opens:
            def __reduce__(self):
                return open, (str(trace), "w")

        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Opens()))
        with self.assertRaisesRegex(UserError, "mine"):
            runs.load(folder, None)
        (folder / "config.json").write_text(json.dumps({"model_type": "bert", "auto_map": own} | BERT))
        with self.assertRaises(UserError):
            runs.load(folder, None)
        self.assertFalse(trace.exists())


BERT = dict(
    vocab_size=65, hidden_size=16, num_attention_heads=2, intermediate_size=32, num_hidden_layers=1,
    max_position_embeddings=32, type_vocab_size=2,
)  # fmt: skip

if __name__ == "__main__":
    tf.test.main()
