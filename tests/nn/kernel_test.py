"""FAVOR+ compared with its formulas in float64 and with the softmax attention that it estimates."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import python
from tests.nn import formulas
from tests.nn.formulas import normal, relative_error
from tfzoo import nn
from tfzoo.config import TransformerConfig
from tfzoo.errors import UserError
from tfzoo.nn.kernel import draw_features, favor_attention

CONFIG = dict(vocab_size=5, hidden_size=12, num_layers=1, num_heads=3, intermediate_size=8, attention="favor")


def draw(count, depth, seed=0):
    return draw_features(count, depth, tf.constant([seed, 0], tf.int32)).numpy().astype(np.float64)


def phi(x, w):
    """Lemma 1 and equation 7 of the paper: positive features of x [..., D] for w [m, D]."""
    return np.exp(x @ w.T - 0.5 * np.sum(x * x, -1, keepdims=True)) / np.sqrt(len(w))


def mask_array(mask, length, memory):
    allowed = np.ones([1, 1, length, memory], bool)
    if mask.padding_mask is not None:
        allowed = allowed & mask.padding_mask.numpy()[:, None, None]
    return np.tril(allowed, memory - length) if mask.causal else allowed


def estimate(query, key, value, w, mask, scale):
    """Equation 4, with the attention matrix written out."""
    root = np.sqrt(scale)
    weights = phi(query * root, w) @ np.swapaxes(phi(key * root, w), -1, -2)
    weights = weights * mask_array(mask, query.shape[2], key.shape[2])
    total = weights.sum(-1, keepdims=True)
    return weights @ value / np.where(total == 0, 1, total)


def naive(query, key, value, w, mask, scale):
    """The same estimate in TensorFlow, for its gradients."""
    w = w * np.sqrt(scale)
    f, g = (
        tf.exp(tf.einsum("bhld,md->bhlm", x, w) - 0.5 * scale * tf.reduce_sum(x * x, -1, keepdims=True))
        for x in (query, key)
    )
    weights = tf.matmul(f, g, transpose_b=True) * mask_array(mask, query.shape[2], key.shape[2])
    return tf.math.divide_no_nan(tf.matmul(weights, value), tf.reduce_sum(weights, -1, keepdims=True))


def cases():
    """Yields (query, key, value, features, mask) with full and incomplete chunks of 4 and more keys than queries."""
    for batch, heads, length, memory, depth, width in ((2, 3, 8, 8, 4, 4), (2, 1, 9, 9, 4, 6), (2, 2, 5, 12, 3, 3)):
        query, key = normal(batch, heads, length, depth), normal(batch, heads, memory, depth, seed=1)
        tensors = (query, key, normal(batch, heads, memory, width, seed=2))
        right = tf.constant(np.arange(memory) < np.array([[memory], [3]]))
        # With causality some queries may not attend to anything.
        left = tf.constant(np.arange(memory) >= np.array([[memory - 2], [0]]))
        for padding in (None, right, left):
            for causal in (False, True):
                yield *tensors, draw(10, depth), nn.Mask(padding, causal=causal)


class FormulaTest(tf.test.TestCase):
    def test_values(self):
        for query, key, value, w, mask in cases():
            expected = estimate(query, key, value, w, mask, 0.5)
            tensors = [tf.constant(x, tf.float32) for x in (query, key, value, w)]
            for chunk in (4, 256):
                self.assertLess(relative_error(favor_attention(*tensors, mask, 0.5, chunk), expected), 2e-6)

    def test_gradients(self):
        for *arrays, w, mask in cases():
            for dtype, tolerance in ((tf.float64, 1e-12), (tf.float32, 1e-5)):
                tensors, features = [tf.constant(x, dtype) for x in arrays], tf.constant(w, dtype)
                upstream, gradients = None, []
                for attend in (naive, functools.partial(favor_attention, chunk=4)):
                    with tf.GradientTape() as tape:
                        tape.watch(tensors)
                        result = attend(*tensors, features, mask, 0.5)
                    upstream = tf.constant(normal(*result.shape, seed=3), dtype)
                    gradients.append(tape.gradient(result, tensors, output_gradients=upstream))
                for expected, actual in zip(*gradients, strict=True):
                    self.assertLess(relative_error(actual, expected), tolerance)

    def test_in_a_graph_with_lengths_known_only_when_it_runs(self):
        w, padding = tf.constant(draw(10, 4), tf.float32), tf.constant(np.arange(9) < np.array([[9], [5]]))
        tensors = [tf.constant(normal(2, 3, 9, 4, seed=i), tf.float32) for i in range(3)]
        for causal in (False, True):

            def step(padding, *inputs, causal=causal):
                with tf.GradientTape() as tape:
                    tape.watch(inputs)
                    result = favor_attention(*inputs, w, nn.Mask(padding, causal=causal), 0.5, chunk=4)
                return [result, *tape.gradient(result, list(inputs), output_gradients=inputs[2])]

            specs = [tf.TensorSpec([None, None], tf.bool)] + [tf.TensorSpec([None, 3, None, 4])] * 3
            graph = tf.function(functools.partial(step, causal=causal), input_signature=specs)
            for x, y in zip(graph(padding, *tensors), step(padding, *tensors), strict=True):
                self.assertLess(np.abs(x - y).max(), 1e-5)

    def test_the_future_and_padding_have_no_influence(self):
        query, key, value = (normal(1, 2, 12, 4, seed=i) for i in range(3))
        w = tf.constant(draw(8, 4), tf.float32)
        causal, padded = nn.Mask(causal=True), nn.Mask(tf.constant(np.arange(12)[None] < 6))

        def run(mask):
            return favor_attention(*(tf.constant(x, tf.float32) for x in (query, key, value)), w, mask, 0.5, chunk=4)

        one, two = run(causal), run(padded)
        key[:, :, 6:], value[:, :, 6:] = key[:, :, 6:] * 3, 1e6
        self.assertAllEqual(run(padded), two)
        self.assertAllEqual(run(causal)[:, :, :4], one[:, :, :4])
        # The same chunk has later keys, which change only how numbers are scaled.
        self.assertLess(np.abs(run(causal)[:, :, 4:6] - one[:, :, 4:6]).max(), 1e-5)
        self.assertGreater(np.abs(run(causal)[:, :, 6:] - one[:, :, 6:]).max(), 1)

    def test_large_queries_and_keys_stay_finite_and_right(self):
        for mask in (nn.Mask(), nn.Mask(causal=True)):
            query, key, value = normal(1, 2, 9, 4, scale=12), normal(1, 2, 9, 4, seed=1, scale=12), normal(1, 2, 9, 4)
            w = draw(16, 4)
            logs = (query * 0.7) @ w.T, (key * 0.7) @ w.T - 0.245 * np.sum(key * key, -1, keepdims=True)
            # [B, H, L, M, m]; float64 cannot represent their exponentials.
            sums = logs[0][:, :, :, None] + logs[1][:, :, None]
            sums = np.where(mask_array(mask, 9, 9)[..., None], sums, -np.inf)
            weights = np.exp(sums - sums.max((3, 4), keepdims=True)).sum(-1)
            expected = weights @ value / weights.sum(-1, keepdims=True)
            tensors = [tf.constant(x, tf.float32) for x in (query, key, value, w)]
            chunk = 1 if mask.causal else 4
            self.assertLess(relative_error(favor_attention(*tensors, mask, 0.49, chunk), expected), 1e-3)

    def test_half_precision(self):
        query, key, value = (normal(2, 2, 7, 4, seed=i) for i in range(3))
        w = draw(16, 4)
        for dtype, tolerance in ((tf.bfloat16, 3e-2), (tf.float16, 4e-3)):
            y = favor_attention(*(tf.cast(x, dtype) for x in (query, key, value)), tf.constant(w), nn.Mask(), 0.5)
            self.assertEqual(y.dtype, dtype)
            expected = estimate(query, key, value, w, nn.Mask(), 0.5)
            self.assertLess(relative_error(tf.cast(y, tf.float64), expected), tolerance)


class FeaturesTest(tf.test.TestCase):
    def test_orthogonal_within_each_block_and_as_long_as_normal_vectors(self):
        w = draw(10, 4)
        self.assertEqual(w.shape, (10, 4))
        for block in (w[:4], w[4:8], w[8:]):
            products = block @ block.T
            self.assertLess(np.abs(products - np.diag(np.diag(products))).max(), 1e-5)
        many = np.concatenate([draw(64, 16, seed) for seed in range(100)])
        self.assertNear(np.mean(np.sum(many**2, 1)), 16, 0.3)
        self.assertNear(np.var(np.sum(many**2, 1)), 2 * 16, 2)  # The variance of a chi-square distribution.
        self.assertLess(np.abs(many.mean(0)).max(), 0.06)

    def test_unbiased(self):
        x, y = normal(2, 8, scale=0.5)
        draws = [phi(x, w) @ phi(y, w) for w in (draw(8, 8, seed) for seed in range(1000))]
        error = np.std(draws) / np.sqrt(len(draws))
        self.assertLess(error, 0.02)
        self.assertNear(np.mean(draws), np.exp(x @ y), 4 * error)

    def test_the_error_falls_as_the_root_of_the_number_of_features(self):
        arrays = [normal(1, 2, 32, 16, seed=i, scale=0.4) for i in range(3)]
        expected = formulas.attention(*arrays)
        tensors = [tf.constant(x, tf.float32) for x in arrays]
        attend = tf.function(functools.partial(favor_attention, masking=nn.Mask(), scale=0.25))
        errors = []
        for count in (16, 64, 256, 1024):
            drawn = [tf.constant(draw(count, 16, seed), tf.float32) for seed in range(8)]
            errors.append(np.sqrt(np.mean([np.square(attend(*tensors, w) - expected) for w in drawn])))
        exponent = np.polyfit(np.log([16, 64, 256, 1024]), np.log(errors), 1)[0]
        self.assertBetween(exponent, -0.6, -0.4)
        self.assertLess(errors[-1], 0.005)


class FavorAttentionTest(tf.test.TestCase):
    def layer(self, num_features=4096, redraw_every=0, **kwargs):
        config = nn.FavorConfig(**CONFIG, num_features=num_features, redraw_every=redraw_every, **kwargs)
        return nn.FavorAttention(config, seed=3)

    def test_near_full_attention(self):
        tensors = [tf.constant(normal(2, 3, 9, 4, seed=i, scale=0.3), tf.float32) for i in range(3)]
        for scale_scores in (True, False):
            layer = self.layer(scale_scores=scale_scores)
            full = nn.FullAttention(TransformerConfig(**CONFIG, scale_scores=scale_scores))
            for mask in (nn.Mask(), nn.Mask(tf.constant(np.arange(9) < np.array([[9], [4]])), causal=True)):
                self.assertLess(np.abs(layer(*tensors, masking=mask) - full(*tensors, masking=mask)).max(), 0.02)

    def test_what_needs_scores_is_refused_by_name(self):
        x = tf.zeros([1, 3, 4, 4])
        for mask, name in (
            (nn.Mask(bias=tf.zeros([1, 1, 4, 4])), "a bias"),
            (nn.Mask(attention_mask=tf.ones([1, 1, 4, 4], tf.bool)), "an attention_mask"),
            (nn.Mask(causal=True, window=2), "a window"),
        ):
            with self.assertRaisesRegex(UserError, f"{name}.* attention='lean' or 'full'"):
                self.layer()(x, x, x, masking=mask)
        for field, name in ((dict(window=4), "window=4"), (dict(positions="relative"), "positions='relative'")):
            with self.assertRaisesRegex(UserError, f"{name}.* attention='lean' or 'full'"):
                self.layer(**field)
        with self.assertRaisesRegex(UserError, "4 causal queries over 2 keys"):
            self.layer()(x, x[:, :, :2], x[:, :, :2], masking=nn.Mask(causal=True))

    def test_features_are_a_weight_that_is_not_trained(self):
        layer = self.layer(num_features=6)
        layer.build()
        self.assertEqual([w.name for w in layer.weights], ["features"])
        self.assertEmpty(layer.trainable_weights)
        self.assertAllEqual(layer.features, draw(6, 4, 3))
        layer.redraw(8)
        self.assertAllEqual(layer.features, draw(6, 4, 8))

    def test_features_are_redrawn_while_training(self):
        x, seen = tf.constant(normal(1, 3, 2, 4), tf.float32), []
        for _ in range(2):  # The same result both times.
            layer = self.layer(num_features=6, redraw_every=2)
            layer.build()
            run = tf.function(lambda training, layer=layer: layer(x, x, x, masking=nn.Mask(), training=training))
            for training in (True, True, False, True, True, True):
                run(training)
                seen.append(layer.features.numpy())
        changes = [not np.array_equal(a, b) for a, b in zip(seen[:6], seen[1:6])]
        self.assertEqual(changes, [False, False, True, False, True])
        self.assertAllEqual(seen[:6], seen[6:])

    @pytest.mark.faults
    def test_replicas_redraw_alike(self):
        result = python("-c", "from tests.nn import kernel_test; kernel_test.two_replicas()")
        self.assertEqual(result.stdout.split()[-1:], ["fine"])


def two_replicas():
    """Compares the features of two virtual devices with those of one device; run in a new process."""
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    x = tf.constant(normal(1, 3, 2, 4), tf.float32)
    two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice())
    drawn = []
    for strategy in (tf.distribute.get_strategy(), two):
        with strategy.scope():
            layer = FavorAttentionTest().layer(num_features=6, redraw_every=2)
            layer.build()

        def step(i, layer=layer):
            layer(x, x, x, masking=nn.Mask(), training=True)
            return i + 1

        # In a loop, as in a step with accumulation.
        run = tf.function(
            lambda step=step, strategy=strategy: strategy.run(lambda: tf.while_loop(lambda i: i < 3, step, [0]))
        )
        run()
        drawn += [array.numpy() for array in strategy.experimental_local_results(layer.features.value)]
        with strategy.scope():
            layer.redraw(8)
        drawn += [array.numpy() for array in strategy.experimental_local_results(layer.features.value)]
    assert len(drawn) == 6, len(drawn)
    for array in (drawn[2], drawn[3]):
        np.testing.assert_array_equal(array, drawn[0])
    for array in (drawn[1], drawn[4], drawn[5]):
        np.testing.assert_array_equal(array, draw(6, 4, 8))
    assert not np.array_equal(drawn[0], draw(6, 4, 3))
    print("fine")


if __name__ == "__main__":
    tf.test.main()
