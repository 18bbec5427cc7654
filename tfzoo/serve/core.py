"""Answers the requests of both front ends: limits, deadlines, metrics and request logging are here, so that gRPC and
REST only translate.

Errors are StatusErrors, with the codes and texts of TF Serving.
"""

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfzoo.serve import inference, messages, request_log
from tfzoo.serve.admission import Admission
from tfzoo.serve.errors import CODES, StatusError, invalid
from tfzoo.serve.inference import GRPC, REST, Read
from tfzoo.serve.limits import Limits
from tfzoo.serve.manager import Manager
from tfzoo.serve.metrics import Metrics
from tfzoo.serve.request_log import RequestLogs
from tfzoo.serve.servable import DEFAULT_SIGNATURE, ModelSpec, Servable, Signature

__all__ = ["GRPC", "REST", "Call", "Core", "ModelSpec"]

_NOTICE = (
    0.5  # Seconds in which clients learn from an answer that the server stops, rather than from a closed connection.
)
_UNKNOWN = "(unknown)"  # Stands for names that only a client knows: metrics must not grow with them.


@dataclasses.dataclass(frozen=True)
class Call:
    """How a request came in.

    Attributes:
      entrypoint: GRPC or REST.
      deadline: the time.monotonic() at which the client gives up; None without one.
    """

    entrypoint: str
    deadline: float | None = None

    def check(self) -> None:
        """Raises DEADLINE_EXCEEDED if the deadline has passed."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise StatusError("DEADLINE_EXCEEDED", "Deadline exceeded before the request ran")


class Core:
    """The server without its front ends. Threads may call every method at the same time.

    Args:
      manager: the models.
      metrics: where requests are counted.
      limits: the limits of requests; front ends read them, too.
      batches: whether the models batch requests, so that more of them run at a time than there are processors.
      check_methods: whether Predict, Classify and Regress demand signatures with their own method names.
      logs: where requests are logged.

    Attributes:
      limits: the limits of requests.
      max_inside: how many requests run and wait at a time.
    """

    def __init__(
        self,
        manager: Manager,
        metrics: Metrics,
        limits: Limits | None = None,
        batches: bool = False,
        check_methods: bool = False,
        logs: RequestLogs | None = None,
    ):
        self.limits = limits or Limits()
        self._manager, self._metrics, self._check_methods = manager, metrics, check_methods
        running = self.limits.max_running_requests or (os.cpu_count() or 1)
        if batches and not self.limits.max_running_requests:
            running += self.limits.max_queued_requests
        self.max_inside = running + self.limits.max_queued_requests
        self._admission = Admission(running, self.limits.max_queued_requests, self.limits.max_queue_seconds)
        self._logs = logs or RequestLogs()
        self._draining = threading.Event()

    def predict(
        self, spec: ModelSpec, read: Read, output_filter: Sequence[str], call: Call
    ) -> tuple[ModelSpec, dict[str, np.ndarray]]:
        """Runs a signature.

        Args:
          spec: the model and signature.
          read: returns the inputs for the signature that it receives; it may raise StatusErrors. Inputs with defaults
            may be missing.
          output_filter: names of outputs; empty means all.
          call: how the request came in.

        Returns:
          The spec with the version and the signature's name that answered, and the outputs.
        """

        inputs: Mapping[str, np.ndarray] = {}

        def read_and_check(signature: Signature) -> Mapping[str, np.ndarray]:
            nonlocal inputs
            inputs = read(signature)
            tokens = inputs.get("max_new_tokens")
            if tokens is not None and tokens.dtype.kind in "iu" and (tokens > self.limits.max_new_tokens).any():
                raise invalid(f"max_new_tokens: must be at most {self.limits.max_new_tokens}, the server's limit")
            return inputs

        with self.request("Predict", spec, call), self._manager.get(spec) as servable:
            run = self._run(servable, "Predict", call)
            outputs = inference.predict(
                servable, run, spec, read_and_check, output_filter, call.entrypoint, self._check_methods
            )
            resolved = _resolved(spec, servable)
            self._log(resolved, lambda: request_log.predict_log(resolved, inputs, output_filter, outputs))
            return resolved, outputs

    def classify(self, spec: ModelSpec, examples: Any, call: Call) -> tuple[ModelSpec, Any]:
        """Classifies examples (a messages.Input); returns what answered and a messages.ClassificationResult."""
        return self._on_examples("Classify", inference.classify, "classifications", spec, examples, call)

    def regress(self, spec: ModelSpec, examples: Any, call: Call) -> tuple[ModelSpec, Any]:
        """Like `classify`, with a messages.RegressionResult."""
        return self._on_examples("Regress", inference.regress, "regressions", spec, examples, call)

    def _on_examples(
        self, api: str, compute: Callable[..., Any], rows: str, spec: ModelSpec, examples: Any, call: Call
    ) -> tuple[ModelSpec, Any]:
        """Runs inference.classify or inference.regress; `rows` is the result's field with one entry per example."""
        with self.request(api, spec, call), self._manager.get(spec) as servable:
            result = compute(servable, self._run(servable, api, call), spec, examples, self._check_methods)
            self._count_examples(servable.name, len(getattr(result, rows)))
            resolved = _resolved(spec, servable)
            self._log(resolved, lambda: request_log.examples_log(resolved, api, examples, result))
            return resolved, result

    def multi_inference(self, spec: ModelSpec, request: Any, call: Call) -> Any:
        """Runs several signatures on the same examples; takes and returns messages. `spec` is that of the first."""
        with self.request("MultiInference", spec, call), self._manager.get(spec) as servable:
            run = self._run(servable, "MultiInference", call)
            return inference.multi_inference(servable, run, request, self._check_methods)

    def metadata(self, spec: ModelSpec) -> Any:
        """Returns a messages.GetModelMetadataResponse with the signatures."""
        with self._manager.get(spec) as servable:
            response = messages.GetModelMetadataResponse()
            response.model_spec.name, response.model_spec.version.value = servable.name, servable.version
            response.metadata["signature_def"].Pack(
                messages.SignatureDefMap.FromString(servable.signature_def_map()), "type.googleapis.com/"
            )
            return response

    def status(self, spec: ModelSpec) -> Any:
        """Returns a messages.GetModelStatusResponse: the newest version first."""
        response = messages.GetModelStatusResponse()
        for number, state, error in self._manager.status(spec):
            added = response.model_version_status.add(version=number, state=int(state))
            added.status.error_code = CODES.index(error.code) if error else 0
            added.status.error_message = error.message if error else ""
        return response

    def reload(self, config: Any, wait: bool = True) -> None:
        """Serves the models of a messages.ModelServerConfig instead of the present ones; see Manager.reload."""
        request_log.checked(config)
        self._manager.reload(config, wait)
        self._logs.update(config)

    @contextlib.contextmanager
    def servable(self, spec: ModelSpec) -> Iterator[Servable]:
        """Yields the loaded version that a spec names, which stays loaded until the block ends."""
        with self._manager.get(spec) as servable:
            yield servable

    def model_names(self) -> list[str]:
        """Returns the names of the configured models."""
        return self._manager.names()

    def is_ready(self) -> bool:
        """Returns whether the server is not draining and every configured model has an available version."""
        return not self._draining.is_set() and self._manager.is_ready()

    def drain(self) -> None:
        """Is not ready from now on, and refuses new requests; waits until those that were accepted are answered, at
        most `limits.drain_seconds`. Front ends still run, so that clients are told."""
        self._draining.set()
        self._admission.close()
        until = time.monotonic() + self.limits.drain_seconds
        time.sleep(min(_NOTICE, self.limits.drain_seconds))
        self._admission.wait_until_empty(max(0.0, until - time.monotonic()))

    def refusal(self) -> StatusError | None:
        """Returns the error with which a request that runs a model must be refused now, or None. Front ends ask before
        they read a request. A refused one is counted, but its model is unknown."""
        error = self._admission.refusal()
        if error is not None:
            self._metrics.requests(_UNKNOWN, error.code).inc()
        return error

    def metrics(self) -> bytes:
        """Returns the metrics in Prometheus's text form."""
        return self._metrics.text()

    @contextlib.contextmanager
    def request(self, api: str, spec: ModelSpec, call: Call) -> Iterator[None]:
        """Waits for the request's turn, and counts the request and how it ended."""
        start, status = time.perf_counter(), "OK"
        try:
            with self._admission.turn(call.deadline):
                yield
        except StatusError as error:
            status = error.code
            raise
        except BaseException:
            status = "INTERNAL"
            raise
        finally:
            model, signature = self._known(spec)
            microseconds = (time.perf_counter() - start) * 1e6
            self._metrics.requests(model, status).inc()
            self._metrics.signature_requests(model, signature, api, status).inc()
            if status == "OK":
                self._metrics.latency(model, api, call.entrypoint).observe(microseconds)
                self._metrics.signature_latency(model, signature, api).observe(microseconds)

    def _known(self, spec: ModelSpec) -> tuple[str, str]:
        signature = spec.signature_name or DEFAULT_SIGNATURE
        signatures = self._manager.signatures(spec.name)
        if signatures is None:
            return _UNKNOWN, _UNKNOWN
        return spec.name, signature if signature in signatures else _UNKNOWN

    def _run(self, servable: Servable, api: str, call: Call) -> inference.Run:
        def run(signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
            call.check()
            start = time.perf_counter()
            values = servable.run(signature, inputs, outputs, call.deadline)
            microseconds = (time.perf_counter() - start) * 1e6
            self._metrics.runtime(servable.name, api, servable.runtime).observe(microseconds)
            return values

        return run

    def _log(self, resolved: ModelSpec, log: Callable[[], Any]) -> None:
        if self._logs.sampled(resolved.name):
            self._logs.write(resolved.name, log())
            self._metrics.logged(resolved.name, "OK").inc()

    def _count_examples(self, model: str, count: int) -> None:
        self._metrics.examples(model).observe(count)
        self._metrics.examples_total(model).inc(count)


def _resolved(spec: ModelSpec, servable: Servable) -> ModelSpec:
    return ModelSpec(servable.name, servable.version, None, spec.signature_name or DEFAULT_SIGNATURE)
