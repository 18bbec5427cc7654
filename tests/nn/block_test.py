"""MLP, Block and Stack against their formulas, norms before and after."""

import numpy as np
import tensorflow as tf

from tests.nn import formulas
from tests.nn.formulas import Values, check_gradients, randomize, relative_error
from tfzoo import nn
from tfzoo.config import ACTIVATIONS, BIASES, TransformerConfig

MASK = (np.arange(5) < np.array([[5], [3]]))[:, None, None, :] & np.tril(np.ones([5, 5], bool))


def config(**overrides):
    sizes = dict(vocab_size=9, hidden_size=8, num_layers=2, num_heads=2, intermediate_size=12)
    return TransformerConfig(**sizes | dict(norm_epsilon=1e-5) | overrides)


def built(layer, size=8):
    layer.build((None, None, size))
    randomize(layer)
    return layer


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


class MLPTest(tf.test.TestCase):
    def test_values(self):
        x = normal(2, 5, 8)
        for name in ACTIVATIONS:
            layer = built(nn.MLP(config(activation=name)))
            y = layer(tf.constant(x, tf.float32))
            expected = formulas.mlp(Values(layer), layer, x, name)
            self.assertLess(relative_error(y, expected), 1e-5, name)

    def test_gradients(self):
        x, upstream = normal(2, 2, 4), normal(2, 2, 4, seed=1)
        for gated in (False, True):
            layer = built(nn.MLP(config(hidden_size=4, intermediate_size=6, gated_mlp=gated)), 4)
            v = Values(layer)
            check_gradients(self, layer, x, upstream, v, lambda: formulas.mlp(v, layer, x, "gelu"))  # noqa: B023

    def test_gates(self):
        x = normal(2, 5, 8)
        for name in ACTIVATIONS:
            for biases in BIASES:
                layer = built(nn.MLP(config(activation=name, gated_mlp=True, biases=biases)))
                names = [f"{part}/{w}" for part in ("gate", "up", "down") for w in ("kernel", "bias")]
                if biases != "all":
                    names = names[::2]
                self.assertEqual([w.path.split("/", 1)[1] for w in layer.weights], names)
                self.assertEqual(layer.gate.kernel.shape, (8, 12))
                y = layer(tf.constant(x, tf.float32))
                self.assertLess(relative_error(y, formulas.mlp(Values(layer), layer, x, name)), 1e-5, name)

    def test_the_gate_does_not_begin_as_what_it_gates(self):
        layer = nn.MLP(config(gated_mlp=True))
        layer.build((None, None, 8))
        self.assertLess(np.mean(layer.gate.kernel.numpy() == layer.up.kernel.numpy()), 0.1)


class BlockTest(tf.test.TestCase):
    def test_values(self):
        x, masking = normal(2, 5, 8), nn.Mask(attention_mask=MASK)
        for norm_first in (False, True):
            c = config(norm_first=norm_first)
            layer = built(nn.Block(c))
            v = Values(layer)
            y = layer(tf.constant(x, tf.float32))
            self.assertLess(relative_error(y, formulas.block(v, layer, x, c)), 1e-5)
            y = layer(tf.constant(x, tf.float32), masking=masking)
            self.assertLess(relative_error(y, formulas.block(v, layer, x, c, MASK)), 1e-5)

    def test_gradients(self):
        x, upstream = normal(1, 2, 4), normal(1, 2, 4, seed=1)
        for norm_first in (False, True):
            c = config(hidden_size=4, intermediate_size=6, norm_first=norm_first, norm_epsilon=1e-2)
            layer = built(nn.Block(c), 4)
            v = Values(layer)
            check_gradients(self, layer, x, upstream, v, lambda: formulas.block(v, layer, x, c))  # noqa: B023

    def test_dropout_comes_in_three_places(self):
        x = tf.constant(normal(2, 5, 8), tf.float32)
        for rates, draws in (((0, 0), 0), ((0.5, 0), 2), ((0, 0.5), 1), ((0.5, 0.5), 3)):
            layer = built(nn.Block(config(dropout=rates[0], attention_dropout=rates[1])))
            self.assertAllEqual(layer(x), layer(x))  # Also makes the seeds.
            self.assertLen(layer.non_trainable_variables, draws)
            self.assertEqual(bool(np.any(layer(x, training=True) != layer(x, training=True))), draws > 0, rates)
            self.assertAllEqual(layer(x), layer(x))

    def test_a_residual_passes_what_dropout_takes_away(self):
        # Almost everything is dropped, so a block with norms first is almost the identity.
        layer = built(nn.Block(config(norm_first=True, dropout=0.999, attention_dropout=0.0)))
        x = tf.constant(normal(2, 5, 8), tf.float32)
        same = np.isclose(layer(x, training=True), x)
        self.assertGreater(same.mean(), 0.9)


class StackTest(tf.test.TestCase):
    def test_values(self):
        x = normal(2, 5, 8)
        for norm_first in (False, True):
            for layers in (1, 3):
                c = config(norm_first=norm_first, num_layers=layers)
                layer = built(nn.Stack(c))
                y = layer(tf.constant(x, tf.float32), attention_mask=MASK)
                expected = formulas.stack(Values(layer), layer, x, c, MASK)
                self.assertLess(relative_error(y, expected), 2e-5)

    def test_layers_have_names_and_weights_of_their_own(self):
        layer = nn.Stack(config(num_layers=3))
        layer.build((None, None, 8))
        self.assertEqual([block.name for block in layer.blocks], ["layer_0", "layer_1", "layer_2"])
        one, two = (block.mlp.up.kernel.numpy() for block in layer.blocks[:2])
        self.assertGreater(np.abs(one - two).max(), 0)

    def test_initial_weights(self):
        c = config(hidden_size=64, intermediate_size=128, initializer_range=0.05)
        layer = nn.Stack(c)
        layer.build((None, None, 64))
        for weight in layer.trainable_weights:
            values = weight.numpy()
            if weight.name == "kernel":
                # Keras cuts the normal distribution at two deviations, which narrows it to 0.88.
                self.assertNear(values.std(), 0.88 * 0.05, 0.003, weight.path)
                self.assertLessEqual(np.abs(values).max(), 0.1)
            else:
                self.assertAllEqual(values, np.full_like(values, weight.name == "gamma"))


if __name__ == "__main__":
    tf.test.main()
