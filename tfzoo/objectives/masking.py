"""Selection of the tokens that masked language modeling predicts: single tokens, or units of consecutive words."""

import numpy as np

from tfzoo import lazy
from tfzoo.objectives import shared

tf = lazy.module("tensorflow")


def span_lengths() -> np.ndarray:
    """Returns the probabilities of spans of 1, 2, ... 10 words in SpanBERT (Joshi et al. 2020, section 3.1).

    They are those of a geometric distribution with p = 0.2 under the condition that the length is at most 10. The mean
    is 3.8 words, as in the paper.
    """
    weights = 0.2 * 0.8 ** np.arange(10)
    return weights / weights.sum()


def draw_tokens(documents, wanted, seed):
    """Selects wanted[document - 1] tokens of each document: bool [N].

    documents: int32 [N], ascending, from 1. wanted: int32 [D]. seed: int32 [2].
    """
    scores = tf.random.stateless_uniform([tf.size(documents)], shared.fold(seed, 0))
    return shared.draw(scores, documents, wanted)


def draw_units(positions, documents, continues, wanted, probabilities, seed):
    """Selects units of consecutive words, within the budget of each document.

    The words of a document are visited in random order, until the budget is spent. A word that is not yet selected
    begins a unit of n words, where n is random. The unit ends earlier if the next word is already selected, exceeds
    the budget or does not follow immediately; a word that exceeds the budget by itself is passed over.

    Args:
      positions, documents: int32 [N], the position in the row and the document, from 1, of each token that may be
        selected; both ascending.
      continues: bool [N], whether a token belongs to the same word as the token at the previous position, if there is
        such a token in the same document.
      wanted: int32 [D], the budget of each document, in tokens.
      probabilities: float [n], those of units of 1, 2, ... n words.
      seed: int32 [2].

    Returns:
      int32 [N]: a number that the selected tokens of a unit, and only these, share; 0 for a token that is not selected.
    """
    count = tf.size(positions)
    follows = (positions[1:] == positions[:-1] + 1) & (documents[1:] == documents[:-1])
    follows = tf.concat([[False], follows], 0)[:count]
    begins = ~(follows & continues)
    word = tf.cumsum(tf.cast(begins, tf.int32)) - 1
    sizes = tf.math.bincount(word)  # Tokens of each word.
    owners, follows = tf.boolean_mask(documents, begins), tf.boolean_mask(follows, begins)
    scores = tf.boolean_mask(tf.random.stateless_uniform([count], shared.fold(seed, 0)), begins)
    numbers = tf.boolean_mask(tf.random.stateless_uniform([count], shared.fold(seed, 2)), begins)
    borders = tf.constant(np.cumsum(probabilities)[:-1], tf.float32)
    lengths = 1 + tf.searchsorted(borders, numbers, side="right")  # Of the unit that each word would begin.

    # All documents visit their words at the same time, one word of each in a step.
    visits = shared.order_by_score(scores, owners)
    words = tf.math.bincount(owners - 1, minlength=tf.size(wanted))  # Of each document.
    firsts = tf.cumsum(words, exclusive=True)
    longest = len(probabilities)
    offsets = tf.range(longest)
    padding = [[0, longest]]  # A unit that begins at the last word looks at words beyond it.
    sizes, follows = tf.pad(sizes, padding), tf.pad(follows, padding)

    def unfinished(step, units, spent):
        return tf.reduce_any((step < words) & (spent < wanted))

    def visit(step, units, spent):
        active = (step < words) & (spent < wanted)
        start = tf.gather(visits, tf.where(active, firsts + step, 0))
        window = start[:, None] + offsets
        free = (tf.gather(units, window) == 0) & ((offsets == 0) | tf.gather(follows, window))
        fits = spent[:, None] + tf.cumsum(tf.gather(sizes, window), 1) <= wanted[:, None]
        possible = free & fits & (offsets < tf.gather(lengths, start)[:, None]) & active[:, None]
        selected = tf.math.cumprod(tf.cast(possible, tf.int32), 1)
        units = tf.tensor_scatter_nd_add(units, window[:, :, None], selected * (start[:, None] + 1))
        return step + 1, units, spent + tf.reduce_sum(selected * tf.gather(sizes, window), 1)

    _, units, _ = tf.while_loop(
        unfinished, visit, (tf.constant(0), tf.zeros_like(sizes), tf.zeros_like(wanted)), parallel_iterations=1
    )
    return tf.gather(units, word)
