"""Rows of consecutive sentences, split in two for next-sentence or sentence-order prediction.

Next sentence (`PairRows`; Devlin et al. 2019, section 3.1): a row is a window of at most `num_tokens` tokens of one
document. Windows follow each other without gaps or overlap, so that no token is lost, and a row is determined by its
index. In every epoch, a row is split at another of the sentence boundaries inside it. With probability 1/2, the part
after the split is then replaced with the same number of tokens from the start of a sentence of another document. If the
row ends its document, the replacement also ends its document; otherwise, its document continues after the replacement.
The replacement never starts with the first sentence of a document, because the original part does not either. Thus both
segments have the same lengths, beginnings and ends whether they belong together or not, and only the text reveals it. A
row is not split if no other document has a suitable sentence.

Sentence order (`OrderRows`; Lan et al. 2020, section 3.1): both segments are consecutive text of one document, and
with probability 1/2 they are swapped. Rows consist of whole sentences, because a segment that begins or ends within a
sentence would reveal the order.
"""

import numpy as np

from tfzoo.data.tokenized import TokenizedCorpus

NEXT, NOT_NEXT, NO_PAIR = 0, 1, -1
IN_ORDER, SWAPPED = 0, 1


class PairRows:
    """Random access to rows; `row(index, numbers)` is a pure function."""

    FEATURES = {"first": 1, "second": 1, "label": 0}  # What `row` returns: name -> rank.

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
            cuts = self._cuts(int(begin), int(end), num_tokens)
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

    def _cuts(self, begin: int, end: int, num_tokens: int) -> np.ndarray:
        """Returns the borders of the rows of a document, from its first to its last: int64 [rows + 1]."""
        # Windows of equal size instead of full ones and a short remainder.
        count = -(-(end - begin) // num_tokens)
        return begin + np.arange(count + 1) * (end - begin) // count

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
        cut = self._split(begin, end, numbers[0]) if self._pairs else None
        if cut is None:
            return corpus.token_ids[begin:end], corpus.token_ids[:0], NO_PAIR
        first, second = corpus.token_ids[begin:cut], corpus.token_ids[cut:end]
        other = self._replacement(begin, end, cut, numbers[2:])
        if other is None:
            return corpus.token_ids[begin:end], corpus.token_ids[:0], NO_PAIR
        if numbers[1] < 0.5:
            return first, second, NEXT
        return first, corpus.token_ids[other : other + end - cut], NOT_NEXT

    def _split(self, begin: int, end: int, number: float) -> int | None:
        """Selects one of the sentences that start strictly inside a row, and returns its start, or None."""
        sentences = self._corpus.sentence_starts
        low, high = np.searchsorted(sentences, [begin + 1, end])
        return None if low == high else int(sentences[low + int(float(number) * (high - low))])

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


class OrderRows(PairRows):
    """Random access to rows whose two segments are in order or swapped; `row(index, numbers)` is a pure function.

    A row consists of as many whole sentences as fit into num_tokens; only a longer sentence is cut.
    """

    def _cuts(self, begin: int, end: int, num_tokens: int) -> np.ndarray:
        sentences, cuts = self._corpus.sentence_starts, [begin]
        while cuts[-1] < end:
            fitting = int(sentences[np.searchsorted(sentences, cuts[-1] + num_tokens, side="right") - 1])
            cuts.append(min(fitting if fitting > cuts[-1] else cuts[-1] + num_tokens, end))
        return np.array(cuts, np.int64)

    def row(self, index: int, numbers: np.ndarray):
        """Returns one row.

        Args:
          index: below len(self).
          numbers: floats in [0, 1); the first two determine where to split and whether to swap.

        Returns:
          first, second: int32 token ids; together at most num_tokens. label: IN_ORDER, SWAPPED, or NO_PAIR for a row
          that is not split, because it is a single sentence or begins within a sentence (second is empty).
        """
        corpus = self._corpus
        begin, end = int(self._starts[index]), int(self._ends[index])
        sentences = corpus.sentence_starts
        whole = sentences[np.searchsorted(sentences, begin)] == begin
        cut = self._split(begin, end, numbers[0]) if whole else None
        if cut is None:
            return corpus.token_ids[begin:end], corpus.token_ids[:0], NO_PAIR
        first, second = corpus.token_ids[begin:cut], corpus.token_ids[cut:end]
        return (first, second, IN_ORDER) if numbers[1] < 0.5 else (second, first, SWAPPED)
