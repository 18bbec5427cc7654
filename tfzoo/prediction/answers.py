"""Records, the form of answers in Python and in jsonl, from the outputs of a text signature.

    a label             {"label": "positive", "score": 0.98, "scores": {"negative": 0.02, "positive": 0.98}}
    several labels      {"labels": ["politics", "sport"], "scores": {...}}: those with a probability of at least 0.5
    a number            {"value": 3.2}
    several numbers     {"values": {"width": 3.2, "height": 0.7}}
    entities            {"entities": [{"type": "PER", "text": "Ada", "start": 0, "end": 3, "score": 0.99}]}
    spans of a context  {"answer": "1815", "start": 8, "end": 12, "score": 0.9, "no_answer": 0.01, "answers": [...]}
    words for masks     {"words": [[{"word": "rain", "score": 0.6}, ...], ...]}: a list per mask, the likeliest first
    an embedding        {"embedding": [0.1, ...]}
    messages            {"answer": "Hello"}
    endings             {"answer": "plays.", "index": 0, "score": 0.9, "scores": [0.9, 0.1]}
    a written text      {"generated_text": "It rains."}
    sentences        {"summary": "It rains.", "sentences": [{"text": "It rains.", "start": 0, "end": 9, "score": 1.0}]}
    relations           {"entities": [...], "triples": [{"head": {...}, "relation": "Part", ...}]}: see triples.py

The outputs determine the form, so that a new head of the export needs no code here unless its answer is of a new form.
start and end count code points; they are missing if the tokenizer has no offsets. A question without an answer has the
answer "", without start, end and score. Imports only numpy.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tfzoo.text import spans as spans_lib

THRESHOLD = 0.5  # The probability from which one of several labels holds.
# Every field of an answer; fields of the input with these names are renamed.
FIELDS = frozenset(
    "label score scores labels value values entities answer start end no_answer answers words embedding triples "
    "omitted_pairs generated_text summary sentences truncated error".split()
)
_TOO_LONG = "the text is longer than"  # As in tfzoo.export.answers.
Record = dict[str, Any]


def rounded(number: float) -> float:
    """Returns a number with six significant digits, more than float32 is exact to after a forward pass."""
    return float(f"{number:.6g}")


def records(outputs: Mapping[str, np.ndarray], several: bool = False) -> list[Record]:
    """Returns the record of each row.

    Args:
      outputs: the outputs of a text signature, by name, as numpy arrays.
      several: whether several labels may hold at once.
    """
    form = next((form for name, form in _FORMS.items() if name in outputs), None)
    if form is None:
        raise ValueError(f"no form of answers has the outputs {', '.join(outputs)}")
    columns = {name: _values(array) for name, array in outputs.items()}
    result = form(columns, several)
    for record, truncated in zip(result, columns.get("truncated", [])):
        if truncated:
            record["truncated"] = True
    for record, error in zip(result, columns.get("error", [])):
        if error:  # The other outputs of a refused row are empty.
            record.clear()
            record |= refused(error)
    return result


def refused(error: str) -> Record:
    """Returns the record of a text that is refused: the reason and, if the text is too long, `truncated`."""
    return ({"truncated": True} if error.startswith(_TOO_LONG) else {}) | {"error": error}


def too_long(length: int) -> str:
    """Returns why an artifact refuses a text that is longer than `length` tokens."""
    return f"{_TOO_LONG} {length} tokens"


def classified(labels: Sequence[str], scores: Sequence[float], several: bool = False) -> Record:
    """Returns the record of a classification from the probability of each label."""
    named = {label: rounded(score) for label, score in zip(labels, scores)}
    if several:
        return {"labels": [label for label, score in zip(labels, scores) if score >= THRESHOLD], "scores": named}
    best = max(range(len(scores)), key=scores.__getitem__)
    return {"label": labels[best], "score": rounded(scores[best]), "scores": named}


def numbers(labels: Sequence[str], values: Sequence[float]) -> Record:
    """Returns the record of a regression."""
    if len(values) == 1:
        return {"value": rounded(values[0])}
    return {"values": {label: rounded(value) for label, value in zip(labels, values)}}


def part(text: str, start: int | None, end: int | None, score: float, **more: str) -> Record:
    """Returns the record of an entity or an answer."""
    place = {} if start is None else {"start": start, "end": end}
    return {**more, "text": text, **place, "score": rounded(score)}


def spans(answers: list[Record], no_answer: float) -> Record:
    """Returns the record of a question from its answers, the likeliest first."""
    best = {"answer": "", **answers[0]} if answers else {"answer": ""}
    if answers:
        best["answer"] = best.pop("text")
    return {**best, "no_answer": rounded(no_answer), "answers": answers}


def decided(record: Record, threshold: float | None) -> Record:
    """Returns the record of a question, without its answer if log(no_answer / score) is above the threshold; None
    always answers."""
    if threshold is None or "no_answer" not in record:
        return record
    if spans_lib.difference(record["no_answer"], record.get("score", 0.0)) <= threshold:
        return record
    return {"answer": ""} | {name: record[name] for name in ("no_answer", "answers", "truncated") if name in record}


def joined_spans(starts: Sequence[int], windows: Sequence[Record]) -> Record:
    """Returns the record of a question whose context was read in windows: the likeliest answers of all of them, and the
    lowest score of "no answer".

    Args:
      starts: where each window begins in the context.
      windows: the records of the windows. If one is an error, so is the result.
    """
    best: dict[Any, Record] = {}
    for offset, record in zip(starts, windows, strict=True):
        if "error" in record:
            return record
        for answer in record["answers"]:
            moved = {name: answer[name] + offset for name in ("start", "end") if name in answer}
            key = (moved["start"], moved["end"]) if moved else answer["text"]
            if key not in best or best[key]["score"] < answer["score"]:
                best[key] = answer | moved
    ranked = sorted(best.values(), key=lambda answer: -answer["score"])[: spans_lib.TOP_ANSWERS]
    joined = spans(ranked, min(record["no_answer"] for record in windows))
    return joined | ({"truncated": True} if any("truncated" in record for record in windows) else {})


def words(masks: Iterable[Iterable[tuple[str, float]]]) -> Record:
    """Returns the record of a text with masks from the likeliest words for each mask."""
    return {"words": [[{"word": word, "score": rounded(score)} for word, score in mask] for mask in masks]}


def embedding(vector: np.ndarray) -> Record:
    """Returns the record of an embedding, rounded to seven decimals."""
    return {"embedding": np.round(np.asarray(vector, np.float64), 7).tolist()}


def averaged(windows: Sequence[Record]) -> Record:
    """Returns the mean of the records of a text's windows: of the probabilities, or of the numbers.

    Raises:
      ValueError: the records are not those of a classifier.
    """
    first = windows[0]
    if "value" in first:
        return {"value": rounded(float(np.mean([record["value"] for record in windows])))}
    name = "values" if "values" in first else "scores"
    if name not in first:
        raise ValueError("only the answers of classifiers can be averaged")
    labels = list(first[name])
    means = np.mean([[record[name][label] for label in labels] for record in windows], axis=0).tolist()
    return numbers(labels, means) if name == "values" else classified(labels, means, several="labels" in first)


def _values(array: Any) -> list:
    """Returns an array as nested lists in which strings are str."""
    array = np.asarray(array)
    if array.dtype.kind in "OS":
        flat = [each.decode(errors="replace") if isinstance(each, bytes) else each for each in array.ravel().tolist()]
        decoded = np.empty(len(flat), object)
        decoded[:] = flat
        return decoded.reshape(array.shape).tolist()
    return array.tolist()


def _labels(columns: Mapping[str, list], several: bool) -> list[Record]:
    return [classified(labels, scores, several) for labels, scores in zip(columns["labels"], columns["scores"])]


def _numbers(columns: Mapping[str, list], several: bool) -> list[Record]:
    del several
    return [numbers(labels, values) for labels, values in zip(columns["labels"], columns["values"])]


def _number(columns: Mapping[str, list], several: bool) -> list[Record]:
    del several
    return [{"value": rounded(value)} for value in columns["value"]]


def _parts(columns: Mapping[str, list], row: int, texts: str) -> list[tuple[str, int | None, int | None]]:
    found = columns[texts][row]
    none = [None] * len(found)
    return list(zip(found, *(columns[name][row] if name in columns else none for name in ("starts", "ends"))))


def _entities(columns: Mapping[str, list], several: bool) -> list[Record]:
    del several
    return [
        {
            "entities": [
                part(*place, score, type=kind)
                for place, kind, score in zip(
                    _parts(columns, row, "texts")[:count], columns["types"][row], columns["scores"][row]
                )
            ]
        }
        for row, count in enumerate(columns["num_entities"])
    ]


def _spans(columns: Mapping[str, list], several: bool) -> list[Record]:
    del several
    result = []
    for row, no_answer in enumerate(columns["no_answer"]):
        scored = zip(_parts(columns, row, "answers"), columns["scores"][row])
        result.append(spans([part(*place, score) for place, score in scored if score > 0], no_answer))
    return result


def _words(columns: Mapping[str, list], several: bool) -> list[Record]:
    del several
    rows = zip(columns["words"], columns["probabilities"], columns["num_masks"])
    return [words(list(map(zip, found[:count], scores))) for found, scores, count in rows]


def _embeddings(columns: Mapping[str, list], several: bool) -> list[Record]:
    del several
    return [embedding(vector) for vector in columns["embeddings"]]


def _written(columns: Mapping[str, list], several: bool) -> list[Record]:
    del several
    return [{"generated_text": text} for text in columns["generated_text"]]


# The output that identifies each form, the most specific one first.
_FORMS = {
    "num_entities": _entities,
    "no_answer": _spans,
    "num_masks": _words,
    "embeddings": _embeddings,
    "generated_text": _written,
    "value": _number,
    "values": _numbers,
    "label": _labels,
}
