"""Emitters of attention layers and their kernels, and the tensors that the blocks of a stack share."""

import dataclasses
import math
from typing import Any

import numpy as np
from onnx import TensorProto

from tfzoo import nn
from tfzoo.export.onnx.graph import MICROSOFT, Emitter, Graph, no_emitter
from tfzoo.export.onnx.layers import dense, joined


@dataclasses.dataclass(frozen=True)
class Shared:
    """Tensors, by name, and settings that the blocks of a stack share."""

    bias: str | None = None  # [B or 1, H or 1, L, M], added to the scores.
    seen: str | None = None  # For attention without scores: int64 [B, M], 0 is padding.
    causal: bool = False
    rotary: tuple[str, str] | None = None  # Cosines and sines [B, L, D / 2].
    memory: str | None = None  # [B, M, E], for cross attention.
    memory_bias: str | None = None  # Added to the scores of cross attention.
    past: str | None = None  # Keys and values are inputs past_key_values.i{past} and outputs present.i{past}.
    past_memory: str | None = None  # The memory's keys and values are inputs only, past_key_values.i{past_memory}.
    # For profile genai, see GroupQueryAttention. int32 [B], each row's last position; [], the length.
    places: tuple[str, str] | None = None
    # Cosines and sines [P, D / 2] of all positions, and position_ids [B, L]; instead of `rotary`.
    turns: tuple[str, str, str] | None = None
    window: int = 0  # Number of keys that a query sees; 0 is all.


def _attention(
    graph: Graph,
    layer: nn.Attention,
    x: str,
    shared: Shared,
    index: int = 0,
    cross: bool = False,
) -> str:
    """Emits an attention layer; `index` is the position of its block in the stack."""
    if cross and shared.past_memory is not None:
        query = _by_head(graph, layer.query_norm, graph.emit(layer.query, x))
        return graph.emit(layer.output_projection, _cached_cross_attention(graph, layer, query, shared, index))
    parts = (layer.query, layer.key, layer.value)
    if shared.past is not None and not cross and all(graph.emitter(part) is dense for part in parts):
        # Faster for a single token than three products; for many tokens, only if the result need not be split.
        at = f"{layer.path}/query_key_value"
        query, key, value = joined(graph, parts, x, at), None, None
        if shared.places is None or shared.rotary is not None or layer.query_norm is not None:
            sizes = graph.ints(*(part.units for part in parts))
            query, key, value = graph.add("Split", query, sizes, at=at, outputs=3, axis=-1)
    else:
        memory = shared.memory if cross else x
        query, key, value = graph.emit(layer.query, x), graph.emit(layer.key, memory), graph.emit(layer.value, memory)
    query = _by_head(graph, layer.query_norm, query)
    if key is not None:
        key = _by_head(graph, layer.key_norm, key)
    if shared.rotary is not None and not cross:
        query = graph.add("RotaryEmbedding", query, *shared.rotary, at=layer.path, num_heads=layer.num_heads)
        key = graph.add("RotaryEmbedding", key, *shared.rotary, at=layer.path, num_heads=layer.num_kv_heads)
    y = graph.emit(layer.kernel, query, key, value, layer, shared, None if shared.past is None else index, cross)
    return graph.emit(layer.output_projection, y)


def _by_head(graph: Graph, norm: nn.RMSNorm | None, x: str) -> str:
    """Emits x [B, L, H D], normalised over D if there is a norm."""
    if norm is None:
        return x
    (size,) = norm.gamma.shape
    heads = graph.add("Reshape", x, graph.ints(0, 0, -1, size), at=norm.path)
    return graph.add("Reshape", graph.emit(norm, heads), graph.ints(0, 0, -1), at=norm.path)


def _scale(layer: nn.Attention) -> float:
    return layer.head_dim**-0.5 if layer.kernel.scale is None else layer.kernel.scale


def _cached_cross_attention(graph: Graph, layer: nn.Attention, query: str, shared: Shared, index: int) -> str:
    if layer.num_kv_heads != layer.num_heads:
        raise no_emitter("cross attention with grouped keys", layer)
    past = f"past_key_values.{index}{shared.past_memory}"
    key, value = (graph.narrow(f"{past}.{name}", layer.path) for name in ("key", "value"))
    query = graph.heads(query, layer.num_heads, layer.path)
    y = graph.add("Attention", query, key, value, shared.memory_bias, at=layer.path, scale=_scale(layer))
    return graph.merge(y, layer.path)


def _full_attention(
    graph: Graph,
    kernel: nn.FullAttention | nn.LeanAttention,
    query: str,
    key: str | None,
    value: str | None,
    layer: nn.Attention,
    shared: Shared,
    index: int | None = None,
    cross: bool = False,
) -> str:
    """Emits full attention; `index` is that of the block's cached keys and values, None without a cache."""
    at = kernel.path
    options: dict[str, Any] = dict(scale=_scale(layer), q_num_heads=layer.num_heads, kv_num_heads=layer.num_kv_heads)
    if cross or index is None:
        bias = shared.memory_bias if cross else shared.bias
        return graph.add("Attention", query, key, value, bias, at=at, **options)
    cache = f"{index}{shared.past}"
    past = [f"past_key_values.{cache}.{name}" for name in ("key", "value")]
    if shared.places is not None:
        sizes = dict(num_heads=layer.num_heads, kv_num_heads=layer.num_kv_heads, scale=_scale(layer))
        options = sizes | (dict(local_window_size=shared.window) if shared.window else {})
        options |= dict(do_rotary=1) if shared.turns else {}
        y, *present = graph.add(
            "GroupQueryAttention", query, key, value, *past, *shared.places, *(shared.turns or ()),
            at=at, outputs=3, domain=MICROSOFT, **options,
        )  # fmt: skip
    else:
        past = [graph.narrow(x, at) for x in past]
        y, *present = graph.add("Attention", query, key, value, shared.bias, *past, at=at, outputs=3, **options)
    for name, tensor in zip(("key", "value"), present):
        axes = "batch", layer.num_kv_heads, "total_sequence", layer.head_dim
        graph.output(f"present.{cache}.{name}", tensor, *axes, dtype=graph.outside)
    return y


def _favor_attention(
    graph: Graph,
    kernel: nn.FavorAttention,
    query: str,
    key: str,
    value: str,
    layer: nn.Attention,
    shared: Shared,
    index: int | None = None,
    cross: bool = False,
) -> str:
    """Emits FAVOR+ attention: sums over keys of exp(logs), with the largest exponents subtracted, as in
    nn.kernel.favor_attention."""
    if index is not None or cross or layer.num_kv_heads != layer.num_heads:
        raise no_emitter("FAVOR+ attention with a past, across or with grouped keys", kernel)
    at, heads = kernel.path, layer.num_heads

    def add(operator, *inputs, **attributes):
        return graph.add(operator, *inputs, at=at, **attributes)

    scale = layer.head_dim**-0.5 if kernel.scale_scores else 1.0
    features = kernel.features.numpy().T.astype(np.float32) * math.sqrt(scale)
    table = graph.constant(kernel.features.path, features.astype(graph.dtype))
    query, key, value = (graph.heads(x, heads, at) for x in (query, key, value))
    squares = add("ReduceSum", add("Mul", key, key), graph.ints(-1))
    logs = add("Sub", add("MatMul", key, table), add("Mul", squares, graph.number(0.5 * scale)))  # [B, H, M, F]
    if shared.causal:
        # ONNX has no running maximum, without which the sums up to a position overflow. The same weights, expressed as
        # scores, do not overflow: the logarithm of each key's sum over features.
        exponents = add("MatMul", query, table)
        tops = [add("ReduceMax", x, graph.ints(-1)) for x in (exponents, logs)]
        shares, weights = (add("Exp", add("Sub", x, top)) for x, top in zip((exponents, logs), tops))
        sums = add("MatMul", shares, add("Transpose", weights, perm=[0, 1, 3, 2]))
        sums = add("Max", sums, graph.number(1e-37 if graph.dtype == np.float32 else 6e-8))
        scores = add("Add", add("Log", sums), add("Transpose", tops[1], perm=[0, 1, 3, 2]))
        y = add("MatMul", add("Softmax", add("Add", scores, shared.bias), axis=-1), value)
        sees = add("Equal", add("ReduceMax", shared.bias, graph.ints(-1)), graph.number(0.0))
        return graph.merge(add("Where", sees, y, graph.number(0.0)), at)  # A query that sees nothing gets 0.
    real = add("Unsqueeze", add("Cast", shared.seen, to=TensorProto.BOOL), graph.ints(1, 3))
    logs = add("Where", real, logs, graph.number(-1e30 if graph.dtype == np.float32 else -6e4))
    peaks = add("ReduceMax", logs, graph.ints(2))
    weights = add("Mul", add("Exp", add("Sub", logs, peaks)), add("Cast", real, to=graph.type))
    turned = add("Transpose", weights, perm=[0, 1, 3, 2])
    exponents = add("Add", add("MatMul", query, table), peaks)
    shares = add("Exp", add("Sub", exponents, add("ReduceMax", exponents, graph.ints(-1))))
    above = add("MatMul", shares, add("MatMul", turned, value))
    counts = add("Unsqueeze", add("ReduceSum", weights, graph.ints(2), keepdims=0), graph.ints(3))
    below = add("MatMul", shares, counts)
    nothing = add("Equal", below, graph.number(0.0))  # A query that sees nothing gets 0.
    y = add("Div", above, add("Where", nothing, graph.number(1.0), below))
    return graph.merge(y, at)


EMITTERS: dict[type, Emitter] = {
    nn.Attention: _attention,
    nn.FavorAttention: _favor_attention,
    nn.FullAttention: _full_attention,
    nn.LeanAttention: _full_attention,  # Computes the same numbers.
}
