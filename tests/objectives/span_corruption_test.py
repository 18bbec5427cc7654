"""Span corruption: number and length of spans, no lost tokens, separate documents, and the loss against NumPy."""

import types

import numpy as np
import tensorflow as tf

import tfzoo
from tests.data.corpora import random_words
from tests.nn.formulas import randomize
from tests.objectives.examples import (
    SENTINELS,
    SPAN_UNK,
    batch_of,
    check_reading,
    check_static_shapes,
    packed_example,
    restored,
    span_tokenizer,
)
from tests.objectives.examples import SPAN_WORDS as WORDS
from tfzoo.data import pipeline
from tfzoo.errors import UserError
from tfzoo.objectives.span_corruption import SpanCorruption

PAD, EOS, UNK = 0, 1, SPAN_UNK
SIZE = WORDS + SENTINELS
FEATURES = ("token_ids", "padding_mask", "decoder_token_ids", "targets", "target_weights")


def random_corpus(count, longest, seed=0):
    """Returns documents of random tokens, with an unknown one now and then."""
    return random_words(count, longest, UNK, WORDS, seed)


def noise_and_spans(n):
    """Returns the numbers of Raffel et al."""
    noise = min(max(round(0.15 * n), 1), n - 1)
    return noise, max(round(noise / 3), 1)


def compiled(function, *specs):
    return tf.function(function, input_signature=[tf.TensorSpec(shape, tf.int32) for shape in specs])


class NoiseTest(tf.test.TestCase):
    def test_numbers_for_every_length(self):
        objective = SpanCorruption(span_tokenizer(), 256)
        draw = compiled(objective.draw, [None], [2])
        for n in (2, 3, 4, 5, 6, 7, 9, 10, 16, 17, 20, 30, 50, 77, 130, 200, objective.row_tokens):
            for seed in range(3):
                noise = draw(tf.ones([n], tf.int32), tf.constant([seed, 1])).numpy()
                begins = noise & ~np.concatenate([[False], noise[:-1]])
                self.assertEqual((noise.sum(), begins.sum()), noise_and_spans(n), n)
                self.assertEqual((noise[0], noise[-1]), (False, True))
        self.assertAllEqual(draw(tf.ones([1], tf.int32), tf.constant([0, 1])), [False])
        self.assertAllEqual(draw(tf.ones([0], tf.int32), tf.constant([0, 1])), [])

    def test_rate_and_mean_length_are_what_is_asked_for(self):
        for density, mean in ((0.15, 3.0), (0.3, 2.0), (0.5, 1.0), (0.15, 8.0)):
            objective = SpanCorruption(span_tokenizer(), 128, mask_rate=density, mean_span=mean)
            noise = objective.draw(tf.ones([100], tf.int32), tf.constant([5, 1])).numpy()
            begins = noise & ~np.concatenate([[False], noise[:-1]])
            self.assertEqual(noise.sum(), 100 * density)
            self.assertAllClose(noise.sum() / begins.sum(), mean, 0.1)

    def test_every_way_to_cut_is_drawn_alike(self):
        # 6 of 20 tokens are noise in 2 spans: 5 ways to divide the noise, 13 ways to divide the rest.
        objective = SpanCorruption(span_tokenizer(), 30, mask_rate=0.3)
        documents = tf.repeat([1, 2, 3], [20, 20, 1])
        draw = compiled(objective.draw, [None], [2])
        count = 650
        drawn = np.array([draw(documents, tf.constant([7, seed])).numpy() for seed in range(count)])
        self.assertFalse(drawn[:, 40].any())
        seen = []
        for part in (drawn[:, :20], drawn[:, 20:40]):
            ways = {}
            for noise in part:
                edges = tuple(np.flatnonzero(np.diff(noise.astype(int))) + 1)
                ways[edges] = ways.get(edges, 0) + 1
            self.assertLessEqual(len(ways), 65)
            self.assertGreater(len(ways), 60)
            first = np.bincount([edges[0] for edges in ways for _ in range(ways[edges])], minlength=14)[1:]
            length = np.bincount([edges[1] - edges[0] for edges in ways for _ in range(ways[edges])], minlength=6)[1:]
            self.assertLess(np.abs(first - count / 13).max(), 4.5 * np.sqrt(count / 13))
            self.assertLess(np.abs(length - count / 5).max(), 4.5 * np.sqrt(count / 5))
            seen.append(part)
        self.assertLess(np.mean(np.all(seen[0] == seen[1], 1)), 0.1)  # Each document is corrupted independently.


class PrepareTest(tf.test.TestCase):
    def test_the_worked_example(self):
        words = types.SimpleNamespace(vocab_size=100, special_ids=[0, 1], sentinel_ids=[99, 98, 97], eos_id=1, pad_id=0)
        objective = SpanCorruption(words, 11, target_length=8)
        noise = tf.constant([0, 0, 1, 1, 0, 0, 0, 0, 1, 0]) > 0
        features = objective.corrupt(tf.range(10, 20), tf.ones([10], tf.int32), noise)
        expected = {
            "token_ids": [10, 11, 99, 14, 15, 16, 17, 98, 19, 1, 0],
            "padding_mask": [True] * 10 + [False],
            "document_ids": [1] * 10 + [0],
            "position_ids": [*range(10), 0],
            "targets": [99, 12, 13, 98, 18, 97, 1, 0],
            "target_weights": [1.0] * 7 + [0.0],
            "decoder_token_ids": [0, 99, 12, 13, 98, 18, 97, 0],
            "decoder_document_ids": [1] * 7 + [0],
            "decoder_position_ids": [*range(7), 0],
        }
        self.assertEqual(sorted(features), sorted(expected))
        for name, value in expected.items():
            self.assertAllEqual(features[name], value)

    def test_a_document_of_row_tokens_fills_the_row(self):
        # The t5 library's figures for 512: 568 tokens, 114 targets.
        objective = SpanCorruption(span_tokenizer(), 512)
        self.assertEqual((objective.row_tokens, objective.target_length), (568, 114))
        for length in (8, 9, 16, 33, 64, 100, 255):
            objective = SpanCorruption(span_tokenizer(), length)
            n = objective.row_tokens
            features = objective.prepare(packed_example(np.full(n, 7)))
            self.assertAllEqual(features["padding_mask"], np.ones(length))
            self.assertAllEqual(features["target_weights"], np.ones(objective.target_length))
            noise, spans = noise_and_spans(n + 1)
            self.assertEqual(n + 1 - noise + spans + 1, length + 1)  # One more would not fit.

    def test_inputs_and_targets_restore_every_document(self):
        for longest, length, packs in ((4, 32, [True]), (40, 64, [True]), (300, 64, [True, False])):
            corpus = random_corpus(40, longest, seed=longest)
            for pack in packs:
                objective = SpanCorruption(span_tokenizer(), length, pack=pack)
                rows = objective.rows(corpus)
                batch = batch_of(objective, corpus)
                self.assertAllClose(rows.padding_share, 1 - batch["padding_mask"].mean())
                for i in range(len(rows)):
                    tokens, documents = rows.row(i)
                    for document in range(1, documents.max() + 1):
                        sides = []
                        for ids, numbers, padding in (
                            ("token_ids", "document_ids", "padding_mask"),
                            ("targets", "decoder_document_ids", "target_weights"),
                        ):
                            own = batch[numbers][i] == document if pack else batch[padding][i] > 0
                            part = batch[ids][i][own]
                            self.assertEqual(part[-1], EOS)
                            self.assertNotIn(EOS, part[:-1])
                            sides.append(part[:-1])
                        original = tokens[documents == document]
                        self.assertEqual(restored(*sides), original.tolist())
                        if len(original) > 1:
                            noise, spans = noise_and_spans(len(original))
                            self.assertLen(sides[0], len(original) - noise + spans)
                            self.assertLen(sides[1], noise + spans)

    def test_the_decoder_reads_its_targets_shifted_in_each_document(self):
        objective = SpanCorruption(span_tokenizer(), 64)
        batch = batch_of(objective, random_corpus(80, 20))
        shifted, targets, documents = (batch[n] for n in ("decoder_token_ids", "targets", "decoder_document_ids"))
        begins = np.diff(documents, axis=1, prepend=0) > 0
        self.assertAllEqual(shifted[begins], np.full(begins.sum(), PAD))
        inside = (documents > 0) & ~begins
        self.assertAllEqual(shifted[:, 1:][inside[:, 1:]], targets[:, :-1][inside[:, 1:]])
        self.assertAllEqual(documents > 0, batch["target_weights"] > 0)
        self.assertAllEqual(batch["document_ids"] > 0, batch["padding_mask"])
        for name in ("token_ids", "targets"):
            where = batch["document_ids" if name == "token_ids" else "decoder_document_ids"] == 0
            self.assertAllEqual(batch[name][where], np.full(where.sum(), PAD))
        self.assertGreater(documents.max(), 3)
        for i in range(len(documents)):  # Both sides contain the same documents.
            self.assertAllEqual(
                np.unique(documents[i][documents[i] > 0]), np.unique(batch["document_ids"][i][batch["padding_mask"][i]])
            )

    def test_empty_and_one_token_documents(self):
        objective = SpanCorruption(span_tokenizer(), 8)
        empty = objective.prepare(packed_example())
        for name in ("padding_mask", "target_weights", "document_ids"):
            self.assertFalse(np.any(empty[name]))
        # Nothing is removed from a single token: the target states that nothing is missing.
        objective = SpanCorruption(span_tokenizer(), 8, target_length=6)
        one = objective.prepare(packed_example([5], [6, 7]))
        self.assertAllEqual(one["token_ids"], [5, EOS, 6, SIZE - 1, EOS, PAD, PAD, PAD])
        self.assertAllEqual(one["targets"], [SIZE - 1, EOS, SIZE - 1, 7, EOS, PAD])
        self.assertAllEqual(one["decoder_document_ids"], [1, 1, 2, 2, 2, 0])

    def test_the_same_example_of_the_same_epoch_is_corrupted_alike(self):
        objective, corpus = SpanCorruption(span_tokenizer(), 48), random_corpus(60, 40)
        check_reading(self, objective, corpus, num_steps=24, first_step=16)
        row = packed_example(np.arange(3, 45))
        one, same, other = (objective.prepare(row | {"seed": tf.constant([seed, 2])}) for seed in (1, 1, 2))
        self.assertAllEqual(one["token_ids"], same["token_ids"])
        self.assertNotAllEqual(one["token_ids"], other["token_ids"])

    def test_shapes_are_static(self):
        for pack in (True, False):
            objective = SpanCorruption(span_tokenizer(), 40, pack=pack)
            check_static_shapes(self, objective, ("token_ids", "document_ids"), 40, objective.target_length)

    def test_what_cannot_be(self):
        with self.assertRaisesRegex(UserError, "39 sentinels"):
            SpanCorruption(span_tokenizer(39), 1024)
        for lacking in ("sentinel_ids", "eos_id", "pad_id"):
            words = span_tokenizer()
            delattr(words, lacking)
            with self.assertRaisesRegex(UserError, "sentinel, padding"):
                SpanCorruption(words, 64)
        with self.assertRaisesRegex(UserError, "too short"):
            SpanCorruption(span_tokenizer(), 64, target_length=1)


class LossTest(tf.test.TestCase):
    def model(self, name):
        sizes = dict(vocab_size=SIZE, hidden_size=8, num_layers=2, num_heads=2, head_dim=4, intermediate_size=12)
        sizes |= dict(dropout=0.0, attention_dropout=0.0)
        model = tfzoo.build(name, **sizes, **({"max_positions": 64} if name == "bart_base" else {}))
        randomize(model)
        return model

    def test_loss_and_metrics_against_numpy_document_by_document(self):
        objective = SpanCorruption(span_tokenizer(), 32, target_length=16)
        batch = batch_of(objective, random_corpus(9, 20))
        self.assertGreater(batch["document_ids"].max(), 2)
        for name in ("t5_small", "bart_base"):
            model = self.model(name)
            loss = words = hits = 0.0
            for i, numbers in enumerate(batch["decoder_document_ids"]):
                for document in range(1, numbers.max() + 1):
                    source, part = batch["document_ids"][i] == document, numbers == document
                    inputs = {
                        "token_ids": batch["token_ids"][i, source][None],
                        "decoder_token_ids": batch["decoder_token_ids"][i, part][None],
                    }
                    logits = model(inputs)["logits"][0].numpy().astype(np.float64)
                    for row, target in zip(logits, batch["targets"][i, part], strict=True):
                        one = np.log(np.exp(row).sum()) - row[target]
                        loss += one
                        if EOS < target < WORDS:
                            words += one
                            hits += np.argmax(row) == target
            weight = np.sum(batch["decoder_document_ids"] > 0)
            total, count = objective.loss({"main": model}, batch)
            self.assertEqual(count, weight)
            self.assertNear(total / count, loss / weight, 1e-5)  # Packed documents are corrupted like single ones.
            metrics = objective.metrics({"main": model}, batch)
            self.assertEqual(sorted(metrics), ["span_accuracy", "span_loss"])
            count = np.sum((batch["targets"] > EOS) & (batch["targets"] < WORDS) & (batch["target_weights"] > 0))
            self.assertLess(count, weight)
            self.assertAllClose(metrics["span_loss"], (words, count), 1e-5)
            self.assertAllClose(metrics["span_accuracy"], (hits, count))
            self.assertIn(objective.best_metric[0], metrics)

    def test_unpacked_rows(self):
        objective, model = SpanCorruption(span_tokenizer(), 32, pack=False), self.model("t5_small")
        batch = batch_of(objective, random_corpus(6, 25))
        self.assertEqual(sorted(batch), sorted([*FEATURES, pipeline.ROW_NUMBERS]))
        loss = count = 0.0
        for i in range(len(batch["targets"])):
            source, part = batch["padding_mask"][i], batch["target_weights"][i] > 0
            alone = {name: batch[name][i : i + 1, source] for name in ("token_ids", "padding_mask")}
            alone |= {n: batch[n][i : i + 1, part] for n in ("decoder_token_ids", "targets", "target_weights")}
            one, weight = objective.loss({"main": model}, alone)
            loss, count = loss + one, count + weight
        total, weight = objective.loss({"main": model}, batch)
        self.assertEqual(weight, count)
        self.assertNear(total / weight, loss / count, 1e-5)

    def test_baselines_have_the_same_names(self):
        objective, corpus = SpanCorruption(span_tokenizer(), 48), random_corpus(60, 40)
        baselines = objective.baselines(corpus.token_ids, [batch_of(objective, corpus)])
        self.assertEqual(set(baselines), {"frequency", "neighbour"})
        found = baselines["frequency"]
        self.assertEqual(set(found), {"span_loss", "span_accuracy"})
        self.assertEqual(set(baselines["neighbour"]), set(found))
        # The most likely target is a sentinel or </s>, and does not count.
        targets = batch_of(objective, corpus)["targets"]
        words = np.bincount(targets[(targets > EOS) & (targets < WORDS)], minlength=WORDS)
        text = np.bincount(corpus.token_ids, minlength=WORDS)
        text[UNK] = 0
        shares = words / words.sum()
        self.assertIn(found["span_accuracy"], [np.float64(shares[np.argmax(text)]), np.float64(shares[UNK])])

    def test_the_neighbour_is_the_previous_token_of_a_span(self):
        # In the text, 10 is always followed by 11, and 11 by 12. The token after a sentinel has no ordinary neighbor.
        objective, text = SpanCorruption(span_tokenizer(), 48), np.tile([10, 11, 12], 30)
        batch = {
            "decoder_token_ids": np.array([[0, SIZE - 1, 10, 11, SIZE - 2]]),
            "targets": np.array([[SIZE - 1, 10, 11, SIZE - 2, EOS]]),
            "target_weights": np.ones([1, 5], np.float32),
        }
        found = objective.baselines(text, [batch])
        self.assertEqual(found["frequency"]["span_accuracy"], 1 / 2)
        self.assertEqual(found["neighbour"]["span_accuracy"], 1)
        self.assertLess(found["neighbour"]["span_loss"], found["frequency"]["span_loss"])


if __name__ == "__main__":
    tf.test.main()
