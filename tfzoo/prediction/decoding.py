"""Logits to answers in numpy: what tfzoo.export.answers computes in TensorFlow, for programs without it.

    decode = HEADS["classify"](manifest, vocabulary)
    records = decode(outputs, reading)

`outputs` are those of an ONNX graph, by name; `reading` is the onnx_graphs.Reading of its inputs. To add a head, write
such a function here.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfzoo.errors import UserError
from tfzoo.export.vocabulary import TOP, Tags, boundaries, readable
from tfzoo.prediction import answers
from tfzoo.prediction.answers import Record
from tfzoo.text.spans import LONGEST_ANSWER, TOP_ANSWERS


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The tokens of a vocabulary.

    Attributes:
      pieces: the tokens as they are in the vocabulary.
      continues: whether a token continues a word, [V], if the vocabulary marks such tokens; otherwise None.
      special_ids: the ids of special tokens, which do not represent text.
      mask_id: the id of the mask token; None without one.
      decoded: ids -> the text of each of them.
    """

    pieces: Sequence[str]
    continues: np.ndarray | None
    special_ids: Sequence[int]
    mask_id: int | None
    decoded: Callable[[Sequence[int]], list[str]]

    def texts(self) -> list[str]:
        """Returns the text of each token; "" for special tokens."""
        texts = self.decoded(range(len(self.pieces)))
        for i in self.special_ids:
            texts[i] = ""
        return texts


Decode = Callable[[Mapping[str, np.ndarray], Any], list[Record]]


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

    def entities(text: str, ids, starts, ends, chances) -> list[Record]:
        found: list[dict[str, Any]] = []
        labels, best = chances.argmax(-1).tolist(), chances.max(-1).tolist()
        previous = -1  # The type of the word before; -1 is none.
        for i, token in enumerate(ids):
            if i and continues[token] and ends_word[ids[i - 1]]:  # The label of a word is that of its first token.
                if previous >= 0:
                    found[-1]["end"] = max(found[-1]["end"], ends[i])
                    found[-1]["start"] = min(found[-1]["start"], starts[i])
                continue
            kind = tags.kinds[labels[i]]
            if kind >= 0:
                if tags.opens[labels[i]] or kind != previous:
                    found.append({"type": tags.names[kind], "start": starts[i], "end": ends[i], "scores": []})
                found[-1]["start"] = min(found[-1]["start"], starts[i])
                found[-1]["end"] = max(found[-1]["end"], ends[i])
                found[-1]["scores"].append(best[i])
            previous = kind
        return [
            answers.part(*_bare(text, each["start"], each["end"]), float(np.mean(each["scores"])), type=each["type"])
            for each in found
        ]

    def decode(outputs: Mapping[str, np.ndarray], reading) -> list[Record]:
        chances = softmax(_logits(outputs, "tag", manifest["labels"]))
        result: list[Record] = []
        for row, (text,) in enumerate(reading.texts):
            at = np.flatnonzero(reading.of[row] == 1)
            ids, starts, ends = (values[row][at].tolist() for values in (reading.ids, reading.starts, reading.ends))
            result.append({"entities": entities(text, ids, starts, ends, chances[row][at])})
        return result

    return decode


def _bare(text: str, start: int, end: int) -> tuple[str, int, int]:
    """Returns a part of a text without surrounding spaces, and where it starts and ends."""
    part = text[start:end]
    start += len(part) - len(part.lstrip())
    return part.strip(), start, start + len(part.strip())


def _spans(manifest: Mapping[str, Any], vocabulary: Vocabulary) -> Decode:
    del manifest, vocabulary

    def decode(outputs: Mapping[str, np.ndarray], reading) -> list[Record]:
        logits = np.stack([outputs["start_logits"], outputs["end_logits"]], -1)
        result = []
        for row, (_, context) in enumerate(reading.texts):
            at = np.flatnonzero(reading.of[row] == 2)
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
                    start, end = int(reading.starts[row][at[i]]), int(reading.ends[row][at[i + more]])
                    found.append(answers.part(*_bare(context, start, end), float(both[i, more])))
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
}
# Head -> (manifest, vocabulary) -> the function that decodes a batch.
HEADS: dict[str, Callable[[Mapping[str, Any], Vocabulary], Decode]] = {
    "classify": lambda manifest, vocabulary: _labels("classify", manifest),
    "tag": _entities,
    "span": _spans,
    "lm": _words,
    "next_sentence": lambda manifest, vocabulary: _labels("next_sentence", manifest),
    "embed": _embeddings,
}
