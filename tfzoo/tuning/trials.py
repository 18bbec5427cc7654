"""The trials of a search: their records in trials.jsonl, the values of the next one, and when one is pruned.

trials.jsonl is the only state of a search. The values of a trial are a pure function of the records of the earlier ones
and of the seed of the search, so that a search which is killed and started again is the same search. This module does
not import TensorFlow.
"""

import dataclasses
import itertools
import json
import math
import pathlib
import random
import statistics
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from tfzoo import files, json_files
from tfzoo.errors import UserError
from tfzoo.tuning.space import Dimension, Values

FILE = "trials.jsonl"
RUNNING, DONE, PRUNED, FAILED = "running", "done", "pruned", "failed"
Direction = Literal["min", "max"]

_DRAWS = 50  # Attempts to find values that no earlier trial has.
_PRUNING_STARTS = 5  # Trials that end before others are pruned, as in Optuna's MedianPruner.
_FIELDS = {
    "trial": json_files.Field(int, low=0, required=True),
    "state": json_files.Field(str, choices=(RUNNING, DONE, PRUNED, FAILED), required=True),
    "values": json_files.Field(dict, required=True),
    "value": json_files.Field(float),
    "step": json_files.Field(int),
    "figures": json_files.Field(dict),
    "evaluations": json_files.Field(list, items=json_files.Field(list)),
    "error": json_files.Field(str),
}


@dataclasses.dataclass(frozen=True)
class Trial:
    """A trial.

    Attributes:
      trial: its number, from 0.
      state: RUNNING, DONE, PRUNED or FAILED.
      values: the value of each dimension.
      value: the figure that the search optimizes; None while it is unknown.
      step: the step of that evaluation.
      figures: all figures of that evaluation.
      evaluations: [step, value] of each evaluation.
      error: why it failed.
    """

    trial: int
    state: str
    values: Values
    value: float | None = None
    step: int = 0
    figures: dict[str, float] = dataclasses.field(default_factory=dict)
    evaluations: list[list[float]] = dataclasses.field(default_factory=list)
    error: str = ""


def read(folder: pathlib.Path, dimensions: Sequence[Dimension]) -> list[Trial]:
    """Returns the trials in trials.jsonl, in their order.

    Raises:
      UserError: the file is damaged, or its trials have other dimensions.
    """
    path = folder / FILE
    if not path.exists():
        return []
    found: list[Trial] = []
    for number, line in enumerate(files.read_text(path).splitlines(), 1):
        where = f"{path}:{number}"
        record = json_files.parse_object(line, where, "restore the file")
        json_files.check(record, _FIELDS, where)
        trial = Trial(**{name: value for name, value in record.items() if name in _FIELDS})
        if trial.trial != number - 1 or trial.values.keys() != {dimension.name for dimension in dimensions}:
            raise UserError(f"{where}: does not fit to this search; restore the file, or specify a new folder")
        found.append(trial)
    return found


def write(folder: pathlib.Path, trials: Sequence[Trial]) -> None:
    """Writes trials.jsonl."""
    files.atomic_write(folder / FILE, "".join(json.dumps(dataclasses.asdict(trial)) + "\n" for trial in trials))


def ranked(trials: Sequence[Trial], direction: Direction) -> list[Trial]:
    """Returns the trials with the best first: those that are done, then pruned ones, then the others."""
    sign = 1 if direction == "min" else -1
    order = {DONE: 0, PRUNED: 1}

    def key(trial: Trial):
        return order.get(trial.state, 2), math.inf if trial.value is None else sign * trial.value, trial.trial

    return sorted(trials, key=key)


def propose(dimensions: Sequence[Dimension], trials: Sequence[Trial], direction: Direction, seed: int) -> Values:
    """Returns the values of the next trial, which differ from those of all earlier ones.

    The sampler is Optuna's TPE (Bergstra et al. 2011, "Algorithms for hyper-parameter optimization", section 4), which
    draws at random for the first ten trials.

    Args:
      dimensions: what varies.
      trials: all earlier trials; the next one gets the next number.
      direction: whether the smallest or the largest value is the best.
      seed: the seed of the search.

    Raises:
      UserError: every combination of values has been tried.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {dimension.name: dimension.distribution() for dimension in dimensions}
    earlier = [trial.values for trial in trials]
    for draw in range(_DRAWS):
        words = np.random.SeedSequence([seed, len(trials), draw]).generate_state(1)
        sampler = optuna.samplers.TPESampler(seed=int(words[0]))
        study = optuna.create_study(direction="minimize" if direction == "min" else "maximize", sampler=sampler)
        for trial in trials:
            if trial.state in (DONE, PRUNED) and trial.value is not None:
                study.add_trial(_of_optuna(trial, distributions))
        drawn = study.ask(distributions).params
        values = {dimension.name: dimension.rounded(drawn[dimension.name]) for dimension in dimensions}
        if values not in earlier:
            return values
    if math.isinf(combinations(dimensions)):
        return values
    untried = [
        values
        for each in itertools.product(*(dimension.values() for dimension in dimensions))
        if (values := {dimension.name: value for dimension, value in zip(dimensions, each)}) not in earlier
    ]
    if not untried:
        raise UserError(f"--trials: all {len(earlier)} combinations have been tried; use fewer, or search more values")
    return random.Random(int(words[0])).choice(untried)


def _of_optuna(trial: Trial, distributions):
    import optuna

    states = optuna.trial.TrialState
    return optuna.trial.create_trial(
        state=states.COMPLETE if trial.state == DONE else states.PRUNED,
        params=dict(trial.values),
        distributions=distributions,
        value=trial.value,
        intermediate_values={int(step): value for step, value in trial.evaluations},
    )


def combinations(dimensions: Sequence[Dimension]) -> float:
    """Returns the number of combinations of values, which may be infinite."""
    return math.prod(dimension.count() for dimension in dimensions)


def should_be_pruned(evaluations: Sequence[Sequence[float]], trials: Sequence[Trial], direction: Direction) -> int:
    """Returns the step at which a trial is pruned, or 0.

    The median stopping rule (Golovin et al. 2017, "Google Vizier", section 3.2.2, in the form of Optuna's
    MedianPruner): a trial is pruned at the first evaluation at which its best value so far is worse than the median of
    the values of the other trials at the same step. The last evaluation of a run prunes nothing.

    Args:
      evaluations: [step, value] of the trial's evaluations so far.
      trials: the other trials.
      direction: whether the smallest or the largest value is the best.
    """
    finished = [trial for trial in trials if trial.state == DONE]
    if len(finished) < _PRUNING_STARTS:
        return 0
    best, sign = math.inf, 1 if direction == "min" else -1
    last = max(trial.evaluations[-1][0] for trial in finished if trial.evaluations)
    for step, value in evaluations:
        best = min(best, sign * value)
        others = [sign * v for trial in trials for s, v in trial.evaluations if s == step and trial.state != FAILED]
        if step < last and others and best > statistics.median(others):
            return int(step)
    return 0


def metric_values(evaluations: Sequence[tuple[int, dict[str, Any]]], metric: str) -> list[list[float]]:
    """Returns [step, value] of each evaluation that has a finite value of the figure."""
    return [
        [step, figures[metric]]
        for step, figures in evaluations
        if isinstance(figures.get(metric), int | float) and math.isfinite(figures[metric])
    ]
