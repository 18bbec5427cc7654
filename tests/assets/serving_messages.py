"""Writes tfzoo/serve/messages.binpb: the descriptors of the messages that TF Serving's API consists of.

python tests/assets/serving_messages.py

They come from the installed tensorflow-serving-api, whose modules import TensorFlow. The embedded server reads the file
instead, so that it can serve ONNX graphs without TensorFlow. The modules of the services cannot be imported with
protobuf 4 and later; tfzoo/serve/messages.py declares the services.
"""

import pathlib

from google.protobuf import any_pb2, descriptor_pb2, wrappers_pb2
from tensorflow.core.protobuf import config_pb2, saved_model_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    prediction_log_pb2,
)
from tensorflow_serving.config import model_server_config_pb2, platform_config_pb2

PATH = pathlib.Path(__file__).resolve().parents[2] / "tfzoo" / "serve" / "messages.binpb"
_ROOTS = (
    any_pb2,
    wrappers_pb2,
    config_pb2,
    saved_model_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    prediction_log_pb2,
    model_server_config_pb2,
    platform_config_pb2,
)


def descriptors() -> descriptor_pb2.FileDescriptorSet:
    """Returns the files that define the messages; a file comes after those that it depends on."""
    files: dict[str, descriptor_pb2.FileDescriptorProto] = {}

    def add(file) -> None:
        for dependency in file.dependencies:
            add(dependency)
        if file.name not in files:
            files[file.name] = descriptor_pb2.FileDescriptorProto.FromString(file.serialized_pb)

    for module in _ROOTS:
        add(module.DESCRIPTOR)
    return descriptor_pb2.FileDescriptorSet(file=files.values())


if __name__ == "__main__":
    PATH.write_bytes(descriptors().SerializeToString(deterministic=True))
