"""Markers in a family's WEIGHTS for tensors stored differently from tfzoo's variables, read by tfzoo.weights.table."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Conv1D:
    """A dense layer whose kernel is stored as in tfzoo, [I, O]."""

    path: str


@dataclasses.dataclass(frozen=True)
class Turned:
    """A matrix that is stored transposed compared with the other matrices of the same format."""

    path: str


@dataclasses.dataclass(frozen=True)
class Fused:
    """Dense layers that are stored as one, with their outputs concatenated; conv1d: as [I, O], else as [O, I]."""

    paths: Sequence[str]
    conv1d: bool = False


@dataclasses.dataclass(frozen=True)
class Reshaped:
    """A variable that is stored in another shape, with its elements in the same order."""

    path: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tied:
    """Another name for a variable. Some files contain it in addition or instead; it is never written."""

    path: str


@dataclasses.dataclass(frozen=True)
class When:
    """The destination in models whose config field has this value; other models have no such tensor."""

    field: str
    value: object
    path: str


@dataclasses.dataclass(frozen=True)
class Computed:
    """A tensor that some files contain and that holds nothing learned; it is ignored."""
