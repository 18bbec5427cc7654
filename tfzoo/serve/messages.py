"""The messages of TF Serving's API, in a descriptor pool of their own: nothing here imports TensorFlow.

    request = messages.PredictRequest.FromString(data)

messages.binpb contains the descriptors (see tests/assets/serving_messages.py). The messages of configuration files that
the package tensorflow-serving-api lacks, and the two services, are declared here.
"""

import pathlib
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from tfzoo import files
from tfzoo.errors import UserError, one_line

POOL = descriptor_pool.DescriptorPool()

# Message -> field -> number and type. A type in capitals is a scalar; one that ends in * is repeated.
_CONFIGURATION = {
    "BatchingParameters": {
        "max_batch_size": (1, "google.protobuf.Int64Value"),
        "batch_timeout_micros": (2, "google.protobuf.Int64Value"),
        "max_enqueued_batches": (3, "google.protobuf.Int64Value"),
        "num_batch_threads": (4, "google.protobuf.Int64Value"),
        "thread_pool_name": (5, "google.protobuf.StringValue"),
        "allowed_batch_sizes": (6, "INT64*"),
        "pad_variable_length_inputs": (7, "BOOL"),
        "enable_large_batch_splitting": (8, "google.protobuf.BoolValue"),
        "max_execution_batch_size": (9, "google.protobuf.Int64Value"),
    },
    "PrometheusConfig": {"enable": (1, "BOOL"), "path": (2, "STRING")},
    "MonitoringConfig": {"prometheus_config": (1, "tensorflow.serving.PrometheusConfig")},
    "SSLConfig": {
        "server_key": (1, "STRING"),
        "server_cert": (2, "STRING"),
        "custom_ca": (3, "STRING"),
        "client_verify": (4, "BOOL"),
    },
}
# Service -> method -> names of the request and response.
SERVICES = {
    "PredictionService": {
        "Classify": ("ClassificationRequest", "ClassificationResponse"),
        "Regress": ("RegressionRequest", "RegressionResponse"),
        "Predict": ("PredictRequest", "PredictResponse"),
        "MultiInference": ("MultiInferenceRequest", "MultiInferenceResponse"),
        "GetModelMetadata": ("GetModelMetadataRequest", "GetModelMetadataResponse"),
    },
    "ModelService": {
        "GetModelStatus": ("GetModelStatusRequest", "GetModelStatusResponse"),
        "HandleReloadConfigRequest": ("ReloadConfigRequest", "ReloadConfigResponse"),
    },
}
_PACKAGE = "tensorflow.serving"


def _fill(pool: descriptor_pool.DescriptorPool) -> None:
    stored = pathlib.Path(__file__).with_name("messages.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(stored).file:
        pool.Add(file)
    configuration = descriptor_pb2.FileDescriptorProto(
        name="tfzoo/serve/configuration.proto",
        package=_PACKAGE,
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )
    for message, fields in _CONFIGURATION.items():
        declared = configuration.message_type.add(name=message)
        for field, (number, kind) in fields.items():
            _declare(declared.field.add(name=field, number=number), kind)
    pool.Add(configuration)
    services = descriptor_pb2.FileDescriptorProto(
        name="tfzoo/serve/services.proto",
        package=_PACKAGE,
        syntax="proto3",
        dependency=[
            f"tensorflow_serving/apis/{name}.proto"
            for name in "classification regression predict inference get_model_metadata get_model_status "
            "model_management".split()
        ],
    )
    for service, methods in SERVICES.items():
        added = services.service.add(name=service)
        for method, (request, response) in methods.items():
            added.method.add(name=method, input_type=f".{_PACKAGE}.{request}", output_type=f".{_PACKAGE}.{response}")
    pool.Add(services)


def _declare(field: descriptor_pb2.FieldDescriptorProto, kind: str) -> None:
    scalar = kind.rstrip("*")
    field.label = field.LABEL_REPEATED if kind.endswith("*") else field.LABEL_OPTIONAL
    if scalar.isupper() or scalar == "INT64":
        field.type = field.Type.Value(f"TYPE_{scalar}")
    else:
        field.type, field.type_name = field.TYPE_MESSAGE, f".{scalar}"


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))


_fill(POOL)

PredictRequest = _message("tensorflow.serving.PredictRequest")
PredictResponse = _message("tensorflow.serving.PredictResponse")
Input = _message("tensorflow.serving.Input")
ClassificationRequest = _message("tensorflow.serving.ClassificationRequest")
ClassificationResponse = _message("tensorflow.serving.ClassificationResponse")
ClassificationResult = _message("tensorflow.serving.ClassificationResult")
RegressionRequest = _message("tensorflow.serving.RegressionRequest")
RegressionResponse = _message("tensorflow.serving.RegressionResponse")
RegressionResult = _message("tensorflow.serving.RegressionResult")
MultiInferenceRequest = _message("tensorflow.serving.MultiInferenceRequest")
MultiInferenceResponse = _message("tensorflow.serving.MultiInferenceResponse")
GetModelMetadataRequest = _message("tensorflow.serving.GetModelMetadataRequest")
GetModelMetadataResponse = _message("tensorflow.serving.GetModelMetadataResponse")
GetModelStatusRequest = _message("tensorflow.serving.GetModelStatusRequest")
GetModelStatusResponse = _message("tensorflow.serving.GetModelStatusResponse")
ReloadConfigRequest = _message("tensorflow.serving.ReloadConfigRequest")
ReloadConfigResponse = _message("tensorflow.serving.ReloadConfigResponse")
SignatureDefMap = _message("tensorflow.serving.SignatureDefMap")
PredictionLog = _message("tensorflow.serving.PredictionLog")
ModelServerConfig = _message("tensorflow.serving.ModelServerConfig")
PlatformConfigMap = _message("tensorflow.serving.PlatformConfigMap")
BatchingParameters = _message("tensorflow.serving.BatchingParameters")
MonitoringConfig = _message("tensorflow.serving.MonitoringConfig")
SSLConfig = _message("tensorflow.serving.SSLConfig")
ModelSpecMessage = _message("tensorflow.serving.ModelSpec")
TensorProto = _message("tensorflow.TensorProto")
Example = _message("tensorflow.Example")
SavedModel = _message("tensorflow.SavedModel")
ConfigProto = _message("tensorflow.ConfigProto")


def read_text(path: str, message: Any, flag: str) -> Any:
    """Returns the message in a file in text form; `flag` is the flag that names the file.

    Raises:
      UserError: the file cannot be read or does not contain such a message.
    """
    try:
        text = files.read_text(path)
    except UserError as error:
        raise UserError(f"--{flag}={error}") from None
    return parse_text(text, message, f"--{flag}={path}")


def parse_text(text: str, message: Any, where: str) -> Any:
    """Returns the message that a text represents; `where` is the text's name in errors.

    Raises:
      UserError: the text does not contain such a message.
    """
    try:
        return text_format.Parse(text, message(), descriptor_pool=POOL)
    except text_format.ParseError as error:
        name = message.DESCRIPTOR.name
        raise UserError(f"{where}: is not a {name} in text form ({one_line(error)}); correct it") from None
