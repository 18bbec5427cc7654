"""verify.py against hostile artifacts: each ends in one line, within the limits, and does not hide the next one."""

import contextlib
import io
import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import unittest
import zipfile
from collections.abc import Mapping
from typing import Any
from unittest import mock

import numpy as np
from onnx import TensorProto, helper

from tests.export import halves
from tests.export.halves import describe, golden, graph
from tfzoo.export import verify

FOLDER: pathlib.Path
# A program in the place of verify.py's process for one artifact: its checks are replaced by the code in the artifact.
INSTEAD = f"""
import importlib.util, os, pathlib, signal, subprocess, sys
spec = importlib.util.spec_from_file_location("verify", {verify.__file__!r})
verify = importlib.util.module_from_spec(spec)
spec.loader.exec_module(verify)
verify.proof = lambda folder: (exec((folder / "code").read_text()), {{}})
verify.line_of = lambda *_: "done"
sys.exit(verify.main(sys.argv[1:]))
"""


def setUpModule():
    global FOLDER
    FOLDER = pathlib.Path(tempfile.mkdtemp())
    unittest.addModuleCleanup(shutil.rmtree, FOLDER)


def write(*arguments: Any, **options: Any) -> pathlib.Path:
    return halves.write(FOLDER, *arguments, **options)


def run(*arguments: Any) -> tuple[int, list[str]]:
    """Returns the exit code and the lines of verify.main."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = verify.main(list(map(str, arguments)))
    return code, (out.getvalue() + err.getvalue()).splitlines()


class LimitsTest(unittest.TestCase):
    """The process of one artifact, with hostile code in the place of a runtime."""

    def ends(self, code: str, pattern: str, **limits: int) -> None:
        folder = pathlib.Path(tempfile.mkdtemp(dir=FOLDER))
        (folder / "code").write_text(code)
        program = FOLDER / "instead.py"
        program.write_text(INSTEAD)
        with mock.patch.object(verify, "__file__", str(program)):
            result = verify.verify_alone(folder, {"time_limit": 100, "memory_limit": 300, "output_limit": 1, **limits})
        self.assertRegex(json.dumps(result), pattern)

    def test_each_ends_in_one_reason(self):
        self.ends("pass", '^{"ok": "done", "measured": {}}')
        self.ends("while True: pass", "took longer than --time_limit=3 seconds", time_limit=3)
        self.ends("bytearray(2**30)", "needs more memory than --memory_limit=300 MiB")
        self.ends("bytearray(2**28)", '^{"ok": "done", "measured": {}}')
        self.ends("print('x' * 2**21, flush=True)", "File too large")
        self.ends("open(folder / 'written', 'wb').write(bytes(2**21))", "File too large")
        self.ends("os.kill(os.getpid(), signal.SIGSEGV)", "ended with SIGSEGV: without a message")
        self.ends("print('why', file=sys.stderr, flush=True); os.abort()", "ended with SIGABRT: why")
        self.ends("os._exit(0)", "ended with exit code 0")
        self.ends("sys.exit(0)", "SystemExit: 0")
        self.ends("raise type('PanicException', (BaseException,), {})('index')", "PanicException: index")
        self.ends("raise verify.Failure('wrong')", '^{"failed": "wrong"}')
        self.ends("import there_is_none", '^{"missing": "No module named .there_is_none')
        self.ends('print(\'{"ok": "forged"}\')', '^{"ok": "done", "measured": {}}')

    def test_what_it_started_ends_with_it(self):
        """The other end of a pipe is closed when the last process that holds it has ended."""
        pipe = FOLDER / "pipe"
        os.mkfifo(pipe)
        with open(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), "rb") as end:
            self.ends(
                f"subprocess.Popen(['sleep', '1000'], stdout=open({str(pipe)!r}, 'w'))",
                '^{"ok": "done", "measured": {}}',
            )
            os.set_blocking(end.fileno(), True)
            self.assertEqual(end.read(), b"")

    def test_the_limits_that_a_library_raises_are_set_again(self):
        code = "verify.library('decimal'); bytearray(2**30)"
        self.ends(code, "needs more memory than --memory_limit=300 MiB")
        soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
        verify.library("decimal")  # In a process without limits.
        self.assertEqual(resource.getrlimit(resource.RLIMIT_DATA)[0], soft)


class ProgramTest(unittest.TestCase):
    def test_an_endless_loop(self):
        repeat = helper.make_graph(
            [
                helper.make_node("Identity", ["going"], ["on"]),
                helper.make_node("Mul", ["value", "factor"], ["next"]),
            ],
            "body",
            [
                helper.make_tensor_value_info("i", TensorProto.INT64, []),
                helper.make_tensor_value_info("going", TensorProto.BOOL, []),
                helper.make_tensor_value_info("value", TensorProto.FLOAT, None),
            ],
            [
                helper.make_tensor_value_info("on", TensorProto.BOOL, []),
                helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
            ],
        )
        times = helper.make_tensor("times", TensorProto.INT64, [], [2**63 - 1])
        going_on = helper.make_tensor("going_on", TensorProto.BOOL, [], [True])
        loop = helper.make_node("Loop", ["times", "going_on", "x"], ["half"], body=repeat)
        code, found = run("--time_limit=3", write(graph([loop], [times, going_on])))
        self.assertEqual((code, len(found)), (4, 1))
        self.assertRegex(found[0], "^FAILED  .*/1: took longer than --time_limit=3 seconds$")

    def test_good_and_bad_ones(self):
        """One artifact of each kind of fault, the good one last: none hides the next."""
        shape = helper.make_tensor("shape", TensorProto.INT64, [1], [2_000_000_000])
        large = graph(
            [
                helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
                helper.make_node("ReduceSum", ["zeros"], ["zero"], keepdims=0),
                helper.make_node("Mul", ["x", "zero"], ["half"]),
            ],
            [shape],
        )

        def panics(folder):
            """Makes `tokenizers` panic: the expression takes more steps than Oniguruma allows."""
            (folder / "tokenizer").mkdir()
            split = {"type": "Split", "pattern": {"Regex": "(a+)+(?=b)"}, "behavior": "Isolated", "invert": False}
            words = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
            record = {"version": "1.0", "added_tokens": [], "pre_tokenizer": split, "model": words}
            (folder / "tokenizer" / "tokenizer.json").write_text(json.dumps(record))

        lines = {
            "tokenizer/lines/inputs/text": np.array(["a" * 40]),
            "tokenizer/lines/outputs/input_ids": np.zeros((1, 1), np.int64),
            "tokenizer/lines/outputs/attention_mask": np.ones((1, 1), np.int64),
        }
        place = pathlib.Path(tempfile.mkdtemp(dir=FOLDER))
        for name, folder in (
            ("b large", write(large)),
            ("c varint", write(b"\x3a" + b"\xff" * 10_000_000)),
            ("d panic", write(arrays=golden() | lines, change=panics)),
            ("e new\nline \x1b[31m", write(manifest=describe() | {"kind": 3})),
            ("f good", write()),
        ):
            folder.rename(place / name)
        code, found = run("--memory_limit=700", place)
        self.assertEqual(code, 4)
        where = re.escape(str(place))
        for line, pattern in zip(
            found,
            (
                f"FAILED  {where}/b large: needs more memory than --memory_limit=700 MiB",
                f"FAILED  {where}/c varint: model.onnx: is not an ONNX file",
                f"FAILED  {where}/d panic: PanicException: ",
                rf"FAILED  {where}/e new line \\x1b\[31m: manifest.json: kind is 3",
                f"ok      {where}/f good: onnx half version 1: largest difference 0.0e.00 of 2e-05 allowed",
            ),
            strict=True,
        ):
            self.assertRegex(line, f"^{pattern}")

    def test_a_missing_package_does_not_hide_the_next(self):
        results = iter([{"missing": "No module named 'x'"}, {"failed": "wrong"}, {"ok": "fine"}])
        folders = [write() for _ in range(3)]
        with mock.patch.object(verify, "verify_alone", lambda *_: next(results)):
            code, lines = run(*folders)
        self.assertEqual((code, [line[:6] for line in lines]), (4, ["FAILED", "ok    ", "error:"]))
        with mock.patch.object(verify, "verify_alone", lambda *_: {"missing": "No module named 'x'"}):
            self.assertEqual(run(folders[0])[0], 2)

    def test_flags(self):
        folder, seen = write(), []
        with mock.patch.object(verify, "verify_alone", lambda *given: seen.append(given) or {"ok": ""}):
            self.assertEqual(run("--time_limit=7", folder, "--output_limit=2")[0], 0)
        self.assertEqual(seen, [(folder, {"time_limit": 7, "output_limit": 2})])
        for flag in ("--time_limit=0", "--time_limit=-1", "--memory_limit=x", "--memory_limit=1e9", "--limit=3"):
            code, lines = run(flag, folder)
            self.assertEqual((code, len(lines)), (2, 1))
            self.assertIn("[--time_limit=600]", lines[0])
        self.assertEqual(run("--help")[0], 0)

    def test_nothing_is_imported_from_the_artifacts_folder(self):
        """verify.py is run in the folder, as a user would run the artifact's own copy."""
        trace = FOLDER / "imported"

        def modules(folder):
            shutil.copyfile(verify.__file__, folder / "verify.py")
            for name in ("numpy", "onnxruntime", "json", "tempfile", "struct", "resource", "sitecustomize"):
                (folder / f"{name}.py").write_text(f"open({str(trace)!r}, 'a').write({name!r})\n")

        folder = write(change=modules)
        done = subprocess.run([sys.executable, "verify.py", "."], cwd=folder, capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout[:10]), (0, "ok      .:"), done.stderr)
        self.assertFalse(trace.exists())


class ManifestTest(unittest.TestCase):
    def refused(self, pattern: str, manifest: Mapping[str, Any]) -> None:
        with self.assertRaisesRegex(verify.Failure, f"^manifest.json: {pattern}"):
            verify.verify(write(manifest=manifest))

    def test_fields(self):
        good = describe()
        tensor = good["signatures"]["model"]["inputs"]["input_ids"]
        for pattern, changes in (
            ("kind is None", {"kind": None}),
            ("the kind 'pickle' is not supported", {"kind": "pickle"}),
            ("name is 'a/b'", {"name": "a/b"}),
            (r"name is 'a\\nok'", {"name": "a\nok"}),
            ("version is '1'", {"version": "1"}),
            ("version is True", {"version": True}),
            ("options has no sequence_length", {"options": {"sequence_length": "32"}}),
            ("precision is 'int1'", {"precision": "int1"}),
            ("signatures is not an object of names", {"signatures": {"../model": {}}}),
            ("signatures is not an object of names", {"signatures": []}),
            ("signatures/model has other sides", {"signatures": {"model": {"inputs": {}}}}),
            (
                "signatures/model contains a tensor without",
                {"signatures": {"model": {"inputs": {"x": 3}, "outputs": {}}}},
            ),
            ("variants is not an object of float16", {"variants": {"int2": {}}}),
            ("variants/int8 is not an object", {"variants": {"int8": []}}),
            ("variants/int8/tolerances is not an object", {"variants": {"int8": {}}}),
            ("tolerances is not an object of names", {"tolerances": {"tokens": 3}}),
        ):
            with self.subTest(pattern):
                self.refused(pattern, good | changes)
        self.assertEqual(tensor["dtype"], "int64")

    def test_tolerances_are_capped(self):
        for allowed in (1.1e-3, 1e9, -1e-5, "1e-5", None, True, float("inf"), float("nan")):
            limit = {"of": "largest", "allowed": allowed}
            self.refused("tolerances/tokens/logits is", describe() | {"tolerances": {"tokens": {"logits": limit}}})
        for limit in (
            {"of": "all", "allowed": 1e-5},
            {"of": [], "allowed": 1e-5},
            3,
            {"of": "each", "allowed": 1.1e-2},
        ):
            self.refused("tolerances/tokens/logits is", describe() | {"tolerances": {"tokens": {"logits": limit}}})
        for precision, allowed in (("float32", 1e-3), ("float16", 1e-2), ("bfloat16", 8e-2)):
            verify.check_manifest(
                describe() | {"files": {}, "precision": precision}
                | {"tolerances": {"tokens": {"logits": {"of": "largest", "allowed": allowed}}}}
            )  # fmt: skip
        wide = {"tolerances": {"tokens": {"logits": {"of": "largest", "allowed": 2.1}}}}
        self.refused("variants/int8/tolerances/tokens/logits is", describe() | {"variants": {"int8": wide}})

    def test_files_that_are_not_a_manifest(self):
        for content, pattern in (
            (b"[]", "is not of the format"),
            (b"[" * 100_000, "is nested too deeply"),
            (b'{"format": "tfzoo-artifact-1"}', "its SHA-256 differs"),
            (b'{"format": "tfzoo-artifact-1", "manifest_sha256": ""}', "its SHA-256 differs"),
            (b" " * (2**25 + 1), "has more than"),
        ):
            folder = write()
            (folder / "manifest.json").write_bytes(content)
            with self.assertRaisesRegex(verify.Failure, f"^manifest.json:? {pattern}"):
                verify.verify(folder)
        (folder / "manifest.json").unlink()
        (folder / "manifest.json").symlink_to("/dev/zero")
        with self.assertRaisesRegex(verify.Failure, "is not a regular file"):
            verify.verify(folder)


class GoldenTest(unittest.TestCase):
    def refused(self, pattern: str, arrays: Mapping[str, np.ndarray], **options: Any) -> None:
        with self.assertRaisesRegex(verify.Failure, pattern):
            verify.verify(write(arrays=arrays, **options))

    def test_the_cases_that_the_contract_promises(self):
        whole = golden()
        two = {k: v for k, v in whole.items() if "/1x2/" not in k}
        self.refused("the cases of tokens have fewer than three batch sizes", two)
        shorter = {k: v[:, :16] for k, v in whole.items() if "/2x32/" in k}
        self.refused("the cases of tokens do not have the longest length", whole | shorter)
        renamed = {k.replace("1x2", "5x8"): np.tile(v, (5, 4)) for k, v in whole.items() if "/1x2/" in k}
        self.refused("the cases of tokens have fewer than 3 lengths", two | renamed)
        full = {k: np.ones_like(v) if k.endswith(("mask", "real")) else v for k, v in whole.items()}
        self.refused("the cases of tokens have no padding", full)
        self.refused("does not have the cases of tokens", {k.replace("tokens/", "other/"): v for k, v in whole.items()})
        self.refused("does not have the cases of tokens", {})
        only_ids = {k: v for k, v in whole.items() if "/outputs/" not in k}
        self.refused("tokens lacks outputs of the model", only_ids)
        none_real = {k: np.zeros_like(v) if k.endswith("real") else v for k, v in whole.items()}
        self.refused("contains no numbers of tokens/logits", none_real)
        for key in ("tokens", "a/b/inputs/c/d/e", "a/b/other/c", "a b/b/inputs/c", "a/b/inputs/c\n"):
            self.refused("which is not SIGNATURE/CASE/inputs or outputs/NAME", whole | {key: np.zeros(1)})

    def test_files_that_inflate(self):
        def claims(folder):
            path = folder / "golden.npz"
            data = path.read_bytes()
            at = data.index(b"PK\x01\x02") + 24
            path.write_bytes(data[:at] + b"\xf0\xff\xff\xff" + data[at + 4 :])

        def header(folder):
            """Claims an array of 80 GB, in a file of a few bytes."""
            with zipfile.ZipFile(folder / "golden.npz", "a") as file:
                shape = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000,), }\n"
                file.writestr(
                    "tokens/9x9/inputs/x.npy", b"\x93NUMPY\x01\x00" + len(shape).to_bytes(2, "little") + shape
                )

        self.refused("golden.npz inflates to more than 2,147,483,648 bytes", golden(), change=claims)
        code, (line,) = run("--memory_limit=900", write(change=header))
        self.assertEqual(code, 4)
        self.assertRegex(line, "needs more memory than --memory_limit=900 MiB")


if __name__ == "__main__":
    unittest.main()
