"""What a run knows of itself besides its variables, and when it does what: pure functions of numbers."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a run knows of itself, besides the step and the variables; every checkpoint has it."""

    losses: list[float] = dataclasses.field(default_factory=list)  # Since the last line of the log,
    places: list[list[int]] = dataclasses.field(default_factory=list)  # and of their batches: with a token, in all.
    best: float | None = None  # Of the figure by which the best checkpoint is chosen,
    best_step: int = 0  # and when.
    passed_over: int = 0  # Batches that no update was made of: they led to what is not finite.
    nonfinite: int = 0  # Updates that were left out or gone back for,
    in_a_row: int = 0  # how many of them without a finite loss at a new step between,
    failed_at: int = 0  # and the step that counts as new only when it is passed.
    evaluating: bool = False  # Stopped during an evaluation, which a resumed run begins with.

    def padding_share(self) -> float:
        """The fraction of the places since the last line of the log that hold no token."""
        filled, room = map(sum, zip(*self.places))
        return 1 - filled / room

    def logged(self) -> "Progress":
        """After a line of the log was written."""
        return dataclasses.replace(self, losses=[], places=[])

    def measured(self, step: int, value: float, direction: Literal["min", "max"]) -> "Progress":
        """After an evaluation at `step`, by `value`, the best checkpoint's figure. Only a finite one can be best."""
        better = self.best is None or (value < self.best if direction == "min" else value > self.best)
        done = dataclasses.replace(self, evaluating=False)
        return dataclasses.replace(done, best=value, best_step=step) if better and math.isfinite(value) else done


def due(step: int, every: int, last: int) -> bool:
    """Whether something done every so many steps, and at the end, is to be done at `step`."""
    return step % every == 0 or step == last


def updates_at_once(step: int, last: int, cadences: Iterable[int], most: int) -> int:
    """How many updates fit between `step` and the next thing to do, at most `most`."""
    return min(most, last - step, *(every - step % every for every in cadences))


def updates_in(seconds: float, of_each: float, least: int) -> int:
    """How many updates that take `of_each` seconds fit in `seconds`, at least `least`."""
    return max(least, int(seconds / of_each))
