"""Graphs that read or write files, use the network or run Python are refused when they are loaded."""

import pathlib
import re

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import op_def_pb2
from tensorflow.python.client import pywrap_tf_session

from tests.helpers import temporary_folder
from tests.serve import models
from tfzoo.serve import messages, trust
from tfzoo.serve.errors import StatusError
from tfzoo.serve.savedmodel import SavedModel

# Operations that have an input or attribute like those below, but touch neither files nor the network.
HARMLESS = {"TensorSliceDataset", "ShardedFilename", "ShardedFilespec", "SetStatsAggregatorDataset",
            "ExperimentalSetStatsAggregatorDataset", "RemoteCall", "CTCBeamSearchDecoder", "TFText>BoiseTagsToOffsets",
            "TFText>OffsetsToBoiseTags", "CollectivePermute", "ApproxTopK", "InTopK", "InTopKV2"}  # fmt: skip


class TrustTest(tf.test.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = temporary_folder(self)

    def save(self, function, name: str = "m", **attributes) -> pathlib.Path:
        module = tf.Module()
        for key, value in attributes.items():
            setattr(module, key, value)
        module.call = tf.function(lambda text: {"y": function(text)}, input_signature=[tf.TensorSpec([], tf.string)])
        tf.saved_model.save(module, str(self.folder / name), signatures=module.call.get_concrete_function())
        return self.folder / name

    def load(self, folder: pathlib.Path, is_trusted: bool = False) -> SavedModel:
        model = SavedModel("m", 1, folder, ["serve"], b"", is_trusted)
        self.addCleanup(model.close)
        return model

    def assert_refused(self, folder: pathlib.Path, what: str) -> None:
        with self.assertRaisesRegex(
            StatusError, rf"{re.escape(what)}.*; if you trust it, start the server with --trust_models$"
        ):
            self.load(folder)

    def test_operations(self) -> None:
        def dataset(text):
            return next(iter(tf.data.TextLineDataset(text)))

        def wrote(text):
            tf.io.write_file(text, "a")
            return text

        def printed(text):
            tf.print(text, output_stream="file:///tmp/x")
            return text

        def saved(text):
            tf.raw_ops.SaveV2(prefix=text, tensor_names=["a"], shape_and_slices=[""], tensors=[tf.constant(1.0)])
            return text

        def restored(text):
            return tf.raw_ops.RestoreV2(prefix=text, tensor_names=["a"], shape_and_slices=[""], dtypes=[tf.float32])[0]

        def in_a_branch(text):
            return tf.cond(tf.equal(text, "a"), lambda: tf.io.read_file(text), lambda: text)

        for function, what in (
            (tf.io.read_file, "ReadFile"), (wrote, "WriteFile"), (in_a_branch, "ReadFile"), (printed, "PrintV2"),
            (lambda text: tf.py_function(lambda t: t, [text], tf.string), "EagerPyFunc"), (saved, "SaveV2"),
            (lambda text: tf.numpy_function(lambda t: t, [text], tf.string), "PyFunc"), (restored, "RestoreV2"),
            (tf.io.matching_files, "MatchingFiles"), (dataset, "TextLineDataset"),
        ):  # fmt: skip
            with self.subTest(what):
                self.assert_refused(self.save(function, name=f"{what}_{function.__name__}"), what)
        read = self.load(self.folder / "ReadFile_read_file", is_trusted=True)
        path = self.folder / "secret"
        path.write_text("secret")
        values = read.run("serving_default", {"text": np.array(str(path).encode(), object)})
        self.assertEqual(values["y"].item(), b"secret")

    def vocabulary(self, path: str) -> tf.lookup.StaticVocabularyTable:
        initializer = tf.lookup.TextFileInitializer(path, tf.string, 0, tf.int64, 1, delimiter=" ")
        return tf.lookup.StaticHashTable(initializer, -1)

    def test_tables_from_assets(self) -> None:
        path = self.folder / "vocab.txt"
        path.write_text("a 5\nb 7\n")
        table = self.vocabulary(str(path))
        strings = tf.Variable(["of", "its", "own"])  # Are variables, too, but not of paths.
        saved = self.save(lambda text: table.lookup(text) + len(strings[0].shape), table=table, strings=strings)
        path.unlink()
        values = self.load(saved).run("serving_default", {"text": np.array(b"b", object)})
        self.assertEqual(int(values["y"]), 7)
        graph = saved / "saved_model.pb"
        model = messages.SavedModel.FromString(graph.read_bytes())
        (asset,) = model.meta_graphs[0].asset_file_def
        for name in ("../../secret", "/etc/passwd"):
            asset.filename = name
            graph.write_bytes(model.SerializeToString())
            self.assert_refused(saved, f"reads {name!r}, which is not a file in assets/")
        # The path then comes from the graph itself instead of from an asset.
        del model.meta_graphs[0].asset_file_def[:]
        graph.write_bytes(model.SerializeToString())
        self.assert_refused(saved, "InitializeTableFromTextFileV2")

    def test_tables_from_other_variables(self) -> None:
        path = self.folder / "vocab.txt"
        path.write_text("a 5\n")
        table = self.vocabulary(str(path))
        saved = self.save(table.lookup, table=table)
        graph = saved / "saved_model.pb"
        model = messages.SavedModel.FromString(graph.read_bytes())
        nodes = model.meta_graphs[0].graph_def.node
        handle = next(node for node in nodes if node.op == "VarHandleOp" and node.attr["dtype"].type == 7)
        for change in ("the same variable by another node", "the node itself"):
            changed = type(model).FromString(model.SerializeToString())
            nodes = changed.meta_graphs[0].graph_def.node
            target = handle.name
            if change != "the node itself":
                copy = nodes.add()
                copy.CopyFrom(handle)
                copy.attr["shared_name"].s = handle.attr["shared_name"].s or handle.name.encode()
                target = copy.name = "copy"
            value = nodes.add(name="evil", op="Const")
            value.attr["dtype"].type = 7
            value.attr["value"].tensor.ParseFromString(tf.make_tensor_proto("/etc/passwd").SerializeToString())
            assign = nodes.add(name="assign", op="AssignVariableOp", input=[target, "evil"])
            assign.attr["dtype"].type = 7
            graph.write_bytes(changed.SerializeToString())
            self.assert_refused(saved, "InitializeTableFromTextFileV2")

    def test_graphs_of_tensorflow_1(self) -> None:
        v1 = tf.compat.v1
        path = self.folder / "vocab.txt"
        path.write_text("a 5\n")
        for is_asset in (True, False):
            with tf.Graph().as_default(), v1.Session() as session:
                text = v1.placeholder(tf.string, [None])
                table = tf.lookup.StaticHashTable(
                    tf.lookup.TextFileInitializer(str(path), tf.string, 0, tf.int64, 1, delimiter=" "), -1
                )
                y = table.lookup(text)
                session.run(v1.tables_initializer())
                assets = v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS) if is_asset else None
                builder = v1.saved_model.Builder(str(self.folder / f"old_{is_asset}"))
                builder.add_meta_graph_and_variables(
                    session, ["serve"],
                    {"serving_default": v1.saved_model.predict_signature_def({"text": text}, {"y": y})},
                    assets_collection=assets, main_op=v1.tables_initializer(),
                )  # fmt: skip
                builder.save()
        values = self.load(self.folder / "old_True").run("serving_default", {"text": np.array([b"a"], object)})
        self.assertEqual(int(values["y"][0]), 5)
        self.assert_refused(self.folder / "old_False", "InitializeTableFromTextFileV2")

    def test_a_saver_that_writes(self) -> None:
        saved = self.folder / "linear"
        models.save(saved, 2.0)
        self.load(saved)
        graph = saved / "saved_model.pb"
        model = messages.SavedModel.FromString(graph.read_bytes())
        nodes = model.meta_graphs[0].graph_def.node
        saver = model.meta_graphs[0].saver_def
        # TensorFlow 1 calls functions by operations of their names.
        restoring = next(node for node in nodes if node.name == saver.restore_op_name).attr["f"].func.name
        nodes.add(name="evil", op=restoring, input=[saver.filename_tensor_name])
        graph.write_bytes(model.SerializeToString())
        self.assert_refused(saved, f"evil ({restoring}) saves or restores variables")
        del nodes[-1]
        saver.restore_op_name = saver.save_tensor_name.partition(":")[0]
        graph.write_bytes(model.SerializeToString())
        # The first operation at fault may be that which restores or that which saves.
        self.assert_refused(saved, "is not an operation that only computes")

    def test_all_operations_of_tensorflow_are_sorted(self) -> None:
        """An operation with an input or attribute that is named like a file or an address is refused or known."""
        import tensorflow_text  # noqa: F401  (registers its operations)

        registered = op_def_pb2.OpList.FromString(
            pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList())
        ).op
        words = re.compile(r"file|path|dir$|dir_|prefix|address|url|uri|python|memory_region|data_source|output_stream")
        known = trust.REFUSED | trust.FILES | {"PrintV2"} | HARMLESS
        names = {op.name for op in registered}
        unsorted = [
            op.name
            for op in registered
            if any(words.search(each.name) for each in (*op.input_arg, *op.attr)) and op.name not in known
        ]
        self.assertEqual(unsorted, [])
        self.assertLessEqual(trust.REFUSED - names, set())


if __name__ == "__main__":
    tf.test.main()
