"""Rows that contain several documents, each attending only to itself, so that batches contain little padding.

Documents longer than a row are cut into consecutive pieces: full ones and a remainder. Pieces are assigned to rows by
best fit, longest first (Johnson 1973), within a window of documents. Thus a row is determined by its index, and the
assignment only requires the lengths of the documents.
"""

from collections.abc import Callable, Sequence

import numpy as np

from tfzoo.data.tokenized import TokenizedCorpus

_WINDOW = 4096  # Documents that are packed together.


class PackedRows:
    """Random access to rows; `row(index)` is a pure function."""

    FEATURES = {"token_ids": 1, "document_ids": 1}  # What `row` returns: name -> rank.

    def __init__(
        self,
        corpus: TokenizedCorpus,
        num_tokens: int,
        extra: int | Callable[[np.ndarray], np.ndarray] = 0,
        *,
        longest: int | None = None,
        first_id: int | None = None,
        last_id: int | None = None,
        overlap: int = 0,
        also: Sequence[tuple[int, Callable[[np.ndarray], np.ndarray]]] = (),
        pack: bool = True,
        sentences: bool = False,
        filled: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        """Assigns all pieces of the corpus to rows.

        Args:
          corpus: the documents.
          num_tokens: the capacity of a row.
          extra: positions that each piece requires in addition to its tokens, for the special tokens that the objective
            adds; or a function from lengths of pieces, int64 [N], to their additional positions, int64 [N], which may
            be negative.
          longest: maximum length of a piece in tokens; None means num_tokens, minus extra if that is a number.
          first_id, last_id: tokens that are added before and after each document before it is cut into pieces.
          overlap: the number of tokens that two consecutive pieces of a document share.
          also: further limits, each (limit, costs): a function from lengths of pieces, int64 [N], to costs, int64 [N],
            whose sum over a row must not exceed the limit.
          pack: False puts each piece in its own row.
          sentences: rows also have the feature sentence_ids; not with first_id or last_id, which are in no sentence.
          filled: if pieces require more positions in the worst case than on average, a function from lengths of pieces,
            int64 [N], to the average number of positions that they fill, float64 [N], for padding_share.

        Raises:
          ValueError: a single piece exceeds a limit.
        """
        self._corpus, self._sentences = corpus, sentences
        if sentences:
            self.FEATURES = self.FEATURES | {"sentence_ids": 1}
        self._first, self._last = (np.array([] if i is None else [i], np.int32) for i in (first_id, last_id))
        lengths = np.diff(corpus.document_starts) + len(self._first) + len(self._last)
        if longest is None:
            longest = num_tokens - (0 if callable(extra) else extra)
        step = longest - overlap
        counts = np.maximum(-(-(lengths - overlap) // step), 1)
        # For each piece, its document, and its beginning and end in the document.
        self._documents = np.repeat(np.arange(len(lengths)), counts)
        ends = np.cumsum(counts)
        self._begins = (np.arange(len(self._documents)) - np.repeat(ends - counts, counts)) * step
        self._ends = np.minimum(self._begins + longest, lengths[self._documents])

        sizes = self._ends - self._begins
        limits = np.array([num_tokens, *(limit for limit, _ in also)], np.int64)
        costs = np.stack(
            [sizes + (extra(sizes) if callable(extra) else extra), *(cost(sizes) for _, cost in also)], 1
        ).astype(np.int64)
        if np.any(costs > limits):
            raise ValueError(
                f"a piece of {longest} tokens costs {costs.max(0).tolist()}, more than the limits {limits.tolist()}"
            )
        starts = np.concatenate([[0], ends])[:-1:_WINDOW] if pack else None
        self._pieces, self._row_starts = assign(costs, limits, starts)
        capacity = max(len(self), 1) * num_tokens
        positions = (costs[:, 0] if filled is None else filled(sizes)).sum()
        self.padding_share = float(1 - positions / capacity) if len(self) else 0.0
        """The fraction of padding of all rows."""

    def __len__(self) -> int:
        return len(self._row_starts) - 1

    def row(self, index: int, numbers=None) -> tuple[np.ndarray, ...]:
        """Returns one row: token_ids, document_ids int32 [n]; its pieces are documents 1, 2, ... in the corpus's order.

        With `sentences`, it also returns sentence_ids int32 [n]: the row's sentences are numbered 1, 2, ...; a sentence
        that was cut is a sentence in each piece. `numbers` is unused, because nothing is random here; other kinds of
        rows use it.
        """
        pieces = self._pieces[self._row_starts[index] : self._row_starts[index + 1]]
        parts = [self._piece(piece) for piece in pieces]
        numbers_of_pieces = np.arange(1, len(parts) + 1, dtype=np.int32)
        row = np.concatenate(parts), np.repeat(numbers_of_pieces, [len(part) for part in parts])
        if not self._sentences:
            return row
        begins = np.concatenate([self._sentence_begins(piece) for piece in pieces])
        return *row, np.cumsum(begins, dtype=np.int32)

    def _piece(self, piece: int) -> np.ndarray:
        begin, end = self._begins[piece], self._ends[piece]
        start, stop = self._corpus.document_starts[self._documents[piece] :][:2]
        before = len(self._first)
        words = self._corpus.token_ids[start + max(begin - before, 0) : min(start + end - before, stop)]
        first = self._first if begin == 0 else self._first[:0]
        last = self._last if end == stop - start + before + len(self._last) else self._last[:0]
        return np.concatenate([first, words, last])

    def _sentence_begins(self, piece: int) -> np.ndarray:
        """Returns which tokens of a piece begin a sentence; the first one always does."""
        start = self._corpus.document_starts[self._documents[piece]]
        begin, end = start + self._begins[piece], start + self._ends[piece]
        low, high = np.searchsorted(self._corpus.sentence_starts, [begin, end])
        begins = np.zeros(end - begin, bool)
        begins[self._corpus.sentence_starts[low:high] - begin] = True
        begins[0] = True
        return begins


def assign(
    costs: np.ndarray, limits: np.ndarray, window_starts: Sequence[int] | np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Assigns pieces to rows by best fit within each window.

    Args:
      costs: int64 [N, K], the costs of each piece.
      limits: int64 [K]; the sum of the costs of a row must not exceed them. The first one decides which row is fullest.
      window_starts: the first piece of each window, ascending; None puts each piece in its own row.

    Returns:
      The pieces sorted by row, then by number, int64 [N]; and the first place of each row among them, int64 [R + 1].
    """
    if window_starts is None:
        row = np.arange(len(costs))
    else:
        borders = np.append(window_starts, len(costs)).astype(np.int64)
        windows = zip(borders[:-1], borders[1:], strict=True)
        rows = [_best_fit(costs[begin:end], limits) for begin, end in windows]
        firsts = np.cumsum([0, *(row.max(initial=-1) + 1 for row in rows)])
        row = np.concatenate([r + first for r, first in zip(rows, firsts[:-1], strict=True)] or [np.zeros(0, int)])
    pieces = np.argsort(row, kind="stable")
    return pieces, np.searchsorted(row[pieces], np.arange(row.max(initial=-1) + 2))


def window_starts(count: int) -> np.ndarray:
    """Returns the `window_starts` of `assign` for documents that are one piece each."""
    return np.arange(0, count, _WINDOW)


def _best_fit(costs: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Assigns pieces with costs int64 [N, K] to rows with limits int64 [K]: the row of each piece, int64 [N]. Rows are
    numbered in the order of their first pieces."""
    full = costs[:, 0] == limits[0]
    row = np.cumsum(full) - 1  # A shortcut for pieces that fill a row: most pieces of long documents do.
    left = np.empty((np.count_nonzero(~full), len(limits)), np.int64)
    used, first_free = 0, np.count_nonzero(full)
    order = np.argsort(-costs[:, 0], kind="stable")
    for i in order[~full[order]]:
        # The fullest row in which the piece fits, or a new row if there is none.
        fits = np.all(left[:used] >= costs[i], 1)
        best = int(np.argmin(np.where(fits, left[:used, 0], limits[0] + 1))) if used else 0
        if not used or not fits[best]:
            best, used = used, used + 1
            left[best] = limits
        left[best] -= costs[i]
        row[i] = first_free + best
    _, first, inverse = np.unique(row, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]
