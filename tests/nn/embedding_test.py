"""Token, position and segment embeddings against the sums they are."""

import numpy as np
import tensorflow as tf

from tests.nn import formulas
from tests.nn.formulas import Values, numeric_gradient, randomize, relative_error
from tfzoo import nn
from tfzoo.config import TransformerConfig

IDS = np.array([[3, 1, 0, 8], [5, 5, 5, 2]])
SEGMENTS = np.array([[0, 0, 1, 1], [0, 1, 2, 0]])


def config(**overrides):
    sizes = dict(vocab_size=9, hidden_size=6, num_layers=1, num_heads=2, intermediate_size=8)
    return TransformerConfig(**sizes | dict(max_positions=7, num_segments=3, norm_epsilon=1e-5) | overrides)


def embeddings(c):
    layer = nn.Embeddings(c)
    layer.build()
    randomize(layer)
    return layer


class PositionsTest(tf.test.TestCase):
    def test_sinusoidal(self):
        for length, size in [(1, 2), (50, 8), (512, 64)]:
            table = nn.sinusoidal_positions(length, size)
            self.assertEqual(table.dtype, np.float32)
            self.assertAllClose(table, formulas.sinusoidal(length, size), 1e-6, 1e-6)


class TokenEmbeddingTest(tf.test.TestCase):
    def test_rows_and_tied_output(self):
        layer = nn.TokenEmbedding(9, 6)
        layer.build()
        table = layer.embeddings.numpy().astype(np.float64)
        self.assertAllEqual(layer(IDS), layer.embeddings.numpy()[IDS])
        for shape in [(6,), (3, 6), (2, 4, 6)]:
            x = np.random.default_rng(0).normal(size=(*shape[:-1], 6))
            expected = np.einsum("...e,ve->...v", x, table)
            if len(shape) > 1:
                self.assertLess(relative_error(layer.attend(tf.constant(x, tf.float32)), expected), 1e-5)

    def test_the_tied_gradient_is_the_sum_of_both_uses(self):
        layer = nn.TokenEmbedding(9, 6)
        layer.build()
        table = layer.embeddings.numpy().astype(np.float64)
        upstream = np.random.default_rng(1).normal(size=(2, 4, 9))
        with tf.GradientTape() as tape:
            y = layer.attend(tf.square(layer(IDS)))
        gradient = tape.gradient(y, layer.embeddings.value, output_gradients=tf.constant(upstream, tf.float32))
        expected = numeric_gradient(lambda: np.sum(upstream * (table[IDS] ** 2 @ table.T)), table)
        self.assertLess(relative_error(tf.convert_to_tensor(gradient), expected), 1e-5)


class EmbeddingsTest(tf.test.TestCase):
    def test_values(self):
        positions = np.array([[0, 1, 2, 3], [6, 0, 1, 1]])
        for kind in ("learned", "sinusoidal"):
            for norm in (False, True):
                for segments in (0, 3):
                    c = config(positions=kind, embedding_norm=norm, num_segments=segments)
                    layer = embeddings(c)
                    for kwargs in (
                        {},
                        {"position_ids": positions},
                        *([{"segment_ids": SEGMENTS}] if segments else []),
                    ):
                        expected = formulas.embeddings(Values(layer), layer, c, IDS, **kwargs)
                        self.assertLess(relative_error(layer(IDS, **kwargs), expected), 1e-5)

    def test_gradients(self):
        c = config()
        layer = embeddings(c)
        v = Values(layer)
        upstream = np.random.default_rng(1).normal(size=(2, 4, 6))
        with tf.GradientTape() as tape:
            y = layer(IDS, SEGMENTS)
        gradients = tape.gradient(
            y, [w.value for w in layer.trainable_weights], output_gradients=tf.constant(upstream, tf.float32)
        )
        for gradient, weight in zip(gradients, layer.trainable_weights, strict=True):
            expected = numeric_gradient(
                lambda: np.sum(upstream * formulas.embeddings(v, layer, c, IDS, SEGMENTS)), v(weight)
            )
            self.assertLess(relative_error(tf.convert_to_tensor(gradient), expected), 1e-5, weight.path)

    def test_too_long_an_input_is_refused(self):
        layer = embeddings(config())
        with self.assertRaisesRegex(ValueError, r"length 8 exceeds max_positions \(7\)"):
            layer(np.zeros([1, 8], np.int32))

    def test_dropout_only_while_training(self):
        layer = embeddings(config(dropout=0.5))
        self.assertAllEqual(layer(IDS), layer(IDS))
        self.assertGreater(np.mean(layer(IDS, training=True) == 0), 0.1)


if __name__ == "__main__":
    tf.test.main()
