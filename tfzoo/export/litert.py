"""LiteRT (TensorFlow Lite): the signature `tokens` in builtin operators only, for phones and smaller devices.

https://ai.google.dev/edge/litert/conversion/tensorflow/overview describes the converter, which is part of TensorFlow.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfzoo.errors import UserError, one_line
from tfzoo.export import golden, interface, manifest, tokenizer_files, tokenizer_graph, verify
from tfzoo.export.answers import Options
from tfzoo.export.precision import Limits
from tfzoo.nn import basic

NAME = "model.tflite"
_MAX_BYTES = 2**31 - 2**24  # FlatBuffers are limited to 2 GiB.
_INSTEAD = "export with --formats=savedmodel"


def write(model, tokenizer, folder: pathlib.Path, options: Options, limits: Limits, **_) -> dict[str, Any]:
    """Writes a LiteRT artifact; see artifact.Target."""
    options = dataclasses.replace(options, refuse="call")
    save(model, folder, options)
    arrays = {"tokens": golden.token_arrays(model, tokenizer, options, limits)}
    arrays |= tokenizer_graph.arrays(model, tokenizer, options)
    if tokenizer is not None:
        tokenizer_files.write(tokenizer, model.LAYOUT, folder / "tokenizer")
    golden.write(folder / "golden.npz", arrays)
    signatures = {"tokens": interface.tokens(model, options.sequence_length)}
    return {**manifest.signatures(signatures, limits), "precision": "float32"}


def save(model: keras.Model, folder: str | os.PathLike, options: Options) -> pathlib.Path:
    """Writes model.tflite with float32 weights and the inputs and outputs of the SavedModel's signature `tokens`.

    Returns:
      The path of the file.

    Raises:
      UserError: the model is too large for LiteRT, or LiteRT lacks an operator; the message names it and the layer.
    """
    if model.count_params() * 4 > _MAX_BYTES:
        raise UserError(
            f"--formats=litert: {model.count_params():,} weights exceed the 2 GiB limit of a file; {_INSTEAD}"
        )
    signature = interface.tokens(model, options.sequence_length)

    def call(*values):
        inputs = _refusing(model.config, dict(zip(signature.inputs, values)))
        outputs = model(inputs, training=False)
        return {name: tf.cast(outputs[name], tf.float32) for name in signature.outputs}

    module = tf.Module()
    module.weights = [weight.value for weight in model.weights]  # As in savedmodel.py.
    module.tokens = tf.function(call, autograph=False, input_signature=signature.specs())
    with tempfile.TemporaryDirectory() as saved, _known_gelu(model):
        tf.saved_model.save(module, saved, signatures={"tokens": module.tokens.get_concrete_function()})
        converter = tf.lite.TFLiteConverter.from_saved_model(saved, signature_keys=["tokens"])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        try:
            with verify.silent():  # The converter prints the entire graph when it fails.
                content = converter.convert()
        except Exception as error:  # The module of the converter's exception class changes between releases.
            raise UserError(f"--formats=litert: {_why(error)}; {_INSTEAD}") from error
    path = pathlib.Path(folder, NAME)
    path.write_bytes(content)
    return path


def _refusing(config, inputs: dict) -> dict:
    """Returns the inputs in a form that fails for ids, segments and positions out of range.

    LiteRT has no assertions, but its Gather fails on an index beyond the end of a table; so each value is looked up in
    a table of the valid values.
    """
    checked = {}
    for name, value in inputs.items():
        size = interface.input_of(name).size(config)
        if name == "entity_positions":
            size = tf.shape(inputs["token_ids"])[1]
        if size is not None:
            # Gather would count negative indices from the end.
            value = tf.gather(tf.range(size), tf.where(value < 0, size, value))
        checked[name] = value
    return checked


def _why(error: Exception) -> str:
    """Returns a message with the operations that the converter's error names and a layer that requires one of them."""
    operations = sorted(set(re.findall(r"'(tf\.\w+)' op", str(error))))
    if not operations:
        return f"the LiteRT converter failed ({one_line(error, 300)})"
    place = re.search(r'fused\["\w+:", "([^"@]+)/[^"@/]+@', str(error))
    layer = f", which {place[1]} requires" if place else ""
    return f"LiteRT has no builtin operator for {' or '.join(operations)}{layer}"


@contextlib.contextmanager
def _known_gelu(model: keras.Model) -> Iterator[None]:
    """Replaces tfzoo's GELU, which is written for fast training, by TensorFlow's, which the converter supports."""
    gelu = basic.activation("gelu")
    layers = [layer for layer in model._flatten_layers() if getattr(layer, "activation", None) is gelu]
    try:
        for layer in layers:
            layer.activation = tf.nn.gelu
        yield
    finally:
        for layer in layers:
            layer.activation = gelu
