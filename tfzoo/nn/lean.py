"""Exact attention that never holds all scores at once: O(L) memory, where full attention takes O(L^2).

Scores are computed block by block under a running softmax and recomputed in the backward pass (Rabe and Staats 2021,
https://arxiv.org/abs/2112.05682; Dao et al. 2022, https://arxiv.org/abs/2205.14135, algorithms 1 and 4).
"""

import math

import tensorflow as tf

from tfzoo.config import TransformerConfig
from tfzoo.nn.basic import Dropout, _drop, draw_seed
from tfzoo.nn.layer import Layer
from tfzoo.nn.mask import Mask

# Size of a block of scores: fits into a CPU cache, yet large enough for an efficient matrix product.
ROWS, COLUMNS = 256, 512
MASKED = -1e9  # The value that mask_bias adds to a masked score.


class LeanAttention(Layer):
    """Computes what FullAttention computes: query [B, H, L, D], key and value [B, H, M, D], a Mask -> [B, H, L, D].

    Blocks that lie entirely in the future (causal) or entirely outside the window are skipped, unless an attention_mask
    is given.
    """

    def __init__(self, config: TransformerConfig, **kwargs):
        super().__init__(**kwargs)
        self.scale = None if config.scale_scores else 1.0
        self.dropout = Dropout(config.attention_dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, input_shape=None):
        self.dropout.build(input_shape)

    def call(self, query, key, value, masking, training=False):
        scale = 1 / math.sqrt(query.shape[-1]) if self.scale is None else self.scale
        return lean_attention(query, key, value, masking, scale, *(self._draw() if training else ()))

    def _draw(self):
        """Returns (seed, threshold) for `_drop`; () if nothing is dropped."""
        if self.dropout.seed_generator is None:
            return ()
        return draw_seed(self.dropout.seed_generator), min(round(self.dropout.rate * 65536), 65535)


def lean_attention(query, key, value, masking: Mask, scale, seed=None, threshold=0, rows=ROWS, columns=COLUMNS):
    """Returns softmax(scale query key^T + bias, masked) value, with dropout on the weights if a seed is given.

    Args:
      query: [B, H, L, D].
      key, value: [B, H, M, D].
      masking: a Mask; gradients reach its bias.
      scale: factor on the scores.
      seed: int32 [2]. Each block draws from the seed and its own position, so that the backward pass draws the same
        mask.
      threshold: dropout rate, in units of 1/65,536.
      rows, columns: size of a block.

    Returns:
      [B, H, L, D] in value's dtype. Sums are kept in float32.
    """
    tiles = _Tiles(query, key, masking, rows, columns)
    narrow = value.dtype

    @tf.custom_gradient
    def attend(query, key, value, *bias):
        parts = _Parts(tiles, query * tf.cast(scale, query.dtype), key, value, bias, seed, threshold)
        outs, maxima, sums = _forward(parts)

        def gradient(upstream):
            dqueries, dkeys, dvalues, dbias = _backward(parts, outs, maxima, sums, upstream, scale)
            gradients = [
                tf.cast(join_blocks(blocks.stack(), like), like.dtype)
                for blocks, like in ((dqueries, query), (dkeys, key), (dvalues, value))
            ]
            return *gradients, *(tf.cast(tiles.paste(dbias.stack(), x), x.dtype) for x in bias)

        return tf.cast(join_blocks(outs, query), narrow), gradient

    return attend(query, key, value, *([] if masking.bias is None else [masking.bias]))


class _Parts:
    """The operands in blocks: queries [N, B, H, rows, D], already scaled; keys and values [N, B, H, columns, D].

    bias: (), or a tuple of one bias.
    """

    def __init__(self, tiles: "_Tiles", query, key, value, bias, seed, threshold):
        self.tiles, self.bias, self._seed, self._threshold = tiles, bias, seed, threshold
        self.wide = tf.float64 if query.dtype == tf.float64 else tf.float32
        self.narrow = value.dtype
        self.queries = split_blocks(query, tiles.rows)
        self.keys, self.values = (split_blocks(x, tiles.columns) for x in (key, value))

    def scores(self, q, i, j):
        """Returns the scores [B, H, rows, columns] of block (i, j), whose queries are q."""
        s = tf.cast(tf.matmul(q, self.keys[j], transpose_b=True), self.wide)
        if self.bias:
            s += tf.cast(self.tiles.cut(self.bias[0], i, j), self.wide)
        hidden = self.tiles.hidden(i, j, self.wide)
        return s if hidden is None else s + hidden

    def dropped(self, x, i, j):
        if self._seed is None:
            return x
        fold = tf.random.experimental.stateless_fold_in
        return _drop(x, fold(fold(self._seed, i), j), self._threshold)


def _forward(parts: _Parts):
    """Returns (outputs, each row's largest score, its sum of exp(score - largest)), in blocks of rows."""
    tiles, wide, narrow = parts.tiles, parts.wide, parts.narrow

    def row(i, outs, maxima, sums):
        q = parts.queries[i]

        def column(j, result, maximum, total):
            s = parts.scores(q, i, j)
            above = tf.maximum(maximum, tf.reduce_max(s, -1, keepdims=True))
            weights = tf.exp(s - above)
            shrink = tf.exp(maximum - above)
            part = tf.matmul(tf.cast(parts.dropped(weights, i, j), narrow), parts.values[j])
            return (
                j + 1,
                result * shrink + tf.cast(part, wide),
                above,
                total * shrink + tf.reduce_sum(weights, -1, keepdims=True),
            )

        zero = tf.zeros_like(q[..., :1], wide)
        state = (tiles.first[i], zero + tf.zeros([parts.values.shape[4]], wide), zero + wide.min, zero)
        _, result, maximum, total = loop(lambda j, *_: j < tiles.end[i], column, state)
        return i + 1, outs.write(i, result / total), maxima.write(i, maximum), sums.write(i, total)

    arrays = [tf.TensorArray(wide, tiles.num_rows) for _ in range(3)]
    _, *arrays = loop(lambda i, *_: i < tiles.num_rows, row, (0, *arrays))
    # Maximum and sum are kept separately: if all keys are masked, the logarithm of their product would lose the sum.
    return tuple(array.stack() for array in arrays)


def _backward(parts: _Parts, outs, maxima, sums, upstream, scale):
    """Returns arrays of the gradients for queries, keys, values and, block by block, scores with a bias."""
    tiles, wide, narrow = parts.tiles, parts.wide, parts.narrow
    upstreams = split_blocks(upstream, tiles.rows)

    def row(i, dqueries, dkeys, dvalues, dbias):
        maximum = maxima[i]
        up = tf.cast(upstreams[i], wide) / sums[i]  # Replaces the division of the weights below by their sum.
        mean = tf.reduce_sum(up * outs[i], -1, keepdims=True)
        q, up = parts.queries[i], tf.cast(up, narrow)

        def column(j, dq, dkeys, dvalues, dbias):
            weights = tf.exp(parts.scores(q, i, j) - maximum)
            dv = tf.matmul(tf.cast(parts.dropped(weights, i, j), narrow), up, transpose_a=True)
            dweights = parts.dropped(tf.cast(tf.matmul(up, parts.values[j], transpose_b=True), wide), i, j)
            dscores = weights * (dweights - mean)
            if parts.bias:
                dbias = dbias.write(i * tiles.num_columns + j, _sum_to(dscores, tiles.cut(parts.bias[0], i, j)))
            dscores = tf.cast(dscores, narrow)
            dk = tf.matmul(dscores, q, transpose_a=True)
            return (
                j + 1,
                dq + tf.cast(tf.matmul(dscores, parts.keys[j]), wide),
                dkeys.write(j, dkeys.read(j) + tf.cast(dk, wide)),
                dvalues.write(j, dvalues.read(j) + tf.cast(dv, wide)),
                dbias,
            )

        state = (tiles.first[i], tf.zeros_like(q, wide), dkeys, dvalues, dbias)
        _, dq, *others = loop(lambda j, *_: j < tiles.end[i], column, state)
        return i + 1, dqueries.write(i, dq * scale), *others

    def zeros(blocks):
        array = tf.TensorArray(wide, tiles.num_columns, clear_after_read=False)
        return array.unstack(tf.zeros_like(blocks, wide))

    dbias = tf.TensorArray(wide, tiles.num_rows * tiles.num_columns if parts.bias else 0)
    state = (0, tf.TensorArray(wide, tiles.num_rows), zeros(parts.keys), zeros(parts.values), dbias)
    return loop(lambda i, *_: i < tiles.num_rows, row, state)[1:]


class _Tiles:
    """The partition of [L, M] scores into blocks, and what the masks allow in each block."""

    def __init__(self, query, key, masking: Mask, rows: int, columns: int):
        self.masking = masking
        self.length, self.memory = size(query, 2), size(key, 2)
        self.rows, self.columns = block_size(self.length, rows), block_size(self.memory, columns)
        self.num_rows, self.num_columns = -(-self.length // self.rows), -(-self.memory // self.columns)
        self.first, self.end = self._ranges()

    def _ranges(self):
        """Returns, for each row of blocks, the first block not skipped and the one after the last: int32 [num_rows]."""
        begin, end = self._visible(tf.range(self.num_rows * self.rows))
        first, last = (tf.reshape(x, [-1, self.rows]) for x in (begin // self.columns, -(-end // self.columns)))
        if self.masking.attention_mask is not None:
            return tf.zeros_like(first[:, 0]), tf.zeros_like(last[:, 0]) + self.num_columns
        # A row that may not attend to any key averages over all of them, including those of skipped blocks; no block is
        # skipped there.
        padding = self.masking.padding_mask
        seen = tf.ones([1, self.memory], tf.int32) if padding is None else tf.cast(padding, tf.int32)
        seen = tf.pad(tf.cumsum(seen, 1), [[0, 0], [1, 0]])
        blind = tf.reduce_any(tf.gather(seen, end, axis=1) <= tf.gather(seen, begin, axis=1), 0)
        blind = tf.reduce_any(tf.reshape(blind, [-1, self.rows]), 1)
        return (
            tf.where(blind, 0, tf.reduce_min(first, 1)),
            tf.where(blind, self.num_columns, tf.reduce_max(last, 1)),
        )

    def _visible(self, rows):
        """Returns the first key that each query may attend to, and the one after the last.

        Only causality and the window count. rows: int32 [N], the positions of the queries.
        """
        at = tf.minimum(rows, self.length - 1) + (self.memory - self.length)
        begin, end = tf.zeros_like(at), tf.zeros_like(at) + self.memory
        if self.masking.causal:
            end = tf.maximum(at + 1, 0)
            if self.masking.window:
                begin = tf.clip_by_value(at - self.masking.window + 1, 0, self.memory)
        return begin, end

    def hidden(self, i, j, dtype):
        """Returns what the masks add to the scores of block (i, j): 0, MASKED, or -inf past the last key.

        The result broadcasts to [B, H, rows, columns].
        """
        columns = j * self.columns + tf.range(self.columns)
        allowed = None
        if self.masking.causal:
            begin, end = self._visible(i * self.rows + tf.range(self.rows))
            allowed = ((columns >= begin[:, None]) & (columns < end[:, None]))[None, None]
        if self.masking.padding_mask is not None:
            padding = self.cut(tf.cast(self.masking.padding_mask, tf.bool)[:, None, None, :], None, j)
            allowed = padding if allowed is None else allowed & padding
        if self.masking.attention_mask is not None:
            tile = self.cut(self.masking.attention_mask, i, j)
            allowed = tile if allowed is None else allowed & tile
        zero = tf.zeros([], dtype)
        result = None if allowed is None else tf.where(allowed, zero, tf.cast(MASKED, dtype))
        if not isinstance(self.memory, int) or self.memory % self.columns:
            past = tf.where(columns < self.memory, zero, -math.inf)
            result = past if result is None else result + past
        return result

    def cut(self, x, i, j):
        """Returns block (i, j) of x [b, h, L, M], padded; with i None, x [b, h, 1, M] has one row for all."""
        rows, begin = (1, 0) if i is None else (self.rows, i * self.rows)
        if _divides(self.columns, self.memory) and (i is None or _divides(rows, self.length)):
            return tf.slice(x, [0, 0, begin, j * self.columns], [*tf.unstack(tf.shape(x)[:2]), rows, self.columns])
        part = x[:, :, begin : begin + rows, j * self.columns : (j + 1) * self.columns]
        missing = [rows - tf.shape(part)[2], self.columns - tf.shape(part)[3]]
        part = tf.pad(part, [[0, 0], [0, 0], [0, missing[0]], [0, missing[1]]])
        return known(part, [*x.shape[:2], rows, self.columns])

    def paste(self, blocks, like):
        """Inverts `cut`: blocks [num_rows * num_columns, b, h, rows, columns] -> [b, h, L, M]."""
        shape = tf.shape(blocks)
        grid = tf.reshape(blocks, tf.concat([[self.num_rows, self.num_columns], shape[1:]], 0))
        joined = tf.transpose(grid, [2, 3, 0, 4, 1, 5])
        joined = tf.reshape(joined, [shape[1], shape[2], self.num_rows * self.rows, self.num_columns * self.columns])
        return tf.reshape(joined[:, :, : self.length, : self.memory], tf.shape(like))


def size(x, axis: int):
    """Returns x's size along an axis: an int if it is static, else a tensor."""
    return tf.shape(x)[axis] if x.shape[axis] is None else x.shape[axis]


def block_size(length, block: int) -> int:
    """Returns `block`, or the length if it is static and shorter, so that a short sequence is not padded."""
    return min(block, length) if isinstance(length, int) else block


def known(x, shape):
    """Returns x with its shape set statically.

    A shape that is fully known is not asserted again, because XLA would treat its dimensions as dynamic.
    """
    return x if x.shape.is_fully_defined() else tf.ensure_shape(x, shape)


def split_blocks(x, block: int):
    """Splits x [B, H, L, D] into [N, B, H, block, D], padded with zeros at the end; at least one block."""
    length = size(x, 2)
    count = -(-length // block)
    if not isinstance(length, int):
        count = tf.maximum(count, 1)  # An array without blocks would have no shape.
    if not _divides(block, length):
        x = tf.pad(x, [[0, 0], [0, 0], [0, count * block - length], [0, 0]])
    shape = [size(x, 0), x.shape[1], count, block, x.shape[3]]
    return tf.transpose(tf.reshape(x, shape), [2, 0, 1, 3, 4])


def join_blocks(blocks, like):
    """Inverts `split_blocks`: [N, B, H, block, D] -> [B, H, L, D], where `like` is [B, H, L, anything]."""
    count, batch, heads, block, depth = (size(blocks, axis) for axis in range(5))
    joined = tf.reshape(tf.transpose(blocks, [1, 2, 0, 3, 4]), [batch, heads, count * block, depth])
    return known(joined[:, :, : size(like, 2)], [*like.shape[:3], blocks.shape[4]])


def loop(condition, body, state):
    """Runs tf.while_loop with one iteration at a time: parallel iterations would each hold their own blocks."""
    return tf.while_loop(condition, body, state, parallel_iterations=1)


def _divides(block: int, length) -> bool:
    return isinstance(length, int) and length % block == 0


def _sum_to(x, like):
    """Returns the gradient of broadcasting `like` to x's shape."""
    axes = tf.raw_ops.BroadcastGradientArgs(s0=tf.shape(x), s1=tf.shape(like))[1]
    return tf.reshape(tf.reduce_sum(x, axes), tf.shape(like))
