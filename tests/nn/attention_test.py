"""Attention and its masks compared with Vaswani et al. 2017, section 3.2."""

import itertools

import numpy as np
import tensorflow as tf

from tests.nn import formulas
from tests.nn.formulas import Values, check_gradients, normal, numeric_gradient, randomize, relative_error
from tfzoo import nn
from tfzoo.config import TransformerConfig


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
        # Two new queries after three earlier keys.
        self.assertAllEqual(nn.causal_mask(2, 5)[0, 0], [[True] * 4 + [False], [True] * 5])

    def test_window(self):
        for length, window in ((5, 1), (5, 3), (5, 5), (5, 9)):
            expected = [[i - window < j <= i for j in range(length)] for i in range(length)]
            self.assertAllEqual(nn.causal_mask(length, length, window)[0, 0], expected)
        self.assertAllEqual(nn.causal_mask(2, 5, 2)[0, 0], [[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]])

    def test_bias_is_finite_in_every_dtype(self):
        for dtype in ("float32", "bfloat16", "float16"):
            values = tf.cast(bias([True, False], dtype), tf.float64)
            self.assertEqual(values[0], 0)
            self.assertLess(values[1], -1e4)
            self.assertTrue(np.isfinite(values[1]))


class FoldTest(tf.test.TestCase):
    def test_every_combination(self):
        """A key masked by one part is masked in the result, and the bias is added to the other keys."""
        padding = np.arange(5) < np.array([[5], [3]])
        arbitrary = np.random.default_rng(5).random([2, 3, 4, 5]) < 0.7
        additive = normal(1, 3, 4, 5)
        for parts in itertools.product((False, True), repeat=4):
            expected, mask = np.zeros([2, 3, 4, 5]), np.ones([2, 3, 4, 5], bool)
            kwargs: dict = {}
            if parts[0]:
                kwargs["padding_mask"], mask = padding, mask & padding[:, None, None]
            if parts[1]:
                kwargs["attention_mask"], mask = arbitrary, mask & arbitrary
            if parts[2]:
                kwargs["bias"], expected = single(additive)[0], expected + additive
            if parts[3]:
                kwargs |= dict(causal=True, window=3)
                rows = np.arange(4)[:, None] + 1
                mask = mask & (np.arange(5) <= rows) & (np.arange(5) > rows - 3)
            folded = nn.Mask(**kwargs).fold(4, 5, "float32")
            if not any(parts):
                self.assertEqual(folded, nn.Mask())
                continue
            self.assertEqual(folded, nn.Mask(bias=folded.bias))
            values = np.broadcast_to(folded.bias, mask.shape)
            self.assertAllClose(values[mask], expected[mask], 1e-6)
            self.assertTrue(np.all(values[~mask] < -1e8))
            self.assertTrue(np.all(np.isfinite(values)))

    def test_folding_twice_is_folding_once(self):
        mask = nn.Mask(padding_mask=np.array([[True, False]]), causal=True)
        once = mask.fold(2, 2, "float32")
        self.assertAllEqual(once.fold(2, 2, "float32").bias, once.bias)

    def test_the_bias_takes_the_dtype_asked_for(self):
        mask = nn.Mask(padding_mask=np.array([[True, False]]), bias=single(normal(1, 2, 2, 2))[0])
        for dtype in ("float32", "bfloat16", "float16"):
            bias = mask.fold(2, 2, dtype).bias
            self.assertEqual(bias.dtype, dtype)
            self.assertTrue(np.all(np.isfinite(tf.cast(bias, tf.float32))))


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

    def test_the_scale_is_another_if_asked_for(self):
        query, key, value = (normal(2, 2, 5, 4, seed=i) for i in range(3))
        y = nn.dot_product_attention(*single(query, key, value), scale=1.0)
        self.assertLess(relative_error(y, formulas.attention(query, key, value, scale=1.0)), 1e-5)


def config(**overrides):
    sizes = dict(vocab_size=9, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=12, attention_dropout=0.0)
    return TransformerConfig(**sizes | overrides)


def seen(mask):
    return nn.Mask(attention_mask=tf.constant(mask))


class FullAttentionTest(tf.test.TestCase):
    def test_folds_what_it_is_given(self):
        query, key, value = (normal(2, 2, k, 4, seed=i) for i, k in enumerate((3, 5, 5)))
        masking = nn.Mask(padding_mask=np.arange(5) < [[5], [3]], causal=True, window=2)
        rows = np.arange(3)[:, None] + 2
        mask = (np.arange(5) <= rows) & (np.arange(5) > rows - 2)
        mask = mask[None, None] & (np.arange(5) < np.array([[5], [3]]))[:, None, None]
        for scale_scores in (True, False):
            layer = nn.FullAttention(config(scale_scores=scale_scores))
            y = layer(*single(query, key, value), masking=masking)
            expected = formulas.attention(query, key, value, mask, scale=None if scale_scores else 1.0)
            self.assertLess(relative_error(y, expected), 1e-5)


class AttentionTest(tf.test.TestCase):
    def layer(self, dtype=None, memory_size=None, **overrides):
        c = config(**overrides)
        layer = nn.Attention(c, dtype=dtype)
        layer.build((None, None, c.hidden_size), memory_size and (None, None, memory_size))
        randomize(layer)
        return layer

    def test_self_attention(self):
        for heads in (1, 2, 4):
            layer, x = self.layer(num_heads=heads), normal(2, 5, 8)
            padding = (np.arange(5) < np.array([[5], [3]]))[:, None, None, :]
            causal = np.tril(np.ones([5, 5], bool))[None, None]
            for mask in (None, padding, causal, padding & causal):
                y = layer(*single(x), masking=None if mask is None else seen(mask))
                expected = formulas.multi_head_attention(Values(layer), layer, x, mask=mask)
                self.assertLess(relative_error(y, expected), 1e-5)

    def test_a_mask_for_each_head(self):
        layer, x = self.layer(num_heads=4), normal(2, 5, 8)
        mask = np.random.default_rng(3).random([2, 4, 5, 5]) < 0.5
        expected = formulas.multi_head_attention(Values(layer), layer, x, mask=mask)
        self.assertLess(relative_error(layer(*single(x), masking=seen(mask)), expected), 1e-5)

    def test_a_bias_for_each_head(self):
        layer, x, bias = self.layer(num_heads=4), normal(2, 5, 8), normal(1, 4, 5, 5, seed=1)
        expected = formulas.multi_head_attention(Values(layer), layer, x, bias=bias)
        y = layer(*single(x), masking=nn.Mask(bias=single(bias)[0]))
        self.assertLess(relative_error(y, expected), 1e-5)

    def test_memory_of_another_length_and_width(self):
        layer = self.layer(memory_size=6)
        x, memory = normal(2, 3, 8), normal(2, 7, 6, seed=1)
        mask = (np.arange(7) < np.array([[2], [7]]))[:, None, None, :]
        y = layer(*single(x), masking=seen(mask), memory=single(memory)[0])
        expected = formulas.multi_head_attention(Values(layer), layer, x, memory, mask)
        self.assertLess(relative_error(y, expected), 1e-5)

    def test_groups_of_queries_share_keys_and_values(self):
        x, mask = normal(2, 5, 8), np.tril(np.ones([5, 5], bool))[None, None]
        for kv_heads in (1, 2, 4):
            layer = self.layer(num_heads=4, num_kv_heads=kv_heads)
            self.assertEqual(layer.key.kernel.shape, (8, 2 * kv_heads))
            self.assertEqual(layer.value.kernel.shape, (8, 2 * kv_heads))
            expected = formulas.multi_head_attention(Values(layer), layer, x, mask=mask)
            self.assertLess(relative_error(layer(*single(x), masking=seen(mask)), expected), 1e-5)

    def test_heads_of_a_size_of_their_own(self):
        layer, x = self.layer(head_dim=6, num_kv_heads=1), normal(2, 5, 8)
        shapes = [w.kernel.shape for w in (layer.query, layer.key, layer.value, layer.output_projection)]
        self.assertEqual(shapes, [(8, 12), (8, 6), (8, 6), (12, 8)])
        expected = formulas.multi_head_attention(Values(layer), layer, x)
        self.assertLess(relative_error(layer(*single(x)), expected), 1e-5)

    def test_queries_and_keys_are_normalised_by_head(self):
        layer, x = self.layer(num_heads=4, num_kv_heads=2, qk_norm=True, norm_epsilon=1e-2), normal(2, 5, 8)
        self.assertEqual([layer.query_norm.gamma.shape, layer.key_norm.gamma.shape], [(2,), (2,)])
        v = Values(layer)
        expected = formulas.multi_head_attention(v, layer, x)
        self.assertLess(relative_error(layer(*single(x)), expected), 1e-5)
        angles = formulas.rotary_angles(range(5), 2, 100.0)  # Rotation follows the norms.
        tables = nn.rotary_tables(config(num_heads=4, rotary_theta=100.0), tf.range(5)[None], "float32")
        expected = formulas.multi_head_attention(v, layer, x, angles=angles)
        self.assertLess(relative_error(layer(*single(x), rotary=tables), expected), 1e-5)

    def test_biases(self):
        x = normal(2, 5, 8)
        for biases, names in (
            ("all", ["key", "output", "query", "value"]),
            ("qkv", ["key", "query", "value"]),
            ("none", []),
        ):
            layer = self.layer(biases=biases)
            self.assertEqual(sorted(w.path.split("/")[-2] for w in layer.weights if w.name == "bias"), names)
            expected = formulas.multi_head_attention(Values(layer), layer, x)
            self.assertLess(relative_error(layer(*single(x)), expected), 1e-5)

    def test_scores_as_they_are(self):
        layer, x = self.layer(scale_scores=False), normal(2, 5, 8)
        expected = formulas.multi_head_attention(Values(layer), layer, x, scale=1.0)
        self.assertLess(relative_error(layer(*single(x)), expected), 1e-5)

    def test_gradients(self):
        for overrides in ({}, dict(num_kv_heads=1, head_dim=3, qk_norm=True, biases="qkv", norm_epsilon=1e-2)):
            layer, x = self.layer(hidden_size=4, **overrides), normal(2, 3, 4)
            v, upstream = Values(layer), normal(2, 3, 4, seed=1)
            check_gradients(self, layer, x, upstream, v, lambda: formulas.multi_head_attention(v, layer, x))  # noqa: B023

    def test_dropout_falls_on_the_weights_while_training(self):
        layer, x = self.layer(attention_dropout=0.5), single(normal(2, 5, 8))[0]
        self.assertAllEqual(layer(x), layer(x))
        self.assertGreater(np.abs(layer(x, training=True) - layer(x, training=True)).max(), 1e-3)

    def test_half_precision(self):
        x = normal(2, 6, 16)
        mask = (np.arange(6) < np.array([[6], [4]]))[:, None, None, :]
        for dtype, tolerance in (("bfloat16", 3e-2), ("float16", 4e-3)):
            layer = self.layer(f"mixed_{dtype}", hidden_size=16)
            y = layer(tf.cast(x, dtype), masking=seen(mask))
            self.assertEqual(y.dtype, dtype)
            expected = formulas.multi_head_attention(Values(layer), layer, x, mask=mask)
            self.assertLess(relative_error(tf.cast(y, tf.float64), expected), tolerance)

    def test_no_two_matrices_begin_alike(self):
        layer = nn.Attention(config())
        layer.build((None, None, 8))
        kernels = [w.numpy() for w in layer.weights if w.name == "kernel"]
        self.assertLen(kernels, 4)
        for i, one in enumerate(kernels):
            for two in kernels[:i]:
                self.assertLess(np.mean(one == two), 0.1)


if __name__ == "__main__":
    tf.test.main()
