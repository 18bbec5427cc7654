"""Rows of pairs: no lost tokens, no crossed documents, and shapes that do not reveal the label. NumPy only."""

import unittest

import numpy as np

from tests.data.corpora import STOP, corpus, random_corpus
from tfzoo.data.pairs import IN_ORDER, NEXT, NO_PAIR, NOT_NEXT, SWAPPED, OrderRows, PairRows


def uncut(rows):
    return [rows.row(i, np.zeros(4))[0] for i in range(len(rows))]


class RowsTest(unittest.TestCase):
    def test_every_token_once_in_order(self):
        for num_tokens in (1, 2, 7, 40, 1000):
            text = random_corpus(30)
            rows = PairRows(text, num_tokens, pairs=False)
            np.testing.assert_array_equal(np.concatenate(uncut(rows)), text.token_ids)
            self.assertLessEqual(max(map(len, uncut(rows))), num_tokens)

    def test_no_row_crosses_a_document(self):
        text = random_corpus(30)
        rows, start = PairRows(text, 20, pairs=False), 0
        borders = set(text.document_starts.tolist())
        for row in uncut(rows):
            self.assertFalse(borders & set(range(start + 1, start + len(row))))
            start += len(row)

    def test_a_document_is_cut_into_equal_rows(self):
        rows = PairRows(corpus([[5, 6, 7, 3], [4], [10]]), 10, pairs=False)
        self.assertEqual([len(row) for row in uncut(rows)], [7, 7, 7, 4, 10])

    def test_cut_rows_hold_the_same_tokens(self):
        text = random_corpus(30)
        whole, rows = uncut(PairRows(text, 25, pairs=False)), PairRows(text, 25)
        random, cut = np.random.default_rng(1), 0
        for i in range(len(rows)):
            first, second, label = rows.row(i, np.array([random.random(), 0.2, *random.random(2)]))
            np.testing.assert_array_equal(np.concatenate([first, second]), whole[i])
            self.assertIn(label, (NEXT, NO_PAIR))
            self.assertEqual(len(second) == 0, label == NO_PAIR)
            if label == NEXT:
                self.assertEqual(first[-1], STOP)  # Rows are split between sentences.
                cut += 1
        self.assertGreater(cut, 0.8 * len(rows))

    def test_every_boundary_is_cut_alike(self):
        rows = PairRows(corpus([[2, 3, 4, 5], [2, 3, 4, 5]]), 20)
        random = np.random.default_rng(1)
        lengths = [len(rows.row(0, np.array([random.random(), 0, 0, 0]))[0]) for _ in range(900)]
        counts = np.unique(lengths, return_counts=True)
        self.assertEqual(counts[0].tolist(), [2, 5, 9])
        self.assertLess(np.abs(counts[1] - 300).max(), 75)

    def test_pure(self):
        rows, numbers = PairRows(random_corpus(30), 25), np.array([0.3, 0.7, 0.9, 0.1])
        again = PairRows(random_corpus(30), 25)
        for i in reversed(range(len(rows))):
            for one, two in zip(rows.row(i, numbers), again.row(i, numbers), strict=True):
                np.testing.assert_array_equal(one, two)

    def test_padding_is_counted(self):
        rows = PairRows(corpus([[5, 6], [4]]), 10)  # 11 tokens make two rows.
        self.assertEqual((len(rows), rows.padding_share), (3, 0.5))

    def test_nothing(self):
        rows = PairRows(corpus([]), 10)
        self.assertEqual((len(rows), rows.padding_share), (0, 0.0))


class PairsTest(unittest.TestCase):
    def setUp(self):
        self.text = random_corpus(300)
        self.rows = PairRows(self.text, 30)
        starts = np.cumsum([0, *map(len, uncut(PairRows(self.text, 30, pairs=False)))])
        random = np.random.default_rng(2)
        self.pairs = []
        for i in list(range(len(self.rows))) * 4:
            first, second, label = self.rows.row(i, random.random(4))
            self.pairs.append((int(starts[i]), first, second, label))

    def document(self, position):
        return np.searchsorted(self.text.document_starts, position, side="right") - 1

    def test_half_is_replaced_from_another_document(self):
        labels = np.array([label for *_, label in self.pairs if label != NO_PAIR])
        self.assertLess(abs(labels.mean() - 0.5), 3 * 0.5 / np.sqrt(len(labels)))
        starts = set(self.text.sentence_starts.tolist())
        replaced = [pair for pair in self.pairs if pair[3] == NOT_NEXT and pair[2][0] != STOP]
        for start, first, second, _ in replaced:
            self.assertIn(int(second[0]), starts)
            self.assertNotEqual(self.document(second[0]), self.document(start))
            # All tokens are from one document, in its order.
            plain = second != STOP
            np.testing.assert_array_equal(second[plain], (second[0] + np.arange(len(second)))[plain])
            self.assertEqual(self.document(second[0]), self.document(second[0] + len(second) - 1))
            self.assertEqual(len(first) > 0, True)
        # Selected from the whole corpus.
        self.assertGreater(len({self.document(pair[2][0]) for pair in replaced}), 150)

    def test_lengths_and_ends_do_not_tell_the_label(self):
        cases = {}
        for start, first, second, label in self.pairs:
            if label != NO_PAIR:
                cases.setdefault((start, len(first)), set()).add((label, len(second)))
        both = [case for case in cases.values() if len({label for label, _ in case}) == 2]
        self.assertGreater(len(both), 300)
        for case in both:  # The same split of the same row, with and without replacement.
            self.assertEqual(len({length for _, length in case}), 1)
        by_label = {
            label: np.array([second[-1] == STOP for *_, second, other in self.pairs if other == label])
            for label in (NEXT, NOT_NEXT)
        }
        spread = np.sqrt(0.25 / len(by_label[NEXT]) + 0.25 / len(by_label[NOT_NEXT]))
        self.assertLess(abs(by_label[NEXT].mean() - by_label[NOT_NEXT].mean()), 4 * spread)
        # Nor does a start that no second segment has.
        firsts = set(self.text.document_starts.tolist())
        self.assertFalse([1 for *_, second, label in self.pairs if label == NOT_NEXT and second[0] in firsts])

    def test_what_cannot_be_replaced_is_not_cut(self):
        # One sentence; one document; and a document whose end no other one matches.
        for documents in ([[5], [4, 4]], [[3, 3, 3]], [[3, 5], [3, 4], [3, 1, 1]]):
            rows = PairRows(corpus(documents), 30)
            for numbers in np.random.default_rng(0).random([20, 4]):
                first, second, label = rows.row(0, numbers)
                self.assertEqual((len(first), len(second), label), (sum(documents[0]), 0, NO_PAIR))

    def test_a_long_document_beside_a_short_one(self):
        # Nearly every selected sentence is from the same document; the single sentence of the other must be found.
        rows = PairRows(corpus([[5] * 200, [5, 30, 5]]), 20)
        labels = [rows.row(7, numbers)[2] for numbers in np.random.default_rng(0).random([100, 4])]
        self.assertEqual(set(labels), {NEXT, NOT_NEXT})


class OrderTest(unittest.TestCase):
    def test_a_pair_in_and_out_of_order(self):
        rows = OrderRows(corpus([[2, 3, 4], [5]]), 20)
        self.assertEqual((len(rows), rows.padding_share), (2, 1 - 14 / 40))
        for number, cut in ((0.0, 2), (0.99, 5)):
            first, second, label = rows.row(0, np.array([number, 0.2]))
            self.assertEqual((len(first), len(second), label), (cut, 9 - cut, IN_ORDER))
            last, earlier, label = rows.row(0, np.array([number, 0.7]))
            self.assertEqual(label, SWAPPED)
            np.testing.assert_array_equal(earlier, first)
            np.testing.assert_array_equal(last, second)
        first, second, label = rows.row(1, np.zeros(2))
        self.assertEqual((len(first), len(second), label), (5, 0, NO_PAIR))

    def test_every_token_once_and_whole_sentences(self):
        for num_tokens in (1, 3, 14, 40, 1000):
            text = random_corpus(60)
            rows, random = OrderRows(text, num_tokens), np.random.default_rng(0)
            read, labels, beginnings, start = [], [], set(text.sentence_starts.tolist()), 0
            for i in range(len(rows)):
                first, second, label = rows.row(i, random.random(4))
                self.assertLessEqual(len(first) + len(second), num_tokens)
                if label != NO_PAIR:
                    labels.append(label)
                    # Neither the beginning nor the end of a segment tells the order.
                    self.assertEqual((first[-1], second[-1]), (STOP, STOP))
                    self.assertIn(start, beginnings)
                    self.assertIn(start + len(second if label == SWAPPED else first), beginnings)
                read += [second, first] if label == SWAPPED else [first, second]
                start += len(first) + len(second)
            np.testing.assert_array_equal(np.concatenate(read), text.token_ids)
            if num_tokens >= 40:
                self.assertLess(abs(np.mean(labels) - 0.5), 3 * 0.5 / np.sqrt(len(labels)))

    def test_the_rest_of_a_long_sentence_is_not_split_off(self):
        rows = OrderRows(corpus([[25, 3, 4]]), 10)
        found = [rows.row(i, np.zeros(2)) for i in range(len(rows))]
        self.assertEqual([len(first) for first, _, _ in found], [10, 10, 8, 4])
        self.assertEqual([label for *_, label in found], [NO_PAIR] * 4)

    def test_nothing(self):
        self.assertEqual(len(OrderRows(corpus([]), 10)), 0)


if __name__ == "__main__":
    unittest.main()
