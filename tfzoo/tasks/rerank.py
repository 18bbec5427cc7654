"""Reranking of passages for a query: a cross-encoder reads both texts at a time and gives the pair a score.

    query,passage,label
    capital of France,Paris is the capital of France.,1
    capital of France,Lyon is a city in France.,0

or rows of a query, a relevant passage and any number of others (--pair_column=positive,negative), each of which becomes
pairs:

    [CLS] capital of france [SEP] paris is the capital of france . [SEP]     label 1
    [CLS] capital of france [SEP] lyon is a city in france . [SEP]           label 0

The head classify has one logit, the score, and the loss is the binary cross-entropy (Nogueira and Cho 2019, section 3).
An evaluation ranks the passages of each query that has relevant and other passages in the file: MRR and nDCG. Average
precision and accuracy (a score above 0 means relevant) are those of all pairs.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from tfzoo import lazy
from tfzoo.data.labelled import LabelledFile
from tfzoo.data.row_files import BadRow
from tfzoo.errors import UserError
from tfzoo.evaluation import retrieval, scores
from tfzoo.evaluation.intervals import Weighted
from tfzoo.tasks.task import ColumnOptions, PoolingOption, Task, chunked

tf = lazy.module("tensorflow")

_FIGURES = ("ndcg_10", "mrr", "average_precision", "accuracy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ColumnOptions, PoolingOption):
    """The options of the task rerank."""


class _LabelledPairs(LabelledFile):
    """Pairs whose label must be 0 or 1."""

    def _row(self, where, record):
        row = super()._row(where, record)
        if row.label not in (0, 1):
            raise BadRow("not_0_or_1", f"the label {row.label:g} is neither 0 nor 1", "correct it")
        return row


class Rerank(Task):
    """See the module's docstring."""

    name = "rerank"
    Options = Options
    HEAD = "classify"
    KINDS = ("encoder", "decoder", "encoder_decoder")
    FIGURES: ClassVar[Sequence[tuple[str, str, str]]] = (
        ("nDCG@10", "ndcg_10", "{:.4f}"),
        ("MRR", "mrr", "{:.4f}"),
        ("average precision", "average_precision", "{:.4f}"),
        ("accuracy", "accuracy", "{:.2%}"),
        ("validation loss", "validation_loss", "{:.4f}"),
    )
    best_metric = ("ndcg_10", "max")

    # ------------------------------------------------------------------ Files

    @classmethod
    def open_file(cls, options, path, flag, policy):
        settings: dict[str, Any] = dict(flag=flag, columns=options.columns, needs_pair=True, policy=policy)
        if options.label_column is None:
            try:
                triples = LabelledFile(path, kind="none", **settings)
            except UserError:  # Opening the file with labels explains what is wrong.
                pass
            else:
                if triples.num_texts > 2:
                    return triples
        file = _LabelledPairs(path, kind="number", **settings)
        if file.num_texts != 2:
            raise file.error(f"has a label and {file.num_texts} texts in a row; specify one --pair_column")
        return file

    @classmethod
    def has_labels(cls, options):
        return False

    @classmethod
    def is_pair(cls, file):
        return True

    @classmethod
    def unit_of(cls, row):
        return row.texts[:1]

    def chunks(self, file):
        for first, rows in chunked(file.rows()):
            pairs = [(number, *pair) for number, row in enumerate(rows, first) for pair in _pairs(row)]
            numbers, places, queries, passages, labels = zip(*pairs, strict=True)
            yield {
                "number": np.array(numbers, np.int64),
                "place": np.array(places, np.int64),
                "query": np.array([_hash(query) for query in queries], np.int64),
                "text": self.tokenize(queries),
                "pair": self.tokenize(passages),
                "label": np.array(labels, np.float32),
            }

    # ------------------------------------------------------------------ Batches and loss

    def targets(self):
        numbers = dict.fromkeys(("number", "place", "query"), (np.int64, ()))
        return {"label": (np.float32, ())} | numbers

    def model_options(self):
        return {"num_labels": 1} | ({"pool": self.options.pooling} if self.options.pooling else {})

    def record(self):
        return super().record() | {"problem_type": "regression"}

    def prepare_training(self, rows):
        """Checks that there are both kinds of passages.

        Raises:
          UserError: there is only one.
        """
        label = np.asarray(rows.columns["label"])
        if label.min() == label.max():
            kind = "relevant" if label.min() else "irrelevant"
            raise UserError(f"--train_file: all passages are {kind}; provide rows with the labels 0 and 1, or triples")

    def _losses(self, models, batch, training: bool):
        """Returns the scores and the losses, float32 [B] each."""
        logits = self.logits(models, batch, training)[:, 0]
        return logits, tf.nn.sigmoid_cross_entropy_with_logits(batch["label"], logits) * batch["weight"]

    def loss(self, models, batch, training=True):
        _, losses = self._losses(models, batch, training)
        return tf.reduce_sum(losses), tf.reduce_sum(batch["weight"])

    # ------------------------------------------------------------------ Evaluation

    def predict(self, models, batch):
        logits, losses = self._losses(models, batch, False)
        targets = {name: batch[name] for name in self.targets()}
        return targets | {"answer": logits, "loss": losses, "loss_weight": batch["weight"]}

    def outcome(self, predictions):
        """Returns arrays over the Q queries, "number" [Q], the first row of each, and over the P pairs: "query", int64
        [P], the index of its query, "row", "place", "answer" and "label"."""
        _, first, query = np.unique(predictions["query"], return_index=True, return_inverse=True)
        order = np.argsort(first, kind="stable")  # The queries in the order of the file.
        index = np.empty_like(order)
        index[order] = np.arange(len(order))
        return {
            "number": predictions["number"][first[order]],
            "query": index[query],
            "row": predictions["number"],
            **{name: predictions[name] for name in ("place", "answer", "label")},
        }

    def count_of(self, outcome):
        return len(np.unique(outcome["row"]))

    def score_rows(self, outcome):
        """Returns the scores as a function of queries."""
        return ranking_rows(outcome["query"], outcome["label"] > 0.5, outcome["answer"])

    def mistakes(self, outcome, count):
        answer, label = outcome["answer"], outcome["label"] > 0.5
        badness = np.where(label, -answer, answer)
        return [
            {
                "number": int(outcome["row"][i]),
                "texts": (0, int(outcome["place"][i])),
                "gold": _name(label[i]),
                "predicted": _name(answer[i] > 0),
                "score": float(answer[i]),
            }
            for i in np.argsort(-badness, kind="stable")[:count]
            if badness[i] > 0
        ]

    def file_baselines(self, train, held_out):
        from tfzoo.retrieval.bm25 import BM25

        pairs = [pair for row in held_out.rows() for pair in _pairs(row)]
        passages = {text: i for i, text in enumerate(dict.fromkeys(pair[2] for pair in pairs))}
        queries = {text: i for i, text in enumerate(dict.fromkeys(pair[1] for pair in pairs))}
        of_query: dict[str, list[int]] = collections.defaultdict(list)
        for i, pair in enumerate(pairs):
            of_query[pair[1]].append(i)
        index = BM25.of(passages)
        answers = np.zeros(len(pairs))
        for query, members in of_query.items():
            found = index.scores(query)
            answers[members] = [found[passages[pairs[i][2]]] for i in members]
        labels = np.array([pair[3] for pair in pairs]) > 0.5
        query_of = np.array([queries[pair[1]] for pair in pairs])
        figures = ranking_rows(query_of, labels, answers)()
        majority = {"accuracy": float(max(labels.mean(), 1 - labels.mean()))}
        # The scores of BM25 have no threshold.
        return {"majority": majority, "bm25": {name: figures[name] for name in _FIGURES if name != "accuracy"}}


def ranking_rows(query: np.ndarray, label: np.ndarray, answer: np.ndarray) -> Weighted:
    """Returns the scores of pairs as a function of the Q queries.

    Args:
      query: int [P], the query of each pair, from 0 to Q - 1.
      label: bool [P], whether its passage is relevant.
      answer: float [P], its score.

    Raises:
      UserError: no query has both relevant and other passages.
    """
    count = int(query.max()) + 1
    relevant = np.bincount(query, label, count)
    ranked = (relevant > 0) & (relevant < np.bincount(query, minlength=count))
    if not ranked.any():
        raise UserError(
            "no query of the file has both relevant and other passages, so that nothing can be ranked; add rows to "
            "the file, or use --task=classify for single pairs"
        )
    order = np.lexsort([-answer, query])
    ends = np.flatnonzero(np.diff(query[order], append=-1)) + 1
    groups = np.split(order, ends[:-1])
    ranks = [(np.flatnonzero(label[groups[i]]) + 1).tolist() for i in np.flatnonzero(ranked)]
    of_ranked = retrieval.figures_rows(ranks)

    def figures(values: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        queries = values[:, 0].astype(np.int64)
        of_query = np.zeros((len(weights), count))
        of_query[:, queries] = weights
        found = of_ranked.figures(of_ranked.values, of_query[:, ranked])
        of_pair = of_query[:, query]
        right = (of_pair * ((answer > 0) == label)).sum(1)
        return {
            "ndcg_10": found["ndcg_10"],
            "mrr": found["mrr"],
            "average_precision": scores.average_precision(label, answer, of_pair),
            "accuracy": scores.quotient(right, of_pair.sum(1)),
        }

    return Weighted(np.arange(count)[:, None], figures)


def _pairs(row) -> Iterator[tuple[int, str, str, float]]:
    """Yields (place in the row, query, passage, label) of a row's passages."""
    query, *passages = row.texts
    for place, passage in enumerate(passages, 1):
        yield place, query, passage, (float(place == 1) if row.label is None else row.label)


def _name(relevant: bool) -> str:
    return "relevant" if relevant else "not relevant"


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
