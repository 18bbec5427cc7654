"""Token, position and segment embeddings compared with the sums that define them."""

import numpy as np
import tensorflow as tf

from tests.nn import formulas
from tests.nn.formulas import Values, numeric_gradient, randomize, relative_error
from tfzoo import nn
from tfzoo.config import POSITIONS, TransformerConfig

IDS = np.array([[3, 1, 0, 8], [5, 5, 5, 2]])
SEGMENTS = np.array([[0, 0, 1, 1], [0, 1, 2, 0]])


def config(**overrides):
    sizes = dict(vocab_size=9, hidden_size=6, num_layers=1, num_heads=2, intermediate_size=8, head_dim=4)
    return TransformerConfig(**sizes | dict(max_positions=7, num_segments=3, norm_epsilon=1e-5) | overrides)


def embeddings(c):
    layer = nn.Embeddings(c)
    layer.build()
    randomize(layer)
    return layer


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

    def test_the_tied_output_a_step_at_a_time(self):
        layer = nn.TokenEmbedding(300, 6)  # More than one of the pieces that XLA transposes.
        layer.build()
        randomize(layer)
        table = layer.embeddings.numpy().astype(np.float64)
        for rows in (1, 3, 4, 7):
            x = np.random.default_rng(rows).normal(size=(rows, 1, 6))
            for tokens in (3, 30):

                def step(x, jit_compile, tokens=tokens):
                    with layer.for_steps(tf.shape(x)[0], tokens, jit_compile):
                        return layer.attend(x)

                self.assertLess(relative_error(step(tf.constant(x, tf.float32), False), x @ table.T), 1e-5)
                if rows in (1, 4):
                    compiled = tf.function(lambda x: step(x, True), jit_compile=True, autograph=False)
                    self.assertLess(relative_error(compiled(tf.constant(x, tf.float32)), x @ table.T), 1e-5)

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
        for kind in POSITIONS:
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

    def test_sizes_scale_and_offset(self):
        positions = np.array([[0, 1, 2, 3], [6, 0, 1, 1]])
        for kind in ("learned", "sinusoidal", "sinusoidal_concat"):
            for overrides in (
                dict(scale_embeddings=True),
                dict(position_offset=2),
                dict(embedding_size=4),
                dict(embedding_size=8, scale_embeddings=True, position_offset=1, norm="rms", embedding_norm=False),
            ):
                c = config(positions=kind, **overrides)
                layer = embeddings(c)
                v = Values(layer)
                for kwargs in ({}, {"position_ids": positions}):
                    expected = formulas.embeddings(v, layer, c, IDS, SEGMENTS, **kwargs)
                    self.assertLess(relative_error(layer(IDS, SEGMENTS, **kwargs), expected), 1e-5, (kind, overrides))

    def test_variables(self):
        def shapes(**overrides):
            return {w.path.split("/", 1)[1]: tuple(w.shape) for w in embeddings(config(**overrides)).weights}

        norm = {"norm/gamma": (6,), "norm/beta": (6,)}
        rows = {"positions": (7, 6), "segments": (3, 6)}
        self.assertEqual(shapes(dropout=0.0), {"tokens/embeddings": (9, 6)} | rows | norm)
        none = dict(dropout=0.0, positions="none", num_segments=0)
        self.assertEqual(shapes(**none), {"tokens/embeddings": (9, 6)} | norm)
        self.assertEqual(shapes(**none, embedding_norm=False), {"tokens/embeddings": (9, 6)})
        projection = {"projection/kernel": (6, 6), "projection/bias": (6,)}
        self.assertEqual(shapes(**none, embedding_size=6), {"tokens/embeddings": (9, 6)} | norm | projection)
        self.assertEqual(
            shapes(dropout=0.0, position_offset=2, embedding_size=4, norm="rms"),
            {
                "tokens/embeddings": (9, 4),
                "positions": (9, 4),
                "segments": (3, 4),
                "norm/gamma": (4,),
                "projection/kernel": (4, 6),
                "projection/bias": (6,),
            },
        )

    def test_two_may_share_their_tokens(self):
        one = embeddings(config())
        two = nn.Embeddings(config(positions="none", num_segments=0, embedding_norm=False), one.tokens)
        two.build()
        self.assertIs(two.tokens, one.tokens)
        self.assertAllEqual(two(IDS), one.tokens(IDS))

    def test_too_long_an_input_is_refused(self):
        layer = embeddings(config())
        with self.assertRaisesRegex(ValueError, r"length 8 exceeds max_positions \(7\)"):
            layer(np.zeros([1, 8], np.int32))
        layer = embeddings(config(position_offset=2))  # The offset adds rows, not positions.
        self.assertEqual(layer(np.zeros([1, 7], np.int32)).shape, (1, 7, 6))
        with self.assertRaisesRegex(ValueError, r"length 8 exceeds max_positions \(7\)"):
            layer(np.zeros([1, 8], np.int32))
        for kind in ("relative", "rotary", "none"):
            layer = embeddings(config(positions=kind))
            self.assertEqual(layer(np.zeros([1, 8], np.int32)).shape, (1, 8, 6))

    def test_dropout_only_while_training(self):
        layer = embeddings(config(dropout=0.5))
        self.assertAllEqual(layer(IDS), layer(IDS))
        self.assertGreater(np.mean(layer(IDS, training=True) == 0), 0.1)


if __name__ == "__main__":
    tf.test.main()
