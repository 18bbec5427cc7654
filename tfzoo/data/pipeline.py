"""From rows to batches: order, reading, the objective's `prepare`, batching, as one tf.data pipeline.

Rows are any object with a length, `row(index, numbers)`, a pure function of the index and four random numbers in
[0, 1), and FEATURES, the names and ranks of the int32 arrays that it returns: PairRows, PackedRows, StoredRows.
"""

from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tfzoo.data import order
from tfzoo.errors import UserError

_as_it_is = tf.autograph.experimental.do_not_convert  # Rewriting Python's `if`s, of which none is needed, takes long.
Context = Any  # A tf.distribute.InputContext: TensorFlow ships no types.
ALONE = tf.distribute.InputContext()
ROW_NUMBERS = "row_numbers"  # A feature of evaluation batches: int64 [B], each row's number, -1 where there is no row.


def examples(
    rows, positions: tf.data.Dataset, seed: int, epoch: int | None = None, max_bad_rows: int = 0
) -> tf.data.Dataset:
    """Examples at global positions (a dataset of int64), each with the seed of its own.

    An example is what the row has, such as {"token_ids": int32 [n], "document_ids": int32 [n]}, and "seed", int32 [2].
    `epoch` given, rows come in their own order and every pass is that epoch, as an evaluation needs. Of rows that
    cannot be read (a UserError), so many as max_bad_rows are taken for empty, with a warning.
    """
    unread: set[int] = set()

    def read(index, numbers):
        try:
            return [np.asarray(feature, np.int32) for feature in rows.row(int(index), numbers)]
        except UserError as error:
            if int(index) not in unread:
                if len(unread) >= max_bad_rows:
                    raise
                logging.warning("%s; the row is skipped", error)
            unread.add(int(index))
            return [np.zeros([0] * rank, np.int32) for rank in rows.FEATURES.values()]

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

    return positions.map(_as_it_is(example), num_parallel_calls=2, deterministic=True)


def training_batches(
    rows,
    objective,
    *,
    batch_size: int,
    seed: int,
    first_step: int,
    num_steps: int,
    places: dict[int, tuple[int, int]] | None = None,
    context: Context = ALONE,
    max_bad_rows: int = 0,
):
    """Batches of steps `first_step` to `num_steps`: step s takes the positions s * batch_size and following.

    `places` gets what each step's batch was counted to hold, by `count_places`, before the batch is handed out.
    context: whose input it is. Each of its replicas gets a batch a step, and in a step all replicas of a run together
    get what one would get.
    """
    positions = _positions(first_step, num_steps, batch_size, context)
    batches = examples(rows, positions, seed, max_bad_rows=max_bad_rows).map(
        _as_it_is(objective.prepare), num_parallel_calls=2, deterministic=True
    )
    batches = batches.batch(context.get_per_replica_batch_size(batch_size), drop_remainder=True)
    if context.num_input_pipelines > 1:
        # Without an end, workers need not ask each other at every step whether it is there. Before batches are counted:
        # what is fetched beyond the last step must not count as the first one's again.
        batches = batches.repeat()
    if places is not None:
        replicas = context.num_replicas_in_sync // context.num_input_pipelines

        def note(number, filled, all_of_them):
            step = first_step + int(number) // replicas
            before = places.get(step, (0, 0))
            places[step] = before[0] + int(filled), before[1] + int(all_of_them)
            return np.int64(0)

        def noted(number, batch):
            done = tf.numpy_function(note, [number, *count_places(batch)], tf.int64)
            with tf.control_dependencies([done]):
                return {name: tf.identity(x) for name, x in batch.items()}

        batches = batches.enumerate().map(_as_it_is(noted))
    return batches.prefetch(4).with_options(_options())


def count_places(batch) -> tuple[tf.Tensor, tf.Tensor]:
    """(with a token, in all): a batch's places for tokens, of an encoder and of a decoder together, int64.

    padding_mask says it of an encoder. Of a decoder target_weights do: each token that it reads has its target.
    """
    marks = [batch[name] for name in ("padding_mask", "target_weights") if name in batch]
    filled = [tf.math.count_nonzero(mark) for mark in marks]
    return tf.add_n(filled), tf.add_n([tf.size(mark, tf.int64) for mark in marks])


def evaluation_batches(
    rows, objective, *, batch_size: int, seed: int, num_batches: int, context: Context = ALONE, max_bad_rows: int = 0
):
    """The first rows of the held-out part, in order and always prepared alike.

    What a last batch lacks is filled with zeros, and so with weights of 0. ROW_NUMBERS says which row is which.
    """
    count = min(len(rows), num_batches * batch_size)
    positions = _positions(0, -(-count // batch_size), batch_size, context)
    known = positions.map(_as_it_is(lambda position: tf.minimum(position, count - 1)))
    prepared = examples(rows, known, seed, epoch=0, max_bad_rows=max_bad_rows).map(
        _as_it_is(objective.prepare), num_parallel_calls=2, deterministic=True
    )

    def emptied(position, example):
        known = {name: tf.where(position < count, x, tf.zeros_like(x)) for name, x in example.items()}
        return known | {ROW_NUMBERS: tf.where(position < count, position, -1)}

    batches = tf.data.Dataset.zip(positions, prepared).map(_as_it_is(emptied))
    batches = batches.batch(context.get_per_replica_batch_size(batch_size), drop_remainder=True)
    return batches.with_options(_options())


def _positions(first: int, end: int, batch_size: int, context: Context) -> tf.data.Dataset:
    """Of each step from `first` to `end` the part of its positions that is a worker's."""
    share = batch_size // context.num_input_pipelines
    if share == batch_size:
        return tf.data.Dataset.range(first * batch_size, end * batch_size)
    begin = context.input_pipeline_id * share
    steps = tf.data.Dataset.range(first * batch_size + begin, end * batch_size + begin, batch_size)
    return steps.flat_map(_as_it_is(lambda position: tf.data.Dataset.range(position, position + share)))


def _options() -> tf.data.Options:
    options = tf.data.Options()
    # Every process reads what its positions say: nothing is to be sharded by file.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    # Threads of its own: the pipeline must not wait for the training step's.
    options.threading.private_threadpool_size = 2
    return options
