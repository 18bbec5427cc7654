"""LiteRT (TensorFlow Lite): the signature `tokens` in its builtin operators alone, for phones and what is smaller.

https://ai.google.dev/edge/litert/conversion/tensorflow/overview describes the converter, which TensorFlow brings.
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
_MAX_BYTES = 2**31 - 2**24  # Flat buffers end at 2 GiB.
_INSTEAD = "export with --formats=savedmodel"


def write(model, tokenizer, folder: pathlib.Path, options: Options, limits: Limits, **_) -> dict[str, Any]:
    """A target of artifact.py, which see."""
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
    """Writes model.tflite, of float32 weights, with the inputs and outputs of the SavedModel's `tokens`.

    Raises:
      UserError: LiteRT lacks an operator, which the message names with the layer, or the model is too large for it.
    """
    if model.count_params() * 4 > _MAX_BYTES:
        raise UserError(
            f"--formats=litert: {model.count_params():,} weights do not fit the 2 GiB of a file; {_INSTEAD}"
        )
    signature = interface.tokens(model, options.sequence_length)

    def call(*values):
        inputs = _refusing(model.config, dict(zip(signature.inputs, values)))
        found = model(inputs, training=False)
        return {name: tf.cast(found[name], tf.float32) for name in signature.outputs}

    module = tf.Module()
    module.weights = [weight.value for weight in model.weights]  # As savedmodel.py has them.
    module.tokens = tf.function(call, autograph=False, input_signature=signature.specs())
    with tempfile.TemporaryDirectory() as saved, _known_gelu(model):
        tf.saved_model.save(module, saved, signatures={"tokens": module.tokens.get_concrete_function()})
        converter = tf.lite.TFLiteConverter.from_saved_model(saved, signature_keys=["tokens"])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        try:
            with verify.silent():  # It prints whole graphs where it fails.
                content = converter.convert()
        except Exception as error:  # The converter's own class has moved from release to release.
            raise UserError(f"--formats=litert: {_why(error)}; {_INSTEAD}") from error
    path = pathlib.Path(folder, NAME)
    path.write_bytes(content)
    return path


def _refusing(config, inputs: dict) -> dict:
    """The inputs, of which ids, segments and positions are looked up in a table of their own numbers: LiteRT has no
    assertions, but its Gather fails on what is beyond a table."""
    found = {}
    for name, value in inputs.items():
        size = interface.input_of(name).size(config)
        if name == "entity_positions":
            size = tf.shape(inputs["token_ids"])[1]
        if size is not None:
            # What is negative would be counted from the end.
            value = tf.gather(tf.range(size), tf.where(value < 0, size, value))
        found[name] = value
    return found


def _why(error: Exception) -> str:
    """The operations that the converter names, and a layer that asks for one of them."""
    operations = sorted(set(re.findall(r"'(tf\.\w+)' op", str(error))))
    if not operations:
        return f"LiteRT's converter fails ({one_line(error, 300)})"
    place = re.search(r'fused\["\w+:", "([^"@]+)/[^"@/]+@', str(error))
    layer = f", which {place[1]} asks for" if place else ""
    return f"LiteRT has no builtin operator that does {' or '.join(operations)}{layer}"


@contextlib.contextmanager
def _known_gelu(model: keras.Model) -> Iterator[None]:
    """The converter knows GELU as TensorFlow writes it, not the form in which it is fast to train."""
    ours = basic.activation("gelu")
    layers = [layer for layer in model._flatten_layers() if getattr(layer, "activation", None) is ours]
    try:
        for layer in layers:
            layer.activation = tf.nn.gelu
        yield
    finally:
        for layer in layers:
            layer.activation = ours
