"""Emitters of embeddings and positions."""

import math

import numpy as np
from onnx import TensorProto

from tfzoo import nn
from tfzoo.export.onnx.graph import Emitter, Graph
from tfzoo.nn.position import _rotary_frequencies as rotary_frequencies


def _token_embedding(graph: Graph, layer: nn.TokenEmbedding, token_ids: str) -> str:
    return graph.rows(graph.weight(layer.embeddings), token_ids, layer.path)


def _embeddings(
    graph: Graph,
    layer: nn.Embeddings,
    token_ids: str,
    segment_ids: str | None,
    position_ids: str | None,
    start: str,
    end: str,
) -> str:
    """Emits embeddings; start and end, int64 [1], delimit the tokens' positions in the text."""
    at, config = layer.path, layer.config
    x = graph.emit(layer.tokens, token_ids)
    if config.scale_embeddings:
        x = graph.add("Mul", x, graph.number(math.sqrt(layer.size)), at=at)
    table = _position_table(graph, layer)
    if table is not None:
        offset = graph.ints(config.position_offset)
        if position_ids is not None:
            places = graph.rows(table, graph.add("Add", position_ids, offset, at=at), f"{at}/positions")
        else:
            if config.position_offset:
                start, end = (graph.add("Add", place, offset, at=at) for place in (start, end))
            places = graph.add("Slice", table, start, end, graph.ints(0), at=at)
        x = graph.add("Add", x, places, at=at)
    if segment_ids is not None:
        x = graph.add("Add", x, graph.rows(graph.weight(layer.segments), segment_ids, f"{at}/segments"), at=at)
    elif layer.segments is not None:  # All tokens are in segment 0.
        x = graph.add("Add", x, graph.add("Gather", graph.weight(layer.segments), graph.whole(0), at=at), at=at)
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
    return graph.constant(f"{layer.path}/positions", table.astype(graph.dtype))


def _relative_bias(graph: Graph, layer: nn.RelativeBias, distance: str) -> str:
    """Emits the relative position bias [1, H, L, M] of distances, int64 [L, M]."""
    at = layer.path

    def add(operator, *inputs, **attributes):
        return graph.add(operator, *inputs, at=at, **attributes)

    def wide(value):  # Logarithms are computed in float32, whatever the graph's dtype.
        return graph.constant(f"constants/wide_{value!r}", np.array(value, np.float32))

    buckets, later = layer.num_buckets, None
    if layer.causal:
        distance = add("Max", add("Neg", distance), graph.whole(0))
    else:
        buckets //= 2
        later = add(
            "Mul", add("Cast", add("Greater", distance, graph.whole(0)), to=TensorProto.INT64), graph.whole(buckets)
        )
        distance = add("Abs", distance)
    exact = buckets // 2
    ratio = add("Div", add("Cast", add("Max", distance, graph.whole(1)), to=TensorProto.FLOAT), wide(float(exact)))
    ratio = add("Div", add("Log", ratio), wide(math.log(layer.max_distance / exact)))
    far = add("Cast", add("Mul", ratio, wide(float(buckets - exact))), to=TensorProto.INT64)
    far = add("Min", add("Add", far, graph.whole(exact)), graph.whole(buckets - 1))
    bucket = add("Where", add("Less", distance, graph.whole(exact)), distance, far)
    bucket = bucket if later is None else add("Add", bucket, later)
    bias = add("Gather", graph.weight(layer.embeddings), bucket)
    return add("Unsqueeze", add("Transpose", bias, perm=[2, 0, 1]), graph.ints(0))


def rotary_tables(graph: Graph, config, position_ids: str, at: str) -> tuple[str, str]:
    """Emits the cosines and sines [B, L, D / 2] of position_ids, int64 [B, L], as in nn.rotary_tables."""

    def add(operator, *inputs, **attributes):
        return graph.add(operator, *inputs, at=at, **attributes)

    def wide(name, value):
        return graph.constant(f"{at}/{name}", np.asarray(value, np.float32))

    positions = add("Cast", position_ids, to=TensorProto.FLOAT)
    scaling = config.rotary_scaling
    kind = scaling.get("rope_type", scaling.get("type"))
    original = scaling.get("original_max_position_embeddings") or config.max_positions
    head_dim = config.resolved_head_dim
    used = add("Add", add("ReduceMax", positions, keepdims=0), wide("one", 1.0))  # The length; positions start at 0.
    plain, factor = _frequencies(config, head_dim, original)
    if kind == "longrope":
        beyond = add("Greater", used, wide("original", original))
        longer = _frequencies(config, head_dim, original + 1)[0]
        frequencies = add("Where", beyond, wide("long", longer), wide("short", plain))
    elif kind == "dynamic":
        growth = add("Mul", add("Max", used, wide("original", original)), wide("growth", scaling["factor"] / original))
        growth = add("Sub", growth, wide("factor_1", scaling["factor"] - 1))
        base = add(
            "Mul", add("Pow", growth, wide("power", head_dim / (head_dim - 2))), wide("base", config.rotary_theta)
        )
        frequencies = add("Pow", base, wide("exponents", -np.arange(0, head_dim, 2) / head_dim))
    else:
        frequencies = wide("frequencies", plain)
    angles = add("Mul", add("Unsqueeze", positions, graph.ints(2)), frequencies)
    tables = [add("Cos", angles), add("Sin", angles)]
    if factor != 1.0:
        tables = [add("Mul", table, wide("factor", factor)) for table in tables]
    cos, sin = (graph.narrow(table, at) for table in tables)
    return cos, sin


def rotary_cache(graph: Graph, config, at: str) -> tuple[str, str] | None:
    """Adds the cosines and sines [max_positions, D / 2] of all positions as constants, as in nn.rotary_tables; None if
    they depend on the length of the text."""
    scaling, head_dim = config.rotary_scaling, config.resolved_head_dim
    if scaling.get("rope_type", scaling.get("type")) in ("longrope", "dynamic"):
        return None
    frequencies, factor = _frequencies(config, head_dim, config.max_positions)
    angles = np.arange(config.max_positions, dtype=np.float32)[:, None] * frequencies.astype(np.float32)
    tables = [(table * np.float32(factor)).astype(graph.dtype) for table in (np.cos(angles), np.sin(angles))]
    cos, sin = (graph.constant(f"{at}/{name}", table) for name, table in zip(("cosines", "sines"), tables))
    return cos, sin


def _frequencies(config, head_dim: int, length: int) -> tuple[np.ndarray, float]:
    frequencies, factor = rotary_frequencies(config, head_dim, length)
    return np.asarray(frequencies), factor


EMITTERS: dict[type, Emitter] = {
    nn.Embeddings: _embeddings,
    nn.RelativeBias: _relative_bias,
    nn.TokenEmbedding: _token_embedding,
}
