"""Predict, Classify and Regress on a loaded version, with TF Serving's checks, codes and texts.

`run` in these functions is Servable.run without the deadline: (signature name, inputs, names of outputs) -> outputs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfzoo.serve import messages, tensors
from tfzoo.serve.errors import StatusError, invalid
from tfzoo.serve.servable import (
    CLASSIFY,
    DEFAULT_SIGNATURE,
    PREDICT,
    REGRESS,
    ModelSpec,
    Servable,
    Signature,
)

GRPC, REST = "GRPC", "REST"
_MAX_CONTEXTS = 2**28  # Bytes of the contexts of all examples of a request.
Run = Callable[[str, Mapping[str, np.ndarray], Sequence[str]], dict[str, np.ndarray]]
Read = Callable[[Signature], Mapping[str, np.ndarray]]


def predict(
    servable: Servable,
    run: Run,
    spec: ModelSpec,
    read: Read,
    output_filter: Sequence[str],
    entrypoint: str,
    check_methods: bool = False,
) -> dict[str, np.ndarray]:
    """Returns outputs of a signature; see Core.predict."""
    name = spec.signature_name or DEFAULT_SIGNATURE
    if name not in servable.signatures:
        if entrypoint == GRPC:
            raise StatusError("FAILED_PRECONDITION", f'Serving signature key "{name}" not found.')
        raise invalid(f'Serving signature name: "{name}" not found in signature def')
    signature = servable.signatures[name]
    methods = (PREDICT, CLASSIFY, REGRESS)
    if check_methods and signature.method_name not in methods:
        raise StatusError(
            "INTERNAL",
            f"Expected prediction signature method_name to be one of {{{', '.join(methods)}}}. Was: "
            f"{signature.method_name}",
        )
    inputs = {**signature.defaults, **read(signature)}
    for alias, value in inputs.items():
        tensors.check(alias, value, signature.inputs[alias])
    for i, alias in enumerate(output_filter):
        if alias not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set "
                f"{{{','.join(sorted(signature.outputs))}}}."
            )
        if alias in output_filter[:i]:
            raise invalid(f"duplicate output tensor alias: {alias}")
    return run(name, inputs, tuple(output_filter) or tuple(signature.outputs))


def check_names(signature: Signature, given: set[str]) -> None:
    """Checks the names of the inputs of a gRPC request.

    Raises:
      StatusError: some are unknown, or some without a default are missing.
    """
    known = signature.inputs.keys()
    if len(given) > len(known) or (len(given) < len(known) and not signature.defaults):
        raise invalid(
            f"input size does not match signature: {len(given)}!={len(known)} len({{{_names(given)}}}) != "
            f"len({{{_names(known)}}}). Sent extra: {{{_names(given - known)}}}. Missing but required: "
            f"{{{_names(known - given)}}}."
        )
    for name in sorted(known - given - signature.defaults.keys()):
        raise invalid(
            f"Signature input alias: {name}(feed name: {signature.inputs[name].name}) not found in request and no "
            f"default value provided. Inputs expected to be in the request {{{_names(given)}}}, or default input alias "
            f"set: {_names(signature.defaults)}"
        )
    if given - known:
        raise invalid(
            f"Inputs contains invalid name. Used request inputs: {_names(given & known)}, request input: "
            f"{_names(given)}"
        )


def classify(servable: Servable, run: Run, spec: ModelSpec, examples: Any, check_methods: bool) -> Any:
    """Returns the messages.ClassificationResult for a messages.Input."""
    return _classify(_signature(servable, spec, _check_classification, check_methods), run, serialized(examples))


def regress(servable: Servable, run: Run, spec: ModelSpec, examples: Any, check_methods: bool) -> Any:
    """Returns the messages.RegressionResult for a messages.Input."""
    return _regress(_signature(servable, spec, _check_regression, check_methods), run, serialized(examples))


def multi_inference(servable: Servable, run: Run, request: Any, check_methods: bool) -> Any:
    """Returns the messages.MultiInferenceResponse for a request."""
    response = messages.MultiInferenceResponse()
    names: set[str] = set()
    tasks = []
    for task in request.tasks:
        if not task.model_spec.name:
            raise invalid("Found ModelSpec with an empty model name.")
        if task.model_spec.name != request.tasks[0].model_spec.name:
            raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if name in names:
            raise invalid(f"Duplicate evaluation of signature: {name}")
        names.add(name)
        if name not in servable.signatures:
            raise invalid(f"Requested signature not found in model graph: {name}")
        if task.method_name not in (CLASSIFY, REGRESS):
            raise StatusError("UNIMPLEMENTED", f"Unsupported signature method_name: {task.method_name}")
        check = _check_classification if task.method_name == CLASSIFY else _check_regression
        check(servable.signatures[name], check_methods)
        tasks.append((servable.signatures[name], task.method_name))
    rows = serialized(request.input)
    for signature, method in tasks:
        result = response.results.add()
        result.model_spec.name, result.model_spec.signature_name = request.tasks[0].model_spec.name, signature.name
        result.model_spec.version.value = servable.version
        if method == CLASSIFY:
            result.classification_result.CopyFrom(_classify(signature, run, rows))
        else:
            result.regression_result.CopyFrom(_regress(signature, run, rows))
    return response


def serialized(examples: Any) -> np.ndarray:
    """Returns the serialized tf.Examples of a messages.Input, each with the context that they share.

    Raises:
      StatusError: there are none, or the context is so large that they would take much more memory than the message.
    """
    context, rows = b"", examples.example_list.examples
    if examples.WhichOneof("kind") == "example_list_with_context":
        context = examples.example_list_with_context.context.SerializeToString()
        rows = examples.example_list_with_context.examples
    if not rows:
        raise invalid("Input is empty.")
    if len(context) * len(rows) > _MAX_CONTEXTS:
        raise invalid(
            f"The context has {len(context)} bytes, which are repeated for {len(rows)} examples: more than the limit "
            f"of {_MAX_CONTEXTS} bytes"
        )
    values = np.empty(len(rows), object)
    values[:] = [context + row.SerializeToString() for row in rows]
    return values


def _signature(
    servable: Servable, spec: ModelSpec, check: Callable[[Signature, bool], None], check_methods: bool
) -> Signature:
    name = spec.signature_name or DEFAULT_SIGNATURE
    if name not in servable.signatures:
        raise invalid(f"No signature was found with the name: {name}")
    signature = servable.signatures[name]
    check(signature, check_methods)
    return signature


def _check_method(signature: Signature, kind: str, method: str) -> None:
    if signature.method_name != method:
        raise invalid(f"Expected {kind} signature method_name to be {method}. Was: {signature.method_name}")


def _check_classification(signature: Signature, check_methods: bool) -> None:
    if check_methods:
        _check_method(signature, "classification", CLASSIFY)
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if "inputs" not in signature.inputs:
        raise invalid(f"No classification inputs found in SignatureDef: {_names(signature.inputs)}")
    if not {"classes", "scores"} & signature.outputs.keys():
        raise invalid(
            'Expected classification signature outputs to contain at least one of "classes" or "scores". Signature '
            f"was: {_names(signature.outputs)}"
        )


def _check_regression(signature: Signature, check_methods: bool) -> None:
    if check_methods:
        _check_method(signature, "regression", REGRESS)
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    if "inputs" not in signature.inputs:
        raise invalid(f"No regression inputs found in SignatureDef: {_names(signature.inputs)}")
    if "outputs" not in signature.outputs:
        raise invalid(f"No regression outputs found in SignatureDef: {_names(signature.outputs)}")


def _run_examples(signature: Signature, run: Run, rows: np.ndarray, outputs: Sequence[str]) -> dict[str, np.ndarray]:
    tensors.check("inputs", rows, signature.inputs["inputs"])
    return run(signature.name, {**signature.defaults, "inputs": rows}, tuple(outputs))


def _classify(signature: Signature, run: Run, rows: np.ndarray) -> Any:
    names = [name for name in ("classes", "scores") if name in signature.outputs]
    values = _run_examples(signature, run, rows, names)
    for name, kind in (("classes", "DT_STRING"), ("scores", "DT_FLOAT")):
        if name not in values:
            continue
        value, data_type = values[name], signature.outputs[name].data_type
        if value.ndim != 2:
            raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(value)}")
        if data_type != (tensors.STRING if name == "classes" else 1):
            raise invalid(f"Expected {name} Tensor of {kind}. Got: DT_{tensors.TYPES[data_type][0].upper()}")
        if len(value) != len(rows):
            raise invalid(f"Expected {name} output batch size of {len(rows)}. Got: {len(value)}")
    sizes = [value.shape[1] for value in values.values()]
    if len(set(sizes)) > 1:
        raise invalid(f"Tensors class and score should match in dim_size(1). Got {sizes[0]} vs. {sizes[1]}")
    result = messages.ClassificationResult()
    columns = {name: value.tolist() for name, value in values.items()}
    for row in range(len(rows)):
        classes = result.classifications.add().classes
        for i in range(sizes[0]):
            each = classes.add()
            if "classes" in columns:
                each.label = columns["classes"][row][i].decode(errors="replace")
            if "scores" in columns:
                each.score = columns["scores"][row][i]
    return result


def _regress(signature: Signature, run: Run, rows: np.ndarray) -> Any:
    value = _run_examples(signature, run, rows, ["outputs"])["outputs"]
    if value.ndim != 1 and not (value.ndim == 2 and value.shape[1] == 1):
        raise invalid(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {_shape(value)}"
        )
    if len(value) != len(rows):
        raise invalid(f"Input batch size did not match output batch size: {len(rows)} vs. {len(value)}")
    data_type = signature.outputs["outputs"].data_type
    if data_type != 1:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: DT_{tensors.TYPES[data_type][0].upper()}")
    result = messages.RegressionResult()
    for number in value.reshape(-1).tolist():
        result.regressions.add().value = number
    return result


def _shape(value: np.ndarray) -> str:
    return f"[{','.join(map(str, value.shape))}]"


def _names(names: Any) -> str:
    return ",".join(sorted(names))
