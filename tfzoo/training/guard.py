"""What a run does about losses and gradients that are not finite: a pure function of losses and progress."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from tfzoo.training.state import Progress


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is to be done after some updates."""

    action: Literal["go_on", "roll_back", "stop"]
    progress: Progress
    step: int = 0  # roll_back, stop: the update that was not finite.
    nonfinite: tuple[int, ...] = ()  # The updates to warn about.


def judge(losses: Sequence[float], step: int, progress: Progress, policy: str, most_in_a_row: int) -> Verdict:
    """Judges the updates `step` + 1 and following by their losses.

    A failure counts as consecutive until a finite loss comes at a step beyond all that failed: a run that goes back and
    fails again at the same place has gained nothing.

    Args:
      losses: of each update; NaN also where only the gradient was not finite.
      progress: before them.
      policy: stop at the first; skip it; or go back to the newest checkpoint and past the batches since.
      most_in_a_row: consecutive failures that are borne; one more ends the run under every policy.
    """
    failed: list[int] = []
    for number, loss in enumerate(losses, step + 1):
        if math.isfinite(loss):
            if number >= progress.failed_at:
                progress = dataclasses.replace(progress, in_a_row=0)
            continue
        if policy == "stop" or progress.in_a_row >= most_in_a_row:
            return Verdict("stop", progress, number, tuple(failed))
        failed.append(number)
        progress = dataclasses.replace(progress, nonfinite=progress.nonfinite + 1, in_a_row=progress.in_a_row + 1)
        if policy == "rollback":
            failed_at = max(progress.failed_at, number)
            return Verdict("roll_back", dataclasses.replace(progress, failed_at=failed_at), number, tuple(failed))
    return Verdict("go_on", progress, nonfinite=tuple(failed))


def after_rollback(saved: Progress, progress: Progress, step: int, failed: int) -> Progress:
    """The progress of a run that went back to `step`, where it had `saved`, because the update `failed` was not finite.

    The batches from there to the failed one are passed over. What counts failures is not undone.
    """
    return dataclasses.replace(
        saved,
        passed_over=progress.passed_over + failed - step,
        nonfinite=progress.nonfinite,
        in_a_row=progress.in_a_row,
        failed_at=progress.failed_at,
    )
