"""Mixtures of sources: shares, epochs, an order that is a function of (seed, position), and text in several sources."""

import fractions
import unittest

import numpy as np
import tensorflow as tf

from tests.data.corpora import random_corpus
from tfzoo.data import mixture, order, pipeline
from tfzoo.data.documents import Corpus, Document
from tfzoo.data.mixture import BLOCK, MixedRows
from tfzoo.data.packing import PackedRows
from tfzoo.errors import UserError


class Numbers:
    """Rows that contain only their own number, from `first` on."""

    FEATURES = {"number": 1}
    padding_share = 0.25

    def __init__(self, count, first=0):
        self._count, self._first = count, first

    def __len__(self):
        return self._count

    def row(self, index, numbers=None):
        if not 0 <= index < self._count:
            raise IndexError(index)
        return (np.array([self._first + index], np.int32),)


class Same:
    """An objective that returns its examples."""

    def prepare(self, example):
        return {"number": tf.ensure_shape(example["number"], [1]), "seed": example["seed"]}


def mixed(sizes, shares):
    firsts = np.cumsum([0, *sizes[:-1]])
    return MixedRows({f"s{i}": Numbers(*args) for i, args in enumerate(zip(sizes, firsts, strict=True))}, shares)


def located(rows, positions, seed=3):
    """Returns the epochs and indices of positions, as the pipeline computes them."""
    dataset = tf.data.Dataset.from_tensor_slices(np.asarray(positions, np.int64)).map(lambda p: rows.locate(p, seed))
    return np.array(list(dataset.as_numpy_iterator())).T


class SharesTest(unittest.TestCase):
    def test_of_weights(self):
        self.assertEqual(mixture.shares_of([5, 70], [3.0, 1.0]), [0.75, 0.25])
        self.assertEqual(mixture.shares_of([5, 70], [0.0, 0.1]), [0.0, 1.0])

    def test_of_sizes_and_temperature(self):
        self.assertEqual(mixture.shares_of([30, 10], None), [0.75, 0.25])
        # 16 ** (1/2) : 1 ** (1/2) = 4 : 1.
        np.testing.assert_allclose(mixture.shares_of([16, 1], None, 2.0), [0.8, 0.2], rtol=1e-12)
        sizes = [10_000_000, 300_000, 7]
        expected = np.array(sizes) ** 0.7
        np.testing.assert_allclose(mixture.shares_of(sizes, None, 1 / 0.7), expected / expected.sum(), rtol=1e-12)
        np.testing.assert_allclose(mixture.shares_of(sizes, None, 1e9), [1 / 3] * 3, rtol=1e-6)

    def test_rounding(self):
        for shares, counts in (
            ([0.9, 0.1], [9000, 1000]),
            ([1 / 3] * 3, [3334, 3333, 3333]),
            ([1 - 1e-9, 1e-9], [9999, 1]),  # A source is never lost by rounding ...
            ([0.0, 1.0], [0, 10000]),  # ... but 0 remains 0.
            ([0.99985, 0.00005, 0.00005, 0.00005], [9997, 1, 1, 1]),
        ):
            rows = mixed([9] * len(shares), shares)
            self.assertEqual([round(share * BLOCK) for share in rows.shares.values()], counts)
            self.assertEqual(rows.padding_share, 0.25)

    def test_weights_of_the_flag(self):
        self.assertIsNone(mixture.parse_weights(None, 3))
        self.assertEqual(mixture.parse_weights("3, 1,0", 3), [3.0, 1.0, 0.0])
        for text, count, message in (
            ("3,1", 3, "has 2 number(s), but --corpus has 3 source(s); specify one number for each source"),
            ("3,1", 1, "has 2 number(s), but --corpus has 1 source(s)"),
            ("3,", 2, "must be numbers separated by commas"),
            ("a,1", 2, "must be numbers separated by commas"),
            ("", 1, "must be numbers separated by commas"),
            ("-1,2", 2, "must be finite numbers that are not negative"),
            ("nan,2", 2, "must be finite numbers that are not negative"),
            ("inf,2", 2, "must be finite numbers that are not negative"),
            ("0,0", 2, "their sum must be positive"),
            ("1e308,1e308", 2, "their sum must be positive and finite"),
        ):
            with self.assertRaises(UserError) as caught:
                mixture.parse_weights(text, count)
            self.assertTrue(str(caught.exception).startswith(f"--corpus_weights={text}: {message}"), caught.exception)
        with self.assertRaisesRegex(UserError, "^--corpus_temperature=2.0: does not apply with --corpus_weights"):
            mixture.parse_weights("1,2", 2, 2.0)


class LocateTest(tf.test.TestCase):
    def test_each_source_has_its_share_and_its_own_epochs(self):
        sizes, counts = [700, 90, 13], [6000, 3000, 1000]
        rows = mixed(sizes, [count / BLOCK for count in counts])
        epochs, indices = located(rows, range(2 * BLOCK))
        sources = np.searchsorted(np.cumsum(sizes), indices, side="right")
        for source, (size, count) in enumerate(zip(sizes, counts, strict=True)):
            own = sources == source
            self.assertAllEqual(own.reshape(2, BLOCK).sum(1), [count, count])
            # Its positions visit each of its rows once an epoch, one epoch after the other.
            self.assertAllEqual(epochs[own], np.arange(2 * count) // size)
            first = sum(sizes[:source])
            for epoch in range(2 * count // size):
                self.assertAllEqual(np.sort(indices[own][epoch * size :][:size]), first + np.arange(size))
            # The order of a source alone is the one that its rows have in the mixture.
            alone = [order.epoch_and_index(p, size, 3)[1].numpy() for p in range(5)]
            self.assertAllEqual(indices[own][:5] - first, alone)

    def test_any_stretch_contains_the_sources_in_proportion(self):
        shares = [fractions.Fraction(9, 10), fractions.Fraction(7, 100), fractions.Fraction(3, 100)]
        rows = mixed([50, 50, 50], [float(share) for share in shares])
        sources = located(rows, range(BLOCK + 100))[1] // 50
        for first, size in ((0, 10), (17, 100), (9_990, 32), (4_321, 1_000)):
            found = np.bincount(sources[first : first + size], minlength=3)
            for count, share in zip(found, shares, strict=True):
                self.assertLessEqual(abs(count - share * size), 2)

    def test_a_pure_function_of_seed_and_position(self):
        rows = mixed([97, 31], [0.8, 0.2])
        whole = located(rows, range(300))
        positions = np.random.default_rng(0).integers(0, 300, 60)
        self.assertAllEqual(located(mixed([97, 31], [0.8, 0.2]), positions), whole[:, positions])
        self.assertAllEqual([rows.locate(p, 3)[1].numpy() for p in range(5)], whole[1, :5])
        other = located(rows, range(300), seed=4)
        self.assertAllEqual(other[1] < 97, whole[1] < 97)
        self.assertLess(np.mean(other[1] == whole[1]), 0.1)

    def test_positions_past_what_32_bits_hold(self):
        rows = mixed([10, 10], [0.5, 0.5])
        epochs, indices = located(rows, np.arange(20) + BLOCK * 2**22)
        self.assertAllEqual(epochs, np.full(20, BLOCK * 2**22 // 20))
        self.assertAllEqual(np.sort(indices), np.arange(20))

    def test_epochs(self):
        rows = mixed([100, 10, 5], [0.75, 0.25, 0.0])
        self.assertEqual(rows.epochs(400), {"s0": 3.0, "s1": 10.0, "s2": 0.0})
        self.assertNotIn(2, located(rows, range(BLOCK))[1] // 105)


class PipelineTest(tf.test.TestCase):
    def batches(self, rows, first_step=0, context=pipeline.ALONE):
        batches = pipeline.training_batches(
            rows, Same(), batch_size=10, seed=3, first_step=first_step, num_steps=12, context=context
        )
        return [{name: x.tolist() for name, x in batch.items()} for batch in batches.as_numpy_iterator()]

    def test_a_resumed_run_reads_the_same_batches(self):
        rows = mixed([97, 31], [0.8, 0.2])
        whole = self.batches(rows)
        self.assertEqual(self.batches(rows, first_step=5), whole[5:])
        numbers = np.array([batch["number"] for batch in whole])
        self.assertAllEqual((numbers >= 97).sum((1, 2)), np.full(12, 2))
        self.assertAllEqual(numbers.ravel(), located(rows, range(120))[1])
        seeds = {tuple(seed) for batch in whole for seed in batch["seed"]}
        self.assertLen(seeds, 120)

    def test_two_workers_together_read_the_same_batches(self):
        rows = mixed([97, 31], [0.8, 0.2])
        parts = [self.two(rows, worker) for worker in (0, 1)]
        self.assertEqual(
            [first + second for first, second in zip(*parts, strict=True)],
            [batch["number"] for batch in self.batches(rows)],
        )

    def two(self, rows, worker):
        context = tf.distribute.InputContext(2, worker, 2)
        batches = pipeline.training_batches(
            rows, Same(), batch_size=10, seed=3, first_step=0, num_steps=12, context=context
        )
        return [batch["number"].tolist() for batch in batches.take(12).as_numpy_iterator()]

    def test_rows_are_those_of_the_sources(self):
        one, two = PackedRows(random_corpus(20, longest=4), 60), PackedRows(random_corpus(9, 1, longest=4), 60)
        rows = MixedRows({"one": one, "two": two}, [0.5, 0.5])
        self.assertLen(rows, len(one) + len(two))
        for index in range(len(rows)):
            expected = one.row(index) if index < len(one) else two.row(index - len(one))
            for found, values in zip(rows.row(index), expected, strict=True):
                self.assertAllEqual(found, values)
        self.assertEqual(rows.FEATURES, one.FEATURES)
        self.assertAlmostEqual(rows.padding_share, (one.padding_share + two.padding_share) / 2)

    def test_numbers_of_evaluated_rows(self):
        batches = pipeline.evaluation_batches(Numbers(5), Same(), batch_size=4, seed=3, num_batches=9, first_number=100)
        self.assertEqual(
            [batch[pipeline.ROW_NUMBERS].tolist() for batch in batches.as_numpy_iterator()],
            [[100, 101, 102, 103], [104, -1, -1, -1]],
        )


def corpus(name, train, held_out):
    documents = ([Document(name, [text]) for text in texts] for texts in (train, held_out))
    return Corpus(name, f"{name} {train} {held_out}", *documents, {"lines": 7})


class MixTest(unittest.TestCase):
    def texts(self, documents):
        return [document.sentences[0] for document in documents]

    def test_parts_are_those_of_all_sources(self):
        both = mixture.mix("x/a.txt,y/b.txt", [corpus("x/a.txt", "ab", "c"), corpus("y/b.txt", "de", "f")])
        self.assertEqual((self.texts(both.train), self.texts(both.held_out)), (list("abde"), list("cf")))
        self.assertEqual(list(both.sources), ["a.txt", "b.txt"])
        self.assertEqual(both.report["sources"]["a.txt"]["report"], {"lines": 7})
        self.assertEqual(both.report["train"]["documents"], 4)

    def test_names(self):
        for specs, names in (
            (("x/a.txt", "y/a.txt"), ["x/a.txt", "y/a.txt"]),
            (("docstrings", "gettext:en-de"), ["docstrings", "gettext:en-de"]),
            (("d/a.en+d/a.de", "d/*.txt"), ["a.en+a.de", "*.txt"]),
        ):
            found = mixture.mix("", [corpus(name, "ab", f"c{i}") for i, name in enumerate(specs)])
            self.assertEqual(list(found.sources), names)

    def test_the_fingerprint_covers_sources_and_proportions(self):
        one, two, three = corpus("a", "ab", "c"), corpus("b", "de", "f"), corpus("b", "dg", "f")
        found = [
            mixture.mix("", corpora, weights, temperature).fingerprint
            for corpora, weights, temperature in (
                ([one, two], None, 1.0),
                ([two, one], None, 1.0),
                ([one, three], None, 1.0),
                ([one, two], [1.0, 2.0], 1.0),
                ([one, two], [2.0, 1.0], 1.0),
                ([one, two], None, 2.0),
            )
        ]
        self.assertEqual(len(set(found)), 6)
        self.assertEqual(mixture.mix("", [one, two]).fingerprint, found[0])

    def test_held_out_text_of_one_source_is_not_trained_on_in_another(self):
        one, two = corpus("a", "abc", "d"), corpus("b", "xdyc", "a")
        both = mixture.mix("a,b", [one, two])
        self.assertEqual(self.texts(both.sources["a"].train), ["b", "c"])
        self.assertEqual(self.texts(both.sources["b"].train), ["x", "y", "c"])
        self.assertEqual(self.texts(both.held_out), ["d", "a"])
        self.assertEqual(both.sources["a"].report["held_out_elsewhere"], 1)
        # Arrays are cached by the fingerprint of the documents.
        self.assertNotEqual(both.sources["a"].fingerprint, one.fingerprint)
        self.assertEqual(mixture.mix("", [one, corpus("b", "xy", "z")]).sources["a"], one)

    def test_errors(self):
        with self.assertRaisesRegex(UserError, "a and b contain the same text; specify it once"):
            first = corpus("a", "ab", "c")
            mixture.mix("a,b", [first, Corpus("b", first.fingerprint, first.train, first.held_out, {})])
        with self.assertRaisesRegex(UserError, "all training text of a is held-out text of other sources"):
            mixture.mix("a,b", [corpus("a", "ab", "c"), corpus("b", "c", "ab")])


if __name__ == "__main__":
    tf.test.main()
