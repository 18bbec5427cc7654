"""Performer compared with a float64 NumPy transformer with the paper's attention, and with exact attention."""

import unittest.mock

import numpy as np
import tensorflow as tf

import tfzoo
from tests.nn import formulas
from tests.nn.formulas import Values, randomize, relative_error
from tfzoo import models
from tfzoo.errors import UserError
from tfzoo.models import costs

SMALL = dict(vocab_size=13, hidden_size=12, num_layers=2, num_heads=3, intermediate_size=20, max_positions=9)


def small(**overrides):
    model = tfzoo.build("performer_regular", **SMALL | overrides)
    randomize(model, scale=0.2)
    return model


def inputs():
    token_ids = np.random.default_rng(0).integers(0, 13, [3, 7]).astype(np.int32)
    return {"token_ids": token_ids, "padding_mask": np.arange(7) < np.array([[7], [4], [1]])}


def numpy_sequence(model, features):
    """The transformer's formulas with equation 4 of the paper instead of softmax attention."""
    config, tower = model.config, model.encoder
    w = tower.stack.blocks[0].attention.kernel.features.numpy().astype(np.float64)
    for block in tower.stack.blocks[1:]:
        block.attention.kernel.features.assign(w)

    def phi(x):
        x = x / x.shape[-1] ** 0.25
        return np.exp(x @ w.T - 0.5 * np.sum(x * x, -1, keepdims=True)) / np.sqrt(len(w))

    def attention(query, key, value, mask, *_):
        weights = phi(query) @ np.swapaxes(phi(key), -1, -2) * mask
        return weights @ value / weights.sum(-1, keepdims=True)

    v, mask = Values(model), features["padding_mask"][:, None, None, :]
    mask = np.tril(np.broadcast_to(mask, [3, 1, 7, 7])) if config.causal else mask
    with unittest.mock.patch.object(formulas, "attention", attention):
        x = formulas.embeddings(v, tower.embeddings, config, features["token_ids"])
        return formulas.stack(v, tower.stack, x, config, mask)


class PerformerTest(tf.test.TestCase):
    def test_equals_a_numpy_performer(self):
        for causal in (False, True):
            model, features = small(causal=causal, num_features=16), inputs()
            expected, outputs = numpy_sequence(model, features), model(features)
            self.assertLess(relative_error(outputs["sequence"], expected), 2e-5)
            v, tokens = Values(model), model.tokens.embeddings
            if causal:
                logits = expected @ v(tokens).T
            else:
                logits = formulas.masked_lm(v, model.heads["lm"], expected, model.config.activation)
            self.assertLess(relative_error(outputs["logits"], logits), 2e-5)

    def test_nears_the_transformer_with_many_features(self):
        for causal in (False, True):
            model = small(num_features=8192, causal=causal)
            exact = small(attention="full", causal=causal)
            for to, source in zip(exact.trainable_weights, model.trainable_weights, strict=True):
                to.assign(source)
            expected = exact(inputs())["sequence"].numpy()
            self.assertLess(relative_error(model(inputs())["sequence"], expected), 0.02)

    def test_the_future_and_padding_have_no_influence(self):
        model, features = small(causal=True), inputs()
        before = model(features)["sequence"].numpy()
        features["token_ids"][:, 5:] = 3
        after = model(features)["sequence"].numpy()
        self.assertLess(np.abs(after - before)[:, :5].max(), 1e-5)
        self.assertGreater(np.abs(after - before)[0, 5:].max(), 1e-2)
        encoder = small()
        before = encoder(features)["sequence"].numpy()
        features["token_ids"] = np.where(features["padding_mask"], features["token_ids"], 11)
        real = features["padding_mask"]
        self.assertLess(np.abs(encoder(features)["sequence"].numpy() - before)[real].max(), 1e-5)

    def test_features_are_saved_with_the_model_and_redrawn_while_training(self):
        model = small(redraw_every=1, dropout=0.0)
        weights = [w for w in model.weights if w.name == "features"]
        self.assertLen(weights, 2)
        first = [w.numpy() for w in weights]
        self.assertGreater(np.abs(first[0] - first[1]).max(), 0.1)  # Each layer has its own features.
        model(inputs())
        model(inputs(), training=True)
        self.assertAllEqual(weights[0], first[0])
        model(inputs(), training=True)
        self.assertGreater(np.abs(weights[0] - first[0]).max(), 0.1)

    def test_what_it_cannot_do_is_refused_by_name(self):
        with self.assertRaisesRegex(UserError, "positions='relative'.*attention='lean' or 'full'"):
            small(positions="relative")
        with self.assertRaisesRegex(UserError, r"redraw_every \(-1\)"):
            small(redraw_every=-1)
        with self.assertRaisesRegex(ValueError, "unknown input 'attention_mask'"):
            small()(inputs() | {"attention_mask": np.ones([3, 1, 7, 7], bool)})

    def test_sizes(self):
        # Counted by hand: token embeddings, num_layers times 4 E^2 + 2 E F with biases and two norms, a final norm.
        for name, (vocab, layers, hidden, inner) in {
            "performer_small": (32768, 6, 64, 64),
            "performer_regular": (32768, 6, 512, 2048),
            "performer_protein": (30, 36, 512, 1024),
        }.items():
            page, config = models.find(name)
            block = 4 * (hidden**2 + hidden) + 2 * hidden * inner + hidden + inner + 4 * hidden
            expected = vocab * hidden + layers * block + 2 * hidden
            self.assertEqual(costs.count_parameters(costs.lay_out(page, config, ())), expected)


if __name__ == "__main__":
    tf.test.main()
