"""Figures of search results, given which documents are relevant to each query: recall, reciprocal rank and nDCG."""

import csv
import math
import pathlib
from collections.abc import Collection, Sequence

from tfzoo import json_files, records
from tfzoo.errors import UserError

DEPTH = 10  # The number of results that the figures need.


def recall(found: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Returns the fraction of the relevant ids that are among the first k results."""
    return len({*found[:k]} & {*relevant}) / len({*relevant})


def reciprocal_rank(found: Sequence[str], relevant: Collection[str]) -> float:
    """Returns 1 / rank of the first relevant result, or 0 without one."""
    return next((1 / rank for rank, id in enumerate(found, 1) if id in relevant), 0.0)


def ndcg(found: Sequence[str], relevant: Collection[str], k: int = DEPTH) -> float:
    """Returns the normalized discounted cumulative gain of the first k results, with gains of 1 for relevant ids
    (Järvelin and Kekäläinen 2002; discount 1 / log2(rank + 1))."""
    gain = sum(1 / math.log2(rank + 1) for rank, id in enumerate(found[:k], 1) if id in relevant)
    return gain / sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len({*relevant})) + 1))


def figures(found: Sequence[Sequence[str]], relevant: Sequence[Collection[str]]) -> dict[str, float]:
    """Returns the means over queries.

    Args:
      found: the ids of the results of each query, the best first.
      relevant: the relevant ids of each query, at least one.
    """
    pairs = list(zip(found, relevant, strict=True))
    sums = {
        "recall@1": sum(recall(ids, wanted, 1) for ids, wanted in pairs),
        "recall@5": sum(recall(ids, wanted, 5) for ids, wanted in pairs),
        "MRR": sum(reciprocal_rank(ids, wanted) for ids, wanted in pairs),
        f"nDCG@{DEPTH}": sum(ndcg(ids, wanted) for ids, wanted in pairs),
    }
    return {name: value / len(pairs) for name, value in sums.items()}


def read_relevant(path: str) -> list[tuple[str, list[str]]]:
    """Returns (query, relevant ids) of each line of a .jsonl file, {"query": ..., "relevant": [ids]}, or of each query
    of a .tsv file with lines of a query and an id.

    Raises:
      UserError: the file cannot be read, or a line has another form; the message names the file and the line.
    """
    suffix = pathlib.Path(path).suffix
    if suffix not in (".jsonl", ".tsv"):
        raise UserError(f"--relevant={path}: must be a .jsonl or .tsv file")
    by_query: dict[str, list[str]] = {}
    listed = []
    for where, record in records.read(path, "query", flag="relevant"):
        if suffix == ".jsonl":
            ids = record.get("relevant")
            if not isinstance(ids, list) or not ids or not all(isinstance(id, str) for id in ids):
                shown = json_files.show(ids)
                raise UserError(f"{where}: 'relevant' is {shown}; write a list of one or more ids, which are strings")
            listed.append((records.text(where, record, "query"), ids))
            continue
        row = next(csv.reader([record["query"]], delimiter="\t", quoting=csv.QUOTE_NONE))
        if len(row) != 2:
            raise UserError(f"{where}: has {len(row)} columns; write a query, a tab and an id")
        by_query.setdefault(row[0], []).append(row[1])
    return listed or list(by_query.items())
