"""Logs a sample of the requests of a model, as its logging_config says: PredictionLogs in a TFRecord file.

A file of this form can be the warm-up requests of the model's next version.
"""

import os
import random
import threading
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from tfzoo.serve import messages, records, tensors
from tfzoo.serve.errors import StatusError, invalid
from tfzoo.serve.servable import ModelSpec

_TYPES = ("", "tfrecord")


class RequestLogs:
    """The logs of all models; `update` sets which there are. Threads may call every method at the same time."""

    def __init__(self):
        self._rates: dict[str, tuple[float, str]] = {}  # Model -> sampling rate and path.
        self._files: dict[str, BinaryIO] = {}  # By path.
        self._lock = threading.Lock()

    def update(self, config: Any) -> None:
        """Logs as the models of a messages.ModelServerConfig say.

        Raises:
          StatusError: a logging_config is not valid, or its file cannot be written; nothing changes.
        """
        rates = checked(config)
        files: dict[str, BinaryIO] = {}
        for name, (_, path) in rates.items():
            try:
                files[path] = self._files.get(path) or files.get(path) or open(path, "ab")
            except OSError as error:
                raise invalid(f"Model {name}: {path} cannot be written ({error.strerror})") from None
        with self._lock:
            for path in self._files.keys() - files.keys():
                self._files[path].close()
            self._rates, self._files = rates, files

    def sampled(self, model: str) -> bool:
        """Returns whether a request of a model is to be logged."""
        rate = self._rates.get(model, (0.0, ""))[0]
        return rate > 0 and random.random() < rate

    def write(self, model: str, log: Any) -> None:
        """Appends a messages.PredictionLog to the log of a model."""
        data = records.record(log.SerializeToString())
        with self._lock:
            file = self._files.get(self._rates.get(model, (0.0, ""))[1])
            if file is not None:
                file.write(data)
                file.flush()

    def close(self) -> None:
        """Closes the files."""
        self.update(messages.ModelServerConfig())


def checked(config: Any) -> dict[str, tuple[float, str]]:
    """Returns the sampling rate and the file of each model of a messages.ModelServerConfig that is logged.

    Raises:
      StatusError: a logging_config is not valid.
    """
    rates = {}
    for model in config.model_config_list.config:
        if not model.HasField("logging_config"):
            continue
        collector = model.logging_config.log_collector_config
        rate = model.logging_config.sampling_config.sampling_rate
        if collector.type not in _TYPES:
            raise StatusError("NOT_FOUND", f"Cannot find LogCollector::Factory for type: {collector.type}")
        if not 0 <= rate <= 1:
            raise invalid(f"Model {model.name}: sampling_rate is {rate}; it must be from 0 to 1")
        if not os.path.isabs(collector.filename_prefix):
            raise invalid(
                f"Model {model.name}: filename_prefix is {collector.filename_prefix!r}; it must be an absolute path"
            )
        rates[model.name] = rate, f"{collector.filename_prefix}.{os.getpid()}.tfrecord"
    return rates


def predict_log(
    resolved: ModelSpec, inputs: Mapping[str, np.ndarray], filter: Any, outputs: Mapping[str, np.ndarray]
) -> Any:
    """Returns the messages.PredictionLog of a Predict request and its answer."""
    log = messages.PredictionLog()
    request, response = log.predict_log.request, log.predict_log.response
    _fill_spec(request.model_spec, resolved)
    _fill_spec(response.model_spec, resolved)
    request.output_filter.extend(filter)
    for name, value in inputs.items():
        tensors.to_proto(value, into=request.inputs[name])
    for name, value in outputs.items():
        tensors.to_proto(value, into=response.outputs[name])
    return log


def examples_log(resolved: ModelSpec, api: str, examples: Any, result: Any) -> Any:
    """Returns the messages.PredictionLog of a Classify or Regress request and its answer."""
    log = messages.PredictionLog()
    part = log.classify_log if api == "Classify" else log.regress_log
    _fill_spec(part.request.model_spec, resolved)
    _fill_spec(part.response.model_spec, resolved)
    part.request.input.CopyFrom(examples)
    part.response.result.CopyFrom(result)
    return log


def _fill_spec(message: Any, spec: ModelSpec) -> None:
    message.name, message.signature_name = spec.name, spec.signature_name
    message.version.value = spec.version
