"""The graphs of a model, and the emitters of model bodies.

Models based on nn's EncoderModel, DecoderModel or EncoderDecoderModel are supported: BODIES emits their method `body`
in ONNX operators. A subclass that overrides `body` or `position_ids` must provide the corresponding method `onnx_body`
or `onnx_position_ids`, which maps names of inputs to names of outputs and needs no ONNX package:

    def onnx_body(self, graph, inputs):
        return {"sequence": graph.emit(self.encoder, inputs["token_ids"], inputs["padding_mask"])}

A model that overrides them without such a method, or overrides another method that computes, is traced (trace.py).
"""

from collections.abc import Callable

import keras

from tfzoo import nn
from tfzoo.export import interface
from tfzoo.export.onnx.graph import Emitter, Graph, emitter_of
from tfzoo.export.onnx.heads import answer

_TEXT = ("batch", "sequence")


# Bodies: {input: name} -> {output: name}


def _encoder(graph: Graph, model: keras.Model, inputs: dict) -> dict:
    position_ids = emitter_of(model, "position_ids", _POSITION_IDS)
    assert position_ids is not None
    sequence = graph.emit(
        model.encoder,
        inputs["token_ids"],
        inputs["padding_mask"],
        segment_ids=inputs.get("segment_ids"),
        position_ids=position_ids(graph, model, inputs),
    )
    if getattr(model, "pooler", None) is None or model.head_names == ("embed",):  # The head embed reads no pooler.
        return {"sequence": sequence}
    return {"sequence": sequence, "pooled": graph.emit(model.pooler, sequence)}


def _decoder(graph: Graph, model: keras.Model, inputs: dict) -> dict:
    return {"sequence": graph.emit(model.decoder, inputs["token_ids"], inputs["padding_mask"])}


def _encoder_decoder(graph: Graph, model: keras.Model, inputs: dict) -> dict:
    memory = graph.emit(model.encoder, inputs["token_ids"], inputs["padding_mask"])
    sequence = graph.emit(
        model.decoder,
        inputs["decoder_token_ids"],
        inputs["decoder_padding_mask"],
        memory=memory,
        memory_mask=inputs["padding_mask"],
    )
    return {"memory": memory, "sequence": sequence}


BODIES: dict[type, Emitter] = {
    nn.EncoderModel: _encoder,
    nn.DecoderModel: _decoder,
    nn.EncoderDecoderModel: _encoder_decoder,
}
_POSITION_IDS: dict[type, Emitter] = {nn.EncoderModel: lambda graph, model, inputs: None}
# Other methods that compute; they are emitted as implemented in nn.
_COMPUTE = ("call", "answer", "encode", "decode")


def body_of(model: keras.Model) -> Emitter | None:
    """Returns the emitter of the model's body; None for a model that must be traced."""
    body = emitter_of(model, "body", BODIES)
    base = next(cls for cls in type(model).__mro__ if cls in (*BODIES, nn.Model))
    if any(getattr(type(model), name, None) is not getattr(base, name, None) for name in _COMPUTE):
        return None
    if body is _encoder and emitter_of(model, "position_ids", _POSITION_IDS) is None:
        return None
    return body


def graphs_of(model: keras.Model, cache: bool) -> dict[str, Callable[[Graph, keras.Model], None]]:
    """Returns the graphs of a model whose body has an emitter: {name: function that writes the graph}.

    Args:
      model: the model.
      cache: whether a decoder of nn with a head lm gets graphs that cache keys and values.
    """
    body = body_of(model)
    if cache and "lm" in model.heads and body is _encoder_decoder:
        return {"encoder_model": _encoder_part, "decoder_with_past_model": _decoder_part}
    if cache and "lm" in model.heads and body is _decoder:
        return {"model": _cached_decoder}
    return {"model": _whole}


# Graphs


def _whole(graph: Graph, model: keras.Model) -> None:
    """Writes the whole model as one graph."""
    inputs = {name: graph.input(value.onnx, "batch", value.axis) for name, value in interface.inputs_of(model).items()}
    body = body_of(model)
    assert body is not None
    outputs = body(graph, model, inputs)
    if model.heads:
        outputs = {nn.output_of(name): answer(graph, model, name, outputs, inputs) for name in model.heads}
    names = interface.onnx_outputs(model)
    for name, axes in interface.outputs_of(model).items():
        if name == "span_logits":
            at = model.heads["span"].path
            parts = graph.add("Split", outputs[name], at=at, outputs=2, axis=-1, num_outputs=2)
            for side, part in zip(("start_logits", "end_logits"), parts):
                graph.output(side, graph.add("Squeeze", part, graph.ints(-1), at=at), *axes[:2])
        else:
            graph.output(names[name], outputs[name], *axes)


def _cached_decoder(graph: Graph, model: keras.Model) -> None:
    """Writes a decoder that reads L tokens after P others, whose keys and values are past_key_values."""
    token_ids = graph.input("input_ids", *_TEXT)
    attention_mask = graph.input("attention_mask", "batch", "total_sequence")
    position_ids = graph.input("position_ids", *_TEXT) if model.config.positions != "relative" else None
    _cache(graph, model.config, model.config.num_layers, "", "past_sequence")
    x = graph.emit(model.decoder, token_ids, attention_mask, position_ids=position_ids, past="")
    logits = answer(graph, model, "lm", {"sequence": x}, {})
    graph.output("logits", logits, *_TEXT, model.config.vocab_size)
    graph.outputs.insert(0, graph.outputs.pop())


def _encoder_part(graph: Graph, model: keras.Model) -> None:
    """Writes the encoder, with the keys and values that the decoder's layers compute from its output."""
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
    """Writes the decoder for L tokens after P others; it reads the outputs of the encoder's graph."""
    token_ids = graph.input("input_ids", "batch", "decoder_sequence")
    attention_mask = graph.input("encoder_attention_mask", *_TEXT)
    layers = model.config.resolved_num_decoder_layers
    _cache(graph, model.config, layers, ".encoder", "sequence")
    _cache(graph, model.config, layers, ".decoder", "past_sequence")
    x = graph.emit(model.decoder, token_ids, None, memory_mask=attention_mask, past=".decoder", past_memory=".encoder")
    logits = answer(graph, model, "lm", {"sequence": x}, {})
    graph.output("logits", logits, "batch", "decoder_sequence", model.config.vocab_size)
    graph.outputs.insert(0, graph.outputs.pop())


def _cache(graph: Graph, config, layers: int, part: str, length: str) -> None:
    """Adds the inputs for cached keys and values."""
    heads, size = config.resolved_num_kv_heads, config.resolved_head_dim
    for i in range(layers):
        for name in ("key", "value"):
            graph.input(f"past_key_values.{i}{part}.{name}", "batch", heads, length, size, dtype=graph.outside)
