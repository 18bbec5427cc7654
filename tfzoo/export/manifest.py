"""manifest.json: what an artifact is and holds. export/README.md describes it, export/verify.py reads it."""

import hashlib
import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import tfzoo
from tfzoo import files
from tfzoo.export.interface import Signature
from tfzoo.export.precision import Limits

NAME = "manifest.json"
FORMAT = "tfzoo-artifact-1"


def tools() -> dict[str, str]:
    """The versions that made an artifact."""
    packages = ("tensorflow", "tensorflow-text", "keras", "numpy", "onnx", "onnxruntime")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"tfzoo": tfzoo.__version__, "python": platform.python_version(), **versions}


def signatures(given: Mapping[str, Signature], limits: Limits) -> dict[str, Any]:
    """Signatures, and what may differ of their outputs."""
    numbers = {
        name: [output for output, tensor in signature.outputs.items() if tensor.dtype == "float32"]
        for name, signature in given.items()
    }
    return {
        "signatures": {name: signature.stated() for name, signature in given.items()},
        "tolerances": {name: limits.of(outputs) for name, outputs in numbers.items()},
    }


def listing(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Every file under `folder` but the manifest, with its size and SHA-256."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / NAME)
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
        for path in paths
    }


def write(folder: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes `content`, the folder's listing, and the SHA-256 that this file has with that field empty."""
    content = {"format": FORMAT, **content, "files": listing(folder), "manifest_sha256": ""}
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    text = text.replace('"manifest_sha256": ""', f'"manifest_sha256": "{digest}"')
    files.atomic_write(folder / NAME, text)
