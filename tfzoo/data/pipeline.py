"""From rows to batches: order, reading, the objective's `prepare`, batching, as one tf.data pipeline.

Rows are any object with a length, `row(index, numbers)`, a pure function of the index and four random numbers in
[0, 1), and FEATURES, the names and ranks of the int32 arrays that it returns: PairRows, PackedRows.
"""

import numpy as np
import tensorflow as tf

from tfzoo.data import order


def examples(rows, positions: tf.data.Dataset, seed: int, epoch: int | None = None) -> tf.data.Dataset:
    """Examples at global positions (a dataset of int64), each with the seed of its own.

    An example is what the row has, such as {"token_ids": int32 [n], "block_ids": int32 [n]}, and "seed", int32 [2].
    `epoch` given, rows come in their own order and every pass is that epoch, as an evaluation needs.
    """

    def read(index, numbers):
        return [np.asarray(feature, np.int32) for feature in rows.row(int(index), numbers)]

    def example(position):
        if epoch is None:
            current, index = order.epoch_and_index(position, len(rows), seed)
        else:
            current, index = tf.constant(epoch, tf.int64), position
        example_seed = order.example_seed(seed, current, index)
        # The row's own draws and the objective's come from one seed, folded differently.
        numbers = tf.random.stateless_uniform([4], tf.random.experimental.stateless_fold_in(example_seed, 1))
        values = tf.numpy_function(read, [index, numbers], [tf.int32] * len(rows.FEATURES), stateful=False)
        features = {
            name: tf.ensure_shape(value, [None] * rank)
            for (name, rank), value in zip(rows.FEATURES.items(), values, strict=True)
        }
        return features | {"seed": tf.random.experimental.stateless_fold_in(example_seed, 2)}

    return positions.map(example, num_parallel_calls=2, deterministic=True)


def training_batches(rows, objective, *, batch_size: int, seed: int, first_step: int, num_steps: int):
    """Batches of steps `first_step` to `num_steps`: step s takes the positions s * batch_size and following."""
    positions = tf.data.Dataset.range(first_step * batch_size, num_steps * batch_size)
    batches = examples(rows, positions, seed).map(objective.prepare, num_parallel_calls=2, deterministic=True)
    return batches.batch(batch_size, drop_remainder=True).prefetch(4).with_options(_options())


def evaluation_batches(rows, objective, *, batch_size: int, seed: int, num_batches: int):
    """The first rows of the held-out part, in order and always prepared alike.

    What a last batch lacks is filled with zeros, and so with weights of 0.
    """
    positions = tf.data.Dataset.range(min(len(rows), num_batches * batch_size))
    batches = examples(rows, positions, seed, epoch=0).map(objective.prepare, num_parallel_calls=2, deterministic=True)

    def whole(batch):
        return {
            name: tf.ensure_shape(
                tf.pad(x, [[0, batch_size - tf.shape(x)[0]], *[[0, 0]] * (len(x.shape) - 1)]),
                [batch_size, *x.shape[1:]],
            )
            for name, x in batch.items()
        }

    return batches.batch(batch_size).map(whole).with_options(_options())


def _options() -> tf.data.Options:
    options = tf.data.Options()
    # Every process reads what its positions say: nothing is to be sharded by file.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    # Threads of its own: the pipeline must not wait for the training step's.
    options.threading.private_threadpool_size = 2
    return options
