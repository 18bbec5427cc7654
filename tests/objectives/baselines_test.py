"""Baselines without a model, computed by hand for a text of nine tokens. NumPy only."""

import types
import unittest

import numpy as np

from tfzoo.objectives.baselines import NeighbourTable, masked_lm_baselines

# Words 5, 6, 7; 0-4 are special.
TOKENIZER = types.SimpleNamespace(vocab_size=8, special_ids=[0, 1, 2, 3, 4])
TEXT = np.array([5, 6, 5, 6, 5, 7, 5, 6, 6], np.int32)
FREQUENCY = {5: 5 / 12, 6: 5 / 12, 7: 2 / 12}  # Counts 4, 4 and 1, plus one each.


class NeighbourTableTest(unittest.TestCase):
    def setUp(self):
        frequency = np.zeros(8)
        for word, share in FREQUENCY.items():
            frequency[word] = share
        self.table = NeighbourTable(TEXT[:-1], TEXT[1:], frequency)

    def test_probabilities_by_hand(self):
        # After 5: 6 three times and 7 once, two types in four. After 6: 5 twice and 6 once. After 7: 5 once.
        for neighbour, word, expected in (
            (5, 6, (3 + 2 * 5 / 12) / 6),
            (5, 7, (1 + 2 * 2 / 12) / 6),
            (5, 5, (0 + 2 * 5 / 12) / 6),
            (6, 5, (2 + 2 * 5 / 12) / 5),
            (7, 5, (1 + 1 * 5 / 12) / 2),
            (4, 7, 2 / 12),  # Never seen next to any token.
        ):
            found = self.table.probability(np.array([neighbour]), np.array([word]))
            np.testing.assert_allclose(found, [expected])

    def test_probabilities_sum_to_one(self):
        for neighbour in range(8):
            sums = self.table.probability(np.full(8, neighbour), np.arange(8)).sum()
            self.assertAlmostEqual(sums, 1.0)

    def test_likeliest(self):
        self.assertEqual(self.table.likeliest(np.array([5, 6, 7])).tolist(), [6, 5, 5])
        self.assertEqual(
            self.table.likeliest(np.array([1])).tolist(), [5]
        )  # From the frequency: the first of the most frequent ones.


class MaskedLMBaselinesTest(unittest.TestCase):
    def batch(self, **pairs):
        batch = {
            # [CLS] 5 [MASK] [SEP] 7 [MASK] 5 [SEP]; the two masked tokens are 6 and 6.
            "token_ids": np.array([[2, 5, 4, 3, 7, 4, 5, 3]]),
            "segment_ids": np.array([[0, 0, 0, 0, 1, 1, 1, 1]]),
            "masked_positions": np.array([[2, 5, 0]]),
            "masked_ids": np.array([[6, 6, 0]]),
            "masked_weights": np.array([[1.0, 1.0, 0.0]]),
            "next_sentence": np.array([1]),
            "next_sentence_weight": np.array([1.0]),
        }
        return batch | pairs

    def test_by_hand(self):
        found = masked_lm_baselines(TEXT, [self.batch()], TOKENIZER)
        # The most frequent token is 5 (6 is equally frequent, but later): never correct.
        self.assertEqual(found["frequency"]["masked_lm_accuracy"], 0.0)
        self.assertAlmostEqual(found["frequency"]["masked_lm_loss"], -np.log(5 / 12))
        # From the left: 6 after 5 is correct; 5 after 7 is wrong. From the right: [SEP] has no statistics, and
        # 5 is preceded by 6 twice and by 7 once, correct.
        self.assertEqual(found["neighbour"]["masked_lm_accuracy"], 0.5)
        left = -(np.log((3 + 2 * 5 / 12) / 6) + np.log((1 * 5 / 12) / 2)) / 2
        self.assertAlmostEqual(found["neighbour"]["masked_lm_loss"], left)
        # The guess is "next" if the tokens before and after the cut fit together: here, [MASK] is before it.
        self.assertEqual(found["neighbour"]["next_sentence_accuracy"], 1.0)
        self.assertEqual(found["frequency"]["next_sentence_accuracy"], 1.0)

    def test_pairs(self):
        ids = np.array([[2, 5, 3, 6, 3, 0, 0, 0], [2, 5, 3, 5, 3, 0, 0, 0]])
        segments = np.array([[0, 0, 0, 1, 1, 0, 0, 0]] * 2)
        batch = {name: np.repeat(x, 2, 0) for name, x in self.batch().items()} | {
            "token_ids": ids,
            "segment_ids": segments,
        }
        for labels, neighbour, frequency in (([0, 1], 1.0, 0.5), ([0, 0], 0.5, 1.0), ([1, 0], 0.0, 0.5)):
            batches = [batch | {"next_sentence": np.array(labels), "next_sentence_weight": np.ones(2)}]
            found = masked_lm_baselines(TEXT, batches, TOKENIZER)
            self.assertEqual(found["neighbour"]["next_sentence_accuracy"], neighbour)
            self.assertEqual(found["frequency"]["next_sentence_accuracy"], frequency)

    def test_the_order_of_sentences(self):
        # 6 follows 5 in the text more often than 5 follows 6. [CLS] 5 5 [SEP] 6 5 [SEP]: 5 6 at the border, 5 5
        # if swapped; [CLS] 6 5 [SEP] 5 5 [SEP] is the swapped pair.
        batch = {name: np.repeat(x, 2, 0) for name, x in self.batch().items() if not name.startswith("next")} | {
            "token_ids": np.array([[2, 5, 5, 3, 6, 5, 3, 0], [2, 6, 5, 3, 5, 5, 3, 0]]),
            "segment_ids": np.array([[0, 0, 0, 0, 1, 1, 1, 0]] * 2),
            "sentence_order_weight": np.ones(2),
        }
        for labels, neighbour, frequency in (([0, 1], 1.0, 0.5), ([0, 0], 0.5, 1.0), ([1, 0], 0.0, 0.5)):
            found = masked_lm_baselines(TEXT, [batch | {"sentence_order": np.array(labels)}], TOKENIZER)
            self.assertEqual(found["neighbour"]["sentence_order_accuracy"], neighbour)
            self.assertEqual(found["frequency"]["sentence_order_accuracy"], frequency)
            self.assertNotIn("next_sentence_accuracy", found["frequency"])

    def test_without_pairs(self):
        found = masked_lm_baselines(TEXT, [self.batch(next_sentence_weight=np.zeros(1))], TOKENIZER)
        self.assertNotIn("next_sentence_accuracy", found["neighbour"])

    def test_a_text_of_one_token(self):
        found = masked_lm_baselines(TEXT[:1], [self.batch()], TOKENIZER)
        self.assertEqual(found["neighbour"]["masked_lm_accuracy"], 0.0)


if __name__ == "__main__":
    unittest.main()
