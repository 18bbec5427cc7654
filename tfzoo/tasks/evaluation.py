"""The record of an evaluation on a labelled file: evaluation.json of a run, and the output of tfzoo.evaluate.

{"task": "classify", "file": "dev.tsv", "rows": 872, "step": 1200, "best_metric": "accuracy",
 "scores": {"accuracy": {"value": 0.891, "low": 0.87, "high": 0.91}, ...}, of which low and high are the limits of
           the 95% bootstrap interval; scores that are not a function of rows have none,
 "baselines": {"majority": {"accuracy": 0.51, ...}, "linear": {...}},
 "beaten": whether the model's best_metric is better than that of every baseline,
 "classes": [{"label", "precision", "recall", "f1", "support"}, ...],
 "signature": of a translation: that of sacreBLEU,
 "oracle": of extracted summaries: {figure: value} of the greedy oracle's sentences,
 "confusion": {"labels": [...], "counts": [[...], ...]} or null, rows are the right classes,
 "mistakes": [{"where": "dev.tsv:17", "text", "text_pair", "gold", "predicted", "score"}, ...]}
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfzoo.errors import UserError
from tfzoo.evaluation import intervals
from tfzoo.objectives.objective import direction_of
from tfzoo.tasks.task import Task

MISTAKES = 50
_LONGEST = 2000  # Characters of a text that is shown.
_SHORT = 200  # Characters of a text that is shown as an answer.
_PLACES = {"gold_at": "gold", "predicted_at": "predicted"}


def assemble(
    task: Task,
    outcome: Mapping[str, np.ndarray],
    file: Any,
    step: int,
    baselines: Mapping[str, Mapping[str, float]],
    best_metric: str,
) -> dict[str, Any]:
    """Returns the record of an evaluation; see the module's docstring.

    Args:
      task: the task.
      outcome: the result of `task.outcome`.
      file: the open file that was evaluated; it is read once more for the texts of the mistakes.
      step: the step of the checkpoint.
      baselines: {baseline: {figure: value}} on the same rows.
      best_metric: the main figure.
    """
    score = task.score_rows(outcome)
    count = len(outcome["number"])
    bounds = intervals.bootstrap(score, count)
    scores = {
        name: {"value": value, "low": bounds[name][0], "high": bounds[name][1]} for name, value in score().items()
    }
    scores |= {name: {"value": value} for name, value in task.further_scores(outcome).items()}
    return {
        "task": task.name,
        "file": file.path if isinstance(file.path, str) else str(file.path),
        "rows": task.count_of(outcome),
        "step": step,
        "best_metric": best_metric,
        "scores": scores,
        "baselines": {name: dict(figures) for name, figures in baselines.items()},
        "beaten": beats(scores, baselines, best_metric),
        **task.details(outcome),
        "mistakes": _with_texts(task, task.mistakes(outcome, MISTAKES), file),
    }


def beats(scores: Mapping[str, Mapping[str, float]], baselines: Mapping[str, Mapping[str, float]], name: str) -> bool:
    """Returns whether a score is better than that of every baseline that has it; of errors, the smaller is better."""
    sign = -1 if direction_of(name) == "min" else 1
    if name not in scores:
        return False
    return all(sign * scores[name]["value"] > sign * each[name] for each in baselines.values() if name in each)


def compare(task: Task, outcome, other: Task, others, run: str) -> dict[str, Any]:
    """Returns the differences between two models on the same rows, with intervals and two-sided p by a paired
    bootstrap.

    Args:
      task, outcome: of the model.
      other, others: of the model that it is compared with.
      run: the folder of the latter.

    Raises:
      UserError: the models answered different rows.
    """
    if not np.array_equal(outcome["number"], others["number"]):
        raise UserError(f"--against={run}: it answers other rows of the file; use --bad_rows=strict")
    found = intervals.paired(task.score_rows(outcome), other.score_rows(others), len(outcome["number"]))
    return {"run": run, "differences": {name: dataclasses.asdict(each) for name, each in found.items()}}


def _with_texts(task: Task, mistakes: list[dict[str, Any]], file) -> list[dict[str, Any]]:
    """Adds the places and texts of mistakes, which have the numbers of their rows; see Task.mistakes."""
    wanted = {mistake["number"] for mistake in mistakes}
    wanted |= {mistake[name][0] for mistake in mistakes for name in _PLACES if name in mistake}
    last = max(wanted, default=-1)
    rows: dict[int, Any] = {}
    for number, row in enumerate(file.rows() if wanted else ()):
        if number in wanted:
            rows[number] = row
        if number == last:
            break
    shown = []
    for mistake in mistakes:
        row = rows[mistake["number"]]
        answers = {name: value for name, value in mistake.items() if name not in _PLACES}
        for place, name in _PLACES.items():
            if place in mistake:
                number, i = mistake[place]
                text = task.texts_of(rows[number])[i]
                answers[name] = text if len(text) <= _SHORT else f"{text[: _SHORT - 3]}..."
        shown.append({"where": row.where} | task.described(answers, row))
        for name in {"text", "text_pair"} & shown[-1].keys():
            shown[-1][name] = shown[-1][name][:_LONGEST]
    return shown
