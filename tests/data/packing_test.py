"""Packed rows: no tokens lost or duplicated, no limit exceeded, rows determined by their index. NumPy only."""

import unittest
from unittest import mock

import numpy as np

from tests.data.corpora import STOP, corpus, documents, random_corpus, random_documents
from tfzoo.data import packing
from tfzoo.data.packing import PackedRows

FIRST, LAST = -1, -2


def read(rows):
    """Returns each row as a list of the pieces of its documents."""
    result = []
    for i in range(len(rows)):
        token_ids, document_ids = rows.row(i)
        assert token_ids.dtype == document_ids.dtype == np.int32
        starts = np.flatnonzero(np.diff(document_ids, prepend=0))
        assert document_ids[starts].tolist() == list(range(1, len(starts) + 1))
        result.append([part.tolist() for part in np.split(token_ids, starts[1:])])
    return result


class PackedRowsTest(unittest.TestCase):
    def test_by_hand(self):
        # Lengths 5, 4, 3, 3, 2, 9: 9 becomes a full row and a piece of 1; 5 leaves 3, filled by a 3; then 4, 3 and 1.
        rows = PackedRows(documents(5, 4, 3, 3, 2, 9), 8)
        found = read(rows)
        self.assertEqual([[len(piece) for piece in row] for row in found], [[5, 3], [4, 3, 1], [2], [8]])
        self.assertEqual(found[1], [[5, 6, 7, 8], [12, 13, 14], [25]])
        self.assertEqual(rows.padding_share, 1 - 26 / 32)

    def test_no_token_is_lost_or_doubled(self):
        for longest, count in ((2, 50), (9, 300), (90, 200), (700, 20)):
            text = random_documents(count, longest, seed=longest)
            for num_tokens, extra, pack in ((40, 0, True), (40, 0, False), (40, 2, True), (7, 3, True), (999, 0, True)):
                with self.subTest(longest=longest, num_tokens=num_tokens, extra=extra, pack=pack):
                    pieces = [piece for row in read(PackedRows(text, num_tokens, extra, pack=pack)) for piece in row]
                    tokens = sorted(token for piece in pieces for token in piece)
                    self.assertEqual(tokens, text.token_ids.tolist())
                    borders = set(text.document_starts.tolist())
                    for piece in pieces:  # Consecutive tokens of a document.
                        self.assertEqual(piece, list(range(piece[0], piece[0] + len(piece))))
                        self.assertFalse(borders & set(piece[1:]))

    def test_no_limit_is_exceeded_and_padding_is_counted(self):
        text = random_documents(400, 60)

        def squares(sizes):
            return sizes**2

        for extra, also in ((0, ()), (2, ()), (0, [(3600, squares)]), (1, [(3600, squares), (5, np.ones_like)])):
            rows = PackedRows(text, 60, extra, also=also)
            used = 0
            for row in read(rows):
                sizes = np.array([len(piece) for piece in row])
                used += np.sum(sizes + extra)
                self.assertLessEqual(np.sum(sizes + extra), 60)
                for limit, cost in also:
                    self.assertLessEqual(np.sum(cost(sizes)), limit)
            self.assertAlmostEqual(rows.padding_share, 1 - used / (60 * len(rows)))
        with self.assertRaisesRegex(ValueError, "costs"):
            PackedRows(text, 60, also=[(100, squares)])

    def test_little_is_empty(self):
        text = random_documents(3000, 50)
        packed, alone = PackedRows(text, 64), PackedRows(text, 64, pack=False)
        self.assertLess(packed.padding_share, 0.02)
        self.assertGreater(alone.padding_share, 0.5)
        self.assertEqual(len(alone), 3000)

    def test_long_documents_are_cut_into_full_pieces(self):
        for pack in (True, False):
            found = read(PackedRows(documents(25, 30), 10, pack=pack))
            pieces = sorted(piece for row in found for piece in row)
            self.assertEqual([len(piece) for piece in pieces], [10, 10, 5, 10, 10, 10])
        self.assertEqual([row[0][0] for row in found], [0, 10, 20, 25, 35, 45])  # In order.

    def test_first_and_last_tokens_and_overlap(self):
        # <first> 0 1 <last>, and 11 tokens in pieces of at most 6 that share one token.
        text = documents(2, 9)
        rows = PackedRows(text, 5, -1, first_id=FIRST, last_id=LAST, overlap=1)
        pieces = [piece for row in read(rows) for piece in row]
        self.assertEqual(pieces, [[FIRST, 0, 1, LAST], [FIRST, 2, 3, 4, 5, 6], [6, 7, 8, 9, 10, LAST]])
        for first, last in ((FIRST, None), (None, LAST)):
            pieces = [b for row in read(PackedRows(text, 50, first_id=first, last_id=last)) for b in row]
            expected = [[0, 1], list(range(2, 11))]
            self.assertEqual(pieces, [[FIRST, *e] if first else [*e, LAST] for e in expected])
        # A last token that does not fit is a piece of its own; with an overlap, this never happens.
        self.assertEqual(read(PackedRows(documents(4), 4, last_id=LAST)), [[[0, 1, 2, 3]], [[LAST]]])
        self.assertEqual(read(PackedRows(documents(4), 3, -1, last_id=LAST, overlap=1)), [[[0, 1, 2, 3]], [[3, LAST]]])

    def test_with_an_overlap_each_token_follows_once(self):
        for num_tokens in (2, 5, 16):
            text = random_documents(100, 40)
            rows = PackedRows(text, num_tokens, -1, first_id=FIRST, last_id=LAST, overlap=1)
            pairs = []
            for row in read(rows):
                self.assertLessEqual(sum(len(piece) - 1 for piece in row), num_tokens)
                pairs += [pair for piece in row for pair in zip(piece[:-1], piece[1:], strict=True)]
            expected = []
            for begin, end in zip(text.document_starts[:-1], text.document_starts[1:], strict=True):
                document = [FIRST, *range(begin, end), LAST]
                expected += zip(document[:-1], document[1:], strict=True)
            self.assertEqual(sorted(pairs), sorted(expected))

    def test_documents_are_packed_in_windows_of_their_own(self):
        with mock.patch.object(packing, "_WINDOW", 16):
            whole = read(PackedRows(random_documents(200, 30), 40))
            for row in whole:
                windows = {np.searchsorted(random_documents(200, 30).document_starts, b[0], "right") - 1 for b in row}
                self.assertEqual(len({window // 16 for window in windows}), 1)
            # Later documents do not affect earlier rows.
            lengths = np.diff(random_documents(200, 30).document_starts)[:160].tolist()
            part = read(PackedRows(documents(*lengths, 7, 8, 9), 40))
            same = sum(one == two for one, two in zip(part, whole, strict=False))
            self.assertGreaterEqual(same, len(part) - 1)

    def test_pure(self):
        text = random_documents(100, 30)
        one, two = PackedRows(text, 40), PackedRows(text, 40)
        for i in reversed(range(len(one))):
            for a, b in zip(one.row(i, np.zeros(4)), two.row(i, np.ones(4)), strict=True):
                np.testing.assert_array_equal(a, b)

    def test_sentences_are_numbered(self):
        text = corpus([[2, 3], [1, 1, 1], [9]])
        rows = PackedRows(text, 6, sentences=True)
        self.assertEqual(list(rows.FEATURES), ["token_ids", "document_ids", "sentence_ids"])
        found = [[x.tolist() for x in rows.row(i)[1:]] for i in range(len(rows))]
        # The sentence of 9 tokens is cut; its remainder is a sentence next to three others.
        self.assertEqual(
            found,
            [
                [[1] * 5, [1, 1, 2, 2, 2]],
                [[1, 1, 1, 2, 2, 2], [1, 2, 3, 4, 4, 4]],
                [[1] * 6, [1] * 6],
            ],
        )
        text = random_corpus(60)
        plain, numbered = PackedRows(text, 40, extra=1), PackedRows(text, 40, extra=1, sentences=True)
        self.assertEqual(list(plain.FEATURES), ["token_ids", "document_ids"])
        for i in range(len(plain)):
            ids, documents, sentences = numbered.row(i)
            for one, two in zip(plain.row(i), (ids, documents), strict=True):
                np.testing.assert_array_equal(one, two)
            self.assertEqual(sentences.dtype, np.int32)
            # A sentence ends with STOP, and with its document.
            ends = (ids == STOP) | (np.diff(documents, append=0) != 0)
            np.testing.assert_array_equal(sentences, 1 + np.cumsum(np.append(0, ends[:-1])))

    def test_nothing(self):
        for pack in (True, False):
            rows = PackedRows(documents(), 10, pack=pack)
            self.assertEqual((len(rows), rows.padding_share), (0, 0.0))


if __name__ == "__main__":
    unittest.main()
