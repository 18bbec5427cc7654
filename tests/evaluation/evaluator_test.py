"""Evaluators, applied to given predictions."""

import math
import unittest

from tfzoo.evaluation.evaluator import Means


class MeansTest(unittest.TestCase):
    def test_means_and_perplexity(self):
        means = Means(lambda models, batch: {}, perplexity_of=("lm_loss",))
        figures = means.figures({"lm_loss": (6.0, 3.0), "lm_accuracy": (1.0, 4.0), "pair_loss": (0.0, 0.0)})
        self.assertEqual(figures, {"lm_loss": 2.0, "lm_accuracy": 0.25, "lm_perplexity": math.exp(2.0)})
        self.assertEqual(list(figures), ["lm_loss", "lm_accuracy", "lm_perplexity"])

    def test_what_is_too_large_for_a_perplexity(self):
        means = Means(lambda models, batch: {}, perplexity_of=("lm_loss",))
        self.assertEqual(means.figures({"lm_loss": (1e6, 1.0)})["lm_perplexity"], math.exp(700.0))
        self.assertEqual(means.figures({}), {})


if __name__ == "__main__":
    unittest.main()
