"""Token, position and segment embeddings."""

import math

import keras
import tensorflow as tf
from keras import ops

from tfzoo.config import TransformerConfig
from tfzoo.nn.basic import Dropout, LayerNorm, read
from tfzoo.nn.position import sinusoidal_positions


class TokenEmbedding(keras.layers.Layer):
    """token_ids [B, L] -> [B, L, E]; `attend` is the tied output: x [..., E] -> logits [..., V]."""

    def __init__(self, vocab_size, hidden_size, initializer="uniform", **kwargs):
        super().__init__(**kwargs)
        self.vocab_size, self.hidden_size, self.initializer = vocab_size, hidden_size, initializer

    def build(self, input_shape=None):
        self.embeddings = self.add_weight(
            shape=(self.vocab_size, self.hidden_size), initializer=self.initializer, name="embeddings"
        )

    def call(self, token_ids):
        return ops.take(read(self.embeddings), token_ids, axis=0)

    def attend(self, x):
        shape = ops.shape(x)
        flat = ops.reshape(ops.cast(x, self.compute_dtype), (-1, self.hidden_size))
        table = ops.cast(read(self.embeddings), self.compute_dtype)
        return ops.reshape(tf.matmul(flat, table, transpose_b=True), (*shape[:-1], self.vocab_size))


class Embeddings(keras.layers.Layer):
    """token_ids [B, L] (segment_ids [B, L], position_ids [B, L]) -> sum of the embeddings [B, L, E].

    With norm_first the blocks normalise what they read, and the sum stays as it is; otherwise a norm follows.
    Dropout follows in both cases.
    """

    def __init__(self, config: TransformerConfig, **kwargs):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.config = config
        self.initializer = keras.initializers.TruncatedNormal(stddev=config.initializer_range)
        self.tokens = TokenEmbedding(
            config.vocab_size, config.hidden_size, self.initializer, dtype=policy, name="tokens"
        )
        self.norm = None if config.norm_first else LayerNorm(config.norm_epsilon, dtype=policy, name="norm")
        self.dropout = Dropout(config.dropout, dtype=policy, name="dropout")

    def build(self, input_shape=None):
        config, initializer = self.config, self.initializer
        self.tokens.build()
        shape = (config.max_positions, config.hidden_size)
        self.positions = self.segments = None
        if config.positions == "learned":
            self.positions = self.add_weight(shape=shape, initializer=_position_initializer(config), name="positions")
        if config.num_segments:
            self.segments = self.add_weight(
                shape=(config.num_segments, config.hidden_size),
                initializer=initializer.clone(),
                name="segments",
            )
        if self.norm is not None:
            self.norm.build((None, None, config.hidden_size))

    def call(self, token_ids, segment_ids=None, position_ids=None, training=False):
        length = ops.shape(token_ids)[1]
        if isinstance(length, int) and length > self.config.max_positions:
            raise ValueError(f"the length {length} exceeds max_positions ({self.config.max_positions})")
        if self.positions is not None:
            table = read(self.positions)
        else:
            table = ops.convert_to_tensor(sinusoidal_positions(self.config.max_positions, self.config.hidden_size))
        x = self.tokens(token_ids)
        # With positions 0, 1, 2, ... a slice serves every row, and its gradient is a plain sum.
        position = table[None, :length] if position_ids is None else ops.take(table, position_ids, axis=0)
        x = x + ops.cast(position, x.dtype)
        if self.segments is not None:
            table = ops.cast(read(self.segments), x.dtype)
            if segment_ids is None:
                x = x + table[0]
            else:  # A product with few rows: a gather's gradient would add all tokens into two of them.
                x = x + ops.matmul(ops.one_hot(segment_ids, self.config.num_segments, dtype=x.dtype), table)
        if self.norm is not None:
            x = self.norm(x)
        return self.dropout(x, training=training)


def _position_initializer(config: TransformerConfig):
    if config.position_initializer == "normal":
        return keras.initializers.TruncatedNormal(stddev=config.initializer_range)

    def sinusoidal(shape, dtype=None):
        # A shift is a rotation of sinusoids, which attention finds far sooner than it finds the order of random
        # vectors. Scaled from their own deviation, sqrt(1/2), to that of the other embeddings.
        return ops.cast(sinusoidal_positions(*shape) * (config.initializer_range * math.sqrt(2)), dtype)

    return sinusoidal
