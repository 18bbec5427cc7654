"""TensorProtos to NumPy arrays and back, without TensorFlow.

A request is not trusted: 18 bytes can describe a tensor of a gigabyte, so sizes are checked before anything is made,
and a value that stands for many is repeated only so often.
"""

import math

import ml_dtypes
import numpy as np

from tfzoo.serve import messages
from tfzoo.serve.errors import invalid
from tfzoo.serve.servable import TensorSpec

STRING = 7
# DataType -> its name, the dtype of its values and the field of a TensorProto that contains them.
TYPES: dict[int, tuple[str, np.dtype, str]] = {
    1: ("float", np.dtype(np.float32), "float_val"),
    2: ("double", np.dtype(np.float64), "double_val"),
    3: ("int32", np.dtype(np.int32), "int_val"),
    4: ("uint8", np.dtype(np.uint8), "int_val"),
    5: ("int16", np.dtype(np.int16), "int_val"),
    6: ("int8", np.dtype(np.int8), "int_val"),
    STRING: ("string", np.dtype(object), "string_val"),
    8: ("complex64", np.dtype(np.complex64), "scomplex_val"),
    9: ("int64", np.dtype(np.int64), "int64_val"),
    10: ("bool", np.dtype(np.bool_), "bool_val"),
    14: ("bfloat16", np.dtype(ml_dtypes.bfloat16), "half_val"),
    17: ("uint16", np.dtype(np.uint16), "int_val"),
    18: ("complex128", np.dtype(np.complex128), "dcomplex_val"),
    19: ("half", np.dtype(np.float16), "half_val"),
    22: ("uint32", np.dtype(np.uint32), "uint32_val"),
    23: ("uint64", np.dtype(np.uint64), "uint64_val"),
}
DATA_TYPES = {dtype: number for number, (_, dtype, _) in TYPES.items()}
# float_val and double_val are packed: a tag, the length and the numbers themselves.
_PACKED_TAGS = {np.dtype(np.float32): b"\x2a", np.dtype(np.float64): b"\x32"}
_MAX_RANK = 254
_MAX_REPEATED = 2**24  # Bytes of the values that repeat the last value of an incomplete list.
_STRING_BYTES = 32  # Of a string, in addition to its text.


def to_array(proto: messages.TensorProto, name: str, max_elements: int) -> np.ndarray:
    """Returns the values of a TensorProto; the last value of an incomplete list is repeated.

    Args:
      proto: the message.
      name: the input's name in errors.
      max_elements: the largest allowed number of elements.

    Raises:
      StatusError: the message is malformed, too large or of an unsupported type.
    """
    sizes = [dim.size for dim in proto.tensor_shape.dim]
    if (
        proto.dtype not in TYPES
        or proto.tensor_shape.unknown_rank
        or len(sizes) > _MAX_RANK
        or min(sizes, default=0) < 0
    ):
        raise invalid(f"tensor parsing error: {name}")
    _, dtype, field = TYPES[proto.dtype]
    count = math.prod(sizes)
    # The second limit is NumPy's, for shapes such as [0, 2**62, 2**62].
    if count > max_elements or math.prod(size or 1 for size in sizes) * dtype.itemsize >= 2**63:
        raise invalid(
            f"tensor parsing error: {name} has the shape {sizes}, more than the limit of {max_elements} elements"
        )
    if proto.tensor_content:
        return _from_content(proto.tensor_content, dtype, count, name).reshape(sizes)
    values = getattr(proto, field)
    given = len(values)
    if field == "half_val":
        flat = np.fromiter((value & 0xFFFF for value in values), np.uint16, given).view(dtype)
    elif dtype.kind == "c":
        part = np.dtype(f"f{dtype.itemsize // 2}")
        flat = np.fromiter(values, part, given)[: given // 2 * 2].view(dtype)
    elif field == "int_val":
        flat = np.fromiter(values, np.int32, given).astype(dtype)  # As in C++, larger values wrap around.
    elif dtype.kind == "O":
        flat = np.empty(given, object)
        flat[:] = values
    else:
        flat = np.fromiter(values, dtype, given)
    if len(flat) < count:
        last = flat[-1:] if len(flat) else np.array([b""], object) if dtype.kind == "O" else np.zeros(1, dtype)
        each = _STRING_BYTES + len(last[0]) if dtype.kind == "O" else dtype.itemsize
        if (count - len(flat)) * each > _MAX_REPEATED:
            raise invalid(
                f"tensor parsing error: {name} has {len(flat)} values for {count} elements; the last value of a list "
                f"stands for at most {_MAX_REPEATED // each} more"
            )
        flat = np.concatenate([flat, np.repeat(last, count - len(flat))])
    return flat[:count].reshape(sizes)


def _from_content(content: bytes, dtype: np.dtype, count: int, name: str) -> np.ndarray:
    if dtype.kind != "O":
        if len(content) != count * dtype.itemsize:
            raise invalid(f"tensor parsing error: {name}")
        # A copy, because bytes are read-only and may be unaligned.
        return np.frombuffer(content, np.uint8 if dtype.kind == "b" else dtype).astype(dtype)
    sizes, position = [], 0  # The sizes of all strings come first.
    for _ in range(count):
        size = shift = 0
        while True:
            if position >= len(content) or shift > 63:
                raise invalid(f"tensor parsing error: {name}")
            byte = content[position]
            size, shift, position = size | (byte & 0x7F) << shift, shift + 7, position + 1
            if byte < 0x80:
                break
        sizes.append(size)
    if position + sum(sizes) != len(content):
        raise invalid(f"tensor parsing error: {name}")
    values = np.empty(count, object)
    for i, size in enumerate(sizes):
        values[i] = content[position : position + size]
        position += size
    return values


def to_proto(
    array: np.ndarray, as_content: bool = False, into: messages.TensorProto | None = None
) -> messages.TensorProto:
    """Returns the TensorProto of an array, which is `into` if that is given; with `as_content`, the values are bytes in
    tensor_content."""
    data_type = DATA_TYPES[array.dtype]
    proto = messages.TensorProto() if into is None else into
    proto.dtype = data_type
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    field = TYPES[data_type][2]
    flat = np.ascontiguousarray(array).reshape(-1)
    if as_content:
        proto.tensor_content = _content(flat)
    elif array.dtype in _PACKED_TAGS and len(flat):
        # Much faster than a list of Python numbers.
        proto.MergeFromString(_PACKED_TAGS[array.dtype] + _varint(flat.nbytes) + flat.tobytes())
    elif field == "half_val":
        proto.half_val.extend(flat.view(np.uint16).tolist())
    elif array.dtype.kind == "c":
        getattr(proto, field).extend(flat.view(f"f{array.dtype.itemsize // 2}").tolist())
    else:
        getattr(proto, field).extend(flat.tolist())
    return proto


def _content(flat: np.ndarray) -> bytes:
    if flat.dtype.kind != "O":
        return flat.tobytes()
    return b"".join(_varint(len(value)) for value in flat) + b"".join(flat)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def check(name: str, array: np.ndarray, spec: TensorSpec) -> None:
    """Checks that an input has the type and shape of its signature.

    Raises:
      StatusError: it has not.
    """
    if array.dtype != spec.dtype:
        expected, actual = TYPES[spec.data_type][0], TYPES[DATA_TYPES[array.dtype]][0]
        raise invalid(f"Expects arg[{name}] to be {expected} but {actual} is provided")
    if spec.shape is None:
        return
    fits = len(array.shape) == len(spec.shape) and all(
        size is None or size == given for size, given in zip(spec.shape, array.shape)
    )
    if not fits:
        expected = ", ".join("?" if size is None else str(size) for size in spec.shape)
        raise invalid(f'Input "{name}" has the shape {list(array.shape)}, which is incompatible with [{expected}]')
