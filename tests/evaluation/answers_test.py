"""Scores of answers: the rules of SQuAD and of CMRC 2018, and the threshold of "no answer"."""

import itertools
import unittest

import numpy as np

from tfzoo.data.squad import CMRC, SQUAD
from tfzoo.evaluation import answers
from tfzoo.evaluation.answers import exact_and_f1


class SquadTest(unittest.TestCase):
    def test_normalization(self):
        for text, wanted in (
            ("The  Cat", "cat"),
            ("a.b", "ab"),
            ("theatre of an era", "theatre of era"),
            ("U.S.A.", "usa"),
            ("An", ""),
            ("Größe, 東京。", "größe 東京。"),  # Only ASCII punctuation is removed.
            ("the-end", "theend"),  # Punctuation goes before articles.
        ):
            self.assertEqual(answers.normalized(text), wanted)

    def test_scores(self):
        for gold, answer, exact, f1 in (
            (["1815"], "1815", 1, 1),
            (["in 1815"], "1815", 0, 2 * 1 * 0.5 / 1.5),
            (["x y", "1815"], "The 1815.", 1, 1),
            (["a b c"], "b c d", 0, 2 / 3),  # Without the article: 2 words in common of 2 and 3 is 0.8.
            (["to be or not to be"], "to to to", 0, 2 * (2 / 3) * (2 / 6) / (2 / 3 + 2 / 6)),  # "to" counts twice.
            (["1815"], "", 0, 0),
            ([], "", 1, 1),
            ([], "1815", 0, 0),
            (["the"], "", 1, 1),  # As in the script, a right answer that is empty after normalization is "".
            (["the", "x"], "", 0, 0),
            (["x"], "the", 0, 0),
        ):
            with self.subTest((gold, answer)):
                wanted = 0.8 if gold == ["a b c"] else f1
                found = exact_and_f1(gold, answer)
                self.assertEqual(found[0], exact)
                self.assertAlmostEqual(found[1], wanted, places=12)
        with self.assertRaisesRegex(ValueError, "rules 'rouge': must be one of squad, cmrc"):
            exact_and_f1(["x"], "x", "rouge")


class CmrcTest(unittest.TestCase):
    def test_units(self):
        """Chinese characters, and words of the Penn Treebank in what is between them."""
        for text, wanted in (
            ("1998年ABC-DE", ["1998", "年", "abcde"]),
            ("约1,000.5米", ["约", "1,000.5", "米"]),
            ("by J. Smith, 2nd.", ["by", "j.", "smith", ",", "2nd", "."]),
            ("end. 好", ["end", ".", "好"]),
            ("(82°F)", ["(", "82°f", ")"]),
            ("wait...", ["wait", "..."]),
            ("20–18", ["20", "–", "18"]),
            ("《书》，“名”", ["书", "名"]),
            ("", []),
        ):
            self.assertEqual(answers.units(text), wanted, text)

    def test_scores(self):
        for gold, answer, exact, f1 in (
            (["光荣"], "光荣", 1, 1),
            (["《光荣》。"], "光荣", 1, 1),
            (["战国无双系列"], "无双", 0, 2 * 1 * (2 / 6) / (1 + 2 / 6)),
            # The longest common substring has two characters, although three are in common.
            (["甲乙丙丁"], "甲乙戊丁", 0, 0.5),
            (["甲", "甲乙"], "乙甲乙", 0, 0.8),
            (["1998年"], "1998", 0, 2 / 3),
            (["1998年"], "98年", 0, 0.5),  # Numbers are one unit.
            (["甲"], "", 0, 0),
            (["甲"], "乙", 0, 0),
            ([], "", 1, 1),
            ([], "甲", 0, 0),
        ):
            with self.subTest((gold, answer)):
                found = exact_and_f1(gold, answer, CMRC)
                self.assertEqual(found[0], exact)
                self.assertAlmostEqual(found[1], f1, places=12)

    def test_the_rules_of_questions(self):
        self.assertEqual(answers.rules_of(["哪一年？", "GPT?", "在哪里"]), CMRC)
        self.assertEqual(answers.rules_of(["哪一年？", "When was it?"]), SQUAD)
        self.assertEqual(answers.rules_of([]), SQUAD)

    def test_the_rules_differ(self):
        self.assertEqual(exact_and_f1(["战国无双"], "战国", SQUAD), (0, 0))
        self.assertAlmostEqual(exact_and_f1(["战国无双"], "战国", CMRC)[1], 2 / 3)


class FiguresTest(unittest.TestCase):
    def test_means(self):
        scored = answers.scores([["x y"], ["x"], [], []], ["x", "x", "", "z"])
        rows = answers.figures_rows(*scored)
        wanted = {
            "exact_match": 2 / 4,
            "f1": (2 / 3 + 1 + 1 + 0) / 4,
            "has_answer_exact_match": 1 / 2,
            "has_answer_f1": (2 / 3 + 1) / 2,
            "no_answer_accuracy": 1 / 2,
        }
        self.assertEqual(rows().keys(), wanted.keys())
        for name, value in wanted.items():
            self.assertAlmostEqual(rows()[name], value, places=12, msg=name)
        self.assertAlmostEqual(rows(np.array([0, 0, 3]))["f1"], (4 / 3) / 3, places=12)
        self.assertEqual(rows(np.array([1]))["no_answer_accuracy"], 0)  # There is none in this resample.
        self.assertEqual(answers.figures_rows(*answers.scores([["x"]], ["x"]))(), {"exact_match": 1.0, "f1": 1.0})

    def test_the_best_threshold(self):
        """Compared with trying every threshold."""
        random = np.random.default_rng(0)
        for trial in range(300):
            count = int(random.integers(1, 9))
            difference = random.integers(-3, 4, count) / (1 if trial % 2 else 7)
            difference = np.where(random.random(count) < 0.1, np.inf, difference)
            score, has_answer = random.random(count).round(1), random.random(count) < 0.5

            def total(threshold, difference=difference, score=score, has_answer=has_answer):
                return np.where(difference <= threshold, score * has_answer, ~has_answer).sum()

            found = answers.best_threshold(difference, score, has_answer)
            if has_answer.all():
                self.assertIsNone(found)
                continue
            tried = [-10.0, *difference[np.isfinite(difference)].tolist()]
            self.assertAlmostEqual(total(found), max(map(total, tried)), places=9)
            for one, other in itertools.pairwise(sorted({*tried[1:]})):
                if one < found < other:  # It is as far from both as possible.
                    self.assertAlmostEqual(found, (one + other) / 2)


if __name__ == "__main__":
    unittest.main()
