"""assets.extra/tf_serving_warmup_requests: the requests that TF Serving sends to a version before it serves it.

https://www.tensorflow.org/tfx/serving/saved_model_warmup describes the file: at most 1,000 PredictionLogs in a
TFRecord, each of which must succeed.
"""

import pathlib
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import input_pb2, model_pb2, prediction_log_pb2

_SMALL = 2**16  # Maximum elements of an input; larger requests would take more time than they save.


def write(folder: pathlib.Path, name: str, signatures: dict[str, dict[str, Any]]) -> None:
    """Writes the warmup requests.

    Args:
      folder: the SavedModel's folder.
      name: the name under which the model is served.
      signatures: {signature: {case: {"inputs": {name: array}}}}. Empty cases and large ones are omitted.
    """
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, cases in signatures.items():
            for case in cases.values():
                if all(0 < len(value) and value.size <= _SMALL for value in case["inputs"].values()):
                    spec = model_pb2.ModelSpec(name=name, signature_name=signature)
                    writer.write(_log(spec, case["inputs"]).SerializeToString())


def _log(spec: model_pb2.ModelSpec, inputs: dict[str, np.ndarray]) -> prediction_log_pb2.PredictionLog:
    log = prediction_log_pb2.PredictionLog()
    if spec.signature_name in ("classify", "regress"):
        kind = {"classify": log.classify_log, "regress": log.regress_log}[spec.signature_name]
        kind.request.model_spec.CopyFrom(spec)
        kind.request.input.CopyFrom(_examples(inputs))
    else:
        request = log.predict_log.request
        request.model_spec.CopyFrom(spec)
        for name, value in inputs.items():
            value = np.char.encode(value, "utf-8") if value.dtype.kind == "U" else value
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return log


def _examples(inputs: dict[str, np.ndarray]) -> input_pb2.Input:
    examples = input_pb2.Input()
    for row in zip(*inputs.values()):
        features = examples.example_list.examples.add().features.feature
        for name, text in zip(inputs, row):
            features[name].bytes_list.value.append(str(text).encode())
    return examples
