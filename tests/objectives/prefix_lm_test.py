"""Prefix LM: cuts are uniform, both parts together are the document, and the loss equals NumPy's, in both forms."""

import types

import numpy as np
import tensorflow as tf

import tfzoo
from tests.data.corpora import documents
from tests.nn.formulas import randomize
from tests.objectives.examples import (
    BOS,
    EOS,
    PAD,
    WORDS,
    batch_of,
    packed_example,
    pieces,
    word_corpus,
    word_tokenizer,
)
from tfzoo import models
from tfzoo.data import pipeline
from tfzoo.errors import UserError
from tfzoo.objectives.causal import Causal
from tfzoo.objectives.prefix_lm import DecoderPrefixLM, PrefixLM, draw_cuts
from tfzoo.training import registry


def parts(batch, i, document):
    """Returns (inputs, targets) of a document of an encoder-decoder's batch."""
    return (
        batch["token_ids"][i, batch["document_ids"][i] == document].tolist(),
        batch["targets"][i, batch["decoder_document_ids"][i] == document].tolist(),
    )


class PrepareTest(tf.test.TestCase):
    def test_the_worked_example(self):
        words = types.SimpleNamespace(eos_id=1, pad_id=0)
        features = PrefixLM(words, 12).split(tf.range(10, 21), tf.ones([11], tf.int32), tf.constant([4]))
        expected = {
            "token_ids": [10, 11, 12, 13, 1] + [0] * 7,
            "padding_mask": [True] * 5 + [False] * 7,
            "document_ids": [1] * 5 + [0] * 7,
            "position_ids": [*range(5)] + [0] * 7,
            "targets": [14, 15, 16, 17, 18, 19, 20, 1] + [0] * 4,
            "target_weights": [1.0] * 8 + [0.0] * 4,
            "decoder_token_ids": [0, 14, 15, 16, 17, 18, 19, 20] + [0] * 4,
            "decoder_document_ids": [1] * 8 + [0] * 4,
            "decoder_position_ids": [*range(8)] + [0] * 4,
        }
        self.assertEqual(sorted(features), sorted(expected))
        for name, value in expected.items():
            self.assertAllEqual(features[name], value)

    def test_with_the_special_tokens_of_bart(self):
        words = types.SimpleNamespace(eos_id=3, pad_id=0, cls_id=2, sep_id=3)
        made = PrefixLM(words, 8)
        documents_of = tf.constant([1, 1, 1, 2])
        features = made.split(tf.constant([10, 11, 12, 20]), documents_of, tf.constant([2, 0]))
        for name, value in {
            "token_ids": [2, 10, 11, 3, 2, 3, 0, 0],
            "document_ids": [1, 1, 1, 1, 2, 2, 0, 0],
            "targets": [2, 12, 3, 2, 20, 3, 0, 0],
            "decoder_token_ids": [3, 2, 12, 3, 2, 20, 0, 0],
            "decoder_document_ids": [1, 1, 1, 2, 2, 2, 0, 0],
        }.items():
            self.assertAllEqual(features[name], value)
        # Whatever the cuts, the documents of a row fit.
        rows = made.rows(word_corpus(15, 20))
        for index in range(len(rows)):
            token_ids, document_ids = (tf.constant(x) for x in rows.row(index))
            sizes = tf.math.bincount(document_ids - 1)
            for cuts in (tf.minimum(sizes - 1, 1), sizes - 1, sizes // 2):
                made.split(token_ids, document_ids, cuts)

    def test_the_worked_example_of_decoders(self):
        tokens, numbers = tf.constant([1, 10, 11, 2, 1, 12, 2]), tf.constant([1, 1, 1, 1, 2, 2, 2])
        features = DecoderPrefixLM(word_tokenizer(), 7).split(tokens, numbers, tf.constant([3, 2]))
        expected = {
            "token_ids": [1, 10, 11, 1, 12, PAD, PAD],
            "document_ids": [1, 1, 1, 2, 2, 0, 0],
            "position_ids": [0, 1, 2, 0, 1, 0, 0],
            "padding_mask": [True] * 5 + [False] * 2,
            "targets": [10, 11, 2, 12, 2, 0, 0],
            "target_weights": [0, 0, 1, 0, 1, 0, 0],
        }
        self.assertEqual(sorted(features), sorted(expected))
        for name, value in expected.items():
            self.assertAllEqual(features[name], value)

    def test_cuts_are_uniform_and_leave_both_parts_a_token(self):
        count = 4000
        for size in (2, 3, 7):
            cuts = draw_cuts(tf.repeat(tf.range(1, count + 1), size), tf.constant([size, 1])).numpy()
            self.assertEqual((cuts.min(), cuts.max()), (1, size - 1))
            expected = count / (size - 1)
            self.assertLess(np.abs(np.bincount(cuts)[1:] - expected).max(), 4.5 * np.sqrt(expected))
        self.assertAllEqual(draw_cuts(tf.constant([1, 2, 2, 3]), tf.constant([0, 1])), [0, 1, 0])
        self.assertAllEqual(draw_cuts(tf.zeros([0], tf.int32), tf.constant([0, 1])), [])

    def test_both_parts_restore_every_document(self):
        for longest, length in ((4, 16), (30, 16), (200, 40)):
            corpus = word_corpus(60, longest)
            for pack in (True, False):
                objective = PrefixLM(word_tokenizer(), length, pack=pack)
                batch = batch_of(objective, corpus)
                self.assertEqual("document_ids" in batch, pack)
                filled = np.mean(batch["padding_mask"]), np.mean(batch["target_weights"])
                self.assertNear(objective.rows(corpus).padding_share, 1 - np.mean(filled), 1e-6)
                if not pack:
                    batch["document_ids"] = batch["padding_mask"].astype(int)
                    batch["decoder_document_ids"] = batch["target_weights"].astype(int)
                found = []
                for i, numbers in enumerate(batch["decoder_document_ids"]):
                    for document in range(1, numbers.max() + 1):
                        inputs, targets = parts(batch, i, document)
                        self.assertEqual((inputs.pop(), targets.pop()), (EOS, EOS))
                        self.assertGreater(len(targets), 0)
                        self.assertGreaterEqual(len(inputs), 1 if len(targets) > 1 else 0)
                        found.append((*inputs, *targets))
                self.assertEqual(sorted(found), pieces(objective, corpus))

    def test_decoders_have_the_features_of_causal_but_for_the_targets_of_the_prefix(self):
        corpus = word_corpus(60, 30)
        for pack in (True, False):
            causal, prefix = (cls(word_tokenizer(), 16, pack=pack) for cls in (Causal, DecoderPrefixLM))
            one, two = batch_of(causal, corpus), batch_of(prefix, corpus)
            self.assertAllEqual(two.pop("padding_mask"), one["target_weights"] > 0)
            weights = two["target_weights"]
            self.assertAllEqual(weights * one["target_weights"], weights)
            self.assertBetween(weights.sum() / one["target_weights"].sum(), 0.5, 0.7)
            for name in one:
                if name != "target_weights":
                    self.assertAllEqual(one[name], two[name])
            if pack:  # In each document, the targets are the last ones, and there is one at least.
                for numbers, row in zip(two["document_ids"], weights, strict=True):
                    for document in range(1, numbers.max() + 1):
                        part = row[numbers == document]
                        self.assertAllEqual(part, np.sort(part))
                        self.assertEqual(part[-1], 1)

    def test_a_document_that_fills_a_row_fits_wherever_it_is_cut(self):
        objective = PrefixLM(word_tokenizer(), 9)
        (row,) = pieces(objective, documents(9))
        self.assertLen(row, 9)
        for cut in range(1, 9):
            features = objective.split(tf.constant(row), tf.ones([9], tf.int32), tf.constant([cut]))
            self.assertEqual(np.sum(features["padding_mask"]), cut + 1)
            self.assertEqual(np.sum(features["target_weights"]), 10 - cut)

    def test_empty_and_one_token_documents(self):
        empty = PrefixLM(word_tokenizer(), 6).prepare(packed_example())
        for name in ("padding_mask", "target_weights", "document_ids", "decoder_document_ids"):
            self.assertFalse(np.any(empty[name]))
        one = PrefixLM(word_tokenizer(), 6).prepare(packed_example([5], [6, 7]))
        self.assertAllEqual(one["token_ids"], [EOS, 6, EOS, PAD, PAD, PAD])
        self.assertAllEqual(one["targets"], [5, EOS, 7, EOS, PAD, PAD])
        objective = DecoderPrefixLM(word_tokenizer(), 6)
        for example, targets in (((), []), (([5],), []), (([5], [6, 7]), [7])):
            features = objective.prepare(packed_example(*example))
            self.assertAllEqual(features["targets"][features["target_weights"] > 0], targets)

    def test_cuts_depend_on_the_seed_only(self):
        row = packed_example(np.arange(3, 30))
        for objective in (PrefixLM(word_tokenizer(), 32), DecoderPrefixLM(word_tokenizer(), 32)):
            one, same, other = (objective.prepare(row | {"seed": tf.constant([s, 2])}) for s in (1, 1, 2))
            for name in one:
                self.assertAllEqual(one[name], same[name])
            self.assertNotAllEqual(one["target_weights"], other["target_weights"])

    def test_shapes_are_static(self):
        ids = tf.TensorSpec([None], tf.int32)
        signature = {"token_ids": ids, "document_ids": ids, "seed": tf.TensorSpec([2], tf.int32)}
        for cls in (PrefixLM, DecoderPrefixLM):
            for pack in (True, False):
                objective = cls(word_tokenizer(), 9, pack=pack)
                outputs = tf.function(objective.prepare, input_signature=[signature]).get_concrete_function()
                for name, spec in outputs.structured_outputs.items():
                    self.assertEqual(spec.shape, [9], name)
                self.assertLessEqual(set(objective.inputs), set(outputs.structured_outputs))

    def test_the_prefix_counts_as_tokens_of_a_decoder(self):
        for cls, filled, total in ((PrefixLM, 2 * (5 + 2), 2 * 16), (DecoderPrefixLM, 8, 16)):
            example = packed_example(range(3, 8), range(3, 8))
            batch = {name: x[None] for name, x in cls(word_tokenizer(), 16).prepare(example).items()}
            self.assertAllEqual(pipeline.count_places(batch), [filled, total])


class ModelsTest(tf.test.TestCase):
    def test_the_form_for_each_kind_of_model(self):
        def made(family):
            page = models.page(family)
            options = PrefixLM.Options()
            objective = registry.make("prefix_lm", options, word_tokenizer(), 16, page)
            objective.check_model(family, page)
            return type(objective)

        for family in ("t5", "bart", "transformer"):
            self.assertIs(made(family), PrefixLM)
        for family in ("gpt2", "llama", "palm"):
            self.assertIs(made(family), DecoderPrefixLM)
        with self.assertRaisesRegex(
            UserError, "^--model=bert: --objective=prefix_lm requires an encoder-decoder, such as t5.*decoder.* gpt2"
        ):
            made("bert")

    def test_both_forms_are_one_objective_to_the_user(self):
        for name in ("name", "PREFIX", "Options", "best_metric", "FIGURES", "PACKED"):
            self.assertEqual(getattr(PrefixLM, name), getattr(DecoderPrefixLM, name), name)

    def test_what_cannot_be(self):
        for eos, pad in ((None, PAD), (EOS, None)):
            with self.assertRaisesRegex(UserError, "prefix_lm requires.* end-of-text and padding"):
                PrefixLM(word_tokenizer(BOS, eos, pad), 16)


class LossTest(tf.test.TestCase):
    def model(self, name):
        sizes = dict(vocab_size=WORDS, hidden_size=8, num_layers=2, num_heads=2, intermediate_size=12)
        sizes |= dict(max_positions=32, dropout=0.0, attention_dropout=0.0)
        model = tfzoo.build(name, **sizes, **({"head_dim": 4} if name == "t5_small" else {}))
        randomize(model)
        return model

    def check(self, objective, model, inputs_of):
        """Compares loss and metrics with those of each document by itself; inputs_of(batch, i, document) returns its
        inputs and the positions and ids of its targets."""
        batch = batch_of(objective, word_corpus(12, 12))
        loss = hits = count = 0.0
        numbers = batch.get("decoder_document_ids", batch["document_ids"])
        self.assertGreater(numbers.max(), 2)
        for i in range(len(numbers)):
            for document in range(1, numbers[i].max() + 1):
                inputs, places, targets = inputs_of(batch, i, document)
                inputs = {name: np.array([ids]) for name, ids in inputs.items()}
                logits = model(inputs)["logits"][0].numpy().astype(np.float64)[places]
                for row, target in zip(logits, targets, strict=True):
                    loss += np.log(np.exp(row).sum()) - row[target]
                    hits += np.argmax(row) == target
                    count += 1
        self.assertAllClose(objective.loss({"main": model}, batch), (loss, count), 1e-5)
        metrics = objective.metrics({"main": model}, batch)
        self.assertEqual(sorted(metrics), ["prefix_lm_accuracy", "prefix_lm_loss"])
        self.assertAllClose(metrics["prefix_lm_loss"], (loss, count), 1e-5)
        self.assertAllClose(metrics["prefix_lm_accuracy"], (hits, count))
        found = objective.baselines(word_corpus(12, 12).token_ids, [batch])["frequency"]
        self.assertEqual(set(found), set(metrics))

    def test_against_numpy_document_by_document(self):
        def encoder_decoder(batch, i, document):
            inputs, targets = parts(batch, i, document)
            return {"token_ids": inputs, "decoder_token_ids": [PAD, *targets[:-1]]}, slice(None), targets

        def decoder(batch, i, document):
            part = batch["document_ids"][i] == document
            places = batch["target_weights"][i, part] > 0
            return {"token_ids": batch["token_ids"][i, part]}, places, batch["targets"][i, part][places]

        for name in ("t5_small", "bart_base"):
            self.check(PrefixLM(word_tokenizer(), 20), self.model(name), encoder_decoder)
        self.check(DecoderPrefixLM(word_tokenizer(), 20), self.model("gpt2"), decoder)


if __name__ == "__main__":
    tf.test.main()
