"""What runs a model that writes text: TensorFlow, or onnxruntime for an exported ONNX artifact."""

import sys
from collections.abc import Mapping
from typing import Any

from tfzoo import progress
from tfzoo.errors import UserError
from tfzoo.model_dir import ModelDir
from tfzoo.prediction import folders

ENGINES = ("auto", "tensorflow", "onnx")


def open_writer(source: ModelDir, engine: str, variant: str | None) -> Any:
    """Returns what writes texts with the model of --model_dir: a generation.texts.ModelWriter, or an OnnxWriter for an
    ONNX artifact. If `engine` is "auto", a line on stderr names the engine and the reason.

    Args:
      source: the model.
      engine: one of ENGINES.
      variant: the variant of an ONNX artifact; None runs its float32 graphs.

    Raises:
      UserError: the engine or the variant does not fit the folder, or the folder contains no model that writes text.
    """
    manifest = onnx_manifest(source, variant)
    if engine == "onnx" and manifest is None:
        raise UserError(
            f"--engine=onnx: {source.model_dir} is not an ONNX artifact; export it with python -m tfzoo.export "
            "--formats=onnx and specify the artifact"
        )
    if engine == "tensorflow" and manifest is not None:
        raise UserError(
            f"--engine=tensorflow: {source.model_dir} is an ONNX artifact; specify the run or model of which it is an "
            "export"
        )
    if manifest is not None:
        from tfzoo.onnx_decoding.writer import OnnxWriter

        with progress.stage(f"reading {source.model_dir}"):
            writer: Any = OnnxWriter(source.folder, manifest, variant)
        reason = f"is an ONNX artifact (graphs: {variant or 'float32'})"
    else:
        model, tokenizer = source.load()
        from tfzoo.generation.texts import ModelWriter

        writer, reason = ModelWriter(model, tokenizer), "is not an ONNX artifact"
    if engine == "auto":
        name = "tensorflow" if manifest is None else "onnx"
        print(f"engine: {name}, because {source.model_dir} {reason}", file=sys.stderr, flush=True)
    return writer


def onnx_manifest(source: ModelDir, variant: str | None) -> Mapping[str, Any] | None:
    """Returns the manifest of the ONNX artifact in --model_dir; None for a run or the folder of a model.

    Raises:
      UserError: the folder is an artifact of another kind, or an option does not apply to it.
    """
    manifest = folders.manifest_of(source.folder)
    if manifest is None:
        if variant is not None:
            raise UserError(f"--onnx_variant={variant}: {source.model_dir} is not an ONNX artifact; omit it")
        return None
    if manifest["kind"] != "onnx":
        raise UserError(
            f"--model_dir={source.model_dir}: is a SavedModel artifact, which tfzoo.predict or a server runs; specify "
            "the model or its ONNX artifact"
        )
    given = {"checkpoint": source.checkpoint, "weights": None if source.weights == "float32" else source.weights}
    for name, value in given.items():
        if value is not None:
            raise UserError(f"--{name}={value}: does not apply to an ONNX artifact; omit it, or use --onnx_variant")
    return manifest
