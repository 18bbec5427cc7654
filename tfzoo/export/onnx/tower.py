"""Emitters of a tower and its stack: embeddings, attention masks and blocks."""

from onnx import TensorProto

from tfzoo import nn
from tfzoo.errors import UserError
from tfzoo.export.onnx.attention import Shared
from tfzoo.export.onnx.embeddings import rotary_cache, rotary_tables
from tfzoo.export.onnx.graph import Emitter, Graph


def _block(graph: Graph, layer: nn.Block, x: str, shared: Shared, index: int) -> str:
    def attend(x):
        return graph.emit(layer.attention, x, shared, index)

    def cross(x):
        return graph.emit(layer.cross_attention, x, shared, index, cross=True)

    def feed(x):
        return graph.emit(layer.mlp, x)

    def residual(x, sublayer, norm):
        if layer.norm_first:
            return graph.sum(x, sublayer(graph.emit(norm, x)), layer.path)
        return graph.emit(norm, graph.sum(x, sublayer(x), layer.path))

    if layer.parallel:
        normal = graph.emit(layer.self_norm, x)
        x = graph.sum(x, attend(normal), layer.path)
        return graph.sum(x, feed(normal), layer.path)
    x = residual(x, attend, layer.self_norm)
    if layer.cross_attention is not None:
        x = residual(x, cross, layer.cross_norm)
    return residual(x, feed, layer.mlp_norm)


def _stack(graph: Graph, layer: nn.Stack, x: str, shared: Shared) -> str:
    for i, block in enumerate(layer.blocks):
        x = graph.emit(block, x, shared, i)
    return x if layer.norm is None else graph.emit(layer.norm, x)


def _tower(
    graph: Graph,
    layer: nn.Tower,
    token_ids: str,
    attention_mask: str | None,
    segment_ids: str | None = None,
    position_ids: str | None = None,
    memory: str | None = None,
    memory_mask: str | None = None,
    past: str | None = None,
    past_memory: str | None = None,
) -> str:
    """Emits a tower.

    attention_mask: int64 [B, M], where M is the length of the past plus L; None means no padding. past and past_memory
    are those of Shared.
    """
    stack, config, at = layer.stack, layer.stack.config, f"{layer.path}/mask"
    length = graph.size(token_ids, 1, at)
    start, end = graph.ints(0), length
    if past is not None:
        start = graph.size(f"past_key_values.0{past}.key", 2, at)
        end = graph.add("Add", start, length, at=at)
    x = graph.emit(layer.embeddings, token_ids, segment_ids, position_ids, start, end)
    rotary = turns = None
    if config.positions == "rotary":
        if position_ids is None:
            shape = graph.add("Shape", token_ids, at=at)
            position_ids = graph.add("Expand", graph.range(start, end, at), shape, at=at)
        # GroupQueryAttention rotates only heads of a multiple of 16 numbers.
        whole = graph.profile == "genai" and config.resolved_head_dim % 16 == 0
        cache = rotary_cache(graph, config, f"{layer.path}/rotary") if whole else None
        if cache is not None:
            turns = *cache, position_ids
        else:
            rotary = rotary_tables(graph, config, position_ids, f"{layer.path}/rotary")
    favor = config.attention == "favor"
    places = None
    if graph.profile == "genai":
        if config.resolved_head_dim % 8:
            raise UserError(
                f"--onnx_profile=genai: GroupQueryAttention requires a head_dim that is a multiple of 8, but "
                f"{stack.path} has head_dim={config.resolved_head_dim}; use --onnx_profile=standard"
            )
        if stack.relative_bias is not None:
            raise UserError(
                f"--onnx_profile=genai: GroupQueryAttention does not support a bias on the attention scores such as "
                f"{stack.relative_bias.path}; use --onnx_profile=standard"
            )
        places = _places(graph, attention_mask, at)
    shared = Shared(
        bias=None
        if places or (favor and not stack.causal)
        else _bias(graph, stack, attention_mask, start, end, length, at),
        places=places,
        turns=turns,
        window=config.window,
        seen=attention_mask,
        causal=stack.causal,
        rotary=rotary,
        memory=memory,
        memory_bias=None if memory_mask is None else _padding_bias(graph, memory_mask, length, f"{at}/memory"),
        past=past,
        past_memory=past_memory,
    )
    return graph.emit(stack, x, shared)


def _places(graph: Graph, attention_mask: str | None, at: str) -> tuple[str, str]:
    """Emits Shared.places, int32 [B] and int32 [], from attention_mask int64 [B, M] with padding on the right."""
    count = graph.add("ReduceSum", attention_mask, graph.ints(1), at=at, keepdims=0)
    last = graph.add("Cast", graph.add("Sub", count, graph.whole(1), at=at), at=at, to=TensorProto.INT32)
    total = graph.scalar(graph.size(str(attention_mask), 1, at), at)
    return last, graph.add("Cast", total, at=at, to=TensorProto.INT32)


def _bias(graph: Graph, stack: nn.Stack, attention_mask: str | None, start: str, end: str, length: str, at: str):
    """Emits the bias of the scores [B or 1, H or 1, L, M]: the attention mask, plus the relative position bias."""
    rows = columns = None
    if stack.causal or stack.relative_bias is not None:
        rows = graph.add("Unsqueeze", graph.range(start, end, at), graph.ints(1), at=at)
        columns = graph.add("Unsqueeze", graph.range(graph.ints(0), end, at), graph.ints(0), at=at)
    if not stack.causal:
        assert attention_mask is not None
        bias = _padding_bias(graph, attention_mask, length, at)
    else:
        seen = graph.add("LessOrEqual", columns, rows, at=at)
        if stack.config.window:
            before = graph.add("Sub", rows, graph.ints(stack.config.window), at=at)
            seen = graph.add("And", seen, graph.add("Greater", columns, before, at=at), at=at)
        if attention_mask is not None:
            real = graph.add("Cast", attention_mask, at=at, to=TensorProto.BOOL)
            seen = graph.add("And", seen, graph.add("Unsqueeze", real, graph.ints(1, 2), at=at), at=at)
        else:
            seen = graph.add("Unsqueeze", seen, graph.ints(0, 1), at=at)
        bias = graph.masked(seen, at)
    if stack.relative_bias is None:
        return bias
    distance = graph.add("Sub", columns, rows, at=at)
    return graph.add("Add", bias, graph.emit(stack.relative_bias, distance), at=at)


def _padding_bias(graph: Graph, attention_mask: str, length: str, at: str) -> str:
    """Emits the bias of the scores, float [B, 1, L, M], from attention_mask int64 [B, M], where 0 is padding."""
    real = graph.add("Cast", attention_mask, at=at, to=TensorProto.BOOL)
    bias = graph.add("Unsqueeze", graph.masked(real, at), graph.ints(1, 2), at=at)
    # onnxruntime's Attention broadcasts the bias over heads and batch, but not over queries.
    shape = graph.add("Concat", graph.ints(1, 1), length, graph.ints(1), at=at, axis=0)
    return graph.add("Expand", bias, shape, at=at)


EMITTERS: dict[type, Emitter] = {
    nn.Block: _block,
    nn.Stack: _stack,
    nn.Tower: _tower,
}
