"""The options of masked language modeling: the papers' examples of words and spans, rates, and static masks."""

import re
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

import tfzoo
from tests.data.corpora import corpus as parallel_corpus
from tests.data.corpora import random_words
from tests.nn.formulas import randomize
from tests.objectives.examples import SPECIAL, VOCAB, packed_example
from tfzoo import models
from tfzoo.data import pipeline, words
from tfzoo.data.documents import Document
from tfzoo.data.tokenized import tokenize
from tfzoo.errors import UserError
from tfzoo.objectives import masked_lm, masking
from tfzoo.objectives.masked_lm import MaskedLM
from tfzoo.text.wordpiece import WordPiece

CLS, SEP, MASK = (SPECIAL.index(name) for name in ("[CLS]", "[SEP]", "[MASK]"))


def drawing(*draws, kinds=()):
    """Replaces the random numbers: of the selection with `draws`, in turn; of kinds and random tokens with `kinds`,
    padded with zeros."""
    left = [tf.constant(draw, tf.float32) for draw in draws]

    def uniform(shape, seed):
        if len(shape) == 1:
            return left.pop(0)
        row = tf.pad(tf.constant(kinds, tf.float32, [len(kinds)]), [[0, shape[1] - len(kinds)]])
        return tf.stack([row, row])

    return mock.patch.object(masked_lm.tf.random, "stateless_uniform", uniform)


def low(count, *places):
    """Returns scores of `count` tokens, of which those at `places` are selected first."""
    scores = np.full(count, 0.9)
    scores[list(places)] = 0.1
    return scores


class ExamplesTest(tf.test.TestCase):
    def shown(self, objective, features):
        """Returns the text of a row without [CLS] and [SEP], after checking that it can be restored."""
        count = int(features["masked_weights"].numpy().sum())
        restored = features["token_ids"].numpy().copy()
        restored[features["masked_positions"][:count]] = features["masked_ids"][:count]
        length = int(np.sum(features["padding_mask"])) - 1
        self.assertTrue(np.all(restored >= 0))
        names = np.array(objective._tokenizer.vocab)
        return " ".join(names[restored[1:length]]), " ".join(names[features["token_ids"][1:length]])

    def test_table_1_of_bert_wwm(self):
        text = "使 用 语 言 模 型 来 预 测 下 一 个 词 的 pro ##babi ##lity 。"
        tokenizer = WordPiece([*SPECIAL, *sorted(set(text.split()))])
        corpus = tokenize([Document("one", ["使用语言模型来预测下一个词的probability。"])], tokenizer)
        sizes = dict(pairs="none", sequence_length=24)
        cut = mock.patch.object(words, "_cut", lambda: re.compile("使用|语言|模型|预测|一个|.").findall)
        # Scores of a word are those of its first token. 7 of 18 tokens are selected: 模型, 预测 and probability.
        for options, scores, expected in (
            (
                dict(mask_rate=0.17),
                low(18, 4, 7, 15),
                "使 用 语 言 [MASK] 型 来 [MASK] 测 下 一 个 词 的 pro [MASK] ##lity 。",
            ),
            (
                dict(mask_rate=0.39, mask_unit="word", chinese_words=True),
                low(18, 4, 7, 14),
                "使 用 语 言 [MASK] [MASK] 来 [MASK] [MASK] 下 一 个 词 的 [MASK] [MASK] [MASK] 。",
            ),
        ):
            objective = MaskedLM(tokenizer, **sizes, **options)
            with cut:
                (row,) = [objective.rows(corpus).row(0)]
            example = dict(zip(("token_ids", "document_ids"), map(tf.constant, row))) | {"seed": tf.constant([1, 2])}
            with drawing(scores, np.zeros(18)):
                features = objective.prepare(example)
            self.assertEqual(self.shown(objective, features), (text, expected))
        # Without --chinese_words, each character is a word.
        objective = MaskedLM(tokenizer, **sizes, mask_rate=0.39, mask_unit="word")
        with drawing(low(18, 4, 7, 14), np.zeros(18)):
            features = objective.prepare(example | {"token_ids": tf.constant(corpus.token_ids)})
        self.assertIn("[MASK] 型 来 [MASK] 测", self.shown(objective, features)[1])

    def test_figure_1_of_spanbert(self):
        text = "super bowl 50 was an american football game to determine the champion"
        tokenizer = WordPiece([*SPECIAL, *sorted(set(text.split()))])
        row = packed_example([tokenizer.vocab.index(word) for word in text.split()])
        objective = MaskedLM(tokenizer, 16, pairs="none", mask_unit="span", mask_rate=0.33)
        other = "champion"
        for kind, expected in (  # All four words are replaced in the same way.
            (0.79, "super bowl 50 was [MASK] [MASK] [MASK] [MASK] to determine the champion"),
            (0.85, f"super bowl 50 was {other} {other} {other} {other} to determine the champion"),
            (0.95, text),
        ):
            # From 0.55 to 0.66, the length of a span is 4. Only the first kind, that of the first span, counts; the
            # random tokens are the same numbers.
            with drawing(low(12, 4), np.full(12, 0.6), kinds=[kind, *[kind] * 3]):
                features = objective.prepare(row)
            restored, shown = self.shown(objective, features)
            self.assertEqual(restored, text)
            if kind == 0.85:
                random = set(shown.split()[4:8])
                self.assertLen(random, 1)  # The same random number for each token.
                self.assertNotIn("[MASK]", random)
            else:
                self.assertEqual(shown, expected)

    def test_a_span_is_replaced_as_a_whole(self):
        tokenizer, draw_units = WordPiece(VOCAB), masking.draw_units
        row = packed_example(np.random.default_rng(0).integers(5, len(VOCAB), 200))
        for unit, whole in (("span", True), ("ngram", False)):
            objective = MaskedLM(tokenizer, 202, pairs="none", mask_unit=unit, mask_rate=0.3)
            mixed = []
            for number in range(10):
                found = []
                with mock.patch.object(masking, "draw_units", lambda *a: found.append(draw_units(*a)) or found[-1]):  # noqa: B023
                    features = objective.prepare(row | {"seed": tf.constant([number, 3])})
                units = found[0].numpy()
                units = units[units > 0]
                positions = features["masked_positions"].numpy()[: len(units)]
                masked = features["token_ids"].numpy()[positions] == MASK
                for each in np.unique(units):
                    own = masked[units == each]
                    self.assertAllEqual(np.diff(positions[units == each]), np.ones(len(own) - 1))
                    mixed.append(0 < np.sum(own) < len(own))
            self.assertEqual(not np.any(mixed), whole)

    def test_figure_1_of_xlm(self):
        texts = ["the curtains were blue", "les rideaux étaient bleus"]
        tokenizer = WordPiece([*SPECIAL, *sorted(set(" ".join(texts).split()))], lowercase=False)
        objective = MaskedLM(tokenizer, 14, pairs="translation", mask_rate=0.5, pack=False)
        rows = objective.rows(tokenize([Document("one", texts)], tokenizer))
        example = dict(zip(rows.FEATURES, map(tf.constant, rows.row(0)))) | {"seed": tf.constant([1, 2])}
        with drawing(low(8, 1, 2, 4, 7)):
            features = objective.prepare(example)
        restored, shown = self.shown(objective, features)
        self.assertEqual(restored, "the curtains were blue [SEP] les rideaux étaient bleus")
        self.assertEqual(shown, "the [MASK] [MASK] blue [SEP] [MASK] rideaux étaient [MASK]")
        self.assertAllEqual(features["position_ids"], [0, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 0, 0, 0])
        self.assertAllEqual(features["segment_ids"], [0] * 6 + [1] * 5 + [0] * 3)
        self.assertNotIn("document_ids", features)
        self.assertNotIn("document_ids", objective.inputs)
        self.assertLessEqual(set(objective.inputs), set(features))


class TranslationTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.tokenizer = WordPiece(VOCAB)

    def parallel(self, lengths):
        """Returns pairs of random texts of these lengths."""
        text = parallel_corpus([[a, b] for a, b in lengths])
        text.token_ids[:] = np.random.default_rng(0).integers(5, len(VOCAB), len(text.token_ids))
        return text

    def test_packed_pairs(self):
        random = np.random.default_rng(1)
        for longest, units in ((2, "token"), (9, "span"), (40, "token")):
            objective = MaskedLM(self.tokenizer, 32, pairs="translation", mask_unit=units, mask_rate=0.3)
            rows = objective.rows(self.parallel(random.integers(1, longest, [150, 2])))
            batches = pipeline.evaluation_batches(rows, objective, batch_size=len(rows), seed=3, num_batches=1)
            (batch,) = batches.as_numpy_iterator()
            self.assertLessEqual(set(objective.inputs), set(batch))
            for i in range(len(rows)):
                first, first_documents, second, second_documents = rows.row(i)
                asked = batch["masked_weights"][i] > 0
                restored = batch["token_ids"][i].copy()
                restored[batch["masked_positions"][i][asked]] = batch["masked_ids"][i][asked]
                expected = [[], [], [], []]  # Tokens, positions, segments, documents.
                for number in range(1, first_documents.max() + 1):
                    one, two = first[first_documents == number], second[second_documents == number]
                    expected[0] += [CLS, *one, SEP, *two, SEP]
                    expected[1] += [*range(len(one) + 2), *range(1, len(two) + 2)]
                    expected[2] += [0] * (len(one) + 2) + [1] * (len(two) + 1)
                    expected[3] += [number] * (len(one) + len(two) + 3)
                    drawn = np.sum(batch["document_ids"][i][batch["masked_positions"][i][asked]] == number)
                    most = max(1, round(float(np.float32(0.3) * np.float32(len(one) + len(two)))))
                    (self.assertEqual if units == "token" else self.assertLessEqual)(drawn, most)
                for values, name in zip(expected, ("", "position_ids", "segment_ids", "document_ids")):
                    found = batch[name][i] if name else restored
                    self.assertAllEqual(found, np.pad(values, [0, 32 - len(values)]), name)
        self.assertGreater(batch["document_ids"].max(), 1)

    def test_the_model_reads_a_packed_pair_as_one_of_its_own(self):
        lengths = [[3, 4], [2, 2], [5, 1]]
        model = tfzoo.build(
            "bert_tiny", vocab_size=len(VOCAB), hidden_size=8, num_layers=1, num_heads=2, intermediate_size=12,
            max_positions=32, dropout=0.0, attention_dropout=0.0, heads=("lm",),
        )  # fmt: skip
        randomize(model)
        packed = MaskedLM(self.tokenizer, 32, pairs="translation")
        rows = packed.rows(self.parallel(lengths))
        self.assertLen(rows, 1)
        example = dict(zip(rows.FEATURES, map(tf.constant, rows.row(0)))) | {"seed": tf.constant([1, 2])}
        batch = {name: x[None] for name, x in packed.prepare(example).items()}
        together = packed.metrics({"main": model}, batch)["masked_lm_loss"]
        self.assertAllEqual(together, packed.loss({"main": model}, batch, training=False))
        alone = [0.0, 0.0]
        documents = batch["document_ids"][0].numpy()
        for number in (1, 2, 3):
            own = documents == number
            asked = (batch["masked_weights"][0].numpy() > 0) & own[batch["masked_positions"][0].numpy()]
            part = {name: batch[name][0].numpy()[own] for name in ("token_ids", "segment_ids", "position_ids")} | {
                "masked_positions": batch["masked_positions"][0].numpy()[asked] - np.argmax(own),
                "masked_ids": batch["masked_ids"][0].numpy()[asked],
                "masked_weights": batch["masked_weights"][0].numpy()[asked],
            }
            loss = packed.loss({"main": model}, {name: tf.constant(x)[None] for name, x in part.items()}, False)
            alone = [a + float(b) for a, b in zip(alone, loss)]
        self.assertAllClose(together, alone, 1e-5)

    def test_what_does_not_fit(self):
        with self.assertRaisesRegex(UserError, "--corpus: is not parallel text: document 1 has 1 sentence "):
            MaskedLM(self.tokenizer, 32, pairs="translation").rows(random_words(3, 9, 5, 9))


class OptionsTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.tokenizer = WordPiece(VOCAB)

    def test_what_does_not_fit(self):
        for pattern, options in (
            ("--ngram_weights=6,3,2: requires --mask_unit=ngram", dict(ngram_weights="6,3,2")),
            ("--ngram_weights=6,x: must be numbers", dict(mask_unit="ngram", ngram_weights="6,x")),
            ("--ngram_weights=: must be numbers", dict(mask_unit="ngram", ngram_weights="")),
            ("--ngram_weights=0,0: must be numbers", dict(mask_unit="ngram", ngram_weights="0,0")),
            ("--ngram_weights=2,-1: must be numbers", dict(mask_unit="ngram", ngram_weights="2,-1")),
            ("--ngram_weights=1,inf: must be numbers", dict(mask_unit="ngram", ngram_weights="1,inf")),
            ("mask_unit=words: must be one of token, word", dict(mask_unit="words")),
            ("final_mask_rate=0.95: must be from 0.01 to 0.9", dict(final_mask_rate=0.95)),
            ("mask_patterns=-1: must be at least 0", dict(mask_patterns=-1)),
            ("pairs=order: must be one of none, next_sentence", dict(pairs="order")),
        ):
            with self.subTest(**options), self.assertRaisesRegex(UserError, f"^{pattern}"):
                MaskedLM(self.tokenizer, 24, **options)

        objective = MaskedLM(self.tokenizer, 24, chinese_words=True)
        with self.assertRaisesRegex(UserError, "^--chinese_words: single tokens are masked; add --mask_unit=word, or"):
            objective.check_model("bert_tiny", models.page("bert"))

    def test_a_rate_that_changes(self):
        self.check_rates((0.1, 0.4, "token"), (0.4, 0.1, "span"))

    @pytest.mark.faults
    def test_a_rate_that_changes_in_the_other_direction(self):
        self.check_rates((0.1, 0.4, "span"), (0.4, 0.1, "token"))

    def check_rates(self, *cases):
        row = packed_example(np.full(60, 7))
        for first, last, unit in cases:
            objective = MaskedLM(
                self.tokenizer, 62, pairs="none", mask_rate=first, final_mask_rate=last, mask_unit=unit
            )
            prepare = tf.function(objective.prepare)
            for progress in (0.0, 0.25, 0.5, 1.0):
                features = prepare(row | {"progress": tf.constant(progress)})
                expected = round(60 * (first + (last - first) * progress))
                self.assertEqual(features["masked_weights"].numpy().sum(), expected)
                self.assertEqual(features["masked_ids"].shape, [24])
            # Evaluations have the last rate.
            evaluated = []
            for rates in (dict(mask_rate=first, final_mask_rate=last), dict(mask_rate=last)):
                objective = MaskedLM(self.tokenizer, 62, pairs="none", pack=False, mask_unit=unit, **rates)
                rows = objective.rows(random_words(30, 61, 5, len(VOCAB)))
                batches = pipeline.evaluation_batches(rows, objective, batch_size=len(rows), seed=0, num_batches=1)
                (batch,) = batches.as_numpy_iterator()
                weights = batch["masked_weights"]
                evaluated.append((weights.sum(1), batch["masked_positions"][weights > 0]))
            for one, two in zip(*evaluated, strict=True):
                self.assertAllEqual(one, two)

    def test_every_rate_of_a_training_fits_into_the_packed_rows(self):
        for first, last in ((0.1, 0.5), (0.5, 0.1)):
            objective = MaskedLM(self.tokenizer, 32, pairs="none", mask_rate=first, final_mask_rate=last)
            for longest in (3, 40):  # With short documents, the minimum of one token each limits a row.
                rows = objective.rows(random_words(200, longest, 5, len(VOCAB)))
                batches = pipeline.training_batches(
                    rows, objective, batch_size=4, seed=0, first_step=0, num_steps=max(len(rows) // 2, 20)
                )
                shares = []
                for batch in batches.as_numpy_iterator():
                    text = np.sum(batch["padding_mask"]) - 2 * np.sum(batch["document_ids"].max(1))
                    shares.append(batch["masked_weights"].sum() / text)
                if longest == 40:
                    self.assertNear(np.mean(shares[:3]), first, 0.08)
                    self.assertNear(np.mean(shares[-3:]), last, 0.08)

    def test_static_masks(self):
        """As in BERT's data, in which each text has ten masks."""
        rows_of = dict(batch_size=1, seed=3, first_step=0)
        for patterns in (0, 2):
            objective = MaskedLM(self.tokenizer, 64, pairs="none", pack=False, mask_patterns=patterns)
            rows = objective.rows(random_words(6, 60, 5, len(VOCAB)))
            masks: dict[bytes, list[bytes]] = {}
            batches = pipeline.training_batches(
                rows, objective, num_steps=4 * len(rows), patterns=objective.patterns, **rows_of
            )
            for batch in batches.as_numpy_iterator():
                text = batch["token_ids"].copy()
                text[0, batch["masked_positions"][0]] = np.where(
                    batch["masked_weights"][0] > 0, batch["masked_ids"][0], text[0, batch["masked_positions"][0]]
                )
                masks.setdefault(text.tobytes(), []).append(batch["token_ids"].tobytes())
            self.assertLen(masks, len(rows))
            long = [epochs for text, epochs in masks.items() if np.count_nonzero(np.frombuffer(text, np.int32)) > 20]
            self.assertNotEmpty(long)
            for epochs in long:
                self.assertLen(set(epochs), patterns or 4)


if __name__ == "__main__":
    tf.test.main()
