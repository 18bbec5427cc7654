"""verify.py refuses graphs that do more than compute, before a runtime loads them."""

import pathlib
import shutil
import tempfile
import unittest
from typing import Any

import onnx
from onnx import TensorProto, helper

from tests.export import halves
from tests.export.halves import graph
from tests.text.charsmaps import chain, model
from tfzoo.export import verify
from tfzoo.serve import messages

FOLDER: pathlib.Path


def setUpModule():
    global FOLDER
    FOLDER = pathlib.Path(tempfile.mkdtemp())
    unittest.addModuleCleanup(shutil.rmtree, FOLDER)


def write(*arguments: Any, **options: Any) -> pathlib.Path:
    return halves.write(FOLDER, *arguments, **options)


class OnnxTest(unittest.TestCase):
    def refused(self, pattern: str, content: onnx.ModelProto | bytes) -> None:
        with self.assertRaisesRegex(verify.Failure, f"^model.onnx: {pattern}"):
            verify.verify(write(content))

    def test_operators(self):
        verify.verify(write())
        mine = helper.make_node("Mine", ["x"], ["half"], domain="evil")
        self.refused("contains the operator evil.Mine", graph([mine], opsets=["evil"]))
        context = helper.make_node("EPContext", ["x"], ["half"], domain="com.microsoft")
        self.refused("contains the operator com.microsoft.EPContext", graph([context], opsets=["com.microsoft"]))
        yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
        value = helper.make_tensor_value_info("half", TensorProto.FLOAT, None)
        branch = helper.make_graph([mine], "branch", [], [value])
        either = helper.make_node("If", ["yes"], ["half"], then_branch=branch, else_branch=branch)
        self.refused("contains the operator evil.Mine", graph([either], [yes], opsets=["evil"]))
        imports = [helper.make_opsetid("", 18), helper.make_opsetid("evil", 1)]
        half = helper.make_node("Mul", ["a", "b"], ["c"])
        function = helper.make_function("local", "Half", ["a", "b"], ["c"], [half], imports)
        call = helper.make_node("Half", ["x", "factor"], ["half"], domain="local")
        verify.verify(write(graph([call], functions=[function], opsets=["local"])))
        evil = helper.make_node("Mine", ["a"], ["c"], domain="evil")
        function = helper.make_function("local", "Half", ["a", "b"], ["c"], [evil], imports)
        self.refused("contains the operator evil.Mine", graph([call], functions=[function], opsets=["local", "evil"]))

    def test_files_that_are_not_graphs(self):
        nested = b""
        for _ in range(300):  # A graph in an attribute of a node of a graph.
            nested = b"\x32" + number(len(nested)) + nested
            nested = b"\x2a" + number(len(nested)) + nested
            nested = b"\x0a" + number(len(nested)) + nested
        self.refused("is nested too deeply", b"\x3a" + number(len(nested)) + nested)
        for content in (b"\x3a\x80", b"\x3b", b"\x3a" + b"\x80" * 10 + b"\x01", b"\x0b\x0c", b"\xff" * 20):
            self.refused("is not an ONNX file", content)

    def test_the_model_of_a_tokenizer(self):
        hostile = model(bytes.fromhex("0400000000feff7f0000"))
        node = helper.make_node("SentencepieceTokenizer", ["x"], ["half"], domain="ai.onnx.contrib", model=hostile)
        self.refused("the model of a tokenizer has a damaged", graph([node], opsets=["ai.onnx.contrib"]))


class SavedModelTest(unittest.TestCase):
    """Graphs as TensorFlow 1 and 2 write them; sabotage_test.py has the real ones."""

    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(tempfile.mkdtemp(dir=FOLDER))
        (self.folder / "assets").mkdir()
        (self.folder / "assets" / "words.txt").write_text("a\n")
        self.graph = messages.SavedModel().meta_graphs.add()
        self.graph.signature_def["serve"].outputs["y"].name = "y:0"
        self.add("x", "Placeholder")
        self.add("y", "Identity", "x")

    def add(self, name: str, op: str, *inputs: str, function: str = "", calls: str = "") -> None:
        node = (self.function(function).node_def if function else self.graph.graph_def.node).add(name=name, op=op)
        node.input.extend(inputs)
        if calls:
            node.attr["f"].func.name = calls

    def function(self, name: str, *arguments: str) -> Any:
        functions = self.graph.graph_def.library.function
        found = [function for function in functions if function.signature.name == name] or [functions.add()]
        found[0].signature.name = name
        for argument in arguments:
            found[0].signature.input_arg.add(name=argument)
        return found[0]

    def accepted(self) -> None:
        verify.check_graph(self.graph, self.folder)

    def refused(self, pattern: str) -> None:
        with self.assertRaisesRegex(verify.Failure, f"^saved_model.pb: {pattern}"):
            verify.check_graph(self.graph, self.folder)

    def test_operations(self):
        self.accepted()
        for op in (
            *("ReadFile", "WriteFile", "PyFunc", "XlaCallModule", "DumpTensor", "CalibrationStatisticsSaver"),
            *("RecordInput", "TextLineDataset", "PrintV2", "Send", "RpcCall", "ImmutableConst", "Save", "RestoreV2"),
            *("SaveV2", "MergeV2Checkpoints", "InitializeTableFromTextFileV2", "ThereIsNone"),
        ):
            for function in ("", "f"):
                self.setUp()
                self.add("mine", op, "x", "x", function=function)
                with self.subTest(op, function=function):
                    self.refused(f"mine .{op}. is not an operation that only computes")

    def test_the_saver_of_tensorflow_1(self):
        saver = self.graph.saver_def
        saver.filename_tensor_name, saver.save_tensor_name, saver.restore_op_name = "path:0", "save:0", "restore"
        self.add("path", "Const")
        self.add("sharded", "ShardedFilename", "path")
        self.add("read", "RestoreV2", "sharded")
        self.add("write", "SaveV2", "sharded")
        self.add("restore", "NoOp", "^read")
        self.add("save", "Identity", "path", "^write")
        self.accepted()
        other = type(self.graph).FromString(self.graph.SerializeToString())
        self.graph.graph_def.node[1].input[0] = "read"  # A signature that reads the files.
        self.refused("read .RestoreV2. is not an operation")
        self.graph = other
        self.add("elsewhere", "Const")
        (read,) = (node for node in self.graph.graph_def.node if node.name == "read")
        read.input[0] = "elsewhere"
        self.refused("read .RestoreV2. is not an operation")
        read.input[0] = "sharded"
        self.accepted()
        read.input.append("^write")  # A file that is written when the graph is loaded.
        self.refused("write .SaveV2. is not an operation")
        read.input.pop()
        self.graph.signature_def["__saved_model_init_op"].outputs["op"].name = "save"
        self.refused("write .SaveV2. is not an operation")

    def test_the_saver_of_tensorflow_2(self):
        saver = self.graph.saver_def
        saver.filename_tensor_name, saver.save_tensor_name, saver.restore_op_name = "path:0", "save:0", "restore"
        for name, op in (("save", "SaveV2"), ("restore", "RestoreV2")):
            self.function(f"f_{name}", "prefix")
            self.add("files", op, "prefix", function=f"f_{name}")
            self.add(name, "StatefulPartitionedCall", "path", calls=f"f_{name}")
        self.accepted()
        self.add("mine", "StatefulPartitionedCall", "x", calls="f_restore")
        self.refused("mine .StatefulPartitionedCall. saves or restores variables")
        self.graph.graph_def.node.pop()
        self.graph.graph_def.node[1].input.append("^restore")
        self.refused("restore .StatefulPartitionedCall. saves or restores variables")
        self.graph.graph_def.node[1].input.pop()
        self.graph.collection_def["saved_model_main_op"].node_list.value.append("save")
        self.refused("save .StatefulPartitionedCall. saves or restores variables")
        self.graph.collection_def["saved_model_main_op"].node_list.value.pop()
        (restore,) = (node for node in self.graph.graph_def.node if node.name == "restore")
        restore.input[0] = "x"  # Not the path that the loader passes.
        self.refused("files .RestoreV2. is not an operation")
        restore.input[0] = "path"
        restore.attr["f"].func.name = "f_save"
        self.refused("files .SaveV2. is not an operation")

    def test_malformed_graphs(self):
        self.add("x", "Placeholder")
        self.refused("two nodes or functions have the same name")
        self.graph.graph_def.node.pop()
        self.function("f")
        self.graph.graph_def.library.function.add().signature.name = "f"
        self.refused("two nodes or functions have the same name")
        self.graph.graph_def.library.function.pop()
        self.graph.saver_def.restore_op_name = "restore"
        self.add("restore", "RestoreV2")
        self.refused("is malformed .IndexError")
        self.graph.graph_def.node[-1].input.append("none")
        self.refused("is malformed .KeyError")
        self.add("one", "Identity", "two")
        self.add("two", "Identity", "one")
        self.graph.graph_def.node[-3].input[0] = "one"
        self.refused("restore .RestoreV2. is not an operation")

    def test_tables_from_assets(self):
        asset = self.graph.asset_file_def.add(filename="words.txt")
        asset.tensor_info.name = "words:0"
        table = "InitializeTableFromTextFileV2"
        self.add("words", "Const")
        self.add("table", "HashTableV2")
        self.add("elsewhere", "Const")
        self.add("fill", table, "table", "words")
        self.accepted()
        self.graph.graph_def.node[1].input.append("^fill")  # A signature that fills it: the path is not passed then.
        self.refused(f"fill .{table}.")
        self.graph.graph_def.node[1].input.pop()
        self.graph.graph_def.node[-1].input[1] = "elsewhere"
        self.refused(f"fill .{table}.")
        self.graph.graph_def.node.pop()
        # In a function, as TensorFlow 2 writes it.
        self.function("initialize", "of", "path")
        self.add("fill", table, "of", "path", function="initialize")
        self.add("call", "StatefulPartitionedCall", "table", "words", calls="initialize")
        objects = self.graph.object_graph_def
        objects.nodes.add().asset.asset_file_def_index = 0
        objects.nodes.add().constant.operation = "elsewhere"
        objects.concrete_functions["initialize"].bound_inputs.extend([1, 0])
        self.accepted()
        objects.concrete_functions["initialize"].bound_inputs[1] = 1
        self.refused(f"fill .{table}.")
        objects.concrete_functions["initialize"].bound_inputs[1] = 0
        self.graph.graph_def.node[-1].input[1] = "elsewhere"
        self.refused(f"fill .{table}.")
        self.graph.graph_def.node[-1].input[1] = "words"
        self.add("inner", "PartitionedCall", "a", "b", function="g", calls="initialize")
        self.refused(f"fill .{table}.")

    def test_an_asset_whose_path_is_in_a_variable(self):
        self.graph.asset_file_def.add(filename="words.txt").tensor_info.name = "words:0"
        self.add("words", "Const")
        self.add("elsewhere", "Const")
        self.add("path", "VarHandleOp")
        self.add("assign", "AssignVariableOp", "path", "words")
        self.add("read", "ReadVariableOp", "path", "^assign")
        self.add("ready", "VarIsInitializedOp", "path")
        self.add("table", "HashTableV2")
        self.add("fill", "InitializeTableFromTextFileV2", "table", "read")
        self.accepted()
        for name, op, *inputs in (
            ("again", "AssignVariableOp", "path", "elsewhere"),
            ("more", "AssignAddVariableOp", "path", "words"),
            ("call", "StatefulPartitionedCall", "path"),
        ):
            self.add(name, op, *inputs)
            self.refused("fill .InitializeTableFromTextFileV2.")
            self.graph.graph_def.node.pop()
        self.add("other", "VarHandleOp", function="f")
        self.accepted()
        self.function("f").node_def[0].attr["shared_name"].s = b"path"
        self.refused("fill .InitializeTableFromTextFileV2.")

    def test_assets(self):
        for name in ("../saved_model.pb", "/etc/passwd", "none.txt"):
            self.setUp()
            self.graph.asset_file_def.add(filename=name)
            self.refused(f"reads '{name}', which is not a file in assets/")
            packed = self.graph.collection_def["saved_model_assets"].any_list.value.add()
            packed.value = self.graph.asset_file_def.pop().SerializeToString()  # As TensorFlow 1 stores them.
            self.refused(f"reads '{name}', which is not a file in assets/")

    def test_the_model_of_a_tokenizer(self):
        self.add("pieces", "SentencepieceOp", function="f")
        self.accepted()
        model_of = self.function("f").node_def[0].attr["model"]
        model_of.s = model(chain(1, {1: 0}))
        self.accepted()
        model_of.s = model(bytes.fromhex("0400000000feff7f0000"))
        self.refused("the model of a tokenizer has a damaged normalisation table")


class CharsmapTest(unittest.TestCase):
    """check_charsmap refuses the same tables as tfzoo.text.untrusted, of which it is independent."""

    def test_tables(self):
        verify.check_charsmap(chain(3, {1: 0, 3: 0}))
        verify.check_charsmap(chain(64, {64: 0}))
        for table in (
            bytes.fromhex("0400000000feff7f0000"), bytes(12), b"\xfc\xff\xff\xff" + bytes(99), chain(65, {65: 0}),
            chain(1, {1: 2}), chain(1, {1: 0}, b"xx"), chain(40, dict.fromkeys(range(1, 41), 0)),
            b"\0\x08\0\0" + chain(1, {1: 0})[4:],
        ):  # fmt: skip
            with self.assertRaisesRegex(verify.Failure, "has a damaged normalisation table"):
                verify.check_charsmap(table)


class LiteRTTest(unittest.TestCase):
    def test_custom_operators(self):
        """Files with a table of operators, written by hand: the name of a custom one is field 1."""

        def file(custom: bytes) -> bytes:
            root, name = (16).to_bytes(4, "little"), b""
            # Tables at 16 and 32, each after its layout.
            model = (10).to_bytes(2, "little") + (8).to_bytes(2, "little") + bytes(2) + (4).to_bytes(2, "little")
            data = bytearray(root + b"TFL3" + model + (8).to_bytes(4, "little", signed=True))
            data += (8).to_bytes(4, "little")  # Field 1: the vector 8 bytes further.
            data += bytes(4) + (1).to_bytes(4, "little") + (12).to_bytes(4, "little")
            layout = (
                (8).to_bytes(2, "little")
                + (8).to_bytes(2, "little")
                + bytes(2)
                + (4 * bool(custom)).to_bytes(2, "little")
            )
            data += layout + (8).to_bytes(4, "little", signed=True) + (4).to_bytes(4, "little")
            name = len(custom).to_bytes(4, "little") + custom
            return bytes(data + name)

        path = FOLDER / "model.tflite"
        path.write_bytes(file(b""))
        verify.check_litert(path)
        path.write_bytes(file(b"FlexWriteFile"))
        with self.assertRaisesRegex(verify.Failure, "^model.tflite: contains 'FlexWriteFile'"):
            verify.check_litert(path)
        for content in (b"", b"\xff" * 8, file(b"")[:20]):
            path.write_bytes(content)
            with self.assertRaisesRegex(verify.Failure, "is not a LiteRT model"):
                verify.check_litert(path)


def number(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + number(value >> 7)


if __name__ == "__main__":
    unittest.main()
