"""Emitters of small layers: dense ones, norms and MLPs."""

from collections.abc import Callable

import keras

from tfzoo import nn
from tfzoo.errors import UserError
from tfzoo.export.onnx.graph import Emitter, Graph


def dense(graph: Graph, layer: nn.Dense, x: str) -> str:
    """Emits a dense layer with its activation."""
    x = graph.add("MatMul", x, graph.weight(layer.kernel), at=layer.path)
    if layer.use_bias:
        x = graph.add("Add", x, graph.weight(layer.bias), at=layer.path)
    return _activate(graph, layer.activation, x, layer)


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
    return graph.add("RMSNormalization", x, graph.weight(layer.gamma), at=layer.path, axis=-1, epsilon=layer.epsilon)


def _mlp(graph: Graph, layer: nn.MLP, x: str) -> str:
    up = graph.emit(layer.up, x)
    if layer.gate is not None:
        up = graph.add("Mul", graph.emit(layer.gate, x), up, at=layer.path)
    return graph.emit(layer.down, up)


EMITTERS: dict[type, Emitter] = {
    nn.Dense: dense,
    nn.LayerNorm: _layer_norm,
    nn.MLP: _mlp,
    nn.RMSNorm: _rms_norm,
}
