"""The JSON of Predict: `instances` (rows) or `inputs` (columns) to arrays, and arrays to `predictions` or `outputs`."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfzoo.serve.errors import StatusError, invalid
from tfzoo.serve.limits import Limits
from tfzoo.serve.rest.json_text import dump, is_base64, show, to_bytes, to_list, type_name
from tfzoo.serve.servable import Signature, TensorSpec
from tfzoo.serve.tensors import TYPES

# The Python types that JSON numbers, strings and so on may have, by the kind of dtype.
_ALLOWED: dict[str, set[type]] = {"f": {int, float}, "i": {int}, "u": {int}, "b": {bool}, "O": {str, dict}}
# float16, bfloat16 and uint16 have no JSON form in TF Serving, nor have complex numbers.
_WITHOUT_JSON = {np.dtype(np.float16), np.dtype(np.uint16)}


def read(request: Mapping[str, Any], signature: Signature, limits: Limits) -> dict[str, np.ndarray]:
    """Returns the inputs of a signature in a parsed request.

    Raises:
      StatusError: the request does not have the form or the types that the signature requires.
    """
    if is_rows(request):
        return _rows(request["instances"], signature, limits)
    return _columns(request["inputs"], signature, limits)


def is_rows(request: Mapping[str, Any]) -> bool:
    """Returns whether a request consists of rows, or of columns.

    Raises:
      StatusError: neither, or both.
    """
    if "instances" in request and "inputs" in request:
        raise invalid(
            f"JSON Value: {show(request)} Not formatted correctly expecting only one of 'inputs' or 'instances' keys "
            "to exist"
        )
    if "instances" not in request and "inputs" not in request:
        raise invalid("Missing 'inputs' or 'instances' key")
    return "instances" in request


def signature_name(request: Mapping[str, Any]) -> str:
    """Returns the request's signature_name, or "" if there is none."""
    name = request.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {show(request)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name


def _rows(instances: Any, signature: Signature, limits: Limits) -> dict[str, np.ndarray]:
    if not isinstance(instances, list):
        raise invalid(f"JSON Value: {show(instances)} Excepting 'instances' to be an list/array")
    if not instances:
        raise invalid("JSON Value: [] No values in 'instances' array")
    names = signature.inputs.keys()
    objects = [isinstance(row, dict) and not is_base64(row) for row in instances]
    if not isinstance(instances[0], dict) and len(names) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    if len({*objects}) > 1:
        what = "object but got list" if objects[0] else "value/list but got object"
        raise invalid(f"Expecting {what} at item {objects.index(not objects[0])} of input list")
    if not objects[0]:
        name, spec = next(iter(signature.inputs.items()))
        return {name: _rows_of(name, instances, spec, limits, "")}
    for i, row in enumerate(instances):
        if row.keys() != names:
            raise invalid(
                f"Failed to process element: {i} of 'instances' list. JSON object: {show(row)} keys must be equal to: "
                f"{','.join(sorted(names))}"
            )
    return {
        name: _rows_of(name, [row[name] for row in instances], spec, limits, f"key: {name} ")
        for name, spec in signature.inputs.items()
    }


def _rows_of(name: str, values: list, spec: TensorSpec, limits: Limits, key: str) -> np.ndarray:
    """Returns one input of all rows."""
    try:
        return to_array(values, spec, limits)
    except StatusError as error:
        # Only now is it worth looking for the row at fault.
        shape = None
        for i, value in enumerate(values):
            problem = None
            try:
                row = to_array(value, spec, limits)
                if shape is not None and row.shape != shape:
                    problem = f"Expecting shape [{_sizes(shape)}] but got: [{_sizes(row.shape)}]"
                shape = row.shape
            except StatusError as inner:
                problem = inner.message
            if problem:
                text = f"Failed to process element: {i} {key}of 'instances' list. Error: {error.code}: {problem}"
                raise StatusError(error.code, text) from None
        raise


def _sizes(shape: tuple[int, ...]) -> str:
    return ",".join(map(str, shape))


def _columns(inputs: Any, signature: Signature, limits: Limits) -> dict[str, np.ndarray]:
    if not isinstance(inputs, dict) or is_base64(inputs):
        if len(signature.inputs) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        return {name: to_array(inputs, spec, limits) for name, spec in signature.inputs.items()}
    for name in signature.inputs:
        if name not in inputs:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: to_array(inputs[name], spec, limits) for name, spec in signature.inputs.items()}


def to_array(value: Any, spec: TensorSpec, limits: Limits) -> np.ndarray:
    """Returns the array that a value or nested lists of values represent.

    Raises:
      StatusError: lists of one level have different sizes, or a value does not have the type of `spec`.
    """
    if spec.dtype.kind not in _ALLOWED or spec.dtype in _WITHOUT_JSON:
        text = f"Conversion of JSON Value: {show(value)} to type: {TYPES[spec.data_type][0]}"
        raise StatusError("UNIMPLEMENTED", text)
    shape: list[int] = []
    values = [value]  # All values of a level; lists are opened level by level.
    while values and type(values[0]) is list:
        if {*map(type, values)} != {list}:
            other = next(item for item in values if type(item) is not list)
            raise invalid(f"JSON Value: {show(other)} found at incorrect level: {len(shape) + 1} in the JSON DOM")
        size = len(values[0])
        if {*map(len, values)} != {size}:
            other = next(item for item in values if len(item) != size)
            raise invalid(
                f"Encountered list at unexpected size: {len(other)} at level: {len(shape)} expected size: {size}"
            )
        shape.append(size)
        if len(shape) > limits.max_json_depth:
            raise invalid(f"Lists are nested more deeply than the limit of {limits.max_json_depth}")
        if math.prod(shape) > limits.max_tensor_elements:
            raise invalid(f"{math.prod(shape)} values are more than the limit of {limits.max_tensor_elements}")
        values = list(itertools.chain.from_iterable(values))
    if list in {*map(type, values)}:
        raise invalid(f"Encountered list at unexpected level: {len(shape)} expected < {len(shape)}")
    return _flat(values, spec).reshape(shape)


def _flat(values: list, spec: TensorSpec) -> np.ndarray:
    dtype, kind = spec.dtype, TYPES[spec.data_type][0]
    types = {*map(type, values)}
    if not types <= _ALLOWED[dtype.kind]:
        raise _type_error(next(item for item in values if type(item) not in _ALLOWED[dtype.kind]), kind)
    if dtype.kind == "O":
        array = np.empty(len(values), object)
        for i, item in enumerate(values):
            if type(item) is dict and not is_base64(item):
                raise invalid(f"JSON Value: {show(item)} not formatted correctly for base64 data")
            array[i] = to_bytes(item)
        return array
    try:
        array = np.array(values, np.float64 if dtype.kind == "f" else dtype)
    except OverflowError:
        if dtype.kind == "f":
            raise _lossy(next(item for item in values if _is_lossy(item, dtype)), kind) from None
        limits = np.iinfo(dtype)
        raise _type_error(next(item for item in values if not limits.min <= item <= limits.max), kind) from None
    if dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            for position in np.flatnonzero(np.abs(array) >= 2 ** (np.finfo(dtype).nmant + 1)):
                if _is_lossy(values[position], dtype):
                    raise _lossy(values[position], kind)
    return array.astype(dtype, copy=False)


def _is_lossy(number: float, dtype: np.dtype) -> bool:
    """Returns whether a large number is an integer that a float type might round, or beyond its range."""
    if isinstance(number, int):
        return abs(number) >= 2 ** (np.finfo(dtype).nmant + 1)
    return math.isfinite(number) and abs(number) > float(np.finfo(dtype).max)


def _type_error(value: Any, kind: str) -> StatusError:
    return invalid(f"JSON Value: {show(value)} Type: {type_name(value)} is not of expected type: {kind}")


def _lossy(value: Any, kind: str) -> StatusError:
    return invalid(f"Cannot convert JSON value: {show(value)} to {kind} without loss of precision.")


def write(outputs: Mapping[str, np.ndarray], rows: bool) -> bytes:
    """Returns the JSON of outputs: `predictions`, one per row, or `outputs`. A single output's name is omitted.

    Raises:
      StatusError: the outputs do not consist of rows.
    """
    if not outputs:
        raise invalid("Cannot convert empty tensor map to JSON")
    if rows:
        batch = None
        for name, array in outputs.items():
            if array.ndim == 0:
                raise invalid(f"Tensor name: {name} has no shape information ")
            if batch is not None and len(array) != batch:
                raise invalid(f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {batch}")
            batch = len(array)
    values = {name: to_list(array, as_base64=name.endswith("_bytes")) for name, array in outputs.items()}
    if len(values) == 1:
        (content,) = values.values()
    elif rows:
        content = [dict(zip(values, row)) for row in zip(*values.values())]
    else:
        content = values
    return dump({"predictions" if rows else "outputs": content})
