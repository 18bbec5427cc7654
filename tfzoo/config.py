"""The sizes and choices of a transformer. Standard library only, so that reading a config costs nothing."""

import dataclasses
import json
import typing
from collections.abc import Mapping
from typing import Any

from tfzoo.errors import UserError, suggest

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")  # "gelu" is exact (erf)
POSITIONS = ("learned", "sinusoidal")
POSITION_INITIALIZERS = ("normal", "sinusoidal")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """What a stack of transformer blocks is made of, whatever its family.

    Raises:
      UserError: a value out of bounds, naming the field, the value and what would do.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int  # Width inside a block's MLP.
    max_positions: int = 512
    num_segments: int = 0  # 0: no segment embedding.
    positions: str = "learned"
    position_initializer: str = "normal"  # What learned positions begin as.
    activation: str = "gelu"
    norm_first: bool = False  # False normalises after each residual sum (2017), True before each sublayer.
    norm_epsilon: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    initializer_range: float = 0.02  # Standard deviation of the truncated normal.

    def __post_init__(self):
        for name, kind in _KINDS.items():
            if not _is_a(getattr(self, name), kind):
                raise UserError(f"{name} ({getattr(self, name)!r}) must be of type {kind.__name__}")
        for name in (
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_heads",
            "intermediate_size",
            "max_positions",
        ):
            self._require(getattr(self, name) >= 1, name, "must be at least 1")
        self._require(self.num_segments >= 0, "num_segments", "must be at least 0")
        for name in ("dropout", "attention_dropout"):
            self._require(0 <= getattr(self, name) < 1, name, "must be at least 0 and below 1")
        for name in ("norm_epsilon", "initializer_range"):
            self._require(0 < getattr(self, name) < float("inf"), name, "must be above 0 and finite")
        for name, choices in (
            ("activation", ACTIVATIONS),
            ("positions", POSITIONS),
            ("position_initializer", POSITION_INITIALIZERS),
        ):
            self._require(getattr(self, name) in choices, name, f"must be one of {', '.join(choices)}")
        if self.hidden_size % self.num_heads:
            raise UserError(f"hidden_size ({self.hidden_size}) must be a multiple of num_heads ({self.num_heads})")
        if "sinusoidal" in (self.positions, self.position_initializer):
            self._require(self.hidden_size % 2 == 0, "hidden_size", "must be even for sinusoidal positions")

    def _require(self, holds: bool, name: str, remedy: str) -> None:
        if not holds:
            raise UserError(f"{name} ({getattr(self, name)!r}) {remedy}")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


_KINDS: dict[str, type] = typing.get_type_hints(TransformerConfig)


def _is_a(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind


def from_mapping(values: Mapping[str, Any]) -> TransformerConfig:
    """A config from a mapping such as a row of CONFIGS or a parsed config.json.

    Raises:
      UserError: an unknown or missing field, by name.
    """
    fields = {field.name: field for field in dataclasses.fields(TransformerConfig)}
    for name in values:
        if name not in fields:
            raise UserError(f"unknown config field {name!r}{_remedy(name, fields)}")
    missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values]
    if missing:
        raise UserError(f"config lacks the field {missing[0]!r}; add it")
    return TransformerConfig(**values)


def parse_overrides(text: str) -> dict[str, Any]:
    """Reads "num_layers=4,norm_first=true" by the types that TransformerConfig declares; the last of a field wins.

    Raises:
      UserError: no `=`, an unknown field, or a value that is not of the field's type.
    """
    result: dict[str, Any] = {}
    for assignment in text.split(",") if text else []:
        name, equals, value = (part.strip() for part in assignment.partition("="))
        if not equals:
            raise UserError(f"--overrides={assignment}: write FIELD=VALUE, such as num_layers=4")
        if name not in _KINDS:
            raise UserError(f"--overrides={assignment}: unknown config field {name!r}{_remedy(name, _KINDS)}")
        kind = _KINDS[name]
        try:
            result[name] = _BOOLEANS[value.lower()] if kind is bool else kind(value)
        except (KeyError, ValueError):
            wanted = "true or false" if kind is bool else f"a value of type {kind.__name__}"
            raise UserError(f"--overrides={assignment}: {name} takes {wanted}") from None
    return result


_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def _remedy(name: str, fields) -> str:
    return suggest(name, fields) or f"; the fields are {', '.join(fields)}"
