"""Serves SavedModels and ONNX artifacts with TF Serving's API, over gRPC and HTTP.

    python -m tfzoo.serve --model_name=bert --model_base_path=exports/savedmodel/bert --rest_api_port=8501

The flags are those of tensorflow_model_server; docs/serve.md lists what becomes of each. The server listens on
127.0.0.1 unless --host says otherwise. SIGTERM drains it: the requests that it has accepted are answered, and then it
exits with code 0.
"""

import contextlib
import importlib.metadata
import ipaddress
import logging
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from absl import flags as absl_flags

from tfzoo import cli, options
from tfzoo.errors import UserError
from tfzoo.serve import batching, keys, messages, policies, tls
from tfzoo.serve.core import Core
from tfzoo.serve.errors import StatusError
from tfzoo.serve.flags import HONOURED, OWN, REFUSED, TF_SERVING, WARNED
from tfzoo.serve.grpc_server import GrpcServer
from tfzoo.serve.limits import STATUS_THREADS, Limits
from tfzoo.serve.loading import Loader
from tfzoo.serve.manager import Manager
from tfzoo.serve.metrics import Metrics
from tfzoo.serve.request_log import RequestLogs
from tfzoo.serve.rest import http as rest_http
from tfzoo.serve.rest import server as rest

_MAX_PORT = 65535
_METRICS = "/monitoring/prometheus/metrics"
# A request passes through several threads. While a version is loaded, each of them waits for the GIL for up to this
# time; with Python's default of 5 milliseconds, a short request would wait longer than it runs. Less than a millisecond
# is no better on a busy machine: a thread that releases the GIL to another one waits until that one has run.
_SWITCH_SECONDS = 0.001

_log = logging.getLogger("tfzoo.serve")


def define_flags(flags: absl_flags.FlagValues) -> None:
    kinds = {bool: "boolean", int: "integer", float: "float", str: "string"}
    for flag in (*TF_SERVING, *OWN):
        define = getattr(absl_flags, f"DEFINE_{kinds[type(flag.default)]}")
        text = flag.help or f"{flag.verdict.capitalize()}: {flag.reason}."
        define(flag.name, flag.default, text, flag_values=flags)
        if flag in TF_SERVING:
            setattr(flags[flag.name], "group", "tensorflow_model_server")  # noqa: B010  (absl does not declare it)
    options.define_flags(flags, Limits)


def main(flags: absl_flags.FlagValues) -> int | None:
    if flags.version:
        print(f"tfzoo {importlib.metadata.version('tfzoo')}")
        return None
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # Its notices about loading do not concern operators.
    sys.setswitchinterval(_SWITCH_SECONDS)
    _check_flags(flags)
    config = _model_config(flags)
    with contextlib.ExitStack() as running:  # What is started last is stopped first.
        core = _core(flags, running)
        _start_front_ends(flags, core, running)
        running.callback(core.drain)
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        try:
            core.reload(config, wait=False)
        except StatusError as error:
            raise UserError(f"{error.message}; correct the configuration of the models") from None
        _log.info("serving %s; stop it with SIGTERM", ", ".join(core.model_names()))
        _follow(flags, core, stop)
    return None


def _core(flags: absl_flags.FlagValues, running: contextlib.ExitStack) -> Core:
    """Returns the server without its front ends and models."""
    metrics = Metrics()
    scheduler, parameters = _batching(flags, metrics)
    if scheduler is not None:
        running.callback(scheduler.stop)
    loader = Loader(
        metrics,
        tuple(flags.saved_model_tags.split(",")),
        _session_config(flags),
        flags.trust_models,
        max(1, flags.num_request_iterations_for_warmup) if flags.enable_model_warmup else 0,
        flags.tensorflow_intra_op_parallelism or flags.tensorflow_session_parallelism,
        scheduler,
        parameters,
    )
    manager = Manager(
        loader,
        flags.file_system_poll_wait_seconds,
        flags.max_num_load_retries,
        max(0.0, flags.load_retry_interval_micros / 1e6),
        max(1, flags.num_load_threads),
        flags.allow_version_labels_for_unavailable_models,
    )
    running.callback(manager.stop)
    logs = RequestLogs()
    running.callback(logs.close)
    limits = Limits(**options.values_of(flags, Limits))
    return Core(manager, metrics, limits, scheduler is not None, flags.enable_signature_method_name_check, logs)


def _start_front_ends(flags: absl_flags.FlagValues, core: Core, running: contextlib.ExitStack) -> None:
    """Listens at the ports. All requests that are accepted are answered when the stack is closed."""
    api_keys = keys.read(flags.api_key_file) if flags.api_key_file else ()
    metrics_path = _metrics_path(flags)
    tls_config, context = None, None
    if flags.ssl_config_file:
        tls_config = messages.read_text(flags.ssl_config_file, messages.SSLConfig, "ssl_config_file")
        context = tls.http_context(tls_config, f"--ssl_config_file={flags.ssl_config_file}")
    _warn_of_exposure(flags.host, has_keys=bool(api_keys), has_tls=context is not None)
    grace = core.limits.drain_seconds
    stops: list[Callable[[float], None]] = []

    def stop_together() -> None:
        threads = [threading.Thread(target=stop, args=(grace,)) for stop in stops]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    running.callback(stop_together)
    if flags.port:  # gRPC refuses a port in use, too, but prints lines of its own.
        rest.listen(flags.host, flags.port, "port").close()
    if addresses := _grpc_addresses(flags):
        front = GrpcServer(
            core,
            addresses,
            credentials=None if tls_config is None else tls.grpc_credentials(tls_config),
            api_keys=api_keys,
            threads=flags.grpc_max_threads or core.max_inside + STATUS_THREADS,
            options=_channel_arguments(flags.grpc_channel_arguments),
            as_content=flags.enable_serialization_as_tensor_content,
            with_health=flags.enable_grpc_healthcheck_service,
        )
        stops.append(front.stop)
        _log.info("gRPC at %s", ", ".join(addresses.values()))
    if flags.rest_api_port:
        listener = rest.listen(flags.host, flags.rest_api_port)
        settings = rest_http.Settings(
            max_request_bytes=core.limits.max_request_bytes,
            max_requests=core.max_inside,
            timeout=flags.rest_api_timeout_in_ms / 1000,
            api_keys=api_keys,
            cors=flags.rest_api_enable_cors_support,
        )
        app = rest.application(core, settings, metrics_path, flags.page)
        stops.append(rest.Server(app, listener, context).stop)
        _log.info("%s at %s:%d", "HTTPS" if context else "HTTP", flags.host, flags.rest_api_port)


def _metrics_path(flags: absl_flags.FlagValues) -> str | None:
    if not flags.monitoring_config_file:
        return None
    if not flags.rest_api_port:
        _log.warning("--monitoring_config_file has no effect without --rest_api_port, at which metrics are served")
    config = messages.read_text(flags.monitoring_config_file, messages.MonitoringConfig, "monitoring_config_file")
    return (config.prometheus_config.path or _METRICS) if config.prometheus_config.enable else None


def _check_flags(flags: absl_flags.FlagValues) -> None:
    """Refuses and warns of flags that are not honoured, and refuses values that contradict each other."""
    for flag in TF_SERVING:
        if flag.verdict != HONOURED and flags[flag.name].value != flag.default:
            shown = f"--{flag.name}={flags[flag.name].value}"
            if flag.verdict == REFUSED:
                raise UserError(f"{shown}: is not supported; {flag.reason}")
            assert flag.verdict == WARNED
            _log.warning("%s has no effect: %s", shown, flag.reason)
    for name in ("port", "rest_api_port"):
        port: Any = flags[name].value
        if not 0 <= port <= _MAX_PORT:
            raise UserError(f"--{name}={port}: is not a port; give a number from 0 to {_MAX_PORT}")
    if not (flags.port or flags.grpc_socket_path or flags.rest_api_port):
        raise UserError("--port=0: the server would listen nowhere; set --port, --grpc_socket_path or --rest_api_port")
    if flags.port and flags.port == flags.rest_api_port:
        raise UserError(f"--rest_api_port={flags.port}: is the port of gRPC, too; choose another")
    if bool(flags.model_base_path) == bool(flags.model_config_file):
        raise UserError("specify either --model_base_path or --model_config_file")
    if flags.batching_parameters_file and not flags.enable_batching:
        raise UserError(
            f"--batching_parameters_file={flags.batching_parameters_file}: has no effect without --enable_batching; "
            "add it"
        )
    threads: list[Any] = [flags[f"tensorflow_{name}_parallelism"].value for name in ("session", "intra_op", "inter_op")]
    if min(threads) > 0:
        raise UserError(
            "--tensorflow_session_parallelism: specify either this flag or --tensorflow_intra_op_parallelism and "
            "--tensorflow_inter_op_parallelism"
        )


def _model_config(flags: absl_flags.FlagValues) -> Any:
    if flags.model_config_file:
        return messages.read_text(flags.model_config_file, messages.ModelServerConfig, "model_config_file")
    # Relative to the working directory, which TF Serving's own flag may be, too.
    return policies.single(flags.model_name, os.path.abspath(flags.model_base_path))


def _batching(flags: absl_flags.FlagValues, metrics: Metrics) -> tuple[batching.Scheduler | None, Any]:
    if not flags.enable_batching:
        return None, None
    config, where = messages.BatchingParameters(), "--enable_batching"
    if flags.batching_parameters_file:
        where = f"--batching_parameters_file={flags.batching_parameters_file}"
        config = messages.read_text(flags.batching_parameters_file, type(config), "batching_parameters_file")
    scheduler = batching.Scheduler(metrics, config.num_batch_threads.value, config.thread_pool_name.value)
    return scheduler, None if flags.enable_per_model_batching_parameters else batching.parameters(config, where)


def _session_config(flags: absl_flags.FlagValues) -> bytes:
    config = messages.ConfigProto()
    if flags.tensorflow_session_config_file:
        path = flags.tensorflow_session_config_file
        config = messages.read_text(path, messages.ConfigProto, "tensorflow_session_config_file")
    both = flags.tensorflow_session_parallelism
    intra, inter = flags.tensorflow_intra_op_parallelism or both, flags.tensorflow_inter_op_parallelism or both
    config.intra_op_parallelism_threads = intra or config.intra_op_parallelism_threads
    config.inter_op_parallelism_threads = inter or config.inter_op_parallelism_threads
    if flags.per_process_gpu_memory_fraction:
        config.gpu_options.per_process_gpu_memory_fraction = flags.per_process_gpu_memory_fraction
    return config.SerializeToString()


def _grpc_addresses(flags: absl_flags.FlagValues) -> dict[str, str]:
    host = f"[{flags.host}]" if ":" in flags.host else flags.host
    addresses = {f"port={flags.port}": f"{host}:{flags.port}"} if flags.port else {}
    if flags.grpc_socket_path:
        path = pathlib.Path(flags.grpc_socket_path).absolute()
        addresses[f"grpc_socket_path={flags.grpc_socket_path}"] = f"unix:{path}"
    return addresses


def _channel_arguments(text: str) -> list[tuple[str, Any]]:
    arguments: list[tuple[str, Any]] = []
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"--grpc_channel_arguments={text}: {part} has no value; write NAME=VALUE,NAME=VALUE")
        arguments.append((name, int(value) if value.lstrip("-").isdecimal() else value))
    return arguments


def _warn_of_exposure(host: str, has_keys: bool, has_tls: bool) -> None:
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    missing = [
        name for name, has in (("TLS (--ssl_config_file)", has_tls), ("keys (--api_key_file)", has_keys)) if not has
    ]
    if not is_loopback and missing:
        _log.warning("--host=%s: other machines can reach the server, which has no %s", host, " and no ".join(missing))


def _follow(flags: absl_flags.FlagValues, core: Core, stop: threading.Event) -> None:
    """Waits until the server is to stop; until then, it follows changes of --model_config_file."""
    seconds = flags.model_config_file_poll_wait_seconds
    if not flags.model_config_file or seconds <= 0:
        stop.wait()
        return
    current = _model_config(flags)
    while not stop.wait(seconds):
        try:
            config = _model_config(flags)
            if config != current:
                core.reload(config, wait=False)
                current = config
                _log.info("--model_config_file=%s was read again", flags.model_config_file)
        except (UserError, StatusError) as error:  # The server goes on with the models that it has.
            _log.error("%s", error)


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags))
