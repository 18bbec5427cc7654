"""UL2: the seven denoisers and their mixture, mode tokens, no lost tokens, and rows with room for any denoiser."""

import types

import numpy as np
import pytest
import tensorflow as tf

from tests.data.corpora import documents, random_words
from tests.objectives.examples import (
    SENTINELS,
    SPAN_UNK,
    batch_of,
    check_static_shapes,
    packed_example,
    pieces,
    restored,
    span_tokenizer,
)
from tests.objectives.examples import SPAN_WORDS as WORDS
from tfzoo import models
from tfzoo.errors import UserError
from tfzoo.objectives.ul2 import DENOISERS, MODE_TOKENS, UL2

PAD, EOS = 0, 1
SIZE = WORDS + SENTINELS
R, S, X = SIZE - SENTINELS + 2, SIZE - SENTINELS + 1, SIZE - SENTINELS  # The last three sentinels.
MODES = [R, R, S, X, X, X, X]
# Table 1 of the paper, as fractions and means; the last quarter is one span.
TABLE = [(0.15, 3), (0.15, 8), (0.25, None), (0.5, 3), (0.5, 8), (0.15, 64), (0.5, 64)]


def expected_counts(n, denoiser):
    """Returns the numbers of noise tokens and spans of a document of n tokens."""
    rate, mean = TABLE[denoiser]
    noise = min(max(round(rate * n), 1), n - 1)
    return noise, min(max(round(noise / mean), 1), noise, n - noise) if mean else 1


def documents_of(batch):
    """Yields (inputs, targets) of each document."""
    for i, numbers in enumerate(batch["decoder_document_ids"]):
        for document in range(1, numbers.max() + 1):
            inputs = batch["token_ids"][i, batch["document_ids"][i] == document]
            yield inputs.tolist(), batch["targets"][i, numbers == document].tolist()


class DenoisersTest(tf.test.TestCase):
    def test_the_mixture_is_that_of_the_paper(self):
        self.assertEqual("".join(mode for mode, _, _ in DENOISERS), "RRSXXXX")
        self.assertEqual(UL2(span_tokenizer(), 64).denoisers, [(rate, mean or np.inf) for rate, mean in TABLE])

    def test_numbers_of_every_denoiser_for_every_length(self):
        objective = UL2(span_tokenizer(), 512)
        draw = tf.function(objective.draw, reduce_retracing=True)
        for n in (2, 3, 4, 7, 10, 20, 51, 100, 333, objective.row_tokens):
            # One document for each denoiser, in one row.
            noise = draw(tf.repeat(tf.range(1, 8), n), tf.constant([n, 1]), tf.range(7)).numpy().reshape(7, n)
            for denoiser, mask in enumerate(noise):
                begins = mask & ~np.concatenate([[False], mask[:-1]])
                self.assertEqual((mask.sum(), begins.sum()), expected_counts(n, denoiser), (n, denoiser))
                self.assertEqual((mask[0], mask[-1]), (False, True))
            quarter = min(max(round(n / 4), 1), n - 1)
            self.assertAllEqual(noise[2], np.arange(n) >= n - quarter)  # S removes the end.

    def test_each_denoiser_is_drawn_alike(self):
        count, n = 1400, 40
        objective, corpus, found = UL2(span_tokenizer(), 256), documents(*[n] * count), []
        corpus.token_ids[:] = 7
        batch = batch_of(objective, corpus)
        share = np.sum(batch["padding_mask"]) / batch["padding_mask"].size
        self.assertNear(objective.rows(corpus).padding_share, 1 - share, 0.01)
        for inputs, targets in documents_of(batch):
            spans = sum(i >= WORDS for i in targets)
            found.append((inputs[0], len(targets) - 1 - spans, spans))
        # With 40 tokens, mode and counts tell all denoisers apart.
        cases = [(MODES[d], *expected_counts(n, d)) for d in range(7)]
        self.assertLen(set(cases), 7)
        drawn = np.array([found.count(case) for case in cases])
        self.assertEqual(drawn.sum(), count)
        self.assertLess(np.abs(drawn - count / 7).max(), 4.5 * np.sqrt(count / 7))


class PrepareTest(tf.test.TestCase):
    def test_the_worked_example(self):
        vocab = [f"t{i}" for i in range(100)]
        vocab[3:6] = MODE_TOKENS[0]
        ids = dict(sentinel_ids=list(range(99, 79, -1)), eos_id=1, pad_id=0)
        objective = UL2(types.SimpleNamespace(vocab=vocab, vocab_size=100, **ids), 24, target_length=13)
        sentence = [*range(10, 20)]
        noise = np.zeros([2, 10], bool)
        noise[0, [2, 3, 8, 9]] = noise[1, [8, 9]] = True
        features = objective.corrupt(
            tf.constant(sentence * 2), tf.repeat([1, 2], 10), noise.reshape(-1), tf.constant([3, 4])
        )
        inputs = [3, 10, 11, 99, 14, 15, 16, 17, 98, 1, 4, 10, 11, 12, 13, 14, 15, 16, 17, 99, 1]
        targets = [99, 12, 13, 98, 18, 19, 1, 99, 18, 19, 1]
        expected = {
            "token_ids": inputs + [0] * 3,
            "padding_mask": [True] * 21 + [False] * 3,
            "document_ids": [1] * 10 + [2] * 11 + [0] * 3,
            "position_ids": [*range(10), *range(11)] + [0] * 3,
            "targets": targets + [0] * 2,
            "target_weights": [1.0] * 11 + [0.0] * 2,
            "decoder_token_ids": [0, 99, 12, 13, 98, 18, 19, 0, 99, 18, 19] + [0] * 2,
            "decoder_document_ids": [1] * 7 + [2] * 4 + [0] * 2,
            "decoder_position_ids": [*range(7), *range(4)] + [0] * 2,
        }
        self.assertEqual(sorted(features), sorted(expected))
        for name, value in expected.items():
            self.assertAllEqual(features[name], value)

    def test_inputs_and_targets_restore_every_document(self):
        for longest, length in ((4, 32), (40, 64), (300, 64)):
            corpus = random_words(60, longest, SPAN_UNK, WORDS, longest)
            objective = UL2(span_tokenizer(), length)
            found = []
            for inputs, targets in documents_of(batch_of(objective, corpus)):
                self.assertIn(inputs.pop(0), {R, S, X})
                self.assertEqual((inputs.pop(), targets.pop()), (EOS, EOS))
                found.append(tuple(restored(inputs, targets)))
            self.assertEqual(sorted(found), pieces(objective, corpus))

    def test_a_row_has_room_for_any_denoiser(self):
        self.check_room(33)

    @pytest.mark.faults
    def test_rows_of_other_lengths_have_room_for_any_denoiser(self):
        self.check_room(16, 128)

    def check_room(self, *lengths):
        # The pieces of a row, all corrupted by the same denoiser; a row that overflows is an error in `pad`.
        for length in lengths:
            objective = UL2(span_tokenizer(), length)
            rows = objective.rows(random_words(40, 3 * length, SPAN_UNK, WORDS))
            fullest = {"padding_mask": 0, "target_weights": 0}
            for index in range(0, len(rows), 5):
                tokens, numbers = map(tf.constant, rows.row(index))
                for denoiser, mode in enumerate(MODES):
                    same = tf.fill([numbers[-1]], denoiser)
                    noise = objective.draw(numbers, tf.constant([index, 1]), same)
                    features = objective.corrupt(tokens, numbers, noise, tf.fill([numbers[-1]], mode))
                    fullest = {name: max(most, np.sum(features[name])) for name, most in fullest.items()}
            self.assertEqual(fullest, {"padding_mask": length, "target_weights": objective.target_length})

    def test_empty_and_one_token_documents(self):
        objective = UL2(span_tokenizer(), 12, target_length=8)
        empty = objective.prepare(packed_example())
        for name in ("padding_mask", "target_weights", "document_ids"):
            self.assertFalse(np.any(empty[name]))
        one = objective.prepare(packed_example([5], [6, 7]))
        self.assertAllEqual(one["token_ids"][1:3], [5, EOS])
        self.assertAllEqual(one["token_ids"][4:7], [6, SIZE - 1, EOS])
        self.assertAllEqual(one["targets"][:6], [SIZE - 1, EOS, SIZE - 1, 7, EOS, PAD])
        self.assertAllEqual(np.isin(one["token_ids"], MODES), [1, 0, 0, 1, *[0] * 8])

    def test_the_same_seed_gives_the_same_features(self):
        objective, row = UL2(span_tokenizer(), 64), packed_example(np.arange(3, 40), np.arange(3, 10))
        one, same, other = (objective.prepare(row | {"seed": tf.constant([s, 2])}) for s in (1, 1, 2))
        self.assertAllEqual(one["token_ids"], same["token_ids"])
        self.assertNotAllEqual(one["token_ids"], other["token_ids"])

    def test_shapes_are_static(self):
        for pack in (True, False):
            objective = UL2(span_tokenizer(), 40, pack=pack)
            check_static_shapes(self, objective, ("token_ids", "document_ids"), 40, objective.target_length)

    def test_only_the_tokens_of_spans_are_measured(self):
        objective, corpus = UL2(span_tokenizer(), 48), random_words(40, 40, SPAN_UNK, WORDS)
        batch = batch_of(objective, corpus)
        targets, counted = batch["targets"], batch["target_weights"] > 0
        self.assertAllEqual(objective.measured(batch) > 0, counted & (targets > EOS) & (targets < WORDS))
        found = objective.baselines(corpus.token_ids, [batch])["frequency"]
        self.assertEqual(set(found), {"ul2_loss", "ul2_accuracy"})
        self.assertEqual(objective.best_metric[0], "ul2_loss")


class ModeTokensTest(tf.test.TestCase):
    def modes(self, words):
        """Returns the mode tokens and the largest number of spans."""
        objective = UL2(words, 64)
        return objective._modes.numpy().tolist(), objective._sentinels.shape[0]

    def test_tokens_of_the_vocabulary_or_else_the_last_sentinels(self):
        self.assertEqual(self.modes(span_tokenizer()), (MODES, SENTINELS - 3))
        for names in MODE_TOKENS:
            words = span_tokenizer()
            words.vocab = [f"t{i}" for i in range(SIZE)]
            words.vocab[10:13] = names
            self.assertEqual(self.modes(words), ([10, 10, 11, 12, 12, 12, 12], SENTINELS))
            words.vocab[12] = "other"
            self.assertEqual(self.modes(words), (MODES, SENTINELS - 3))

    def test_what_cannot_be(self):
        with self.assertRaisesRegex(UserError, "ul2 requires three sentinels"):
            UL2(span_tokenizer(3), 16)
        with self.assertRaisesRegex(UserError, "ul2 requires a tokenizer with sentinel, padding"):
            UL2(span_tokenizer(0), 16)
        with self.assertRaisesRegex(UserError, "up to 189 spans, more than the tokenizer's 97 sentinels; use shorter"):
            UL2(span_tokenizer(), 1024)
        objective = UL2(span_tokenizer(), 64)
        objective.check_model("t5_small", models.page("t5"))
        for family in ("bert", "gpt2"):
            with self.assertRaisesRegex(UserError, f"--model={family}: --objective=ul2 requires an encoder-decoder"):
                objective.check_model(family, models.page(family))


if __name__ == "__main__":
    tf.test.main()
