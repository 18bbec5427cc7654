"""MLP, Block and Stack compared with their formulas, pre-norm and post-norm."""

from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfzoo
from tests.nn import formulas
from tests.nn.formulas import Values, check_gradients, normal, randomize, relative_error
from tfzoo import nn
from tfzoo.config import ACTIVATIONS, BIASES, TransformerConfig
from tfzoo.errors import UserError

MASK = (np.arange(5) < np.array([[5], [3]]))[:, None, None, :] & np.tril(np.ones([5, 5], bool))


def config(**overrides):
    sizes = dict(vocab_size=9, hidden_size=8, num_layers=2, num_heads=2, intermediate_size=12)
    return TransformerConfig(**sizes | dict(norm_epsilon=1e-5) | overrides)


def built(layer, size=8):
    layer.build((None, None, size))
    randomize(layer)
    return layer


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

    def test_every_choice(self):
        x, masking = normal(2, 5, 8), nn.Mask(attention_mask=MASK)
        for overrides in (
            dict(norm="rms", biases="none", gated_mlp=True, scale_scores=False),
            dict(biases="none", norm_first=True),
            dict(num_kv_heads=1, head_dim=6, qk_norm=True, biases="qkv", norm="rms", norm_first=True),
        ):
            c = config(**overrides)
            layer = built(nn.Block(c))
            self.assertEqual(any(w.name == "beta" for w in layer.weights), c.norm == "layer" and c.biases != "none")
            y = layer(tf.constant(x, tf.float32), masking=masking)
            expected = formulas.block(Values(layer), layer, x, c, MASK)
            self.assertLess(relative_error(y, expected), 1e-5, overrides)

    def test_cross_attention(self):
        x, memory = normal(2, 5, 8), normal(2, 7, 8, seed=1)
        padding = np.arange(7) < np.array([[7], [4]])
        for norm_first in (False, True):
            for scale_scores in (False, True):
                c = config(norm_first=norm_first, scale_scores=scale_scores)
                layer = built(nn.Block(c, cross=True))
                kwargs = dict(memory=tf.constant(memory, tf.float32), masking=nn.Mask(attention_mask=MASK))
                y = layer(tf.constant(x, tf.float32), memory_masking=nn.Mask(padding), **kwargs)
                v = Values(layer)
                expected = formulas.block(v, layer, x, c, MASK, memory, padding[:, None, None])
                self.assertLess(relative_error(y, expected), 1e-5)
                y = layer(tf.constant(x, tf.float32), **kwargs)
                self.assertLess(relative_error(y, formulas.block(v, layer, x, c, MASK, memory)), 1e-5)

    def test_without_cross_attention_there_are_no_variables_for_it(self):
        def names(**kwargs):
            layer = built(nn.Block(config(), name="block", **kwargs))
            return {path for path in (w.path for w in layer.variables) if "cross" in path}

        self.assertEqual(names(), set())
        parts = [f"attention/{p}/{w}" for p in ("query", "key", "value", "output") for w in ("kernel", "bias")]
        parts += ["norm/gamma", "norm/beta"]
        self.assertContainsSubset({f"block/cross_{part}" for part in parts}, names(cross=True))

    def test_parallel(self):
        x = normal(2, 5, 8)
        for overrides in ({}, dict(biases="none", gated_mlp=True, activation="silu", num_kv_heads=1)):
            c = config(norm_first=True, parallel_blocks=True, **overrides)
            layer = built(nn.Block(c))
            self.assertIsNone(layer.mlp_norm)
            y = layer(tf.constant(x, tf.float32), masking=nn.Mask(attention_mask=MASK))
            self.assertLess(relative_error(y, formulas.block(Values(layer), layer, x, c, MASK)), 1e-5)

    def test_gradients_of_cross_attention_and_parallel_sums(self):
        x, memory, upstream = normal(1, 2, 4), normal(1, 3, 4, seed=2), normal(1, 2, 4, seed=1)
        small = dict(hidden_size=4, intermediate_size=6, norm_epsilon=1e-2, norm_first=True)
        c = config(**small, parallel_blocks=True)
        layer = built(nn.Block(c), 4)
        v = Values(layer)
        check_gradients(self, layer, x, upstream, v, lambda: formulas.block(v, layer, x, c))
        c = config(**small)
        layer = built(nn.Block(c, cross=True), 4)
        v = Values(layer)
        kwargs = dict(memory=tf.constant(memory, tf.float32))
        check_gradients(self, layer, x, upstream, v, lambda: formulas.block(v, layer, x, c, memory=memory), **kwargs)

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
            self.assertAllEqual(layer(x), layer(x))  # This call also creates the seeds.
            self.assertLen(layer.non_trainable_variables, draws)
            self.assertEqual(bool(np.any(layer(x, training=True) != layer(x, training=True))), draws > 0, rates)
            self.assertAllEqual(layer(x), layer(x))
        layer = built(nn.Block(config(dropout=0.5, attention_dropout=0.5), cross=True))
        self.assertLen(layer.non_trainable_variables, 5)

    def test_a_residual_passes_what_dropout_takes_away(self):
        # Almost everything is dropped, so a pre-norm block is almost the identity.
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

    def test_causal_windows_and_padding(self):
        x, padding = normal(2, 5, 8), np.arange(5) < np.array([[5], [3]])
        places = np.arange(5)
        for window in (0, 1, 3):
            c = config(window=window)
            layer = built(nn.Stack(c, causal=True))
            mask = (places[None, :] <= places[:, None]) & (places[None, :] > places[:, None] - (window or 99))
            v = Values(layer)
            y = layer(tf.constant(x, tf.float32))
            self.assertLess(relative_error(y, formulas.stack(v, layer, x, c, mask[None, None])), 1e-5)
            # A row of padding only may not attend to anything and averages, in both implementations.
            mask = mask & padding[:, None, None]
            y = layer(tf.constant(x, tf.float32), padding_mask=padding)
            self.assertLess(relative_error(y, formulas.stack(v, layer, x, c, mask)), 1e-5)
            arbitrary = np.random.default_rng(2).random([2, 2, 5, 5]) < 0.7
            y = layer(tf.constant(x, tf.float32), padding_mask=padding, attention_mask=arbitrary)
            self.assertLess(relative_error(y, formulas.stack(v, layer, x, c, mask & arbitrary)), 1e-5)
        both = built(nn.Stack(config(window=2)))  # Windows apply to causal stacks only.
        expected = formulas.stack(Values(both), both, x, config())
        self.assertLess(relative_error(both(tf.constant(x, tf.float32)), expected), 1e-5)

    def test_a_memory_for_every_layer(self):
        x, memory = normal(2, 5, 8), normal(2, 7, 8, seed=1)
        padding = np.arange(7) < np.array([[7], [4]])
        for norm_first in (False, True):
            c = config(norm_first=norm_first)
            layer = built(nn.Stack(c, 3, causal=True, cross=True))
            self.assertLen(layer.blocks, 3)
            y = layer(tf.constant(x, tf.float32), memory=tf.constant(memory, tf.float32), memory_padding_mask=padding)
            mask = np.tril(np.ones([5, 5], bool))[None, None]
            kwargs = dict(memory=memory, memory_mask=padding[:, None, None])
            self.assertLess(relative_error(y, formulas.stack(Values(layer), layer, x, c, mask, **kwargs)), 2e-5)

    def test_shared_layers_are_one_layer_several_times(self):
        x, c = normal(2, 5, 8), config(share_layers=True, num_layers=3)
        layer, one = built(nn.Stack(c)), built(nn.Stack(config(num_layers=1)))
        self.assertEqual([w.shape for w in layer.trainable_weights], [w.shape for w in one.trainable_weights])
        self.assertLen({id(block) for block in layer.blocks}, 1)
        v = Values(layer)
        expected = x
        for _ in range(3):
            expected = formulas.block(v, layer.blocks[0], expected, c)
        self.assertLess(relative_error(layer(tf.constant(x, tf.float32)), expected), 2e-5)

    def test_shared_layers_sum_their_gradients(self):
        c = config(share_layers=True, num_layers=2, hidden_size=4, intermediate_size=6, norm_epsilon=1e-2)
        layer, x, upstream = built(nn.Stack(c), 4), normal(1, 2, 4), normal(1, 2, 4, seed=1)
        v = Values(layer)
        check_gradients(self, layer, x, upstream, v, lambda: formulas.stack(v, layer, x, c))

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


class RecomputedTest(tf.test.TestCase):
    def gradients(self, name, remat, **sizes):
        """Returns (calls of a block, gradients) for two training steps with dropout."""
        keras.utils.set_random_seed(1)
        sizes = dict(vocab_size=9, hidden_size=8, num_heads=2, num_layers=2, intermediate_size=12) | sizes
        model = tfzoo.build(name, **sizes, dropout=0.3, attention_dropout=0.3)
        randomize(model)
        if remat:
            model.recompute_blocks()
        ids = tf.constant([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]])
        inputs = {"token_ids": ids, "padding_mask": ids > 0}
        if "decoder_token_ids" in model.INPUTS:
            inputs["decoder_token_ids"] = ids
        calls, call = [], nn.Block.call
        # A key's bias is excluded: the softmax is invariant to it, and its gradient is only rounding error.
        variables = [v.value for v in model.trainable_variables if not v.path.endswith("key/bias")]

        @tf.function
        def computed():
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(variables)
                loss = tf.reduce_sum(tf.square(model(inputs, training=True)["logits"]))
            # A pooler's gradient is None.
            return [tf.convert_to_tensor(x) for x in tape.gradient(loss, variables) if x is not None]

        def counted(*args, **kwargs):
            calls.append(1)
            return call(*args, **kwargs)

        with mock.patch.object(nn.Block, "call", counted):
            first, second = computed(), computed()
        self.assertGreater(np.abs(first[0] - second[0]).max(), 1e-3)  # The dropout masks differ.
        return len(calls), [*first, *second]

    def test_gradients_are_the_same(self):
        self.check(("t5_small", dict(num_decoder_layers=2, head_dim=4)))  # A learned bias and a memory.

    @pytest.mark.faults
    def test_gradients_of_other_blocks_are_the_same(self):
        self.check(
            ("llama_tiny", dict(num_layers=1, num_kv_heads=1, head_dim=4)),  # Rotary positions.
            ("gpt2", dict(num_layers=1, attention="lean")),
            ("albert_base_v2", dict(embedding_size=4)),  # The same block used twice.
        )

    def check(self, *cases):
        for name, sizes in cases:
            count, plain = self.gradients(name, False, **sizes)
            twice, recomputed = self.gradients(name, True, **sizes)
            self.assertEqual(twice, 2 * count, name)
            for one, two in zip(plain, recomputed, strict=True):
                self.assertLess(relative_error(two, one), 1e-5, name)

    def test_a_family_of_other_blocks_refuses(self):
        with self.assertRaisesRegex(UserError, "remat='block': reformer's blocks cannot be recomputed"):
            tfzoo.build("reformer_crime_and_punishment").recompute_blocks()


if __name__ == "__main__":
    tf.test.main()
