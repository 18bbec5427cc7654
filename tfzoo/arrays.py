"""Arrays in .npy files that are memory-mapped after their headers were compared with their sizes."""

import math
import pathlib

import numpy as np

from tfzoo import files
from tfzoo.errors import UserError, one_line

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def open_array(path: pathlib.Path) -> np.ndarray:
    """Memory-maps a .npy file for reading.

    Raises:
      UserError: the file cannot be read, or is not an array of numbers of exactly its size; no memory is taken for it.
    """
    with files.reading(path), files.open_file(path) as file:
        try:
            version = np.lib.format.read_magic(file)
            if version not in _HEADERS:
                raise ValueError(f"version {version} of the format is not supported")
            shape, fortran_order, dtype = _HEADERS[version](file)
            offset, size = file.tell(), file.seek(0, 2)
            if dtype.hasobject or not dtype.itemsize or any(length < 0 for length in shape) or fortran_order:
                raise ValueError(f"shape {shape} and dtype {dtype} are not supported")
            if offset + math.prod(shape) * dtype.itemsize != size:
                raise ValueError(f"its size is {size} bytes, which is not that of shape {shape} and dtype {dtype}")
        except Exception as error:  # NumPy evaluates the header as Python literals, which raises several types.
            raise UserError(f"{path}: is not an array ({one_line(error, 200)}); restore it") from None
        if not math.prod(shape):  # An empty file cannot be mapped.
            return np.zeros(shape, dtype)
        return np.memmap(file, dtype, "r", offset, shape)
