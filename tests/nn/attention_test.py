"""Attention and its masks against Vaswani et al. 2017, section 3.2."""

import numpy as np
import tensorflow as tf

from tests.nn import formulas
from tests.nn.formulas import Values, check_gradients, numeric_gradient, randomize, relative_error
from tfzoo import nn


def normal(*shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, shape)


def single(*arrays):
    return [tf.constant(array, tf.float32) for array in arrays]


def bias(mask, dtype="float32"):
    return nn.mask_bias(tf.constant(mask), dtype)


class MasksTest(tf.test.TestCase):
    def test_padding(self):
        mask = nn.padding_attention_mask(np.array([[1, 1, 0], [1, 0, 0]]))
        self.assertAllEqual(mask, [[[[True, True, False]]], [[[True, False, False]]]])

    def test_causal(self):
        self.assertAllEqual(nn.causal_mask(4, 4)[0, 0], np.tril(np.ones([4, 4], bool)))
        # Two new queries after three keys that were there before.
        self.assertAllEqual(nn.causal_mask(2, 5)[0, 0], [[True] * 4 + [False], [True] * 5])

    def test_bias_is_finite_in_every_dtype(self):
        for dtype in ("float32", "bfloat16", "float16"):
            values = tf.cast(bias([True, False], dtype), tf.float64)
            self.assertEqual(values[0], 0)
            self.assertLess(values[1], -1e4)
            self.assertTrue(np.isfinite(values[1]))


class DotProductAttentionTest(tf.test.TestCase):
    shapes = [(1, 1, 1, 2, 1), (2, 3, 4, 4, 8), (2, 2, 3, 7, 5), (1, 4, 9, 2, 16)]  # B, H, L, M, D

    def test_values_with_and_without_masks(self):
        for b, h, n, m, d in self.shapes:
            query, key, value = (normal(b, h, k, d, seed=i) for i, k in enumerate((n, m, m)))
            lengths = 1 + np.arange(b) % m
            padding = (np.arange(m) < lengths[:, None])[:, None, None, :]
            causal = np.tril(np.ones([n, m], bool), m - n)[None, None]
            arbitrary = np.random.default_rng(5).random([b, h, n, m]) < 0.5
            for mask in (None, padding, causal, padding & causal, arbitrary):
                expected = formulas.attention(query, key, value, mask)
                y = nn.dot_product_attention(*single(query, key, value), None if mask is None else bias(mask))
                self.assertLess(relative_error(y, expected), 1e-5)

    def test_masked_keys_have_no_influence(self):
        query, key, value = (normal(2, 2, 5, 4, seed=i) for i in range(3))
        mask = (np.arange(5) < 3)[None, None, None]
        one = nn.dot_product_attention(*single(query, key, value), bias(mask))
        key[:, :, 3:], value[:, :, 3:] = 50.0, -1e6
        self.assertAllEqual(nn.dot_product_attention(*single(query, key, value), bias(mask)), one)

    def test_a_row_that_attends_to_nothing_averages(self):
        query, key, value = (normal(1, 2, 3, 4, seed=i) for i in range(3))
        for dtype, tolerance in (("float32", 1e-6), ("bfloat16", 2e-2), ("float16", 2e-3)):
            parts = [tf.cast(array, dtype) for array in (query, key, value)]
            y = nn.dot_product_attention(*parts, bias(np.zeros([1, 1, 3, 3], bool), dtype))
            mean = np.broadcast_to(value.mean(2, keepdims=True), value.shape)
            self.assertAllClose(tf.cast(y, tf.float64), mean, tolerance, tolerance)

    def test_large_scores_neither_overflow_nor_vanish(self):
        query, key, value = (normal(1, 1, 4, 8, seed=i) for i in range(3))
        y = nn.dot_product_attention(*single(query * 30, key * 30, value))
        self.assertLess(relative_error(y, formulas.attention(query * 30, key * 30, value)), 1e-4)

    def test_gradients(self):
        arrays = [normal(2, 2, 3, 4, seed=i) for i in range(3)]
        upstream = normal(2, 2, 3, 4, seed=4)
        mask = np.tril(np.ones([3, 3], bool))[None, None]
        tensors = single(*arrays)
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            y = nn.dot_product_attention(*tensors, bias(mask))
        for gradient, array in zip(
            tape.gradient(y, tensors, output_gradients=single(upstream)[0]), arrays, strict=True
        ):
            expected = numeric_gradient(lambda: np.sum(upstream * formulas.attention(*arrays, mask)), array)
            self.assertLess(relative_error(gradient, expected), 1e-5)


class AttentionTest(tf.test.TestCase):
    def layer(self, size, heads, memory_size=None, **kwargs):
        layer = nn.Attention(size, heads, **kwargs)
        layer.build((None, None, size), memory_size and (None, None, memory_size))
        randomize(layer)
        return layer

    def test_self_attention(self):
        for heads in (1, 2, 4):
            layer, x = self.layer(8, heads), normal(2, 5, 8)
            padding = (np.arange(5) < np.array([[5], [3]]))[:, None, None, :]
            causal = np.tril(np.ones([5, 5], bool))[None, None]
            for mask in (None, padding, causal, padding & causal):
                y = layer(*single(x), bias=None if mask is None else bias(mask))
                expected = formulas.multi_head_attention(Values(layer), layer, x, mask=mask)
                self.assertLess(relative_error(y, expected), 1e-5)

    def test_a_mask_for_each_head(self):
        layer, x = self.layer(8, 4), normal(2, 5, 8)
        mask = np.random.default_rng(3).random([2, 4, 5, 5]) < 0.5
        expected = formulas.multi_head_attention(Values(layer), layer, x, mask=mask)
        self.assertLess(relative_error(layer(*single(x), bias=bias(mask)), expected), 1e-5)

    def test_memory_of_another_length_and_width(self):
        layer = self.layer(8, 2, memory_size=6)
        x, memory = normal(2, 3, 8), normal(2, 7, 6, seed=1)
        mask = (np.arange(7) < np.array([[2], [7]]))[:, None, None, :]
        y = layer(*single(x), bias=bias(mask), memory=single(memory)[0])
        expected = formulas.multi_head_attention(Values(layer), layer, x, memory, mask)
        self.assertLess(relative_error(y, expected), 1e-5)

    def test_gradients(self):
        layer, x, upstream = self.layer(4, 2), normal(2, 3, 4), normal(2, 3, 4, seed=1)
        v = Values(layer)
        check_gradients(self, layer, x, upstream, v, lambda: formulas.multi_head_attention(v, layer, x))

    def test_dropout_falls_on_the_weights_while_training(self):
        layer, x = self.layer(8, 2, dropout=0.5), single(normal(2, 5, 8))[0]
        self.assertAllEqual(layer(x), layer(x))
        self.assertGreater(np.abs(layer(x, training=True) - layer(x, training=True)).max(), 1e-3)

    def test_half_precision(self):
        x = normal(2, 6, 16)
        mask = (np.arange(6) < np.array([[6], [4]]))[:, None, None, :]
        for dtype, tolerance in (("bfloat16", 3e-2), ("float16", 4e-3)):
            layer = self.layer(16, 2, dtype=f"mixed_{dtype}")
            y = layer(tf.cast(x, dtype), bias=bias(mask, dtype))
            self.assertEqual(y.dtype, dtype)
            expected = formulas.multi_head_attention(Values(layer), layer, x, mask=mask)
            self.assertLess(relative_error(tf.cast(y, tf.float64), expected), tolerance)

    def test_heads_must_divide_the_width(self):
        with self.assertRaisesRegex(ValueError, r"hidden_size \(10\).*num_heads \(4\)"):
            nn.Attention(10, 4)


if __name__ == "__main__":
    tf.test.main()
