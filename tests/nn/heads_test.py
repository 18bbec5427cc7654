"""Pooler, classifier and masked-word head against their formulas, and the check of inputs."""

import numpy as np
import tensorflow as tf

from tests.nn import formulas
from tests.nn.formulas import Values, randomize, relative_error
from tfzoo import nn
from tfzoo.config import ACTIVATIONS, TransformerConfig


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def config(**overrides):
    sizes = dict(vocab_size=11, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=4, norm_epsilon=1e-5)
    return TransformerConfig(**sizes | overrides)


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

    def test_logits_are_float32_under_every_policy(self):
        classifier = nn.Classifier(config(), 4, dtype="mixed_bfloat16")
        self.assertEqual(classifier(tf.zeros([2, 8], "bfloat16")).dtype, "float32")


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
