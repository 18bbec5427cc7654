"""What a model computes in, and how far apart two computations of it may be."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping

import keras
import numpy as np
import tensorflow as tf

from tfzoo import nn, progress
from tfzoo.export import interface

# What computes in them may differ by these shares of an output's largest number, as long as nothing else is known.
USUAL = {"float32": 2e-5, "float16": 1e-2, "bfloat16": 8e-2}
PRECISIONS = tuple(USUAL)
MOST = 1e-3  # Of float32, whatever it does: beyond that an answer says little.
# onnxruntime and LiteRT were from 0.5 to 1.7 times as far from Keras as Keras in float32 is from float64 (bert, gpt2,
# llama and t5 of 2 to 24 layers); some rows are worse than those that are looked at.
_TIMES = 8
_DEEP = 12  # Layers from which on float32's own error is looked for in any case.
_ROOM = 2**34  # Bytes for a copy of the model in float64; larger ones of so many layers are allowed this:
_UNKNOWN = 1e-4
PROBABILITIES = ("scores", "probabilities", "no_answer")  # Each is held against itself.


@dataclasses.dataclass(frozen=True)
class Limits:
    """What is allowed.

    share: of an output's largest number, or of 1 where that is less.
    float32_error: what `share` was derived from; None where it is the usual one.
    """

    share: float
    float32_error: float | None = None

    @property
    def margin(self) -> float:
        """Two logits, or logarithms of probabilities, that are nearer than this times the largest are not told
        apart."""
        return 2 * self.share

    @property
    def of_probabilities(self) -> float:
        """A share of each."""
        return 10 * self.share

    def of(self, names: Iterable[str]) -> dict[str, dict]:
        """For outputs with numbers, as manifest.json has it."""
        return {
            name: {"of": "each", "allowed": self.of_probabilities}
            if name in PROBABILITIES
            else {"of": "largest", "allowed": self.share}
            for name in names
        }


def limits_of(model: keras.Model, cases: Callable[[], Iterable[Mapping[str, np.ndarray]]]) -> Iterator[Limits]:
    """What to hold an export of the model against: the usual, and then, should that not do, what float32 itself does on
    `cases`, where it is more. Of deep models the latter alone, for to write them twice takes long."""
    usual, config = USUAL[model.compute_dtype], model.config
    layers = config.num_layers + config.resolved_num_decoder_layers * model.is_encoder_decoder
    narrow = model.compute_dtype != "float32"
    if narrow or layers < _DEEP:
        yield Limits(usual)
    if narrow:
        return
    error = None
    if 8 * model.count_params() <= _ROOM:
        # A layer of one's own may know nothing of float64.
        with (
            progress.stage("computing in float64, to know what float32 does"),
            contextlib.suppress(TypeError, ValueError, tf.errors.OpError),
        ):
            error = float32_error(model, cases())
    share = _UNKNOWN if error is None else min(MOST, max(usual, _TIMES * error))
    if layers >= _DEEP or (error is not None and share > usual):
        yield Limits(share, error)


def float32_error(model: keras.Model, cases: Iterable[Mapping[str, np.ndarray]]) -> float:
    """How far the model in float32 is from itself in float64, over the first rows of `cases`, at their real tokens: the
    largest difference, as a share of an output's largest number (or of 1)."""
    exact, worst = with_precision(model, "float64"), 0.0
    for inputs in cases:
        first = {name: value[:1] for name, value in inputs.items()}
        near, true = model(first), exact(first)
        for name, axes in interface.outputs_of(model).items():
            want = np.asarray(true[name], np.float64)
            real = interface.real_of(first, axes, want.shape)
            if real.any():
                want, got = want[real], np.asarray(near[name], np.float64)[real]
                worst = max(worst, float(np.abs(got - want).max() / max(1.0, np.abs(want).max())))
    return worst


def with_precision(model: keras.Model, precision: str) -> keras.Model:
    """The model computing in another precision, one of PRECISIONS or float64; its weights are float32, or float64."""
    if model.compute_dtype == precision:
        return model
    policy = precision if precision in ("float32", "float64") else f"mixed_{precision}"
    with nn.zero_initializers():
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
    twin.record = model.record  # How texts are written, and which tokens end them.
    return twin
