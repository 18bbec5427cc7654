"""Extractive question answering: answers that are contained in a text."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfzoo.export.answers.base import Answer, cut, part_of, ranked, softmax
from tfzoo.export.interface import Tensor
from tfzoo.text.framing import PAIR, TEXT
from tfzoo.text.spans import LONGEST_ANSWER, TOP_ANSWERS, likeliest, log_chances


class Spans(Answer):
    """Answers to `question` contained in `context`: the N = TOP_ANSWERS likeliest `answers` [B, N], the likeliest
    first, with `scores` and, if the tokenizer supports offsets, `starts` and `ends` in code points of the context.

    A score is the product of the probabilities of the answer's first and last token, each normalised over the tokens of
    the context and the [CLS] before them, if there is one. `no_answer` [B] is the score of [CLS] itself, 0 without one
    (Devlin et al. 2019, section 4.3). Answers have at most LONGEST_ANSWER tokens. If there are fewer than N answers,
    the rest is filled up with "" and 0.

    All rows have answers. A threshold that a fine-tuning run fitted decides whether a question has no answer, and is
    among the facts for manifest.json: see tfzoo.text.spans.difference.
    """

    offsets = True
    pieces = {TEXT: "question", PAIR: "context"}

    def __init__(self, model, tokenizer, options):
        super().__init__(model, tokenizer, options)
        axes = ("batch", TOP_ANSWERS)
        self.outputs = {"answers": Tensor("string", axes), "scores": Tensor("float32", axes)}
        if self.reader.has_offsets:
            self.outputs |= {"starts": Tensor("int32", axes), "ends": Tensor("int32", axes)}
        self.outputs |= {"no_answer": Tensor("float32", ("batch",))}
        self.null_first = isinstance(self.reader.frame.parts[0], int)
        stated = (model.record.config if model.record else {}).get("no_answer_threshold")
        fitted = model.no_answer_threshold
        self.threshold = stated if fitted is None and isinstance(stated, int | float) else fitted

    def facts(self):
        return super().facts() | ({} if self.threshold is None else {"no_answer_threshold": self.threshold})

    def answer_reading(self, reading, texts, call):
        logits = tf.cast(call(reading.inputs)["span_logits"], tf.float32)
        context, length = reading.of[PAIR], tf.shape(logits)[1]
        chances = log_chances(logits, context, self.null_first)
        null = tf.exp(tf.reduce_sum(chances[:, 0], -1)) if self.null_first else tf.zeros_like(logits[:, 0, 0])
        score, begin, end, there = likeliest(chances, context)
        outputs: dict[str, Any] = {"scores": tf.where(there, tf.exp(score), 0.0)}
        flat = tf.boolean_mask(tf.repeat(tf.range(tf.shape(logits)[0]), TOP_ANSWERS), tf.reshape(there, [-1]))
        begin, end = (tf.boolean_mask(x, there) for x in (begin, end))
        if reading.starts is not None:
            starts = tf.gather_nd(reading.starts, tf.stack([flat, begin], 1))
            ends = tf.gather_nd(reading.ends, tf.stack([flat, end], 1))
            parts = dict(zip(("answers", "starts", "ends"), cut(tf.gather(texts["context"], flat), starts, ends)))
        else:
            ids = tf.gather(reading.inputs["token_ids"], flat)
            within = (tf.range(length) >= begin[:, tf.newaxis]) & (tf.range(length) <= end[:, tf.newaxis])
            parts = {"answers": tf.strings.strip(self.tokenizer.detokenize(tf.ragged.boolean_mask(ids, within)))}
        at, shape = tf.where(there), tf.shape(there, tf.int64)
        for name, values in parts.items():
            fill = tf.fill(shape, "") if values.dtype == tf.string else tf.zeros(shape, values.dtype)
            outputs[name] = tf.tensor_scatter_nd_update(fill, at, values)
        outputs = {name: tf.ensure_shape(value, [None, TOP_ANSWERS]) for name, value in outputs.items()}
        return outputs | {"no_answer": null}

    def expected_of_rows(self, rows, limits):
        top, margin = TOP_ANSWERS, limits.margin
        shape = (len(rows), top)
        scores, decided, null = np.zeros(shape, np.float32), np.ones(shape, bool), np.zeros(len(rows), np.float32)
        spans: list[list[tuple[str, int, int]]] = []
        for number, row in enumerate(rows):
            logits, places = row.outputs("span_logits"), row.places(PAIR)
            allowed = [0, *places] if self.null_first else places
            chances = np.zeros_like(logits)
            if allowed:
                chances[allowed] = softmax(logits[allowed], axis=0)
            null[number] = chances[0].prod() if self.null_first else 0
            candidates = sorted(
                (
                    (chances[i, 0] * chances[j, 1], -i, -j)
                    for i in places
                    for j in places
                    if i <= j < i + LONGEST_ANSWER
                ),
                reverse=True,
            )[: top + 1]
            spans.append([part_of(self, row, -i, -j, row.texts["context"]) for _, i, j in candidates[:top]])
            chance = np.array([score for score, _, _ in candidates])
            scores[number, : len(spans[-1])] = chance[:top]
            # A rank is decided if it is separated from the next and the previous rank by more than the tolerance.
            apart = chance[:-1] > chance[1:] * (1 + 2 * margin * max(1, np.abs(logits).max()))
            decided[number] = ranked(apart, top)
        longest = max((len(text) for row in spans for text, _, _ in row), default=1) or 1
        columns = [np.zeros(shape, f"U{longest}"), np.zeros(shape, np.int32), np.zeros(shape, np.int32)]
        for number, row_spans in enumerate(spans):
            for column, values in zip(columns, zip(*row_spans)):
                column[number, : len(row_spans)] = values
        names = ("answers", "starts", "ends") if self.reader.has_offsets else ("answers",)
        groups = {name: {"values": values, "decided": decided} for name, values in zip(names, columns)}
        return groups | {"scores": scores, "no_answer": null}
