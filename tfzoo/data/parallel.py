"""Rows of parallel text: each pair is a text and its translation, and several pairs can share a row.

A parallel document has exactly two sentences, the text and its translation. A summary, an answer or any other text that
is to be written for the first one can take the place of the translation.
"""

import numpy as np

from tfzoo.data import packing
from tfzoo.data.tokenized import TokenizedCorpus
from tfzoo.errors import UserError


class ParallelRows:
    """Random access to rows of pairs; `row(index)` is a pure function.

    With `pack`, pairs are assigned to rows by best fit, as in PackedRows. The two texts of a pair are always in the
    same row, and have the same number there.
    """

    FEATURES = {
        "first": 1,
        "first_documents": 1,
        "second": 1,
        "second_documents": 1,
    }  # What `row` returns: name -> rank.

    def __init__(
        self,
        corpus: TokenizedCorpus,
        first_tokens: int,
        second_tokens: int,
        *,
        first_extra: int = 0,
        second_extra: int = 0,
        total_tokens: int | None = None,
        pack: bool = True,
    ):
        """Assigns all pairs of the corpus to rows.

        Args:
          corpus: the pairs; each document has two sentences.
          first_tokens, second_tokens: the capacity of a row for the first and the second texts.
          first_extra, second_extra: positions that each text requires in addition to its tokens, for the special tokens
            that the objective adds.
          total_tokens: the capacity of a row for both texts together; None means first_tokens + second_tokens.
          pack: False puts each pair in its own row.

        Raises:
          UserError: a document does not have two sentences with tokens.
          ValueError: a capacity leaves no space for a token.
        """
        self._corpus = corpus
        # For each document, the number of its first sentence; the last element is the number of all sentences.
        first_sentences = np.searchsorted(corpus.sentence_starts, corpus.document_starts)
        counts = np.diff(first_sentences)
        others = np.flatnonzero(counts != 2)
        if len(others):
            found = int(counts[others[0]])
            raise UserError(
                f"--corpus: is not parallel text: document {others[0] + 1} has {found} sentence{'s' * (found != 1)} "
                "instead of 2, a text and its translation; specify parallel files"
            )
        self._starts = corpus.sentence_starts[:-1].reshape(-1, 2)
        sizes = np.diff(corpus.sentence_starts).reshape(-1, 2)
        extra = np.array([first_extra, second_extra])
        capacity = np.array([first_tokens, second_tokens])
        total = int(capacity.sum()) if total_tokens is None else total_tokens
        if np.any(capacity <= extra) or total <= extra.sum() + 1:
            raise ValueError(f"rows of {first_tokens} and {second_tokens} tokens, {total} in total, hold no pair")
        first, second = np.minimum(sizes, capacity - extra).T
        # If a pair is too long, only its longer text is cut, or both to half of the capacity.
        space = total - int(extra.sum())
        first = np.minimum(first, np.maximum(space - second, space // 2))
        second = np.minimum(second, space - first)
        self._sizes = np.stack([first, second], 1)
        self.num_texts = sizes.size
        """The number of texts, two per pair."""
        self.num_cut = int(np.count_nonzero(self._sizes < sizes))
        """The number of texts whose end was cut off, because they are longer than a row."""

        costs = self._sizes + extra
        costs = np.concatenate([costs.sum(1, keepdims=True), costs], 1).astype(np.int64)
        limits = np.array([total, first_tokens, second_tokens], np.int64)
        starts = packing.window_starts(len(costs)) if pack else None
        self._pairs, self._row_starts = packing.assign(costs, limits, starts)
        self.padding_share = float(1 - costs[:, 0].sum() / (len(self) * total)) if len(self) else 0.0
        """The fraction of padding of all rows."""

    def __len__(self) -> int:
        return len(self._row_starts) - 1

    def row(self, index: int, numbers=None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Returns one row: first, first_documents, second, second_documents, int32 [n] each.

        Its pairs are documents 1, 2, ... in the corpus's order. `numbers` is unused, because nothing is random here;
        other kinds of rows use it.
        """
        pairs = self._pairs[self._row_starts[index] : self._row_starts[index + 1]]
        return *self._side(pairs, 0), *self._side(pairs, 1)

    def _side(self, pairs: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
        starts, sizes = self._starts[pairs, side], self._sizes[pairs, side]
        parts = [self._corpus.token_ids[start : start + size] for start, size in zip(starts, sizes, strict=True)]
        return np.concatenate(parts), np.repeat(np.arange(1, len(pairs) + 1, dtype=np.int32), sizes)
