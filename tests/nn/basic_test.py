"""Dense, activations, layer norm and dropout compared with their formulas."""

import numpy as np
import tensorflow as tf

from tests.nn import formulas
from tests.nn.formulas import Values, check_gradients, normal, randomize, relative_error
from tfzoo import nn
from tfzoo.config import TransformerConfig


class DenseTest(tf.test.TestCase):
    def test_values_for_several_ranks(self):
        for shape in [(4, 7), (2, 3, 7), (2, 3, 2, 7)]:
            layer = nn.Dense(5)
            x = normal(*shape)
            layer.build(shape)
            randomize(layer)
            expected = formulas.dense(Values(layer), layer, x)
            self.assertLess(relative_error(layer(x.astype(np.float32)), expected), 1e-6)

    def test_activation_and_no_bias(self):
        layer = nn.Dense(5, activation="tanh", use_bias=False)
        x = normal(2, 3, 7)
        layer.build(x.shape)
        expected = np.tanh(x @ layer.kernel.numpy().astype(np.float64))
        self.assertLess(relative_error(layer(x.astype(np.float32)), expected), 1e-6)

    def test_gradients(self):
        layer = nn.Dense(3)
        x, upstream = normal(2, 3, 4), normal(2, 3, 3, seed=1)
        layer.build(x.shape)
        randomize(layer)
        v = Values(layer)
        check_gradients(self, layer, x, upstream, v, lambda: formulas.dense(v, layer, x))

    def test_lengths_unknown_in_a_graph(self):
        layer = nn.Dense(3)
        layer.build((None, None, 4))
        function = tf.function(layer.call, input_signature=[tf.TensorSpec([None, None, 4])])
        x = normal(2, 5, 4).astype(np.float32)
        self.assertAllClose(function(x), layer(x), 1e-6, 1e-6)


class ActivationTest(tf.test.TestCase):
    def test_values_and_gradients(self):
        x = np.concatenate([np.linspace(-8, 8, 161) + 0.03, [-40.0, 40.0]])
        for name in formulas.ACTIVATIONS:
            formula = formulas.ACTIVATIONS[name]
            slope = (formula(x + 1e-6) - formula(x - 1e-6)) / 2e-6
            variable = tf.constant(x, tf.float32)
            with tf.GradientTape() as tape:
                tape.watch(variable)
                y = nn.activation(name)(variable)
            self.assertAllClose(y, formula(x), 1e-5, 1e-6, msg=name)
            upstream = tape.gradient(y, variable, output_gradients=tf.constant(2.0 + x * 0, tf.float32))
            self.assertLess(relative_error(upstream, 2 * slope), 1e-5, name)

    def test_exact_gelu_is_not_the_approximation(self):
        x = tf.constant([-2.0, 2.0])
        self.assertGreater(np.abs(nn.activation("gelu")(x) - nn.activation("gelu_tanh")(x)).max(), 5e-5)

    def test_second_derivative_of_gelu(self):
        x = tf.constant([-1.5, -0.2, 0.0, 0.7, 2.0])
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = nn.activation("gelu")(x)
            slope = inner.gradient(y, x)
        points = x.numpy().astype(np.float64)
        density = np.exp(-(points**2) / 2) / np.sqrt(2 * np.pi)
        self.assertAllClose(outer.gradient(slope, x), density * (2 - points**2), 1e-5, 1e-6)


class LayerNormTest(tf.test.TestCase):
    def layer(self, size, epsilon=1e-12, dtype="float32"):
        layer = nn.LayerNorm(epsilon, dtype=dtype)
        layer.build((None, size))
        randomize(layer)
        return layer

    def test_values(self):
        for shape, shift in [((1, 2), 0), ((5, 16), 3), ((2, 3, 33), -7)]:
            for epsilon in (1e-12, 0.1):
                layer = self.layer(shape[-1], epsilon)
                x = (normal(*shape) + shift).astype(np.float32)
                expected = formulas.layer_norm(Values(layer), layer, x.astype(np.float64))
                self.assertLess(relative_error(layer(x), expected), 1e-5)

    def test_gradients_of_input_gain_and_bias(self):
        layer = self.layer(6, 1e-3)
        x, upstream = normal(2, 3, 6), normal(2, 3, 6, seed=1)
        v = Values(layer)
        check_gradients(self, layer, x, upstream, v, lambda: formulas.layer_norm(v, layer, x))

    def test_a_constant_row_gives_the_bias(self):
        layer = self.layer(8)
        x = tf.fill([1, 8], 3.0)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        self.assertAllClose(y[0], layer.beta, 1e-5, 1e-5)
        self.assertAllEqual(tf.math.is_finite(tape.gradient(y, x)), np.ones([1, 8], bool))

    def test_half_precision_policies_compute_in_float32(self):
        for dtype, digits in (("bfloat16", 2**-8), ("float16", 2**-11)):
            layer = self.layer(64, dtype=f"mixed_{dtype}")
            # Large enough that squares overflow float16 and sums lose all precision in bfloat16.
            x = tf.cast(normal(4, 64, scale=300.0) + 1000, dtype)
            y = layer(x)
            self.assertEqual(y.dtype, dtype)
            self.assertEqual(layer.gamma.dtype, "float32")
            expected = formulas.layer_norm(Values(layer), layer, x.numpy().astype(np.float64))
            # The only error is the rounding of the result.
            error = np.abs(tf.cast(y, tf.float64) - expected)
            self.assertTrue(np.all(error <= np.abs(expected) * digits * 1.01 + 1e-5), dtype)
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x)
            gradients = tape.gradient(y, [x, layer.gamma.value, layer.beta.value])
            self.assertEqual([g.dtype for g in gradients], [dtype, "float32", "float32"])
            normalised = (expected - layer.beta.numpy()) / layer.gamma.numpy()
            self.assertLess(relative_error(gradients[1], normalised.sum(0)), 1e-4)
            self.assertAllClose(gradients[2], np.full(64, 4.0))

    def test_weights_in_bfloat16(self):
        layer = self.layer(64, dtype="bfloat16")
        self.assertEqual({weight.dtype for weight in layer.weights}, {"bfloat16"})
        rows = tf.cast(normal(6, 64, scale=300.0) + 1000, "bfloat16")
        gamma, beta = (tf.cast(weight, tf.float64).numpy() for weight in (layer.gamma, layer.beta))
        in_graph = tf.function(layer, input_signature=[tf.TensorSpec([None, None, 64], "bfloat16")])
        for x in (tf.reshape(rows, [2, 3, 64]), tf.zeros([0, 3, 64], "bfloat16"), tf.fill([1, 1, 64], rows[0, 0])):
            wide = tf.cast(x, tf.float64).numpy()
            scale = np.sqrt(wide.var(-1, keepdims=True) + layer.epsilon)
            scaled = (wide - wide.mean(-1, keepdims=True)) / scale * gamma
            for y in (layer(x), in_graph(x), layer(x, training=True)):
                self.assertEqual((y.dtype, y.shape), (tf.bfloat16, x.shape))
                # If the form is not fused, the quotient, its product with gamma and the sum are each rounded by 2^-8.
                bound = np.abs(scaled) * 2**-7 + np.abs(scaled + beta) * 2**-8
                self.assertTrue(np.all(np.abs(tf.cast(y, tf.float64) - scaled - beta) <= bound * 1.01 + 1e-5))
        upstream = tf.cast(normal(6, 64, seed=1), "bfloat16")
        gradients = []
        for training in (False, True):

            @tf.function(input_signature=[tf.TensorSpec([None, 64], "bfloat16")])
            def gradients_of(rows, training=training):
                with tf.GradientTape() as tape:
                    tape.watch(rows)
                    y = layer(rows, training=training)
                return tape.gradient(y, [rows, layer.gamma.value, layer.beta.value], upstream)

            gradients.append(gradients_of(rows))
        for inference, training in zip(*gradients, strict=True):
            self.assertEqual(inference.dtype, tf.bfloat16)
            self.assertAllClose(*(tf.cast(g, tf.float32) for g in (inference, training)), 2**-7, 1e-5)

    def test_without_beta(self):
        layer = nn.LayerNorm(1e-3, center=False)
        layer.build((None, 6))
        randomize(layer)
        self.assertEqual([w.name for w in layer.weights], ["gamma"])
        x, upstream = normal(2, 3, 6), normal(2, 3, 6, seed=1)
        v = Values(layer)
        self.assertLess(relative_error(layer(x.astype(np.float32)), formulas.layer_norm(v, layer, x)), 1e-5)
        check_gradients(self, layer, x, upstream, v, lambda: formulas.layer_norm(v, layer, x))

    def test_in_a_graph(self):
        for layer in (nn.LayerNorm(1e-3), nn.LayerNorm(1e-3, center=False), nn.RMSNorm(1e-3)):
            layer.build((None, 6))
            randomize(layer)
            x = tf.constant(normal(2, 3, 6), tf.float32)

            def gradients(x, layer=layer):
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    y = tf.square(layer(x))
                return tape.gradient(y, [x, *(w.value for w in layer.trainable_weights)])

            for one, two in zip(tf.function(gradients)(x), gradients(x), strict=True):
                self.assertAllClose(tf.convert_to_tensor(one), tf.convert_to_tensor(two), 1e-5, 1e-5)


class RMSNormTest(tf.test.TestCase):
    def layer(self, size, epsilon=1e-6, dtype="float32"):
        layer = nn.RMSNorm(epsilon, dtype=dtype)
        layer.build((None, size))
        randomize(layer)
        return layer

    def test_values(self):
        for shape, shift in [((1, 2), 0), ((5, 16), 3), ((2, 3, 4, 7), -7)]:
            for epsilon in (1e-6, 0.1):
                layer = self.layer(shape[-1], epsilon)
                self.assertEqual([w.name for w in layer.weights], ["gamma"])
                x = (normal(*shape) + shift).astype(np.float32)
                expected = formulas.rms_norm(Values(layer), layer, x.astype(np.float64))
                self.assertLess(relative_error(layer(x), expected), 1e-5)

    def test_gradients_of_input_and_gain(self):
        layer = self.layer(6, 1e-3)
        x, upstream = normal(2, 3, 6), normal(2, 3, 6, seed=1)
        v = Values(layer)
        check_gradients(self, layer, x, upstream, v, lambda: formulas.rms_norm(v, layer, x))

    def test_gradients_are_those_of_automatic_differentiation(self):
        layer, x = self.layer(33, 1e-5), tf.constant(normal(4, 33, scale=3.0), tf.float64)
        upstream = tf.constant(normal(4, 33, seed=1), tf.float64)
        gamma = tf.cast(layer.gamma.value, tf.float64)
        with tf.GradientTape() as plain:
            plain.watch([x, gamma])
            y = x / tf.sqrt(tf.reduce_mean(tf.square(x), -1, keepdims=True) + 1e-5) * gamma
        expected = plain.gradient(y, [x, gamma], output_gradients=upstream)
        x = tf.cast(x, tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        gradients = tape.gradient(y, [x, layer.gamma.value], output_gradients=tf.cast(upstream, tf.float32))
        for one, two in zip(gradients, expected, strict=True):
            self.assertLess(relative_error(tf.convert_to_tensor(one), two), 1e-5)

    def test_half_precision_policies_compute_in_float32(self):
        for dtype, digits in (("bfloat16", 2**-8), ("float16", 2**-11)):
            layer = self.layer(64, dtype=f"mixed_{dtype}")
            x = tf.cast(normal(4, 64, scale=300.0) + 1000, dtype)  # Its squares overflow float16.
            y = layer(x)
            self.assertEqual(y.dtype, dtype)
            expected = formulas.rms_norm(Values(layer), layer, x.numpy().astype(np.float64))
            error = np.abs(tf.cast(y, tf.float64) - expected)
            self.assertTrue(np.all(error <= np.abs(expected) * digits * 1.01 + 1e-5), dtype)


class MakeNormTest(tf.test.TestCase):
    def test_the_config_decides(self):
        sizes = dict(vocab_size=9, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=12, norm_epsilon=0.25)
        for overrides, kind, weights in (
            ({}, nn.LayerNorm, ["gamma", "beta"]),
            (dict(biases="qkv"), nn.LayerNorm, ["gamma", "beta"]),
            (dict(biases="none"), nn.LayerNorm, ["gamma"]),
            (dict(norm="rms"), nn.RMSNorm, ["gamma"]),
        ):
            norm = nn.make_norm(TransformerConfig(**sizes, **overrides), name="norm")
            norm.build((None, 8))
            self.assertIs(type(norm), kind)
            self.assertEqual([w.path for w in norm.weights], [f"norm/{name}" for name in weights])
            self.assertEqual(norm.epsilon, 0.25)


class DropoutTest(tf.test.TestCase):
    def dropout(self, rate, seed=1):
        layer = nn.Dropout(rate, seed=seed)
        layer.build(None)
        return layer

    def test_rate_and_scaling(self):
        for rate in (0.1, 0.5, 0.9):
            y = self.dropout(rate)(tf.ones([400, 501]), training=True).numpy()
            kept = y[y != 0]
            self.assertAllClose(kept, np.full_like(kept, 1 / (1 - rate)), 1e-4)
            spread = np.sqrt(rate * (1 - rate) / y.size)
            self.assertLess(abs(np.mean(y == 0) - rate), 4 * spread + 1e-5)
            # Rows and columns are dropped at the same rate: there is no pattern.
            for axis, count in ((0, 400), (1, 501)):
                share = np.mean(y == 0, axis)
                self.assertLess(np.abs(share - rate).max(), 5 * np.sqrt(rate * (1 - rate) / count))
            # Neighbours are independent (two share 32 random bits).
            zero = (y == 0).ravel()[: y.size // 2 * 2]
            both = np.mean(zero[0::2] & zero[1::2])
            self.assertLess(abs(both - rate**2), 5 * np.sqrt(rate**2 * (1 - rate**2) / (y.size / 2)))

    def test_draws_differ_and_follow_from_the_seed_state(self):
        layer, x = self.dropout(0.5), tf.ones([8, 33])
        state = layer.seed_generator.state.numpy()
        first, second = layer(x, training=True), layer(x, training=True)
        self.assertGreater(np.abs(first - second).max(), 0)
        layer.seed_generator.state.assign(state)
        self.assertAllEqual(layer(x, training=True), first)
        self.assertAllEqual(layer(x, training=True), second)
        self.assertAllEqual(self.dropout(0.5)(x, training=True), first)
        self.assertGreater(np.abs(self.dropout(0.5, seed=2)(x, training=True) - first).max(), 0)

    def test_the_state_is_among_the_variables_that_checkpoints_keep(self):
        layer = self.dropout(0.5)
        self.assertIn(id(layer.seed_generator.state), [id(variable) for variable in layer.variables])

    def test_gradient_passes_where_the_value_does(self):
        layer, x = self.dropout(0.3), tf.Variable(tf.ones([5, 7]))
        with tf.GradientTape() as tape:
            y = layer(x, training=True)
        self.assertAllEqual(tape.gradient(y, x), y)

    def test_identity_when_not_training_or_rate_is_zero(self):
        x = tf.constant(normal(3, 4), tf.float32)
        self.assertAllEqual(self.dropout(0.5)(x), x)
        self.assertAllEqual(self.dropout(0.0)(x, training=True), x)

    def test_half_precision_keeps_its_dtype(self):
        for dtype in ("bfloat16", "float16"):
            layer = nn.Dropout(0.25, seed=1, dtype=f"mixed_{dtype}")
            y = layer(tf.ones([50, 50], dtype), training=True)
            self.assertEqual(y.dtype, dtype)
            kept = np.unique(tf.cast(y, tf.float32))
            self.assertAllClose(kept, [0, 4 / 3], 2**-8)


if __name__ == "__main__":
    tf.test.main()
