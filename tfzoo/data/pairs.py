"""Rows of consecutive sentences, cut in two for next-sentence prediction (Devlin et al. 2019, section 3.1).

A row is a window of at most `num_tokens` tokens of one document. Windows follow each other without gap or
overlap, so no token is lost, and a row's index alone determines the row. Every epoch cuts a row anew at one of
the sentence boundaries inside it. Then, half of the time, what follows the cut is replaced by as many tokens
from the start of a sentence of another document: first and second segment have the same lengths and the same
kind of end whether they belong together or not, so that nothing but the text tells.
"""

import numpy as np

from tfzoo.data.tokenized import TokenizedCorpus

NEXT, NOT_NEXT, NO_PAIR = 0, 1, -1


class PairRows:
    """Random access to rows; `row(index, numbers)` is pure."""

    def __init__(self, corpus: TokenizedCorpus, num_tokens: int, pairs: bool = True):
        """num_tokens: the longest row, special tokens not counted. pairs: False never cuts a row."""
        self._corpus, self._pairs = corpus, pairs
        starts, ends = [], []
        for begin, end in zip(corpus.document_starts[:-1], corpus.document_starts[1:], strict=True):
            # A document is cut into equal windows rather than into full ones and a short rest.
            count = -(-int(end - begin) // num_tokens)
            cuts = int(begin) + np.arange(count + 1) * int(end - begin) // count
            starts.append(cuts[:-1])
            ends.append(cuts[1:])
        none = [np.zeros(0, np.int64)]
        self._starts, self._ends = np.concatenate(starts or none), np.concatenate(ends or none)

    def __len__(self) -> int:
        return len(self._starts)

    def row(self, index: int, numbers: np.ndarray):
        """One row.

        Args:
          index: below len(self).
          numbers: [3] floats in [0, 1), which decide where to cut, whether to replace, and by what.

        Returns:
          first, second: int32 token ids; together at most num_tokens. label: NEXT, NOT_NEXT, or NO_PAIR for a row
          with no sentence boundary inside, which is not cut (second is empty).
        """
        corpus = self._corpus
        begin, end = int(self._starts[index]), int(self._ends[index])
        sentences = corpus.sentence_starts
        # The sentences that start strictly inside the row.
        low, high = np.searchsorted(sentences, [begin + 1, end])
        if low == high or not self._pairs:
            return corpus.token_ids[begin:end], corpus.token_ids[:0], NO_PAIR
        cut = int(sentences[low + int(float(numbers[0]) * (high - low))])
        first, second = corpus.token_ids[begin:cut], corpus.token_ids[cut:end]
        if numbers[1] < 0.5:
            return first, second, NEXT
        # The document's own sentences are the numbers from `own` to `beyond`; draw among all others.
        document = np.searchsorted(corpus.document_starts, begin, side="right") - 1
        own, beyond = np.searchsorted(sentences, corpus.document_starts[document : document + 2])
        others = len(sentences) - 1 - (beyond - own)
        if others == 0:
            return first, second, NEXT  # There is one document only.
        drawn = int(float(numbers[2]) * others)
        start = int(sentences[drawn if drawn < own else drawn + beyond - own])
        limit = corpus.document_starts[np.searchsorted(corpus.document_starts, start, side="right")]
        return first, corpus.token_ids[start : min(start + end - cut, int(limit))], NOT_NEXT
