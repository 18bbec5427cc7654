"""Named tensors in files: the common interface of weight formats, with validation before reading and chunked reading.

    with safetensors_files.open_folder("bert-base-uncased") as tensors:
        for name in tensors.names:
            for start, rows in tensors.chunks(name):  # at most 1 MiB each
                ...

safetensors (one file or shards), Keras's HDF5 and TensorFlow's checkpoints share this interface. No file is trusted:
every value in a header is compared with the file's size before anything is read or allocated, and files that could run
code (pickle) are rejected by their first bytes, whatever their names. Files are memory-mapped and consumed pages are
released, so reading requires memory for one chunk. A file must not be truncated while it is read.
"""

import functools
import math
import mmap
import os
import pathlib
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import ml_dtypes
import numpy as np

from tfzoo import files, json_files
from tfzoo.errors import UserError
from tfzoo.json_files import Field, show

CHUNK_BYTES = 1 << 20
MAX_HEADER_BYTES = 16 << 20  # Of all shards together; 90,000 tensors, in the largest models published, take 10 MB.
MAX_TENSORS = 100_000
MAX_RANK = 16
MAX_SHARDS = 4096

# In safetensors' own order: larger items come first in a file, which aligns them.
DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

# Without the sign bit, NaN and infinity have the largest bits: (unsigned type, all bits but the sign, smallest).
_NOT_FINITE = {
    "F8_E5M2": (np.uint8, 0x7F, 0x7C),
    "F8_E4M3": (np.uint8, 0x7F, 0x7F),
    "F16": (np.uint16, 0x7FFF, 0x7C00),
    "BF16": (np.uint16, 0x7FFF, 0x7F80),
    "F32": (np.uint32, 0x7FFFFFFF, 0x7F800000),
    "F64": (np.uint64, 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
}

CONVERT = "if you trust it, convert it to safetensors (transformers: save_pretrained), and use that folder instead"
AGAIN = "the file is damaged or in an unsupported format: download or save it again"
HDF5 = b"\x89HDF\r\n\x1a\n"  # The first bytes of an HDF5 file.

_Result = TypeVar("_Result")


class Place(NamedTuple):
    file: pathlib.Path
    dtype: str
    shape: tuple[int, ...]
    offset: int  # The first byte, from the beginning of the file.


class Tensors:
    """Named tensors in files, as opened by safetensors_files, tf1_files and hdf5_files; a context manager.

    Names are those of the file. After `close`, names, shapes and dtypes remain available, and arrays that were returned
    remain valid.
    """

    def __init__(self, places: Mapping[str, Place], maps: Mapping[pathlib.Path, mmap.mmap]):
        self._places = dict(sorted(places.items()))
        self._maps = dict(maps)

    @property
    def names(self) -> list[str]:
        """The names of all tensors, sorted."""
        return list(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        return self._places[name].shape

    def dtype(self, name: str) -> str:
        """Returns the dtype in safetensors' notation, such as "F32" or "BF16"; DTYPES maps it to NumPy's."""
        return self._places[name].dtype

    def file(self, name: str) -> pathlib.Path:
        """Returns the file that contains the tensor, for messages."""
        return self._places[name].file

    def chunks(self, name: str, finite: bool = True) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (first row, rows) in order, along the first axis, with at most CHUNK_BYTES or one row each.

        A scalar gives (0, an array without axes) once, and an empty tensor gives one empty chunk. The arrays are
        read-only views of the file: copy what must be kept, because their memory is released when the next chunk is
        requested.

        Raises:
          UserError: a value is NaN or infinite, unless `finite` is False; the message names file and tensor.
        """
        place = self._places[name]
        for start, rows in self._rows(name, place):
            if finite:
                _check_finite(rows, start, name, place)
            yield start, rows

    def read(self, name: str, finite: bool = True) -> np.ndarray:
        """Returns the whole tensor in its own dtype, as a copy in memory.

        Raises:
          UserError: a value is NaN or infinite, unless `finite` is False; the message names file and tensor.
        """
        place = self._places[name]
        result = np.empty(place.shape, DTYPES[place.dtype])
        for start, rows in self.chunks(name, finite):
            if rows.ndim:
                result[start : start + len(rows)] = rows
            else:
                result[...] = rows
        return result

    def joined(self, other: "Tensors", prefix: str) -> "Tensors":
        """Returns these tensors and another's with a prefix before their names; closing the result closes both."""
        places = self._places | {prefix + name: place for name, place in other._places.items()}
        return Tensors(places, self._maps | other._maps)

    def without(self, prefix: str) -> "Tensors":
        """Returns the tensors whose names do not begin with a prefix."""
        return Tensors({n: p for n, p in self._places.items() if not n.startswith(prefix)}, self._maps)

    def close(self) -> None:
        """Releases the files."""
        self._maps.clear()  # Unmapped with the last array that refers to them.

    def __enter__(self):
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: types.TracebackType | None) -> None:
        self.close()

    def _rows(self, name: str, place: Place) -> Iterator[tuple[int, np.ndarray]]:
        if place.file not in self._maps:
            raise ValueError(f"{place.file} is already closed")
        mapped = self._maps[place.file]
        dtype = DTYPES[place.dtype]
        for start, stop in steps(place.shape, dtype.itemsize):
            shape = (stop - start, *place.shape[1:]) if place.shape else ()
            size = math.prod(shape)
            if not size:
                yield start, np.empty(shape, dtype)
                continue
            offset = place.offset + start * math.prod(place.shape[1:]) * dtype.itemsize
            try:
                yield start, np.frombuffer(mapped, dtype, size, offset).reshape(shape)
            finally:
                _let_go(mapped, offset, offset + size * dtype.itemsize)


def steps(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[int, int]]:
    """Yields (first row, row after the last) of each chunk; an empty tensor is one chunk, a scalar one row."""
    rows = shape[0] if shape else 1
    row_bytes = math.prod(shape[1:]) * itemsize
    if not rows * row_bytes:
        yield 0, rows
        return
    step = max(1, CHUNK_BYTES // row_bytes)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _let_go(mapped: mmap.mmap, start: int, stop: int) -> None:
    """Releases pages from this process's memory; if accessed again, they are read from the file."""
    if hasattr(mapped, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
        start -= start % mmap.PAGESIZE
        mapped.madvise(mmap.MADV_DONTNEED, start, stop - start)


def _check_finite(rows: np.ndarray, start: int, name: str, place: Place) -> None:
    if place.dtype not in _NOT_FINITE:
        return
    unsigned, mask, limit = _NOT_FINITE[place.dtype]
    bits = rows.reshape(-1).view(unsigned)
    block = (256 << 10) // bits.itemsize  # Small enough to stay in the cache for the second pass.
    for first in range(0, bits.size, block):
        magnitudes = bits[first : first + block] & unsigned(mask)
        if magnitudes.max() >= limit:
            at = np.unravel_index(first + int(np.argmax(magnitudes >= limit)), rows.shape)
            where = [int(at[0]) + start, *map(int, at[1:])] if at else []
            raise UserError(
                f"{place.file}: tensor {show(name)} is {float(rows[at])} at {where}; the checkpoint is damaged or its"
                " training diverged: use another"
            )


def explained(function: Callable[[Any], _Result]) -> Callable[[str | os.PathLike], _Result]:
    """Converts the operating system's errors while files are opened into a UserError."""

    @functools.wraps(function)
    def opened(path: str | os.PathLike) -> _Result:
        try:
            return function(path)
        except OSError as error:
            raise UserError(f"{error.filename or path}: {error.strerror or error}; make it readable") from None

    return opened


def read_weight_map(index: pathlib.Path) -> dict[str, Any]:
    """Returns the weight_map of an index of shards: tensor, or group of tensors -> shard.

    Raises:
      UserError: the file is not such an index.
    """
    content = json_files.read(index, max_bytes=MAX_HEADER_BYTES)
    json_files.check(content, {"weight_map": Field(dict, required=True)}, index)
    return content["weight_map"]


def check_shard_name(index: pathlib.Path, name: str, shard: Any) -> None:
    """Raises UserError if a shard is not the plain name of a file next to its index."""
    # Links are allowed: in Hugging Face's cache every file is one.
    plain = isinstance(shard, str) and shard not in ("", ".", "..") and len(shard.encode(errors="replace")) < 256
    if not plain or re.search(r"[/\\:\x00-\x1f]", shard):
        raise UserError(
            f"{index}: tensor {show(name)} is listed in {show(shard)}; a shard must be a plain file name in the same"
            " folder"
        )


def check_count(path: pathlib.Path, count: int, what: str, limit: int) -> None:
    """Raises UserError if a file has more of `what` than `limit`."""
    if count > limit:
        raise UserError(f"{path}: has {count} {what}, but at most {limit} are allowed; merge them into fewer")


def map_file(path: pathlib.Path) -> mmap.mmap:
    """Returns a memory map of a file, whose bytes are read on access.

    Raises:
      UserError: the file is empty or not a plain file.
    """
    if not path.is_file():  # Opening a pipe would wait forever.
        raise UserError(f"{path}: {'is not a plain file' if path.exists() else 'no such file'}; specify a weight file")
    with files.open_file(path) as file:
        if not os.fstat(file.fileno()).st_size:
            raise UserError(f"{path}: is empty; {AGAIN}")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def refuse_other_formats(path: pathlib.Path, start: bytes) -> None:
    """Raises UserError if a file's first bytes are those of a known format that is not supported here."""
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":
        raise UserError(f"{path}: is a pickle (by its first bytes), which can run code when read; {CONVERT}")
    if start[:4] in (b"PK\3\4", b"PK\5\6"):
        raise UserError(f"{path}: is a zip archive, which torch.save writes with a pickle inside; {CONVERT}")
    if start[:8] == HDF5:
        raise UserError(
            f"{path}: is an HDF5 file, not safetensors; for a KerasHub preset, specify its folder; for any other,"
            f" {CONVERT}"
        )
    if start[:2] == b"\x1f\x8b":
        raise UserError(f"{path}: is compressed with gzip; if you trust it, decompress it and use the result")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: is a Git LFS pointer, not the weights; fetch them with git lfs pull")


def check_shape(shape: Sequence[int]) -> None:
    """Raises ValueError for a shape that NumPy cannot create: NumPy multiplies all non-empty axes in 64 bits."""
    if len(shape) > MAX_RANK or math.prod([size or 1 for size in shape]) > 1 << 56:
        raise ValueError(f"shape {show(list(shape))} is too large")
