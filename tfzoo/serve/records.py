"""TFRecord files, without TensorFlow: the requests for warm-up, and the log of requests.

A record is its length, a checksum of the length, the data and a checksum of the data. A length that exceeds the file is
refused before anything is read: it makes TensorFlow's own reader crash.
"""

import os
import pathlib
import struct
from collections.abc import Iterator

from tfzoo import files
from tfzoo.serve.errors import StatusError


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


def checksum(data: bytes) -> int:
    """Returns the masked CRC-32C of data, as TFRecord files contain it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def record(data: bytes) -> bytes:
    """Returns data as a record of a TFRecord file."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", checksum(length)) + data + struct.pack("<I", checksum(data))


def read(path: pathlib.Path) -> Iterator[bytes]:
    """Yields the records of a file.

    Raises:
      StatusError: the file is damaged.
    """
    with files.open_file(path) as file:
        remaining = os.fstat(file.fileno()).st_size
        while remaining:
            header = file.read(12)
            length, header_sum = struct.unpack("<QI", header) if len(header) == 12 else (0, 0)
            if len(header) < 12 or checksum(header[:8]) != header_sum or length + 16 > remaining:
                raise StatusError("DATA_LOSS", f"{path}: is not a TFRecord file, or is damaged")
            data, footer = file.read(length), file.read(4)
            if struct.pack("<I", checksum(data)) != footer:
                raise StatusError("DATA_LOSS", f"{path}: is not a TFRecord file, or is damaged")
            remaining -= length + 16
            yield data
