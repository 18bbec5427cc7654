"""What a search varies: --search=learning_rate=1e-5..1e-3:log, --search=batch_size=16,32.

    NAME=LOW..HIGH       a number of this range; a whole number for a flag of whole numbers
    NAME=LOW..HIGH:log   the same, with a logarithm that is uniformly distributed
    NAME=A,B,C           one of these values
    NAME="A,B C,D"       one of these values, which contain commas and are separated by white space

NAME is a flag of tfzoo.train, or overrides.FIELD for a field of the model's config. This module does not import
TensorFlow.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfzoo import config as config_lib
from tfzoo.errors import UserError, suggest

OVERRIDES = "overrides."
_RANGE = re.compile(r"(.+?)\.\.(.+?)(:log)?")
_DIGITS = 4  # Significant digits of a number that is not whole: enough for any flag, and short in commands and tables.
Values = Mapping[str, Any]  # The value of each dimension, by its name.


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One flag that varies.

    Attributes:
      name: a flag, or overrides.FIELD.
      low, high, whole, log: of a range.
      choices: the values in place of a range; () for a range.
    """

    name: str
    low: float = 0
    high: float = 0
    whole: bool = False
    log: bool = False
    choices: tuple[str, ...] = ()

    def argument(self, value: Any) -> str:
        """Returns the argument of tfzoo.train that sets a value."""
        if self.name.startswith(OVERRIDES):
            return f"--overrides={self.name.removeprefix(OVERRIDES)}={value}"
        return f"--{self.name}={value}"

    def extremes(self) -> Sequence[Any]:
        """Returns the values of which all others are valid if these are."""
        return self.choices or (self.low, self.high)

    def count(self) -> float:
        """Returns the number of different values, which may be infinite."""
        return len(self.choices) or (self.high - self.low + 1 if self.whole else math.inf)

    def values(self) -> Sequence[Any]:
        """Returns all values of a dimension with a finite number of them."""
        return self.choices or range(int(self.low), int(self.high) + 1)

    def distribution(self):
        """Returns Optuna's distribution."""
        from optuna import distributions

        if self.choices:
            return distributions.CategoricalDistribution(self.choices)
        if self.whole:
            return distributions.IntDistribution(int(self.low), int(self.high), log=self.log)
        return distributions.FloatDistribution(self.low, self.high, log=self.log)

    def rounded(self, value: Any) -> Any:
        """Returns a value of the distribution with few digits, within the bounds."""
        if self.choices or self.whole:
            return value
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)


def parse(specs: Sequence[str], kinds: Mapping[str, type], check: Callable[[Sequence[str]], object]) -> list[Dimension]:
    """Returns the dimensions of a search.

    Args:
      specs: the values of --search.
      kinds: the flags that may vary, and the type of their values.
      check: raises UserError if arguments are not valid together.

    Raises:
      UserError: a value of --search is malformed, names an unknown flag or one that cannot vary, or contains a value
        that the flag does not allow. The message contains that value of --search.
    """
    dimensions: list[Dimension] = []
    for spec in specs:
        dimension = _parse(spec, kinds)
        if dimension.name in (other.name for other in dimensions):
            raise UserError(f"--search={spec}: {dimension.name} appears twice; omit one of them")
        dimensions.append(dimension)
    first = {dimension.name: dimension.extremes()[0] for dimension in dimensions}
    for dimension, spec in zip(dimensions, specs, strict=True):
        for value in dimension.extremes():
            values = first | {dimension.name: value}
            try:
                check([dimension.argument(value)])
                check([other.argument(values[other.name]) for other in dimensions])
                _check_override(dimension.argument(value))
            except UserError as error:
                raise UserError(f"--search={spec}: {error}") from None
    return dimensions


def _parse(spec: str, kinds: Mapping[str, type]) -> Dimension:
    name, equals, text = (part.strip() for part in spec.partition("="))
    if not (name and equals and text):
        raise UserError(
            f"--search={spec}: must have the form FLAG=LOW..HIGH, FLAG=LOW..HIGH:log or FLAG=A,B,C, such as "
            "learning_rate=1e-5..1e-3:log"
        )
    if not name.startswith(OVERRIDES) and name not in kinds:
        near = suggest(name, kinds) or "; python -m tfzoo.train --help lists them"
        raise UserError(f"--search={spec}: {name} is not a flag of tfzoo.train that can vary{near}")
    match = _RANGE.fullmatch(text)
    if match is None:
        choices = tuple(text.split() if len(text.split()) > 1 else filter(None, text.split(",")))
        if len(set(choices)) < max(len(choices), 2):
            raise UserError(f"--search={spec}: must have at least two values, all of them different")
        return Dimension(name, choices=choices)
    fields = {f"{OVERRIDES}{field}": kind for field, kind in config_lib.kinds(config_lib.TransformerConfig).items()}
    # Some families have more fields, in classes that import TensorFlow.
    kind = (fields | {**kinds}).get(name, float if re.search(r"[.eE]", match[1] + match[2]) else int)
    if kind not in (int, float):
        raise UserError(f"--search={spec}: {name} is not a number, so it has no range; list its values, as in A,B,C")
    return _range(spec, name, match, kind)


def _range(spec: str, name: str, match: re.Match, kind: type) -> Dimension:
    """Returns the dimension LOW..HIGH or LOW..HIGH:log."""
    try:
        low, high = kind(match[1]), kind(match[2])
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError
    except ValueError:
        wanted = "whole numbers" if kind is int else "finite numbers"
        raise UserError(f"--search={spec}: {match[1]} and {match[2]} must be {wanted}") from None
    if not low < high:
        raise UserError(f"--search={spec}: {match[1]} is not below {match[2]}; write the lower bound first")
    if match[3] and low <= 0:
        raise UserError(f"--search={spec}: a logarithmic range must begin above 0, not at {match[1]}; omit :log")
    return Dimension(name, low, high, kind is int, bool(match[3]))


def _check_override(argument: str) -> None:
    """Raises UserError for an --overrides with an invalid value of a field that all families have."""
    name, _, text = argument.partition("=")
    if name != "--overrides":
        return
    kinds = config_lib.kinds(config_lib.TransformerConfig)
    for assignment in text.split(","):
        field = assignment.partition("=")[0].strip()
        # Some families have more fields, in classes that import TensorFlow: their trials report errors in them.
        if field in kinds or suggest(field, kinds) or "=" not in assignment:
            config_lib.parse_overrides(assignment)


def arguments(dimensions: Sequence[Dimension], values: Values) -> list[str]:
    """Returns the arguments of tfzoo.train that set the values of a trial."""
    return [dimension.argument(values[dimension.name]) for dimension in dimensions]
