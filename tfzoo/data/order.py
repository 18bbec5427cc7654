"""The order of examples, a pure function of (seed, epoch, position), so that a run can resume from one integer."""

import tensorflow as tf


def epoch_and_index(position, num_examples: int, seed: int):
    """Returns the example at a global position (int64 scalar): (epoch, index), both int64.

    Every epoch visits each index once, in a different order; nothing is stored.
    """
    position = tf.cast(position, tf.int64)
    epoch = position // num_examples
    index = tf.random.experimental.index_shuffle(
        position % num_examples, tf.stack([tf.constant(seed, tf.int64), epoch]), num_examples - 1
    )
    return epoch, index


def example_seed(seed: int, epoch, index):
    """Returns a seed [2] for tf.random.stateless_*, different for each epoch and index (int64)."""
    folded = tf.random.experimental.stateless_fold_in(tf.constant([seed & 0x7FFFFFFF, 0], tf.int32), epoch)
    return tf.random.experimental.stateless_fold_in(folded, index)
