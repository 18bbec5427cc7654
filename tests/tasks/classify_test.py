"""The task classify: rows, losses and scores; and whole runs with evaluation, resume, initialization and export."""

import json
import math
import pathlib
import shutil
import tempfile
import types
import unittest

import numpy as np
import pytest
import tensorflow as tf

import tfzoo
from tests import helpers, tiny_run
from tests.stopped_command import command  # noqa: F401  (called by tests.worlds)
from tests.tasks import fakes, small
from tests.tasks.fakes import Logits
from tests.worlds import Worlds
from tfzoo import evaluate, train
from tfzoo.errors import UserError
from tfzoo.models import bart, bert, gpt2
from tfzoo.tasks.classify import Classify
from tfzoo.tasks.task import sample
from tfzoo.text.wordpiece import WordPiece
from tfzoo.training import TrainConfig, runs

worlds = Worlds("tests.tasks.classify_test")


def tokenizer():
    return WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"])


def task(length=12, page=bert, labels=("x", "y", "z"), pair=False, **options):
    return Classify(tokenizer(), length, page=page, labels=labels, pair=pair, **options)


def rows_of(made: Classify, *rows):
    """Returns the encoded rows of (texts, label)."""
    return fakes.rows_of(made, *(types.SimpleNamespace(texts=texts, label=label) for texts, label in rows))


def model(logits):
    return {"main": Logits(logits, "classify_logits")}


class ClassifyTest(tf.test.TestCase):
    def test_rows(self):
        made = task()
        rows = rows_of(made, (("a b",), "y"), (("c",), "x"), (("a b c d e f g h a b c d",), "z"))
        self.assertAllEqual(made.lengths(rows), [4, 3, 12])
        self.assertEqual(made.truncated(rows), 1)
        batch = made.batch(rows, np.array([1, 0]), 5)
        self.assertAllEqual(batch["token_ids"], [[2, 7, 3, 0, 0], [2, 5, 6, 3, 0]])
        self.assertAllEqual(batch["padding_mask"].sum(1), [3, 4])
        self.assertAllEqual(batch["label"], [0, 1])
        self.assertAllEqual(batch["number"], [1, 0])

    def test_pairs_and_the_other_kinds_of_models(self):
        made = task(pair=True)
        batch = made.batch(rows_of(made, (("a b", "c"), "x")), np.array([0]), 7)
        self.assertAllEqual(batch["token_ids"], [[2, 5, 6, 3, 7, 3, 0]])
        self.assertAllEqual(batch["segment_ids"], [[0, 0, 0, 0, 1, 1, 0]])
        made = task(page=bart)
        batch = made.batch(rows_of(made, (("a b",), "x")), np.array([0]), 5)
        self.assertAllEqual(batch["decoder_token_ids"], [[3, 2, 5, 6, 3]])
        made = task(page=gpt2)
        batch = made.batch(rows_of(made, (("a b",), "x")), np.array([0]), 3)
        self.assertAllEqual(batch["padding_mask"], [[True, True, False]])

    def test_the_loss_by_the_formula(self):
        logits = np.random.default_rng(0).normal(size=(4, 3))
        chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        label, weight = np.array([0, 2, 1, 1]), np.array([1, 1, 1, 0], np.float32)
        for smoothing in (0.0, 0.3):
            made = task(label_smoothing=smoothing, class_weights="y=3,z=0.5")
            batch = {"label": tf.constant(label, tf.int32), "weight": weight} | dict.fromkeys(Logits.INPUTS, 0)
            total, count = made.loss(model(logits), batch)
            target = np.eye(3)[label] * (1 - smoothing) + smoothing / 3
            weights = weight * np.array([1, 3, 0.5])[label]
            self.assertAllClose(total, -(target * np.log(chances)).sum(1) @ weights)
            self.assertAllClose(count, weights.sum())

    def test_the_loss_of_several_labels_and_of_numbers(self):
        logits = np.array([[0.5, -1.0], [2.0, 0.0]])
        label = np.array([[1, 0], [1, 1]], np.float32)
        batch = {"label": label, "weight": np.ones(2, np.float32)} | dict.fromkeys(Logits.INPUTS, 0)
        total, count = task(labels=("x", "y"), label_type="several").loss(model(logits), batch)
        chances = 1 / (1 + np.exp(-logits))
        self.assertAllClose(total, -np.sum(label * np.log(chances) + (1 - label) * np.log(1 - chances)))
        self.assertAllClose(count, 2.0)
        batch["label"] = np.array([1.0, -1.0], np.float32)
        total, _ = task(labels=(), label_type="number").loss(model(logits[:, :1]), batch)
        self.assertAllClose(total, 0.25 + 9)

    def test_balanced_weights(self):
        made = task(class_weights="balanced")
        made.prepare_training(rows_of(made, *[(("a",), "x")] * 6, (("b",), "y"), (("b",), "z"), (("b",), "z")))
        self.assertAllClose(made.class_weights, [9 / 18, 9 / 3, 9 / 6])  # As in scikit-learn: rows / (labels * count).

    def test_windows_are_averaged(self):
        made = task(length=5, labels=("x", "y"), long_texts="average")
        rows = rows_of(made, (("a b c d e f g",), "y"), (("a",), "x"))
        self.assertAllEqual(rows.columns["number"], [0, 0, 0, 1])
        self.assertEqual([rows.values("text", i).tolist() for i in range(4)], [[5, 6, 7], [8, 9, 10], [11], [5]])
        outcome = made.outcome({
            "number": np.array([0, 0, 0, 1]),
            "answer": np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]]),
            "label": np.array([1, 1, 1, 0]),
        })  # fmt: skip
        self.assertAllClose(outcome["answer"], [[1.4 / 3, 1.6 / 3], [0.6, 0.4]])
        self.assertAllEqual(outcome["label"], [1, 0])
        self.assertEqual(made.score_rows(outcome)()["accuracy"], 1.0)

    def test_the_worst_mistakes_come_first(self):
        made = task(labels=("x", "y"))
        outcome = {
            "number": np.arange(4),
            "answer": np.array([[0.4, 0.6], [0.1, 0.9], [0.2, 0.8], [0.7, 0.3]]),
            "label": np.array([0, 0, 1, 1]),
        }
        self.assertEqual(
            made.mistakes(outcome, 2),
            [
                {"number": 1, "gold": "x", "predicted": "y", "score": 0.9},
                {"number": 3, "gold": "y", "predicted": "x", "score": 0.7},
            ],
        )

    def test_a_sample_has_rows_of_the_whole_file(self):
        self.assertEqual(sample(iter(range(5)), 5), [0, 1, 2, 3, 4])
        chosen = sample(iter(range(10_000)), 1000)
        self.assertEqual(len({*chosen}), 1000)
        self.assertEqual(chosen, sample(iter(range(10_000)), 1000))
        # The number of rows from the first half has the mean 500 and the standard deviation 15.
        self.assertLess(abs(sum(row < 5000 for row in chosen) - 500), 60)

    def test_what_is_wrong(self):
        for pattern, options in (
            ("--class_weights=w=2: 'w' is not one of the labels; write LABEL=WEIGHT", dict(class_weights="w=2")),
            ("--class_weights=x=-1: the weight '-1' must be a number that is at least 0", dict(class_weights="x=-1")),
            (
                "--class_weights=balanced: does not apply to --label_type=number; omit it",
                dict(class_weights="balanced", label_type="number", labels=()),
            ),
            ("--long_texts=average: applies to single texts", dict(long_texts="average", pair=True)),
        ):
            with self.subTest(pattern), self.assertRaisesRegex(UserError, f"^{pattern}"):
                task(**options)


class RunTest(unittest.TestCase):
    """Whole runs of a tiny model."""

    def setUp(self):
        self.folder = helpers.temporary_folder(self)

    def train(self, run_dir, code=0, **flags):
        result = helpers.run(train, *small.flags(self.folder, **flags), f"--run_dir={run_dir}")
        self.assertEqual(result[0], code, result)
        return result

    def test_train_evaluate_and_export(self):
        run_dir = self.folder / "run"
        _, out, _ = self.train(
            run_dir, steps=None, epochs=10, learning_rate=0.02, evaluate_every=None, schedule="linear"
        )
        self.assertIn("60 training rows, 21 validation rows; 10.0 epochs, 75 steps", out)
        self.assertIn("2 labels: bad, good", out)
        record = json.loads((run_dir / "evaluation.json").read_text())
        self.assertEqual(record["rows"], 21)
        self.assertGreater(record["scores"]["accuracy"]["value"], 0.9)
        self.assertEqual(record["baselines"].keys(), {"majority", "linear"})
        self.assertEqual([each["label"] for each in record["classes"]], ["bad", "good"])
        self.assertEqual(sum(map(sum, record["confusion"]["counts"])), 21)
        evaluations = [each for each in tiny_run.records(run_dir) if "loss" not in each]
        self.assertEqual([each["step"] for each in evaluations][:2], [8, 16])
        best = next(each for each in evaluations if each["step"] == record["step"])
        self.assertEqual(best["accuracy"], max(each["accuracy"] for each in evaluations))
        self.assertEqual(best["accuracy"], record["scores"]["accuracy"]["value"])

        (self.folder / "other").mkdir()
        with self.assertNoLogs("absl", "WARNING"):  # The same command again, without --steps.
            self.train(run_dir, steps=None, epochs=10, learning_rate=0.02, evaluate_every=None, schedule="linear")
        # The baselines need the training file alone.
        test_file = (self.folder / "dev.tsv").rename(self.folder / "other" / "dev.tsv")
        code, out, err = helpers.run(evaluate, f"--model_dir={run_dir}", f"--test_file={test_file}")
        self.assertEqual(code, 0, err)
        self.assertIn(f"{best['accuracy']:.2%}", out)
        found = json.loads((run_dir / "evaluation-dev.json").read_text())
        self.assertEqual(found["scores"], record["scores"])
        self.assertEqual(found["confusion"], record["confusion"])
        self.assertEqual(found["baselines"], record["baselines"])
        code, out, err = helpers.run(
            evaluate, f"--model_dir={run_dir}", f"--test_file={test_file}", f"--against={run_dir}", "--nobaselines"
        )
        self.assertEqual(code, 0, err)
        self.assertRegex(out, r"accuracy +\+0.00% +\+0.00% to \+0.00% +1.000")

        model, tokens = tfzoo.load(run_dir)
        self.assertEqual((model.head_names, model.labels), (("classify",), ("bad", "good")))
        self.assertEqual(model.problem_type, "single_label_classification")
        self.assertEqual(runs.task_of(run_dir), runs.TaskRecord("classify", False, 24, model.problem_type))

    def test_errors_of_a_user(self):
        run_dir = self.folder / "run"
        good = self.folder / "train.tsv"
        small.flags(self.folder)
        bad = self.folder / "bad.tsv"
        lines = good.read_text().splitlines()
        bad.write_text("\n".join([lines[0], "a text\tfine", *lines[1:]]) + "\n")
        for pattern, flags in (
            ("--task=classify: requires --train_file", dict(train_file=None)),
            ("--train_file=.*nothing.tsv", dict(train_file=self.folder / "nothing.tsv")),
            ("bad.tsv:2: .*fine.*", dict(validation_file=bad)),
            ("--epochs=2: contradicts --steps=6; omit one of the two", dict(epochs=2)),
            ("--best_metric=acuracy: must be one of .*did you mean accuracy", dict(best_metric="acuracy")),
            ("--stages=.*: does not apply to --task; omit it", dict(stages="3:batch_size=4")),
        ):
            with self.subTest(pattern):
                code, _, err = helpers.run(train, *small.flags(self.folder, **flags), f"--run_dir={run_dir}")
                self.assertEqual(code, 2, err)
                self.assertRegex(err.strip().splitlines()[-1], pattern)
        with self.assertRaisesRegex(UserError, "--train_file=x: applies only with --task"):
            TrainConfig(run_dir="run", train_file="x")

    def test_rows_are_held_out_and_skipped(self):
        small.write_rows(self.folder / "train.tsv", rows=100)
        (self.folder / "dev.tsv").write_text("text\tlabel\nbright day\tgood\ndull day\tbad\nodd\tneither\n")
        _, out, _ = self.train(self.folder / "held_out", validation_file=None)
        match = __import__("re").search(r"(\d+) training rows, (\d+) validation rows", out)
        self.assertEqual(int(match[1]) + int(match[2]), 100)
        self.assertGreater(int(match[2]), 2)
        _, out, _ = self.train(self.folder / "skipped", bad_rows="skip")
        self.assertIn("2 validation rows", out)
        counts = json.loads((self.folder / "skipped" / "corpus.json").read_text())["report"]["held_out"]
        self.assertEqual((counts["rows"], counts["unknown_label"]), (2, 1))

    def test_early_stopping(self):
        _, out, _ = self.train(
            self.folder / "run", steps=60, learning_rate=1e-9, evaluate_every=2, checkpoint_every=50, early_stopping=3
        )
        self.assertEqual(tiny_run.records(self.folder / "run")[-1]["step"], 8)
        before = tiny_run.records(self.folder / "run")
        self.train(self.folder / "run", steps=60, learning_rate=1e-9, evaluate_every=2, checkpoint_every=50,
                   early_stopping=3)  # fmt: skip
        self.assertEqual(tiny_run.records(self.folder / "run"), before)  # It does not go on.

    def test_initialization_from_a_run(self):
        """The body is loaded; the classifier only if it has the same labels."""
        first = self.folder / "first"
        self.train(first)
        _, out, _ = self.train(self.folder / "same", init_from=first, model=None, overrides=None, steps=1)
        self.assertIn("new         none", out)
        small.write_rows(self.folder / "train.tsv", labels=("bad", "good"))
        text = (self.folder / "train.tsv").read_text()
        (self.folder / "train.tsv").write_text(text.replace("\tgood", "\tfine"))
        text = (self.folder / "dev.tsv").read_text()
        (self.folder / "dev.tsv").write_text(text.replace("\tgood", "\tfine"))
        _, out, _ = self.train(self.folder / "other", init_from=first, model=None, overrides=None, steps=1)
        self.assertIn("new         classify/dense/bias, classify/dense/kernel", out)
        shutil.rmtree(first)  # A resumed run does not need its source.
        self.train(self.folder / "other", init_from=first, model=None, overrides=None, steps=1)

    def test_numbers_and_several_labels(self):
        texts = (self.folder / "train.tsv", self.folder / "dev.tsv")
        for path, seed in zip(texts, (0, 1), strict=True):
            small.write_rows(path, rows=30, seed=seed)
            path.write_text(path.read_text().replace("\tgood", "\t1.5").replace("\tbad", "\t-0.5"))
        self.train(self.folder / "numbers", label_type="number")
        record = json.loads((self.folder / "numbers" / "evaluation.json").read_text())
        self.assertEqual(record["scores"].keys(), {"pearson", "spearman", "mse"})
        self.assertTrue(all(math.isfinite(each["value"]) for each in record["scores"].values()))
        for path, seed in zip(texts, (0, 1), strict=True):
            small.write_rows(path, rows=30, seed=seed)
            path.write_text(path.read_text().replace("\tgood", "\tgood,fine"))
        self.train(self.folder / "several", label_type="several")
        record = json.loads((self.folder / "several" / "evaluation.json").read_text())
        self.assertEqual([each["label"] for each in record["classes"]], ["bad", "fine", "good"])


class WorldsTest(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)

    def run_in(self, world, run_dir, stop_at=0, **flags):
        argv = [*small.flags(self.folder, **flags), f"--run_dir={run_dir}"]
        argv += ["--strategy=mirrored", "--num_devices=2"] if world == "mirrored2" else []
        argv += ["--strategy=multi_worker"] if world == "workers2" else []
        for rank in worlds.run(world, [["command", {"argv": argv, "stop_at": stop_at}]], begun=False):
            self.assertEqual(rank[0]["code"], 3 if stop_at else 0, rank)

    def check(self, world, **flags):
        """Six steps, and three steps that are resumed in another world, log the same."""
        whole, parts = (pathlib.Path(tempfile.mkdtemp(dir=self.folder), "run") for _ in range(2))
        self.run_in("one", whole, **flags)
        self.run_in("one", parts, stop_at=3, **flags)
        self.run_in("one" if world == "same" else world, parts, **flags)
        one, other = ({(record["step"], name): value for record in tiny_run.records(run_dir)
                       for name, value in record.items() if name not in ("tokens_per_second", "model_tflops")}
                      for run_dir in (whole, parts))  # fmt: skip
        self.assertEqual(one.keys(), other.keys())
        self.assertIn((6, "validation_loss"), one)
        for key, value in one.items():
            allowed = 0.0 if world == "same" else 2e-6 * max(1.0, abs(value))
            self.assertLessEqual(abs(other[key] - value), allowed, f"{world}: {key}")

    @pytest.mark.faults
    def test_all(self):
        for world in ("same", "mirrored2", "workers2"):
            for flags in (
                {},
                {"accumulation": 2},
                {"length_batches": "false"},
                {"label_type": "several", "accumulation": 2},
            ):
                with self.subTest(world=world, flags=flags):
                    self.check(world, **flags)


# ---------------------------------------------------------------- Functions that run in the worlds
def import_all():
    """Imports what the runs need, once."""
    import matplotlib.backends.backend_agg
    import matplotlib.figure
    import sklearn.linear_model
    import tqdm

    from tfzoo.training import checkpoint, loop, optimizers, task_inputs

    assert all((matplotlib, sklearn, tqdm, checkpoint, loop, optimizers, task_inputs))


if __name__ == "__main__":
    tf.test.main()
