"""Scores of written texts, compared with sacrebleu and rouge-score, and by hand. NumPy only."""

import random
import unittest

import numpy as np
import sacrebleu
from rouge_score import rouge_scorer

from tfzoo.evaluation import intervals, written

WORDS = "the a cat dog sees likes , . red blue house's 3.5 über der Hund".split()


def texts(count, seed=0, shortest=0):
    """Returns texts and references that share some words; some texts are empty."""
    draw = random.Random(seed)
    references = [" ".join(draw.choices(WORDS, k=draw.randint(max(1, shortest), 9))) for _ in range(count)]
    kept = [[word for word in reference.split() if draw.random() < 0.8] for reference in references]
    return [" ".join(words + draw.choices(WORDS, k=draw.randint(shortest, 3))) for words in kept], references


class BleuTest(unittest.TestCase):
    def test_equals_sacrebleu(self):
        for seed in range(60):  # Short corpora, in which orders have no matches or no n-grams.
            hypotheses, references = texts(1 + seed % 4, seed)
            found = written.bleu_rows(hypotheses, references)()["bleu"]
            self.assertAlmostEqual(found, sacrebleu.corpus_bleu(hypotheses, [references]).score, places=9)
        self.assertEqual(written.bleu_rows([""], ["a b"])(), {"bleu": 0.0})

    def test_of_resampled_rows(self):
        hypotheses, references = texts(12, seed=1)
        score = written.bleu_rows(hypotheses, references)
        rows = np.array([3, 3, 3, 0, 5, 7])
        wanted = sacrebleu.corpus_bleu([hypotheses[i] for i in rows], [[references[i] for i in rows]]).score
        self.assertAlmostEqual(score(rows)["bleu"], wanted, places=9)
        low, high = intervals.bootstrap(score, 12, rounds=50)["bleu"]
        self.assertLess(low, score()["bleu"])
        self.assertLess(score()["bleu"], high)

    def test_chinese(self):
        hypotheses, references = ["我今天很高兴。", "他來了"], ["我今天不高兴。", "他走了嗎？"]
        self.assertTrue(written.is_spaceless(references))
        self.assertFalse(written.is_spaceless(["Der Hund sieht 天"]))
        wanted = sacrebleu.corpus_bleu(hypotheses, [references], tokenize="zh").score
        self.assertGreater(wanted, 10)
        self.assertAlmostEqual(written.bleu_rows(hypotheses, references, "zh")()["bleu"], wanted, places=9)

    def test_signature(self):
        signature = f"nrefs:1|case:mixed|eff:no|tok:zh|smooth:exp|version:{sacrebleu.__version__}"
        self.assertEqual(written.bleu_signature("zh"), signature)


class ChrfTest(unittest.TestCase):
    def test_equals_sacrebleu(self):
        for seed in range(60):
            hypotheses, references = texts(1 + seed % 4, seed)
            found = written.chrf_rows(hypotheses, references)()["chrf"]
            self.assertAlmostEqual(found, sacrebleu.corpus_chrf(hypotheses, [references]).score, places=9)

    def test_of_each(self):
        hypotheses, references = texts(5, seed=3)
        wanted = [sacrebleu.sentence_chrf(*pair).score for pair in zip(hypotheses, [[each] for each in references])]
        np.testing.assert_allclose(written.chrf_of_each(hypotheses, references), wanted, atol=1e-9)
        self.assertEqual(len(written.chrf_of_each([], [])), 0)


class RougeTest(unittest.TestCase):
    def test_is_the_mean_of_rouge_score(self):
        hypotheses, references = texts(6, seed=4, shortest=1)
        scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
        found = written.rouge_rows(hypotheses, references)()
        for name, theirs in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
            each = [scorer.score(*pair)[theirs].fmeasure for pair in zip(references, hypotheses)]
            self.assertAlmostEqual(found[name], 100 * np.mean(each), places=9)

    def test_characters(self):
        # 3 of 4 characters, 2 of 3 pairs; the longest common subsequence has 3 characters.
        found = written.rouge_rows(["今天很好。"], ["今天真好"])()
        self.assertAlmostEqual(found["rouge_1"], 75.0)
        self.assertAlmostEqual(found["rouge_2"], 100 / 3)
        self.assertAlmostEqual(found["rouge_l"], 75.0)


class MatchTest(unittest.TestCase):
    def test_by_hand(self):
        found = written.match_rows(["a b  c", "a b", "", ""], ["a b c", "a c c d", "", "x"])()
        self.assertAlmostEqual(found["exact_match"], 50.0)
        self.assertAlmostEqual(found["token_f1"], 100 * (1 + 2 * 1 / 6 + 1 + 0) / 4)

    def test_together(self):
        both = intervals.together(written.match_rows(["a"], ["a"]), written.chrf_rows(["a"], ["a"]))
        self.assertEqual(both(), {"exact_match": 100.0, "token_f1": 100.0, "chrf": 100.0})


if __name__ == "__main__":
    unittest.main()
