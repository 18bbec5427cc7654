"""Answers the requests of both front ends: limits, deadlines, batching, metrics and request logging are here, so that
gRPC and REST only translate.

Errors are StatusErrors, with the codes and texts of TF Serving.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfzoo.serve.errors import StatusError, invalid
from tfzoo.serve.servable import DEFAULT_SIGNATURE, ModelSpec, Servable, Signature

GRPC, REST = "GRPC", "REST"


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
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise StatusError("DEADLINE_EXCEEDED", "Deadline exceeded before the request ran")


class Core:
    """The server without its front ends. Threads may call every method at the same time.

    Args:
      manager: the loaded models.
    """

    def __init__(self, manager: Any):
        self._manager = manager

    def predict(
        self,
        spec: ModelSpec,
        read: Callable[[Signature], Mapping[str, np.ndarray]],
        output_filter: Sequence[str],
        call: Call,
    ) -> tuple[ModelSpec, dict[str, np.ndarray]]:
        """Runs a signature.

        Args:
          spec: the model and signature.
          read: returns the inputs for the signature that it receives; it may raise StatusErrors. Over gRPC, inputs with
            defaults may be missing.
          output_filter: names of outputs; empty means all.
          call: how the request came in.

        Returns:
          The spec with the version and the signature's name that answered, and the outputs.
        """
        raise NotImplementedError

    def classify(self, spec: ModelSpec, examples: Any, call: Call) -> tuple[ModelSpec, Any]:
        """Classifies examples (a messages.Input); returns what answered and a messages.ClassificationResult."""
        raise NotImplementedError

    def regress(self, spec: ModelSpec, examples: Any, call: Call) -> tuple[ModelSpec, Any]:
        """Like `classify`, with a messages.RegressionResult."""
        raise NotImplementedError

    def multi_inference(self, request: Any, call: Call) -> Any:
        """Runs several signatures on the same examples; takes and returns messages."""
        raise NotImplementedError

    def metadata(self, spec: ModelSpec) -> Any:
        """Returns a messages.GetModelMetadataResponse with the signatures."""
        raise NotImplementedError

    def status(self, spec: ModelSpec) -> Any:
        """Returns a messages.GetModelStatusResponse: the newest version first."""
        raise NotImplementedError

    def reload(self, config: Any) -> None:
        """Serves the models of a messages.ModelServerConfig instead of the present ones."""
        raise NotImplementedError

    @contextlib.contextmanager
    def servable(self, spec: ModelSpec) -> Iterator[Servable]:
        """Yields the loaded version that a spec names, which stays loaded until the block ends."""
        with self._manager.get(spec) as servable:
            yield servable

    def model_names(self) -> list[str]:
        """Returns the names of the configured models."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Returns whether the server is not draining and every configured model has an available version."""
        raise NotImplementedError

    def metrics(self) -> bytes:
        """Returns the metrics in Prometheus's text form."""
        raise NotImplementedError


def signature_of(servable: Servable, spec: ModelSpec, entrypoint: str) -> Signature:
    """Returns the signature that a spec names.

    Raises:
      StatusError: there is none; each entry point has its own code and text.
    """
    name = spec.signature_name or DEFAULT_SIGNATURE
    if name in servable.signatures:
        return servable.signatures[name]
    if entrypoint == GRPC:
        raise StatusError("FAILED_PRECONDITION", f'Serving signature key "{name}" not found.')
    raise invalid(f'Serving signature name: "{name}" not found in signature def')
