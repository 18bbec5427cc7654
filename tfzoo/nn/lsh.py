"""Attention among tokens of equal hash, in reversible layers (Kitaev et al. 2020).

In this module R is the number of hash rounds, C the length of a chunk, W the length of the window of keys that a chunk
attends to, and S the number of columns of a round's random rotation. Time and memory are linear in the length L, except
for a sort in O(L log L) and, if the length determines the number of buckets, hashes in O(L sqrt(L)). L is static.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf
from keras import ops

from tfzoo.config import TransformerConfig
from tfzoo.errors import UserError
from tfzoo.nn.basic import Dense, Dropout, LayerNorm, activation, draw_seed, make_initializer, read
from tfzoo.nn.embedding import TokenEmbedding
from tfzoo.nn.layer import Layer
from tfzoo.nn.lean import known

# A token attends to itself only if it may attend to nothing else (section 2, "Shared-QK attention"): its own score is
# far below every other score, and a masked score is far below that.
_SELF, _MASKED = -1e5, -1e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class LSHConfig(TransformerConfig):
    """The config of a stack of reversible layers with LSH and local attention."""

    # One of lsh, local for each layer.
    attention_layers: list = dataclasses.field(default_factory=lambda: ["local", "lsh"])
    causal: bool = True  # Whether positions attend only to earlier positions and themselves.
    num_hashes: int = 1  # R.
    # Even factors of the number of buckets; []: chosen by the length.
    num_buckets: list = dataclasses.field(default_factory=list)
    lsh_chunk_length: int = 64  # C, followed by the number of neighbouring chunks that a token attends to.
    lsh_chunks_before: int = 1
    lsh_chunks_after: int = 0
    local_chunk_length: int = 64
    local_chunks_before: int = 1
    local_chunks_after: int = 0
    mlp_chunk_length: int = 0  # Positions that the MLP computes at a time; 0: all.
    lsh_attention_dropout: float = 0.0  # attention_dropout applies to local attention.
    axial_positions: bool = True  # See AxialPositions. False: a learned table of max_positions embeddings.
    axial_shape: list = dataclasses.field(default_factory=lambda: [64, 64])
    axial_dims: list = dataclasses.field(default_factory=lambda: [64, 192])
    activation: str = "relu"
    tie_embeddings: bool = False

    def padded_length(self, length: int) -> int:
        """Returns the length rounded up to whole chunks of every kind; one within the smallest chunk is unchanged."""
        chunk_lengths = {getattr(self, f"{kind}_chunk_length") for kind in self.attention_layers}
        return length if length <= min(chunk_lengths) else length + -length % math.lcm(*chunk_lengths)

    @property
    def longest_row(self) -> int:
        return math.prod(self.axial_shape) if self.axial_positions else self.max_positions

    def __post_init__(self):
        super().__post_init__()
        kinds, require = self.attention_layers, self._require
        require(all(kind in ("lsh", "local") for kind in kinds), "attention_layers", "may hold only lsh and local")
        require(len(kinds) == self.num_layers, "attention_layers", f"must have num_layers ({self.num_layers}) items")
        for name in ("num_hashes", "lsh_chunk_length", "local_chunk_length"):
            require(1 <= getattr(self, name) <= 1_000_000, name, "must be from 1 to 1,000,000")
        for name in ("lsh_chunks_before", "lsh_chunks_after", "local_chunks_before", "local_chunks_after"):
            require(0 <= getattr(self, name) <= 1_000, name, "must be from 0 to 1,000")
        require(self.mlp_chunk_length >= 0, "mlp_chunk_length", "must be at least 0")
        require(0 <= self.lsh_attention_dropout < 1, "lsh_attention_dropout", "must be at least 0 and below 1")
        require(
            all(type(factor) is int and factor > 0 and factor % 2 == 0 for factor in self.num_buckets)
            and math.prod(self.num_buckets) < 2**31,
            "num_buckets",
            "must be even numbers whose product is below 2^31",
        )
        if self.causal:
            for name in ("lsh_chunks_after", "local_chunks_after"):
                require(getattr(self, name) == 0, name, "must be 0 in a causal model")
        if self.axial_positions:
            for name in ("axial_shape", "axial_dims"):
                require(all(type(n) is int and n > 0 for n in getattr(self, name)), name, "must be positive integers")
            require(len(self.axial_shape) == len(self.axial_dims) > 0, "axial_dims", "must have one item for each axis")
            require(
                math.prod(self.axial_shape) <= 100_000_000, "axial_shape", "must have a product of at most 100,000,000"
            )
            require(sum(self.axial_dims) == self.hidden_size, "axial_dims", f"must add up to {self.hidden_size}")


def hash_buckets(vectors, rotations, factors: Sequence[int]):
    """Returns the bucket of each vector, int32 [B, H, R, L].

    A hash into b buckets is the index of the largest entry of [xR; -xR] with a random R of b / 2 columns (section 2,
    after Andoni et al. 2015). A number of buckets with several factors is hashed by each factor, and S is the sum of
    all columns.

    Args:
      vectors: [B, H, L, D].
      rotations: [H, D, R, S].
      factors: even factors of the number of buckets.
    """
    rotated = tf.einsum("bhld,hdrs->bhrls", tf.stop_gradient(vectors), tf.cast(rotations, vectors.dtype))
    buckets, product = 0, 1
    for part, factor in zip(tf.split(rotated, [f // 2 for f in factors], axis=-1), factors, strict=True):
        # The largest entry of both halves, without concatenating them.
        below = -tf.reduce_min(part, -1) > tf.reduce_max(part, -1)
        index = tf.where(
            below,
            tf.argmin(part, -1, output_type=tf.int32) + factor // 2,
            tf.argmax(part, -1, output_type=tf.int32),
        )
        buckets, product = buckets + index * product, product * factor
    return buckets


def bucket_factors(length: int, chunk_length: int, max_positions: int) -> list[int]:
    """Returns the factors of the number of buckets for a length.

    There are about two buckets per chunk, as a power of two, which is split into two factors if it is large.
    """
    power = (2 * (length // chunk_length)).bit_length() - 1
    if 2**power > 2 * max(math.isqrt(max_positions // chunk_length), chunk_length):
        return [2 ** (power // 2), 2 ** (power - power // 2)]
    return [2**power]


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Which tokens attend to each other: a chunk's and its neighbours'. All rounds' chunks form one ring."""

    length: int  # C.
    before: int = 1  # Number of preceding neighbours that a chunk attends to; `after` likewise.
    after: int = 0
    causal: bool = False  # Whether positions attend only to earlier positions and themselves.

    def split(self, x):
        """Splits x [B, H, R, L, ...] into [B, H, R L / C, C, ...]; L is a multiple of C."""
        batch, heads, rounds, length = ops.shape(x)[:4]
        return tf.reshape(x, (batch, heads, rounds * length // self.length, self.length, *x.shape[4:]))

    def window(self, x):
        """Returns each chunk of x [B, H, N, C, ...] with its neighbours, [B, H, N, W, ...].

        W = (before + 1 + after) C.
        """
        count = x.shape[2]
        steps = (max(-count, min(step, count)) for step in range(self.before, -self.after - 1, -1))
        return tf.concat([tf.roll(x, step, 2) if step % count else x for step in steps], 3)


def lsh_attention(query_key, value, buckets, chunks: Chunks, padding_mask=None, dropout: Callable | None = None):
    """Computes attention with shared queries and keys within chunks of tokens sorted by bucket (section 2, figure 2).

    Args:
      query_key, value: [B, H, L, D], L a multiple of chunks.length.
      buckets: int32 [B, H, R, L]. The result depends only on their order. Padding is sorted to the end.
      chunks: the Chunks of the sorted tokens.
      padding_mask: bool [B, L], True is a real token.
      dropout: a function applied to the weights.

    Returns:
      [B, H, L, D]: the mean over the rounds, each weighted by the sum of its exponentiated scores.
    """
    batch, heads, rounds, length = ops.shape(buckets)
    if padding_mask is not None:
        buckets = tf.where(padding_mask[:, None, None, :], buckets, tf.int32.max)
    order = tf.argsort(buckets, axis=-1, stable=True)
    inverse = tf.argsort(order, axis=-1)
    query, value, positions = map(chunks.split, (_sort(query_key, order, inverse), _sort(value, order, inverse), order))
    real = None
    if padding_mask is not None:
        real = chunks.split(tf.gather(padding_mask, order, axis=1, batch_dims=1))
    y, total = _attend(chunks, query, _normalize(query), value, positions, real, share=True, dropout=dropout)
    y = _unsort(tf.reshape(y, (batch, heads, rounds, length, y.shape[-1])), order, inverse)
    if rounds == 1:
        return y[:, :, 0]
    total = _unsort(tf.reshape(total, (batch, heads, rounds, length)), order, inverse)
    return tf.reduce_sum(y * tf.cast(tf.nn.softmax(total, axis=2), y.dtype)[..., None], 2)


def local_attention(query, key, value, chunks: Chunks, padding_mask=None, dropout: Callable | None = None):
    """Computes attention of each chunk to itself and its neighbours.

    Args:
      query, key, value: [B, H, L, D], L a multiple of chunks.length.
      chunks, padding_mask, dropout: as for lsh_attention.

    Returns:
      [B, H, L, D].
    """
    batch, heads, length, depth = ops.shape(query)
    query, key, value = (chunks.split(x[:, :, None]) for x in (query, key * (1 / math.sqrt(depth)), value))
    positions = chunks.split(tf.range(length)[None, None, None])
    real = None if padding_mask is None else chunks.split(padding_mask[:, None, None])
    y, _ = _attend(chunks, query, key, value, positions, real, share=False, dropout=dropout)
    return tf.reshape(y, (batch, heads, length, depth))


def _attend(chunks: Chunks, query, key, value, positions, real, share, dropout):
    """Computes softmax attention of chunks [..., C, D] to their windows.

    Args:
      positions: int32 [..., C].
      real: bool [..., C] or None.
      share: whether queries are also the keys.

    Returns:
      [..., C, D] and the logarithm of the sum of exponentiated scores, [..., C].
    """
    key, value = chunks.window(key), chunks.window(value)
    # Half precision can represent neither the mask values nor the sums over rounds.
    scores = tf.cast(tf.matmul(query, key, transpose_b=True), "float32")
    rows, columns = positions[..., :, None], chunks.window(positions)[..., None, :]
    if chunks.causal:
        scores = tf.where(rows >= columns, scores, _MASKED)
    if real is not None:
        scores = tf.where(chunks.window(real)[..., None, :], scores, _MASKED)
    if share:
        scores = tf.where(rows == columns, _SELF, scores)
    # A softmax that also returns its denominator. It does not use exp(scores - total): near _SELF float32 has a spacing
    # of 0.008.
    highest = tf.stop_gradient(tf.reduce_max(scores, -1, keepdims=True))
    exponents = tf.exp(scores - highest)
    total = tf.reduce_sum(exponents, -1, keepdims=True)
    weights = tf.cast(exponents / total, value.dtype)
    y = tf.matmul(weights if dropout is None else dropout(weights), value)
    return y, (highest + tf.math.log(total))[..., 0]


def _normalize(x, epsilon=1e-6):
    """Returns x [..., D] with mean square 1, divided by sqrt(D), as the keys are."""
    return x * (tf.math.rsqrt(tf.reduce_mean(tf.square(x), -1, keepdims=True) + epsilon) / math.sqrt(x.shape[-1]))


@tf.custom_gradient
def _sort(x, order, inverse):
    """Sorts x [B, H, L, D] to [B, H, R, L, D]. With the inverse order, the gradient is a gather as well."""

    def gradient(upstream):
        return tf.reduce_sum(tf.gather(upstream, inverse, batch_dims=3), 2), None, None

    return tf.gather(x, order, batch_dims=2), gradient


@tf.custom_gradient
def _unsort(x, order, inverse):
    """Returns x [B, H, R, L, ...] in the order before the sort."""

    def gradient(upstream):
        return tf.gather(upstream, order, batch_dims=3), None, None

    return tf.gather(x, inverse, batch_dims=3), gradient


def _drop(x, rate, seed, index, training):
    """Applies dropout with a mask derived from the seed, so that a second computation repeats it."""
    if not training or not rate:
        return x
    seed = tf.random.experimental.stateless_fold_in(seed, index)
    return tf.nn.experimental.stateless_dropout(x, rate, seed)


def _round_up(length, chunk_length):
    """Returns the length rounded up to whole chunks; a length within one chunk is one chunk."""
    return length if length <= chunk_length else length + -length % chunk_length


def _pad(x, padding_mask, length):
    """Pads x [B, L, E] and the mask of its first tokens to a longer length; the mask is None if all tokens are real."""
    if padding_mask is None and x.shape[1] < length:
        padding_mask = tf.ones(ops.shape(x)[:2], "bool")
    if padding_mask is not None:
        padding_mask = tf.cast(padding_mask, "bool")
        padding_mask = tf.pad(padding_mask, [[0, 0], [0, length - padding_mask.shape[1]]])
    return tf.pad(x, [[0, 0], [0, length - x.shape[1]], [0, 0]]), padding_mask


class _ChunkedAttention(Layer):
    """The common part of LSH and local attention: projections without biases to and from heads."""

    projections: tuple[str, ...]

    def __init__(self, config: LSHConfig, kind, dropout, **kwargs):
        super().__init__(**kwargs)
        self.config, self.dropout = config, dropout
        self.num_heads = config.num_heads
        self.head_dim = config.resolved_head_dim
        self.chunk_length, self.before, self.after = (
            getattr(config, f"{kind}_{name}") for name in ("chunk_length", "chunks_before", "chunks_after")
        )
        self.inputs_to_heads = [self._dense(name, self.num_heads * self.head_dim) for name in self.projections]
        self.output_projection = self._dense("output", config.hidden_size)

    def _dense(self, name, units):
        initializer = make_initializer(self.config)
        return Dense(units, use_bias=False, kernel_initializer=initializer, dtype=self.dtype_policy, name=name)

    def build(self, input_shape):
        for projection in self.inputs_to_heads:
            projection.build(input_shape)
        self.output_projection.build((*input_shape[:-1], self.num_heads * self.head_dim))

    def heads(self, x):
        """Returns [B, H, L, D] for each projection of x [B, L, E]."""
        shape = (*ops.shape(x)[:2], self.num_heads, self.head_dim)
        return [ops.transpose(ops.reshape(project(x), shape), (0, 2, 1, 3)) for project in self.inputs_to_heads]

    def merge(self, y, length):
        """Projects the first L positions of y [B, H, L', D] to [B, L, E]."""
        y = ops.transpose(y, (0, 2, 1, 3))[:, :length]
        return self.output_projection(ops.reshape(y, (*ops.shape(y)[:2], self.num_heads * self.head_dim)))

    def options(self, length, padding_mask, seed, training):
        """Returns the arguments of the attention functions. A length within one chunk is treated as one chunk."""
        single_chunk, causal = length <= self.chunk_length, self.config.causal
        return dict(
            chunks=Chunks(length, 0, 0, causal)
            if single_chunk
            else Chunks(self.chunk_length, self.before, self.after, causal),
            padding_mask=padding_mask,
            dropout=lambda weights: _drop(weights, self.dropout, seed, 1, training),
        )


class LocalAttention(_ChunkedAttention):
    """Local attention, x [B, L, E] -> [B, L, E]: each chunk attends to itself and its neighbours."""

    projections = ("query", "key", "value")

    def __init__(self, config: LSHConfig, **kwargs):
        super().__init__(config, "local", config.attention_dropout, **kwargs)

    def call(self, x, padding_mask=None, seed=(0, 0), training=False):
        """Applies local attention.

        seed: int32 [2]; the same seed drops the same weights.
        """
        length = _static_length(x)
        x, padding_mask = _pad(x, padding_mask, _round_up(length, self.chunk_length))
        options = self.options(x.shape[1], padding_mask, seed, training)
        return self.merge(local_attention(*self.heads(x), **options), length)


class LSHAttention(_ChunkedAttention):
    """LSH attention: x [B, L, E] -> [B, L, E], and the buckets int32 [B, H, R, L'].

    L' is L rounded up to whole chunks. A sequence within one chunk gets full attention without a hash.
    """

    projections = ("query_key", "value")

    def __init__(self, config: LSHConfig, **kwargs):
        super().__init__(config, "lsh", config.lsh_attention_dropout, **kwargs)

    def call(self, x, padding_mask=None, rotations=None, buckets=None, seed=(0, 0), hash_seed=(0, 0), training=False):
        """Applies LSH attention.

        Args:
          x: [B, L, E].
          padding_mask: bool [B, L], True is a real token.
          rotations: [H, D, R, S]; None draws them from hash_seed.
          buckets: those of an earlier call, used instead of hashing.
          seed: int32 [2], of dropout.
          hash_seed: int32 [2].
          training: whether to apply dropout.
        """
        length = _static_length(x)
        x, padding_mask = _pad(x, padding_mask, _round_up(length, self.chunk_length))
        query_key, value = self.heads(x)
        if x.shape[1] <= self.chunk_length:
            buckets = tf.zeros((*ops.shape(query_key)[:2], 1, x.shape[1]), "int32")
        elif buckets is None:
            buckets = self.hash(query_key, rotations, hash_seed)
        options = self.options(x.shape[1], padding_mask, seed, training)
        return self.merge(lsh_attention(query_key, value, buckets, **options), length), buckets

    def hash(self, query_key, rotations, seed):
        config = self.config
        factors = config.num_buckets or bucket_factors(query_key.shape[2], self.chunk_length, config.max_positions)
        if rotations is None:
            shape = (self.num_heads, self.head_dim, config.num_hashes, sum(factors) // 2)
            seed = tf.random.experimental.stateless_fold_in(seed, 0)
            rotations = tf.random.stateless_normal(shape, seed)
        return hash_buckets(query_key, rotations, factors)


def _static_length(x):
    if x.shape[1] is None:
        raise ValueError("the sequence length must be static; give the input a shape such as [None, 4096]")
    return x.shape[1]


class ChunkedMLP(Layer):
    """The feed-forward network, computed some positions at a time: x [B, L, E] -> down(activation(dropout(up(x)))).

    With mlp_chunk_length the intermediate activations exist for that many positions only (section 3, "Chunking"), also
    in the backward pass, which recomputes them.
    """

    def __init__(self, config: LSHConfig, **kwargs):
        super().__init__(**kwargs)
        self.chunk_length, self.dropout = config.mlp_chunk_length, config.dropout
        self.activation = activation(config.activation)
        self.up, self.down = (
            Dense(units, kernel_initializer=make_initializer(config), dtype=self.dtype_policy, name=name)
            for units, name in ((config.intermediate_size, "up"), (config.hidden_size, "down"))
        )

    def build(self, input_shape):
        self.up.build(input_shape)
        self.down.build((*input_shape[:-1], self.up.units))

    def call(self, x, seed=(0, 0), training=False):
        length, size = _static_length(x), self.chunk_length
        if not size or size >= length:
            return self.transform(x, seed, training)
        x, _ = _pad(x, None, _round_up(length, size))
        batch, padded, width = ops.shape(x)
        variables = self.variables
        values = [read(variable) for variable in variables]

        def compute_chunk(parts):
            x, index = parts

            @tf.recompute_grad
            def compute(x, *values):
                with keras.StatelessScope(zip(variables, values, strict=True)):
                    chunk_seed = tf.random.experimental.stateless_fold_in(seed, index)
                    return self.transform(x, chunk_seed, training)

            return compute(x, *values)

        chunks = tf.transpose(tf.reshape(x, (batch, padded // size, size, width)), (1, 0, 2, 3))
        y = tf.map_fn(
            compute_chunk,
            (chunks, tf.range(padded // size)),
            parallel_iterations=1,
            fn_output_signature=self.compute_dtype,
        )
        y = tf.reshape(tf.transpose(y, (1, 0, 2, 3)), (batch, padded, width))
        return known(y[:, :length], (None, length, width))

    def transform(self, x, seed, training):
        return self.down(self.activation(_drop(self.up(x), self.dropout, seed, 0, training)))


def reversible(functions: Sequence[Callable], values: Sequence[Sequence], a, b):
    """Applies (a, b) -> (b, a + f(b)) for each function and keeps only the results for the backward pass.

    The backward pass reconstructs each layer's inputs from its outputs by computing f(b) again, so that the memory for
    activations does not grow with depth (section 3; Gomez et al. 2017).

    Args:
      functions: f(x, values, kept) -> (y, kept), each a pure function of its arguments. What it returns as kept (small
        integers, such as buckets, or None) is passed to the second computation; in the first one `kept` is None.
      values: for each function, the tensors, such as weights, that receive gradients in addition to x.
      a, b: [...] of the same shape and dtype.

    Returns:
      The final (a, b).
    """

    @tf.custom_gradient
    def run(a, b, *flat):
        parts = tf.nest.pack_sequence_as([list(part) for part in values], flat)
        kept = []
        for function, part in zip(functions, parts, strict=True):
            y, keep = function(b, part, None)
            a, b = b, a + y
            kept.append(keep)

        def gradient(da, db):
            x, y, collected = a, b, []
            for function, part, keep in reversed(list(zip(functions, parts, kept, strict=True))):
                # Without this dependency a graph may recompute all layers before it needs the first one.
                with tf.control_dependencies([da, db]):
                    x = tf.identity(x)
                    with tf.GradientTape(watch_accessed_variables=False) as tape:
                        tape.watch([x, part])
                        z, _ = function(x, part, keep)
                    zero = tf.UnconnectedGradients.ZERO
                    dx, dpart = tape.gradient(z, [x, part], db, unconnected_gradients=zero)
                x, y = y - z, x
                da, db = db, da + dx
                collected.append(dpart)
            return da, db, *tf.nest.flatten(collected[::-1])

        return (a, b), gradient

    return run(a, b, *tf.nest.flatten([list(part) for part in values]))


class ReversibleBlock(Layer):
    """The two functions of a reversible layer: attention and the MLP, each applied to its normalized input."""

    def __init__(self, config: LSHConfig, kind: str, **kwargs):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.dropout = config.dropout
        self.attention = {"lsh": LSHAttention, "local": LocalAttention}[kind](config, dtype=policy, name="attention")
        self.self_norm = LayerNorm(config.norm_epsilon, dtype=policy, name="self_norm")
        self.mlp = ChunkedMLP(config, dtype=policy, name="mlp")
        self.mlp_norm = LayerNorm(config.norm_epsilon, dtype=policy, name="mlp_norm")

    def build(self, input_shape):
        for layer in (self.attention, self.self_norm, self.mlp, self.mlp_norm):
            layer.build(input_shape)

    def functions(self, padding_mask, rotations, seed, hash_seed, training):
        """Returns pairs (f(x [B, L, E], values, kept) -> (y [B, L, E], kept), the variables whose values f takes)."""
        fold = tf.random.experimental.stateless_fold_in
        common = dict(training=training)

        def attend(x, buckets):
            x = self.self_norm(x)
            options = common | dict(padding_mask=padding_mask, seed=fold(seed, 0))
            if isinstance(self.attention, LSHAttention):
                options |= dict(rotations=rotations, buckets=buckets, hash_seed=fold(hash_seed, 0))
                y, buckets = self.attention(x, **options)
            else:
                y = self.attention(x, **options)
            return _drop(y, self.dropout, fold(seed, 1), 0, training), buckets

        def feed(x, _):
            y = self.mlp(self.mlp_norm(x), seed=fold(seed, 2), **common)
            return _drop(y, self.dropout, fold(seed, 3), 0, training), None

        def pure(function, variables):
            def call(x, values, kept):
                with keras.StatelessScope(zip(variables, values, strict=True)):
                    y, kept = function(x, kept)
                return tf.cast(y, x.dtype), kept

            return call, variables

        return [
            pure(attend, self.self_norm.variables + self.attention.variables),
            pure(feed, self.mlp_norm.variables + self.mlp.variables),
        ]


class ReversibleStack(Layer):
    """A sequence of reversible layers: x [B, L, E] -> [B, L, 2 E], both streams concatenated and normalized.

    The streams are kept in the variables' dtype: in a half-precision dtype the reconstruction would not recover what
    the forward pass rounded.
    """

    def __init__(self, config: LSHConfig, **kwargs):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.config = config
        self.blocks = [
            ReversibleBlock(config, kind, dtype=policy, name=f"layer_{i}")
            for i, kind in enumerate(config.attention_layers)
        ]
        self.norm = LayerNorm(config.norm_epsilon, dtype=policy, name="norm")
        self.dropout = Dropout(config.dropout, dtype=policy, name="dropout")

    def build(self, input_shape=None):
        size = self.config.hidden_size
        for block in self.blocks:
            block.build((None, None, size))
        self.norm.build((None, None, 2 * size))
        self.dropout.build()
        self.seed_generator = keras.random.SeedGenerator(name="seeds")

    def call(self, x, padding_mask=None, rotations=(), training=False):
        """Applies the layers.

        Args:
          x: [B, L, E].
          padding_mask: bool [B, L], True is a real token.
          rotations: [H, D, R, S] or None for each LSH layer. None draws rotations: always the same ones in evaluation,
            and in training different ones for each call, the same on all replicas.
          training: whether to apply dropout.
        """
        length = _static_length(x)
        wide = x.dtype if x.dtype == tf.float64 else self.variable_dtype
        x, padding_mask = _pad(tf.cast(x, wide), padding_mask, self.config.padded_length(length))
        a, b = self.streams(x, padding_mask, rotations, training)
        y = tf.concat([a, b], -1)[:, :length]
        return self.dropout(self.norm(y), training=training)

    def streams(self, x, padding_mask, rotations, training, reverse=reversible):
        seed, hash_seed = self.seed(training), self.seed(training, per_replica=False)
        parts, rotations = [], iter(rotations)
        for i, block in enumerate(self.blocks):
            layer_rotations = next(rotations, None) if isinstance(block.attention, LSHAttention) else None
            layer_seed, layer_hash_seed = (
                tf.random.experimental.stateless_fold_in(each, i) for each in (seed, hash_seed)
            )
            parts += block.functions(padding_mask, layer_rotations, layer_seed, layer_hash_seed, training)
        functions, variables = zip(*parts, strict=True)
        return reverse(functions, [[read(variable) for variable in part] for part in variables], x, x)

    def seed(self, training, per_replica=True):
        return draw_seed(self.seed_generator, per_replica) if training else tf.zeros(2, "int32")


class AxialPositions(Layer):
    """Axial position embeddings, as in the authors' code (Trax): token_ids [B, L] -> embeddings [L, E].

    A position has coordinates in a grid of `shape`, of which the last varies fastest. Each coordinate i has an
    embedding of dims[i] numbers, and these embeddings are concatenated. With one axis this is the usual learned table.
    """

    def __init__(self, shape: Sequence[int], dims: Sequence[int], initializer="uniform", **kwargs):
        super().__init__(**kwargs)
        self.shape, self.dims, self.initializer = tuple(shape), tuple(dims), initializer

    def build(self, input_shape=None):
        axes = len(self.shape)
        self.axes = [
            self.add_weight(
                shape=(*(size if j == i else 1 for j in range(axes)), dim),
                initializer=self.initializer,
                name=f"axis_{i}" if axes > 1 else "table",
            )
            for i, (size, dim) in enumerate(zip(self.shape, self.dims, strict=True))
        ]

    def call(self, token_ids):
        length = _static_length(token_ids)
        if length > math.prod(self.shape):
            raise UserError(
                f"sequence length {length} exceeds the {math.prod(self.shape)} positions of the table {self.shape}; "
                "use shorter sequences, or a larger axial_shape"
            )
        columns = math.prod(self.shape[1:])
        rows = -(-length // columns)
        grid = (rows, *self.shape[1:])
        tables = [read(table) for table in self.axes]
        tables[0] = tables[0][:rows]
        tables = [tf.broadcast_to(table, (*grid, table.shape[-1])) for table in tables]
        return tf.reshape(tf.concat(tables, -1), (rows * columns, sum(self.dims)))[:length]


class AxialEmbeddings(Layer):
    """The sum of token and position embeddings, with dropout on each: token_ids [B, L] -> [B, L, E]."""

    def __init__(self, config: LSHConfig, **kwargs):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.tokens = TokenEmbedding(
            config.vocab_size, config.hidden_size, make_initializer(config), dtype=policy, name="tokens"
        )
        if config.axial_positions:
            # These embeddings start the residual streams, so they get the standard deviation of the released models.
            normal = keras.initializers.RandomNormal(stddev=1.0)
            self.positions = AxialPositions(
                config.axial_shape, config.axial_dims, normal, dtype=policy, name="positions"
            )
        else:
            self.positions = AxialPositions(
                [config.max_positions], [config.hidden_size], make_initializer(config), dtype=policy, name="positions"
            )
        self.token_dropout, self.position_dropout = (
            Dropout(config.dropout, dtype=policy, name=f"{name}_dropout") for name in ("token", "position")
        )

    def build(self, input_shape=None):
        for layer in (self.tokens, self.positions, self.token_dropout, self.position_dropout):
            layer.build()

    def call(self, token_ids, training=False):
        length = _static_length(token_ids)
        x = self.token_dropout(self.tokens(token_ids), training=training)
        positions = self.positions(token_ids)[None]
        if training:
            # Dropout drops the same columns in all rows of the grid.
            columns = math.prod(self.positions.shape[1:])
            batch = tf.shape(token_ids)[0]
            shape = (batch, 1, columns, 1) if columns > 1 else (batch, length, 1, x.shape[-1])
            kept = self.position_dropout(tf.ones(shape, x.dtype), training=True)
            kept = tf.broadcast_to(kept, (batch, -(-length // columns), columns, shape[-1]))
            positions = positions * tf.reshape(kept, (batch, -1, shape[-1]))[:, :length]
        return x + positions


class ReversibleTower(Layer):
    """AxialEmbeddings and a ReversibleStack: token_ids [B, L] -> sequence [B, L, 2 E]."""

    def __init__(self, config: LSHConfig, **kwargs):
        super().__init__(**kwargs)
        self.embeddings = AxialEmbeddings(config, dtype=self.dtype_policy, name="embeddings")
        self.stack = ReversibleStack(config, dtype=self.dtype_policy, name="stack")

    def build(self, input_shape=None):
        self.embeddings.build()
        self.stack.build()
        self.output_shape = (None, None, 2 * self.stack.config.hidden_size)

    def call(self, token_ids, padding_mask=None, rotations=(), training=False):
        x = self.embeddings(token_ids, training=training)
        return self.stack(x, padding_mask=padding_mask, rotations=rotations, training=training)
