"""Rows of consecutive sentences, split in two for next-sentence prediction (Devlin et al. 2019, section 3.1).

A row is a window of at most `num_tokens` tokens of one document. Windows follow each other without gaps or overlap, so
that no token is lost, and a row is determined by its index. In every epoch, a row is split at another of the sentence
boundaries inside it. With probability 1/2, the part after the split is then replaced with the same number of tokens
from the start of a sentence of another document. If the row ends its document, the replacement also ends its document;
otherwise, its document continues after the replacement. The replacement never starts with the first sentence of a
document, because the original part does not either. Thus both segments have the same lengths, beginnings and ends
whether they belong together or not, and only the text reveals it. A row is not split if no other document has a
suitable sentence.
"""

import numpy as np

from tfzoo.data.tokenized import TokenizedCorpus

NEXT, NOT_NEXT, NO_PAIR = 0, 1, -1


class PairRows:
    """Random access to rows; `row(index, numbers)` is a pure function."""

    FEATURES = {"first": 1, "second": 1, "next_sentence": 0}  # What `row` returns: name -> rank.

    def __init__(self, corpus: TokenizedCorpus, num_tokens: int, pairs: bool = True):
        """Divides the corpus into rows.

        Args:
          corpus: the documents.
          num_tokens: maximum length of a row, without special tokens.
          pairs: False never splits a row.
        """
        self._corpus, self._pairs = corpus, pairs
        starts, ends = [], []
        for begin, end in zip(corpus.document_starts[:-1], corpus.document_starts[1:], strict=True):
            # A document is divided into windows of equal size instead of full ones and a short remainder.
            count = -(-int(end - begin) // num_tokens)
            cuts = int(begin) + np.arange(count + 1) * int(end - begin) // count
            starts.append(cuts[:-1])
            ends.append(cuts[1:])
        none = [np.zeros(0, np.int64)]
        self._starts, self._ends = np.concatenate(starts or none), np.concatenate(ends or none)
        capacity = max(len(self), 1) * num_tokens
        self.padding_share = float(1 - (self._ends - self._starts).sum() / capacity) if len(self) else 0.0
        """The fraction of padding of all rows."""
        # Candidates for replacement: all but the first sentences of documents, sorted by the number of tokens from
        # their start to the end of their document.
        inner = np.setdiff1d(corpus.sentence_starts, corpus.document_starts)
        left = corpus.document_starts[np.searchsorted(corpus.document_starts, inner)] - inner
        by_left = np.argsort(left, kind="stable")
        self._inner, self._left = inner[by_left], left[by_left]

    def __len__(self) -> int:
        return len(self._starts)

    def row(self, index: int, numbers: np.ndarray):
        """Returns one row.

        Args:
          index: below len(self).
          numbers: 4 floats in [0, 1) that determine where to split, whether to replace, and (the last two) with what.

        Returns:
          first, second: int32 token ids; together at most num_tokens. label: NEXT, NOT_NEXT, or NO_PAIR for a row that
          is not split, because it contains no sentence boundary or nothing can replace its end (second is empty).
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
        other = self._replacement(begin, end, cut, numbers[2:])
        if other is None:
            return corpus.token_ids[begin:end], corpus.token_ids[:0], NO_PAIR
        if numbers[1] < 0.5:
            return first, second, NEXT
        return first, corpus.token_ids[other : other + end - cut], NOT_NEXT

    def _replacement(self, begin: int, end: int, cut: int, numbers) -> int | None:
        """Returns the start of a sentence of another document that can replace the tokens from `cut` to `end`, or None
        if there is no such sentence."""
        borders = self._corpus.document_starts
        document = np.searchsorted(borders, begin, side="right") - 1
        document_begin, document_end = borders[document], borders[document + 1]
        low = np.searchsorted(self._left, end - cut)
        high = np.searchsorted(self._left, end - cut, side="right")
        candidates = self._inner[low:high] if end == document_end else self._inner[high:]
        # The whole list is filtered only if the first selected sentence is in the same document.
        for number in numbers:
            if len(candidates) == 0:
                return None
            selected = candidates[int(float(number) * len(candidates))]
            if not document_begin <= selected < document_end:
                return int(selected)
            candidates = candidates[(candidates < document_begin) | (candidates >= document_end)]
        return None
