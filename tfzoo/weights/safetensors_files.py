"""Reads and writes safetensors, in one file or several shards.

Format: https://huggingface.co/docs/safetensors (8 bytes with the header's length, a JSON header, the tensors without
gaps).
"""

import json
import math
import mmap
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from tfzoo import json_files
from tfzoo.errors import UserError
from tfzoo.json_files import BadJSON, show
from tfzoo.weights.tensors import (
    AGAIN,
    CONVERT,
    DTYPES,
    MAX_HEADER_BYTES,
    MAX_SHARDS,
    MAX_TENSORS,
    Place,
    Tensors,
    check_count,
    check_shape,
    check_shard_name,
    explained,
    map_file,
    read_weight_map,
    refuse_other_formats,
    steps,
)

MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_PARTS = 16 * MAX_TENSORS  # Brackets, commas and colons in a header; a matrix has 12.
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_RANKS = {name: rank for rank, name in enumerate(DTYPES)}


@explained
def open_folder(folder: str | os.PathLike) -> Tensors:
    """Opens the weights of a Hugging Face folder: model.safetensors, or the shards of model.safetensors.index.json.

    Raises:
      UserError: the folder contains no such file, or only pickles, or a file violates the format or contradicts the
        index. Every header is checked; no tensor is read.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; specify one that contains {MODEL}")
    if (folder / MODEL).exists():
        return open_file(folder / MODEL)
    if (folder / INDEX).exists():
        return _open_shards(folder / INDEX)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLE_SUFFIXES)
    if pickles:
        raise UserError(
            f"{folder}: contains no {MODEL}, only {show(pickles[0])}, a pickle, which can run code when read; {CONVERT}"
        )
    raise UserError(f"{folder}: contains neither {MODEL} nor {INDEX}; specify a folder that has one of them")


@explained
def open_file(path: str | os.PathLike) -> Tensors:
    """Opens one safetensors file.

    Raises:
      UserError: the file cannot be read or violates the format. Its header is checked; no tensor is read.
    """
    path = pathlib.Path(path)
    mapped = map_file(path)
    return Tensors(_places(path, mapped, _header_length(path, mapped, MAX_HEADER_BYTES)), {path: mapped})


def _open_shards(index: pathlib.Path) -> Tensors:
    weight_map = read_weight_map(index)
    for name, shard in weight_map.items():
        check_shard_name(index, name, shard)
    shards = sorted(set(weight_map.values()))
    check_count(index, len(weight_map), "tensors", MAX_TENSORS)
    check_count(index, len(shards), "shards", MAX_SHARDS)
    places: dict[str, Place] = {}
    maps = {}
    budget = MAX_HEADER_BYTES
    for shard in shards:
        path = index.parent / shard
        if not path.exists():
            raise UserError(f"{index}: lists the shard {show(shard)}, which is missing; download it too")
        maps[path] = map_file(path)
        length = _header_length(path, maps[path], budget)
        budget -= length
        for name, place in _places(path, maps[path], length).items():
            if name in places:
                raise UserError(
                    f"{path}: tensor {show(name)} is also in {places[name].file.name}; shards must not share tensors:"
                    " download or save them again"
                )
            if name not in weight_map:
                raise UserError(f"{path}: tensor {show(name)} is not in {index.name}; download or save both again")
            places[name] = place
    for name, shard in weight_map.items():
        if name not in places or places[name].file.name != shard:
            raise UserError(f"{index}: tensor {show(name)} is missing from {show(shard)}; download both again")
    return Tensors(places, maps)


def _header_length(path: pathlib.Path, mapped: mmap.mmap, limit: int) -> int:
    length = int.from_bytes(mapped[:8], "little")
    if length > len(mapped) - 8 or mapped[8:9] != b"{":
        # Not earlier: a valid file whose header has 1,152 bytes begins like a pickle.
        refuse_other_formats(path, mapped[:64])
        if length > len(mapped) - 8:
            raise UserError(
                f"{path}: is not a safetensors file, or is truncated: its header should have {length} bytes, but the"
                f" whole file has {len(mapped)}; download or save it again"
            )
        raise UserError(
            f"{path}: is not a safetensors file: its header begins with {show(mapped[8:9])}, not {{; {AGAIN}"
        )
    if length > limit:
        raise UserError(f"{path}: its header has {length} bytes, at most {limit} are allowed; merge tensors into fewer")
    return length


def _places(path: pathlib.Path, mapped: mmap.mmap, length: int) -> dict[str, Place]:
    """Returns the tensors that a header declares; every value is compared with the others and with the file's size."""
    try:
        header = json_files.parse(mapped[8 : 8 + length], max_parts=MAX_PARTS)  # It begins with {, so it is an object.
    except BadJSON as error:
        raise UserError(f"{path}: its header: {error}; {AGAIN}") from None
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UserError(f"{path}: __metadata__ must map strings to strings; {AGAIN}")
    check_count(path, len(header), "tensors", MAX_TENSORS)
    places, spans = {}, []
    for name, info in header.items():
        try:
            dtype, shape, begin, end = _entry(info)
        except ValueError as error:
            raise UserError(f"{path}: tensor {show(name)}: {error}; {AGAIN}") from None
        places[name] = Place(path, dtype, shape, 8 + length + begin)
        spans.append((begin, end, name))
    position, previous = 0, ""
    for begin, end, name in sorted(spans):
        if begin < position:
            raise UserError(f"{path}: tensors {show(previous)} and {show(name)} overlap at byte {begin}; {AGAIN}")
        if begin > position:
            raise UserError(f"{path}: {begin - position} bytes before tensor {show(name)} belong to no tensor; {AGAIN}")
        position, previous = end, name
    payload = len(mapped) - 8 - length
    if position > payload:
        raise UserError(
            f"{path}: is truncated: tensor {show(previous)} ends at byte {position} of {payload}; download it again"
        )
    if position < payload:
        raise UserError(f"{path}: has {payload - position} bytes after its last tensor {show(previous)}; {AGAIN}")
    return places


def _entry(info: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Returns (dtype, shape, first byte, byte after the last) of one tensor.

    Raises:
      ValueError: the entry is not valid; the message says why.
    """
    if not isinstance(info, dict) or info.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{show(info)} must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"dtype {show(dtype)} is not one of {', '.join(DTYPES)}")
    if not _are_sizes(shape):
        raise ValueError(f"shape {show(shape)} must be a list of non-negative integers")
    check_shape(shape)
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"data_offsets {show(offsets)} must be its first byte and the byte after its last")
    begin, end = offsets
    size = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != size:
        raise ValueError(
            f"{dtype} of shape {show(shape)} takes {size} bytes, but data_offsets {show(offsets)} span {end - begin}"
        )
    return dtype, tuple(shape), begin, end


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


Source = tuple[str, tuple[int, ...], str, Callable[[], Any]]  # Name, shape, dtype (in DTYPES), function -> array.


def write_folder(
    folder: str | os.PathLike,
    tensors: Iterable[Source],
    max_shard_bytes: int = 5 * 10**9,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes model.safetensors, or shards and their index if one file would exceed `max_shard_bytes`.

    The bytes are those that the safetensors library writes. Each array is requested when it is written, so only one is
    in memory at a time.

    Args:
      folder: an existing folder without weights; `files.atomic_folder` makes the folder's creation atomic.
      tensors: (name, shape, dtype, function that returns the array); shards are filled in this order.
      max_shard_bytes: maximum size of the tensors in a file; a larger tensor gets a file of its own.
      metadata: the header's metadata; the default is {"format": "pt"}, which transformers requires.

    Raises:
      ValueError: two tensors have the same name, a dtype is unknown, or an array differs from its declaration.
    """
    folder = pathlib.Path(folder)
    shards: list[list[Source]] = [[]]
    names: set[str] = set()
    filled = total = 0
    for source in tensors:
        name, shape, dtype, _ = source
        if name in names or name == "__metadata__" or dtype not in DTYPES:
            raise ValueError(f"tensor {name!r} of dtype {dtype!r}: its name is already used, or its dtype is unknown")
        names.add(name)
        size = math.prod(shape) * DTYPES[dtype].itemsize
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(source)
        filled += size
        total += size
    metadata = {"format": "pt"} if metadata is None else dict(metadata)
    if len(shards) == 1:
        write_file(folder / MODEL, shards[0], metadata)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / file_name, shard, metadata)
        weight_map.update((name, file_name) for name, *_ in shard)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_file(path: pathlib.Path, sources: Iterable[Source], metadata: Mapping[str, str]) -> None:
    """Writes one file of `write_folder`."""
    sources = sorted(sources, key=lambda source: (-_RANKS[source[2]], source[0]))
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name, shape, dtype, _ in sources:
        end = position + math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape, dtype, function in sources:
            array = np.asarray(function())
            if array.shape != tuple(shape) or array.dtype != DTYPES[dtype]:
                raise ValueError(
                    f"tensor {name!r} is {array.dtype}{list(array.shape)}, but was declared as {dtype}{list(shape)}"
                )
            rows = array.reshape(1) if array.ndim == 0 else array
            for start, stop in steps(array.shape, array.itemsize):
                # By rows, so that a transposed array is copied one chunk at a time.
                file.write(np.ascontiguousarray(rows[start:stop]).reshape(-1).view(np.uint8).data)
            del array, rows
