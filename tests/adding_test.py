"""Adding a component requires only the files that CONTRIBUTING.md lists; each test adds one component and uses it.

tests/export/artifact_test.py adds an export target.
"""

import importlib
import pathlib
import signal
import sys
import unittest
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

import tfzoo
from tests import helpers, tiny_run
from tfzoo import describe, models, train
from tfzoo.export import artifact
from tfzoo.generation import texts
from tfzoo.models import gpt2
from tfzoo.training import registry, report
from tfzoo.training.config import TrainConfig
from tfzoo.training.loop import Trainer

OBJECTIVE = '''"""Predicts each token's predecessor at a distance: random text cannot be learned, but copying can."""

import dataclasses

from added_evaluator import Ranks
from tfzoo import lazy
from tfzoo.data.packing import PackedRows
from tfzoo.objectives import shared
from tfzoo.objectives.objective import GROUP, MAIN, Objective
from tfzoo.options import Checked, option

tf = lazy.module("tensorflow")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Checked):
    distance: int = option(1, "Distance to the earlier token to predict.", group=GROUP, low=0, high=7)


class Echo(Objective):
    """Repeats tokens. Worked example, with distance 1: tokens [7, 8, 9] have the targets [7, 7, 8]; the first token has
    no predecessor and is its own target."""

    name = "echo"
    Options = Options
    best_metric = ("echo_median_rank", "min")
    FIGURES = (("median rank", "echo_median_rank", "{:.1f}"), ("loss", "echo_loss", "{:.3f}"))
    MODEL_KIND = ("decoder", "gpt2")

    @property
    def inputs(self):
        return ("token_ids",)

    def rows(self, corpus):
        return PackedRows(corpus, self._length, pack=False)

    def prepare(self, example):
        tokens, far = example["token_ids"], self.options.distance
        targets = tf.concat([tokens[:far], tokens], 0)[: tf.size(tokens)]
        weights = tf.ones_like(tokens, tf.float32)
        return {
            "token_ids": shared.pad(tokens, self._length, 0),
            "targets": shared.pad(targets, self._length, 0),
            "target_weights": shared.pad(weights, self._length, 0.0),
        }

    def loss(self, models, batch, training=True):
        logits = shared.forward(models[MAIN], batch, training)["logits"]
        losses, _ = shared.cross_entropy(logits, batch["targets"])
        return tf.reduce_sum(losses * batch["target_weights"]), tf.reduce_sum(batch["target_weights"])

    def metrics(self, models, batch):
        return {"echo_loss": self.loss(models, batch, training=False)}

    def evaluators(self):
        return [*super().evaluators(), Ranks("echo")]
'''
EVALUATOR = '''"""The rank of the correct token by a model's logits."""

import numpy as np
import tensorflow as tf

from tfzoo import lazy
from tfzoo.evaluation.evaluator import Evaluator

tf = lazy.module("tensorflow")


class Ranks(Evaluator):
    """NAME_median_rank over all targets of the split, where 1 is the likeliest; a mean over batches would differ."""

    def __init__(self, name):
        self._name = name

    def predict(self, models, batch):
        logits = models["main"]({"token_ids": batch["token_ids"]}, training=False)["logits"]
        target_logits = tf.gather(logits, batch["targets"], batch_dims=2)
        ranks = 1 + tf.reduce_sum(tf.cast(logits > target_logits[..., None], tf.int32), -1)
        return {"ranks": ranks, "is_target": batch["target_weights"] > 0}

    def figures(self, predictions):
        return {f"{self._name}_median_rank": float(np.median(predictions["ranks"][predictions["is_target"]]))}
'''


class AddingTest(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)
        for number in (signal.SIGTERM, signal.SIGINT):  # Training installs its own handlers.
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        self.enterContext(mock.patch.object(report, "plot"))

    def page(self, name: str, text: str) -> str:
        """Creates a module with this text, importable during the test, and returns its name."""
        (self.folder / f"{name}.py").write_text(text)
        self.enterContext(mock.patch.object(sys, "path", [str(self.folder), *sys.path]))
        self.addCleanup(sys.modules.pop, name, None)
        importlib.invalidate_caches()
        return name

    def trained(self, *flags: str, **others) -> pathlib.Path:
        """Trains for a few steps and returns the run's folder."""
        run_dir = self.folder / "run"
        code, out, err = helpers.run(train, *tiny_run.flags(self.folder, **others), *flags, f"--run_dir={run_dir}")
        self.assertEqual(code, 0, out + err)
        return run_dir

    @pytest.mark.faults
    def test_a_family(self):
        """Needs a module and a line in FAMILIES."""
        text = pathlib.Path(gpt2.__file__).read_text()
        for old, new in (
            ('"gpt2', '"added'),
            ("GPT2", "Added"),
            ("transformer.wte", "transformer.words"),
            ('    family = "added"\n', '    family = "added"\n    LAYOUT = ("cls $A", None)\n'),
        ):
            self.assertIn(old, text)
            text = text.replace(old, new)
        self.enterContext(mock.patch.dict(models.FAMILIES, {"added": self.page("added_page", text)}))
        self.assertEqual(models.model_types()["added"], "added")
        self.assertRegex(helpers.run(describe)[1], "(?m)^added: .*added_xl")
        run_dir = self.trained(model="added", objective="causal")
        model, tokenizer = tfzoo.load(run_dir)
        self.assertEqual((model.family, type(model).__module__), ("added", "added_page"))
        # Write a folder in Hugging Face's format and read it back.
        tfzoo.save(model, self.folder / "saved", tokenizer)
        again, _ = tfzoo.load(self.folder / "saved")
        self.assertIn(b"transformer.words.weight", (self.folder / "saved" / "model.safetensors").read_bytes())
        ids = {"token_ids": np.arange(8)[None] + 5}
        np.testing.assert_array_equal(again(ids)["logits"], model(ids)["logits"])
        self.assertEqual(texts.encode_prompts(again, tokenizer, ["ab"])[0][0], tokenizer.cls_id)
        self.assertEqual(len(tfzoo.generate_ids(again, [[5, 6]], max_new_tokens=3)[0]), 3)
        # The export is replayed by another process, which does not have the module.
        folders = artifact.export(again, tokenizer, self.folder / "exports", formats=["onnx"], max_new_tokens=3)
        self.assertEqual(folders, {"onnx": self.folder / "exports" / "onnx" / "added" / "1"})

    def test_an_objective_and_an_evaluator(self):
        """Needs a module and a line in OBJECTIVES, and a module."""
        self.page("added_evaluator", EVALUATOR)
        self.enterContext(
            mock.patch.dict(registry.OBJECTIVES, {"echo": f"{self.page('added_objective', OBJECTIVE)}:Echo"})
        )
        page = helpers.run(train, "--help")[1]
        self.assertRegex(page, r"--distance=VALUE\n +echo: Distance to the earlier token")
        self.assertRegex(page, r"one of masked_lm, [a-z0-9_,\s]*echo")
        example = {"token_ids": tf.constant([7, 8, 9])}
        echo = registry.make("echo", registry.find("echo").Options(), None, 5)
        self.assertEqual(echo.prepare(example)["targets"].numpy().tolist(), [7, 7, 8, 0, 0])
        # A run, and a second one that resumes it with another instance of the evaluator next to the objective's own.
        run_dir = self.trained(
            model="gpt2", objective="echo", evaluate_every=3, evaluate_batches=0, distance=2, schedule="constant"
        )
        self.assertIn("--distance=2\n", (run_dir / "flags.cfg").read_text())
        config = TrainConfig.read(run_dir / "flags.cfg", str(run_dir)).replace(steps=9)
        ranks = importlib.import_module("added_evaluator").Ranks
        self.assertEqual(helpers.captured(lambda _: Trainer(config, evaluators=[ranks("again")]).run())[0], 0)
        measured = tiny_run.measured(run_dir)
        rank_at = {step: float(value) for (step, name), value in measured.items() if name == "echo_median_rank"}
        self.assertEqual([*rank_at], [3, 6, 9])
        self.assertTrue(all(1 <= rank <= 200 for rank in rank_at.values()), rank_at)
        self.assertEqual(
            (run_dir / "best").resolve().name, f"{min(rank_at, key=lambda step: (rank_at[step], step)):08d}"
        )
        self.assertEqual(measured[9, "again_median_rank"], measured[9, "echo_median_rank"])
        code, _, err = helpers.run(train, *tiny_run.flags(self.folder, objective="echo", distance=8), "--run_dir=x")
        self.assertEqual((code, err), (2, "error: --distance=8: must be from 0 to 7\n"))

    def test_a_size(self):
        """Needs a row in its family's CONFIGS."""
        row = gpt2.CONFIGS["gpt2"] | dict(hidden_size=24, num_layers=1, num_heads=3, intermediate_size=32)
        self.enterContext(mock.patch.dict(gpt2.CONFIGS, {"gpt2_added": row}))
        self.assertRegex(helpers.run(describe, "--model=gpt2_added")[1], "50,257 x 24")
        model = tfzoo.build("gpt2_added", vocab_size=11)
        self.assertEqual(model({"token_ids": np.array([[1, 2]])})["logits"].shape, (1, 2, 11))


if __name__ == "__main__":
    unittest.main()
