"""Checks of a model's inputs, a dict of named tensors."""

from collections.abc import Mapping, Sequence


def check_inputs(inputs: Mapping, required: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Checks the names of a model's inputs.

    Raises:
      ValueError: an input is unknown, or a required one is missing.
    """
    names = (*required, *optional)
    for name in inputs:
        if name not in names:
            raise ValueError(f"unknown input {name!r}; the model takes {', '.join(names)}")
    for name in required:
        if name not in inputs:
            raise ValueError(f"the input {name!r} is missing; the model takes {', '.join(names)}")
