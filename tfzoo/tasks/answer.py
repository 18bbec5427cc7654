"""Answers to questions that are contained in a text, or the answer that the text does not contain one.

    When was Ada born?    Ada was born in 1815.    1815

becomes

    token_ids            [CLS] when was ada born ? [SEP] ada was born in 18 ##15 . [SEP]
    token_starts            -1   -1  -1  -1   -1 -1  -1    0   4    8  13 16   18 20  -1    in the context,
    token_ends              -1   -1  -1  -1   -1 -1  -1    3   7   12  15 18   20 21  -1    in code points
    span                 11 12                        the first and the last token of the answer; 0 0 without an answer

The head span gives each token two logits, of being the first and the last token of the answer (Devlin et al. 2019,
sections 4.2 and 4.3). The candidates are the tokens of the context and [CLS], which represents "no answer"; the loss is
the sum of the cross-entropies of the first and the last token, averaged over rows.

A context with too many tokens is divided into windows that overlap, each of which is read with the question. A window
that does not contain the whole answer has none. A question may use half of the row, and more if the context leaves it;
longer questions are truncated.

The score of a span is the product of the probabilities of its first and its last token in its window, as in exported
models (export/answers/spans.py). The answer to a question is the span with the highest score over all windows, and the
score of "no answer" is the lowest over all windows. Where questions without an answer are among the validation rows, a
question is answered only if log(score of "no answer" / score of the span) is at most a threshold: that with the best F1
on these rows.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfzoo import lazy
from tfzoo.data import windows
from tfzoo.data.squad import CMRC, RULES, QuestionFile, QuestionRow
from tfzoo.errors import UserError
from tfzoo.evaluation import answers
from tfzoo.options import option
from tfzoo.tasks import GROUP, answer_baselines
from tfzoo.tasks.task import Task, WindowOverlapOption, chunked
from tfzoo.text import spans
from tfzoo.text.framing import PAIR

tf = lazy.module("tensorflow")

# In place of the first and last token of an answer in a window.
ABSENT = -1  # The window does not contain the answer, or there is none.
UNKNOWN = -2  # Nothing is known: the answer does not occur in the context, or has no tokens.
_NOTHING = "no answer"  # In place of an answer, in mistakes.
_CONTEXT = 200  # Characters before and after a mistake.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(WindowOverlapOption):
    """The options of the task answer."""

    answer_rules: str | None = option(
        None,
        "Rules by which answers are scored: squad compares words, cmrc Chinese characters (CMRC 2018, DRCD). By "
        "default cmrc if most letters of the questions of a file are Chinese characters.",
        group=GROUP,
        choices=RULES,
    )


class Answer(Task):
    """See the module's docstring."""

    name = "answer"
    Options = Options
    HEAD = "span"
    FIGURES = (
        ("F1", "f1", "{:.2%}"),
        ("exact match", "exact_match", "{:.2%}"),
        ("F1, has an answer", "has_answer_f1", "{:.2%}"),
        ("exact match, has one", "has_answer_exact_match", "{:.2%}"),
        ("accuracy, has none", "no_answer_accuracy", "{:.2%}"),
        ("validation loss", "validation_loss", "{:.4f}"),
    )
    best_metric = ("f1", "max")

    def __init__(self, tokenizer, sequence_length: int, **arguments: Any):
        super().__init__(tokenizer, sequence_length, **arguments)
        self.require_offsets()
        if not isinstance(self.frame.parts[0], int):
            raise UserError(
                f'--task={self.name}: the rows of this model do not begin with a special token, which represents "no '
                'answer"; use another model'
            )
        least = self.framer.room // 2  # What the longest question leaves.
        if self.options.window_overlap is not None and self.options.window_overlap >= least:
            raise UserError(
                f"--window_overlap={self.options.window_overlap}: must be less than {least}, half of the tokens in a "
                "row; use a smaller value"
            )
        self.threshold: float | None = None
        """The threshold of "no answer"; None answers every question."""
        self._is_fitted = False  # Whether the threshold is that of a finished run.
        self._evaluated: list[QuestionRow] = []
        self._rules = RULES[0]

    # ------------------------------------------------------------------ Files

    @classmethod
    def open_file(cls, options, path, flag, policy):
        return QuestionFile(path, flag=flag, policy=policy, rules=options.answer_rules)

    @classmethod
    def has_labels(cls, options):
        return False

    @classmethod
    def is_pair(cls, file):
        return True

    @classmethod
    def repeated_texts(cls, train, held_out):
        known = {row.context for row in train.rows()}
        count = sum(row.context in known for row in held_out.rows())
        words = f"the contexts of {count:,} questions of {held_out.path} are also in {train.path}"
        return [words] if count else []

    @classmethod
    def texts_of(cls, row):
        return row.question, row.context

    @classmethod
    def unit_of(cls, row):
        return (row.context,)

    def chunks(self, file):
        """Yields windows: the ragged columns "text" (the question), "pair" (the window's part of the context), "starts"
        and "ends" of its tokens in code points of the context, with "span", the first and the last token of the answer
        in the window, or ABSENT or UNKNOWN twice, "number" of the question, and "cut", whether it was truncated."""
        for first, rows in chunked(file.rows()):
            contexts = list(dict.fromkeys(row.context for row in rows))
            tokens = dict(zip(contexts, self.locate(contexts), strict=True))
            questions = self.tokenize([row.question for row in rows])
            found = [
                (number, *window)
                for number, (row, question) in enumerate(zip(rows, questions, strict=True), first)
                for window in self._windows(row, question, *tokens[row.context])
            ]
            numbers, texts, parts, starts, ends, places, cut = zip(*found, strict=True)
            yield {
                "number": np.array(numbers, np.int64),
                "text": texts,
                "pair": parts,
                "starts": starts,
                "ends": ends,
                "span": np.array(places, np.int32),
                "cut": np.array(cut, bool),
            }

    def _windows(self, row: QuestionRow, question: np.ndarray, ids: np.ndarray, starts: np.ndarray, ends: np.ndarray):
        """Yields (question, token ids, starts, ends, (first, last), whether the question was cut) of the windows of a
        context."""
        kept = int(self.framer.kept(len(question), len(ids))[0])
        room = self.framer.room - kept
        overlap = room // 4 if self.options.window_overlap is None else self.options.window_overlap
        first, last = _tokens_of(row, starts, ends)
        for begin in windows.window_starts(len(ids), room, overlap).tolist():
            part = slice(begin, begin + room)
            place = first, last
            if first >= 0:
                inside = begin <= first and last < begin + room
                place = (first - begin, last - begin) if inside else (ABSENT, ABSENT)
            yield question[:kept], ids[part], starts[part], ends[part], place, kept < len(question)

    def truncation(self, rows, part):
        count = len(np.unique(rows.columns["number"][rows.columns["cut"]]))
        return f"{count:,} {part} questions are truncated to half of a row of {self._length} tokens" if count else ""

    # ------------------------------------------------------------------ Batches and loss

    def targets(self):
        return {
            "token_starts": (np.int32, (None,)),
            "token_ends": (np.int32, (None,)),
            "span": (np.int32, (2,)),
            "number": (np.int64, ()),
        }

    def target_features(self, rows, indices, length):
        places = {name: np.full((len(indices), length), -1, np.int32) for name in ("starts", "ends")}
        span = rows.columns["span"][indices].astype(np.int32)
        before = self.frame.parts.index(PAIR) - 1  # The number of special tokens before the context.
        for i, index in enumerate(indices.tolist()):
            first = before + len(rows.values("text", index))
            for name, values in places.items():
                column = rows.values(name, index)
                values[i, first : first + len(column)] = column
            if span[i, 0] >= 0:
                span[i] += first
        span = np.where(span == ABSENT, 0, np.where(span == UNKNOWN, -1, span))
        number = np.asarray(rows.columns["number"][indices])
        return {"token_starts": places["starts"], "token_ends": places["ends"], "span": span, "number": number}

    def _chances(self, models, batch, training: bool):
        """Returns the logarithms of the probabilities of each token, [B, L, 2], and which belong to the context."""
        context = batch["token_starts"] >= 0
        return spans.log_chances(self.logits(models, batch, training), context), context

    def _losses(self, chances, batch):
        """Returns (loss, weight) of each row, float32 [B]."""
        weight = tf.cast(batch["span"][:, 0] >= 0, tf.float32) * batch["weight"]
        # [B, 2, L], at the first and the last token.
        each = tf.gather(tf.transpose(chances, [0, 2, 1]), tf.maximum(batch["span"], 0), batch_dims=2)
        return -tf.reduce_sum(each, -1) * weight, weight

    def loss(self, models, batch, training=True):
        loss, weight = self._losses(self._chances(models, batch, training)[0], batch)
        return tf.reduce_sum(loss), tf.reduce_sum(weight)

    # ------------------------------------------------------------------ Evaluation

    def prepare_evaluation(self, file, whole=False):
        """Reads the questions of the file, whose texts `outcome` needs."""
        self._evaluated, self._rules = list(file.rows()), file.rules

    def predict(self, models, batch):
        chances, context = self._chances(models, batch, training=False)
        loss, weight = self._losses(chances, batch)
        score, begin, end, is_span = spans.likeliest(chances, context)
        place = tf.stack([tf.gather(batch["token_starts"], begin, batch_dims=1),
                          tf.gather(batch["token_ends"], tf.where(is_span, end, 0), batch_dims=1)], -1)  # fmt: skip
        return {
            "number": batch["number"],
            "place": tf.where(is_span[..., tf.newaxis], place, -1),
            "score": score,
            "no_answer": tf.reduce_sum(chances[:, 0], -1),
            "loss": loss,
            "loss_weight": weight,
        }

    def outcome(self, predictions):
        """Returns "number" [N] of the questions and for each "answer" (its text, "" for none), "start" and "end" of the
        best span, "score" of that span and of "no_answer", "exact", "f1" and "has_answer"."""
        numbers, groups = _grouped(predictions["number"])
        rows = [self._evaluated[number] for number in numbers.tolist()]
        found = [self._best(row, predictions, group) for row, group in zip(rows, groups, strict=True)]
        texts, starts, ends, scores, nothing = zip(*found, strict=True)
        gold = [[answer.text for answer in row.answers] for row in rows]
        exact, f1, has_answer = answers.scores(gold, texts, self._rules)
        difference = np.array(nothing) - np.array(scores)
        if not self._is_fitted:
            self.threshold = answers.best_threshold(difference, f1, has_answer)
        declined = np.zeros(len(rows), bool) if self.threshold is None else difference > self.threshold
        return {
            "number": numbers,
            "answer": np.array(["" if no else text for text, no in zip(texts, declined, strict=True)], object),
            "start": np.array(starts, np.int64),
            "end": np.array(ends, np.int64),
            "score": np.exp(scores),
            "no_answer": np.exp(nothing),
            "exact": np.where(declined, ~has_answer, exact).astype(np.float64),
            "f1": np.where(declined, ~has_answer, f1).astype(np.float64),
            "has_answer": has_answer,
        }

    def _best(self, row: QuestionRow, predictions: Mapping[str, np.ndarray], group: np.ndarray):
        """Returns (text, start, end, log of its score, log of that of "no answer") of the best span over the windows of
        a question."""
        nothing = float(predictions["no_answer"][group].min())
        scores, places = predictions["score"][group, 0], predictions["place"][group, 0]
        best = int(scores.argmax())
        start, end = places[best].tolist()
        if start < 0:
            return "", -1, -1, -math.inf, nothing
        text = row.context[start:end]
        start += len(text) - len(text.lstrip())
        text = text.strip()
        return text, start, start + len(text), float(scores[best]), nothing

    def score_rows(self, outcome):
        return answers.figures_rows(outcome["exact"], outcome["f1"], outcome["has_answer"])

    def details(self, outcome):
        threshold = {} if self.threshold is None else {"no_answer_threshold": self.threshold}
        return super().details(outcome) | {"rules": self._rules} | threshold

    def record(self):
        return super().record() | ({} if self.threshold is None else {"no_answer_threshold": self.threshold})

    def restore(self, record):
        self.threshold, self._is_fitted = record.no_answer_threshold, True

    def mistakes(self, outcome, count):
        """Returns wrong answers, those with the lowest F1 first, and of these the most confident ones."""
        wrong = np.flatnonzero(outcome["exact"] < 1)
        score = np.where(outcome["answer"] == "", outcome["no_answer"], outcome["score"])
        order = wrong[np.lexsort([-score[wrong], outcome["f1"][wrong]])]
        return [
            {
                "number": int(outcome["number"][i]),
                "predicted": outcome["answer"][i] or _NOTHING,
                "start": int(outcome["start"][i]),
                "score": float(score[i]),
            }
            for i in order[:count].tolist()
        ]

    def described(self, mistake, row):
        gold = ", ".join(dict.fromkeys(answer.text for answer in row.answers)) or _NOTHING
        place = next((answer.start for answer in row.answers if answer.start is not None), mistake["start"])
        first, end = max(0, place - _CONTEXT), place + _CONTEXT
        context = ("..." if first else "") + row.context[first:end] + ("..." if end < len(row.context) else "")
        shown = {name: value for name, value in mistake.items() if name != "start"}
        return super().described(shown, row) | {"gold": gold, "text_pair": context}

    # ------------------------------------------------------------------ Baselines

    def file_baselines(self, train, held_out):
        rows = list(held_out.rows())
        gold = [[answer.text for answer in row.answers] for row in rows]
        predicted = {
            "sentence": answer_baselines.nearest_sentences(rows),
            "beside": answer_baselines.spans_beside(rows, characters=held_out.rules == CMRC),
        }
        if not all(gold):
            predicted["no_answer"] = [""] * len(rows)
        scored = {name: answers.scores(gold, each, held_out.rules) for name, each in predicted.items()}
        return {name: answers.figures_rows(*each)() for name, each in scored.items()}


def _tokens_of(row: QuestionRow, starts: np.ndarray, ends: np.ndarray) -> tuple[int, int]:
    """Returns the first and the last token of the first answer that is in the context; or ABSENT or UNKNOWN, twice."""
    if not row.answers:
        return ABSENT, ABSENT
    found = [(answer.start, answer.text) for answer in row.answers if answer.start is not None]
    if not found:
        return UNKNOWN, UNKNOWN
    start, text = found[0]
    inside = np.flatnonzero((starts < start + len(text)) & (ends > start))
    return (int(inside[0]), int(inside[-1])) if len(inside) else (UNKNOWN, UNKNOWN)


def _grouped(numbers: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns the different numbers in ascending order, and the indices of each."""
    order = np.argsort(numbers, kind="stable")
    distinct, first = np.unique(numbers[order], return_index=True)
    return distinct, np.split(order, first[1:])
