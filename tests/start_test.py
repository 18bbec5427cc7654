"""What must answer at once imports neither TensorFlow nor Keras."""

import pathlib
import unittest

from tests import helpers

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROGRAM = """
import contextlib, io, runpy, sys
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            assert not end.code, name
    assert f"python -m {name.removesuffix('.__main__')}" in out.getvalue(), out.getvalue()
    found = {"tensorflow", "tensorflow_text", "keras", "onnx", "onnxruntime"} & sys.modules.keys()
    assert not found, f"{name} --help imports {found}"
    print(name)
"""


class StartTest(unittest.TestCase):
    def test_help_of_every_command(self) -> None:
        paths = [path for path in ROOT.glob("tfzoo/**/*.py") if "\nif __name__ ==" in path.read_text()]
        paths.remove(ROOT / "tfzoo" / "export" / "verify.py")  # A program of the artifacts.
        names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(paths)]
        self.assertGreaterEqual(len(names), 15)
        done = helpers.python("-c", PROGRAM, *names, check=False)
        self.assertEqual((done.returncode, done.stdout.split()), (0, names), done.stderr)


if __name__ == "__main__":
    unittest.main()
