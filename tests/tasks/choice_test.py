"""The task choice: rows of encoders and decoders, losses and scores against formulas; and whole runs."""

import json
import pathlib
import random
import unittest
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tfzoo
from tests import helpers, tiny_run
from tests.stopped_command import stopping
from tests.tasks import small
from tests.tasks.fakes import Logits, rows_of
from tfzoo import evaluate, predict, train
from tfzoo.data.choices import ChoiceRow
from tfzoo.errors import UserError
from tfzoo.evaluation import likelihood
from tfzoo.export import answers
from tfzoo.models import bert, gpt2
from tfzoo.tasks.choice import Choice
from tfzoo.text.wordpiece import WordPiece

WORDS = "she sits at the piano and plays . sleeps a b c d e f".split()
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
ROWS = (
    ChoiceRow("file:1", "She sits at the piano and", ("plays.", "sleeps."), 0),
    ChoiceRow("file:2", "a b", ("c", "d", "e f"), 2),
)
SIZES = dict(hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32, max_positions=16, dropout=0)


def task(length=16, **options):
    return Choice(WordPiece(VOCAB), length, page=bert, **options)


def byte_task(length=16, **options):
    tokenizer = helpers.byte_tokenizer(["<s>", "<|endoftext|>"], bos="<s>", eos="<|endoftext|>")
    return Choice(tokenizer, length, page=gpt2, **options)


def tokens(batch, *index):
    return " ".join(VOCAB[i] for i in batch["token_ids"][index][batch["padding_mask"][index]])


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


class ChoiceTest(tf.test.TestCase):
    def test_the_example(self):
        made = task()
        rows = rows_of(made, *ROWS)
        batch = made.batch(rows, np.arange(2), 16)
        self.assertEqual({*batch}, {*made.signature(rows)})
        self.assertEqual(tokens(batch, 0, 0), "[CLS] she sits at the piano and [SEP] plays . [SEP]")
        self.assertEqual(tokens(batch, 0, 1), "[CLS] she sits at the piano and [SEP] sleeps . [SEP]")
        self.assertEqual(tokens(batch, 1, 2), "[CLS] a b [SEP] e f [SEP]")
        self.assertAllEqual(batch["is_ending"], [[True, True, False], [True, True, True]])
        self.assertAllEqual(batch["label"], [0, 2])
        self.assertAllEqual(batch["segment_ids"][1, 2], [0, 0, 0, 0, 1, 1, 1, *[0] * 9])
        self.assertAllEqual(made.lengths(rows), [11, 7])
        self.assertEqual(made.truncated(rows), 0)

    def test_loss_and_scores_equal_the_formulas(self):
        made = task()
        rows = rows_of(made, *ROWS)
        batch = made.batch(rows, np.arange(2), 16)
        logits = np.array([[1.0, 2.0, 9.0], [0.5, -1.0, 3.0]])  # The third ending of the first row does not exist.
        inputs = ("token_ids", "segment_ids", "padding_mask")
        model = {"main": Logits(logits.reshape(6, 1), "classify_logits", inputs)}
        loss, weight = made.loss(model, batch)
        expected = -log_softmax([1.0, 2.0])[0], -log_softmax([0.5, -1.0, 3.0])[2]
        self.assertAllClose((loss, weight), (sum(expected), 2.0))
        predictions = {name: np.asarray(x) for name, x in made.predict(model, batch).items()}
        outcome = made.outcome(predictions)
        self.assertEqual(made.score_rows(outcome)(), {"accuracy": 0.5})
        self.assertEqual(made.score_rows(outcome)(np.array([0, 0])), {"accuracy": 0.0})
        (mistake,) = made.mistakes(outcome, 5)
        self.assertEqual((mistake["gold_at"], mistake["predicted_at"]), ((0, 1), (0, 2)))
        self.assertAlmostEqual(mistake["score"], np.exp(log_softmax([1.0, 2.0])[1]), places=6)

    def test_decoders_score_endings_by_their_likelihood(self):
        """The scores are those of tfzoo.evaluation.likelihood, which reads the texts itself."""
        made = byte_task(24)
        model = helpers.noisy_model("gpt2", **SIZES | {"max_positions": 24}, vocab_size=made._tokenizer.vocab_size)
        rows = (ChoiceRow("file:1", "one two", ("three", "four"), 1), ChoiceRow("file:2", "a", ("b", "c d", "e"), 0))
        encoded = rows_of(made, *rows)
        batch = made.batch(encoded, np.arange(2), 24)
        self.assertEqual({*batch}, {*made.signature(encoded)})
        predictions = {name: np.asarray(x) for name, x in made.predict({"main": model}, batch).items()}
        pairs = [(row.context, f" {ending}") for row in rows for ending in row.endings]
        found = likelihood.score_continuations(model, *zip(*pairs, strict=True), made._tokenizer)
        sums = np.array([each.log_likelihood for each in found])
        means = sums / [len(each.scores) for each in found]
        there = batch["is_ending"]
        self.assertAllClose(predictions["answer_sum"][there], sums, rtol=1e-4)
        self.assertAllClose(predictions["answer_mean"][there], means, rtol=1e-4)
        self.assertAllEqual(predictions["answer"], predictions["answer_sum"])
        loss, weight = made.loss({"main": model}, batch, training=False)
        self.assertAllClose(loss, -log_softmax(sums[:2])[1] - log_softmax(sums[2:])[0], rtol=1e-4)
        self.assertAllClose(weight, 2.0)
        of_means = byte_task(24, ending_score="mean")
        loss, _ = of_means.loss({"main": model}, batch, training=False)
        self.assertAllClose(loss, -log_softmax(means[:2])[1] - log_softmax(means[2:])[0], rtol=1e-4)
        scores = made.score_rows(made.outcome(predictions))()
        right = [sums[:2].argmax() == 1, sums[2:].argmax() == 0]
        self.assertEqual(scores["accuracy"], np.mean(right))
        self.assertEqual(scores["accuracy_mean"], np.mean([means[:2].argmax() == 1, means[2:].argmax() == 0]))
        for row, answer in zip(
            rows, made.answers(model, [row.texts[:1] + (row.endings,) for row in rows]), strict=True
        ):
            own = sums[: len(row.endings)] if row is rows[0] else sums[2:]
            self.assertAllClose(answer["scores"], np.exp(log_softmax(own)), rtol=1e-3)
            self.assertEqual(answer["answer"], row.endings[answer["index"]])

    def test_long_texts(self):
        made = byte_task(8)
        rows = rows_of(
            made, ChoiceRow("file:1", "abcdefgh", ("x", "stuvwxyz"), 0), ChoiceRow("file:2", "a", ("b", "c"), 0)
        )
        self.assertEqual(made.truncated(rows), 1)
        self.assertAllEqual(made.lengths(rows), [8, 3])
        batch = made.batch(rows, np.arange(2), 8)
        vocab = made._tokenizer.vocab
        shown = ["".join(vocab[i] for i in batch["token_ids"][0, c]) for c in range(2)]
        # The context keeps its end; a long ending has half of the room.
        self.assertEqual(shown, ["<s>cdefgh\u0120", "<s>efgh\u0120st"])
        self.assertAllEqual(batch["target_weights"][0], [[0] * 6 + [1, 1], [0] * 4 + [1] * 4])


class RunTest(unittest.TestCase):
    """Whole runs of an encoder and of a decoder; the right ending is the good word."""

    @classmethod
    def setUpClass(cls):
        cls.folder = helpers.temporary_folder(cls)
        for name, rows, seed in (("train", 60, 0), ("dev", 16, 1)):
            cls.write(cls.folder / f"{name}.jsonl", rows, seed)

    @staticmethod
    def write(path: pathlib.Path, rows: int, seed: int):
        draw, lines = random.Random(seed), []
        for _ in range(rows):
            endings = draw.choices(small.WORDS["bad"], k=draw.randint(1, 2))
            label = draw.randint(0, len(endings))
            endings.insert(label, draw.choice(small.WORDS["good"]))
            question = " ".join(draw.choices(small.NEUTRAL, k=2))
            lines.append(json.dumps({"question": question, "choices": endings, "label": label}))
        path.write_text("\n".join(lines) + "\n")

    def train(self, name, code=0, **others):
        others = dict(task="choice", train_file=self.folder / "train.jsonl", learning_rate=0.03) | others
        others = dict(validation_file=self.folder / "dev.jsonl") | others
        result = helpers.run(train, *small.flags(self.folder, **others), f"--run_dir={self.folder / name}")
        self.assertEqual(result[0], code, result)
        return result[1] + result[2]

    def test_encoder(self):
        flags = dict(steps=40, evaluate_every=20, checkpoint_every=20)
        printed = self.train("whole", **flags)
        self.assertIn("JSON lines; context = question, endings = choices, label = label", printed)
        run = self.folder / "whole"
        record = json.loads((run / "evaluation.json").read_text())
        self.assertGreater(record["scores"]["accuracy"]["value"], 0.7)
        self.assertEqual({*record["baselines"]}, {"position", "longest", "shortest", "tfidf"})
        code, out, err = helpers.run(
            evaluate, f"--model_dir={run}", f"--test_file={self.folder / 'dev.jsonl'}", "--batch_size=16"
        )
        self.assertEqual(code, 0, err)
        self.assertIn("commonest position", out)
        again = json.loads((run / "evaluation-dev.json").read_text())
        self.assertEqual(again["scores"], record["scores"])
        self.assertEqual(again["baselines"], record["baselines"])
        pipeline = tfzoo.pipeline(run)
        row = ("the house", ["bitter", "warm", "slow"])
        answer = pipeline(row)
        self.assertEqual((answer["answer"], answer["index"]), ("warm", 1))
        self.assertAlmostEqual(sum(answer["scores"]), 1, places=5)
        self.assertEqual(pipeline([row, ("a", ("sour", "fine"))])[0].keys(), answer.keys())
        with self.assertRaisesRegex(UserError, r"texts\[0\]: the endings are not a list of at least two texts"):
            pipeline([("a", "b")])
        asked = self.folder / "asked.jsonl"
        asked.write_text(json.dumps({"question": row[0], "choices": row[1]}) + "\n")
        argv = [f"--model_dir={run}", f"--input={asked}", "--text_column=question", "--pair_column=choices"]
        code, out, err = helpers.run(predict, *argv)
        self.assertEqual(code, 0, err)
        self.assertEqual(json.loads(out)["answer"], "warm")
        # An export gives each pair a value; the softmax of the values is that of the endings.
        model, tokenizer = tfzoo.load(run)
        options = answers.Options(sequence_length=24, text_pair=True)
        pair: Any = answers.find(model, tokenizer, options)
        texts = {"text": tf.constant([row[0]] * 3), "text_pair": tf.constant(row[1])}
        values = pair.answer(texts, lambda inputs: model(inputs))["value"].numpy()
        np.testing.assert_allclose(np.exp(log_softmax(values)), answer["scores"], rtol=1e-4)
        self.assertEqual((model.head_names, model.num_labels), (("classify",), 1))

    @pytest.mark.faults
    def test_a_resumed_run_is_the_same(self):
        flags = dict(steps=40, evaluate_every=20, checkpoint_every=20)
        self.train("undisturbed", **flags)
        with stopping(15):
            self.train("parts", code=3, **flags)
        self.train("parts", **flags)
        self.assertEqual(*(tiny_run.measured(self.folder / name) for name in ("undisturbed", "parts")))

    @pytest.mark.faults
    def test_decoder(self):
        printed = self.train(
            "decoder",
            model="gpt2",
            tokenizer="byte_level",
            vocab_size=280,
            steps=2,
            evaluate_every=2,
            sequence_length=32,
        )
        self.assertIn("accuracy per token", printed)
        record = json.loads((self.folder / "decoder" / "evaluation.json").read_text())
        self.assertEqual(list(record["scores"]), ["accuracy", "accuracy_mean", "accuracy_sum"])


if __name__ == "__main__":
    tf.test.main()
