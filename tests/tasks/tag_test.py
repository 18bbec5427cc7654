"""The task tag: rows, windows, losses and scores; and whole runs with evaluation, resume and the exported answers."""

import json
import pathlib
import random
import types
import unittest
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

import tfzoo
from tests import helpers, tiny_run
from tests.stopped_command import stopping
from tests.tasks import small
from tests.tasks.fakes import Logits, rows_of
from tfzoo import evaluate, train
from tfzoo.data.tagged import TaggedRow
from tfzoo.errors import UserError
from tfzoo.evaluation import entities
from tfzoo.export import answers
from tfzoo.models import bert
from tfzoo.tasks.tag import Tag
from tfzoo.text.wordpiece import WordPiece
from tfzoo.training import TrainConfig, evaluating

LABELS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ann", "le", "##vine", "slept", *"abcdefgh"]
NAMES, PLACES = ("ann", "bob", "carl", "dora", "eve"), ("paris", "rome", "oslo")


def task(length=8, labels=LABELS, tokenizer=None, **options):
    return Tag(tokenizer or WordPiece(VOCAB), length, page=bert, labels=labels, **options)


def row(text, *tags):
    """Returns the row of a text whose words are separated by spaces."""
    ends = np.cumsum([len(word) + 1 for word in text.split(" ")]) - 1
    words = [(int(end) - len(word), int(end)) for end, word in zip(ends, text.split(" "), strict=True)]
    return TaggedRow("file:1", text, tuple(words), tags or ("O",) * len(words))


def predictions(*sentences, labels=LABELS):
    """Returns the predictions for windows: (number of the sentence, [(label, answer or code), ...])."""
    width = max(len(words) for _, words in sentences)
    found = {"label": np.full((len(sentences), width), -1), "answer": np.full((len(sentences), width), -1)}
    for i, (_, words) in enumerate(sentences):
        for j, (label, answer) in enumerate(words):
            found["label"][i, j] = labels.index(label)
            found["answer"][i, j] = answer if isinstance(answer, int) else labels.index(answer)
    scores = np.linspace(0.5, 0.9, len(sentences) * width, dtype=np.float32).reshape(len(sentences), width)
    return found | {"number": np.array([number for number, _ in sentences]), "score": scores}


def model(logits):
    return {"main": Logits(logits, "tag_logits")}


class TagTest(tf.test.TestCase):
    def test_the_example(self):
        made = task()
        rows = rows_of(made, row("Ann Levine slept", "B-PER", "I-PER", "O"))
        batch = made.batch(rows, np.array([0]), 7)
        self.assertEqual([VOCAB[i] for i in batch["token_ids"][0, :6]], "[CLS] ann le ##vine slept [SEP]".split())
        self.assertAllEqual(batch["word_positions"], [[1, 2, 4, -1, -1, -1, -1]])
        self.assertAllEqual(batch["word_labels"], [[3, 4, 0, -1, -1, -1, -1]])
        self.assertAllEqual(made.lengths(rows), [6])
        self.assertEqual({*batch}, {*made.SIGNATURE})

    def test_windows(self):
        """Of 6 tokens, of which 2 are shared, each word is in one window."""
        made = task(window_overlap=2)
        rows = rows_of(made, row("a b"), row("a b c d e f g h a b c", *["B-PER", "O"] * 5, "O"))
        self.assertAllEqual(rows.columns["number"], [0, 1, 1, 1])
        self.assertEqual(["".join(VOCAB[t] for t in rows.values("text", i)) for i in range(4)],
                         ["ab", "abcdef", "efghab", "fghabc"])  # fmt: skip
        # Word 5 (f) is nearer to the end of the first window than to the beginning of the second one.
        self.assertEqual([rows.values("places", i).tolist() for i in range(4)],
                         [[0, 1], [0, 1, 2, 3, 4], [1, 2, 3], [3, 4, 5]])  # fmt: skip
        self.assertEqual(
            [rows.values("labels", i).tolist() for i in range(1, 4)], [[3, 0, 3, 0, 3], [0, 3, 0], [3, 0, 0]]
        )
        self.assertEqual(made.truncated(rows), 0)

    def test_words_without_tokens(self):
        """They are labelled, and may be more than the tokens."""
        made = task(length=5)
        rows = rows_of(made, row("a \x01 b"), row("\x01"), row(" ".join(["\x01"] * 6 + ["a"])))
        self.assertEqual([rows.values("places", i).tolist() for i in range(4)],
                         [[0, -1, 1], [-1], [-1] * 5, [-1, 0]])  # fmt: skip
        self.assertAllEqual(rows.columns["number"], [0, 1, 2, 2])
        self.assertAllEqual(made.lengths(rows), [4, 2, 5, 3])
        self.assertAllEqual(made.batch(rows, np.array([0]), 5)["word_positions"], [[1, -1, 2, -1, -1]])

    def test_the_loss_by_the_formula(self):
        logits = np.random.default_rng(0).normal(size=(2, 4, 5))
        log_chances = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        batch = {
            "word_positions": tf.constant([[1, -1, 2, -1], [2, -2, -1, -1]]),
            "word_labels": tf.constant([[3, 0, 0, -1], [1, 2, -1, -1]]),
            "weight": tf.constant([1.0, 1.0]),
        } | dict.fromkeys(Logits.INPUTS, 0)
        words = [(0, 1, 3), (0, 2, 0), (1, 2, 1)]  # Row, position, label: words without a token have no loss.
        for smoothing in (0.0, 0.3):
            made = task(label_smoothing=smoothing)
            total, count = made.loss(model(logits), batch)
            each = [
                (1 - smoothing) * log_chances[i, j, label] + smoothing * log_chances[i, j].mean()
                for i, j, label in words
            ]
            self.assertAllClose(total, -sum(each))
            self.assertAllClose(count, 3.0)
            found = made.predict(model(logits), batch | {"number": tf.constant([0, 1])})
            plain = [-log_chances[word] for word in words]
            self.assertAllClose(found["loss"], [plain[0] + plain[1], plain[2]])
            self.assertAllClose(found["loss_weight"], [2, 1])
        best = logits.argmax(-1)
        self.assertAllEqual(found["answer"][:, :4], [[best[0, 1], -1, best[0, 2], -1], [best[1, 2], -2, -1, -1]])
        self.assertAllClose(found["score"][0, 0], np.exp(log_chances[0, 1].max()))
        self.assertEqual(found["label"].shape, (2, 8))
        total, count = made.loss(model(logits), batch | {"weight": tf.constant([0.0, 1.0])})
        self.assertAllClose(count, 1.0)

    def test_answers_become_iob2(self):
        made = task()
        outcome = made.outcome(
            predictions(
                (0, [("O", "I-PER"), ("O", "I-PER"), ("O", "I-LOC"), ("O", -1), ("O", "I-LOC")]),
                (1, [("O", "I-LOC"), ("O", -2), ("O", "B-PER"), ("O", -2), ("O", "O"), ("O", -2)]),
                (2, [("O", "I-LOC")]),
            )
        )
        _, predicted = made._tags(outcome)
        self.assertEqual(
            predicted,
            [
                ["B-PER", "I-PER", "B-LOC", "O", "B-LOC"],
                ["B-LOC", "I-LOC", "B-PER", "I-PER", "O", "O"],
                ["B-LOC"],
            ],
        )

    def test_scores_join_windows(self):
        made = task()
        # Sentence 4 has two windows; its entity of three words extends over their border, and is found.
        windows = predictions(
            (4, [("O", "O"), ("B-PER", "B-PER"), ("I-PER", "I-PER")]),
            (4, [("I-PER", "I-PER"), ("O", "B-LOC")]),
            (7, [("B-LOC", "O"), ("O", "O")]),
            (9, [("B-LOC", "B-LOC"), ("B-PER", "B-LOC")]),
        )
        outcome = made.outcome(windows)
        self.assertAllEqual(outcome["number"], [4, 7, 9])
        self.assertAllEqual(outcome["starts"], [0, 5, 7, 9])
        score = made.score_rows(outcome)
        # Right: the PER of 4, a LOC of 9; 4 expected, 4 found.
        self.assertEqual(score(), {"precision": 0.5, "recall": 0.5, "f1": 0.5, "accuracy": 6 / 9})
        self.assertEqual(score(np.array([0, 0, 1]))["recall"], 2 / 3)
        self.assertEqual(score(np.array([1, 1]))["accuracy"], 0.5)
        classes = {each["label"]: each for each in made.details(outcome)["classes"]}
        self.assertEqual((classes["LOC"]["recall"], classes["LOC"]["precision"]), (0.5, 1 / 3))
        self.assertEqual(classes["PER"]["support"], 2)

        texts = {4: "xx Ann B Levine Rome", 7: "Oslo is", 9: "Rome Ann"}
        shown = [made.described(each, row(texts[each["number"]])) for each in made.mistakes(outcome, 10)]
        self.assertEqual(
            sorted((each["gold"], each["predicted"]) for each in shown),
            [("LOC: Oslo", "none"), ("PER: Ann", "LOC: Ann"), ("none", "LOC: Rome")],
        )
        self.assertEqual(sorted(shown, key=lambda each: -each["score"]), shown)
        self.assertEqual(len(made.mistakes(outcome, 1)), 1)

    def test_the_context_of_a_mistake(self):
        made = task()
        outcome = made.outcome(predictions((0, [("O", "O")] * 60 + [("B-PER", "O")] + [("O", "O")] * 60)))
        (mistake,) = made.mistakes(outcome, 5)
        shown = made.described(mistake, row(" ".join(["abc"] * 60 + ["Ann"] + ["abc"] * 60)))
        self.assertEqual((shown["gold"], shown["predicted"]), ("PER: Ann", "none"))
        self.assertRegex(shown["text"], r"^\.\.\.(abc )+Ann( abc)+\.\.\.$")
        self.assertEqual(shown["text"].index("Ann"), 103)

    def test_plain_tags(self):
        made = task(labels=("NOUN", "VERB"))
        self.assertEqual(made.best_metric, ("accuracy", "max"))
        outcome = made.outcome(
            predictions((0, [("NOUN", "VERB"), ("VERB", "VERB")]), (1, [("NOUN", "NOUN")]), labels=made.labels)
        )
        self.assertEqual(made.score_rows(outcome)(), {"accuracy": 2 / 3})
        self.assertEqual(made.details(outcome)["confusion"]["counts"], [[1, 1], [0, 1]])
        (mistake,) = made.mistakes(outcome, 5)
        shown = made.described(mistake, row("dogs run"))
        self.assertEqual((shown["gold"], shown["predicted"]), ("NOUN: dogs", "VERB: dogs"))

    def test_what_is_wrong(self):
        with self.assertRaisesRegex(UserError, "^--window_overlap=6: must be less than the 6 tokens of a window"):
            task(window_overlap=6)
        without = WordPiece(VOCAB)
        with mock.patch.object(type(without), "tokenize_with_offsets", side_effect=UserError("none")):
            with self.assertRaisesRegex(UserError, "^--task=tag: the tokenizer cannot locate its tokens"):
                task(tokenizer=without)


def write_conll(path: pathlib.Path, sentences: int, seed: int = 0) -> pathlib.Path:
    """Writes sentences of made-up entities."""
    draw = random.Random(seed)
    with path.open("w") as file:
        for _ in range(sentences):
            for _ in range(draw.randint(1, 4)):
                surname = "levine\tI-PER\n" if draw.random() < 0.4 else ""
                verb, place = draw.choice(("slept", "ran")), draw.choice(PLACES)
                file.write(f"{draw.choice(NAMES)}\tB-PER\n{surname}{verb}\tO\nin\tO\n{place}\tB-LOC\n.\tO\n")
            file.write("\n")
    return path


class RunTest(unittest.TestCase):
    """Whole runs of a tiny model."""

    def setUp(self):
        self.folder = helpers.temporary_folder(self)
        write_conll(self.folder / "train.conll", 60)
        write_conll(self.folder / "dev.conll", 20, seed=1)

    def flags(self, run_dir, **others):
        values = dict(
            task="tag",
            train_file=self.folder / "train.conll",
            validation_file=self.folder / "dev.conll",
            run_dir=run_dir,
            cache_dir=self.folder / "cache",
            model="bert_tiny",
            overrides=small.SIZES,
            vocab_size=100,
            sequence_length=16,
            batch_size=8,
            steps=6,
            warmup_steps=1,
            learning_rate=0.01,
            log_every=1,
            evaluate_every=3,
            checkpoint_every=3,
        )
        return [f"--{name}={value}" for name, value in (values | others).items()]

    def train(self, run_dir, code=0, **others):
        result = helpers.run(train, *self.flags(run_dir, **others))
        self.assertEqual(result[0], code, result)
        return result[1] + result[2]

    def test_train_evaluate_and_the_exported_answers(self):
        run_dir = self.folder / "run"
        out = self.train(run_dir, steps=50, evaluate_every=25, learning_rate=0.02, warmup_steps=5)
        self.assertIn("5 labels: O, B-LOC, I-LOC, B-PER, I-PER", out)
        record = json.loads((run_dir / "evaluation.json").read_text())
        self.assertEqual(record["rows"], 20)
        self.assertGreater(record["scores"]["f1"]["value"], 0.9)
        self.assertEqual({*record["baselines"]}, {"majority", "lookup"})
        self.assertEqual(record["baselines"]["majority"]["f1"], 0)
        self.assertEqual([each["label"] for each in record["classes"]], ["LOC", "PER"])

        # Unlike the training rows: other names, so that there are mistakes.
        test = self.folder / "test.conll"
        text = write_conll(test, 30, seed=2).read_text().replace("rome", "eve").replace("bob", "oslo")
        test.write_text(text.replace("oslo\tB-LOC", "zed\tB-LOC"))
        code, out, err = helpers.run(evaluate, f"--model_dir={run_dir}", f"--test_file={test}")
        self.assertEqual(code, 0, err)
        record = json.loads((run_dir / "evaluation-test.json").read_text())
        self.assertIn(f"{record['scores']['f1']['value']:.2%}", out)
        self.assertLess(record["scores"]["f1"]["value"], 1)
        for mistake in record["mistakes"]:
            self.assertRegex(mistake["gold"] + mistake["predicted"], "(LOC|PER): [a-z]")
        self.check_exported_answers(run_dir, test)

    def check_exported_answers(self, run_dir, test):
        """The text signature of an exported model finds the same entities, where the tokenizer's words are those of
        the file."""
        how = types.SimpleNamespace(
            model_dir=str(run_dir), checkpoint=None, bad_rows="strict", test_file=str(test), batch_size=8
        )
        config = TrainConfig.read(run_dir / "flags.cfg", str(run_dir))
        evaluated = evaluating.evaluate(run_dir, config, how, {})
        _, predicted = evaluated.task._tags(evaluated.outcome)
        model, tokenizer = tfzoo.load(run_dir)
        answer = answers.find(model, tokenizer, answers.Options(sequence_length=32))
        rows = list(evaluated.file.rows())
        found = answer.answer({"text": tf.constant([row.text for row in rows])}, lambda inputs: model(inputs))
        compared = 0
        for i, (row, tags) in enumerate(zip(rows, predicted, strict=True)):
            if len(row.words) > 14:  # The task read it in windows, the export reads it at once.
                continue
            expected = [(kind, row.words[first][0], row.words[end - 1][1]) for kind, first, end in entities.spans(tags)]
            count = int(found["num_entities"][i])
            kinds = [kind.decode() for kind in found["types"][i, :count].numpy()]
            starts, ends = (found[name][i, :count].numpy().tolist() for name in ("starts", "ends"))
            self.assertEqual(list(zip(kinds, starts, ends)), expected, row.text)
            compared += len(expected)
        self.assertGreater(compared, 10)

    @pytest.mark.faults
    def test_a_resumed_run_is_the_same_run(self):
        whole, parts = self.folder / "whole", self.folder / "parts"
        self.train(whole)

        with stopping(2):
            self.train(parts, code=3)
        self.assertEqual(tiny_run.records(parts)[-1]["step"], 2)
        self.train(parts)
        expected = tiny_run.measured(whole)
        self.assertIn((6, "f1"), expected)
        self.assertEqual(tiny_run.measured(parts), expected)

    def test_spans_and_errors(self):
        lines = self.folder / "train.jsonl"
        rows = []
        for name in NAMES:
            for place in PLACES:
                start = len(name) + 5
                spans = [[0, len(name), "PER"], [start, start + len(place), "LOC"]]
                rows.append({"text": f"{name} saw {place}.", "entities": spans})
        lines.write_text("".join(json.dumps(each) + "\n" for each in rows))
        out = self.train(self.folder / "spans", train_file=lines, steps=1)
        self.assertIn("5 labels: O, B-LOC, I-LOC, B-PER, I-PER", out)
        other, plain, nothing = (self.folder / f"{name}.conll" for name in ("other", "plain", "nothing"))
        other.write_text("ann\tB-ORG\n\n")
        nothing.write_text("ann\tO\n\nbob\tO\n\n")
        for pattern, flags in (
            (r"other.conll:1: label .?.ORG.* does not occur in training", dict(validation_file=other)),
            ("--train_file=.*nothing.conll: contains no entities; add rows with others", dict(train_file=nothing)),
            ("--pair_column=1: tagging reads one text per row; omit it", dict(pair_column=1)),
            (
                "--model=gpt2: --task=tag does not support its family; use another model",
                dict(model="gpt2", overrides=""),
            ),
        ):
            with self.subTest(pattern):
                self.assertRegex(self.train(self.folder / "wrong", code=2, **flags).strip().splitlines()[-1], pattern)
        plain.write_text("dogs NOUN\nrun VERB\n\ncats NOUN\nsleep VERB\n\n" * 5)
        self.train(self.folder / "plain", train_file=plain, validation_file=plain, steps=1)
        record = json.loads((self.folder / "plain" / "evaluation.json").read_text())
        self.assertEqual({*record["scores"]}, {"accuracy"})
        self.assertEqual(record["baselines"], {"majority": {"accuracy": 0.5}, "lookup": {"accuracy": 1.0}})


if __name__ == "__main__":
    tf.test.main()
