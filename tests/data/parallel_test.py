"""Rows of parallel text: pairs stay together, limits hold, long texts are cut and counted. NumPy only."""

import unittest

import numpy as np

from tests.data.corpora import corpus
from tfzoo.data.parallel import ParallelRows
from tfzoo.data.tokenized import TokenizedCorpus
from tfzoo.errors import UserError


def pairs(*sizes):
    """Returns a corpus of pairs with these numbers of tokens, [first, second] each; the tokens are 0, 1, 2, ..."""
    text = corpus(sizes)
    text.token_ids[:] = np.arange(len(text.token_ids))
    return text


def random_pairs(count, longest, seed=0):
    return pairs(*np.random.default_rng(seed).integers(1, longest, [count, 2]).tolist())


def read(rows):
    """Returns the pairs of each row: lists of tokens."""
    found = []
    for i in range(len(rows)):
        first, first_documents, second, second_documents = rows.row(i, np.zeros(4))
        for x in (first, first_documents, second, second_documents):
            assert x.dtype == np.int32
        count = first_documents.max()
        assert count == second_documents.max()
        for documents in (first_documents, second_documents):
            assert set(documents) == set(range(1, count + 1)) and np.all(np.diff(documents) >= 0)
        found.append(
            [
                (first[first_documents == n].tolist(), second[second_documents == n].tolist())
                for n in range(1, count + 1)
            ]
        )
    return found


class ParallelRowsTest(unittest.TestCase):
    def test_best_fit(self):
        # Each side holds 6 tokens. The pairs of 8, 6 and 5 tokens fill a row each; that of 3 fits the fullest one.
        rows = ParallelRows(pairs([5, 3], [1, 2], [2, 4], [1, 4]), 6, 6)
        self.assertEqual(
            read(rows),
            [
                [([0, 1, 2, 3, 4], [5, 6, 7]), ([8], [9, 10])],
                [([11, 12], [13, 14, 15, 16])],
                [([17], [18, 19, 20, 21])],
            ],
        )
        self.assertEqual(rows.num_cut, 0)
        self.assertAlmostEqual(rows.padding_share, 1 - 22 / 36)

    def test_every_pair_once_within_the_limits(self):
        text = random_pairs(300, 20)
        whole = sorted(read(ParallelRows(text, 20, 20, pack=False)))
        for pack in (True, False):
            for extra in ((0, 0), (1, 2)):
                for total in (None, 45):
                    limits = dict(first_extra=extra[0], second_extra=extra[1], total_tokens=total, pack=pack)
                    rows = ParallelRows(text, 32, 30, **limits)
                    found = read(rows)
                    self.assertEqual(sorted([pair] for row in found for pair in row), whole)
                    used = 0
                    for row in found:
                        first, second = (sum(len(pair[side]) + extra[side] for pair in row) for side in (0, 1))
                        self.assertLessEqual(first, 32)
                        self.assertLessEqual(second, 30)
                        self.assertLessEqual(first + second, total or 62)
                        used += first + second
                    self.assertAlmostEqual(rows.padding_share, 1 - used / (len(rows) * (total or 62)))
                    self.assertEqual(rows.num_cut, 0)
                    self.assertEqual(len(rows) == 300, not pack)

    def test_packed_rows_contain_little_padding(self):
        text = random_pairs(2000, 20)
        self.assertLess(ParallelRows(text, 100, 100).padding_share, 0.05)
        self.assertLess(ParallelRows(text, 100, 100, total_tokens=100).padding_share, 0.02)

    def test_long_texts_are_cut_at_the_end(self):
        def cut(sizes, *limits, **options):
            rows = ParallelRows(pairs(sizes), *limits, **options)
            [[(first, second)]] = read(rows)
            self.assertEqual(first, list(range(len(first))))
            self.assertEqual(second, list(range(sizes[0], sizes[0] + len(second))))
            return len(first), len(second), rows.num_cut

        self.assertEqual(cut([9, 4], 5, 5), (5, 4, 1))
        self.assertEqual(cut([9, 9], 5, 6, first_extra=1, second_extra=2), (4, 4, 2))
        # The total limit shortens the longer text only, or both to the same length.
        self.assertEqual(cut([9, 3], 9, 9, total_tokens=10), (7, 3, 1))
        self.assertEqual(cut([3, 9], 9, 9, total_tokens=10), (3, 7, 1))
        self.assertEqual(cut([9, 8], 9, 9, total_tokens=11), (5, 6, 2))
        self.assertEqual(cut([9, 8], 9, 9, total_tokens=13, first_extra=1, second_extra=2), (5, 5, 2))
        self.assertEqual(cut([5, 5], 9, 9, total_tokens=10), (5, 5, 0))
        with self.assertRaisesRegex(ValueError, "hold no pair"):
            ParallelRows(pairs([1, 1]), 5, 2, second_extra=2)

    def test_other_documents_are_refused(self):
        for sizes, message in (
            ([[3, 3], [3]], "document 2 has 1 sentence instead"),
            ([[3, 3, 4], [3, 4]], "document 1 has 3 sentences"),
        ):
            with self.assertRaisesRegex(UserError, message) as raised:
                ParallelRows(pairs(*sizes), 10, 10)
            self.assertIn("parallel files", str(raised.exception))

    def test_pure(self):
        one, two = ParallelRows(random_pairs(50, 9), 20, 20), ParallelRows(random_pairs(50, 9), 20, 20)
        for i in reversed(range(len(one))):
            for a, b in zip(one.row(i, np.zeros(4)), two.row(i, np.ones(4)), strict=True):
                np.testing.assert_array_equal(a, b)

    def test_nothing(self):
        none = np.zeros(1, np.int64)
        for pack in (True, False):
            rows = ParallelRows(TokenizedCorpus(np.zeros(0, np.int32), none, none), 10, 10, pack=pack)
            self.assertEqual((len(rows), rows.padding_share, rows.num_cut), (0, 0.0, 0))


if __name__ == "__main__":
    unittest.main()
