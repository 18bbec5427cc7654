"""Prints the likeliest words for each [MASK] in a text: python fill.py ARTIFACT "Returns the [MASK] of the array."

ARTIFACT is exports/onnx/NAME/VERSION of a masked language model, with a tokenizer/tokenizer.json. Requires numpy,
onnxruntime and tokenizers.
"""

import json
import pathlib
import sys

import numpy as np
import onnxruntime
import tokenizers

folder, text = pathlib.Path(sys.argv[1]), sys.argv[2]
tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
mask = tokenizer.token_to_id(json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())["mask_token"])
session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])

encoded = tokenizer.encode(text)
columns = {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask, "token_type_ids": encoded.type_ids}
inputs = {value.name: np.array([columns[value.name]], np.int64) for value in session.get_inputs()}
(logits,) = session.run(["logits"], inputs)
for place in np.flatnonzero(np.array(encoded.ids) == mask):
    scores = np.exp(logits[0, place] - logits[0, place].max())
    scores /= scores.sum()
    best = np.argsort(-scores, kind="stable")[:5]
    print("   ".join(f"{tokenizer.decode([i])} {scores[i]:.4f}" for i in best.tolist()))
