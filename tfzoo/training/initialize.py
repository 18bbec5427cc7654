"""Weights of one model as the beginning of another's, by name: a run's, or a Hugging Face folder's."""

import dataclasses
import os
import pathlib

from tfzoo import hub
from tfzoo.errors import UserError
from tfzoo.training import runs
from tfzoo.weights import huggingface, table
from tfzoo.weights.table import is_body, is_state, relative_path

# With another value of these the same weights would compute something else.
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
    """What became of each variable, by its path within the model, such as "encoder/embeddings/tokens/embeddings"."""

    loaded: tuple[str, ...]
    new: tuple[str, ...]  # The source has none of that name: they begin as they were.
    left_over: tuple[str, ...]  # The source's alone; tensors of a Hugging Face file by their names there.

    def __str__(self) -> str:
        """Three lines: how many there are of each, and of those that are not loaded the first few."""
        lines = [f"loaded      {len(self.loaded)} variables"]
        for label, names in (("new", self.new), ("unused", self.left_over)):
            shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            lines.append(f"{label:<11} {shown or 'none'}")
        return "\n".join(lines)


def initialize(model, source: str | os.PathLike, role: str | None = None) -> Loaded:
    """Gives a model the weights of another, wherever both have a variable of one path.

    To be called before an optimizer is made, which may keep averages of what it finds.

    Args:
      model: a built nn.Model. Its other variables are left as they are, and all of them where an error is raised.
      source: a run's folder, whose best checkpoint is read, or else its newest, and the averages of --ema_decay where
        it kept them; or a Hugging Face folder, or hf://NAME[@REVISION], whose heads are read where the model has
        them too.
      role: which of a run's models, where it has several; None takes the main one.

    Raises:
      UserError: the source cannot be read, is of another family whose body has other names, has a config by which its
        weights mean something else, or a variable of another shape.
    """
    folder = hub.folder(source, "init_from")
    left_over: list[str] = []
    fresh: set[str] = set()
    if runs.is_run(folder):
        other = runs.load_model(folder, role=role)
    else:
        other, fresh, left_over = _from_hugging_face(model, folder)
    variables, values = (_weights(one) for one in (model, other))
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


def _from_hugging_face(model, folder: pathlib.Path):
    """(a folder's model, paths of those of its variables that the folder lacks, names of tensors that stay there)."""
    page, _ = huggingface.page_and_config(folder)
    # What the folder has of the model's own heads counts, and not what its config.json calls its architecture.
    heads = model.head_names if page.Model.family == model.family else None
    other, found = huggingface.load_model(folder, heads=heads)
    slots = table.slots(page.WEIGHTS, other)
    fresh = {relative_path(v) for slot in slots if slot.name in found.not_assigned for v in slot.variables}
    return other, fresh, found.not_used


def _weights(model) -> dict:
    return {relative_path(variable): variable for variable in model.variables if not is_state(variable)}


def _check(model, other, variables, values, folder) -> None:
    missing = [path for path in variables if is_body(path) and path not in values]
    if other.family != model.family and missing:
        raise UserError(
            f"{folder}: belongs to the family {other.family}, which lacks {missing[0]} of {model.family}; "
            f"specify a model of the family {model.family}"
        )
    mine, its = model.config.resolved(), other.config.resolved()
    for name in _ALIKE:
        if mine[name] != its[name]:
            raise UserError(
                f"{folder}: its {name} is {its[name]!r}, but {mine[name]!r} in this model, where its weights would "
                f"compute something different; use --overrides={name}={its[name]}"
            )
    for path in sorted(variables.keys() & values.keys()):
        shape, its_shape = list(variables[path].shape), list(values[path].shape)
        if shape != its_shape:
            raise UserError(
                f"{folder}: {path} has the shape {its_shape}, but {shape} in this model; use the sizes of the source "
                "model" + ("" if is_body(path) else ", or omit that head")
            )
