"""The training step and the evaluation, under any tf.distribute strategy."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfzoo.data.pipeline import ROW_NUMBERS
from tfzoo.evaluation.evaluator import Evaluator, Means
from tfzoo.training import optimizers


def trainable_variables(models: Mapping[str, Any]) -> list[keras.Variable]:
    """The trainable variables of models by role, in the order of the roles; those that models share come once."""
    variables = [variable for model in models.values() for variable in model.trainable_variables]
    return list({id(variable): variable for variable in variables}.values())


def make_step(strategy, models, optimizer, objective, **options):
    """The training steps: `run(iterator, count) -> losses [count]`, float32, one of each update.

    A loss is NaN also where only the gradient is not finite: the weights are spoilt then, or an optimizer that skips
    has left the update out. The options are make_replica_step's.
    """
    replica_step = make_replica_step(models, optimizer, objective, **options)

    @tf.function
    def run(iterator, count):
        losses = tf.TensorArray(tf.float32, count)
        for i in tf.range(count):
            loss = strategy.run(replica_step, (next(iterator),))
            losses = losses.write(i, strategy.experimental_local_results(loss)[0])
        return losses.stack()

    if not isinstance(strategy, tf.distribute.ParameterServerStrategy):
        return run

    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    scheduled = tf.function(lambda batch: strategy.run(replica_step, (batch,)))

    def run_asynchronously(iterator, count):
        """Workers take batches as they come, and compute with weights that others are changing."""
        first = int(optimizer.iterations.numpy())
        losses = [coordinator.schedule(scheduled, args=(next(iterator),)) for _ in range(int(count))]
        coordinator.join()
        # Of updates at the same moment the counter, which the learning rate follows, loses some.
        optimizer.iterations.assign(first + int(count))
        return tf.stack([loss.fetch() for loss in losses])

    return run_asynchronously


def make_replica_step(
    models,
    optimizer,
    objective,
    *,
    num_parts: int = 1,
    clip_norm: float = 0.0,
    clip_each: float = 0.0,
):
    """`step(batch) -> loss`: a replica's part of an update, and the loss of all replicas' batches.

    Any number of replicas and parts computes what one computes, because of the order: sums of gradients, loss
    and weight first over the parts, then over the replicas, and only then the division, the check for
    infinities, clipping, decay and update.

    Args:
      models: by role.
      num_parts: the replica's batch is computed in that many parts, one after the other.
      clip_norm: global-norm clip; 0 disables.
      clip_each: norm clip of each variable's gradient, applied before; 0 disables.
    """
    variables = [variable.value for variable in trainable_variables(models)]
    skips = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    dynamic_scale = optimizer.dynamic_scale if skips else None  # Which SkipNonFinite leaves at 1.

    def sums(batch):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            loss, weight = objective.loss(models, batch, training=True)
            scaled = loss if dynamic_scale is None else loss * dynamic_scale.value
        # A gather's gradient is sparse, and those are summed differently over replicas: all become dense.
        gradients = tape.gradient(scaled, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [loss, weight, *map(tf.convert_to_tensor, gradients)]

    def sums_of_parts(batch):
        if num_parts == 1:
            return sums(batch)
        parts = {name: tf.reshape(x, [num_parts, -1, *x.shape[1:]]) for name, x in batch.items()}

        def body(i, totals):
            new = sums({name: x[i] for name, x in parts.items()})
            return i + 1, [total + part for total, part in zip(totals, new, strict=True)]

        zeros = [tf.zeros([]), tf.zeros([]), *map(tf.zeros_like, variables)]
        return tf.while_loop(lambda i, _: i < num_parts, body, (0, zeros), parallel_iterations=1)[1]

    @tf.autograph.experimental.do_not_convert  # It needs no Python rewritten, which takes seconds.
    def replica_step(batch):
        totals = sums_of_parts(batch)
        replica = tf.distribute.get_replica_context()
        if replica.num_replicas_in_sync > 1:
            totals = replica.all_reduce(tf.distribute.ReduceOp.SUM, totals)
        loss, weight, *gradients = totals
        weight = tf.maximum(weight, 1.0)
        scale = weight if dynamic_scale is None else weight * dynamic_scale.value
        shares = [1.0] * len(gradients)  # What is left of each when it is clipped by itself.
        norm = tf.linalg.global_norm(gradients) / scale
        if clip_each:
            norms = [tf.norm(gradient) / scale for gradient in gradients]
            shares = [clip_each / tf.maximum(each, clip_each) for each in norms]
            norm = tf.norm(tf.stack(norms) * tf.stack(shares))
        factor = 1.0 / weight  # The loss scale stays in: Keras's LossScaleOptimizer divides by it.
        if clip_norm:
            factor *= clip_norm / tf.maximum(norm, clip_norm)
        if skips:  # The optimizer looks at the gradients alone, each by itself.
            factor = tf.where(tf.math.is_finite(loss) & tf.math.is_finite(norm), factor, math.nan)
        # One product a gradient: TensorFlow may reorder several, and not alike on all replicas.
        optimizer.apply([gradient * (factor * share) for gradient, share in zip(gradients, shares, strict=True)])
        fine = tf.math.is_finite(norm)
        if skips and not isinstance(optimizer, optimizers.SkipNonFinite):
            fine |= scale > 1.0  # While the mean loss is scaled by more than 1, it is too much: float16's usual way.
        return tf.where(fine, loss / weight, math.nan)

    return replica_step


def make_evaluation(strategy, models, evaluators: Sequence[Evaluator]):
    """`evaluate(batches) -> {figure: float}`: the figures of all evaluators, in their order.

    batches: of pipeline.evaluation_batches, as the strategy distributes them. `evaluate(batches, stopped)` asks before
    each whether to stop, and returns None then.
    """

    @tf.function(autograph=False)
    def measured(batch):
        """For each evaluator (sum, weight) by name over all replicas, or predictions of all replicas' rows."""
        return [_measure(strategy, models, evaluator, batch) for evaluator in evaluators]

    def computed(batch):
        if not isinstance(strategy, tf.distribute.ParameterServerStrategy):
            return measured(batch)
        return tf.distribute.coordinator.ClusterCoordinator(strategy).schedule(measured, args=(batch,)).fetch()

    def evaluate(batches, stopped: Callable[[], bool] = lambda: False):
        kept: list[Any] = [_Sums() if isinstance(evaluator, Means) else _Rows() for evaluator in evaluators]
        for batch in batches:
            if stopped():
                return None
            for one, values in zip(kept, computed(batch), strict=True):
                one.add(values)
        figures: dict[str, float] = {}
        for evaluator, one in zip(evaluators, kept, strict=True):
            figures |= evaluator.figures(one.result())
        return figures

    return evaluate


def _measure(strategy, models, evaluator: Evaluator, batch):
    """What an evaluator makes of a distributed batch, in a graph."""
    if isinstance(evaluator, Means):
        sums = strategy.run(lambda part: evaluator.sums(models, part), (batch,))
        if strategy.num_replicas_in_sync == 1:
            return sums
        return tf.nest.map_structure(lambda x: strategy.reduce("SUM", x, axis=None), sums)
    predictions = strategy.run(
        lambda part: evaluator.predict(models, part) | {ROW_NUMBERS: part[ROW_NUMBERS]}, (batch,)
    )
    if strategy.num_replicas_in_sync == 1:
        return predictions
    return {name: strategy.gather(x, axis=0) for name, x in predictions.items()}


class _Sums:
    """Adds up (sum, weight) by name, in double precision."""

    def __init__(self):
        self._sums: dict[str, list[float]] = {}

    def add(self, values) -> None:
        for name, (value, weight) in values.items():
            entry = self._sums.setdefault(name, [0.0, 0.0])
            entry[0] += float(value)
            entry[1] += float(weight)

    def result(self) -> dict[str, list[float]]:
        return self._sums


class _Rows:
    """Collects predictions, and puts them into the order of the rows."""

    def __init__(self):
        self._batches: list[dict[str, np.ndarray]] = []

    def add(self, values) -> None:
        self._batches.append({name: np.asarray(x) for name, x in values.items()})

    def result(self) -> dict[str, np.ndarray]:
        if not self._batches:
            return {}
        rows = {name: np.concatenate([batch[name] for batch in self._batches]) for name in self._batches[0]}
        numbers = rows.pop(ROW_NUMBERS)
        order = np.argsort(numbers, kind="stable")
        order = order[numbers[order] >= 0]  # Those that only fill a last batch have -1.
        return {name: x[order] for name, x in rows.items()}
