"""The state of a run other than its variables, and its schedule of actions: pure functions of numbers."""

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from tfzoo import json_files
from tfzoo.json_files import Field, Fields


@dataclasses.dataclass(frozen=True)
class Progress:
    """The state of a run in addition to its step and variables; saved with every checkpoint.

    Attributes:
      losses: finite losses since the last log line.
      places: for the batches since the last log line, [positions with a token, all positions] per call.
      best: the best value so far of the figure that selects the best checkpoint.
      best_step: the step of `best`.
      since_best: number of evaluations since then.
      passed_over: number of batches skipped by rollbacks because they led to non-finite values.
      nonfinite: number of updates that were skipped or rolled back.
      in_a_row: how many of these were consecutive, without a finite loss at a new step in between.
      failed_at: the last step that failed before a rollback; only this and later steps count as new.
      evaluating: the run was stopped during an evaluation, with which a resumed run starts.
    """

    losses: list[float] = dataclasses.field(default_factory=list)
    places: list[list[int]] = dataclasses.field(default_factory=list)
    best: float | None = None
    best_step: int = 0
    since_best: int = 0
    passed_over: int = 0
    nonfinite: int = 0
    in_a_row: int = 0
    failed_at: int = 0
    evaluating: bool = False

    @classmethod
    def read(cls, record: Mapping[str, Any], where: str | os.PathLike) -> "Progress":
        """Returns the progress that a checkpoint's record contains; `where` is the file, for messages.

        Raises:
          UserError: a field is unknown, or has an invalid value.
        """
        json_files.check(record, _FIELDS, f"{where}: state", closed=True)
        return cls(**record)

    def padding_share(self) -> float:
        """Returns the fraction of positions without a token since the last log line."""
        filled, total = map(sum, zip(*self.places))
        return 1 - filled / total

    def logged(self) -> "Progress":
        """Returns the progress after a log line was written."""
        return dataclasses.replace(self, losses=[], places=[])

    def measured(self, step: int, value: float, direction: Literal["min", "max"]) -> "Progress":
        """Returns the progress after an evaluation at `step`.

        Args:
          step: the current step.
          value: the figure that selects the best checkpoint; only a finite value can be the best.
          direction: whether the smallest or the largest value is the best.
        """
        better = self.best is None or (value < self.best if direction == "min" else value > self.best)
        done = dataclasses.replace(self, evaluating=False)
        if better and math.isfinite(value):
            return dataclasses.replace(done, best=value, best_step=step, since_best=0)
        return dataclasses.replace(done, since_best=self.since_best + 1)


_COUNT = Field(int, low=0, null=False)
_FIELDS: Fields = {
    "losses": Field(list, items=Field(float), null=False),
    "places": Field(list, items=Field(list, items=_COUNT), null=False),
    "best": Field(float),
    **dict.fromkeys(("best_step", "since_best", "passed_over", "nonfinite", "in_a_row", "failed_at"), _COUNT),
    "evaluating": Field(bool, null=False),
}


def due(step: int, every: int, last: int) -> bool:
    """Returns whether an action that is due every `every` steps, and at step `last`, is due at `step`."""
    return step % every == 0 or step == last


def updates_at_once(step: int, last: int, cadences: Iterable[int], most: int) -> int:
    """Returns the number of updates between `step` and the next action, but at most `most`."""
    return min(most, last - step, *(every - step % every for every in cadences))


def updates_in(seconds: float, of_each: float, least: int) -> int:
    """Returns how many updates of `of_each` seconds fit into `seconds`, but at least `least`."""
    return max(least, int(seconds / of_each))
