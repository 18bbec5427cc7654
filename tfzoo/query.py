"""Searches an index that tfzoo.index wrote, exactly, by vectors, by BM25 or by both.

    python -m tfzoo.query --index_dir=indexes/pages --query="how to resume a run" --top=5
    python -m tfzoo.query --index_dir=indexes/pages --input=questions.txt --output=answers.jsonl --method=bm25
    python -m tfzoo.query --index_dir=indexes/pages --relevant=test.jsonl --output=answers.jsonl
    python -m tfzoo.query --index_dir=indexes/pages --query="When was Ada born?" --reader=runs/squad

The result of each query is one line of JSON: {"query": ..., "results": [{"rank", "score", "id", "text"}, ...]}. --input
is a file with one query per line, or a .jsonl file of objects {"query": ...}.

--relevant names the relevant documents of queries, as lines {"query": ..., "relevant": [ids]} of a .jsonl file, or as
lines of a query, a tab and an id of a .tsv file. It prints recall@1, recall@5, the mean reciprocal rank and nDCG@10 to
stderr. Without --query and --input, the queries are those of this file.

--reader is a model that answers questions (--task=answer). It reads the first documents of each query, and the line of
the query has the likeliest answer: {"query": ..., "answer": ..., "start", "end", "score", "no_answer", "id", "total",
"results"}. If the lines of --relevant have "answers": [texts], exact match and F1 are printed, too.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import flags as absl_flags

from tfzoo import cli, options, progress, records
from tfzoo.errors import UserError
from tfzoo.evaluation import answers
from tfzoo.options import Checked, option
from tfzoo.prediction import folders, open_domain
from tfzoo.prediction.stream import Stream
from tfzoo.retrieval import fusion as fusion_lib
from tfzoo.retrieval import measures, search

_QUERIES, _SEARCH, _READER = "Queries", "Search", "Answers"
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
    reader: str | None = option(
        None, "Run folder, Hugging Face folder or artifact of a model that answers questions.", group=_READER
    )
    read: int = option(5, "The number of documents that the reader reads for each query.", group=_READER, low=1)
    reader_weight: float = option(
        0.5,
        "Weight of the score of an answer; the rest is that of the score of its document, divided by that of the "
        "first document.",
        group=_READER,
        low=0.0,
        high=1.0,
    )
    answer_rules: str | None = option(
        None,
        "Rules by which answers are scored: squad compares words, cmrc Chinese characters. By default cmrc if most "
        "letters of the queries are Chinese characters.",
        group=_READER,
        choices=answers.RULES,
    )
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
    gold = _right_answers(config, queries)
    with progress.stage(f"reading {config.index_dir}"):
        index = search.open_index(
            config.index_dir, model_dir=config.model_dir, batch_size=config.batch_size, verify=config.verify
        )
    depth = config.top if wanted is None else max(config.top, measures.DEPTH)
    depth = depth if config.reader is None else max(depth, config.read)
    found: list[list[str]] = []
    answered: list[str] = []
    shown = config.output is not None or not sys.stdout.isatty()
    with (
        records.writer(config.output) as write,
        _reader(config) as read,
        progress.bar(len(queries), "query", "searching", shown=shown and len(queries) > 1) as bar,
    ):
        for begin in range(0, len(queries), _BATCH):
            batch = queries[begin : begin + _BATCH]
            results = index.search(
                batch, top=depth, method=config.method, fusion=config.fusion, vector_weight=config.vector_weight
            )
            for query, listed, answer in zip(batch, results, read(batch, results), strict=True):
                found.append([result.id for result in listed])
                answered.append(answer.get("answer", ""))
                shown_results = [dataclasses.asdict(result) for result in listed[: config.top]]
                write({"query": query, **answer, "results": shown_results})
            bar.update(len(batch))
    if wanted is not None:
        values = measures.figures(found, wanted)
        words = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        print(f"{len(queries):,} queries: {words} (the first {depth} results)", file=sys.stderr)
    if gold is not None:
        rules = config.answer_rules or answers.rules_of(queries)
        values = answers.figures_rows(*answers.scores(gold, answered, rules))()
        words = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in values.items())
        print(f"answers of {config.reader}: {words} (rules of {rules})", file=sys.stderr)


Read = Callable[[Sequence[str], Sequence[Sequence[search.Result]]], list[dict[str, Any]]]


@contextlib.contextmanager
def _reader(config: QueryConfig) -> Iterator[Read]:
    """Yields a function from queries and their documents to the records of their answers; without --reader, these are
    empty."""
    if config.reader is None:
        yield lambda queries, found: [{} for _ in queries]
        return
    predictor = folders.open_folder(config.reader)
    open_domain.check(predictor, config.reader)
    with Stream(predictor, config.batch_size) as stream:

        def read(queries: Sequence[str], found: Sequence[Sequence[search.Result]]) -> list[dict[str, Any]]:
            passages = [
                [open_domain.Passage(each.id, each.text, each.score) for each in listed[: config.read]]
                for listed in found
            ]
            return open_domain.read(queries, passages, stream, config.reader_weight)

        yield read


def _right_answers(config: QueryConfig, queries: Sequence[str]) -> list[list[str]] | None:
    """Returns the right answers of each query; None without --reader, or if --relevant contains no answers."""
    if config.reader is None or config.relevant is None:
        return None
    lines = measures.read_answers(config.relevant)
    if lines is None or not (config.query or config.input):
        return None if lines is None else [right for _, right in lines]
    by_query: dict[str, list[str]] = {}
    for query, right in lines:
        by_query.setdefault(query, []).extend(right)
    return [by_query[query] for query in queries]


def _queries(config: QueryConfig, relevant: list[tuple[str, list[str]]] | None) -> tuple[list[str], Any]:
    """Returns (queries, the relevant ids of each query, or None without --relevant)."""
    if config.query:
        located = [("--query", query) for query in config.query]
    elif config.input is not None:
        lines = records.read(config.input, "query", fields=measures.FIELDS)
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
