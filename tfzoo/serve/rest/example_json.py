"""The JSON of Classify and Regress: `examples` with an optional `context` to tf.Examples, and results back."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfzoo.serve import messages
from tfzoo.serve.errors import invalid
from tfzoo.serve.rest.json_text import dump, is_base64, shortest, show, to_bytes, type_name

_MAX_FLOAT32 = float(np.finfo(np.float32).max)


def read(request: Mapping[str, Any]) -> Any:
    """Returns the messages.Input of a parsed request.

    Raises:
      StatusError: the request does not have the required form.
    """
    examples = request.get("examples")
    if "examples" not in request:
        text = f"JSON Value: {show(request)} When method is classify, key 'examples' is expected and was not found"
        raise invalid(text)
    if not isinstance(examples, list):
        raise invalid(f"JSON Value: {show(request)} Expecting 'examples' value to be an list/array")
    if not examples:
        raise invalid(f"JSON Value: {show(request)} 'examples' value is an empty array")
    read = messages.Input()
    if "context" in request:
        _fill(read.example_list_with_context.context, request["context"])
        target = read.example_list_with_context.examples
    else:
        target = read.example_list.examples
    for example in examples:
        _fill(target.add(), example)
    return read


def _fill(message: Any, example: Any) -> None:
    if not isinstance(example, dict):
        raise invalid(f"Example must be JSON object but got JSON {type_name(example)}")
    for name, values in example.items():
        feature = message.features.feature[to_bytes(name).decode()]
        values = values if isinstance(values, list) else [values]
        kinds = {_kind(name, value) for value in values}
        if len(kinds) > 1:
            raise invalid(f"Unexpected element type in feature: {name} expecting type: {_kind(name, values[0])}")
        if kinds == {"bytes"}:
            feature.bytes_list.value.extend(map(to_bytes, values))
        elif kinds == {"float"}:
            for value in values:
                if _MAX_FLOAT32 < abs(value) < float("inf"):
                    raise invalid(f"Cannot convert JSON value: {show(value)} to float without loss of precision.")
            feature.float_list.value.extend(values)
        elif kinds == {"int64"}:
            for value in values:
                if not -(2**63) <= value < 2**63:
                    raise invalid(f"Feature: {name} has the element {show(value)}. Only int64 is supported.")
            feature.int64_list.value.extend(map(int, values))


def _kind(name: str, value: Any) -> str:
    if isinstance(value, str) or is_base64(value):
        return "bytes"
    if isinstance(value, int):
        return "int64"
    if isinstance(value, float):
        return "float"
    raise invalid(f"Feature: {name} has element with unexpected JSON type: {type_name(value)}")


def classifications(result: Any) -> bytes:
    """Returns the JSON of a messages.ClassificationResult: a list of [label, score] for each example."""
    if not result.classifications:
        raise invalid("Cannot convert empty ClassificationResults to JSON")
    scores = iter(_shortest([one.score for classes in result.classifications for one in classes.classes]))
    return dump(
        {"results": [[[one.label, next(scores)] for one in classes.classes] for classes in result.classifications]}
    )


def regressions(result: Any) -> bytes:
    """Returns the JSON of a messages.RegressionResult: a number for each example."""
    if not result.regressions:
        raise invalid("Cannot convert empty RegressionResults to JSON")
    return dump({"results": _shortest([regression.value for regression in result.regressions])})


def _shortest(numbers: list[float]) -> list[float]:
    return shortest(np.array(numbers, np.float32)).tolist()
