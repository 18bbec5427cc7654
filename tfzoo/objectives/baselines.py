"""Baselines without a trained model: token frequencies, one neighboring token, and an n-gram model.

The figures of a language model mean little on their own. The baselines are estimated from the same training text and
evaluated on the same tokens.
"""

import contextlib

import numpy as np

from tfzoo.errors import UserError
from tfzoo.evaluation.ngram import KneserNey

NGRAM_ORDER = 5
# The n-gram model is estimated in a few seconds from this many tokens; `tfzoo.score --ngram` uses all of them.
_NGRAM_TOKENS = 4_000_000


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
        count = max(1, len(word))  # A text of a few tokens may have no masked ones.
        return {
            "masked_lm_accuracy": float(np.sum(guess == word)) / count,
            "masked_lm_loss": -float(np.sum(np.log(probability))) / count,
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


def frequencies(train_ids: np.ndarray, targets: np.ndarray, tokenizer) -> np.ndarray:
    """Returns the probability of each token, float64 [vocab_size].

    Ordinary tokens have their frequency (add-one smoothed) in the training text. Special tokens do not occur there and
    have their frequency among the targets, which is at least as good as any estimate that ignores the context.

    Args:
      train_ids: int32 [N], the token ids of the training text.
      targets: int [M], the tokens to predict.
      tokenizer: of the run.
    """
    size, special = tokenizer.vocab_size, tokenizer.special_ids
    target_frequency = np.bincount(targets, minlength=size) / max(len(targets), 1)
    frequency = np.bincount(train_ids, minlength=size) + 1.0
    frequency[special] = 0
    frequency *= (1 - target_frequency[special].sum()) / max(frequency.sum(), 1)
    frequency[special] = target_frequency[special]
    return frequency


def neighbour_baseline(train_ids: np.ndarray, batches, tokenizer, name: str) -> dict[str, dict[str, float]]:
    """Returns accuracy and loss (nats), over the batches' targets, of predicting each token from the one before it.

    Targets that are special tokens, and those that follow one, have the probabilities of `frequencies`; the others
    those of a NeighbourTable of the training text.

    Args:
      train_ids: int32 [N], the token ids of the training text.
      batches: the evaluation batches, as dicts of numpy arrays with targets, target_weights and before_targets: the
        token before each target.
      tokenizer: of the run.
      name: the prefix of the figures.

    Returns:
      {"neighbour": {NAME_loss, NAME_accuracy}}
    """
    targets, neighbours = (
        np.concatenate([batch[key][batch["target_weights"] > 0] for batch in batches])
        for key in ("targets", "before_targets")
    )
    frequency = frequencies(train_ids, targets, tokenizer)
    is_special = np.isin(np.arange(len(frequency)), tokenizer.special_ids)
    ordinary = np.where(is_special, 0.0, frequency)
    share = ordinary.sum()
    kept = ~(is_special[train_ids[:-1]] | is_special[train_ids[1:]])
    table = NeighbourTable(train_ids[:-1][kept], train_ids[1:][kept], ordinary / max(share, 1e-300))
    by_frequency = is_special[neighbours] | is_special[targets]
    probability = np.where(by_frequency, frequency[targets], share * table.probability(neighbours, targets))
    guess = np.where(is_special[neighbours], np.argmax(frequency), table.likeliest(neighbours))
    return {"neighbour": _means(name, probability, guess == targets)}


def ngram_baseline(rows, row_tokens: int, batches, tokenizer, name: str) -> dict[str, dict[str, float]]:
    """Returns accuracy and loss (nats), over the batches' targets, of a Kneser-Ney model of order NGRAM_ORDER.

    The model is estimated from training rows and evaluated on evaluation rows, and therefore has the context that a
    decoder has. Of more than 4 million tokens, it uses rows at regular intervals.

    Args:
      rows: the training rows; `row(index)` returns token_ids, document_ids int32 [n].
      row_tokens: the maximum number of tokens per row.
      batches: the evaluation batches, as dicts of numpy arrays [B, L]: token_ids, targets, target_weights, and
        document_ids if rows contain several documents. Each target is the token after its position in the document.
      tokenizer: of the run.
      name: the prefix of the figures.

    Returns:
      {"n-gram": {NAME_loss, NAME_accuracy}}
    """
    parts = [(np.zeros(0, np.int32), np.zeros(0, np.int32))]
    for index in range(0, len(rows), -(-len(rows) * row_tokens // _NGRAM_TOKENS)):
        with contextlib.suppress(UserError):  # The training reports a row that cannot be read.
            parts.append(rows.row(index)[:2])
    token_ids, document_ids = (np.concatenate(column) for column in zip(*parts, strict=True))
    row_numbers = np.repeat(np.arange(len(parts)), [len(ids) for ids, _ in parts])
    starts = _starts(row_numbers, document_ids)
    model = KneserNey(token_ids, starts, order=NGRAM_ORDER, vocab_size=tokenizer.vocab_size)

    inputs, targets, weights = (
        np.concatenate([batch[key] for batch in batches]) for key in ("token_ids", "targets", "target_weights")
    )
    if "document_ids" in batches[0]:
        documents = np.concatenate([batch["document_ids"] for batch in batches])
    else:  # Padding follows the last target.
        documents = np.flip(np.maximum.accumulate(np.flip(weights > 0, 1), 1), 1)
    real = documents > 0
    targets, measured = targets[real], weights[real] > 0
    starts = _starts(np.nonzero(real)[0], documents[real])
    # The tokens of a document are its inputs and the target of its last input.
    scores = model.score(np.insert(inputs[real], starts[1:], targets[starts[1:] - 1]), starts + np.arange(len(starts)))
    places = np.arange(len(targets)) + np.repeat(np.arange(1, len(starts)), np.diff(starts))
    hits = scores.likeliest[places] == targets
    return {"n-gram": _means(name, np.exp(scores.log_probabilities[places])[measured], hits[measured])}


def _starts(rows: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Returns the offsets of the documents of N tokens, int64 [D + 1], from the row and the document of each token."""
    differ = (rows[1:] != rows[:-1]) | (documents[1:] != documents[:-1])
    return np.append(np.flatnonzero(np.append(True, differ)[: len(rows)]), len(rows))


def _means(name: str, probabilities: np.ndarray, hits: np.ndarray) -> dict[str, float]:
    """Returns the loss and the accuracy of N predictions, from the targets' probabilities and whether each was hit."""
    count = max(len(hits), 1)
    return {f"{name}_loss": float(-np.log(probabilities).sum() / count), f"{name}_accuracy": float(hits.sum() / count)}
