"""The interface of exports: names, dtypes and shapes of inputs and outputs, and sample inputs.

Every format reads this table. A free axis has a name: batch, sequence, decoder_sequence, or one that a head defines.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfzoo import nn
from tfzoo.errors import UserError

Axes = tuple[int | str, ...]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output of a signature."""

    dtype: str
    shape: Axes

    def spec(self, name: str) -> tf.TensorSpec:
        """Returns the tensor as a tf.TensorSpec, in which free axes are None."""
        return tf.TensorSpec([axis if isinstance(axis, int) else None for axis in self.shape], self.dtype, name)


@dataclasses.dataclass(frozen=True)
class Signature:
    """The inputs and outputs of one function of an artifact, by name."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]

    def specs(self) -> list[tf.TensorSpec]:
        """Returns the inputs as tf.TensorSpecs."""
        return [tensor.spec(name) for name, tensor in self.inputs.items()]

    def stated(self) -> dict[str, dict[str, dict]]:
        """Returns the signature in the form of manifest.json."""
        sides = {"inputs": self.inputs, "outputs": self.outputs}
        return stated(
            {
                side: {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
                for side, tensors in sides.items()
            }
        )


def stated(sides: Mapping[str, Mapping[str, tuple[str, Sequence]]]) -> dict[str, dict[str, dict]]:
    """Converts {"inputs": {name: (dtype, shape)}, "outputs": ...} into the form of manifest.json."""
    return {
        side: {name: {"dtype": dtype, "shape": list(shape)} for name, (dtype, shape) in tensors.items()}
        for side, tensors in sides.items()
    }


@dataclasses.dataclass(frozen=True)
class Input:
    """An input of models.

    Attributes:
      onnx: its name in ONNX, which is Hugging Face's.
      dtype: its dtype in TensorFlow; in ONNX it is int64.
      axis: its second axis; the first is batch.
      size: config -> the exclusive upper bound of its values, which start at 0; None if the bound is unknown.
      sample: (random, real, config) -> values [B, axis]; real, bool [B, L], marks the real tokens of the encoder's or
        the decoder's side.
    """

    onnx: str
    dtype: str
    axis: int | str
    size: Callable[[Any], int | None]
    sample: Callable[[np.random.Generator, np.ndarray, Any], np.ndarray]

    @property
    def is_mask(self) -> bool:
        """Whether the input is a mask."""
        return self.dtype == "bool"


def _ids(random, real, config):
    return np.where(real, random.integers(0, config.vocab_size, real.shape), 0)


def _segments(random, real, config):
    """Puts the second half of each row into segment 1."""
    del random, config
    return np.arange(real.shape[1]) >= real.sum(1)[:, None] // 2


def _behind_one(random, real, config):
    """Marks all real tokens except the first, if there are others."""
    del random, config
    return real & ((np.arange(real.shape[1]) > 0) | (real.sum(1, keepdims=True) < 2))


def _positions(random, real, config):
    del config
    return random.integers(0, real.sum(1)[:, None], (len(real), 2))


def _mask(random, real, config):
    del random, config
    return real


def _words(config) -> int:
    return config.vocab_size


def _unknown(config) -> None:
    del config


# In the order of the signatures' inputs. Optional inputs that exports omit are not listed.
INPUTS: dict[str, Input] = {
    "token_ids": Input("input_ids", "int32", "sequence", _words, _ids),
    "segment_ids": Input("token_type_ids", "int32", "sequence", lambda config: config.num_segments or None, _segments),
    "padding_mask": Input("attention_mask", "bool", "sequence", _unknown, _mask),
    "pooling_mask": Input("pooling_mask", "bool", "sequence", _unknown, _behind_one),
    "entity_positions": Input("entity_positions", "int32", 2, _unknown, _positions),
    "decoder_token_ids": Input("decoder_input_ids", "int32", "decoder_sequence", _words, _ids),
    "decoder_padding_mask": Input("decoder_attention_mask", "bool", "decoder_sequence", _unknown, _mask),
}
_ONNX_OUTPUTS = {
    "sequence": "last_hidden_state",
    "pooled": "pooler_output",
    "memory": "encoder_last_hidden_state",
    "embedding": "sentence_embedding",
}


def input_of(name: str) -> Input:
    """Returns the entry of INPUTS.

    Raises:
      UserError: exports do not support an input of this name.
    """
    if name not in INPUTS:
        raise UserError(f"exports do not support the input {name!r}; add it to tfzoo/export/interface.py")
    return INPUTS[name]


def inputs_of(model: keras.Model) -> dict[str, Input]:
    """Returns the inputs of `model` that are exported: the required ones, the padding masks, and segments if the model
    has several.

    Raises:
      UserError: the model requires an input that is not in INPUTS.
    """
    exported = {*model.REQUIRED_INPUTS, *(name for name, value in INPUTS.items() if value.is_mask)} & {*model.INPUTS}
    exported |= {name for name in ("segment_ids",) if model.reads_segments}
    exported |= {name for name in ("entity_positions",) if "relation" in model.heads}
    exported |= {name for name in ("pooling_mask",) if model.excludes_prompts}
    for name in exported:
        input_of(name)
    return {name: value for name, value in INPUTS.items() if name in exported}


def outputs_of(model: keras.Model) -> dict[str, Axes]:
    """Returns the outputs of `model` that are exported, with their axes: the logits of its heads, or without heads the
    outputs of its body. All are float32."""
    length = "decoder_sequence" if model.is_encoder_decoder else "sequence"
    classes = ("batch", model.num_labels)
    axes: dict[str, Axes] = {
        "memory": ("batch", "sequence", model.sequence_size),
        "sequence": ("batch", length, model.sequence_size),
        "pooled": ("batch", model.sequence_size),
        "logits": ("batch", length, model.config.vocab_size),
        "classify_logits": classes,
        "relation_logits": classes,
        "tag_logits": ("batch", length, model.num_labels),
        "span_logits": ("batch", length, 2),
        "discriminate_logits": ("batch", length),
        "next_sentence_logits": ("batch", 2),
    }
    if "embed" in model.heads:
        axes["embedding"] = ("batch", model.heads["embed"].size)
    if model.heads:
        names = [nn.output_of(head) for head in model.heads]
    elif model.is_encoder_decoder:
        names = ["memory", "sequence"]
    else:
        names = ["sequence"] + (["pooled"] if getattr(model, "pooler", None) is not None else [])
    return {name: axes.get(name, classes) for name in names}  # A custom head has one number per class.


def real_of(inputs: Mapping[str, np.ndarray], axes: Axes, shape: tuple[int, ...]) -> np.ndarray:
    """Returns where an output with these axes and this shape is meaningful.

    Returns:
      For an output per token bool [B, L], True at the real tokens of its side; for an output per row bool [B], True for
      rows with at least one real token.
    """
    every = np.ones(shape[:2], bool)
    masks = {"sequence": "padding_mask", "decoder_sequence": "decoder_padding_mask"}
    mask = masks.get(str(axes[1])) if len(axes) > 1 else None
    if mask is not None:
        return np.asarray(inputs.get(mask, every), bool)
    return np.any(inputs.get("padding_mask", every[:, :1]), 1, keepdims=True)[:, 0]


def onnx_outputs(model: keras.Model) -> dict[str, str]:
    """Returns the outputs' names in ONNX: {tfzoo's name: Hugging Face's name}.

    The logits of a single head are called `logits`. Among several heads those of lm are, and the others keep their
    names. The logits of a span are written as two outputs. Vectors are called `sentence_embedding`.
    """
    names = list(outputs_of(model))
    if not model.heads:
        return {name: _ONNX_OUTPUTS[name] for name in names}
    alone = "logits" if len(names) == 1 else None
    return {name: alone or name for name in names} | {
        name: _ONNX_OUTPUTS[name] for name in names if name == "embedding"
    }


def tokens(model: keras.Model, sequence_length: int) -> Signature:
    """Returns the signature `tokens`, from ids to numbers. A model of fixed length reads `sequence_length` tokens."""

    def resolved(axes: Axes) -> Axes:
        return tuple(sequence_length if model.fixed_length and axis == "sequence" else axis for axis in axes)

    return Signature(
        {name: Tensor(value.dtype, resolved(("batch", value.axis))) for name, value in inputs_of(model).items()},
        {name: Tensor("float32", resolved(axes)) for name, axes in outputs_of(model).items()},
    )


def sample(
    model: keras.Model, rows: int, length: int, random: np.random.Generator, one_length: bool = False
) -> dict[str, np.ndarray]:
    """Returns random inputs of `rows` rows. The first row has `length` tokens; the others have fewer and are padded.

    With `one_length` both sides of an encoder-decoder have the same length; otherwise the decoder's is shorter.
    """
    inputs = {}
    for name, value in inputs_of(model).items():
        width = length if one_length or not name.startswith("decoder_") else max(1, length - length // 3)
        lengths = np.linspace(width, max(1, width // 3), rows).astype(int)
        real = np.arange(width) < lengths[:, None]
        inputs[name] = value.sample(random, real, model.config).astype(value.dtype)
    return inputs


def padded(model: keras.Model, ids: list[list[int]], pad: int) -> dict[str, np.ndarray]:
    """Returns inputs from rows of ids, padded with `pad`. Both sides of an encoder-decoder read the same rows."""
    length = max(1, *map(len, ids))
    table = np.array([row + [pad] * (length - len(row)) for row in ids], np.int32)
    real = np.arange(length) < np.array([len(row) for row in ids])[:, None]
    values = {"token_ids": table, "padding_mask": real, "decoder_token_ids": table, "decoder_padding_mask": real}
    values["pooling_mask"] = real
    values |= {"segment_ids": np.zeros_like(table), "entity_positions": np.zeros((len(ids), 2), np.int32)}
    return {name: values[name] for name in inputs_of(model)}


def to_onnx(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the same inputs under ONNX's names, in int64."""
    return {input_of(name).onnx: np.asarray(value).astype(np.int64) for name, value in inputs.items()}
