"""What a page's WEIGHTS says of a tensor that is not stored as our variable is; tfzoo.weights.table reads it."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Conv1D:
    """A dense layer whose kernel is stored as we hold it, [I, O]."""

    path: str


@dataclasses.dataclass(frozen=True)
class Turned:
    """A matrix that is stored transposed, where others are not, or the other way round."""

    path: str


@dataclasses.dataclass(frozen=True)
class Fused:
    """Dense layers that are stored as one, their outputs side by side; conv1d: as [I, O], else as [O, I]."""

    paths: Sequence[str]
    conv1d: bool = False


@dataclasses.dataclass(frozen=True)
class Reshaped:
    """A variable that is stored in another shape, with its elements in the same order."""

    path: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tied:
    """Another name for a variable. Some files have it as well, or in the other's place; it is never written."""

    path: str


@dataclasses.dataclass(frozen=True)
class When:
    """The destination in models whose config has a field at a value; other models have no such tensor."""

    field: str
    value: object
    path: str


@dataclasses.dataclass(frozen=True)
class Computed:
    """A tensor that some files have and that holds nothing learned; it is passed over."""
