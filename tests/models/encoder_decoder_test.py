"""T5, BART and the 2017 Transformer: each compared with float64 formulas, and its distinguishing features."""

import functools
import json
import pathlib
import shutil

import numpy as np
import tensorflow as tf

import tfzoo
from tests.helpers import temporary_folder
from tests.nn import formulas
from tests.nn.formulas import Values, randomize, relative_error
from tfzoo import models
from tfzoo.config import from_mapping
from tfzoo.errors import UserError
from tfzoo.models import bart, t5, transformer
from tfzoo.weights import huggingface
from tfzoo.weights.table import is_state, relative_path

GOLDEN = pathlib.Path(__file__).parents[1] / "assets" / "golden"
SIZES = dict(vocab_size=19, hidden_size=12, num_layers=2, num_decoder_layers=1, num_heads=3, intermediate_size=20)
SMALL = {
    # Few buckets, so that short rows reach buckets that several distances share.
    "t5_small": SIZES | dict(head_dim=6, relative_buckets=8, relative_distance=6),
    "t5_v1_1_small": SIZES | dict(head_dim=6, relative_buckets=8, relative_distance=6, num_decoder_layers=3),
    "bart_base": SIZES | dict(max_positions=11),
    "mbart_large_cc25": SIZES | dict(max_positions=11),
    "transformer_base": SIZES | dict(max_positions=11),
}
MARIAN = dict(positions="sinusoidal_concat", activation="silu", norm_epsilon=1e-5)


@functools.cache
def small(name, heads=None, **overrides):
    model = tfzoo.build(name, heads=heads, num_labels=4, **SMALL[name] | overrides)
    randomize(model, scale=0.2)
    for variable in model.non_trainable_variables:
        if not is_state(variable):
            variable.assign(np.random.default_rng(1).normal(0, 1, variable.shape))
    return model


def inputs(seed=0):
    random = np.random.default_rng(seed)
    return {
        "token_ids": random.integers(0, 19, [3, 8]).astype(np.int32),
        "padding_mask": np.arange(8) < np.array([[8], [5], [2]]),
        "decoder_token_ids": random.integers(0, 19, [3, 6]).astype(np.int32),
        "decoder_padding_mask": np.arange(6) < np.array([[4], [6], [1]]),
    }


def relative_bias(v, stack, length, config):
    """Raffel et al. 2020, section 2.1: [1, H, L, L], one scalar for each head and bucket."""
    table = v(stack.relative_bias.embeddings)
    buckets = [
        [
            formulas.relative_bucket(key - query, stack.causal, config.relative_buckets, config.relative_distance)
            for key in range(length)
        ]
        for query in range(length)
    ]
    return table[np.array(buckets)].transpose(2, 0, 1)[None]


def numpy_model(model, features):
    """Vaswani et al. 2017, section 3.1, with the blocks that the config specifies."""
    v, config = Values(model), model.config
    seen = features["padding_mask"][:, None, None, :]

    def tower(tower, token_ids, mask, **kwargs):
        length = token_ids.shape[1]
        if config.positions == "relative":
            kwargs["bias"] = relative_bias(v, tower.stack, length, config)
        x = formulas.embeddings(v, tower.embeddings, config, token_ids)
        return formulas.stack(v, tower.stack, x, config, mask, **kwargs)

    memory = tower(model.encoder, features["token_ids"], seen)
    causal = np.tril(np.ones([6, 6], bool)) & features["decoder_padding_mask"][:, None, None, :]
    sequence = tower(model.decoder, features["decoder_token_ids"], causal, memory=memory, memory_mask=seen)
    return {"memory": memory, "sequence": sequence}


class FormulasTest(tf.test.TestCase):
    def test_equals_a_numpy_encoder_decoder(self):
        for name, overrides in [*((name, {}) for name in SMALL), ("transformer_base", MARIAN)]:
            model, features = small(name, **overrides), inputs()
            expected, outputs = numpy_model(model, features), model(features)
            self.assertEqual(sorted(outputs), ["logits", "memory", "sequence"])
            real = {"memory": features["padding_mask"], "sequence": features["decoder_padding_mask"]}
            for output, rows in real.items():
                error = relative_error(outputs[output][rows], expected[output][rows])
                self.assertLess(error, 2e-5, (name, overrides, output))

    def test_the_number_of_layers_may_differ(self):
        for layers, expected in ((3, 3), (0, 2)):
            model = small("bart_base", num_decoder_layers=layers)
            self.assertEqual((len(model.encoder.stack.blocks), len(model.decoder.stack.blocks)), (2, expected))


class FlowTest(tf.test.TestCase):
    """Checks which tokens each token depends on, in each family."""

    def test_a_position_sees_no_later_one_of_the_decoder_and_all_of_the_encoder(self):
        for name in SMALL:
            model, features = small(name), inputs()
            del features["padding_mask"], features["decoder_padding_mask"]
            before = model(features)
            features["decoder_token_ids"][:, 3] = (features["decoder_token_ids"][:, 3] + 1) % 19
            after = model(features)
            self.assertAllEqual(after["memory"], before["memory"])
            self.assertAllClose(after["logits"][:, :3], before["logits"][:, :3], atol=1e-5, msg=name)
            change = np.abs(after["sequence"] - before["sequence"]).max(-1)
            self.assertGreater(change[:, 3:].min(), 1e-4, name)
            features["token_ids"][:, 7] = (features["token_ids"][:, 7] + 1) % 19
            again = model(features)
            self.assertGreater(np.abs(again["memory"] - after["memory"]).max(-1).min(), 1e-5, name)
            self.assertGreater(np.abs(again["sequence"] - after["sequence"]).max(-1).min(), 1e-6, name)

    def test_padding_of_either_side_does_not_matter(self):
        for name in SMALL:
            model, features = small(name), inputs()
            outputs = model(features)
            changed = {key: np.array(x) for key, x in features.items()}
            for side in ("", "decoder_"):
                mask = features[f"{side}padding_mask"]
                changed[f"{side}token_ids"] = np.where(mask, features[f"{side}token_ids"], 7)
            again = model(changed)
            real, decoded = features["padding_mask"], features["decoder_padding_mask"]
            self.assertAllEqual(again["memory"][real], outputs["memory"][real])
            self.assertAllEqual(again["logits"][decoded], outputs["logits"][decoded])
            row = {"token_ids": features["token_ids"][1:2, :5], "decoder_token_ids": features["decoder_token_ids"][1:2]}
            alone = model(row)
            self.assertLess(relative_error(alone["memory"], outputs["memory"][1:2, :5]), 1e-5, name)
            self.assertLess(relative_error(alone["logits"], outputs["logits"][1:2]), 1e-5, name)

    def test_decoding_from_a_memory_is_the_second_half_of_the_model(self):
        model, features = small("bart_base"), inputs()
        outputs = model(features)
        memory = model.encode(features)
        self.assertAllClose(memory, outputs["memory"])
        self.assertAllClose(model.decode(features, memory), outputs["sequence"])


class T5Test(tf.test.TestCase):
    def test_scores_are_not_scaled(self):
        model = small("t5_small")
        layer, x = model.encoder.stack.blocks[0].attention, np.random.default_rng(0).normal(0, 1, [2, 5, 12])
        actual = layer(tf.constant(x, tf.float32))
        v = Values(layer)
        self.assertLess(relative_error(actual, formulas.multi_head_attention(v, layer, x, scale=1.0)), 1e-5)
        self.assertGreater(relative_error(actual, formulas.multi_head_attention(v, layer, x)), 1e-2)

    def test_a_tied_head_divides_by_the_root_of_the_hidden_size_and_another_does_not(self):
        for name in ("t5_small", "t5_v1_1_small"):
            model = small(name)
            outputs, v = model(inputs()), Values(model)
            sequence = outputs["sequence"].numpy().astype(np.float64)
            if name == "t5_small":
                expected = sequence @ v(model.tokens.embeddings).T / np.sqrt(12)
            else:
                expected = sequence @ v(model.heads["lm"].dense.kernel)
            self.assertLess(relative_error(outputs["logits"], expected), 1e-5, name)

    def test_each_stack_has_biases_of_its_own_for_all_its_layers(self):
        model = small("t5_small")
        before = model(inputs())
        tables = {relative_path(w) for w in model.weights if "relative_bias" in w.path}
        self.assertEqual(tables, {f"{stack}/stack/relative_bias/embeddings" for stack in ("encoder", "decoder")})
        table = model.decoder.stack.relative_bias.embeddings
        kept = table.numpy()
        table.assign(kept + np.random.default_rng(0).normal(0, 1, table.shape))
        after = model(inputs())
        table.assign(kept)
        self.assertAllEqual(after["memory"], before["memory"])
        self.assertGreater(np.abs(after["sequence"] - before["sequence"]).max(), 1e-3)

    def test_only_distances_matter(self):
        model, features = small("t5_small"), inputs()
        memory = model(features)["memory"]
        moved = features | {
            "token_ids": np.pad(features["token_ids"], [[0, 0], [3, 0]], constant_values=4),
            "padding_mask": np.pad(features["padding_mask"], [[0, 0], [3, 0]]),
        }
        real = features["padding_mask"]
        self.assertLess(relative_error(model(moved)["memory"][:, 3:][real], memory[real]), 1e-5)

    def test_no_layer_has_a_bias(self):
        model = small("t5_v1_1_small")
        self.assertEqual([w.path for w in model.weights if w.name in ("bias", "beta", "positions", "segments")], [])

    def test_hugging_faces_words_for_the_mlp_and_the_output(self):
        for name in t5.CONFIGS:
            config = models.find(name)[1]
            record = t5.encode_config(config) | {"model_type": "t5"}
            self.assertEqual(record["num_decoder_layers"], config.num_layers)
            for field, value in t5.decode_config(record).items():
                self.assertEqual(getattr(config, field), value, (name, field))
        self.assertEqual(record["feed_forward_proj"], "gated-gelu")
        # Fields that the first files omit, and fields that transformers 5 writes for version 1.1.
        first = t5.decode_config({"model_type": "t5"})
        self.assertEqual(first, {"activation": "relu", "gated_mlp": False, "tie_embeddings": True})
        newer = {"model_type": "t5", "tie_word_embeddings": True, "scale_decoder_outputs": False}
        self.assertFalse(t5.decode_config(newer)["tie_embeddings"])
        self.assertFalse(t5.decode_config({"model_type": "mt5", "tie_word_embeddings": True})["tie_embeddings"])
        with self.assertRaisesRegex(UserError, "activation 'gelu' .* supports only relu, gated-gelu, gated-silu"):
            t5.encode_config(from_mapping(SIZES | dict(activation="gelu")))


class BartTest(tf.test.TestCase):
    def test_positions_begin_at_the_third_row(self):
        model, features = small("bart_base"), inputs()
        for tower, name in ((model.encoder, "token_ids"), (model.decoder, "decoder_token_ids")):
            table = tower.embeddings.positions
            self.assertEqual(table.shape, (11 + 2, 12))
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(model(features)["logits"] ** 2)
            gradient = tf.convert_to_tensor(tape.gradient(loss, table.value))
            length = features[name].shape[1]
            used = np.abs(gradient).max(-1) > 0
            self.assertAllEqual(used, (np.arange(13) >= 2) & (np.arange(13) < 2 + length), name)

    def test_the_bias_of_the_logits_is_added_and_not_trained(self):
        for name in ("bart_base", "transformer_base"):
            model = small(name)
            outputs, v = model(inputs()), Values(model)
            bias = model.heads["lm"].bias
            expected = outputs["sequence"].numpy() @ v(model.tokens.embeddings).T + v(bias)
            self.assertLess(relative_error(outputs["logits"], expected), 1e-5, name)
            self.assertNotIn(bias.path, [w.path for w in model.trainable_variables])
            fresh = tfzoo.build(name, **SMALL[name])
            self.assertAllEqual(fresh.heads["lm"].bias, np.zeros(19))

    def test_a_text_is_classified_by_the_decoders_last_token(self):
        model, features = small("bart_base", heads=("classify",)), inputs()
        outputs, v, head = model(features), Values(model), model.heads["classify"]
        last = outputs["sequence"].numpy()[np.arange(3), [3, 5, 0]]
        expected = formulas.dense(v, head.dense, np.tanh(formulas.dense(v, head.hidden, last)))
        self.assertLess(relative_error(outputs["classify_logits"], expected), 1e-5)

    def test_mbart_has_a_norm_before_each_sublayer_after_each_stack_and_on_the_embeddings(self):
        for name, last in (("bart_base", False), ("mbart_large_cc25", True)):
            model = small(name)
            for tower in (model.encoder, model.decoder):
                self.assertEqual(tower.stack.norm is not None, last, name)
                self.assertIsNotNone(tower.embeddings.norm)
        config = models.find("mbart_large_cc25")[1]
        self.assertTrue(config.norm_first and config.scale_embeddings)

    def test_a_decoder_of_other_sizes_is_refused(self):
        folder = temporary_folder(self) / "bart"
        for change, message in (
            ({"decoder_attention_heads": 4}, "decoder_attention_heads is 4, but encoder_attention_heads is 2"),
            ({"decoder_ffn_dim": 32}, "decoder_ffn_dim is 32, but encoder_ffn_dim is 24"),
            ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ):
            shutil.copytree(GOLDEN / "bart", folder, dirs_exist_ok=True)
            record = json.loads((folder / "config.json").read_text()) | change
            (folder / "config.json").write_text(json.dumps(record))
            with self.assertRaisesRegex(UserError, f"config.json: {message}"):
                huggingface.load(folder)

    def test_the_decoders_sizes_are_written_out(self):
        config = models.find("bart_large")[1]
        self.assertEqual(
            bart.encode_config(config),
            {"decoder_layers": 12, "decoder_attention_heads": 16, "decoder_ffn_dim": 4096},
        )


class TransformerTest(tf.test.TestCase):
    def test_embeddings_are_scaled_and_positions_are_the_papers(self):
        model, features = small("transformer_base"), inputs()
        table = model.tokens.embeddings.numpy().astype(np.float64)
        for tower, name in ((model.encoder, "token_ids"), (model.decoder, "decoder_token_ids")):
            expected = table[features[name]] * np.sqrt(12)
            for position in range(expected.shape[1]):
                for i in range(6):  # Section 3.5.
                    expected[:, position, 2 * i] += np.sin(position / 10000 ** (2 * i / 12))
                    expected[:, position, 2 * i + 1] += np.cos(position / 10000 ** (2 * i / 12))
            self.assertLess(relative_error(tower.embeddings(features[name]), expected), 1e-6, name)

    def test_one_matrix_learns_from_the_encoder_the_decoder_and_the_output(self):
        model = small("transformer_base")
        shapes = [tuple(w.shape) for w in model.trainable_variables]
        self.assertEqual(shapes.count((19, 12)), 1)
        features = {"token_ids": np.full([1, 4], 3), "decoder_token_ids": np.full([1, 4], 5)}
        with tf.GradientTape() as tape:
            loss = model(features)["logits"][0, 0, 8]
        gradient = tf.convert_to_tensor(tape.gradient(loss, model.tokens.embeddings.value))
        self.assertAllEqual(np.nonzero(np.abs(gradient).max(-1) > 0)[0], [3, 5, 8])

    def test_a_file_says_how_its_sinusoids_lie(self):
        for overrides, kind in (({}, "transformer"), (MARIAN, "marian")):
            model, features = small("transformer_base", **overrides), inputs()
            folder = temporary_folder(self) / kind
            huggingface.save(model, folder)
            self.assertEqual(json.loads((folder / "config.json").read_text())["model_type"], kind)
            again, _ = huggingface.load(folder)
            self.assertEqual(again.config.positions, model.config.positions)
            self.assertAllEqual(again(features)["logits"], model(features)["logits"])

    def test_the_papers_sizes(self):
        # Parameters from table 3, in millions; the tolerance covers the vocabulary of "about 37000" and biases.
        for name, millions in {"transformer_base": 65, "transformer_big": 213}.items():
            config = transformer.CONFIGS[name]
            e, f = config["hidden_size"], config["intermediate_size"]
            attention, mlp, norm = 4 * e * (e + 1), 2 * e * f + e + f, 2 * e
            count = 6 * (3 * attention + 2 * mlp + 5 * norm) + config["vocab_size"] * e
            self.assertNear(count / 1e6, millions, 0.03 * millions, name)
