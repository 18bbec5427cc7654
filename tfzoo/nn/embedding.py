"""Token, position and segment embeddings."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from keras import ops

from tfzoo.config import TransformerConfig
from tfzoo.nn.basic import Dense, Dropout, make_initializer, make_norm, read, rows_of
from tfzoo.nn.layer import Layer
from tfzoo.nn.position import sinusoidal_positions

SOME_ROWS = 4  # Rows from which a product with the rows as columns is faster (two cores, GPT-2's 50,257 tokens).
TURNED = 16  # Number of products above which a transposed copy of the table pays off.


class TokenEmbedding(Layer):
    """A token embedding: token_ids [B, L] -> [B, L, E].

    `attend` is the tied output projection: x [..., E] -> logits [..., V].
    """

    stored: Any = None  # A StoredMatrix that replaces `embeddings`; see `store_weights`.

    def __init__(self, vocab_size, hidden_size, initializer="uniform", **kwargs):
        super().__init__(**kwargs)
        self.vocab_size, self.hidden_size, self.initializer = vocab_size, hidden_size, initializer
        self._product: Callable[[Any], Any] | None = None

    def build(self, input_shape=None):
        self.embeddings = self.add_weight(
            shape=(self.vocab_size, self.hidden_size), initializer=self.initializer, name="embeddings"
        )

    def call(self, token_ids):
        if self.stored is not None:
            return ops.cast(self.stored.rows(token_ids), self.compute_dtype)
        return rows_of(read(self.embeddings), token_ids)

    def attend(self, x):
        shape = ops.shape(x)
        flat = ops.reshape(ops.cast(x, self.compute_dtype), (-1, self.hidden_size))
        if self.stored is not None:
            logits = self.stored.product(flat, logits=True)
        elif self._product is not None:
            logits = self._product(flat)
        else:
            logits = tf.matmul(flat, self._table(), transpose_b=True)
        return ops.reshape(logits, (*shape[:-1], self.vocab_size))

    @contextlib.contextmanager
    def for_steps(self, rows, tokens, jit_compile: bool = False):
        """Prepares `attend` for repeated calls with few rows, as in a decoding loop, while the context is active.

        Args:
          rows: scalar int tensor, the usual number of rows of a call.
          tokens: scalar int tensor, the number of calls.
          jit_compile: whether XLA compiles the loop.
        """
        if self.stored is not None:
            yield
            return
        table = self._table()
        # With a table that is not transposed, oneDNN reaches only half of the machine's speed for one row, and so does
        # XLA for several rows.
        transpose = (tokens > TURNED) & ((rows > 1) if jit_compile else (rows == 1))
        copy = _transposed if jit_compile else tf.transpose
        transposed = tf.cond(transpose, lambda: copy(table), lambda: tf.zeros([self.hidden_size, 0], table.dtype))

        def product(x):
            # With several rows, oneDNN is equally fast if the rows are columns. The batch axis of size 1 keeps
            # TensorFlow from changing the product back.
            branches = [
                lambda: tf.matmul(x, table, transpose_b=True),
                lambda: tf.matmul(x, transposed),
                lambda: tf.transpose(tf.matmul(table[None], tf.transpose(x)[None])[0]),
            ]
            branch = tf.cast(transpose & (tf.shape(x)[0] == rows), tf.int32)
            if not jit_compile:
                branch = tf.where(tf.shape(x)[0] >= SOME_ROWS, 2, branch)
            return tf.switch_case(branch, branches)

        self._product = product
        try:
            yield
        finally:
            self._product = None

    def _table(self):
        return ops.cast(read(self.embeddings), self.compute_dtype)


class Embeddings(Layer):
    """The sum of token, position and segment embeddings: token_ids, segment_ids, position_ids [B, L] -> [B, L, E].

    The sum is followed by a norm if the config has one, by dropout, and by a projection from embedding_size to E if
    embedding_size is set.

    Args:
      config: the model's TransformerConfig.
      tokens: a TokenEmbedding to share; None creates one.
      tied: another model's built Embeddings of the same size, whose tables and norm are shared; None shares nothing.
    """

    tokens: TokenEmbedding
    norm: Any
    positions: Any
    segments: Any

    def __init__(
        self,
        config: TransformerConfig,
        tokens: TokenEmbedding | None = None,
        tied: "Embeddings | None" = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.config = config
        self.size = config.embedding_size or config.hidden_size
        if tied is not None:
            self.tokens, self.norm = tied.tokens, tied.norm
            self.positions, self.segments = tied.positions, tied.segments
        else:
            self.tokens = tokens or TokenEmbedding(
                config.vocab_size, self.size, make_initializer(config, "embedding"), dtype=policy, name="tokens"
            )
            self.norm = make_norm(config, dtype=policy, name="norm") if config.embedding_norm else None
            self.positions = self.segments = None
        self.projection = None
        if config.embedding_size:
            self.projection = Dense(
                config.hidden_size, kernel_initializer=make_initializer(config), dtype=policy, name="projection"
            )
        self.dropout = Dropout(config.dropout, dtype=policy, name="dropout")

    def build(self, input_shape=None):
        config = self.config
        if not self.tokens.built:
            self.tokens.build()
        if config.positions == "learned" and self.positions is None:
            self.positions = self.add_weight(
                shape=(config.max_positions + config.position_offset, self.size),
                initializer=_position_initializer(config),
                name="positions",
            )
        if config.num_segments and self.segments is None:
            self.segments = self.add_weight(
                shape=(config.num_segments, self.size),
                initializer=make_initializer(config, "embedding"),
                name="segments",
            )
        for layer in (self.norm, self.projection, self.dropout):
            if layer is not None and not layer.built:
                layer.build((None, None, self.size))

    def call(self, token_ids, segment_ids=None, position_ids=None, training=False):
        x = self.tokens(token_ids)
        if self.config.scale_embeddings:
            x = x * math.sqrt(self.size)
        if self.config.positions in ("learned", "sinusoidal", "sinusoidal_concat"):
            x = x + ops.cast(self._positions(ops.shape(token_ids)[1], position_ids), x.dtype)
        if self.segments is not None:
            table = ops.cast(read(self.segments), x.dtype)
            if segment_ids is None:
                x = x + table[0]
            else:  # A product with few rows: the gradient of a gather would add all tokens into two of them.
                x = x + ops.matmul(ops.one_hot(segment_ids, self.config.num_segments, dtype=x.dtype), table)
        if self.norm is not None:
            x = self.norm(x)
        x = self.dropout(x, training=training)
        return x if self.projection is None else self.projection(x)

    def _positions(self, length, position_ids):
        config, offset = self.config, self.config.position_offset
        if isinstance(length, int) and length > config.max_positions:
            raise ValueError(
                f"sequence length {length} exceeds max_positions ({config.max_positions}); use shorter sequences"
            )
        if self.positions is not None:
            table = read(self.positions)
        else:
            interleaved = config.positions == "sinusoidal"
            table = ops.convert_to_tensor(sinusoidal_positions(config.max_positions + offset, self.size, interleaved))
        # For positions 0, 1, 2, ... one slice serves all rows, and its gradient is a plain sum.
        if position_ids is None:
            return table[None, offset : offset + length]
        return rows_of(table, position_ids + offset)


def _transposed(table):
    """Returns table [V, E] as [E, V], for XLA.

    XLA transposes a matrix that does not fit into the CPU's cache ten times faster in pieces.
    """
    size, width, block = table.shape[0], table.shape[1], 256
    count = -(-size // block)
    padded = tf.pad(table, [[0, count * block - size], [0, 0]])
    pieces = tf.TensorArray(table.dtype, count, element_shape=[width, block])

    def piece(i, pieces):
        return i + 1, pieces.write(i, tf.transpose(tf.slice(padded, [i * block, 0], [block, width])))

    _, pieces = tf.while_loop(lambda i, _: i < count, piece, (0, pieces))
    return tf.reshape(tf.transpose(pieces.stack(), (1, 0, 2)), [width, count * block])[:, :size]


def _position_initializer(config: TransformerConfig):
    if config.position_initializer == "normal":
        return make_initializer(config, "embedding")

    def sinusoidal(shape, dtype=None):
        # A shift of positions rotates sinusoids, a relation that attention learns far sooner than the order of random
        # vectors. They are scaled from their standard deviation, sqrt(1/2), to that of the other embeddings.
        deviation = 1.0 if config.initializer == "fan_in" else config.initializer_range
        return ops.cast(sinusoidal_positions(*shape) * (deviation * math.sqrt(2)), dtype)

    return sinusoidal
