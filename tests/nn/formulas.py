"""The papers' formulas in float64 NumPy, a few lines each, to compare the layers with.

`v` is a `Values(layer)`, which maps a layer's variables to float64 arrays; a test may modify the arrays.
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


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Returns a normal float64 array of this shape, always the same for the same seed."""
    return np.random.default_rng(seed).normal(0, scale, shape)


def randomize(layer, seed: int = 0, scale: float = 0.3) -> None:
    """Adds noise to every weight, so that no bias is 0 and no gain is 1."""
    random = np.random.default_rng(seed)
    for weight in layer.trainable_weights:
        weight.assign(weight.numpy() + random.normal(0, scale, weight.shape))


def numeric_gradient(function, array: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Returns central differences of a scalar function of `array`, which is modified in place and restored."""
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
    """Returns the largest difference divided by the largest expected magnitude."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected)
    assert actual.shape == expected.shape, f"{actual.shape} is not {expected.shape}"
    return float(np.max(np.abs(actual - expected)) / np.max(np.abs(expected)))


def check_gradients(test, layer, x, upstream, v, formula, **kwargs):
    """Compares gradients of sum(upstream * y) for x and the weights with central differences of the formula."""
    with tf.GradientTape() as tape:
        variable = tf.constant(x, tf.float32)
        tape.watch(variable)
        y = layer(variable, **kwargs)
    weights = list(layer.trainable_weights)
    gradients = tape.gradient(
        y, [variable, *(w.value for w in weights)], output_gradients=tf.constant(upstream, tf.float32)
    )
    arrays = [x, *(v(weight) for weight in weights)]
    for gradient, array, name in zip(gradients, arrays, ["x", *(w.path for w in weights)], strict=True):
        expected = numeric_gradient(lambda: np.sum(upstream * formula()), array)
        gradient = tf.convert_to_tensor(gradient)
        if np.abs(expected).max() < 1e-7:  # For example the key's bias, to which a softmax is invariant.
            test.assertLess(np.abs(gradient).max(), 1e-5, name)
        else:
            test.assertLess(relative_error(gradient, expected), 1e-5, name)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def phi(x):
    """Returns the standard normal distribution function."""
    return 0.5 * (1 + np.vectorize(math.erf)(np.asarray(x, np.float64) / math.sqrt(2)))


ACTIVATIONS = {
    "gelu": lambda x: x * phi(x),  # Hendrycks and Gimpel 2016, section 2, and its approximation.
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def attention(query, key, value, mask=None, bias=0.0, scale=None):
    """Vaswani et al. 2017, equation 1; mask True attends, and a row that may not attend to anything averages."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = scale * query @ np.swapaxes(key, -1, -2) + bias
    return softmax(scores if mask is None else np.where(mask, scores, -1e9)) @ value


def dense(v, layer, x):
    x = x @ v(layer.kernel)
    return x + v(layer.bias) if layer.use_bias else x


def multi_head_attention(v, layer, x, memory=None, mask=None, bias=0.0, scale=None, angles=None):
    """Vaswani et al. 2017, section 3.2.2: head by head, then concatenated and projected.

    mask [B, 1 or H, L, M]; bias [1 or B, H, L, M]; angles [L, D / 2] of rotary positions. Each of G key/value heads
    serves H / G adjacent query heads (Ainslie et al. 2023, figure 2).
    """
    memory = x if memory is None else memory
    size, group = layer.head_dim, layer.num_heads // layer.num_kv_heads
    query, key, value = (
        dense(v, projection, source)
        for projection, source in ((layer.query, x), (layer.key, memory), (layer.value, memory))
    )

    def head(array, i, norm=None, rotate=True):
        part = array[..., i * size : (i + 1) * size]
        part = part if norm is None else rms_norm(v, norm, part)
        return rotary(part, angles) if rotate and angles is not None else part

    heads = []
    for h in range(layer.num_heads):
        q, k = head(query, h, layer.query_norm), head(key, h // group, layer.key_norm)
        head_mask = None if mask is None else mask[:, h if mask.shape[1] > 1 else 0]
        head_bias = bias[:, h] if np.ndim(bias) else bias
        heads.append(attention(q, k, head(value, h // group, rotate=False), head_mask, head_bias, scale))
    return dense(v, layer.output_projection, np.concatenate(heads, -1))


def rotary(x, angles):
    """Su et al. 2021, equation 34, on pairs (i, i + D/2): complex numbers, each rotated by its angle."""
    half = x.shape[-1] // 2
    rotated = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([rotated.real, rotated.imag], -1)


def rotary_angles(positions, size, theta):
    """Su et al. 2021, section 3.2.2: position times theta^(-2i/D)."""
    return np.array([[p * theta ** (-2 * i / size) for i in range(size // 2)] for p in positions])


def layer_norm(v, layer, x):
    """Ba et al. 2016, equation 4."""
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    x = (x - mean) / np.sqrt(variance + layer.epsilon) * v(layer.gamma)
    return x + v(layer.beta) if layer.center else x


def rms_norm(v, layer, x):
    """Zhang and Sennrich 2019, equation 4."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + layer.epsilon) * v(layer.gamma)


def norm(v, layer, x, config):
    return {"layer": layer_norm, "rms": rms_norm}[config.norm](v, layer, x)


def mlp(v, layer, x, activation):
    """Vaswani et al. 2017, section 3.3; with a gate, Shazeer 2020, equation 6."""
    if layer.gate is None:
        return dense(v, layer.down, ACTIVATIONS[activation](dense(v, layer.up, x)))
    return dense(v, layer.down, ACTIVATIONS[activation](dense(v, layer.gate, x)) * dense(v, layer.up, x))


def block(v, layer, x, config, mask=None, memory=None, memory_mask=None, **kwargs):
    """The residual sums of Vaswani et al. 2017, Xiong et al. 2020 (norm first) or Chowdhery et al. 2022 (parallel).

    The last is from section 2. `kwargs` are arguments of self-attention.
    """
    scale = None if config.scale_scores else 1.0

    def attend(x):
        return multi_head_attention(v, layer.attention, x, mask=mask, scale=scale, **kwargs)

    def cross(x):
        return multi_head_attention(v, layer.cross_attention, x, memory, memory_mask, scale=scale)

    if config.parallel_blocks:
        normal = norm(v, layer.self_norm, x, config)
        return x + attend(normal) + mlp(v, layer.mlp, normal, config.activation)
    sublayers = [(attend, layer.self_norm), (cross, layer.cross_norm)][: 1 if memory is None else 2]
    sublayers.append((lambda x: mlp(v, layer.mlp, x, config.activation), layer.mlp_norm))
    for sublayer, sublayer_norm in sublayers:
        if config.norm_first:
            x = x + sublayer(norm(v, sublayer_norm, x, config))
        else:
            x = norm(v, sublayer_norm, x + sublayer(x), config)
    return x


def stack(v, layer, x, config, mask=None, **kwargs):
    for layer_block in layer.blocks:
        x = block(v, layer_block, x, config, mask, **kwargs)
    return norm(v, layer.norm, x, config) if config.norm_first else x


def sinusoidal(length, size, interleaved=True):
    """Vaswani et al. 2017, section 3.5; if not interleaved, the sines come before the cosines."""
    table = np.zeros((length, size))
    for position in range(length):
        for i in range(size // 2):
            angle = position / 10000 ** (2 * i / size)
            sine, cosine = (2 * i, 2 * i + 1) if interleaved else (i, size // 2 + i)
            table[position, sine], table[position, cosine] = math.sin(angle), math.cos(angle)
    return table


def relative_bucket(distance, causal, num_buckets, max_distance):
    """Raffel et al. 2020, section 2.1, as in the authors' code (mesh_tensorflow's _relative_position_bucket).

    distance: the key's position minus the query's.
    """
    base, back = 0, -distance
    if causal:
        back = max(back, 0)
    else:
        num_buckets //= 2
        base, back = (num_buckets if back < 0 else 0), abs(back)
    exact = num_buckets // 2
    if back < exact:
        return base + back
    # Rounded to float32's precision, so that integers are hit exactly.
    offset = round(math.log(back / exact) / math.log(max_distance / exact) * (num_buckets - exact), 5)
    return base + min(exact + int(offset), num_buckets - 1)


def embeddings(v, layer, config, token_ids, segment_ids=None, position_ids=None):
    """The sum in BERT's figure 2, then a norm and a projection if the config has them."""
    x = v(layer.tokens.embeddings)[token_ids]
    size = x.shape[-1]
    if config.scale_embeddings:
        x = x * math.sqrt(size)
    if config.positions in ("learned", "sinusoidal", "sinusoidal_concat"):
        rows = config.max_positions + config.position_offset
        if config.positions == "learned":
            table = v(layer.positions)
        else:
            table = sinusoidal(rows, size, config.positions == "sinusoidal")
        ids = np.arange(token_ids.shape[1]) if position_ids is None else position_ids
        x = x + table[ids + config.position_offset]
    if config.num_segments:
        x = x + v(layer.segments)[np.zeros_like(token_ids) if segment_ids is None else segment_ids]
    if config.embedding_norm:
        x = norm(v, layer.norm, x, config)
    return x if layer.projection is None else dense(v, layer.projection, x)


def masked_lm(v, layer, x, activation):
    """BERT's head: transform, norm, and the product with the token embeddings (Devlin et al. 2019's code)."""
    x = layer_norm(v, layer.norm, ACTIVATIONS[activation](dense(v, layer.transform, x)))
    return x @ v(layer.embedding.embeddings).T + v(layer.bias)
