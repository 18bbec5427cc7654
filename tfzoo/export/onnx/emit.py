"""Emits ONNX directly from the layers: one small function per layer class, fused operators, no tracing.

    EMITTERS[layer class](graph, layer, *names of inputs) -> name of the output

An emitter expresses in ONNX operators what the layer's `call` computes with keras.ops, without dropout. A layer may
define its own as a method `onnx_call(graph, *names of inputs)`; bodies.py describes what a model may define. The result
is verified afterwards against the Keras model.

`emit(model)` returns the graphs of an artifact, with Hugging Face's names for files, inputs and outputs:

    model                       input_ids, attention_mask (token_type_ids, ...) -> logits, or last_hidden_state, ...
    model (decoder, head lm)    also position_ids and past_key_values.i.key/value -> logits, present.i.key/value: the
                                same graph reads the prompt, with a past of length 0, and each token after it
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
    """Returns the graphs of a model whose weights are float32: {name of its file without .onnx: graph}.

    All axes named batch and sequence are free. ONNX has no assertions; Gather fails for ids outside its table.

    Args:
      model: the model.
      folder: the folder in which the weights are stored, as NAME{suffix}.onnx.data; None keeps them in the graph.
      suffix: see `folder`.
      **options: profile, dtype and copy_tied of Graph; cache, False for decoders without past keys and values; and
        length, the fixed length of all texts for a traced model (trace.py), max_positions by default.

    Raises:
      UserError: a layer has no emitter, or the profile does not support the model.
    """
    cache, length = options.pop("cache", True), options.pop("length", None)
    if options.get("profile") == "genai" and not (cache and "lm" in model.heads and isinstance(model, nn.DecoderModel)):
        raise UserError(
            f"--onnx_profile=genai: requires a decoder that generates text (head lm), but the model is {model.family} "
            f"with the heads {', '.join(model.heads) or 'none'}; use --onnx_profile=standard"
        )
    if body_of(model) is None:
        from tfzoo.export.onnx import trace  # Slow to import.

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
    """Writes the graphs of `emit` as NAME{suffix}.onnx and returns their paths.

    If a graph might be too large for a single file (it may contain the embeddings twice), its weights are stored in a
    separate file next to it. They are written to that file first in any case, so that memory never holds a second copy
    of them.
    """
    apart = model.count_params() * np.dtype(dtype).itemsize > MAX_BYTES // 2
    paths = []
    for name, graph in emit(model, folder, suffix, dtype=dtype, **options).items():
        paths.append(pathlib.Path(folder, f"{name}{suffix}.onnx"))
        data = paths[-1].with_name(f"{paths[-1].name}.data")
        if apart or not data.exists():
            write_file(graph, paths[-1])
        else:
            write_file(graph, paths[-1], data)
            data.unlink()
    return paths
