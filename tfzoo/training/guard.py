"""Decides how a run reacts to non-finite losses and gradients, as a pure function of losses and progress."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from tfzoo.training.state import Progress


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The decision after some updates."""

    action: Literal["go_on", "roll_back", "stop"]
    progress: Progress
    step: int = 0  # For roll_back and stop, the non-finite update.
    nonfinite: tuple[int, ...] = ()  # Updates to warn about.


def judge(losses: Sequence[float], step: int, progress: Progress, policy: str, most_in_a_row: int) -> Verdict:
    """Judges the updates from `step` + 1 on by their losses.

    Failures count as consecutive until a finite loss occurs at a step beyond all failed steps: a run that rolls back
    and fails again at the same step has made no progress.

    Args:
      losses: the loss of each update; also NaN if only the gradient was not finite.
      step: the number of updates before the first loss.
      progress: the progress before these updates.
      policy: "stop" ends the run at the first failure; "skip" skips the update; "rollback" returns to the newest
        checkpoint and skips the batches since then.
      most_in_a_row: maximum number of consecutive failures; one more ends the run under every policy.
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
    """Returns the progress of a run that rolled back to `step` because the update `failed` was not finite.

    The batches from `step` to the failed update are skipped. The counts of failures are not rolled back.

    Args:
      saved: the progress in the checkpoint of `step`.
      progress: the progress at the failure.
      step: the step of the checkpoint.
      failed: the number of the failed update.
    """
    return dataclasses.replace(
        saved,
        passed_over=progress.passed_over + failed - step,
        nonfinite=progress.nonfinite,
        in_a_row=progress.in_a_row,
        failed_at=progress.failed_at,
    )
