"""What is to be added needs the files that CONTRIBUTING.md lists, and no other: each row adds one, and uses it."""

import importlib
import pathlib
import signal
import sys
import unittest
from unittest import mock

import numpy as np

import tfzoo
from tests import helpers, tiny_run
from tfzoo import describe, models, train
from tfzoo.export import artifact
from tfzoo.models import gpt2
from tfzoo.training import report


class AddingTest(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)
        for number in (signal.SIGTERM, signal.SIGINT):  # Training takes these for itself.
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        self.enterContext(mock.patch.object(report, "plot"))

    def page(self, name: str, text: str) -> str:
        """A module of this text, which can be imported while the test runs; its name."""
        (self.folder / f"{name}.py").write_text(text)
        self.enterContext(mock.patch.object(sys, "path", [str(self.folder), *sys.path]))
        self.addCleanup(sys.modules.pop, name, None)
        importlib.invalidate_caches()
        return name

    def trained(self, *flags: str, **others) -> pathlib.Path:
        """A run of a few steps."""
        run_dir = self.folder / "run"
        code, out, err = helpers.run(train, *tiny_run.flags(self.folder, **others), *flags, f"--run_dir={run_dir}")
        self.assertEqual(code, 0, out + err)
        return run_dir

    def test_a_family(self):
        """Its page, and a line in FAMILIES."""
        text = pathlib.Path(gpt2.__file__).read_text()
        for old, new in (('"gpt2', '"added'), ("GPT2", "Added"), ("transformer.wte", "transformer.words")):
            self.assertIn(old, text)
            text = text.replace(old, new)
        self.enterContext(mock.patch.dict(models.FAMILIES, {"added": self.page("added_page", text)}))
        self.assertEqual(models.model_types()["added"], "added")
        self.assertRegex(helpers.run(describe)[1], "(?m)^added: .*added_xl")
        run_dir = self.trained(model="added", objective="causal")
        model, tokenizer = tfzoo.load(run_dir)
        self.assertEqual((model.family, type(model).__module__), ("added", "added_page"))
        # To a folder of Hugging Face's kind and back.
        tfzoo.save(model, self.folder / "saved", tokenizer)
        again, _ = tfzoo.load(self.folder / "saved")
        self.assertIn(b"transformer.words.weight", (self.folder / "saved" / "model.safetensors").read_bytes())
        ids = {"token_ids": np.arange(8)[None] + 5}
        np.testing.assert_array_equal(again(ids)["logits"], model(ids)["logits"])
        self.assertEqual(len(tfzoo.generate_ids(again, [[5, 6]], max_new_tokens=3)[0]), 3)
        # Each artifact is replayed by another process, which knows nothing of the page.
        folders = artifact.export(again, tokenizer, self.folder / "exports", formats=["savedmodel"], max_new_tokens=3)
        self.assertEqual(folders["savedmodel"].parts[-2], "added")

    def test_a_size(self):
        """A row of its family's CONFIGS."""
        row = gpt2.CONFIGS["gpt2"] | dict(hidden_size=24, num_layers=1, num_heads=3, intermediate_size=32)
        self.enterContext(mock.patch.dict(gpt2.CONFIGS, {"gpt2_added": row}))
        self.assertRegex(helpers.run(describe, "--model=gpt2_added")[1], "50,257 x 24")
        run_dir = self.trained(model="gpt2_added", overrides="max_positions=32", objective="causal")
        self.assertEqual(tfzoo.load(run_dir)[0].config.hidden_size, 24)


if __name__ == "__main__":
    unittest.main()
