"""The results of an evaluation, as evaluation.json and evaluation-NAME.json in a run's folder record them.

    {"task": "classify", "file": "dev.tsv", "rows": 872, "step": 1200, "best_metric": "accuracy",
     "scores": {"accuracy": {"value": 0.891, "low": 0.87, "high": 0.91}},
     "baselines": {"majority": {"accuracy": 0.51}, "linear": {"accuracy": 0.82}},
     "classes": [{"label": "positive", "precision": 0.9, "recall": 0.88, "f1": 0.89, "support": 444}],
     "confusion": {"labels": ["negative", "positive"], "counts": [[400, 28], [53, 391]]},
     "mistakes": [{"where": "dev.tsv:17", "text": "...", "gold": "positive", "predicted": "negative", "score": 0.98}]}

Only `task` and `scores` are required; a `value` that is not defined is null. `low` and `high` are the ends of a 95%
interval; `counts` has a row for each gold label and a column for each predicted one. Uses only the standard library.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from tfzoo import json_files
from tfzoo.errors import UserError
from tfzoo.json_files import Field

NAME = "evaluation.json"  # Of the validation file, written by training.
_NUMBER, _STRING, _COUNT = Field(float), Field(str), Field(int, low=0)
_FIELDS: json_files.Fields = {
    "task": Field(str, required=True),
    "scores": Field(dict, items=Field(dict), required=True),
    "file": _STRING,
    "rows": _COUNT,
    "step": _COUNT,
    "best_metric": _STRING,
    "baselines": Field(dict, items=Field(dict)),
    "classes": Field(list, items=Field(dict)),
    "confusion": Field(dict),
    "mistakes": Field(list, items=Field(dict)),
}
_SCORE = {"value": _NUMBER, "low": _NUMBER, "high": _NUMBER}
_CLASS = {
    "label": Field(str, required=True),
    **dict.fromkeys(("precision", "recall", "f1"), _NUMBER),
    "support": _COUNT,
}
_CONFUSION = {
    "labels": Field(list, items=Field(str), required=True),
    "counts": Field(list, items=Field(list, items=Field(int, low=0)), required=True),
}
_MISTAKE = {"where": _STRING, "text": _STRING, "text_pair": _STRING, "score": _NUMBER}

_LOWER = re.compile(r"(^|_)(loss|perplexity|error|mse|rmse|mae)$")
_WORDS = {
    "f1": "F1",
    "mrr": "MRR",
    "ndcg": "nDCG",
    "map": "MAP",
    "mse": "MSE",
    "mae": "MAE",
    "auc": "AUC",
    "bleu": "BLEU",
}
_LABELS = {
    "matthews": "Matthews correlation",
    "mcc": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "chrf": "chrF",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
}
_PROPER = {*_WORDS.values(), *(label.split()[0] for label in _LABELS.values())}  # Keep their capitals in a sentence.
# The names of the baselines of tasks, in tables and, after "the", in sentences.
BASELINES = {
    "majority": "majority class",
    "linear": "linear model",
    "lookup": "look-up table",
    "tfidf": "TF-IDF cosine",
    "bm25": "BM25 ranking",
    "mean": "mean of the training values",
    "source": "copied source",
    "memory": "translation memory",
    "lead_1": "first sentence",
    "lead_3": "first three sentences",
    "text_rank": "TextRank summary",
    "position": "commonest position",
    "longest": "longest ending",
    "shortest": "shortest ending",
    "sentence": "nearest sentence",
    "beside": "words near the question's",
    "no_answer": "no answer",
    "longer": "longer answer",
}


def label_of(metric: str) -> str:
    """Returns the name of a metric for readers: "macro_f1" -> "Macro F1"."""
    metric, at, source = metric.partition("/")
    words = [_WORDS.get(word, word) for word in metric.split("_") if word]
    text = _LABELS.get(metric) or " ".join(words)
    text = text if text.split(" ")[0] in _PROPER else text[:1].upper() + text[1:]
    return text + (f" ({source})" if at else "")


def in_sentence(label: str) -> str:
    """Returns a label as it is written within a sentence: "Macro F1" -> "macro F1"."""
    return label if label.split(" ")[0] in _PROPER else label[:1].lower() + label[1:]


@dataclasses.dataclass(frozen=True)
class Score:
    """One score of a model and the same score of the baselines.

    Attributes:
      name: the metric, such as "accuracy".
      value: of the model.
      low, high: the ends of the 95% interval of `value`; None if it was not computed.
      baselines: baseline -> its value; a baseline that has no such score is missing.
      label: the name of the metric for readers.
      form: the format of values.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    baselines: Mapping[str, float] = dataclasses.field(default_factory=dict)
    label: str = ""
    form: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or label_of(self.name))

    @property
    def lower_is_better(self) -> bool:
        return bool(_LOWER.search(self.name.partition("/")[0]))

    @property
    def interval(self) -> str:
        """The interval as text; "" if there is none."""
        return "" if self.low is None or self.high is None else f"{self.show(self.low)} to {self.show(self.high)}"

    @property
    def best_baseline(self) -> str | None:
        """The name of the best baseline; None if no baseline has this score."""
        best = min if self.lower_is_better else max
        return best(self.baselines, key=self.baselines.__getitem__) if self.baselines else None

    @property
    def beats_baselines(self) -> bool | None:
        """Whether the model is better than every baseline; None if no baseline has this score."""
        if self.best_baseline is None:
            return None
        baseline = self.baselines[self.best_baseline]
        return self.value < baseline if self.lower_is_better else self.value > baseline

    def show(self, value: float | None) -> str:
        """Returns a value of this metric as text; "-" for None."""
        if value is None:
            return "-"
        if self.form:
            return self.form.format(value)
        return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"

    def verdict(self) -> str:
        """Returns sentences that compare the model with the best baseline; "" if there is none."""
        if self.best_baseline is None:
            return ""
        name, baseline = BASELINES.get(self.best_baseline, self.best_baseline), self.baselines[self.best_baseline]
        figures = f"{in_sentence(self.label)} {self.show(self.value)}, compared with {self.show(baseline)}"
        if not self.beats_baselines:
            return f"The model does not beat the {name}: {figures}."
        text = f"The model beats the best baseline, the {name}: {figures}."
        if self.low is not None and self.high is not None and self.low <= baseline <= self.high:
            text += " But the baseline is within the model's 95% interval: the difference may be due to chance."
        return text


def baseline_label(name: str) -> str:
    """Returns the name of a baseline for readers: "linear" -> "linear model"."""
    return BASELINES.get(name, name)


@dataclasses.dataclass(frozen=True)
class Results:
    """The results of a model on one file.

    Attributes:
      task: the task or objective.
      scores: the scores, in the order of the file.
      best_metric: the name of the score that selects the best checkpoint.
      validation: whether the file is the one on which the checkpoint was selected.
      file, rows, step: the name of the evaluated file, its number of rows, and the step of the checkpoint; None if
        unknown.
      classes, confusion, mistakes: as in the file; empty if there are none.
    """

    task: str
    scores: tuple[Score, ...]
    best_metric: str = ""
    validation: bool = True
    file: str | None = None
    rows: int | None = None
    step: int | None = None
    classes: tuple[Mapping[str, Any], ...] = ()
    confusion: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mistakes: tuple[Mapping[str, Any], ...] = ()

    @property
    def main(self) -> Score | None:
        """The score of best_metric, or the first; None if there are no scores."""
        return next((score for score in self.scores if score.name == self.best_metric), next(iter(self.scores), None))

    @property
    def title(self) -> str:
        """What was evaluated, for readers."""
        return f"{'Validation' if self.validation else 'Test'}: {self.file_name}" if self.file else "Held-out text"

    @property
    def file_name(self) -> str:
        """The file without its folder, whose name may be private; "held-out text" for a corpus."""
        return pathlib.PurePath(self.file).name if self.file else "held-out text"

    @property
    def baselines(self) -> tuple[str, ...]:
        """The names of the baselines that have any score."""
        return tuple(dict.fromkeys(name for score in self.scores for name in score.baselines))


def read(path: pathlib.Path) -> Results:
    """Reads evaluation.json or evaluation-NAME.json.

    Raises:
      UserError: the file is missing, damaged, or has a field of another type; the one-line message names the file.
    """
    record = json_files.read(path)
    json_files.check(record, _FIELDS, path)
    baselines = record.get("baselines") or {}
    for name, values in baselines.items():
        json_files.check(values, dict.fromkeys(values, _NUMBER), f"{path}: baselines: {name}")
    confusion = record.get("confusion") or {}
    if confusion:
        json_files.check(confusion, _CONFUSION, f"{path}: confusion")
        count = len(confusion["labels"])
        if [len(row) for row in confusion["counts"]] != [count] * count:
            raise UserError(f"{path}: confusion: counts must have {count} rows of {count} numbers; correct it")
    for name, fields in (("classes", _CLASS), ("mistakes", _MISTAKE)):
        for place, entry in enumerate(record.get(name) or ()):
            json_files.check(entry, fields, f"{path}: {name}[{place}]")
    scores = []
    for name, entry in record["scores"].items():
        json_files.check(entry, _SCORE, f"{path}: scores: {name}")
        if entry.get("value") is None:  # Undefined, such as the correlation with a constant.
            continue
        found = {baseline: values[name] for baseline, values in baselines.items() if values.get(name) is not None}
        scores.append(Score(name, entry["value"], entry.get("low"), entry.get("high"), found))
    return Results(
        task=record["task"],
        scores=tuple(scores),
        best_metric=record.get("best_metric") or "",
        validation=path.name == NAME,
        file=record.get("file"),
        rows=record.get("rows"),
        step=record.get("step"),
        classes=tuple(record.get("classes") or ()),
        confusion=confusion,
        mistakes=tuple(record.get("mistakes") or ()),
    )


def find(run_dir: pathlib.Path) -> list[Results]:
    """Returns the results in a run's folder: those of the validation file first, then the others by name.

    Raises:
      UserError: see `read`.
    """
    others = sorted(path for path in run_dir.glob("evaluation-*.json") if path.is_file())
    return [read(path) for path in [run_dir / NAME, *others] if path.exists()]


def confused(confusion: Mapping[str, Any], most: int) -> list[tuple[str, str, int, float]]:
    """Returns the most frequent confusions: (gold label, predicted label, count, fraction of the gold label's rows)."""
    labels, counts = confusion["labels"], confusion["counts"]
    pairs = [
        (labels[i], labels[j], count, count / math.fsum(row))
        for i, row in enumerate(counts)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:most]
