"""Labelled rows as arrays, written to the cache folder while the file is read, and memory-mapped."""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from tfzoo import files, json_files, lazy

tf = lazy.module("tensorflow")

_VERSION = 1  # Part of the cache key: increment it when the meaning of the arrays changes.
CHUNK = 2048  # Rows that are encoded at a time.
_INDEX = "columns.json"

# The columns of some rows: name -> a list with an array for each row, or an array with one entry for each row.
Chunk = Mapping[str, Sequence[np.ndarray] | np.ndarray]


class EncodedRows:
    """N rows with named columns. A column is an array [N, ...], or ragged: an int32 array of any length per row."""

    def __init__(self, columns: Mapping[str, np.ndarray], ragged: Mapping[str, tuple[np.ndarray, np.ndarray]]):
        """Args:
        columns: name -> [N, ...].
        ragged: name -> (values [V], starts [N + 1]): row i has the values from starts[i] to starts[i + 1].
        """
        self.columns, self.ragged = columns, ragged
        sizes = [len(x) for x in columns.values()] + [len(starts) - 1 for _, starts in ragged.values()]
        self._count = sizes[0] if sizes else 0
        assert set(sizes) <= {self._count}, sizes

    def __len__(self) -> int:
        return self._count

    def values(self, name: str, index: int) -> np.ndarray:
        """Returns the values of a ragged column in one row."""
        values, starts = self.ragged[name]
        return values[starts[index] : starts[index + 1]]

    def lengths(self, name: str) -> np.ndarray:
        """Returns the number of values of a ragged column in every row, int64 [N]."""
        return np.diff(self.ragged[name][1])


class PickedRows(EncodedRows):
    """Some rows of others, which may recur: row i is the row indices[i] of `rows`."""

    def __init__(self, rows: EncodedRows, indices: np.ndarray):
        super().__init__({name: values[indices] for name, values in rows.columns.items()}, {})
        self._rows, self._indices = rows, indices

    def __len__(self) -> int:
        return len(self._indices)

    def values(self, name: str, index: int) -> np.ndarray:
        return self._rows.values(name, int(self._indices[index]))

    def lengths(self, name: str) -> np.ndarray:
        return self._rows.lengths(name)[self._indices]


def of_chunk(chunk: Chunk) -> EncodedRows:
    """Returns the rows of one chunk, in memory."""
    columns = {name: values for name, values in chunk.items() if isinstance(values, np.ndarray)}
    ragged = {}
    for name, values in chunk.items():
        if name not in columns:
            starts = np.cumsum([0, *map(len, values)])
            ragged[name] = np.concatenate([np.zeros(0, np.int32), *values]).astype(np.int32), starts
    return EncodedRows(columns, ragged)


def cached(key: str, cache_dir: str | os.PathLike, chunks: Callable[[], Iterable[Chunk]]) -> EncodedRows:
    """Returns the rows of `chunks()`, from `cache_dir` if an earlier call had the same key.

    The rows are written to the disk chunk by chunk, so that memory does not limit their number. Cached arrays are
    verified with their checksums, and written again if they are damaged.
    """
    folder = pathlib.Path(cache_dir, f"rows-{hashlib.sha256(f'{_VERSION} {key}'.encode()).hexdigest()[:24]}")
    try:
        return _open(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    if folder.exists():
        files.remove_folder(folder)
    try:
        with files.atomic_folder(folder) as partial:
            _write(partial, chunks())
    except FileExistsError:
        pass  # Another run has just written the same content.
    return _open(folder)


def _write(folder: pathlib.Path, chunks: Iterable[Chunk]) -> None:
    streams: dict[str, _Stream] = {}

    def write(name: str, values: np.ndarray) -> None:
        if name not in streams:
            streams[name] = _Stream(folder / f"{name}.bin", values)
        streams[name].write(values)

    try:
        for chunk in chunks:
            for name, values in chunk.items():
                if isinstance(values, np.ndarray):
                    write(name, values)
                else:
                    write(name, np.concatenate([np.zeros(0, np.int32), *values]).astype(np.int32))
                    write(f"{name}.lengths", np.array([len(each) for each in values], np.int64))
    finally:
        for stream in streams.values():
            stream.close()
    index = {
        name: {
            "dtype": stream.dtype,
            "shape": [stream.rows, *stream.shape],
            "sha256": files.sha256_of_written(stream.path),
        }
        for name, stream in streams.items()
    }
    (folder / _INDEX).write_text(json.dumps(index))


class _Stream:
    """A binary file to which arrays of one dtype and shape are appended."""

    def __init__(self, path: pathlib.Path, like: np.ndarray):
        self.path, self.dtype, self.shape, self.rows = path, str(like.dtype), like.shape[1:], 0
        self._file = open(path, "wb")

    def write(self, values: np.ndarray) -> None:
        assert (str(values.dtype), values.shape[1:]) == (self.dtype, self.shape), self.path
        self._file.write(np.ascontiguousarray(values).tobytes())
        self.rows += len(values)

    def close(self) -> None:
        self._file.close()


def _open(folder: pathlib.Path) -> EncodedRows:
    """Returns the rows of a folder; raises ValueError if a file is damaged."""
    index = json_files.read(folder / _INDEX)
    arrays: dict[str, np.ndarray] = {}
    for name, entry in index.items():
        path, shape = folder / f"{name}.bin", tuple(entry["shape"])
        if files.sha256(path) != entry["sha256"]:
            raise ValueError(f"{path} is damaged")
        if 0 in shape:  # An empty file cannot be mapped.
            arrays[name] = np.zeros(shape, entry["dtype"])
        else:
            arrays[name] = np.memmap(path, entry["dtype"], "r", shape=shape)
    ragged = {
        name: (arrays.pop(name), np.concatenate([[0], np.cumsum(arrays.pop(f"{name}.lengths"))]))
        for name in [name.removesuffix(".lengths") for name in arrays if name.endswith(".lengths")]
    }
    return EncodedRows(arrays, ragged)


def tokenize_function(tokenizer) -> Callable[[Sequence[str]], list[np.ndarray]]:
    """Returns a function from texts to the token ids of each, int32, without special tokens."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def encode(texts):
        ids = tokenizer.tokenize(texts)
        return tf.cast(ids.values, tf.int32), ids.row_lengths()

    def tokenize(texts: Sequence[str]) -> list[np.ndarray]:
        values, lengths = encode(tf.constant(list(texts), tf.string))
        return np.split(values.numpy(), np.cumsum(lengths.numpy())[:-1]) if len(texts) else []

    return tokenize


def offsets_function(tokenizer) -> Callable[[Sequence[str]], list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Returns a function from texts to (token ids, starts, ends) of each, int32; see tokenize_with_offsets."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def encode(texts):
        columns = tokenizer.tokenize_with_offsets(texts)
        return [tf.cast(column.flat_values, tf.int32) for column in columns], columns[0].row_lengths()

    def tokenize(texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        if not len(texts):
            return []
        columns, lengths = encode(tf.constant(list(texts), tf.string))
        borders = np.cumsum(lengths.numpy())[:-1]
        return list(zip(*(np.split(column.numpy(), borders) for column in columns), strict=True))

    return tokenize
