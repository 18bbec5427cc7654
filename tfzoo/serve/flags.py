"""The flags of tensorflow_model_server, and what becomes of each here.

`python -m tfzoo.serve` defines them all, so that the command line of a deployment can be kept. A flag that has no
effect here is accepted with a warning; one that would change answers or safety, and is not supported, is refused.
"""

import dataclasses
from typing import Any

HONOURED, WARNED, REFUSED = "honoured", "accepted with a warning", "refused"


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag.

    Attributes:
      name: its name.
      default: its default, from which its type follows.
      help: its text in --help.
      verdict: HONOURED, WARNED (if it is set, a warning says that it has no effect) or REFUSED (if it is set).
      reason: for a flag that is not honoured, why.
    """

    name: str
    default: Any
    help: str
    verdict: str = HONOURED
    reason: str = ""


TF_SERVING = (
    Flag("port", 8500, "The TCP port of gRPC; 0 means none."),
    Flag("grpc_socket_path", "", "The path of a Unix socket on which gRPC listens, too."),
    Flag("rest_api_port", 0, "The TCP port of HTTP; 0 means none."),
    Flag("rest_api_timeout_in_ms", 30000, "The time-out of an HTTP request in milliseconds."),
    Flag("rest_api_enable_cors_support", False, "Let pages of other origins use the HTTP API."),
    Flag("enable_batching", False, "Run requests that arrive together as one batch."),
    Flag("batching_parameters_file", "", "A file with BatchingParameters in text form; needs --enable_batching."),
    Flag(
        "enable_per_model_batching_parameters",
        False,
        "Batch only the versions whose folder has a batching_params.pbtxt, as that says.",
    ),
    Flag("model_name", "default", "The name of the model in --model_base_path."),
    Flag("model_base_path", "", "The folder whose numbered folders are the versions of the model."),
    Flag("model_config_file", "", "A file with a ModelServerConfig in text form, instead of --model_base_path."),
    Flag(
        "model_config_file_poll_wait_seconds", 0, "How often --model_config_file is read again; 0 reads it only once."
    ),
    Flag("file_system_poll_wait_seconds", 1, "How often new versions are looked for; 0 does so only once."),
    Flag("num_load_threads", 0, "How many versions are loaded at a time; 0 means one."),
    Flag("max_num_load_retries", 5, "How many more times a version is tried that cannot be loaded."),
    Flag("load_retry_interval_micros", 60_000_000, "The microseconds between these attempts."),
    Flag(
        "allow_version_labels_for_unavailable_models",
        False,
        "Let new labels stand for versions that are not available yet.",
    ),
    Flag("saved_model_tags", "serve", "The tags of the graph in a SavedModel, separated by commas."),
    Flag("enable_model_warmup", True, "Run a version's warm-up requests before it is served."),
    Flag("num_request_iterations_for_warmup", 0, "How often each warm-up request runs; 0 means once."),
    Flag("tensorflow_session_config_file", "", "A file with a ConfigProto in text form, for SavedModels."),
    Flag("tensorflow_session_parallelism", 0, "The threads of a session; 0 lets TensorFlow choose."),
    Flag("tensorflow_intra_op_parallelism", 0, "The threads of one operation; 0 lets TensorFlow choose."),
    Flag("tensorflow_inter_op_parallelism", 0, "How many operations run at a time; 0 lets TensorFlow choose."),
    Flag("per_process_gpu_memory_fraction", 0.0, "The part of a GPU's memory to take; 0 lets TensorFlow choose."),
    Flag(
        "ssl_config_file", "", "A file with an SSLConfig in text form: TLS for gRPC and HTTP (TF Serving: gRPC alone)."
    ),
    Flag("grpc_channel_arguments", "", "Arguments of the gRPC server: name=value, separated by commas."),
    Flag(
        "grpc_max_threads",
        0,
        "How many gRPC requests may be inside at a time; 0 derives the number from the limits below.",
    ),
    Flag("enable_grpc_healthcheck_service", True, "Offer gRPC's health service (TF Serving's default is false)."),
    Flag("enable_serialization_as_tensor_content", False, "Answer Predict in tensor_content."),
    Flag(
        "enable_signature_method_name_check",
        False,
        "Demand that Classify and Regress get signatures with their own method names.",
    ),
    Flag(
        "monitoring_config_file", "", "A file with a MonitoringConfig in text form: metrics for Prometheus, over HTTP."
    ),
    Flag("version", False, "Print the version and exit."),
    Flag("rest_api_num_threads", 0, "", WARNED, "the limits of requests determine the threads"),
    Flag("num_unload_threads", 0, "", WARNED, "each version is unloaded in a thread of its own"),
    Flag("flush_filesystem_caches", True, "", WARNED, "the operating system manages its cache"),
    Flag("remove_unused_fields_from_bundle_metagraph", True, "", WARNED, "unused fields are never kept"),
    Flag("enable_profiler", True, "", WARNED, "profiling is not supported"),
    Flag("skip_initialize_tpu", False, "", WARNED, "TPUs are not used"),
    Flag("xla_cpu_compilation_enabled", False, "", WARNED, "functions with jit_compile are always compiled"),
    Flag("xla_gpu_compilation_enabled", False, "", WARNED, "functions with jit_compile are always compiled"),
    Flag("num_tflite_pools", 0, "", WARNED, "TensorFlow Lite models are not served"),
    Flag("num_tflite_interpreters_per_pool", 1, "", WARNED, "TensorFlow Lite models are not served"),
    Flag("prefer_tflite_model", False, "", REFUSED, "TensorFlow Lite models are not served"),
    Flag("mixed_precision", "", "", REFUSED, "export with --precision instead"),
    Flag("platform_config_file", "", "", REFUSED, "the platforms are tensorflow and onnx"),
    Flag("use_alts_credentials", False, "", REFUSED, "use --ssl_config_file"),
    Flag("thread_pool_factory_config_file", "", "", REFUSED, "use --tensorflow_inter_op_parallelism"),
)

OWN = (
    Flag("host", "127.0.0.1", "The address to listen on; 0.0.0.0 and :: are all addresses (TF Serving's default)."),
    Flag("api_key_file", "", "A file with API keys, one per line; every request must carry one as a bearer token."),
    Flag("page", True, "Offer a page with the models and a form at /, over HTTP."),
    Flag("trust_models", False, "Load graphs that read or write files or run Python, which are otherwise refused."),
)


def table() -> str:
    """Returns the table of TF Serving's flags for the documentation."""
    rows = []
    for flag in TF_SERVING:
        text = flag.help or f"{flag.reason[0].upper()}{flag.reason[1:]}."
        default = f" Default: {str(flag.default).lower()}." if flag.help and flag.default not in ("", 0, 0.0) else ""
        rows.append(f"| `--{flag.name}` | {flag.verdict} | {text}{default} |")
    return "\n".join(["| flag | here | |", "|---|---|---|", *rows]) + "\n"
