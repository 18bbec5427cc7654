"""Memory-lean attention compared with full attention: the same values, forward and backward, in less memory."""

import functools
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import python
from tests.nn.formulas import relative_error
from tfzoo import nn
from tfzoo.config import TransformerConfig
from tfzoo.nn import lean
from tfzoo.nn.lean import lean_attention

CONFIG = dict(vocab_size=5, hidden_size=12, num_layers=1, num_heads=3, intermediate_size=8)


def normal(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(0, 1, shape), tf.float32)


def parts(shape):
    batch, heads, length, memory, depth = shape
    return [normal(batch, heads, n, depth, seed=i) for i, n in enumerate((length, memory, memory))]


def full_attention(query, key, value, mask, scale):
    bias = mask.fold(query.shape[2], key.shape[2], query.dtype).bias
    return nn.dot_product_attention(query, key, value, bias, scale=scale)


def with_gradients(attend, tensors, mask):
    """Returns [result, gradients of a random sum of it] for query, key, value and, if there is one, bias."""
    inputs = [*tensors, *([] if mask.bias is None else [mask.bias])]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        result = attend(*inputs[:3], mask)
    return [result, *tape.gradient(result, inputs, output_gradients=normal(*result.shape, seed=9))]


def masks(batch, heads, length, memory):
    """Returns masks of all kinds, alone and combined, with rows that may not attend to anything."""
    draw = np.random.default_rng(1)
    right = tf.constant(np.arange(memory) < np.array([[memory], [3]])[:batch])
    left = tf.constant(np.arange(memory) >= np.array([[4], [memory]])[:batch])
    some = tf.constant(draw.random([batch, 1, length, memory]) < 0.5)
    few = tf.constant(draw.random([batch, heads, length, memory]) < 0.2)
    heads_bias, rows_bias = normal(1, heads, length, memory), normal(batch, 1, length, memory)
    return (
        nn.Mask(),
        nn.Mask(right),
        nn.Mask(causal=True),
        nn.Mask(causal=True, window=3),
        nn.Mask(right, causal=True, window=3),
        nn.Mask(left, causal=True),
        nn.Mask(left, some, rows_bias),
        nn.Mask(None, few, heads_bias, causal=True),
        nn.Mask(right, few, heads_bias, causal=True, window=3),
    )


class LeanAttentionTest(tf.test.TestCase):
    def test_values_and_gradients_are_those_of_full_attention(self):
        # B, H, L, M, D: complete and incomplete blocks, more keys than queries, and fewer.
        for shape, (rows, columns) in (
            ((2, 3, 8, 8, 4), (4, 4)),
            ((2, 2, 5, 11, 4), (4, 3)),
            ((1, 2, 9, 5, 4), (2, 8)),
        ):
            tensors = parts(shape)
            for mask in masks(*shape[:4]):
                attend = functools.partial(lean_attention, scale=0.5, rows=rows, columns=columns)
                expected = with_gradients(functools.partial(full_attention, scale=0.5), tensors, mask)
                gradients = with_gradients(attend, tensors, mask)
                for x, y in zip(gradients, expected, strict=True):
                    self.assertEqual(x.shape, y.shape)
                    self.assertLess(np.abs(x - y).max(), 1e-5 * max(1, np.abs(y).max()), (shape, mask))

    @pytest.mark.faults
    def test_in_a_graph_with_lengths_known_only_when_it_runs(self):
        shape = (2, 3, 9, 9, 4)
        padding = tf.constant(np.arange(9) < np.array([[9], [5]]))
        tensors, bias = parts(shape), normal(1, 3, 9, 9)
        for mask in (nn.Mask(), nn.Mask(padding, None, bias, True), nn.Mask(padding, None, None, True, 3)):
            inputs = [*tensors, *([] if mask.bias is None else [mask.bias])]

            def step(mask, padding, *inputs):
                now = nn.Mask(
                    None if mask.padding_mask is None else padding,
                    None,
                    *inputs[3:] or [None],
                    mask.causal,
                    mask.window,
                )
                with tf.GradientTape() as tape:
                    tape.watch(inputs)
                    result = lean_attention(*inputs[:3], now, 0.5, rows=4, columns=2)
                return [result, *tape.gradient(result, list(inputs), output_gradients=inputs[2])]

            unknown = [tf.TensorSpec([None, x.shape[1], None, 4]) for x in tensors]
            unknown += [tf.TensorSpec([1, 3, None, None])] * (len(inputs) - 3)
            run = functools.partial(step, mask)
            graph = tf.function(run, input_signature=[tf.TensorSpec([None, None], tf.bool), *unknown])
            for x, y in zip(graph(padding, *inputs), run(padding, *inputs), strict=True):
                self.assertLess(np.abs(x - y).max(), 1e-5)
        for x, y in zip(tf.function(run, jit_compile=True)(padding, *inputs), run(padding, *inputs), strict=True):
            self.assertLess(np.abs(x - y).max(), 1e-5)

    def test_large_scores_and_minus_infinity_in_the_bias(self):
        query, key, value = parts((1, 2, 6, 6, 4))
        bias = tf.where(tf.constant(np.tril(np.ones([1, 1, 6, 6], bool))), 0.0, -np.inf)
        for mask in (nn.Mask(), nn.Mask(bias=bias)):
            expected = full_attention(query * 30, key * 30, value, mask, 0.5)
            result = lean_attention(query * 30, key * 30, value, mask, 0.5, rows=2, columns=4)
            self.assertLess(relative_error(result, expected.numpy()), 1e-5)

    def test_blocks_that_nobody_sees_are_skipped(self):
        def ranges(mask):
            tiles = lean._Tiles(tf.zeros([1, 1, 12, 4]), tf.zeros([1, 1, 12, 4]), mask, 4, 2)
            return [tiles.first.numpy().tolist(), tiles.end.numpy().tolist()]

        self.assertEqual(ranges(nn.Mask()), [[0, 0, 0], [6, 6, 6]])
        self.assertEqual(ranges(nn.Mask(causal=True)), [[0, 0, 0], [2, 4, 6]])
        self.assertEqual(ranges(nn.Mask(causal=True, window=3)), [[0, 1, 3], [2, 4, 6]])
        # Rows 9 to 11 attend only to padding and average over all keys.
        padding = tf.constant(np.arange(12)[None] < 7)
        self.assertEqual(ranges(nn.Mask(padding, None, None, True, 3)), [[0, 1, 0], [2, 4, 6]])

    def test_dropout_falls_on_the_weights_and_again_so_backwards(self):
        query, key, value = parts((1, 2, 64, 64, 8))
        mask, threshold = nn.Mask(causal=True), 16384  # A rate of 1/4, in units of 1/65,536.

        def attend(*tensors):
            return lean_attention(*tensors, 0.3, tf.constant([1, 2]), threshold, rows=16, columns=32)

        # With unit vectors as values, the result is the weights themselves.
        units = tf.tile(tf.eye(64)[None, None], [1, 2, 1, 1])
        dropped, kept = attend(query, key, units, mask), full_attention(query, key, units, mask, 0.3)
        factor = tf.math.divide_no_nan(dropped, kept)
        self.assertLess(np.minimum(np.abs(factor), np.abs(factor - 4 / 3)).max(), 1e-4)
        self.assertNear(np.mean(np.array(factor)[np.array(kept) > 0] == 0), 0.25, 0.02)

        def expected(query, key, value, mask):
            return tf.matmul(full_attention(query, key, units, mask, 0.3) * factor, value)

        for x, y in zip(*(with_gradients(f, (query, key, value), mask) for f in (attend, expected)), strict=True):
            self.assertLess(np.abs(x - y).max(), 2e-5)

    def test_layer(self):
        tensors = parts((2, 3, 7, 7, 4))
        for scale_scores in (True, False):
            config = TransformerConfig(**CONFIG, attention_dropout=0.5, scale_scores=scale_scores)
            layer, full = nn.LeanAttention(config), nn.FullAttention(config)
            for mask in (nn.Mask(), nn.Mask(causal=True, window=2)):
                self.assertLess(np.abs(layer(*tensors, masking=mask) - full(*tensors, masking=mask)).max(), 1e-5)
            one, two = (layer(*tensors, masking=nn.Mask(), training=True) for _ in range(2))
            self.assertGreater(np.abs(one - two).max(), 1e-2)

    def test_half_precision(self):
        tensors = parts((2, 3, 7, 7, 4))
        mask = nn.Mask(tf.constant(np.arange(7) < np.array([[7], [4]])), None, None, True)
        expected = with_gradients(lambda *x: full_attention(*x, 0.5), tensors, mask)
        for dtype, tolerance in ((tf.bfloat16, 3e-2), (tf.float16, 4e-3)):
            gradients = with_gradients(
                lambda *x, dtype=dtype: tf.cast(
                    lean_attention(*(tf.cast(t, dtype) for t in x[:3]), x[3], 0.5, rows=4, columns=4), tf.float32
                ),
                tensors,
                mask,
            )
            for x, y in zip(gradients, expected, strict=True):
                self.assertLess(relative_error(x, y.numpy()), tolerance)

    @pytest.mark.faults
    def test_memory_grows_with_the_length_and_not_its_square(self):
        # In a separate process, whose memory nothing else has used before.
        result = python("-c", "from tests.nn import lean_test; lean_test.print_growth()")
        lean_bytes, full = map(int, result.stdout.split())
        scores = 8192**2 * 4
        self.assertLess(lean_bytes, scores / 3)
        # Full attention keeps scores and their gradient, so the measurement detects them.
        self.assertGreater(full, 1.5 * scores)


def print_growth():
    """Prints by how many bytes a step of each kind increases the process's peak memory at 8,192 positions."""
    tensors = parts((1, 1, 8192, 8192, 8))
    for attend in (lean_attention, full_attention):
        before = _peak()
        tf.function(lambda attend=attend: with_gradients(lambda *x: attend(*x, 0.3), tensors, nn.Mask())[1:])()
        print(_peak() - before)


def _peak() -> int:
    """Returns the peak in bytes. resource's ru_maxrss would start at the parent process's value."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


if __name__ == "__main__":
    tf.test.main()
