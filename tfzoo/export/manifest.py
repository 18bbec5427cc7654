"""manifest.json, the description of an artifact. export/README.md documents it and export/verify.py reads it.

Importing this module does not import TensorFlow: the embedded server reads manifests, too.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tfzoo import files, json_files
from tfzoo.errors import UserError, one_line
from tfzoo.export import verify
from tfzoo.json_files import Field, Fields

if TYPE_CHECKING:
    from tfzoo.export.interface import Signature
    from tfzoo.export.precision import Limits

NAME = "manifest.json"
FORMAT = "tfzoo-artifact-1"

_MOST = 2**31 - 1
_STRINGS = Field(list, items=Field(str), null=False)
_ID = Field(int, low=0, high=_MOST, null=False)
# The fields that tfzoo reads, beside those that verify.py checks.
_FIELDS: Fields = {
    "model": Field(dict, required=True),
    "options": Field(dict, required=True),
    "texts": _STRINGS,
    "frame": Field(list, items=Field(dict), null=False),
    "markers": _STRINGS,
    "further_inputs": _STRINGS,
    "labels": _STRINGS,
    "problem_type": Field(
        str, choices=("single_label_classification", "multi_label_classification", "regression"), null=False
    ),
    "no_answer_threshold": Field(float),
    "tokenizer": Field(dict, null=False),
    "prompt": Field(str, null=False),
    "prompt_tokens": _ID,
    "lowercase": Field(bool, null=False),
    "decoder_start_token_id": _ID,
    "generation": Field(dict, null=False),
    "profile": Field(str, null=False),
    "variants": Field(dict, null=False),
}
_MODEL: Fields = {
    "heads": Field(list, items=Field(str), required=True),
    "config": Field(dict, required=True),
}
_CONFIG: Fields = {
    "vocab_size": Field(int, low=1, high=_MOST),
    "num_segments": Field(int, low=0, high=_MOST),
    "max_positions": Field(int, low=0, high=_MOST),
    "positions": Field(str),
}
_OPTIONS: Fields = {
    "sequence_length": Field(int, low=1, high=_MOST, required=True),
    "long_texts": Field(str, choices=("truncate", "refuse"), required=True),
    "refuse": Field(str, choices=("call", "row"), required=True),
    "pooling": Field(str, choices=("mean", "first", "last", "pooled")),  # null: mean.
    "max_new_tokens": Field(int, low=1, high=_MOST, null=False),
    "messages": Field(bool, null=False),
    "search": Field(dict, null=False),
}
_PART: Fields = {
    "id": _ID,
    "text": Field(str, choices=("text", "text_pair"), null=False),
    "segment": Field(int, low=0, high=_MOST, required=True),
}
_TOKENIZER: Fields = {"fingerprint": Field(str, null=False)}
_GENERATION: Fields = {"eos_token_id": (_ID, Field(list, items=_ID))}


def signatures(given: "Mapping[str, Signature]", limits: "Limits") -> dict[str, Any]:
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


def write(folder: pathlib.Path, content: dict[str, Any], listed: dict[str, Any] | None = None) -> dict[str, Any]:
    """Writes manifest.json: `content`, the folder's listing (`listed` if it is known), and the SHA-256 of the file
    itself, computed with that field empty. Returns the listing."""
    listed = listing(folder) if listed is None else listed
    content = {"format": FORMAT, **content, "files": listed, "manifest_sha256": ""}
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    text = text.replace('"manifest_sha256": ""', f'"manifest_sha256": "{digest}"')
    files.atomic_write(folder / NAME, text)
    return listed


def read(folder: pathlib.Path, whole: bool = True) -> dict[str, Any]:
    """Returns the content of manifest.json after checking the types and ranges of the fields that tfzoo reads.

    Args:
      folder: the artifact.
      whole: whether to compare the artifact's files with those that the manifest lists, which reads all of them.

    Raises:
      UserError: the manifest or a file is missing or damaged, or a field has another type or is out of bounds.
    """
    path = folder / NAME
    try:
        content = verify.read_manifest(folder)
        if whole:
            verify.check_files(folder, content["files"])
    except (verify.Failure, ValueError, LookupError, OSError) as error:
        raise UserError(f"{folder}: is damaged ({one_line(error)}); export the model again") from None
    json_files.read(path)  # Rejects what Python's parser accepts, such as duplicate keys.
    json_files.check(content, _FIELDS, path)
    for name, sides in content["signatures"].items():
        if not all(isinstance(tensors, dict) and tensors for tensors in sides.values()):
            raise UserError(f"{path}: signatures: {name} has no inputs or no outputs; export the model again")
    json_files.check(content["model"], _MODEL, f"{path}: model")
    json_files.check(content["model"]["config"], _CONFIG, f"{path}: model: config")
    json_files.check(content["options"], _OPTIONS, f"{path}: options")
    json_files.check(content.get("generation", {}), _GENERATION, f"{path}: generation")
    json_files.check(content.get("tokenizer", {}), _TOKENIZER, f"{path}: tokenizer")
    for part in content.get("frame", ()):
        json_files.check(part, _PART, f"{path}: frame")
        if ("id" in part) == ("text" in part):
            raise UserError(f"{path}: frame: {json_files.show(part)} is not an id or a text; export the model again")
    return content
