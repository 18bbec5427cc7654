"""An objective with two models by role: a frozen teacher, and a student that learns its logits (Hinton et al. 2015)."""

import dataclasses
import json
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from tests import helpers, tiny_run
from tfzoo.models import costs
from tfzoo.objectives import shared
from tfzoo.objectives.causal import Causal
from tfzoo.training import TrainConfig, Trainer, checkpoint, registry, report, runs, step


class Distillation(Causal):
    """Cross-entropy with the probabilities of a teacher of twice the width."""

    name = PREFIX = "distillation"
    best_metric: ClassVar[Any] = ("distillation_accuracy", "max")
    FIGURES: ClassVar[Any] = (("next-token accuracy", "distillation_accuracy", "{:.2%}"),)

    def build_models(self, page, config, dtype=None):
        wide = dataclasses.replace(config, hidden_size=2 * config.hidden_size)
        teacher = page.Model(wide, heads=self.heads, dtype=dtype, name="teacher")
        teacher.trainable = False
        return {"main": page.Model(config, heads=self.heads, dtype=dtype, name="student"), "teacher": teacher}

    def model_names(self, name):
        return {"main": name, "teacher": name}

    def loss(self, models, batch, training=True):
        target = tf.nn.softmax(shared.forward(models["teacher"], batch, False)["logits"])
        logits = shared.forward(models["main"], batch, training)["logits"]
        weights = batch["target_weights"]
        each = tf.nn.softmax_cross_entropy_with_logits(target, logits)
        return tf.reduce_sum(each * weights), tf.reduce_sum(weights)


class RolesTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = helpers.temporary_folder(self)
        self.enterContext(mock.patch.object(report, "plot"))
        self.enterContext(mock.patch.dict(registry.OBJECTIVES, {"distillation": f"{__name__}:Distillation"}))

    def run_to(self, steps, name="run"):
        corpus = self.folder / "corpus.txt"
        if not corpus.exists():
            tiny_run.write_corpus(corpus)
        config = TrainConfig(
            run_dir=str(self.folder / name),
            corpus=str(corpus),
            cache_dir=str(self.folder / "cache"),
            model="gpt2",
            overrides=("hidden_size=16,num_layers=1,num_heads=2,intermediate_size=32,max_positions=32",),
            objective="distillation",
            vocab_size=200,
            sequence_length=16,
            batch_size=4,
            steps=steps,
            warmup_steps=0,
            learning_rate=0.01,
            schedule="constant",
            log_every=1,
            evaluate_every=4,
            evaluate_batches=2,
            checkpoint_every=2,
        )
        trainer = Trainer(config)
        self.assertEqual(helpers.captured(lambda _: trainer.run())[0], 0)
        return trainer

    def test_a_teacher_and_a_student(self):
        trainer = self.run_to(4)
        student, teacher = trainer.models["main"], trainer.models["teacher"]
        # Only the variables of the student are trained.
        trained = step.trainable_variables(trainer.models)
        self.assertEqual([v.path for v in trained], [v.path for v in student.trainable_variables])
        arrays = checkpoint.Checkpoints(self.folder / "run" / "checkpoints", read_only=True).read()[2]
        before = checkpoint.Checkpoints(self.folder / "run" / "checkpoints", read_only=True).read(
            self.folder / "run" / "checkpoints" / f"{2:08}"
        )[2]
        names = {name.split("/")[0] for name in arrays}
        self.assertEqual(names, {"model", "model.teacher", "optimizer"})
        for name in arrays:
            if name.startswith("model.teacher/"):
                np.testing.assert_array_equal(arrays[name], before[name], name)
        moved = [not np.array_equal(arrays[n], before[n]) for n in arrays if n.startswith("model/") and "seed" not in n]
        self.assertIn(True, moved)
        # config.json describes both; the student is loaded.
        record = json.loads((self.folder / "run" / "config.json").read_text())
        self.assertEqual(list(record["models"]), ["main", "teacher"])
        self.assertEqual([m["config"]["hidden_size"] for m in record["models"].values()], [16, 32])
        model, _ = runs.load(self.folder / "run", self.folder / "run" / "checkpoints" / f"{4:08}")
        self.assertEqual(model.config.hidden_size, 16)
        for one, two in zip(model.weights, student.weights, strict=True):
            if "seed" not in one.path:
                np.testing.assert_array_equal(one, two)
        # Only the forward pass of a frozen model counts, a third of the FLOPs of training.
        forward = costs.training_flops(teacher, 16)
        self.assertAlmostEqual(trainer._flops_per_row / (costs.training_flops(student, 16) + forward), 1.0)
        teacher.trainable = True
        self.assertEqual(costs.training_flops(teacher, 16), 3 * forward)
        # The best one has the highest accuracy.
        accuracy = [
            r["distillation_accuracy"] for r in tiny_run.records(self.folder / "run") if "distillation_loss" in r
        ]
        self.assertEqual(trainer.progress.best, max(accuracy))

    @pytest.mark.faults
    def test_a_resumed_run_is_the_same(self):
        self.run_to(6, "whole")
        self.run_to(2, "parts")
        self.run_to(6, "parts")
        whole, parts = (tiny_run.measured(self.folder / name) for name in ("whole", "parts"))
        self.assertEqual(
            {key: value for key, value in parts.items() if key[1] == "loss"},
            {key: value for key, value in whole.items() if key[1] == "loss"},
        )


if __name__ == "__main__":
    tf.test.main()
