"""Rows that hold several documents, each attending to itself, so that little of a batch is padding.

Documents longer than a row are cut into consecutive pieces: full ones, and what is left. Pieces are then put into rows
by best fit, longest first (Johnson 1973), among those of a window of documents; so a row's index alone determines it,
and reading a row needs the lengths of documents alone.
"""

from collections.abc import Callable, Sequence

import numpy as np

from tfzoo.data.tokenized import TokenizedCorpus

_WINDOW = 4096  # Documents that are packed together.


class PackedRows:
    """Random access to rows; `row(index)` is pure."""

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
    ):
        """Decides which row holds what.

        Args:
          num_tokens: what fits in a row.
          extra: each piece costs its tokens and these, for what the objective puts around it; or lengths of pieces,
            int64 [N] -> how much more or less they cost, int64 [N].
          longest: of pieces, in tokens; if None num_tokens, less extra where that is a number.
          first_id, last_id: tokens put before and after each document, and cut with it.
          overlap: how many of its last tokens a piece shares with the document's next one.
          also: further limits, each (limit, costs): lengths of pieces, int64 [N] -> costs, int64 [N], whose sum over
            a row is at most the limit.
          pack: False puts each piece in a row of its own.

        Raises:
          ValueError: a piece of its own exceeds a limit.
        """
        self._corpus = corpus
        self._first, self._last = (np.array([] if i is None else [i], np.int32) for i in (first_id, last_id))
        lengths = np.diff(corpus.document_starts) + len(self._first) + len(self._last)
        if longest is None:
            longest = num_tokens - (0 if callable(extra) else extra)
        step = longest - overlap
        counts = np.maximum(-(-(lengths - overlap) // step), 1)
        # Of each piece: its document, and where it begins and ends there.
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
        if pack:
            borders = np.append(np.concatenate([[0], ends])[:-1:_WINDOW], len(costs))
            windows = zip(borders[:-1], borders[1:], strict=True)
            rows = [_best_fit(costs[begin:end], limits) for begin, end in windows]
            firsts = np.cumsum([0, *(row.max(initial=-1) + 1 for row in rows)])
            row = np.concatenate([r + first for r, first in zip(rows, firsts[:-1], strict=True)] or [np.zeros(0, int)])
        else:
            row = np.arange(len(costs))
        self._pieces = np.argsort(row, kind="stable")
        self._row_starts = np.searchsorted(row[self._pieces], np.arange(row.max(initial=-1) + 2))
        room = max(len(self), 1) * num_tokens
        self.padding_share = float(1 - costs[:, 0].sum() / room) if len(self) else 0.0
        """What part of all rows is empty."""

    def __len__(self) -> int:
        return len(self._row_starts) - 1

    def row(self, index: int, numbers=None) -> tuple[np.ndarray, np.ndarray]:
        """One row: token_ids, document_ids int32 [n]; the pieces in it are documents 1, 2, ... in the corpus's order.

        numbers: taken as other rows take them; nothing is drawn here.
        """
        parts = [self._piece(p) for p in self._pieces[self._row_starts[index] : self._row_starts[index + 1]]]
        numbers_of_pieces = np.arange(1, len(parts) + 1, dtype=np.int32)
        return np.concatenate(parts), np.repeat(numbers_of_pieces, [len(part) for part in parts])

    def _piece(self, piece: int) -> np.ndarray:
        begin, end = self._begins[piece], self._ends[piece]
        start, stop = self._corpus.document_starts[self._documents[piece] :][:2]
        before = len(self._first)
        words = self._corpus.token_ids[start + max(begin - before, 0) : min(start + end - before, stop)]
        first = self._first if begin == 0 else self._first[:0]
        last = self._last if end == stop - start + before + len(self._last) else self._last[:0]
        return np.concatenate([first, words, last])


def _best_fit(costs: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """costs int64 [N, K], limits int64 [K] -> each one's row, int64 [N]; rows are numbered by their first one."""
    full = costs[:, 0] == limits[0]
    row = np.cumsum(full) - 1  # Those that fill a row are by far the most where documents are long.
    left = np.empty((np.count_nonzero(~full), len(limits)), np.int64)
    used, first_free = 0, np.count_nonzero(full)
    order = np.argsort(-costs[:, 0], kind="stable")
    for i in order[~full[order]]:
        # Of the rows with room the fullest; a new one where there is none.
        fits = np.all(left[:used] >= costs[i], 1)
        best = int(np.argmin(np.where(fits, left[:used, 0], limits[0] + 1))) if used else 0
        if not used or not fits[best]:
            best, used = used, used + 1
            left[best] = limits
        left[best] -= costs[i]
        row[i] = first_free + best
    _, first, inverse = np.unique(row, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]
