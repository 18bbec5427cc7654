"""Masked tokens and pairs: selected tokens, model inputs, and the loss compared with NumPy."""

import dataclasses
import itertools
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

import tfzoo
from tests.data.corpora import random_words
from tests.nn.formulas import randomize
from tests.objectives.examples import VOCAB, packed_example
from tfzoo.data import pipeline
from tfzoo.data.pairs import PairRows
from tfzoo.errors import UserError
from tfzoo.objectives import masked_lm
from tfzoo.objectives.masked_lm import MaskedLM
from tfzoo.text.characters import SPECIALS, Characters
from tfzoo.text.wordpiece import WordPiece

PAD, UNK, CLS, SEP, MASK = range(5)
UNITS = ("token", "word", "ngram", "span")
PAIRS = ("none", "next_sentence", "sentence_order")


def example(first, second=(), label=-1, seed=0):
    return {
        "first": tf.constant(first, tf.int32, [len(first)]),
        "second": tf.constant(second, tf.int32, [len(second)]),
        "label": tf.constant(label, tf.int32),
        "seed": tf.constant([seed, 2], tf.int32),
    }


def random_row(length, seed, lowest=0):
    return np.random.default_rng(seed).integers(lowest, len(VOCAB), length)


class MaskedLMCase(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.tokenizer = WordPiece(VOCAB)

    def prepared(self, objective, examples):
        """Returns the features of many examples, from one graph as in the pipeline: a dict of stacked arrays."""
        signature = {
            name: tf.TensorSpec([None] if name in ("first", "second") else x.shape, x.dtype)
            for name, x in examples[0].items()
        }
        prepare = tf.function(objective.prepare, input_signature=[signature])
        features = [prepare(each) for each in examples]
        return {name: np.stack([f[name].numpy() for f in features]) for name in features[0]}


class TokenizersTest(tf.test.TestCase):
    def test_one_that_cannot_tell_the_pieces_of_a_word(self):
        characters = Characters([*SPECIALS.values(), *"abc"])
        MaskedLM(characters, 9)
        with self.assertRaisesRegex(
            UserError, "--mask_unit=word: Characters does not mark the pieces that continue a word"
        ):
            MaskedLM(characters, 9, mask_unit="word")

    def test_one_without_special_tokens(self):
        with self.assertRaisesRegex(UserError, "this one has no token for cls, sep; use a WordPiece tokenizer"):
            MaskedLM(Characters(["<pad>", "<mask>", *"abc"]), 9)


class PrepareTest(MaskedLMCase):
    def test_the_worked_example(self):
        objective = MaskedLM(self.tokenizer, 9, mask_rate=0.5)
        shown = [0.0]  # All selected tokens become [MASK].
        uniform = tf.random.stateless_uniform

        def draws(shape, seed, *args, **kwargs):
            if len(shape) == 1:  # The scores of the tokens 10, 11, 12 and 13: the first and third are lowest.
                return tf.constant([0.1, 0.9, 0.2, 0.8])
            return uniform(shape, seed, *args, **kwargs) * shown[0]

        with mock.patch.object(masked_lm.tf.random, "stateless_uniform", draws):
            features = objective.prepare(example([10, 11], [12, 13], label=1))
        expected = {
            "token_ids": [CLS, MASK, 11, SEP, MASK, 13, SEP, PAD, PAD],
            "segment_ids": [0, 0, 0, 0, 1, 1, 1, 0, 0],
            "padding_mask": [True] * 7 + [False] * 2,
            "masked_positions": [1, 4, 0],
            "masked_ids": [10, 12, 0],
            "masked_weights": [1.0, 1.0, 0.0],
            "next_sentence": 1,
            "next_sentence_weight": 1.0,
        }
        self.assertEqual(sorted(features), sorted(expected))
        for name, value in expected.items():
            self.assertAllEqual(features[name], value)

    def test_rates_specials_and_restoring(self):
        length = 64
        for unit in UNITS:
            objective = MaskedLM(self.tokenizer, length, mask_unit=unit)
            examples, originals = [], []
            for i in range(200):
                row = random_row(objective.row_tokens, i)
                cut = 5 + i % 50
                examples.append(example(row[:cut], row[cut:], i % 2, seed=i))
                originals.append([CLS, *row[:cut], SEP, *row[cut:], SEP])
            features, originals = self.prepared(objective, examples), np.array(originals)
            drawn_all = kept = masked = changed = 0
            seen = np.zeros(len(VOCAB), int)
            for i, original in enumerate(originals):
                count = int(features["masked_weights"][i].sum())
                positions, ids = features["masked_positions"][i, :count], features["masked_ids"][i, :count]
                self.assertTrue(np.all(np.diff(positions) > 0))
                self.assertAllEqual(features["masked_weights"][i], np.arange(len(features["masked_ids"][i])) < count)
                self.assertTrue(np.all(original[positions] >= 5), "a special token was drawn")
                restored = features["token_ids"][i].copy()
                shown = restored[positions]
                self.assertTrue(np.all((shown >= 5) | (shown == MASK)), "a special token was put in")
                restored[positions] = ids
                self.assertAllEqual(restored, original)
                wanted = max(1, round(0.15 * np.sum(original >= 5)))
                if unit == "token":
                    self.assertEqual(count, wanted)
                else:
                    self.assertLessEqual(count, wanted)
                    self.assertGreaterEqual(count, wanted - 4)
                drawn_all += count
                masked += np.sum(shown == MASK)
                kept += np.sum(shown == ids)
                changed += np.sum((shown != MASK) & (shown != ids))
                np.add.at(seen, shown[(shown != MASK) & (shown != ids)], 1)
            # The tokens of a span of up to ten words are replaced in the same way, so that they vary together.
            spread = 4 * np.sqrt(0.25 / drawn_all) * (4 if unit == "span" else 1)
            self.assertNear(masked / drawn_all, 0.8, spread)
            # One random token in fifty is the original token.
            self.assertNear(kept / drawn_all, 0.1 + 0.1 / 50, spread)
            self.assertNear(changed / drawn_all, 0.1 - 0.1 / 50, spread)
            # Every ordinary token occurs, including the first and the last.
            self.assertAllEqual(seen[:5], np.zeros(5))
            self.assertGreater(np.mean(seen[5:] > 0), 0.9)

    def test_every_position_is_drawn_alike(self):
        for unit in ("token", "word"):  # Longer units contain the first and last words less often.
            objective = MaskedLM(self.tokenizer, 43, mask_unit=unit)
            row = np.full(40, 7)
            features = self.prepared(objective, [example(row, seed=i) for i in range(300)])
            weights = features["masked_weights"] > 0
            counts = np.bincount(features["masked_positions"][weights], minlength=43)
            self.assertEqual(counts.sum(), 300 * 6)
            self.assertAllEqual(counts[[0, 41, 42]], [0, 0, 0])
            self.assertLess(np.abs(counts[1:41] - 45).max(), 5 * np.sqrt(45))

    def test_seeds_decide(self):
        objective = MaskedLM(self.tokenizer, 64)
        row = random_row(61, 0, lowest=5)
        one, same, other = (objective.prepare(example(row, seed=seed)) for seed in (1, 1, 2))
        for name in one:
            self.assertAllEqual(one[name], same[name])
        self.assertNotAllEqual(one["masked_positions"], other["masked_positions"])

    def test_whole_words(self):
        # Words of 1, 2, 3 and 4 pieces; [UNK] and [SEP] end a word; a row may start within a word.
        row = [36, 5, 6, 35, 7, 36, 37, UNK, 38, 8, 39, 40, 41, 9, 10, 11]
        words = [{1}, {2}, {3, 4}, {5, 6, 7}, {9}, {10, 11, 12, 13}, {14}, {15}, {16}, {18, 19}, {20}]
        second = [37, 38, 12]
        objective = MaskedLM(self.tokenizer, 24, mask_rate=0.4, mask_unit="word")
        features = self.prepared(objective, [example(row, second, 0, seed=i) for i in range(150)])
        drawn = set()
        for positions, weights in zip(features["masked_positions"], features["masked_weights"], strict=True):
            chosen = set(positions[weights > 0].tolist())
            self.assertLessEqual(len(chosen), round(0.4 * 18))
            for word in words:
                self.assertIn(len(word & chosen), (0, len(word)))
                drawn |= {tuple(sorted(word))} if word <= chosen else set()
            self.assertLessEqual(chosen, set().union(*words))
        self.assertLen(drawn, len(words))  # Each was selected at least once.

    def test_empty_short_and_longest_rows(self):
        self.check_rows(itertools.zip_longest(UNITS, PAIRS, fillvalue="none"))

    @pytest.mark.faults
    def test_empty_short_and_longest_rows_of_every_combination(self):
        self.check_rows(itertools.product(UNITS, PAIRS))

    def check_rows(self, combinations):
        for unit, pairs in combinations:
            with self.subTest(unit=unit, pairs=pairs):
                objective = MaskedLM(self.tokenizer, 24, mask_unit=unit, pairs=pairs, pack=False)
                self.assertEqual(objective.row_tokens, 21)
                rows = [[], [UNK], [9], [UNK, 9, UNK], random_row(21, 0, lowest=5)]
                features = self.prepared(objective, [example(row) for row in rows])
                self.assertAllEqual(features["masked_weights"].sum(1)[:4], [0, 0, 1, 1])
                self.assertAllEqual(features["masked_positions"][:4, 0], [0, 0, 1, 2])
                self.assertAllEqual(features["padding_mask"].sum(1), [2, 3, 3, 5, 23])
                self.assertAllEqual(features["token_ids"][0, :3], [CLS, SEP, PAD])
                if pairs == "none":
                    self.assertNotIn("none", features)
                else:
                    self.assertAllEqual(features[f"{pairs}_weight"], np.zeros(5))
                self.assertAllEqual(features["segment_ids"], np.zeros([5, 24]))
        full = objective.prepare(example(random_row(10, 0, lowest=5), random_row(11, 0, lowest=5), 1))
        self.assertAllEqual(full["padding_mask"], np.ones(24, bool))
        self.assertEqual(full["token_ids"][-1], SEP)

    def test_labels(self):
        for pairs in ("next_sentence", "sentence_order"):
            objective = MaskedLM(self.tokenizer, 24, pairs=pairs)
            for label, expected in ((0, (0, 1.0)), (1, (1, 1.0)), (-1, (0, 0.0))):
                features = objective.prepare(example([7, 8], [9] if label >= 0 else [], label))
                self.assertEqual((features[pairs], features[f"{pairs}_weight"]), expected)

    def test_shapes_are_static(self):
        for unit in UNITS:
            objective = MaskedLM(self.tokenizer, 24, mask_unit=unit)
            dataset = tf.data.Dataset.from_tensors(example([5, 6]))
            signature = {
                name: tf.TensorSpec([None] if name in ("first", "second") else spec.shape, spec.dtype)
                for name, spec in dataset.element_spec.items()
            }
            outputs = tf.function(objective.prepare, input_signature=[signature]).get_concrete_function()
            for name, spec in outputs.structured_outputs.items():
                self.assertTrue(spec.shape.is_fully_defined(), name)


def text(count, longest, seed=0):
    """Returns documents of random tokens, some of them special."""
    return random_words(count, longest, 1, len(VOCAB), seed)


class PackedTest(MaskedLMCase):
    def batch(self, objective, corpus):
        rows = objective.rows(corpus)
        batches = pipeline.evaluation_batches(rows, objective, batch_size=len(rows), seed=3, num_batches=1)
        return rows, next(batches.as_numpy_iterator())

    def test_each_document_is_framed_and_masked_by_itself(self):
        for unit in UNITS:
            for longest, length in ((3, 32), (90, 64)):
                corpus = text(120, longest)
                objective = MaskedLM(self.tokenizer, length, mask_unit=unit, pairs="none", pack=True)
                rows, batch = self.batch(objective, corpus)
                self.assertNotIn("next_sentence", batch)
                tokens = 0
                for i in range(len(rows)):
                    asked = batch["masked_weights"][i] > 0
                    positions, shown = batch["masked_positions"][i][asked], batch["token_ids"][i].copy()
                    original, documents = shown.copy(), batch["document_ids"][i]
                    original[positions] = batch["masked_ids"][i][asked]
                    self.assertTrue(np.all(np.diff(positions) > 0))
                    self.assertTrue(np.all(original[positions] >= 5), "a special token was drawn")
                    self.assertAllEqual(batch["padding_mask"][i], documents > 0)
                    row, row_documents = rows.row(i)
                    for document in range(1, row_documents.max() + 1):
                        own = documents == document
                        words = row[row_documents == document]
                        self.assertEqual(original[own].tolist(), [CLS, *words, SEP])
                        self.assertEqual(batch["position_ids"][i][own].tolist(), list(range(len(words) + 2)))
                        ordinary = np.sum(words >= 5)
                        wanted = min(max(1, round(float(np.float32(0.15) * np.float32(ordinary)))), ordinary)
                        drawn = np.sum(documents[positions] == document)
                        if unit == "token":
                            self.assertEqual(drawn, wanted)
                        else:
                            self.assertLessEqual(drawn, wanted)
                        tokens += len(words)
                self.assertEqual(tokens, len(corpus.token_ids))

    def test_whole_words_of_each_document(self):
        objective = MaskedLM(self.tokenizer, 32, mask_rate=0.4, mask_unit="word", pairs="none", pack=True)
        # Words at 1-2, 3; 6-8, 9, 10 of the framed row; a continuation at the start of a document is a word.
        examples = [packed_example([5, 36, 6], [40, 41, 42, 9, 10], seed=i) for i in range(60)]
        features = self.prepared(objective, examples)
        words, seen = [{1, 2}, {3}, {6, 7, 8}, {9}, {10}], set()
        for positions, weights in zip(features["masked_positions"], features["masked_weights"], strict=True):
            chosen = set(positions[weights > 0].tolist())
            self.assertLessEqual(chosen, {3, 9, 10})  # One of 3, two of 5: the longer words do not fit.
            seen |= chosen
            for word in words:
                self.assertIn(len(word & chosen), (0, len(word)))
            self.assertLen(chosen & {9, 10}, 2)
        self.assertEqual(seen, {3, 9, 10})

    def test_one_document_is_masked_as_in_a_row_of_its_own(self):
        row = random_row(20, 0)
        packed = MaskedLM(self.tokenizer, 24, pairs="none", pack=True).prepare(packed_example(row, seed=4))
        alone = MaskedLM(self.tokenizer, 24, pairs="none", pack=False).prepare(example(row, seed=4))
        for name in ("token_ids", "padding_mask", "masked_positions", "masked_ids"):
            self.assertAllEqual(packed[name], alone[name])

    def test_packed_and_unpacked_documents_have_the_same_loss(self):
        objective = MaskedLM(self.tokenizer, 32, pairs="none", pack=True)
        _, batch = self.batch(objective, text(15, 20))
        self.assertGreater(batch["document_ids"].max(), 2)
        self.assertLessEqual(set(objective.inputs), set(batch))
        sizes = dict(vocab_size=len(VOCAB), hidden_size=8, num_layers=2, num_heads=2, intermediate_size=12)
        model = tfzoo.build("bert_tiny", **sizes, max_positions=32, dropout=0.0, attention_dropout=0.0, heads=("lm",))
        randomize(model)
        loss = count = 0.0
        for i, numbers in enumerate(batch["document_ids"]):
            asked = batch["masked_weights"][i] > 0
            positions, ids = batch["masked_positions"][i][asked], batch["masked_ids"][i][asked]
            for document in range(1, numbers.max() + 1):
                own = numbers[positions] == document
                alone = {
                    "token_ids": batch["token_ids"][i][numbers == document],
                    "masked_positions": positions[own] - np.argmax(numbers == document),
                    "masked_ids": ids[own],
                    "masked_weights": np.ones(own.sum(), np.float32),
                }
                if own.any():
                    one, weight = objective.loss(
                        {"main": model}, {name: tf.constant(x[None]) for name, x in alone.items()}
                    )
                    loss, count = loss + one, count + weight
        total, weight = objective.loss({"main": model}, batch)
        self.assertEqual(weight, count)
        self.assertNear(total / weight, loss / count, 1e-5)
        baselines = objective.baselines(np.array([7, 8, 9, 7]), [batch])
        self.assertEqual(set(baselines["frequency"]), set(objective.metrics({"main": model}, batch)))

    def test_pairs_are_not_packed(self):
        objective = MaskedLM(self.tokenizer, 32, pairs="next_sentence", pack=True)
        self.assertIsInstance(objective.rows(text(5, 20)), PairRows)
        self.assertNotIn("document_ids", objective.inputs)
        self.assertEqual(objective.row_tokens, 29)


class LossTest(MaskedLMCase):
    def setUp(self):
        super().setUp()
        self.model = tfzoo.build(
            "bert_tiny",
            vocab_size=len(VOCAB),
            hidden_size=8,
            num_layers=1,
            num_heads=2,
            intermediate_size=12,
            max_positions=32,
            dropout=0.0,
            attention_dropout=0.0,
        )
        randomize(self.model)

    def batch(self, objective, count=6):
        rows = [random_row(12 + i, i) for i in range(count)]
        labels = [(0, 1, -1)[i % 3] for i in range(count)]
        return self.prepared(
            objective,
            [
                example(row[:9], row[9:] if label >= 0 else [], label, seed=i)
                for i, (row, label) in enumerate(zip(rows, labels, strict=True))
            ],
        )

    def expected(self, batch, pairs):
        """Returns {name: (sum, weight)}, computed with NumPy from the logits at all positions."""
        inputs = {name: batch[name] for name in ("token_ids", "segment_ids", "padding_mask")}
        outputs = self.model(inputs)

        def nats(logits, label):
            logits = logits.numpy().astype(np.float64)
            return np.log(np.exp(logits).sum()) - logits[label], float(np.argmax(logits) == label)

        sums = np.zeros([2, 3])
        loss = 0.0
        for i in range(len(batch["token_ids"])):
            words = [
                nats(outputs["logits"][i, position], label)
                for position, label, weight in zip(
                    batch["masked_positions"][i], batch["masked_ids"][i], batch["masked_weights"][i], strict=True
                )
                if weight
            ]
            sums[0] += [sum(w[0] for w in words), sum(w[1] for w in words), len(words)]
            loss += sum(w[0] for w in words)
            if pairs != "none" and batch[f"{pairs}_weight"][i]:
                pair = nats(outputs["next_sentence_logits"][i], batch[pairs][i])
                sums[1] += [*pair, 1]
                loss += pair[0] * len(words)
        return loss, sums

    def test_loss_and_metrics_against_numpy(self):
        for kind in ("next_sentence", "sentence_order", "none"):
            objective = MaskedLM(self.tokenizer, 32, pairs=kind, pack=False)
            batch = self.batch(objective)
            loss, (words, pairs) = self.expected(batch, kind)
            self.assertAllClose(objective.loss({"main": self.model}, batch), (loss, words[2]), 1e-5)
            metrics = objective.metrics({"main": self.model}, batch)
            expected = {
                "masked_lm_loss": (words[0], words[2]),
                "masked_lm_accuracy": (words[1], words[2]),
            }
            if kind != "none":
                expected |= {f"{kind}_loss": (pairs[0], pairs[2]), f"{kind}_accuracy": (pairs[1], pairs[2])}
            self.assertEqual(sorted(metrics), sorted(expected))
            for name, value in expected.items():
                self.assertAllClose(metrics[name], value, 1e-5, msg=name)

    def test_asks_for_no_head_that_it_does_not_read(self):
        self.assertEqual(MaskedLM(self.tokenizer, 32).heads, ("lm", "next_sentence"))
        objective = MaskedLM(self.tokenizer, 32, pairs="none", pack=False)
        self.assertEqual(objective.heads, ("lm",))
        config = dataclasses.replace(self.model.config, num_segments=0)
        model = type(self.model)(config, heads=objective.heads)
        batch = self.batch(objective)
        loss, weight = objective.loss({"main": model}, batch)
        self.assertEqual(objective.metrics({"main": model}, batch)["masked_lm_loss"], (loss, weight))

    def test_sums_over_parts_are_the_sum_of_the_whole(self):
        objective = MaskedLM(self.tokenizer, 32)
        batch = self.batch(objective)
        whole = objective.loss({"main": self.model}, batch)
        for cuts in ([2], [1, 3, 4]):
            parts = [
                objective.loss({"main": self.model}, {name: x[i:j] for name, x in batch.items()})
                for i, j in zip([0, *cuts], [*cuts, 6], strict=True)
            ]
            self.assertAllClose([sum(p[0] for p in parts), sum(p[1] for p in parts)], whole, 1e-6)

    def test_only_the_masked_positions_get_logits(self):
        objective = MaskedLM(self.tokenizer, 32)
        batch = self.batch(objective)
        predictions = batch["masked_ids"].shape[1]
        self.assertLess(predictions, 6)
        logits = []
        head = self.model.heads["lm"].call

        def call(*args, **kwargs):
            logits.append(head(*args, **kwargs))
            return logits[-1]

        with mock.patch.object(self.model.heads["lm"], "call", call):
            objective.loss({"main": self.model}, batch)
        self.assertEqual([tuple(x.shape) for x in logits], [(6, predictions, len(VOCAB))])


if __name__ == "__main__":
    tf.test.main()
