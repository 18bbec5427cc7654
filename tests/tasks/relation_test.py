"""The task relation: rows with markers, losses and scores; and a whole run with evaluation and resume."""

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
from tfzoo import evaluate, train
from tfzoo.data.relations import RelationFile, RelationRow
from tfzoo.errors import UserError
from tfzoo.export import answers
from tfzoo.models import bert
from tfzoo.tasks.relation import Relation
from tfzoo.text.wordpiece import WordPiece
from tfzoo.training import runs

LABELS = ("Other", "Part(e1,e2)", "Part(e2,e1)")
WORDS = "the child slept in cradle . a b c d".split()
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "$", "#", *"ehilnprst", "##s"]


def task(length=16, labels=LABELS, vocab=VOCAB, **options):
    return Relation(WordPiece(vocab), length, page=bert, labels=labels, **options)


def row(marked, label="Other"):
    """Returns the row of a text with entities in [1 ... ] and [2 ... ]."""
    text, places = "", {}
    for part in marked.replace("[", "|").replace("]", "|").split("|"):
        if part[:1] in ("1", "2"):
            places[part[0]] = (len(text), len(text) + len(part) - 1)
            part = part[1:]
        text += part
    return RelationRow("file:1", text, places["1"], places["2"], label)


def tokens(batch, i):
    return " ".join(VOCAB[j] for j in batch["token_ids"][i][batch["padding_mask"][i]])


INPUTS = ("token_ids", "padding_mask", "entity_positions")


def model(logits):
    return {"main": Logits(logits, "relation_logits", INPUTS)}


class RelationTest(tf.test.TestCase):
    def test_the_example(self):
        made = task()
        rows = rows_of(made, row("The [1child] slept in the [2cradle].", "Part(e1,e2)"))
        batch = made.batch(rows, np.array([0]), 16)
        self.assertEqual(tokens(batch, 0), "[CLS] the $ child $ slept in the # cradle # . [SEP]")
        self.assertAllEqual(batch["entity_positions"], [[2, 8]])
        self.assertAllEqual(batch["label"], [1])
        self.assertEqual({*batch}, {*made.SIGNATURE})
        self.assertAllEqual(made.lengths(rows), [13])
        self.assertEqual(made.truncated(rows), 0)

    def test_the_second_entity_can_come_first(self):
        made = task()
        batch = made.batch(rows_of(made, row("The [2child][1cradle]")), np.array([0]), 16)
        self.assertEqual(tokens(batch, 0), "[CLS] the # child # $ cradle $ [SEP]")
        self.assertAllEqual(batch["entity_positions"], [[5, 2]])

    def test_signs_in_a_text_are_not_markers(self):
        made = task()
        batch = made.batch(rows_of(made, row("$ # [1a $] [2b]")), np.array([0]), 16)
        self.assertEqual(tokens(batch, 0), "[CLS] $ # $ a $ $ # b # [SEP]")
        self.assertAllEqual(batch["entity_positions"], [[3, 7]])

    def test_both_entities_stay(self):
        made = task(length=10)
        rows = rows_of(
            made,
            row("a b c d a b [1the child] [2cradle] c d"),
            row("[1the] a b c d . a b c d [2cradle]"),
            row("[2a b c d the child slept in] . [1cradle]"),
            row("[1a] [2b]"),
        )
        batch = made.batch(rows, np.arange(4), 10)
        self.assertEqual(
            [tokens(batch, i) for i in range(4)],
            [
                "[CLS] b $ the child $ # cradle # [SEP]",
                "[CLS] $ the $ a d # cradle # [SEP]",
                "[CLS] # a b c d $ cradle $ [SEP]",
                "[CLS] $ a $ # b # [SEP]",
            ],
        )
        self.assertAllEqual(batch["entity_positions"], [[2, 6], [1, 6], [6, 1], [1, 4]])
        self.assertEqual(made.truncated(rows), 3)

    def test_the_loss_by_the_formula(self):
        logits = np.random.default_rng(0).normal(size=(3, 3))
        log_chances = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        label, weight = np.array([0, 2, 1]), np.array([1, 1, 0], np.float32)
        batch = {"label": tf.constant(label, tf.int32), "weight": weight, "number": np.arange(3)}
        batch |= dict.fromkeys(INPUTS, 0)
        for smoothing in (0.0, 0.3):
            total, count = task(label_smoothing=smoothing).loss(model(logits), batch)
            target = np.eye(3)[label] * (1 - smoothing) + smoothing / 3
            self.assertAllClose(total, -(target * log_chances).sum(1) @ weight)
            self.assertAllClose(count, 2.0)
        found = task(label_smoothing=0.3).predict(model(logits), batch)
        self.assertAllClose(found["loss"], -log_chances[range(3), label] * weight)
        self.assertAllClose(found["answer"], np.exp(log_chances))

    def test_scores_and_mistakes(self):
        made = task()
        answer = np.array([[0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.3, 0.1, 0.6]])
        outcome = {"number": np.array([0, 3, 5, 6]), "answer": answer, "label": np.array([1, 2, 0, 0])}
        # Relation Part: 1 of 3 predictions is right, and 1 of 2 rows is found; Other does not count.
        self.assertAllClose(made.score_rows(outcome)()["macro_f1"], 2 * 1 / (3 + 2))
        self.assertEqual(made.score_rows(outcome)()["accuracy"], 0.5)
        details = made.details(outcome)
        self.assertEqual([each["label"] for each in details["classes"]], ["Part"])
        self.assertEqual(details["confusion"]["counts"], [[1, 0, 1], [0, 1, 0], [0, 1, 0]])
        mistakes = made.mistakes(outcome, 5)
        self.assertEqual([each["number"] for each in mistakes], [3, 6])
        self.assertEqual(
            made.described(mistakes[0], row("The [2child] slept in the [1cradle].")),
            {
                "text": "The <e2>child</e2> slept in the <e1>cradle</e1>.",
                "gold": "Part(e2,e1)",
                "predicted": "Part(e1,e2)",
                "score": 0.8,
            },
        )

    def test_what_is_wrong(self):
        with self.assertRaisesRegex(UserError, "^--task=relation: the vocabulary contains fewer than two of the"):
            task(vocab=[token for token in VOCAB if token != "#"])
        with self.assertRaisesRegex(UserError, "^--sequence_length=3 leaves no room for two entities"):
            task(length=3)


def write_rows(path: pathlib.Path, rows: int, seed: int = 0, labels=True) -> pathlib.Path:
    """Writes JSON lines with a relation that the word between the entities determines."""
    draw = random.Random(seed)
    relations = {"has": "Whole(e1,e2)", "of": "Whole(e2,e1)", "and": "Other"}
    with path.open("w") as file:
        for _ in range(rows):
            a, b = draw.choices("car wheel door house tree leaf".split(), k=2)
            word = draw.choice([*relations])
            text = f"{draw.choice(('The', 'A'))} <e1>{a}</e1> {word} a <e2>{b}</e2> {draw.choice(('here', 'now'))}."
            file.write(json.dumps({"text": text, "label": relations[word]}) + "\n")
    return path


class RunTest(unittest.TestCase):
    """Whole runs of a tiny model."""

    def setUp(self):
        self.folder = helpers.temporary_folder(self)
        write_rows(self.folder / "train.jsonl", 60)
        write_rows(self.folder / "dev.jsonl", 20, seed=1)

    def train(self, run_dir, code=0, **others):
        values = dict(
            task="relation",
            train_file=self.folder / "train.jsonl",
            validation_file=self.folder / "dev.jsonl",
            run_dir=run_dir,
            cache_dir=self.folder / "cache",
            model="bert_tiny",
            overrides=small.SIZES,
            vocab_size=150,
            sequence_length=32,
            length_batches=False,
            batch_size=8,
            steps=6,
            warmup_steps=1,
            learning_rate=0.01,
            log_every=1,
            evaluate_every=3,
            checkpoint_every=3,
        )
        result = helpers.run(train, *(f"--{name}={value}" for name, value in (values | others).items()))
        self.assertEqual(result[0], code, result)
        return result[1] + result[2]

    @pytest.mark.faults
    def test_train_evaluate_and_resume(self):
        whole, parts = self.folder / "whole", self.folder / "parts"
        flags = dict(steps=60, evaluate_every=30, checkpoint_every=30, batch_size=16, learning_rate=0.03)
        out = self.train(whole, **flags)
        self.assertIn("3 labels: Other, Whole(e1,e2), Whole(e2,e1)", out)
        record = json.loads((whole / "evaluation.json").read_text())
        self.assertEqual(record["best_metric"], "macro_f1")
        self.assertGreater(record["scores"]["macro_f1"]["value"], 0.9)
        self.assertEqual({*record["baselines"]}, {"majority", "linear"})
        self.assertEqual([each["label"] for each in record["classes"]], ["Whole"])
        self.assertEqual(runs.task_of(whole).markers, ["$", "#"])
        code, _, err = helpers.run(
            evaluate, f"--model_dir={whole}", f"--test_file={self.folder / 'dev.jsonl'}", "--nobaselines"
        )
        self.assertEqual(code, 0, err)
        found = json.loads((whole / "evaluation-dev.json").read_text())
        self.assertEqual(found["scores"], record["scores"])
        self.check_exported_answers(whole)
        self.check_triples(whole)

        with stopping(20):
            self.train(parts, code=3, **flags)
        self.train(parts, **flags)
        self.assertEqual(tiny_run.measured(parts), tiny_run.measured(whole))

    def check_exported_answers(self, run_dir):
        """The text signature of an exported model reads texts as the task does, and gives the same answers."""
        model, tokenizer = tfzoo.load(run_dir)
        self.assertEqual(model.markers, ("$", "#"))
        length = 14
        made = Relation(tokenizer, length, page=bert, labels=model.labels)
        answer: Any = answers.find(model, tokenizer, answers.Options(sequence_length=length))
        texts = [
            "The <e1>car</e1> has a <e2>wheel</e2> here.",
            "\u00a0A  <e2> door </e2><e1>house\u3000</e1>\tof\u2003a <e1",
            "<e1>car</e1> <e2>tree</e2>",
            "tree " * 9 + "<e1>car</e1> and a leaf and a leaf and <e2>tree</e2>" + " leaf" * 9,
            "<e2>" + "tree " * 12 + "</e2> and <e1>car</e1>",
        ]
        texts[1] = texts[1].removesuffix("<e1")
        path = self.folder / "texts.jsonl"
        path.write_text("".join(json.dumps({"text": text, "label": "Other"}) + "\n" for text in texts))
        rows = rows_of(made, *RelationFile(path, flag="test_file").rows())
        reading = answer.reader.read({"text": tf.constant(texts)})
        batch = made.batch(rows, np.arange(len(texts)), int(reading.inputs["token_ids"].shape[1]))
        for name, values in reading.inputs.items():
            self.assertEqual(values.numpy().tolist(), batch[name].tolist(), name)
        self.assertEqual(reading.truncated.numpy().tolist(), rows.columns["cut"].tolist())
        self.assertEqual(reading.truncated.numpy().tolist(), [False, False, False, True, True])
        for i, text in enumerate(texts):  # In Python, without padding.
            row = answer.row([text])
            count = len(row.ids)
            self.assertEqual(row.ids, batch["token_ids"][i, :count].tolist())
            self.assertEqual(row.inputs["entity_positions"].tolist(), [batch["entity_positions"][i].tolist()])
            self.assertEqual((row.truncated, row.is_marked, answer.refusal(row)), (i > 2, True, ""))
        found = answer.answer({"text": tf.constant(texts)}, lambda inputs: model(inputs))
        predicted = made.predict({"main": model}, batch)["answer"].numpy()
        np.testing.assert_allclose(found["scores"], predicted, atol=1e-6)
        self.assertEqual(
            [model.labels[i] for i in predicted.argmax(1)], [each.decode() for each in found["label"].numpy()]
        )

        wrong = [
            "no entities",
            "<e1>a</e1>",
            "<e1>a<e2>b</e1></e2>",
            "<e1>a</e1> <e1>a</e1> <e2>b</e2>",
            "<e1>\u00a0</e1><e2>b</e2>",
        ]
        lenient: Any = answers.find(model, tokenizer, answers.Options(sequence_length=length, refuse="row"))
        errors = lenient.answer({"text": tf.constant([texts[0], *wrong])}, lambda inputs: model(inputs))[
            "error"
        ].numpy()
        self.assertEqual(errors[0], b"")
        for text, error in zip(wrong, errors[1:], strict=True):
            self.assertIn(b"text must mark two entities", error)
            self.assertEqual(lenient.refusal(lenient.row([text])), error.decode())
        with self.assertRaisesRegex(tf.errors.InvalidArgumentError, "must mark two entities"):
            answer.answer({"text": tf.constant(wrong[:1])}, lambda inputs: model(inputs))

    def check_triples(self, run_dir):
        """A pipeline of a model of entities and the run reads each pair of entities as the run does alone."""
        tokenizer = tfzoo.load(run_dir)[1]
        tagger = tfzoo.build(
            "bert_tiny",
            heads=("tag",),
            labels=("O", "B-X"),
            hidden_size=8,
            num_heads=1,
            vocab_size=tokenizer.vocab_size,
        )
        tagger.weights[-1].assign([0.0, 9.0])  # The bias of the logits: every word is an entity.
        tfzoo.save(tagger, self.folder / "tagger", tokenizer)
        text = "The car has a wheel"
        found = tfzoo.pipeline([self.folder / "tagger", run_dir])(text)
        self.assertEqual([each["text"] for each in found["entities"]], text.split())
        (triple,) = [each for each in found["triples"] if (each["head"]["start"], each["tail"]["start"]) == (4, 14)]
        alone = tfzoo.pipeline(run_dir)("The <e1>car</e1> has a <e2>wheel</e2>")
        self.assertEqual((alone["label"], triple["relation"]), ("Whole(e1,e2)", "Whole"))
        self.assertAlmostEqual(alone["score"], triple["score"], places=4)

    def test_errors(self):
        other, single = self.folder / "other.jsonl", self.folder / "single.jsonl"
        other.write_text('{"text": "<e1>a</e1> <e2>b</e2>", "label": "Cause(e1,e2)"}\n')
        single.write_text('{"text": "<e1>a</e1> <e2>b</e2>", "label": "Other"}\n')
        for pattern, flags in (
            (r"other.jsonl:1: label .?.Cause\(e1,e2\).* does not occur in training", dict(validation_file=other)),
            ("--train_file=.*single.jsonl: contains a single relation, 'Other'", dict(train_file=single)),
        ):
            with self.subTest(pattern):
                self.assertRegex(self.train(self.folder / "wrong", code=2, **flags).strip().splitlines()[-1], pattern)


if __name__ == "__main__":
    tf.test.main()
