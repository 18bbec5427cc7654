"""The sizes and choices of a transformer. Standard library only, so that reading a config costs nothing."""

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
# What makes one vector of a row's states: the first or the last; the mean of all, their sum over their number's root, a
# mean in which the i-th counts i times; the largest of each number.
POOLINGS = ("first", "last", "mean", "mean_sqrt_len", "weighted_mean", "max")
_FACTOR, _LENGTH = Field(float, low=1e-3, required=True), Field(int, low=1)
_FACTORS = Field(list, items=Field(float, low=1e-3), required=True)
# What each rope_type of rotary_scaling has besides, by Hugging Face's names.
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
    """What a stack of transformer blocks is made of, whatever its family.

    A family with a data flow of its own has a subclass with the fields that only it knows.

    Raises:
      UserError: a value out of bounds, naming the field, the value and what would do.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int  # Of an encoder-decoder, the encoder's.
    num_decoder_layers: int = 0  # 0: as many as num_layers, where there is a decoder.
    share_layers: bool = False  # True: one layer's weights, applied num_layers times (ALBERT).

    # Embeddings
    embedding_size: int = 0  # 0: hidden_size. What is named here is projected to it, even its equal (ELECTRA, ALBERT).
    embedding_norm: bool = True  # A norm follows the sum of the embeddings.
    scale_embeddings: bool = False  # Token embeddings times sqrt(hidden_size) (Vaswani et al. 2017, section 3.4).
    tie_embeddings: bool = True  # The output's matrix is that of the token embeddings.
    num_segments: int = 0  # 0: no segment embedding.

    # Positions
    positions: str = "learned"  # sinusoidal interleaves sines and cosines, sinusoidal_concat puts them side by side.
    # What learned positions begin as: sinusoidal is for a table, near for relative ones: the farther, the less.
    position_initializer: str = "normal"
    max_positions: int = 512
    position_offset: int = 0  # Rows of the learned table before that of position 0.
    relative_buckets: int = 32  # For positions="relative" (Raffel et al. 2020, section 2.1).
    relative_distance: int = 128  # Distances from here on share a bucket.
    rotary_theta: float = 10000.0  # For positions="rotary" (Su et al. 2021).
    rotary_scaling: dict = dataclasses.field(default_factory=dict)  # {"rope_type": "llama3", "factor": 8.0, ...}

    # Attention
    num_heads: int
    num_kv_heads: int = 0  # 0: num_heads. Fewer are shared by groups of queries (Ainslie et al. 2023).
    head_dim: int = 0  # 0: hidden_size / num_heads.
    attention: str = "full"  # lean: the same numbers in less memory; favor: linear in the length.
    num_features: int = 256  # For attention="favor".
    window: int = 0  # Keys that a causal query sees, itself included; 0: all before it.
    # alike: the four matrices begin as one, where their shapes are one. A token then begins by attending to those like
    # itself, with sinusoidal positions to its neighbours (compare Trockman & Kolter 2023, Mimetic Initialization).
    # cross_alike: in cross attention alone, where a decoder's token begins by finding itself in the memory.
    attention_initializer: str = "independent"
    scale_scores: bool = True  # Scores divided by sqrt(head_dim).
    qk_norm: bool = False  # Queries and keys are normalised, head by head.

    # Blocks
    intermediate_size: int  # Width inside a block's MLP.
    activation: str = "gelu"
    gated_mlp: bool = False  # activation(gate(x)) * up(x) (Shazeer 2020).
    biases: str = "all"  # none: neither dense layers nor norms have any; qkv: queries, keys and values alone.
    norm: str = "layer"
    norm_first: bool = False  # False normalises after each residual sum (2017), True before each sublayer.
    norm_epsilon: float = 1e-12
    parallel_blocks: bool = False  # Attention and MLP read the same normalised input (Wang & Komatsuzaki 2021).

    dropout: float = 0.1
    attention_dropout: float = 0.1
    # normal: truncated, of standard deviation initializer_range, as BERT's. scaled_residual: not truncated, and what is
    # added to the residual stream divided by sqrt(2 num_layers) (Radford et al. 2019, section 2.3). fan_in: matrices of
    # 1 / sqrt(inputs), embeddings of 1, as T5's authors' code.
    initializer: str = "normal"
    initializer_range: float = 0.02

    def __post_init__(self):
        for name, kind in kinds(type(self)).items():
            if not _is_a(getattr(self, name), kind):
                raise UserError(f"{name} ({getattr(self, name)!r}) must be of type {kind.__name__}")
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
            raise UserError(f"{name} ({getattr(self, name)!r}) {remedy}")

    def _require_multiple(self, name: str, of: str) -> None:
        if getattr(self, name) % getattr(self, of):
            raise UserError(f"{name} ({getattr(self, name)}) must be a multiple of {of} ({getattr(self, of)})")

    @property
    def resolved_num_decoder_layers(self) -> int:
        return self.num_decoder_layers or self.num_layers

    @property
    def resolved_num_kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def resolved_head_dim(self) -> int:
        return self.head_dim or self.hidden_size // self.num_heads

    def resolved(self) -> dict[str, Any]:
        """The fields, with what 0 stands for in those that are derived: two configs are alike if these are equal."""
        derived = ("num_decoder_layers", "num_kv_heads", "head_dim")
        return dataclasses.asdict(self) | {name: getattr(self, f"resolved_{name}") for name in derived}


# The upper bounds are ten times and more what any released model has: they catch a damaged file before it is
# given memory.
_BOUNDS = {
    "vocab_size": (1, 10_000_000),
    "hidden_size": (1, 1_000_000),
    "embedding_size": (0, 1_000_000),
    "num_layers": (1, 10_000),
    "num_decoder_layers": (0, 10_000),
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
    """Raises:
    UserError: an unknown rope_type, or one that lacks what it needs, has what it does not know, or numbers that cannot
      be, with heads of head_dim where that is known. It begins with `where`."""
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
        smaller, larger = scaling.get(low) or 1, scaling.get(high) or 32  # As yarn has them by default.
        if high in fields and smaller >= larger:
            raise UserError(f"{where}: {low} ({smaller}) must be below {high} ({larger}); correct it")


def kinds(cls: type) -> dict[str, type]:
    """A config class's fields and their types."""
    return typing.get_type_hints(cls)


def _is_a(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind


def from_mapping(values: Mapping[str, Any], cls: type[TransformerConfig] = TransformerConfig) -> TransformerConfig:
    """A config of class `cls` from a mapping such as a row of CONFIGS or a parsed config.json.

    Raises:
      UserError: an unknown or missing field, by name.
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
    """Reads "num_layers=4,norm_first=true" by the types that `cls` declares; the last of a field wins.

    Raises:
      UserError: no `=`, an unknown field, or a value that is not of the field's type.
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
_PARSERS: dict[type, Callable[[str], Any]] = {bool: lambda text: _BOOLEANS[text.lower()]}


def _remedy(name: str, fields) -> str:
    return suggest(name, fields) or f"; the available fields are {', '.join(fields)}"


@dataclasses.dataclass(frozen=True)
class Projection:
    """A dense layer behind the pooling of an embedding; activation: one of ACTIVATIONS, tanh or none."""

    units: int
    activation: str = "tanh"
    use_bias: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """How the head "embed" makes a text's vector of its tokens' states.

    pooling: of POOLINGS, whose vectors are put side by side.
    include_prompt: whether the tokens of a prompt before the text are pooled as well.
    layers: what follows, in order: Projections, and "normalize", which divides by the length.
    pooler: whether an encoder keeps its pooler, which no embedding reads, for the file that it came from.

    Raises:
      UserError: an unknown pooling, or none.
    """

    pooling: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    layers: tuple[Projection | str, ...] = ()
    pooler: bool = False

    def __post_init__(self):
        for how in self.pooling or ("",):
            if how not in POOLINGS:
                raise UserError(f"pooling ({how!r}) must be one of {', '.join(POOLINGS)}")
        for layer in self.layers:
            if not isinstance(layer, Projection) and layer != "normalize":
                raise UserError(f"layers ({layer!r}) must be Projections and 'normalize'")
