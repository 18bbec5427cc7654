"""Baselines without a model: token frequencies, and bigram statistics of one neighboring token.

The figures of a language model mean little on their own. The baselines are estimated from the same training text and
evaluated on the same tokens.
"""

import numpy as np


class NeighbourTable:
    """p(word | neighbor) with Witten-Bell smoothing (Witten and Bell 1991, method C), from the pairs in a text.

    p(w | n) = (c(n, w) + T(n) p(w)) / (c(n) + T(n)), where T(n) is the number of different words next to n, and p(w)
    the add-one smoothed frequency.
    """

    def __init__(self, neighbours: np.ndarray, words: np.ndarray, frequency: np.ndarray):
        self._size, self._frequency = len(frequency), frequency
        self._pairs, self._counts = np.unique(neighbours.astype(np.int64) * self._size + words, return_counts=True)
        seen = self._pairs // self._size
        self._types = np.bincount(seen, minlength=self._size)
        self._totals = np.bincount(seen, weights=self._counts, minlength=self._size)
        # Sorted by neighbor, then by count: the last entry of each neighbor is its most likely word.
        order = np.lexsort((self._counts, seen))
        self._best = np.full(self._size, int(np.argmax(frequency)))
        self._best[seen[order]] = self._pairs[order] % self._size
        # A sentinel pair beyond all others, so that a search always ends at a pair, even if the text has none.
        self._pairs, self._counts = np.append(self._pairs, self._size**2), np.append(self._counts, 0)

    def likeliest(self, neighbours: np.ndarray) -> np.ndarray:
        return self._best[neighbours]

    def probability(self, neighbours: np.ndarray, words: np.ndarray) -> np.ndarray:
        keys = neighbours.astype(np.int64) * self._size + words
        where = np.searchsorted(self._pairs, keys)
        count = np.where(self._pairs[where] == keys, self._counts[where], 0)
        types = self._types[neighbours]
        smoothed = count + types * self._frequency[words]
        total = self._totals[neighbours] + types
        return np.where(total > 0, smoothed / np.maximum(total, 1), self._frequency[words])


def masked_lm_baselines(train_ids: np.ndarray, batches, tokenizer) -> dict[str, dict[str, float]]:
    """Computes the accuracies and losses (nats) of the baselines on the masked tokens of MaskedLM's batches.

    Args:
      train_ids: int32 [N], the token ids of the training text.
      batches: the evaluation batches, as dicts of numpy arrays.
      tokenizer: of the run.

    Returns:
      {"frequency": ..., "neighbour": ...}, each with masked_lm_accuracy, masked_lm_loss and, if there are sentence
      pairs, next_sentence_accuracy or sentence_order_accuracy. "neighbour" sees the left or the right neighbor as the
      model sees it, whichever side scores better, and uses the frequency if that neighbor is masked or special. It
      classifies a pair as "next" if the last token before the cut makes the first one after it more likely than its
      frequency, and as "in order" if that is more likely than the transition from the end of the second segment to the
      beginning of the first.
    """
    size = tokenizer.vocab_size
    counts = np.bincount(train_ids, minlength=size) + 1.0
    counts[tokenizer.special_ids] = 0
    frequency = counts / counts.sum()
    frequency[tokenizer.special_ids] = 1e-12
    left = NeighbourTable(train_ids[:-1], train_ids[1:], frequency)
    right = NeighbourTable(train_ids[1:], train_ids[:-1], frequency)

    words, befores, afters = [], [], []
    pairs: dict[str, tuple[list, list]] = {}  # The labels and the guesses of each kind of pair.
    for batch in batches:
        ids = np.pad(batch["token_ids"], [(0, 0), (0, 1)])
        row, column = np.nonzero(batch["masked_weights"])
        position = batch["masked_positions"][row, column]
        words.append(batch["masked_ids"][row, column])
        befores.append(ids[row, position - 1])
        afters.append(ids[row, position + 1])
        for kind in ("next_sentence", "sentence_order"):
            paired = np.flatnonzero(batch.get(f"{kind}_weight", 0))
            if len(paired):
                start = np.argmax(batch["segment_ids"][paired], 1)
                last, first = ids[paired, start - 2], ids[paired, start]
                forward, other = left.probability(last, first), frequency[first]
                if kind == "sentence_order":
                    end = start + batch["segment_ids"][paired].sum(1) - 1
                    other = left.probability(ids[paired, end - 1], ids[paired, 1])
                labels, guesses = pairs.setdefault(kind, ([], []))
                labels.append(batch[kind][paired])
                guesses.append(np.where(forward > other, 0, 1))
    word = np.concatenate(words)

    def score(guess, probability):
        return {
            "masked_lm_accuracy": float(np.mean(guess == word)),
            "masked_lm_loss": float(-np.mean(np.log(probability))),
        }

    common = np.full(len(word), int(np.argmax(frequency)))
    by_frequency = score(common, frequency[word])
    sides = []
    for table, neighbours in ((left, np.concatenate(befores)), (right, np.concatenate(afters))):
        hidden = np.isin(neighbours, tokenizer.special_ids)
        guess = np.where(hidden, common, table.likeliest(neighbours))
        sides.append(score(guess, np.where(hidden, frequency[word], table.probability(neighbours, word))))
    by_neighbour = max(sides, key=lambda side: side["masked_lm_accuracy"])
    for kind, (labels, guesses) in pairs.items():
        label = np.concatenate(labels)
        by_frequency[f"{kind}_accuracy"] = float(max(np.mean(label), 1 - np.mean(label)))
        by_neighbour[f"{kind}_accuracy"] = float(np.mean(np.concatenate(guesses) == label))
    return {"frequency": by_frequency, "neighbour": by_neighbour}
