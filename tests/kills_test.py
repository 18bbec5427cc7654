"""A conversion or export that is killed at any of its writes leaves nothing, or the whole result, and can be repeated.

The same is tested for packing in corpus_test.py, for indexing in retrieval/build_test.py, for predictions in
prediction/predictors_test.py and for training in faults_test.py.
"""

import json
import pathlib
import signal
import unittest

import pytest

from tests import helpers
from tfzoo import files

# Arguments: the folder whose changes are counted, the number of the change to be killed at, a program, its arguments.
SCRIPT = """
import importlib, os, signal, sys
folder, last, program, *argv = sys.argv[1:]
count = 0

def kill(event, arguments):
    global count
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if (writes or event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir")) and str(arguments[0]).startswith(folder):
        if count == int(last):
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

sys.addaudithook(kill)
from tfzoo import cli
module = importlib.import_module(program)
code = cli.run(module.main, module.define_flags, argv)
print(count)
sys.exit(code)
"""
MODEL = helpers.ROOT / "tests/assets/golden_sentence/bert"


@pytest.mark.faults
class KillsTest(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)

    def run_program(self, parent: pathlib.Path, last: int, program: str, *argv: str):
        command = ["-c", SCRIPT, parent, last, program, *argv]
        return helpers.python(*command, check=False, TF_CPP_MIN_LOG_LEVEL="2")

    def check(self, program: str, flags, contents, number: int) -> None:
        """Kills a program at `number` of its changes in its output's folder.

        Args:
          program: the module.
          flags: a function of that folder, returns the flags.
          contents: a function of that folder, returns what is published there; {} if nothing is. It fails if it is
            not complete.
          number: how many kills.
        """
        whole = self.folder / "whole"
        whole.mkdir()
        done = self.run_program(whole, -1, program, *flags(whole))
        self.assertEqual(done.returncode, 0, done.stderr[-3000:])
        changes, expected = int(done.stdout.splitlines()[-1]), contents(whole)
        self.assertTrue(expected)
        nothing = 0
        for last in sorted({round(i * (changes - 1) / (number - 1)) for i in range(number)}):
            parent = self.folder / f"killed_{last}"
            parent.mkdir()
            self.assertEqual(self.run_program(parent, last, program, *flags(parent)).returncode, -signal.SIGKILL)
            left = contents(parent)
            self.assertIn(left, ({}, expected), f"killed at change {last} of {changes}")
            if left:
                continue
            nothing += 1
            done = self.run_program(parent, -1, program, *flags(parent))
            self.assertEqual(done.returncode, 0, done.stderr[-3000:])
            self.assertEqual(contents(parent), expected)
            self.assertEqual(list(parent.rglob(f"*{files.PARTIAL}*")), [])
        self.assertGreater(nothing, 1)
        print(f"{program}: killed {number} times at one of {changes} changes; {nothing} times nothing was published")

    def test_convert(self):
        def contents(parent):
            folder = parent / "model"
            return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

        self.check("tfzoo.convert", lambda parent: [f"--from={MODEL}", f"--to={parent / 'model'}"], contents, 7)

    def test_export(self):
        def contents(parent):
            published = {}
            for manifest in parent.glob("onnx/*/[0-9]/manifest.json"):
                names = {str(p.relative_to(manifest.parent)) for p in manifest.parent.rglob("*") if p.is_file()}
                recorded = json.loads(manifest.read_text())["files"]
                self.assertEqual(names, {*recorded, "manifest.json"})
                for name, entry in recorded.items():
                    self.assertEqual(files.sha256(manifest.parent / name), entry["sha256"])
                published |= {f"{manifest.parent.name}/{name}": True for name in names}
            return published

        flags = [f"--model_dir={MODEL}", "--formats=onnx", "--sequence_length=16"]
        self.check("tfzoo.export.__main__", lambda parent: [*flags, f"--output_dir={parent}"], contents, 4)


if __name__ == "__main__":
    unittest.main()
