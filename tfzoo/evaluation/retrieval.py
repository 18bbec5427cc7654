"""Scores of rankings: recall@k, mean reciprocal rank and nDCG, from the ranks of the relevant documents.

The definitions are those of trec_eval (recall.K, recip_rank, ndcg_cut.K), averaged over the queries.
"""

from collections.abc import Sequence

import numpy as np

from tfzoo.evaluation.intervals import Weighted
from tfzoo.evaluation.scores import quotient

RECALLS = (1, 5, 10)
CUT = 10  # Of mrr_10 and ndcg_10.

Ranks = Sequence[Sequence[float]]


def ranks(scores: np.ndarray, relevant: Sequence[int]) -> list[int]:
    """Returns the ranks, from 1, of the relevant documents of a query; of equal scores, the first document is first.

    Args:
      scores: [D], of all documents; higher is better.
      relevant: indices of documents.
    """
    order = np.argsort(-np.asarray(scores), kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    return rank[np.asarray(relevant, np.int64)].tolist()


def figures(
    ranks: Ranks, gains: Sequence[Sequence[float]] | None = None, *, recalls: Sequence[int] = RECALLS
) -> dict[str, float]:
    """Scores the rankings of queries.

    Args:
      ranks: for each query, the rank (from 1) of each of its relevant documents; infinity for one that was not found.
      gains: for each query, the gain of each of these documents; by default 1.
      recalls: the k of recall@k.

    Returns:
      recall_K, the share of a query's relevant documents among the first K; mrr, the reciprocal of the first relevant
      document's rank; mrr_10, the same, but 0 for ranks above 10; ndcg_10, the sum of gain / log2(rank + 1) over the
      relevant documents among the first 10, divided by that of the best ranking (Järvelin and Kekäläinen 2002). They
      are means over the queries.
    """
    return figures_rows(ranks, gains, recalls=recalls)()


def figures_rows(
    ranks: Ranks, gains: Sequence[Sequence[float]] | None = None, *, recalls: Sequence[int] = RECALLS
) -> Weighted:
    """Returns `figures` as a function of rows, the queries."""
    if gains is None:
        gains = [[1.0] * len(each) for each in ranks]
    if len(gains) != len(ranks):
        raise ValueError(f"ranks of {len(ranks)} queries, but gains of {len(gains)}")
    names = [*(f"recall_{k}" for k in recalls), "mrr", f"mrr_{CUT}", f"ndcg_{CUT}"]
    values = [_query(number, *pair, recalls) for number, pair in enumerate(zip(ranks, gains, strict=True))]

    def means(values: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, quotient(weights @ values, weights.sum(1, keepdims=True)).T, strict=True))

    return Weighted(np.array(values, np.float64).reshape(-1, len(names)), means)


def _query(number: int, ranks: Sequence[float], gains: Sequence[float], recalls: Sequence[int]) -> list[float]:
    """Returns the figures of one query."""
    rank, gain = np.asarray(ranks, np.float64), np.asarray(gains, np.float64)
    found = rank[np.isfinite(rank)]
    if not len(rank) or len(rank) != len(gain):
        raise ValueError(f"query {number} has {len(rank)} relevant documents and {len(gain)} gains")
    if rank.min() < 1 or len(np.unique(found)) < len(found) or gain.min() <= 0:
        raise ValueError(f"query {number}: ranks must be different and at least 1, and gains positive")
    best = 1 / rank.min()
    ideal = np.sort(gain)[::-1][:CUT]
    discounted = (gain / np.log2(rank + 1))[rank <= CUT].sum()
    return [
        *((rank <= k).mean() for k in recalls),
        best,
        best if rank.min() <= CUT else 0.0,
        discounted / (ideal / np.log2(np.arange(2, len(ideal) + 2))).sum(),
    ]
