"""Reads the index of a TensorFlow checkpoint. TensorFlow's own reader aborts the process on a damaged one.

Format: TensorFlow (core/util/tensor_bundle, core/lib/io/table_format.txt). The file is a table of LevelDB: blocks of
sorted names and values, a block that lists the blocks, and a footer. The value of the name "" is a BundleHeaderProto,
every other value a BundleEntryProto.
"""

import pathlib
from collections.abc import Iterator
from typing import NamedTuple

from tfzoo import files
from tfzoo.weights.tensors import MAX_SHARDS

_MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
_FOOTER = 48  # Bytes: the places of two blocks, zeros, and _MAGIC.
_TRAILER = 5  # Bytes after a block: 0 if it is not compressed, and a checksum, which TensorFlow verifies.


class Entry(NamedTuple):
    """A tensor in a checkpoint: its dtype as TensorFlow's number, and the place of its bytes."""

    dtype: int
    shape: tuple[int, ...]
    file: pathlib.Path
    offset: int
    size: int


def read_index(index: pathlib.Path) -> dict[str, Entry]:
    """Returns the tensors of a checkpoint. The files of data are not opened.

    Raises:
      ValueError: the index is not one that TensorFlow writes for complete tensors; the message says why.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import tensor_bundle_pb2

    values = dict[bytes, bytes]()
    for name, value in _table(files.read_bytes(index)):
        if values and name <= next(reversed(values)):
            raise ValueError("its names are not in order")
        values[name] = value
    try:
        header = tensor_bundle_pb2.BundleHeaderProto.FromString(values.pop(b"", b""))
        if header.endianness or not 0 < header.num_shards <= MAX_SHARDS:
            raise ValueError(f"its header has {header.num_shards} shards and byte order {header.endianness}")
        entries = {}
        for name, value in values.items():
            record = tensor_bundle_pb2.BundleEntryProto.FromString(value)
            shape = tuple(dim.size for dim in record.shape.dim)
            numbers = (*shape, record.offset, record.size)
            if (
                record.slices
                or record.shape.unknown_rank
                or min(numbers) < 0
                or record.shard_id not in range(header.num_shards)
            ):
                raise ValueError("a tensor is in slices, or has a negative size, or is in a file that does not exist")
            file = index.with_name(f"{index.stem}.data-{record.shard_id:05d}-of-{header.num_shards:05d}")
            entries[name.decode()] = Entry(record.dtype, shape, file, record.offset, record.size)
    except DecodeError:
        raise ValueError("a value is not a protocol buffer") from None
    return entries


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the names and values of a table."""
    if len(data) < _FOOTER or not data.endswith(_MAGIC):
        raise ValueError("it does not end as an index does")
    footer = data[-_FOOTER:]
    place = 0
    for _ in range(3):  # The two numbers of a block that is not used, and the start of the list.
        start, place = _number(footer, place)
    size, _ = _number(footer, place)
    for _, where in _block(data, start, size):
        start, place = _number(where, 0)
        size, _ = _number(where, place)
        yield from _block(data, start, size)


def _block(data: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yields the keys and values of a block."""
    if start + size + _TRAILER > len(data) - _FOOTER or data[start + size] != 0:
        raise ValueError("a block ends after the file, or is compressed")
    block = data[start : start + size]
    restarts = int.from_bytes(block[-4:], "little")
    end = size - 4 - 4 * restarts
    if size < 4 or end < 0:
        raise ValueError("a block has no end")
    place, key = 0, b""
    while place < end:
        shared, place = _number(block, place)
        added, place = _number(block, place)
        length, place = _number(block, place)
        if shared > len(key) or place + added + length > end:
            raise ValueError("an entry ends after its block")
        key = key[:shared] + block[place : place + added]
        place += added
        yield key, block[place : place + length]
        place += length


def _number(data: bytes, place: int) -> tuple[int, int]:
    """Returns the variable-length integer at a place, and the place after it."""
    number = 0
    for i, byte in enumerate(data[place : place + 5]):
        number |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return number, place + i + 1
    raise ValueError("a number does not end")
