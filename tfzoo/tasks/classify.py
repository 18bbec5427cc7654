"""Classification of texts or of pairs of texts: one label, several labels, or a number (regression).

    text,label
    What a day,positive

becomes, with labels negative and positive in this order (those of the training file, sorted),

    token_ids [CLS] what a day [SEP]        label 1

The head classify reads the pooled state (Devlin et al. 2019, section 4.1); a decoder's is that of its last token
(Radford et al. 2018, section 3.2), and an encoder-decoder reads the text in both parts (Lewis et al. 2020, section
3.1). The loss is the cross-entropy, for several labels the sum of a binary cross-entropy for each label, for numbers
the squared error.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tfzoo import lazy
from tfzoo.data import labelled
from tfzoo.data.encoded import EncodedRows
from tfzoo.data.labelled import LabelledFile
from tfzoo.errors import UserError, suggest
from tfzoo.evaluation import linear, scores
from tfzoo.evaluation.intervals import Weighted
from tfzoo.objectives import shared
from tfzoo.objectives.objective import LabelSmoothingOption
from tfzoo.options import option
from tfzoo.tasks import GROUP
from tfzoo.tasks.task import ColumnOptions, PoolingOption, Task, sample

tf = lazy.module("tensorflow")

SINGLE, SEVERAL, NUMBER = "single", "several", "number"
_FIGURES = {
    SINGLE: (
        ("accuracy", "accuracy", "{:.2%}"),
        ("macro F1", "macro_f1", "{:.2%}"),
        ("Matthews correlation", "mcc", "{:.3f}"),
        ("validation loss", "validation_loss", "{:.4f}"),
    ),
    SEVERAL: (
        ("micro F1", "micro_f1", "{:.2%}"),
        ("macro F1", "macro_f1", "{:.2%}"),
        ("subset accuracy", "subset_accuracy", "{:.2%}"),
        ("validation loss", "validation_loss", "{:.4f}"),
    ),
    NUMBER: (
        ("Pearson correlation", "pearson", "{:.4f}"),
        ("Spearman correlation", "spearman", "{:.4f}"),
        ("mean squared error", "mse", "{:.4f}"),
        ("validation loss", "validation_loss", "{:.4f}"),
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ColumnOptions, PoolingOption, LabelSmoothingOption):
    """The options of the task classify."""

    label_type: str = option(
        SINGLE,
        "What the label column contains: single, one label; several, any number of labels, separated by commas, or a "
        "JSON list; number, a number (regression).",
        group=GROUP,
        choices=(SINGLE, SEVERAL, NUMBER),
        decides_rows=True,
    )
    class_weights: str = option(
        "",
        "Weights of the labels in the loss: balanced (in inverse proportion to their numbers), or LABEL=WEIGHT "
        "separated by commas; other labels have the weight 1.",
        group=GROUP,
    )
    long_texts: str = option(
        "truncate",
        "What to do with a text that is longer than --sequence_length: truncate it, or average the probabilities of "
        "its windows.",
        group=GROUP,
        choices=("truncate", "average"),
        decides_rows=True,
    )


class Classify(Task):
    """See the module's docstring."""

    name = "classify"
    Options = Options
    HEAD = "classify"
    KINDS = ("encoder", "decoder", "encoder_decoder")
    FIGURES = _FIGURES[SINGLE]
    best_metric = ("accuracy", "max")

    def __init__(self, tokenizer, sequence_length: int, **arguments: Any):
        super().__init__(tokenizer, sequence_length, **arguments)
        self.show(*self.shown(self.options))
        self._index = {label: i for i, label in enumerate(self.labels)}
        if self.options.long_texts == "average" and self.pair:
            raise UserError("--long_texts=average: applies to single texts, but the file has pairs; omit it")
        self.class_weights = np.ones(max(len(self.labels), 1), np.float32)  # `prepare_training` balances them.
        self._read_class_weights()

    @classmethod
    def shown(cls, options):
        figures = _FIGURES[options.label_type]
        return figures, (figures[0][1], "max")

    # ------------------------------------------------------------------ Files

    @classmethod
    def open_file(cls, options, path, flag, policy):
        return LabelledFile(path, flag=flag, kind=options.label_type, columns=options.columns, policy=policy)

    @classmethod
    def labels_of(cls, options, file):
        if not cls.has_labels(options):
            return []
        labels = labelled.labels_of(file)
        labelled.check_classes(file, labels)
        return labels

    @classmethod
    def has_labels(cls, options):
        return options.label_type != NUMBER

    @classmethod
    def repeated_texts(cls, train, held_out):
        return [str(each) for each in labelled.check_overlap(train, {held_out.path: held_out})]

    @classmethod
    def is_pair(cls, file):
        return file.columns.pair is not None

    def target_columns(self, rows):
        dtype, _ = self.targets()["label"]
        return {"label": self._encoded([row.label for row in rows]).astype(dtype)}

    def chunks(self, file):
        for chunk in super().chunks(file):
            yield self._in_windows(chunk) if self.options.long_texts == "average" else chunk

    def _in_windows(self, chunk):
        """Divides texts that are too long into windows; "number" tells which belong together."""
        windows = [
            (i, ids[begin : begin + self.framer.room])
            for i, ids in enumerate(chunk["text"])
            for begin in range(0, max(len(ids), 1), self.framer.room)
        ]
        of = [i for i, _ in windows]
        columns = {name: values[of] for name, values in chunk.items() if name != "text"}
        return columns | {"text": [ids for _, ids in windows]}

    # ------------------------------------------------------------------ Batches and loss

    def targets(self):
        number = {"number": (np.int64, ())}
        if self.options.label_type == SEVERAL:
            return {"label": (np.float32, (len(self.labels),))} | number
        return {"label": (np.float32 if self.options.label_type == NUMBER else np.int32, ())} | number

    def model_options(self):
        several = {"labels": self.labels} if self.labels else {"num_labels": 1}
        return several | ({"pool": self.options.pooling} if self.options.pooling else {})

    def record(self):
        problems = {SINGLE: "single_label_classification", SEVERAL: "multi_label_classification", NUMBER: "regression"}
        return super().record() | {"problem_type": problems[self.options.label_type]}

    def prepare_training(self, rows: EncodedRows) -> None:
        """Determines the balanced class weights."""
        if self.options.class_weights != "balanced":
            return
        label = np.asarray(rows.columns["label"])
        counts = label.sum(0) if label.ndim == 2 else np.bincount(label, minlength=len(self.labels))
        self.class_weights = (counts.sum() / (len(self.labels) * np.maximum(counts, 1))).astype(np.float32)

    def _read_class_weights(self) -> None:
        text = self.options.class_weights
        if text and self.options.label_type == NUMBER:
            raise UserError(f"--class_weights={text}: does not apply to --label_type=number; omit it")
        for part in [] if text in ("", "balanced") else text.split(","):
            label, _, value = part.rpartition("=")
            if label not in self._index:
                near = suggest(label, self.labels)
                raise UserError(f"--class_weights={text}: {label!r} is not one of the labels{near}; write LABEL=WEIGHT")
            try:
                weight = float(value)
            except ValueError:
                weight = math.nan
            if not (math.isfinite(weight) and weight >= 0):
                raise UserError(f"--class_weights={text}: the weight {value!r} must be a number that is at least 0")
            self.class_weights[self._index[label]] = weight

    def _losses(self, logits, batch, smoothing: float = 0.0):
        """Returns (loss, weight) of each row, float32 [B]."""
        label, weight = batch["label"], batch["weight"]
        if self.options.label_type == NUMBER:
            return tf.square(logits[:, 0] - label) * weight, weight
        class_weights = tf.constant(self.class_weights)
        if self.options.label_type == SEVERAL:
            target = label * (1 - smoothing) + smoothing / 2
            each = tf.nn.sigmoid_cross_entropy_with_logits(target, logits)
            return tf.reduce_sum(each * class_weights, -1) * weight, weight
        weight = weight * tf.gather(class_weights, label)
        loss, _ = shared.cross_entropy(logits, label, smoothing)
        return loss * weight, weight

    def loss(self, models, batch, training=True):
        logits = self.logits(models, batch, training)
        loss, weight = self._losses(logits, batch, self.options.label_smoothing or 0.0)
        return tf.reduce_sum(loss), tf.reduce_sum(weight)

    # ------------------------------------------------------------------ Evaluation

    def predict(self, models, batch):
        logits = self.logits(models, batch, training=False)
        loss, weight = self._losses(logits, batch)
        answer = {SINGLE: tf.nn.softmax, SEVERAL: tf.sigmoid, NUMBER: tf.identity}[self.options.label_type](logits)
        return {"answer": answer, "label": batch["label"], "number": batch["number"]} | {
            "loss": loss,
            "loss_weight": weight,
        }

    def outcome(self, predictions):
        number, first, inverse = np.unique(predictions["number"], return_index=True, return_inverse=True)
        answer = np.zeros((len(number), predictions["answer"].shape[1]), np.float64)
        np.add.at(answer, inverse, predictions["answer"])
        answer /= np.bincount(inverse)[:, None]  # The mean over a text's windows.
        return {"number": number, "answer": answer, "label": predictions["label"][first]}

    def _decided(self, outcome) -> tuple[np.ndarray, np.ndarray]:
        """Returns the right and the predicted labels or numbers, as tfzoo.evaluation.scores reads them."""
        answer, label = outcome["answer"], outcome["label"]
        if self.options.label_type == NUMBER:
            return label, answer[:, 0]
        if self.options.label_type == SEVERAL:
            return label > 0.5, answer > 0.5
        return label, answer.argmax(-1)

    def score_rows(self, outcome):
        return self._score(*self._decided(outcome))

    def _score(self, gold: np.ndarray, predicted: np.ndarray) -> Weighted:
        if self.options.label_type == NUMBER:
            return scores.regression_rows(gold, predicted)
        rows_of = scores.several_rows if self.options.label_type == SEVERAL else scores.classification_rows
        return rows_of(gold, predicted, self.labels)

    def details(self, outcome):
        if self.options.label_type == NUMBER:
            return super().details(outcome)
        gold, predicted = self._decided(outcome)
        single = self.options.label_type == SINGLE
        return {
            "classes": scores.per_class(gold, predicted, self.labels),
            "confusion": scores.confusion(gold, predicted, self.labels) if single else None,
        }

    def mistakes(self, outcome, count):
        answer, label = outcome["answer"], outcome["label"]
        if self.options.label_type == NUMBER:
            badness = np.abs(answer[:, 0] - label)
        elif self.options.label_type == SEVERAL:
            badness = np.abs(answer - label).max(-1) * ((answer > 0.5) != (label > 0.5)).any(-1)
        else:
            badness = answer.max(-1) * (answer.argmax(-1) != label)
        worst = np.argsort(-badness, kind="stable")[:count]
        return [
            {
                "number": int(outcome["number"][i]),
                "gold": self._shown(label[i], gold=True),
                "predicted": self._shown(answer[i]),
                "score": float(answer[i, 0] if self.options.label_type == NUMBER else answer[i].max()),
            }
            for i in worst
            if badness[i] > 0
        ]

    def _shown(self, value, gold: bool = False) -> str:
        if self.options.label_type == NUMBER:
            return f"{float(np.ravel(value)[0]):.3f}"
        if self.options.label_type == SEVERAL:
            return ", ".join(name for name, p in zip(self.labels, value, strict=True) if p > 0.5)
        return self.labels[int(value) if gold else int(np.argmax(value))]

    def file_baselines(self, train, held_out):
        texts, labels = _columns(sample(train.rows(), linear.MAX_ROWS))
        test_texts, test_labels = _columns(held_out.rows())
        gold = self._encoded(test_labels)
        predictions = {
            "majority": linear.majority(self._encoded(labels), len(test_labels)),
            "linear": linear.Linear(self.options.label_type).fit(texts, self._encoded(labels)).predict(test_texts),
        }
        return {name: self._score(gold, predicted)() for name, predicted in predictions.items()}

    def _encoded(self, labels: Sequence[Any]) -> np.ndarray:
        """Returns labels as the arrays that tfzoo.evaluation.scores reads."""
        if self.options.label_type == NUMBER:
            return np.array(labels, np.float64)
        if self.options.label_type == SINGLE:
            return np.array([self._index[label] for label in labels], np.int64)
        several = np.zeros((len(labels), len(self.labels)), bool)
        for i, each in enumerate(labels):
            several[i, [self._index[label] for label in each]] = True
        return several


def _columns(rows: Iterable[Any]) -> tuple[list[Sequence[str]], list[Any]]:
    """Returns the texts and the labels of rows."""
    texts: list[Sequence[str]] = []
    labels: list[Any] = []
    for row in rows:
        texts.append(row.texts)
        labels.append(row.label)
    return texts, labels
