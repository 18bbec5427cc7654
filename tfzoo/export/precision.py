"""The precision of a model's computations, and the tolerated difference between two computations of the same model."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping

import keras
import numpy as np
import tensorflow as tf

from tfzoo import nn, progress
from tfzoo.export import interface, memory

# Default tolerances by precision, as fractions of the largest number of an output.
USUAL = {"float32": 2e-5, "float16": 1e-2, "bfloat16": 8e-2}
PRECISIONS = tuple(USUAL)
MOST = 1e-3  # Upper bound of the tolerance in float32: a larger difference means little agreement.
# onnxruntime and LiteRT were from 0.5 to 1.7 times as far from Keras as Keras in float32 is from float64 (bert, gpt2,
# llama and t5 of 2 to 24 layers); some rows are worse than the ones measured.
_TIMES = 8
_DEEP = 12  # Number of layers from which on the error of float32 is always measured.
_MOST_PARAMETERS = 2**31  # Of a model that is run in float64, which is slow. Larger deep models get _UNKNOWN.
_UNKNOWN = 1e-4
PROBABILITIES = ("scores", "probabilities", "no_answer")  # Their tolerance is relative to each value.


@dataclasses.dataclass(frozen=True)
class Limits:
    """The tolerated differences.

    Attributes:
      share: the tolerance as a fraction of an output's largest number, or of 1 if that is larger.
      float32_error: the measured error from which `share` was derived; None for the default tolerance.
    """

    share: float
    float32_error: float | None = None

    @property
    def margin(self) -> float:
        """The fraction of the largest logit or log-probability within which two of them count as equal."""
        return 2 * self.share

    @property
    def of_probabilities(self) -> float:
        """The tolerance of probabilities, as a fraction of each value."""
        return 10 * self.share

    def of(self, names: Iterable[str]) -> dict[str, dict]:
        """Returns the tolerances of the numeric outputs `names`, in the form of manifest.json."""
        return {
            name: {"of": "each", "allowed": self.of_probabilities}
            if name in PROBABILITIES
            else {"of": "largest", "allowed": self.share}
            for name in names
        }


def limits_of(model: keras.Model, error: Callable[[], float | None]) -> Iterator[Limits]:
    """Yields the limits to try for an export of the model: first the default ones, then those derived from the error of
    float32 if they are wider. Deep models get only the latter, since writing them twice takes long.

    Args:
      model: the model to export.
      error: returns the error of float32, see `measured_error`; called only if it matters.
    """
    usual, config = USUAL[model.compute_dtype], model.config
    layers = config.num_layers + config.resolved_num_decoder_layers * model.is_encoder_decoder
    narrow = model.compute_dtype != "float32"
    if narrow or layers < _DEEP:
        yield Limits(usual)
    if narrow:
        return
    measured = error()
    share = _UNKNOWN if measured is None else min(MOST, max(usual, _TIMES * measured))
    if layers >= _DEEP or (measured is not None and share > usual):
        yield Limits(share, measured)


def measured_error(model: keras.Model, cases: Iterable[Mapping[str, np.ndarray]]) -> float | None:
    """Returns `float32_error`, or None for a model that is too large for it or has a layer without float64."""
    if model.count_params() > _MOST_PARAMETERS:
        return None
    # A custom layer may not support float64.
    with (
        progress.stage("computing in float64 to measure the rounding error of float32"),
        contextlib.suppress(TypeError, ValueError, tf.errors.OpError),
    ):
        return float32_error(model, cases)
    return None


def float32_error(model: keras.Model, cases: Iterable[Mapping[str, np.ndarray]]) -> float:
    """Returns the error of the model in float32 compared with float64, on the first row of each of `cases`.

    Returns:
      The largest difference at a real token, as a fraction of the output's largest number (or of 1 if that is larger).
    """
    worst = 0.0
    for inputs in cases:
        first = {name: value[:1] for name, value in inputs.items()}
        memory.trim()
        true, near = _in_float64(model, first), model(first)  # In this order, since the former takes more memory.
        for name, axes in interface.outputs_of(model).items():
            got, want = np.asarray(near[name]), np.asarray(true[name])
            real = interface.real_of(first, axes, want.shape)
            apart, largest = 0.0, 1.0
            for at in np.argwhere(real):  # One vector of logits at a time, to save memory.
                exact = want[tuple(at)].astype(np.float64)
                apart = max(apart, np.abs(got[tuple(at)] - exact).max(initial=0.0))
                largest = max(largest, np.abs(exact).max(initial=0.0))
            worst = max(worst, float(apart / largest))
        del near, true
        memory.trim()
    return worst


class _Float64(keras.DTypePolicy):
    """Computes in float64 with variables in float32, which are converted when a layer reads them: a copy of the whole
    model in float64 would take twice the memory of the model."""

    def __init__(self):
        super().__init__("float64")
        self._variable_dtype = "float32"


def _in_float64(model: keras.Model, inputs: Mapping[str, np.ndarray]) -> Mapping[str, tf.Tensor]:
    """Returns the outputs of a model of float32 weights, computed in float64."""
    layers = list(model._flatten_layers())
    policies = [layer.dtype_policy for layer in layers]
    try:
        for layer in layers:
            layer.dtype_policy = _Float64()
        return model(inputs)
    finally:
        for layer, policy in zip(layers, policies):
            layer.dtype_policy = policy


def with_precision(model: keras.Model, precision: str) -> keras.Model:
    """Returns the model computing in another precision, one of PRECISIONS or float64.

    Its weights are stored in that type, except that those of float16 are float32: float16 has too small a range.
    """
    policy = "mixed_float16" if precision == "float16" else precision
    if model.dtype_policy.name == policy:
        return model
    with nn.unset_weights():
        twin = type(model)(
            model.config,
            heads=model.head_names,
            labels=model.labels,
            pool=model.pool,
            embed=model.embed,
            dtype=policy,
            name=model.name,
        )
    for variable, value in zip(twin.weights, model.weights, strict=True):
        variable.assign(tf.cast(value.value, variable.dtype))
    twin.record = model.record  # Specifies how texts are generated and which tokens end them.
    twin.problem_type, twin.markers = model.problem_type, model.markers
    twin.no_answer_threshold = model.no_answer_threshold
    return twin
