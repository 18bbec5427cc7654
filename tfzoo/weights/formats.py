"""Files of weights, checked before they are read and then read and written a piece at a time.

    with open_folder("bert-base-uncased") as tensors:
        for name in tensors.names:
            for start, rows in tensors.chunks(name):  # at most 1 MiB each
                ...

safetensors (one file or shards), Keras's HDF5 and TensorFlow's checkpoints look the same from here. No file is
trusted: whatever a header claims is compared with the file's size before anything is read or allocated, and what
could run code (pickle) is refused by its first bytes, whatever its name. Files are mapped, and pages that were
consumed are let go, so that reading needs memory for one chunk. A file must not be shortened while it is read.

Format: https://huggingface.co/docs/safetensors (8 bytes of length, a JSON header, the tensors without gaps).
"""

import functools
import json
import math
import mmap
import os
import pathlib
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import ml_dtypes
import numpy as np

from tfzoo import json_files
from tfzoo.errors import UserError
from tfzoo.json_files import BadJSON, Field, show

MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"
KERAS, KERAS_INDEX = "model.weights.h5", "model.weights.json"
CHUNK_BYTES = 1 << 20
MAX_HEADER_BYTES = 16 << 20  # Of all shards together; 90,000 tensors, of the largest models published, take 10 MB.
MAX_TENSORS = 100_000
MAX_PARTS = 16 * MAX_TENSORS  # Brackets, commas and colons of a header; a matrix has 12.
MAX_RANK = 16
MAX_SHARDS = 4096
MAX_HDF5_OBJECTS = 10_000  # h5py takes about 0.1 ms for each.

# In safetensors' own order: larger items lie first in a file, which aligns them.
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
_RANKS = {name: rank for rank, name in enumerate(DTYPES)}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

# Without the sign's bit, the bits of NaN and infinity are the largest: (unsigned type, all bits but the sign's, least).
_NOT_FINITE = {
    "F8_E5M2": (np.uint8, 0x7F, 0x7C),
    "F8_E4M3": (np.uint8, 0x7F, 0x7F),
    "F16": (np.uint16, 0x7FFF, 0x7C00),
    "BF16": (np.uint16, 0x7FFF, 0x7F80),
    "F32": (np.uint32, 0x7FFFFFFF, 0x7F800000),
    "F64": (np.uint64, 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
}

_CONVERT = (
    "convert it to safetensors where you trust it (transformers: save_pretrained), and point tfzoo at that folder"
)
_AGAIN = "the file is damaged or not of a kind that is read: download or save it again"
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_HDF5 = b"\x89HDF\r\n\x1a\n"
_SLOT = re.compile(r"(^|/)(adam|lamb)_[mv](_\d+)?$|^global_step$|^beta[12]_power$")

_Result = TypeVar("_Result")


class _Place(NamedTuple):
    file: pathlib.Path
    dtype: str
    shape: tuple[int, ...]
    offset: int  # Of the first byte, from the file's beginning.


class Tensors:
    """Named tensors in files, by `open_folder`, `open_file`, `open_tf1` or `open_h5`; a context manager.

    Names are those of the file. After `close` names, shapes and dtypes are still there, and arrays that were
    handed out stay valid.
    """

    def __init__(self, places: Mapping[str, _Place], maps: Mapping[pathlib.Path, mmap.mmap]):
        self._places = dict(sorted(places.items()))
        self._maps = dict(maps)

    @property
    def names(self) -> list[str]:
        """Every tensor's name, sorted."""
        return list(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        return self._places[name].shape

    def dtype(self, name: str) -> str:
        """As safetensors writes it: "F32", "BF16"; DTYPES has NumPy's."""
        return self._places[name].dtype

    def file(self, name: str) -> pathlib.Path:
        """Where the tensor is, for messages."""
        return self._places[name].file

    def chunks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (first row, rows) in order, rows along the first axis, CHUNK_BYTES at a time or else one row.

        A scalar comes as (0, an array without axes), and so does an empty tensor, once. The arrays are read-only
        views of the file: copy what is to be kept, because memory is given back as soon as the next is asked for.

        Raises:
          UserError: a NaN or an infinity, naming file and tensor.
        """
        place = self._places[name]
        for start, rows in self._rows(name, place):
            _check_finite(rows, start, name, place)
            yield start, rows

    def read(self, name: str) -> np.ndarray:
        """The whole tensor in its own dtype, a copy in memory.

        Raises:
          UserError: a NaN or an infinity, naming file and tensor.
        """
        place = self._places[name]
        result = np.empty(place.shape, DTYPES[place.dtype])
        for start, rows in self.chunks(name):
            if rows.ndim:
                result[start : start + len(rows)] = rows
            else:
                result[...] = rows
        return result

    def close(self) -> None:
        """Lets go of the files."""
        self._maps.clear()  # Unmapped with the last array that looks into them.

    def __enter__(self):
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: types.TracebackType | None) -> None:
        self.close()

    def _rows(self, name: str, place: _Place) -> Iterator[tuple[int, np.ndarray]]:
        if place.file not in self._maps:
            raise ValueError(f"{place.file} is closed already")
        mapped = self._maps[place.file]
        dtype = DTYPES[place.dtype]
        for start, stop in _steps(place.shape, dtype.itemsize):
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


def _steps(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[int, int]]:
    """(first row, row after the last) of each chunk; an empty tensor is one chunk, and a scalar counts as one row."""
    rows = shape[0] if shape else 1
    row_bytes = math.prod(shape[1:]) * itemsize
    if not rows * row_bytes:
        yield 0, rows
        return
    step = max(1, CHUNK_BYTES // row_bytes)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _let_go(mapped: mmap.mmap, start: int, stop: int) -> None:
    """Takes pages out of this process's memory; touched again, they come back from the file."""
    if hasattr(mapped, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
        start -= start % mmap.PAGESIZE
        mapped.madvise(mmap.MADV_DONTNEED, start, stop - start)


def _check_finite(rows: np.ndarray, start: int, name: str, place: _Place) -> None:
    if place.dtype not in _NOT_FINITE:
        return
    unsigned, mask, limit = _NOT_FINITE[place.dtype]
    bits = rows.reshape(-1).view(unsigned)
    block = (256 << 10) // bits.itemsize  # Small enough that the second pass over it finds it in the cache.
    for first in range(0, bits.size, block):
        magnitudes = bits[first : first + block] & unsigned(mask)
        if magnitudes.max() >= limit:
            at = np.unravel_index(first + int(np.argmax(magnitudes >= limit)), rows.shape)
            where = [int(at[0]) + start, *map(int, at[1:])] if at else []
            raise UserError(
                f"{place.file}: tensor {show(name)} is {float(rows[at])} at {where}; the checkpoint is damaged or its"
                " training diverged: take another"
            )


def _explained(function: Callable[[Any], _Result]) -> Callable[[str | os.PathLike], _Result]:
    """Turns what the operating system says while files are opened into a UserError."""

    @functools.wraps(function)
    def opened(path: str | os.PathLike) -> _Result:
        try:
            return function(path)
        except OSError as error:
            raise UserError(f"{error.filename or path}: {error.strerror or error}; make it readable") from None

    return opened


# Reading safetensors


@_explained
def open_folder(folder: str | os.PathLike) -> Tensors:
    """Opens the weights of a Hugging Face folder: model.safetensors, or the shards of model.safetensors.index.json.

    Raises:
      UserError: nothing to read there, pickle only, or a file that breaks the format or contradicts the index.
        Every header is checked, and no tensor read.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one with {MODEL} in it")
    if (folder / MODEL).exists():
        return open_file(folder / MODEL)
    if (folder / INDEX).exists():
        return _open_shards(folder / INDEX)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLE_SUFFIXES)
    if pickles:
        raise UserError(
            f"{folder}: no {MODEL}, only {show(pickles[0])}, a pickle, which can run code when it is read; {_CONVERT}"
        )
    raise UserError(f"{folder}: neither {MODEL} nor {INDEX} is there; name a folder that has one of them")


@_explained
def open_file(path: str | os.PathLike) -> Tensors:
    """Opens one safetensors file.

    Raises:
      UserError: it cannot be read or breaks the format. Its header is checked, and no tensor read.
    """
    path = pathlib.Path(path)
    mapped = _map(path)
    return Tensors(_places(path, mapped, _header_length(path, mapped, MAX_HEADER_BYTES)), {path: mapped})


def _open_shards(index: pathlib.Path) -> Tensors:
    weight_map = _weight_map(index)
    for name, shard in weight_map.items():
        _check_shard_name(index, name, shard)
    shards = sorted(set(weight_map.values()))
    _check_count(index, len(weight_map), "tensors", MAX_TENSORS)
    _check_count(index, len(shards), "shards", MAX_SHARDS)
    places: dict[str, _Place] = {}
    maps = {}
    budget = MAX_HEADER_BYTES
    for shard in shards:
        path = index.parent / shard
        if not path.exists():
            raise UserError(f"{index}: lists the shard {show(shard)}, which is not there; download it too")
        maps[path] = _map(path)
        length = _header_length(path, maps[path], budget)
        budget -= length
        for name, place in _places(path, maps[path], length).items():
            if name in places:
                raise UserError(
                    f"{path}: tensor {show(name)} is in {places[name].file.name} too; shards must not share tensors:"
                    " download or save them again"
                )
            if name not in weight_map:
                raise UserError(f"{path}: tensor {show(name)} is not in {index.name}; download or save both again")
            places[name] = place
    for name, shard in weight_map.items():
        if name not in places or places[name].file.name != shard:
            raise UserError(
                f"{index}: tensor {show(name)} is not in {show(shard)}, where it should be; download both again"
            )
    return Tensors(places, maps)


def _weight_map(index: pathlib.Path) -> dict[str, Any]:
    content = json_files.read(index, max_bytes=MAX_HEADER_BYTES)
    json_files.check(content, {"weight_map": Field(dict, required=True)}, index)
    return content["weight_map"]


def _check_shard_name(index: pathlib.Path, name: str, shard: Any) -> None:
    # A link is let through: in Hugging Face's cache every file is one.
    if not isinstance(shard, str) or shard in ("", ".", "..") or re.search(r"[/\\:\x00-\x1f]", shard):
        raise UserError(
            f"{index}: tensor {show(name)} is said to be in {show(shard)}; a shard must be a plain name of a file in"
            " the same folder"
        )


def _check_count(path: pathlib.Path, count: int, what: str, limit: int) -> None:
    if count > limit:
        raise UserError(f"{path}: has {count} {what}, where {limit} are allowed; merge them into fewer")


def _map(path: pathlib.Path) -> mmap.mmap:
    if not path.is_file():  # Opening a pipe would wait forever.
        raise UserError(f"{path}: {'is not a plain file' if path.exists() else 'no such file'}; name a file of weights")
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise UserError(f"{path}: is empty; {_AGAIN}")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _header_length(path: pathlib.Path, mapped: mmap.mmap, limit: int) -> int:
    length = int.from_bytes(mapped[:8], "little")
    if length > len(mapped) - 8 or mapped[8:9] != b"{":
        # Only now: a good file whose header has 1,152 bytes begins like a pickle.
        _refuse_other_formats(path, mapped[:64])
        if length > len(mapped) - 8:
            raise UserError(
                f"{path}: is no safetensors file, or a truncated one: its header should have {length} bytes, the file"
                f" has {len(mapped)} in all; download or save it again"
            )
        raise UserError(f"{path}: is no safetensors file: its header begins with {show(mapped[8:9])}, not {{; {_AGAIN}")
    if length > limit:
        raise UserError(f"{path}: its header has {length} bytes, where {limit} are allowed; merge tensors into fewer")
    return length


def _refuse_other_formats(path: pathlib.Path, start: bytes) -> None:
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":
        raise UserError(f"{path}: is a pickle by its first bytes, which can run code when it is read; {_CONVERT}")
    if start[:4] in (b"PK\3\4", b"PK\5\6"):
        raise UserError(f"{path}: is a zip archive, as torch.save makes with a pickle inside; {_CONVERT}")
    if start[:8] == _HDF5:
        raise UserError(
            f"{path}: is an HDF5 file, not safetensors; a KerasHub preset is read from its folder, anything else:"
            f" {_CONVERT}"
        )
    if start[:2] == b"\x1f\x8b":
        raise UserError(
            f"{path}: is compressed by gzip; decompress it if you trust it, and point tfzoo at what comes out"
        )
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: is a Git LFS pointer, not the weights; fetch them with git lfs pull")


def _places(path: pathlib.Path, mapped: mmap.mmap, length: int) -> dict[str, _Place]:
    """The tensors that a header declares, every claim compared with the others and with the file's size."""
    try:
        header = json_files.parse(mapped[8 : 8 + length], max_parts=MAX_PARTS)  # It begins with {: it is an object.
    except BadJSON as error:
        raise UserError(f"{path}: its header: {error}; {_AGAIN}") from None
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UserError(f"{path}: __metadata__ must map strings to strings; {_AGAIN}")
    _check_count(path, len(header), "tensors", MAX_TENSORS)
    places, spans = {}, []
    for name, info in header.items():
        try:
            dtype, shape, begin, end = _entry(info)
        except ValueError as error:
            raise UserError(f"{path}: tensor {show(name)}: {error}; {_AGAIN}") from None
        places[name] = _Place(path, dtype, shape, 8 + length + begin)
        spans.append((begin, end, name))
    position, previous = 0, ""
    for begin, end, name in sorted(spans):
        if begin < position:
            raise UserError(f"{path}: tensors {show(previous)} and {show(name)} overlap at byte {begin}; {_AGAIN}")
        if begin > position:
            raise UserError(
                f"{path}: {begin - position} bytes before tensor {show(name)} belong to no tensor; {_AGAIN}"
            )
        position, previous = end, name
    payload = len(mapped) - 8 - length
    if position > payload:
        raise UserError(
            f"{path}: is truncated: tensor {show(previous)} ends at byte {position} of {payload}; download it again"
        )
    if position < payload:
        raise UserError(f"{path}: has {payload - position} bytes after its last tensor {show(previous)}; {_AGAIN}")
    return places


def _entry(info: Any) -> tuple[str, tuple[int, ...], int, int]:
    """(dtype, shape, first byte, the byte after the last) of one tensor; ValueError says what is wrong."""
    if not isinstance(info, dict) or info.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{show(info)} must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"dtype {show(dtype)} is none of {', '.join(DTYPES)}")
    if not _are_sizes(shape):
        raise ValueError(f"shape {show(shape)} must be a list of integers of 0 or more")
    _check_shape(shape)
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"data_offsets {show(offsets)} must be its first byte and the one after it")
    begin, end = offsets
    size = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != size:
        raise ValueError(
            f"{dtype} of shape {show(shape)} takes {size} bytes, data_offsets {show(offsets)} have {end - begin}"
        )
    return dtype, tuple(shape), begin, end


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_shape(shape: Sequence[int]) -> None:
    """Bounds what NumPy cannot make: it multiplies all axes but the empty ones, in 64 bits."""
    if len(shape) > MAX_RANK or math.prod([size or 1 for size in shape]) > 1 << 56:
        raise ValueError(f"shape {show(list(shape))} is too large")


# Writing safetensors

Source = tuple[str, tuple[int, ...], str, Callable[[], Any]]  # name, shape, dtype as in DTYPES, what gives the array


def write_folder(
    folder: str | os.PathLike,
    tensors: Iterable[Source],
    max_shard_bytes: int = 5 * 10**9,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes model.safetensors, or shards and their index when one file would exceed `max_shard_bytes`.

    The bytes are those of the safetensors library. Each array is asked for when its turn comes, so that only one
    is in memory at a time.

    Args:
      folder: exists and has no weights in it; `files.atomic_folder` makes one that is whole or not there.
      tensors: (name, shape, dtype, function that returns the array), shards being filled in this order.
      max_shard_bytes: of tensors in a file; a larger tensor gets a file of its own.
      metadata: the header's; {"format": "pt"}, which transformers asks for, when left out.

    Raises:
      ValueError: two tensors of one name, an unknown dtype, or an array that is not as announced.
    """
    folder = pathlib.Path(folder)
    shards: list[list[Source]] = [[]]
    names: set[str] = set()
    filled = total = 0
    for source in tensors:
        name, shape, dtype, _ = source
        if name in names or name == "__metadata__" or dtype not in DTYPES:
            raise ValueError(f"tensor {name!r} of dtype {dtype!r}: its name is taken or its dtype unknown")
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
    """One file of `write_folder`."""
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
                    f"tensor {name!r} is {array.dtype}{list(array.shape)}, announced as {dtype}{list(shape)}"
                )
            rows = array.reshape(1) if array.ndim == 0 else array
            for start, stop in _steps(array.shape, array.itemsize):
                # By rows, so that a transposed array is copied a chunk at a time.
                file.write(np.ascontiguousarray(rows[start:stop]).reshape(-1).view(np.uint8).data)
            del array, rows


# Reading TensorFlow's checkpoints and Keras's HDF5


class _Checkpoint(Tensors):
    """TensorFlow reads whole tensors and checks their checksums, so memory holds one tensor at a time."""

    def __init__(self, places: Mapping[str, _Place], reader: Any):
        super().__init__(places, {})
        self._reader = reader

    def close(self) -> None:
        self._reader = None

    def _rows(self, name: str, place: _Place) -> Iterator[tuple[int, np.ndarray]]:
        if self._reader is None:
            raise ValueError(f"{place.file} is closed already")
        try:
            array = np.asarray(self._reader.get_tensor(name))
        except Exception as error:  # Corruption raises six types and more.
            raise UserError(
                f"{place.file}: tensor {show(name)} cannot be read ({type(error).__name__}: {_line(error)}); {_AGAIN}"
            ) from None
        for start, stop in _steps(place.shape, array.itemsize):
            yield start, array[start:stop] if array.ndim else array


@_explained
def open_tf1(prefix: str | os.PathLike) -> Tensors:
    """Opens a TF1 checkpoint, as google-research's BERT and ELECTRA come; the optimizer's slots are left out.

    Args:
      prefix: such as FOLDER/bert_model.ckpt, for bert_model.ckpt.index and its .data files; or a folder with just one.

    Raises:
      UserError: it cannot be read, or its index claims more than its files hold. No tensor is read.
    """
    prefix = pathlib.Path(prefix)
    if prefix.is_dir():
        indexes = sorted(prefix.glob("*.index"))
        if len(indexes) != 1:
            raise UserError(f"{prefix}: has {len(indexes)} checkpoints (*.index); name one, such as bert_model.ckpt")
        prefix = indexes[0]
    prefix = prefix.with_suffix("") if prefix.suffix == ".index" else prefix
    index = prefix.with_name(prefix.name + ".index")
    if not index.is_file():
        raise UserError(
            f"{prefix}: no checkpoint is there ({index.name}); name one by its prefix, such as bert_model.ckpt"
        )
    if index.stat().st_size > MAX_HEADER_BYTES:
        raise UserError(f"{index}: has {index.stat().st_size} bytes, where {MAX_HEADER_BYTES} are allowed")
    pattern = re.compile(re.escape(prefix.name) + r"\.data-\d{5}-of-\d{5}")
    held = sum(path.stat().st_size for path in prefix.parent.iterdir() if pattern.fullmatch(path.name))

    import tensorflow as tf  # Nothing else here needs it.

    try:
        reader = tf.train.load_checkpoint(str(prefix))
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    except Exception as error:
        raise UserError(f"{index}: cannot be read ({type(error).__name__}: {_line(error)}); {_AGAIN}") from None
    _check_count(index, len(shapes), "tensors", MAX_TENSORS)
    if "_CHECKPOINTABLE_OBJECT_GRAPH" in shapes:
        raise UserError(f"{index}: is an object checkpoint of TensorFlow 2; only TF1 checkpoints of variables are read")
    places = {}
    claimed = 0
    for name, shape in sorted(shapes.items()):
        dtype = NAMES.get(np.dtype(dtypes[name].as_numpy_dtype))
        try:
            if dtype is None:
                raise ValueError(f"dtype {dtypes[name].name} is none of {', '.join(DTYPES)}")
            _check_shape(shape)
            claimed += math.prod(shape) * DTYPES[dtype].itemsize
            if claimed > held:
                raise ValueError(f"shape {shape} ends at byte {claimed} or later of {held} in all .data files")
        except ValueError as error:
            raise UserError(f"{index}: tensor {show(name)}: {error}; {_AGAIN}") from None
        if not _SLOT.search(name):
            places[name] = _Place(index, dtype, tuple(shape), 0)
    return _Checkpoint(places, reader)


@_explained
def open_h5(path: str | os.PathLike) -> Tensors:
    """Opens a Keras 3 file of weights, such as a KerasHub preset's; names are HDF5's ("layers/dense/vars/0").

    Args:
      path: model.weights.h5, or model.weights.json (the index of several), or a folder with one of them.

    Raises:
      UserError: it cannot be read, or has what Keras does not write: links, virtual, external, compressed or
        incomplete data. No tensor is read.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path = path / KERAS if (path / KERAS).exists() else path / KERAS_INDEX
        if not path.exists():
            raise UserError(
                f"{path.parent}: neither {KERAS} nor {KERAS_INDEX} is there; name a KerasHub preset's folder"
            )
    shards = [path]
    if path.suffix == ".json":
        found = set()
        for group, names in _weight_map(path).items():
            for name in names if isinstance(names, list) else [names]:
                _check_shard_name(path, group, name)
                found.add(name)
        _check_count(path, len(found), "shards", MAX_SHARDS)
        shards = [path.with_name(name) for name in sorted(found)]
    places: dict[str, _Place] = {}
    maps = {}
    for shard in shards:
        maps[shard] = _map(shard)
        for name, place in _hdf5_places(shard, maps[shard]).items():
            if name in places:
                raise UserError(f"{shard}: tensor {show(name)} is in {places[name].file.name} too; {_AGAIN}")
            places[name] = place
        _check_count(path, len(places), "tensors", MAX_HDF5_OBJECTS)
    return Tensors(places, maps)


def _hdf5_places(path: pathlib.Path, mapped: mmap.mmap) -> dict[str, _Place]:
    if mapped[:8] != _HDF5:
        _refuse_other_formats(path, mapped[:64])
        raise UserError(f"{path}: is no HDF5 file; {_AGAIN}")

    import h5py  # Comes with Keras.

    places = {}
    try:
        with h5py.File(path, "r", locking=False) as file:
            objects = 0
            groups: list[tuple[str, Any]] = [("", file)]
            while groups:  # A cycle of groups ends at the limit.
                prefix, group = groups.pop()
                for key in group:
                    objects += 1
                    if objects > MAX_HDF5_OBJECTS:
                        raise UserError(f"{path}: has more than {MAX_HDF5_OBJECTS} groups and tensors; {_AGAIN}")
                    name = prefix + key
                    try:
                        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                            raise ValueError("is a link, which Keras does not write")
                        item = group[key]
                        if isinstance(item, h5py.Group):
                            groups.append((name + "/", item))
                        else:
                            places[name] = _hdf5_place(path, item, len(mapped))
                    except ValueError as error:
                        raise UserError(f"{path}: tensor {show(name)}: {_line(error)}; {_AGAIN}") from None
    except UserError:
        raise
    except Exception as error:  # h5py passes on whatever a damaged file makes its library say.
        raise UserError(f"{path}: cannot be read ({type(error).__name__}: {_line(error)}); {_AGAIN}") from None
    return places


def _hdf5_place(path: pathlib.Path, item: Any, file_size: int) -> _Place:
    """Where a dataset's bytes lie: Keras writes each in one piece, so that they can be mapped. ValueError if not."""
    import h5py

    if not isinstance(item, h5py.Dataset) or item.shape is None:
        raise ValueError("is no array")
    stored = item.dtype
    # NumPy's nearest dtype is not enough: a float's bits can be laid out in other ways.
    exact = h5py.h5t.py_create(stored, logical=True) == item.id.get_type()
    if stored == np.dtype("V2") and item.attrs.get("dtype") == "bfloat16":
        stored, exact = DTYPES["BF16"], True
    if stored not in NAMES or not exact:
        raise ValueError(f"dtype {stored} is none of {', '.join(DTYPES)}")
    _check_shape(item.shape)
    size = math.prod(item.shape) * stored.itemsize
    offset = item.id.get_offset() if size else 0
    if size and (item.id.get_create_plist().get_layout() != h5py.h5d.CONTIGUOUS or item.external or offset is None):
        raise ValueError("is virtual, external, compressed or without content, as Keras writes none")
    if offset + size > file_size:
        raise ValueError(f"shape {list(item.shape)} ends at byte {offset + size}, the file has {file_size}")
    return _Place(path, NAMES[stored], item.shape, offset)


def _line(error: Exception) -> str:
    return (str(error).strip() or "?").splitlines()[0][:200]
