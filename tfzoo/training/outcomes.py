"""The held-out figures of a finished run, read from its folder. Does not import TensorFlow."""

import pathlib
from typing import Any, Literal

from tfzoo.objectives.objective import direction_of
from tfzoo.training import checkpoint, report

_NO_FIGURES = ("step", "sequence_length", "batch_size")
PLAIN = "{:,.4f}"  # The format of a figure without one.


def evaluations(run_dir: pathlib.Path) -> list[tuple[int, dict[str, float]]]:
    """Returns (step, figures) of each evaluation of a run so far."""
    return [
        (record["step"], {name: value for name, value in record.items() if name not in _NO_FIGURES})
        for record in report.read_metrics(run_dir / "metrics.jsonl")
        if "loss" not in record and "learning_rate" not in record
    ]


def outcome(run_dir: pathlib.Path) -> tuple[int, dict[str, float]]:
    """Returns (step, figures) of the evaluation of the best checkpoint, or of the last evaluation if no checkpoint is
    the best; (0, {}) without an evaluation."""
    found = evaluations(run_dir)
    best = checkpoint.Checkpoints(run_dir / "checkpoints", read_only=True).best_step()
    chosen = [one for one in found if one[0] == best] or found or [(0, {})]
    return chosen[-1]


def best_metric(config: Any) -> tuple[str, Literal["min", "max"]]:
    """Returns the figure that selects the best checkpoint of a run with this TrainConfig, and its direction."""
    if config.best_metric is not None:
        return config.best_metric, direction_of(config.best_metric)
    return config.learner.shown(config.objective_options)[1]


def forms(config: Any) -> dict[str, tuple[str, str]]:
    """Returns {figure: (label, format)} of the figures that an evaluation of a run with this TrainConfig shows."""
    figures, _ = config.learner.shown(config.objective_options)
    return {name: (label.strip(), form) for label, name, form in figures}
