"""Initializes a model with the weights of another, matched by name: from a run or a Hugging Face folder."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from tfzoo import hub
from tfzoo.errors import UserError
from tfzoo.objectives.objective import MAIN
from tfzoo.training import runs
from tfzoo.weights import huggingface, table
from tfzoo.weights.table import is_body, is_state, relative_path

# If these fields differ, the same weights compute something different.
_ALIKE = (
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "activation",
    "gated_mlp",
    "norm",
    "norm_first",
    "parallel_blocks",
    "positions",
    "position_offset",
    "qk_norm",
    "scale_scores",
    "scale_embeddings",
)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The outcome for each variable, by its path within the model, such as "encoder/embeddings/tokens/embeddings"."""

    loaded: tuple[str, ...]
    new: tuple[str, ...]  # Not in the source: these keep their initial values.
    left_over: tuple[str, ...]  # Only in the source; tensors of a Hugging Face file have their names there.

    def __str__(self) -> str:
        """Returns three lines: the number of loaded variables, and the first few names of the others."""
        lines = [f"loaded      {len(self.loaded)} variables"]
        for label, names in (("new", self.new), ("unused", self.left_over)):
            shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            lines.append(f"{label:<11} {shown or 'none'}")
        return "\n".join(lines)


def initialize(model, source: str | os.PathLike, role: str | None = None) -> Loaded:
    """Assigns the weights of a source model to all variables of `model` that have the same path.

    Must be called before the optimizer is created, because an optimizer may keep averages of the variables.

    Args:
      model: a built nn.Model. Its other variables remain unchanged; if an error is raised, all of them do.
      source: a run folder, from which the best checkpoint is read, or the newest if there is no best one, with the
        averages of --ema_decay if it contains them; or a Hugging Face folder or hf://NAME[@REVISION], from which
        those heads are read that the model also has.
      role: which model of a run with several models; None selects the main one.

    Returns:
      The outcome for each variable.

    Raises:
      UserError: the source cannot be read, belongs to another family whose body has other names, has a config with
        which its weights have another meaning, or contains a variable of another shape.
    """
    folder = hub.folder(source, "init_from")
    left_over: list[str] = []
    fresh: set[str] = set()
    if runs.is_run(folder):
        other = runs.load_model(folder, role=role)
    else:
        other, fresh, left_over = _from_hugging_face(model, folder)
    variables, values = (_weights(each) for each in (model, other))
    values = {path: variable for path, variable in values.items() if path not in fresh}
    _check(model, other, variables, values, folder)
    common = sorted(variables.keys() & values.keys())
    for path in common:
        variables[path].assign(values[path])
    return Loaded(
        loaded=tuple(common),
        new=tuple(sorted(variables.keys() - values.keys())),
        left_over=(*sorted(values.keys() - variables.keys()), *left_over),
    )


def initialize_all(models: Mapping[str, Any], source: str | os.PathLike) -> Loaded:
    """Initializes the main model of `models` by role and, from a run, the other models whose roles the run has too.

    Returns:
      The outcome for the main model.

    Raises:
      UserError: as for `initialize`.
    """
    folder = hub.folder(source, "init_from")
    for role in runs.roles(folder):
        if role in models and role != MAIN:
            initialize(models[role], folder, role)
    return initialize(models[MAIN], folder)


def _from_hugging_face(model, folder: pathlib.Path):
    """Returns (the folder's model, paths of its variables that the folder lacks, names of unused tensors)."""
    page, _ = huggingface.page_and_config(folder)
    # The heads are those of the model, whatever architecture the folder's config.json declares.
    heads = model.head_names if page.Model.family == model.family else None
    other, report = huggingface.load_model(folder, heads=heads)
    slots = table.slots(page.WEIGHTS, other)
    fresh = {relative_path(v) for slot in slots if slot.name in report.not_assigned for v in slot.variables}
    return other, fresh, report.not_used


def _weights(model) -> dict:
    return {relative_path(variable): variable for variable in model.variables if not is_state(variable)}


def _check(model, other, variables, values, folder) -> None:
    missing = [path for path in variables if is_body(path) and path not in values]
    if other.family != model.family and missing:
        raise UserError(
            f"{folder}: belongs to the family {other.family}, which lacks {missing[0]} of {model.family}; "
            f"specify a model of the family {model.family}"
        )
    fields, source_fields = model.config.resolved(), other.config.resolved()
    for name in _ALIKE:
        value, source_value = fields[name], source_fields[name]
        if value != source_value:
            raise UserError(
                f"{folder}: its {name} is {source_value!r}, but {value!r} in this model, where its weights would "
                f"compute something different; use --overrides={name}={source_value}"
            )
    for path in sorted(variables.keys() & values.keys()):
        shape, source_shape = list(variables[path].shape), list(values[path].shape)
        if shape != source_shape:
            raise UserError(
                f"{folder}: {path} has the shape {source_shape}, but {shape} in this model; use the sizes of the "
                "source model" + ("" if is_body(path) else ", or omit that head")
            )
