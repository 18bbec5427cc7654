"""BM25 compared with the formula computed by hand, words of several scripts, and the index in files and in memory."""

import math
import unittest
from unittest import mock

import numpy as np

from tests import helpers
from tfzoo.retrieval import bm25
from tfzoo.retrieval.bm25 import BM25

# Lengths 3, 2, 4 and 0: the mean is 2.25.
TEXTS = ["the red fox", "The FOX", "a dog, a dog!", "..."]


class WordsTest(unittest.TestCase):
    def test_words(self):
        for text, expected in (
            ("Élan vital, 2 of 3!", ["élan", "vital", "2", "of", "3"]),
            ("e\u0301lan \uff21\uff22", ["élan", "ab"]),  # A combining accent, and full-width letters.
            ("snake_case it's", ["snake", "case", "it", "s"]),
            ("हिन्दी", ["हिन्दी"]),  # Vowel signs are combining marks, not letters.
            ("", []),
            (" .,“”! ", []),
        ):
            self.assertEqual(bm25.words(text), expected, text)

    def test_scripts_without_spaces(self):
        for text, expected in (
            ("天気。", ["天", "気", "天気"]),
            ("天 気", ["天", "気"]),
            ("《天》", ["天", "《天", "天》"]),
            ("看GPT4", ["看", "g", "p", "t", "4", "看g", "gp", "pt", "t4", "gpt4"]),
            ("5年 GPT", ["5", "年", "5年", "gpt"]),
            ("ไป", ["ไ", "ป", "ไป"]),
        ):
            self.assertEqual(bm25.words(text), expected, text)


class ScoresTest(unittest.TestCase):
    def test_the_formula_by_hand(self):
        # "fox" is in two of four documents, once each; "dog" in one of them, twice; "a" likewise.
        two, one = math.log(1 + 2.5 / 2.5), math.log(1 + 3.5 / 1.5)

        def part(weight, count, length, k1=1.2, b=0.75):
            return weight * count * (k1 + 1) / (count + k1 * (1 - b + b * length / 2.25))

        index = BM25.of(TEXTS)
        for query, expected in (
            ("Fox?", [part(two, 1, 3), part(two, 1, 2), 0, 0]),
            ("dog", [0, 0, part(one, 2, 4), 0]),
            ("dog fox", [part(two, 1, 3), part(two, 1, 2), part(one, 2, 4), 0]),
            ("dog dog", [0, 0, 2 * part(one, 2, 4), 0]),
            ("cat", [0, 0, 0, 0]),
            ("", [0, 0, 0, 0]),
        ):
            np.testing.assert_allclose(index.scores(query), expected, rtol=1e-12, err_msg=query)
        other = BM25.of(TEXTS, k1=0.5, b=0.1)
        np.testing.assert_allclose(other.scores("dog"), [0, 0, part(one, 2, 4, 0.5, 0.1), 0], rtol=1e-12)

    def test_no_document_contains_a_word(self):
        index = BM25.of(["...", "!"])
        np.testing.assert_array_equal(index.scores("fox"), [0, 0])


class FilesTest(unittest.TestCase):
    def test_files_equal_the_index_in_memory_whatever_the_blocks(self):
        draw = np.random.default_rng(0)
        vocabulary = [*"abcdefghij", "天", "気", "été", "\U00020000"]
        texts = [" ".join(draw.choice(vocabulary, draw.integers(0, 9))) for _ in range(50)]
        expected = BM25.of(texts)
        self.assertEqual(list(expected.terms), sorted(expected.terms, key=str.encode))
        for block in (1, 7, 50, 51):
            folder = helpers.temporary_folder(self)
            with mock.patch.object(bm25, "_BLOCK", block):
                bm25.write(folder, iter(texts))
            found = BM25.open(folder, bm25.K1, bm25.B)
            self.assertEqual(list(found.terms), list(expected.terms))
            for name in bm25.ARRAYS:
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
            names = [*(f"bm25_{name}.npy" for name in bm25.ARRAYS), "bm25_terms.bin", "bm25_terms.npy"]
            self.assertCountEqual([path.name for path in folder.iterdir()], names)

    def test_postings_by_hand(self):
        index = BM25.of(TEXTS)
        self.assertEqual(list(index.terms), ["a", "dog", "fox", "red", "the"])
        self.assertEqual(index.starts.tolist(), [0, 1, 2, 4, 5, 7])
        self.assertEqual(index.documents.tolist(), [2, 2, 0, 1, 0, 0, 1])
        self.assertEqual(index.counts.tolist(), [2, 2, 1, 1, 1, 1, 1])
        self.assertEqual(index.lengths.tolist(), [3, 2, 4, 0])

    def test_without_any_word(self):
        folder = helpers.temporary_folder(self)
        bm25.write(folder, ["...", "!"])
        np.testing.assert_array_equal(BM25.open(folder, bm25.K1, bm25.B).scores("fox"), [0, 0])


if __name__ == "__main__":
    unittest.main()
