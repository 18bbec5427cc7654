"""The tf.data pipeline from rows to batches: ordering, reading, the objective's `prepare` and batching.

Rows are any object with a length, `row(index, numbers)`, a pure function of the index and four random numbers in
[0, 1), and FEATURES, the names and ranks of the int32 arrays that it returns: PairRows, PackedRows, StoredRows. Rows
with a method `locate`, such as MixedRows, determine their order in training themselves.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tfzoo.data import order
from tfzoo.errors import UserError

_as_it_is = tf.autograph.experimental.do_not_convert  # Converting Python control flow is slow and not needed here.
Context = Any  # A tf.distribute.InputContext: TensorFlow ships no types.
ALONE = tf.distribute.InputContext()
ROW_NUMBERS = "row_numbers"  # A feature of evaluation batches: int64 [B], the number of each row, -1 for padding rows.


def examples(
    rows,
    positions: tf.data.Dataset,
    seed: int,
    epoch: int | None = None,
    max_bad_rows: int = 0,
    patterns: int = 0,
    progress: Callable = lambda position: 1.0,
) -> tf.data.Dataset:
    """Returns the examples at global positions (a dataset of int64), each with its own seed.

    An example contains the features of its row, such as {"token_ids": int32 [n], "document_ids": int32 [n]}, "seed",
    int32 [2], and "progress", float32 [], which `progress` computes from its position. With `epoch`, rows are in their
    original order and every pass is that epoch, as required for an evaluation. Up to max_bad_rows rows that cannot be
    read (a UserError) are treated as empty, with a warning. `patterns` is the number of different seeds of a row, which
    repeat after as many epochs; 0 means a new seed in every epoch.
    """
    unreadable: set[int] = set()

    def read(index, numbers):
        try:
            return [np.asarray(feature, np.int32) for feature in rows.row(int(index), numbers)]
        except UserError as error:
            if int(index) not in unreadable:
                if len(unreadable) >= max_bad_rows:
                    raise
                logging.warning("%s; the row is skipped", error)
            unreadable.add(int(index))
            return [np.zeros([0] * rank, np.int32) for rank in rows.FEATURES.values()]

    def example(position):
        if epoch is None and hasattr(rows, "locate"):
            current, index = rows.locate(position, seed)
        elif epoch is None:
            current, index = order.epoch_and_index(position, len(rows), seed)
        else:
            current, index = tf.constant(epoch, tf.int64), position
        example_seed = order.example_seed(seed, current % patterns if patterns else current, index)
        # The random numbers of the row and of the objective come from one seed, folded differently.
        numbers = tf.random.stateless_uniform([4], tf.random.experimental.stateless_fold_in(example_seed, 1))
        values = tf.numpy_function(read, [index, numbers], [tf.int32] * len(rows.FEATURES), stateful=False)
        features = {
            name: tf.ensure_shape(value, [None] * rank)
            for (name, rank), value in zip(rows.FEATURES.items(), values, strict=True)
        }
        features["progress"] = tf.cast(progress(position), tf.float32)
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
    patterns: int = 0,
    progress: tuple[float, float] = (0.0, 1.0),
):
    """Returns the batches of steps `first_step` to `num_steps`: step s takes the positions from s * batch_size on.

    Args:
      rows: see the docstring of this module.
      objective: its `prepare` converts examples to features.
      batch_size: rows per step, over all replicas.
      seed: determines the order and all random numbers.
      first_step, num_steps: the first step, and the end of the steps.
      places: receives the counts of `count_places` for each step's batch before the batch is returned.
      context: the worker that reads the batches. Each of its replicas gets one batch per step, and in each step all
        replicas of a run together get the rows that a single replica would get.
      max_bad_rows, patterns: as for `examples`.
      progress: the fractions of the training that precede step 0 and step num_steps.
    """
    begin, end = progress

    def progress_at(position):
        return begin + (end - begin) * (position / (num_steps * batch_size))

    positions = _positions(first_step, num_steps, batch_size, context)
    batches = examples(rows, positions, seed, max_bad_rows=max_bad_rows, patterns=patterns, progress=progress_at).map(
        _as_it_is(objective.prepare), num_parallel_calls=2, deterministic=True
    )
    batches = batches.batch(context.get_per_replica_batch_size(batch_size), drop_remainder=True)
    if context.num_input_pipelines > 1:
        # With infinite data, workers need not agree at every step whether there is another batch. This must precede the
        # counting: batches prefetched beyond the last step must not be counted as those of the first step again.
        batches = batches.repeat()
    if places is not None:
        batches = count_training_places(batches, places, first_step, context)
    return batches.prefetch(4).with_options(dataset_options())


def count_training_places(batches, places: dict[int, tuple[int, int]], first_step: int, context: Context):
    """Returns the same batches; the counts of `count_places` are added to places[step] before a batch is returned."""
    replicas = context.num_replicas_in_sync // context.num_input_pipelines

    def count(number, filled, total):
        step = first_step + int(number) // replicas
        before = places.get(step, (0, 0))
        places[step] = before[0] + int(filled), before[1] + int(total)
        return np.int64(0)

    def counted(number, batch):
        done = tf.numpy_function(count, [number, *count_places(batch)], tf.int64)
        with tf.control_dependencies([done]):
            return {name: tf.identity(x) for name, x in batch.items()}

    return batches.enumerate().map(_as_it_is(counted))


def count_places(batch) -> tuple[tf.Tensor, tf.Tensor]:
    """Counts the token positions of a batch, of encoder and decoder together: (with a token, in total), int64.

    padding_mask marks the tokens of an encoder, and of a decoder some of whose tokens have no target. Otherwise,
    target_weights mark the tokens of a decoder. document_padding_mask marks texts that are read separately.
    """
    names = ["padding_mask", "target_weights"] if "decoder_token_ids" in batch else ["padding_mask"]
    names += ["document_padding_mask"]
    marks = [batch[name] for name in names if name in batch] or [batch["target_weights"]]
    filled = [tf.math.count_nonzero(mark) for mark in marks]
    return tf.add_n(filled), tf.add_n([tf.size(mark, tf.int64) for mark in marks])


def evaluation_batches(
    rows,
    objective,
    *,
    batch_size: int,
    seed: int,
    num_batches: int,
    context: Context = ALONE,
    max_bad_rows: int = 0,
    first_number: int = 0,
):
    """Returns batches of the first held-out rows, in order and always prepared in the same way.

    The last batch is filled up with zeros, and thus with weights of 0. ROW_NUMBERS contains the number of each row,
    which is `first_number` for the first one.
    """
    count = min(len(rows), num_batches * batch_size)
    positions = _positions(0, -(-count // batch_size), batch_size, context)
    clipped = positions.map(_as_it_is(lambda position: tf.minimum(position, count - 1)))
    prepared = examples(rows, clipped, seed, epoch=0, max_bad_rows=max_bad_rows).map(
        _as_it_is(objective.prepare), num_parallel_calls=2, deterministic=True
    )

    def masked(position, example):
        features = {name: tf.where(position < count, x, tf.zeros_like(x)) for name, x in example.items()}
        return features | {ROW_NUMBERS: tf.where(position < count, first_number + position, -1)}

    batches = tf.data.Dataset.zip(positions, prepared).map(_as_it_is(masked))
    batches = batches.batch(context.get_per_replica_batch_size(batch_size), drop_remainder=True)
    return batches.with_options(dataset_options())


def _positions(first: int, end: int, batch_size: int, context: Context) -> tf.data.Dataset:
    """Returns a worker's part of the positions of each step from `first` to `end`."""
    share = batch_size // context.num_input_pipelines
    if share == batch_size:
        return tf.data.Dataset.range(first * batch_size, end * batch_size)
    begin = context.input_pipeline_id * share
    steps = tf.data.Dataset.range(first * batch_size + begin, end * batch_size + begin, batch_size)
    return steps.flat_map(_as_it_is(lambda position: tf.data.Dataset.range(position, position + share)))


def dataset_options() -> tf.data.Options:
    """Returns the options of every pipeline."""
    options = tf.data.Options()
    # Every process reads the rows at its positions: no sharding by file.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    # A private thread pool: the pipeline must not wait for the threads of the training step.
    options.threading.private_threadpool_size = 2
    return options
