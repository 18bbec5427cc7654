"""Scores compared with scikit-learn and scipy, and with values computed by hand. NumPy only."""

import unittest
import warnings

import numpy as np
from scipy import stats
from sklearn import metrics

from tfzoo.evaluation import scores

LABELS = ["a", "b", "c", "d", "e"]


def made_up(count=300, classes=5, seed=0):
    generator = np.random.default_rng(seed)
    gold = generator.integers(classes, size=count)
    return gold, np.where(generator.random(count) < 0.6, gold, generator.integers(classes, size=count))


class ClassificationTest(unittest.TestCase):
    def compare(self, gold, predicted, labels=LABELS):
        found = scores.classification(gold, predicted, labels)
        self.assertAlmostEqual(found["accuracy"], metrics.accuracy_score(gold, predicted))
        for average in ("macro", "micro"):
            expected = metrics.f1_score(gold, predicted, average=average, zero_division=0)
            self.assertAlmostEqual(found[f"{average}_f1"], expected)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # scikit-learn warns of a single class.
            self.assertAlmostEqual(found["mcc"], metrics.matthews_corrcoef(gold, predicted))
        return found

    def test_equal_to_scikit_learn(self):
        for seed in range(5):
            self.compare(*made_up(seed=seed))
        self.compare(*made_up(classes=2))

    def test_classes_that_do_not_occur_do_not_count(self):
        # Class 0: F1 2/3; class 1: precision 0; class 3 occurs in gold only; classes 2 and 4 in neither.
        found = self.compare(np.array([0, 0, 3]), np.array([0, 1, 0]))
        self.assertAlmostEqual(found["macro_f1"], (1 / 2 + 0 + 0) / 3)

    def test_degenerate(self):
        self.assertEqual(
            self.compare(np.zeros(4, int), np.zeros(4, int)),
            {"accuracy": 1.0, "macro_f1": 1.0, "micro_f1": 1.0, "mcc": 0.0},
        )
        self.assertEqual(self.compare(np.array([0, 1]), np.array([1, 1]))["mcc"], 0.0)
        self.assertEqual(self.compare(np.array([0, 1]), np.array([1, 0]))["mcc"], -1.0)

    def test_some_rows(self):
        gold, predicted = made_up()
        rows = np.array([3, 3, 3, 10, 20, 40, 41])
        found = scores.classification_rows(gold, predicted, LABELS)(rows)
        self.assertEqual(found, scores.classification(gold[rows], predicted[rows], LABELS))

    def test_what_is_refused(self):
        for gold, predicted in (([0, 5], [0, 0]), ([0, 0], [0, -1]), ([[0]], [[0]])):
            with self.assertRaisesRegex(ValueError, "5 labels"):
                scores.classification(np.array(gold), np.array(predicted), LABELS)
        with self.assertRaisesRegex(ValueError, "0 rows"):
            scores.classification(np.array([], int), np.array([], int), LABELS)


class SeveralTest(unittest.TestCase):
    def test_equal_to_scikit_learn(self):
        generator = np.random.default_rng(0)
        gold = generator.random((200, 5)) < 0.3
        predicted = gold ^ (generator.random((200, 5)) < 0.2)
        predicted[:, 3] = gold[:, 3] = False  # Counts in the macro average, with F1 0.
        found = scores.several(gold, predicted, LABELS)
        for average in ("macro", "micro"):
            expected = metrics.f1_score(gold, predicted, average=average, zero_division=0)
            self.assertAlmostEqual(found[f"{average}_f1"], expected)
        self.assertAlmostEqual(found["subset_accuracy"], metrics.accuracy_score(gold, predicted))

    def test_by_hand(self):
        gold, predicted = np.array([[1, 0], [1, 1]], bool), np.array([[1, 1], [1, 1]], bool)
        found = scores.several(gold, predicted, ["a", "b"])
        self.assertEqual(found["subset_accuracy"], 0.5)
        self.assertAlmostEqual(found["micro_f1"], 6 / 7)
        self.assertAlmostEqual(found["macro_f1"], (1 + 2 / 3) / 2)
        none = np.zeros((2, 2), bool)
        self.assertEqual(
            scores.several(none, none, ["a", "b"]), {"micro_f1": 0.0, "macro_f1": 0.0, "subset_accuracy": 1.0}
        )
        with self.assertRaisesRegex(ValueError, r"\(2, 2\), not \[N, 5\]"):
            scores.several(gold, predicted, LABELS)


class RegressionTest(unittest.TestCase):
    def compare(self, gold, predicted):
        found = scores.regression(gold, predicted)
        self.assertAlmostEqual(found["pearson"], stats.pearsonr(gold, predicted).statistic)
        self.assertAlmostEqual(found["spearman"], stats.spearmanr(gold, predicted).statistic)
        self.assertAlmostEqual(found["mse"], metrics.mean_squared_error(gold, predicted))

    def test_equal_to_scipy(self):
        generator = np.random.default_rng(0)
        gold = generator.normal(size=100)
        self.compare(gold, gold + generator.normal(size=100))
        self.compare(gold.round(), (gold + generator.normal(size=100)).round())  # Many equal numbers.
        self.compare(1e4 + gold, 1e4 - gold**3)  # A large mean costs digits only if it is not subtracted first.

    def test_rows_that_repeat_share_their_rank(self):
        generator = np.random.default_rng(1)
        gold = generator.normal(size=50)
        predicted = (gold + generator.normal(size=50)).round(1)
        rows = generator.integers(50, size=50)
        found = scores.regression_rows(gold, predicted)(rows)
        self.assertAlmostEqual(found["spearman"], stats.spearmanr(gold[rows], predicted[rows]).statistic)
        self.assertAlmostEqual(found["pearson"], stats.pearsonr(gold[rows], predicted[rows]).statistic)

    def test_constants(self):
        gold = np.array([0.1, 0.7, 3.0])
        for constant in (0.0, 0.1, 1e9 / 3):
            found = scores.regression(gold, np.full(3, constant))
            self.assertEqual((found["pearson"], found["spearman"]), (0.0, 0.0))
            self.assertEqual(scores.regression(np.full(3, constant), gold)["pearson"], 0.0)
        rows = np.array([1, 1, 1])  # A resample may be constant, too.
        self.assertEqual(scores.regression_rows(gold, gold)(rows), {"pearson": 0.0, "spearman": 0.0, "mse": 0.0})


class DetailsTest(unittest.TestCase):
    def test_per_class_equal_to_scikit_learn(self):
        generator = np.random.default_rng(0)
        several = generator.random((60, 5)) < 0.4, generator.random((60, 5)) < 0.4
        for gold, predicted in (made_up(40), several):
            labels = None if gold.ndim == 2 else range(5)
            expected = metrics.precision_recall_fscore_support(gold, predicted, labels=labels, zero_division=0)
            found = scores.per_class(gold, predicted, LABELS)
            self.assertEqual([row["label"] for row in found], LABELS)
            for name, column in zip(("precision", "recall", "f1", "support"), expected):
                np.testing.assert_allclose([row[name] for row in found], column)

    def test_per_class_that_does_not_occur(self):
        found = scores.per_class(np.array([0, 0]), np.array([0, 1]), ["a", "b", "c"])
        self.assertEqual(found[1], {"label": "b", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0})
        self.assertEqual(found[2], found[1] | {"label": "c"})
        self.assertEqual(found[0], {"label": "a", "precision": 1.0, "recall": 0.5, "f1": 2 / 3, "support": 2})

    def test_confusion(self):
        found = scores.confusion(np.array([0, 0, 2]), np.array([0, 1, 1]), ["a", "b", "c"])
        self.assertEqual(found, {"labels": ["a", "b", "c"], "counts": [[1, 1, 0], [0, 0, 0], [0, 1, 0]]})
        gold, predicted = made_up()
        expected = metrics.confusion_matrix(gold, predicted).tolist()
        self.assertEqual(scores.confusion(gold, predicted, LABELS)["counts"], expected)


if __name__ == "__main__":
    unittest.main()
