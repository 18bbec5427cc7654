"""Tags of words: named entities, or plain tags such as parts of speech.

    Ann     B-PER
    Levine  I-PER
    slept   O

becomes, with the labels O, B-PER, I-PER: every type of the training file has B- and I-, and O is the first one,

    token_ids      [CLS] ann le ##vine slept [SEP]
    word_positions       1   2         4
    word_labels          1   2         0

The tag of a word is predicted at its first token (Devlin et al. 2019, section 5.3); other tokens have no loss. A word
without a token, such as a control character, has the tag O, and one that is part of the token of the word before it
continues that one's entity. The loss is the mean cross-entropy over words.

A text with too many tokens is divided into windows that overlap, and each word is read in the window where it is
furthest from a border, so that every word is read once.

Predicted tags are read as in exported models (export/answers/entities.py): I-X begins an entity unless one of type X
comes immediately before. The scores are those of entities under strict rules; see tfzoo.evaluation.entities.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfzoo import lazy
from tfzoo.data import windows
from tfzoo.data.tagged import TaggedFile, TaggedRow, tags_of
from tfzoo.errors import UserError
from tfzoo.evaluation import entities, intervals, scores
from tfzoo.evaluation.intervals import Weighted
from tfzoo.objectives import shared
from tfzoo.objectives.objective import LabelSmoothingOption
from tfzoo.tasks.task import ColumnOptions, Task, WindowOverlapOption, chunked, sample

tf = lazy.module("tensorflow")
by_length = lazy.module("tfzoo.data.by_length")
linear = lazy.module("tfzoo.evaluation.linear")

OUTSIDE = "O"
_NOTHING = "none"  # In place of an entity, in mistakes.
_CONTEXT = 100  # Characters before and after a mistake.
_ENTITY_FIGURES = (
    ("entity F1", "f1", "{:.2%}"),
    ("entity precision", "precision", "{:.2%}"),
    ("entity recall", "recall", "{:.2%}"),
    ("tag accuracy", "accuracy", "{:.2%}"),
    ("validation loss", "validation_loss", "{:.4f}"),
)
_PLAIN_FIGURES = (("tag accuracy", "accuracy", "{:.2%}"), ("validation loss", "validation_loss", "{:.4f}"))
Span = tuple[str, int, int]  # Type, first word, word after the last.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ColumnOptions, LabelSmoothingOption, WindowOverlapOption):
    """The options of the task tag."""


class Tag(Task):
    """See the module's docstring."""

    name = "tag"
    Options = Options
    HEAD = "tag"
    FIGURES = _ENTITY_FIGURES
    best_metric = ("f1", "max")

    def __init__(self, tokenizer, sequence_length: int, **arguments: Any):
        super().__init__(tokenizer, sequence_length, **arguments)
        self.require_offsets()
        room, overlap = self.framer.room, self.options.window_overlap
        self.overlap = room // 4 if overlap is None else overlap
        if self.overlap >= room:
            raise UserError(
                f"--window_overlap={overlap}: must be less than the {room} tokens of a window; use a smaller value"
            )
        self.is_entities = _are_entities(self.labels)
        if not self.is_entities:
            self.show(_PLAIN_FIGURES, ("accuracy", "max"))
        self._index = {label: i for i, label in enumerate(self.labels)}
        self._outside = self._index.get(OUTSIDE, 0)

    # ------------------------------------------------------------------ Files

    @classmethod
    def open_file(cls, options, path, flag, policy):
        return TaggedFile(path, flag=flag, policy=policy, columns=options.columns)

    @classmethod
    def labels_of(cls, options, file):
        labels = tags_of(file)
        if len(labels) < 2:
            found = "no entities" if labels == [OUTSIDE] else f"a single tag, {labels[0]!r}"
            raise file.error(f"contains {found}; add rows with others, or specify another --label_column")
        return labels

    @classmethod
    def texts_of(cls, row):
        return (row.text,)

    def chunks(self, file):
        """Yields windows of texts: the ragged columns "text", and "places" and "labels" of the words that are read in
        this window; "number" tells which windows belong together."""
        for first, rows in chunked(file.rows()):
            tokens = self.locate([row.text for row in rows])
            found = [(first + i, *window) for i, row in enumerate(rows) for window in self._windows(row, *tokens[i])]
            numbers, texts, places, labels = zip(*found, strict=True)
            yield {"number": np.array(numbers, np.int64), "text": texts, "places": places, "labels": labels}

    def _windows(self, row: TaggedRow, ids: np.ndarray, starts: np.ndarray, ends: np.ndarray):
        """Yields (token ids, places, labels) of the windows of a text."""
        room = self.framer.room
        places = windows.first_tokens(row.words, starts, ends)
        labels = np.array([self._index[tag] for tag in row.tags], np.int32)
        begins = windows.window_starts(len(ids), room, self.overlap)
        chosen = windows.windows_of(places, begins, len(ids), room)
        for window, begin in enumerate(begins):
            words = np.flatnonzero(chosen == window)
            # A batch has as many places for words as for tokens, and words without tokens may be more.
            for part in range(0, max(len(words), 1), self._length):
                some = words[part : part + self._length]
                inside = np.where(places[some] < 0, places[some], places[some] - begin).astype(np.int32)
                yield ids[begin : begin + room], inside, labels[some]

    # ------------------------------------------------------------------ Batches and loss

    def targets(self):
        return {
            "word_positions": (np.int32, (None,)),
            "word_labels": (np.int32, (None,)),
            "number": (np.int64, ()),
        }

    def lengths(self, rows):
        return np.maximum(super().lengths(rows), rows.lengths("places"))

    def target_features(self, rows, indices, length):
        positions = np.full((len(indices), length), windows.NO_TOKEN, np.int32)
        labels = np.full((len(indices), length), -1, np.int32)
        for i, index in enumerate(indices):
            places = rows.values("places", int(index))
            positions[i, : len(places)] = np.where(places < 0, places, places + self.framer.first)
            labels[i, : len(places)] = rows.values("labels", int(index))
        number = np.asarray(rows.columns["number"][indices])
        return {"word_positions": positions, "word_labels": labels, "number": number}

    def _word_logits(self, models, batch, training: bool):
        """Returns the logits at the first token of each word, float32 [B, L, C]; L is also the places for words."""
        logits = self.logits(models, batch, training)
        return tf.gather(logits, tf.maximum(batch["word_positions"], 0), batch_dims=1)

    def _losses(self, logits, batch, smoothing: float = 0.0):
        """Returns (loss, weight) of each row, float32 [B]: sums over its words, and their number."""
        weight = tf.cast(batch["word_positions"] >= 0, tf.float32) * batch["weight"][:, tf.newaxis]
        each, _ = shared.cross_entropy(logits, tf.maximum(batch["word_labels"], 0), smoothing)
        return tf.reduce_sum(each * weight, -1), tf.reduce_sum(weight, -1)

    def loss(self, models, batch, training=True):
        logits = self._word_logits(models, batch, training)
        loss, weight = self._losses(logits, batch, self.options.label_smoothing or 0.0)
        return tf.reduce_sum(loss), tf.reduce_sum(weight)

    # ------------------------------------------------------------------ Evaluation

    def predict(self, models, batch):
        logits = self._word_logits(models, batch, training=False)
        loss, weight = self._losses(logits, batch)
        places = batch["word_positions"]
        answer = tf.where(places < 0, places, tf.argmax(logits, -1, tf.int32))
        score = tf.where(places < 0, 0.0, tf.reduce_max(tf.nn.softmax(logits), -1))
        labels = batch["word_labels"]
        # Batches have different lengths, but their predictions are put into one array.
        missing = by_length.rounded(self._length) - tf.shape(labels)[1]
        wide = {"label": (labels, -1), "answer": (answer, windows.NO_TOKEN), "score": (score, 0.0)}
        return {
            name: tf.pad(values, [[0, 0], [0, missing]], constant_values=fill) for name, (values, fill) in wide.items()
        } | {"number": batch["number"], "loss": loss, "loss_weight": weight}

    def outcome(self, predictions):
        """Returns "number" [N] of the sentences, "starts" [N + 1] of their words among all words, and for each word
        "label", "answer" and "score", the probability of the answer."""
        is_word = predictions["label"] >= 0
        number, inverse = np.unique(predictions["number"], return_inverse=True)
        counts = np.bincount(inverse, weights=is_word.sum(1), minlength=len(number)).astype(np.int64)
        starts = np.concatenate([[0], np.cumsum(counts)])
        words = {name: predictions[name][is_word] for name in ("label", "answer", "score")}
        return words | {"number": number, "starts": starts, "answer": self._decoded(words["answer"], starts)}

    def _decoded(self, answers: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Replaces the codes of words without a token, and I-X that continues no entity of type X by B-X."""
        answers = answers.copy()
        begins = np.zeros(len(answers) + 1, bool)
        begins[starts] = True
        for word in np.flatnonzero(answers < 0):  # A few.
            before = self._outside if begins[word] or answers[word] == windows.NO_TOKEN else answers[word - 1]
            answers[word] = before + 1 if self.is_entities and before % 2 else before
        if not self.is_entities:
            return answers
        kinds = (answers + 1) // 2  # 0 is O; B-X and I-X have one number.
        same = np.zeros(len(answers), bool)
        same[1:] = kinds[1:] == kinds[:-1]
        stray = (answers > 0) & (answers % 2 == 0) & (begins[:-1] | ~same)
        return np.where(stray, answers - 1, answers)

    def _sentences(self, indices: np.ndarray, starts: np.ndarray) -> list[list[str]]:
        """Returns the tags of each sentence."""
        tags = [self.labels[i] for i in indices.tolist()]
        return [tags[start:end] for start, end in itertools.pairwise(starts.tolist())]

    def _tags(self, outcome: Mapping[str, np.ndarray]) -> tuple[list[list[str]], list[list[str]]]:
        """Returns the right and the predicted tags of each sentence."""
        gold, predicted = (self._sentences(outcome[name], outcome["starts"]) for name in ("label", "answer"))
        return gold, predicted

    def score_rows(self, outcome):
        return self._score(*self._tags(outcome))

    def _score(self, gold: entities.Tags, predicted: entities.Tags) -> Weighted:
        accuracy = entities.accuracy_rows(gold, predicted)
        if not self.is_entities:
            return accuracy
        return intervals.together(entities.strict_rows(gold, predicted), accuracy)

    def details(self, outcome):
        if self.is_entities:
            return {"classes": entities.per_type(*self._tags(outcome)), "confusion": None}
        gold, predicted = outcome["label"], outcome["answer"]
        return {
            "classes": scores.per_class(gold, predicted, self.labels),
            "confusion": scores.confusion(gold, predicted, self.labels),
        }

    def mistakes(self, outcome, count):
        """Returns wrong entities, or wrong tags of words, the most confident first. "gold" and "predicted" are spans,
        which `described` puts into words."""
        found: list[dict[str, Any]] = []
        for number, start, *tags in zip(outcome["number"], outcome["starts"], *self._tags(outcome)):
            for gold, predicted in _differences(*map(self._spans, tags)):
                first, end = min(x[1] for x in gold + predicted), max(x[2] for x in gold + predicted)
                score = float(np.mean(outcome["score"][start + first : start + end], dtype=np.float64))
                found.append({"number": int(number), "gold": gold, "predicted": predicted, "score": score})
        return sorted(found, key=lambda mistake: -mistake["score"])[:count]

    def _spans(self, tags: Sequence[str]) -> list[Span]:
        if self.is_entities:
            return entities.spans(tags)
        return [(tag, word, word + 1) for word, tag in enumerate(tags)]

    def described(self, mistake, row):
        def shown(spans: Sequence[Span]) -> str:
            parts = [f"{kind}: {row.text[row.words[first][0] : row.words[end - 1][1]]}" for kind, first, end in spans]
            return ", ".join(parts) or _NOTHING

        both = mistake["gold"] + mistake["predicted"]
        first = max(0, row.words[min(x[1] for x in both)][0] - _CONTEXT)
        end = row.words[max(x[2] for x in both) - 1][1] + _CONTEXT
        text = ("..." if first else "") + row.text[first:end] + ("..." if end < len(row.text) else "")
        names = {name: shown(mistake[name]) for name in ("gold", "predicted")}
        return super().described(mistake, row) | {"text": text} | names

    # ------------------------------------------------------------------ Baselines

    def file_baselines(self, train, held_out):
        rows = sample(train.rows(), linear.MAX_ROWS)
        words, tags = _words(rows), [row.tags for row in rows]
        test = list(held_out.rows())
        gold = [row.tags for row in test]
        every = [self._index[tag] for each in tags for tag in each]
        commonest = self.labels[int(np.bincount(every, minlength=1).argmax())]
        predicted = {
            "majority": [[commonest] * len(each) for each in gold],
            "lookup": linear.TagLookup().fit(words, tags).predict(_words(test)),
        }
        return {name: self._score(gold, each)() for name, each in predicted.items()}


def _are_entities(labels: Sequence[str]) -> bool:
    """Returns whether labels are O, and B-X and I-X of each type, in the order of `tags_of`."""
    types = [label[2:] for label in labels[1::2]]
    return list(labels) == [OUTSIDE, *(f"{letter}-{each}" for each in types for letter in "BI")]


def _differences(gold: Sequence[Span], predicted: Sequence[Span]) -> list[tuple[list[Span], list[Span]]]:
    """Returns (right, predicted) spans that overlap each other but are not equal; either can be empty."""
    found = []
    missed = set(gold) - set(predicted)
    for wrong in [span for span in predicted if span not in set(gold)]:
        instead = [span for span in gold if span[1] < wrong[2] and wrong[1] < span[2]]
        missed -= set(instead)
        found.append((instead, [wrong]))
    return found + [([span], []) for span in sorted(missed)]


def _words(rows: Sequence[TaggedRow]) -> list[list[str]]:
    return [[row.text[start:end] for start, end in row.words] for row in rows]
