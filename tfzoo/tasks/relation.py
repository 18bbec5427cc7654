"""The relation between two marked entities in a text.

    The <e1>child</e1> slept in the <e2>cradle</e2>.    Content-Container(e1,e2)

becomes

    token_ids          [CLS] the $ child $ slept in the # cradle # . [SEP]
    entity_positions   2 8

The head relation reads the states of the markers before the two entities (Baldini Soares et al. 2019, section 3.2,
"entity start"); tfzoo.text.marked chooses the markers. Rows that are too long are cut around the entities. The loss is
the cross-entropy, and the main score the official one of SemEval-2010 task 8: see tfzoo.evaluation.relations.
"""

import dataclasses
import itertools
from typing import Any

import numpy as np

from tfzoo import lazy
from tfzoo.data.relations import RelationFile, RelationRow
from tfzoo.errors import UserError
from tfzoo.evaluation import relations, scores
from tfzoo.objectives import shared
from tfzoo.objectives.objective import LabelSmoothingOption
from tfzoo.tasks.task import ColumnOptions, Task, chunked, sample
from tfzoo.text import marked

tf = lazy.module("tensorflow")
linear = lazy.module("tfzoo.evaluation.linear")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ColumnOptions, LabelSmoothingOption):
    """The options of the task relation."""


class Relation(Task):
    """See the module's docstring."""

    name = "relation"
    Options = Options
    HEAD = "relation"
    FIGURES = (
        ("official macro F1", "macro_f1", "{:.2%}"),
        ("macro precision", "macro_precision", "{:.2%}"),
        ("macro recall", "macro_recall", "{:.2%}"),
        ("accuracy", "accuracy", "{:.2%}"),
        ("validation loss", "validation_loss", "{:.4f}"),
    )
    best_metric = ("macro_f1", "max")

    def __init__(self, tokenizer, sequence_length: int, **arguments: Any):
        super().__init__(tokenizer, sequence_length, **arguments)
        if self.framer.room < 2:
            raise UserError(f"--sequence_length={sequence_length} leaves no room for two entities; use a larger value")
        try:
            self.markers = marked.markers(tokenizer)
        except UserError as error:
            raise UserError(f"--task={self.name}: {error}") from None
        self._marker_ids = [tokenizer.vocab.index(marker) for marker in self.markers]
        self._index = {label: i for i, label in enumerate(self.labels)}

    # ------------------------------------------------------------------ Files

    @classmethod
    def open_file(cls, options, path, flag, policy):
        return RelationFile(path, flag=flag, policy=policy, columns=options.columns)

    @classmethod
    def labels_of(cls, options, file):
        labels = sorted({row.label for row in file.rows()})
        if len(labels) < 2:
            raise file.error(f"contains a single relation, {labels[0]!r}; add rows with others")
        return labels

    @classmethod
    def texts_of(cls, row):
        """Returns the text with the usual markers, so that a new tokenizer and the linear baseline know them."""
        return (_marked(row, *((f"{each} ", f" {each}") for each in marked.CANDIDATES[:2])),)

    def chunks(self, file):
        """Yields rows of "text", which contains the markers, with the "entity_positions", "label" and "number", and
        whether the text was "cut"."""
        for first, rows in chunked(file.rows()):
            borders = [marked.borders(row.text, row.first, row.second) for row in rows]
            texts = [row.text[a:b] for row, found in zip(rows, borders) for a, b in itertools.pairwise(found)]
            tokens = self.tokenize(texts)
            parts = [tokens[i : i + marked.PARTS] for i in range(0, len(tokens), marked.PARTS)]
            ids, places, cut = zip(*map(self._row, rows, parts), strict=True)
            yield {
                "number": np.arange(first, first + len(rows)),
                "text": ids,
                "entity_positions": np.array(places, np.int32) + np.int32(self.framer.first),
                "label": np.array([self._index[row.label] for row in rows], np.int32),
                "cut": np.array(cut, bool),
            }

    def _row(self, row: RelationRow, parts) -> tuple[np.ndarray, tuple[int, int], bool]:
        """Returns the token ids of a row with markers, where in it the two entities begin, and whether it was cut."""
        made = marked.row(parts, self._marker_ids, row.second < row.first, self.framer.room)
        return np.array(made.ids, np.int32), made.places, made.is_cut

    def truncated(self, rows):
        return int(np.sum(rows.columns["cut"]))

    def record(self):
        return super().record() | {"markers": list(self.markers)}

    # ------------------------------------------------------------------ Batches and loss

    def targets(self):
        return {"entity_positions": (np.int32, (2,)), "label": (np.int32, ()), "number": (np.int64, ())}

    def _losses(self, logits, batch, smoothing: float = 0.0):
        """Returns the loss of each row, float32 [B]."""
        return shared.cross_entropy(logits, batch["label"], smoothing)[0] * batch["weight"]

    def loss(self, models, batch, training=True):
        losses = self._losses(self.logits(models, batch, training), batch, self.options.label_smoothing or 0.0)
        return tf.reduce_sum(losses), tf.reduce_sum(batch["weight"])

    # ------------------------------------------------------------------ Evaluation

    def predict(self, models, batch):
        logits = self.logits(models, batch, training=False)
        known = {name: batch[name] for name in ("label", "number")}
        losses = {"loss": self._losses(logits, batch), "loss_weight": batch["weight"]}
        return {"answer": tf.nn.softmax(logits)} | known | losses

    def outcome(self, predictions):
        return {name: predictions[name] for name in ("number", "answer", "label")}

    def score_rows(self, outcome):
        return relations.official_rows(outcome["label"], outcome["answer"].argmax(-1), self.labels)

    def details(self, outcome):
        gold, predicted = outcome["label"], outcome["answer"].argmax(-1)
        return {
            "classes": relations.per_relation(gold, predicted, self.labels),
            "confusion": scores.confusion(gold, predicted, self.labels),
        }

    def mistakes(self, outcome, count):
        answer, label = outcome["answer"], outcome["label"]
        predicted, confidence = answer.argmax(-1), answer.max(-1)
        wrong = np.flatnonzero(predicted != label)
        return [
            {
                "number": int(outcome["number"][i]),
                "gold": self.labels[label[i]],
                "predicted": self.labels[predicted[i]],
                "score": float(confidence[i]),
            }
            for i in wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
        ]

    def described(self, mistake, row):
        return super().described(mistake, row) | {"text": _marked(row, ("<e1>", "</e1>"), ("<e2>", "</e2>"))}

    def file_baselines(self, train, held_out):
        rows = sample(train.rows(), linear.MAX_ROWS)
        labels = np.array([self._index[row.label] for row in rows])
        test = list(held_out.rows())
        gold = np.array([self._index[row.label] for row in test])
        fitted = linear.Linear("single").fit([self.texts_of(row) for row in rows], labels)
        predicted = {
            "majority": linear.majority(labels, len(gold)),
            "linear": fitted.predict([self.texts_of(row) for row in test]),
        }
        return {name: relations.official(gold, each, self.labels) for name, each in predicted.items()}


def _marked(row: RelationRow, first: tuple[str, str], second: tuple[str, str]) -> str:
    """Returns the text of a row with these texts before and after its entities."""
    text = row.text
    for (start, end), (opening, closing) in sorted([(row.first, first), (row.second, second)], reverse=True):
        text = f"{text[:start]}{opening}{text[start:end]}{closing}{text[end:]}"
    return text
