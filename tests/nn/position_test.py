"""Sinusoidal tables, relative biases and rotary embeddings compared with their formulas."""

import numpy as np
import tensorflow as tf

from tests.nn import formulas
from tests.nn.formulas import Values, randomize, relative_error
from tfzoo import nn
from tfzoo.config import TransformerConfig
from tfzoo.errors import UserError


def config(**overrides):
    sizes = dict(vocab_size=9, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=12, max_positions=16)
    return TransformerConfig(**sizes | overrides)


class SinusoidalTest(tf.test.TestCase):
    def test_values(self):
        for length, size in [(1, 2), (50, 8), (512, 64)]:
            for interleaved in (True, False):
                table = nn.sinusoidal_positions(length, size, interleaved)
                self.assertEqual(table.dtype, np.float32)
                self.assertAllClose(table, formulas.sinusoidal(length, size, interleaved), 1e-6, 1e-6)
        self.assertAllEqual(nn.sinusoidal_positions(5, 4), nn.sinusoidal_positions(5, 4, True))


class RelativeBiasTest(tf.test.TestCase):
    def layer(self, causal, **overrides):
        layer = nn.RelativeBias(config(positions="relative", **overrides), causal, name="relative_bias")
        layer.build()
        randomize(layer)
        return layer

    def test_buckets_of_all_distances(self):
        distances = np.arange(-300, 301)
        for causal in (True, False):
            # T5's values, then values whose logarithms are rarely integers, then the smallest values.
            for buckets, furthest in ((32, 128), (12, 50), (4, 20)):
                layer = self.layer(causal, relative_buckets=buckets, relative_distance=furthest)
                expected = [formulas.relative_bucket(int(d), causal, buckets, furthest) for d in distances]
                self.assertAllEqual(layer.bucket(tf.constant(distances, tf.int32)), expected, (causal, buckets))
                self.assertEqual(set(expected), set(range(buckets)) - (set() if causal else {buckets // 2}))

    def test_values(self):
        for causal in (True, False):
            layer = self.layer(causal, relative_buckets=8, relative_distance=10)
            self.assertEqual(layer.embeddings.path, "relative_bias/embeddings")
            table = layer.embeddings.numpy()
            for length, keys in ((1, 1), (7, 7), (2, 9)):  # The last case: two new queries after seven keys.
                bias = layer(query_length=length, key_length=keys)
                self.assertEqual(bias.shape, (1, 2, length, keys))
                for i in range(length):
                    for j in range(keys):
                        distance = j - (i + keys - length)
                        bucket = formulas.relative_bucket(distance, causal, 8, 10)
                        self.assertAllEqual(bias[0, :, i, j], table[bucket])

    def test_near(self):
        # Press et al. 2022, section 3: the slopes of four heads are 1/4, 1/16, 1/64, 1/256.
        slopes = np.array([1 / 4, 1 / 16, 1 / 64, 1 / 256])
        for causal in (True, False):
            layer = nn.RelativeBias(config(positions="relative", position_initializer="near", num_heads=4), causal)
            layer.build()
            bias = layer(query_length=200, key_length=200)[0].numpy()
            for distance in range(8):  # Each has its own bucket.
                self.assertAllClose(bias[:, 100, 100 - distance], -distance * slopes, 1e-6)
                if not causal:
                    self.assertAllClose(bias[:, 100, 100 + distance], -distance * slopes, 1e-6)
            self.assertTrue(np.all(np.diff(bias[:, 199, :]) >= 0))  # The bias decreases with distance.
            self.assertAllClose(bias[:, 199, 0], -128 * slopes, rtol=0.3)

    def test_lengths_unknown_in_a_graph(self):
        layer = self.layer(False)
        function = tf.function(lambda n: layer(query_length=n, key_length=n))
        self.assertAllEqual(function(tf.constant(5)), layer(query_length=5, key_length=5))


class RotaryTest(tf.test.TestCase):
    def rotated(self, x, positions, **overrides):
        c = config(positions="rotary", head_dim=x.shape[-1], **overrides)
        tables = nn.rotary_tables(c, tf.constant(positions, tf.int32), "float32")
        return nn.rotate(tf.constant(x, tf.float32), tables).numpy().astype(np.float64)

    def test_values(self):
        x = np.random.default_rng(0).normal(size=[2, 3, 5, 6])
        positions = np.array([[0, 1, 2, 3, 4], [9, 0, 7, 7, 15]])
        for theta in (10000.0, 50.0):
            actual = self.rotated(x, positions, rotary_theta=theta)
            for row in range(2):
                angles = formulas.rotary_angles(positions[row], 6, theta)
                self.assertLess(relative_error(actual[row], formulas.rotary(x[row], angles)), 1e-6)

    def test_norms_are_kept_and_position_0_is_left_alone(self):
        x = np.random.default_rng(0).normal(size=[1, 2, 16, 8])
        actual = self.rotated(x, np.arange(16)[None])
        self.assertAllClose(np.linalg.norm(actual, axis=-1), np.linalg.norm(x, axis=-1), 1e-6)
        self.assertAllClose(actual[:, :, 0], x[:, :, 0], 1e-6)

    def test_scores_depend_on_differences_of_positions_alone(self):
        query, key = np.random.default_rng(0).normal(size=[2, 1, 1, 1, 8])
        query, key = np.repeat(query, 9, 2), np.repeat(key, 9, 2)  # The same content everywhere.

        def scores(shift):
            ids = np.arange(9)[None] + shift
            return (self.rotated(query, ids) @ np.swapaxes(self.rotated(key, ids), -1, -2))[0, 0]

        actual = scores(0)
        for k in range(-8, 9):
            along = np.diagonal(actual, k)
            self.assertAllClose(along, np.full_like(along, along[0]), 1e-5, 1e-5)
        self.assertGreater(np.ptp(actual[0]), 0.1)
        self.assertAllClose(scores(5), actual, 1e-5, 1e-5)

    def test_tables_of_one_position_alone(self):
        x = np.random.default_rng(0).normal(size=[1, 2, 5, 8])
        whole = self.rotated(x, np.arange(5)[None])
        self.assertAllClose(self.rotated(x[:, :, 3:4], [[3]]), whole[:, :, 3:4], 1e-6)

    def test_linear_scaling_slows_all_waves(self):
        x = np.random.default_rng(0).normal(size=[1, 2, 9, 8])
        scaled = self.rotated(x, 4 * np.arange(9)[None], rotary_scaling={"rope_type": "linear", "factor": 4.0})
        self.assertAllClose(scaled, self.rotated(x, np.arange(9)[None]), 1e-5, 1e-5)
        old_name = self.rotated(x, 4 * np.arange(9)[None], rotary_scaling={"type": "linear", "factor": 4.0})
        self.assertAllEqual(old_name, scaled)

    def test_an_unknown_scaling_is_named(self):
        with self.assertRaisesRegex(UserError, "unknown rope_type 'spiral'; use default, linear"):
            nn.rotary_tables(config(rotary_scaling={"rope_type": "spiral"}), tf.range(3)[None], "float32")


class StackTest(tf.test.TestCase):
    """Positions that attention adds, in a complete stack."""

    def built(self, c, **kwargs):
        layer = nn.Stack(c, **kwargs)
        layer.build((None, None, 8))
        randomize(layer)
        return layer, np.random.default_rng(1).normal(size=[2, 6, 8])

    def test_rotary(self):
        c = config(positions="rotary", rotary_theta=100.0, num_layers=2, norm_epsilon=1e-5, num_kv_heads=1)
        layer, x = self.built(c)
        v = Values(layer)
        expected = formulas.stack(v, layer, x, c, angles=formulas.rotary_angles(range(6), 4, 100.0))
        self.assertLess(relative_error(layer(tf.constant(x, tf.float32)), expected), 1e-5)
        ids = np.array([3, 0, 1, 9, 5, 15])
        expected = formulas.stack(v, layer, x, c, angles=formulas.rotary_angles(ids, 4, 100.0))
        actual = layer(tf.constant(x, tf.float32), position_ids=np.broadcast_to(ids, [2, 6]))
        self.assertLess(relative_error(actual, expected), 1e-5)

    def test_relative(self):
        c = config(positions="relative", relative_buckets=8, relative_distance=10, num_layers=2, norm_epsilon=1e-5)
        for causal in (False, True):
            layer, x = self.built(c, causal=causal)
            v, mask = Values(layer), np.tril(np.ones([6, 6], bool))[None, None] if causal else None
            places = np.arange(6)
            buckets = [[formulas.relative_bucket(int(j - i), causal, 8, 10) for j in places] for i in places]
            bias = v(layer.relative_bias.embeddings)[np.array(buckets)].transpose(2, 0, 1)[None]
            expected = formulas.stack(v, layer, x, c, mask, bias=bias)
            self.assertLess(relative_error(layer(tf.constant(x, tf.float32)), expected), 1e-5)
            # One table, shared by all layers.
            self.assertLen([w for w in layer.weights if "relative_bias" in w.path], 1)


if __name__ == "__main__":
    tf.test.main()
