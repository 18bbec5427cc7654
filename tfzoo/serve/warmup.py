"""Runs the requests in assets.extra/tf_serving_warmup_requests before a version is served."""

import pathlib
import time
from typing import Any

from google.protobuf.message import DecodeError

from tfzoo.serve import inference, messages, records, tensors
from tfzoo.serve.errors import StatusError, invalid
from tfzoo.serve.metrics import Metrics
from tfzoo.serve.servable import ModelSpec, Servable

FILE = pathlib.PurePath("assets.extra", "tf_serving_warmup_requests")
MAX_RECORDS = 1000
_MAX_ELEMENTS = 2**24  # Of an input.


def run(servable: Servable, folder: pathlib.Path, iterations: int, metrics: Metrics) -> None:
    """Runs each request of the file, if there is one, `iterations` times.

    Raises:
      StatusError: the file is damaged or has too many records, or a request fails.
    """
    path = folder / FILE
    if not path.exists():
        return
    start, status = time.perf_counter(), "OK"
    try:
        for number, data in enumerate(records.read(path), 1):
            if number > MAX_RECORDS:
                raise invalid(f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {path}")
            try:
                log = messages.PredictionLog.FromString(data)
            except DecodeError:
                raise invalid(f"Failed to parse warmup record {number} from {path}") from None
            for _ in range(iterations):
                _run(servable, log)
    except StatusError as error:
        status = error.code
        raise
    finally:
        metrics.warmup(str(folder), status).observe((time.perf_counter() - start) * 1e6)


def _run(servable: Servable, log: Any) -> None:
    kind = log.WhichOneof("log_type")
    if kind is None:
        return
    request = getattr(log, kind).request
    if kind == "predict_log":
        spec = ModelSpec(request.model_spec.name, signature_name=request.model_spec.signature_name)

        def read(signature):
            inference.check_names(signature, set(request.inputs))
            return {name: tensors.to_array(proto, name, _MAX_ELEMENTS) for name, proto in request.inputs.items()}

        inference.predict(servable, servable.run, spec, read, request.output_filter, inference.GRPC)
    elif kind in ("classify_log", "regress_log"):
        spec = ModelSpec(request.model_spec.name, signature_name=request.model_spec.signature_name)
        function = inference.classify if kind == "classify_log" else inference.regress
        function(servable, servable.run, spec, request.input, False)
    elif kind == "multi_inference_log":
        inference.multi_inference(servable, servable.run, request, False)
    else:
        number = log.DESCRIPTOR.fields_by_name[kind].number
        raise StatusError("UNIMPLEMENTED", f"Unsupported log_type for warmup: {number}")
