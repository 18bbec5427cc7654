"""Scores of classes and numbers: accuracy, F1, Matthews correlation, Pearson and Spearman correlation, squared error.

The definitions are those of scikit-learn and scipy. Quotients with the denominator 0 are 0. For each score there is
also a function NAME_rows, which returns the score as a function of rows for `tfzoo.evaluation.intervals`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfzoo.evaluation.intervals import Weighted


def classification(gold: np.ndarray, predicted: np.ndarray, labels: Sequence[str]) -> dict[str, float]:
    """Scores one class per row.

    Args:
      gold, predicted: int [N], indices into `labels`.
      labels: the names of the classes.

    Returns:
      accuracy; macro_f1, the mean of F1 over the classes that occur in gold or predicted; micro_f1, which equals the
      accuracy; mcc, the Matthews correlation of several classes (Gorodkin 2004).
    """
    return classification_rows(gold, predicted, labels)()


def classification_rows(gold: np.ndarray, predicted: np.ndarray, labels: Sequence[str]) -> Weighted:
    """Returns `classification` as a function of rows."""
    size = len(labels)
    cells = _classes(gold, size) * size + _classes(predicted, size)
    return Weighted(cells[:, None], lambda values, weights: _class_figures(values[:, 0], weights, size))


def several(gold: np.ndarray, predicted: np.ndarray, labels: Sequence[str]) -> dict[str, float]:
    """Scores any number of labels per row.

    Args:
      gold, predicted: bool [N, C], whether a row has each label.
      labels: the C names.

    Returns:
      micro_f1, from the counts of all labels together; macro_f1, the mean of F1 over all C labels, including those that
      do not occur; subset_accuracy, the share of rows all of whose labels are right.
    """
    return several_rows(gold, predicted, labels)()


def several_rows(gold: np.ndarray, predicted: np.ndarray, labels: Sequence[str]) -> Weighted:
    """Returns `several` as a function of rows."""
    gold, predicted = _indicators(gold, labels), _indicators(predicted, labels)
    return Weighted(np.concatenate([gold, predicted], axis=1), _label_figures)


def regression(gold: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Scores numbers.

    Args:
      gold, predicted: [N].

    Returns:
      pearson and spearman, the correlations of the numbers and of their ranks, 0 if gold or predicted is constant; mse.
    """
    return regression_rows(gold, predicted)()


def regression_rows(gold: np.ndarray, predicted: np.ndarray) -> Weighted:
    """Returns `regression` as a function of rows."""
    return Weighted(np.stack([np.asarray(gold, np.float64), np.asarray(predicted, np.float64)], 1), _number_figures)


def per_class(gold: np.ndarray, predicted: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Returns label, precision, recall, f1 and support (the rows of gold that have it) of each label.

    Args:
      gold, predicted: int [N], or bool [N, C] for any number of labels per row.
      labels: the C names.
    """
    if np.ndim(gold) == 2:
        gold, predicted = _indicators(gold, labels), _indicators(predicted, labels)
        right, support, claimed = (gold & predicted).sum(0), gold.sum(0), predicted.sum(0)
    else:
        counts = _counts(gold, predicted, len(labels))
        right, support, claimed = counts.diagonal(), counts.sum(1), counts.sum(0)
    return rows_of_counts(labels, right, support, claimed)


def rows_of_counts(
    labels: Sequence[str], right: np.ndarray, support: np.ndarray, claimed: np.ndarray
) -> list[dict[str, Any]]:
    """Returns the rows of `per_class` from [C] counts: right predictions, occurrences in gold and in predicted."""
    columns = quotient(right, claimed), quotient(right, support), quotient(2 * right, support + claimed), support
    return [
        {"label": label, "precision": float(p), "recall": float(r), "f1": float(f1), "support": int(n)}
        for label, p, r, f1, n in zip(labels, *columns, strict=True)
    ]


def confusion(gold: np.ndarray, predicted: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """Returns {"labels": [C], "counts": [C][C]}, the rows of each gold class by predicted class.

    Args:
      gold, predicted: int [N].
      labels: the C names.
    """
    return {"labels": list(labels), "counts": _counts(gold, predicted, len(labels)).tolist()}


def average_precision(relevant: np.ndarray, answers: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns [R], the average precision in R resamples: the sum over thresholds of the precision times the gain in
    recall, as scikit-learn defines it; 0 if nothing is relevant.

    Args:
      relevant: bool [P].
      answers: [P], higher for what is likelier relevant.
      weights: [R, P], how often each resample contains each row.
    """
    order = np.argsort(-answers, kind="stable")
    ends = np.flatnonzero(np.diff(answers[order], append=-np.inf))  # Equal answers have one threshold.
    weights = weights[:, order].astype(np.float64)
    found, read = np.cumsum(weights * relevant[order], axis=1)[:, ends], np.cumsum(weights, axis=1)[:, ends]
    gains = np.diff(found, axis=1, prepend=0)
    return quotient((quotient(found, read) * gains).sum(1), found[:, -1])


def quotient(numerator: Any, denominator: Any) -> np.ndarray:
    """Returns numerator / denominator, and 0 where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    return np.divide(numerator, denominator, out=np.zeros(numerator.shape), where=denominator != 0)


def _classes(values: np.ndarray, size: int) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or (len(values) and not 0 <= values.min() <= values.max() < size):
        raise ValueError(f"classes must be int [N] in the range of the {size} labels")
    return values.astype(np.int64)


def _indicators(values: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    values = np.asarray(values, bool)
    if values.ndim != 2 or values.shape[1] != len(labels):
        raise ValueError(f"the shape is {values.shape}, not [N, {len(labels)}]")
    return values


def _counts(gold: np.ndarray, predicted: np.ndarray, size: int) -> np.ndarray:
    """Returns [C, C], gold classes by predicted ones."""
    cells = _classes(gold, size) * size + _classes(predicted, size)
    return np.bincount(cells, minlength=size * size).reshape(size, size)


def _class_figures(cells: np.ndarray, weights: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """Returns the figures of [R, U] weights of cells [U] of the confusion matrix."""
    gold, predicted = np.divmod(cells, size)
    eye = np.eye(size)
    weights = weights.astype(np.float64)
    support, claimed = weights @ eye[gold], weights @ eye[predicted]  # [R, C]
    right = (weights * (gold == predicted)) @ eye[gold]
    total, correct = weights.sum(1), right.sum(1)
    occurs = (support + claimed) > 0
    macro_f1 = quotient(quotient(2 * right, support + claimed).sum(1), occurs.sum(1))
    covariance = correct * total - (support * claimed).sum(1)
    spread = (total**2 - (support**2).sum(1)) * (total**2 - (claimed**2).sum(1))
    accuracy = quotient(correct, total)
    return {
        "accuracy": accuracy,
        "macro_f1": macro_f1,
        "micro_f1": accuracy,
        "mcc": quotient(covariance, np.sqrt(np.maximum(spread, 0))),
    }


def _label_figures(values: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the figures of [R, U] weights of bool [U, 2C], gold and predicted."""
    gold, predicted = np.split(values.astype(bool), 2, axis=1)
    weights = weights.astype(np.float64)
    right, either = weights @ (gold & predicted), weights @ (gold.astype(np.float64) + predicted)
    return {
        "micro_f1": quotient(2 * right.sum(1), either.sum(1)),
        "macro_f1": quotient(2 * right, either).mean(1),
        "subset_accuracy": quotient(weights @ (gold == predicted).all(1), weights.sum(1)),
    }


def _number_figures(values: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the figures of [R, U] weights of pairs of numbers [U, 2]."""
    gold, predicted = values.T
    weights = weights.astype(np.float64)
    return {
        "pearson": _correlation(weights, gold - np.median(gold), predicted - np.median(predicted)),
        "spearman": _correlation(weights, _ranks(gold, weights), _ranks(predicted, weights)),
        "mse": quotient(weights @ (gold - predicted) ** 2, weights.sum(1)),
    }


def _correlation(weights: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns [R], the weighted correlation of numbers [U] or [R, U]; 0 where one of them is constant."""
    total = weights.sum(1)

    def mean(values: np.ndarray) -> np.ndarray:
        return quotient((weights * values).sum(1), total)

    first_mean, second_mean = mean(first), mean(second)
    covariance = mean(first * second) - first_mean * second_mean
    variances = []
    for values, its_mean in ((first, first_mean), (second, second_mean)):
        square = mean(values * values)
        variance = square - its_mean**2
        variances.append(np.where(variance > 1e-13 * square, variance, 0))  # A constant leaves rounding errors.
    return np.clip(quotient(covariance, np.sqrt(variances[0] * variances[1])), -1, 1)


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns [R, U], the rank of each of values [U] in resamples [R, U]; equal values share their mean rank."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    counts = np.add.reduceat(weights[:, order], starts, axis=1)
    below = np.cumsum(counts, axis=1) - counts
    return (below + (counts + 1) / 2)[:, group]
