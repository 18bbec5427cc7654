"""Opens the folder of --model_dir as a Predictor: a run, a Hugging Face folder, a SavedModel or an ONNX artifact."""

import pathlib
from typing import Any

from tfzoo import hub, progress
from tfzoo.errors import UserError
from tfzoo.export import manifest as manifests
from tfzoo.prediction.predictor import Predictor

_OF_MODELS = ("flags.cfg", "config.json")  # Files of runs, and of Hugging Face folders.


def open_folder(
    model_dir: str | pathlib.Path,
    *,
    checkpoint: str | None = None,
    weights: str = "float32",
    num_devices: int = 1,
    sequence_length: int | None = None,
    pooling: str | None = None,
    prompt_name: str | None = None,
) -> Predictor:
    """Returns a predictor for a folder.

    Args:
      model_dir: the folder, or hf://NAME[@REVISION].
      checkpoint: the checkpoint of a run to read; None selects best/, or the newest.
      weights: how a model's weights are stored: float32, bfloat16 or int8.
      num_devices: the number of devices; 0 uses all GPUs. Without GPUs, this many virtual devices share the CPU.
      sequence_length, pooling, prompt_name: see models.ModelPredictor; for a fine-tuned run, sequence_length is that of
        its training by default.

    Raises:
      UserError: the folder contains no model that answers texts, an option does not apply to it, or the devices do not
        exist.
    """
    folder = hub.folder(model_dir)
    manifest = manifest_of(folder)
    if manifest is not None:
        given = dict(checkpoint=checkpoint, sequence_length=sequence_length, pooling=pooling, prompt_name=prompt_name)
        for name, value in (given | {"weights": None if weights == "float32" else weights}).items():
            if value is not None:
                raise UserError(f"--{name}={value}: does not apply to an exported artifact; omit it")
        if manifest["kind"] == "onnx":
            from tfzoo.prediction.onnx_graphs import OnnxPredictor
            from tfzoo.prediction.onnx_written import OnnxWritten

            with progress.stage(f"reading {model_dir}"):
                if "generation" in manifest:
                    if num_devices > 1:
                        raise UserError(f"--num_devices={num_devices}: texts are written on one device; omit it")
                    return OnnxWritten(folder, manifest)
                return OnnxPredictor(folder, manifest, max(1, num_devices))
    with progress.importing_tensorflow():
        from tfzoo.training import distribution
    devices = () if num_devices == 1 else distribution.devices(num_devices)
    if manifest is not None:
        with progress.stage(f"reading {model_dir}"):
            from tfzoo.prediction.savedmodels import SavedModelPredictor

            return SavedModelPredictor(folder, manifest, devices)
    with progress.importing_tensorflow():
        from tfzoo import nn
        from tfzoo.prediction import conversations
        from tfzoo.prediction.models import ModelPredictor
        from tfzoo.training import runs

    tuned = runs.task_of(folder)
    if tuned is not None and (kind := conversations.KINDS.get(tuned.name)):
        given = dict(sequence_length=sequence_length, pooling=pooling, prompt_name=prompt_name)
        for name, value in (given | {"num_devices": None if num_devices == 1 else num_devices}).items():
            if value is not None:
                raise UserError(f"--{name}={value}: does not apply to a run of the task {tuned.name}; omit it")
        with progress.stage(f"reading {model_dir}"):
            return kind(folder, checkpoint, weights)
    if sequence_length is None and tuned is not None:
        sequence_length = tuned.sequence_length

    def load():
        model, tokenizer = runs.load(folder, checkpoint)
        nn.store_weights(model, weights)
        return model, tokenizer

    prompt = f"{tuned.prefix} " if tuned is not None and tuned.prefix else ""
    options: dict[str, Any] = dict(
        prompt=prompt, sequence_length=sequence_length, pooling=pooling, prompt_name=prompt_name
    )
    with progress.stage(f"reading {model_dir}"):
        return ModelPredictor(load, devices, **options)


def manifest_of(folder: pathlib.Path) -> dict[str, Any] | None:
    """Returns the manifest of an artifact after checking it and its files; None for a run or the folder of a model.

    Raises:
      UserError: the folder is damaged, or is neither of them but contains artifacts.
    """
    if not (folder / manifests.NAME).is_file():
        if any((folder / name).is_file() for name in _OF_MODELS):
            return None
        if found := sorted(folder.glob(f"**/{manifests.NAME}")):
            raise UserError(
                f"--model_dir={folder}: contains artifacts, but is not one itself; specify the folder of one, such as "
                f"{found[-1].parent}"
            )
        if (folder / "saved_model.pb").is_file():
            raise UserError(f"--model_dir={folder}: has no {manifests.NAME}; specify a folder written by tfzoo.export")
        return None
    manifest = manifests.read(folder)
    if manifest["kind"] not in ("savedmodel", "onnx"):
        raise UserError(
            f"--model_dir={folder}: is a {manifest['kind']} artifact; specify the SavedModel or ONNX artifact"
        )
    return manifest
