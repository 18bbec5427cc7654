"""What a model is given: a dict of named tensors, each name known."""

from collections.abc import Mapping, Sequence


def check_inputs(inputs: Mapping, required: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Raises ValueError for an input that is not known, or one that is missing, by name."""
    known = (*required, *optional)
    for name in inputs:
        if name not in known:
            raise ValueError(f"unknown input {name!r}; the model takes {', '.join(known)}")
    for name in required:
        if name not in inputs:
            raise ValueError(f"the input {name!r} is missing; the model takes {', '.join(known)}")
