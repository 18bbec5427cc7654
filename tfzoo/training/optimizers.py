"""Optimizers and learning-rate schedules: those of Keras, corrected where they deviate from the papers.

The training step passes gradients that are already summed over all replicas, divided and clipped (see
`tfzoo.training.step.make_step`), so Keras's own reduction must not run a second time.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfzoo.errors import UserError
from tfzoo.training.config import FALLING, OPTIMIZERS, SCHEDULES


class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly from 0 to `peak` over `warmup_steps`, then follows `schedule`.

    linear and cosine reach `end` at `total_steps` and stay there (cosine: Loshchilov and Hutter 2017);
    inverse_sqrt is peak * sqrt(warmup_steps / step) (Vaswani et al. 2017, section 5.3, scaled to reach the peak);
    trapezoidal stays at the peak and falls linearly to `end` over the last `decay_steps` (Hu et al. 2024,
    https://arxiv.org/abs/2404.06395, section 4, "warmup-stable-decay"); constant stays at the peak. No update has a
    rate of 0: the first update of the warmup uses peak / warmup_steps, and the last update precedes the step at which
    `end` is reached.
    """

    def __init__(
        self,
        peak: float,
        *,
        warmup_steps: int,
        total_steps: int,
        schedule: str,
        end: float = 0.0,
        decay_steps: int = 0,
    ):
        if schedule not in SCHEDULES:
            raise UserError(f"--schedule={schedule}: must be one of {', '.join(SCHEDULES)}")
        if schedule in FALLING and warmup_steps > total_steps:
            raise UserError(f"--warmup_steps={warmup_steps}: must not exceed --steps ({total_steps})")
        if end and schedule not in FALLING:
            raise UserError(
                f"--final_learning_rate={end:g}: the schedule {schedule} has no final learning rate; omit it"
            )
        if decay_steps and schedule != "trapezoidal":
            raise UserError(f"--decay_steps={decay_steps}: applies only to --schedule=trapezoidal; omit it")
        decay_steps = decay_steps or max(total_steps // 5, 1)
        if schedule == "trapezoidal" and warmup_steps + decay_steps > total_steps:
            raise UserError(
                f"--decay_steps={decay_steps}: with --warmup_steps ({warmup_steps}) exceeds --steps ({total_steps}); "
                "use fewer"
            )
        self.decay_steps = decay_steps
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
            "trapezoidal": self.end
            + (self.peak - self.end) * tf.clip_by_value((total - step + 1.0) / float(self.decay_steps), 0.0, 1.0),
            "constant": tf.constant(self.peak),
        }[self.schedule]
        return tf.where(step < warmup, self.peak * step / max(warmup, 1.0), after)

    def get_config(self):
        names = ["peak", "warmup_steps", "total_steps", "schedule", "end"]
        if self.schedule == "trapezoidal":
            names.append("decay_steps")
        return {name: getattr(self, name) for name in names}


class _AlreadyReduced:
    """Disables the optimizer's own sum over replicas, which the training step has already computed.

    The method is private to Keras's TensorFlow optimizers, which is why pyproject.toml pins Keras's minor version.
    """

    def _all_reduce_sum_gradients(self, grads_and_vars):
        return grads_and_vars


class _RateByVariable(_AlreadyReduced):
    """Lets each variable have its own factor on the learning rate, which also scales its weight decay."""

    rate_factors: Sequence[float] | None = None  # In the order of the variables; None: all are 1.
    _get_variable_index: Callable[[Any], int]  # Keras's.

    def rate_of(self, variable, learning_rate):
        """Returns the learning rate of a variable, in its dtype."""
        rate = tf.cast(learning_rate, variable.dtype)
        factor = self.rate_factors[self._get_variable_index(variable)] if self.rate_factors is not None else 1.0
        return rate if factor == 1.0 else rate * tf.constant(factor, rate.dtype)

    def _apply_weight_decay(self, variables):
        pass  # Every update_step decays its variable, with the variable's own rate.


class SkipNonFinite(keras.optimizers.LossScaleOptimizer):
    """Skips updates whose gradients are not finite, without loss scaling: the scale stays 1."""

    def _stateful_handle_non_finite_grads(self):  # Private to Keras, like the method above.
        pass


class AdamW(_RateByVariable, keras.optimizers.AdamW):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019): Keras's results with fewer passes over memory."""

    def apply(self, grads, trainable_variables=None):
        # Computed once for all variables: five more operations per variable would slow down a small model.
        step = tf.cast(self.iterations.value + 1, tf.float32)
        self._powers = [tf.pow(tf.constant(beta), step) for beta in (self.beta_1, self.beta_2)]
        super().apply(grads, trainable_variables)

    def update_step(self, gradient, variable, learning_rate):
        rate = self.rate_of(variable, learning_rate)
        if self.weight_decay and self._use_weight_decay(variable):
            variable.assign(variable * (1.0 - rate * self.weight_decay))
        index = self._get_variable_index(variable)
        momentum, velocity = self._momentums[index].value, self._velocities[index].value
        dtype = variable.dtype
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=momentum.handle,
            v=velocity.handle,
            beta1_power=tf.cast(self._powers[0], dtype),
            beta2_power=tf.cast(self._powers[1], dtype),
            lr=rate,
            beta1=tf.constant(self.beta_1, dtype),
            beta2=tf.constant(self.beta_2, dtype),
            epsilon=tf.constant(self.epsilon, dtype),
            grad=tf.cast(gradient, dtype),
        )


class Muon(AdamW):
    """Muon for the matrices of the blocks (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/), AdamW for
    embeddings, heads, biases and norms.

    A matrix moves along its momentum, made nearly orthogonal by five Newton-Schulz iterations and scaled by
    0.2 sqrt(max(rows, columns)), so that one learning rate and one weight decay suit both kinds (Liu et al. 2025,
    https://arxiv.org/abs/2502.16982, section 2.2). Projections to several heads, [E, H, D], count as [E, H D].

    Args:
      matrix_rate: the learning rate of the matrices as a multiple of that of the other variables.
    """

    MOMENTUM, ITERATIONS, SCALE = 0.95, 5, 0.2
    COEFFICIENTS = 3.4445, -4.7750, 2.0315

    def __init__(self, *args, matrix_rate: float = 1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.matrix_rate = matrix_rate

    def get_config(self):
        return super().get_config() | {"matrix_rate": self.matrix_rate}

    def build(self, variables):
        if self.built:
            return
        keras.optimizers.Optimizer.build(self, variables)
        self._momentums = [self.add_variable_from_reference(v, name="momentum") for v in variables]
        self._velocities = [
            None if is_block_matrix(v) else self.add_variable_from_reference(v, name="velocity") for v in variables
        ]

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        if self._velocities[index] is not None:
            super().update_step(gradient, variable, learning_rate)
            return
        rate = self.rate_of(variable, learning_rate) * self.matrix_rate
        gradient = ops.cast(gradient, variable.dtype)
        momentum = self.MOMENTUM * self._momentums[index] + gradient
        self.assign(self._momentums[index], momentum)
        direction = gradient + self.MOMENTUM * momentum  # Nesterov's.
        matrix = tf.reshape(direction, (variable.shape[0], -1))
        update = tf.reshape(self._orthogonalized(matrix), variable.shape)
        size = rate * self.SCALE * math.sqrt(max(matrix.shape))
        decay = rate * (self.weight_decay or 0.0) if self._use_weight_decay(variable) else 0.0
        self.assign(variable, variable * (1 - decay) - size * update)

    def _orthogonalized(self, matrix):
        """matrix [N, M] -> the same with singular values near 1; the iterations work on the shorter side."""
        tall = matrix.shape[0] > matrix.shape[1]
        x = tf.transpose(matrix) if tall else matrix
        x /= tf.norm(x) + 1e-7
        a, b, c = self.COEFFICIENTS
        for _ in range(self.ITERATIONS):
            gram = tf.matmul(x, x, transpose_b=True)
            x = a * x + tf.matmul(b * gram + c * tf.matmul(gram, gram), x)
        return tf.transpose(x) if tall else x


def is_block_matrix(variable) -> bool:
    """Whether a variable is a kernel of a transformer block, which Muon trains."""
    return "/stack/layer_" in variable.path and variable.path.endswith("/kernel") and len(variable.shape) > 1


class Lamb(_RateByVariable, keras.optimizers.Lamb):
    """LAMB (You et al. 2020, algorithm 2).

    Keras omits the decay from the update whose norm determines the trust ratio; the paper includes it.
    """

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        m, v = self._momentums[index], self._velocities[index]
        rate, gradient = self.rate_of(variable, learning_rate), ops.cast(gradient, variable.dtype)
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


class SGD(_RateByVariable, keras.optimizers.SGD):
    """SGD with momentum and decoupled weight decay (Loshchilov and Hutter 2019, algorithm 1)."""

    def update_step(self, gradient, variable, learning_rate):
        rate = self.rate_of(variable, learning_rate)
        if self.weight_decay and self._use_weight_decay(variable):
            self.assign_sub(variable, variable * self.weight_decay * rate)
        super().update_step(gradient, variable, rate)


class Lars(_RateByVariable, keras.optimizers.SGD):
    """LARS (You et al. 2017, https://arxiv.org/abs/1708.03888, algorithm 1): SGD with steps proportional to weights.

    The step of a matrix W with gradient G is rate * TRUST |W| / (|G| + decay |W|) * (G + decay W), with momentum.
    Biases and norms, which are initialized to zeros and ones, are updated as in SGD.
    """

    TRUST = 0.001

    def update_step(self, gradient, variable, learning_rate):
        rate, gradient = self.rate_of(variable, learning_rate), ops.cast(gradient, variable.dtype)
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
    """Returns the norm over all elements of a tensor of any rank; ops.norm supports only vectors and matrices."""
    return ops.sqrt(ops.sum(ops.square(x)))


class Adafactor(_RateByVariable, keras.optimizers.Adafactor):
    """Adafactor (Shazeer and Stern 2018, algorithms 4 and 5) with the learning rate as an additional upper bound.

    Keras stores the full second moment of a matrix in addition to its factors, although the factors are meant to save
    that memory, and divides 0 by 0 where a row and a column without gradients intersect, because the product of their
    factors underflows. Here, the square roots are multiplied instead.
    """

    def build(self, var_list):
        if self.built:
            return
        keras.optimizers.Optimizer.build(self, var_list)
        # A variable without factors stores its only moment in place of the row factor.
        self._r = [self.add_variable(_row_shape(v.shape), name=f"{v.name}_row", dtype=v.dtype) for v in var_list]
        self._c = [
            self.add_variable((*v.shape[:-2], v.shape[-1]), name=f"{v.name}_column", dtype=v.dtype)
            if len(v.shape) > 1
            else None
            for v in var_list
        ]

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        rate, gradient = self.rate_of(variable, learning_rate), ops.cast(gradient, variable.dtype)
        if self.weight_decay and self._use_weight_decay(variable):
            self.assign_sub(variable, variable * self.weight_decay * rate)
        step = ops.cast(self.iterations + 1, variable.dtype)
        beta = 1 - ops.power(step, self.beta_2_decay)
        squares = ops.square(gradient) + self.epsilon_1

        def moving_average(moment, new):
            average = beta * moment + (1 - beta) * new
            self.assign(moment, average)
            return average

        if self._c[index] is None:
            update = gradient * ops.rsqrt(moving_average(self._r[index], squares))
        else:
            row = moving_average(self._r[index], ops.mean(squares, -1))
            column = moving_average(self._c[index], ops.mean(squares, -2))
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
    matrix_rate: float = 1.0,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-8,
    ema_decay: float = 0.0,
    loss_scaling: bool = False,
    skip_nonfinite: bool = False,
    rate_factors: Sequence[float] | None = None,
):
    """Creates an optimizer built on `variables`. Weight decay applies only to matrices, not to biases and norms.

    Args:
      name: one of OPTIMIZERS.
      learning_rate: a number or a schedule.
      variables: the variables to train.
      weight_decay: decoupled weight decay.
      matrix_rate: of muon: see `Muon`.
      beta_1, beta_2, epsilon: parameters of adamw, muon and lamb; beta_1 is also the momentum of sgd and lars.
      ema_decay: decay rate of an exponential moving average of the variables, for `averaged`; 0 disables it.
      loss_scaling: wraps the optimizer in Keras's dynamic LossScaleOptimizer, for float16.
      skip_nonfinite: skips updates whose gradient is not finite; loss scaling always does.
      rate_factors: a factor on the learning rate of each variable, and thereby on its weight decay: an update is that
        of an optimizer with the learning rate times the factor. None: all factors are 1.

    Raises:
      UserError: the name is unknown, or matrix_rate is given for another optimizer.
    """
    if matrix_rate != 1 and name != "muon":
        raise UserError(f"--matrix_rate={matrix_rate:g}: applies only to --optimizer=muon; omit it")
    decay = weight_decay or None
    average = dict(use_ema=True, ema_momentum=ema_decay) if ema_decay else {}
    adam = dict(beta_1=beta_1, beta_2=beta_2, epsilon=epsilon)
    # Explicit names, so that variable names do not depend on how many optimizers this process has created.
    if name == "adamw":
        optimizer = AdamW(learning_rate, weight_decay=weight_decay, name=name, **adam, **average)
    elif name == "muon":
        optimizer = Muon(
            learning_rate, weight_decay=weight_decay, matrix_rate=matrix_rate, name=name, **adam, **average
        )
    elif name == "lamb":
        optimizer = Lamb(learning_rate, weight_decay=decay, name=name, **adam, **average)
    elif name == "adafactor":
        optimizer = Adafactor(learning_rate, weight_decay=decay, name=name, **average)
    elif name in ("sgd", "lars"):
        kind = SGD if name == "sgd" else Lars
        optimizer = kind(learning_rate, momentum=beta_1, weight_decay=decay, name=name, **average)
    else:
        raise UserError(f"--optimizer={name}: must be one of {', '.join(OPTIMIZERS)}")
    optimizer.rate_factors = None if rate_factors is None else tuple(rate_factors)
    optimizer.exclude_from_weight_decay(var_list=[v for v in variables if not decays(v)])
    if loss_scaling:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale")
    elif skip_nonfinite:
        optimizer = SkipNonFinite(optimizer, initial_scale=1.0, dynamic_growth_steps=2**31 - 1, name="loss_scale")
    optimizer.build(variables)
    for variable, mean in _averages(optimizer):
        mean.assign(variable.value)  # Keras initializes averages to zero, which a skipped update would leave unchanged.
    return optimizer


def _averages(optimizer) -> list[tuple]:
    """Returns (variable, its average) pairs of any optimizer; none if it keeps no averages."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if not inner.use_ema:
        return []
    return list(zip(inner._trainable_variables, inner._model_variables_moving_average, strict=True))


@contextlib.contextmanager
def averaged(optimizer):
    """Context in which the trained variables have the values of their averages, if the optimizer keeps averages."""
    pairs = _averages(optimizer)
    originals = [variable.value.numpy() for variable, _ in pairs]
    for variable, mean in pairs:
        variable.assign(mean.value.numpy())
    try:
        yield
    finally:
        for (variable, _), value in zip(pairs, originals, strict=True):
            variable.assign(value)


def decays(variable) -> bool:
    """Returns True for matrices and embeddings, False for biases and norms, which have one dimension."""
    return len(variable.shape) > 1
