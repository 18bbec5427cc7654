"""An n-gram language model with interpolated modified Kneser-Ney smoothing, in NumPy.

    model = KneserNey(train.token_ids, train.document_starts, order=5, vocab_size=tokenizer.vocab_size)
    scores = model.score(held_out.token_ids, held_out.document_starts)
    perplexity = np.exp(-scores.log_probabilities.mean())

Estimating the model on a million tokens takes about a second. Its figures are what a neural language model is compared
with.
"""

from typing import NamedTuple

import numpy as np

# Of counts 1, 2 and 3 or more, where the counts do not determine them. KenLM's --discount_fallback uses the same.
_DEFAULT_DISCOUNTS = (0.5, 1.0, 1.5)


class Scores(NamedTuple):
    """The scores of N tokens."""

    log_probabilities: np.ndarray  # float64 [N], natural logarithms.
    likeliest: np.ndarray  # int64 [N], the token with the highest probability in place of each token.


class _Grams(NamedTuple):
    """The U different k-grams of a text.

    A k-gram is identified by its rank in `keys`. Its key is (rank of its first k - 1 tokens among the (k-1)-grams) *
    (vocab_size + 1) + (its last token), which fits into 64 bits for any order.
    """

    keys: np.ndarray  # int64 [U], ascending.
    counts: np.ndarray  # int64 [U]
    suffixes: np.ndarray  # int64 [U], the ranks of the last k - 1 tokens among the (k-1)-grams.


class _Level(NamedTuple):
    """The terms of order k: of U k-grams, and of C contexts, which are the (k-1)-grams."""

    keys: np.ndarray  # int64 [U + 1], those of _Grams, and a last one that is larger than any key.
    shares: np.ndarray  # float64 [U + 1], (c(h w) - D(c(h w))) / c(h), and 0.
    backoffs: np.ndarray  # float64 [C], b(h).
    likeliest: np.ndarray  # int64 [C], the token with the highest probability after each context.


class KneserNey:
    """p(w | context) of order n (Chen and Goodman 1999, An empirical study of smoothing techniques, section 3).

    With h a context of k - 1 tokens and h' the same without its first token,

        p(w | h) = (c(h w) - D(c(h w))) / c(h) + b(h) p(w | h'),    b(h) = (sum over w of D(c(h w))) / c(h),

    where c(h) is the sum of c(h w) over w. At the highest order, c is the number of occurrences. At lower orders, it is
    the number of different tokens that precede the k-gram in the text (Kneser and Ney 1995). The recursion ends with
    the uniform distribution over the vocabulary. After a context that does not occur, p(w | h) is p(w | h').

    Each order has three discounts D, for counts of 1, 2, and 3 or more. With n_i the number of k-grams whose count is
    i, and Y = n_1 / (n_1 + 2 n_2),

        D_1 = 1 - 2 Y n_2 / n_1,    D_2 = 2 - 3 Y n_3 / n_2,    D_3 = 3 - 4 Y n_4 / n_3.

    If one of these is undefined or not positive, as in small texts and for small vocabularies, the order uses 0.5, 1
    and 1.5.

    No k-gram crosses the border between two documents. A virtual token precedes each document; it belongs to contexts
    and is never predicted. A k-gram that begins with it has no preceding token and is counted by its occurrences.

    Args:
      token_ids: int [N], the concatenated documents of the training text.
      document_starts: int [D + 1], ascending offsets of the documents in token_ids, which end with N, as in
        TokenizedCorpus; None means one document.
      order: n, at least 1.
      vocab_size: the number of tokens that share the probability.

    Raises:
      ValueError: a token id is not from 0 to vocab_size - 1, or the order is less than 1.
    """

    def __init__(
        self, token_ids: np.ndarray, document_starts: np.ndarray | None = None, *, order: int, vocab_size: int
    ):
        if order < 1:
            raise ValueError(f"order {order} must be at least 1")
        self.order, self.vocab_size = order, vocab_size
        self._levels: list[_Level] = []
        # Of order 0: the probability of each gram's last token; and the most likely token after each context.
        probabilities, likeliest, highest = np.array([1 / vocab_size]), np.array([0]), np.array([1 / vocab_size])
        context_suffixes = np.array([0])
        for grams in self._count(token_ids, document_starts):
            contexts, words = np.divmod(grams.keys, vocab_size + 1)
            taken = _discounts(grams.counts)[np.minimum(grams.counts, 3)]
            totals = np.bincount(contexts, grams.counts, len(probabilities))
            divisors = np.maximum(totals, 1)
            shares = (grams.counts - taken) / divisors[contexts]
            # A context that only ends documents has no continuation.
            backoffs = np.where(totals > 0, np.bincount(contexts, taken, len(totals)) / divisors, 1.0)
            probabilities = shares + backoffs[contexts] * probabilities[grams.suffixes]
            # After h, the most likely token is either one of those that occur after h, or that of h', which no other
            # token that does not occur after h exceeds.
            highest, likeliest = backoffs * highest[context_suffixes], likeliest[context_suffixes]
            begins = np.flatnonzero(np.append(True, contexts[1:] != contexts[:-1])[: len(contexts)])
            if len(begins):
                own = np.where(words < vocab_size, probabilities, 0.0)
                highest[contexts[begins]] = np.maximum(highest[contexts[begins]], np.maximum.reduceat(own, begins))
                best = np.flatnonzero(own == highest[contexts])
                likeliest[contexts[best]] = words[best]
            # A key beyond all others, so that a search always ends at a key.
            keys, shares = np.append(grams.keys, np.iinfo(np.int64).max), np.append(shares, 0.0)
            self._levels.append(_Level(keys, shares, backoffs, likeliest))
            context_suffixes = grams.suffixes

    def score(self, token_ids: np.ndarray, document_starts: np.ndarray | None = None) -> Scores:
        """Scores each token given the previous tokens of its document, of which the last n - 1 matter.

        Args:
          token_ids, document_starts: as for the class.

        Raises:
          ValueError: a token id is not from 0 to vocab_size - 1.
        """
        words, places = self._framed(token_ids, document_starts)
        probabilities, likeliest = np.full(len(words), 1 / self.vocab_size), np.zeros(len(words), np.int64)
        contexts = np.zeros(len(words), np.int64)
        for k, level in enumerate(self._levels, 1):
            known = np.flatnonzero((contexts >= 0) & (places >= k - 1))
            keys = contexts[known] * (self.vocab_size + 1) + words[known]
            ranks = np.searchsorted(level.keys, keys)
            found = level.keys[ranks] == keys
            shares = np.where(found, level.shares[ranks], 0.0)
            probabilities[known] = shares + level.backoffs[contexts[known]] * probabilities[known]
            likeliest[known] = level.likeliest[contexts[known]]
            contexts = _after(known[found], ranks[found], len(words))
        real = words < self.vocab_size
        return Scores(np.log(probabilities[real]), likeliest[real])

    def _count(self, token_ids: np.ndarray, document_starts: np.ndarray | None) -> list[_Grams]:
        """Returns the k-grams of each order, from 1 to n, with the counts c."""
        words, places = self._framed(token_ids, document_starts)
        levels: list[_Grams] = []
        ranks = contexts = np.zeros(len(words), np.int64)  # The (k-1)-grams that end with each token, and before it.
        for k in range(1, self.order + 1):
            ends = np.flatnonzero(places >= k - 1)
            keys = contexts[ends] * (self.vocab_size + 1) + words[ends]
            order = np.argsort(keys)
            keys = keys[order]
            new = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
            firsts = np.flatnonzero(new)
            grams = _Grams(keys[firsts], np.diff(np.append(firsts, len(keys))), ranks[ends[order[firsts]]])
            if k == 1:
                grams.counts[grams.keys == self.vocab_size] = 0  # The virtual token.
            else:
                preceding = np.bincount(grams.suffixes, minlength=len(levels[-1].keys))
                counts = np.where(preceding > 0, preceding, levels[-1].counts)
                levels[-1] = levels[-1]._replace(counts=counts)
            levels.append(grams)
            ranks = np.zeros(len(words), np.int64)
            ranks[ends[order]] = np.cumsum(new) - 1
            contexts = np.append(0, ranks[:-1])
        return levels

    def _framed(self, token_ids: np.ndarray, document_starts: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Inserts the virtual token, vocab_size, before each document.

        Returns:
          The tokens and their positions in their documents, int64 [N + D]; the virtual token has position 0.
        """
        token_ids = np.asarray(token_ids)
        starts = np.array([0, len(token_ids)]) if document_starts is None else np.asarray(document_starts)
        if len(token_ids) and not 0 <= token_ids.min() <= token_ids.max() < self.vocab_size:
            raise ValueError(f"token ids must be from 0 to {self.vocab_size - 1}")
        lengths = np.diff(starts)
        begins = starts[:-1] + np.arange(len(lengths))
        words = np.full(len(token_ids) + len(lengths), self.vocab_size, np.int64)
        words[np.arange(len(token_ids)) + np.repeat(np.arange(len(lengths)), lengths) + 1] = token_ids
        return words, np.arange(len(words)) - np.repeat(begins, lengths + 1)


def _after(positions: np.ndarray, ranks: np.ndarray, size: int) -> np.ndarray:
    """Returns the rank of the gram before each position, int64 [size], of grams that end at `positions`; -1 is none."""
    contexts = np.full(size + 1, -1)
    contexts[positions + 1] = ranks
    return contexts[:-1]


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Returns the discounts of counts of 0, 1, 2, and 3 or more: float64 [4]."""
    n = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].astype(np.float64)
    discounts = np.array(_DEFAULT_DISCOUNTS)
    if n.all():
        i = np.arange(1, 4)
        estimated = i - (i + 1) * n[0] / (n[0] + 2 * n[1]) * n[1:] / n[:-1]
        discounts = estimated if np.all(estimated > 0) else discounts
    return np.append(0.0, discounts)
