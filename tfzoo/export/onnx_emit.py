"""ONNX straight from the layers: one small function per layer class, fused operators, no tracing.

    EMITTERS[layer class](graph, layer, *names of inputs) -> name of the output

A layer's function says in operators what its `call` says in keras.ops, without dropout. What a graph computes
is proven afterwards, against the Keras model. https://onnx.ai/onnx/operators/ describes the operators.
"""

import math
from collections.abc import Callable

import keras
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tfzoo import nn
from tfzoo.errors import UserError
from tfzoo.models import bert

OPSET = 23  # The first with Attention.
_MAX_BYTES = 2**31 - 2**20  # Protocol buffers end at 2 GiB; the rest is room for the nodes.
_MASKED = -1e9  # What nn.mask_bias adds in float32. Finite: a row without keys gives equal weights, not NaN.
_INT64_MAX = np.array(2**63 - 1, np.int64)


class Graph:
    """An ONNX graph under construction. Tensors are known by their names."""

    def __init__(self):
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._names: set[str] = set()

    def add(self, operator: str, *inputs: str, at: str, **attributes) -> str:
        """Appends a node with one output; `at` is the path of the layer that it stands for."""
        name = f"{at}/{operator}"
        if name in self._names:
            name = next(f"{name}_{i}" for i in range(2, len(self.nodes) + 3) if f"{name}_{i}" not in self._names)
        self._names.add(name)
        self.nodes.append(helper.make_node(operator, inputs, [f"{name}:0"], name=name, **attributes))
        return f"{name}:0"

    def weight(self, variable) -> str:
        """A Keras variable as an initializer of its path's name; once, however often it is used."""
        return self.constant(variable.path, np.asarray(variable.numpy(), np.float32))

    def constant(self, name: str, value: np.ndarray) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def ints(self, *values: int) -> str:
        return self.constant(f"constants/{'_'.join(map(str, values))}", np.array(values, np.int64))

    def input(self, name: str, *axes) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.INT64, axes))
        return name

    def output(self, name: str, source: str, *axes) -> None:
        """Gives the tensor `source`, float32, its name outside."""
        (node,) = (node for node in self.nodes if source in node.output)
        node.output[0] = name  # Nothing reads it inside: it is the last.
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, axes))

    def emit(self, layer: keras.layers.Layer, *inputs: str | None, **sizes: int) -> str:
        """Appends what `layer` does to `inputs`.

        Raises:
          UserError: the layer's class has no emitter.
        """
        # A subclass may compute something else, so its base's function does not serve it.
        emitter = EMITTERS.get(type(layer))
        if emitter is None:
            raise _no_emitter(type(layer).__name__, layer)
        return emitter(self, layer, *inputs, **sizes)

    def model(self, name: str) -> onnx.ModelProto:
        """The finished model.

        Raises:
          UserError: it is larger than an ONNX file can be.
        """
        size = sum(len(tensor.raw_data) for tensor in self.initializers.values())
        if size > _MAX_BYTES:
            raise UserError(
                f"{name} has {size:,} bytes of weights, and an ONNX file holds 2 GiB; export a smaller model"
            )
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, list(self.initializers.values()))
        opsets = [helper.make_opsetid("", OPSET)]
        # The oldest format that has the opset, so that runtimes of its time read the file.
        version = helper.find_min_ir_version_for(opsets)
        return helper.make_model(graph, opset_imports=opsets, ir_version=version, producer_name="tfzoo")


def emit(model: keras.Model) -> onnx.ModelProto:
    """The graph of a model whose weights are float32, with Hugging Face's names for its inputs and outputs.

    BERT: input_ids, attention_mask and, where the model has segments, token_type_ids, int64 [batch, sequence]
    -> logits, float32 [batch, sequence, V]. ONNX has no assertions; ids outside a table make Gather fail.

    Raises:
      UserError: a layer without an emitter, by name, or a model over 2 GiB.
    """
    graph = Graph()
    graph.emit(model)
    return graph.model(model.name)


def _no_emitter(what: str, layer: keras.layers.Layer) -> UserError:
    return UserError(
        f"{what} ({layer.path}) has no ONNX emitter; add one to EMITTERS in tfzoo/export/onnx_emit.py, or export with "
        f"--formats=savedmodel"
    )


def _dense(graph: Graph, layer: nn.Dense, x: str) -> str:
    x = graph.add("MatMul", x, graph.weight(layer.kernel), at=layer.path)
    if layer.use_bias:
        x = graph.add("Add", x, graph.weight(layer.bias), at=layer.path)
    if layer.activation in (None, keras.activations.linear):
        return x
    for name, operators in _ACTIVATIONS.items():
        if layer.activation is nn.activation(name):
            return operators(graph, x, layer.path)
    raise UserError(f"{layer.path} has an activation without an ONNX emitter: {layer.activation}")


_ACTIVATIONS = {
    "gelu": lambda graph, x, at: graph.add("Gelu", x, at=at),
    "gelu_tanh": lambda graph, x, at: graph.add("Gelu", x, at=at, approximate="tanh"),
    "relu": lambda graph, x, at: graph.add("Relu", x, at=at),
    "silu": lambda graph, x, at: graph.add("Mul", x, graph.add("Sigmoid", x, at=at), at=at),
}


def _layer_norm(graph: Graph, layer: nn.LayerNorm, x: str) -> str:
    weights = [graph.weight(weight) for weight in (layer.gamma, layer.beta) if weight is not None]
    return graph.add("LayerNormalization", x, *weights, at=layer.path, axis=-1, epsilon=layer.epsilon)


def _rms_norm(graph: Graph, layer: nn.RMSNorm, x: str) -> str:
    return graph.add("RMSNormalization", x, graph.weight(layer.gamma), at=layer.path, axis=-1, epsilon=layer.epsilon)


def _attention(graph: Graph, layer: nn.Attention, x: str, mask: str) -> str:
    """mask: float [B, 1, L, L], added to the scores."""
    query, key, value = (graph.emit(projection, x) for projection in (layer.query, layer.key, layer.value))
    query, key = _by_head(graph, layer.query_norm, query), _by_head(graph, layer.key_norm, key)
    heads = dict(q_num_heads=layer.num_heads, kv_num_heads=layer.num_kv_heads)
    return graph.emit(layer.output_projection, graph.emit(layer.kernel, query, key, value, mask, **heads))


def _by_head(graph: Graph, norm: nn.RMSNorm | None, x: str) -> str:
    """x [B, L, H D], normalised over D."""
    if norm is None:
        return x
    (size,) = norm.gamma.shape
    heads = graph.add("Reshape", x, graph.ints(0, 0, -1, size), at=norm.path)
    return graph.add("Reshape", graph.emit(norm, heads), graph.ints(0, 0, -1), at=norm.path)


def _full_attention(graph: Graph, layer: nn.FullAttention, *inputs: str, **heads: int) -> str:
    scale = {} if layer.scale is None else {"scale": layer.scale}
    return graph.add("Attention", *inputs, at=layer.path, **heads, **scale)


def _mlp(graph: Graph, layer: nn.MLP, x: str) -> str:
    up = graph.emit(layer.up, x)
    if layer.gate is not None:
        up = graph.add("Mul", graph.emit(layer.gate, x), up, at=layer.path)
    return graph.emit(layer.down, up)


def _block(graph: Graph, layer: nn.Block, x: str, mask: str) -> str:
    if layer.cross_attention is not None:
        raise _no_emitter("cross attention", layer)
    if layer.parallel:
        normal = graph.emit(layer.self_norm, x)
        x = graph.add("Add", x, graph.emit(layer.attention, normal, mask), at=layer.path)
        return graph.add("Add", x, graph.emit(layer.mlp, normal), at=layer.path)
    if layer.norm_first:
        x = graph.add("Add", x, graph.emit(layer.attention, graph.emit(layer.self_norm, x), mask), at=layer.path)
        return graph.add("Add", x, graph.emit(layer.mlp, graph.emit(layer.mlp_norm, x)), at=layer.path)
    x = graph.emit(layer.self_norm, graph.add("Add", x, graph.emit(layer.attention, x, mask), at=layer.path))
    return graph.emit(layer.mlp_norm, graph.add("Add", x, graph.emit(layer.mlp, x), at=layer.path))


def _stack(graph: Graph, layer: nn.Stack, x: str, mask: str) -> str:
    if layer.causal:
        raise _no_emitter("causal attention", layer)
    if layer.config.positions == "rotary":
        raise _no_emitter("rotary positions", layer)
    if layer.relative_bias is not None:
        mask = graph.add("Add", mask, graph.emit(layer.relative_bias), at=layer.path)
    for block in layer.blocks:
        x = graph.emit(block, x, mask)
    return x if layer.norm is None else graph.emit(layer.norm, x)


def _token_embedding(graph: Graph, layer: nn.TokenEmbedding, token_ids: str) -> str:
    return _rows(graph, graph.weight(layer.embeddings), token_ids, layer.path)


def _rows(graph: Graph, table: str, ids: str, at: str) -> str:
    """table [N, E], ids [B, L] -> [B, L, E]. Gather counts negative ids from the end: they are made huge."""
    ids = graph.add("BitwiseAnd", ids, graph.constant("constants/int64_max", _INT64_MAX), at=at)
    return graph.add("Gather", table, ids, at=at)


def _embeddings(graph: Graph, layer: nn.Embeddings, token_ids: str, segment_ids: str | None, length: str) -> str:
    """length: int64 [1], L."""
    at, config = layer.path, layer.config
    x = graph.emit(layer.tokens, token_ids)
    if config.scale_embeddings:
        factor = graph.constant(f"{at}/scale", np.array(math.sqrt(layer.size), np.float32))
        x = graph.add("Mul", x, factor, at=at)
    table = _position_table(graph, layer)
    if table is not None:
        start = graph.ints(config.position_offset)
        end = graph.add("Add", start, length, at=at) if config.position_offset else length
        x = graph.add("Add", x, graph.add("Slice", table, start, end, graph.ints(0), at=at), at=at)
    if segment_ids is not None:
        x = graph.add("Add", x, _rows(graph, graph.weight(layer.segments), segment_ids, f"{at}/segments"), at=at)
    for each in (layer.norm, layer.projection):
        x = x if each is None else graph.emit(each, x)
    return x


def _position_table(graph: Graph, layer: nn.Embeddings) -> str | None:
    config = layer.config
    if layer.positions is not None:
        return graph.weight(layer.positions)
    if config.positions not in ("sinusoidal", "sinusoidal_concat"):
        return None
    rows = config.max_positions + config.position_offset
    table = nn.sinusoidal_positions(rows, layer.size, config.positions == "sinusoidal")
    return graph.constant(f"{layer.path}/positions", table)


def _masked_lm_head(graph: Graph, layer: nn.MaskedLMHead, x: str) -> str:
    x = graph.emit(layer.norm, graph.emit(layer.transform, x))
    table = graph.add("Transpose", graph.weight(layer.embedding.embeddings), at=layer.path, perm=[1, 0])
    return graph.add("Add", graph.add("MatMul", x, table, at=layer.path), graph.weight(layer.bias), at=layer.path)


def _padding_bias(graph: Graph, attention_mask: str, length: str, at: str) -> str:
    """attention_mask int64 [B, M], 0 is padding -> float [B, 1, L, M], added to the scores."""
    zero, masked = (graph.constant(f"constants/{n}", np.array(v, np.float32)) for n, v in _BIASES)
    real = graph.add("Cast", attention_mask, at=at, to=TensorProto.BOOL)
    bias = graph.add("Unsqueeze", graph.add("Where", real, zero, masked, at=at), graph.ints(1, 2), at=at)
    # onnxruntime's Attention broadcasts over heads and batch, not over queries.
    shape = graph.add("Concat", graph.ints(1), graph.ints(1), length, graph.ints(1), at=at, axis=0)
    return graph.add("Expand", bias, shape, at=at)


_BIASES = (("zero", 0.0), ("masked", _MASKED))


def _tower(graph: Graph, layer: nn.Tower, token_ids: str, segment_ids: str | None, attention_mask: str) -> str:
    length = graph.add("Shape", token_ids, at=layer.path, start=1, end=2)
    mask = _padding_bias(graph, attention_mask, length, f"{layer.path}/mask")
    return graph.emit(layer.stack, graph.emit(layer.embeddings, token_ids, segment_ids, length), mask)


def _bert(graph: Graph, model: bert.Model) -> str:
    if "lm" not in model.heads:
        raise UserError(f"{model.name} has no head lm, whose logits are what is exported; it has {model.head_names}")
    axes = ("batch", "sequence")
    token_ids, attention_mask = graph.input("input_ids", *axes), graph.input("attention_mask", *axes)
    segment_ids = graph.input("token_type_ids", *axes) if model.config.num_segments else None
    x = graph.emit(model.encoder, token_ids, segment_ids, attention_mask)
    logits = graph.emit(model.heads["lm"], x)
    graph.output("logits", logits, *axes, model.config.vocab_size)
    return "logits"


EMITTERS: dict[type, Callable[..., str]] = {
    nn.Attention: _attention,
    nn.Block: _block,
    nn.Dense: _dense,
    nn.Embeddings: _embeddings,
    nn.FullAttention: _full_attention,
    nn.LayerNorm: _layer_norm,
    nn.MLP: _mlp,
    nn.MaskedLMHead: _masked_lm_head,
    nn.RMSNorm: _rms_norm,
    nn.Stack: _stack,
    nn.TokenEmbedding: _token_embedding,
    nn.Tower: _tower,
    bert.Model: _bert,
}
