"""LiteRT: converted models reproduce the model's answers; others are refused with the name of the operator."""

import contextlib
import io
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from tests.export import small
from tfzoo import models
from tfzoo.errors import UserError
from tfzoo.export import artifact, litert, manifest, publish, verify
from tfzoo.export.answers import Options

# {family: the operation without a builtin operator}; export/README.md documents them.
REFUSED = {"performer": "tf.TensorListReserve", "reformer": "tf.Roll"}


class LiteRTTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(tempfile.mkdtemp(dir=self.get_temp_dir()))

    def export(self, family, **options):
        model = small.model(family, **options)
        return artifact.export(model, small.tokenizer(), self.folder, family, formats=["litert"])["litert"]

    def test_one_family(self):
        with mock.patch.object(publish, "replay"):
            folder = self.export("bert", heads=("classify", "tag"), num_layers=1)
        self.assertEqual(folder, self.folder / "litert" / "bert" / "1")
        self.assertRegex(
            verify.verify(folder), "^litert bert version 1: largest difference .* answers of tokenizer.json equal$"
        )
        stated = json.loads((folder / "manifest.json").read_text())
        self.assertEqual(
            stated["signatures"]["tokens"]["outputs"]["tag_logits"],
            {"dtype": "float32", "shape": ["batch", "sequence", 3]},
        )
        self.assertGreater(stated["measured"]["tokenizer.json"]["equal"], 5)
        data = (folder / "model.tflite").read_bytes()
        self.assertNotIn(b"Flex", data)  # TensorFlow's own operators, which phones do not have.

        # Damage with a matching manifest, which only the replay can detect.
        def refused(pattern, change):
            copy = shutil.copytree(folder, pathlib.Path(tempfile.mkdtemp(dir=self.folder)), dirs_exist_ok=True)
            content = {key: stated[key] for key in stated if key not in ("files", "manifest_sha256")}
            change(copy)
            (copy / "manifest.json").unlink()
            manifest.write(copy, content)
            with self.assertRaisesRegex(verify.Failure, pattern):
                verify.verify(copy)

        weight = np.asarray(small.model("bert", heads=("classify", "tag"), num_layers=1).heads["tag"].weights[0])
        found = data.index(weight.T.tobytes()) if weight.T.tobytes() in data else data.index(weight.tobytes())

        def one_byte(copy):
            changed = bytearray(data)
            changed[found + 2] ^= 0x40  # The high bits of the fraction of the first number.
            (copy / "model.tflite").write_bytes(changed)

        def stale(copy):
            arrays = dict(np.load(copy / "golden.npz"))
            arrays["tokens/2x32/outputs/tag_logits/values"][1, 5] += 0.01
            np.savez(copy / "golden.npz", **arrays)

        refused("differs by", one_byte)
        refused("differs by", stale)
        refused(r"inputs \[.*'segments'", lambda copy: rename(copy / "model.tflite"))

    def test_too_large(self):
        model = small.model("gpt2", num_layers=1)
        with mock.patch.object(type(model), "count_params", return_value=2**29):
            with self.assertRaisesRegex(UserError, "--formats=litert: 536,870,912 weights exceed the 2 GiB limit"):
                litert.save(model, self.folder, Options(8))

    @pytest.mark.faults
    def test_what_does_not_convert(self):
        model = small.model("gpt2", num_layers=1)
        layer = model.decoder.stack.blocks[0].mlp

        def shuffled(x):
            return tf.roll(type(layer).call(layer, x), 1, 1)

        with mock.patch.object(layer, "call", shuffled), contextlib.redirect_stderr(io.StringIO()):
            with self.assertRaisesRegex(
                UserError, "LiteRT has no builtin operator for tf.Roll, which .*mlp.* requires; export with"
            ):
                litert.save(model, self.folder, Options(8))
        self.assertEqual([*self.folder.iterdir()], [])

    @pytest.mark.faults
    def test_every_family_and_head(self):
        with mock.patch.object(publish, "replay"):
            for family in small.FAMILIES:
                for heads in ((), *((head,) for head in models.page(family).Model.HEADS)):
                    with self.subTest(family=family, heads=heads):
                        if family not in REFUSED:
                            self.export(family, heads=heads)
                            continue
                        with self.assertRaisesRegex(UserError, f"no builtin operator for .*{REFUSED[family]}"):
                            self.export(family, heads=heads)
        done = subprocess.run([sys.executable, verify.__file__, self.folder], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)


def rename(path: pathlib.Path) -> None:
    data = path.read_bytes()
    path.write_bytes(
        data.replace(b"segment_ids\0", b"segments\0\0\0\0").replace(b"\x0b\0\0\0segments", b"\x08\0\0\0segments")
    )


if __name__ == "__main__":
    unittest.main()
