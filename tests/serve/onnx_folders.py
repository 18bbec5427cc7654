"""Folders with ONNX graphs whose answers follow from a formula; nothing here imports TensorFlow."""

import hashlib
import json
import pathlib

import numpy as np
import onnx
import tokenizers
from onnx import TensorProto, helper

from tfzoo.text import sentencepiece_proto
from tfzoo.text.sentencepiece_proto import CONTROL, NORMAL, UNIGRAM, UNKNOWN

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "bad", "good", "film"]
LABELS = ["negative", "positive"]
# A token's logits; those of a text are the sums over its tokens.
LOGITS = np.array([[0, 0], [0.5, 0], [0, 0], [0.25, 0], [2, -1], [-1, 3], [0.5, 0.5]], np.float32)
FRAME = [{"id": 1, "segment": 0}, {"text": "text", "segment": 0}, {"id": 2, "segment": 0}]
LENGTH = 6  # Maximum number of tokens of a text.


def _save(path: pathlib.Path, nodes, inputs, outputs, constants) -> None:
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def save_linear(folder: pathlib.Path, bias: float) -> None:
    """Writes model.onnx: y = x / 2 + bias, for x of the shape [B]."""
    folder.mkdir(parents=True)
    nodes = [helper.make_node("Mul", ["x", "slope"], ["product"]), helper.make_node("Add", ["product", "bias"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch"]) for name in "xy")
    _save(folder / "model.onnx", nodes, [x], [y], {"slope": np.float32(0.5), "bias": np.float32(bias)})


def expected(*texts: str) -> np.ndarray:
    """Returns the probabilities that the classifier gives."""
    logits = []
    for text in texts:
        ids = [WORDS.index(word) if word in WORDS else 3 for word in text.split()][: LENGTH - 2]
        logits.append(LOGITS[[1, *ids, 2]].sum(0))
    exponentials = np.exp(np.array(logits))
    return exponentials / exponentials.sum(1, keepdims=True)


def _save_tokenizer(folder: pathlib.Path) -> None:
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")


def _save_sentencepiece(folder: pathlib.Path) -> None:
    """Writes a model with the ids of WORDS, of ALBERT's kind."""
    types = [CONTROL, CONTROL, CONTROL, UNKNOWN, NORMAL, NORMAL, NORMAL]
    pieces = [((word if i < 4 else f"\u2581{word}").encode(), -1.0, types[i]) for i, word in enumerate(WORDS)]
    # normalizer_spec (3): add_dummy_prefix (3), remove_extra_whitespaces (4) and escape_whitespaces (5).
    spaces = bytes([3 << 3 | 2, 6, 3 << 3, 1, 4 << 3, 1, 5 << 3, 1])
    (folder / "spiece.model").write_bytes(sentencepiece_proto.write(pieces, UNIGRAM) + spaces)
    roles = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]"}
    config = {"tokenizer_class": "AlbertTokenizer"} | {f"{role}_token": token for role, token in roles.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def save_classifier(
    folder: pathlib.Path, refuse: str = "call", long_texts: str = "truncate", sentencepiece: bool = False
) -> None:
    """Writes an artifact that classifies texts as LOGITS say."""
    (folder / "tokenizer").mkdir(parents=True)
    nodes = [
        helper.make_node("Gather", ["logits_of_tokens", "input_ids"], ["each"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["masks"]),
        helper.make_node("Mul", ["each", "masks"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "second"], ["logits"], keepdims=0),
    ]
    axes = ["batch", "sequence"]
    names = ("input_ids", "attention_mask")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, axes) for name in names]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    constants = {"logits_of_tokens": LOGITS, "last": np.array([-1]), "second": np.array([1])}
    _save(folder / "model.onnx", nodes, inputs, [logits], constants)
    (_save_sentencepiece if sentencepiece else _save_tokenizer)(folder / "tokenizer")
    files = {
        path.relative_to(folder).as_posix(): {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in folder.rglob("*")
        if path.is_file()
    }
    signature = {
        "inputs": {name: {"dtype": "int64", "shape": axes} for name in names},
        "outputs": {"logits": {"dtype": "float32", "shape": ["batch", 2]}},
    }
    content = {
        "format": "tfzoo-artifact-1",
        "kind": "onnx",
        "name": "films",
        "version": 1,
        "tolerances": {},
        "signatures": {"model": signature},
        "model": {"heads": ["classify"], "config": {"vocab_size": len(WORDS), "num_segments": 0}},
        "labels": LABELS,
        "texts": ["text"],
        **({"frame": FRAME} if sentencepiece else {}),
        "problem_type": "single_label_classification",
        "options": {"sequence_length": LENGTH, "long_texts": long_texts, "refuse": refuse},
        "files": files,
        "manifest_sha256": "",
    }
    # The checksum is that of the text without the checksum.
    checksum = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(content | {"manifest_sha256": checksum}))
