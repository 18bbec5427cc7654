"""Scaled dot-product attention and its masks (Vaswani et al. 2017, section 3.2)."""

import math

import keras
import tensorflow as tf
from keras import ops

from tfzoo.nn.basic import Dense, Dropout


def padding_attention_mask(padding_mask):
    """padding_mask [B, M] bool, True is a real token -> attention_mask [B, 1, 1, M]."""
    return ops.cast(padding_mask, "bool")[:, None, None, :]


def causal_mask(query_length, key_length):
    """attention_mask [1, 1, L, M]: the last query sees every key, each one before it one key fewer."""
    rows = ops.arange(query_length)[:, None] + (key_length - query_length)
    return (ops.arange(key_length)[None, :] <= rows)[None, None]


def mask_bias(attention_mask, dtype):
    """attention_mask bool, True attends -> additive bias of the same shape: 0, or a large finite negative.

    Finite, so that a row that may attend to nothing gives equal weights and not NaN.
    """
    masked = -3e4 if keras.backend.standardize_dtype(dtype) == "float16" else -1e9
    return ops.cast(ops.logical_not(attention_mask), dtype) * masked


def dot_product_attention(query, key, value, bias=None, dropout=None):
    """softmax(query key^T / sqrt(D) + bias) value.

    Args:
      query: [B, H, L, D].
      key, value: [B, H, M, D].
      bias: additive, broadcast to [B, H, L, M]; `mask_bias` makes one of a mask.
      dropout: applied to the weights.

    Returns:
      [B, H, L, D]. The softmax is computed in float32 under float16, whose range it would leave.
    """
    # Scaling the query costs M/D times less than scaling the scores.
    scores = ops.matmul(query * (1 / math.sqrt(query.shape[-1])), ops.swapaxes(key, -1, -2))
    if bias is not None:
        scores = scores + bias
    if scores.dtype == "float16":
        scores = ops.cast(scores, "float32")
    weights = ops.cast(tf.nn.softmax(scores), value.dtype)
    if dropout is not None:
        weights = dropout(weights)
    return ops.matmul(weights, value)


class Attention(keras.layers.Layer):
    """Multi-head attention: x [B, L, E] (and memory [B, M, E]) -> [B, L, E]."""

    def __init__(self, hidden_size, num_heads, dropout=0.0, initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size ({hidden_size}) must be a multiple of num_heads ({num_heads})")
        self.num_heads, self.head_dim = num_heads, hidden_size // num_heads
        policy = self.dtype_policy
        self.query, self.key, self.value, self.output_projection = (
            Dense(hidden_size, kernel_initializer=initializer, dtype=policy, name=name)
            for name in ("query", "key", "value", "output")
        )
        self.dropout = Dropout(dropout, dtype=policy, name="dropout")

    def build(self, input_shape, memory_shape=None):
        self.query.build(input_shape)
        self.key.build(memory_shape or input_shape)
        self.value.build(memory_shape or input_shape)
        self.output_projection.build(input_shape)

    def call(self, x, bias=None, memory=None, training=False):
        """bias: additive, broadcast to [B, H, L, M]. memory: what to attend to, where it is not x itself."""
        memory = x if memory is None else memory
        query, key, value = (
            self._split(projection(source))
            for projection, source in ((self.query, x), (self.key, memory), (self.value, memory))
        )
        result = dot_product_attention(query, key, value, bias, lambda w: self.dropout(w, training=training))
        return self.output_projection(ops.reshape(ops.transpose(result, (0, 2, 1, 3)), ops.shape(x)))

    def _split(self, x):  # [B, L, E] -> [B, H, L, D]
        shape = ops.shape(x)
        return ops.transpose(ops.reshape(x, (shape[0], shape[1], self.num_heads, self.head_dim)), (0, 2, 1, 3))
