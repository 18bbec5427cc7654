"""JSON as TF Serving reads and writes it: with NaN, Infinity and -Infinity, and numbers in their shortest form."""

import base64
import binascii
import json
import math
import re
from typing import Any

import numpy as np

from tfzoo.serve.errors import invalid

# An empty list has 3 bytes in a request and 64 in memory.
_MAX_CONTAINERS = 2**21
# Only such a number can be larger than a float64 can represent.
_LARGE = re.compile(rb"\d{300}|[eE]\+?0*\d{3}")
_SHOWN = 100  # Characters of a value in an error.
_FEW = 40  # Float32 numbers that are converted one by one.


def parse(body: bytes) -> dict[str, Any]:
    """Parses a request, which must be an object.

    Raises:
      StatusError: it is not valid JSON, contains a duplicate key or a number that is too large, is nested more deeply
        than the parser can follow or has too many lists and objects.
    """
    if not body.strip():
        raise _error("The document is empty")
    containers = body.count(b"[") + body.count(b"{")
    if containers > _MAX_CONTAINERS:
        raise _error(f"{containers} lists and objects are more than the limit of {_MAX_CONTAINERS}")
    try:
        value = json.loads(
            body.decode(), object_pairs_hook=_unique, parse_float=_finite if _LARGE.search(body) else None
        )
    except UnicodeDecodeError as error:
        raise _error(f"Invalid encoding in string at offset: {error.start}") from None
    except json.JSONDecodeError as error:
        raise _error(f"{error.msg} at offset: {error.pos}") from None
    except RecursionError:
        raise _error("the document is nested too deeply") from None
    except ValueError as error:  # From the functions below, and for integers with thousands of digits.
        raise _error(str(error)) from None
    if not isinstance(value, dict):
        raise invalid(f"JSON Value: {show(value)} Is not object")
    return value


def _error(problem: str) -> Exception:
    return invalid(f"JSON Parse error: {problem}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {show(next(name for name in names if names.count(name) > 1))} appears twice")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"Number too big to be stored in double: {text[:_SHOWN]}")
    return value


def show(value: Any) -> str:
    """Returns a value as a short JSON text, for errors."""
    if isinstance(value, list | dict):
        value = _shortened(value, 4)
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _shortened(value: Any, depth: int) -> Any:
    """Returns a value without what `show` would cut off: nested lists can be deeper than json.dumps can follow."""
    if isinstance(value, list):
        return [_shortened(item, depth - 1) for item in value[:_SHOWN]] if depth else ["..."] * bool(value)
    if isinstance(value, dict):
        shown = list(value.items())[:_SHOWN]
        return {name[:_SHOWN]: _shortened(item, depth - 1) for name, item in shown} if depth else {}
    return value[: _SHOWN + 1] if isinstance(value, str) else value


def type_name(value: Any) -> str:
    """Returns TF Serving's name for the type of a JSON value."""
    if value is None:
        return "Null"
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        return "String"
    return "Object" if isinstance(value, dict) else "Array" if isinstance(value, list) else "Number"


def is_base64(value: Any) -> bool:
    """Returns whether a value is {"b64": "..."}, which represents bytes."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def to_bytes(value: Any) -> bytes:
    """Returns the bytes that a string or {"b64": "..."} represents.

    Raises:
      StatusError: the string is not Unicode or not base64.
    """
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError:
            raise _error("The surrogate pair in string is invalid") from None
    try:
        text = value["b64"]
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (ValueError, binascii.Error):
        raise invalid("Unable to base64 decode") from None


def dump(value: Any) -> bytes:
    """Returns the JSON text of a value without unnecessary white space."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def to_list(array: np.ndarray, as_base64: bool = False) -> Any:
    """Returns an array as nested lists of values that `dump` can write; numbers have their shortest form.

    Args:
      array: numbers, booleans or, of dtype object, strings as bytes.
      as_base64: represent strings as {"b64": "..."}.
    """
    if array.dtype.kind == "O":
        texts = np.empty(array.size, object)
        for i, value in enumerate(array.reshape(-1)):
            texts[i] = {"b64": base64.b64encode(value).decode()} if as_base64 else value.decode(errors="replace")
        return texts.reshape(array.shape).tolist()
    if array.dtype.kind in "iub" or array.dtype == np.float64:
        return array.tolist()
    return shortest(array.astype(np.float32)).tolist()


def shortest(values: np.ndarray) -> np.ndarray:
    """Returns float64 numbers whose shortest decimal form is that of float32 `values`: 0.1, not 0.10000000149011612."""
    result = values.astype(np.float64)
    flat = result.reshape(-1)
    left = np.flatnonzero(np.isfinite(flat) & (flat != 0))
    if len(left) > _FEW:
        left = _round(flat, left)
    for i in left:
        flat[i] = float(str(np.float32(flat[i])))
    return result


def _round(flat: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Rounds the float64 numbers at the positions `left` in place; returns the positions that cannot be done this way.

    A float32 needs at most nine significant digits. A whole number below 2^53, times or divided by a power of ten up to
    10^22, is computed exactly, so a few operations on the array find the numbers of 6, 7, 8 and 9 digits.
    """
    exponents = np.floor(np.log10(np.abs(flat[left]))).astype(np.int64)
    simple = (exponents >= -14) & (exponents <= 27)
    others, left, exponents = left[~simple], left[simple], exponents[simple]
    for digits in (6, 7, 8, 9):
        exact = flat[left]
        places = digits - 1 - exponents
        scale = 10.0 ** np.abs(places)
        rounded = np.where(places >= 0, np.rint(exact * scale) / scale, np.rint(exact / scale) * scale)
        found = rounded.astype(np.float32) == exact.astype(np.float32)
        flat[left[found]] = rounded[found]
        left, exponents = left[~found], exponents[~found]
    return np.concatenate([others, left])
