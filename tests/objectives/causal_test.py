"""Causal objective: each token is a target once, within its document; the loss equals NumPy's, packed or not."""

import dataclasses
import types

import numpy as np
import tensorflow as tf

import tfzoo
from tests.data.corpora import documents
from tests.nn.formulas import randomize
from tests.objectives.examples import BOS, EOS, PAD, WORDS, batch_of, packed_example, word_corpus, word_tokenizer
from tfzoo import models
from tfzoo.data.tokenized import TokenizedCorpus
from tfzoo.errors import UserError
from tfzoo.objectives.causal import Causal


def pairs(batch):
    """Returns (input, target) of every position with a weight, sorted."""
    asked = batch["target_weights"] > 0
    return sorted(zip(batch["token_ids"][asked].tolist(), batch["targets"][asked].tolist(), strict=True))


class PrepareTest(tf.test.TestCase):
    def test_the_worked_example(self):
        features = Causal(word_tokenizer(), 7).prepare(packed_example([1, 10, 11, 2], [1, 12, 2]))
        expected = {
            "token_ids": [1, 10, 11, 1, 12, PAD, PAD],
            "document_ids": [1, 1, 1, 2, 2, 0, 0],
            "position_ids": [0, 1, 2, 0, 1, 0, 0],
            "targets": [10, 11, 2, 12, 2, 0, 0],
            "target_weights": [1, 1, 1, 1, 1, 0, 0],
        }
        self.assertEqual(sorted(features), sorted(expected))
        for name, value in expected.items():
            self.assertAllEqual(features[name], value)

    def test_every_token_is_a_target_once_and_follows_its_own_document(self):
        for longest, length in ((3, 16), (30, 16), (200, 16), (30, 100)):
            corpus = word_corpus(60, longest)
            for bos in (BOS, None):
                for eos in (EOS, None):
                    expected = []
                    for begin, end in zip(corpus.document_starts[:-1], corpus.document_starts[1:], strict=True):
                        ids = [i for i in (bos, *corpus.token_ids[begin:end].tolist(), eos) if i is not None]
                        expected += zip(ids[:-1], ids[1:], strict=True)
                    # Except for one length, only one mode: each first and each last token once packed and once not.
                    turns = [(bos is None) == (eos is None)]
                    for pack in (True, False) if (longest, length) == (30, 16) else turns:
                        batch = batch_of(Causal(word_tokenizer(bos, eos), length, pack=pack), corpus)
                        self.assertEqual(pairs(batch), sorted(expected))
                        self.assertEqual("document_ids" in batch, pack)

    def test_full_rows_where_documents_are_long(self):
        batch = batch_of(Causal(word_tokenizer(None, None, None), 64), documents(641))
        self.assertAllEqual(batch["token_ids"].reshape(-1), np.arange(640))
        self.assertAllEqual(batch["targets"].reshape(-1), np.arange(1, 641))
        self.assertAllEqual(batch["target_weights"], np.ones([10, 64]))

    def test_the_end_of_a_text(self):
        plain = word_tokenizer(None, None)
        plain.vocab[7] = "<|endoftext|>"
        for words, end in ((plain, 7), (types.SimpleNamespace(vocab=["a"], pad_id=0), None)):
            objective = Causal(words, 8)
            tokens, _ = objective.rows(documents(3)).row(0)
            self.assertAllEqual(tokens, [0, 1, 2] if end is None else [0, 1, 2, end])

    def test_empty_and_one_token_documents(self):
        objective = Causal(word_tokenizer(), 6)
        for pieces, targets in (((), []), (([5],), []), (([5], [6, 7], [8]), [7]), (([1, 2], [1, 2]), [2, 2])):
            features = objective.prepare(packed_example(*pieces))
            count = len(targets)
            self.assertAllEqual(features["targets"][:count], targets)
            self.assertAllEqual(features["target_weights"], [1] * count + [0] * (6 - count))
            self.assertAllEqual(features["document_ids"] > 0, features["target_weights"] > 0)

    def test_shapes_are_static(self):
        for pack in (True, False):
            objective = Causal(word_tokenizer(), 9, pack=pack)
            ids = tf.TensorSpec([None], tf.int32)
            signature = {"token_ids": ids, "document_ids": ids, "seed": tf.TensorSpec([2], tf.int32)}
            outputs = tf.function(objective.prepare, input_signature=[signature]).get_concrete_function()
            for name, spec in outputs.structured_outputs.items():
                self.assertEqual(spec.shape, [9], name)
            self.assertLessEqual(set(objective.inputs), set(outputs.structured_outputs))


class LossTest(tf.test.TestCase):
    def model(self, name, **overrides):
        sizes = dict(vocab_size=WORDS, hidden_size=8, num_layers=2, num_heads=2, intermediate_size=12)
        sizes |= dict(max_positions=32, dropout=0.0, attention_dropout=0.0)
        model = tfzoo.build(name, **sizes, **overrides)
        randomize(model)
        return model

    def test_loss_and_metrics_against_numpy(self):
        objective, model = Causal(word_tokenizer(), 16), self.model("gpt2")
        batch = batch_of(objective, word_corpus(12, 12))
        loss = hits = 0.0
        for i, numbers in enumerate(batch["document_ids"]):
            for document in range(1, numbers.max() + 1):  # Each document separately.
                part = numbers == document
                logits = model({"token_ids": batch["token_ids"][i, part][None]})["logits"][0].numpy().astype(np.float64)
                for row, target in zip(logits, batch["targets"][i, part], strict=True):
                    loss += np.log(np.exp(row).sum()) - row[target]
                    hits += np.argmax(row) == target
        weight = np.sum(batch["document_ids"] > 0)
        self.assertAllClose(objective.loss({"main": model}, batch), (loss, weight), 1e-5)
        metrics = objective.metrics({"main": model}, batch)
        self.assertEqual(sorted(metrics), ["causal_accuracy", "causal_loss"])
        self.assertAllClose(metrics["causal_loss"], (loss, weight), 1e-5)
        self.assertAllClose(metrics["causal_accuracy"], (hits, weight))
        self.assertIn(objective.best_metric[0], metrics)

    def test_packed_and_unpacked_rows_have_the_same_loss(self):
        corpus = word_corpus(30, 25)
        for name in ("gpt2", "llama_tiny"):
            model = self.model(name, **({"num_kv_heads": 1} if name != "gpt2" else {}))
            packed, alone = (Causal(word_tokenizer(), 16, pack=pack) for pack in (True, False))
            one, two = (objective.loss({"main": model}, batch_of(objective, corpus)) for objective in (packed, alone))
            self.assertEqual(one[1], two[1])
            self.assertNear(one[0] / one[1], two[0] / two[1], 1e-5)
            self.assertLess(len(packed.rows(corpus)), len(alone.rows(corpus)))

    def test_models_that_are_causal_by_their_config(self):
        for name, good, bad in (
            ("performer_small", dict(causal=True), dict(causal=False)),
            ("reformer_enwik8", {}, dict(causal=False)),
        ):
            _, config = models.find(name)
            page = models.page(name.split("_")[0])
            objective = Causal(word_tokenizer(), 16, pack=False)
            objective.check_model(name, page)
            objective.check_config(name, dataclasses.replace(config, **good))
            with self.assertRaisesRegex(UserError, "a causal model; add --overrides=causal=true"):
                objective.check_config(name, dataclasses.replace(config, **bad))
            with self.assertRaisesRegex(UserError, "packed into one row; add --nopack"):
                Causal(word_tokenizer(), 16).check_model(name, page)

    def test_loss_and_gradient_of_a_reformer_whose_chunks_see_everything(self):
        """Whatever the hashes are, attention is full if a chunk and those before it are the whole row."""
        objective, corpus = Causal(word_tokenizer(), 16, pack=False), word_corpus(12, 16)
        batch = batch_of(objective, corpus)
        self.assertEqual(batch["target_weights"].min(), 0)
        sizes = dict(vocab_size=WORDS, hidden_size=8, num_layers=2, num_heads=2, head_dim=4, intermediate_size=12)
        sizes |= dict(axial_shape=[4, 4], axial_dims=[4, 4], max_positions=16, dropout=0.0, attention_dropout=0.0)
        sizes |= dict(attention_layers=["lsh", "local"], local_chunk_length=16, num_buckets=[4])
        sizes |= dict(lsh_attention_dropout=0.0)
        whole = tfzoo.build("reformer_enwik8", **sizes, num_hashes=1, lsh_chunk_length=16)
        randomize(whole, scale=0.3)
        results = []
        for chunk in (16, 4):
            model = tfzoo.build(
                "reformer_enwik8", **sizes, num_hashes=1, lsh_chunk_length=chunk, lsh_chunks_before=16 // chunk - 1
            )
            model.set_weights(whole.get_weights())
            variables = [variable.value for variable in model.trainable_variables]
            for training in (True, False):
                with tf.GradientTape() as tape:
                    loss, weight = objective.loss({"main": model}, batch, training=training)
                gradients = tape.gradient(loss, variables)
                results.append([loss, weight, *map(tf.convert_to_tensor, gradients)])
        for other in results[1:]:
            for one, two in zip(results[0], other, strict=True):
                self.assertAllClose(one, two, 1e-4, 1e-4)
        # Each document without padding.
        total = 0.0
        for i, count in enumerate(batch["target_weights"].sum(1).astype(int)):
            if count:
                logits = whole({"token_ids": batch["token_ids"][i, :count][None]})["logits"][0].numpy()
                chosen = logits[np.arange(count), batch["targets"][i, :count]]
                total += np.sum(np.log(np.exp(logits.astype(np.float64)).sum(1)) - chosen)
        self.assertNear(results[0][0], total, 1e-4 * total)

    def test_baselines_have_the_same_names(self):
        objective = Causal(word_tokenizer(), 16)
        corpus = word_corpus(30, 25)
        batch = batch_of(objective, corpus)
        found = objective.baselines(corpus.token_ids, [batch])
        found |= objective.row_baselines(objective.rows(corpus), [batch])
        self.assertEqual(list(found), ["frequency", "neighbour", "n-gram"])
        for figures in found.values():
            self.assertEqual(set(figures), {"causal_loss", "causal_accuracy"})
            self.assertLess(figures["causal_loss"], np.log(WORDS))

    def test_baselines_of_documents_whose_beginning_determines_the_rest(self):
        ids = np.tile([5, 6, 7, 8, 9, 7, 10], 40).astype(np.int32)  # Of lengths 3 and 4: 7 is followed by </s> or 10.
        starts = np.append(np.arange(0, 280, 7)[:, None] + [0, 3], 280)
        corpus = TokenizedCorpus(ids, starts, starts)
        for pack in (True, False):
            objective = Causal(word_tokenizer(), 16, pack=pack)
            batch = batch_of(objective, corpus)
            found = objective.baselines(ids, [batch]) | objective.row_baselines(objective.rows(corpus), [batch])
            losses = [figures["causal_loss"] for figures in found.values()]
            self.assertEqual(losses, sorted(losses, reverse=True))
            # After <s>, 5 and 8 are equally likely, and everything else is certain: two choices in nine targets.
            self.assertNear(found["n-gram"]["causal_loss"], 2 / 9 * np.log(2), 0.05)
            self.assertNear(found["n-gram"]["causal_accuracy"], 8 / 9, 1e-6)
            self.assertGreater(found["neighbour"]["causal_loss"], 0.5)


if __name__ == "__main__":
    tf.test.main()
