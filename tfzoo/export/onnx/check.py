"""Checks of a graph before it is replayed: known operators, the ONNX checker and the ONNX reference implementation."""

import dataclasses
import pathlib
import tempfile

import keras
import numpy as np
import onnx
import onnx.checker
import onnx.defs
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from tfzoo.errors import CheckFailed, one_line
from tfzoo.export import golden, verify
from tfzoo.export.answers import Options
from tfzoo.export.onnx import emit as onnx_emit
from tfzoo.export.onnx import graph as onnx_graph
from tfzoo.export.onnx.bodies import body_of
from tfzoo.export.precision import Limits


def check(path: pathlib.Path) -> None:
    """Checks that a file is valid ONNX.

    Raises:
      CheckFailed: the graph is invalid or has an operator that is not in its opsets.
    """
    try:
        graph = onnx_graph.read_header(path, described=True)
        known_operators(graph)
        # The checker would hold the file in memory twice. It does not look into weights, which therefore stay outside.
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".onnx") as file:
            file.write(graph.SerializeToString())
            file.flush()
            onnx.checker.check_model(file.name, full_check=True)
    except (ValueError, verify.Failure, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckFailed(f"{path.name} is not valid ONNX: {one_line(error)}") from error


def known_operators(model: onnx.ModelProto) -> None:
    """Checks that every operator has a schema in the model's opsets.

    The ONNX checker accepts any operator of other domains, although runtimes may not have it. onnxruntime's own
    operators are accepted if the model declares their domain.

    Raises:
      ValueError: an operator has no schema.
    """
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    of_onnxruntime = {schema.name for schema in get_all_operator_schema() if schema.domain == onnx_graph.MICROSOFT}
    for node in model.graph.node:
        has_schema = node.domain in opsets and (
            onnx.defs.has(node.op_type, opsets[node.domain], node.domain)
            or (node.domain == onnx_graph.MICROSOFT and node.op_type in of_onnxruntime)
        )
        if not has_schema:
            raise ValueError(f"{node.name}: unknown operator {node.domain or 'ai.onnx'}.{node.op_type}")


def check_twin(model: keras.Model, profile: str = "standard") -> None:
    """Runs the graphs of a small model of the same kind in the ONNX reference implementation, which is slow.

    Graphs with onnxruntime's own operators, which have no other implementation, are run by onnxruntime.

    Raises:
      CheckFailed: the graphs do not reproduce the answers of Keras.
    """
    if body_of(model) is None:  # Traced graphs contain none of tfzoo's emitters and have a fixed length.
        return
    twin = small_twin(model)
    graphs = onnx_emit.emit(twin, profile=profile)
    shared = profile == "genai"
    described = {name: onnx_graph.describe(graph) for name, graph in graphs.items()}
    cached = any(name.startswith("past") for sides in described.values() for name in sides["inputs"])
    if any(opset.domain for graph in graphs.values() for opset in graph.opset_import):
        read, _ = verify.load_graphs({name: graph.SerializeToString() for name, graph in graphs.items()}, shared)
    else:
        read = verify.Runner({name: ReferenceEvaluator(graph).run for name, graph in graphs.items()}, described)
    options = Options(sequence_length=min(8, twin.config.max_positions))
    limits = Limits(1e-4)
    case = golden.onnx_case(twin, list(golden.token_cases(twin, None, options).values())[-1], limits, cached, shared)
    try:
        got = read("tokens", case["inputs"])
        for name, limit in limits.of(case["outputs"]).items():
            verify.compare(got[name], case["outputs"][name], limit)
    except Exception as error:  # A wrong graph may fail in any way.
        raise CheckFailed(
            f"the ONNX reference implementation does not reproduce the model's answers: {one_line(error)}"
        ) from error


def small_twin(model: keras.Model) -> keras.Model:
    """Returns a model with the same kinds of layers, but fewer and narrower ones, and random weights."""
    config = model.config
    sizes = dict(num_layers=2, num_decoder_layers=2, vocab_size=50, intermediate_size=24, max_positions=32)
    changed = {name: min(size, getattr(config, name)) for name, size in sizes.items()}
    if hasattr(config, "attention_layers"):
        changed["attention_layers"] = list(dict.fromkeys(config.attention_layers))[: changed["num_layers"]]
        changed["num_layers"] = len(changed["attention_layers"])
    twin = type(model)(
        dataclasses.replace(config, **changed),
        heads=model.head_names,
        num_labels=model.num_labels,
        pool=model.pool,
        embed=model.embed,
        dtype="float32",
        name=model.family,
    )
    random = np.random.default_rng(0)
    for variable in twin.trainable_variables:
        variable.assign_add(random.normal(scale=0.05, size=variable.shape))
    return twin
