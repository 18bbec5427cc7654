"""Permutation objective: the targets, what each prediction may depend on, the memory, and the loss."""

import types
from unittest import mock

import numpy as np
import tensorflow as tf

import tfzoo
from tests.data.corpora import random_words
from tests.nn import two_stream
from tests.nn.formulas import Values, randomize
from tests.objectives.examples import SPECIAL, VOCAB, batch_of, packed_example
from tfzoo import models
from tfzoo.data.packing import PackedRows
from tfzoo.errors import UserError
from tfzoo.objectives.baselines import masked_lm_baselines
from tfzoo.objectives.permutation import LONGEST_SPAN, Permutation
from tfzoo.text.wordpiece import WordPiece

PAD, UNK, CLS, SEP = range(4)
ORDINARY = len(SPECIAL)


def segment_example(tokens, previous=(), seed=0):
    """Returns a row in the format of SegmentRows."""
    return {
        "token_ids": tf.constant(tokens, tf.int32),
        "previous_ids": tf.constant(previous, tf.int32),
        "seed": tf.constant([seed, 2], tf.int32),
    }


def text(count, longest, seed=0):
    """Returns documents of random tokens, some of them special."""
    return random_words(count, longest, 1, len(VOCAB), seed)


def small_model(**overrides):
    sizes = dict(vocab_size=len(VOCAB), hidden_size=8, num_layers=2, num_heads=2, intermediate_size=12)
    model = tfzoo.build("xlnet_base", **sizes, dropout=0.0, attention_dropout=0.0, **overrides)
    randomize(model, scale=0.3)
    return model


class PermutationCase(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.tokenizer = WordPiece(VOCAB)

    def objective(self, length=16, **options):
        return Permutation(self.tokenizer, length, **options)


class PrepareTest(PermutationCase):
    def test_the_worked_example(self):
        objective = self.objective(8, predict_one_in=1)
        token_ids = tf.constant([11, 12, 13, 14])
        order = tf.constant([3, 2, 4, 1]) - 1
        features = objective.permuted(token_ids, tf.ones_like(token_ids), tf.range(4), order)
        expected = {
            "token_ids": [11, 12, 13, 14, SEP, CLS, PAD, PAD],
            "segment_ids": [0, 0, 0, 0, 0, 2, 0, 0],
            "padding_mask": [True] * 6 + [False] * 2,
            "document_ids": [1, 1, 1, 1, 1, 1, 0, 0],
            "permutation_ranks": [4, 2, 1, 3, 0, 0, 0, 0],
            "masked_positions": [0, 1, 2, 3, 0, 0],
            "masked_ids": [11, 12, 13, 14, 0, 0],
            "masked_weights": [1, 1, 1, 1, 0, 0],
        }
        self.assertEqual(sorted(features), sorted(expected))
        for name, value in expected.items():
            self.assertAllEqual(features[name], value, name)
        visible = objective.visible({name: x[None] for name, x in features.items()})[0]
        self.assertAllEqual(visible[:4, :4], [[0, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 0]])
        self.assertAllEqual(visible[:4, 4:6], np.ones([4, 2]))  # <sep> and <cls>.
        self.assertAllEqual(visible[4:6, :6], [[0, 0, 0, 0, 1, 1]] * 2)  # They depend on no target.

    def test_targets_are_spans_of_ordinary_tokens(self):
        objective = self.objective(98, pack=False)
        tokens = np.full(96, 9)
        tokens[[3, 50]] = UNK
        ordinary = np.flatnonzero(tokens == 9)
        longest, counts = 0, np.zeros(96)
        for seed in range(200):
            example = packed_example(tokens, seed=seed)
            positions = objective.draw(example["token_ids"], example["document_ids"], example["seed"]).numpy()
            self.assertLen(positions, 16)  # 94 / 6, rounded.
            self.assertTrue(np.all(np.diff(positions) > 0))
            self.assertTrue(np.all(np.isin(positions, ordinary)))
            counts[positions] += 1
            places = np.searchsorted(ordinary, positions)
            runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
            longest = max(longest, *map(len, runs))
        self.assertGreaterEqual(longest, LONGEST_SPAN)
        # Every token is a target at times; the middle of a context more often than its borders.
        self.assertGreater(counts[ordinary].min(), 0.02 * 200)
        self.assertLess(counts[ordinary].max(), 0.4 * 200)

    def test_lengths_of_spans(self):
        # With one target in 60, spans rarely touch, so that the runs of targets are the spans.
        objective = self.objective(1802, predict_one_in=60, pack=False)
        lengths = np.zeros(LONGEST_SPAN + 1)
        for seed in range(150):
            example = packed_example(np.full(1800, 9), seed=seed)
            positions = objective.draw(example["token_ids"], example["document_ids"], example["seed"]).numpy()
            self.assertLen(positions, 30)
            runs = np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1)
            for run in runs[:-1]:  # The last span may have been cut.
                lengths[min(len(run), LONGEST_SPAN)] += 1
        expected = 1 / np.arange(1, LONGEST_SPAN + 1)
        share = lengths[1:] / lengths.sum()
        self.assertAllClose(share, expected / expected.sum(), atol=4 * np.sqrt(0.25 / lengths.sum()))

    def test_every_order_is_as_likely(self):
        objective = self.objective(8, predict_one_in=2, pack=False)
        prepare, seen = tf.function(objective.prepare), {}
        for seed in range(600):
            ranks = prepare(packed_example([9] * 6, seed=seed))["permutation_ranks"].numpy()
            order = tuple(ranks[ranks > 0])
            self.assertEqual(sorted(order), [1, 2, 3])
            seen[order] = seen.get(order, 0) + 1
        self.assertLen(seen, 6)
        self.assertLess(max(abs(count - 100) for count in seen.values()), 5 * np.sqrt(100))

    def test_every_document_of_a_row(self):
        for longest, length, k in ((3, 32, 6), (90, 64, 6), (40, 64, 2), (40, 64, 1)):
            corpus = text(80, longest)
            objective = self.objective(length, predict_one_in=k)
            rows, batch = objective.rows(corpus), batch_of(objective, corpus)
            self.assertIsInstance(rows, PackedRows)
            tokens = 0
            for i in range(len(rows)):
                asked = batch["masked_weights"][i] > 0
                positions, documents = batch["masked_positions"][i][asked], batch["document_ids"][i]
                self.assertTrue(np.all(np.diff(positions) > 0))
                self.assertAllEqual(batch["padding_mask"][i], documents > 0)
                self.assertAllEqual(batch["masked_ids"][i][asked], batch["token_ids"][i][positions])
                self.assertTrue(np.all(batch["masked_ids"][i][asked] >= ORDINARY), "a special token is a target")
                ranks = batch["permutation_ranks"][i]
                self.assertAllEqual(np.flatnonzero(ranks), positions)
                self.assertAllEqual(np.sort(ranks[positions]), np.arange(1, len(positions) + 1))
                row, row_documents = rows.row(i)
                for document in range(1, row_documents.max() + 1):
                    own, words = documents == document, row[row_documents == document]
                    # The text is unchanged: only the model's masks hide the targets.
                    self.assertEqual(batch["token_ids"][i][own].tolist(), [*words, SEP, CLS])
                    self.assertEqual(batch["segment_ids"][i][own].tolist(), [0] * (len(words) + 1) + [2])
                    ordinary = np.sum(words >= ORDINARY)
                    wanted = min(max(1, int(ordinary / k + 0.5)), ordinary)
                    self.assertEqual(np.sum(documents[positions] == document), wanted)
                    tokens += len(words)
            self.assertEqual(tokens, len(corpus.token_ids))

    def test_memory(self):
        corpus = text(20, 60)
        objective = self.objective(16, memory_length=20)
        rows, batch = objective.rows(corpus), batch_of(objective, corpus)
        self.assertNotIn("document_ids", batch)
        self.assertGreater(np.max(batch["previous_mask"].sum(1)), 14)  # More than one row before.
        for i in range(len(rows)):
            tokens, previous = rows.row(i)
            self.assertEqual(batch["token_ids"][i][batch["padding_mask"][i]].tolist(), [*tokens, SEP, CLS])
            self.assertEqual(batch["previous_ids"][i].tolist(), [PAD] * (20 - len(previous)) + previous.tolist())
            self.assertAllEqual(batch["previous_mask"][i], np.arange(20) >= 20 - len(previous))

    def test_seeds_decide(self):
        for objective in (self.objective(32, pack=False), self.objective(32, memory_length=4)):
            make = packed_example if not objective.options.memory_length else segment_example
            one, same, other = (objective.prepare(make([9] * 30, seed=seed)) for seed in (1, 1, 2))
            for name in one:
                self.assertAllEqual(one[name], same[name])
            self.assertNotAllEqual(one["permutation_ranks"], other["permutation_ranks"])

    def test_empty_and_one_token_documents(self):
        for memory in (0, 4):
            objective = self.objective(8, memory_length=memory)
            for tokens, targets in (([], 0), ([UNK], 0), ([9], 1), ([UNK, 9, UNK], 1)):
                example = segment_example(tokens) if memory else packed_example(*[tokens] if tokens else [])
                features = objective.prepare(example)
                self.assertEqual(tf.reduce_sum(features["masked_weights"]), targets)
                framed = 0 if not tokens else len(tokens) + 2
                self.assertEqual(np.sum(features["padding_mask"]), framed)
                if targets:
                    self.assertEqual(features["masked_positions"][0], tokens.index(9))

    def test_shapes_are_static(self):
        for objective in (self.objective(9), self.objective(9, pack=False), self.objective(9, memory_length=5)):
            ids = tf.TensorSpec([None], tf.int32)
            names = ("token_ids", "document_ids", "previous_ids")
            signature = dict.fromkeys(names, ids) | {"seed": tf.TensorSpec([2], tf.int32)}
            outputs = tf.function(objective.prepare, input_signature=[signature]).get_concrete_function()
            for name, spec in outputs.structured_outputs.items():
                self.assertTrue(spec.shape.is_fully_defined(), name)


class LossTest(PermutationCase):
    def expected(self, model, objective, batch):
        """Returns (sum of nats, hits, weight) with the NumPy model, target by target."""
        v, total, hits, weight = Values(model), 0.0, 0, 0
        table, bias = v(model.tokens.embeddings), v(model.heads["lm"].bias)
        for i in range(len(batch["token_ids"])):
            ranks, documents = batch["permutation_ranks"][i], batch.get("document_ids", batch["padding_mask"])[i]
            length = len(ranks)
            sees = np.zeros([length, length], bool)
            for a in range(length):
                for b in range(length):
                    earlier = ranks[b] == 0 or (ranks[a] > 0 and ranks[b] < ranks[a])
                    sees[a, b] = earlier and documents[a] == documents[b]
            rest = {}
            if "previous_ids" in batch:
                real = batch["previous_mask"][i][None]
                nothing = np.zeros([len(model.encoder.stack.blocks), 1, 0, model.config.hidden_size])
                memory = two_stream.stack(
                    v,
                    model.encoder.stack,
                    table[batch["previous_ids"][i]][None],
                    padding_mask=real,
                    previous_sequence=nothing,
                )[2]
                rest = {"previous_sequence": memory, "previous_mask": real}
            for position, target, asked in zip(
                batch["masked_positions"][i], batch["masked_ids"][i], batch["masked_weights"][i], strict=True
            ):
                if not asked:
                    continue
                query = two_stream.stack(
                    v,
                    model.encoder.stack,
                    table[batch["token_ids"][i]][None],
                    target_mapping=np.eye(length)[None, [position]],
                    segment_ids=batch["segment_ids"][i][None],
                    padding_mask=batch["padding_mask"][i][None],
                    permutation_mask=sees[None],
                    **rest,
                )[1][0, 0]
                logits = table @ query + bias
                total += np.log(np.exp(logits).sum()) - logits[target]
                hits += np.argmax(logits) == target
                weight += 1
        return total, hits, weight

    def test_loss_and_metrics_against_numpy(self):
        model = small_model()
        for options in (dict(pack=True), dict(pack=False), dict(memory_length=3)):
            objective = self.objective(10, predict_one_in=3, **options)
            batch = batch_of(objective, text(3, 14, seed=1))
            self.assertEqual(batch["masked_weights"].min(), 0)  # Some predictions are unused.
            self.assertEqual(batch["masked_positions"].min(), 0)
            total, hits, weight = self.expected(model, objective, batch)
            self.assertAllClose(objective.loss({"main": model}, batch), (total, weight), 1e-4)
            metrics = objective.metrics({"main": model}, batch)
            self.assertEqual(sorted(metrics), ["permutation_accuracy", "permutation_loss"])
            self.assertAllClose(metrics["permutation_loss"], (total, weight), 1e-4)
            self.assertAllClose(metrics["permutation_accuracy"], (hits, weight))

    def test_packed_and_unpacked_documents_have_the_same_loss(self):
        model = small_model()
        packed, alone = self.objective(32), self.objective(32, pack=False)
        batch = batch_of(packed, text(12, 20))
        self.assertGreater(batch["document_ids"].max(), 2)
        total = count = 0.0
        for i, documents in enumerate(batch["document_ids"]):
            for document in range(1, documents.max() + 1):
                own = documents == document
                ranks = batch["permutation_ranks"][i][own]
                words = tf.constant(batch["token_ids"][i][own][:-2])
                positions = np.flatnonzero(ranks)
                order = tf.constant(np.argsort(ranks[positions]), tf.int32)
                features = alone.permuted(words, tf.ones_like(words), tf.constant(positions, tf.int32), order)
                loss, weight = alone.loss({"main": model}, {name: x[None] for name, x in features.items()})
                total, count = total + loss, count + weight
        self.assertAllClose(packed.loss({"main": model}, batch), (total, count), 1e-5)

    def test_the_memory_is_read_and_gets_no_gradient(self):
        model, objective = small_model(), self.objective(16, memory_length=6)
        features = objective.prepare(segment_example([9, 10, 11, 12, 13, 14, 9, 10], [20, 21, 22, 23]))
        batch = {name: x[None] for name, x in features.items()}
        states = []
        head = model.heads["lm"].call

        def call(states_of_targets, *args):
            states.append(states_of_targets)
            return head(states_of_targets, *args)

        with tf.GradientTape() as tape, mock.patch.object(model.heads["lm"], "call", call):
            loss, _ = objective.loss({"main": model}, batch)
        gradient = tf.convert_to_tensor(tape.gradient(loss, model.tokens.embeddings.value))
        # The embeddings are also the softmax's matrix, which gives every token but the targets this gradient.
        weights = batch["masked_weights"]
        probability = tf.nn.softmax(objective.forward(model, batch, False))[0] * weights[0][:, None]
        expected = tf.matmul(probability, states[0][0], transpose_a=True)
        for token in (20, 21, 22, 23, 30):  # The memory's, and one that is in no text.
            self.assertAllClose(gradient[token], expected[token], 1e-4)

        def changed(place):
            other = batch["previous_ids"].numpy()
            other[0, place] += 5
            return objective.loss({"main": model}, batch | {"previous_ids": tf.constant(other)})[0]

        self.assertGreater(abs(changed(5) - loss), 1e-4)
        self.assertEqual(changed(0), loss)  # Padding.
        first = self.objective(16, memory_length=6).prepare(segment_example([9, 10, 11, 12, 13, 14, 9, 10]))
        without = self.objective(16, pack=False)
        one = objective.loss({"main": model}, {name: x[None] for name, x in first.items()})
        two = without.loss({"main": model}, {name: x[None] for name, x in first.items()})
        self.assertAllClose(one, two, 1e-6)  # The first row of a document.

    def test_a_model_that_keeps_a_shorter_memory(self):
        batch = batch_of(self.objective(10, memory_length=5), text(3, 30))
        short = self.objective(10, memory_length=5).loss({"main": small_model(memory_length=2)}, batch)
        self.assertTrue(np.isfinite(short[0]))

    def test_sums_over_parts_are_the_sum_of_the_whole(self):
        model, objective = small_model(), self.objective(12, memory_length=4)
        batch = batch_of(objective, text(6, 20))
        whole = objective.loss({"main": model}, batch)
        parts = [
            objective.loss({"main": model}, {name: x[i:j] for name, x in batch.items()})
            for i, j in ((0, 1), (1, 4), (4, None))
        ]
        self.assertAllClose([sum(p[0] for p in parts), sum(p[1] for p in parts)], whole, 1e-6)

    def test_baselines_see_what_the_model_may_see(self):
        objective = self.objective(8, predict_one_in=1, pack=False)
        token_ids = tf.constant([11, 12, 13, 14])
        features = objective.permuted(token_ids, tf.ones_like(token_ids), tf.range(4), tf.constant([2, 1, 3, 0]))
        train = np.tile([11, 12, 13, 14, 15, 15], 50)
        batch = {name: x[None].numpy() for name, x in features.items()}
        found = objective.baselines(train, [batch])
        self.assertEqual(set(found["frequency"]), set(objective.metrics({"main": small_model()}, batch)))
        # 2 is predicted after 3 and 4 after 3 and 1 after 2: one side of each is known; nothing beside 3 is.
        hidden = {"masked_ids": np.array([[11], [12], [13], [14]]), "masked_positions": np.array([[0], [1], [2], [3]])}
        hidden |= {"masked_weights": np.ones([4, 1]), "token_ids": np.full([4, 8], SEP)}
        for row, seen in enumerate(([1, 2, 3], [2], [], [1, 2])):
            hidden["token_ids"][row, seen] = np.array([11, 12, 13, 14])[seen]
        expected = masked_lm_baselines(train, [hidden], self.tokenizer)["neighbour"]
        self.assertEqual(found["neighbour"]["permutation_loss"], expected["masked_lm_loss"])
        self.assertGreater(found["neighbour"]["permutation_accuracy"], found["frequency"]["permutation_accuracy"])


class ErrorsTest(PermutationCase):
    def test_tokenizers_and_models_that_do_not_fit(self):
        bare = types.SimpleNamespace(vocab_size=9, special_ids=[0], pad_id=0, cls_id=None)
        with self.assertRaisesRegex(UserError, "no token for cls, sep; use --tokenizer=wordpiece or sentence"):
            Permutation(bare, 16)
        objective = self.objective(16, memory_length=2)
        objective.check_model("xlnet_base", models.page("xlnet"))
        for name in ("bert_tiny", "gpt2"):
            page = models.page(name.split("_")[0])
            with self.assertRaisesRegex(UserError, f"--model={name}: .* two streams, such as xlnet_base"):
                objective.check_model(name, page)


if __name__ == "__main__":
    tf.test.main()
