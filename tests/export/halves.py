"""A small ONNX artifact that halves its ids, made without TensorFlow, for tests that change it."""

import hashlib
import json
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

LENGTH = 32


def graph(nodes=None, initializers=(), functions=(), opsets=()) -> onnx.ModelProto:
    """Returns a graph that halves ids; `nodes` compute `half` from `x` [batch, sequence], float32."""
    axes = ["batch", "sequence"]
    nodes = nodes or [helper.make_node("Mul", ["x", "factor"], ["half"])]
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        *nodes,
        helper.make_node("Mul", ["half", "mask"], ["logits"]),
    ]
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.INT64, axes) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, axes)],
        [helper.make_tensor("factor", TensorProto.FLOAT, [], [0.5]), *initializers],
    )
    imports = [helper.make_opsetid("", 18), *(helper.make_opsetid(domain, 1) for domain in opsets)]
    return helper.make_model(made, opset_imports=imports, ir_version=9, functions=functions)


def golden() -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for rows, length in ((1, 2), (3, 8), (2, LENGTH)):
        ids = np.arange(rows * length).reshape(rows, length)
        mask = np.arange(length) < np.linspace(length, length // 3, rows)[:, None]
        sides: dict[str, np.ndarray] = {"inputs/input_ids": ids, "inputs/attention_mask": mask.astype(np.int64)}
        sides |= {"outputs/logits/values": (ids * mask / 2).astype(np.float32), "outputs/logits/real": mask}
        arrays |= {f"tokens/{rows}x{length}/{name}": value for name, value in sides.items()}
    return arrays


def describe() -> dict[str, Any]:
    ids = {"dtype": "int64", "shape": ["batch", "sequence"]}
    sides = {"inputs": {"input_ids": ids, "attention_mask": ids}, "outputs": {"logits": ids | {"dtype": "float32"}}}
    return {
        "format": "tfzoo-artifact-1", "kind": "onnx", "name": "half", "version": 1, "signatures": {"model": sides},
        "tolerances": {"tokens": {"logits": {"of": "largest", "allowed": 2e-5}}},
        "options": {"sequence_length": LENGTH},
    }  # fmt: skip


def write(
    place: pathlib.Path,
    content: onnx.ModelProto | bytes | None = None,
    manifest: Mapping[str, Any] | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
    name: str = "1",
    change: Callable[[pathlib.Path], Any] | None = None,
) -> pathlib.Path:
    """Writes an artifact in a new folder in `place`. Its manifest matches its files, also after `change`."""
    folder = pathlib.Path(tempfile.mkdtemp(dir=place)) / name
    folder.mkdir(parents=True)
    content = graph() if content is None else content
    (folder / "model.onnx").write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    np.savez(folder / "golden.npz", **dict[str, Any](golden() if arrays is None else arrays))
    if change:
        change(folder)
    sign(folder, describe() if manifest is None else manifest)
    return folder


def sign(folder: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    files = {
        path.relative_to(folder).as_posix(): {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in folder.rglob("*")
        if path.is_file()
    }
    text = json.dumps({**manifest, "files": files, "manifest_sha256": ""})
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json").write_text(
        text.replace('"manifest_sha256": ""', f'"manifest_sha256": "{digest}"'), encoding="utf-8"
    )
