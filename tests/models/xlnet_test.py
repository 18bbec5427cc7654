"""XLNet compared with a float64 NumPy XLNet, its published sizes, and what each prediction may depend on."""

import numpy as np
import tensorflow as tf

from tests.nn import formulas, two_stream
from tests.nn.formulas import Values, randomize, relative_error
from tfzoo import config as config_lib
from tfzoo.models import xlnet

SMALL = dict(vocab_size=13, hidden_size=12, num_layers=2, num_heads=3, intermediate_size=20)
LENGTHS = np.array([[6], [4], [2]])


def small(heads=("lm",), dtype=None, **overrides):
    model = xlnet.Model(config_lib.from_mapping(SMALL | overrides, xlnet.Config), heads=heads, dtype=dtype)
    randomize(model, scale=0.2)
    return model


def inputs(left=False):
    random = np.random.default_rng(0)
    ranks = np.argsort(random.random([3, 6]), 1)
    return {
        "token_ids": random.integers(0, 13, [3, 6]).astype(np.int32),
        "segment_ids": random.integers(0, 3, [3, 6]).astype(np.int32),
        "padding_mask": np.arange(6) >= 6 - LENGTHS if left else np.arange(6) < LENGTHS,
        "permutation_mask": ranks[:, None, :] < ranks[:, :, None],
        "target_mapping": np.eye(6, dtype=np.float32)[[[5, 0], [1, 2], [0, 1]]],
        "previous_sequence": random.normal(0, 1, [2, 3, 4, 12]).astype(np.float32),
    }


def numpy_xlnet(model, features):
    v = Values(model)
    encoder, heads = model.encoder, model.heads
    rest = {name: x for name, x in features.items() if name != "token_ids"}
    states = two_stream.stack(v, encoder.stack, v(model.tokens.embeddings)[features["token_ids"]], **rest)
    outputs = dict(zip(("sequence", "query_sequence", "previous_sequence"), states, strict=True))
    outputs = {name: state for name, state in outputs.items() if state is not None}
    sequence = outputs["sequence"]
    if "lm" in heads:
        predicting = outputs.get("query_sequence", sequence)
        outputs["logits"] = predicting @ v(model.tokens.embeddings).T + v(heads["lm"].bias)
    if "classify" in heads:
        last = np.full(3, -1)
        if "padding_mask" in features:
            last = [np.flatnonzero(row)[-1] for row in features["padding_mask"]]
        hidden = np.tanh(formulas.dense(v, heads["classify"].hidden, sequence[np.arange(3), last]))
        outputs["classify_logits"] = formulas.dense(v, heads["classify"].dense, hidden)
    for name in {"tag", "span"} & set(heads):
        outputs[f"{name}_logits"] = formulas.dense(v, heads[name].dense, sequence)
    return outputs


class ForwardTest(tf.test.TestCase):
    def test_equals_a_numpy_xlnet(self):
        model = small(("lm", "classify", "tag", "span"))
        for left in (False, True):
            features = inputs(left)
            text = ["token_ids", "segment_ids", "padding_mask"]
            for kept in (text[:1], text, list(features), [*text[:2], "permutation_mask", "previous_sequence"]):
                some = {name: features[name] for name in kept}
                outputs, expected = model(some), numpy_xlnet(model, some)
                self.assertEqual(sorted(outputs), sorted(expected))
                for name in expected:
                    self.assertLess(relative_error(outputs[name], expected[name]), 2e-5, (kept, name))

    def test_a_prediction_knows_the_tokens_before_it_in_the_order_and_no_other(self):
        model, features = small(), inputs()
        del features["padding_mask"]
        features["target_mapping"] = np.stack([np.eye(6, dtype=np.float32)] * 3)
        logits = model(features)["logits"].numpy()
        for changed in range(6):
            tokens = features["token_ids"].copy()
            tokens[:, changed] = (tokens[:, changed] + 1) % 13
            new = model(features | {"token_ids": tokens})["logits"].numpy()
            for b in range(3):
                for i in range(6):
                    seen = features["permutation_mask"][b, i, changed]
                    self.assertEqual(np.abs(new[b, i] - logits[b, i]).max() > 1e-5, seen, (b, i, changed))
                    if not seen:
                        self.assertAllEqual(new[b, i], logits[b, i])

    def test_a_text_read_in_segments_remembers(self):
        model = small(memory_length=3)
        tokens = inputs()["token_ids"]
        previous = np.zeros([2, 3, 0, 12], np.float32)
        for start in (0, 2, 4):
            part = {"token_ids": tokens[:, start : start + 2], "previous_sequence": previous}
            outputs, expected = model(part), numpy_xlnet(model, part)
            previous = outputs["previous_sequence"].numpy()
            self.assertLess(relative_error(previous, expected["previous_sequence"]), 1e-5)
            self.assertLess(relative_error(outputs["logits"], expected["logits"]), 2e-5)
        self.assertEqual(previous.shape, (2, 3, 3, 12))
        self.assertGreater(np.abs(outputs["logits"] - model({"token_ids": tokens[:, 4:]})["logits"]).max(), 0.01)

    def test_nothing_is_computed_for_words_that_are_not_asked_for(self):
        model, features = small(), inputs()
        graph = tf.function(model.call).get_concrete_function(
            {name: tf.TensorSpec(x.shape, x.dtype) for name, x in features.items()}
        )
        shapes = [tuple(o.shape) for op in graph.graph.get_operations() for o in op.outputs if o.shape.rank]
        self.assertIn((3 * 2, 13), shapes)
        self.assertNotIn((3 * 6, 13), shapes)

    def test_half_precision_stays_near(self):
        features = inputs()
        for dtype, tolerance in (("mixed_bfloat16", 0.1), ("mixed_float16", 0.02)):
            model = small(dtype=dtype)
            self.assertEqual({w.dtype for w in model.trainable_weights}, {"float32"})
            outputs, expected = model(features), numpy_xlnet(model, features)
            self.assertEqual(outputs["query_sequence"].dtype, dtype.removeprefix("mixed_"))
            self.assertEqual(outputs["logits"].dtype, "float32")
            self.assertLess(relative_error(outputs["logits"], expected["logits"]), tolerance, dtype)


class SizesTest(tf.test.TestCase):
    def test_parameters_are_those_of_the_released_models(self):
        # Counted in Hugging Face's XLNetModel for its configs; rounded there to 110M and 340M, as for BERT.
        exact = {"xlnet_base": 116_718_336, "xlnet_large": 360_268_800}
        self.assertEqual(list(xlnet.CONFIGS), list(exact))
        for name, count in exact.items():
            config = config_lib.from_mapping(xlnet.CONFIGS[name], xlnet.Config)
            self.assertEqual(parameters(config), count)
            self.assertEqual(config.hidden_size // config.num_heads, 64)
        model = small()
        trained = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
        self.assertEqual(trained, parameters(model.config) + 13)


def parameters(config):
    """Returns the body's parameters, counted by hand.

    They are the embeddings, the query stream's start vector and, in each layer, five projections, three biases and two
    segments, an MLP and two norms.
    """
    e, f = config.hidden_size, config.intermediate_size
    layer = 5 * e * e + 3 * e + 2 * e + (e * f + f) + (f * e + e) + 2 * 2 * e
    return config.vocab_size * e + e + config.num_layers * layer


if __name__ == "__main__":
    tf.test.main()
