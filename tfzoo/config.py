"""Configuration of a transformer. Uses only the standard library, so that reading a config is cheap."""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any

from tfzoo import json_files
from tfzoo.errors import UserError, suggest
from tfzoo.json_files import Field, Fields

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")  # "gelu" is exact (erf)
ATTENTION = ("full", "lean", "favor")
BIASES = ("all", "qkv", "none")
NORMS = ("layer", "rms")
POSITIONS = ("learned", "sinusoidal", "sinusoidal_concat", "relative", "rotary", "none")
POSITION_INITIALIZERS = ("normal", "sinusoidal", "near")
ATTENTION_INITIALIZERS = ("independent", "alike", "cross_alike")
INITIALIZERS = ("normal", "scaled_residual", "fan_in")
# How a row's states are reduced to one vector: the first or last state; the mean of all states; their sum divided by
# the square root of their number; a mean in which the i-th state has weight i; the elementwise maximum.
POOLINGS = ("first", "last", "mean", "mean_sqrt_len", "weighted_mean", "max")
_FACTOR, _LENGTH = Field(float, low=1e-3, required=True), Field(int, low=1)
_FACTORS = Field(list, items=Field(float, low=1e-3), required=True)
# The other fields of rotary_scaling for each rope_type, with the names that Hugging Face uses.
SCALINGS: dict[str, Fields] = {
    "default": {},
    "linear": {"factor": _FACTOR},
    "dynamic": {"factor": _FACTOR, "original_max_position_embeddings": _LENGTH},
    "llama3": {
        "factor": _FACTOR,
        "low_freq_factor": _FACTOR,
        "high_freq_factor": _FACTOR,
        "original_max_position_embeddings": _LENGTH,
    },
    "yarn": {
        "factor": _FACTOR,
        "original_max_position_embeddings": _LENGTH,
        "attention_factor": Field(float, low=0),
        "beta_fast": Field(float, low=0),
        "beta_slow": Field(float, low=0),
        "mscale": Field(float, low=0),
        "mscale_all_dim": Field(float, low=0),
        "truncate": Field(bool),
    },
    "longrope": {
        "short_factor": _FACTORS,
        "long_factor": _FACTORS,
        "factor": Field(float, low=1e-3),
        "original_max_position_embeddings": _LENGTH,
        "attention_factor": Field(float, low=0),
    },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Hyperparameters of a stack of transformer blocks, common to all families.

    A family with additional parameters defines a subclass.

    Raises:
      UserError: a value is out of bounds; the message names the field, the value and the allowed values.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int  # In an encoder-decoder, the layers of the encoder.
    num_decoder_layers: int = 0  # 0: num_layers, if there is a decoder.
    share_layers: bool = False  # True: one layer's weights, applied num_layers times (ALBERT).

    # Embeddings
    embedding_size: int = 0  # 0: hidden_size. Other values, even hidden_size, add a projection (ELECTRA, ALBERT).
    embedding_norm: bool = True  # Normalize the sum of the embeddings.
    scale_embeddings: bool = False  # Token embeddings times sqrt(hidden_size) (Vaswani et al. 2017, section 3.4).
    tie_embeddings: bool = True  # The output projection shares the matrix of the token embeddings.
    num_segments: int = 0  # 0: no segment embedding.

    # Positions
    positions: str = "learned"  # sinusoidal interleaves sines and cosines, sinusoidal_concat concatenates them.
    # Initial values of learned positions: sinusoidal is for a table; near, for relative ones, decreases with distance.
    position_initializer: str = "normal"
    max_positions: int = 512
    position_offset: int = 0  # Rows of the learned table that precede the row of position 0.
    relative_buckets: int = 32  # For positions="relative" (Raffel et al. 2020, section 2.1).
    relative_distance: int = 128  # All distances from this one on share a bucket.
    rotary_theta: float = 10000.0  # For positions="rotary" (Su et al. 2021).
    rotary_scaling: dict = dataclasses.field(default_factory=dict)  # {"rope_type": "llama3", "factor": 8.0, ...}

    # Attention
    num_heads: int
    num_kv_heads: int = 0  # 0: num_heads. A smaller number is shared by groups of queries (Ainslie et al. 2023).
    head_dim: int = 0  # 0: hidden_size / num_heads.
    attention: str = "full"  # lean: the same result with less memory; favor: linear in the sequence length.
    num_features: int = 256  # For attention="favor".
    window: int = 0  # Number of keys that a causal query attends to, including its own; 0: all previous ones.
    # alike: the four matrices have the same initial values if their shapes are equal. Initially, a token then attends
    # to similar tokens, or with sinusoidal positions to its neighbours (compare Trockman & Kolter 2023, Mimetic
    # Initialization). cross_alike: only in cross attention, where a decoder token initially attends to the same token
    # in the memory.
    attention_initializer: str = "independent"
    scale_scores: bool = True  # Divide the scores by sqrt(head_dim).
    qk_norm: bool = False  # Normalize queries and keys in each head.

    # Blocks
    intermediate_size: int  # Hidden width of a block's MLP.
    activation: str = "gelu"
    gated_mlp: bool = False  # activation(gate(x)) * up(x) (Shazeer 2020).
    biases: str = "all"  # none: neither dense layers nor norms have biases; qkv: only queries, keys and values have.
    norm: str = "layer"
    norm_first: bool = False  # False normalizes after each residual sum (2017), True before each sublayer.
    norm_epsilon: float = 1e-12
    parallel_blocks: bool = False  # Attention and MLP read the same normalized input (Wang & Komatsuzaki 2021).

    dropout: float = 0.1
    attention_dropout: float = 0.1
    # normal: truncated normal with standard deviation initializer_range, as in BERT. scaled_residual: not truncated;
    # matrices that write to the residual stream are divided by sqrt(2 num_layers) (Radford et al. 2019, section 2.3).
    # fan_in: standard deviation 1 / sqrt(inputs) for matrices and 1 for embeddings, as in the code of T5's authors.
    initializer: str = "normal"
    initializer_range: float = 0.02

    def __post_init__(self):
        for name, kind in kinds(type(self)).items():
            if not _is_a(getattr(self, name), kind):
                raise UserError(f"{name} ({json_files.show(getattr(self, name))}) must be of type {kind.__name__}")
        for name, (low, high) in _BOUNDS.items():
            self._require(low <= getattr(self, name) <= high, name, f"must be from {low:,} to {high:,}")
        for name in ("dropout", "attention_dropout"):
            self._require(0 <= getattr(self, name) < 1, name, "must be at least 0 and below 1")
        for name in ("norm_epsilon", "initializer_range", "rotary_theta"):
            self._require(0 < getattr(self, name) < float("inf"), name, "must be above 0 and finite")
        for name, choices in CHOICES.items():
            self._require(getattr(self, name) in choices, name, f"must be one of {', '.join(choices)}")
        if not self.head_dim:
            self._require_multiple("hidden_size", "num_heads")
        if self.num_kv_heads:
            self._require_multiple("num_heads", "num_kv_heads")
        if "sinusoidal" in self.positions or self.position_initializer == "sinusoidal":
            name = "embedding_size" if self.embedding_size else "hidden_size"
            self._require(getattr(self, name) % 2 == 0, name, "must be even for sinusoidal positions")
        if self.position_initializer == "near":
            self._require(self.positions == "relative", "positions", "must be relative for position_initializer=near")
        if self.positions == "rotary":
            if self.resolved_head_dim % 2:
                raise UserError(f"head_dim ({self.resolved_head_dim}) must be even for rotary positions")
            check_scaling(self.rotary_scaling, self.resolved_head_dim)
        if self.parallel_blocks:
            self._require(self.norm_first, "norm_first", "must be true with parallel_blocks")

    def _require(self, holds: bool, name: str, remedy: str) -> None:
        if not holds:
            raise UserError(f"{name} ({json_files.show(getattr(self, name))}) {remedy}")

    def _require_multiple(self, name: str, of: str) -> None:
        if getattr(self, name) % getattr(self, of):
            raise UserError(f"{name} ({getattr(self, name)}) must be a multiple of {of} ({getattr(self, of)})")

    @property
    def has_position_table(self) -> bool:
        """Whether positions come from a table, so that no text may be longer than max_positions."""
        return self.positions not in ("relative", "rotary", "none")

    @property
    def longest_row(self) -> int:
        """The number of tokens for which the model has positions."""
        return self.max_positions

    @property
    def resolved_num_decoder_layers(self) -> int:
        return self.num_decoder_layers or self.num_layers

    @property
    def resolved_num_kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def resolved_head_dim(self) -> int:
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def least_parameters(self) -> int:
        """A number of parameters that every family has at least, with which memory is estimated."""
        layers = 1 if self.share_layers else self.num_layers
        matrices = 2 * self.hidden_size * (self.num_heads * self.resolved_head_dim + self.intermediate_size)
        count = layers * matrices + self.vocab_size * (self.embedding_size or self.hidden_size)
        if self.positions == "learned" and not hasattr(self, "axial_shape"):  # That of a Reformer is factorized.
            count += self.max_positions * (self.embedding_size or self.hidden_size)
        if self.positions == "relative":
            count += self.relative_buckets * self.num_heads
        return count + self.num_segments * (self.embedding_size or self.hidden_size)

    def resolved(self) -> dict[str, Any]:
        """Returns all fields, with derived values instead of 0: equivalent configs return equal results."""
        derived = ("num_decoder_layers", "num_kv_heads", "head_dim")
        return dataclasses.asdict(self) | {name: getattr(self, f"resolved_{name}") for name in derived}


# The upper bounds are at least ten times the values of any released model: they reject a damaged file before memory is
# allocated for it.
_BOUNDS = {
    "vocab_size": (1, 10_000_000),
    "hidden_size": (1, 1_000_000),
    "embedding_size": (0, 1_000_000),
    "num_layers": (1, 2_000),
    "num_decoder_layers": (0, 2_000),
    "num_heads": (1, 100_000),
    "num_kv_heads": (0, 100_000),
    "head_dim": (0, 100_000),
    "intermediate_size": (1, 10_000_000),
    "max_positions": (1, 100_000_000),
    "position_offset": (0, 1_000),
    "num_segments": (0, 10_000),
    "num_features": (1, 1_000_000),
    "relative_buckets": (2, 100_000),
    "relative_distance": (2, 1_000_000),
    "window": (0, 100_000_000),
}
CHOICES = {
    "activation": ACTIVATIONS,
    "attention": ATTENTION,
    "attention_initializer": ATTENTION_INITIALIZERS,
    "initializer": INITIALIZERS,
    "biases": BIASES,
    "norm": NORMS,
    "positions": POSITIONS,
    "position_initializer": POSITION_INITIALIZERS,
}


def check_scaling(scaling: Mapping[str, Any], head_dim: int | None, where: str = "rotary_scaling") -> None:
    """Checks a rotary_scaling.

    Args:
      scaling: the fields, such as {"rope_type": "llama3", "factor": 8.0, ...}.
      head_dim: size of a head; None skips the checks that depend on it.
      where: the start of the error message.

    Raises:
      UserError: the rope_type is unknown, a required field is missing, or a field is unknown or invalid.
    """
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in SCALINGS:
        raise UserError(f"{where}: unknown rope_type {json_files.show(kind)}; use one of {', '.join(SCALINGS)}")
    fields = SCALINGS[kind]
    for name, value in scaling.items():
        if name not in (*fields, "rope_type", "type") and value is not None:
            raise UserError(f"{where}: {name} ({json_files.show(value)}) is not a field of rope_type {kind}; remove it")
    json_files.check(scaling, fields, where)
    for name in ("short_factor", "long_factor"):
        if head_dim and name in fields and len(scaling[name]) != head_dim // 2:
            raise UserError(
                f"{where}: {name} has {len(scaling[name])} values, not {head_dim // 2} (half of head_dim, {head_dim}); "
                "correct it"
            )
    for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
        smaller, larger = scaling.get(low) or 1, scaling.get(high) or 32  # The defaults of yarn.
        if high in fields and smaller >= larger:
            raise UserError(f"{where}: {low} ({smaller}) must be below {high} ({larger}); correct it")


def kinds(cls: type) -> dict[str, type]:
    """Returns the fields of a config class and their types."""
    return typing.get_type_hints(cls)


def _is_a(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind


def from_mapping(values: Mapping[str, Any], cls: type[TransformerConfig] = TransformerConfig) -> TransformerConfig:
    """Creates a config of class `cls` from a mapping, such as a row of CONFIGS or a parsed config.json.

    Raises:
      UserError: a field is unknown or missing; the message names it.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise UserError(f"unknown config field {name!r}{_remedy(name, fields)}")
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"config field {missing[0]!r} is missing; add it")
    return cls(**values)


def parse_overrides(text: str, cls: type[TransformerConfig] = TransformerConfig) -> dict[str, Any]:
    """Parses "num_layers=4,norm_first=true,axial_shape=8:16" with the types that `cls` declares; later values take
    precedence. The items of a list, which are whole numbers or words, are separated by colons.

    Raises:
      UserError: an `=` is missing, a field is unknown, or a value does not have the field's type.
    """
    result: dict[str, Any] = {}
    for assignment in text.split(",") if text else []:
        name, equals, value = (part.strip() for part in assignment.partition("="))
        if not equals:
            raise UserError(f"--overrides={assignment}: write FIELD=VALUE, such as num_layers=4")
        if name not in kinds(cls):
            raise UserError(f"--overrides={assignment}: unknown config field {name!r}{_remedy(name, kinds(cls))}")
        kind = kinds(cls)[name]
        try:
            result[name] = _PARSERS.get(kind, kind)(value)
        except (KeyError, ValueError):
            wanted = "true or false" if kind is bool else f"a value of type {kind.__name__}"
            raise UserError(f"--overrides={assignment}: {name} must be {wanted}") from None
    return result


_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_PARSERS: dict[type, Callable[[str], Any]] = {
    bool: lambda text: _BOOLEANS[text.lower()],
    list: lambda text: [int(item) if item.isdecimal() else item for item in text.split(":")] if text else [],
}


def _remedy(name: str, fields) -> str:
    return suggest(name, fields) or f"; the available fields are {', '.join(fields)}"


@dataclasses.dataclass(frozen=True)
class Projection:
    """A dense layer after the pooling of an embedding; activation is one of ACTIVATIONS, tanh or none."""

    units: int
    activation: str = "tanh"
    use_bias: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """How the head "embed" computes the vector of a text from the states of its tokens.

    pooling: names from POOLINGS; the resulting vectors are concatenated.
    include_prompt: whether the tokens of a prompt before the text are pooled as well.
    layers: the layers after pooling, in order: Projections, and "normalize", which divides by the Euclidean norm.
    pooler: whether an encoder keeps its pooler, which no embedding reads, so that it can be saved again.

    Raises:
      UserError: a pooling or layer is unknown, or there is no pooling.
    """

    pooling: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    layers: tuple[Projection | str, ...] = ()
    pooler: bool = False

    def __post_init__(self):
        for pooling in self.pooling or ("",):
            if pooling not in POOLINGS:
                raise UserError(f"pooling ({pooling!r}) must be one of {', '.join(POOLINGS)}")
        for layer in self.layers:
            if not isinstance(layer, Projection) and layer != "normalize":
                raise UserError(f"layers ({layer!r}) must be Projections and 'normalize'")

    @classmethod
    def read(cls, record: Mapping[str, Any], where: str) -> "EmbeddingConfig":
        """Returns the config that dataclasses.asdict wrote to a JSON file.

        Args:
          record: the object of the file.
          where: the file and the place in it, for messages.

        Raises:
          UserError: a field is unknown or has an invalid value.
        """
        json_files.check(record, _EMBEDDING_FIELDS, where)
        layers: list[Projection | str] = []
        for layer in record["layers"]:
            if isinstance(layer, dict):
                json_files.check(layer, _PROJECTION_FIELDS, f"{where}: layers")
                layer = Projection(**{name: layer[name] for name in _PROJECTION_FIELDS})
            layers.append(layer)
        values = {name: record[name] for name in _EMBEDDING_FIELDS} | {"pooling": tuple(record["pooling"])}
        try:
            return cls(**values | {"layers": tuple(layers)})
        except UserError as error:
            raise UserError(f"{where}: {error}") from None


_EMBEDDING_FIELDS: Fields = {
    "pooling": Field(list, items=Field(str), required=True),
    "include_prompt": Field(bool, required=True),
    "layers": Field(list, required=True),
    "pooler": Field(bool, required=True),
}
_PROJECTION_FIELDS: Fields = {
    "units": Field(int, low=1, required=True),
    "activation": Field(str, choices=(*ACTIVATIONS, "tanh", "none"), required=True),
    "use_bias": Field(bool, required=True),
}
