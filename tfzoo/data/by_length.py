"""Batches of rows with similar length, in an order that is a pure function of (seed, position).

The rows of an epoch are shuffled as in tfzoo.data.order, and epochs follow each other without a gap. Within a window of
up to WINDOW batches, but at most a quarter of an epoch, the rows are sorted by length and cut into batches, which are
then shuffled. A batch therefore contains different rows in every epoch, needs little padding, and can be computed from
its number alone.

Rows are an object with `lengths`, int [N], by which they are sorted, `batch(indices, positions)`, which returns
{feature: array [B, ...]} for an int64 array of row indices and a number of positions, and SIGNATURE, {feature: (dtype,
shape without the batch)}. Rows with several sides, such as a source and a target, also have `sides`, int [N, S]; their
`batch` receives a number of positions for each side.
"""

import numpy as np
import tensorflow as tf

from tfzoo.data import order
from tfzoo.data.pipeline import ALONE, ROW_NUMBERS, Context, count_training_places, dataset_options

_as_it_is = tf.autograph.experimental.do_not_convert
WINDOW = 64  # Batches.
_MULTIPLE = 8  # Lengths of batches are rounded up to a multiple of this, so that there are few different shapes.


class BatchOrder:
    """Which rows each training step reads.

    Args:
      lengths: int [N], the length of each row.
      batch_size: rows per step.
      seed: determines the order.
      by_length: whether rows of similar length are put together; otherwise steps read the shuffled rows in order.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int, by_length: bool = True):
        self.lengths, self.batch_size, self.seed = np.asarray(lengths), batch_size, seed
        # In windows of several epochs, the copies of a row would meet in one batch.
        self.window = max(1, min(WINDOW, len(self.lengths) // batch_size // 4)) if by_length else 1

    def places(self, step):
        """Returns the shuffled rows of a step's window as (epoch, index), int64 [window * batch_size] each, for a step
        that is an int64 tensor."""
        size = self.window * self.batch_size
        positions = step // self.window * size + tf.range(size, dtype=tf.int64)
        return order.epoch_and_index(positions, len(self.lengths), self.seed)

    def pick(self, step: int, indices: np.ndarray) -> np.ndarray:
        """Returns the rows of a step, int64 [batch_size], from the indices of its window."""
        if self.window == 1:
            return indices
        window, place = divmod(int(step), self.window)
        ordered = indices[np.argsort(self.lengths[indices], kind="stable")].reshape(self.window, self.batch_size)
        shuffled = np.random.Generator(np.random.Philox([self.seed, window])).permutation(self.window)
        return ordered[shuffled[place]]

    def rows_of(self, step: int) -> np.ndarray:
        """Returns the rows of a step, int64 [batch_size]."""
        return self.pick(step, self.places(tf.constant(step, tf.int64))[1].numpy())


def training_batches(
    rows,
    *,
    batch_size: int,
    seed: int,
    first_step: int,
    num_steps: int,
    length: int | None = None,
    places: dict[int, tuple[int, int]] | None = None,
    context: Context = ALONE,
):
    """Returns the batches of steps `first_step` to `num_steps`, a tf.data.Dataset of {feature: [B, ...]}.

    Args:
      rows: see the docstring of this module.
      batch_size: rows per step, over all replicas.
      seed: determines the order.
      first_step, num_steps: the first step, and the end of the steps.
      length: the number of positions in every batch; None groups rows by length and pads them to the longest row of
        the step, over all replicas.
      places: see pipeline.training_batches.
      context: the worker that reads the batches: each of its replicas gets a part of the step's rows.
    """
    batch_order = BatchOrder(rows.lengths, batch_size, seed, by_length=length is None)

    first, share, parts = _share(batch_size, context)

    def read(step, indices):
        chosen = batch_order.pick(int(step), indices)
        positions = length or _positions(rows, chosen)
        features = rows.batch(chosen[first : first + share], positions)
        return [features[name].reshape(parts, share // parts, *features[name].shape[1:]) for name in rows.SIGNATURE]

    def parts_of(step):
        dtypes = [dtype for dtype, _ in rows.SIGNATURE.values()]
        values = tf.numpy_function(read, [step, batch_order.places(step)[1]], dtypes, stateful=False)
        return _named(rows, values, (parts, share // parts), length)

    batches = tf.data.Dataset.range(first_step, num_steps).map(
        _as_it_is(parts_of), num_parallel_calls=2, deterministic=True
    )
    batches = batches.unbatch()  # A batch for each replica.
    if context.num_input_pipelines > 1:
        batches = batches.repeat()  # As in pipeline.training_batches.
    if places is not None:
        batches = count_training_places(batches, places, first_step, context)
    return batches.prefetch(4).with_options(dataset_options())


def evaluation_batches(rows, *, batch_size: int, num_batches: int = 0, length: int | None = None, context=ALONE):
    """Returns batches that contain each row exactly once, sorted by length, the longest first.

    The last batch is filled up with copies of a row, whose feature "weight" is 0. ROW_NUMBERS contains the number of
    each row, -1 for such copies. With num_batches, only the first num_batches * batch_size rows are read.
    """
    count = min(len(rows.lengths), num_batches * batch_size or len(rows.lengths))
    by_length = np.argsort(-rows.lengths[:count], kind="stable")
    first, share, parts = _share(batch_size, context)

    def read(number):
        of_batch = by_length[number * batch_size : (number + 1) * batch_size]
        positions = length or _positions(rows, of_batch)
        filled = np.resize(of_batch, batch_size)[first : first + share]
        real = (np.arange(batch_size) < len(of_batch))[first : first + share]
        features = rows.batch(filled, positions)
        features["weight"] = np.where(real, features["weight"], 0).astype(np.float32)
        numbers = np.where(real, filled, -1).astype(np.int64)
        values = [*(features[name] for name in rows.SIGNATURE), numbers]
        return [x.reshape(parts, share // parts, *x.shape[1:]) for x in values]

    def parts_of(number):
        dtypes = [*(dtype for dtype, _ in rows.SIGNATURE.values()), np.int64]
        *values, numbers = tf.numpy_function(read, [number], dtypes, stateful=False)
        shape = (parts, share // parts)
        return _named(rows, values, shape, length) | {ROW_NUMBERS: tf.ensure_shape(numbers, shape)}

    batches = tf.data.Dataset.range(-(-count // batch_size)).map(
        _as_it_is(parts_of), num_parallel_calls=2, deterministic=True
    )
    return batches.unbatch().prefetch(2).with_options(dataset_options())


def rounded(length: int) -> int:
    """Returns a number of positions for rows of at most `length` tokens."""
    return -(-int(length) // _MULTIPLE) * _MULTIPLE


def _positions(rows, chosen: np.ndarray) -> int | tuple[int, ...]:
    """Returns the number of positions for some rows, or one for each side."""
    sides = getattr(rows, "sides", None)
    if sides is None:
        return rounded(rows.lengths[chosen].max(initial=1))
    return tuple(map(rounded, sides[chosen].max(axis=0, initial=1)))


def _share(batch_size: int, context: Context) -> tuple[int, int, int]:
    """Returns the first row of a worker's part of a batch, its number of rows, and the number of its replicas."""
    share = batch_size // context.num_input_pipelines
    return context.input_pipeline_id * share, share, share // context.get_per_replica_batch_size(batch_size)


def _named(rows, values, batch: tuple[int, int], length: int | None):
    """Returns {feature: tensor} with static shapes; None in a shape of SIGNATURE is the number of positions."""
    return {
        name: tf.ensure_shape(value, [*batch, *(length if size is None else size for size in shape)])
        for value, (name, (_, shape)) in zip(values, rows.SIGNATURE.items(), strict=True)
    }
