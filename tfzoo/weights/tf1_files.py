"""Reads TF1 variable checkpoints, the format of google-research's BERT and ELECTRA."""

import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging

from tfzoo.errors import UserError, one_line
from tfzoo.json_files import show
from tfzoo.weights.tensors import (
    AGAIN,
    DTYPES,
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    NAMES,
    Place,
    Tensors,
    check_count,
    check_shape,
    explained,
    steps,
)
from tfzoo.weights.tf1_index import Entry, read_index

# Scalars that optimizers, loss scaling and loops store next to the weights, in any scope.
_COUNTER = re.compile(
    r"(^|/)(global_step|local_step|iter|iterations|learning_rate|decay|rho|epsilon|momentum|beta_[12]|beta[12]_power"
    r"|(num_)?(good|bad)_steps|batch_finite)(_\d+)?$|(^|/)\w*loss_?scale\w*(/|$)",
    re.IGNORECASE,
)


class _TF1Tensors(Tensors):
    """Tensors that TensorFlow reads whole, verifying their checksums, so memory holds one tensor at a time."""

    def __init__(self, places: Mapping[str, Place], reader: Any):
        super().__init__(places, {})
        self._reader = reader

    def close(self) -> None:
        self._reader = None

    def _rows(self, name: str, place: Place) -> Iterator[tuple[int, np.ndarray]]:
        if self._reader is None:
            raise ValueError(f"{place.file} is already closed")
        try:
            array = np.asarray(self._reader.get_tensor(name))
        except Exception as error:  # Corruption raises at least six types.
            raise UserError(
                f"{place.file}: tensor {show(name)} cannot be read ({type(error).__name__}: {one_line(error, 200)}); "
                f"{AGAIN}"
            ) from None
        for start, stop in steps(place.shape, array.itemsize):
            yield start, array[start:stop] if array.ndim else array


@explained
def open_tf1(prefix: str | os.PathLike) -> Tensors:
    """Opens a TF1 checkpoint, the format of google-research's BERT and ELECTRA; an optimizer's variables are ignored.

    Args:
      prefix: a prefix such as FOLDER/bert_model.ckpt, for bert_model.ckpt.index and its .data files; or a folder with
        exactly one checkpoint.

    Raises:
      UserError: the checkpoint cannot be read, or its index claims more data than its files contain. No tensor is read.
    """
    prefix = pathlib.Path(prefix)
    if prefix.is_dir():
        indexes = sorted(prefix.glob("*.index"))
        if len(indexes) != 1:
            raise UserError(f"{prefix}: has {len(indexes)} checkpoints (*.index); specify one, such as bert_model.ckpt")
        prefix = indexes[0]
    prefix = prefix.with_suffix("") if prefix.suffix == ".index" else prefix
    index = prefix.with_name(prefix.name + ".index")
    if not index.is_file():
        raise UserError(
            f"{prefix}: no such checkpoint ({index.name}); specify one by its prefix, such as bert_model.ckpt"
        )
    if index.stat().st_size > MAX_HEADER_BYTES:
        raise UserError(f"{index}: has {index.stat().st_size} bytes, but at most {MAX_HEADER_BYTES} are allowed")

    import tensorflow as tf  # Nothing else in this module requires it.

    try:
        entries = read_index(index)
        check_count(index, len(entries), "tensors", MAX_TENSORS)
        if "_CHECKPOINTABLE_OBJECT_GRAPH" in entries:
            raise UserError(
                f"{index}: is a TensorFlow 2 object checkpoint; only TF1 variable checkpoints are supported"
            )
        ignored = [name for name in sorted(entries) if _is_optimizers(name, entries)]
        places = {name: _place(index, name, entries[name]) for name in sorted(entries.keys() - set(ignored))}
        reader = tf.train.load_checkpoint(str(prefix))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{index}: cannot be read ({type(error).__name__}: {one_line(error, 200)}); {AGAIN}") from None
    if ignored:
        logging.info("%s: %d optimizer variables are ignored, such as %s", index, len(ignored), ", ".join(ignored[:3]))
    return _TF1Tensors(places, reader)


def _place(index: pathlib.Path, name: str, entry: Entry) -> Place:
    """Returns the place of a tensor.

    Raises:
      UserError: the index claims something that it cannot contain.
    """
    import tensorflow as tf

    try:
        stored = tf.dtypes.as_dtype(entry.dtype)
    except TypeError:
        raise UserError(f"{index}: tensor {show(name)}: dtype number {entry.dtype} is unknown; {AGAIN}") from None
    dtype = NAMES.get(np.dtype(stored.as_numpy_dtype))
    try:
        if dtype is None:
            raise ValueError(f"dtype {stored.name} is not one of {', '.join(DTYPES)}")
        check_shape(entry.shape)
        size = math.prod(entry.shape) * DTYPES[dtype].itemsize
        if entry.size != size:
            raise ValueError(f"shape {show(list(entry.shape))} takes {size} bytes, but {entry.size} are stored")
        length = entry.file.stat().st_size if entry.file.is_file() else 0
        if entry.offset + size > length:
            end = entry.offset + size
            raise ValueError(f"shape {show(list(entry.shape))} ends at byte {end}, but {entry.file.name} has {length}")
    except ValueError as error:
        raise UserError(f"{index}: tensor {show(name)}: {error}; {AGAIN}") from None
    return Place(index, dtype, entry.shape, 0)


def _is_optimizers(name: str, entries: Mapping[str, Entry]) -> bool:
    """Returns whether a variable is an optimizer slot of another variable, for any optimizer, or a counter.

    TensorFlow names a slot by the full name of its variable followed by its own (W/Adam_1,
    W/ExponentialMovingAverage/biased); Keras also puts a scope before it (training/Adam/W/m); Mesh TensorFlow uses one
    word (W_slot_vr). Nothing else has the name of a variable as a scope.
    """
    if not entries[name].shape and _COUNTER.search(name):
        return True
    parts = name.split("/")
    owners = ["/".join(parts[start:stop]) for start in range(len(parts)) for stop in range(start + 1, len(parts))]
    if "_slot_" in name:
        owners.append(name.partition("_slot_")[0])
    return any(owner in entries for owner in owners)
