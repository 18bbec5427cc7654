"""Initializes a model with the weights of another, matched by name: from a run or a Hugging Face folder.

The model may have another vocabulary, more or fewer positions and segments, and other heads than the source.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import logging

from tfzoo import hub, nn, text
from tfzoo.errors import UserError
from tfzoo.objectives.objective import MAIN
from tfzoo.text.origins import Origin, origins
from tfzoo.training import runs
from tfzoo.weights import huggingface, table
from tfzoo.weights.table import is_body, is_state, relative_path

LABELED_HEADS = ("classify", "tag", "relation")
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
    resized: Mapping[str, str]  # Loaded in another size: path -> what became of its rows.
    new: tuple[str, ...]  # Not in the source: these keep their initial values.
    left_over: tuple[str, ...]  # Only in the source; tensors of a Hugging Face file have their names there.

    def __str__(self) -> str:
        """Returns the number of loaded variables, a line for each resized one, and the first names of the others."""
        lines = [f"loaded      {len(self.loaded)} variables"]
        lines += [f"resized     {path}: {how}" for path, how in self.resized.items()] or ["resized     none"]
        for label, names in (("new", self.new), ("unused", self.left_over)):
            shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            lines.append(f"{label:<11} {shown or 'none'}")
        return "\n".join(lines)


def initialize(model, source: str | os.PathLike, role: str | None = None, tokenizer: Any = None) -> Loaded:
    """Assigns the weights of a source model to all variables of `model` that have the same path.

    Three kinds of variables may have other sizes in the source:

    - Token embeddings, the matrix of an output layer that does not share them, and the output layer's bias: the values
      of a token are those of the same token in the source, otherwise the mean over the pieces into which the source's
      tokenizer splits the token's text, otherwise the mean over all tokens that represent text (`text.origins`).
    - Learned positions: the first ones are copied, and further ones repeat them from the first on, so that they keep
      their local order (Beltagy et al. 2020, Longformer, section 5).
    - Segment embeddings: likewise.

    A head with classes keeps its initial values unless the source's has the same labels.

    Must be called before the optimizer is created, because an optimizer may keep averages of the variables.

    Args:
      model: a built nn.Model. Its other variables remain unchanged; if an error is raised, all of them do.
      source: a run folder, from which the best checkpoint is read, or the newest if there is no best one, with the
        averages of --ema_decay if it contains them; or a Hugging Face folder or hf://NAME[@REVISION], from which
        those heads are read that the model also has.
      role: which model of a run with several models; None selects the main one.
      tokenizer: the tokenizer of `model`; None is that of the source.

    Returns:
      The outcome for each variable.

    Raises:
      UserError: the source cannot be read, belongs to another family whose body has other names, has a config with
        which its weights have another meaning, or contains a variable whose shape cannot be adapted.
    """
    folder = hub.folder(source, "init_from")
    left_over: list[str] = []
    fresh: set[str] = set()
    if runs.is_run(folder):
        other = runs.load_model(folder, role=role)
    else:
        other, fresh, left_over = _from_hugging_face(model, folder)
    variables, values = (_weights(each) for each in (model, other))
    if model.labels != other.labels:  # The classes of the source's head mean something else.
        others = {path for path in values if path.partition("/")[0] in LABELED_HEADS}
        fresh |= others
        left_over += sorted(others)
    values = {path: variable for path, variable in values.items() if path not in fresh}
    resizers = _resizers(model, other, tokenizer, _tokenizer(folder) if tokenizer else None)
    _check(model, other, variables, values, resizers, folder)
    common = sorted(variables.keys() & values.keys())
    resized = {}
    for path in common:
        if path in resizers:
            variables[path].assign(resizers[path](np.asarray(values[path])))
            resized[path] = resizers[path].how
        else:
            variables[path].assign(values[path])
    return Loaded(
        loaded=tuple(path for path in common if path not in resized),
        resized=resized,
        new=tuple(sorted(variables.keys() - values.keys())),
        left_over=(*sorted(values.keys() - variables.keys()), *left_over),
    )


def initialize_all(models: Mapping[str, Any], source: str | os.PathLike, tokenizer: Any = None) -> Loaded:
    """Initializes the main model of `models` by role and, from a run, the other models whose roles the run has too.

    Returns:
      The outcome for the main model.

    Raises:
      UserError: as for `initialize`.
    """
    folder = hub.folder(source, "init_from")
    for role in runs.roles(folder):
        if role in models and role != MAIN:
            initialize(models[role], folder, role, tokenizer)
    return initialize(models[MAIN], folder, tokenizer=tokenizer)


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


def _tokenizer(folder: pathlib.Path):
    """Returns the tokenizer of a source; None for a Hugging Face folder without a tokenizer that tfzoo supports."""
    if runs.is_run(folder):
        return runs.tokenizer_of(folder)
    try:
        return text.load(folder) if text.find(folder) else None
    except UserError as error:
        logging.warning("%s; tokens are matched by id instead of text", error)
        return None


@dataclasses.dataclass(frozen=True)
class _Resizer:
    """Adapts one axis of a variable to the model's size."""

    rows: Callable[[np.ndarray], np.ndarray]  # Adapts the first axis of an array.
    how: str  # What becomes of the rows.
    axis: int = 0

    def __call__(self, array: np.ndarray) -> np.ndarray:
        return np.moveaxis(self.rows(np.moveaxis(array, self.axis, 0)), 0, self.axis)


def _resizers(model, other, tokenizer, other_tokenizer) -> dict[str, _Resizer]:
    """Returns how each variable is adapted, by its path, whose size differs."""
    config, source = model.config, other.config
    found: dict[str, _Resizer] = {}
    for layer in model._flatten_layers():
        if isinstance(layer, nn.Embeddings):
            for variable, counts, noun, offset in (
                (layer.positions, (config.max_positions, source.max_positions), "positions", config.position_offset),
                (layer.segments, (config.num_segments, source.num_segments), "segments", 0),
            ):
                if variable is not None and counts[0] != counts[1]:
                    found[relative_path(variable)] = _repeating(*counts, noun, offset)
    if tokenizer is None or other_tokenizer is None:
        return found
    if tokenizer.vocab == other_tokenizer.vocab and config.vocab_size == source.vocab_size:
        return found
    by_token = _by_token(origins(tokenizer, other_tokenizer), other_tokenizer, config.vocab_size)
    for layer in model._flatten_layers():
        if isinstance(layer, nn.TokenEmbedding):
            found[relative_path(layer.embeddings)] = by_token
        if isinstance(layer, nn.LMHead) and layer.dense is not None:
            found[relative_path(layer.dense.kernel)] = dataclasses.replace(by_token, axis=1)
        if isinstance(layer, nn.MaskedLMHead) or (isinstance(layer, nn.LMHead) and layer.use_bias):
            found[relative_path(layer.bias)] = by_token
    return found


def _repeating(count: int, before: int, noun: str, offset: int) -> _Resizer:
    """Cuts rows to a number, or repeats them; the first `offset` rows are copied, and do not count."""
    copied = min(count, before)
    how = f"{copied:,} {noun} copied" + (f", {count - copied:,} more repeat them" if count > copied else "")
    return _Resizer(lambda rows: np.concatenate([rows[:offset], rows[offset:][np.arange(count) % before]]), how)


def _by_token(found: list[Origin], other_tokenizer, size: int) -> _Resizer:
    """Takes the rows of `size` tokens, the first of which have these origins, from the rows of other tokens."""
    same = [i for i, origin in enumerate(found) if origin.same]
    same_ids = [found[i].ids[0] for i in same]
    split = [i for i, origin in enumerate(found) if origin.ids and not origin.same]
    words = np.setdiff1d(np.arange(other_tokenizer.vocab_size), other_tokenizer.special_ids)

    def rows_of(rows):
        result = np.empty((size, *rows.shape[1:]), rows.dtype)
        result[:] = rows[words].mean(0)
        result[same] = rows[same_ids]
        for i in split:
            result[i] = rows[list(found[i].ids)].mean(0)
        return result

    rest = size - len(same) - len(split)
    how = f"{len(same):,} tokens copied, {len(split):,} the mean of their old pieces"
    return _Resizer(rows_of, how + (f", {rest:,} the mean of all tokens" if rest else ""))


def _check(model, other, variables, values, resizers, folder) -> None:
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
        adapted = list(source_shape)
        if path in resizers:
            adapted[resizers[path].axis] = shape[resizers[path].axis]
        if shape != adapted:
            raise UserError(
                f"{folder}: {path} has the shape {source_shape}, but {shape} in this model; use the sizes of the "
                "source model" + ("" if is_body(path) else ", or omit that head")
            )
