"""Answers to questions: contexts that are read in windows, and the threshold of "no answer"; without TensorFlow."""

import math
import unittest

from tfzoo.prediction import answers
from tfzoo.prediction.predictor import Predictor
from tfzoo.prediction.stream import Stream


class Words(Predictor):
    """Reads at most `length` words of both texts, the question at most half of them, and answers with the words of the
    context that begin like the question, the longer the likelier; "no answer" has the score 1 / (1 + their number)."""

    task, inputs = "span", ("question", "context")

    def __init__(self, length=64, threshold=None, refuses=False):
        self.length, self.no_answer_threshold, self.refuses = length, threshold, refuses
        self.calls = 0

    def answer(self, texts, device=0):
        self.calls += len(texts)
        return [self._answer(*row) for row in texts]

    def _answer(self, question, context):
        words = context.split()
        kept = min(len(question.split()), max(self.length - len(words), self.length // 2))
        room = self.length - kept
        truncated = kept < len(question.split()) or len(words) > room
        if truncated and self.refuses:
            return {"truncated": True, "error": "too long"}
        found, start = [], 0
        for word in words[:room]:
            start = context.index(word, start)
            if word.startswith(question[0]):
                found.append(answers.part(word, start, start + len(word), len(word) / 100))
        found.sort(key=lambda each: -each["score"])
        record = answers.spans(found[:5], 1 / (1 + len(found)))
        return record | ({"truncated": True} if truncated else {})


class StreamTest(unittest.TestCase):
    def one(self, question, context, **options):
        predictor = Words(**options)
        with Stream(predictor, 4) as stream:
            short, found = stream.answer([("a", "b ab"), (question, context)])
        self.assertNotIn("truncated", short)
        return found, predictor

    def test_windows(self):
        """Answers of all windows, each once, in code points of the whole context."""
        words = [f"{'x😀ab'[i % 4]}{'y' * (i % 7)}" for i in range(400)] + ["aaaaaaaaaa"]
        context = "  ".join(words)
        found, _ = self.one("a ?", context)
        self.assertNotIn("truncated", found)
        self.assertEqual(found["answer"], "aaaaaaaaaa")
        self.assertEqual(found["start"], len(context) - 10)
        wanted = sorted((len(word) for word in words if word.startswith("a")), reverse=True)[:5]
        self.assertEqual([round(each["score"] * 100) for each in found["answers"]], wanted)
        for each in found["answers"]:
            self.assertEqual(context[each["start"] : each["end"]], each["text"])
        self.assertEqual(len({each["start"] for each in found["answers"]}), 5)
        self.assertLess(found["no_answer"], 1)

    def test_long_questions(self):
        """The context is not divided again and again: it is the question that does not fit."""
        found, predictor = self.one("a ? " * 200, "b ab " * 400)
        self.assertTrue(found["truncated"])
        self.assertEqual(found["answer"], "ab")
        self.assertLess(predictor.calls, 2000)
        found, _ = self.one("a ? " * 200, "")
        self.assertEqual(found, {"answer": "", "no_answer": 1.0, "answers": [], "truncated": True})
        found, _ = self.one("a ? " * 200, "b ab " * 400, refuses=True)
        self.assertEqual(found, {"truncated": True, "error": "too long"})
        found, _ = self.one("a", "b ab " * 400, refuses=True)
        self.assertEqual(found["answer"], "ab")

    def test_the_threshold_is_that_of_all_windows(self):
        """The windows differ in "no answer", of which the lowest counts."""
        context = "b " * 300 + "ab " + "b " * 300
        found, _ = self.one("a", context)
        self.assertEqual((found["answer"], found["no_answer"]), ("ab", 0.5))
        ratio = math.log(0.5 / 0.02)
        self.assertEqual(self.one("a", context, threshold=ratio + 1e-9)[0], found)
        declined, _ = self.one("a", context, threshold=ratio - 1e-9)
        self.assertEqual(declined, {"answer": "", "no_answer": 0.5, "answers": found["answers"]})


class DecidedTest(unittest.TestCase):
    def test_no_answer(self):
        record = answers.spans([answers.part("1815", 8, 12, 0.25)], 0.5)
        self.assertEqual(answers.decided(record, None), record)
        self.assertEqual(answers.decided(record, math.log(2) + 1e-9), record)
        without = {"answer": "", "no_answer": 0.5, "answers": record["answers"]}
        self.assertEqual(answers.decided(record, math.log(2) - 1e-9), without)
        nothing = answers.spans([], 0.5)
        self.assertEqual(answers.decided(nothing, 100.0), nothing)
        self.assertEqual(answers.decided({"truncated": True, "error": "x"}, 0.0), {"truncated": True, "error": "x"})

    def test_answers_without_offsets(self):
        """Of equal texts, the likeliest counts."""
        windows = [answers.spans([answers.part("a", None, None, score)], no) for score, no in ((0.2, 0.5), (0.3, 0.6))]
        joined = answers.joined_spans([0, 10], windows)
        self.assertEqual(
            joined, {"answer": "a", "score": 0.3, "no_answer": 0.5, "answers": [{"text": "a", "score": 0.3}]}
        )


if __name__ == "__main__":
    unittest.main()
