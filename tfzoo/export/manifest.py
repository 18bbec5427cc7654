"""manifest.json, the description of an artifact. export/README.md documents it and export/verify.py reads it."""

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
    """Returns the versions of tfzoo, Python and the packages that write artifacts."""
    packages = ("tensorflow", "tensorflow-text", "keras", "numpy", "onnx", "onnxruntime")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"tfzoo": tfzoo.__version__, "python": platform.python_version(), **versions}


def signatures(given: Mapping[str, Signature], limits: Limits) -> dict[str, Any]:
    """Returns the manifest's `signatures` and the `tolerances` of their numeric outputs."""
    numbers = {
        name: [output for output, tensor in signature.outputs.items() if tensor.dtype == "float32"]
        for name, signature in given.items()
    }
    return {
        "signatures": {name: signature.stated() for name, signature in given.items()},
        "tolerances": {name: limits.of(outputs) for name, outputs in numbers.items()},
    }


def listing(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Returns every file under `folder` except the manifest, with its size and SHA-256."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / NAME)
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
        for path in paths
    }


def write(folder: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes manifest.json: `content`, the folder's listing, and the SHA-256 of the file itself, computed with that
    field empty."""
    content = {"format": FORMAT, **content, "files": listing(folder), "manifest_sha256": ""}
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    text = text.replace('"manifest_sha256": ""', f'"manifest_sha256": "{digest}"')
    files.atomic_write(folder / NAME, text)
