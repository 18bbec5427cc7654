"""Scaled dot-product attention, its masks and its implementations (Vaswani et al. 2017, section 3.2)."""

import itertools
import math
import random

import keras
import tensorflow as tf
from keras import ops

from tfzoo.config import TransformerConfig
from tfzoo.nn.basic import Dense, Dropout, RMSNorm, has_gradients, is_compiled, make_initializer
from tfzoo.nn.kernel import FavorAttention
from tfzoo.nn.layer import Layer
from tfzoo.nn.lean import LeanAttention, size
from tfzoo.nn.mask import Mask
from tfzoo.nn.position import rotate

LONG, PARTS = 512, 4  # From LONG tokens on, causal_attention divides a text into PARTS.


def dot_product_attention(query, key, value, bias=None, dropout=None, scale=None):
    """Returns softmax(scale query key^T + bias) value.

    Args:
      query: [B, H, L, D].
      key, value: [B, H, M, D].
      bias: additive, broadcast to [B, H, L, M]; `mask_bias` converts a mask to one.
      dropout: a function applied to the attention weights.
      scale: factor on the scores; None means 1 / sqrt(D).

    Returns:
      [B, H, L, D]. With float16 inputs the softmax is computed in float32, because scores can exceed float16's range.
    """
    # Scaling the key takes M/D times less work than scaling the scores. The query is not scaled, because TensorFlow
    # would fuse the scaling, the product and a bias with one row per query into one operation that has no gradient and
    # takes oneDNN 25 times as long.
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = tf.matmul(query, key * scale, transpose_b=True)
    if bias is not None:
        scores = scores + bias
    if scores.dtype == "float16":
        scores = ops.cast(scores, "float32")
    weights = ops.cast(tf.nn.softmax(scores), value.dtype)
    if dropout is not None:
        weights = dropout(weights)
    return ops.matmul(weights, value)


def cached_attention(query, key, value, bias, scale=None):
    """Computes `dot_product_attention` for keys and values that may have fewer heads than the queries.

    Args:
      query: [B, H, L, D].
      key, value: [B, G, M, D]; each of the G heads serves H / G query heads and is read once for all of them.
      bias, scale: as in `dot_product_attention`.

    Returns:
      [B, H, L, D].
    """
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    one = query.shape[2] == 1
    if one:
        # The reshape prevents TensorFlow 2.20 from fusing the scaling, the product and the bias. The fused operation
        # always reads the first output of the node that produces the bias; in a loop that node is a Switch, and the
        # bias is its second output.
        flat = ops.reshape(query, (-1, query.shape[1] * query.shape[3]))
        query = ops.reshape(flat * scale, (-1, *query.shape[1:]))
    else:
        key = key * scale  # As in dot_product_attention.
    grouped = key.shape[1] < query.shape[1]
    if grouped:
        shape, groups = ops.shape(query), key.shape[1]
        query = ops.reshape(query, (-1, groups, shape[1] // groups * shape[2], shape[3]))
    product = _eigen_product if one and query.dtype == tf.float32 and not is_compiled() else tf.matmul
    scores = product(query, key, transpose_b=True)
    if grouped:
        rows = ops.shape(scores)
        scores = ops.reshape(scores, (*shape[:3], -1))
    if bias is not None:
        scores = scores + bias
    if scores.dtype == tf.float16:
        scores = ops.cast(scores, "float32")
    if product is _eigen_product:
        weights = tf.exp(scores - tf.reduce_max(scores, -1, keepdims=True))
        weights = weights / tf.reduce_sum(weights, -1, keepdims=True)
    else:
        weights = ops.cast(tf.nn.softmax(scores), value.dtype)
    if not grouped:
        return product(weights, value)
    return ops.reshape(product(ops.reshape(weights, rows), value), shape)


def _eigen_product(x, y, transpose_b=False):
    """Computes tf.matmul without oneDNN, which takes 50 us longer for each small product or softmax."""
    return tf.raw_ops.BatchMatMulV3(x=x, y=y, Tout=x.dtype, adj_y=transpose_b)


def causal_attention(query, key, value, bias, scale=None):
    """Computes `cached_attention` for a bias that excludes later keys, which are mostly left out.

    A long text is divided into parts of consecutive queries, each of which is multiplied only by the keys up to its own
    end: 5/8 of the products and of the softmax, on scores that fit into the CPU's cache.

    Args:
      query: [B, H, L, D].
      key, value: [B, G, M, D]; query i is the one of key i + (M - L).
      bias: [B or 1, H or 1, L, M], so low after a query's own key that the weights there are 0.
      scale: as in `dot_product_attention`.

    Returns:
      [B, H, L, D].
    """
    length = size(query, 2)
    past = size(key, 2) - length

    def whole():
        return cached_attention(query, key, value, bias, scale)

    def parts():
        ends = [length * i // PARTS for i in range(PARTS + 1)]
        return tf.concat(
            [
                cached_attention(
                    query[:, :, begin:end],
                    key[:, :, : past + end],
                    value[:, :, : past + end],
                    bias[:, :, begin:end, : past + end],
                    scale,
                )
                for begin, end in itertools.pairwise(ends)
            ],
            axis=2,
        )

    if isinstance(length, int):
        return parts() if length >= LONG else whole()
    if has_gradients():
        return tf.cond(length >= LONG, parts, whole)
    # In decoding, the parts are a function that is not inlined, so that they are neither optimized nor prepared until
    # there is a long text. LiteRT does not support such functions.
    rarely = tf.function(parts, autograph=False, experimental_attributes={"_noinline": True})
    return tf.cond(length >= LONG, rarely, whole)


class FullAttention(Layer):
    """Attention that holds all scores of its queries: query [B, H, L, D], key and value [B, H, M, D] -> [B, H, L, D].

    Without dropout, causal attention may have fewer key and value heads than query heads, and leaves out most scores
    that would be masked; see `causal_attention`.
    """

    def __init__(self, config: TransformerConfig, **kwargs):
        super().__init__(**kwargs)
        self.scale = None if config.scale_scores else 1.0
        self.dropout = Dropout(config.attention_dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, input_shape=None):
        self.dropout.build()

    def call(self, query, key, value, masking: Mask, training=False):
        # If a stack has folded the mask already, the lengths would only add operations to the graph.
        query_length, key_length = (ops.shape(x)[2] if masking.causal else None for x in (query, key))
        masking = masking.fold(query_length, key_length, query.dtype)
        if masking.folded_causal and not training:
            return causal_attention(query, key, value, masking.bias, self.scale)
        return dot_product_attention(
            query, key, value, masking.bias, lambda weights: self.dropout(weights, training=training), self.scale
        )


# config.attention -> layer class, constructed with (config) and called with (query [B, H, L, D], key, value [B, H, M,
# D], masking=Mask) -> [B, H, L, D].
KINDS: dict[str, type[keras.layers.Layer]] = {"full": FullAttention, "lean": LeanAttention, "favor": FavorAttention}


class Attention(Layer):
    """Multi-head attention: x [B, L, E] (and memory [B, M, E]) -> [B, L, E].

    With fewer key/value heads than query heads, each key/value head serves a group of query heads (grouped-query
    attention, Ainslie et al. 2023).

    Args:
      config: the model's TransformerConfig.
      cross: whether the layer attends to a memory (cross-attention).
    """

    def __init__(self, config: TransformerConfig, cross: bool = False, **kwargs):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.num_heads = config.num_heads
        self.num_kv_heads = config.resolved_num_kv_heads
        self.head_dim = config.resolved_head_dim
        # With one seed, matrices of the same shape start equal up to their roles' standard deviations.
        same_seed = config.attention_initializer in ("alike", "cross_alike" if cross else "alike")
        seed = random.randint(1, 10**9) if same_seed else None
        self.query, self.key, self.value, self.output_projection = (
            Dense(
                size,
                use_bias=use_bias,
                kernel_initializer=make_initializer(config, role, seed),
                dtype=policy,
                name=name,
            )
            for name, size, use_bias, role in (
                ("query", self.num_heads * self.head_dim, config.biases != "none", "query"),
                ("key", self.num_kv_heads * self.head_dim, config.biases != "none", "kernel"),
                ("value", self.num_kv_heads * self.head_dim, config.biases != "none", "kernel"),
                ("output", config.hidden_size, config.biases == "all", "residual"),
            )
        )
        self.query_norm = self.key_norm = None
        if config.qk_norm:
            self.query_norm, self.key_norm = (
                RMSNorm(config.norm_epsilon, dtype=policy, name=name) for name in ("query_norm", "key_norm")
            )
        self.kernel = KINDS[config.attention](config, dtype=policy, name="kernel")

    def build(self, x_shape, memory_shape=None):
        self.query.build(x_shape)
        self.key.build(memory_shape or x_shape)
        self.value.build(memory_shape or x_shape)
        self.output_projection.build((*x_shape[:-1], self.num_heads * self.head_dim))
        for norm in (self.query_norm, self.key_norm):
            if norm is not None:
                norm.build((None, None, None, self.head_dim))
        self.kernel.build()

    def call(self, x, masking=None, rotary=None, memory=None, length=None, cache=None, training=False):
        """Attends from x to itself, to a memory or to cached keys and values.

        Args:
          x: [B, L, E], or [B L, E] together with `length`.
          masking: a Mask.
          rotary: the tables that `rotary_tables` returns.
          memory: [B, M, E], the sequence to attend to; None means x itself.
          length: L, required when x is [B L, E], as in a Stack.
          cache: an AttentionCache. An empty cache is filled. A filled cache is extended by x's keys and values and
            read; one without room is read instead of a memory.
          training: whether to apply dropout.
        """
        length = ops.shape(x)[1] if length is None else length
        query = self._split(self.query(x), length, self.num_heads, self.query_norm)
        if rotary is not None:
            query = rotate(query, rotary)
        if cache is not None and cache.filled:
            if cache.room is None:
                key, value = cache.key, cache.value
            else:
                key, value = cache.extend(*self._key_and_value(x, length, rotary))
            result = cached_attention(query, key, value, masking.bias, self.kernel.scale)
        else:
            memory, memory_length = (x, length) if memory is None else (memory, ops.shape(memory)[1])
            key, value = self._key_and_value(memory, memory_length, rotary)
            if cache is not None:
                cache.fill(key, value)
            masking = masking or Mask()
            if self.num_kv_heads < self.num_heads and (training or not masking.folded_causal):
                key, value = (ops.repeat(t, self.num_heads // self.num_kv_heads, axis=1) for t in (key, value))
            result = self.kernel(query, key, value, masking=masking, training=training)
        rows = (-1,) if len(x.shape) == 2 else ops.shape(x)[:-1]
        # With one token per row, the elements keep their order.
        result = result if result.shape[2] == 1 else _swap(result)
        return self.output_projection(ops.reshape(result, (*rows, self.num_heads * self.head_dim)))

    def _key_and_value(self, x, length, rotary):
        key = self._split(self.key(x), length, self.num_kv_heads, self.key_norm)
        value = self._split(self.value(x), length, self.num_kv_heads)
        return key if rotary is None else rotate(key, rotary), value

    def _split(self, x, length, num_heads, norm=None):  # [B, L, H D] or [B L, H D] -> [B, H, L, D]
        one = isinstance(length, int) and length == 1
        x = ops.reshape(x, (-1, num_heads, 1, self.head_dim) if one else (-1, length, num_heads, self.head_dim))
        x = x if norm is None else norm(x)
        return x if one else _swap(x)


def _swap(x):  # [B, L, H, D] <-> [B, H, L, D]
    if 1 in x.shape[1:3]:  # The elements keep their order, so nothing needs to be copied.
        dynamic = None in x.shape[1:]
        rows, first, second, width = ops.shape(x) if dynamic else (-1, *x.shape[1:])
        return ops.reshape(x, (rows, second, first, width))
    # On a CPU tf.transpose uses oneDNN. The operation behind einsum copies a small tensor in a fifth of oneDNN's time,
    # and a large tensor in the same time.
    return tf.einsum("blhd->bhld", x)
