"""The gRPC front end: PredictionService, ModelService, health and reflection."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from tfzoo.errors import UserError, one_line
from tfzoo.serve import inference, keys, messages, tensors
from tfzoo.serve.core import GRPC, Call, Core, ModelSpec
from tfzoo.serve.errors import CODES, StatusError, invalid
from tfzoo.serve.limits import most_held
from tfzoo.serve.servable import Signature

_PACKAGE = "tensorflow.serving"
_HEALTH = "/grpc.health.v1.Health/"
# Methods that run a model.
_RUNS = {f"/{_PACKAGE}.PredictionService/{name}" for name in ("Predict", "Classify", "Regress", "MultiInference")}
# Names that TF Serving's health service knows; "" is the whole server.
_HEALTH_NAMES = ("", "ModelService", "PredictionService", f"{_PACKAGE}.ModelService", f"{_PACKAGE}.PredictionService")
_MAX_MESSAGE = 4000  # Characters of an error: a status travels in a header, whose size is limited.
_MAX_REFLECTIONS = 4  # Open reflection streams; each occupies a thread.
_STATUS_CODES = {code.name: code for code in grpc.StatusCode}

_log = logging.getLogger("tfzoo.serve")


class GrpcServer:
    """A running gRPC server.

    Args:
      core: answers the requests.
      addresses: where it listens, such as "127.0.0.1:8500" and "unix:/run/tfzoo.sock", with the flags that name them.
      credentials: for TLS; None without it.
      api_keys: keys of which a request must carry one; empty without.
      threads: how many requests are inside at a time; more are refused.
      options: further channel arguments.
      as_content: whether outputs are answered in tensor_content.
      with_health: whether there is a health service.

    Raises:
      UserError: an address is in use or not one.
    """

    def __init__(
        self,
        core: Core,
        addresses: Mapping[str, str],
        *,
        credentials: grpc.ServerCredentials | None = None,
        api_keys: Sequence[bytes] = (),
        threads: int,
        options: Sequence[tuple[str, Any]] = (),
        as_content: bool = False,
        with_health: bool = True,
    ):
        self._core, self._threads = core, ThreadPoolExecutor(threads, "grpc")
        self._server = grpc.server(
            self._threads,
            interceptors=[*([_Keys(api_keys)] if api_keys else []), _Refusals(core)],
            maximum_concurrent_rpcs=threads,
            options=[
                ("grpc.so_reuseport", 0),  # Otherwise a second server could take the same port.
                ("grpc.max_receive_message_length", core.limits.max_request_bytes),
                ("grpc.max_send_message_length", -1),
                *options,
            ],
        )
        service, held = Service(core, as_content), Held(most_held(core.limits.max_request_bytes))
        for name, methods in messages.SERVICES.items():
            handlers = {
                method: grpc.unary_unary_rpc_method_handler(
                    _unary(getattr(messages, request), getattr(service, method), held)
                )
                for method, (request, _) in methods.items()
            }
            self._server.add_generic_rpc_handlers(
                [grpc.method_handlers_generic_handler(f"{_PACKAGE}.{name}", handlers)]
            )
        names = [f"{_PACKAGE}.{name}" for name in messages.SERVICES]
        self._health = None
        if with_health:
            self._health = health.HealthServicer(
                experimental_non_blocking=True, experimental_thread_pool=ThreadPoolExecutor(1, "health")
            )
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
            names.append(health.SERVICE_NAME)
        names.append(reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(_Reflection(names), self._server)
        for flag, address in addresses.items():
            self._listen(flag, address, credentials)
        self._server.start()
        self._stopping = threading.Event()
        self._health_thread = threading.Thread(target=self._update_health, name="health", daemon=True)
        self._health_thread.start()

    def _listen(self, flag: str, address: str, credentials: grpc.ServerCredentials | None) -> None:
        try:
            if credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise UserError(f"--{flag}: cannot listen on {address} ({one_line(error, 200)}); choose another") from None
        self.port = port

    def _update_health(self) -> None:
        while self._health is not None and not self._stopping.is_set():
            is_ready = self._core.is_ready()
            status = health_pb2.HealthCheckResponse.SERVING if is_ready else health_pb2.HealthCheckResponse.NOT_SERVING
            for name in _HEALTH_NAMES:
                self._health.set(name, status)
            self._stopping.wait(0.2)

    def stop(self, grace: float) -> None:
        """Refuses new requests, and waits until the others have finished, at most `grace` seconds."""
        self._stopping.set()
        self._health_thread.join()
        if self._health is not None:
            self._health.enter_graceful_shutdown()
        self._server.stop(grace).wait()
        self._threads.shutdown(wait=False)


class Service:
    """The methods of PredictionService and ModelService: (request, call) -> response, both messages."""

    def __init__(self, core: Core, as_content: bool):
        self._core, self._as_content = core, as_content

    def Predict(self, request: Any, call: Call) -> Any:
        spec = _spec(request)

        def read(signature: Signature) -> dict[str, np.ndarray]:
            # An index with a missing name would add an empty entry to the map.
            names = set(request.inputs)
            inference.check_names(signature, names)
            left = self._core.limits.max_tensor_elements
            inputs = {}
            for name in names:
                inputs[name] = tensors.to_array(request.inputs[name], name, left)
                left -= inputs[name].size
            return inputs

        resolved, outputs = self._core.predict(spec, read, request.output_filter, call)
        response = messages.PredictResponse(model_spec=_message(resolved))
        for name, value in outputs.items():
            tensors.to_proto(value, self._as_content, into=response.outputs[name])
        return response

    def Classify(self, request: Any, call: Call) -> Any:
        resolved, result = self._core.classify(_spec(request), request.input, call)
        return messages.ClassificationResponse(model_spec=_message(resolved), result=result)

    def Regress(self, request: Any, call: Call) -> Any:
        resolved, result = self._core.regress(_spec(request), request.input, call)
        return messages.RegressionResponse(model_spec=_message(resolved), result=result)

    def MultiInference(self, request: Any, call: Call) -> Any:
        spec = spec_of(request.tasks[0].model_spec) if request.tasks else ModelSpec("")
        return self._core.multi_inference(spec, request, call)

    def GetModelMetadata(self, request: Any, call: Call) -> Any:
        spec = _spec(request)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field} is not supported")
        return self._core.metadata(spec)

    def GetModelStatus(self, request: Any, call: Call) -> Any:
        return self._core.status(_spec(request))

    def HandleReloadConfigRequest(self, request: Any, call: Call) -> Any:
        self._core.reload(request.config)
        return messages.ReloadConfigResponse(status={"error_code": 0})


def spec_of(message: Any) -> ModelSpec:
    """Returns the ModelSpec of a message."""
    choice = message.WhichOneof("version_choice")
    return ModelSpec(
        message.name,
        message.version.value if choice == "version" else None,
        message.version_label if choice == "version_label" else None,
        message.signature_name,
    )


def _spec(request: Any) -> ModelSpec:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    return spec_of(request.model_spec)


def _message(spec: ModelSpec) -> Any:
    message = messages.ModelSpecMessage(name=spec.name, signature_name=spec.signature_name)
    message.version.value = spec.version
    return message


class Held:
    """Bounds the bytes of all requests that are inside, as many of which may be large as there are threads."""

    def __init__(self, limit: int):
        self._free = limit
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Counts a request until the block ends; raises RESOURCE_EXHAUSTED if the limit is exceeded."""
        with self._lock:
            if size > self._free:
                raise StatusError(
                    "RESOURCE_EXHAUSTED", "The server holds too many bytes of other requests; try again later"
                )
            self._free -= size
        try:
            yield
        finally:
            with self._lock:
                self._free += size


def _unary(
    request_class: Any, method: Callable[[Any, Call], Any], held: Held
) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    """Returns a handler of bytes. gRPC would answer INTERNAL to bytes that are not a message."""

    def handle(data: bytes, context: grpc.ServicerContext) -> bytes:
        remaining = context.time_remaining()
        call = Call(GRPC, None if remaining is None else time.monotonic() + remaining)
        try:
            with held.hold(len(data)):
                return method(request_class.FromString(data), call).SerializeToString()
        except DecodeError:
            error = invalid(f"The request is not a {request_class.DESCRIPTOR.name}")
        except StatusError as failure:
            error = failure
        except Exception:
            _log.exception("a request failed")
            error = StatusError("INTERNAL", "Internal error; see the server's log")
        context.abort(_STATUS_CODES[error.code], error.message[:_MAX_MESSAGE])
        raise AssertionError("abort does not return")

    return handle


class _Keys(grpc.ServerInterceptor):
    """Refuses requests without a key. The health service needs none, because probes cannot send any."""

    def __init__(self, accepted: Sequence[bytes]):
        self._keys = accepted
        self._refuse = grpc.unary_unary_rpc_method_handler(self._abort)

    def intercept_service(self, continuation, details):
        if details.method.startswith(_HEALTH) or any(map(self._fits, details.invocation_metadata)):
            return continuation(details)
        return self._refuse

    def _fits(self, entry) -> bool:
        key, value = entry
        return key == "authorization" and keys.is_authorized(value, self._keys)

    @staticmethod
    def _abort(request, context):
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "Add the metadata authorization: Bearer KEY")


class _Refusals(grpc.ServerInterceptor):
    """Refuses requests of a server that is too busy, before their messages are read and at the cost of no thread."""

    def __init__(self, core: Core):
        self._core = core

    def intercept_service(self, continuation, details):
        if details.method not in _RUNS or (error := self._core.refusal()) is None:
            return continuation(details)

        def abort(requests, context):
            context.abort(_STATUS_CODES[error.code], error.message)

        abort.experimental_thread_pool = _HERE  # type: ignore[attr-defined]
        # The only message of a request for one would be read before it is answered.
        return grpc.stream_unary_rpc_method_handler(abort)


class _Here(ThreadPoolExecutor):
    """Calls functions in the thread that submits them."""

    def submit(self, function, /, *arguments, **named):
        done: Future = Future()
        done.set_result(function(*arguments, **named))
        return done


_HERE = _Here(1)


class _Reflection(reflection.ReflectionServicer):
    def __init__(self, names: Sequence[str]):
        for file in (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
            messages.POOL.AddSerializedFile(file.serialized_pb)
        super().__init__(names, pool=messages.POOL)
        self._free = threading.BoundedSemaphore(_MAX_REFLECTIONS)

    def ServerReflectionInfo(self, request_iterator, context):
        if not self._free.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many reflection streams; close one")
        try:
            yield from super().ServerReflectionInfo(request_iterator, context)
        finally:
            self._free.release()


assert set(CODES) == set(_STATUS_CODES)
