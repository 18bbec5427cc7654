"""Answers of a model in this process: a run, a Hugging Face folder or a sentence-transformers folder."""

import contextlib
import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfzoo import embeddings
from tfzoo.errors import UserError
from tfzoo.export import answers as heads
from tfzoo.export.answers import Answer, Options
from tfzoo.prediction import answers
from tfzoo.prediction.predictor import Predictor, task_of

_LONGEST = 1024  # Default maximum of tokens in a text; as in exports.


class ModelPredictor(Predictor):
    """Answers with a model as an export of it does (tfzoo.export.answers).

    Args:
      load: () -> (model, tokenizer); called once for each device.
      devices: TensorFlow's names of the devices, each of which has a copy of the model; () leaves the choice of one
        device to TensorFlow.
      sequence_length: the maximum number of tokens in a text; None means the model's maximum, at most 1024.
      pooling, prompt_name, prompt: see export.answers.Options.

    Raises:
      UserError: the model does not answer texts, or an option does not fit the model.
    """

    def __init__(
        self,
        load: Callable[[], tuple[Any, Any]],
        devices: Sequence[str] = (),
        *,
        sequence_length: int | None = None,
        pooling: str | None = None,
        prompt_name: str | None = None,
        prompt: str = "",
    ):
        self._devices = tuple(devices) or (None,)
        self.num_devices, self.in_flight = len(self._devices), in_flight()
        self._models = []
        for device in self._devices:
            with on(device):
                self._models.append(load())
        model, tokenizer = self._models[0]
        if tokenizer is None:
            raise UserError(f"model {model.name!r} has no tokenizer that tfzoo can read; put one into its folder")
        length = min(embeddings.longest(model), _LONGEST) if sequence_length is None else sequence_length
        self.task = task_of(list(model.heads))
        refuse = "row" if self.task == "relation" else "call"  # Texts that do not mark two entities.
        self._options = Options(length, refuse=refuse, pooling=pooling, prompt_name=prompt_name, max_new_tokens=1)
        if model.can_generate and model.is_encoder_decoder:
            decoding: dict[str, Any] = dict(
                search=heads.search_of(model), max_new_tokens=heads.new_tokens_of(model, length)
            )
            self._options = dataclasses.replace(self._options, prompt=prompt, **decoding)
        heads.check(model, tokenizer, self._options)
        answer = self._answer(model, tokenizer, pair=False)
        self.inputs, self.length, self.has_offsets = answer.inputs, length, answer.reader.has_offsets
        self.may_pair = self.task == "classify"
        self._several = answer.facts().get("problem_type") == "multi_label_classification"
        self._facts = answer.facts()
        self.no_answer_threshold = self._facts.get("no_answer_threshold")
        self._functions: dict[tuple[int, int], Callable] = {}
        self._lock = threading.Lock()

    def _answer(self, model, tokenizer, pair: bool) -> Answer:
        answer = heads.find(model, tokenizer, dataclasses.replace(self._options, text_pair=pair))
        if answer is None or ("generation" in answer.facts() and not model.is_encoder_decoder):
            has = ", ".join(model.heads) or "none"
            raise UserError(
                f"model {model.name!r} has no head that answers texts (heads: {has}); fine-tune it for a task, or use "
                "python -m tfzoo.generate for a model that continues texts"
            )
        return answer

    def _function(self, device: int, pair: bool) -> Callable:
        """Returns a function strings [B], ... -> outputs, compiled once for all lengths."""
        model, tokenizer = self._models[device]
        answer = self._answer(model, tokenizer, pair)

        def outputs(*texts):
            return answer.answer(dict(zip(answer.inputs, texts)), lambda inputs: model(inputs, training=False))

        specs = [tf.TensorSpec([None], tf.string)] * len(answer.inputs)
        return tf.function(outputs, input_signature=specs, autograph=False).get_concrete_function()

    def _compiled(self, device: int, count: int) -> Callable:
        """Returns the function for rows of `count` texts on a device."""
        with self._lock:
            if (device, count) not in self._functions:
                self._functions[device, count] = self._function(device, pair=count > len(self.inputs))
            return self._functions[device, count]

    def fingerprint(self) -> str:
        model, tokenizer = self._models[0]
        facts = {
            "config": dataclasses.asdict(model.config),
            "heads": list(model.head_names),
            "tokenizer": tokenizer.fingerprint(),
            **self._facts,
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
        for weight in model.weights:
            digest.update(weight.path.partition("/")[2].encode())
            digest.update(weight.numpy().tobytes())
        return digest.hexdigest()

    def answer(self, texts: Sequence[Sequence[str]], device: int = 0) -> list[answers.Record]:
        with on(self._devices[device]):
            outputs = self._compiled(device, len(texts[0]))(*(tf.constant(column) for column in zip(*texts)))
        return answers.records({name: value.numpy() for name, value in outputs.items()}, self._several)


def in_flight() -> int:
    """Returns the number of batches that a device is given at a time: on a GPU the next batch is tokenized while one is
    computed; a CPU computes with all cores."""
    return 2 if tf.config.list_physical_devices("GPU") else 1


def on(device: str | None) -> contextlib.AbstractContextManager:
    """Returns a context that computes on a device; None leaves the choice to TensorFlow."""
    return contextlib.nullcontext() if device is None else tf.device(device)
