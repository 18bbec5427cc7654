"""Sequences of strings in two files, which are memory-mapped instead of read: UTF-8 text, and where each string starts.

NAME.bin    the strings one after the other, as UTF-8
NAME.npy    int64 [N + 1], the offset of each string in NAME.bin, and at the end the size of that file
"""

import array
import bisect
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from tfzoo import arrays, files
from tfzoo.errors import UserError


class Strings(Sequence[str]):
    """N strings; only those that are indexed are decoded."""

    def __init__(self, data: np.ndarray, offsets: np.ndarray):
        """data: uint8 [bytes]. offsets: int64 [N + 1], ascending, from 0 to the number of bytes."""
        self._data, self._offsets = data, offsets

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Strings":
        """Returns the strings of a list, in memory."""
        encoded = [text.encode() for text in texts]
        offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets)

    @classmethod
    def open(cls, folder: pathlib.Path, name: str) -> "Strings":
        """Memory-maps the files that `Writer` wrote.

        Raises:
          UserError: they are damaged.
        """
        path = folder / f"{name}.bin"
        with files.reading(path), files.open_file(path) as file:
            # An empty file cannot be mapped.
            data = np.memmap(file, np.uint8, "r") if file.seek(0, 2) else np.zeros(0, np.uint8)
        offsets = open_array(folder / f"{name}.npy", "int64")
        check_ascending(folder / f"{name}.npy", offsets, len(data))
        return cls(data, offsets)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, position):
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        if not 0 <= position < len(self):
            raise IndexError(position)
        return self.encoded(position).decode(errors="replace")  # In a damaged file.

    def encoded(self, position: int) -> bytes:
        """Returns the UTF-8 of one string."""
        return self._data[self._offsets[position] : self._offsets[position + 1]].tobytes()

    def find(self, text: str) -> int | None:
        """Returns the position of a string, or None; the strings must be in the order of their UTF-8."""
        wanted = text.encode()
        place = bisect.bisect_left(range(len(self)), wanted, key=self.encoded)
        return place if place < len(self) and self.encoded(place) == wanted else None


class Writer:
    """Writes strings one at a time; only their offsets are in memory."""

    def __init__(self, folder: pathlib.Path, name: str):
        self._offsets, self._path = array.array("q", [0]), folder / f"{name}.npy"
        self._file = open(folder / f"{name}.bin", "wb", opener=files.regular)

    def write(self, text: str) -> None:
        self._offsets.append(self._offsets[-1] + self._file.write(text.encode()))

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind, *_) -> None:
        with self._file:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        if kind is None:
            write_array(self._path, np.frombuffer(self._offsets, np.int64))


def write(folder: pathlib.Path, name: str, texts: Iterable[str]) -> None:
    """Writes strings to NAME.bin and NAME.npy."""
    with Writer(folder, name) as writer:
        for text in texts:
            writer.write(text)


def write_array(path: pathlib.Path, values: np.ndarray) -> None:
    """Writes an array and flushes it to disk."""
    with open(path, "wb", opener=files.regular) as file:
        np.lib.format.write_array(file, values, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def open_array(path: pathlib.Path, *dtypes: str, axes: int = 1) -> np.ndarray:
    """Memory-maps a .npy file for reading.

    Args:
      path: the file.
      *dtypes: names of the expected dtypes.
      axes: the expected number of axes.

    Raises:
      UserError: the file contains something else.
    """
    values = arrays.open_array(path)
    if values.dtype.name not in dtypes or values.ndim != axes:
        raise damaged(path, f"it is not an array of {' or '.join(dtypes)} with {axes} axes")
    return values


def damaged(path: pathlib.Path, reason: str) -> UserError:
    """Returns the error for a file of an index that is not what the manifest says."""
    return UserError(f"{path}: is damaged ({reason}); restore it, or build the index again")


def check_ascending(path: pathlib.Path, offsets: np.ndarray, end: int) -> None:
    """Raises UserError if offsets int64 [N + 1] do not ascend from 0 to `end`."""
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != end or (offsets[1:] < offsets[:-1]).any():
        raise damaged(path, f"its numbers do not ascend from 0 to {end}")
