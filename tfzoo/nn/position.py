"""Positions: sinusoidal tables, T5's relative bias, rotary embeddings and their scalings."""

import math

import numpy as np
from keras import ops

from tfzoo.config import TransformerConfig
from tfzoo.errors import UserError
from tfzoo.nn.basic import make_initializer, read, rows_of
from tfzoo.nn.layer import Layer


def sinusoidal_positions(length: int, hidden_size: int, interleaved: bool = True) -> np.ndarray:
    """Returns the position table [length, hidden_size], float32, of Vaswani et al. 2017, section 3.5.

    PE(pos, 2i) = sin(pos / 10000^(2i/E)) and PE(pos, 2i+1) = cos(the same). With interleaved False all sines come
    before all cosines, as in the authors' code.
    """
    angles = np.arange(length)[:, None] / 10000 ** (np.arange(0, hidden_size, 2)[None, :] / hidden_size)
    if not interleaved:
        return np.concatenate([np.sin(angles), np.cos(angles)], -1).astype(np.float32)
    table = np.empty((length, hidden_size), np.float32)
    table[:, 0::2] = np.sin(angles)
    table[:, 1::2] = np.cos(angles)
    return table


class RelativeBias(Layer):
    """An additive bias [1, H, L, M] learned for each bucket of distances (Raffel et al. 2020, section 2.1).

    Half of the buckets hold one distance each; the others hold ranges that grow logarithmically up to
    `relative_distance`. Without `causal`, half of all buckets are reserved for keys after the query.
    """

    def __init__(self, config: TransformerConfig, causal: bool, **kwargs):
        super().__init__(**kwargs)
        self.num_heads, self.causal = config.num_heads, causal
        self.num_buckets, self.max_distance = config.relative_buckets, config.relative_distance
        self.initializer = self._near if config.position_initializer == "near" else make_initializer(config)

    def build(self, input_shape=None):
        self.embeddings = self.add_weight(
            shape=(self.num_buckets, self.num_heads), initializer=self.initializer, name="embeddings"
        )

    def call(self, query_length, key_length):
        rows = ops.arange(query_length)[:, None] + (key_length - query_length)
        return self.at(ops.arange(key_length)[None, None, :] - rows[None])

    def at(self, distance):
        """Returns the bias [B, H, L, M] of distance int32 [B, L, M], key position minus query position."""
        return ops.transpose(rows_of(read(self.embeddings), self.bucket(distance)), (0, 3, 1, 2))

    def _near(self, shape, dtype=None):
        # Press et al. 2022, section 3: minus the distance times a slope per head; here the smallest distance of a
        # bucket.
        distances = np.arange(-self.max_distance, self.max_distance + 1)
        buckets = ops.convert_to_numpy(self.bucket(ops.convert_to_tensor(distances, "int32")))
        least = np.full(shape[0], self.max_distance)
        np.minimum.at(least, buckets, abs(distances))
        slopes = 2.0 ** (-8 * np.arange(1, self.num_heads + 1) / self.num_heads)
        return ops.cast(-least[:, None] * slopes, dtype)

    def bucket(self, distance):
        """Returns the bucket, int32 of the same shape, of distance int32, key position minus query position."""
        buckets, base = self.num_buckets, 0
        if self.causal:
            distance = ops.maximum(-distance, 0)
        else:
            buckets //= 2
            base = ops.cast(distance > 0, "int32") * buckets
            distance = ops.abs(distance)
        exact = buckets // 2
        ratio = ops.log(ops.cast(ops.maximum(distance, 1), "float32") / exact) / math.log(self.max_distance / exact)
        far = ops.minimum(exact + ops.cast(ratio * (buckets - exact), "int32"), buckets - 1)
        return base + ops.where(distance < exact, distance, far)


def rotary_tables(config: TransformerConfig, position_ids, dtype, reach=None):
    """Returns (cos, sin), each [B or 1, 1, L, D], for `rotate`.

    Frequencies are theta^(-2i/D) (Su et al. 2021, section 3.2.2), modified by rotary_scaling.

    Args:
      config: the model's TransformerConfig.
      position_ids: int [B or 1, L].
      dtype: of the result.
      reach: int [B], the length of each text, on which the scalings "dynamic" and "longrope" depend; None means the
        highest position plus one.

    Raises:
      UserError: an unknown rope_type.
    """
    head_dim = config.resolved_head_dim
    length = ops.max(position_ids) + 1 if reach is None else ops.reshape(reach, (-1, 1, 1, 1))
    frequencies, factor = _rotary_frequencies(config, head_dim, length)
    angles = ops.cast(position_ids, "float32")[:, None, :, None] * ops.cast(frequencies, "float32")
    angles = ops.concatenate([angles, angles], -1)
    return ops.cast(ops.cos(angles) * factor, dtype), ops.cast(ops.sin(angles) * factor, dtype)


def rotate(x, tables):
    """Rotates the pairs (i, i + D/2) of x [B, H, L, D] by their position's angles."""
    cos, sin = tables
    first, second = ops.split(x, 2, axis=-1)
    return x * cos + ops.concatenate([-second, first], -1) * sin


def _rotary_frequencies(config: TransformerConfig, head_dim: int, length):
    """Returns (frequencies [D/2], factor on cosines and sines).

    length: the number of positions in use, as a scalar tensor or [B, 1, 1, 1]. The latter gives frequencies [B, 1, 1,
    D/2] for scalings that depend on the length.
    """
    scaling = config.rotary_scaling
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    exponents = np.arange(0, head_dim, 2) / head_dim
    plain = config.rotary_theta**-exponents
    factor = scaling.get("factor", 1.0)
    original = scaling.get("original_max_position_embeddings") or config.max_positions
    if kind == "default":
        return plain, 1.0
    if kind == "linear":  # Chen et al. 2023, Position Interpolation.
        return plain / factor, 1.0
    if kind == "dynamic":  # NTK-aware scaling: the base grows with the length in use.
        used = ops.cast(ops.maximum(length, original), "float32")
        growth = (factor * used / original) - (factor - 1)
        base = config.rotary_theta * growth ** (head_dim / (head_dim - 2))
        return ops.power(base, ops.convert_to_tensor(-exponents.astype(np.float32))), 1.0
    # Llama 3.1: low frequencies are divided by `factor`, high ones kept, those in between interpolated.
    if kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = original * plain / (2 * np.pi)
        kept = np.clip((turns - low) / (high - low), 0, 1)
        return kept * plain + (1 - kept) * plain / factor, 1.0
    if kind == "yarn":  # Peng et al. 2023, sections 3.2 and 3.4.
        return _yarn(config, scaling, plain, head_dim, factor, original)
    # Ding et al. 2024: one factor per frequency, from one of two sets depending on the length in use.
    if kind == "longrope":
        factor = scaling.get("factor") or config.max_positions / original
        attention = scaling.get("attention_factor")
        if attention is None:
            attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
        short, long = (
            (plain / np.asarray(scaling[name])).astype(np.float32) for name in ("short_factor", "long_factor")
        )
        return ops.where(length > original, long, short), attention
    raise UserError(
        f"rotary_scaling: unknown rope_type {kind!r}; use default, linear, dynamic, llama3, yarn or longrope"
    )


def _yarn(config, scaling, plain, head_dim, factor, original):
    def dimension(turns):  # The dimension whose wave makes this many turns within the original length.
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(config.rotary_theta))

    low, high = dimension(scaling.get("beta_fast") or 32), dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 1e-3), 0, 1)

    def scale(weight):
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    attention = scaling.get("attention_factor")
    if attention is None and scaling.get("mscale") and scaling.get("mscale_all_dim"):
        attention = scale(scaling["mscale"]) / scale(scaling["mscale_all_dim"])
    return ramp * plain / factor + (1 - ramp) * plain, scale(1.0) if attention is None else attention
