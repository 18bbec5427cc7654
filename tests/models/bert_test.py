"""BERT compared with a float64 NumPy BERT, its published sizes, and finding models by name."""

import keras
import numpy as np
import tensorflow as tf

import tfzoo
from tests.nn import formulas
from tests.nn.formulas import Values, randomize, relative_error
from tfzoo import models
from tfzoo.errors import UserError
from tfzoo.models import bert

SMALL = dict(vocab_size=13, hidden_size=12, num_layers=2, num_heads=3, intermediate_size=20, max_positions=9)


def small(dtype=None, **overrides):
    model = tfzoo.build("bert_tiny", dtype=dtype, **SMALL | overrides)
    randomize(model, scale=0.2)
    return model


def inputs(seed=0):
    random = np.random.default_rng(seed)
    lengths = np.array([[7], [4], [1]])
    return {
        "token_ids": random.integers(0, 13, [3, 7]).astype(np.int32),
        "segment_ids": random.integers(0, 2, [3, 7]).astype(np.int32),
        "padding_mask": np.arange(7) < lengths,
    }


def numpy_bert(model, features):
    """Computes BERT layer by layer (Devlin et al. 2019 and their released code)."""
    v, config, encoder, heads = Values(model), model.config, model.encoder, model.heads
    x = formulas.embeddings(v, encoder.embeddings, config, features["token_ids"], features.get("segment_ids"))
    mask = features["padding_mask"][:, None, None, :] if "padding_mask" in features else None
    sequence = formulas.stack(v, encoder.stack, x, config, mask)
    pooled = np.tanh(formulas.dense(v, model.pooler.dense, sequence[:, 0]))
    return {
        "sequence": sequence,
        "pooled": pooled,
        "logits": formulas.masked_lm(v, heads["lm"], sequence, config.activation),
        "next_sentence_logits": formulas.dense(v, heads["next_sentence"].dense, pooled),
    }


class ForwardTest(tf.test.TestCase):
    def test_equals_a_numpy_bert(self):
        for overrides in (
            {},
            dict(norm_first=True, positions="sinusoidal", activation="gelu_tanh", norm_epsilon=1e-5),
            dict(num_segments=0),
        ):
            model, features = small(**overrides), inputs()
            if not model.config.num_segments:
                del features["segment_ids"]
            for kept in (list(features), ["token_ids"]):
                some = {name: features[name] for name in kept}
                expected, outputs = numpy_bert(model, some), model(some)
                self.assertEqual(sorted(outputs), sorted(expected))
                for name in expected:
                    self.assertLess(relative_error(outputs[name], expected[name]), 2e-5, (overrides, name))

    def test_padding_does_not_change_real_positions(self):
        model, features = small(), inputs()
        outputs = model(features)
        changed = {name: np.array(x) for name, x in features.items()}
        changed["token_ids"] = np.where(features["padding_mask"], features["token_ids"], 11)
        changed["segment_ids"] = np.where(features["padding_mask"], features["segment_ids"], 1)
        again = model(changed)
        alone = model({name: x[1:2, :4] for name, x in features.items()})
        for name in ("sequence", "logits"):
            real = features["padding_mask"]
            self.assertAllEqual(again[name][real], outputs[name][real])
            self.assertLess(relative_error(alone[name][0], outputs[name][1, :4].numpy()), 1e-5)
        self.assertAllEqual(again["pooled"], outputs["pooled"])

    def test_other_rows_of_the_batch_do_not_matter(self):
        model, features = small(), inputs()
        outputs = model(features)["sequence"]
        features["token_ids"][0] = 5
        self.assertLess(relative_error(model(features)["sequence"][1:], outputs[1:].numpy()), 1e-6)

    def test_segments_and_the_mask_may_be_left_out(self):
        model, features = small(), inputs()
        full = features | {
            "segment_ids": np.zeros_like(features["segment_ids"]),
            "padding_mask": np.ones_like(features["padding_mask"]),
        }
        one, two = model({"token_ids": features["token_ids"]})["logits"], model(full)["logits"]
        self.assertLess(relative_error(one, two.numpy()), 1e-6)

    def test_logits_at_masked_positions_are_those_of_all_positions(self):
        model, features = small(), inputs()
        positions = np.array([[6, 0], [3, 3], [0, 0]], np.int32)
        logits = model(features)["logits"].numpy()
        outputs = model(features | {"masked_positions": positions})
        expected = logits[np.arange(3)[:, None], positions]
        self.assertLess(relative_error(outputs["logits"], expected), 1e-6)

    def test_nothing_is_computed_for_words_that_are_not_asked_for(self):
        model = small()
        features = inputs() | {"masked_positions": np.zeros([3, 2], np.int32)}
        graph = tf.function(model.call).get_concrete_function(
            {name: tf.TensorSpec(x.shape, x.dtype) for name, x in features.items()}
        )
        shapes = [tuple(o.shape) for op in graph.graph.get_operations() for o in op.outputs if o.shape.rank]
        self.assertIn((3 * 2, 13), shapes)
        self.assertNotIn((3 * 7, 13), shapes)
        self.assertNotIn((3, 7, 13), shapes)

    def test_unknown_and_missing_inputs_are_named(self):
        model = small()
        with self.assertRaisesRegex(ValueError, "unknown input 'input_ids'; the model takes token_ids, "):
            model(inputs() | {"input_ids": np.zeros([3, 7], np.int32)})
        with self.assertRaisesRegex(ValueError, "'token_ids' is missing"):
            model({"segment_ids": inputs()["segment_ids"]})

    def test_dropout_only_while_training(self):
        model, features = small(), inputs()
        self.assertAllEqual(model(features)["sequence"], model(features)["sequence"])
        one, two = (model(features, training=True)["sequence"] for _ in range(2))
        self.assertGreater(np.abs(one - two).max(), 1e-3)

    def test_half_precision_stays_near(self):
        features = inputs()
        for dtype, tolerance in (("mixed_bfloat16", 0.08), ("mixed_float16", 0.02)):
            model = small(dtype)
            self.assertEqual({w.dtype for w in model.trainable_weights}, {"float32"})
            outputs, expected = model(features), numpy_bert(model, features)
            self.assertEqual(outputs["sequence"].dtype, dtype.removeprefix("mixed_"))
            for name in ("logits", "next_sentence_logits"):
                self.assertEqual(outputs[name].dtype, "float32")
                self.assertLess(relative_error(outputs[name], expected[name]), tolerance, (dtype, name))

    def test_the_shortest_max_positions(self):
        model = tfzoo.build("bert_tiny", **SMALL | dict(max_positions=1))
        self.assertEqual(model({"token_ids": np.array([[3]])})["sequence"].shape, (1, 1, 12))


class SizesTest(tf.test.TestCase):
    def test_parameters_are_those_published(self):
        # The table of small models in github.com/google-research/bert, in millions: encoder and pooler.
        published = {"bert_tiny": 4.4, "bert_mini": 11.3, "bert_small": 29.1, "bert_medium": 41.7}
        published |= {"bert_base": 110.1, "bert_base_uncased": 110.1, "bert_base_cased": 109}
        published |= {"bert_base_chinese": 103, "bert_base_multilingual_cased": 179}
        published |= {"bert_large": 340, "bert_large_uncased": 340, "bert_large_cased": 335}
        # Counted in the released checkpoints.
        exact = {"bert_base": 109_482_240, "bert_base_uncased": 109_482_240, "bert_base_cased": 108_310_272}
        exact |= {"bert_base_chinese": 102_267_648, "bert_base_multilingual_cased": 177_853_440}
        exact |= {"bert_large": 335_141_888, "bert_large_uncased": 335_141_888, "bert_large_cased": 333_579_264}
        self.assertEqual(list(bert.CONFIGS), list(published))
        for name, millions in published.items():
            encoder, heads = parameters(models.find(name)[1])
            self.assertEqual(encoder, exact.get(name, encoder))
            self.assertNear(encoder / 1e6, millions, 0.015 * millions, name)
            if name == "bert_tiny":
                model = tfzoo.build(name)
                trained = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
                self.assertEqual(trained, encoder + heads, name)


def parameters(config):
    """Returns (encoder and pooler, heads without the tied table), counted by hand from the paper's shapes."""
    e, f = config.hidden_size, config.intermediate_size
    embeddings = (config.vocab_size + config.max_positions + config.num_segments + 2) * e
    layer = 4 * (e * e + e) + (e * f + f) + (f * e + e) + 2 * 2 * e
    encoder = embeddings + config.num_layers * layer + e * e + e
    return encoder, (e * e + e + 2 * e + config.vocab_size) + (2 * e + 2)


class BuildTest(tf.test.TestCase):
    def test_unknown_names_are_told_what_is_close_and_what_lists_all(self):
        for name, close in (("bert_huge", "bert_large"), ("bert_smal", "bert_small"), ("roberta_bas", "roberta_base")):
            message = (
                rf"^--model={name}: no such model \(did you mean {close}\?\); python -m tfzoo.describe lists them$"
            )
            with self.assertRaisesRegex(UserError, message):
                models.find(name)
        with self.assertRaisesRegex(UserError, "^--model=zzzz: no such model; python -m tfzoo.describe lists them$"):
            models.find("zzzz")

    def test_bad_overrides_are_named(self):
        with self.assertRaisesRegex(UserError, "unknown config field 'layers'"):
            tfzoo.build("bert_tiny", layers=3)
        with self.assertRaisesRegex(UserError, "hidden_size .10. must be a multiple of num_heads .3."):
            tfzoo.build("bert_tiny", hidden_size=10, num_heads=3)

    def test_every_config_is_one(self):
        for name in bert.CONFIGS:
            page, config = models.find(name)
            self.assertIs(page, bert)
            self.assertEqual(config.hidden_size, 64 * config.num_heads)
            self.assertEqual(config.intermediate_size, 4 * config.hidden_size)

    def test_the_seed_decides_the_weights(self):
        def weights(seed):
            keras.utils.set_random_seed(seed)
            return [w.numpy() for w in tfzoo.build("bert_tiny", **SMALL).trainable_weights]

        for one, two in zip(weights(3), weights(3), strict=True):
            self.assertAllEqual(one, two)
        self.assertNotAllEqual(weights(3)[0], weights(4)[0])


if __name__ == "__main__":
    tf.test.main()
