"""SegmentRows: every token once, segments of equal size, and each row's preceding tokens of its own document."""

import unittest

import numpy as np

from tests.data.corpora import documents, random_documents
from tfzoo.data.segments import SegmentRows


class SegmentRowsTest(unittest.TestCase):
    def test_an_example(self):
        rows = SegmentRows(documents(5, 2), 3, 2)
        found = [tuple(part.tolist() for part in rows.row(i)) for i in range(len(rows))]
        self.assertEqual(found, [([0, 1], []), ([2, 3, 4], [0, 1]), ([5, 6], [])])
        self.assertAlmostEqual(rows.padding_share, 2 / 9)

    def test_every_token_is_in_one_row_after_those_before_it(self):
        corpus = random_documents(50, 60)
        starts = set(corpus.document_starts.tolist())
        for num_tokens, memory_length in ((1, 3), (7, 4), (10, 25), (100, 8)):
            rows = SegmentRows(corpus, num_tokens, memory_length)
            found, sizes = [], []
            for i in range(len(rows)):
                tokens, previous = rows.row(i)
                begin = max(start for start in starts if start <= tokens[0])
                expected = np.arange(max(begin, tokens[0] - memory_length), tokens[0])
                np.testing.assert_array_equal(previous, expected)
                if previous.size:  # Segments of a document differ by at most one token.
                    self.assertLessEqual(abs(len(tokens) - sizes[-1]), 1)
                found.append(tokens)
                sizes.append(len(tokens))
            np.testing.assert_array_equal(np.concatenate(found), corpus.token_ids)
            self.assertLessEqual(max(sizes), num_tokens)
            self.assertAlmostEqual(rows.padding_share, 1 - sum(sizes) / (len(rows) * num_tokens))

    def test_an_empty_corpus(self):
        rows = SegmentRows(documents(), 4, 2)
        self.assertEqual((len(rows), rows.padding_share), (0, 0.0))


if __name__ == "__main__":
    unittest.main()
