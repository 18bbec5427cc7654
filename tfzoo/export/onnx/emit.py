"""ONNX straight from the layers: one small function per layer class, fused operators, no tracing.

    EMITTERS[layer class](graph, layer, *names of inputs) -> name of the output

A layer's function says in operators what its `call` says in keras.ops, without dropout; a layer with a method
`onnx_call(graph, *names of inputs)` brings its own, and bodies.py says what a model's page may bring. What a graph
computes is proven afterwards, against the Keras model.

`emit(model)` makes the graphs that an artifact holds, under Hugging Face's names for files, inputs and outputs:

    model                       input_ids, attention_mask (token_type_ids, ...) -> logits, or last_hidden_state, ...
    model, of a decoder's lm    also position_ids and past_key_values.i.key/value -> logits, present.i.key/value: one
                                graph for the prompt, whose past has no length, and for each token after it
    encoder_model               input_ids, attention_mask -> last_hidden_state, present.i.encoder.key/value
    decoder_with_past_model     input_ids, encoder_attention_mask, past_key_values.i.encoder.key/value and
                                past_key_values.i.decoder.key/value -> logits, present.i.decoder.key/value
"""

import os
import pathlib

import keras
import numpy as np
import onnx

from tfzoo import nn
from tfzoo.errors import UserError
from tfzoo.export.onnx import attention, embeddings, heads, layers, tower, two_stream
from tfzoo.export.onnx.bodies import body_of, graphs_of
from tfzoo.export.onnx.graph import MAX_BYTES, Emitter, Graph, write_file

EMITTERS: dict[type, Emitter] = {
    **layers.EMITTERS,
    **attention.EMITTERS,
    **embeddings.EMITTERS,
    **tower.EMITTERS,
    **two_stream.EMITTERS,
    **heads.EMITTERS,
}


def emit(
    model: keras.Model, folder: str | os.PathLike | None = None, suffix: str = "", **options
) -> dict[str, onnx.ModelProto]:
    """The graphs of a model whose weights are float32, {name of its file without .onnx: graph}.

    All axes named batch and sequence are free. ONNX has no assertions; ids outside a table make Gather fail.

    Args:
      folder: where weights are put, as NAME{suffix}.onnx.data; None keeps them in the graph.
      **options: Graph's profile, dtype and copy_tied; cache False gives decoders a graph without past keys and values;
        length is that of all texts for a model that is traced (trace.py), max_positions by default.

    Raises:
      UserError: a layer without an emitter, by name.
    """
    cache, length = options.pop("cache", True), options.pop("length", None)
    if options.get("profile") == "genai" and not (cache and "lm" in model.heads and isinstance(model, nn.DecoderModel)):
        raise UserError(
            f"--onnx_profile=genai: is for decoders that write (head lm), and this is a {model.family} "
            f"with the heads {', '.join(model.heads) or 'none'}; use --onnx_profile=standard"
        )
    if body_of(model) is None:
        from tfzoo.export.onnx import trace  # Which takes a moment to import.

        return {"model": trace.trace(model, length or model.config.max_positions, options.get("dtype", "float32"))}
    graphs = {}
    for name, write in graphs_of(model, cache).items():
        data = None if folder is None else pathlib.Path(folder, f"{name}{suffix}.onnx.data")
        graph = Graph(EMITTERS, **options, data=data)
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
