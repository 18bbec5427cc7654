"""Reads and writes weights under other libraries' names, as the tables of the families' pages specify.

A page's WEIGHTS maps stored modules or tensors to tfzoo's layers or variables; `{}` represents a layer's index:

    "bert.encoder.layer.{}.intermediate.dense": "encoder/stack/layer_{}/mlp/up"

If the destination is a layer, the module's .weight and .bias are mapped to the layer's variables by their kind: a
kernel is stored transposed; gamma, beta and embeddings are stored unchanged. If the destination is a variable, the key
is the full name of the tensor, which is stored unchanged. The markers of tfzoo.models.markers specify other forms of
storage. A dict specifies the destination by the model's head, for names that several heads share.

The same interpreter reads and writes, and accounts for every tensor on both sides before it reads or writes one. Files
that are not Hugging Face's have their own tables and Naming (tfzoo.weights.foreign).
"""

import dataclasses
import functools
import math
import mmap
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfzoo import nn
from tfzoo.errors import UserError
from tfzoo.models.markers import Computed, Conv1D, Fused, Reshaped, Tied, Turned, When
from tfzoo.weights.tensors import DTYPES

STATE = "seed_generator_state"  # Keras's name of a random generator's state, which is a variable.
_SMALL = 1 << 18  # Elements of a tensor from which `_fill` saves time.
EMBED = "embed."  # Prefix of the names of tensors after a sentence-transformers model's pooling.
# Entries that models of every family can have. Hugging Face has no head for relations: it is new in every model read.
_EVERY = {f"{EMBED}dense_{{}}.linear": "embed/dense_{}", "relation.classifier.dense": "relation/classifier/dense"}


@dataclasses.dataclass(frozen=True)
class Naming:
    """The names that a kind of file uses for the variables of a layer, and how it stores a kernel."""

    leaves: Mapping[str, str]  # tfzoo's variable -> suffix of the layer's name in the file.
    transposed: bool  # Kernels are stored as [O, I], not [I, O].
    canonical: Callable[[str], str]  # A name in a file -> the name in the tables.


HUGGING_FACE = Naming(
    {"kernel": ".weight", "bias": ".bias", "gamma": ".weight", "beta": ".bias", "embeddings": ".weight"},
    transposed=True,
    canonical=lambda name: re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name)),  # Norms in older files.
)


@dataclasses.dataclass(frozen=True)
class Slot:
    """One stored tensor: the variables that it contains, and the conversions in both directions."""

    name: str
    variables: tuple
    shape: tuple[int, ...]  # As stored.
    to_stored: Callable[[Sequence[np.ndarray]], np.ndarray]
    from_stored: Callable[[np.ndarray], Sequence[np.ndarray]]
    rows: str = ""  # "rows": chunks of the stored rows are rows of the variable; "columns": they are its columns.
    aliases: tuple[str, ...] = ()


def relative_path(variable) -> str:
    """Returns a variable's path without the model's name, such as "encoder/embeddings/tokens/embeddings"."""
    return variable.path.partition("/")[2]


def is_body(path: str) -> bool:
    """Returns whether a path within a model belongs to its body, not to a head or its input, the pooler."""
    return path.partition("/")[0] in ("encoder", "decoder")


def is_state(variable) -> bool:
    """Returns whether a variable is the state of a random generator, which is not a weight."""
    return variable.path.rpartition("/")[2] == STATE


def slots(table: Mapping | None, model, naming: Naming = HUGGING_FACE) -> list[Slot]:
    """Returns how each weight of a model is stored, by a page's WEIGHTS; None uses tfzoo's own names.

    Raises:
      KeyError: the table lacks one of the model's variables (an error in the page).
    """
    by_name: dict[str, dict] = {}
    aliases: dict[str, list[str]] = {}
    entries = list(_entries({**table, **_EVERY}, model)) if table is not None else []
    for variable in nn.merged_variables(model):
        if is_state(variable):
            continue
        path = relative_path(variable)
        if table is None:
            by_name[path.replace("/", ".")] = {"marker": None, "variables": {0: variable}, "leaf": path}
            continue
        matches = [match for entry in entries if (match := _match(entry, path, naming))]
        untied = [match for match in matches if not isinstance(match.marker, Tied)]
        if len(untied) != 1:
            raise KeyError(f"WEIGHTS has {len(untied)} entries for {variable.path}")
        (match,) = untied
        slot = by_name.setdefault(match.name, {"marker": match.marker, "variables": {}, "leaf": match.leaf})
        slot["variables"][match.place] = variable
        aliases.setdefault(match.name, []).extend(m.name for m in matches if isinstance(m.marker, Tied))
    return [
        _slot(
            name,
            [s["variables"][i] for i in sorted(s["variables"])],
            s["marker"],
            s["leaf"],
            aliases.get(name, ()),
            naming,
        )
        for name, s in by_name.items()
    ]


@dataclasses.dataclass(frozen=True)
class _Match:
    name: str  # The stored tensor's.
    marker: object
    place: int  # The variable's index among those in the tensor.
    leaf: str  # The variable's own name; "" if the destination is the variable itself.


def _entries(table, model):
    """Yields (stored name, marker, paths) for each entry that applies to the model."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            value = next((value[head] for head in model.head_names if head in value), None)
        if isinstance(value, When):
            value = value.path if getattr(model.config, value.field) == value.value else None
        paths = _destinations(value)
        if paths:
            yield name, None if isinstance(value, str) else value, paths


def _destinations(value) -> Sequence[str]:
    """Returns the paths that an entry of a table names; none if tfzoo does not read the tensor."""
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, Fused):
        return value.paths
    path = getattr(value, "path", value)
    return [path] if isinstance(path, str) else []


def _match(entry, path, naming):
    name, marker, destinations = entry
    for place, destination in enumerate(destinations):
        pattern = re.escape(destination).replace(r"\{\}", r"(\d+)")
        match = re.fullmatch(rf"{pattern}(?:/(\w+))?", path)
        if match:
            *indices, leaf = match.groups()
            stored = name.format(*indices)
            return _Match(stored + (naming.leaves[leaf] if leaf else ""), marker, place, leaf or "")
    return None


def _slot(name, variables, marker, leaf, aliases, naming) -> Slot:
    slot = functools.partial(Slot, name, tuple(variables), aliases=tuple(aliases))
    shapes = [tuple(variable.shape) for variable in variables]
    kernel = leaf == "kernel" and not isinstance(marker, Conv1D | Reshaped) and not getattr(marker, "conv1d", False)
    turned = (kernel and naming.transposed) != isinstance(marker, Turned)
    if isinstance(marker, Fused):
        axis = -1 if marker.conv1d or leaf == "bias" else 0
        stored = [shape[::-1] if turned else shape for shape in shapes]
        ends = np.cumsum([shape[axis] for shape in stored])[:-1]
        size = sum(shape[axis] for shape in stored)
        shape = (*stored[0][:-1], size) if axis == -1 else (size, *stored[0][1:])

        def join(arrays):
            return np.concatenate([array.T if turned else array for array in arrays], axis)

        def split(array):
            return [part.T if turned else part for part in np.split(array, ends, axis)]

        return slot(shape, join, split)
    (variable_shape,) = shapes
    if isinstance(marker, Reshaped):
        shape = np.broadcast_to(np.float32(0), variable_shape).reshape(marker.shape).shape
        return slot(shape, lambda arrays: arrays[0].reshape(shape), lambda array: [array.reshape(variable_shape)])
    if turned:
        return slot(variable_shape[::-1], lambda arrays: arrays[0].T, lambda array: [array.T], rows="columns")
    return slot(variable_shape, lambda arrays: arrays[0], lambda array: [array], rows="rows")


@dataclasses.dataclass(frozen=True)
class Account:
    """The correspondence between a file's tensors and a model's weights."""

    sources: dict[str, str]  # Slot's name -> name in the file.
    tied: dict[str, str]  # Further name in the file -> slot's name.
    not_used: list[str]  # Tensors of heads that this model does not have.
    not_assigned: list[str]  # Slots of heads that the file does not have.


def check_layers(config, file, page, where) -> None:
    """Compares the number of layers with the indices in the names of a Hugging Face file.

    This is cheap, so a config with thousands of layers is rejected without building the model.

    Raises:
      UserError: the file has more or fewer layers than the config.
    """
    counts = {"encoder": config.num_layers, "decoder": config.resolved_num_decoder_layers}
    stored_counts: dict[str, int] = {}
    for name, value in (page.WEIGHTS or {}).items():
        path = next(iter(_destinations(value)), "")
        if "{}" in name and "/layer_{}" in path:
            pattern = re.compile(re.escape(name).replace(r"\{\}", r"(\d+)") + r"(?:\.\w+)?")
            tower = path.partition("/")[0]
            for stored in file.names:
                match = next(filter(None, map(pattern.fullmatch, prefixed(stored, page))), None)
                if match:
                    stored_counts[tower] = max(stored_counts.get(tower, 0), int(match[1]) + 1)
    for tower, count in stored_counts.items():
        if count != counts[tower]:
            raise UserError(
                f"{where}: config.json declares {counts[tower]:,} {tower} layers, but the tensors have {count:,}; "
                f"both must belong to the same model"
            )


def account(
    slots: Sequence[Slot], file, page, where, fresh_heads: bool = False, naming: Naming = HUGGING_FACE
) -> Account:
    """Matches a file's tensors with a model's weights, by name and shape, before anything is read.

    Args:
      slots: the result of `slots`.
      file: a tfzoo.weights.tensors.Tensors.
      page: a family's module, with WEIGHTS, PREFIX and PREFIXES.
      where: the file or folder, for messages.
      fresh_heads: whether heads and the pooler may be missing from the file. The file may always contain heads that the
        model lacks, because many released files contain more than the architecture in their config.json.
      naming: the file's Naming.

    Raises:
      UserError: a tensor is missing, unknown or has another shape.
    """
    table = {**(page.WEIGHTS or {}), **_EVERY}
    # If a matrix is not tied, its alias is its name.
    by_name = {name: slot for slot in slots for name in slot.aliases} | {slot.name: slot for slot in slots}
    heads = [re.compile(_name_pattern(n, naming)) for n, v in table.items() if _is_head(v)]
    computed = [re.compile(_name_pattern(n, naming)) for n, v in table.items() if isinstance(v, Computed)]
    sources: dict[str, str] = {}
    tied, not_used, unknown = {}, [], []
    for stored in file.names:
        name = _canonical(stored, by_name, page, naming)
        if name in by_name:
            slot = by_name[name]
            if name == slot.name or slot.name not in sources:
                if slot.name in sources:
                    tied[sources[slot.name]] = slot.name
                sources[slot.name] = stored
            else:
                tied[stored] = slot.name
        elif any(pattern.fullmatch(n) for pattern in computed for n in prefixed(name, page)):
            continue
        elif any(pattern.fullmatch(n) for pattern in heads for n in prefixed(name, page)):
            not_used.append(stored)
        else:
            unknown.append(stored)
    missing = [slot.name for slot in slots if slot.name not in sources]
    not_assigned = [name for name in missing if fresh_heads and not is_body(relative_path(by_name[name].variables[0]))]
    missing = [name for name in missing if name not in not_assigned]
    if missing or unknown:
        raise UserError(
            f"{where}: "
            + "; ".join(
                f"{problem}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
                for problem, names in (("missing tensors", missing), ("unexpected tensors", unknown))
                if names
            )
            + "; the file and its config.json must belong to the same model"
        )
    for slot_name, stored in (*sources.items(), *((s, n) for n, s in tied.items())):
        expected, shape = by_name[slot_name].shape, tuple(file.shape(stored))
        if shape != expected:
            raise UserError(
                f"{file.file(stored)}: {stored} has the shape {list(shape)}, but config.json requires "
                f"{list(expected)}; both must belong to the same model"
            )
    return Account(sources, tied, not_used, not_assigned)


def prefixed(name: str, page) -> list[str]:
    """Returns a stored name and its possible names in a page's table.

    The prefix of the body's tensors in models with heads is missing in models without, and differs for some
    model_types.
    """
    prefix = getattr(page, "PREFIX", "")
    prefixes = [text for text in getattr(page, "PREFIXES", {}).values() if name.startswith(text)]
    return [name, prefix + name, name.removeprefix(prefix), *(prefix + name.removeprefix(text) for text in prefixes)]


def _canonical(stored, by_name, page, naming):
    """Returns the table's name for a stored name."""
    new = naming.canonical(stored)
    return next((name for old in (stored, new) for name in prefixed(old, page) if name in by_name), new)


def _is_head(value) -> bool:
    """Returns whether an entry of a table belongs to a head or pooler, not to the body, or is ignored (None)."""
    return not any(map(is_body, _destinations(value)))


def _name_pattern(name: str, naming: Naming) -> str:
    leaves = "|".join(re.escape(leaf) for leaf in {*naming.leaves.values()})
    return re.escape(name).replace(r"\{\}", r"\d+") + rf"({leaves})?"


def load(slots: Sequence[Slot], file, found: Account) -> None:
    """Copies a file's tensors into the variables, one tensor at a time.

    Raises:
      UserError: a tensor contains NaN, or a tensor that is stored twice differs from its other copy.
    """
    by_name = {slot.name: slot for slot in slots}
    for name, stored in found.sources.items():
        slot = by_name[name]
        if slot.rows and math.prod(slot.shape) >= _SMALL:
            _fill(slot.variables[0], file.chunks(stored), slot.rows)
            continue
        for variable, array in zip(slot.variables, slot.from_stored(file.read(stored))):
            if array.size >= _SMALL:
                _fill(variable, [(0, array)], "rows")
            else:
                variable.assign(np.asarray(array, np.float32))
    for stored, name in found.tied.items():
        for (_, rows_of_copy), (_, rows_of_source) in zip(file.chunks(stored), file.chunks(found.sources[name])):
            if not np.array_equal(rows_of_copy, rows_of_source):
                raise UserError(
                    f"{file.file(stored)}: {stored} and {found.sources[name]} must be equal (tied) but differ; "
                    "a model with untied weights is not supported by this family"
                )


def _fill(variable, pieces: Iterable[tuple[int, np.ndarray]], axis: str) -> None:
    """Assigns (first row, rows) or (first column, columns transposed) to a variable.

    The values are copied once, into memory that TensorFlow uses as it is until the variable changes.

    Args:
      variable: a Keras variable.
      pieces: together all rows or columns.
      axis: "rows" or "columns".
    """
    dtype = variable.value.dtype
    # TensorFlow would copy an array that does not begin at a multiple of 64 bytes; this memory begins with a page.
    memory = mmap.mmap(-1, math.prod(variable.shape) * dtype.size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    array = np.frombuffer(memory, dtype.as_numpy_dtype).reshape(variable.shape)
    target = array if axis == "rows" else array.T
    for start, piece in pieces:
        target[start : start + len(piece)] = piece
    bits = array.view(f"u{dtype.size}")  # DLPack has no type for NumPy's bfloat16.
    variable.value.assign(tf.bitcast(tf.experimental.dlpack.from_dlpack(bits.__dlpack__()), dtype))


def stored(slots: Iterable[Slot], dtype: str) -> Iterator[tuple[str, tuple[int, ...], str, Callable[[], np.ndarray]]]:
    """Yields (name, shape, dtype, function that returns the array) of each weight, for `write_folder`."""
    for slot in slots:
        yield slot.name, slot.shape, dtype, functools.partial(_array, slot, dtype)


def _array(slot: Slot, dtype: str) -> np.ndarray:
    return as_dtype(slot.to_stored([np.asarray(variable.value) for variable in slot.variables]), dtype)


def as_dtype(array: np.ndarray, dtype: str) -> np.ndarray:
    """Returns the array, contiguous, in a stored dtype."""
    return np.ascontiguousarray(array).astype(DTYPES[dtype], copy=False)
