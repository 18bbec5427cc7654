"""What every family inherits: named inputs and outputs, heads, and what each token may depend on."""

from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from tests.nn import formulas
from tests.nn.formulas import Values, randomize, relative_error
from tfzoo import config as config_lib
from tfzoo import nn
from tfzoo.config import TransformerConfig
from tfzoo.errors import UserError

VOCAB, LENGTHS = 13, np.array([[7], [4], [1]])
REAL = np.arange(7) < LENGTHS


def config(**overrides):
    sizes = dict(vocab_size=VOCAB, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=12, max_positions=9)
    return TransformerConfig(**sizes | dict(norm_epsilon=1e-5) | overrides)


def ids(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, shape).astype(np.int32)


def made(cls, heads=None, seed=0, arguments=None, **overrides):
    model = cls(config(**overrides), heads=heads, name="model", **arguments or {})
    randomize(model, seed, 0.2)
    return model


class Encoder(nn.EncoderModel):
    HEADS = ("lm", "next_sentence", "classify", "tag", "span", "relation", "discriminate")
    POOLER, POOL = True, "pooled"


CAUSAL: tuple[dict[str, Any], ...] = (
    dict(),
    dict(norm_first=True, positions="rotary", norm="rms", num_kv_heads=1, gated_mlp=True, biases="none"),
    dict(positions="relative", scale_scores=False, window=3),
    dict(norm_first=True, parallel_blocks=True, positions="none"),
)


class ChoicesTest(tf.test.TestCase):
    """Each choice of a config changes the model: no two choices give the same layers, weights, initial values and
    outputs.
    """

    NEEDED = {"near": dict(positions="relative")}  # Fields that a choice requires.

    def built(self, **overrides):
        """Returns everything that distinguishes one model from another."""
        chosen = config(**overrides)
        if repr(chosen) not in self.models:
            keras.utils.set_random_seed(0)
            model = nn.EncoderDecoderModel(chosen, name="model")
            outputs = model({"token_ids": ids(2, 9), "decoder_token_ids": ids(2, 7, seed=1)})["logits"].numpy()
            self.assertTrue(np.isfinite(outputs).all(), overrides)
            weights = [(v.path, v.numpy().tolist()) for v in model.variables]
            self.models[repr(chosen)] = [*map(type, model._flatten_layers())], weights, outputs.tolist()
        return self.models[repr(chosen)]

    def test_every_choice_has_a_home(self):
        self.models = {}
        for field, choices in config_lib.CHOICES.items():
            self.assertIn(getattr(config(), field), choices)
            for choice in choices:
                needed = self.NEEDED.get(choice, {})
                signature = self.built(**{field: choice}, **needed)
                for other in choices:
                    if other != choice and self.NEEDED.get(other, needed) == needed:
                        self.assertNotEqual(signature, self.built(**{field: other}, **needed), (field, choice, other))


class InputsTest(tf.test.TestCase):
    def test_unknown_and_missing_are_named(self):
        model, values = made(nn.DecoderModel), {"token_ids": ids(3, 7)}
        with self.assertRaisesRegex(ValueError, "unknown input 'input_ids'; the model takes token_ids, padding_mask,"):
            model(values | {"input_ids": ids(3, 7)})
        with self.assertRaisesRegex(ValueError, "unknown input 'segment_ids'"):
            model(values | {"segment_ids": ids(3, 7)})
        with self.assertRaisesRegex(ValueError, "'token_ids' is missing"):
            model({"padding_mask": REAL})
        with self.assertRaisesRegex(ValueError, "'decoder_token_ids' is missing"):
            made(nn.EncoderDecoderModel)(values)

    def test_two_entities_need_their_positions(self):
        model = made(nn.EncoderModel, ("relation",))
        with self.assertRaisesRegex(ValueError, "'entity_positions' is missing"):
            model({"token_ids": ids(3, 7)})
        outputs = model({"token_ids": ids(3, 7), "entity_positions": np.array([[0, 1], [2, 0], [3, 3]])})
        self.assertEqual(outputs["relation_logits"].shape, (3, 2))


class HeadsTest(tf.test.TestCase):
    def test_unknown_heads_and_pools_are_named(self):
        with self.assertRaisesRegex(UserError, "head 'clasify': model has no such head .did you mean classify.*lm, "):
            made(nn.EncoderModel, ("clasify",))
        with self.assertRaisesRegex(UserError, "head 'next_sentence': model has no such head.*it has lm, classify"):
            made(nn.DecoderModel, ("lm", "next_sentence"))
        with self.assertRaisesRegex(UserError, "pool 'middle': model has no such pool.*it has first, last, mean"):
            made(nn.EncoderModel, ("classify",), arguments={"pool": "middle"})
        with self.assertRaisesRegex(UserError, "pool 'pooled': model has no such pool"):
            made(nn.EncoderModel, ("classify",), arguments={"pool": "pooled"})

    def test_names_and_shapes(self):
        values = {"token_ids": ids(3, 7), "padding_mask": REAL}
        shapes = dict(lm=(3, 7, VOCAB), next_sentence=(3, 2), classify=(3, 5), tag=(3, 7, 5), span=(3, 7, 2))
        shapes |= dict(relation=(3, 5), discriminate=(3, 7))
        model = made(Encoder, tuple(shapes), arguments={"num_labels": 5})
        outputs = model(values | {"entity_positions": np.zeros([3, 2], np.int32)})
        expected = {("logits" if head == "lm" else f"{head}_logits"): shape for head, shape in shapes.items()}
        expected |= {"sequence": (3, 7, 8), "pooled": (3, 8)}
        self.assertEqual({name: tuple(value.shape) for name, value in outputs.items()}, expected)
        for name in expected.keys() - {"sequence", "pooled"}:
            self.assertEqual(outputs[name].dtype, "float32")

        self.assertEqual(made(nn.EncoderModel)(values).keys(), {"sequence", "logits"})
        self.assertEqual(made(nn.EncoderModel, ())(values).keys(), {"sequence"})

    def test_a_pooler_where_it_is_read(self):
        for heads, pool, there in (
            ((), None, True),
            (("next_sentence",), None, True),
            (("classify",), None, True),
            (("classify",), "mean", False),
            (("lm", "tag"), None, False),
        ):
            model = made(Encoder, heads, arguments={"pool": pool})
            self.assertEqual(model.pooler is not None, there, heads)
            outputs = model({"token_ids": ids(3, 7)})
            self.assertEqual("pooled" in outputs, there)

    def test_classify_reads_what_pool_says(self):
        values = {"token_ids": ids(3, 7), "padding_mask": REAL}
        for pool in ("first", "last", "mean"):
            model = made(nn.EncoderModel, ("classify",), arguments={"pool": pool})
            outputs = model(values)
            sequence = outputs["sequence"].numpy().astype(np.float64)
            vector = {
                "first": sequence[:, 0],
                "last": sequence[np.arange(3), LENGTHS[:, 0] - 1],
                "mean": np.stack([row[:n].mean(0) for row, n in zip(sequence, LENGTHS[:, 0], strict=True)]),
            }[pool]
            expected = formulas.dense(Values(model), model.heads["classify"].dense, vector)
            self.assertLess(relative_error(outputs["classify_logits"], expected), 1e-5)

    def test_every_layer_is_built_with_the_model(self):
        """Otherwise seeds would be created inside a step, too late for checkpoints."""
        for cls in (Encoder, nn.EncoderModel, nn.DecoderModel, nn.EncoderDecoderModel):
            heads, size = list(cls.HEADS), 6 if issubclass(cls, nn.EncoderModel) else 0
            with mock.patch.object(cls, "call", side_effect=AssertionError):  # The model is not run.
                model = made(cls, heads, dropout=0.5, attention_dropout=0.5, qk_norm=True, embedding_size=size)
            self.assertEqual([layer.path for layer in model._flatten_layers() if not layer.built], [])
            values = {name: ids(3, 7) for name in model.REQUIRED_INPUTS}
            if "relation" in heads:
                values["entity_positions"] = np.zeros([3, 2], np.int32)
            before = [id(variable) for variable in model.variables]
            model(values, training=True)
            self.assertEqual([id(variable) for variable in model.variables], before)
            paths = [variable.path for variable in model.variables]
            self.assertLen(set(paths), len(paths))
            self.assertTrue(all(path.startswith("model/") for path in paths))

    def test_no_two_matrices_begin_alike(self):
        model = nn.EncoderDecoderModel(config(gated_mlp=True))
        matrices = [w for w in model.trainable_weights if len(w.shape) == 2]
        for i, one in enumerate(matrices):
            for two in matrices[:i]:
                if one.shape == two.shape:
                    self.assertLess(np.mean(one.numpy() == two.numpy()), 0.1, (one.path, two.path))


class AlikeTest(tf.test.TestCase):
    def test_attention_may_begin_as_one_matrix(self):
        model = Encoder(config(attention_initializer="alike"))
        attention = model.encoder.stack.blocks[0].attention
        for layer in (attention.key, attention.value, attention.output_projection):
            self.assertAllEqual(layer.kernel, attention.query.kernel)
        grouped = Encoder(config(attention_initializer="alike", num_kv_heads=1)).encoder.stack.blocks[0].attention
        self.assertAllEqual(grouped.key.kernel, grouped.value.kernel)
        self.assertNotAllEqual(attention.query.kernel, model.encoder.stack.blocks[0].mlp.up.kernel[:, :8])

    def test_cross_attention_may_begin_as_one_matrix(self):
        choices = dict(attention_initializer="cross_alike", initializer="fan_in", scale_scores=False)
        block = nn.EncoderDecoderModel(config(**choices)).decoder.stack.blocks[0]
        cross, own = block.cross_attention, block.attention
        self.assertAllEqual(cross.key.kernel, cross.value.kernel)
        self.assertAllClose(cross.query.kernel, cross.key.kernel / 2, 1e-6)  # Heads of 4: initial scores are scaled.
        self.assertNotAllClose(own.key.kernel, own.value.kernel)


class InitializerTest(tf.test.TestCase):
    """Checks standard deviations to 5%: with the smallest sample, 4,096 numbers, 1 in 1,000 deviates by 3.6%."""

    def deviations(self, model, **expected):
        for name, deviation in expected.items():
            weights = [w for w in model.trainable_weights if w.path.endswith(name)]
            self.assertNotEmpty(weights, name)
            for weight in weights:
                self.assertAllClose(np.std(weight.numpy()), deviation, rtol=0.05, msg=weight.path)

    def made(self, cls, **overrides):
        sizes = dict(vocab_size=500, hidden_size=64, num_layers=2, intermediate_size=256, max_positions=100)
        return cls(config(**sizes, num_heads=4, **overrides))

    def test_normal_is_truncated_at_two_deviations(self):
        model = self.made(nn.DecoderModel, initializer_range=0.1)
        truncated = 0.1 * 0.8796  # The deviation of the standard normal distribution truncated at 2.
        self.deviations(
            model,
            **{"tokens/embeddings": truncated, "positions": truncated, "kernel": truncated},
        )

    def test_what_is_added_to_the_residuals_is_scaled_by_their_number(self):
        # Radford et al. 2019, section 2.3: 1 / sqrt(N) for N residual layers, two in each tfzoo layer.
        model = self.made(nn.DecoderModel, initializer="scaled_residual", initializer_range=0.1)
        self.deviations(
            model,
            **{"tokens/embeddings": 0.1, "positions": 0.1, "query/kernel": 0.1, "value/kernel": 0.1, "up/kernel": 0.1},
            **{"output/kernel": 0.1 / 2, "down/kernel": 0.1 / 2},
        )

    def test_by_the_number_of_inputs(self):
        # T5's, from https://github.com/tensorflow/mesh, transformer/attention.py and layers.py.
        model = self.made(nn.EncoderDecoderModel, initializer="fan_in", scale_scores=False, tie_embeddings=False)
        self.deviations(
            model,
            **{"tokens/embeddings": 1.0, "query/kernel": 64**-0.5 * 16**-0.5, "key/kernel": 64**-0.5},
            **{"up/kernel": 64**-0.5, "down/kernel": 256**-0.5, "dense/kernel": 64**-0.5},
        )
        scaled = self.made(nn.EncoderDecoderModel, initializer="fan_in")
        self.deviations(scaled, **{"query/kernel": 64**-0.5})


class DecoderTest(tf.test.TestCase):
    def test_equals_the_formulas(self):
        for overrides in (dict(norm_first=True, num_layers=2), dict(num_kv_heads=1, head_dim=6, tie_embeddings=False)):
            model, values = made(nn.DecoderModel, **overrides), {"token_ids": ids(3, 7), "padding_mask": REAL}
            c, v = model.config, Values(model)
            x = formulas.embeddings(v, model.decoder.embeddings, c, values["token_ids"])
            mask = np.tril(np.ones([7, 7], bool)) & REAL[:, None, None]
            sequence = formulas.stack(v, model.decoder.stack, x, c, mask)
            head = model.heads["lm"]
            matrix = v(model.tokens.embeddings).T if c.tie_embeddings else v(head.dense.kernel)
            outputs = model(values)
            self.assertLess(relative_error(outputs["sequence"], sequence), 1e-5)
            self.assertLess(relative_error(outputs["logits"], sequence @ matrix), 1e-5)

    def test_no_token_knows_those_after_it(self):
        for overrides in CAUSAL:
            model, tokens = made(nn.DecoderModel, num_layers=2, **overrides), ids(3, 7)
            logits = model({"token_ids": tokens})["logits"]
            for place in (1, 4, 6):
                changed = tokens.copy()
                changed[:, place:] = (changed[:, place:] + 5) % VOCAB
                again = model({"token_ids": changed})["logits"]
                self.assertAllEqual(again[:, :place], logits[:, :place], overrides)
                self.assertGreater(np.abs(again[:, place:] - logits[:, place:]).min(-1).max(), 1e-4)

    def test_a_window_forgets(self):
        model, tokens = made(nn.DecoderModel, window=3), ids(3, 7)
        sequence = model({"token_ids": tokens})["sequence"]
        tokens[:, 1] = (tokens[:, 1] + 5) % VOCAB
        same = np.all(model({"token_ids": tokens})["sequence"] == sequence, axis=(0, 2))
        self.assertAllEqual(same, [True, False, False, False, True, True, True])

    def test_padding_changes_nothing(self):
        for overrides in CAUSAL:
            model, tokens = made(nn.DecoderModel, **overrides), ids(3, 7)
            logits = model({"token_ids": tokens, "padding_mask": REAL})["logits"]
            changed = np.where(REAL, tokens, 11)
            again = model({"token_ids": changed, "padding_mask": REAL})["logits"]
            self.assertAllEqual(again[REAL], logits[REAL])
            alone = model({"token_ids": tokens[1:2, :4]})["logits"]
            self.assertLess(relative_error(alone[0], logits[1, :4].numpy()), 1e-5)

    def test_positions_of_ones_own(self):
        for positions in ("learned", "rotary"):
            model, tokens = made(nn.DecoderModel, positions=positions), ids(1, 4)
            logits = model({"token_ids": tokens})["logits"]
            padded = np.concatenate([ids(1, 3, seed=1), tokens], 1)  # Padded on the left, with matching positions.
            places = np.array([[0, 0, 0, 0, 1, 2, 3]])
            values = {"token_ids": padded, "padding_mask": np.arange(7)[None] >= 3, "position_ids": places}
            self.assertLess(relative_error(model(values)["logits"][:, 3:], logits.numpy()), 1e-5)

    def test_lengths_unknown_in_a_graph(self):
        for overrides in CAUSAL[1:3]:
            model, tokens = made(nn.DecoderModel, **overrides), ids(3, 7)
            spec = {
                "token_ids": tf.TensorSpec([None, None], tf.int32),
                "padding_mask": tf.TensorSpec([None, None], bool),
            }
            function = tf.function(lambda inputs: model(inputs)["logits"], input_signature=[spec])  # noqa: B023
            for length in (7, 2):
                values = {"token_ids": tokens[:, :length], "padding_mask": REAL[:, :length]}
                self.assertAllClose(function(values), model(values)["logits"], 1e-5, 1e-5)


class EncoderDecoderTest(tf.test.TestCase):
    def values(self):
        tokens = {"token_ids": ids(3, 7), "decoder_token_ids": ids(3, 5, seed=1)}
        return tokens | {"padding_mask": REAL, "decoder_padding_mask": np.arange(5) < np.array([[5], [5], [2]])}

    def test_shapes_and_sharing(self):
        model = made(nn.EncoderDecoderModel, num_layers=2, num_decoder_layers=3)
        outputs = model(self.values())
        shapes = {"memory": (3, 7, 8), "sequence": (3, 5, 8), "logits": (3, 5, VOCAB)}
        self.assertEqual({name: tuple(value.shape) for name, value in outputs.items()}, shapes)
        self.assertLen(model.encoder.stack.blocks, 2)
        self.assertLen(model.decoder.stack.blocks, 3)
        self.assertLen([w for w in model.weights if w.shape == (VOCAB, 8)], 1)
        self.assertLen(made(nn.EncoderDecoderModel, num_layers=2).decoder.stack.blocks, 2)

    def test_equals_the_formulas(self):
        values = self.values()
        for overrides in (
            dict(num_layers=2),
            dict(norm_first=True, norm="rms", biases="none", gated_mlp=True, scale_embeddings=True),
        ):
            model = made(nn.EncoderDecoderModel, **overrides)
            c, v, outputs = model.config, Values(model), model(values)
            x = formulas.embeddings(v, model.encoder.embeddings, c, values["token_ids"])
            padding = REAL[:, None, None]
            memory = formulas.stack(v, model.encoder.stack, x, c, padding)
            self.assertLess(relative_error(outputs["memory"], memory), 1e-5)
            x = formulas.embeddings(v, model.decoder.embeddings, c, values["decoder_token_ids"])
            mask = np.tril(np.ones([5, 5], bool)) & values["decoder_padding_mask"][:, None, None]
            sequence = formulas.stack(v, model.decoder.stack, x, c, mask, memory=memory, memory_mask=padding)
            self.assertLess(relative_error(outputs["sequence"], sequence), 2e-5)
            logits = sequence @ v(model.tokens.embeddings).T
            self.assertLess(relative_error(outputs["logits"], logits), 2e-5)

    def test_padding_in_the_memory_changes_nothing(self):
        for overrides in ({}, dict(norm_first=True, positions="relative", norm="rms")):
            model, values = made(nn.EncoderDecoderModel, **overrides), self.values()
            outputs = model(values)
            again = model(values | {"token_ids": np.where(REAL, values["token_ids"], 11)})
            self.assertAllEqual(again["logits"], outputs["logits"])
            self.assertAllEqual(again["memory"][REAL], outputs["memory"][REAL])
            alone = model(
                {"token_ids": values["token_ids"][1:2, :4], "decoder_token_ids": values["decoder_token_ids"][1:2]}
            )
            self.assertLess(relative_error(alone["logits"][0], outputs["logits"][1].numpy()), 1e-5)
            # A real token does change the result.
            changed = values["token_ids"].copy()
            changed[:, 0] = (changed[:, 0] + 5) % VOCAB
            self.assertGreater(
                np.abs(model(values | {"token_ids": changed})["logits"] - outputs["logits"]).min(-1).max(), 1e-4
            )

    def test_the_decoder_is_causal_and_the_encoder_is_not(self):
        model, values = made(nn.EncoderDecoderModel), self.values()
        outputs = model(values)
        changed = values["decoder_token_ids"].copy()
        changed[:, 3:] = (changed[:, 3:] + 5) % VOCAB
        again = model(values | {"decoder_token_ids": changed})
        self.assertAllEqual(again["sequence"][:, :3], outputs["sequence"][:, :3])
        changed = values["token_ids"].copy()
        changed[0, 6] = (changed[0, 6] + 5) % VOCAB
        again = model(values | {"token_ids": changed})
        self.assertTrue(np.all(np.any(again["memory"][0] != outputs["memory"][0], axis=-1)))

    def test_in_two_parts(self):
        model, values = made(nn.EncoderDecoderModel), self.values()
        memory = model.encode(values)
        self.assertAllEqual(memory, model(values)["memory"])
        self.assertAllEqual(model.decode(values, memory), model(values)["sequence"])


class PackedTest(tf.test.TestCase):
    """Two documents in one row give what each gives alone."""

    first, second = ids(2, 3, seed=5), ids(2, 4, seed=6)
    row = np.concatenate([first, second], 1)
    blocks, positions = np.tile([1] * 3 + [2] * 4, (2, 1)), np.tile([0, 1, 2, 0, 1, 2, 3], (2, 1))

    def test_one_tower(self):
        for cls in (Encoder, nn.DecoderModel):
            for overrides in (dict(), dict(positions="rotary"), dict(positions="relative"), dict(attention="lean")):
                model = made(cls, ("lm",), **overrides)
                packed = model({"token_ids": self.row, "document_ids": self.blocks, "position_ids": self.positions})
                self.assertAllClose(packed["logits"][:, :3], model({"token_ids": self.first})["logits"], atol=1e-6)
                self.assertAllClose(packed["logits"][:, 3:], model({"token_ids": self.second})["logits"], atol=1e-6)

    def test_two_towers(self):
        targets = [ids(2, 2, seed=7), ids(2, 5, seed=8)]
        for overrides in (dict(), dict(positions="relative"), dict(attention="lean")):
            model = made(nn.EncoderDecoderModel, **overrides)
            packed = {
                "token_ids": self.row,
                "document_ids": self.blocks,
                "position_ids": self.positions,
                "decoder_token_ids": np.concatenate(targets, 1),
                "decoder_document_ids": np.tile([1] * 2 + [2] * 5, (2, 1)),
                "decoder_position_ids": np.tile([0, 1, 0, 1, 2, 3, 4], (2, 1)),
            }
            logits = model(packed)["logits"]
            for source, target, part in ((self.first, targets[0], slice(0, 2)), (self.second, targets[1], slice(2, 7))):
                alone = model({"token_ids": source, "decoder_token_ids": target})["logits"]
                self.assertAllClose(logits[:, part], alone, atol=1e-6)


if __name__ == "__main__":
    tf.test.main()
