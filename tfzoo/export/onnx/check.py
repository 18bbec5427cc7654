"""What a graph must pass before it is replayed: known operators, ONNX's checker and its reference implementation."""

import dataclasses
import pathlib

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
    """Raises CheckFailed for a graph that is not valid, or has an operator that its opset does not know."""
    try:
        known_operators(onnx_graph.read_header(path))
        onnx.checker.check_model(path, full_check=True)
    except (ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckFailed(f"{path.name} is not valid ONNX: {one_line(error)}") from error


def known_operators(model: onnx.ModelProto) -> None:
    """Raises ValueError for a node without a schema in the model's opsets. ONNX's checker lets those of other domains
    pass, which no runtime need have; onnxruntime's own are known where the model says that it has them."""
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    of_onnxruntime = {schema.name for schema in get_all_operator_schema() if schema.domain == onnx_graph.MICROSOFT}
    for node in model.graph.node:
        known = node.domain in opsets and (
            onnx.defs.has(node.op_type, opsets[node.domain], node.domain)
            or (node.domain == onnx_graph.MICROSOFT and node.op_type in of_onnxruntime)
        )
        if not known:
            raise ValueError(f"{node.name}: no operator {node.domain or 'ai.onnx'}.{node.op_type} is known")


def check_twin(model: keras.Model, profile: str = "standard") -> None:
    """A small model of the same kind, its graphs run by ONNX's reference implementation, which is slow.

    Of onnxruntime's own operators there is no other implementation: graphs with these are run by onnxruntime.

    Raises:
      CheckFailed: they do not answer as Keras does.
    """
    if body_of(model) is None:  # Traced: nothing here is of our making, and it has one length.
        return
    twin = small_twin(model)
    graphs = onnx_emit.emit(twin, profile=profile)
    shared = profile == "genai"
    found = {name: onnx_graph.describe(graph) for name, graph in graphs.items()}
    cached = any(name.startswith("past") for sides in found.values() for name in sides["inputs"])
    if any(opset.domain for graph in graphs.values() for opset in graph.opset_import):
        read, _ = verify.load_graphs({name: graph.SerializeToString() for name, graph in graphs.items()}, shared)
    else:
        read = verify.Runner({name: ReferenceEvaluator(graph).run for name, graph in graphs.items()}, found)
    options = Options(sequence_length=min(8, twin.config.max_positions))
    limits = Limits(1e-4)
    case = golden.onnx_case(twin, list(golden.token_cases(twin, None, options).values())[-1], limits, cached, shared)
    try:
        got = read("tokens", case["inputs"])
        for name, limit in limits.of(case["outputs"]).items():
            verify.compare(got[name], case["outputs"][name], limit)
    except Exception as error:  # A graph that is wrong may fail in any way.
        raise CheckFailed(
            f"ONNX's reference implementation does not answer as the model does: {one_line(error)}"
        ) from error


def small_twin(model: keras.Model) -> keras.Model:
    """A model of the same layers, but fewer and narrower, with weights at random."""
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
