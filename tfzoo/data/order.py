"""The order of examples, a pure function of (seed, epoch, position), so that a run can resume from one integer."""

import tensorflow as tf


def epoch_and_index(position, num_examples: int, seed: int):
    """Returns the examples at global positions (int64, any shape): (epoch, index), both int64 of that shape.

    Every epoch visits each index once, in a different order; nothing is stored.
    """
    position = tf.cast(position, tf.int64)
    epoch = position // num_examples
    # As tf.random.experimental.index_shuffle, which takes a single seed only, and puts this number in front of it.
    one = tf.ones_like(epoch)
    index = tf.raw_ops.RandomIndexShuffle(
        index=position % num_examples,
        seed=tf.stack([one * 498247692, one * seed, epoch], -1),
        max_index=tf.cast(num_examples - 1, tf.int64),
        rounds=4,
    )
    return epoch, index


def example_seed(seed: int, epoch, index):
    """Returns a seed [2] for tf.random.stateless_*, different for each epoch and index (int64)."""
    folded = tf.random.experimental.stateless_fold_in(tf.constant([seed & 0x7FFFFFFF, 0], tf.int32), epoch)
    return tf.random.experimental.stateless_fold_in(folded, index)
