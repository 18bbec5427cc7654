"""Texts in, answers out with an ONNX graph: the inputs and outputs of a SavedModel's serving_default.

tfzoo.prediction reads the texts and decodes the graph's outputs into records; here they become arrays.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from tfzoo.prediction.onnx_graphs import OnnxPredictor
from tfzoo.serve import messages, tensors
from tfzoo.serve.errors import invalid
from tfzoo.serve.servable import CLASSIFY, DEFAULT_SIGNATURE, PREDICT, REGRESS, Signature, TensorSpec

STRING, FLOAT, INT, BOOL = tensors.STRING, 1, 3, 10
# Output -> its DataType and the sizes after the first axis.
Outputs = Mapping[str, tuple[int, tuple[int | None, ...]]]
Columns = Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]

_TOP = 5  # Answers of a question, and words for a mask.


class Texts:
    """Answers texts.

    Args:
      predictor: reads and answers the texts.
      manifest: the content of the artifact's manifest.json.

    Attributes:
      signatures: serving_default, whose inputs are strings [B], and for classifiers classify and regress, which read
        tf.Examples. The outputs are those of a SavedModel with the same head.
    """

    def __init__(self, predictor: OnnxPredictor, manifest: Mapping[str, Any]):
        self._predictor = predictor
        self._refuses_calls = manifest["options"]["refuse"] == "call"
        outputs, self._columns = _HEADS[predictor.task](manifest)
        if not predictor.locates_parts:
            outputs = {name: value for name, value in outputs.items() if name not in ("starts", "ends")}
        outputs = {**outputs, "truncated": (BOOL, ())}
        if not self._refuses_calls:
            outputs["error"] = (STRING, ())
        self._outputs = outputs
        inputs = {name: _spec(name, STRING, ()) for name in predictor.inputs}
        specs = {name: _spec(name, data_type, sizes) for name, (data_type, sizes) in outputs.items()}
        self.signatures = {DEFAULT_SIGNATURE: Signature(DEFAULT_SIGNATURE, PREDICT, inputs, specs)}
        examples = {"inputs": _spec("inputs", STRING, ())}
        if "scores" in outputs and "label" in outputs:
            classified = {"classes": specs["labels"], "scores": specs["scores"]}
            self.signatures["classify"] = Signature("classify", CLASSIFY, examples, classified)
        if "value" in outputs or len(manifest.get("labels") or ()) == 2:
            number = {"outputs": _spec("outputs", FLOAT, ())}
            self.signatures["regress"] = Signature("regress", REGRESS, examples, number)

    def run(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns all outputs of one of `signatures`.

        Raises:
          StatusError: a text is missing, not UTF-8 or refused, or there are different numbers of texts.
        """
        if signature == DEFAULT_SIGNATURE:
            return self._answer(inputs)
        values = self._answer(_of_examples(inputs["inputs"], self._predictor.inputs))
        if signature == "classify":
            return {"classes": values["labels"], "scores": values["scores"]}
        return {"outputs": values["value"] if "value" in values else values["scores"][:, 1]}

    def _answer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        columns = [_texts(name, inputs[name]) for name in self._predictor.inputs]
        first = self._predictor.inputs[0]
        for name, column in zip(self._predictor.inputs, columns):
            if len(column) != len(columns[0]):
                raise invalid(f"{name} must have as many rows as {first}, but has {len(column)}")
        rows = list(zip(*columns))
        records = self._predictor.answer(rows) if rows else []
        errors = [record.get("error", "") for record in records]
        if self._refuses_calls and any(errors):
            row, error = next((i, error) for i, error in enumerate(errors) if error)
            raise invalid(f"{error}, in row {row}")
        # A refused row has empty outputs.
        records = [{} if error else record for record, error in zip(records, errors)]
        values = self._columns(records)
        values |= {"truncated": [bool(record.get("truncated")) for record in records], "error": errors}
        return {name: _array(values[name], *each) for name, each in self._outputs.items()}


def _texts(name: str, values: np.ndarray) -> list[str]:
    try:
        return [value.decode() for value in values.tolist()]
    except UnicodeDecodeError as error:
        raise invalid(f"{name}: is not UTF-8 at byte {error.start} of a text") from None


def _of_examples(examples: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the features with these names of serialized tf.Examples."""
    columns: dict[str, list[bytes]] = {name: [] for name in names}
    for data in examples.tolist():
        try:
            features = messages.Example.FromString(data).features.feature
        except DecodeError:
            raise invalid("Could not parse example input") from None
        for name, column in columns.items():
            values: Any = features[name].bytes_list.value if name in features else ()
            if len(values) != 1:
                raise invalid(f"Feature: {name} (data type: string) is required but could not be found.")
            column.append(values[0])
    return {name: np.array(column, object) for name, column in columns.items()}


def _spec(name: str, data_type: int, sizes: tuple[int | None, ...]) -> TensorSpec:
    return TensorSpec(name, tensors.TYPES[data_type][1], (None, *sizes), data_type)


def _array(rows: Sequence[Any], data_type: int, sizes: tuple[int | None, ...]) -> np.ndarray:
    """Returns nested lists as an array [B, ...]; lists are filled up to the longest with "" or 0."""
    dtype = tensors.TYPES[data_type][1]
    longest = [len(rows), *(size or 0 for size in sizes)]
    for axis, level in enumerate(_levels(rows, len(sizes)), 1):
        longest[axis] = max([longest[axis], *map(len, level)])
    result = np.full(longest, b"", object) if data_type == STRING else np.zeros(longest, dtype)
    _fill(result, rows)
    return result


def _levels(rows: Sequence[Any], depth: int) -> list[list[Any]]:
    levels, level = [], list(rows)
    for _ in range(depth):
        levels.append(level)
        level = [item for items in level for item in items]
    return levels


def _fill(target: np.ndarray, values: Sequence[Any]) -> None:
    for i, value in enumerate(values):
        if isinstance(value, list):
            _fill(target[i], value)
        else:
            target[i] = value.encode(errors="replace") if isinstance(value, str) else value


def _labels(manifest: Mapping[str, Any]) -> tuple[Outputs, Columns]:
    labels = list(manifest["labels"])
    count = len(labels)
    if count == 1:
        return {"value": (FLOAT, ())}, lambda records: {"value": [record.get("value", 0.0) for record in records]}
    if manifest["problem_type"] == "regression":

        def numbers(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
            values = [list(record.get("values", {}).values()) for record in records]
            return {"values": values, "labels": [labels if row else [] for row in values]}

        return {"values": (FLOAT, (count,)), "labels": (STRING, (count,))}, numbers

    def classes(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        scores = [list(record.get("scores", {}).values()) for record in records]
        return {
            "label": [labels[int(np.argmax(row))] if row else "" for row in scores],
            "labels": [labels if row else [] for row in scores],
            "scores": scores,
        }

    return {"label": (STRING, ()), "labels": (STRING, (count,)), "scores": (FLOAT, (count,))}, classes


def _entities(manifest: Mapping[str, Any]) -> tuple[Outputs, Columns]:
    fields = {"types": ("type", STRING), "texts": ("text", STRING), "scores": ("score", FLOAT)}
    fields |= {"starts": ("start", INT), "ends": ("end", INT)}

    def columns(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        rows = [record.get("entities", []) for record in records]
        values: dict[str, Any] = {
            name: [[each.get(key) for each in row] for row in rows] for name, (key, _) in fields.items()
        }
        return values | {"num_entities": [len(row) for row in rows]}

    outputs: Outputs = {name: (data_type, (None,)) for name, (_, data_type) in fields.items()}
    return {**outputs, "num_entities": (INT, ())}, columns


def _spans(manifest: Mapping[str, Any]) -> tuple[Outputs, Columns]:
    fields = {"answers": ("text", STRING), "scores": ("score", FLOAT), "starts": ("start", INT), "ends": ("end", INT)}

    def columns(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        rows = [record.get("answers", []) for record in records]
        values: dict[str, Any] = {
            name: [[each.get(key) for each in row] for row in rows] for name, (key, _) in fields.items()
        }
        return values | {"no_answer": [record.get("no_answer", 0.0) for record in records]}

    outputs: Outputs = {name: (data_type, (_TOP,)) for name, (_, data_type) in fields.items()}
    return {**outputs, "no_answer": (FLOAT, ())}, columns


def _words(manifest: Mapping[str, Any]) -> tuple[Outputs, Columns]:
    def columns(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        rows = [record.get("words", []) for record in records]
        return {
            "words": [[[each["word"] for each in mask] for mask in row] for row in rows],
            "probabilities": [[[each["score"] for each in mask] for mask in row] for row in rows],
            "num_masks": [len(row) for row in rows],
        }

    return {"words": (STRING, (None, _TOP)), "probabilities": (FLOAT, (None, _TOP)), "num_masks": (INT, ())}, columns


def _embeddings(manifest: Mapping[str, Any]) -> tuple[Outputs, Columns]:
    def columns(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {"embeddings": [record.get("embedding", []) for record in records]}

    size = next(iter(manifest["signatures"]["model"]["outputs"].values()))["shape"][-1]
    return {"embeddings": (FLOAT, (size,))}, columns


# The heads of tfzoo.prediction.decoding -> manifest -> the outputs, and records -> their values.
_HEADS: dict[str, Callable[[Mapping[str, Any]], tuple[Outputs, Columns]]] = {
    "classify": _labels,
    "next_sentence": _labels,
    "tag": _entities,
    "span": _spans,
    "lm": _words,
    "embed": _embeddings,
    "relation": _labels,
}
