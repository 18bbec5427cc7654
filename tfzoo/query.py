"""Searches an index that tfzoo.index wrote, exactly, by vectors, by BM25 or by both.

python -m tfzoo.query --index_dir=indexes/pages --query="how to resume a run" --top=5
python -m tfzoo.query --index_dir=indexes/pages --input=questions.txt --output=answers.jsonl --method=bm25
python -m tfzoo.query --index_dir=indexes/pages --relevant=test.jsonl --output=answers.jsonl

The result of each query is one line of JSON: {"query": ..., "results": [{"rank", "score", "id", "text"}, ...]}. --input
is a file with one query per line, or a .jsonl file of objects {"query": ...}.

--relevant names the relevant documents of queries, as lines {"query": ..., "relevant": [ids]} of a .jsonl file, or as
lines of a query, a tab and an id of a .tsv file. It prints recall@1, recall@5, the mean reciprocal rank and nDCG@10 to
stderr. Without --query and --input, the queries are those of this file.
"""

import dataclasses
import sys
from typing import Any

from absl import flags as absl_flags

from tfzoo import cli, options, progress, records
from tfzoo.errors import UserError
from tfzoo.options import Checked, option
from tfzoo.retrieval import fusion as fusion_lib
from tfzoo.retrieval import measures, search

_QUERIES, _SEARCH = "Queries", "Search"
_BATCH = 256  # Queries between updates of the progress bar.


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryConfig(Checked):
    """The queries, and how to search."""

    index_dir: str = option(dataclasses.MISSING, "Folder written by tfzoo.index.", group=_QUERIES)
    query: tuple[str, ...] = option((), "A query. May be repeated.", group=_QUERIES)
    input: str | None = option(None, "A file of queries, one per line, or .jsonl.", group=_QUERIES)
    relevant: str | None = option(None, "A .jsonl or .tsv file of the relevant ids of queries.", group=_QUERIES)
    output: str | None = option(None, "The .jsonl file to write.", group=_QUERIES)
    top: int = option(10, "The number of documents to return for each query.", group=_SEARCH, low=1)
    method: str | None = option(
        None, "By default hybrid, if the index has vectors and words.", group=_SEARCH, choices=search.METHODS
    )
    fusion: str = option(
        fusion_lib.WEIGHTED,
        "How hybrid combines both: weighted adds scores, each scaled to its maximum; rrf is reciprocal rank fusion.",
        group=_SEARCH,
        choices=fusion_lib.FUSIONS,
    )
    vector_weight: float = option(
        fusion_lib.VECTOR_WEIGHT, "Weight of the vectors in --fusion=weighted.", group=_SEARCH, low=0.0, high=1.0
    )
    model_dir: str | None = option(None, "Folder of the index's model, if it was moved.", group=_SEARCH)
    batch_size: int = option(32, "Queries per batch of the model.", group=_SEARCH, low=1)
    verify: bool = option(
        True, "Compare the SHA-256 of each file of the index first, which reads the whole index.", group=_SEARCH
    )


def define_flags(flags: absl_flags.FlagValues) -> None:
    options.define_flags(flags, QueryConfig)


def main(flags: absl_flags.FlagValues) -> None:
    config = QueryConfig(**options.values_of(flags, QueryConfig))
    if config.relevant is None or config.query or config.input:
        cli.only_one(flags, "query", "input")
    relevant = None if config.relevant is None else measures.read_relevant(config.relevant)
    queries, wanted = _queries(config, relevant)
    with progress.stage(f"reading {config.index_dir}"):
        index = search.open_index(
            config.index_dir, model_dir=config.model_dir, batch_size=config.batch_size, verify=config.verify
        )
    depth = config.top if wanted is None else max(config.top, measures.DEPTH)
    found: list[list[str]] = []
    shown = config.output is not None or not sys.stdout.isatty()
    with (
        records.writer(config.output) as write,
        progress.bar(len(queries), "query", "searching", shown=shown and len(queries) > 1) as bar,
    ):
        for begin in range(0, len(queries), _BATCH):
            batch = queries[begin : begin + _BATCH]
            results = index.search(
                batch, top=depth, method=config.method, fusion=config.fusion, vector_weight=config.vector_weight
            )
            for query, listed in zip(batch, results, strict=True):
                found.append([result.id for result in listed])
                write({"query": query, "results": [dataclasses.asdict(result) for result in listed[: config.top]]})
            bar.update(len(batch))
    if wanted is not None:
        values = measures.figures(found, wanted)
        words = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        print(f"{len(queries):,} queries: {words} (the first {depth} results)", file=sys.stderr)


def _queries(config: QueryConfig, relevant: list[tuple[str, list[str]]] | None) -> tuple[list[str], Any]:
    """Returns (queries, the relevant ids of each query, or None without --relevant)."""
    if config.query:
        located = [("--query", query) for query in config.query]
    elif config.input is not None:
        lines = records.read(config.input, "query")
        located = [(where, records.text(where, record, "query")) for where, record in lines]
    else:
        assert relevant is not None
        located = [(f"--relevant={config.relevant}", query) for query, _ in relevant]
    for where, query in located:
        if not query.strip():
            raise UserError(f"{where}: a query is blank; write a text")
    queries = [query for _, query in located]
    if relevant is None or not (config.query or config.input):
        return queries, relevant and [ids for _, ids in relevant]
    by_query: dict[str, list[str]] = {}
    for query, ids in relevant:
        by_query.setdefault(query, []).extend(ids)
    for where, query in located:
        if query not in by_query:
            raise UserError(f"{where}: --relevant={config.relevant} does not contain the query {query!r}; add it")
    return queries, [by_query[query] for query in queries]


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags))
