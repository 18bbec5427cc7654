"""TF Serving's metrics, and the same by signature, in Prometheus's text form."""

import functools
import math
from collections.abc import Callable

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.utils import floatToGoString

_PREFIX = ":tensorflow:serving:"

prometheus_client.disable_created_metrics()


def _exponential(scale: float, growth: float, count: int) -> list[float]:
    return [scale * growth**k for k in range(count)] + [math.inf]


_MICROSECONDS = _exponential(10, 1.8, 33)
_SIZES = _exponential(1, 2, 15)


class Metrics:
    """The counters of one server; each attribute is a function of the values of its labels. Times are in microseconds;
    Prometheus's own convention would be seconds, but TF Serving's dashboards expect these."""

    def __init__(self):
        self._registry = CollectorRegistry()
        self._counters: dict[
            str, str
        ] = {}  # The names that prometheus_client gives to counters -> those of TF Serving.
        self.requests = self._counter("request_count", "The number of requests.", "model_name", "status")
        self.latency = self._histogram(
            "request_latency",
            "Microseconds from a request to its answer.",
            _MICROSECONDS,
            "model_name",
            "API",
            "entrypoint",
        )
        self.runtime = self._histogram(
            "runtime_latency", "Microseconds in the model.", _MICROSECONDS, "model_name", "API", "runtime"
        )
        self.examples = self._histogram("request_example_counts", "Examples in a request.", _SIZES, "model")
        self.examples_total = self._counter("request_example_count_total", "The number of examples.", "model")
        self.warmup = self._histogram(
            "model_warmup_latency", "Microseconds of a version's warm-up.", _MICROSECONDS, "model_path", "status"
        )
        self.logged = self._counter("request_log_count", "The number of logged requests.", "model_name", "status_code")
        self.queuing = self._histogram(
            "batching_session:queuing_latency",
            "Microseconds that a request waited for others to share its batch.",
            _exponential(100, 1.2, 52),
            "thread_pool_name",
        )
        self.input_size = self._histogram(
            "batching_session:input_batch_size", "Rows of a request.", _SIZES, "model_name", "signature"
        )
        self.processed_size = self._histogram(
            "batching_session:processed_batch_size", "Rows of a batch with padding.", _SIZES, "model_name", "signature"
        )
        self.padding = self._histogram(
            "batching_session:padding_size", "Rows of padding in a batch.", [0.0, *_SIZES], "model_name", "signature"
        )
        # TF Serving does not count by signature.
        self.signature_requests = self._counter(
            "signature_request_count", "The number of requests.", "model_name", "signature", "API", "status"
        )
        self.signature_latency = self._histogram(
            "signature_request_latency",
            "Microseconds from a request to its answer.",
            _MICROSECONDS,
            "model_name",
            "signature",
            "API",
        )

    def _counter(self, name: str, text: str, *labels: str) -> Callable[..., Counter]:
        self._counters[_PREFIX + name.removesuffix("_total")] = _PREFIX + name
        return functools.cache(Counter(_PREFIX + name, text, labels, registry=self._registry).labels)

    def _histogram(self, name: str, text: str, buckets: list[float], *labels: str) -> Callable[..., Histogram]:
        return functools.cache(Histogram(_PREFIX + name, text, labels, registry=self._registry, buckets=buckets).labels)

    def text(self) -> bytes:
        """Returns all metrics. prometheus_client's own function would append _total to the names of the counters."""
        lines = []
        for family in self._registry.collect():
            name = self._counters.get(family.name, family.name)
            lines += [f"# HELP {name} {family.documentation}", f"# TYPE {name} {family.type}"]
            for sample in family.samples:
                shown = name if family.type == "counter" else sample.name
                labels = ",".join(f'{key}="{_escaped(value)}"' for key, value in sample.labels.items())
                lines.append(f"{shown}{{{labels}}} {floatToGoString(sample.value)}")
        return ("\n".join(lines) + "\n").encode()


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
