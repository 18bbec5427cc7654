"""Which example comes when: a pure function of (seed, epoch, position), so that resuming is one integer."""

import tensorflow as tf


def epoch_and_index(position, num_examples: int, seed: int):
    """The example at a global position (int64 scalar): (epoch, index), both int64.

    Every epoch visits each index once, in an order of its own; nothing is stored.
    """
    position = tf.cast(position, tf.int64)
    epoch = position // num_examples
    index = tf.random.experimental.index_shuffle(
        position % num_examples, tf.stack([tf.constant(seed, tf.int64), epoch]), num_examples - 1
    )
    return epoch, index


def example_seed(seed: int, epoch, index):
    """A seed [2] for tf.random.stateless_*, int64 as epoch and index are, of its own for each of them."""
    folded = tf.random.experimental.stateless_fold_in(tf.constant([seed & 0x7FFFFFFF, 0], tf.int32), epoch)
    return tf.random.experimental.stateless_fold_in(folded, index)
