"""Intervals compared with exact quantiles, with formulas for large samples, and with one resample at a time."""

import unittest
import unittest.mock

import numpy as np
from scipy import stats
from sklearn import metrics

from tfzoo.evaluation import intervals, scores


def right(rights):
    """Returns the accuracy of rows of which it is known whether they are right, as a function of rows."""
    return scores.classification_rows(np.ones(len(rights), int), np.asarray(rights, int), ["no", "yes"])


class BootstrapTest(unittest.TestCase):
    def test_accuracy_has_the_quantiles_of_the_binomial_distribution(self):
        for count in (15, 2000):  # Rows are drawn in the first case, the sizes of groups in the second.
            rights = np.arange(count) < count * 0.8
            share = rights.mean()
            expected = stats.binom.ppf([0.025, 0.975], count, share) / count
            found = intervals.bootstrap(right(rights), count, rounds=20_000)["accuracy"]
            np.testing.assert_allclose(found, expected, atol=1.01 / count)

    def test_equal_to_one_resample_at_a_time(self):
        generator = np.random.default_rng(0)
        gold, predicted = generator.integers(4, size=(2, 50))
        labels = ["a", "b", "c", "d"]

        def classes(rows):
            truth, guess = gold[rows], predicted[rows]
            return {
                "accuracy": metrics.accuracy_score(truth, guess),
                "macro_f1": metrics.f1_score(truth, guess, average="macro", zero_division=0),
                "mcc": metrics.matthews_corrcoef(truth, guess),
            }

        numbers = generator.normal(size=50).round(1)
        guesses = numbers + generator.normal(size=50).round(1)

        def correlations(rows):
            return {
                "pearson": stats.pearsonr(numbers[rows], guesses[rows]).statistic,
                "spearman": stats.spearmanr(numbers[rows], guesses[rows]).statistic,
            }

        for slow, fast in (
            (classes, scores.classification_rows(gold, predicted, labels)),
            (correlations, scores.regression_rows(numbers, guesses)),
        ):
            expected = intervals.bootstrap(slow, 50, rounds=40, seed=3)
            found = intervals.bootstrap(fast, 50, rounds=40, seed=3)
            for name, interval in expected.items():
                np.testing.assert_allclose(found[name], interval, err_msg=name)

    def test_seeds_and_parts(self):
        score = scores.regression_rows(*np.random.default_rng(0).normal(size=(2, 30)))
        first = intervals.bootstrap(score, 30, rounds=50)
        self.assertEqual(first, intervals.bootstrap(score, 30, rounds=50))
        self.assertNotEqual(first, intervals.bootstrap(score, 30, rounds=50, seed=1))
        with unittest.mock.patch.object(intervals, "_CELLS", 100):  # Three resamples at a time.
            self.assertEqual(first, intervals.bootstrap(score, 30, rounds=50))

    def test_what_is_refused(self):
        with self.assertRaisesRegex(ValueError, "0 rows"):
            intervals.bootstrap(right([]), 0)
        with self.assertRaisesRegex(ValueError, "2 rows, but count is 3"):
            intervals.bootstrap(right([1, 0]), 3)


class PairedTest(unittest.TestCase):
    def test_equal_systems(self):
        found = intervals.paired(right([1, 0, 1]), right([1, 0, 1]), 3)["accuracy"]
        self.assertEqual(found, intervals.Difference(0.0, 0.0, 0.0, 1.0))

    def test_the_formula_for_large_samples(self):
        generator = np.random.default_rng(0)
        first = generator.random(1000) < 0.8
        for changed in (0.03, 0.3):
            second = np.where(generator.random(1000) < changed, generator.random(1000) < 0.7, first)
            difference = first.astype(float) - second
            error = difference.std() / np.sqrt(1000)
            found = intervals.paired(right(first), right(second), 1000, rounds=4000)["accuracy"]
            self.assertAlmostEqual(found.value, difference.mean())
            expected = difference.mean() + 1.96 * error * np.array([-1, 1])
            np.testing.assert_allclose([found.low, found.high], expected, atol=0.1 * error + 1e-3)  # Steps of 1/1000.
            self.assertAlmostEqual(found.p, 2 * stats.norm.sf(abs(difference.mean()) / error), delta=0.05)

    def test_a_clear_difference_and_its_sign(self):
        first, second = right([1] * 90 + [0] * 10), right([1] * 50 + [0] * 50)
        better, worse = (intervals.paired(*pair, 100)["accuracy"] for pair in ((first, second), (second, first)))
        self.assertAlmostEqual(better.value, 0.4)
        self.assertGreater(better.low, 0)
        self.assertEqual(better.p, 2 / 1001)
        self.assertEqual((worse.low, worse.high, worse.p), (-better.high, -better.low, better.p))

    def test_functions_of_rows_and_figures_of_one_system_only(self):
        rights = np.array([1, 1, 0, 1])
        found = intervals.paired(right(rights), lambda rows: {"accuracy": rights[rows].mean(), "other": 1.0}, 4)
        self.assertEqual(found, {"accuracy": intervals.Difference(0.0, 0.0, 0.0, 1.0)})


class McNemarTest(unittest.TestCase):
    def test_by_hand(self):
        first = np.array([1] * 8 + [0] * 2 + [1] * 5 + [0] * 3)
        second = np.array([0] * 8 + [1] * 2 + [1] * 5 + [0] * 3)
        p = 2 * (1 + 10 + 45) / 2**10
        self.assertEqual(intervals.mcnemar(first, second), {"only_first": 8, "only_second": 2, "p": p})
        self.assertEqual(intervals.mcnemar(second, first), {"only_first": 2, "only_second": 8, "p": p})
        self.assertEqual(intervals.mcnemar(first, first), {"only_first": 0, "only_second": 0, "p": 1.0})


class GroupsTest(unittest.TestCase):
    def test_groups(self):
        for values in (np.array([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]]), np.array([[7], [5], [7]])):
            first, group, counts = intervals.groups(values)
            np.testing.assert_array_equal(values[first][group], values)
            self.assertEqual(sorted(counts.tolist()), [1, 2])


if __name__ == "__main__":
    unittest.main()
