"""Emitters of small layers: dense ones, norms and MLPs."""

from collections.abc import Callable, Sequence

import keras

from tfzoo import nn
from tfzoo.errors import UserError
from tfzoo.export.onnx.graph import MICROSOFT, Emitter, Graph


def dense(graph: Graph, layer: nn.Dense, x: str) -> str:
    """Emits a dense layer with its activation."""
    x = graph.add("MatMul", x, graph.weight(layer.kernel), at=layer.path)
    if layer.use_bias:
        x = graph.add("Add", x, graph.weight(layer.bias), at=layer.path)
    return _activate(graph, layer.activation, x, layer)


def joined(graph: Graph, layers: Sequence[nn.Dense], x: str, at: str) -> str:
    """Emits dense layers without their activations as one product, [B, L, O + P + ...], which reads x once."""
    x = graph.add("MatMul", x, graph.joined(f"{at}/kernel", [layer.kernel for layer in layers]), at=at)
    if layers[0].use_bias:
        x = graph.add("Add", x, graph.joined(f"{at}/bias", [layer.bias for layer in layers]), at=at)
    return x


def _activate(graph: Graph, function, x: str, layer: keras.layers.Layer) -> str:
    if function in (None, keras.activations.linear):
        return x
    for name, operators in _ACTIVATIONS.items():
        if function is nn.activation(name):
            return operators(graph, x, layer.path)
    raise UserError(f"{layer.path} has an activation without an ONNX emitter: {function}")


_ACTIVATIONS: dict[str, Callable[[Graph, str, str], str]] = {
    "gelu": lambda graph, x, at: graph.add("Gelu", x, at=at),
    "gelu_tanh": lambda graph, x, at: graph.add("Gelu", x, at=at, approximate="tanh"),
    "relu": lambda graph, x, at: graph.add("Relu", x, at=at),
    "silu": lambda graph, x, at: graph.add("Mul", x, graph.add("Sigmoid", x, at=at), at=at),
    "tanh": lambda graph, x, at: graph.add("Tanh", x, at=at),
}


def _layer_norm(graph: Graph, layer: nn.LayerNorm, x: str) -> str:
    weights = [graph.weight(weight) for weight in (layer.gamma, layer.beta) if weight is not None]
    return graph.add("LayerNormalization", x, *weights, at=layer.path, axis=-1, epsilon=layer.epsilon)


def _rms_norm(graph: Graph, layer: nn.RMSNorm, x: str) -> str:
    if graph.profile == "genai" and (terms := graph.take_sum(x)):  # One node computes the sum and its norm.
        y, *_ = graph.add(
            "SkipSimplifiedLayerNormalization", *terms, graph.weight(layer.gamma),
            at=layer.path, outputs=4, domain=MICROSOFT, epsilon=layer.epsilon,
        )  # fmt: skip
        graph.nodes[-1].output[1:] = ["", "", x]
        return y
    return graph.add("RMSNormalization", x, graph.weight(layer.gamma), at=layer.path, axis=-1, epsilon=layer.epsilon)


def _mlp(graph: Graph, layer: nn.MLP, x: str) -> str:
    if layer.gate is None:
        return graph.emit(layer.down, graph.emit(layer.up, x))
    parts = (layer.gate, layer.up)
    if graph.profile == "genai" and graph.copy_tied and all(graph.emitter(part) is dense for part in parts):
        # One product in 4 or 8 bits is faster than two for a single token; in float32 it is not.
        y, sizes = joined(graph, parts, x, f"{layer.path}/gate_up"), graph.ints(*(part.units for part in parts))
        gate, up = graph.add("Split", y, sizes, at=layer.path, outputs=2, axis=-1)
        gate = _activate(graph, layer.gate.activation, gate, layer)
    else:
        gate, up = graph.emit(layer.gate, x), graph.emit(layer.up, x)
    return graph.emit(layer.down, graph.add("Mul", gate, up, at=layer.path))


EMITTERS: dict[type, Emitter] = {
    nn.Dense: dense,
    nn.LayerNorm: _layer_norm,
    nn.MLP: _mlp,
    nn.RMSNorm: _rms_norm,
}
