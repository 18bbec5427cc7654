"""ONNX straight from the layers: one small function per layer class, fused operators, no tracing.

    EMITTERS[layer class](graph, layer, *names of inputs) -> name of the output

A layer's function says in operators what its `call` says in keras.ops, without dropout. What a graph computes
is proven afterwards, against the Keras model.

`emit(model)` makes the graphs that an artifact holds, under Hugging Face's names for files, inputs and outputs:

    model                       input_ids, attention_mask (token_type_ids, ...) -> logits, or last_hidden_state, ...
    model, of a decoder's lm    also position_ids and past_key_values.i.key/value -> logits, present.i.key/value: one
                                graph for the prompt, whose past has no length, and for each token after it
    encoder_model               input_ids, attention_mask -> last_hidden_state, present.i.encoder.key/value
    decoder_with_past_model     input_ids, encoder_attention_mask, past_key_values.i.encoder.key/value and
                                past_key_values.i.decoder.key/value -> logits, present.i.decoder.key/value
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import onnx
from onnx import TensorProto, helper

from tfzoo import nn
from tfzoo.errors import UserError
from tfzoo.export.onnx.graph import DTYPES, MAX_BYTES, MICROSOFT, Graph, no_emitter, read_header, write_file
from tfzoo.models import (
    albert,
    bart,
    bert,
    distilbert,
    electra,
    gpt2,
    llama,
    palm,
    performer,
    roberta,
    t5,
    transformer,
    xlnet,
)
from tfzoo.nn.position import _rotary_frequencies as rotary_frequencies
from tfzoo.nn.relative import Projection, TwoStreamBlock

# Ours, and Hugging Face's.
NAMES = {
    "token_ids": "input_ids",
    "padding_mask": "attention_mask",
    "segment_ids": "token_type_ids",
    "position_ids": "position_ids",
    "decoder_token_ids": "decoder_input_ids",
    "decoder_padding_mask": "decoder_attention_mask",
    "entity_positions": "entity_positions",
    "sequence": "last_hidden_state",
    "pooled": "pooler_output",
    "memory": "encoder_last_hidden_state",
}
_MASKED = {"float32": -1e9, "float16": -3e4}  # What nn.mask_bias adds. Finite: a row without keys gives equal weights.
_TEXT = ("batch", "sequence")


def emit(
    model: keras.Model, folder: str | os.PathLike | None = None, suffix: str = "", **options
) -> dict[str, onnx.ModelProto]:
    """The graphs of a model whose weights are float32, {name of its file without .onnx: graph}.

    All axes named batch and sequence are free. ONNX has no assertions; ids outside a table make Gather fail.

    Args:
      folder: where weights are put, as NAME{suffix}.onnx.data; None keeps them in the graph.
      **options: Graph's profile, dtype and copy_tied; cache False gives decoders a graph without past keys and values;
        length is that of all texts for a model that is traced (onnx_trace), max_positions by default.

    Raises:
      UserError: a layer without an emitter, by name.
    """
    cache = options.pop("cache", True) and "lm" in model.heads
    if options.get("profile") == "genai" and not (cache and isinstance(model, nn.DecoderModel)):
        raise UserError(
            f"--onnx_profile=genai: is for decoders that write (head lm), and this is a {model.family} "
            f"with the heads {', '.join(model.heads) or 'none'}; use --onnx_profile=standard"
        )
    length = options.pop("length", None)
    if type(model) not in BODIES:
        from tfzoo.export.onnx import trace as onnx_trace  # Which takes a moment to import.

        return {"model": onnx_trace.trace(model, length or model.config.max_positions, options.get("dtype", "float32"))}
    parts: Mapping[str, Callable[..., None]] = {"model": _single}
    if cache and isinstance(model, nn.EncoderDecoderModel):
        parts = {"encoder_model": _encoder_part, "decoder_with_past_model": _decoder_part}
    elif cache and isinstance(model, nn.DecoderModel):
        parts = {"model": _cached_decoder}
    graphs = {}
    for name, write in parts.items():
        graph = Graph(
            EMITTERS, **options, data=None if folder is None else pathlib.Path(folder, f"{name}{suffix}.onnx.data")
        )
        write(graph, model)
        graphs[name] = graph.model(model.name)
    return graphs


def save(
    model: keras.Model, folder: str | os.PathLike, suffix: str = "", dtype: str = "float32", **options
) -> list[pathlib.Path]:
    """Writes the graphs of `emit` as NAME{suffix}.onnx -> their paths. What might be too large for a file of its own
    (embeddings may be in it twice) has its weights beside it."""
    apart = model.count_params() * np.dtype(dtype).itemsize > MAX_BYTES // 2
    paths = []
    for name, graph in emit(model, folder if apart else None, suffix, dtype=dtype, **options).items():
        paths.append(pathlib.Path(folder, f"{name}{suffix}.onnx"))
        write_file(graph, paths[-1])
    return paths


def signature(path: pathlib.Path) -> dict:
    """What a graph takes and gives, as manifest.json has it."""
    graph = read_header(path).graph

    def describe(values):
        return {
            value.name: {
                "dtype": helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                "shape": [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim],
            }
            for value in values
        }

    return {"inputs": describe(graph.input), "outputs": describe(graph.output)}


def output_names(model: keras.Model) -> dict[str, str]:
    """What the outputs of `model` that are exported are called in ONNX: ours -> Hugging Face's.

    One head's logits are `logits`. Of several, lm's are, and the others keep their names. A span's come in two.
    """
    if not model.heads:
        return {name: NAMES[name] for name in outputs_of(model)}
    if len(model.heads) == 1:
        return {outputs_of(model)[0]: "logits"}
    return {name: name for name in outputs_of(model)}


def outputs_of(model: keras.Model) -> list[str]:
    """The outputs of `model` that are exported: the heads' logits, or without heads what the body gives."""
    if model.heads:
        return ["logits" if head == "lm" else f"{head}_logits" for head in model.heads]
    if isinstance(model, nn.EncoderDecoderModel):
        return ["memory", "sequence"]
    return ["sequence"] + (["pooled"] if getattr(model, "pooler", None) is not None else [])


def inputs_of(model: keras.Model) -> list[str]:
    """The inputs of `model` that are exported, in our names."""
    names = ["token_ids"]
    # XLNet compares segments, and needs no table of them. Where a table has one row there is nothing to choose.
    if "segment_ids" in model.INPUTS and (model.config.num_segments > 1 or isinstance(model, xlnet.Model)):
        names.append("segment_ids")
    names.append("padding_mask")
    if "relation" in model.heads:
        names.append("entity_positions")
    if isinstance(model, nn.EncoderDecoderModel):
        names += ["decoder_token_ids", "decoder_padding_mask"]
    return names


# Graphs


def _single(graph: Graph, model: keras.Model) -> None:
    """All of a model at once."""
    inputs = {}
    for name in inputs_of(model):
        prefix = "decoder_" if name.startswith("decoder_") else ""
        inputs[name] = graph.input(NAMES[name], "batch", 2 if name == "entity_positions" else f"{prefix}sequence")
    outputs = BODIES[type(model)](graph, model, inputs)
    if model.heads:
        outputs = {
            "logits" if name == "lm" else f"{name}_logits": _answer(graph, model, name, head, outputs, inputs)
            for name, head in model.heads.items()
        }
    prefix = "decoder_" if "decoder_token_ids" in inputs else ""
    for ours, theirs in output_names(model).items():
        length = "sequence" if ours == "memory" else f"{prefix}sequence"
        axes = {
            "sequence": (*_TEXT[:1], length, model.config.hidden_size),
            "memory": (*_TEXT, model.config.hidden_size),
            "pooled": ("batch", model.config.hidden_size),
            "logits": ("batch", length, model.config.vocab_size),
            "tag_logits": ("batch", length, model.num_labels),
            "span_logits": ("batch", length, 2),
            "discriminate_logits": ("batch", length),
            "next_sentence_logits": ("batch", 2),
        }.get(ours, ("batch", model.num_labels))
        if ours == "span_logits":
            at = model.heads["span"].path
            parts = graph.add("Split", outputs[ours], at=at, outputs=2, axis=-1, num_outputs=2)
            for name, part in zip(("start_logits", "end_logits"), parts):
                graph.output(name, graph.add("Squeeze", part, graph.ints(-1), at=at), *axes[:2])
        else:
            graph.output(theirs, outputs[ours], *axes)


def _cached_decoder(graph: Graph, model: keras.Model) -> None:
    """A decoder that reads L tokens after P others, whose keys and values are past_key_values."""
    token_ids = graph.input("input_ids", *_TEXT)
    attention_mask = graph.input("attention_mask", "batch", "total_sequence")
    position_ids = graph.input("position_ids", *_TEXT) if model.config.positions != "relative" else None
    _cache(graph, model.config, model.config.num_layers, "", "past_sequence")
    x = graph.emit(model.decoder, token_ids, attention_mask, position_ids=position_ids, past="")
    logits = _answer(graph, model, "lm", model.heads["lm"], {"sequence": x}, {})
    graph.output("logits", logits, *_TEXT, model.config.vocab_size)
    graph.outputs.insert(0, graph.outputs.pop())


def _encoder_part(graph: Graph, model: keras.Model) -> None:
    """The encoder, and the keys and values that the decoder's layers make of what it gives."""
    token_ids, attention_mask = graph.input("input_ids", *_TEXT), graph.input("attention_mask", *_TEXT)
    memory = graph.emit(model.encoder, token_ids, attention_mask)
    for i, block in enumerate(model.decoder.stack.blocks):
        layer = block.cross_attention
        for name, projection in (("key", layer.key), ("value", layer.value)):
            heads = graph.heads(graph.emit(projection, memory), layer.num_kv_heads, layer.path)
            graph.output(f"present.{i}.encoder.{name}", heads, "batch", layer.num_kv_heads, "sequence", layer.head_dim)
    graph.output("last_hidden_state", memory, *_TEXT, model.config.hidden_size)
    graph.outputs.insert(0, graph.outputs.pop())


def _decoder_part(graph: Graph, model: keras.Model) -> None:
    """The decoder for L tokens after P others, with what the encoder's graph gave."""
    token_ids = graph.input("input_ids", "batch", "decoder_sequence")
    attention_mask = graph.input("encoder_attention_mask", *_TEXT)
    layers = model.config.resolved_num_decoder_layers
    _cache(graph, model.config, layers, ".encoder", "sequence")
    _cache(graph, model.config, layers, ".decoder", "past_sequence")
    x = graph.emit(model.decoder, token_ids, None, memory_mask=attention_mask, past=".decoder", past_memory=".encoder")
    logits = _answer(graph, model, "lm", model.heads["lm"], {"sequence": x}, {})
    graph.output("logits", logits, "batch", "decoder_sequence", model.config.vocab_size)
    graph.outputs.insert(0, graph.outputs.pop())


def _cache(graph: Graph, config, layers: int, part: str, length: str) -> None:
    """Inputs for keys and values."""
    heads, size = config.resolved_num_kv_heads, config.resolved_head_dim
    for i in range(layers):
        for name in ("key", "value"):
            graph.input(f"past_key_values.{i}{part}.{name}", "batch", heads, length, size, dtype=_outside(graph))


def _outside(graph: Graph) -> int:
    """The type of keys and values outside. One buffer for what comes in and what goes on leaves no room for a Cast."""
    return _type(graph) if graph.profile == "genai" else TensorProto.FLOAT


# Bodies: {input: name} -> {output: name}


def _encoder_body(graph: Graph, model: keras.Model, inputs: dict, position_ids: str | None = None) -> dict:
    sequence = graph.emit(
        model.encoder,
        inputs["token_ids"],
        inputs["padding_mask"],
        segment_ids=inputs.get("segment_ids"),
        position_ids=position_ids,
    )
    if getattr(model, "pooler", None) is None:
        return {"sequence": sequence}
    return {"sequence": sequence, "pooled": graph.emit(model.pooler, sequence)}


def _roberta_body(graph: Graph, model: roberta.Model, inputs: dict) -> dict:
    """A token's position is how many real tokens come before it; padding's is -1."""
    mask, at = inputs["padding_mask"], f"{model.name}/position_ids"
    count = graph.add("Mul", graph.add("CumSum", mask, graph.whole(1), at=at), mask, at=at)
    return _encoder_body(graph, model, inputs, graph.add("Sub", count, graph.ints(1), at=at))


def _decoder_body(graph: Graph, model: keras.Model, inputs: dict) -> dict:
    return {"sequence": graph.emit(model.decoder, inputs["token_ids"], inputs["padding_mask"])}


def _encoder_decoder_body(graph: Graph, model: keras.Model, inputs: dict) -> dict:
    memory = graph.emit(model.encoder, inputs["token_ids"], inputs["padding_mask"])
    sequence = graph.emit(
        model.decoder,
        inputs["decoder_token_ids"],
        inputs["decoder_padding_mask"],
        memory=memory,
        memory_mask=inputs["padding_mask"],
    )
    return {"memory": memory, "sequence": sequence}


# By exact class: a subclass may compute something else.
BODIES: dict[type, Callable[..., dict]] = {
    **{page.Model: _encoder_body for page in (albert, bert, distilbert, electra, performer, xlnet)},
    **{page.Model: _decoder_body for page in (gpt2, llama, palm)},
    **{page.Model: _encoder_decoder_body for page in (bart, t5, transformer)},
    roberta.Model: _roberta_body,
}


def _answer(graph: Graph, model: keras.Model, name: str, head, outputs: dict, inputs: dict) -> str:
    """The logits of one head."""
    sequence = outputs["sequence"]
    if name == "lm" and isinstance(model, t5.Model) and model.config.tie_embeddings:
        factor = graph.number(model.config.hidden_size**-0.5)
        sequence = graph.add("Mul", sequence, factor, at=model.name)
    if name == "next_sentence":
        return graph.emit(head, outputs["pooled"])
    if name == "classify":
        mask = inputs.get("decoder_padding_mask", inputs["padding_mask"])
        return graph.emit(head, _pool(graph, model.pool, outputs, mask, f"{model.name}/pool"))
    if name == "relation":
        return graph.emit(head, sequence, inputs["entity_positions"])
    return graph.emit(head, sequence)


def _pool(graph: Graph, how: str, outputs: dict, attention_mask: str, at: str) -> str:
    """nn.pool: one vector a row [B, E]."""
    sequence = outputs["sequence"]
    if how == "pooled":
        return outputs["pooled"]
    if how == "mean":
        real = graph.add("Cast", graph.add("Unsqueeze", attention_mask, graph.ints(2), at=at), at=at, to=_type(graph))
        total = graph.add("ReduceSum", graph.add("Mul", sequence, real, at=at), graph.ints(1), at=at, keepdims=0)
        count = graph.add("ReduceSum", real, graph.ints(1), at=at, keepdims=0)
        return graph.add("Div", total, graph.add("Max", count, graph.number(1.0), at=at), at=at)
    if how == "first":
        place = graph.add("ArgMax", attention_mask, at=at, axis=1)
    else:  # The last real token is where the sum of 0, 1, 2, ... over real tokens is largest.
        length = graph.size(attention_mask, 1, at)
        places = graph.add("Mul", attention_mask, graph.range(graph.ints(0), length, at), at=at)
        place = graph.add("ArgMax", places, at=at, axis=1)
    return graph.add("Squeeze", _gather(graph, sequence, place, at), graph.ints(1), at=at)


def _gather(graph: Graph, sequence: str, positions: str, at: str) -> str:
    """sequence [B, L, E], positions [B, P] -> [B, P, E]."""
    indices = graph.add("Unsqueeze", positions, graph.ints(2), at=at)
    return graph.add("GatherND", sequence, indices, at=at, batch_dims=1)


def _type(graph: Graph) -> int:
    return DTYPES[graph.dtype.name]


# Small layers


def _dense(graph: Graph, layer: nn.Dense, x: str) -> str:
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


# Attention


@dataclasses.dataclass(frozen=True)
class Shared:
    """What the blocks of a stack share."""

    bias: str | None = None  # [B or 1, H or 1, L, M], added to the scores.
    seen: str | None = None  # For attention without scores: int64 [B, M], 0 is padding.
    causal: bool = False
    rotary: tuple[str, str] | None = None  # Cosines and sines [B, L, D / 2].
    memory: str | None = None  # [B, M, E], for cross attention,
    memory_bias: str | None = None  # whose scores have this added.
    past: str | None = None  # Keys and values come in as past_key_values.i{past}, and go on as present.i{past};
    past_memory: str | None = None  # those of the memory only come in.
    places: tuple[str, str] | None = None  # Of profile genai: int32 [B], each row's last place; [], how many there are.
    window: int = 0  # Keys that a query sees; 0 is all.


def _attention(
    graph: Graph,
    layer: nn.Attention,
    x: str,
    shared: Shared,
    index: int = 0,
    cross: bool = False,
) -> str:
    """index: the block's place in its stack."""
    if cross and shared.past_memory is not None:
        query = _by_head(graph, layer.query_norm, graph.emit(layer.query, x))
        return graph.emit(layer.output_projection, _cached_cross_attention(graph, layer, query, shared, index))
    parts = (layer.query, layer.key, layer.value)
    if shared.past is not None and not cross and all(type(part) is nn.Dense for part in parts):  # As Graph.emit.
        query, key, value = _query_key_value(graph, layer, x)
    else:
        memory = shared.memory if cross else x
        query, key, value = graph.emit(layer.query, x), graph.emit(layer.key, memory), graph.emit(layer.value, memory)
    query, key = _by_head(graph, layer.query_norm, query), _by_head(graph, layer.key_norm, key)
    if shared.rotary is not None and not cross:
        query = graph.add("RotaryEmbedding", query, *shared.rotary, at=layer.path, num_heads=layer.num_heads)
        key = graph.add("RotaryEmbedding", key, *shared.rotary, at=layer.path, num_heads=layer.num_kv_heads)
    y = graph.emit(layer.kernel, query, key, value, layer, shared, None if shared.past is None else index, cross)
    return graph.emit(layer.output_projection, y)


def _query_key_value(graph: Graph, layer: nn.Attention, x: str) -> tuple[str, str, str]:
    """[B, L, H D], [B, L, G D] twice: by one product. For one token that is faster; for many three are, whose results
    need not be parted."""
    at, parts = f"{layer.path}/query_key_value", (layer.query, layer.key, layer.value)
    y = graph.add("MatMul", x, graph.joined(f"{at}/kernel", [part.kernel for part in parts]), at=at)
    if layer.query.use_bias:
        y = graph.add("Add", y, graph.joined(f"{at}/bias", [part.bias for part in parts]), at=at)
    sizes = graph.ints(*(part.units for part in parts))
    return graph.add("Split", y, sizes, at=at, outputs=3, axis=-1)


def _by_head(graph: Graph, norm: nn.RMSNorm | None, x: str) -> str:
    """x [B, L, H D], normalised over D."""
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
    key, value = (_narrow(graph, f"{past}.{name}", layer.path) for name in ("key", "value"))
    query = graph.heads(query, layer.num_heads, layer.path)
    y = graph.add("Attention", query, key, value, shared.memory_bias, at=layer.path, scale=_scale(layer))
    return graph.merge(y, layer.path)


def _narrow(graph: Graph, x: str, at: str) -> str:
    """What is float32 outside."""
    return x if graph.dtype == np.float32 else graph.add("Cast", x, at=at, to=_type(graph))


def _full_attention(
    graph: Graph,
    kernel: nn.FullAttention | nn.LeanAttention,
    query: str,
    key: str,
    value: str,
    layer: nn.Attention,
    shared: Shared,
    index: int | None = None,
    cross: bool = False,
) -> str:
    """index: of the keys and values kept from earlier calls; None where none are."""
    at = kernel.path
    options: dict[str, Any] = dict(scale=_scale(layer), q_num_heads=layer.num_heads, kv_num_heads=layer.num_kv_heads)
    if cross or index is None:
        bias = shared.memory_bias if cross else shared.bias
        return graph.add("Attention", query, key, value, bias, at=at, **options)
    kept = f"{index}{shared.past}"
    past = [f"past_key_values.{kept}.{name}" for name in ("key", "value")]
    if shared.places is not None:
        sizes = dict(num_heads=layer.num_heads, kv_num_heads=layer.num_kv_heads, scale=_scale(layer))
        window = dict(local_window_size=shared.window) if shared.window else {}
        y, *present = graph.add(
            "GroupQueryAttention", query, key, value, *past, *shared.places,
            at=at, outputs=3, domain=MICROSOFT, **sizes, **window,
        )  # fmt: skip
    else:
        past = [_narrow(graph, x, at) for x in past]
        y, *present = graph.add("Attention", query, key, value, shared.bias, *past, at=at, outputs=3, **options)
    for name, tensor in zip(("key", "value"), present):
        axes = "batch", layer.num_kv_heads, "total_sequence", layer.head_dim
        graph.output(f"present.{kept}.{name}", tensor, *axes, dtype=_outside(graph))
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
    """Sums over keys of exp(logs), the largest exponents taken out, as nn.kernel.favor_attention has it."""
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
        # ONNX has no running maximum, without which sums up to a place overflow. The same shares as scores do not:
        # the logarithm of each key's sum over features.
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
    weights = add("Mul", add("Exp", add("Sub", logs, peaks)), add("Cast", real, to=_type(graph)))
    turned = add("Transpose", weights, perm=[0, 1, 3, 2])
    exponents = add("Add", add("MatMul", query, table), peaks)
    shares = add("Exp", add("Sub", exponents, add("ReduceMax", exponents, graph.ints(-1))))
    above = add("MatMul", shares, add("MatMul", turned, value))
    counts = add("Unsqueeze", add("ReduceSum", weights, graph.ints(2), keepdims=0), graph.ints(3))
    below = add("MatMul", shares, counts)
    nothing = add("Equal", below, graph.number(0.0))  # A query that sees nothing gets 0.
    y = add("Div", above, add("Where", nothing, graph.number(1.0), below))
    return graph.merge(y, at)


def _block(graph: Graph, layer: nn.Block, x: str, shared: Shared, index: int) -> str:
    def attend(x):
        return graph.emit(layer.attention, x, shared, index)

    def cross(x):
        return graph.emit(layer.cross_attention, x, shared, index, cross=True)

    def feed(x):
        return graph.emit(layer.mlp, x)

    def residual(x, sublayer, norm):
        if layer.norm_first:
            return graph.add("Add", x, sublayer(graph.emit(norm, x)), at=layer.path)
        return graph.emit(norm, graph.add("Add", x, sublayer(x), at=layer.path))

    if layer.parallel:
        normal = graph.emit(layer.self_norm, x)
        x = graph.add("Add", x, attend(normal), at=layer.path)
        return graph.add("Add", x, feed(normal), at=layer.path)
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
    """attention_mask int64 [B, M], M the past's length P and L together; None: no padding. See Shared for the rest."""
    stack, config, at = layer.stack, layer.stack.config, f"{layer.path}/mask"
    length = graph.size(token_ids, 1, at)
    start, end = graph.ints(0), length
    if past is not None:
        start = graph.size(f"past_key_values.0{past}.key", 2, at)
        end = graph.add("Add", start, length, at=at)
    x = graph.emit(layer.embeddings, token_ids, segment_ids, position_ids, start, end)
    rotary = None
    if config.positions == "rotary":
        if position_ids is None:
            shape = graph.add("Shape", token_ids, at=at)
            position_ids = graph.add("Expand", graph.range(start, end, at), shape, at=at)
        rotary = _rotary(graph, config, position_ids, f"{layer.path}/rotary")
    favor = config.attention == "favor"
    places = None
    if graph.profile == "genai":
        if config.resolved_head_dim % 8:
            raise UserError(
                f"--onnx_profile=genai: GroupQueryAttention has heads of multiples of 8 numbers, and {stack.path} has "
                f"head_dim={config.resolved_head_dim}; use --onnx_profile=standard"
            )
        if stack.relative_bias is not None:
            raise UserError(
                f"--onnx_profile=genai: GroupQueryAttention adds nothing to the scores, as {stack.relative_bias.path} "
                f"does; use --onnx_profile=standard"
            )
        places = _places(graph, attention_mask, at)
    shared = Shared(
        bias=None
        if places or (favor and not stack.causal)
        else _bias(graph, stack, attention_mask, start, end, length, at),
        places=places,
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
    """attention_mask int64 [B, M], its padding on the right -> int32 [B], int32 []: Shared.places."""
    count = graph.add("ReduceSum", attention_mask, graph.ints(1), at=at, keepdims=0)
    last = graph.add("Cast", graph.add("Sub", count, graph.whole(1), at=at), at=at, to=TensorProto.INT32)
    whole = graph.scalar(graph.size(str(attention_mask), 1, at), at)
    return last, graph.add("Cast", whole, at=at, to=TensorProto.INT32)


def _bias(graph: Graph, stack: nn.Stack, attention_mask: str | None, start: str, end: str, length: str, at: str):
    """What is added to the scores [B or 1, H or 1, L, M] for what a query may see, and for distances."""
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
        bias = _where(graph, seen, at)
    if stack.relative_bias is None:
        return bias
    distance = graph.add("Sub", columns, rows, at=at)
    return graph.add("Add", bias, graph.emit(stack.relative_bias, distance), at=at)


def _where(graph: Graph, seen: str, at: str) -> str:
    return graph.add("Where", seen, graph.number(0.0), graph.number(_MASKED[graph.dtype.name]), at=at)


def _padding_bias(graph: Graph, attention_mask: str, length: str, at: str) -> str:
    """attention_mask int64 [B, M], 0 is padding -> float [B, 1, L, M], added to the scores."""
    real = graph.add("Cast", attention_mask, at=at, to=TensorProto.BOOL)
    bias = graph.add("Unsqueeze", _where(graph, real, at), graph.ints(1, 2), at=at)
    # onnxruntime's Attention broadcasts over heads and batch, not over queries.
    shape = graph.add("Concat", graph.ints(1, 1), length, graph.ints(1), at=at, axis=0)
    return graph.add("Expand", bias, shape, at=at)


# Embeddings and positions


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
    """start, end: int64 [1], the tokens' places in the text."""
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
    elif layer.segments is not None:  # Everything is in segment 0.
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
    """distance int64 [L, M] -> [1, H, L, M]."""
    at = layer.path

    def add(operator, *inputs, **attributes):
        return graph.add(operator, *inputs, at=at, **attributes)

    def wide(value):  # Logarithms are taken in float32 whatever the graph's dtype.
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


def _rotary(graph: Graph, config, position_ids: str, at: str) -> tuple[str, str]:
    """position_ids int64 [B, L] -> cosines and sines [B, L, D / 2], as nn.rotary_tables has them."""

    def add(operator, *inputs, **attributes):
        return graph.add(operator, *inputs, at=at, **attributes)

    def wide(name, value):
        return graph.constant(f"{at}/{name}", np.asarray(value, np.float32))

    positions = add("Cast", position_ids, to=TensorProto.FLOAT)
    scaling = config.rotary_scaling
    kind = scaling.get("rope_type", scaling.get("type"))
    original = scaling.get("original_max_position_embeddings") or config.max_positions
    head_dim = config.resolved_head_dim
    used = add("Add", add("ReduceMax", positions, keepdims=0), wide("one", 1.0))  # Positions, from 0 on.
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
    cos, sin = (_narrow(graph, table, at) for table in tables)
    return cos, sin


def _frequencies(config, head_dim: int, length: int) -> tuple[np.ndarray, float]:
    frequencies, factor = rotary_frequencies(config, head_dim, length)
    return np.asarray(frequencies), factor


# Heads


def _masked_lm_head(graph: Graph, layer: nn.MaskedLMHead, x: str) -> str:
    return _tied(graph, layer, graph.emit(layer.norm, graph.emit(layer.transform, x)))


def _lm_head(graph: Graph, layer: nn.LMHead, x: str) -> str:
    if layer.dense is None:
        return _tied(graph, layer, x)
    x = graph.emit(layer.dense, x)
    return graph.add("Add", x, graph.weight(layer.bias), at=layer.path) if layer.use_bias else x


def _tied(graph: Graph, layer: nn.MaskedLMHead | nn.LMHead, x: str) -> str:
    """x [B, L, E] times the token embeddings, with the head's bias."""

    def add(operator, *inputs, **attributes):
        return graph.add(operator, *inputs, at=layer.path, **attributes)

    embeddings = layer.embedding.embeddings
    bias = graph.weight(layer.bias) if isinstance(layer, nn.MaskedLMHead) or layer.use_bias else None
    if graph.copy_tied:  # A bias is not to be quantised.
        table = graph.constant(f"{embeddings.path}/transposed", embeddings.numpy().T.astype(graph.dtype))
        logits = add("MatMul", x, table)
        return logits if bias is None else add("Add", logits, bias)
    # Runtimes transpose, and put a bias under the table, once, when they load the graph.
    table = add("Transpose", graph.weight(embeddings), perm=[1, 0])
    if bias is not None:  # As one more product: to add it would be to read and write all logits once more.
        table = add("Concat", table, add("Unsqueeze", bias, graph.ints(0)), axis=0)
        x = add("Pad", x, graph.ints(0, 0, 0, 0, 0, 1), graph.number(1.0))
    return add("MatMul", x, table)


def _pooler(graph: Graph, layer: nn.Pooler, sequence: str) -> str:
    return graph.emit(layer.dense, graph.add("Gather", sequence, graph.whole(0), at=layer.path, axis=1))


def _classifier(graph: Graph, layer: nn.Classifier, x: str) -> str:
    return graph.emit(layer.dense, x if layer.hidden is None else graph.emit(layer.hidden, x))


def _discriminator(graph: Graph, layer: nn.Discriminator, sequence: str) -> str:
    logits = graph.emit(layer.dense, graph.emit(layer.hidden, sequence))
    return graph.add("Squeeze", logits, graph.ints(-1), at=layer.path)


def _relation_classifier(graph: Graph, layer: nn.RelationClassifier, sequence: str, positions: str) -> str:
    pair = _gather(graph, sequence, positions, layer.path)
    return graph.emit(layer.classifier, graph.add("Reshape", pair, graph.ints(0, -1), at=layer.path))


# XLNet's content stream


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
    own = add("Equal", add("Unsqueeze", places, graph.ints(0)), add("Unsqueeze", places, graph.ints(1)))
    real = add("Unsqueeze", add("Cast", attention_mask, to=TensorProto.BOOL), graph.ints(1, 2))
    bias = _where(graph, add("Or", own, real), at)  # [B, 1, L, L]
    other = None
    if segment_ids is not None:
        rows, columns = (add("Unsqueeze", segment_ids, graph.ints(1, axis)) for axis in (3, 2))
        other = add("Cast", add("Not", add("Equal", rows, columns)), to=_type(graph))
    distances = add("Range", graph.scalar(length, at), graph.scalar(add("Neg", length), at), graph.whole(-1))
    distances = add("Unsqueeze", add("Cast", distances, to=TensorProto.FLOAT), graph.ints(1))
    size = stack.config.hidden_size
    rates = np.asarray(10000 ** (-np.arange(0, size, 2) / size), np.float32)
    angles = add("Mul", distances, graph.constant(f"{at}/rates", rates))
    positions = _narrow(graph, add("Concat", add("Sin", angles), add("Cos", angles), axis=-1), at)
    for block in stack.blocks:
        x = graph.emit(block, x, positions, bias, other, length)
    return x


def _two_stream_block(graph: Graph, layer: TwoStreamBlock, x: str, *shared: str) -> str:
    x = graph.emit(layer.self_norm, graph.add("Add", x, graph.emit(layer.attention, x, *shared), at=layer.path))
    return graph.emit(layer.mlp_norm, graph.add("Add", x, graph.emit(layer.mlp, x), at=layer.path))


def _relative_attention(
    graph: Graph, layer: nn.RelativeAttention, x: str, positions: str, bias: str, other: str | None, length: str
) -> str:
    """positions [2 L, E], bias [B, 1, L, L]; other [B, 1, L, L]: 1 where the key's segment is not the query's."""
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
    # By distance [B, H, L, 2 L] -> by key: row i starts at L - i, as nn.relative.relative_shift has it.
    twice = add("Add", length, length)
    scores = add("Reshape", scores, add("Concat", graph.ints(0, 0), twice, length, axis=0))
    scores = add("Slice", scores, graph.ints(1), twice, graph.ints(2))
    scores = add("Reshape", scores, add("Concat", graph.ints(0, 0), length, graph.ints(-1), axis=0))
    scores = add("Slice", scores, graph.ints(0), length, graph.ints(3))
    if other is not None:
        # A softmax does not notice what is added to a whole row: the difference of the two scores will do.
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


EMITTERS: dict[type, Callable[..., str]] = {
    nn.Attention: _attention,
    nn.Block: _block,
    nn.Classifier: _classifier,
    nn.Dense: _dense,
    nn.Discriminator: _discriminator,
    nn.Embeddings: _embeddings,
    nn.FavorAttention: _favor_attention,
    nn.FullAttention: _full_attention,
    nn.LMHead: _lm_head,
    nn.LayerNorm: _layer_norm,
    nn.LeanAttention: _full_attention,  # The same numbers.
    nn.MLP: _mlp,
    nn.MaskedLMHead: _masked_lm_head,
    nn.RelationClassifier: _relation_classifier,
    nn.Pooler: _pooler,
    nn.RMSNorm: _rms_norm,
    nn.RelativeAttention: _relative_attention,
    nn.RelativeBias: _relative_bias,
    nn.Stack: _stack,
    nn.TokenEmbedding: _token_embedding,
    nn.Tower: _tower,
    nn.TwoStreamTower: _two_stream_tower,
    Projection: _projection,
    TwoStreamBlock: _two_stream_block,
}
