"""The task extract: rows, labels and scores by hand; a whole run, its predictions and its export."""

import json
import pathlib
import random
import tempfile
import types
import unittest
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from rouge_score import rouge_scorer

import tfzoo
from tests import helpers
from tests.tasks import small
from tests.tasks.fakes import Logits, rows_of
from tfzoo import evaluate, predict, train
from tfzoo.data.labelled import Row
from tfzoo.errors import UserError
from tfzoo.evaluation import extracts
from tfzoo.export import answers
from tfzoo.models import bert
from tfzoo.tasks.extract import Extract
from tfzoo.text.wordpiece import WordPiece

WORDS = "it rained . the dam broke near ulm we left".split()
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
TEXT = "It rained. The dam broke near Ulm. We left."
ROW = Row("f:1", (TEXT, "the dam broke"), None)


def task(length=32, **options):
    return Extract(WordPiece(VOCAB), length, page=bert, pair=True, **options)


def file_of(*rows):
    return types.SimpleNamespace(rows=lambda: iter(rows))


class ExtractTest(tf.test.TestCase):
    def test_the_example(self):
        made = task()
        rows = rows_of(made, ROW)
        batch = made.batch(rows, np.arange(3), 24)
        self.assertEqual({*batch}, {*made.signature(rows)})
        read = [
            " ".join(VOCAB[i] for i in ids[mask])
            for ids, mask in zip(batch["token_ids"], batch["padding_mask"], strict=True)
        ]
        text = "[SEP] it rained . the dam broke near ulm . we left . [SEP]"
        wanted = [f"[CLS] {part} {text}" for part in ("it rained .", "the dam broke near ulm .", "we left .")]
        self.assertEqual(read, wanted)
        self.assertAllEqual(batch["label"], [0, 1, 0])
        self.assertAllEqual(batch["place"], [0, 1, 2])
        self.assertAllEqual(batch["segment_ids"][0, :5], [0] * 5)
        self.assertAllEqual(batch["segment_ids"][0, 5:18], [1] * 13)
        self.assertEqual((made.truncated(rows), made.truncation(rows, "training")), (0, ""))

    def test_long_texts_lose_their_end(self):
        made = task(14)
        rows = rows_of(made, ROW)
        self.assertEqual(made.truncated(rows), 3)
        self.assertIn(
            "3 training rows have only the beginning of their text, 14 tokens", made.truncation(rows, "training")
        )
        ids = made.batch(rows, np.arange(3), 14)["token_ids"]
        self.assertEqual(
            " ".join(VOCAB[i] for i in ids[2]), "[CLS] we left . [SEP] it rained . the dam broke near ulm [SEP]"
        )

    def test_scores_by_hand(self):
        made = task(extract_sentences=2)
        other = Row("f:2", ("We left.", "we left"), None)  # A text with a single sentence.
        made.prepare_evaluation(file_of(ROW, other))
        predictions = {
            "number": np.array([0, 0, 0, 1]),
            "place": np.array([0, 1, 2, 0]),
            "answer": np.array([0.5, -1, 2, -3], np.float32),
            "label": np.array([0, 1, 0, 1], np.float32),
        }
        outcome = made.outcome(predictions)
        self.assertAllEqual(outcome["number"], [0, 1])
        self.assertAllEqual(outcome["chosen"], [True, False, True, True])
        self.assertEqual(made.count_of(outcome), 2)
        # "it rained we left" has no word of "the dam broke"; "we left" is right.
        self.assertEqual(made.score_rows(outcome)(), {"rouge_1": 50.0, "rouge_2": 50.0, "rouge_l": 50.0})
        # The oracle's "the dam broke near ulm" has 3 of 3 words with 5 words, and 2 of 2 pairs with 4 pairs.
        oracle = made.details(outcome)["oracle"]
        self.assertAllClose(oracle, {"rouge_1": 87.5, "rouge_2": (100 * 4 / 6 + 100) / 2, "rouge_l": 87.5})
        (mistake,) = [each for each in made.mistakes(outcome, 5) if each["score"] < 100]
        self.assertEqual((mistake["number"], mistake["gold"]), (0, "the dam broke"))
        self.assertEqual(mistake["predicted"], "It rained. We left.")
        found = made.file_baselines(None, file_of(ROW, other))
        self.assertEqual([*found], ["lead_2", "text_rank"])
        # "it rained the dam broke near ulm" has 7 words, of which 3 are right.
        self.assertAllClose(found["lead_2"]["rouge_1"], (100 * 6 / 10 + 100) / 2)

    def test_chinese(self):
        made = task(extract_sentences=2)
        row = Row("f:1", ("下雨了。大坝决口了！我们走了。", "大坝决口"), None)
        self.assertAllEqual(rows_of(made, row).columns["label"], [0, 1, 0])
        made.prepare_evaluation(file_of(row))
        numbers = {"number": np.zeros(3, int), "place": np.arange(3), "label": np.array([0, 1, 0])}
        outcome = made.outcome(numbers | {"answer": np.array([1.0, 2.0, 0.0])})
        (mistake,) = made.mistakes(outcome, 5)
        self.assertEqual(mistake["predicted"], "下雨了。大坝决口了！")
        # Four of eight characters are right.
        self.assertAlmostEqual(made.score_rows(outcome)()["rouge_1"], 100 * 2 * 4 / (8 + 4))

    def test_texts_without_sentences_are_bad_rows(self):
        path = folder / "bad.jsonl"
        rows = [("We left.", "we left"), (" ", "nothing"), (TEXT, "the dam broke")]
        path.write_text("".join(json.dumps({"text": text, "summary": summary}) + "\n" for text, summary in rows))
        file = Extract.open_file(Extract.Options(), path, "train_file", "strict")
        with self.assertRaisesRegex(UserError, "bad.jsonl:2: field 'text' is empty; add a text or remove the row"):
            list(file.rows())
        file = Extract.open_file(Extract.Options(), path, "train_file", "skip")
        (columns,) = task().chunks(file)
        self.assertAllEqual(columns["number"], [0, 1, 1, 1])  # A text with one sentence is a row.
        self.assertEqual(dict(file.counts)["empty_text"], 1)

    def test_loss(self):
        made = task()
        batch = made.batch(rows_of(made, ROW), np.arange(3), 24)
        logits = np.array([1.0, 2.0, -3.0])
        loss, weight = made.loss({"main": Logits(logits[:, None], "classify_logits")}, batch)
        self.assertAllClose(loss, np.log1p(np.exp(1)) + np.log1p(np.exp(-2)) + np.log1p(np.exp(-3)))
        self.assertAllClose(weight, 3.0)

    def test_what_is_wrong(self):
        with self.assertRaisesRegex(UserError, "--pair_column=x: does not apply to --task=extract; use --label_column"):
            Extract.open_file(Extract.Options(pair_column="x"), "none", "train_file", "strict")
        made = task()
        with self.assertRaisesRegex(UserError, "no summary shares a word with its text"):
            made.prepare_training(rows_of(made, Row("f:1", (TEXT, "x"), None)))
        with self.assertRaisesRegex(UserError, "all sentences belong to summaries"):
            made.prepare_training(rows_of(made, Row("f:1", ("We left.", "we left"), None)))


def write(path, count, seed):
    """Writes texts in which the sentences with good words are the summary."""
    draw = random.Random(seed)
    lines = []
    for _ in range(count):
        kinds = draw.choices(("good", "bad"), k=draw.randint(2, 4))
        parts = [" ".join([draw.choice(small.WORDS[kind]), *draw.choices(small.NEUTRAL, k=2)]) for kind in kinds]
        parts = [f"{part.capitalize()}." for part in parts]
        good = [part for part, kind in zip(parts, kinds) if kind == "good"] or parts[:1]
        lines.append(json.dumps({"text": " ".join(parts), "summary": " ".join(good[:2])}))
    path.write_text("\n".join(lines) + "\n")
    return path


def setUpModule():
    global folder, run
    folder = pathlib.Path(unittest.enterModuleContext(tempfile.TemporaryDirectory())).resolve()
    run = folder / "run"


class RunTest(unittest.TestCase):
    @pytest.mark.faults
    def test_train_evaluate_predict_and_export(self):
        values = dict(task="extract", train_file=write(folder / "train.jsonl", 80, 0), extract_sentences=1)
        values |= dict(validation_file=None, steps=40, evaluate_every=40, checkpoint_every=40, learning_rate=0.02)
        values |= dict(batch_size=16, sequence_length=32)
        code, out, err = helpers.run(train, *small.flags(folder, **values), f"--run_dir={run}")
        self.assertEqual(code, 0, err[-2000:])
        for text in ("ROUGE-L", "first sentence", "TextRank", "a row is a sentence with its text"):
            self.assertIn(text, out + err)
        test = write(folder / "test.jsonl", 30, 1)
        code, out, err = helpers.run(evaluate, f"--model_dir={run}", f"--test_file={test}")
        self.assertEqual(code, 0, err[-2000:])
        record = json.loads((run / "evaluation-test.json").read_text())
        self.assertEqual((record["task"], record["rows"], record["best_metric"]), ("extract", 30, "rouge_l"))
        self.assertGreater(record["scores"]["rouge_l"]["value"], record["baselines"]["lead_1"]["rouge_l"])
        self.assertIn(f"knows the right summaries: ROUGE-1 {record['oracle']['rouge_1']:.2f}, ROUGE-2", out)

        # The export scores the pairs of a sentence and its text, and the best ones have the evaluation's ROUGE.
        rows = [json.loads(line) for line in test.read_text().splitlines()]
        model, tokenizer = tfzoo.load(run)
        self.assertEqual((model.head_names, model.num_labels), (("classify",), 1))
        pair: Any = answers.find(model, tokenizer, answers.Options(sequence_length=32, text_pair=True))
        pipeline = tfzoo.pipeline(run)
        records = pipeline([row["text"] for row in rows])
        scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
        figures = []
        for row, found in zip(rows, records, strict=True):
            parts = extracts.split(row["text"])
            texts = {"text": tf.constant(parts), "text_pair": tf.constant([row["text"]] * len(parts))}
            scores = pair.answer(texts, lambda inputs: model(inputs))["value"].numpy()
            best = parts[int(np.argmax(scores))]
            figures.append(scorer.score(row["summary"], best)["rougeL"].fmeasure)
            (sentence,) = found["sentences"]
            self.assertEqual(found["summary"], best)
            self.assertEqual((sentence["text"], row["text"][sentence["start"] : sentence["end"]]), (best, best))
            self.assertAlmostEqual(sentence["score"], 1 / (1 + np.exp(-float(scores.max()))), places=4)
        self.assertAlmostEqual(record["scores"]["rouge_l"]["value"], 100 * np.mean(figures), places=6)

        code, out, err = helpers.run(predict, f"--model_dir={run}", f"--input={test}")
        self.assertEqual(code, 0, err)
        written = [json.loads(line) for line in out.splitlines()]
        self.assertEqual([each["summary"] for each in written], [found["summary"] for found in records])
        self.assertEqual([each["input_summary"] for each in written], [row["summary"] for row in rows])
        long = " ".join(["Warm day."] * 40)
        answer = pipeline(long)
        self.assertTrue(answer["truncated"])
        self.assertEqual(answer["sentences"][0]["start"], 0)
        with self.assertRaisesRegex(UserError, r"texts\[0\]: the text is empty or not a string; write one"):
            pipeline([" "])


if __name__ == "__main__":
    tf.test.main()
