"""Figures of search results, given which documents are relevant to each query: recall, reciprocal rank and nDCG."""

import csv
import math
import pathlib
from collections.abc import Collection, Sequence

from tfzoo import json_files, records
from tfzoo.errors import UserError
from tfzoo.evaluation import retrieval
from tfzoo.json_files import Field, Fields

# The fields of records of queries; python -m tfzoo.query reads only the first from --input.
FIELDS: Fields = {
    "query": Field(str, required=True),
    "relevant": Field(list, items=Field(str)),
    "answers": Field(list, items=Field(str)),
}
DEPTH = retrieval.CUT  # The number of results that the figures need.


def figures(found: Sequence[Sequence[str]], relevant: Sequence[Collection[str]]) -> dict[str, float]:
    """Returns the means over queries, as defined in tfzoo.evaluation.retrieval.

    Args:
      found: the ids of the results of each query, the best first.
      relevant: the relevant ids of each query, at least one.
    """
    ranks = []
    for ids, wanted in zip(found, relevant, strict=True):
        places = {id: rank for rank, id in reversed([*enumerate(ids, 1)])}
        ranks.append([places.get(id, math.inf) for id in dict.fromkeys(wanted)])
    values = retrieval.figures(ranks, recalls=(1, 5))
    names = {"recall@1": "recall_1", "recall@5": "recall_5", "MRR": "mrr", f"nDCG@{DEPTH}": f"ndcg_{retrieval.CUT}"}
    return {label: values[name] for label, name in names.items()}


def read_answers(path: str) -> list[tuple[str, list[str]]] | None:
    """Returns (query, right answers) of each line of a .jsonl file, {"query": ..., "relevant": [ids], "answers":
    [texts]}; None if it is another file, or the first line has no answers.

    Raises:
      UserError: another line has none; the message names the file and the line.
    """
    if pathlib.Path(path).suffix != ".jsonl":
        return None
    listed: list[tuple[str, list[str]]] = []
    for where, record in records.read(path, "query", "relevant", FIELDS):
        right = record.get("answers")
        if right is None and not listed:
            return None
        if not isinstance(right, list) or not all(isinstance(text, str) for text in right):
            raise UserError(
                f"{where}: 'answers' is {json_files.show(right)}; write a list of texts, which can be empty"
            )
        listed.append((records.text(where, record, "query"), right))
    return listed


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
    for where, record in records.read(path, "query", "relevant", FIELDS):
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
