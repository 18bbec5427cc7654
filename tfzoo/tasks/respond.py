r"""Retrieval dialogue: vectors with which the answer of a conversation is found among candidates.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
                  {"role": "user", "content": "Any news?"}, {"role": "assistant", "content": "None."}]}

becomes the rows "Hi", "Hello" and "Any news?\nHello\nHi", "None.": the context, with its newest message first, and the
answer. Model and loss are those of the task embed (tfzoo/tasks/embed.py): the vector of a context is near that of its
answer, and the other answers of the step are negatives (Henderson et al. 2020, section 2).

An evaluation ranks each answer among 10 candidates: the answer and 9 other answers of the file, drawn once for each row
(Lowe et al. 2015, section 5.1). Answers that are equal to the right one, or right for a copy of the context, are not
drawn.
"""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from tfzoo import lazy
from tfzoo.data.responses import ResponseFile
from tfzoo.errors import UserError
from tfzoo.evaluation import retrieval
from tfzoo.options import option
from tfzoo.tasks import GROUP, embed
from tfzoo.tasks.bi_encoder import unit
from tfzoo.tasks.similarity import tfidf_vectorizer
from tfzoo.tasks.task import sample

bm25 = lazy.module("tfzoo.retrieval.bm25")

RECALLS = (1, 2, 5)
_SHOWN = (*(f"recall_{k}" for k in RECALLS), "mrr")
_SEED = 0
_TRIES = 50  # Rows that are drawn for each candidate, of which all can have the right answer.
_MOST_BASELINE_ROWS = 50_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(embed.Options):
    """The options of the task respond."""

    context_messages: int = option(
        10, "Number of messages before an answer that are its context.", group=GROUP, low=1, decides_rows=True
    )
    candidates: int = option(
        10,
        "Number of candidates among which an answer is ranked in an evaluation, with the answer itself.",
        group=GROUP,
        low=2,
    )


class Respond(embed.Embed):
    """See the module's docstring."""

    name = "respond"
    Options = Options
    best_metric = ("recall_1", "max")

    def __init__(self, tokenizer, sequence_length: int, **arguments):
        super().__init__(tokenizer, sequence_length, **arguments)
        count = self.options.candidates
        figures = [(f"recall@{k} of {count}", f"recall_{k}", "{:.2%}") for k in RECALLS if k < count]
        figures += [("MRR", "mrr", "{:.4f}"), ("validation loss", "validation_loss", "{:.4f}")]
        self.show(figures, Respond.best_metric)

    @classmethod
    def open_file(cls, options, path, flag, policy):
        for name in ("text_column", "pair_column", "label_column", "delimiter"):
            if getattr(options, name) is not None:
                raise UserError(f"--{name}={getattr(options, name)}: does not apply to conversations; omit it")
        return ResponseFile(path, flag=flag, policy=policy, context_messages=options.context_messages)

    @classmethod
    def unit_of(cls, row):
        return row.conversation

    # ------------------------------------------------------------------ Evaluation

    def outcome(self, predictions):
        """Returns "number" [N], and of each size of vectors "ranks" [N, 1], the rank of the answer. "wrong" int64
        [N, 2] is the (row, text) of the best other candidate, and "score" [N] its cosine."""
        vectors, keys = predictions["vectors"], predictions["keys"]
        candidates = draw_candidates(keys[:, 0].tolist(), keys[:, 1].tolist(), self.options.candidates)
        outcome = {"number": predictions["number"]}
        for size in (vectors.shape[-1], *self.sizes):
            cut = unit(vectors[..., :size])
            scores = [cut[rows, 1] @ cut[i, 0] for i, rows in enumerate(candidates)]
            ranks = _ranks(candidates, scores)[:, None].astype(np.float64)
            if size != vectors.shape[-1]:
                outcome[f"ranks/{size}"] = ranks
                continue
            outcome["ranks"] = ranks
            best = [rows[np.argmax(np.where(rows == i, -np.inf, scores[i]))] for i, rows in enumerate(candidates)]
            outcome["wrong"] = np.stack([predictions["number"][best], np.ones(len(best), np.int64)], 1)
            outcome["score"] = np.array([cut[row, 1] @ cut[i, 0] for i, row in enumerate(best)], np.float64)
        return outcome

    def score_rows(self, outcome):
        shown = {name for _, name, _ in self.FIGURES}
        return embed.scores_of_sizes(outcome, [name for name in _SHOWN if name in shown], "recall_1", RECALLS)

    def file_baselines(self, train, held_out):
        rows = [row.texts for row in held_out.rows()]
        contexts, answers = zip(*rows, strict=True)
        candidates = draw_candidates(contexts, answers, self.options.candidates)
        index = bm25.BM25.of(answers)
        scores = {"bm25": [index.scores(context)[each] for context, each in zip(contexts, candidates, strict=True)]}
        vectorizer = tfidf_vectorizer([row.texts for row in sample(train.rows(), _MOST_BASELINE_ROWS)])
        if vectorizer is not None:
            first, second = vectorizer.transform(contexts), vectorizer.transform(answers)
            scores["tfidf"] = [
                np.asarray((second[each] @ first[i].T).todense()).ravel() for i, each in enumerate(candidates)
            ]
        return {
            name: {
                figure: value
                for figure, value in retrieval.figures(
                    _ranks(candidates, each)[:, None].tolist(), recalls=RECALLS
                ).items()
                if figure in _SHOWN
            }
            for name, each in scores.items()
        }


def draw_candidates(contexts: Sequence[Hashable], answers: Sequence[Hashable], count: int) -> list[np.ndarray]:
    """Returns for each row the rows whose answers are its candidates, int64 [count]: the row itself, in a random place,
    and rows with other answers, all of them different. There are fewer if the rows have fewer different answers.

    Args:
      contexts: of N rows, equal for copies.
      answers: of N rows, equal for copies.
      count: the number of candidates.

    Raises:
      UserError: all rows have the same answer.
    """
    if len(set(answers)) < 2:
        raise UserError("respond: the rows that are evaluated have a single answer; provide conversations with others")
    right: dict[Any, set] = {}
    for context, answer in zip(contexts, answers, strict=True):
        right.setdefault(context, set()).add(answer)
    candidates = []
    for i, context in enumerate(contexts):
        generator = np.random.default_rng([_SEED, i])
        taken, chosen = set(right[context]), list[int]()
        for row in generator.choice(len(answers), min(len(answers), _TRIES * count), replace=False).tolist():
            if len(chosen) == count - 1:
                break
            if answers[row] not in taken:
                taken.add(answers[row])
                chosen.append(row)
        chosen.insert(int(generator.integers(len(chosen) + 1)), i)
        candidates.append(np.array(chosen, np.int64))
    return candidates


def _ranks(candidates: Sequence[np.ndarray], scores: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the rank of each row among its candidates, int64 [N]; of equal scores, the first candidate is first."""
    places = [int(np.flatnonzero(rows == i)[0]) for i, rows in enumerate(candidates)]
    return np.array([retrieval.ranks(each, [place])[0] for each, place in zip(scores, places, strict=True)])
