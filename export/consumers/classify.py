"""Classifies texts with an exported ONNX model: python classify.py ARTIFACT TEXT...

ARTIFACT is exports/onnx/NAME/VERSION with a tokenizer/tokenizer.json. For a model that reads pairs, each TEXT is two
texts separated by a tab. Requires numpy, onnxruntime and tokenizers.
"""

import json
import pathlib
import sys

import numpy as np
import onnxruntime
import tokenizers

if len(sys.argv) < 3:
    sys.exit(__doc__)
folder, texts = pathlib.Path(sys.argv[1]), sys.argv[2:]
path = folder / "manifest.json"
manifest = json.loads(path.read_text() if path.is_file() else "{}")
if manifest.get("kind") != "onnx":
    sys.exit(f"{folder} is not an ONNX artifact; specify exports/onnx/NAME/VERSION")
if not (folder / "tokenizer" / "tokenizer.json").is_file():
    sys.exit(f"{folder} has no tokenizer/tokenizer.json, which this program needs")
classifies = manifest.get("problem_type") in ("single_label_classification", "multi_label_classification")
if not classifies or len(manifest["model"]["heads"]) > 1:
    sys.exit(f"{folder} is not a classifier, or has other heads as well")
pairs = len(manifest["texts"]) == 2
for text in texts:
    if pairs != ("\t" in text):
        sys.exit(f"{folder} reads {'pairs separated by a tab' if pairs else 'single texts without tabs'}: {text!r}")
tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
tokenizer.enable_truncation(manifest["options"]["sequence_length"])
tokenizer.enable_padding()
session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])

encoded = tokenizer.encode_batch([tuple(text.split("\t", 1)) if pairs else text for text in texts])
columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
inputs = {
    name: np.array([getattr(text, column) for text in encoded], np.int64)
    for name, column in columns.items()
    if name in {value.name for value in session.get_inputs()}
}
(logits,) = session.run(["logits"], inputs)
if manifest["problem_type"] == "multi_label_classification":
    scores = 1 / (1 + np.exp(-logits))
else:
    scores = np.exp(logits - logits.max(-1, keepdims=True))
    scores /= scores.sum(-1, keepdims=True)
for text, row in zip(texts, scores):
    best = int(row.argmax())
    print(f"{manifest['labels'][best]}\t{row[best]:.4f}\t{text}")
