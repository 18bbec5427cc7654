"""A SavedModel for TF Serving's stock ops.

    serving_default   texts in, answers in words out, by head (answers.py); ids for a model that has no such answer
    generate          texts and how to write, a number for each row, in; texts out: of language models that write
    tokens            ids in, the heads' logits out, or the body's outputs of a model without heads
    classify, regress of a classifier: tf.Examples in, as TF Serving's Classify and Regress have them

The tokenizer is inside; `import tensorflow_text` before loading. Nothing is jit-compiled and no Python runs.
"""

import os
import pathlib
from typing import Any

import keras
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tfzoo import files
from tfzoo.errors import UserError
from tfzoo.export import answers
from tfzoo.export.answers import Answer, Continuations, Labels, Options, require
from tfzoo.export.onnx import emit as onnx_emit

_METHODS = {"classify": "tensorflow/serving/classify", "regress": "tensorflow/serving/regress"}


def check(model: keras.Model, tokenizer: Any, options: Options) -> None:
    """Raises UserError where a tokenizer, a model and what is asked for do not go together."""
    config = model.config
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model's vocab_size is "
            f"{config.vocab_size}; export the model with the tokenizer that it was trained with"
        )
    length, bounded = options.sequence_length, config.positions in ("learned", "sinusoidal", "sinusoidal_concat")
    if length < 1 or (bounded and length > config.max_positions):
        most = f"from 1 to {config.max_positions}" if bounded else "at least 1"
        raise UserError(f"--sequence_length={length}: must be {most}")


def save(model: keras.Model, tokenizer: Any, folder: str | os.PathLike, options: Options) -> None:
    """Writes saved_model.pb, variables/ and assets/ into `folder`; `signatures` says what they answer."""
    module = _Module(model, tokenizer, options)
    functions = {name: function.get_concrete_function() for name, function in module.functions.items()}
    tf.saved_model.save(module, os.fspath(folder), signatures=functions)
    if _METHODS.keys() & functions.keys():
        _name_methods(pathlib.Path(folder, "saved_model.pb"))


def signatures(model: keras.Model, tokenizer: Any, options: Options) -> dict:
    """Names, dtypes and shapes, as manifest.json has them."""

    def tensor(dtype: str, shape) -> dict:
        return {"dtype": dtype, "shape": list(shape)}

    tokens = {
        "inputs": {name: tensor(dtype, shape) for name, (dtype, shape) in _token_inputs(model, options).items()},
        "outputs": {name: tensor("float32", shape) for name, shape in token_outputs(model, options).items()},
    }
    answer = _answer(model, tokenizer, options)
    if answer is None:
        return {"serving_default": tokens, "tokens": tokens}
    text = {
        "inputs": {name: tensor("string", ["batch"]) for name in answer.inputs},
        "outputs": {name: tensor(dtype, shape) for name, (dtype, shape) in answer.outputs.items()},
    }
    examples: dict[str, dict] = {
        name: {"inputs": {"inputs": tensor("string", ["batch"])}, "outputs": outputs}
        for name, outputs in (
            (
                "classify",
                {name: text["outputs"].get(ours) for name, ours in (("classes", "labels"), ("scores", "scores"))},
            ),
            ("regress", {"outputs": tensor("float32", ["batch"])}),
        )
        if name in _example_signatures(answer)
    }
    if isinstance(answer, Continuations):
        rows = {name: tensor(dtype, ["batch"]) for name, dtype in answer.ROWS.items()}
        examples["generate"] = text | {"inputs": text["inputs"] | rows}
    return {"serving_default": text, "tokens": tokens, **examples}


def token_outputs(model: keras.Model, options: Options) -> dict[str, tuple]:
    """The shapes of what `tokens` answers."""
    config, length = model.config, _length(model, options)
    size = answers.sequence_size(model)
    mine = "decoder_sequence" if "decoder_token_ids" in model.INPUTS else length
    shapes = {
        "sequence": ("batch", mine, size),
        "memory": ("batch", length, size),
        "pooled": ("batch", size),
        "logits": ("batch", mine, config.vocab_size),
        "tag_logits": ("batch", mine, model.num_labels),
        "span_logits": ("batch", mine, 2),
        "discriminate_logits": ("batch", mine),
        "next_sentence_logits": ("batch", 2),
    }
    return {name: shapes.get(name, ("batch", model.num_labels)) for name in onnx_emit.outputs_of(model)}


def token_specs(model: keras.Model, options: Options) -> dict[str, tf.TensorSpec]:
    """What `tokens` reads."""
    return {
        name: tf.TensorSpec([axis if isinstance(axis, int) else None for axis in shape], dtype, name)
        for name, (dtype, shape) in _token_inputs(model, options).items()
    }


def _token_inputs(model: keras.Model, options: Options) -> dict[str, tuple[str, tuple]]:
    length = _length(model, options)
    inputs: dict[str, tuple[str, tuple]] = {}
    for name in onnx_emit.inputs_of(model):
        axes = ("batch", "decoder_sequence" if name.startswith("decoder_") else length)
        inputs[name] = ("bool" if name.endswith("mask") else "int32", axes)
    if "entity_positions" in inputs:
        inputs["entity_positions"] = ("int32", ("batch", 2))
    return inputs


def _length(model: keras.Model, options: Options) -> int | str:
    return options.sequence_length if model.family == "reformer" else "sequence"


def _answer(model, tokenizer, options) -> Answer | None:
    return None if tokenizer is None else answers.find(model, tokenizer, options)


def _example_signatures(answer: Answer | None) -> list[str]:
    """Classify has classes to choose from; regress gives the one number, or of two classes the second's score."""
    if not isinstance(answer, Labels):
        return []
    count = len(answer.labels)
    if count > 1 and answer.problem_type == "regression":
        return []
    return ["regress"] if count == 1 else ["classify", "regress"] if count == 2 else ["classify"]


class _Module(tf.Module):
    """What is saved: the tokenizer, the weights and a function for each signature."""

    def __init__(self, model: keras.Model, tokenizer: Any, options: Options):
        super().__init__(name="exported")
        self.tokenizer = tokenizer
        # The weights alone: of a Keras model that is tracked, its training functions would be saved too.
        self.weights = [weight.value for weight in model.weights]
        self._call = lambda inputs: model(inputs, training=False)
        self._config, self._options = model.config, options
        self._outputs = onnx_emit.outputs_of(model)
        tokens = _function(self._tokens, [*token_specs(model, options).values()])
        self.functions = {"serving_default": tokens, "tokens": tokens}
        answer = _answer(model, tokenizer, options)
        if answer is not None:
            texts = [tf.TensorSpec([None], tf.string, name) for name in answer.inputs]
            self.functions["serving_default"] = _function(lambda **given: answer.answer(given, self._call), texts)
        if isinstance(answer, Continuations):
            rows = [tf.TensorSpec([None], dtype, name) for name, dtype in answer.ROWS.items()]
            self.functions["generate"] = _function(
                lambda text, **given: answer.answer({"text": text}, self._call, given), [*texts, *rows]
            )
        for name in _example_signatures(answer):
            assert answer is not None
            self.functions[name] = _function(
                lambda inputs, name=name: self._from_examples(answer, name, inputs),
                [tf.TensorSpec([None], tf.string, "inputs")],
            )

    def _from_examples(self, answer: Answer, method: str, inputs):
        features = {name: tf.io.FixedLenFeature([], tf.string) for name in answer.inputs}
        outputs = answer.answer(tf.io.parse_example(inputs, features), self._call)
        if method == "classify":
            return {"classes": outputs["labels"], "scores": outputs["scores"]}
        return {"outputs": outputs["value"] if "value" in outputs else outputs["scores"][:, 1]}

    def _tokens(self, **inputs):
        """Fails on what is out of range, for a message that says what is wrong."""
        with tf.control_dependencies(self._checks(inputs)):  # Before anything is looked up.
            inputs = {name: tf.identity(value) for name, value in inputs.items()}
        outputs = self._call(inputs)
        return {name: tf.cast(outputs[name], tf.float32) for name in self._outputs}

    def _checks(self, inputs: dict) -> list:
        config, checks = self._config, []
        for first in [name for name in ("token_ids", "decoder_token_ids") if name in inputs]:
            length, most = tf.shape(inputs[first])[1], self._options.sequence_length
            holds = (1 <= length) & (length <= most)
            checks += [
                require(holds, f"the length of {first} must be from 1 to {most}, and is", length),
                _in_range(first, inputs[first], config.vocab_size),
            ]
            prefix = first.removesuffix("token_ids")
            for name in ("segment_ids", "padding_mask"):
                if prefix + name in inputs:
                    shape = tf.shape(inputs[prefix + name])
                    same = tf.reduce_all(shape == tf.shape(inputs[first]))
                    checks.append(require(same, f"{prefix}{name} must have the shape of {first}, and has", shape))
        rows = tf.shape(inputs["token_ids"])[0]
        for name in ("decoder_token_ids", "entity_positions"):
            if name in inputs:
                found = tf.shape(inputs[name])[0]
                checks.append(require(found == rows, f"{name} must have as many rows as token_ids, and has", found))
        if "segment_ids" in inputs and config.num_segments:
            checks.append(_in_range("segment_ids", inputs["segment_ids"], config.num_segments))
        if "entity_positions" in inputs:
            checks.append(_in_range("entity_positions", inputs["entity_positions"], tf.shape(inputs["token_ids"])[1]))
        return checks


def _function(body, specs: list[tf.TensorSpec]):
    """A tf.function whose arguments are named by their specs."""
    names = [spec.name for spec in specs]
    return tf.function(lambda *values: body(**dict(zip(names, values))), autograph=False, input_signature=specs)


def _in_range(name: str, ids, size):
    """size: a number, or a scalar tensor."""
    bad = tf.boolean_mask(ids, (ids < 0) | (ids >= size))
    bound = f"from 0 to {size - 1}" if isinstance(size, int) else "positions in token_ids"
    return require(tf.size(bad) == 0, f"{name} must be {bound}, and has", bad)


def _name_methods(path: pathlib.Path) -> None:
    """TF Serving's Classify and Regress ask for signatures that say they are meant for them, which Keras's and
    TensorFlow's own `save` do not let one say."""
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for meta_graph in saved.meta_graphs:
        for name, method in _METHODS.items():
            if name in meta_graph.signature_def:
                meta_graph.signature_def[name].method_name = method
    files.atomic_write(path, saved.SerializeToString(deterministic=True))
