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

if len(sys.argv) != 3:
    sys.exit(__doc__)
folder, text = pathlib.Path(sys.argv[1]), sys.argv[2]
path = folder / "manifest.json"
manifest = json.loads(path.read_text() if path.is_file() else "{}")
if manifest.get("kind") != "onnx" or "lm" not in manifest["model"]["heads"] or "generation" in manifest:
    sys.exit(f"{folder} is not an ONNX artifact of a masked language model; specify exports/onnx/NAME/VERSION")
if not (folder / "tokenizer" / "tokenizer.json").is_file():
    sys.exit(f"{folder} has no tokenizer/tokenizer.json, which this program needs")
tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
mask = tokenizer.token_to_id(json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())["mask_token"])
session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])

encoded = tokenizer.encode(text)
columns = {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask, "token_type_ids": encoded.type_ids}
inputs = {value.name: np.array([columns[value.name]], np.int64) for value in session.get_inputs()}
(logits,) = session.run(["logits"], inputs)
places = np.flatnonzero(np.array(encoded.ids) == mask)
if not len(places):
    sys.exit(f"{text!r} contains no mask token, which marks a word to predict")
for place in places:
    scores = np.exp(logits[0, place] - logits[0, place].max())
    scores /= scores.sum()
    best = np.argsort(-scores, kind="stable")[:5]
    print("   ".join(f"{tokenizer.decode([i])} {scores[i]:.4f}" for i in best.tolist()))
