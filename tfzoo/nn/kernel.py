"""FAVOR+: attention by positive orthogonal random features, in O(L) time and memory.

Choromanski et al. 2020, https://arxiv.org/abs/2009.14794: exp(q k) is the expectation over normal w of f_w(q) f_w(k),
with f_w(x) = exp(w x - |x|^2 / 2) (lemma 1). Sums over keys can therefore be computed without a query.
"""

import dataclasses
import math

import keras
import tensorflow as tf

from tfzoo.config import TransformerConfig
from tfzoo.errors import UserError
from tfzoo.nn.basic import read
from tfzoo.nn.layer import Layer
from tfzoo.nn.lean import block_size, join_blocks, loop, size, split_blocks
from tfzoo.nn.mask import Mask

CHUNK = 256  # Positions whose features are held at once.
ABSENT = -1e30  # The logarithm of an absent term; unlike -inf, it can be subtracted from itself.


@dataclasses.dataclass(frozen=True, kw_only=True)
class FavorConfig(TransformerConfig):
    """The config of a stack with FAVOR+ attention."""

    attention: str = "favor"
    causal: bool = False  # Whether positions attend only to earlier positions and themselves.
    redraw_every: int = 0  # Training calls after which each layer draws new features; 0: never.

    def __post_init__(self):
        super().__post_init__()
        self._require(self.redraw_every >= 0, "redraw_every", "must be at least 0")


class FavorAttention(Layer):
    """An estimate of softmax attention: query [B, H, L, D], key and value [B, H, M, D], a Mask -> [B, H, L, D].

    Its error decreases as 1 / sqrt(config.num_features). A query that may not attend to any key gets 0. There is no
    dropout on attention weights, because the weights are never computed.

    Args:
      config: a FavorConfig; with another TransformerConfig the features are never redrawn.
      seed: the seed of the features; None draws one.

    Raises:
      UserError: positions, masks or a window that require scores.
    """

    def __init__(self, config: TransformerConfig, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        _refuse(config.window, f"a window (window={config.window})")
        _refuse(config.positions == "relative", "a bias (positions='relative')")
        self.scale_scores = config.scale_scores
        self.shape = (config.num_features, config.resolved_head_dim)
        self.redraw_every = config.redraw_every if isinstance(config, FavorConfig) else 0
        # The state, which checkpoints contain, is the seed and the number of calls, which all replicas count alike.
        self.seeds = keras.random.SeedGenerator(seed, name="seeds")

    def build(self, input_shape=None):
        state = tf.cast(self.seeds.state.value, tf.int32)
        self.features = self.add_weight(
            shape=self.shape,
            initializer=lambda shape, dtype: tf.cast(draw_features(shape[0], shape[1], state), dtype),
            dtype="float32" if self.variable_dtype == "bfloat16" else None,  # Rounded, they would not be orthogonal.
            trainable=False,
            autocast=False,
            aggregation="none",  # Every replica draws the same features.
            name="features",
        )

    def redraw(self, seed: int) -> None:
        """Replaces the features with those of a seed."""
        self.features.assign(draw_features(*self.shape, tf.constant([seed, 0], tf.int32)))

    def call(self, query, key, value, masking: Mask, training=False):
        _refuse(masking.window, f"a window (window={masking.window})")
        _refuse(masking.bias is not None, "a bias")
        _refuse(masking.attention_mask is not None, "an attention_mask")
        if training and self.redraw_every:
            seed = tf.cast(self.seeds.next(), tf.int32)
            due = (seed[1] > 0) & (seed[1] % self.redraw_every == 0)
            # The branch contains only the drawing: replicas cannot assign variables inside a branch.
            features = read(self.features)
            drawn = tf.cond(
                due,
                lambda: tf.cast(draw_features(*self.shape, seed), features.dtype),
                lambda: tf.identity(features),
            )
            self.features.assign(drawn)
        scale = 1 / math.sqrt(self.shape[1]) if self.scale_scores else 1.0
        return favor_attention(query, key, value, read(self.features), masking, scale)


def _refuse(requested, feature: str) -> None:
    if requested:
        raise UserError(
            f"attention='favor' computes no scores and does not support {feature}; use attention='lean' or 'full'"
        )


def draw_features(count: int, depth: int, seed):
    """Returns [count, depth] float32 features: normal rows, orthogonal within each group of `depth` rows (section 2.4).

    Args:
      count: number of features.
      depth: D.
      seed: int32 [2]; the same seed gives the same features.
    """
    blocks = -(-count // depth)
    turns, lengths = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
    q, r = tf.linalg.qr(tf.random.stateless_normal([blocks, depth, depth], turns))
    q *= tf.sign(tf.linalg.diag_part(r))[:, None, :]  # Without this the directions are not uniform (Mezzadri 2007).
    norms = tf.norm(tf.random.stateless_normal([blocks, depth, depth], lengths), axis=-1, keepdims=True)
    return tf.reshape(tf.linalg.matrix_transpose(q) * norms, [blocks * depth, depth])[:count]


def favor_attention(query, key, value, features, masking: Mask, scale, chunk: int = CHUNK):
    """Returns sum_j f(q_i) f(k_j) v_j / sum_j f(q_i) f(k_j) over the keys that padding and causality allow.

    The sums over keys, [features, D + 1], are carried from chunk to chunk and recomputed in the backward pass (appendix
    B.1, without keeping the prefix sums). For numerical stability they are divided, feature by feature, by exp(the
    largest exponent so far). With each query's largest exponent also divided out, no sum overflows, and without
    causality no denominator is below 1. These factors cancel in the quotient, as do |q|^2 / 2 and the number of
    features.

    Args:
      query: [B, H, L, D].
      key, value: [B, H, M, D]; M >= L if causal.
      features: [number, D].
      masking: a Mask, of which padding_mask and causal are used.
      scale: factor on the scores that are estimated.
      chunk: number of positions whose features are held at once.

    Returns:
      [B, H, L, D] in value's dtype, computed in float32.

    Raises:
      UserError: causal attention with fewer keys than queries.
    """
    wide = tf.float64 if query.dtype == tf.float64 else tf.float32
    features = tf.stop_gradient(tf.cast(features, wide)) * math.sqrt(scale)
    length, memory = size(query, 2), size(key, 2)
    # Every query attends to the first `past` keys and, with causality, to the others up to its own position.
    past = memory - length if masking.causal else memory
    if isinstance(past, int) and past < 0:
        raise UserError(
            f"{length} causal queries over {memory} keys: attention='favor' requires at least as many keys as queries"
        )
    real = tf.ones([1, memory]) if masking.padding_mask is None else masking.padding_mask
    real = tf.cast(real, wide)[:, None, :, None]
    block = block_size(length, chunk)

    @tf.custom_gradient
    def attend(query, key, value):
        parts = _Parts(features, scale, split_blocks(tf.cast(query, wide), block), value.shape[3])
        if not (isinstance(past, int) and past == 0):
            far = block_size(past, chunk)
            parts.far = _Keys(key[:, :, :past], value[:, :, :past], real[:, :, :past], far, wide)
        if masking.causal:
            parts.near = _Keys(key[:, :, past:], value[:, :, past:], real[:, :, past:], block, wide)
        outs, sums, tops = _forward(parts)

        def gradient(upstream):
            # The gradient for [numerator, denominator]; 0 for a query that attends to nothing.
            payload = tf.math.divide_no_nan(split_blocks(tf.cast(upstream, wide), block), sums)
            payload = tf.concat([payload, -tf.reduce_sum(payload * outs, -1, keepdims=True)], -1)
            dqueries = _gradient_of_queries(parts, tops, payload)
            gradients = (join_blocks(dqueries, query), *_gradients_of_keys(parts, tops, sums, payload))
            return tuple(tf.cast(g, x.dtype) for g, x in zip(gradients, (query, key, value)))

        return tf.cast(join_blocks(outs, query), value.dtype), gradient

    return attend(query, key, value)


class _Parts:
    """Queries in chunks, [N, B, H, C, D], and the keys that they attend to; shared by the passes over them."""

    def __init__(self, features, scale, queries, depth: int):
        self.features, self.scale, self.queries, self.wide = features, scale, queries, queries.dtype
        self.count, chunk = size(queries, 0), queries.shape[3]
        self.far: _Keys | None = None  # Keys that every query attends to.
        self.near: _Keys | None = None  # Keys that a query attends to up to its own position.
        self.seen = tf.linalg.band_part(tf.ones([chunk, chunk], self.wide), -1, 0)
        zero = tf.zeros_like(queries[0, :, :, :1, :1])
        number, absent = features.shape[0], tf.cast(ABSENT, self.wide)
        # The state before any key; see _absorb.
        self.nothing = (zero + tf.fill([1, number], absent), zero + tf.zeros([number, depth + 1], self.wide))

    def project(self, x):  # [B, H, C, D] -> [B, H, C, features]
        return _multiply(x, tf.transpose(self.features))

    def key_logs(self, x, real):
        logs = self.project(x) - 0.5 * self.scale * tf.reduce_sum(x * x, -1, keepdims=True)
        return tf.where(real > 0, logs, tf.cast(ABSENT, self.wide))

    def beginning(self):
        """Returns the sums over `far`, the state before the first query."""
        far = self.far
        if far is None:
            return self.nothing

        def absorb(j, *state):
            return j + 1, *_absorb(state, self.key_logs(far.keys[j], far.real[j]), far.values[j])

        return loop(lambda j, *_: j < far.count, absorb, (0, *self.nothing))[1:]

    def own_keys(self, i):
        near = self.near
        if near is None:
            return None
        return _Chunk(self.key_logs(near.keys[i], near.real[i]), near.values[i], self.seen)


def _forward(parts: _Parts):
    """Returns, in chunks, the outputs, the denominators and each query's largest exponent.

    Numerators and denominators are divided by the exponential of that exponent.
    """

    def forward(i, peaks, totals, outs, sums, tops):
        state, own_chunk, logs = (peaks, totals), parts.own_keys(i), parts.project(parts.queries[i])
        top = tf.reduce_max(
            logs + (peaks if own_chunk is None else tf.maximum(peaks, own_chunk.peaks)), -1, keepdims=True
        )
        fraction = _product(state, own_chunk, _weights(state, own_chunk, logs - top))
        out = tf.math.divide_no_nan(fraction[..., :-1], fraction[..., -1:])
        state = state if own_chunk is None else _absorb(state, own_chunk.logs, own_chunk.values)
        return i + 1, *state, outs.write(i, out), sums.write(i, fraction[..., -1:]), tops.write(i, top)

    arrays = [tf.TensorArray(parts.wide, parts.count) for _ in range(3)]
    arrays = loop(lambda i, *_: i < parts.count, forward, (0, *parts.beginning(), *arrays))[3:]
    return tuple(array.stack() for array in arrays)


def _gradient_of_queries(parts: _Parts, tops, payload):
    """Returns the gradient for the queries, [N, B, H, C, D].

    payload: the gradient for [numerator, denominator], in chunks [N, B, H, C, D + 1].
    """

    def for_query(i, peaks, totals, dqueries):
        state, own_chunk = (peaks, totals), parts.own_keys(i)
        weights = _weights(state, own_chunk, parts.project(parts.queries[i]) - tops[i])
        dquery = _multiply(_gradient(state, own_chunk, weights, payload[i]), parts.features)
        state = state if own_chunk is None else _absorb(state, own_chunk.logs, own_chunk.values)
        return i + 1, *state, dqueries.write(i, dquery)

    state = (0, *parts.beginning(), tf.TensorArray(parts.wide, parts.count))
    return loop(lambda i, *_: i < parts.count, for_query, state)[-1].stack()


def _gradients_of_keys(parts: _Parts, tops, sums, payload):
    """Returns the gradients for keys and values, [B, H, M, D] each; payload as in _gradient_of_queries.

    A key contributes to the queries from its own position on: the gradient is the same sum with the roles of keys and
    queries exchanged, from the end to the beginning.
    """
    near, far = parts.near, parts.far

    def to_key(state, own_chunk, x, real, values):
        weights = _weights(state, own_chunk, parts.key_logs(x, real))
        dlogs = _gradient(state, own_chunk, weights, values)
        dkey = _multiply(dlogs, parts.features) - parts.scale * x * tf.reduce_sum(dlogs, -1, keepdims=True)
        return dkey, _product(state, own_chunk, weights)[..., :-1]

    def for_near(i, peaks, totals, dkeys, dvalues):
        state, logs = (peaks, totals), parts.project(parts.queries[i]) - tops[i]
        logs = tf.where(sums[i] > 0, logs, tf.cast(ABSENT, parts.wide))
        if near is not None:
            own_chunk = _Chunk(logs, payload[i], tf.transpose(parts.seen))
            dkey, dvalue = to_key(state, own_chunk, near.keys[i], near.real[i], near.values[i])
            dkeys, dvalues = dkeys.write(i, dkey), dvalues.write(i, dvalue)
        return i - 1, *_absorb(state, logs, payload[i]), dkeys, dvalues

    arrays = [tf.TensorArray(parts.wide, 0 if near is None else parts.count) for _ in range(2)]
    _, *state, dkeys, dvalues = loop(lambda i, *_: i >= 0, for_near, (parts.count - 1, *parts.nothing, *arrays))
    pieces = [] if near is None else [near.join(dkeys, dvalues)]
    if far is not None:

        def for_far(j, dkeys, dvalues):
            dkey, dvalue = to_key(state, None, far.keys[j], far.real[j], far.values[j])
            return j + 1, dkeys.write(j, dkey), dvalues.write(j, dvalue)

        arrays = [tf.TensorArray(parts.wide, far.count) for _ in range(2)]
        pieces.insert(0, far.join(*loop(lambda j, *_: j < far.count, for_far, (0, *arrays))[1:]))
    return tuple(tf.concat(each, 2) for each in zip(*pieces))


def _multiply(x, matrix):
    """Returns x [..., I] times matrix [I, O], [..., O].

    x is flattened: TensorFlow 2.20's product that broadcasts a matrix over a batch is sometimes wrong on a CPU, or
    crashes.
    """
    result = tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), matrix)
    return tf.reshape(result, [*(size(x, axis) for axis in range(len(x.shape) - 1)), matrix.shape[1]])


class _Keys:
    """Keys [N, B, H, C, D] with [value, 1], for numerator and denominator; 0 where there is no key."""

    def __init__(self, key, value, real, block: int, wide):
        self.key, self.value = key, value
        self.keys, self.real = split_blocks(tf.cast(key, wide), block), split_blocks(real, block)
        ones = tf.ones_like(value[..., :1], wide)
        self.values = split_blocks(tf.concat([tf.cast(value, wide), ones], -1) * real, block)
        self.count = size(self.keys, 0)

    def join(self, dkeys, dvalues):
        return join_blocks(dkeys.stack(), self.key), join_blocks(dvalues.stack(), self.value)


class _Chunk:
    """The sources of sums that readers in the same chunk may read in part: logs [B, H, C, m], values [B, H, C, X].

    allowed [C, C]: which reader (row) reads which source (column).
    """

    def __init__(self, logs, values, allowed):
        self.logs, self.values, self.allowed = logs, values, allowed
        self.peaks = tf.reduce_max(logs, 2, keepdims=True)
        self.weights = tf.exp(logs - self.peaks)


def _absorb(state, logs, values):
    """Adds a chunk to the state: peaks [B, H, 1, m] and totals [B, H, m, X], the sums of exp(logs - peaks) values."""
    peaks, totals = state
    above = tf.maximum(peaks, tf.reduce_max(logs, 2, keepdims=True))
    shrink = tf.linalg.matrix_transpose(tf.exp(peaks - above))
    return above, totals * shrink + tf.matmul(tf.exp(logs - above), values, transpose_a=True)


def _weights(state, own_chunk, logs):
    """Returns the factors of readers with these logs on the state's totals and on the sources of their own chunk."""
    return tf.exp(logs + state[0]), None if own_chunk is None else tf.exp(logs + own_chunk.peaks)


def _product(state, own_chunk, weights):
    """Returns the sums that the readers read: [B, H, C, X]."""
    state_weights, chunk_weights = weights
    result = tf.matmul(state_weights, state[1])
    if own_chunk is not None:
        result += tf.matmul(
            own_chunk.allowed * tf.matmul(chunk_weights, own_chunk.weights, transpose_b=True), own_chunk.values
        )
    return result


def _gradient(state, own_chunk, weights, upstream):
    """Returns the gradient of sum(upstream * _product) for the readers' logs."""
    state_weights, chunk_weights = weights
    result = state_weights * tf.matmul(upstream, state[1], transpose_b=True)
    if own_chunk is not None:
        contributions = own_chunk.allowed * tf.matmul(upstream, own_chunk.values, transpose_b=True)
        result += chunk_weights * tf.matmul(contributions, own_chunk.weights)
    return result
