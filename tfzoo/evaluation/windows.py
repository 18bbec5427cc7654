"""Scores of texts by windows, whatever computes the log-probabilities. Does not import TensorFlow.

A text that is longer than the model's length L is read in windows of L tokens with a stride S. Each token is scored in
the first window that contains it: except in the first window, it is preceded by at least L - S tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tfzoo.errors import CheckFailed, UserError

Ids = Sequence[Sequence[int]]
# The ids of B windows, and for an encoder-decoder of B sources -> the log-probabilities float32 [B, L - 1] of the
# tokens from the second on, and whether each is the most likely token, bool [B, L - 1].
Compute = Callable[[Ids, Ids | None], tuple[np.ndarray, np.ndarray]]


class Likelihood(NamedTuple):
    """The scores of N tokens of a text; a token without a preceding one has no score."""

    token_ids: list[int]  # N
    scores: list[float]  # N, natural logarithms of their probabilities.
    likeliest: list[bool]  # N, whether the token is the most likely one according to the model.

    @property
    def log_likelihood(self) -> float:
        return float(sum(self.scores))

    @property
    def perplexity(self) -> float:
        """The exponential of the mean loss per token; NaN without tokens."""
        return float(np.exp(-self.log_likelihood / len(self.scores))) if self.scores else float("nan")


def windows(count: int, first: int, length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yields windows (begin, end, from): tokens begin to end - 1 are read together, those from `from` on are scored.

    Args:
      count: number of tokens of the text.
      first: index of the first token to score, at least 1.
      length: maximum number of tokens that the model reads, at least 2.
      stride: distance between windows, from 1 to length - 1.
    """
    if count - first < length:  # All scored tokens and the one before them fit into one window; the rest is context.
        yield max(0, count - length), count, first
        return
    # The first window that scores a token begins as late as possible while still scoring `first`.
    done, begin = first, 0
    while done < count:
        end = min(begin + length, count)
        if end > done:
            yield begin, end, max(done, begin + 1)
            done = end
        begin += stride


def rows_of_texts(before: Sequence[int], encoded: Ids, texts: Sequence[str]) -> tuple[list[list[int]], list[int]]:
    """Returns (rows, firsts) as `score_rows` reads them, for texts that follow the special tokens `before`.

    Raises:
      UserError: no token of a text can be scored.
    """
    rows = []
    for i, ids in enumerate(encoded):
        if len(before) + len(ids) < 2 or not ids:
            raise UserError(f"text {i} ({texts[i]!r}) is too short: the model scores a token given the previous one")
        rows.append([*before, *ids])
    return rows, [max(1, len(before))] * len(rows)


def rows_of_continuations(
    before: Sequence[int],
    bos_id: int | None,
    encode: Callable[[Sequence[str]], Ids],
    contexts: Sequence[str],
    continuations: Sequence[str],
) -> tuple[list[list[int]], list[int]]:
    """Returns (rows, firsts) as `score_rows` reads them: each context and its continuation are tokenized as one text,
    and the tokens beyond the number of tokens of the context belong to the continuation.

    Args:
      before: the special tokens before a text.
      bos_id: the beginning-of-text token, which replaces an empty context; None without one.
      encode: texts -> ids without special tokens.
      contexts, continuations: strings.
    """
    full_ids = encode([a + b for a, b in zip(contexts, continuations, strict=True)])
    context_ids = encode([context.rstrip() for context in contexts])
    if not before and bos_id is not None and any(not ids for ids in context_ids):
        before = [bos_id]
    return [[*before, *ids] for ids in full_ids], [len(before) + len(ids) for ids in context_ids]


def check_rows(rows: Ids, firsts: Sequence[int], continuations: Sequence[str]) -> None:
    """Checks the rows of continuations.

    Raises:
      UserError: a context or a continuation has no tokens.
    """
    for i, (row, first) in enumerate(zip(rows, firsts, strict=True)):
        if first < 1:
            raise UserError(
                f"context {i} is empty, and the tokenizer has no beginning-of-text token; provide a context"
            )
        if first >= len(row):
            raise UserError(
                f"continuation {i} ({continuations[i]!r}) adds no token to its context; provide a longer one"
            )


def score_rows(
    compute: Compute,
    rows: Ids,
    firsts: Sequence[int],
    *,
    max_length: int,
    sources: Ids | None = None,
    limits_sources: bool = False,
    length: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
) -> list[Likelihood]:
    """Scores token ids.

    Args:
      compute: see Compute.
      rows: token ids, including the tokens that begin a text.
      firsts: for each row, the index of the first token to score, at least 1.
      max_length: the maximum number of tokens that the model reads.
      sources: for an encoder-decoder, the token ids that its encoder reads.
      limits_sources: whether sources are limited to the length of a window.
      length: number of tokens per window; None means max_length.
      stride: distance between windows; None means half the length.
      batch_size: number of windows per batch.

    Returns:
      The likelihood of each row.

    Raises:
      UserError: the length or the stride is out of bounds, or a row of an encoder-decoder is too long.
      CheckFailed: the model's logits are not finite.
    """
    length = max_length if length is None else length
    stride = max(1, length // 2) if stride is None else stride
    if not 2 <= length <= max_length:
        raise UserError(f"length ({length}) must be from 2 to the model's max_positions ({max_length})")
    if not 1 <= stride < length:
        raise UserError(f"stride ({stride}) must be from 1 to length - 1 ({length - 1})")
    for noun, texts in (("continuation", rows), ("context", sources)) if sources is not None else ():
        limited = noun == "continuation" or limits_sources
        if limited and max(map(len, texts or ()), default=0) > length:
            i = int(np.argmax([len(text) for text in texts or ()]))
            raise UserError(
                f"{noun} {i} has {len((texts or ())[i])} tokens, but the model reads at most {length}; shorten it"
            )
    parts = [
        (row, *window)
        for row, (ids, first) in enumerate(zip(rows, firsts, strict=True))
        for window in windows(len(ids), first, length, stride)
    ]
    likelihoods = [Likelihood([], [], []) for _ in rows]
    for start in range(0, len(parts), batch_size):
        batch = parts[start : start + batch_size]
        read = None if sources is None else [sources[row] for row, *_ in batch]
        scores, best = compute([rows[row][begin:end] for row, begin, end, _ in batch], read)
        for i, (row, begin, end, first) in enumerate(batch):
            scored = slice(first - begin - 1, end - begin - 1)
            if not np.all(np.isfinite(scores[i, scored])):
                raise CheckFailed(f"row {row}: the model's logits are not finite; check its weights")
            likelihoods[row].token_ids.extend(int(t) for t in rows[row][first:end])
            likelihoods[row].scores.extend(float(s) for s in scores[i, scored])
            likelihoods[row].likeliest.extend(bool(b) for b in best[i, scored])
    return likelihoods
