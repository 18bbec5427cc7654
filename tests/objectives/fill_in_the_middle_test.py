"""Fill in the middle: rates, uniform splits, no lost tokens, markers of known vocabularies, and the loss's weights."""

import types

import numpy as np
import pytest
import tensorflow as tf

import tfzoo
from tests.nn.formulas import randomize
from tests.objectives.examples import batch_of, packed_example, pieces, word_corpus
from tfzoo import models
from tfzoo.errors import UserError
from tfzoo.objectives.fill_in_the_middle import LEFT_TO_RIGHT, MARKERS, PSM, SPM, FillInTheMiddle

PAD, BOS, EOS, PRE, SUF, MID, WORDS = 0, 1, 2, 37, 38, 39, 40
TEXT = range(3, PRE)


def tokenizer(bos=BOS, eos=EOS, markers=MARKERS[0], **others):
    """Returns a tokenizer of WORDS tokens, the last three of which are markers."""
    vocab = [f"t{i}" for i in range(WORDS - 3)] + list(markers)
    special = sorted({i for i in (bos, eos, PAD, PRE, SUF, MID) if i is not None})
    ids = dict(bos_id=bos, eos_id=eos, pad_id=PAD)
    return types.SimpleNamespace(vocab=vocab, vocab_size=WORDS, special_ids=special, **ids | others)


def corpus(count, longest, seed=0):
    text = word_corpus(count, longest, seed)
    text.token_ids[:] = np.random.default_rng(seed).choice(TEXT, len(text.token_ids))
    return text


def sequences(batch):
    """Returns each document's tokens, the last target included."""
    if "document_ids" not in batch:
        batch = batch | {"document_ids": (batch["target_weights"] > 0).astype(int)}
    for i, numbers in enumerate(batch["document_ids"]):
        for document in range(1, numbers.max() + 1):
            part = np.flatnonzero(numbers == document)
            yield [*batch["token_ids"][i, part].tolist(), int(batch["targets"][i, part[-1]])]


def restored(tokens, bos, eos, ends):
    """Returns (arrangement, prefix, middle, suffix) of a document's tokens; asserts that nothing else is in them."""
    tokens = list(tokens)
    if bos is not None and tokens[0] == bos:
        tokens.pop(0)
    if tokens[:1] != [PRE]:
        assert not {PRE, SUF, MID} & {*tokens}
        return LEFT_TO_RIGHT, tokens[: -1 if tokens[-1:] == [eos] else None], [], []
    assert tokens.pop() == eos and [tokens.count(i) for i in (PRE, SUF, MID)] == [1, 1, 1] and eos not in tokens
    second, third = tokens.index(SUF), tokens.index(MID)
    assert second < third
    if second > 1 or ends == PSM:
        return PSM, tokens[1:second], tokens[third + 1 :], tokens[second + 1 : third]
    return SPM, tokens[third + 1 :], [], tokens[second + 1 : third]


class PrepareTest(tf.test.TestCase):
    def test_the_worked_example(self):
        vocab = [f"t{i}" for i in range(20)]
        vocab[5:8] = MARKERS[0]
        objective = FillInTheMiddle(types.SimpleNamespace(vocab=vocab, vocab_size=20, bos_id=1, eos_id=2, pad_id=0), 10)
        tokens, numbers = tf.constant([1, 10, 11, 12, 13, 14, 2]), tf.ones([7], tf.int32)
        psm = [1, 5, 10, 6, 13, 14, 7, 11, 12, 2]
        for arrangement, expected in (
            (LEFT_TO_RIGHT, [1, 10, 11, 12, 13, 14, 2]),
            (PSM, psm),
            (SPM, [1, 5, 6, 13, 14, 7, 10, 11, 12, 2]),
        ):
            found, documents = objective.arrange(tokens, numbers, tf.constant([arrangement]), tf.constant([[1, 3]]))
            self.assertAllEqual(found, expected)
            self.assertAllEqual(documents, np.ones(len(expected)))
        features = objective.shift(tf.constant(psm), tf.ones([10], tf.int32))
        self.assertAllEqual(features["token_ids"], [1, 5, 10, 6, 13, 14, 7, 11, 12, 0])
        self.assertAllEqual(features["targets"], [5, 10, 6, 13, 14, 7, 11, 12, 2, 0])
        self.assertAllEqual(features["target_weights"], [1] * 9 + [0])

    def test_every_document_is_restored(self):
        self.check_restored((3, 16))

    @pytest.mark.faults
    def test_every_long_document_is_restored(self):
        self.check_restored((40, 24))

    def check_restored(self, *sizes):
        for rates, arrangement in (((1.0, 0.0), PSM), ((1.0, 1.0), SPM), ((0.0, 0.5), LEFT_TO_RIGHT)):
            for longest, length in sizes:
                text = corpus(60, longest)
                # GPT-2 has one token for both ends, and some tokenizers have no beginning.
                for bos, eos in ((BOS, EOS), (None, EOS), (EOS, EOS)) if length == 24 else ((BOS, EOS),):
                    for pack in (True, False) if bos == BOS else (True,):
                        options = dict(fim_rate=rates[0], spm_rate=rates[1], pack=pack)
                        objective = FillInTheMiddle(tokenizer(bos, eos), length, **options)
                        found = []
                        for tokens in sequences(batch_of(objective, text)):
                            kind, *three = restored(tokens, bos, eos, arrangement)
                            self.assertEqual(kind, arrangement)
                            found.append(tuple(sum(three, [])))
                        expected = [tuple(i for i in piece if i not in (bos, eos)) for piece in pieces(objective, text)]
                        self.assertEqual(sorted(found), sorted(expected))

    def test_a_left_to_right_document_is_that_of_causal(self):
        objective = FillInTheMiddle(tokenizer(), 16, fim_rate=0.0)
        text = corpus(30, 30)
        self.assertEqual(sorted(map(tuple, sequences(batch_of(objective, text)))), pieces(objective, text))

    def test_rates(self):
        count = 4000
        example = packed_example(*([[5, 6, 7, 8]] * count))
        for fim_rate, spm_rate in ((0.5, 0.5), (0.9, 0.25)):
            options = dict(fim_rate=fim_rate, spm_rate=spm_rate)
            objective = FillInTheMiddle(tokenizer(None), count * 9, **options)
            features = {name: x.numpy()[None] for name, x in objective.prepare(example).items()}
            kinds = []
            for tokens in sequences(features):
                # An empty prefix makes PSM look like SPM with an empty middle: only the others are counted.
                moved = tokens[0] == PRE
                kinds.append(0 if not moved else 2 if tokens[1] == SUF else 1)
            shares = np.bincount(kinds, minlength=3) / count
            # Two cuts among 5 places; the prefix is empty if either is the first.
            empty = 1 - (4 / 5) ** 2
            psm = fim_rate * (1 - spm_rate) * (1 - empty)
            expected = [1 - fim_rate, psm, fim_rate - psm]
            self.assertAllClose(shares, expected, atol=4.5 * 0.5 / np.sqrt(count))

    def test_both_cuts_are_uniform(self):
        count, size = 6000, 3
        example = packed_example(*([[5, 6, 7]] * count))
        objective = FillInTheMiddle(tokenizer(None), count * 8, fim_rate=1.0, spm_rate=0.0)
        features = {name: x.numpy()[None] for name, x in objective.prepare(example).items()}
        seen = np.zeros([size + 1, size + 1])
        for tokens in sequences(features):
            _, prefix, middle, suffix = restored(tokens, None, EOS, PSM)
            self.assertEqual(prefix + middle + suffix, [5, 6, 7])
            seen[len(prefix), len(prefix) + len(middle)] += 1
        for one in range(size + 1):
            for other in range(size + 1):
                share = 0 if other < one else (1 if one == other else 2) / (size + 1) ** 2
                self.assertLess(abs(seen[one, other] - count * share), 4.5 * np.sqrt(count * share) + 1e-9)

    def test_the_longest_piece_fills_a_row(self):
        objective = FillInTheMiddle(tokenizer(), 16, fim_rate=1.0)
        self.assertEqual(objective.row_tokens, 13)
        inner = packed_example(np.full(13, 7))  # A piece from inside a document: it gets an <EOT>.
        self.assertEqual(np.sum(objective.prepare(inner)["target_weights"]), 16)
        whole = packed_example([BOS, *np.full(11, 7), EOS])
        self.assertEqual(np.sum(objective.prepare(whole)["target_weights"]), 15)

    def test_empty_and_one_token_documents(self):
        objective = FillInTheMiddle(tokenizer(), 12, fim_rate=1.0)
        self.assertFalse(np.any(objective.prepare(packed_example())["target_weights"]))
        features = {n: x.numpy()[None] for n, x in objective.prepare(packed_example([5], [BOS, EOS])).items()}
        one, none = sequences(features)
        self.assertEqual(sorted(one), sorted([5, PRE, SUF, MID, EOS]))
        self.assertEqual(none, [BOS, PRE, SUF, MID, EOS])
        untouched = FillInTheMiddle(tokenizer(), 12, fim_rate=0.0).prepare(packed_example([5], [BOS, EOS]))
        self.assertAllEqual(untouched["targets"][:2], [EOS, 0])

    def test_the_same_seed_gives_the_same_arrangement(self):
        objective, row = FillInTheMiddle(tokenizer(), 48, fim_rate=1.0), packed_example(TEXT)
        one, same, other = (objective.prepare(row | {"seed": tf.constant([s, 2])}) for s in (1, 1, 2))
        self.assertAllEqual(one["targets"], same["targets"])
        self.assertNotAllEqual(one["targets"], other["targets"])

    def test_shapes_are_static(self):
        ids = tf.TensorSpec([None], tf.int32)
        signature = {"token_ids": ids, "document_ids": ids, "seed": tf.TensorSpec([2], tf.int32)}
        for pack in (True, False):
            objective = FillInTheMiddle(tokenizer(), 9, pack=pack)
            outputs = tf.function(objective.prepare, input_signature=[signature]).get_concrete_function()
            for name, spec in outputs.structured_outputs.items():
                self.assertEqual(spec.shape, [9], name)
            self.assertLessEqual(set(objective.inputs), set(outputs.structured_outputs))


class TokensTest(tf.test.TestCase):
    def test_the_markers_of_known_vocabularies(self):
        for markers in MARKERS:
            objective = FillInTheMiddle(tokenizer(markers=markers), 16, fim_rate=1.0)
            tokens = next(sequences({n: x.numpy()[None] for n, x in objective.prepare(packed_example([9])).items()}))
            self.assertEqual(sorted(tokens), sorted([PRE, SUF, MID, 9, EOS]))

    def test_the_end_of_the_middle(self):
        for words, end in ((tokenizer(), EOS), (tokenizer(eos=None), 30), (tokenizer(), 31)):
            if end == 30:
                words.vocab[30] = "<|endoftext|>"
            if end == 31:
                words.vocab[31] = "▁<EOT>"
            objective = FillInTheMiddle(words, 16, fim_rate=1.0)
            last = words.eos_id or end
            features = objective.prepare(packed_example([5, 6, last]))
            count = int(np.sum(features["target_weights"]))
            self.assertEqual(features["targets"][count - 1], end)
            self.assertEqual(np.sum(np.isin(features["targets"][:count], [EOS, 30, 31])), 1)

    def test_what_cannot_be(self):
        with self.assertRaisesRegex(UserError, "tokens that mark.* '--special_tokens=<fim_prefix>,<fim_s"):
            FillInTheMiddle(tokenizer(markers=("<fim_prefix>", "<fim_suffix>", "other")), 16)
        with self.assertRaisesRegex(UserError, "requires a tokenizer with an end-of-text token"):
            FillInTheMiddle(tokenizer(eos=None), 16)
        for rate in ("fim_rate", "spm_rate"):
            with self.assertRaisesRegex(UserError, f"{rate}=1.5"):
                FillInTheMiddle(tokenizer(), 16, **{rate: 1.5})
        objective = FillInTheMiddle(tokenizer(), 16)
        objective.check_model("llama_tiny", models.page("llama"))
        for family in ("bert", "t5"):
            with self.assertRaisesRegex(UserError, f"--model={family}: --objective=fill_in_the_middle requires a caus"):
                objective.check_model(family, models.page(family))


class LossTest(tf.test.TestCase):
    def test_against_numpy_document_by_document(self):
        sizes = dict(vocab_size=WORDS, hidden_size=8, num_layers=2, num_heads=2, intermediate_size=12)
        model = tfzoo.build("gpt2", **sizes, max_positions=32, dropout=0.0, attention_dropout=0.0)
        randomize(model)
        objective, text = FillInTheMiddle(tokenizer(), 24), corpus(12, 12)
        batch = batch_of(objective, text)
        self.assertGreater(batch["document_ids"].max(), 1)
        losses, hits, is_marker = [], [], []
        for tokens in sequences(batch):
            logits = model({"token_ids": np.array([tokens[:-1]])})["logits"][0].numpy().astype(np.float64)
            for row, target in zip(logits, tokens[1:], strict=True):
                losses.append(np.log(np.exp(row).sum()) - row[target])
                hits.append(np.argmax(row) == target)
                is_marker.append(target in (PRE, SUF, MID))
        losses, hits, words = np.array(losses), np.array(hits), ~np.array(is_marker)
        self.assertLess(words.sum(), len(words))
        self.assertAllClose(objective.loss({"main": model}, batch), (losses.sum(), len(losses)), 1e-5)
        metrics = objective.metrics({"main": model}, batch)
        self.assertEqual(sorted(metrics), ["fim_accuracy", "fim_loss"])
        self.assertAllClose(metrics["fim_loss"], (losses[words].sum(), words.sum()), 1e-5)
        self.assertAllClose(metrics["fim_accuracy"], (hits[words].sum(), words.sum()))
        self.assertEqual(set(objective.baselines(text.token_ids, [batch])["frequency"]), set(metrics))


if __name__ == "__main__":
    tf.test.main()
