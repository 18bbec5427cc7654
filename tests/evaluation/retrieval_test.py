"""Scores of rankings by hand, and nDCG compared with scikit-learn. NumPy only."""

import math
import unittest

import numpy as np
from sklearn import metrics

from tfzoo.evaluation import retrieval


class RetrievalTest(unittest.TestCase):
    def test_one_relevant_document_per_query(self):
        found = retrieval.figures([[1], [4], [20], [math.inf]])
        expected = {"recall_1": 1 / 4, "recall_5": 2 / 4, "recall_10": 2 / 4}
        expected |= {"mrr": (1 + 1 / 4 + 1 / 20) / 4, "mrr_10": (1 + 1 / 4) / 4, "ndcg_10": (1 + 1 / math.log2(5)) / 4}
        self.assertEqual(list(found), list(expected))
        for name, value in expected.items():
            self.assertAlmostEqual(found[name], value, msg=name)

    def test_several_relevant_documents(self):
        found = retrieval.figures([[3, 1, 11]], recalls=(1, 3, 11))
        self.assertAlmostEqual(found["recall_1"], 1 / 3)
        self.assertAlmostEqual(found["recall_3"], 2 / 3)
        self.assertAlmostEqual(found["recall_11"], 1)
        self.assertEqual(found["mrr"], 1)
        ideal = 1 + 1 / math.log2(3) + 1 / 2
        self.assertAlmostEqual(found["ndcg_10"], (1 + 1 / 2) / ideal)

    def test_more_relevant_documents_than_the_cut(self):
        self.assertAlmostEqual(retrieval.figures([range(1, 13)])["ndcg_10"], 1)
        self.assertAlmostEqual(retrieval.figures([range(1, 13)])["recall_10"], 10 / 12)

    def test_graded_gains_equal_to_scikit_learn(self):
        generator = np.random.default_rng(0)
        gains = generator.integers(0, 4, size=(20, 30))
        gains[:, 0] = 1
        scores = generator.normal(size=(20, 30)) + 0.3 * gains
        relevant = [np.flatnonzero(row) for row in gains]
        ranks = [retrieval.ranks(row, which) for row, which in zip(scores, relevant)]
        found = retrieval.figures(ranks, [row[which] for row, which in zip(gains, relevant)])
        self.assertAlmostEqual(found["ndcg_10"], metrics.ndcg_score(gains, scores, k=10))
        expected = np.mean([1 / min(each) for each in ranks])
        self.assertAlmostEqual(found["mrr"], expected)

    def test_ranks(self):
        self.assertEqual(retrieval.ranks(np.array([0.1, 0.9, 0.5, 0.5]), [1, 3, 0, 2]), [1, 3, 4, 2])

    def test_rows_are_queries(self):
        score = retrieval.figures_rows([[1], [2]])
        self.assertAlmostEqual(score(np.array([0, 1, 1]))["mrr"], 2 / 3)

    def test_what_is_refused(self):
        for ranks, gains, words in (
            ([[1], []], None, "query 1 has 0 relevant documents"),
            ([[0]], None, "query 0: ranks must be different and at least 1"),
            ([[2, 2]], None, "query 0: ranks must be different"),
            ([[1]], [[0]], "gains positive"),
            ([[1]], [[1, 2]], "query 0 has 1 relevant documents and 2 gains"),
            ([[1]], [], "ranks of 1 queries, but gains of 0"),
        ):
            with self.assertRaisesRegex(ValueError, words):
                retrieval.figures(ranks, gains)


if __name__ == "__main__":
    unittest.main()
