"""What a search shows: a table with the best trial first, and plots. Does not import TensorFlow."""

import io
import math
import pathlib
from collections.abc import Mapping, Sequence

from tfzoo import files
from tfzoo.tuning.space import Dimension
from tfzoo.tuning.trials import DONE, FAILED, PRUNED, Direction, Trial, ranked

TABLE, PLOT = "trials.md", "tune.png"
_COLORS = {DONE: "tab:blue", PRUNED: "tab:gray"}


def table(
    trials: Sequence[Trial], dimensions: Sequence[Dimension], metric: str, direction: Direction, form: str
) -> str:
    """Returns a Markdown table, aligned, with the best trial first.

    Args:
      trials: the trials.
      dimensions: what varies, a column each.
      metric: the figure that the search optimizes.
      direction: whether the smallest or the largest value is the best.
      form: the format of that figure.
    """
    rows = [["trial", *(dimension.name for dimension in dimensions), metric, "step", "state"]]
    for trial in ranked(trials, direction):
        value = "-" if trial.value is None else form.format(trial.value)
        values = [str(trial.values[dimension.name]) for dimension in dimensions]
        error = trial.error.replace("|", "\\|")
        state = f"{trial.state}: {error}" if trial.state == FAILED else trial.state
        rows.append([str(trial.trial), *values, value, str(trial.step) if trial.step else "-", state])
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]) - 1)]

    def line(row: Sequence[str]) -> str:
        cells = [cell.rjust(width) for cell, width in zip(row, widths)]
        return f"| {' | '.join([*cells, row[-1]])} |"

    rule = f"|{'|'.join('-' * (width + 1) + ':' for width in widths)}|---|"
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])])


def plot(
    path: pathlib.Path, trials: Sequence[Trial], dimensions: Sequence[Dimension], metric: str, direction: Direction
) -> None:
    """Writes a plot of the value of each trial with the best one so far, and of the value against each dimension."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shown = [trial for trial in trials if trial.value is not None and trial.state in _COLORS]
    done = [trial for trial in shown if trial.state == DONE]
    columns = min(3, len(dimensions))
    num_rows = -(-len(dimensions) // columns)
    figure = Figure(figsize=(8, 3.5 + 2.5 * num_rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1 + num_rows, columns, height_ratios=[1.4, *[1.0] * num_rows])
    axes = figure.add_subplot(grid[0, :])
    _points(axes, shown, {trial.trial: trial.trial for trial in shown})
    best: list[float] = []
    for trial in done:
        assert trial.value is not None
        best.append((min if direction == "min" else max)([*best[-1:], trial.value]))
    axes.plot([trial.trial for trial in done], best, color="tab:orange", drawstyle="steps-post", label="best so far")
    failed = sum(trial.state == FAILED for trial in trials)
    axes.set(xlabel="trial", ylabel=metric, title=f"{len(done)} trials{f', {failed} more failed' if failed else ''}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if shown:
        axes.legend()
    axes.grid(alpha=0.3)
    for number, dimension in enumerate(dimensions):
        panel = figure.add_subplot(grid[1 + number // columns, number % columns])
        if dimension.choices:
            positions = {choice: place for place, choice in enumerate(dimension.choices)}
            _points(panel, shown, {trial.trial: positions[trial.values[dimension.name]] for trial in shown})
            panel.set_xticks(range(len(positions)), [choice[:16] for choice in positions])
            panel.set_xlim(-0.5, len(positions) - 0.5)
        else:
            _points(panel, shown, {trial.trial: trial.values[dimension.name] for trial in shown})
            if dimension.log:
                panel.set_xscale("log")
                panel.minorticks_off()
                ticks = [dimension.low, math.sqrt(dimension.low * dimension.high), dimension.high]
                panel.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
        panel.set(xlabel=dimension.name, ylabel="" if number % columns else metric)
        panel.grid(alpha=0.3)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    files.atomic_write(path, image.getvalue())


def _points(axes, trials: Sequence[Trial], places: Mapping[int, float]) -> None:
    """Draws a point for each trial at its place."""
    for state, color in _COLORS.items():
        chosen = [trial for trial in trials if trial.state == state]
        if chosen:
            values = [trial.value for trial in chosen]
            axes.scatter([places[trial.trial] for trial in chosen], values, s=16, color=color, label=state)
