"""The package as users install it: public names, types, extras, and the wheel outside the checkout."""

import pathlib
import subprocess
import sys
import sysconfig
import unittest
import venv

import pytest

import tfzoo
from tests import helpers
from tfzoo import cli

_USER = """
import pathlib
import keras
import numpy as np
import tensorflow as tf
import tfzoo
from tfzoo.text.wordpiece import WordPiece
from tfzoo.training import TrainConfig

words = WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"])
model = tfzoo.build("bert_tiny", heads=["classify"], vocab_size=words.vocab_size, hidden_size=16, num_layers=1)
texts, labels = ["a a", "b b b"], np.array([0, 1])
read = tfzoo.Preprocessor(model, words, sequence_length=16)
data = tf.data.Dataset.from_tensor_slices((texts, labels)).batch(2).map(read)
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.fit(data, verbose=0)
wanted = model.predict(data, verbose=0)
model.save("m.keras")
np.testing.assert_array_equal(keras.saving.load_model("m.keras").predict(data, verbose=0), wanted)
tfzoo.save(model, "saved", words)
again, tokenizer = tfzoo.load("saved")
np.testing.assert_allclose(again.predict(data, verbose=0), wanted, 1e-5, 1e-6)
config: TrainConfig = TrainConfig(run_dir="runs/x")
print(pathlib.Path(tfzoo.__file__).parent)
"""
_HIDDEN = """
import importlib.abc, runpy, sys
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("onnx", "onnxruntime", "onnx_ir", "tensorflow_serving", "tf2onnx"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
sys.argv = ["tfzoo.export", "--model_dir=saved", "--output_dir=exports"]
exec(open("user.py").read().replace('"saved"', '"without"'))
runpy.run_module("tfzoo.export", run_name="__main__", alter_sys=True)
"""


class PackageTest(unittest.TestCase):
    def test_completion_shows_the_public_names(self):
        self.assertLessEqual({*tfzoo.__all__}, {*dir(tfzoo)})
        self.assertEqual(tfzoo.__all__, sorted(tfzoo.__all__))
        for name in tfzoo.__all__:
            self.assertEqual(getattr(tfzoo, name).__name__, name)
        with self.assertRaisesRegex(AttributeError, "module 'tfzoo' has no attribute 'nothing'"):
            _ = tfzoo.nothing

    def test_a_missing_package_names_the_extra(self):
        def main(flags):
            raise ModuleNotFoundError("No module named 'onnx.helper'", name="onnx.helper")

        code, _, err = helpers.captured(lambda arguments: cli.run(main, lambda flags: None, arguments))
        self.assertEqual((code, err), (2, "error: the package onnx is not installed; pip install 'tfzoo[export]'\n"))

    @pytest.mark.faults
    def test_the_wheel_works_outside_of_the_checkout(self):
        """Installs the wheel alone; its dependencies are this environment's."""
        folder = helpers.temporary_folder(self)
        helpers.python("-m", "build", "--wheel", "--no-isolation", f"--outdir={folder}", helpers.ROOT)
        (wheel,) = folder.glob("*.whl")
        venv.create(folder / "venv", with_pip=False)
        python = folder / "venv" / "bin" / "python"
        (packages,) = (folder / "venv").glob("lib/python*/site-packages")
        helpers.python("-m", "pip", "install", "--quiet", "--no-deps", f"--target={packages}", wheel)
        # As a path, so that an editable installation there is not found.
        (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        (folder / "user.py").write_text(_USER)

        def run(*arguments, program=python):
            return subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True)

        done = run("user.py")
        self.assertEqual(done.returncode, 0, done.stderr[-2000:])
        self.assertEqual(pathlib.Path(done.stdout.strip()), packages / "tfzoo")
        done = run("-m", "tfzoo.export", "--model_dir=saved", "--output_dir=exports", "--formats=savedmodel,onnx")
        self.assertEqual(done.returncode, 0, done.stderr[-2000:])
        self.assertIn("replayed in a separate process", done.stdout)
        done = run(
            "-m", "mypy", "--ignore-missing-imports", f"--python-executable={python}", "user.py", program=sys.executable
        )
        self.assertEqual(done.returncode, 0, done.stdout)
        done = run("-c", _HIDDEN)
        self.assertEqual(done.returncode, 2, done.stderr[-2000:])
        self.assertIn("is not installed; pip install 'tfzoo[export]'", done.stderr.splitlines()[-1])
