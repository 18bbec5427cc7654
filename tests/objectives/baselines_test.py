"""Baselines without a trained model, computed by hand for a text of nine tokens. NumPy only."""

import types
import unittest
import warnings
from unittest import mock

import numpy as np

from tfzoo.errors import UserError
from tfzoo.evaluation.ngram import KneserNey
from tfzoo.objectives import baselines
from tfzoo.objectives.baselines import NeighbourTable, masked_lm_baselines, neighbour_baseline, ngram_baseline

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

    def test_without_masked_tokens(self):
        with warnings.catch_warnings(action="error"):
            found = masked_lm_baselines(TEXT, [self.batch(masked_weights=np.zeros((1, 3)))], TOKENIZER)
        self.assertEqual((found["neighbour"]["masked_lm_accuracy"], found["neighbour"]["masked_lm_loss"]), (0, 0))

    def test_a_text_of_one_token(self):
        found = masked_lm_baselines(TEXT[:1], [self.batch()], TOKENIZER)
        self.assertEqual(found["neighbour"]["masked_lm_accuracy"], 0.0)


class NeighbourBaselineTest(unittest.TestCase):
    def test_by_hand(self):
        batch = {
            "before_targets": np.array([[0, 5, 6, 7, 6]]),
            "targets": np.array([[5, 6, 1, 6, 7]]),
            "target_weights": np.array([[1, 1, 1, 1, 0]]),
        }
        found = neighbour_baseline(TEXT, [batch], TOKENIZER, "causal")["neighbour"]
        # A quarter of the targets is special. 5 follows a special token, and 6 never follows 7 in the text.
        after_5, after_7 = (3 + 2 * 5 / 12) / 6, (0 + 1 * 5 / 12) / 2
        probabilities = [3 / 4 * 5 / 12, 3 / 4 * after_5, 1 / 4, 3 / 4 * after_7]
        self.assertAlmostEqual(found["causal_loss"], -np.mean(np.log(probabilities)))
        self.assertAlmostEqual(found["causal_accuracy"], 2 / 4)  # 5 is the most frequent token, and 6 follows 5.

    def test_without_ordinary_targets(self):
        batch = {"before_targets": np.array([[5]]), "targets": np.array([[1]]), "target_weights": np.array([[1]])}
        found = neighbour_baseline(TEXT[:0], [batch], TOKENIZER, "causal")["neighbour"]
        self.assertEqual(found["causal_loss"], 0)
        batch = {name: value * 0 for name, value in batch.items()}
        self.assertEqual(neighbour_baseline(TEXT, [batch], TOKENIZER, "x")["neighbour"], {"x_loss": 0, "x_accuracy": 0})


class Rows:
    """Rows of documents; those that are None cannot be read."""

    def __init__(self, *rows):
        self.rows, self.read = rows, []

    def __len__(self):
        return len(self.rows)

    def row(self, index, numbers=None):
        self.read.append(index)
        if self.rows[index] is None:
            raise UserError("damaged")
        documents = self.rows[index]
        numbers = np.repeat(np.arange(len(documents)) + 1, list(map(len, documents)))
        return np.concatenate(documents).astype(np.int32), numbers.astype(np.int32)


class NgramBaselineTest(unittest.TestCase):
    ROWS = ([[5, 6, 7, 1], [5, 6, 1]], None, [[6, 6, 5, 7, 5, 6, 1]])
    DOCUMENTS = ([5, 6, 7, 1], [5, 6, 1], [6, 6, 5, 7, 5, 6, 1])
    # Documents [5, 6, 7], [7, 1] | [6, 6, 5, 1]; 3 is padding.
    BATCH = {
        "token_ids": np.array([[5, 6, 7, 3], [6, 6, 5, 3]]),
        "targets": np.array([[6, 7, 1, 3], [6, 5, 1, 3]]),
        "target_weights": np.array([[1, 1, 1, 0], [0, 1, 1, 0]]),
        "document_ids": np.array([[1, 1, 2, 0], [1, 1, 1, 0]]),
    }

    def expected(self, *documents):
        """Returns the figures of targets; documents: (tokens, indices of the targets that count)."""
        ids, starts = np.concatenate(self.DOCUMENTS), np.cumsum([0, *map(len, self.DOCUMENTS)])
        model = KneserNey(ids, starts, order=5, vocab_size=8)
        losses, hits = [], []
        for tokens, counted in documents:
            scores = model.score(np.array(tokens))
            losses += [-scores.log_probabilities[i] for i in counted]
            hits += [scores.likeliest[i] == tokens[i] for i in counted]
        return {"causal_loss": np.mean(losses), "causal_accuracy": np.mean(hits)}

    def check(self, batches, *documents):
        found = ngram_baseline(Rows(*self.ROWS), 8, batches, TOKENIZER, "causal")
        self.assertEqual(list(found), ["n-gram"])
        for name, value in self.expected(*documents).items():
            self.assertAlmostEqual(found["n-gram"][name], value, msg=name)

    def test_packed_rows(self):
        documents = ([5, 6, 7], [1, 2]), ([7, 1], [1]), ([6, 6, 5, 1], [2, 3])
        self.check([self.BATCH], *documents)
        self.check([{name: value[i : i + 1] for name, value in self.BATCH.items()} for i in (0, 1)], *documents)

    def test_one_document_per_row(self):
        batch = {name: value for name, value in self.BATCH.items() if name != "document_ids"}
        self.check([batch], ([5, 6, 7, 1], [1, 2, 3]), ([6, 6, 5, 1], [2, 3]))

    def test_rows_of_zeros_fill_up_the_last_batch(self):
        batch = {name: np.concatenate([value, value * 0]) for name, value in self.BATCH.items()}
        self.check([batch], ([5, 6, 7], [1, 2]), ([7, 1], [1]), ([6, 6, 5, 1], [2, 3]))

    def test_without_targets(self):
        batch = {name: value * 0 for name, value in self.BATCH.items()}
        found = ngram_baseline(Rows(None), 8, [batch], TOKENIZER, "causal")
        self.assertEqual(found, {"n-gram": {"causal_loss": 0, "causal_accuracy": 0}})

    def test_a_part_of_a_long_text(self):
        for limit, expected in ((800, range(100)), (799, range(0, 100, 2)), (80, range(0, 100, 10))):
            rows = Rows(*[[[5, 6]]] * 100)
            with mock.patch.object(baselines, "_NGRAM_TOKENS", limit):
                ngram_baseline(rows, 8, [self.BATCH], TOKENIZER, "causal")
            self.assertEqual(rows.read, list(expected))


if __name__ == "__main__":
    unittest.main()
