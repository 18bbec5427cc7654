"""Logits to answers in numpy: what tfzoo.export.answers computes in TensorFlow, for programs without it.

    decode = HEADS["classify"](manifest, vocabulary)
    records = decode(outputs, reading)

`outputs` are those of an ONNX graph, by name; `reading` is the onnx_texts.Reading of its inputs. To add a head, write
such a function here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfzoo.errors import UserError
from tfzoo.export.vocabulary import TOP, Tags, boundaries, readable
from tfzoo.prediction import answers
from tfzoo.prediction.answers import Record
from tfzoo.text.libraries import Vocabulary
from tfzoo.text.spans import LONGEST_ANSWER, TOP_ANSWERS

Decode = Callable[[Mapping[str, np.ndarray], Any], list[Record]]
_ASCII_SPACES = " \t\n\v\f\r"  # What tf.strings.strip removes.


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """Returns the softmax of x along an axis, in float64."""
    e = np.exp(x.astype(np.float64) - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def _logits(outputs: Mapping[str, np.ndarray], head: str, labels: Sequence[str]) -> np.ndarray:
    """Returns the output of a head: the logits of a single head have no prefix.

    Raises:
      UserError: there are not as many logits as labels.
    """
    logits = outputs[f"{head}_logits"] if f"{head}_logits" in outputs else outputs["logits"]
    if logits.shape[-1] != len(labels):
        raise UserError(f"manifest.json has {len(labels)} labels, but model.onnx {logits.shape[-1]}; export it again")
    return logits


def _labels(head: str, manifest: Mapping[str, Any]) -> Decode:
    labels, kind = manifest["labels"], manifest["problem_type"]

    def decode(outputs: Mapping[str, np.ndarray], reading) -> list[Record]:
        del reading
        logits = _logits(outputs, head, labels)
        if kind == "regression":
            return [answers.numbers(labels, row) for row in logits.tolist()]
        several = kind == "multi_label_classification"
        scores = 1 / (1 + np.exp(-logits.astype(np.float64))) if several else softmax(logits)
        return [answers.classified(labels, row, several) for row in scores.tolist()]

    return decode


def _entities(manifest: Mapping[str, Any], vocabulary: Vocabulary) -> Decode:
    tags = Tags(manifest["labels"])
    if vocabulary.continues is not None:
        continues, ends_word = vocabulary.continues, np.ones(len(vocabulary.pieces), bool)
    else:
        continues, ends_word = boundaries(vocabulary.pieces, vocabulary.texts())

    def entities(text: str, tokens: "_Tokens", chances) -> list[Record]:
        found: list[dict[str, Any]] = []
        labels, best = chances.argmax(-1).tolist(), chances.max(-1).tolist()
        previous, ids = -1, tokens.ids  # The type of the word before; -1 is none.
        for i, token in enumerate(ids):
            if i and continues[token] and ends_word[ids[i - 1]]:  # The label of a word is that of its first token.
                if previous >= 0:
                    found[-1]["last"] = i
                continue
            kind = tags.kinds[labels[i]]
            if kind >= 0:
                if tags.opens[labels[i]] or kind != previous:
                    found.append({"type": tags.names[kind], "first": i, "scores": []})
                found[-1]["last"] = i
                found[-1]["scores"].append(best[i])
            previous = kind
        parts = [tokens.part(text, each["first"], each["last"], whole=True) for each in found]
        return [
            answers.part(*part, float(np.mean(each["scores"])), type=each["type"]) for part, each in zip(parts, found)
        ]

    def decode(outputs: Mapping[str, np.ndarray], reading) -> list[Record]:
        chances = softmax(_logits(outputs, "tag", manifest["labels"]))
        result: list[Record] = []
        for row, (text,) in enumerate(reading.texts):
            at = np.flatnonzero(reading.of[row] == 1)
            result.append({"entities": entities(text, _Tokens(reading, row, at, vocabulary), chances[row][at])})
        return result

    return decode


class _Tokens:
    """The tokens of one of a row's texts.

    Args:
      reading, row: an onnx_texts.Reading, and the row's number.
      at: the positions of the tokens.
      vocabulary: of the tokens.
    """

    def __init__(self, reading: Any, row: int, at: np.ndarray, vocabulary: Vocabulary):
        self.ids, self._decode = reading.ids[row][at].tolist(), vocabulary.decode
        self._starts = self._ends = None
        if reading.starts is not None:
            self._starts, self._ends = reading.starts[row][at].tolist(), reading.ends[row][at].tolist()

    def part(self, text: str, first: int, last: int, whole: bool = False) -> tuple[str, int | None, int | None]:
        """Returns a part of a text without surrounding spaces, and where it starts and ends.

        The part is that from the start of the token `first` to the end of the token `last`, or with `whole` all of
        what these and the tokens between them came from. Without offsets, it is the text of the tokens, without start
        and end.
        """
        if self._starts is None or self._ends is None:
            return self._decode(self.ids[first : last + 1]).strip(_ASCII_SPACES), None, None
        start, end = self._starts[first], self._ends[last]
        if whole:
            start, end = min(self._starts[first : last + 1]), max(self._ends[first : last + 1])
        part = text[start:end]
        start += len(part) - len(part.lstrip())
        return part.strip(), start, start + len(part.strip())


def _spans(manifest: Mapping[str, Any], vocabulary: Vocabulary) -> Decode:
    del manifest

    def decode(outputs: Mapping[str, np.ndarray], reading) -> list[Record]:
        logits = np.stack([outputs["start_logits"], outputs["end_logits"]], -1)
        result = []
        for row, (_, context) in enumerate(reading.texts):
            at = np.flatnonzero(reading.of[row] == 2)
            tokens = _Tokens(reading, row, at, vocabulary)
            null = [0] if reading.starts_special else []
            chances = softmax(logits[row][[*null, *at]], 0) if len(at) or null else np.zeros((0, 2))
            no_answer = float(chances[0].prod()) if null else 0.0
            first, last = chances[len(null) :].T
            both = np.zeros((len(at), LONGEST_ANSWER))  # First token, and how many tokens after it the last one is.
            for more in range(min(LONGEST_ANSWER, len(at))):
                both[: len(at) - more, more] = first[: len(at) - more] * last[more:]
            found = []
            for place in np.argsort(-both, axis=None, kind="stable")[:TOP_ANSWERS]:
                i, more = divmod(int(place), LONGEST_ANSWER)
                if both[i, more] > 0:
                    found.append(answers.part(*tokens.part(context, i, i + more), float(both[i, more])))
            result.append(answers.spans(found, no_answer))
        return result

    return decode


def _words(manifest: Mapping[str, Any], vocabulary: Vocabulary) -> Decode:
    continues = vocabulary.continues
    pieces = list(vocabulary.pieces)
    texts = pieces if continues is not None else vocabulary.texts()
    shown, is_word = readable(pieces, texts, None if continues is None else continues.tolist(), vocabulary.special_ids)
    is_word = np.pad(is_word, (0, manifest["model"]["config"]["vocab_size"] - len(is_word)))
    top = min(TOP, int(is_word.sum()))

    def decode(outputs: Mapping[str, np.ndarray], reading) -> list[Record]:
        result = []
        for ids, logits in zip(reading.ids, outputs["logits"]):
            chances = np.where(is_word, softmax(logits[ids == vocabulary.mask_id]), -1.0)
            likeliest = np.argsort(-chances, axis=-1, kind="stable")[:, :top]
            result.append(answers.words([(shown[i], row[i]) for i in best] for row, best in zip(chances, likeliest)))
        return result

    return decode


def _embeddings(manifest: Mapping[str, Any], vocabulary: Vocabulary) -> Decode:
    del vocabulary
    how = manifest["options"].get("pooling") or "mean"

    def decode(outputs: Mapping[str, np.ndarray], reading) -> list[Record]:
        if "sentence_embedding" in outputs:
            vectors = outputs["sentence_embedding"]
        elif how == "pooled":
            vectors = outputs["pooler_output"]
        else:
            states, counts = outputs["last_hidden_state"], reading.mask.sum(1)
            if how == "mean":
                vectors = (states * reading.mask[..., None]).sum(1) / np.maximum(counts, 1)[:, None]
            else:
                places = np.maximum(counts - 1, 0) if how == "last" else np.zeros_like(counts)
                vectors = states[np.arange(len(states)), places]
        return [answers.embedding(vector) for vector in vectors]

    return decode


# Head -> the fields of the manifest that must be there and not empty.
FIELDS = {
    "classify": ("labels", "problem_type"),
    "tag": ("labels",),
    "next_sentence": ("labels", "problem_type"),
    "relation": ("labels", "problem_type", "markers"),
}
# Head -> (manifest, vocabulary) -> the function that decodes a batch.
HEADS: dict[str, Callable[[Mapping[str, Any], Vocabulary], Decode]] = {
    "classify": lambda manifest, vocabulary: _labels("classify", manifest),
    "tag": _entities,
    "span": _spans,
    "lm": _words,
    "next_sentence": lambda manifest, vocabulary: _labels("next_sentence", manifest),
    "embed": _embeddings,
    "relation": lambda manifest, vocabulary: _labels("relation", manifest),
}
