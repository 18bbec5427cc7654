"""An artifact from a model: written beside its place, replayed by another process, only then put there."""

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import onnx
import onnx.checker
from onnx.reference import ReferenceEvaluator

from tfzoo import files
from tfzoo.errors import CheckFailed, UserError
from tfzoo.export import golden, manifest, onnx_emit, savedmodel, verify
from tfzoo.models import bert
from tfzoo.text.wordpiece import WordPiece

FORMATS = ("savedmodel", "onnx")
# Ours, and Hugging Face's.
ONNX_NAMES = {"token_ids": "input_ids", "padding_mask": "attention_mask", "segment_ids": "token_type_ids"}


def export(
    model: keras.Model,
    tokenizer: WordPiece,
    output_dir: str | os.PathLike,
    name: str = "bert",
    version: int | None = None,
    formats: Sequence[str] = FORMATS,
) -> dict[str, pathlib.Path]:
    """Writes OUTPUT_DIR/FORMAT/NAME/VERSION/ for each format. None appears before all have been replayed.

    Args:
      version: the next free one where it is None.

    Returns:
      format -> folder.

    Raises:
      UserError: a model, name, version or format that cannot be exported.
      CheckFailed: an artifact does not answer as the model does. Nothing is left behind.
    """
    _check_arguments(model, tokenizer, name, version, formats)
    parents = {kind: pathlib.Path(output_dir, kind, name) for kind in formats}
    if version is None:
        version = 1 + max((v for parent in parents.values() for v in _versions(parent)), default=0)
    folders = {kind: parent / str(version) for kind, parent in parents.items()}
    for folder in folders.values():
        if folder.exists():
            raise UserError(f"--version={version}: {folder} exists already; choose another, or leave the flag out")

    model = _float32(model)
    with contextlib.ExitStack() as stack:
        partials = {}
        for kind, folder in folders.items():
            stack.enter_context(_new_parents(folder.parent))
            partials[kind] = stack.enter_context(files.atomic_folder(folder))
        for kind, partial in partials.items():
            _write(kind, model, tokenizer, partial, name, version)
        _replay_elsewhere(list(partials.values()))
    return folders


def _check_arguments(model, tokenizer, name, version, formats) -> None:
    if not isinstance(model, bert.Model):
        raise UserError(f"{type(model).__module__}.{type(model).__name__} cannot be exported; BERT can")
    savedmodel.check(model.config, tokenizer)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(f"--name={name}: must be of letters, digits, _, . and -, and begin with one of the first two")
    if version is not None and version < 1:
        raise UserError(f"--version={version}: must be at least 1")
    if not formats or len(set(formats)) < len(formats):
        raise UserError(f"--formats={','.join(formats)}: name at least one of {', '.join(FORMATS)}, each once")
    for kind in formats:
        if kind not in FORMATS:
            raise UserError(f"--formats={kind}: no such format; the formats are {', '.join(FORMATS)}")


def _versions(parent: pathlib.Path) -> list[int]:
    return [int(path.name) for path in parent.glob("*") if path.name.isdecimal()]


def _float32(model: keras.Model) -> keras.Model:
    """The model with float32 arithmetic; its weights are float32 under every policy."""
    if model.compute_dtype == "float32":
        return model
    twin = type(model)(model.config, dtype="float32", name=model.name)
    twin.set_weights(model.get_weights())
    return twin


@contextlib.contextmanager
def _new_parents(folder: pathlib.Path) -> Iterator[None]:
    """Makes a folder and those it stands in; takes the new ones away again if the block fails."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in new:
            with contextlib.suppress(OSError):  # Something else has been put in there.
                path.rmdir()
        raise


def _write(kind: str, model: keras.Model, tokenizer: WordPiece, folder: pathlib.Path, name: str, version: int) -> None:
    """Fills a folder with an artifact and checks it here, where a failure is easiest to understand."""
    signatures, arrays, opsets = _WRITERS[kind](model, tokenizer, folder)
    golden.write(folder / "golden.npz", arrays)
    shutil.copyfile(verify.__file__, folder / "verify.py")
    limits = golden.tolerances(model.config.num_layers)
    content = {
        "kind": kind,
        "name": name,
        "version": version,
        "signatures": signatures,
        **({"opset": opsets} if opsets else {}),
        "model": {
            "family": "bert",
            "parameters": model.count_params(),
            "config": dataclasses.asdict(model.config),
        },
        "tokenizer": {
            "class": type(tokenizer).__name__,
            "lowercase": tokenizer.lowercase,
            "fingerprint": tokenizer.fingerprint(),
        },
        "tools": manifest.tools(),
        "tolerances": {
            signature: {output: limits[output] for output in sides["outputs"] if output in limits}
            for signature, sides in signatures.items()
        },
    }
    try:
        content["measured"] = verify.replay(folder, content)
    except Exception as error:  # A graph that is wrong may fail in any way.
        raise CheckFailed(f"the {kind} of {name} does not answer as the model does: {_line(error)}") from error
    manifest.write(folder, content)


def _write_savedmodel(model, tokenizer, folder):
    savedmodel.save(model, tokenizer, folder)
    arrays = {
        "serving_default": {
            case: {"inputs": {"text": np.array(texts, "U")}, "outputs": golden.words(model, tokenizer, texts)}
            for case, texts in golden.text_cases(model).items()
        },
        "tokens": {
            case: {"inputs": inputs, "outputs": {"logits": golden.logits(model, inputs)}}
            for case, inputs in golden.token_cases(model, tokenizer).items()
        },
    }
    return savedmodel.signatures(model.config, tokenizer), arrays, None


def _write_onnx(model, tokenizer, folder):
    graph = onnx_emit.emit(model)
    path = folder / "model.onnx"
    onnx.save_model(graph, path)
    arrays = {
        case: {
            "inputs": {ONNX_NAMES[name]: value.astype(np.int64) for name, value in inputs.items()},
            "outputs": {"logits": golden.logits(model, inputs)},
        }
        for case, inputs in golden.token_cases(model, tokenizer).items()
    }
    _check_onnx(path, graph, min(arrays.values(), key=lambda case: case["inputs"]["input_ids"].size))
    tokenizer.save(folder / "tokenizer")  # Whoever runs the graph needs it for text.
    outside = savedmodel.signatures(model.config, tokenizer)["tokens"]
    inputs = {ONNX_NAMES[name]: tensor | {"dtype": "int64"} for name, tensor in outside["inputs"].items()}
    opsets = {opset.domain or "ai.onnx": opset.version for opset in graph.opset_import}
    return {"tokens": outside | {"inputs": inputs}}, {"tokens": arrays}, opsets


_WRITERS = {"savedmodel": _write_savedmodel, "onnx": _write_onnx}


def _check_onnx(path: pathlib.Path, graph: onnx.ModelProto, case: dict) -> None:
    """ONNX's own checker, and its reference implementation on the smallest case."""
    try:
        onnx.checker.check_model(path, full_check=True)
        (got,) = ReferenceEvaluator(graph).run(["logits"], case["inputs"])
        verify.compare(got, case["outputs"]["logits"], 1e-4)
    except Exception as error:
        raise CheckFailed(f"the ONNX graph does not pass ONNX's own checks: {_line(error)}") from error


def _line(error: Exception) -> str:
    """One line, and no longer than one can read."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def _replay_elsewhere(folders: Sequence[pathlib.Path]) -> None:
    """Runs export/verify.py, of which each artifact has a copy, in a process that has nothing of this one.

    Raises:
      CheckFailed: an artifact fails, or cannot be replayed.
    """
    # -P: what stands beside verify.py is ours, and is not to be imported.
    command = [sys.executable, "-P", verify.__file__, *map(os.fspath, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("FAILED", "error:"))]
        why = "; ".join(lines) or (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckFailed(f"nothing published: verify.py ended with code {done.returncode}: {why}")
