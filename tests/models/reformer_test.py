"""Reformer's inputs and heads, a training step, and published sizes; the golden files check its values."""

from typing import Any

import numpy as np
import tensorflow as tf

from tests.nn.formulas import randomize, relative_error
from tfzoo import config as config_lib
from tfzoo.models import costs, reformer

SMALL: dict[str, Any] = dict(vocab_size=13, hidden_size=12, num_layers=3, num_heads=2, head_dim=4, intermediate_size=20)
SMALL |= dict(attention_layers=["lsh", "local", "lsh"], lsh_chunk_length=4, local_chunk_length=4, num_hashes=2)
SMALL |= dict(num_buckets=[4], axial_shape=[4, 8], axial_dims=[4, 8], max_positions=32)
LENGTHS = np.array([[14], [9], [3]])


def small(heads=("lm",), dtype=None, **overrides):
    model = reformer.Model(config_lib.from_mapping(SMALL | overrides, reformer.Config), heads=heads, dtype=dtype)
    randomize(model, scale=0.2)
    return model


def inputs():
    random = np.random.default_rng(0)
    return {
        "token_ids": random.integers(0, 13, [3, 14]).astype(np.int32),
        "padding_mask": np.arange(14) < LENGTHS,
        "rotations.0": random.normal(0, 1, [2, 4, 2, 2]).astype(np.float32),
        "rotations.1": random.normal(0, 1, [2, 4, 2, 2]).astype(np.float32),
    }


class ForwardTest(tf.test.TestCase):
    def test_both_streams_and_every_head(self):
        outputs = small(("lm", "classify", "tag", "span"), causal=False)(inputs())
        shapes = {name: tuple(x.shape) for name, x in outputs.items()}
        expected = dict(sequence=(3, 14, 24), logits=(3, 14, 13), classify_logits=(3, 2), tag_logits=(3, 14, 2))
        self.assertEqual(shapes, expected | dict(span_logits=(3, 14, 2)))

    def test_padding_does_not_change_real_positions(self):
        model, features = small(causal=False), inputs()
        real = features["padding_mask"]
        outputs = model(features)
        changed = features | {"token_ids": np.where(real, features["token_ids"], 11)}
        self.assertAllClose(model(changed)["logits"][real], outputs["logits"][real], 1e-6, 1e-6)

    def test_each_layer_takes_its_own_rotations(self):
        model, features = small(), inputs()
        expected = model(features)["sequence"]
        for name in ("rotations.0", "rotations.1"):
            changed = features | {name: -features[name][..., ::-1].copy()}
            self.assertNotAllClose(model(changed)["sequence"], expected)
            del changed[name]
            self.assertNotAllClose(model(changed)["sequence"], expected)
        with self.assertRaisesRegex(ValueError, "unknown input 'rotations.2'; the model takes .*rotations.1"):
            model(features | {"rotations.2": features["rotations.0"]})

    def test_logits_at_masked_positions_are_those_of_all_positions(self):
        model, features = small(causal=False), inputs()
        positions = np.array([[6, 0], [3, 3], [0, 0]], np.int32)
        expected = model(features)["logits"].numpy()[np.arange(3)[:, None], positions]
        self.assertLess(relative_error(model(features | {"masked_positions": positions})["logits"], expected), 1e-6)

    def test_too_long_an_input_is_refused(self):
        with self.assertRaisesRegex(ValueError, "length 33 exceeds the 32 positions"):
            small()({"token_ids": np.zeros((1, 33), np.int32)})

    def test_half_precision_stays_near(self):
        # Within one chunk, where no token can fall into another bucket.
        features = {"token_ids": inputs()["token_ids"][:, :4]}
        exact = small()
        for dtype, tolerance in (("mixed_bfloat16", 0.05), ("mixed_float16", 0.01)):
            model = small(dtype=dtype)
            model.set_weights(exact.get_weights())
            outputs = model(features)
            self.assertEqual(outputs["sequence"].dtype, dtype.removeprefix("mixed_"))
            self.assertEqual(outputs["logits"].dtype, "float32")
            self.assertLess(relative_error(outputs["logits"], exact(features)["logits"].numpy()), tolerance)


class TrainingTest(tf.test.TestCase):
    def test_a_step_reaches_every_weight(self):
        model = small(mlp_chunk_length=8, dropout=0.1)
        token_ids = tf.constant(inputs()["token_ids"])

        @tf.function(input_signature=[tf.TensorSpec((None, 14), tf.int32)])
        def step(token_ids):
            with tf.GradientTape() as tape:
                logits = model({"token_ids": token_ids}, training=True)["logits"]
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(token_ids[:, 1:], logits[:, :-1])
                loss = tf.reduce_mean(losses)
            variables = [variable.value for variable in model.trainable_variables]
            gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, variables)]
            for variable, gradient in zip(variables, gradients, strict=True):
                variable.assign_sub(0.05 * gradient)
            return loss, [tf.reduce_max(tf.abs(gradient)) for gradient in gradients]

        losses, largest = zip(*(step(token_ids) for _ in range(30)), strict=True)
        self.assertTrue(all(np.array(largest[0]) > 0))
        self.assertLess(np.mean(losses[-5:]), 0.8 * np.mean(losses[:5]))

    def test_evaluation_repeats_itself_and_training_does_not(self):
        model, features = small(), {"token_ids": inputs()["token_ids"]}
        self.assertAllEqual(model(features)["logits"], model(features)["logits"])
        self.assertNotAllEqual(model(features, training=True)["logits"], model(features, training=True)["logits"])


class SizesTest(tf.test.TestCase):
    def test_parameters_are_those_of_the_released_models(self):
        # Counted in transformers 5.23's ReformerModelWithLMHead with the released config.json, on PyTorch's meta
        # device.
        published = {"reformer_crime_and_punishment": 2_748_224, "reformer_enwik8": 149_182_722}
        self.assertEqual(list(reformer.CONFIGS), list(published))
        for name, count in published.items():
            config = config_lib.from_mapping(reformer.CONFIGS[name], reformer.Config)
            self.assertEqual(costs.count_parameters(costs.lay_out(reformer, config)), count, name)


class ConfigTest(tf.test.TestCase):
    def test_the_number_of_buckets_there_and_back(self):
        for stored, factors in ((None, []), (4, [4]), ([4, 6], [4, 6])):
            self.assertEqual(reformer.decode_config({"num_buckets": stored}), {"num_buckets": factors})
            config = config_lib.from_mapping(SMALL | {"num_buckets": factors}, reformer.Config)
            self.assertEqual(reformer.encode_config(config)["num_buckets"], stored)


if __name__ == "__main__":
    tf.test.main()
