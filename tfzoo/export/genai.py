"""genai_config.json, which onnxruntime-genai reads in addition to a decoder's graph."""

import json
import pathlib
from typing import Any

import keras

from tfzoo import files
from tfzoo.generation.folder import special_ids
from tfzoo.text.reader import pad_id

FILE = "genai_config.json"


def write(model: keras.Model, tokenizer: Any, folder: pathlib.Path, filename: str) -> None:
    """Writes the configuration for running `filename`, a graph of --onnx_profile=genai: greedily, with the keys and
    values in one buffer, until an end-of-text token.

    The fields are those of https://onnxruntime.ai/docs/genai/reference/config.html.

    Args:
      model: the exported model.
      tokenizer: its tokenizer, or None.
      folder: the artifact's folder.
      filename: the name of the graph in it.
    """
    config, ids = model.config, special_ids(model)
    pad = 0 if tokenizer is None else pad_id(tokenizer)
    end = ids.get("eos_token_id", getattr(tokenizer, "eos_id", None))
    end = pad if end is None else end  # onnxruntime-genai requires an end-of-text token.
    begin = getattr(tokenizer, "bos_id", None)
    if begin is None:  # The field is required, whether or not texts begin with this token.
        begin = end[0] if isinstance(end, list) else end
    names = {f"past_{part}_names": f"past_key_values.%d.{part}" for part in ("key", "value")}
    inputs = {"input_ids": "input_ids", "attention_mask": "attention_mask", "position_ids": "position_ids", **names}
    outputs = {"logits": "logits"} | {f"present_{part}_names": f"present.%d.{part}" for part in ("key", "value")}
    decoder = {
        "session_options": {"provider_options": []},
        "filename": filename,
        "head_size": config.resolved_head_dim,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.resolved_num_kv_heads,
        "inputs": inputs,
        "outputs": outputs,
    }
    content = {
        "model": {
            "type": "decoder",
            "vocab_size": config.vocab_size,
            "context_length": config.max_positions,
            "bos_token_id": begin,
            "eos_token_id": end,
            "pad_token_id": pad,
            "decoder": decoder,
        },
        "search": {"do_sample": False, "max_length": config.max_positions, "past_present_share_buffer": True},
    }
    files.atomic_write(folder / FILE, json.dumps(content, indent=1) + "\n")
