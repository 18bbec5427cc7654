"""Baselines of tasks that write: the translation memory, the first sentences, TextRank by its formula. NumPy only."""

import math
import random
import unittest

import numpy as np
from rouge_score import rouge_scorer

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
        self.assertEqual(extracts.lead("他走了。我今天很高興！", 2), "他走了。我今天很高興！")

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

    def test_oracle_by_hand(self):
        parts = ["A b x y.", "C d.", "A b.", "Z."]
        # "c d" has ROUGE-1 2 * 2 / 6 and ROUGE-2 2 * 1 / 4, as "a b" has, and more than "a b x y". With "a b", in the
        # order of the text "c d a b", ROUGE-1 is 1 and ROUGE-2 2 * 2 / 6. "z" would lower both.
        self.assertEqual(extracts.oracle(parts, "a b c d", 1), [1])
        self.assertEqual(extracts.oracle(parts, "a b c d", 3), [1, 2])
        self.assertEqual(extracts.oracle(parts, "nothing", 3), [])
        self.assertEqual(extracts.oracle(["Z.", "Z."], "z", 3), [0])
        self.assertEqual(extracts.oracle(["他走了。", "我今天很高興！"], "今天高興", 2), [1])

    def test_oracle_is_greedy_by_rouge_score(self):
        scorer, draw = rouge_scorer.RougeScorer(["rouge1", "rouge2"]), random.Random(0)
        for _ in range(20):
            parts = [" ".join(draw.choices("abcdefgh", k=draw.randint(1, 6))) for _ in range(6)]
            summary = " ".join(draw.choices("abcdefgh", k=6))

            def score(chosen, parts=parts, summary=summary):
                found = scorer.score(summary, " ".join(parts[i] for i in chosen))
                return round(sum(each.fmeasure for each in found.values()), 9)

            chosen: list[int] = []
            while others := [sorted([*chosen, i]) for i in range(6) if i not in chosen]:
                if max(map(score, others)) <= score(chosen):
                    break
                chosen = max(others, key=score)
            self.assertEqual(extracts.oracle(parts, summary, 6), chosen)


if __name__ == "__main__":
    unittest.main()
