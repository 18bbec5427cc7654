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
    """Returns the trainable variables of models by role, in the order of the roles; shared variables appear once."""
    variables = [variable for model in models.values() for variable in model.trainable_variables]
    return list({id(variable): variable for variable in variables}.values())


def make_step(strategy, models, optimizer, objective, **options):
    """Returns the training function `run(iterator, count) -> losses`, float32 [count], one loss per update.

    A loss is also NaN if only the gradient is not finite: the weights are then invalid, unless the optimizer skipped
    the update. The options are those of make_replica_step.
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
        """Lets workers take batches as they become free, and compute with weights that other workers are changing."""
        first = int(optimizer.iterations.numpy())
        losses = [coordinator.schedule(scheduled, args=(next(iterator),)) for _ in range(int(count))]
        coordinator.join()
        # Concurrent updates lose increments of the counter that determines the learning rate.
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
    """Returns `step(batch) -> loss`: one replica's part of an update, and the loss over the batches of all replicas.

    The result does not depend on the number of replicas and parts, because of the order of operations: gradients, loss
    and weight are summed first over the parts, then over the replicas; only then follow the division, the check for
    non-finite values, clipping, decay and update.

    Args:
      models: models by role.
      optimizer: created by `optimizers.make_optimizer`.
      objective: computes (loss, weight) of a batch.
      num_parts: the replica's batch is processed in this many parts, one after the other.
      clip_norm: global-norm clip; 0 disables.
      clip_each: norm clip of each variable's gradient, applied before clip_norm; 0 disables.
    """
    variables = [variable.value for variable in trainable_variables(models)]
    skips = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    dynamic_scale = optimizer.dynamic_scale if skips else None  # SkipNonFinite keeps it at 1.

    def sums(batch):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            loss, weight = objective.loss(models, batch, training=True)
            scaled = loss if dynamic_scale is None else loss * dynamic_scale.value
        # Gradients of a gather are sparse, and sparse gradients are summed differently over replicas: all become dense.
        gradients = tape.gradient(scaled, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [loss, weight, *map(tf.convert_to_tensor, gradients)]

    def sums_of_parts(batch):
        if num_parts == 1:
            return sums(batch)
        parts = {}
        for name, x in batch.items():
            rest = x.shape[1:] if x.shape[1:].is_fully_defined() else tf.shape(x)[1:]
            parts[name] = tf.reshape(x, tf.concat([[num_parts, -1], rest], 0))
            parts[name].set_shape([num_parts, None, *x.shape[1:]])
        parts |= objective.whole_batch(models, parts)

        def body(i, totals):
            new = sums({name: x[i] for name, x in parts.items()})
            return i + 1, [total + part for total, part in zip(totals, new, strict=True)]

        zeros = [tf.zeros([]), tf.zeros([]), *map(tf.zeros_like, variables)]
        return tf.while_loop(lambda i, _: i < num_parts, body, (0, zeros), parallel_iterations=1)[1]

    @tf.autograph.experimental.do_not_convert  # Contains no Python control flow to convert; converting takes seconds.
    def replica_step(batch):
        totals = sums_of_parts(batch)
        replica = tf.distribute.get_replica_context()
        if replica.num_replicas_in_sync > 1:
            totals = replica.all_reduce(tf.distribute.ReduceOp.SUM, totals)
        loss, weight, *gradients = totals
        weight = tf.maximum(weight, 1.0)
        scale = weight if dynamic_scale is None else weight * dynamic_scale.value
        shares = [1.0] * len(gradients)  # The factor by which each gradient is clipped individually.
        norm = tf.linalg.global_norm(gradients) / scale
        if clip_each:
            norms = [tf.norm(gradient) / scale for gradient in gradients]
            shares = [clip_each / tf.maximum(each, clip_each) for each in norms]
            norm = tf.norm(tf.stack(norms) * tf.stack(shares))
        factor = 1.0 / weight  # The loss scale is not divided out: Keras's LossScaleOptimizer does that.
        if clip_norm:
            factor *= clip_norm / tf.maximum(norm, clip_norm)
        if skips:  # The optimizer only checks each gradient individually.
            factor = tf.where(tf.math.is_finite(loss) & tf.math.is_finite(norm), factor, math.nan)
        # One product per gradient: TensorFlow may reorder several products, differently on each replica.
        optimizer.apply([gradient * (factor * share) for gradient, share in zip(gradients, shares, strict=True)])
        valid = tf.math.is_finite(norm)
        if skips and not isinstance(optimizer, optimizers.SkipNonFinite):
            valid |= scale > 1.0  # With a scale above 1, an overflow is normal for float16: the scale is reduced.
        return tf.where(valid, loss / weight, math.nan)

    return replica_step


def make_evaluation(strategy, models, evaluators: Sequence[Evaluator], sources: Mapping[str, int] = {}):
    """Returns `evaluate(batches, stopped) -> {figure: float}`: the figures of all evaluators, in their order.

    `batches` come from pipeline.evaluation_batches, distributed by the strategy. Before each batch, `evaluate` calls
    `stopped`, and returns None if the result is true. For text from several sources, `sources` is the number of
    consecutive batches of each; the figures of a source are FIGURE/NAME, after those of all batches.
    """
    suffixes = [f"/{name}" for name, count in sources.items() for _ in range(count)]

    @tf.function(autograph=False, reduce_retracing=True)  # The batches of a task have different lengths.
    def measured(batch):
        """Returns for each evaluator (sum, weight) by name over all replicas, or predictions for all replicas' rows."""
        return [_measure(strategy, models, evaluator, batch) for evaluator in evaluators]

    def computed(batch):
        if not isinstance(strategy, tf.distribute.ParameterServerStrategy):
            return measured(batch)
        return tf.distribute.coordinator.ClusterCoordinator(strategy).schedule(measured, args=(batch,)).fetch()

    def evaluate(batches, stopped: Callable[[], bool] = lambda: False):
        accumulators: dict[str, list[Any]] = {
            suffix: [_Sums() if isinstance(evaluator, Means) else _Rows() for evaluator in evaluators]
            for suffix in ("", *(f"/{name}" for name in sources))
        }
        for number, batch in enumerate(batches):
            if stopped():
                return None
            computed_values = computed(batch)
            for suffix in ("", *suffixes[number : number + 1]):
                for accumulator, values in zip(accumulators[suffix], computed_values, strict=True):
                    accumulator.add(values)
        figures: dict[str, float] = {}
        for suffix, of_suffix in accumulators.items():
            for evaluator, accumulator in zip(evaluators, of_suffix, strict=True):
                found = evaluator.figures(accumulator.result())
                figures |= {name + suffix: value for name, value in found.items()}
        return figures

    return evaluate


def _measure(strategy, models, evaluator: Evaluator, batch):
    """Applies an evaluator to a distributed batch, in a graph."""
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
    """Collects predictions and sorts them by row number."""

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
        order = order[numbers[order] >= 0]  # Rows that only fill up the last batch have -1.
        return {name: x[order] for name, x in rows.items()}
