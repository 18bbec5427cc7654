"""Optimizers and learning-rate schedules: Keras's, corrected where a test against the paper says so.

The training step hands them gradients that are summed over all replicas, divided and clipped already (see
`tfzoo.training.step.make_step`), so Keras's own reduction must not run a second time.
"""

import contextlib
import math

import keras
import tensorflow as tf
from keras import ops

from tfzoo.errors import UserError
from tfzoo.training.config import OPTIMIZERS, SCHEDULES


class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly from 0 to `peak` over `warmup_steps`, then follows `schedule`.

    linear and cosine reach `end` at `total_steps` and stay there (cosine: Loshchilov and Hutter 2017);
    inverse_sqrt is peak * sqrt(warmup_steps / step) (Vaswani et al. 2017, section 5.3, scaled to reach the peak);
    constant stays at the peak. No update is lost to a rate of 0: the first of a warm-up takes peak / warmup_steps,
    and `end` is what would follow the last.
    """

    def __init__(self, peak: float, *, warmup_steps: int, total_steps: int, schedule: str, end: float = 0.0):
        if schedule not in SCHEDULES:
            raise UserError(f"--schedule={schedule}: must be one of {', '.join(SCHEDULES)}")
        if schedule in ("linear", "cosine") and warmup_steps > total_steps:
            raise UserError(f"--warmup_steps={warmup_steps}: must not exceed --steps ({total_steps})")
        if end and schedule not in ("linear", "cosine"):
            raise UserError(
                f"--final_learning_rate={end:g}: the schedule {schedule} has no final learning rate; omit it"
            )
        self.peak, self.end, self.schedule = peak, end, schedule
        self.warmup_steps, self.total_steps = warmup_steps, total_steps

    def __call__(self, step):
        step = tf.cast(step, tf.float32) + 1.0
        warmup, total = float(self.warmup_steps), float(self.total_steps)
        progress = tf.clip_by_value((step - 1.0 - warmup) / max(total - warmup, 1.0), 0.0, 1.0)
        after = {
            "linear": self.peak + (self.end - self.peak) * progress,
            "cosine": self.end + (self.peak - self.end) * 0.5 * (1.0 + tf.cos(math.pi * progress)),
            "inverse_sqrt": self.peak * tf.math.rsqrt(step / max(warmup, 1.0)),
            "constant": tf.constant(self.peak),
        }[self.schedule]
        return tf.where(step < warmup, self.peak * step / max(warmup, 1.0), after)

    def get_config(self):
        names = ("peak", "warmup_steps", "total_steps", "schedule", "end")
        return {name: getattr(self, name) for name in names}


class _AlreadyReduced:
    """Switches off the optimizer's own sum over replicas: the step has done it before anything read a gradient.

    The method is private to Keras's TensorFlow optimizers, which is why pyproject.toml pins Keras's minor version.
    """

    def _all_reduce_sum_gradients(self, grads_and_vars):
        return grads_and_vars


class SkipNonFinite(keras.optimizers.LossScaleOptimizer):
    """Leaves out updates whose gradients are not finite, and scales nothing: the scale stays 1."""

    def _stateful_handle_non_finite_grads(self):  # Private to Keras, as the method above.
        pass


class AdamW(_AlreadyReduced, keras.optimizers.AdamW):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019): Keras's numbers in fewer passes over memory."""

    def apply(self, grads, trainable_variables=None):
        # Once for all variables: a small model would feel five operations more for each.
        step = tf.cast(self.iterations.value + 1, tf.float32)
        self._powers = [tf.pow(tf.constant(beta), step) for beta in (self.beta_1, self.beta_2)]
        super().apply(grads, trainable_variables)

    def _apply_weight_decay(self, variables):
        pass  # update_step does it.

    def update_step(self, gradient, variable, learning_rate):
        if self.weight_decay and self._use_weight_decay(variable):
            variable.assign(variable * (1.0 - tf.cast(learning_rate, variable.dtype) * self.weight_decay))
        index = self._get_variable_index(variable)
        momentum, velocity = self._momentums[index].value, self._velocities[index].value
        dtype = variable.dtype
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=momentum.handle,
            v=velocity.handle,
            beta1_power=tf.cast(self._powers[0], dtype),
            beta2_power=tf.cast(self._powers[1], dtype),
            lr=tf.cast(learning_rate, dtype),
            beta1=tf.constant(self.beta_1, dtype),
            beta2=tf.constant(self.beta_2, dtype),
            epsilon=tf.constant(self.epsilon, dtype),
            grad=tf.cast(gradient, dtype),
        )


class Lamb(_AlreadyReduced, keras.optimizers.Lamb):
    """LAMB (You et al. 2020, algorithm 2).

    Keras leaves the decay out of the update whose norm makes the trust ratio; in the paper it is in.
    """

    def _apply_weight_decay(self, variables):
        pass  # update_step does it.

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        m, v = self._momentums[index], self._velocities[index]
        rate, gradient = ops.cast(learning_rate, variable.dtype), ops.cast(gradient, variable.dtype)
        step = ops.cast(self.iterations + 1, variable.dtype)
        self.assign_add(m, (gradient - m) * (1 - self.beta_1))
        self.assign_add(v, (ops.square(gradient) - v) * (1 - self.beta_2))
        m_hat = m / (1 - ops.power(self.beta_1, step))
        v_hat = v / (1 - ops.power(self.beta_2, step))
        update = m_hat / (ops.sqrt(v_hat) + self.epsilon)
        if self.weight_decay and self._use_weight_decay(variable):
            update = update + self.weight_decay * variable
        weight_norm, update_norm = _norm(variable), _norm(update)
        usable = ops.logical_and(weight_norm > 0, update_norm > 0)
        ratio = ops.where(usable, weight_norm / ops.where(usable, update_norm, 1.0), 1.0)
        self.assign_sub(variable, rate * ratio * update)


class SGD(_AlreadyReduced, keras.optimizers.SGD):
    """Stochastic gradient descent with momentum."""


class Lars(_AlreadyReduced, keras.optimizers.SGD):
    """LARS (You et al. 2017, https://arxiv.org/abs/1708.03888, algorithm 1): SGD with steps in proportion to weights.

    A matrix W with gradient G steps by rate * TRUST |W| / (|G| + decay |W|) * (G + decay W), through the momentum.
    Biases and norms, which begin as zeros and ones, step as in SGD.
    """

    TRUST = 0.001

    def _apply_weight_decay(self, variables):
        pass  # update_step does it.

    def update_step(self, gradient, variable, learning_rate):
        rate, gradient = ops.cast(learning_rate, variable.dtype), ops.cast(gradient, variable.dtype)
        if decays(variable):
            decay = self.weight_decay or 0.0
            weight_norm, length = _norm(variable), _norm(gradient) + decay * _norm(variable)
            usable = ops.logical_and(weight_norm > 0, length > 0)
            ratio = ops.where(usable, self.TRUST * weight_norm / ops.where(usable, length, 1.0), 1.0)
            gradient = ratio * (gradient + decay * variable)
        update = rate * gradient
        if self.momentum:
            velocity = self.momentums[self._get_variable_index(variable)]
            update = update + self.momentum * velocity
            self.assign(velocity, update)
        self.assign_sub(variable, update)


def _norm(x):
    """Over all elements, whatever the rank: ops.norm ends at matrices."""
    return ops.sqrt(ops.sum(ops.square(x)))


class Adafactor(_AlreadyReduced, keras.optimizers.Adafactor):
    """Adafactor (Shazeer and Stern 2018, algorithms 4 and 5) with the learning rate as an upper bound of its own.

    Keras keeps the second moment of a matrix in full beside its factors, which are there to save that memory, and
    divides 0 by 0 where a row and a column without gradients meet: the product of their factors underflows. Here
    the roots are multiplied instead.
    """

    def build(self, var_list):
        if self.built:
            return
        keras.optimizers.Optimizer.build(self, var_list)
        # What has no factors has one moment, in the place of the row's.
        self._r = [self.add_variable(_row_shape(v.shape), name=f"{v.name}_row", dtype=v.dtype) for v in var_list]
        self._c = [
            self.add_variable((*v.shape[:-2], v.shape[-1]), name=f"{v.name}_column", dtype=v.dtype)
            if len(v.shape) > 1
            else None
            for v in var_list
        ]

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        rate, gradient = ops.cast(learning_rate, variable.dtype), ops.cast(gradient, variable.dtype)
        step = ops.cast(self.iterations + 1, variable.dtype)
        beta = 1 - ops.power(step, self.beta_2_decay)
        squares = ops.square(gradient) + self.epsilon_1

        def follow(moment, new):
            moved = beta * moment + (1 - beta) * new
            self.assign(moment, moved)
            return moved

        if self._c[index] is None:
            update = gradient * ops.rsqrt(follow(self._r[index], squares))
        else:
            row = follow(self._r[index], ops.mean(squares, -1))
            column = follow(self._c[index], ops.mean(squares, -2))
            row = ops.rsqrt(row) * ops.sqrt(ops.mean(row, -1, keepdims=True))
            update = gradient * row[..., :, None] * ops.rsqrt(column)[..., None, :]
        update = update / ops.maximum(1.0, _rms(update) / self.clip_threshold)
        size = ops.maximum(self.epsilon_2, _rms(variable)) * ops.minimum(rate, ops.rsqrt(step))
        self.assign_sub(variable, size * update)


def _row_shape(shape):
    return shape[:-1] if len(shape) > 1 else shape


def _rms(x):
    return ops.sqrt(ops.mean(ops.square(x)))


def make_optimizer(
    name: str,
    learning_rate,
    variables,
    *,
    weight_decay: float = 0.0,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-8,
    ema_decay: float = 0.0,
    loss_scaling: bool = False,
    skip_nonfinite: bool = False,
):
    """An optimizer built on `variables`, decaying matrices only: not biases, not norms' gains.

    Args:
      name: one of OPTIMIZERS. The betas and epsilon are adamw's and lamb's; beta_1 is the momentum of sgd and lars.
      learning_rate: a number or a schedule.
      ema_decay: of an exponential moving average of the variables, for `averaged`; 0 keeps none.
      loss_scaling: wraps it in Keras's dynamic LossScaleOptimizer, for float16.
      skip_nonfinite: leaves out updates whose gradient is not finite, as loss scaling does by itself.
    """
    decay = weight_decay or None
    average = dict(use_ema=True, ema_momentum=ema_decay) if ema_decay else {}
    adam = dict(beta_1=beta_1, beta_2=beta_2, epsilon=epsilon)
    # Named, so that variable names do not depend on how many optimizers this process has made.
    if name == "adamw":
        optimizer = AdamW(learning_rate, weight_decay=weight_decay, name=name, **adam, **average)
    elif name == "lamb":
        optimizer = Lamb(learning_rate, weight_decay=decay, name=name, **adam, **average)
    elif name == "adafactor":
        optimizer = Adafactor(learning_rate, weight_decay=decay, name=name, **average)
    elif name in ("sgd", "lars"):
        kind = SGD if name == "sgd" else Lars
        optimizer = kind(learning_rate, momentum=beta_1, weight_decay=decay, name=name, **average)
    else:
        raise UserError(f"--optimizer={name}: must be one of {', '.join(OPTIMIZERS)}")
    optimizer.exclude_from_weight_decay(var_list=[v for v in variables if not decays(v)])
    if loss_scaling:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale")
    elif skip_nonfinite:
        optimizer = SkipNonFinite(optimizer, initial_scale=1.0, dynamic_growth_steps=2**31 - 1, name="loss_scale")
    optimizer.build(variables)
    for variable, mean in _averages(optimizer):
        mean.assign(variable.value)  # Keras begins with zeros, which an update that is skipped would leave there.
    return optimizer


def _averages(optimizer) -> list[tuple]:
    """(variable, its average), of whichever optimizer; nothing where it keeps none."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if not inner.use_ema:
        return []
    return list(zip(inner._trainable_variables, inner._model_variables_moving_average, strict=True))


@contextlib.contextmanager
def averaged(optimizer):
    """Inside, the variables that the optimizer trains hold their averages, where it keeps them."""
    pairs = _averages(optimizer)
    own = [variable.value.numpy() for variable, _ in pairs]
    for variable, mean in pairs:
        variable.assign(mean.value.numpy())
    try:
        yield
    finally:
        for (variable, _), value in zip(pairs, own, strict=True):
            variable.assign(value)


def decays(variable) -> bool:
    """True for matrices and embeddings; False for biases and norms, which have one dimension."""
    return len(variable.shape) > 1
