"""The task answer: rows, windows, losses, answers and thresholds; and a whole run with evaluation, resume, predictions
and exports."""

import json
import math
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
from tests.stopped_command import (
    command,  # noqa: F401  (called by tests.worlds)
    stopping,
)
from tests.tasks import small
from tests.tasks.fakes import Logits, rows_of
from tests.worlds import Worlds
from tfzoo import evaluate, train
from tfzoo.data.squad import Answer as Right
from tfzoo.data.squad import QuestionRow
from tfzoo.errors import UserError
from tfzoo.export import __main__ as export
from tfzoo.export import publish
from tfzoo.models import bert, xlnet
from tfzoo.prediction import folders
from tfzoo.prediction.pipelines import Pipeline
from tfzoo.tasks import answer_baselines
from tfzoo.tasks.answer import ABSENT, UNKNOWN, Answer
from tfzoo.text import spans
from tfzoo.text.wordpiece import WordPiece
from tfzoo.training import TrainConfig, evaluating

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] when was ada born ? in 18 ##15 ."
VOCAB = [*WORDS.split(), *"abcdefgh", *(f"##{letter}" for letter in "abcdefgh")]
NAMES = "ann bob carl dora eve fred gina hans".split()
PLACES = "paris rome oslo bonn lima kiel".split()


def task(length=16, tokenizer=None, **options):
    return Answer(tokenizer or WordPiece(VOCAB), length, page=bert, pair=True, **options)


def row(question, context, *gold, number=1):
    """Returns the row of a question; right answers that do not occur in the context are dropped."""
    right = tuple(Right(text, context.index(text) if text in context else None) for text in gold)
    return QuestionRow(f"file: question {number}", str(number), question, context, right)


def file_of(*rows, rules="squad"):
    return types.SimpleNamespace(rows=lambda: iter(rows), rules=rules, path="file")


class AnswerTest(tf.test.TestCase):
    def test_the_example(self):
        made = task()
        rows = rows_of(made, row("When was Ada born?", "Ada was born in 1815.", "1815"))
        batch = made.batch(rows, np.array([0]), 15)
        shown = "[CLS] when was ada born ? [SEP] ada was born in 18 ##15 . [SEP]"
        self.assertEqual([VOCAB[i] for i in batch["token_ids"][0]], shown.split())
        self.assertAllEqual(batch["token_starts"], [[-1] * 7 + [0, 4, 8, 13, 16, 18, 20, -1]])
        self.assertAllEqual(batch["token_ends"], [[-1] * 7 + [3, 7, 12, 15, 18, 20, 21, -1]])
        self.assertAllEqual(batch["span"], [[11, 12]])
        self.assertAllEqual(batch["segment_ids"], [[0] * 7 + [1] * 8])
        self.assertAllEqual(made.lengths(rows), [15])
        self.assertEqual({*batch}, {*made.SIGNATURE})

    def test_answers_without_place(self):
        """The first answer that is in the context counts. Nothing is learned from a question whose answers are not."""
        made = task()
        rows = rows_of(
            made,
            row("a", "b c d", "x", "c"),
            row("a", "b c d", "x"),
            row("a", "b \x01 c", "\x01"),
            row("a", "b c d"),
            row("a", "bcd e", "cd"),
        )
        self.assertAllEqual(rows.columns["span"], [[1, 1], [UNKNOWN] * 2, [UNKNOWN] * 2, [ABSENT] * 2, [1, 2]])
        batch = made.batch(rows, np.arange(5), 8)
        self.assertAllEqual(batch["span"], [[4, 4], [-1, -1], [-1, -1], [0, 0], [4, 5]])

    def test_windows(self):
        """A window has half of the row at least; an answer that it does not contain as a whole is absent."""
        made = task(length=11, window_overlap=2)
        rows = rows_of(made, row("a b", "a b c d e f g h a b c", "f g"), row("a b c d e f", "a b c d e f g h", "h"))
        self.assertAllEqual(rows.columns["number"], [0, 0, 0, 1, 1, 1])
        self.assertEqual(
            ["".join(VOCAB[t] for t in rows.values("pair", i)) for i in range(6)],
            ["abcdef", "efghab", "fghabc", "abcd", "cdef", "efgh"],
        )
        self.assertEqual(["".join(VOCAB[t] for t in rows.values("text", i)) for i in (2, 3)], ["ab", "abcd"])
        self.assertAllEqual(rows.columns["span"], [[-1, -1], [1, 2], [0, 1], [-1, -1], [-1, -1], [3, 3]])
        self.assertEqual(rows.values("starts", 1).tolist(), [8, 10, 12, 14, 16, 18])
        self.assertAllEqual(made.batch(rows, np.array([2, 5]), 11)["span"], [[4, 5], [9, 9]])
        self.assertEqual(
            made.truncation(rows, "training"), "1 training questions are truncated to half of a row of 11 tokens"
        )
        self.assertEqual(task().truncation(rows_of(task(), row("a", "b")), "training"), "")

    def test_the_loss_by_the_formula(self):
        made, random_ = task(), np.random.default_rng(0)
        logits = random_.normal(size=(4, 6, 2))
        inside = np.array([[0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 0], [0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0]], bool)
        batch = {
            "token_starts": tf.constant(np.where(inside, np.arange(6) * 3, -1), tf.int32),
            "token_ends": tf.constant(np.where(inside, np.arange(6) * 3 + 2, -1), tf.int32),
            "span": tf.constant([[3, 4], [0, 0], [-1, -1], [2, 2]]),
            "weight": tf.constant([1.0, 1.0, 1.0, 0.0]),
            "number": tf.range(4, dtype=tf.int64),
        } | dict.fromkeys(Logits.INPUTS, 0)
        models = {"main": Logits(logits, "span_logits")}
        candidates = inside | (np.arange(6) == 0)
        sums = np.where(candidates[..., None], np.exp(logits), 0).sum(1)
        chances = logits - np.log(sums)[:, None]
        each = [-chances[0, 3, 0] - chances[0, 4, 1], -chances[1, 0, 0] - chances[1, 0, 1]]
        total, count = made.loss(models, batch)
        self.assertAllClose(total, sum(each))
        self.assertAllClose(count, 2.0)
        found = made.predict(models, batch)
        self.assertAllClose(found["loss"], [*each, 0, 0])
        self.assertAllClose(found["loss_weight"], [1, 1, 0, 0])
        self.assertAllClose(found["no_answer"], chances[:, 0].sum(-1))
        for i in range(4):
            every = [
                (chances[i, a, 0] + chances[i, b, 1], [3 * a, 3 * b + 2])
                for a in np.flatnonzero(inside[i])
                for b in np.flatnonzero(inside[i])
                if a <= b
            ]
            best = sorted(every, reverse=True)[: spans.TOP_ANSWERS]
            self.assertAllClose(found["score"][i, : len(best)], [score for score, _ in best], atol=1e-5)
            self.assertAllEqual(found["place"][i, : len(best)], [place for _, place in best])
            self.assertAllEqual(found["place"][i, len(best) :], np.full((spans.TOP_ANSWERS - len(best), 2), -1))

    def predictions(self, *windows):
        """Returns the predictions of windows: (number, start, end, probability, that of "no answer")."""
        numbers, starts, ends, scores, nothing = map(np.array, zip(*windows, strict=True))
        return {
            "number": numbers,
            "place": np.stack([starts, ends], -1)[:, None],
            "score": np.log(scores)[:, None],
            "no_answer": np.log(nothing),
        }

    def test_the_best_answer_over_windows(self):
        made = task()
        made.prepare_evaluation(
            file_of(row("q", "x y z", "y"), row("q", "b c", "z"), row("q", " one two", "one two", "three"))
        )
        outcome = made.outcome(
            self.predictions((2, 0, 4, 0.2, 0.7), (0, 0, 1, 0.1, 0.8), (2, 0, 8, 0.3, 0.4), (0, 2, 3, 0.4, 0.1))
        )
        self.assertAllEqual(outcome["number"], [0, 2])
        self.assertEqual(outcome["answer"].tolist(), ["y", "one two"])
        self.assertAllEqual([outcome["start"], outcome["end"]], [[2, 1], [3, 8]])
        self.assertAllClose([outcome["score"], outcome["no_answer"]], [[0.4, 0.3], [0.1, 0.4]])
        self.assertEqual(made.score_rows(outcome)(), {"exact_match": 1.0, "f1": 1.0})
        self.assertIsNone(made.threshold)  # All questions have answers.
        self.assertNotIn("no_answer_threshold", made.record())
        self.assertEqual(made.details(outcome)["rules"], "squad")

    def test_the_threshold(self):
        made = task()
        file = file_of(
            row("q", "x y z", "x"),
            row("q", "x y z"),
            row("q", "x y z"),
            row("q", "x y z", "y z"),
            row("q", "\x01", "a"),
        )
        made.prepare_evaluation(file)
        # Differences: -2.1, 0.7 (right to decline), -1.4 (wrong to answer), -1.8 (part of the answer), no span.
        found = [(0, 0, 1, 0.8, 0.1), (1, 0, 1, 0.2, 0.4), (2, 0, 1, 0.4, 0.1), (3, 2, 3, 0.6, 0.1), (4, -1, -1, 1, 1)]
        outcome = made.outcome(self.predictions(*found))
        self.assertAlmostEqual(made.threshold, (math.log(0.1 / 0.6) + math.log(0.1 / 0.4)) / 2)
        self.assertEqual(outcome["answer"].tolist(), ["x", "", "", "y", ""])
        wanted = {
            "exact_match": 3 / 5,
            "f1": (3 + 2 / 3) / 5,
            "has_answer_exact_match": 1 / 3,
            "has_answer_f1": (1 + 2 / 3) / 3,
            "no_answer_accuracy": 1.0,
        }
        scores = made.score_rows(outcome)()
        self.assertEqual(scores.keys(), wanted.keys())
        for name, value in wanted.items():
            self.assertAlmostEqual(scores[name], value, places=12, msg=name)
        self.assertEqual(made.record()["no_answer_threshold"], made.threshold)
        # Another file is read with the threshold of the run.
        made.restore(types.SimpleNamespace(no_answer_threshold=-1.9))
        outcome = made.outcome(self.predictions(*found))
        self.assertEqual(outcome["answer"].tolist(), ["x", "", "", "", ""])
        self.assertEqual(made.threshold, -1.9)
        mistakes = [made.described(each, made._evaluated[each["number"]])
                    for each in made.mistakes(outcome, 9)]  # fmt: skip
        self.assertEqual(
            [(each["gold"], each["predicted"]) for each in mistakes], [("a", "no answer"), ("y z", "no answer")]
        )
        self.assertEqual({*mistakes[0]}, {"text", "text_pair", "gold", "predicted", "score"})

    def test_the_context_of_a_mistake(self):
        context = "".join(f"{i:04}" for i in range(300)) + "ann" + "z" * 300
        shown = task().described({"number": 0, "predicted": "x", "start": 0, "score": 0.5}, row("q", context, "ann"))
        self.assertEqual((shown["text"], shown["gold"]), ("q", "ann"))
        self.assertTrue(shown["text_pair"].startswith("...0250") and shown["text_pair"].endswith("z..."))
        self.assertEqual(shown["text_pair"].index("ann"), 203)

    def test_baselines(self):
        context = "Ada was born in 1815. She slept in Rome. It rained."
        rows = [row("Where did she sleep?", context, "Rome"), row("When was Ada born?", context, "1815")]
        self.assertEqual(answer_baselines.nearest_sentences(rows), ["She slept in Rome.", "Ada was born in 1815."])
        found = Answer.file_baselines(task(), None, file_of(*rows))
        self.assertEqual(found["sentence"], {"exact_match": 0.0, "f1": (2 / 5 + 2 / 6) / 2})
        found = Answer.file_baselines(task(), None, file_of(*rows, row("Who?", context)))
        self.assertEqual(found["no_answer"]["f1"], 1 / 3)
        self.assertEqual(answer_baselines.nearest_sentences([row("？", "光荣。好。")]), ["光荣。"])

    def test_spans_beside_the_words_of_the_question(self):
        context = "Ada was born in 1815, and slept in Rome near the old city. Bo ran to Oslo."
        rows = [row("Where did Ada sleep, near the old city?", context), row("???", context)]
        rows += [row("Bo ran to where?", "Bo ran to Oslo."), row("a", "x y"), row("a", "。")]
        # Of equal scores, the longest and then the first span counts.
        found = answer_baselines.spans_beside(rows, False)
        self.assertEqual(found, ["and slept in", "Ada was born", "Oslo", "x y", ""])
        # The first span with both words in reach, which are at most six words away.
        context = "b c d e f g near h i j k l old m n o p q"
        self.assertEqual(answer_baselines.spans_beside([row("near old", context)], False), ["h i j"])
        rows = [row("光荣公司在哪一年成立？", "日本的光荣公司，一九七八年成立。")]
        self.assertEqual(answer_baselines.spans_beside(rows, True), ["一九七八"])

    def test_contexts_that_are_in_both_files(self):
        one, other = file_of(row("q", "x"), row("q", "y")), file_of(row("q", "y"), row("p", "y"), row("q", "z"))
        words = "the contexts of 2 questions of file are also in file"
        self.assertEqual(Answer.repeated_texts(one, other), [words])
        self.assertEqual(Answer.repeated_texts(file_of(row("q", "x")), other), [])

    def test_what_is_wrong(self):
        with self.assertRaisesRegex(UserError, "^--window_overlap=6: must be less than 6, half of the tokens in a row"):
            task(length=16, window_overlap=6)
        with mock.patch.object(WordPiece, "tokenize_with_offsets", side_effect=UserError("none")):
            with self.assertRaisesRegex(UserError, "^--task=answer: the tokenizer cannot locate its tokens"):
                task()
        with self.assertRaisesRegex(UserError, "^--task=answer: the rows of this model do not begin with a special"):
            Answer(WordPiece(VOCAB), 16, page=xlnet, pair=True)


def write_questions(path: pathlib.Path, count: int, seed: int = 0, none: float = 0.3) -> pathlib.Path:
    """Writes SQuAD json of made-up texts; a share of the questions has no answer."""
    draw, paragraphs = random.Random(seed), []
    for number in range(count):
        names, places = draw.sample(NAMES, 3), draw.sample(PLACES, 2)
        context = " ".join(f"{name} slept in {place} ." for name, place in zip(names, places))
        chosen = 2 if draw.random() < none else draw.randrange(2)
        answers = []
        if chosen < 2:
            start = context.index(f"{names[chosen]} slept") + len(names[chosen]) + len(" slept in ")
            answers = [{"text": places[chosen], "answer_start": start}]
        question = {"id": str(number), "question": f"where is {names[chosen]} ?", "answers": answers}
        paragraphs.append({"context": context, "qas": [question | {"is_impossible": not answers}]})
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "", "paragraphs": paragraphs}]}))
    return path


LONG = dict(steps=120, evaluate_every=60, checkpoint_every=60, batch_size=32)
folder: pathlib.Path


def setUpModule():
    """Trains one run, which the tests share."""
    global folder
    import tempfile

    holder = tempfile.TemporaryDirectory()
    unittest.addModuleCleanup(holder.cleanup)
    folder = pathlib.Path(holder.name)
    write_questions(folder / "train.json", 400)
    write_questions(folder / "dev.json", 60, seed=1)
    code, out, err = helpers.run(train, *flags("run", **LONG))
    assert code == 0, err[-3000:]
    (folder / "printed").write_text(out + err)


def flags(name, **others):
    values = dict(
        task="answer",
        train_file=folder / "train.json",
        validation_file=folder / "dev.json",
        run_dir=folder / name,
        cache_dir=folder / "cache",
        model="bert_tiny",
        overrides=small.SIZES.replace("hidden_size=16", "hidden_size=32"),
        vocab_size=100,
        sequence_length=24,
        batch_size=8,
        steps=4,
        warmup_steps=1,
        learning_rate=0.01,
        log_every=1,
        evaluate_every=2,
        checkpoint_every=2,
    )
    return [f"--{name}={value}" for name, value in (values | others).items() if value is not None]


class RunTest(unittest.TestCase):
    def test_scores_and_the_threshold_of_the_run(self):
        printed = (folder / "printed").read_text()
        self.assertRegex(printed, r"train.json: SQuAD json, 400 questions, \d+ of them without an answer; scored")
        record = json.loads((folder / "run" / "evaluation.json").read_text())
        self.assertEqual((record["rows"], record["best_metric"]), (60, "f1"))
        self.assertEqual({*record["baselines"]}, {"sentence", "beside", "no_answer"})
        self.assertGreater(record["scores"]["f1"]["value"], record["baselines"]["no_answer"]["f1"])
        threshold = json.loads((folder / "run" / "config.json").read_text())["task"]["no_answer_threshold"]
        self.assertEqual(record["no_answer_threshold"], threshold)
        model, _ = tfzoo.load(folder / "run")
        self.assertEqual(model.no_answer_threshold, threshold)
        # The same rows have the same scores with the threshold of config.json.
        code, out, err = helpers.run(evaluate, f"--model_dir={folder / 'run'}", f"--test_file={folder / 'dev.json'}")
        self.assertEqual(code, 0, err)
        again = json.loads((folder / "run" / "evaluation-dev.json").read_text())
        for name, score in record["scores"].items():
            self.assertAlmostEqual(again["scores"][name]["value"], score["value"], places=6, msg=name)
        self.assertIn("accuracy, has none", out)
        self.assertIn("nearest sentence", out)

    def test_predictions_and_exports_are_the_answers_of_the_evaluation(self):
        run_dir = folder / "run"
        how = types.SimpleNamespace(
            model_dir=str(run_dir),
            checkpoint=None,
            bad_rows="strict",
            test_file=str(folder / "dev.json"),
            batch_size=16,
        )
        config = TrainConfig.read(run_dir / "flags.cfg", str(run_dir))
        evaluated = evaluating.evaluate(run_dir, config, how, {})
        rows = [(row.question, row.context) for row in evaluated.file.rows()]
        wanted = evaluated.outcome["answer"].tolist()
        self.assertIn("", wanted)
        with mock.patch.object(publish, "replay"):  # verify.replay was called in this process.
            code, _, err = helpers.run(export, f"--model_dir={run_dir}", f"--output_dir={folder / 'exports'}")
        self.assertEqual(code, 0, err)
        artifacts = {kind: next((folder / "exports" / kind).glob("*/1")) for kind in ("savedmodel", "onnx")}
        model, tokenizer = tfzoo.load(run_dir)
        tfzoo.save(model, folder / "saved", tokenizer)
        for path in (run_dir, folder / "saved", *artifacts.values()):
            found = tfzoo.pipeline(path)(rows)
            self.assertEqual([record["answer"] for record in found], wanted, path)
            for i, record in enumerate(found):
                self.assertAlmostEqual(record["no_answer"], evaluated.outcome["no_answer"][i], delta=1e-4)
                if record["answer"]:
                    place = [int(evaluated.outcome[name][i]) for name in ("start", "end")]
                    self.assertEqual([record["start"], record["end"]], place)
                    self.assertEqual(rows[i][1][record["start"] : record["end"]], record["answer"])
                else:
                    self.assertNotIn("start", record)
                    self.assertGreater(len(record["answers"]), 1)
        manifest = json.loads((artifacts["onnx"] / "manifest.json").read_text())
        threshold = json.loads((run_dir / "config.json").read_text())["task"]["no_answer_threshold"]
        self.assertEqual(manifest["no_answer_threshold"], threshold)
        self.assertIn("pipeline_tag: question-answering", (artifacts["onnx"] / "README.md").read_text())

    def test_long_contexts_are_read_in_windows(self):
        predictor = folders.open_folder(folder / "run")
        pipeline = Pipeline(predictor, 8, "truncate")
        predictor.no_answer_threshold = None
        question = f"where is {NAMES[0]} ?"
        context = " ".join(f"{name} slept in {place} ." for name in NAMES for place in PLACES)
        found = pipeline((question, context))
        self.assertNotIn("truncated", found)
        for each in (found | {"text": found["answer"]}, *found["answers"]):
            self.assertEqual(context[each["start"] : each["end"]], each["text"])
        scores = [each["score"] for each in found["answers"]]
        self.assertEqual(scores, sorted(scores, reverse=True))
        self.assertEqual(len({(each["start"], each["end"]) for each in found["answers"]}), len(scores))
        # A question that leaves too little room does not divide the context for ever.
        self.assertTrue(pipeline(("where " * 60, context))["truncated"])
        self.assertTrue(pipeline(("where " * 60, ""))["truncated"])

    @pytest.mark.faults
    def test_a_resumed_run_is_the_same_run(self):
        with stopping(61):
            self.assertEqual(helpers.run(train, *flags("parts", **LONG))[0], 3)
        self.assertEqual(helpers.run(train, *flags("parts", **LONG))[0], 0)
        expected = tiny_run.measured(folder / "run")
        self.assertIn((120, "no_answer_accuracy"), expected)
        self.assertEqual(tiny_run.measured(folder / "parts"), expected)
        tasks = [json.loads((folder / name / "config.json").read_text())["task"] for name in ("run", "parts")]
        self.assertEqual(*tasks)
        self.assertIn("no_answer_threshold", tasks[0])

    @pytest.mark.faults
    def test_two_replicas_are_one(self):
        worlds = Worlds("tests.tasks.answer_test")
        for world, more in (("one", {}), ("mirrored2", dict(num_devices=2, strategy="mirrored", accumulation=2))):
            ((found,),) = worlds.run(world, [["command", {"argv": flags(world, **more), "stop_at": 0}]], begun=False)
            self.assertEqual(found["code"], 0, found)
        one, two = (tiny_run.measured(folder / world) for world in ("one", "mirrored2"))
        self.assertEqual(one.keys(), two.keys())
        for name, value in one.items():
            self.assertAlmostEqual(float(value), float(two[name]), delta=2e-6 * max(1, abs(float(value))), msg=name)


# ---------------------------------------------------------------- Functions that run in the worlds
def import_all():
    """Imports what the runs need, once."""
    from tfzoo.training import checkpoint, loop, optimizers, task_inputs

    assert all((checkpoint, loop, optimizers, task_inputs))


if __name__ == "__main__":
    tf.test.main()
