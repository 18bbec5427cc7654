"""The basic layers: Dense, norms, Dropout and activations.

They compute the same values as their Keras counterparts, and differ where that is measurably faster on a CPU or needed
under tf.distribute. Each docstring states the difference.
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfzoo.config import TransformerConfig
from tfzoo.errors import UserError
from tfzoo.nn.layer import PACKAGE, Layer, register


def read(variable):
    """Returns a Keras variable as a tensor, cast to the layer's compute dtype if its policy autocasts variables."""
    return tf.convert_to_tensor(ops.convert_to_tensor(variable))


CANNOT_QUANTIZE = (
    "tfzoo's layers do not support Keras quantization; use tfzoo.store_weights(model, 'int8') to run the model with "
    "less memory, or python -m tfzoo.export --onnx_variants=int8 to export a quantized model"
)


@contextlib.contextmanager
def _setting(variable: contextvars.ContextVar, value: Any):
    """Sets a variable inside the context."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


_has_gradients = contextvars.ContextVar("has_gradients", default=True)


def without_gradients():
    """Leaves out of a graph what only its gradients need; those of functions inside the context are then automatic."""
    return _setting(_has_gradients, False)


def has_gradients() -> bool:
    """Returns whether a graph that is being traced may be differentiated: False within `without_gradients`."""
    return _has_gradients.get()


def with_gradient(function: Callable) -> Callable:
    """Decorates a function as tf.custom_gradient does, except within `without_gradients`."""
    differentiable = tf.custom_gradient(function)

    @functools.wraps(function)
    def call(*args):
        return differentiable(*args) if has_gradients() else function(*args)[0]

    return call


@with_gradient
def rows_of(table, ids):
    """Returns the rows of `table` [N, E] for int `ids` [...]: [..., E].

    The gradient is dense. The gradient of tf.gather is sparse, and Keras's optimizers update only the rows that a
    sparse gradient contains, so that Adam's moments of the other rows would not decay.
    """

    def gradient(upstream):
        values = tf.reshape(upstream, (-1, table.shape[1]))
        return tf.math.unsorted_segment_sum(values, tf.reshape(ids, [-1]), table.shape[0]), None

    return ops.take(table, ids, axis=0), gradient


_few_rows = contextvars.ContextVar("few_rows", default=False)
_compiled = contextvars.ContextVar("compiled", default=False)


def few_rows(few: bool = True):
    """Computes products inside the context in the way that suits few rows, such as those of a decoding step.

    Args:
      few: False restores the usual way, for example to read a prompt.
    """
    return _setting(_few_rows, few)


def compiled_steps(jit_compile: bool):
    """Prepares products inside the context for a loop that XLA compiles.

    Args:
      jit_compile: if False, the context changes nothing.
    """
    return _setting(_compiled, jit_compile)


def has_few_rows() -> bool:
    return _few_rows.get()


def is_compiled() -> bool:
    return _compiled.get()


def apart(*tensors):
    """Returns tensors that XLA does not compute together with what reads them; only for a graph that XLA compiles."""
    from tensorflow.compiler.tf2xla.ops import gen_xla_ops  # Not part of the public API.

    return gen_xla_ops.xla_optimization_barrier(list(tensors))


LARGE = 2**18  # Kernel size from which transposing the kernel for the gradient saves time.


@with_gradient
def _matmul(x, kernel):
    """Returns x [N, I] times kernel [I, O], [N, O]."""

    def gradient(upstream):
        if kernel.dtype == tf.float32 and kernel.shape.num_elements() >= LARGE:
            # oneDNN takes a third longer for a product with a transposed second factor than for one with the transposed
            # matrix, which is cheap to create. The batch axis of size 1 keeps TensorFlow's optimizer from merging
            # transposition and product again.
            transposed = tf.reshape(tf.transpose(kernel[None], (0, 2, 1)), kernel.shape[::-1])
            dx = tf.matmul(upstream, transposed)
        else:
            dx = tf.matmul(upstream, kernel, transpose_b=True)
        return dx, tf.matmul(x, upstream, transpose_a=True)

    return tf.matmul(x, kernel), gradient


class Dense(keras.layers.Dense):
    """A dense layer: x [..., I] -> [..., O].

    It flattens x to [N, I], a shape for which TensorFlow fuses the product with the bias.
    """

    stored: Any = None  # A StoredMatrix that replaces the kernel; see `store_weights`.
    computes_logits = False  # Whether the results are compared with each other, and a StoredMatrix rounds them less.

    def quantize(self, mode=None, *args, **kwargs):
        """Raises an error; `tfzoo.store_weights` keeps a model's matrices as int8.

        Raises:
          UserError: always.
        """
        raise UserError(f"quantize({mode!r}): {CANNOT_QUANTIZE}")

    def call(self, inputs, training=None):
        shape = None if len(inputs.shape) == 2 else ops.shape(inputs)
        x = inputs if shape is None else ops.reshape(inputs, (-1, shape[-1]))
        x = _matmul(x, read(self.kernel)) if self.stored is None else self.stored.product(x, self.computes_logits)
        if self.stored is not None and is_compiled() and has_few_rows():
            (x,) = apart(x)  # Fused with an addition, the product would not be fused with the cast of its weights.
        if self.use_bias and has_few_rows():
            # The reshape keeps TensorFlow from fusing product and bias: fused, oneDNN takes longer for one row.
            x = tf.reshape(tf.reshape(x, (1, -1, self.units)) + read(self.bias), (-1, self.units))
        elif self.use_bias:
            x = tf.nn.bias_add(x, read(self.bias))
        if self.activation is not None:
            x = self.activation(x)
        return x if shape is None else ops.reshape(x, (*shape[:-1], self.units))


register(Dense, "Dense")


@dataclasses.dataclass(frozen=True)
class MergedKernel:
    """A read-only view of a Dense layer's kernel with the product of its low-rank adapters added."""

    layer: Dense

    @property
    def path(self) -> str:
        return self.layer._kernel.path

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layer._kernel.shape

    @property
    def value(self) -> tf.Tensor:
        return self.layer.kernel


def merged_variables(model: keras.Model) -> list:
    """Returns a model's variables, with low-rank adapters merged into the kernels that they adapt.

    Adapters are those of LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685).
    """
    adapted = [layer for layer in model._flatten_layers() if isinstance(layer, Dense) and layer.lora_enabled]
    merged = {id(layer._kernel): MergedKernel(layer) for layer in adapted}
    adapters = {id(variable) for layer in adapted for variable in (layer.lora_kernel_a, layer.lora_kernel_b)}
    return [merged.get(id(variable), variable) for variable in model.variables if id(variable) not in adapters]


@with_gradient
def _gelu_with_gradient(x):
    cdf = 0.5 * (1.0 + tf.math.erf(x * (1.0 / math.sqrt(2.0))))

    def gradient(upstream):
        density = tf.exp(-0.5 * tf.square(x)) * (1.0 / math.sqrt(2.0 * math.pi))
        return upstream * (cdf + x * density)

    return x * cdf, gradient


def _gelu(x):  # Keras serializes plain functions only.
    return _gelu_with_gradient(x)


def _gelu_tanh(x):
    return ops.gelu(x, approximate=True)


# Registered so that a saved layer can be loaded. The other activations are Keras functions.
for _name, _function in {"gelu": _gelu, "gelu_tanh": _gelu_tanh}.items():
    keras.saving.register_keras_serializable(PACKAGE, _name)(_function)


def activation(name: str):
    """Returns the activation function of a name: tanh, or one of config.ACTIVATIONS.

    gelu is x * Phi(x), gelu_tanh its tanh approximation. A name always maps to the same function object, so that a
    layer's activation can be identified.
    """
    return {
        "gelu": _gelu,  # Keeps one tensor for the backward pass, whereas automatic differentiation keeps several.
        "gelu_tanh": _gelu_tanh,
        "relu": ops.relu,
        "silu": ops.silu,
        "tanh": ops.tanh,
    }[name]


@with_gradient
def _layer_norm(x, epsilon, gamma, *beta):
    """Normalizes x [N, E] over E and keeps x_hat and 1 / sigma for the backward pass. beta: zero or one tensor [E]."""
    centred = x - tf.reduce_mean(x, -1, keepdims=True)
    inverse = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), -1, keepdims=True) + epsilon)
    normal = centred * inverse

    def gradient(upstream):
        scaled = upstream * gamma
        dx = inverse * (
            scaled
            - tf.reduce_mean(scaled, -1, keepdims=True)
            - normal * tf.reduce_mean(scaled * normal, -1, keepdims=True)
        )
        return dx, None, tf.reduce_sum(upstream * normal, 0), *(tf.reduce_sum(upstream, 0) for _ in beta)

    y = normal * gamma
    return y + beta[0] if beta else y, gradient


def _fused_layer_norm(x, epsilon: float, gamma, beta):
    """Computes `_layer_norm` of bfloat16 tensors with float32 statistics, as a batch norm whose channels are the rows.

    On a CPU TensorFlow replaces this form with one oneDNN operation, which rounds only its result. At 1,024 rows this
    takes less than half of the time of `_layer_norm`, at 128 slightly less. TensorFlow does not do so if the number of
    rows is static, because scale and offset are then constants; the form would be three times as slow.
    """

    @with_gradient
    def norm(x, gamma, beta):
        rows = tf.shape(x)[0]
        y = tf.raw_ops.FusedBatchNormV3(
            x=tf.reshape(x, [1, rows, x.shape[1], 1]),
            scale=tf.ones([rows]),
            offset=tf.zeros([rows]),
            mean=tf.zeros([0]),
            variance=tf.zeros([0]),
            epsilon=epsilon,
            data_format="NCHW",
            is_training=True,
        ).y

        def gradient(upstream):
            wide = [tf.cast(tensor, tf.float32) for tensor in (x, gamma, beta)]
            with tf.GradientTape() as tape:
                tape.watch(wide)
                result = _layer_norm(wide[0], epsilon, *wide[1:])
            return [tf.cast(g, x.dtype) for g in tape.gradient(result, wide, tf.cast(upstream, tf.float32))]

        return tf.reshape(y, tf.shape(x)) * gamma + beta, gradient

    return norm(x, gamma, beta)


@with_gradient
def _rms_norm(x, gamma, epsilon):
    """Divides x [N, E] by its root mean square over E."""
    inverse = tf.math.rsqrt(tf.reduce_mean(tf.square(x), -1, keepdims=True) + epsilon)
    normal = x * inverse

    def gradient(upstream):
        scaled = upstream * gamma
        dx = inverse * (scaled - normal * tf.reduce_mean(scaled * normal, -1, keepdims=True))
        return dx, tf.reduce_sum(upstream * normal, 0), None

    return normal * gamma, gradient


class _Norm(Layer):
    """Normalizes [..., E] over E, with a custom gradient.

    The gradient takes fewer passes over memory than automatic differentiation. Values are computed in float32 under
    every dtype policy except float64.
    """

    def __init__(self, epsilon: float = 1e-12, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape):
        # Under a float16 policy Keras would otherwise autocast the variable to float16.
        self.gamma = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="gamma", autocast=False)

    def call(self, x):
        shape = None if len(x.shape) == 2 else ops.shape(x)
        flat = x if shape is None else ops.reshape(x, (-1, shape[-1]))
        wide = flat if x.dtype == tf.float64 else ops.cast(flat, "float32")
        y = ops.cast(self.normalize(wide), x.dtype)
        return y if shape is None else ops.reshape(y, shape)


class LayerNorm(_Norm):
    """Layer normalization: x [..., E] -> mean 0 and variance 1 over E, times gamma, plus beta (Ba et al. 2016).

    Args:
      epsilon: added to the variance.
      center: whether there is a beta.
    """

    beta: Any

    def __init__(self, epsilon: float = 1e-12, center: bool = True, **kwargs):
        super().__init__(epsilon, **kwargs)
        self.center, self.beta = center, None

    def build(self, input_shape):
        super().build(input_shape)
        if self.center:
            self.beta = self.add_weight(shape=(input_shape[-1],), initializer="zeros", name="beta", autocast=False)

    def call(self, x, training=False):
        narrow = self.beta is not None and x.dtype == tf.bfloat16 == self.beta.dtype
        fusible = narrow and not training and None in x.shape[:-1]
        # cuDNN's batch norm needs a larger epsilon than some models have.
        if not fusible or tf.config.list_physical_devices("GPU"):
            return super().call(x)
        flat = ops.reshape(x, (-1, x.shape[-1]))
        return ops.reshape(_fused_layer_norm(flat, self.epsilon, read(self.gamma), read(self.beta)), ops.shape(x))

    def normalize(self, x):
        weights = (w for w in (self.gamma, self.beta) if w is not None)
        return _layer_norm(x, self.epsilon, *(ops.cast(read(w), x.dtype) for w in weights))


class RMSNorm(_Norm):
    """RMS normalization: x [..., E] -> x / sqrt(mean(x^2) + epsilon) * gamma (Zhang & Sennrich 2019)."""

    def normalize(self, x):
        return _rms_norm(x, ops.cast(read(self.gamma), x.dtype), self.epsilon)


def make_norm(config: TransformerConfig, **kwargs) -> keras.layers.Layer:
    """Returns a new norm of the kind that the config specifies."""
    if config.norm == "rms":
        return RMSNorm(config.norm_epsilon, **kwargs)
    return LayerNorm(config.norm_epsilon, center=config.biases != "none", **kwargs)


_unset = contextvars.ContextVar("unset", default=False)


def unset_weights(unless: bool = False):
    """Leaves the matrices of models created inside the context without values, for weights that are then assigned.

    This saves time, and the matrices take no memory before they are assigned.

    Args:
      unless: if True, the context changes nothing.
    """
    return _setting(_unset, not unless)


class _Unset(keras.initializers.Zeros):
    """Zeros, except within `unset_weights`: there, whatever the memory contains."""

    def __call__(self, shape, dtype=None):
        return tf.raw_ops.Empty(shape=shape, dtype=dtype) if _unset.get() else super().__call__(shape, dtype)


register(_Unset, "Unset")


def make_initializer(
    config: TransformerConfig, role: str = "kernel", seed: int | None = None
) -> keras.initializers.Initializer:
    """Returns the initializer of a matrix, as config.initializer specifies.

    An initializer draws its seed when it is created and returns the same numbers at every call. Create one for each
    matrix; otherwise queries and keys start with equal weights.

    Args:
      config: the model's TransformerConfig.
      role: "embedding" for a table; "query" for a kernel that computes queries; "residual" for a kernel whose product
        is added to the residual stream; "kernel" for any other kernel.
      seed: the seed; None draws one.
    """
    if _unset.get():
        return _Unset()
    if config.initializer == "fan_in":
        if role == "embedding":
            return keras.initializers.RandomNormal(stddev=1.0)
        variance = 1.0
        if role == "query" and not config.scale_scores:  # Initial scores are as if divided by sqrt(head_dim).
            variance /= config.resolved_head_dim
        return keras.initializers.VarianceScaling(variance, mode="fan_in", distribution="untruncated_normal", seed=seed)
    stddev = config.initializer_range
    if config.initializer == "scaled_residual":
        residual = (2 * config.num_layers) ** -0.5 if role == "residual" else 1.0
        return keras.initializers.RandomNormal(stddev=stddev * residual, seed=seed)
    return keras.initializers.TruncatedNormal(stddev=stddev, seed=seed)


class Dropout(Layer):
    """Sets a fraction `rate` of x's elements to zero in training and divides the others by 1 - rate.

    It differs from Keras's layer in two ways. Each replica draws its own mask, whereas Keras's mirrored seed gives all
    replicas the same mask. Each element takes 16 random bits instead of 32, so the rate is rounded to a multiple of
    1/65,536.
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.rate, self.seed = rate, seed

    def build(self, input_shape=None):
        self.seed_generator = keras.random.SeedGenerator(self.seed, name="seeds") if self.rate > 0 else None

    def call(self, x, training=False):
        if not training or self.seed_generator is None:
            return x
        seed = draw_seed(self.seed_generator)
        return _drop(x, seed, min(round(self.rate * 65536), 65535))


_draws: contextvars.ContextVar[tuple | None] = contextvars.ContextVar("draws", default=None)


def draw_seed(generator: keras.random.SeedGenerator, per_replica: bool = True):
    """Returns the generator's next seed, int32 [2], which differs between replicas unless per_replica is False."""
    recorded, replayed = _draws.get() or (None, None)
    if replayed is not None:
        return next(replayed)
    seed = tf.cast(generator.next(), tf.int32)
    replica = tf.distribute.get_replica_context()
    if per_replica and replica is not None and replica.num_replicas_in_sync > 1:
        seed = tf.random.experimental.stateless_fold_in(seed, replica.replica_id_in_sync_group)
    if recorded is not None:
        recorded.append(seed)
    return seed


def recomputed(function, *tensors):
    """Returns function(*tensors) and keeps no activations for the gradient: the backward pass computes them again.

    The second computation uses the same dropout masks (Chen et al. 2016, https://arxiv.org/abs/1604.06174, section 4).

    Args:
      function: reads the tensors. Other tensors that it reads receive no gradient; variables do.
      *tensors: floating-point tensors.
    """
    recorded: list = []
    calls: list = []

    @tf.autograph.experimental.do_not_convert
    def one_pass(*tensors):
        replayed = iter(tuple(recorded)) if calls else None  # The seeds of the first computation.
        calls.append(replayed)
        token = _draws.set((recorded, replayed))
        try:
            return function(*tensors)
        finally:
            _draws.reset(token)

    return tf.recompute_grad(one_pass)(*tensors)


def _drop(x, seed, threshold: int):
    size = tf.size(x)
    words = tf.random.stateless_uniform([(size + 1) // 2], seed, None, None, tf.uint32)
    # TensorFlow compares signed integers without a copy in another type.
    keep = tf.reshape(tf.bitcast(words, tf.int16), [-1])[:size] >= threshold - 32768
    factor = tf.cast(tf.reshape(keep, tf.shape(x)), x.dtype) * tf.cast(65536 / (65536 - threshold), x.dtype)
    return x * factor
