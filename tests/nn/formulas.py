"""The papers' formulas in float64 NumPy, a few lines each, for tests to compare the layers with.

`v` gives the float64 array of a layer's variable: `Values(layer)`, whose arrays a test may change.
"""

import math

import numpy as np
import tensorflow as tf


class Values:
    """The variables of layers as float64 arrays: `values(layer.kernel)`."""

    def __init__(self, *layers):
        self._arrays = {id(w): w.numpy().astype(np.float64) for layer in layers for w in layer.weights}

    def __call__(self, variable) -> np.ndarray:
        return self._arrays[id(variable)]


def randomize(layer, seed: int = 0, scale: float = 0.3) -> None:
    """Adds noise to every weight, so that no bias is 0 and no gain is 1."""
    random = np.random.default_rng(seed)
    for weight in layer.trainable_weights:
        weight.assign(weight.numpy() + random.normal(0, scale, weight.shape))


def numeric_gradient(function, array: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences of a scalar function that reads `array`, which is changed in place and restored."""
    result = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + step
        above = function()
        array[index] = kept - step
        result[index] = (above - function()) / (2 * step)
        array[index] = kept
    return result


def relative_error(actual, expected) -> float:
    """The largest difference, in units of the largest expected magnitude."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected)
    assert actual.shape == expected.shape, f"{actual.shape} is not {expected.shape}"
    return float(np.max(np.abs(actual - expected)) / np.max(np.abs(expected)))


def check_gradients(test, layer, x, upstream, v, formula):
    """The layer's gradients of sum(upstream * y) beside central differences of the formula, for x and weights."""
    with tf.GradientTape() as tape:
        variable = tf.constant(x, tf.float32)
        tape.watch(variable)
        y = layer(variable)
    weights = list(layer.trainable_weights)
    gradients = tape.gradient(
        y, [variable, *(w.value for w in weights)], output_gradients=tf.constant(upstream, tf.float32)
    )
    arrays = [x, *(v(weight) for weight in weights)]
    for gradient, array, name in zip(gradients, arrays, ["x", *(w.path for w in weights)], strict=True):
        expected = numeric_gradient(lambda: np.sum(upstream * formula()), array)
        gradient = tf.convert_to_tensor(gradient)
        if np.abs(expected).max() < 1e-7:  # Such as the key's bias, which a softmax does not notice.
            test.assertLess(np.abs(gradient).max(), 1e-5, name)
        else:
            test.assertLess(relative_error(gradient, expected), 1e-5, name)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def phi(x):
    """The standard normal distribution function."""
    return 0.5 * (1 + np.vectorize(math.erf)(np.asarray(x, np.float64) / math.sqrt(2)))


ACTIVATIONS = {
    "gelu": lambda x: x * phi(x),  # Hendrycks and Gimpel 2016, section 2, and its approximation
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def attention(query, key, value, mask=None):
    """Vaswani et al. 2017, equation 1; mask True attends, and a row that attends to nothing averages."""
    scores = query @ np.swapaxes(key, -1, -2) / math.sqrt(query.shape[-1])
    return softmax(scores if mask is None else np.where(mask, scores, -1e9)) @ value


def dense(v, layer, x):
    return x @ v(layer.kernel) + v(layer.bias)


def multi_head_attention(v, layer, x, memory=None, mask=None):
    """Vaswani et al. 2017, section 3.2.2: head by head, then concatenated and projected. mask [B, 1 or H, L, M]."""
    memory = x if memory is None else memory
    query, key, value = (
        dense(v, projection, source)
        for projection, source in ((layer.query, x), (layer.key, memory), (layer.value, memory))
    )
    heads, size = [], query.shape[-1] // layer.num_heads
    for h in range(layer.num_heads):
        part = slice(h * size, (h + 1) * size)
        own_mask = None if mask is None else mask[:, h if mask.shape[1] > 1 else 0]
        heads.append(attention(query[..., part], key[..., part], value[..., part], own_mask))
    return dense(v, layer.output_projection, np.concatenate(heads, -1))


def layer_norm(v, layer, x):
    """Ba et al. 2016, equation 4."""
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + layer.epsilon) * v(layer.gamma) + v(layer.beta)


def mlp(v, layer, x, activation):
    """Vaswani et al. 2017, section 3.3."""
    return dense(v, layer.down, ACTIVATIONS[activation](dense(v, layer.up, x)))


def block(v, layer, x, config, mask=None):
    if config.norm_first:
        x = x + multi_head_attention(v, layer.attention, layer_norm(v, layer.self_norm, x), mask=mask)
        return x + mlp(v, layer.mlp, layer_norm(v, layer.mlp_norm, x), config.activation)
    x = layer_norm(v, layer.self_norm, x + multi_head_attention(v, layer.attention, x, mask=mask))
    return layer_norm(v, layer.mlp_norm, x + mlp(v, layer.mlp, x, config.activation))


def stack(v, layer, x, config, mask=None):
    for each in layer.blocks:
        x = block(v, each, x, config, mask)
    return layer_norm(v, layer.norm, x) if config.norm_first else x


def sinusoidal(length, size):
    """Vaswani et al. 2017, section 3.5."""
    table = np.zeros((length, size))
    for position in range(length):
        for i in range(size // 2):
            angle = position / 10000 ** (2 * i / size)
            table[position, 2 * i], table[position, 2 * i + 1] = math.sin(angle), math.cos(angle)
    return table


def embeddings(v, layer, config, token_ids, segment_ids=None, position_ids=None):
    """The sum of BERT's figure 2, then a norm unless the blocks normalise first."""
    size = config.hidden_size
    table = sinusoidal(config.max_positions, size) if layer.positions is None else v(layer.positions)
    x = v(layer.tokens.embeddings)[token_ids]
    x = x + (table[: token_ids.shape[1]] if position_ids is None else table[position_ids])
    if config.num_segments:
        x = x + v(layer.segments)[np.zeros_like(token_ids) if segment_ids is None else segment_ids]
    return x if config.norm_first else layer_norm(v, layer.norm, x)


def masked_lm(v, layer, x, activation):
    """BERT's head: transform, norm, and the product with the token embeddings (Devlin et al. 2019's code)."""
    x = layer_norm(v, layer.norm, ACTIVATIONS[activation](dense(v, layer.transform, x)))
    return x @ v(layer.embedding.embeddings).T + v(layer.bias)
