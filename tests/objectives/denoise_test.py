"""Denoising: the figure of the paper, rates and span lengths, no lost tokens, separate documents, and the loss."""

import math
import types

import numpy as np
import tensorflow as tf

import tfzoo
from tests.data.corpora import random_corpus
from tests.nn.formulas import randomize
from tests.objectives.examples import batch_of, check_reading, check_static_shapes, packed_example
from tfzoo.data.tokenized import TokenizedCorpus
from tfzoo.errors import UserError
from tfzoo.objectives.denoise import Denoise

PAD, UNK, CLS, SEP, MASK, FIRST = range(6)
SIZE = 300
EOS = 2  # Of a tokenizer without cls and sep.


def tokenizer(**others):
    roles = dict(pad_id=PAD, cls_id=CLS, sep_id=SEP, mask_id=MASK) | others
    return types.SimpleNamespace(vocab_size=SIZE, special_ids=list(range(FIRST)), **roles)


def without_cls():
    return tokenizer(cls_id=None, sep_id=None, eos_id=EOS)


def sentences(count, seed=0, longest=12):
    """Returns documents of sentences whose tokens are unique in a document."""
    text = random_corpus(count, seed, longest)
    starts = np.repeat(text.document_starts[:-1], np.diff(text.document_starts))
    ids = (FIRST + np.arange(len(text.token_ids)) - starts).astype(np.int32)
    return TokenizedCorpus(ids, text.sentence_starts, text.document_starts)


def example_of(rows, index, seed=0):
    """Returns row `index` as the pipeline does."""
    features = {name: tf.constant(x) for name, x in zip(rows.FEATURES, rows.row(index), strict=True)}
    return features | {"seed": tf.constant([seed, 2], tf.int32)}


def inner(ids, documents, number):
    """Returns the ids of a document without the tokens around it."""
    ids = np.asarray(ids)[np.asarray(documents) == number]
    assert (ids[0], ids[-1]) == (CLS, SEP)
    return ids[1:-1].tolist()


def compiled(function):
    return tf.function(function, input_signature=[tf.TensorSpec([None], tf.int32), tf.TensorSpec([2], tf.int32)])


def expected_count(n, rate=0.3):
    return int(min(max(np.round(np.float32(rate) * np.float32(n)), 1), n))


class FigureTest(tf.test.TestCase):
    """Figure 2 of the paper."""

    TEXT = [10, 11, 12, 15, 13, 14, 15]  # A B C . D E .

    def corrupt(self, is_span=None, lengths=None, order=None, first=None, **options):
        objective = Denoise(tokenizer(), 12, **options)
        is_span = [0] * 7 if is_span is None else is_span
        lengths = [1] * 7 if lengths is None else lengths
        features = objective.corrupt(
            tf.constant(self.TEXT),
            tf.ones([7], tf.int32),
            tf.range(7) if order is None else tf.constant(order),
            (tf.constant(is_span) > 0, tf.constant(lengths), tf.ones([len(is_span)], tf.int32)),
            None if first is None else tf.constant([first]),
        )
        self.assertAllEqual(features["decoder_token_ids"], [3, 2, 10, 11, 12, 15, 13, 14, 15, 0, 0, 0])
        self.assertAllEqual(features["targets"], [2, 10, 11, 12, 15, 13, 14, 15, 3, 0, 0, 0])
        self.assertAllEqual(features["target_weights"], [1.0] * 9 + [0.0] * 3)
        self.assertAllEqual(features["decoder_document_ids"], [1] * 9 + [0] * 3)
        self.assertAllEqual(features["decoder_position_ids"], [*range(9), 0, 0, 0])
        length = np.sum(features["padding_mask"])
        self.assertAllEqual(features["document_ids"], [1] * length + [0] * (12 - length))
        self.assertAllEqual(features["position_ids"], [*range(length), *[0] * (12 - length)])
        self.assertAllEqual(features["token_ids"][length:], [PAD] * (12 - length))
        return features["token_ids"][:length].numpy().tolist(), np.flatnonzero(features["corrupted"]).tolist()

    def test_masking(self):
        found = self.corrupt([0, 1, 0, 0, 1, 0, 0], token_noise="masking")
        self.assertEqual(found, ([2, 10, 4, 12, 15, 4, 14, 15, 3], [2, 5]))

    def test_permutation(self):
        for noise in ("none", "infilling"):
            ids, corrupted = self.corrupt(order=[4, 5, 6, 0, 1, 2, 3], token_noise=noise)
            self.assertEqual(ids, [2, 13, 14, 15, 10, 11, 12, 15, 3])
            self.assertEqual(corrupted, list(range(1, 8)) if noise == "none" else [])

    def test_rotation(self):
        for first in (2 / 7 + 1e-6, 3 / 7 - 1e-6):
            self.assertEqual(self.corrupt(first=first, token_noise="none")[0], [2, 12, 15, 13, 14, 15, 10, 11, 3])

    def test_deletion(self):
        found = self.corrupt([0, 1, 0, 0, 1, 0, 0], token_noise="deletion")
        self.assertEqual(found, ([2, 10, 12, 15, 14, 15, 3], [2, 5]))

    def test_infilling(self):
        found = self.corrupt([0, 1, 0, 0, 1, 0, 0], [1, 2, 1, 1, 0, 1, 1])
        self.assertEqual(found, ([2, 10, 4, 15, 13, 4, 14, 15, 3], [2, 3]))

    def test_corrupted_targets_of_permuted_sentences(self):
        # D and E are masked after the permutation.
        found = self.corrupt([1, 0, 0, 0, 0, 0], [2, 1, 1, 1, 1, 1], order=[4, 5, 6, 0, 1, 2, 3])
        self.assertEqual(found, ([2, 4, 15, 10, 11, 12, 15, 3], [5, 6]))


class DrawTest(tf.test.TestCase):
    def test_numbers_for_every_length(self):
        for noise in ("infilling", "masking", "deletion"):
            for rate in (0.3, 0.5):
                draw = compiled(Denoise(tokenizer(), 300, token_noise=noise, noise_rate=rate).draw)
                sizes = [1, 2, 3, 5, 10, 29, 200]
                documents = tf.repeat(tf.range(1, 8), sizes)
                for seed in range(4):
                    is_span, lengths, owners = (x.numpy() for x in draw(documents, tf.constant([seed, 1])))
                    self.assertTrue(np.all(np.diff(owners) >= 0))
                    self.assertTrue(np.all(lengths[~is_span] == 1))
                    for number, n in enumerate(sizes, 1):
                        own = owners == number
                        count = expected_count(n, rate)
                        if noise == "deletion":
                            count = min(count, n - 1)
                        self.assertEqual(np.sum(lengths[own]), n)
                        self.assertEqual(np.sum(lengths[own & is_span]), count)
                        self.assertLessEqual(np.sum(own & is_span), count)  # No text becomes longer.
                        if noise != "infilling":
                            self.assertAllEqual(lengths[own], np.ones(n))

    def test_span_lengths_are_drawn_from_a_poisson_distribution(self):
        for mean in (3.0, 1.0, 6.0):
            objective = Denoise(tokenizer(), 2000, mean_span=mean)
            draw = compiled(objective.draw)
            drawn = []
            for seed in range(60):
                is_span, lengths, _ = draw(tf.ones([1500], tf.int32), tf.constant([seed, 3]))
                drawn.append(lengths[is_span].numpy())
            lengths = np.concatenate(drawn)
            probability = np.array([math.exp(-mean) * mean**k / math.factorial(k) for k in range(30)])
            frequency = np.bincount(lengths, minlength=30)[:30] / len(lengths)
            # One span of each document is shortened.
            tolerance = 4.5 * np.sqrt(probability / len(lengths)) + 60 / len(lengths)
            self.assertTrue(np.all(np.abs(frequency - probability) < tolerance), frequency - probability)

    def test_spans_are_placed_uniformly(self):
        draw = compiled(Denoise(tokenizer(), 400).draw)
        documents = tf.repeat(tf.range(1, 301), 20)
        first, last, shares, inserted_at_end, empty = [], [], [], 0, 0
        for seed in range(6):
            is_span, lengths, owners = (x.numpy() for x in draw(documents, tf.constant([seed, 5])))
            for number in range(1, 301):
                own = is_span[owners == number]
                first.append(own[0])
                last.append(own[-1])
                shares.append(own.mean())
                empty += np.any(lengths[owners == number][own] == 0)
                inserted_at_end += own[-1] and lengths[owners == number][-1] == 0
        error = 4.5 * 0.5 / np.sqrt(len(first))
        self.assertAllClose([np.mean(first), np.mean(last)], [np.mean(shares)] * 2, atol=error)
        self.assertGreater(empty, 50)
        self.assertGreater(inserted_at_end, 0)

    def test_each_token_is_masked_alike(self):
        for noise in ("masking", "deletion"):
            draw = compiled(Denoise(tokenizer(), 30, token_noise=noise).draw)
            documents = tf.repeat(tf.range(1, 201), 10)
            drawn = [draw(documents, tf.constant([seed, 1]))[0].numpy().reshape(200, 10) for seed in range(5)]
            self.assertAllClose(np.mean(drawn, (0, 1)), [0.3] * 10, atol=4.5 * np.sqrt(0.21 / 1000))


class PrepareTest(tf.test.TestCase):
    def test_kept_tokens_and_corrupted_targets_restore_every_document(self):
        for noise in ("infilling", "masking", "deletion"):
            objective = Denoise(tokenizer(), 64, token_noise=noise, permute_sentences=False)
            rows = objective.rows(sentences(30, longest=8))
            prepare = tf.function(objective.prepare, reduce_retracing=True)
            for i in range(len(rows)):
                ids, documents = rows.row(i)
                features = {name: x.numpy() for name, x in prepare(example_of(rows, i, i)).items()}
                for number in range(1, documents.max() + 1):
                    original = ids[documents == number].tolist()
                    shown = inner(features["token_ids"], features["document_ids"], number)
                    self.assertEqual(inner(features["targets"], features["decoder_document_ids"], number), original)
                    marks = features["corrupted"][features["decoder_document_ids"] == number][1:-1]
                    kept = [token for token, mark in zip(original, marks, strict=True) if not mark]
                    self.assertEqual([token for token in shown if token != MASK], kept)
                    self.assertEqual(shown.count(MASK) > 0, noise != "deletion")
                    if noise == "masking":
                        self.assertEqual(
                            shown, [MASK if mark else token for token, mark in zip(original, marks, strict=True)]
                        )

    def test_sentences_are_permuted_within_their_document(self):
        objective = Denoise(tokenizer(), 64, token_noise="none")
        rows = objective.rows(sentences(30, longest=6))
        prepare = tf.function(objective.prepare, reduce_retracing=True)
        firsts = []
        for i in range(len(rows)):
            ids, documents, numbers = rows.row(i)
            for seed in range(3):
                features = prepare(example_of(rows, i, seed))
                for number in range(1, documents.max() + 1):
                    own = documents == number
                    parts = [ids[own & (numbers == k)].tolist() for k in np.unique(numbers[own])]
                    shown = inner(features["token_ids"], features["document_ids"], number)
                    found = []
                    while shown:  # Whole sentences; tokens are unique in a document.
                        part = next(part for part in parts if part[0] == shown[0])
                        self.assertEqual(shown[: len(part)], part)
                        found.append(parts.index(part))
                        shown = shown[len(part) :]
                    self.assertEqual(sorted(found), list(range(len(parts))))
                    if len(parts) == 3:
                        firsts.append(found[0])
        self.assertGreater(len(firsts), 10)
        self.assertEqual(set(firsts), {0, 1, 2})

    def test_documents_are_rotated(self):
        objective = Denoise(tokenizer(), 64, token_noise="none", permute_sentences=False, rotate_documents=True)
        rows = objective.rows(sentences(40, longest=4))
        prepare = tf.function(objective.prepare, reduce_retracing=True)
        places = []
        for i in range(len(rows)):
            ids, documents = rows.row(i)
            features = prepare(example_of(rows, i, i))
            for number in range(1, documents.max() + 1):
                original = ids[documents == number].tolist()
                shown = inner(features["token_ids"], features["document_ids"], number)
                begin = original.index(shown[0])
                self.assertEqual(shown, original[begin:] + original[:begin])
                places.append(begin / len(original))
        self.assertBetween(np.mean(places), 0.3, 0.6)

    def test_everything_together(self):
        objective = Denoise(tokenizer(), 48, rotate_documents=True)
        text = sentences(60)
        batch = batch_of(objective, text)
        for i, documents in enumerate(batch["decoder_document_ids"]):
            for number in range(1, documents.max() + 1):
                shown = inner(batch["token_ids"][i], batch["document_ids"][i], number)
                original = inner(batch["targets"][i], documents, number)
                marks = batch["corrupted"][i][documents == number][1:-1]
                self.assertEqual(marks.sum(), expected_count(len(original)))
                kept = [token for token, mark in zip(original, marks, strict=True) if not mark]
                self.assertEqual(sorted(token for token in shown if token != MASK), sorted(kept))
                self.assertLessEqual(len(shown), len(original))
        self.assertAllEqual(batch["corrupted"] * batch["target_weights"], batch["corrupted"])
        special = np.isin(batch["targets"], range(FIRST))
        self.assertEqual(batch["corrupted"][special].sum(), 0)
        self.assertAllEqual(batch["document_ids"] > 0, batch["padding_mask"])
        self.assertAllEqual(batch["decoder_document_ids"] > 0, batch["target_weights"] > 0)
        self.assertGreater(batch["document_ids"].max(), 1)

    def test_without_cls_a_document_ends_with_eos_and_the_decoder_starts_with_padding(self):
        objective = Denoise(without_cls(), 8, token_noise="masking", noise_rate=0.01, permute_sentences=False)
        self.assertEqual((objective.row_tokens, Denoise(tokenizer(), 8).row_tokens), (7, 6))
        features = objective.prepare(packed_example([10, 11, 12], [13]))
        self.assertAllEqual(features["targets"], [10, 11, 12, EOS, 13, EOS, PAD, PAD])
        self.assertAllEqual(features["decoder_token_ids"], [PAD, 10, 11, 12, PAD, 13, PAD, PAD])
        self.assertAllEqual(features["token_ids"][3:], [EOS, MASK, EOS, PAD, PAD])
        # Sentinels mean that it is T5's.
        t5 = Denoise(tokenizer(sentinel_ids=[200], eos_id=EOS), 8, permute_sentences=False)
        self.assertAllEqual(t5.prepare(packed_example([10]))["targets"][:2], [10, EOS])

    def test_a_row_is_filled(self):
        for length in (8, 31):
            objective = Denoise(tokenizer(), length, permute_sentences=False)
            features = objective.prepare(packed_example(FIRST + np.arange(objective.row_tokens)))
            self.assertAllEqual(features["target_weights"], np.ones(length))

    def test_empty_and_one_token_documents(self):
        nothing = packed_example() | {"sentence_ids": tf.zeros([0], tf.int32)}
        one = packed_example([7], [8, 9]) | {"sentence_ids": tf.constant([1, 2, 2])}
        for noise in ("infilling", "masking", "deletion", "none"):
            objective = Denoise(tokenizer(), 9, token_noise=noise, rotate_documents=True)
            empty = objective.prepare(nothing)
            for name in ("padding_mask", "target_weights", "document_ids", "corrupted"):
                self.assertFalse(np.any(empty[name]))
            features = objective.prepare(one)
            shown = inner(features["token_ids"], features["document_ids"], 1)
            self.assertEqual(shown, [7] if noise in ("deletion", "none") else [MASK])
            self.assertEqual(inner(features["targets"], features["decoder_document_ids"], 1), [7])
            self.assertEqual(inner(features["targets"], features["decoder_document_ids"], 2), [8, 9])

    def test_the_same_example_of_the_same_epoch_is_corrupted_alike(self):
        objective, corpus = Denoise(tokenizer(), 48, rotate_documents=True), sentences(40)
        check_reading(self, objective, corpus, num_steps=24, first_step=16)
        rows = objective.rows(corpus)
        one, same, other = (objective.prepare(example_of(rows, 0, seed)) for seed in (1, 1, 2))
        self.assertAllEqual(one["token_ids"], same["token_ids"])
        self.assertNotAllEqual(one["token_ids"], other["token_ids"])

    def test_shapes_are_static(self):
        for pack in (True, False):
            for noise in ("infilling", "masking", "deletion", "none"):
                objective = Denoise(tokenizer(), 40, pack=pack, token_noise=noise, rotate_documents=True)
                check_static_shapes(self, objective, ("token_ids", "document_ids", "sentence_ids"), 40, 40)

    def test_what_cannot_be(self):
        for lacking, named in (
            (dict(mask_id=None), "mask"),
            (dict(pad_id=None), "pad"),
            (dict(sep_id=None), "sep or eos"),
        ):
            with self.assertRaisesRegex(UserError, f"no token for {named}; use a WordPiece"):
                Denoise(tokenizer(**lacking), 32)
        Denoise(tokenizer(mask_id=None), 32, token_noise="deletion")
        with self.assertRaisesRegex(UserError, "token_noise=rotation"):
            Denoise(tokenizer(), 32, token_noise="rotation")


class LossTest(tf.test.TestCase):
    def test_loss_and_metrics_against_numpy_document_by_document(self):
        sizes = dict(vocab_size=SIZE, hidden_size=8, num_layers=2, num_decoder_layers=1, num_heads=2)
        sizes |= dict(intermediate_size=12, dropout=0.0, attention_dropout=0.0, max_positions=64)
        for name, words in (("bart_base", tokenizer()), ("transformer_base", without_cls())):
            objective = Denoise(words, 40)
            batch = batch_of(objective, sentences(12, longest=4))
            self.assertGreater(batch["document_ids"].max(), 2)
            model = tfzoo.build(name, **sizes)
            randomize(model)
            loss = corrupted = hits = 0.0
            for i, numbers in enumerate(batch["decoder_document_ids"]):
                for document in range(1, numbers.max() + 1):
                    source, part = batch["document_ids"][i] == document, numbers == document
                    inputs = {
                        "token_ids": batch["token_ids"][i, source][None],
                        "decoder_token_ids": batch["decoder_token_ids"][i, part][None],
                    }
                    logits = model(inputs)["logits"][0].numpy().astype(np.float64)
                    marks = batch["corrupted"][i, part]
                    for row, target, mark in zip(logits, batch["targets"][i, part], marks, strict=True):
                        one = np.log(np.exp(row).sum()) - row[target]
                        loss += one
                        corrupted += mark * one
                        hits += mark * (np.argmax(row) == target)
            total, count = objective.loss({"main": model}, batch)
            self.assertEqual(count, np.sum(batch["decoder_document_ids"] > 0))
            self.assertNear(total / loss, 1, 1e-5)
            metrics = objective.metrics({"main": model}, batch)
            self.assertEqual(sorted(metrics), ["denoise_accuracy", "denoise_loss"])
            for figure, expected in (("denoise_loss", corrupted), ("denoise_accuracy", hits)):
                value, weight = metrics[figure]
                self.assertEqual(weight, batch["corrupted"].sum())
                self.assertNear(value, expected, 1e-5 * max(expected, 1))
        found = objective.baselines(np.arange(FIRST, SIZE), [batch])
        self.assertEqual(sorted(found["frequency"]), ["denoise_accuracy", "denoise_loss"])


if __name__ == "__main__":
    tf.test.main()
