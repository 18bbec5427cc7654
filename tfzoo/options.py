"""Options declared once, as fields of a frozen dataclass, from which checks and command-line flags are derived.

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Options(Checked):
        mask_rate: float = option(0.15, "Fraction of the tokens to mask.", low=0.01, high=0.9)

    Options(mask_rate=0.95)     # UserError: mask_rate=0.95: must be from 0.01 to 0.9
    for field in fields(Options):
        define_flag(flags, field)   # --mask_rate
    Options(**values_of(flags, Options))

Supported types: bool, int, float, str (without a default, the flag is required), each of them `| None`, and
tuple[str, ...] for a flag that may be repeated. The default None of another type means that the dataclass determines
the value from other options.
"""

import dataclasses
import math
import typing
from collections.abc import Collection
from typing import Any

from absl import flags as absl_flags

from tfzoo.errors import UserError, suggest


def option(
    default: Any,
    help: str,
    *,
    group: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: Collection[str] = (),
    **facts: Any,
) -> Any:
    """Declares an option: a field of a `Checked` dataclass.

    Args:
      default: the default value; dataclasses.MISSING if the option is required.
      help: the help text of the flag.
      group: the heading of the flag in --help.
      low, high: the smallest and largest allowed values, inclusive.
      choices: the allowed values.
      **facts: further properties of the option, queried with `names_with`.
    """
    metadata = dict(help=help, group=group, low=low, high=high, choices=choices)
    return dataclasses.field(default=default, metadata=metadata | facts)


class Checked:
    """Base of dataclasses whose values are checked on construction.

    Raises:
      UserError: a value has the wrong type, is out of bounds or is not one of the choices.
    """

    def __post_init__(self) -> None:
        for field in fields(type(self)):
            complaint = _complaint(field, getattr(self, field.name))
            if complaint:
                raise UserError(f"{field.name}={getattr(self, field.name)}: {complaint}")


def fields(cls: type) -> list[dataclasses.Field]:
    """Returns the fields that are options, grouped by heading in order of first appearance, required ones first."""
    declared = [field for field in dataclasses.fields(cls) if "help" in field.metadata]
    groups = list(dict.fromkeys(field.metadata["group"] for field in declared))
    return sorted(
        declared, key=lambda field: (groups.index(field.metadata["group"]), field.default is not dataclasses.MISSING)
    )


def names_with(cls: type, fact: str) -> list[str]:
    """Returns the names of the options that were declared with `fact` set to a true value."""
    return [field.name for field in fields(cls) if field.metadata.get(fact)]


def bounds(low: float | None, high: float | None) -> str:
    """Returns the wording of an allowed range for messages, such as "must be from 0 to 1"; "" if there is none, apart
    from the limits of all options."""
    low, high = (None if bound in _LIMITS else bound for bound in (low, high))
    if low is high is None:
        return ""
    if low is not None and high is not None:
        return f"must be from {low} to {high}"
    return f"must be at least {low}" if high is None else f"must be at most {high}"


def out_of_bounds(value: float, low: float | None, high: float | None) -> str:
    """Returns what is wrong with a number, such as "must be from 0 to 1"; "" if it is within its bounds."""
    if (low is None or value >= low) and (high is None or value <= high):
        return ""
    exceeded = low if low is not None and value < low else high
    return f"must be from {low} to {high}" if exceeded in _LIMITS else bounds(low, high)


def define_flags(flags: absl_flags.FlagValues, cls: type) -> None:
    """Defines a flag for every option of a dataclass."""
    for field in fields(cls):
        define_flag(flags, field)


def define_flag(flags: absl_flags.FlagValues, field: dataclasses.Field, prefix: str = "") -> None:
    """Defines the flag of one option; `prefix` precedes the option's own text in --help."""
    metadata, kind = field.metadata, _kind(field)
    name, default = field.name, None if field.default is dataclasses.MISSING else field.default
    common = dict(help=prefix + metadata["help"], flag_values=flags)
    low, high = limits(field)
    bounded: dict[str, Any] = dict(lower_bound=low, upper_bound=high)
    if metadata["choices"]:
        absl_flags.DEFINE_enum(name, default, enum_values=list(metadata["choices"]), **common)
    elif kind is int:
        absl_flags.DEFINE_integer(name, default, **bounded, **common)
    elif kind is float:
        absl_flags.DEFINE_float(name, default, **bounded, **common)
    elif kind is bool:
        absl_flags.DEFINE_bool(name, default, **common)
    elif kind == tuple[str, ...]:
        absl_flags.DEFINE_multi_string(name, list(default or ()), **common)
    else:
        absl_flags.DEFINE_string(name, default, required=field.default is dataclasses.MISSING, **common)
    flags[name].help = prefix + metadata["help"]  # Without absl's additions: tfzoo.cli prints bounds and choices.
    setattr(flags[name], "group", metadata["group"])  # noqa: B010  (absl's class does not declare it)


def values_of(flags: absl_flags.FlagValues, cls: type) -> dict[str, Any]:
    """Returns the parsed values of those options of a dataclass that have a flag."""
    values = {field.name: flags[field.name].value for field in fields(cls) if field.name in flags}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


# Values beyond these overflow the int32 and float32 with which TensorFlow computes, and some abort the process.
_LARGEST: dict[Any, float] = {int: 2**31 - 1, float: 3e38}
_LIMITS = {sign * largest for largest in _LARGEST.values() for sign in (1, -1)}


def limits(field: dataclasses.Field) -> tuple[float | None, float | None]:
    """Returns the smallest and largest allowed values of a numeric option; without `low` or `high`, these are the ones
    that TensorFlow can represent. (None, None) for other options."""
    if _kind(field) not in _LARGEST:
        return None, None
    return limited(_kind(field), field.metadata["low"], field.metadata["high"])


def limited(kind: type, low: float | None, high: float | None) -> tuple[float, float]:
    """Returns the bounds of an int or a float, each of which may be None, within what TensorFlow can represent."""
    return -_LARGEST[kind] if low is None else low, _LARGEST[kind] if high is None else high


def _kind(field: dataclasses.Field) -> Any:
    """Returns the type of a field's values, without None."""
    kinds = [kind for kind in typing.get_args(field.type) if kind is not type(None)]
    return kinds[0] if type(None) in typing.get_args(field.type) else field.type


def _complaint(field: dataclasses.Field, value: Any) -> str:
    """Returns what is wrong with a value, or "" if it is valid."""
    kind, metadata = _kind(field), field.metadata
    if kind == tuple[str, ...]:
        fits = isinstance(value, tuple) and all(isinstance(each, str) for each in value)
        return "" if fits else "must be a tuple of strings"
    if value is None and (kind is not field.type or field.default is None):
        return ""
    if metadata["choices"]:
        near = suggest(str(value), metadata["choices"])
        return "" if value in metadata["choices"] else f"must be one of {', '.join(metadata['choices'])}{near}"
    if kind is str:
        return "" if isinstance(value, str) else "must be a string"
    if kind is bool:
        return "" if isinstance(value, bool) else "must be true or false"
    if kind is int and (isinstance(value, bool) or not isinstance(value, int)):
        return "must be a whole number"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "must be a number"
    if not math.isfinite(value):
        return "must be a finite number"
    return out_of_bounds(value, *limits(field))
