"""The task preferences: rows, the loss against the formula of DPO, the frozen reference; and a whole run."""

import json
import random
import unittest

import numpy as np
import pytest
import tensorflow as tf

import tfzoo
from tests import helpers, tiny_run
from tests.stopped_command import stopping
from tests.tasks.fakes import rows_of
from tfzoo import evaluate, train
from tfzoo.data.messages import Preference
from tfzoo.errors import UserError
from tfzoo.models import gpt2
from tfzoo.tasks.preferences import MAIN, REFERENCE, Preferences
from tfzoo.training import checkpoint, runs

SIZES = dict(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32, max_positions=48, dropout=0)
TEMPLATE = "{% for m in messages %}{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}:{% endif %}"
TEMPLATE = TEMPLATE.replace("{{ m.content }}", "{% if m.role == 'assistant' %}:{% endif %}{{ m.content }}")


def message(role, content):
    return {"role": role, "content": content}


def row(prompt, chosen, rejected):
    return Preference(
        "file:1", (message("user", prompt),), message("assistant", chosen), message("assistant", rejected)
    )


def task(length=24, **options):
    tokenizer = helpers.byte_tokenizer(["<s>", "</s>"], eos="</s>")
    tokenizer.chat_templates = {"default": TEMPLATE}
    return Preferences(tokenizer, length, page=gpt2, **options)


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


class PreferencesTest(tf.test.TestCase):
    def shown(self, made, ids):
        return "".join(made._tokenizer.vocab[i] for i in ids)

    def test_rows(self):
        made = task()
        rows = rows_of(made, row("Hi", "Hello", "No"))
        batch = made.batch(rows, np.array([0]), 16)
        self.assertEqual({*batch}, {*made.SIGNATURE})
        for i, text in enumerate(("Hi</s>:Hello", "Hi</s>:No")):
            count = int(batch["padding_mask"][0, i].sum())
            self.assertEqual(self.shown(made, batch["token_ids"][0, i, :count]), text)
            answer = batch["targets"][0, i][batch["target_weights"][0, i] > 0]
            self.assertEqual(self.shown(made, answer), text.partition(":")[2] + "</s>")
        self.assertAllEqual(made.lengths(rows), [9])
        self.assertEqual(made.truncated(rows), 0)

    def test_long_rows_keep_the_same_prompt(self):
        made = task(length=9)
        rows = rows_of(made, row("abcdefgh", "ij", "klmnopqrs"))
        self.assertEqual(made.truncated(rows), 1)
        shown = [self.shown(made, rows.values(name, 0)) for name in ("chosen", "rejected")]
        self.assertEqual(shown, ["fgh</s>:ij</s>", "fgh</s>:klmno"])

    def test_loss_and_scores_equal_the_formula(self):
        rows = row("ab", "cde", "f"), row("g", "hi", "jklm"), row("nop", "q", "rs")
        found = rows_of(task(), *rows)
        models = {}
        for seed, role in enumerate((MAIN, REFERENCE)):
            models[role] = helpers.noisy_model("gpt2", seed, **SIZES, attention_dropout=0, vocab_size=258)
        for options in (dict(beta=0.7), dict(beta=0.2, label_smoothing=0.1)):
            made = task(**options)
            batch = made.batch(found, np.arange(3), 16)
            sums = {}
            for role, model in models.items():
                logits = model({"token_ids": batch["token_ids"].reshape(6, 16)})["logits"]
                scores = np.take_along_axis(log_softmax(logits), batch["targets"].reshape(6, 16, 1), -1)[..., 0]
                sums[role] = (scores.reshape(3, 2, 16) * batch["target_weights"]).sum(-1)
            rewards = options["beta"] * (sums[MAIN] - sums[REFERENCE])
            margins = rewards[:, 0] - rewards[:, 1]
            smoothing = options.get("label_smoothing", 0)
            expected = (1 - smoothing) * np.log1p(np.exp(-margins)) + smoothing * np.log1p(np.exp(margins))
            loss, weight = made.loss(models, batch, training=False)
            self.assertAllClose((loss, weight), (expected.sum(), 3.0), rtol=1e-4)
            predictions = {name: np.asarray(x) for name, x in made.predict(models, batch).items()}
            self.assertAllClose(predictions["margin"], margins, rtol=1e-3, atol=1e-4)
            scores = made.score_rows(made.outcome(predictions))()
            self.assertAllClose(scores["reward_accuracy"], np.mean(margins > 0))
            self.assertAllClose(scores["reward_margin"], margins.mean(), rtol=1e-3)
        with self.assertRaisesRegex(UserError, "--label_smoothing=0.5: must be below 0.5"):
            task(label_smoothing=0.5)

    def test_the_reference_has_no_gradient_and_equal_models_are_half_right(self):
        made = task()
        found = rows_of(made, row("ab", "cde", "f"), row("g", "hi", "jklm"))
        config = gpt2.Model(tfzoo.build("gpt2", **SIZES, attention_dropout=0, vocab_size=258).config).config
        models = made.build_models(gpt2, config)
        made.initialized(models)
        batch = {name: tf.constant(x) for name, x in made.batch(found, np.arange(2), 16).items()}
        with tf.GradientTape() as tape:
            for model in models.values():
                tape.watch([v.value for v in model.variables if v.dtype == "float32"])
            loss, _ = made.loss(models, batch)
        self.assertAllClose(loss, 2 * np.log(2), rtol=1e-6)
        gradients = tape.gradient(loss, [v.value for v in models[REFERENCE].weights])
        self.assertEqual({*map(type, gradients)}, {type(None)})
        self.assertEqual(models[REFERENCE].trainable_variables, [])
        predictions = {name: np.asarray(x) for name, x in made.predict(models, batch).items()}
        self.assertEqual(made.score_rows(made.outcome(predictions))()["reward_accuracy"], 0.5)


class RunTest(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)
        draw = random.Random(0)
        for name, rows in (("train", 48), ("dev", 10)):
            lines = []
            for _ in range(rows):
                good, bad = draw.sample("abcd", 2)
                lines.append({"prompt": good * 3, "chosen": good, "rejected": bad * draw.randint(1, 3)})
            (self.folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def train(self, name, code=0, **others):
        values = dict(
            train_file=self.folder / "train.jsonl",
            validation_file=self.folder / "dev.jsonl",
            run_dir=self.folder / name,
            cache_dir=self.folder / "cache",
            sequence_length=32,
            batch_size=8,
            log_every=1,
        )
        flags = (f"--{name}={value}" for name, value in (values | others).items())
        result = helpers.run(train, *flags)
        self.assertEqual(result[0], code, result)
        return result[1] + result[2]

    def reference(self, name, step):
        path = self.folder / name / "checkpoints"
        arrays = checkpoint.Checkpoints(path, read_only=True).read(path / f"{step:08}")[2]
        return {key: x for key, x in arrays.items() if key.startswith("model.reference/") and "seed" not in key}

    @pytest.mark.faults
    def test_a_whole_run(self):
        source = self.folder / "source"
        sizes = ",".join(f"{name}={value}" for name, value in SIZES.items())
        answers = self.folder / "answers.jsonl"
        answers.write_text("".join(json.dumps({"prompt": c * 3, "completion": c}) + "\n" for c in "abcd" * 3))
        first = dict(
            task="chat", train_file=answers, validation_file=answers, model="gpt2", overrides=sizes, steps=2,
            tokenizer="byte_level", vocab_size=258, sample_answers=0,
        )  # fmt: skip
        self.train("source", **first)
        flags = dict(task="preferences", init_from=source, steps=16, evaluate_every=8, checkpoint_every=8)
        flags |= dict(learning_rate=0.01, beta=0.5, keep_checkpoints=5)
        fresh = {name: value for name, value in flags.items() if name != "init_from"}
        error = self.train("without", code=2, **fresh, model="gpt2")
        self.assertIn("--task=preferences: tunes an existing model; specify it with --init_from", error)
        self.train("whole", **flags)
        run = self.folder / "whole"
        record = json.loads((run / "evaluation.json").read_text())
        self.assertGreater(record["scores"]["reward_accuracy"]["value"], 0.7)
        self.assertGreater(record["scores"]["reward_margin"]["value"], 0)
        self.assertEqual({*record["baselines"]}, {"longer"})

        with stopping(11):
            self.train("parts", code=3, **flags)
        self.train("parts", **flags)
        self.assertEqual(tiny_run.measured(self.folder / "parts"), tiny_run.measured(run))
        # The reference has the weights of the source, in every checkpoint and after a resume.
        given, _ = runs.load(source)
        before, after = self.reference("whole", 8), self.reference("parts", 16)
        self.assertEqual(len(before), len(given.weights))
        for name, array in before.items():
            np.testing.assert_array_equal(array, after[name], name)
        sums = sorted(float(np.abs(x).sum()) for x in before.values())
        np.testing.assert_allclose(sums, sorted(float(np.abs(x.numpy()).sum()) for x in given.weights), rtol=1e-6)

        code, out, err = helpers.run(evaluate, f"--model_dir={run}", f"--test_file={self.folder / 'dev.jsonl'}")
        self.assertEqual(code, 0, err)
        self.assertIn("longer answer", out)
        again = json.loads((run / "evaluation-dev.json").read_text())["scores"]
        for name, score in record["scores"].items():
            self.assertAlmostEqual(again[name]["value"], score["value"], places=4)
        # The model alone is loaded and exported.
        self.assertEqual(runs.roles(run), ("main", "reference"))
        model, _ = tfzoo.load(run)
        self.assertNotEqual([x.numpy().sum() for x in model.weights], [x.numpy().sum() for x in given.weights])


if __name__ == "__main__":
    tf.test.main()
