"""Sequence-to-sequence training: the worked example, packed pairs, label smoothing against NumPy, and errors."""

import types

import numpy as np
import tensorflow as tf

import tfzoo
from tests.data.corpora import corpus
from tests.nn.formulas import randomize
from tests.objectives.examples import batch_of, check_reading, check_static_shapes
from tfzoo import models
from tfzoo.data.tokenized import TokenizedCorpus
from tfzoo.errors import UserError
from tfzoo.objectives.seq2seq import Seq2Seq

PAD, EOS, CLS, SEP, FIRST, SIZE = 0, 1, 2, 3, 4, 50


def tokenizer(**others):
    return types.SimpleNamespace(
        vocab_size=SIZE, special_ids=list(range(FIRST)), **dict(pad_id=PAD, eos_id=EOS) | others
    )


def with_cls():
    return tokenizer(eos_id=None, cls_id=CLS, sep_id=SEP)


def pairs(count, longest, seed=0):
    """Returns a corpus of pairs of random tokens, each text of 1 to `longest` - 1 tokens."""
    random = np.random.default_rng(seed)
    text = corpus(random.integers(1, longest, [count, 2]).tolist())
    words = random.integers(FIRST, SIZE, len(text.token_ids)).astype(np.int32)
    return TokenizedCorpus(words, text.sentence_starts, text.document_starts)


def texts(corpus):
    """Returns the pairs of a corpus, as pairs of tuples."""
    parts = [tuple(part.tolist()) for part in np.split(corpus.token_ids, corpus.sentence_starts[1:-1])]
    return list(zip(parts[::2], parts[1::2], strict=True))


def example(*documents):
    """Returns a row of pairs in the format of ParallelRows."""
    features = {"seed": tf.constant([0, 2])}
    for side, name in enumerate(("first", "second")):
        parts = [document[side] for document in documents]
        numbers = np.repeat(np.arange(len(parts)) + 1, [len(part) for part in parts])
        features[name] = tf.constant(np.concatenate([[], *parts]), tf.int32)
        features[f"{name}_documents"] = tf.constant(numbers, tf.int32)
    return features


class PrepareTest(tf.test.TestCase):
    def test_the_worked_example(self):
        objective = Seq2Seq(tokenizer(), 8)
        features = objective.prepare(example(([10, 11, 12], [20, 21]), ([13], [22, 23])))
        expected = {
            "token_ids": [10, 11, 12, 1, 13, 1, 0, 0],
            "padding_mask": [True] * 6 + [False] * 2,
            "document_ids": [1, 1, 1, 1, 2, 2, 0, 0],
            "position_ids": [0, 1, 2, 3, 0, 1, 0, 0],
            "decoder_token_ids": [0, 20, 21, 0, 22, 23, 0, 0],
            "targets": [20, 21, 1, 22, 23, 1, 0, 0],
            "target_weights": [1.0] * 6 + [0.0] * 2,
            "decoder_document_ids": [1, 1, 1, 2, 2, 2, 0, 0],
            "decoder_position_ids": [0, 1, 2, 0, 1, 2, 0, 0],
        }
        self.assertEqual(sorted(features), sorted(expected))
        for name, value in expected.items():
            self.assertAllEqual(features[name], value)

    def test_with_cls_and_sep_as_bart(self):
        features = Seq2Seq(with_cls(), 12, target_length=9).prepare(example(([10, 11], [20]), ([13], [22])))
        self.assertAllEqual(features["token_ids"], [2, 10, 11, 3, 2, 13, 3, 0, 0, 0, 0, 0])
        self.assertAllEqual(features["targets"], [2, 20, 3, 2, 22, 3, 0, 0, 0])
        self.assertAllEqual(features["decoder_token_ids"], [3, 2, 20, 3, 2, 22, 0, 0, 0])
        measured = Seq2Seq(with_cls(), 12).measured(features)
        self.assertAllEqual(measured, [0, 1, 1, 0, 1, 1, 0, 0, 0])

    def test_every_pair_is_in_one_row(self):
        for words, around in ((tokenizer(), [[], [EOS]]), (with_cls(), [[CLS], [SEP]])):
            for pack in (True, False):
                text = pairs(60, 12)
                objective = Seq2Seq(words, 24, target_length=20, pack=pack)
                rows, batch = objective.rows(text), batch_of(objective, text)
                self.assertEqual(batch["token_ids"].shape, (len(rows), 24))
                self.assertEqual(batch["targets"].shape, (len(rows), 20))
                self.assertEqual(len(rows) == 60, not pack)
                found = []
                for i in range(len(rows)):
                    if pack:
                        sides = batch["document_ids"][i], batch["decoder_document_ids"][i]
                    else:
                        sides = batch["padding_mask"][i].astype(int), batch["target_weights"][i].astype(int)
                    for number in range(1, sides[0].max() + 1):
                        pair = [batch[name][i][own == number] for name, own in zip(("token_ids", "targets"), sides)]
                        for part in pair:
                            self.assertEqual(part[: len(around[0])].tolist(), around[0])
                            self.assertEqual(part[-1:].tolist(), around[1])
                        found.append(tuple(tuple(part[len(around[0]) : -1].tolist()) for part in pair))
                self.assertEqual(sorted(found), sorted(texts(text)))
                filled = batch["padding_mask"].sum() + batch["target_weights"].sum()
                self.assertAllClose(rows.padding_share, 1 - filled / (44 * len(rows)))

    def test_long_texts_are_cut_and_reported(self):
        with self.assertLogs("absl", "WARNING") as logged:
            rows = Seq2Seq(tokenizer(), 10).rows(pairs(20, 12))
        count = sum(len(text) > 9 for pair in texts(pairs(20, 12)) for text in pair)
        self.assertEqual(rows.num_cut, count)
        self.assertGreater(count, 0)
        self.assertIn(f"{count} of 40 texts are longer than a row", logged.output[0])
        self.assertIn("--sequence_length", logged.output[0])

    def test_an_empty_row(self):
        features = Seq2Seq(tokenizer(), 8).prepare(example())
        for name in ("padding_mask", "target_weights", "document_ids"):
            self.assertFalse(np.any(features[name]))

    def test_rows_are_read_alike_from_any_step(self):
        objective, text = Seq2Seq(tokenizer(), 24), pairs(60, 12)
        check_reading(self, objective, text, num_steps=12, first_step=8)

    def test_shapes_are_static(self):
        row_features = ("first", "first_documents", "second", "second_documents")
        for pack in (True, False):
            objective = Seq2Seq(tokenizer(), 40, target_length=30, pack=pack)
            check_static_shapes(self, objective, row_features, 40, 30)


class ErrorTest(tf.test.TestCase):
    def test_tokenizers_and_sizes(self):
        with self.assertRaisesRegex(UserError, "no token for pad; use a SentencePiece"):
            Seq2Seq(tokenizer(pad_id=None), 32)
        with self.assertRaisesRegex(UserError, "no token for eos or sep"):
            Seq2Seq(tokenizer(eos_id=None), 32)
        with self.assertRaisesRegex(UserError, "target_length=33: exceeds --sequence_length=32"):
            Seq2Seq(tokenizer(), 32, target_length=33)
        with self.assertRaisesRegex(UserError, "label_smoothing"):
            Seq2Seq(tokenizer(), 32, label_smoothing=1.0)

    def test_other_text(self):
        with self.assertRaisesRegex(UserError, "not parallel text: document 1 has 3 sentences.*parallel files"):
            Seq2Seq(tokenizer(), 32).rows(corpus([[3, 4, 5], [3]]))

    def test_models(self):
        for name in ("transformer_base", "t5_small", "bart_base"):
            page, _ = models.find(name)
            Seq2Seq(tokenizer(), 32).check_model(name, page)
            if name == "bart_base":
                Seq2Seq(with_cls(), 32).check_model(name, page)
            else:
                with self.assertRaisesRegex(UserError, f"--model={name}: its texts begin without a cls token"):
                    Seq2Seq(with_cls(), 32).check_model(name, page)
        with self.assertRaisesRegex(UserError, "requires an encoder-decoder"):
            Seq2Seq(tokenizer(), 32).check_model("bert_tiny", models.find("bert_tiny")[0])


class LossTest(tf.test.TestCase):
    def test_loss_and_metrics_against_numpy_pair_by_pair(self):
        sizes = dict(vocab_size=SIZE, hidden_size=8, num_layers=2, num_decoder_layers=1, num_heads=2)
        sizes |= dict(intermediate_size=12, dropout=0.0, attention_dropout=0.0, max_positions=64)
        for name, words in (("transformer_base", tokenizer()), ("t5_small", tokenizer()), ("bart_base", with_cls())):
            objective = Seq2Seq(words, 30, label_smoothing=0.2)
            batch = batch_of(objective, pairs(14, 9))
            self.assertGreater(batch["document_ids"].max(), 2)
            model = tfzoo.build(name, **sizes | (dict(head_dim=4) if name == "t5_small" else {}))
            randomize(model)
            smoothed = plain = hits = measured = 0.0
            for i, numbers in enumerate(batch["decoder_document_ids"]):
                for document in range(1, numbers.max() + 1):
                    source, part = batch["document_ids"][i] == document, numbers == document
                    inputs = {
                        "token_ids": batch["token_ids"][i, source][None],
                        "decoder_token_ids": batch["decoder_token_ids"][i, part][None],
                    }
                    logits = model(inputs)["logits"][0].numpy().astype(np.float64)
                    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
                    for row, target in zip(log_p, batch["targets"][i, part], strict=True):
                        distribution = np.full(SIZE, 0.2 / SIZE)
                        distribution[target] += 0.8
                        smoothed -= np.sum(distribution * row)
                        counts = target != CLS or words.eos_id == EOS
                        plain -= counts * row[target]
                        hits += counts * (np.argmax(row) == target)
                        measured += counts
            total, count = objective.loss({"main": model}, batch)
            self.assertEqual(count, np.sum(batch["decoder_document_ids"] > 0))
            self.assertNear(total / smoothed, 1, 1e-5)
            metrics = objective.metrics({"main": model}, batch)
            self.assertEqual(sorted(metrics), ["seq2seq_accuracy", "seq2seq_loss"])
            for figure, expected in (("seq2seq_loss", plain), ("seq2seq_accuracy", hits)):
                value, weight = metrics[figure]
                self.assertEqual(weight, measured)
                self.assertNear(value, expected, 1e-5 * max(expected, 1))
        found = objective.baselines(np.arange(FIRST, SIZE), [batch])
        self.assertEqual(sorted(found["frequency"]), ["seq2seq_accuracy", "seq2seq_loss"])


if __name__ == "__main__":
    tf.test.main()
