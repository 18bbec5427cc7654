"""The curves of the training and the validation loss: where they diverge, and their plot as HTML with inline SVG.

The text of the plot is HTML, positioned in percent, so that it keeps its size at any width; only lines are scaled.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

from tfzoo.training import history

RISE = 0.03  # A rise of the validation loss by a smaller fraction is treated as noise.
_SMOOTHED = 60  # From this many points on, the training loss is also drawn as a moving average.
_MOST = 800  # Points of a line; more would not be visible.

Points = Sequence[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class Curves:
    """The curves of a run.

    Attributes:
      train: (step, mean training loss since the last record).
      validation: (step, held-out loss).
      comparable: those whose held-out rows have the same length as the last one's.
      name: the name of the held-out loss.
      stages: the steps after which another stage began.
    """

    train: Points
    validation: Points
    comparable: Points
    name: str = "validation_loss"
    stages: Sequence[int] = ()

    @property
    def label(self) -> str:
        """The name of the held-out loss for readers."""
        return self.name.replace("_", " ")

    @classmethod
    def of(cls, run: history.History) -> "Curves":
        name = run.validation_loss
        trained = [record for record in run.records if "loss" in record]
        evaluated = [record for record in run.records if "loss" not in record and name in record]
        sizes = [tuple(record.get(size) for size in ("sequence_length", "batch_size")) for record in trained]
        return cls(
            _finite((record["step"], record["loss"]) for record in trained),
            _finite((record["step"], record[name]) for record in evaluated),
            _finite((record["step"], record[name]) for record in history.of_last_stage(evaluated)),
            name,
            [trained[i]["step"] for i, (a, b) in enumerate(itertools.pairwise(sizes)) if a != b],
        )


def _finite(points) -> list[tuple[int, float]]:
    return [(step, value) for step, value in points if isinstance(value, int | float) and math.isfinite(value)]


@dataclasses.dataclass(frozen=True)
class Divergence:
    """The point from which on a model overfits.

    Attributes:
      step, low: the step and the value of the lowest validation loss.
      last_step, last: the last evaluation.
      train_low, train_last: the mean training loss between the evaluation at `step` and the one before, and the same
        for the last evaluation.
    """

    step: int
    low: float
    last_step: int
    last: float
    train_low: float
    train_last: float


def divergence(curves: Curves) -> Divergence | None:
    """Returns where the curves diverge; None if they do not.

    They diverge at the lowest validation loss (the first, if several are equal), if the last validation loss is higher
    by more than the fraction RISE of the lowest, and the training loss has fallen in between. Only comparable
    evaluations count.
    """
    if len(curves.comparable) < 2:
        return None
    step, low = min(curves.comparable, key=lambda point: point[1])
    last_step, last = curves.comparable[-1]
    train_low, train_last = _mean_before(curves, step), _mean_before(curves, last_step)
    if last - low <= RISE * abs(low) or train_low is None or train_last is None or train_last >= train_low:
        return None
    return Divergence(step, low, last_step, last, train_low, train_last)


def _mean_before(curves: Curves, step: int) -> float | None:
    """Returns the mean training loss between the evaluation at `step` and the one before, or the last one logged
    before `step` if none was logged in between; None if there is none. For an evaluation before the first update it is
    the first training loss."""
    begin = max((each for each, _ in curves.validation if each < step), default=-1)
    losses = [loss for each, loss in curves.train if begin < each <= step]
    if losses:
        return math.fsum(losses) / len(losses)
    earlier = [loss for each, loss in curves.train if each <= step] or [loss for _, loss in curves.train[:1]]
    return earlier[-1] if earlier else None


def summary(curves: Curves) -> str:
    """Returns sentences on whether the curves diverge, for readers."""
    if not curves.comparable:
        return "No held-out loss has been logged yet." if curves.train else "Nothing has been logged yet."
    found = divergence(curves)
    if found is not None:
        return (
            f"The curves diverge at step {found.step:,}: from there to step {found.last_step:,} the validation loss "
            f"rises from {found.low:.3f} to {found.last:.3f} while the training loss falls from {found.train_low:.3f} "
            f"to {found.train_last:.3f}. The model overfits."
        )
    if len(curves.comparable) == 1:
        return "The run has only one evaluation: it is not known whether the curves diverge."
    step, low = min(curves.comparable, key=lambda point: point[1])
    last_step, last = curves.comparable[-1]
    if step == last_step:
        return f"The curves do not diverge: the validation loss is lowest at the end, {last:.3f} at step {step:,}."
    if last - low <= RISE * abs(low):
        return (
            f"The validation loss does not rise by more than {RISE:.0%}, so no divergence is marked: it is {last:.3f} "
            f"at the end and {low:.3f} at step {step:,}, where it is lowest."
        )
    return (
        f"The curves do not diverge: the validation loss rises from {low:.3f} at step {step:,} to {last:.3f}, but the "
        "training loss does not fall in the meantime, so this is not overfitting."
    )


# The plot


@dataclasses.dataclass(frozen=True)
class Axis:
    """A linear axis from `low` to `high`, with labelled ticks."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]] = ()

    @classmethod
    def around(cls, values: Sequence[float], count: int = 5, whole: bool = False) -> "Axis":
        """Returns an axis that contains all values, and about `count` ticks at round numbers."""
        low, high = min(values), max(values)
        if low == high:
            low, high = (low, low + 1) if whole else (low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10)
        rough = (high - low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        size = next(step * power for step in (1, 2, 5, 10) if step * power >= rough * 0.999)
        if whole:
            size = max(round(size), 1)
        else:  # The axis ends at ticks.
            low, high = math.floor(low / size) * size, math.ceil(high / size) * size
        digits = max(0, -math.floor(math.log10(size) + 1e-9))
        first, last = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
        ticks = [(i * size, f"{i * size:,.{digits}f}") for i in range(first, last + 1)]
        return cls(low, high, ticks)

    def place(self, value: float) -> float:
        """Returns a value's place on the axis, from 0 to 100."""
        return round(100 * (value - self.low) / (self.high - self.low), 3)


@dataclasses.dataclass(frozen=True)
class Plot:
    """What the template draws; places are in percent of the plot's width from the left and height from the top."""

    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    right_ticks: Sequence[tuple[float, str]]  # Of the validation loss, if it has an axis of its own.
    raw: str  # The points of the training loss for an SVG polyline, in per mille; "" if only `train` is drawn.
    train: str
    validation: str
    dots: Sequence[tuple[float, float, str]]  # Each evaluation: place and description.
    stages: Sequence[float]
    marker: tuple[float, float, str] | None  # Where the curves diverge: place and label.
    label: str  # Describes the plot to those who do not see it.


def plot(curves: Curves) -> Plot | None:
    """Returns the plot of the curves; None if nothing was logged."""
    if not curves.train and not curves.validation:
        return None
    smooth = _moving_average(curves.train) if len(curves.train) >= _SMOOTHED else curves.train
    x = Axis.around([0, *(step for step, _ in (*curves.train, *curves.validation))], whole=True)
    trained, validated = [value for _, value in smooth], [value for _, value in curves.validation]
    # Losses of different kinds, such as ELECTRA's weighted sum and its detection loss, would make one of them flat.
    apart = bool(trained and validated) and (
        min(trained) > 2 * max(validated) > 0 or min(validated) > 2 * max(trained) > 0
    )
    left = Axis.around(trained if apart else [*trained, *validated])
    right = Axis.around(validated) if apart else left
    found = divergence(curves)
    marker = None
    if found is not None:
        marker = x.place(found.step), 100 - right.place(found.low), f"Step {found.step:,}: the curves diverge"
    return Plot(
        x_ticks=[(x.place(value), label) for value, label in x.ticks],
        y_ticks=[(100 - left.place(value), label) for value, label in left.ticks],
        right_ticks=[(100 - right.place(value), label) for value, label in right.ticks] if apart else [],
        raw=_line(curves.train, x, left) if smooth is not curves.train else "",
        train=_line(smooth, x, left),
        validation=_line(curves.validation, x, right),
        dots=[
            (x.place(step), 100 - right.place(value), f"Step {step:,}: {curves.label} {value:.4f}")
            for step, value in _thinned(curves.validation, 100)
        ],
        stages=[x.place(step) for step in curves.stages],
        marker=marker,
        label=f"Training loss and {curves.label} over {x.high:,} steps. {summary(curves)}",
    )


def _moving_average(points: Points) -> Points:
    """Returns the mean of each point and its neighbours, about a twenty-fifth of the curve."""
    half = max(len(points) // 50, 1)
    sums = [0.0, *itertools.accumulate(value for _, value in points)]
    smooth = []
    for i, (step, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        smooth.append((step, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return smooth


def _thinned(points: Points, most: int) -> Points:
    """Returns at most `most` of the points, at even distances, and the last one."""
    every = -(-len(points) // most) or 1
    return [*points[:-1][::every], *points[-1:]]


def _line(points: Points, x: Axis, y: Axis) -> str:
    return " ".join(f"{10 * x.place(a):.1f},{1000 - 10 * y.place(b):.1f}" for a, b in _thinned(points, _MOST))
