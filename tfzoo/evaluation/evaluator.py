"""Evaluators: predictions of the whole held-out part in, figures out.

An evaluator does not know how a model is trained. An objective names the evaluators of its models.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


class Evaluator:
    """Figures of predictions.

    `predict` runs in a graph on each replica, on its part of a batch. `figures` runs once in Python, on the
    predictions of all rows: each exactly once, in the order of the rows, however many replicas and workers there are.
    """

    def predict(self, models: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        """Models by role and a batch of n rows -> {name: tensor [n, ...]}."""
        raise NotImplementedError

    def figures(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        """{name: array [N, ...]} of N rows -> {figure: value}."""
        raise NotImplementedError


class Means(Evaluator):
    """Weighted means, the simplest evaluator: sums and weights are added up on the devices, and no prediction is kept.

    Args:
      metrics: models by role and a batch -> {name: (sum, weight)}, scalars.
      perplexity_of: names of mean losses in nats, NAME_loss, whose perplexity is reported as NAME_perplexity.
    """

    def __init__(
        self,
        metrics: Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, tuple[Any, Any]]],
        perplexity_of: Sequence[str] = (),
    ):
        self.sums = metrics
        self._perplexity_of = tuple(perplexity_of)

    def figures(self, predictions: Mapping[str, Any]) -> dict[str, float]:
        """{name: (sum, weight)} over all rows -> {name: sum / weight}, without those of weight 0."""
        figures = {name: value / weight for name, (value, weight) in predictions.items() if weight}
        return figures | {
            name.replace("_loss", "_perplexity"): math.exp(min(figures[name], 700.0))
            for name in self._perplexity_of
            if name in figures
        }
