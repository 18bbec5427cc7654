"""Rows of consecutive sentences, cut in two for next-sentence prediction (Devlin et al. 2019, section 3.1).

A row is a window of at most `num_tokens` tokens of one document. Windows follow each other without gap or
overlap, so no token is lost, and a row's index alone determines the row. Every epoch cuts a row anew at one of
the sentence boundaries inside it. Then, half of the time, what follows the cut is replaced by as many tokens
from the start of a sentence of another document: one that ends there too where the row ends its document, one
that goes on where the row's goes on, and never a document's first sentence, for what follows a cut is none. First
and second segment so have the same lengths, beginnings and ends whether they belong together or not, and nothing
but the text tells. A row for which no other document has such a sentence is not cut.
"""

import numpy as np

from tfzoo.data.tokenized import TokenizedCorpus

NEXT, NOT_NEXT, NO_PAIR = 0, 1, -1


class PairRows:
    """Random access to rows; `row(index, numbers)` is pure."""

    FEATURES = {"first": 1, "second": 1, "next_sentence": 0}  # What `row` returns: name -> rank.

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
        room = max(len(self), 1) * num_tokens
        self.padding_share = float(1 - (self._ends - self._starts).sum() / room) if len(self) else 0.0
        """What part of all rows is empty."""
        # The sentences that may stand in: all but documents' first, by how many tokens their document still has.
        inner = np.setdiff1d(corpus.sentence_starts, corpus.document_starts)
        left = corpus.document_starts[np.searchsorted(corpus.document_starts, inner)] - inner
        by_left = np.argsort(left, kind="stable")
        self._inner, self._left = inner[by_left], left[by_left]

    def __len__(self) -> int:
        return len(self._starts)

    def row(self, index: int, numbers: np.ndarray):
        """One row.

        Args:
          index: below len(self).
          numbers: [4] floats in [0, 1), which decide where to cut, whether to replace, and (the last two) by what.

        Returns:
          first, second: int32 token ids; together at most num_tokens. label: NEXT, NOT_NEXT, or NO_PAIR for a row
          that is not cut, having no sentence boundary inside or nothing to replace its end (second is empty).
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
        other = self._stand_in(begin, end, cut, numbers[2:])
        if other is None:
            return corpus.token_ids[begin:end], corpus.token_ids[:0], NO_PAIR
        if numbers[1] < 0.5:
            return first, second, NEXT
        return first, corpus.token_ids[other : other + end - cut], NOT_NEXT

    def _stand_in(self, begin: int, end: int, cut: int, numbers) -> int | None:
        """Where a sentence of another document starts that may replace the tokens from `cut` to `end`, if any does."""
        borders = self._corpus.document_starts
        document = np.searchsorted(borders, begin, side="right") - 1
        own, beyond = borders[document], borders[document + 1]
        low = np.searchsorted(self._left, end - cut)
        high = np.searchsorted(self._left, end - cut, side="right")
        candidates = self._inner[low:high] if end == beyond else self._inner[high:]
        # The whole list is gone through only where the first draw is from this document.
        for number in numbers:
            if len(candidates) == 0:
                return None
            drawn = candidates[int(float(number) * len(candidates))]
            if not own <= drawn < beyond:
                return int(drawn)
            candidates = candidates[(candidates < own) | (candidates >= beyond)]
        return None
