"""Evaluators compute figures from the predictions for all held-out rows.

An evaluator does not depend on how a model is trained. An objective lists the evaluators of its models.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


class Evaluator:
    """Computes figures from predictions.

    `predict` runs in a graph on each replica, on its part of a batch. `figures` runs once in Python, on the predictions
    for all rows, each exactly once and in the order of the rows, for any number of replicas and workers.
    """

    def predict(self, models: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns {name: tensor [n, ...]} for models by role and a batch of n rows."""
        raise NotImplementedError

    def figures(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns {figure: value} for the predictions {name: array [N, ...]} of N rows."""
        raise NotImplementedError


class Means(Evaluator):
    """Weighted means, the simplest evaluator: sums and weights are accumulated, and no predictions are kept.

    Args:
      metrics: returns {name: (sum, weight)}, scalars, for models by role and a batch.
      perplexity_of: names NAME_loss of mean losses in nats whose perplexity is reported as NAME_perplexity.
    """

    def __init__(
        self,
        metrics: Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, tuple[Any, Any]]],
        perplexity_of: Sequence[str] = (),
    ):
        self.sums = metrics
        self._perplexity_of = tuple(perplexity_of)

    def figures(self, predictions: Mapping[str, Any]) -> dict[str, float]:
        """Returns {name: sum / weight} for {name: (sum, weight)} over all rows, without names of weight 0."""
        figures = {name: value / weight for name, (value, weight) in predictions.items() if weight}
        return figures | {
            name.replace("_loss", "_perplexity"): math.exp(min(figures[name], 700.0))
            for name in self._perplexity_of
            if name in figures
        }
