"""Random numbers and sampling in NumPy: the same numbers and tokens as tfzoo.generation.draws."""

from collections.abc import Mapping
from typing import Any

import numpy as np

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(keys: tuple[Any, Any], counters: tuple[Any, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Returns two pseudo-random uint32 arrays: Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel Random
    Numbers: As Easy as 1, 2, 3", section 3.3).

    Args:
      keys, counters: two uint32 arrays each; their shapes broadcast.
    """
    schedule = [*keys, keys[0] ^ keys[1] ^ np.uint32(0x1BD11BDA)]
    x, y = counters[0] + schedule[0], counters[1] + schedule[1]
    for i in range(5):
        for shift in _ROTATIONS[i % 2]:
            x = x + y
            y = x ^ ((y << np.uint32(shift)) | (y >> np.uint32(32 - shift)))
        x = x + schedule[(i + 1) % 3]
        y = y + schedule[(i + 2) % 3] + np.uint32(i + 1)
    return x, y


def _words(values: Any) -> np.ndarray:
    """Returns integers as uint32 arrays, modulo 2^32."""
    return np.atleast_1d(np.asarray(values, np.int64) & 0xFFFFFFFF).astype(np.uint32)


def uniform(seeds: Any, stream: int, step: int) -> np.ndarray:
    """Returns a random number in [0, 1) for each seed, float32 [B] with 24 random bits."""
    words, _ = threefry((_words(seeds), _words(stream)), (_words(step), _words(0)))
    return (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def exponential(seeds: Any, stream: int, step: int, count: int) -> np.ndarray:
    """Returns exponentially distributed random numbers with mean 1, float32 [B, count]."""
    places = _words(np.arange((count + 1) // 2))[None]
    words = threefry((_words(seeds)[:, None], _words(stream)), (_words(step), places))
    parts = (np.concatenate(words, 1)[:, :count].astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)
    return -np.log1p(-np.minimum(parts, np.float32(1 - 2.0**-24)))


def softmax(x: np.ndarray) -> np.ndarray:
    """Returns the softmax of x [..., V] in its own type."""
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Returns the logarithm of the softmax of x [..., V] in its own type."""
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def pick(weights: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Samples indices, int64 [B], in proportion to weights [B, V], with random numbers in [0, 1) [B]."""
    sums = np.cumsum(weights, -1)
    return (sums <= numbers[:, None] * sums[:, -1:]).sum(-1)


def top(x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the largest values of x [B, N], the largest first, and their indices, both [B, count]; of equal values,
    the one with the lower index comes first."""
    indices = np.empty((len(x), count), np.int64)
    for row, values in enumerate(x):
        # All values that are at least the last one; partial sorting alone would choose any of equal values.
        least = np.partition(values, -count)[-count]
        places = np.flatnonzero(values >= least)
        indices[row] = places[np.argsort(-values[places], kind="stable")[:count]]
    return np.take_along_axis(x, indices, 1), indices


def filter_logits(logits: np.ndarray, rows: Mapping[str, np.ndarray], least: int = 1) -> np.ndarray:
    """Returns logits [B, V] divided by the temperature, with -inf for the tokens that sampling may not choose.

    Args:
      logits: float32 [B, V].
      rows: arrays [B] by the names of tfzoo.generation.options.SAMPLING, applied in the order of
        tfzoo.generation.draws.filter_logits, which states what they mean.
      least: the minimum number of likeliest tokens to keep, unless the temperature is 0.
    """
    given = {name: value[:, None] for name, value in rows.items()}
    highest = logits.max(-1, keepdims=True)
    if "temperature" in given:
        heat = given["temperature"]
        greedy = heat < 1e-30
        only = np.where(logits >= highest, logits, -np.inf)
        logits = np.where(greedy, only, logits / np.where(greedy, np.float32(1), heat))
        highest = logits.max(-1, keepdims=True)
    if "top_k" in given or "top_p" in given:
        smallest = _smallest(logits, given.get("top_k"), given.get("top_p"), least)
        logits = np.where(logits >= smallest, logits, -np.inf)
    if "min_p" in given:
        with np.errstate(divide="ignore"):
            kept = logits - highest >= np.log(given["min_p"])
        logits = np.where(kept | _likeliest(logits, least), logits, -np.inf)
    if "typical_p" in given:
        logits = _typical(logits, given["typical_p"], least)
    for name in ("epsilon_cutoff", "eta_cutoff"):
        if name in given:
            logits = _cutoff(logits, given[name], name == "eta_cutoff", least)
    return logits.astype(np.float32, copy=False)


def _likeliest(logits: np.ndarray, count: int) -> np.ndarray:
    """Returns bool [B, V], whether a token is among the `count` likeliest, or as likely as the last of them."""
    return logits >= top(logits, min(count, logits.shape[-1]))[0][:, -1:]


def _entropy(logs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return -np.where(weights > 0, np.where(weights > 0, logs, 0) * weights, 0).sum(-1, keepdims=True)


def _cutoff(logits: np.ndarray, limit: np.ndarray, by_entropy: bool, least: int) -> np.ndarray:
    logs = log_softmax(logits)
    weights = np.exp(logs)
    if by_entropy:
        limit = np.minimum(limit, np.sqrt(limit) * np.exp(-_entropy(logs, weights)))
    return np.where((weights >= limit) | _likeliest(logits, least), logits, -np.inf)


def _smallest(logits: np.ndarray, top_k: np.ndarray | None, top_p: np.ndarray | None, least: int) -> np.ndarray:
    """Returns the smallest logit [B, 1] to keep: of the top_k likeliest that together have top_p, but at least
    `least`."""
    size = logits.shape[-1]
    ordered = np.sort(logits, -1)[:, ::-1]
    smallest = ordered[:, -1:]
    if top_k is not None:
        last = np.where(top_k > 0, np.minimum(np.maximum(top_k, least), size), size) - 1
        smallest = np.take_along_axis(ordered, last, 1)
    if top_p is not None:
        chosen = softmax(np.where(ordered >= smallest, ordered, -np.inf))
        sums = np.cumsum(chosen, -1)
        before = np.pad(sums[:, :-1], [(0, 0), (1, 0)])
        kept = (before < top_p).sum(-1, keepdims=True)
        nucleus = np.take_along_axis(ordered, np.clip(kept, min(least, size), size) - 1, 1)
        smallest = np.where(top_p < 1, np.maximum(smallest, nucleus), smallest)
    return smallest


def _typical(logits: np.ndarray, mass: np.ndarray, least: int) -> np.ndarray:
    logs = log_softmax(logits)
    weights = np.exp(logs)
    distance = np.abs(-logs - _entropy(logs, weights))
    order = np.argsort(distance, -1, kind="stable")
    sums = np.cumsum(np.take_along_axis(weights, order, 1), -1)
    last = np.maximum((sums < mass).sum(-1, keepdims=True), least - 1)
    nearest = np.take_along_axis(distance, order, 1)
    limit = np.take_along_axis(nearest, np.minimum(last, logits.shape[-1] - 1), 1)
    return np.where((distance <= limit) | (mass >= 1), logits, -np.inf)
