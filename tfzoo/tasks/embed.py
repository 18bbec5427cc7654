"""Embeddings of texts for search, from pairs of a text and a positive one, or triples with negatives.

    query,positive,negative
    capital of France,Paris is the capital of France.,Lyon is a city in France.

Each row is a text, a text that should be near it, and any number of texts that should not (hard negatives: further
columns). Every other text of a step is a negative, too (Henderson et al. 2017, section 4.4; Karpukhin et al. 2020,
section 3.2). With the vectors of the N texts q_i of a step, of their positives p_i and of all positives and negatives d
of the step, the loss of a row is

    -log(exp(cos(q_i, p_i) / t) / sum over d of exp(cos(q_i, d) / t))

The sum leaves out texts that are not negatives: copies of q_i and of p_i, and the positives of copies of q_i.
--symmetric adds the same loss with the positives in the place of the texts, among the texts of the step, and halves the
sum. The loss is exact for any number of replicas and microbatches; see tfzoo/tasks/bi_encoder.py.

With --matryoshka_sizes=64,128 the loss is the sum of that of the whole vectors and those of their first 64 and 128
numbers, divided by their length again (Kusupati et al. 2022, equation 1), which can then be used alone.

In an evaluation, each text of the file ranks the positives and negatives of the file, without copies.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from tfzoo import lazy
from tfzoo.data.labelled import LabelledFile
from tfzoo.errors import UserError
from tfzoo.evaluation import retrieval
from tfzoo.evaluation.intervals import Weighted
from tfzoo.objectives.objective import MAIN
from tfzoo.options import option
from tfzoo.tasks import GROUP
from tfzoo.tasks.bi_encoder import BiEncoder, EmbeddingOptions, bounded_integers, unit

tf = lazy.module("tensorflow")

_HIDDEN = -1e9  # The logit of a text that is not a negative.
_CHUNK = 512  # Texts whose documents are ranked at a time.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(EmbeddingOptions):
    """The options of the task embed."""

    symmetric: bool = option(False, "Also look for the text of each positive among the texts of the step.", group=GROUP)
    matryoshka_sizes: str = option(
        "",
        "Lengths to which vectors can be cut, such as 64,128: the loss of the first numbers of the vectors is added.",
        group=GROUP,
    )
    query_prompt: str | None = option(
        None,
        "What to put before the first text of a row, such as 'query: '; by default, the prompt query of --init_from.",
        group=GROUP,
        decides_rows=True,
    )
    document_prompt: str | None = option(
        None,
        "What to put before the other texts; by default, the prompt document of --init_from.",
        group=GROUP,
        decides_rows=True,
    )


class Embed(BiEncoder):
    """See the module's docstring."""

    name = "embed"
    Options = Options
    FIGURES = (
        ("nDCG@10", "ndcg_10", "{:.4f}"),
        ("MRR", "mrr", "{:.4f}"),
        ("recall@1", "recall_1", "{:.2%}"),
        ("recall@5", "recall_5", "{:.2%}"),
        ("recall@10", "recall_10", "{:.2%}"),
        ("validation loss", "validation_loss", "{:.4f}"),
    )
    best_metric = ("ndcg_10", "max")
    PROMPTS = ("query", "document")
    PREFIXES = ("", "document_")

    def __init__(self, tokenizer, sequence_length: int, **arguments):
        super().__init__(tokenizer, sequence_length, **arguments)
        self.sizes = bounded_integers("matryoshka_sizes", self.options.matryoshka_sizes)

    def _record(self, source):
        options = {"query": self.options.query_prompt, "document": self.options.document_prompt}
        given = {name: text for name, text in options.items() if text is not None}
        return dataclasses.replace(super()._record(source), prompts=dict(source.prompts) | given)

    @classmethod
    def open_file(cls, options, path, flag, policy):
        return LabelledFile(path, flag=flag, kind="none", columns=options.columns, needs_pair=True, policy=policy)

    @classmethod
    def unit_of(cls, row):
        return row.texts[:1]

    def target_columns(self, rows):
        return {}

    def build_models(self, page, config, dtype=None):
        models = super().build_models(page, config, dtype)
        size = models[MAIN].heads["embed"].size
        for cut in self.sizes:
            if cut >= size:
                raise UserError(
                    f"--matryoshka_sizes={self.options.matryoshka_sizes}: {cut} is not smaller than a vector ({size}); "
                    "omit it"
                )
        return models

    # ------------------------------------------------------------------ Loss

    def batch_loss(self, vectors, batch):
        """See the module's docstring; the sum over rows."""
        keys = batch["keys"]
        hidden = _not_negatives(keys)
        rows = tf.shape(keys)[0]
        total: Any = 0.0
        for size in (*self.sizes, vectors.shape[-1]):
            cut = tf.math.l2_normalize(vectors[..., :size], -1, 1e-24)
            queries, documents = cut[:, 0], tf.reshape(cut[:, 1:], [-1, size])
            logits = tf.matmul(queries, documents, transpose_b=True) / self.options.temperature
            positives = tf.range(rows) * (tf.shape(keys)[1] - 1)
            losses = _cross_entropy(logits, hidden, positives)
            if self.options.symmetric:
                backwards = tf.transpose(tf.gather(logits, positives, axis=1))
                losses = (losses + _cross_entropy(backwards, _not_other_queries(keys), tf.range(rows))) / 2
            total += tf.reduce_sum(losses)
        return total, tf.cast(rows, tf.float32)

    # ------------------------------------------------------------------ Evaluation

    def outcome(self, predictions):
        """Returns "number" [N], and of each size of vectors "ranks" [N, R], the ranks of the relevant documents, padded
        with NaN. "wrong" int64 [N, 2] is the (row, text) of the best document that is not relevant, and "score" [N] its
        cosine."""
        vectors, keys = predictions["vectors"], predictions["keys"]
        count = keys.shape[1] - 1
        unique, first, document = np.unique(keys[:, 1:].ravel(), return_index=True, return_inverse=True)
        corpus = vectors[:, 1:].reshape(-1, vectors.shape[-1])[first]
        document = document.reshape(-1, count)
        relevant = _relevant(keys[:, 0], document[:, 0])
        # Looking for itself, a text would find its own copy.
        place = np.minimum(np.searchsorted(unique, keys[:, 0]), len(unique) - 1)
        own = np.where(unique[place] == keys[:, 0], place, -1)
        outcome = {"number": predictions["number"]}
        for size in (vectors.shape[-1], *self.sizes):
            ranks, wrong, score = _rank(vectors[:, 0, :size], corpus[:, :size], relevant, own)
            if size == vectors.shape[-1]:
                source = first[wrong]
                outcome["ranks"], outcome["score"] = ranks, score
                outcome["wrong"] = np.stack([predictions["number"][source // count], source % count + 1], 1)
            else:
                outcome[f"ranks/{size}"] = ranks
        return outcome

    def score_rows(self, outcome):
        return scores_of_sizes(outcome, _SHOWN, "ndcg_10")

    def mistakes(self, outcome, count):
        ranks = np.nanmin(outcome["ranks"], axis=1)
        return [
            {
                "number": int(outcome["number"][i]),
                "texts": (0,),
                "gold_at": (int(outcome["number"][i]), 1),
                "predicted_at": tuple(map(int, outcome["wrong"][i])),
                "score": float(outcome["score"][i]),
            }
            for i in np.argsort(-ranks, kind="stable")[:count]
            if ranks[i] > 1
        ]

    def file_baselines(self, train, held_out):
        from tfzoo.retrieval.bm25 import BM25

        rows = [row.texts for row in held_out.rows()]
        documents = {text: i for i, text in enumerate(dict.fromkeys(text for row in rows for text in row[1:]))}
        index = BM25.of(documents)
        relevant = _relevant(np.array([row[0] for row in rows]), np.array([documents[row[1]] for row in rows]))
        ranks = []
        for row, wanted in zip(rows, relevant, strict=True):
            scores = index.scores(row[0])
            if row[0] in documents and documents[row[0]] not in wanted:
                scores[documents[row[0]]] = -np.inf
            ranks.append(retrieval.ranks(scores, wanted))
        found = retrieval.figures(ranks)
        return {"bm25": {name: found[name] for name in _SHOWN}}


_SHOWN = ("ndcg_10", "mrr", "recall_1", "recall_5", "recall_10")


def scores_of_sizes(
    outcome: Mapping[str, np.ndarray], whole: Collection[str], cut: str, recalls: Sequence[int] = retrieval.RECALLS
) -> Weighted:
    """Returns the scores of the "ranks" [N, R] of an outcome, and of the "ranks/SIZE" of vectors that are cut, as a
    function of rows.

    Args:
      outcome: see Embed.outcome; NaN stands for a rank that a row does not have.
      whole: the figures of whole vectors.
      cut: the figure of cut ones, which is named FIGURE/SIZE.
      recalls: see retrieval.figures.
    """
    parts = {
        name.removeprefix("ranks"): retrieval.figures_rows([row[~np.isnan(row)] for row in ranks], recalls=recalls)
        for name, ranks in outcome.items()
        if name.startswith("ranks")
    }
    width = parts[""].values.shape[1]

    def figures(values, weights):
        found: dict[str, np.ndarray] = {}
        for i, (suffix, part) in enumerate(parts.items()):
            of_part = part.figures(values[:, i * width : (i + 1) * width], weights)
            found |= {name + suffix: of_part[name] for name in ([cut] if suffix else whole)}
        return found

    return Weighted(np.concatenate([part.values for part in parts.values()], axis=1), figures)


def _not_negatives(keys):
    """Returns bool [N, N * (K - 1)], which documents of a step are not negatives of each text, besides its positive.

    Args:
      keys: int64 [N, K], of the texts, their positives and their negatives.
    """
    rows, count = tf.shape(keys)[0], tf.shape(keys)[1] - 1
    documents = tf.reshape(keys[:, 1:], [1, -1])
    copies = tf.equal(documents, keys[:, :1]) | tf.equal(documents, keys[:, 1:2])
    same_text = tf.equal(keys[:, :1], keys[None, :, 0])  # Their positives are relevant.
    others = tf.reshape(tf.pad(same_text[:, :, None], [[0, 0], [0, 0], [0, count - 1]]), [rows, rows * count])
    own = tf.one_hot(tf.range(rows) * count, rows * count, True, False)
    return (copies | others) & ~own


def _not_other_queries(keys):
    """Returns bool [N, N], which texts of a step are not negatives of each positive, besides its own text."""
    texts, positives = keys[:, 0], keys[:, 1]
    same = tf.equal(texts[:, None], texts[None]) | tf.equal(positives[:, None], positives[None])
    return (same | tf.equal(positives[:, None], texts[None])) & ~tf.eye(tf.shape(keys)[0], dtype=tf.bool)


def _cross_entropy(logits, hidden, targets):
    """Returns [N], the cross-entropy of logits [N, M] with the targets [N], without the hidden logits."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(targets, tf.where(hidden, _HIDDEN, logits))


def _relevant(texts: np.ndarray, positives: np.ndarray) -> list[list[int]]:
    """Returns for each text the documents that are positives of the text or of a copy of it.

    Args:
      texts: [N], equal for copies.
      positives: int [N], the document that is the positive of each.
    """
    of_text: dict[Any, list[int]] = {}
    for text, positive in zip(texts.tolist(), positives.tolist(), strict=True):
        of_text.setdefault(text, []).append(positive)
    unique = {text: sorted(set(found)) for text, found in of_text.items()}
    return [unique[text] for text in texts.tolist()]


def _rank(
    queries: np.ndarray, corpus: np.ndarray, relevant: Sequence[list[int]], own: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranks the documents of a corpus for each query.

    Args:
      queries, corpus: vectors [N, D] and [M, D].
      relevant: for each query, its relevant documents.
      own: int [N], the document that is a copy of the query, or -1.

    Returns:
      ranks float64 [N, R] of the relevant documents, padded with NaN; the best other document, int64 [N]; its cosine,
      float64 [N].
    """
    ranks = np.full((len(queries), max(map(len, relevant))), np.nan)
    wrong, score = np.zeros(len(queries), np.int64), np.zeros(len(queries))
    corpus = unit(corpus)
    for begin in range(0, len(queries), _CHUNK):
        cosines = unit(queries[begin : begin + _CHUNK]) @ corpus.T
        for i, row in enumerate(cosines, begin):
            if own[i] >= 0 and own[i] not in relevant[i]:
                row[own[i]] = -np.inf
            ranks[i, : len(relevant[i])] = retrieval.ranks(row, relevant[i])
            row[relevant[i]] = -np.inf
            wrong[i] = row.argmax()
            score[i] = row[wrong[i]]
    return ranks, wrong, score
