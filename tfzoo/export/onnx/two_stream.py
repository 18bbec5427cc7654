"""Emitters of the content stream of two-stream attention."""

import numpy as np
from onnx import TensorProto

from tfzoo import nn
from tfzoo.export.onnx.graph import Emitter, Graph
from tfzoo.nn.relative import Projection, TwoStreamBlock


def _two_stream_tower(
    graph: Graph,
    layer: nn.TwoStreamTower,
    token_ids: str,
    attention_mask: str,
    segment_ids: str | None = None,
    position_ids: str | None = None,
) -> str:
    stack, at = layer.stack, f"{layer.path}/mask"

    def add(operator, *inputs, **attributes):
        return graph.add(operator, *inputs, at=at, **attributes)

    length = graph.size(token_ids, 1, at)
    x = graph.emit(layer.embeddings, token_ids, None, None, graph.ints(0), length)
    places = graph.range(graph.ints(0), length, at)
    itself = add("Equal", add("Unsqueeze", places, graph.ints(0)), add("Unsqueeze", places, graph.ints(1)))
    real = add("Unsqueeze", add("Cast", attention_mask, to=TensorProto.BOOL), graph.ints(1, 2))
    bias = graph.masked(add("Or", itself, real), at)  # [B, 1, L, L]
    other = None
    if segment_ids is not None:
        rows, columns = (add("Unsqueeze", segment_ids, graph.ints(1, axis)) for axis in (3, 2))
        other = add("Cast", add("Not", add("Equal", rows, columns)), to=graph.type)
    distances = add("Range", graph.scalar(length, at), graph.scalar(add("Neg", length), at), graph.whole(-1))
    distances = add("Unsqueeze", add("Cast", distances, to=TensorProto.FLOAT), graph.ints(1))
    size = stack.config.hidden_size
    rates = np.asarray(10000 ** (-np.arange(0, size, 2) / size), np.float32)
    angles = add("Mul", distances, graph.constant(f"{at}/rates", rates))
    positions = graph.narrow(add("Concat", add("Sin", angles), add("Cos", angles), axis=-1), at)
    for block in stack.blocks:
        x = graph.emit(block, x, positions, bias, other, length)
    return x


def _two_stream_block(graph: Graph, layer: TwoStreamBlock, x: str, *shared: str) -> str:
    x = graph.emit(layer.self_norm, graph.add("Add", x, graph.emit(layer.attention, x, *shared), at=layer.path))
    return graph.emit(layer.mlp_norm, graph.add("Add", x, graph.emit(layer.mlp, x), at=layer.path))


def _relative_attention(
    graph: Graph, layer: nn.RelativeAttention, x: str, positions: str, bias: str, other: str | None, length: str
) -> str:
    """Emits relative attention.

    positions: [2 L, E]. bias: [B, 1, L, L]. other: [B, 1, L, L], 1 where key and query are in different segments.
    """
    at, heads, scale = layer.path, layer.num_heads, layer.head_dim**-0.5

    def add(operator, *inputs, **attributes):
        return graph.add(operator, *inputs, at=at, **attributes)

    def biased(variable):  # [H, D], added to the query [B, L, H D]
        return add("Add", query, graph.weight(variable, (-1,)))

    query, key, value = (graph.emit(each, x) for each in (layer.query, layer.key, layer.value))
    relative = add("Reshape", graph.emit(layer.relative, positions), graph.ints(0, heads, -1))
    scores = add(
        "MatMul", graph.heads(biased(layer.position_bias), heads, at), add("Transpose", relative, perm=[1, 2, 0])
    )
    # From scores by distance [B, H, L, 2 L] to scores by key: row i starts at L - i, as in nn.relative.relative_shift.
    twice = add("Add", length, length)
    scores = add("Reshape", scores, add("Concat", graph.ints(0, 0), twice, length, axis=0))
    scores = add("Slice", scores, graph.ints(1), twice, graph.ints(2))
    scores = add("Reshape", scores, add("Concat", graph.ints(0, 0), length, graph.ints(-1), axis=0))
    scores = add("Slice", scores, graph.ints(0), length, graph.ints(3))
    if other is not None:
        # A softmax does not depend on what is added to a whole row, so the difference of the two scores is sufficient.
        same, different = layer.segments.numpy()
        step = graph.constant(f"{layer.segments.path}/difference", (different - same)[..., None].astype(graph.dtype))
        steps = add("MatMul", graph.heads(biased(layer.segment_bias), heads, at), step)  # [B, H, L, 1]
        scores = add("Add", scores, add("Mul", steps, other))
    bias = add("Add", add("Mul", scores, graph.number(scale)), bias)
    sizes = dict(q_num_heads=heads, kv_num_heads=heads, scale=scale)
    return graph.emit(layer.output_projection, add("Attention", biased(layer.content_bias), key, value, bias, **sizes))


def _projection(graph: Graph, layer: Projection, x: str) -> str:
    size = layer.shape[0]
    kernel = graph.weight(layer.kernel, (size, -1))
    if layer.turned:
        kernel = graph.add("Transpose", kernel, at=layer.path, perm=[1, 0])
    return graph.add("MatMul", x, kernel, at=layer.path)


EMITTERS: dict[type, Emitter] = {
    Projection: _projection,
    TwoStreamBlock: _two_stream_block,
    nn.RelativeAttention: _relative_attention,
    nn.TwoStreamTower: _two_stream_tower,
}
