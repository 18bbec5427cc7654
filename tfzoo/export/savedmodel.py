"""SavedModels that run on TF Serving's stock ops.

    serving_default     from texts to the answers of the model's head (see answers/); the same as `tokens` for a model
                        that does not answer texts
    generate            from texts and sampling options, one number per row, to texts: for generating language models
    tokens              from ids to the heads' logits, or to the body's outputs for a model without heads
    classify, regress   from tf.Examples, for TF Serving's Classify and Regress: for classifiers

The graph contains the tokenizer; `import tensorflow_text` before loading it. Nothing is jit-compiled and no Python code
runs.
"""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tfzoo import files
from tfzoo.export import answers, batching, golden, interface, manifest, warmup
from tfzoo.export.answers import Options
from tfzoo.export.checks import Checks
from tfzoo.export.interface import Signature, Tensor
from tfzoo.export.precision import Limits

_METHODS = {"classify": "tensorflow/serving/classify", "regress": "tensorflow/serving/regress"}


def write(
    model, tokenizer, folder: pathlib.Path, options: Options, limits: Limits, *, name: str, **_
) -> dict[str, Any]:
    """Writes a SavedModel artifact; see artifact.Target."""
    signatures = save(model, tokenizer, folder, options)
    arrays: dict[str, dict] = {"tokens": golden.token_arrays(model, tokenizer, options, limits)}
    answer = None if tokenizer is None else answers.find(model, tokenizer, options)
    if answer is None:
        case, least = min(arrays["tokens"].items(), key=lambda item: item[1]["inputs"]["token_ids"].size)
        arrays["serving_default"] = {case: least}
    else:
        arrays |= golden.text_signatures(answer, limits)
    golden.write(folder / "golden.npz", arrays)
    warmup.write(folder, name, arrays)
    batching.write(folder)
    return {**manifest.signatures(signatures, limits), "precision": model.compute_dtype}


def save(model: keras.Model, tokenizer: Any, folder: str | os.PathLike, options: Options) -> dict[str, Signature]:
    """Writes saved_model.pb, variables/ and assets/ into `folder` and returns the signatures by name."""
    answering = _functions(model, tokenizer, options)
    module = tf.Module(name="exported")
    module.tokenizer = tokenizer
    # Only the weights: tracking the Keras model would also save its training functions.
    module.weights = [weight.value for weight in model.weights]
    # Two signature names may share a function.
    made = {id(body): _function(body, signature) for signature, body in answering.values()}
    module.functions = {name: made[id(body)] for name, (_, body) in answering.items()}
    functions = {name: function.get_concrete_function() for name, function in module.functions.items()}
    # Custom gradients would be traced as well, which takes most of the time, although nothing is trained.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, os.fspath(folder), signatures=functions, options=options)
    if _METHODS.keys() & functions.keys():
        _name_methods(pathlib.Path(folder, "saved_model.pb"))
    return {name: signature for name, (signature, _) in answering.items()}


def _functions(
    model: keras.Model, tokenizer: Any, options: Options
) -> dict[str, tuple[Signature, Callable[..., dict]]]:
    """Returns the signatures by name, each with the function that computes it."""
    call = _calling(model)
    tokens = token_signature(model, options), lambda **inputs: _tokens(model, options, call, inputs)
    answer = None if tokenizer is None else answers.find(model, tokenizer, options)
    if answer is None:
        return {"serving_default": tokens, "tokens": tokens}
    texts = answer.functions(call)
    return {"serving_default": texts.pop("serving_default"), "tokens": tokens, **texts}


def _calling(model: keras.Model) -> Callable[[dict], dict]:
    return lambda inputs: model(inputs, training=False)


def _function(body: Callable[..., dict], signature: Signature):
    """Returns a tf.function whose arguments are named after the signature's inputs."""
    names = list(signature.inputs)
    return tf.function(
        lambda *values: body(**dict(zip(names, values))), autograph=False, input_signature=signature.specs()
    )


# The signature `tokens`


def token_signature(model: keras.Model, options: Options) -> Signature:
    """Returns the signature `tokens`, with the output `error` if rows are refused one by one."""
    signature = interface.tokens(model, options.sequence_length)
    error = {"error": Tensor("string", ("batch",))} if options.refuse == "row" else {}
    return Signature(signature.inputs, {**signature.outputs, **error})


def _tokens(model: keras.Model, options: Options, call: Callable[[dict], dict], inputs: dict) -> dict:
    """Computes `tokens`; values out of range fail with a message that names the input."""
    checks = Checks(options.refuse == "row")
    _check_shapes(checks, options, inputs)
    inputs = _within(checks, model.config, checks.passed(inputs))
    outputs = call(checks.passed(inputs))  # After the checks: the model looks the values up in tables.
    return checks.answered({name: tf.cast(outputs[name], tf.float32) for name in interface.outputs_of(model)})


def _check_shapes(checks: Checks, options: Options, inputs: dict) -> None:
    checks.same_rows(inputs)
    for first in [name for name in ("token_ids", "decoder_token_ids") if name in inputs]:
        length, most = tf.shape(inputs[first])[1], options.sequence_length
        holds = (1 <= length) & (length <= most)
        checks.call(holds, f"the length of {first} must be from 1 to {most}, but is", length)
        axis = interface.input_of(first).axis
        for name in inputs:
            if name != first and interface.input_of(name).axis == axis:
                shape = tf.shape(inputs[name])
                same = tf.reduce_all(shape == tf.shape(inputs[first]))
                checks.call(same, f"{name} must have the shape of {first}, but has", shape)


def _within(checks: Checks, config, inputs: dict) -> dict:
    """Checks the range of the inputs' values and returns inputs that are safe to compute with."""
    safe = {}
    for name, value in inputs.items():
        size = interface.input_of(name).size(config)
        if size is not None:
            value = checks.within(name, value, size, f"from 0 to {size - 1}")
        elif name == "entity_positions":
            value = checks.within(name, value, tf.shape(inputs["token_ids"])[1], "positions in token_ids")
        safe[name] = value
    return safe


def _name_methods(path: pathlib.Path) -> None:
    """Sets the method names that TF Serving's Classify and Regress require of their signatures; neither Keras nor
    TensorFlow can set them when saving."""
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for meta_graph in saved.meta_graphs:
        for name, method in _METHODS.items():
            if name in meta_graph.signature_def:
                meta_graph.signature_def[name].method_name = method
    files.atomic_write(path, saved.SerializeToString(deterministic=True))
