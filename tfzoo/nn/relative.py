"""Two-stream attention with relative positions and a memory (Yang et al. 2019, section 2; Dai et al. 2019).

The content stream is a bidirectional encoder with relative positions. The query stream predicts tokens: it starts from
the same vector at every position, so that it knows the position of its token but not the token, and it reads from the
content stream what the permutation mask allows. Both streams share weights.
"""

import dataclasses
import math

import numpy as np
import tensorflow as tf
from keras import ops

from tfzoo.config import TransformerConfig
from tfzoo.nn.attention import dot_product_attention
from tfzoo.nn.basic import Dropout, _matmul, make_initializer, make_norm, read
from tfzoo.nn.block import MLP
from tfzoo.nn.embedding import Embeddings
from tfzoo.nn.layer import Layer
from tfzoo.nn.mask import mask_bias


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoStreamConfig(TransformerConfig):
    """The config of a two-stream stack."""

    embedding_norm: bool = False
    positions: str = "none"  # Attention adds relative positions at any length.
    memory_length: int = 0  # Number of positions that a memory keeps; 0: all.

    def __post_init__(self):
        super().__post_init__()
        self._require(self.memory_length >= 0, "memory_length", "must be at least 0")
        self._require(self.hidden_size % 2 == 0, "hidden_size", "must be even for sinusoidal positions")


def relative_sinusoids(query_length, key_length, size: int):
    """Returns encodings [M + L, size], float32, of the distances from M (behind every key) down to 1 - L (ahead).

    The first half of the elements is sin(distance / 10000^(2i/size)), the second half the cosines. The lengths may be
    tensors.
    """
    distances = tf.range(key_length, -query_length, -1)
    rates = tf.constant(10000 ** (-np.arange(0, size, 2) / size), tf.float32)
    angles = tf.expand_dims(tf.cast(distances, tf.float32), 1) * rates
    return tf.concat([tf.sin(angles), tf.cos(angles)], -1)


def relative_shift(scores):
    """Converts scores by distance [H, B, L, M + L] to scores by key [H, B, L, M].

    Distances are in the order of `relative_sinusoids`. The last query is M - 1 away from the first key, each earlier
    query one less: row i starts at column L - i. In the flattened array that is a step of one less than the row length.
    """
    heads, batch, length, width = ops.shape(scores)
    # tf.slice, because the gradient of x[...] takes ten times as long.
    rows = tf.slice(ops.reshape(scores, (-1, length * width)), (0, length), (-1, -1))
    keys = tf.slice(ops.reshape(rows, (-1, width - 1)), (0, 0), (-1, width - length))
    return ops.reshape(keys, (heads, batch, length, width - length))


class Projection(Layer):
    """A projection without bias: x [..., E] -> [..., H D] or, with `turned`, [..., H D] -> [..., E].

    The kernel is [E, H, D] in both cases.
    """

    def __init__(self, config: TransformerConfig, turned: bool = False, **kwargs):
        super().__init__(**kwargs)
        head_dim = config.resolved_head_dim
        self.config, self.turned, self.shape = config, turned, (config.hidden_size, config.num_heads, head_dim)

    def build(self, input_shape=None):
        self.kernel = self.add_weight(shape=self.shape, initializer=make_initializer(self.config), name="kernel")

    def call(self, x):
        kernel = ops.reshape(read(self.kernel), (self.shape[0], -1))
        if self.turned:
            kernel = ops.transpose(kernel)
        shape = ops.shape(x)
        y = _matmul(ops.reshape(x, (-1, kernel.shape[0])), kernel)
        return ops.reshape(y, (*shape[:-1], kernel.shape[1]))


class RelativeAttention(Layer):
    """Multi-head attention that scores a key by content, distance and segment.

    A score is ((query + content_bias) key + (query + position_bias) relative(distance) + (query + segment_bias)
    segments[differs]) / sqrt(D), where query, key and relative are projections without bias.

    Internally the head axis precedes the batch axis: all rows share the distances, and TensorFlow 2.20's product of [B,
    1, L, D] and [1, D, M] writes out of bounds.
    """

    def __init__(self, config: TransformerConfig, **kwargs):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.config, self.num_heads = config, config.num_heads
        self.head_dim = config.resolved_head_dim
        self.query, self.key, self.value, self.relative, self.output_projection = (
            Projection(config, name == "output", dtype=policy, name=name)
            for name in ("query", "key", "value", "relative", "output")
        )
        self.dropout = Dropout(config.attention_dropout, dtype=policy, name="dropout")

    def build(self, input_shape):
        for layer in (self.query, self.key, self.value, self.relative, self.output_projection, self.dropout):
            layer.build()
        self.content_bias, self.position_bias, self.segment_bias, self.segments = (
            self.add_weight(
                shape=(*shape, self.num_heads, self.head_dim), initializer=make_initializer(self.config), name=name
            )
            for name, shape in (
                ("content_bias", ()),
                ("position_bias", ()),
                ("segment_bias", ()),
                ("segments", (2,)),  # The key's segment is the query's, or differs from it.
            )
        )

    def keys(self, memory, positions):
        """Returns key and value [H, B, M, D] and relative [H, D, M + L].

        Args:
          memory: [B, M, E].
          positions: [M + L, E].
        """
        relative = ops.reshape(self.relative(positions), (-1, self.num_heads, self.head_dim))
        return self._split(self.key(memory)), self._split(self.value(memory)), ops.transpose(relative, (1, 2, 0))

    def call(self, x, keys, bias=None, other_segment=None, target_mapping=None, training=False):
        """Attends from x to the keys and returns a tensor of x's shape.

        Args:
          x: [B, L, E], or [B, P, E] with a target_mapping.
          keys: the result of `keys`.
          bias: additive, broadcast to [B, L, M].
          other_segment: [B, L, M] of x's dtype, 1 where the key's segment differs from the query's, else 0.
          target_mapping: [B, P, L] of x's dtype, one-hot: the position of each x.
          training: whether to apply dropout.
        """
        key, value, relative = keys
        query = self.query(x)
        if target_mapping is not None:
            query = ops.matmul(ops.swapaxes(target_mapping, 1, 2), query)
        query = self._split(query)
        scale = 1 / math.sqrt(self.head_dim)
        position = (query + self._bias(self.position_bias)) * scale
        heads, batch, length, _ = ops.shape(position)
        scores = ops.matmul(ops.reshape(position, (heads, batch * length, self.head_dim)), relative)
        scores = relative_shift(ops.reshape(scores, (heads, batch, length, -1)))
        if other_segment is not None:
            # A softmax is invariant to a constant added to a row, so the difference of the two scores suffices.
            same, other = tf.unstack(read(self.segments))
            step = (query + self._bias(self.segment_bias)) * ((other - same) * scale)[:, None, None]
            scores += ops.sum(step, -1, keepdims=True) * other_segment
        if bias is not None:
            scores += bias
        query += self._bias(self.content_bias)
        y = dot_product_attention(query, key, value, scores, lambda w: self.dropout(w, training=training))
        y = ops.reshape(ops.transpose(y, (1, 2, 0, 3)), (batch, length, heads * self.head_dim))
        if target_mapping is not None:
            y = ops.matmul(target_mapping, y)
        return self.output_projection(y)

    def _split(self, x):  # [B, L, E] -> [H, B, L, D]
        shape = ops.shape(x)
        return ops.transpose(ops.reshape(x, (shape[0], shape[1], self.num_heads, self.head_dim)), (2, 0, 1, 3))

    def _bias(self, variable):  # [H, D] -> [H, 1, 1, D]
        return read(variable)[:, None, None]


class TwoStreamBlock(Layer):
    """Attention and an MLP, each followed by a residual sum and a norm, for one stream or for both.

    content [B, L, E], query [B, P, E] or None, positions [M + L, E] -> (content, query) of the same shapes.
    """

    def __init__(self, config: TransformerConfig, **kwargs):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.attention = RelativeAttention(config, dtype=policy, name="attention")
        self.self_norm = make_norm(config, dtype=policy, name="self_norm")
        self.mlp = MLP(config, dtype=policy, name="mlp")
        self.mlp_norm = make_norm(config, dtype=policy, name="mlp_norm")
        self.self_dropout, self.inner_dropout, self.mlp_dropout = (
            Dropout(config.dropout, dtype=policy, name=name)
            for name in ("self_dropout", "inner_dropout", "mlp_dropout")
        )

    def build(self, input_shape):
        for layer in (self.attention, self.self_norm, self.mlp, self.mlp_norm):
            layer.build(input_shape)
        for dropout in (self.self_dropout, self.inner_dropout, self.mlp_dropout):
            dropout.build()

    def call(
        self,
        content,
        query,
        positions,
        previous=None,
        content_bias=None,
        query_bias=None,
        other_segment=None,
        target_mapping=None,
        training=False,
    ):
        """Applies the block to both streams.

        previous: [B, M - L, E], this block's inputs for the previous segment. The other arguments are as for
        RelativeAttention.
        """
        keys = self.attention.keys(content if previous is None else ops.concatenate([previous, content], 1), positions)

        def stream(x, bias, mapping=None):
            y = self.attention(x, keys, bias, other_segment, mapping, training=training)
            x = self.self_norm(x + self.self_dropout(y, training=training))
            y = self.mlp.down(self.inner_dropout(self.mlp.up(x), training=training))
            return self.mlp_norm(x + self.mlp_dropout(y, training=training))

        if query is not None:
            query = stream(query, query_bias, target_mapping)
        return stream(content, content_bias), query


class TwoStreamStack(Layer):
    """A sequence of TwoStreamBlocks: content [B, L, E] -> content, query [B, P, E] or None, memory or None."""

    def __init__(self, config: TwoStreamConfig, **kwargs):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.config = config
        self.blocks = [TwoStreamBlock(config, dtype=policy, name=f"layer_{i}") for i in range(config.num_layers)]
        self.dropout = Dropout(config.dropout, dtype=policy, name="dropout")

    def build(self, input_shape):
        for block in self.blocks:
            block.build(input_shape)
        self.dropout.build()
        self.query_start = self.add_weight(
            shape=(1, 1, input_shape[-1]), initializer=make_initializer(self.config), name="query_start"
        )

    def call(
        self,
        content,
        target_mapping=None,
        segment_ids=None,
        padding_mask=None,
        permutation_mask=None,
        previous_sequence=None,
        previous_mask=None,
        training=False,
    ):
        """Applies the blocks.

        The masks define what may be attended to. In the content stream a token always attends to itself.

        Args:
          content: embedded tokens [B, L, E].
          target_mapping: [B, P, L], one-hot, the positions to predict. None: no query stream.
          segment_ids: [B, L]. A memory counts as segment 0.
          padding_mask: [B, L], True is a real token.
          permutation_mask: [B, L, L], True where position i (second axis) may attend to token j (third axis); False on
            the diagonal where i is to be predicted. A target that may not attend to anything, not even a memory, gets
            the mean of all values, its own included, as in the authors' code; every target should be able to attend to
            something.
          previous_sequence: [layers, B, N, E], the blocks' inputs for the previous segment; N may be 0.
          previous_mask: [B, N], True where the memory holds a real token; None: everywhere.
          training: whether to apply dropout.

        Returns:
          The streams' last states, and previous_sequence for the next call, which passes no gradient on: the last
            memory_length positions (0: all) of the memory and the segment; None if no previous_sequence was given.
        """
        batch, length, size = ops.shape(content)
        past = 0 if previous_sequence is None else ops.shape(previous_sequence[0])[1]
        dtype = content.dtype
        content_bias = query_bias = other_segment = None
        visible = None if padding_mask is None else ops.expand_dims(ops.cast(padding_mask, "bool"), 1)
        if permutation_mask is not None:
            permutation_mask = ops.cast(permutation_mask, "bool")
            visible = permutation_mask if visible is None else visible & permutation_mask
        if visible is None and previous_mask is not None:
            visible = tf.ones([1, 1, length], tf.bool)
        if visible is not None:
            places = tf.range(length)
            seen = tf.equal(tf.expand_dims(places, 1), places) | visible
            seen, visible = (
                tf.pad(mask, [[0, 0], [0, 0], [past, 0]], constant_values=True) for mask in (seen, visible)
            )
            if previous_mask is not None:
                real = tf.expand_dims(ops.cast(previous_mask, "bool"), 1)
                real = tf.pad(real, [[0, 0], [0, 0], [0, length]], constant_values=True)
                seen, visible = seen & real, visible & real
            content_bias, query_bias = mask_bias(seen, dtype), mask_bias(visible, dtype)
        if segment_ids is not None:
            rows = ops.cast(segment_ids, "int32")
            keys = tf.pad(rows, [[0, 0], [past, 0]])
            other_segment = ops.cast(ops.not_equal(ops.expand_dims(rows, 2), ops.expand_dims(keys, 1)), dtype)
        positions = ops.cast(relative_sinusoids(length, past + length, size), dtype)
        positions = self.dropout(positions, training=training)
        query = None
        if target_mapping is not None:
            target_mapping = ops.cast(target_mapping, dtype)
            query = ops.broadcast_to(read(self.query_start), (batch, ops.shape(target_mapping)[1], size))
            query = self.dropout(query, training=training)
        memories = []
        for i, block in enumerate(self.blocks):
            previous = None if previous_sequence is None else previous_sequence[i]
            if previous is not None:
                memories.append(ops.concatenate([previous, content], 1)[:, -self.config.memory_length :])
            content, query = block(
                content,
                query,
                positions,
                previous,
                content_bias,
                query_bias,
                other_segment,
                target_mapping,
                training=training,
            )
        content = self.dropout(content, training=training)
        query = None if query is None else self.dropout(query, training=training)
        return content, query, ops.stop_gradient(ops.stack(memories)) if memories else None


class TwoStreamTower(Layer):
    """Embeddings and a TwoStreamStack: token_ids [B, L] and the stack's other arguments -> a dict of outputs.

    The outputs are sequence [B, L, E] and, if requested, query_sequence [B, P, E] and previous_sequence.
    """

    def __init__(self, config: TwoStreamConfig, **kwargs):
        super().__init__(**kwargs)
        self.embeddings = Embeddings(config, dtype=self.dtype_policy, name="embeddings")
        self.stack = TwoStreamStack(config, dtype=self.dtype_policy, name="stack")

    def build(self, input_shape=None):
        self.embeddings.build()
        self.output_shape = (None, None, self.stack.config.hidden_size)
        self.stack.build(self.output_shape)

    def call(self, token_ids, training=False, **rest):
        states = self.stack(self.embeddings(token_ids, training=training), **rest, training=training)
        outputs = dict(zip(("sequence", "query_sequence", "previous_sequence"), states))
        return {name: state for name, state in outputs.items() if state is not None}
