"""Bootstrap intervals of scores, and tests of the difference between two systems on the same rows.

A resample draws as many rows as there are, with replacement (Efron and Tibshirani 1993, chapter 13). Scores that are
`Weighted` are computed for many resamples at once; any other function of row indices is called once per resample.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

ROUNDS = 1000
LEVEL = 0.95
_CELLS = 2_000_000  # Weights that are held at a time.

Score = Callable[[np.ndarray], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Weighted:
    """Figures of N rows that depend only on how often each row is drawn. Calling it with row indices scores them.

    Attributes:
      values: [N, K], what is known of each row. Rows with equal values are interchangeable.
      figures: (values [U, K], weights [R, U]) -> {figure: [R]}, the figures of R resamples that contain row u
        weights[r, u] times.
    """

    values: np.ndarray
    figures: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]

    def __call__(self, indices: np.ndarray | None = None) -> dict[str, float]:
        """Returns the figures of the rows with these indices, which may repeat; by default of all rows."""
        values = self.values if indices is None else self.values[indices]
        if not len(values):
            raise ValueError("0 rows cannot be scored")
        first, _, counts = groups(values)
        return {name: float(of[0]) for name, of in self.figures(values[first], counts[None]).items()}


def together(*scores: Weighted) -> Weighted:
    """Returns the figures of several scores of the same rows as one score."""
    ends = np.cumsum([score.values.shape[1] for score in scores])
    values = np.concatenate([score.values for score in scores], axis=1)

    def figures(values: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for score, part in zip(scores, np.split(values, ends[:-1], axis=1), strict=True):
            found |= score.figures(part, weights)
        return found

    return Weighted(values, figures)


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of a figure between two systems, with its 95% interval and two-sided p."""

    value: float
    low: float
    high: float
    p: float


def bootstrap(
    score: Score | Weighted, count: int, *, rounds: int = ROUNDS, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Returns {figure: (low, high)}, the 95% percentile intervals of a score (Efron and Tibshirani 1993, section 13.3).

    Args:
      score: row indices [n] -> {figure: value}. With a `Weighted` score, 1,000 rounds of 20,000 rows take seconds; any
        other function is called `rounds` times, so that a slow one requires fewer rounds.
      count: the number of rows.
      rounds: the number of resamples.
      seed: of the resamples.
    """
    samples, _ = _resample(score, None, count, rounds, seed)
    return {name: _percentiles(values) for name, values in samples.items()}


def paired(
    score: Score | Weighted, other: Score | Weighted, count: int, *, rounds: int = ROUNDS, seed: int = 0
) -> dict[str, Difference]:
    """Returns {figure: `score` minus `other`} of two systems on the same rows, for the figures that both have.

    Both systems are scored on the same resamples. p is twice the smaller share of the resamples whose difference is at
    most or at least 0, where one resample is added to both (Davison and Hinkley 1997, equation 4.11), so that p agrees
    with the interval and is never 0.

    Args: as in `bootstrap`.
    """
    samples, others = _resample(score, other, count, rounds, seed)
    rows = np.arange(count)
    mine, theirs = score(rows), other(rows)
    differences = {}
    for name in samples:
        if name in others:
            values = samples[name] - others[name]
            smaller = min(np.count_nonzero(values <= 0), np.count_nonzero(values >= 0))
            p = min(1.0, 2 * (1 + int(smaller)) / (1 + rounds))
            differences[name] = Difference(mine[name] - theirs[name], *_percentiles(values), p)
    return differences


def mcnemar(right: np.ndarray, other_right: np.ndarray) -> dict[str, Any]:
    """Tests whether two systems are equally often right: McNemar's exact test (Dietterich 1998, section 3.1).

    Args:
      right, other_right: bool [N], whether each system is right about each row.

    Returns:
      {"only_first": rows that only the first has right, "only_second": ..., "p": two-sided binomial probability}.
    """
    from scipy import stats

    right, other_right = np.asarray(right, bool), np.asarray(other_right, bool)
    first = int(np.count_nonzero(right & ~other_right))
    second = int(np.count_nonzero(other_right & ~right))
    p = float(stats.binomtest(first, first + second).pvalue) if first + second else 1.0
    return {"only_first": first, "only_second": second, "p": p}


def groups(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Groups equal rows of [N, K].

    Returns:
      first [U], the index of a row of each group; group [N] of each row; counts [U], the rows of each group.
    """
    values = np.ascontiguousarray(values)
    if values.shape[1] == 1:
        keys = values[:, 0]
    else:  # Compares rows as bytes, which is many times faster than np.unique(axis=0).
        keys = values.view(np.dtype((np.void, values.dtype.itemsize * values.shape[1])))[:, 0]
    _, first, group, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    return first, group, counts


def _resample(
    score: Score | Weighted, other: Score | Weighted | None, count: int, rounds: int, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns {figure: [rounds]} of each score on the same resamples; {} for None."""
    if count < 1 or rounds < 1:
        raise ValueError(f"{count} rows and {rounds} rounds: both must be at least 1")
    scores = [score] if other is None else [score, other]
    parts: list[list[dict[str, Any]]] = [[] for _ in scores]
    weighted = [each for each in scores if isinstance(each, Weighted)]
    if len(weighted) == len(scores):
        for each in weighted:
            if len(each.values) != count:
                raise ValueError(f"a score of {len(each.values)} rows, but count is {count}")
        group_of = [groups(each.values)[1] for each in weighted]
        first, group, sizes = groups(np.stack(group_of, axis=1))
        for weights in _weights(group, sizes, rounds, seed):
            for part, each in zip(parts, weighted, strict=True):
                part.append(each.figures(each.values[first], weights))
    else:
        generator = np.random.default_rng(seed)
        for _ in range(rounds):
            indices = generator.integers(count, size=count)
            for part, function in zip(parts, scores, strict=True):
                part.append({name: np.array([value]) for name, value in function(indices).items()})
    joined = [{name: np.concatenate([each[name] for each in part]) for name in part[0]} for part in parts]
    return joined[0], joined[1] if len(joined) > 1 else {}


def _weights(group: np.ndarray, sizes: np.ndarray, rounds: int, seed: int) -> Iterator[np.ndarray]:
    """Yields parts of [rounds, U], how often each resample contains rows of each group."""
    generator = np.random.default_rng(seed)
    count, unique = len(group), len(sizes)
    if unique * 10 < count:  # Few groups: draws their sizes instead of rows, whatever the number of rows.
        step = max(1, _CELLS // unique)
        for begin in range(0, rounds, step):
            yield generator.multinomial(count, sizes / count, size=min(step, rounds - begin))
        return
    step = max(1, _CELLS // count)
    for begin in range(0, rounds, step):
        size = min(step, rounds - begin)
        drawn = group[generator.integers(count, size=(size, count))] + np.arange(size)[:, None] * unique
        yield np.bincount(drawn.ravel(), minlength=size * unique).reshape(size, unique)


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
