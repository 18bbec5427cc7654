"""Rows of one document's text, each with the tokens that precede it in the document, for models with a memory.

A document longer than a row is divided into segments of equal size, so that no row is a short remainder. Thus a row is
determined by its index, and every token of the corpus is in one row.
"""

import numpy as np

from tfzoo.data.tokenized import TokenizedCorpus


class SegmentRows:
    """Random access to rows; `row(index)` is a pure function."""

    FEATURES = {"token_ids": 1, "previous_ids": 1}  # What `row` returns: name -> rank.

    def __init__(self, corpus: TokenizedCorpus, num_tokens: int, memory_length: int):
        """Divides the corpus into rows.

        Args:
          corpus: the documents.
          num_tokens: maximum length of a row.
          memory_length: maximum number of preceding tokens.
        """
        self._token_ids, self._memory_length = corpus.token_ids, memory_length
        lengths = np.diff(corpus.document_starts)
        counts = -(-lengths // num_tokens)
        documents = np.repeat(np.arange(len(lengths)), counts)
        number = np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._document_starts = corpus.document_starts[documents]
        self._starts = self._document_starts + number * lengths[documents] // counts[documents]
        self._ends = self._document_starts + (number + 1) * lengths[documents] // counts[documents]
        capacity = max(len(self), 1) * num_tokens
        self.padding_share = float(1 - lengths.sum() / capacity) if len(self) else 0.0
        """The fraction of padding of all rows, not counting the preceding tokens."""

    def __len__(self) -> int:
        return len(self._starts)

    def row(self, index: int, numbers=None) -> tuple[np.ndarray, np.ndarray]:
        """Returns one row: token_ids int32 [n], and the up to memory_length tokens that precede them in the document,
        int32 [m], none for the first row of a document.

        `numbers` is unused, because nothing is random here; other kinds of rows use it.
        """
        start = self._starts[index]
        previous = max(start - self._memory_length, self._document_starts[index])
        return self._token_ids[start : self._ends[index]], self._token_ids[previous:start]
