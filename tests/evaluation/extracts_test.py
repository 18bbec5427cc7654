"""Baselines of tasks that write: the translation memory, the first sentences, TextRank by its formula. NumPy only."""

import math
import unittest

import numpy as np

from tfzoo.evaluation import extracts


class ExtractsTest(unittest.TestCase):
    def test_memory(self):
        sources = ["a red house", "the dog sleeps", "two dogs sleep", "我喜欢狗"]
        found = extracts.memory(sources, ["1", "2", "3", "4"], ["A house", "dogs sleep now", "我喜欢你", "the dog"])
        self.assertEqual(found, ["1", "3", "4", "2"])

    def test_lead(self):
        text = "It is 1.5 m high. See it!\nThe rest"
        self.assertEqual(extracts.lead(text, 1), "It is 1.5 m high.")
        self.assertEqual(extracts.lead(text, 3), "It is 1.5 m high. See it! The rest")
        self.assertEqual(extracts.lead("", 1), "")

    def test_text_rank(self):
        parts = ["A b c d.", "C d e h.", "X y z w.", "E f g a b d."]
        # Shared words, with the full stop, over the sum of the logarithms of the numbers of words: 5, 5, 5 and 7.
        fives, seven = 2 * math.log(5), math.log(5) + math.log(7)
        weights = np.array([[0, 3 / fives, 1 / fives, 4 / seven], [3 / fives, 0, 1 / fives, 3 / seven],
                            [1 / fives, 1 / fives, 0, 1 / seven], [4 / seven, 3 / seven, 1 / seven, 0]])  # fmt: skip
        matrix = 0.15 / 4 + 0.85 * (weights / weights.sum(1, keepdims=True)).T
        values, vectors = np.linalg.eig(matrix)
        rank = np.abs(np.real(vectors[:, np.argmax(np.real(values))]))
        order = np.argsort(-rank, kind="stable")
        self.assertEqual(order[-1], 2)
        for count in (1, 2, 3):
            wanted = " ".join(parts[i] for i in sorted(order[:count]))
            self.assertEqual(extracts.text_rank(" ".join(parts), count), wanted)
        self.assertEqual(extracts.text_rank("One.", 3), "One.")


if __name__ == "__main__":
    unittest.main()
