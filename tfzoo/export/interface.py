"""What exports take and give: the names, dtypes and shapes of inputs and outputs, and what samples of inputs are.

Every format reads this table. A free axis has a name: batch, sequence, decoder_sequence, or a head's own.
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
        return tf.TensorSpec([axis if isinstance(axis, int) else None for axis in self.shape], self.dtype, name)


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a function of an artifact reads and answers, by name."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]

    def specs(self) -> list[tf.TensorSpec]:
        return [tensor.spec(name) for name, tensor in self.inputs.items()]

    def stated(self) -> dict[str, dict[str, dict]]:
        sides = {"inputs": self.inputs, "outputs": self.outputs}
        return stated(
            {
                side: {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
                for side, tensors in sides.items()
            }
        )


def stated(sides: Mapping[str, Mapping[str, tuple[str, Sequence]]]) -> dict[str, dict[str, dict]]:
    """{"inputs": {name: (dtype, shape)}, "outputs": ...}, as manifest.json has it."""
    return {
        side: {name: {"dtype": dtype, "shape": list(shape)} for name, (dtype, shape) in tensors.items()}
        for side, tensors in sides.items()
    }


@dataclasses.dataclass(frozen=True)
class Input:
    """An input of models.

    onnx: Hugging Face's name.
    dtype: in ONNX it is int64.
    axis: the second; the first is batch.
    size: config -> from 0 to below which its values must be; None where that is not known.
    sample: (random, real, config) -> values [B, axis]; real bool [B, L] says where the tokens of its side are real.
    """

    onnx: str
    dtype: str
    axis: int | str
    size: Callable[[Any], int | None]
    sample: Callable[[np.random.Generator, np.ndarray, Any], np.ndarray]

    @property
    def is_mask(self) -> bool:
        return self.dtype == "bool"


def _ids(random, real, config):
    return np.where(real, random.integers(0, config.vocab_size, real.shape), 0)


def _segments(random, real, config):
    """The second half of each row."""
    del random, config
    return np.arange(real.shape[1]) >= real.sum(1)[:, None] // 2


def _behind_one(random, real, config):
    """Real tokens but the first, where there are others."""
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


# In the order in which signatures have them. What a model can do without, and exports leave out, is not in there.
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
    """Raises UserError for an input that exports do not know."""
    if name not in INPUTS:
        raise UserError(f"the input {name!r} is not one that exports know; add it to tfzoo/export/interface.py")
    return INPUTS[name]


def inputs_of(model: keras.Model) -> dict[str, Input]:
    """The inputs of `model` that are exported: those that it cannot do without, what says which tokens are padding, and
    segments, where there are several.

    Raises:
      UserError: the model requires an input that is not in INPUTS.
    """
    asked = {*model.REQUIRED_INPUTS, *(name for name, value in INPUTS.items() if value.is_mask)} & {*model.INPUTS}
    asked |= {name for name in ("segment_ids",) if model.reads_segments}
    asked |= {name for name in ("entity_positions",) if "relation" in model.heads}
    asked |= {name for name in ("pooling_mask",) if model.excludes_prompts}
    for name in asked:
        input_of(name)
    return {name: value for name, value in INPUTS.items() if name in asked}


def outputs_of(model: keras.Model) -> dict[str, Axes]:
    """The outputs of `model` that are exported, and their axes: the heads' logits, or without heads what the body
    gives. All are float32."""
    mine = "decoder_sequence" if model.is_encoder_decoder else "sequence"
    classes = ("batch", model.num_labels)
    axes: dict[str, Axes] = {
        "memory": ("batch", "sequence", model.sequence_size),
        "sequence": ("batch", mine, model.sequence_size),
        "pooled": ("batch", model.sequence_size),
        "logits": ("batch", mine, model.config.vocab_size),
        "classify_logits": classes,
        "relation_logits": classes,
        "tag_logits": ("batch", mine, model.num_labels),
        "span_logits": ("batch", mine, 2),
        "discriminate_logits": ("batch", mine),
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
    return {name: axes.get(name, classes) for name in names}  # A head of one's own has a number for each class.


def real_of(inputs: Mapping[str, np.ndarray], axes: Axes, shape: tuple[int, ...]) -> np.ndarray:
    """Where an output of `shape`, whose axes these are, says something: bool [B, L], at real tokens of its side, or,
    where it is of whole rows, bool [B], of those with any real token."""
    every = np.ones(shape[:2], bool)
    masks = {"sequence": "padding_mask", "decoder_sequence": "decoder_padding_mask"}
    mask = masks.get(str(axes[1])) if len(axes) > 1 else None
    if mask is not None:
        return np.asarray(inputs.get(mask, every), bool)
    return np.any(inputs.get("padding_mask", every[:, :1]), 1, keepdims=True)[:, 0]


def onnx_outputs(model: keras.Model) -> dict[str, str]:
    """What the outputs of `model` are called in ONNX: ours -> Hugging Face's.

    One head's logits are `logits`. Of several, lm's are, and the others keep their names. A span's come in two.
    Vectors are `sentence_embedding`.
    """
    names = list(outputs_of(model))
    if not model.heads:
        return {name: _ONNX_OUTPUTS[name] for name in names}
    alone = "logits" if len(names) == 1 else None
    return {name: alone or name for name in names} | {
        name: _ONNX_OUTPUTS[name] for name in names if name == "embedding"
    }


def tokens(model: keras.Model, sequence_length: int) -> Signature:
    """The signature `tokens`: ids in, numbers out. A model of a fixed length reads `sequence_length` tokens."""

    def resolved(axes: Axes) -> Axes:
        return tuple(sequence_length if model.fixed_length and axis == "sequence" else axis for axis in axes)

    return Signature(
        {name: Tensor(value.dtype, resolved(("batch", value.axis))) for name, value in inputs_of(model).items()},
        {name: Tensor("float32", resolved(axes)) for name, axes in outputs_of(model).items()},
    )


def sample(
    model: keras.Model, rows: int, length: int, random: np.random.Generator, one_length: bool = False
) -> dict[str, np.ndarray]:
    """Inputs of `rows` rows, the first of `length` tokens, the others of fewer and padded. Of an encoder-decoder the
    two sides have lengths of their own, or one."""
    inputs = {}
    for name, value in inputs_of(model).items():
        own = length if one_length or not name.startswith("decoder_") else max(1, length - length // 3)
        lengths = np.linspace(own, max(1, own // 3), rows).astype(int)
        real = np.arange(own) < lengths[:, None]
        inputs[name] = value.sample(random, real, model.config).astype(value.dtype)
    return inputs


def padded(model: keras.Model, ids: list[list[int]], pad: int) -> dict[str, np.ndarray]:
    """Inputs of rows of ids, which both sides of an encoder-decoder read."""
    length = max(1, *map(len, ids))
    table = np.array([row + [pad] * (length - len(row)) for row in ids], np.int32)
    real = np.arange(length) < np.array([len(row) for row in ids])[:, None]
    given = {"token_ids": table, "padding_mask": real, "decoder_token_ids": table, "decoder_padding_mask": real}
    given["pooling_mask"] = real
    given |= {"segment_ids": np.zeros_like(table), "entity_positions": np.zeros((len(ids), 2), np.int32)}
    return {name: given[name] for name in inputs_of(model)}


def to_onnx(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same inputs under ONNX's names, in int64."""
    return {input_of(name).onnx: np.asarray(value).astype(np.int64) for name, value in inputs.items()}
