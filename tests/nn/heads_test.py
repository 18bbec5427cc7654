"""Every head compared with its formula, pooling, and the check of inputs."""

import numpy as np
import tensorflow as tf

from tests.nn import formulas
from tests.nn.formulas import Values, normal, randomize, relative_error
from tfzoo import nn
from tfzoo.config import ACTIVATIONS, POOLINGS, EmbeddingConfig, Projection, TransformerConfig


def config(**overrides):
    sizes = dict(vocab_size=11, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=4, norm_epsilon=1e-5)
    return TransformerConfig(**sizes | overrides)


def built(layer, shape=None):
    layer.build(shape)
    randomize(layer)
    return layer


def single(array):
    return tf.constant(array, tf.float32)


class PoolerAndClassifierTest(tf.test.TestCase):
    def test_values(self):
        x = normal(3, 5, 8)
        pooler, classifier = nn.Pooler(config()), nn.Classifier(config(), 4)
        pooler.build((None, None, 8))
        classifier.build((None, 8))
        randomize(pooler)
        randomize(classifier)
        v = Values(pooler, classifier)
        pooled = np.tanh(formulas.dense(v, pooler.dense, x[:, 0]))
        y = pooler(tf.constant(x, tf.float32))
        self.assertLess(relative_error(y, pooled), 1e-5)
        self.assertLess(relative_error(classifier(y), formulas.dense(v, classifier.dense, pooled)), 1e-5)

    def test_a_layer_between_and_no_bias(self):
        for x in (normal(3, 8), normal(3, 5, 8)):
            classifier = built(nn.Classifier(config(), 4, "tanh"), x.shape)
            v = Values(classifier)
            expected = formulas.dense(v, classifier.dense, np.tanh(formulas.dense(v, classifier.hidden, x)))
            self.assertLess(relative_error(classifier(single(x)), expected), 1e-5)
            classifier = built(nn.Classifier(config(), 4, use_bias=False), x.shape)
            self.assertEqual([w.name for w in classifier.trainable_weights], ["kernel"])
            expected = x @ Values(classifier)(classifier.dense.kernel)
            self.assertLess(relative_error(classifier(single(x)), expected), 1e-5)

    def test_dropout_only_while_training_and_where_it_is_wanted(self):
        x = single(normal(3, 8))
        for hidden, dropout in ((None, True), ("tanh", True), (None, False), ("tanh", False)):
            classifier = built(nn.Classifier(config(dropout=0.5), 4, hidden, dropout=dropout), x.shape)
            self.assertAllEqual(classifier(x), classifier(x))
            one, two = classifier(x, training=True), classifier(x, training=True)
            self.assertEqual(bool(np.any(one != two)), dropout)
            self.assertLen(classifier.non_trainable_variables, int(dropout))

    def test_logits_are_float32_under_every_policy(self):
        classifier = nn.Classifier(config(), 4, dtype="mixed_bfloat16")
        self.assertEqual(classifier(tf.zeros([2, 8], "bfloat16")).dtype, "float32")


class PoolTest(tf.test.TestCase):
    def test_without_padding(self):
        x, pooled = normal(3, 5, 8), normal(3, 8, seed=1)
        outputs = {"sequence": single(x), "pooled": single(pooled)}
        for how, expected in (("first", x[:, 0]), ("last", x[:, -1]), ("mean", x.mean(1)), ("pooled", pooled)):
            self.assertLess(relative_error(nn.pool(how, outputs), expected), 1e-6, how)

    def test_padding_on_either_side(self):
        x, pooled = normal(4, 5, 8), normal(4, 8, seed=1)
        outputs = {"sequence": single(x), "pooled": single(pooled)}
        real = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 1, 0, 0]], bool)
        firsts, lasts = [0, 0, 3, 2], [4, 1, 4, 2]
        for how, expected in (
            ("first", np.stack([row[i] for row, i in zip(x, firsts, strict=True)])),
            ("last", np.stack([row[i] for row, i in zip(x, lasts, strict=True)])),
            ("mean", np.stack([row[keep].mean(0) for row, keep in zip(x, real, strict=True)])),
            ("pooled", pooled),
        ):
            for mask in (real, real.astype(np.int32)):
                self.assertLess(relative_error(nn.pool(how, outputs, mask), expected), 1e-6, how)

    def test_sums_weights_and_the_largest(self):
        x = normal(3, 5, 8)
        real = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1]], bool)
        counted = real & np.array([[0, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 1, 1]], bool)
        for mask in (real, counted):
            expected: dict[str, list] = {"mean_sqrt_len": [], "weighted_mean": [], "max": [], "first": [], "last": []}
            for row, there, keep in zip(x, real, mask, strict=True):
                places = (np.arange(5) - np.argmax(there) + 1)[keep, None]  # Counted from 1, after the padding.
                expected["mean_sqrt_len"].append(row[keep].sum(0) / np.sqrt(keep.sum()))
                expected["weighted_mean"].append((row[keep] * places).sum(0) / places.sum())
                expected["max"].append(row[keep].max(0))
                expected["first"].append(row[keep][0])
                expected["last"].append(row[keep][-1])
            for how, values in expected.items():
                y = nn.pool(how, {"sequence": single(x)}, real, None if mask is real else mask)
                self.assertLess(relative_error(y, np.stack(values)), 1e-6, how)
        whole = np.ones([3, 5], bool)
        for how in POOLINGS:
            self.assertAllClose(nn.pool(how, {"sequence": single(x)}), nn.pool(how, {"sequence": single(x)}, whole))

    def test_a_row_without_tokens_gives_numbers(self):
        outputs = {"sequence": single(normal(1, 5, 8))}
        for how in POOLINGS:
            y = nn.pool(how, outputs, np.zeros([1, 5], bool))
            self.assertTrue(np.all(np.isfinite(y)), how)

    def test_half_precision_keeps_its_dtype(self):
        outputs = {"sequence": tf.cast(normal(2, 5, 8), "bfloat16")}
        for how in POOLINGS:
            self.assertEqual(nn.pool(how, outputs, np.ones([2, 5], bool)).dtype, "bfloat16")


class EmbeddingHeadTest(tf.test.TestCase):
    def test_values(self):
        x, real = normal(3, 5, 8), np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]], bool)
        layers = (Projection(6, "tanh"), "normalize", Projection(4, "none", False))
        head = nn.EmbeddingHead(config(), EmbeddingConfig(pooling=("mean", "first"), layers=layers))
        built(head, (None, None, 8))
        v = Values(head)
        pooled = np.stack([np.concatenate([row[keep].mean(0), row[0]]) for row, keep in zip(x, real, strict=True)])
        hidden = np.tanh(formulas.dense(v, head.dense[0], pooled))
        hidden /= np.linalg.norm(hidden, axis=-1, keepdims=True)
        y = head(single(x), real)
        self.assertEqual((y.shape, y.dtype, head.size), ((3, 4), "float32", 4))
        self.assertLess(relative_error(y, hidden @ v(head.dense[1].kernel)), 1e-5)

    def test_nothing_has_a_length_and_a_gradient(self):
        head = built(nn.EmbeddingHead(config(), EmbeddingConfig(layers=("normalize",))), (None, None, 8))
        x = tf.zeros([1, 2, 8])
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = head(x)
        self.assertAllEqual(y, np.zeros([1, 8]))
        self.assertAllEqual(np.isfinite(tape.gradient(y, x)), np.ones([1, 2, 8], bool))


class DiscriminatorTest(tf.test.TestCase):
    def test_values(self):
        x = normal(2, 5, 8)
        for activation in ACTIVATIONS:
            head = built(nn.Discriminator(config(activation=activation)), x.shape)
            v = Values(head)
            hidden = formulas.ACTIVATIONS[activation](formulas.dense(v, head.hidden, x))
            expected = formulas.dense(v, head.dense, hidden)[..., 0]
            self.assertLess(relative_error(head(single(x)), expected), 1e-5)


class RelationClassifierTest(tf.test.TestCase):
    def test_values(self):
        x, places = normal(3, 5, 8), np.array([[0, 4], [2, 2], [3, 1]])
        head = built(nn.RelationClassifier(config(), 4), x.shape)
        pairs = np.stack([np.concatenate([row[i], row[j]]) for row, (i, j) in zip(x, places, strict=True)])
        expected = formulas.dense(Values(head), head.classifier.dense, pairs)
        self.assertEqual(expected.shape, (3, 4))
        self.assertLess(relative_error(head(single(x), places), expected), 1e-5)


class LMHeadTest(tf.test.TestCase):
    def test_tied_and_not_with_biases_and_without(self):
        x, places = normal(2, 5, 8), np.array([[4, 0, 0], [2, 1, 3]])
        for tied in (True, False):
            for arguments, names in (((), []), ((True,), ["bias"]), ((True, False), ["bias"])):
                embedding = built(nn.TokenEmbedding(11, 8))
                c = config(tie_embeddings=tied)
                head = nn.LMHead(c, embedding, *arguments, name="lm")
                head.build((None, None, 8))
                if head.use_bias:
                    head.bias.assign(normal(11, seed=3))
                v = Values(head, embedding)
                own = set() if tied else {"lm/dense/kernel"}
                table = {embedding.embeddings.path}
                trained = set() if arguments == (True, False) else set(names)
                self.assertEqual({w.path for w in head.weights}, table | own | {f"lm/{name}" for name in names})
                self.assertEqual(
                    {w.path for w in head.trainable_weights}, table | own | {f"lm/{name}" for name in trained}
                )
                matrix = v(embedding.embeddings).T if tied else v(head.dense.kernel)
                expected = x @ matrix + (v(head.bias) if names else 0)
                self.assertLess(relative_error(head(single(x)), expected), 1e-5)
                y = head(single(x), places)
                self.assertLess(relative_error(y, expected[np.arange(2)[:, None], places]), 1e-5)

    def test_logits_are_float32_under_every_policy(self):
        for tied in (True, False):
            embedding = nn.TokenEmbedding(11, 8, dtype="mixed_bfloat16")
            embedding.build()
            head = nn.LMHead(config(tie_embeddings=tied), embedding, True, dtype="mixed_bfloat16")
            self.assertEqual(head(tf.zeros([2, 5, 8], "bfloat16")).dtype, "float32")


class MaskedLMHeadTest(tf.test.TestCase):
    def head(self, activation="gelu", dtype=None):
        embedding = nn.TokenEmbedding(11, 8, dtype=dtype)
        embedding.build()
        head = nn.MaskedLMHead(config(activation=activation), embedding, dtype=dtype)
        head.build((None, None, 8))
        randomize(embedding)
        randomize(head)
        return head

    def test_values_everywhere_and_at_positions(self):
        x, positions = normal(2, 5, 8), np.array([[4, 0, 0], [2, 1, 3]])
        for activation in ACTIVATIONS:
            head = self.head(activation)
            expected = formulas.masked_lm(Values(head, head.embedding), head, x, activation)
            y = head(tf.constant(x, tf.float32))
            self.assertLess(relative_error(y, expected), 1e-5)
            y = head(tf.constant(x, tf.float32), positions)
            self.assertLess(relative_error(y, expected[np.arange(2)[:, None], positions]), 1e-5)

    def test_embeddings_of_another_size(self):
        x, embedding = normal(2, 5, 8), built(nn.TokenEmbedding(11, 6))
        head = built(nn.MaskedLMHead(config(embedding_size=6), embedding), x.shape)
        self.assertEqual([head.transform.kernel.shape, head.norm.gamma.shape], [(8, 6), (6,)])
        expected = formulas.masked_lm(Values(head, embedding), head, x, "gelu")
        self.assertLess(relative_error(head(single(x)), expected), 1e-5)

    def test_logits_are_float32_under_every_policy(self):
        for dtype in ("bfloat16", "float16"):
            head = self.head(dtype=f"mixed_{dtype}")
            x = normal(2, 5, 8)
            y = head(tf.cast(x, dtype))
            self.assertEqual(y.dtype, "float32")
            expected = formulas.masked_lm(Values(head, head.embedding), head, x, "gelu")
            self.assertLess(relative_error(y, expected), 3e-2)


class CheckInputsTest(tf.test.TestCase):
    def test_unknown_and_missing_are_named(self):
        nn.check_inputs({"a": 1, "b": 2}, ["a"], ["b", "c"])
        with self.assertRaisesRegex(ValueError, "unknown input 'input_ids'; the model takes a, b"):
            nn.check_inputs({"input_ids": 1}, ["a"], ["b"])
        with self.assertRaisesRegex(ValueError, "'a' is missing"):
            nn.check_inputs({"b": 1}, ["a"], ["b"])


if __name__ == "__main__":
    tf.test.main()
