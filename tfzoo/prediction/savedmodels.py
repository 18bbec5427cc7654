"""Answers of an exported SavedModel: its signature serving_default."""

import importlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfzoo.errors import UserError
from tfzoo.export import verify
from tfzoo.prediction import answers
from tfzoo.prediction.models import in_flight, on
from tfzoo.prediction.predictor import Predictor, task_of
from tfzoo.text import marked


class SavedModelPredictor(Predictor):
    """Answers with the text signature of a SavedModel.

    Args:
      folder: the artifact.
      manifest: the content of its manifest.json.
      devices: see ModelPredictor.

    Raises:
      UserError: the artifact does not answer texts.
    """

    def __init__(self, folder: str | os.PathLike, manifest: Mapping[str, Any], devices: Sequence[str] = ()):
        stated = manifest["signatures"].get("serving_default")
        if stated is None or any(tensor["dtype"] != "string" for tensor in stated["inputs"].values()):
            raise UserError(f"--model_dir={folder}: reads token ids, not texts; export the model with its tokenizer")
        if "generation" in manifest and "decoder_start_token_id" not in manifest:
            raise UserError(
                f"--model_dir={folder}: continues texts; use its signature generate, or python -m tfzoo.generate"
            )
        if {*manifest.get("texts", ())} != {*stated["inputs"]}:
            raise UserError(
                f"--model_dir={folder}: manifest.json: texts does not name the inputs of serving_default; export the "
                "model again"
            )
        importlib.import_module("tensorflow_text")  # Registers the operations of tokenizers.
        try:
            verify.check_saved_model(pathlib.Path(folder), manifest["signatures"])
        except verify.Failure as error:
            raise UserError(f"--model_dir={folder}: {error}; use models from sources that you trust") from None
        self._devices = tuple(devices) or (None,)
        self.num_devices, self.in_flight = len(self._devices), in_flight()
        self._signatures = []
        for device in self._devices:
            with on(device):
                loaded = tf.saved_model.load(os.fspath(folder))
                self._signatures.append((loaded, loaded.signatures["serving_default"]))
        heads, options = manifest["model"]["heads"], manifest["options"]
        self.task = task_of(heads)
        self.inputs, self.length = tuple(manifest["texts"]), options["sequence_length"]
        self.has_offsets = self.task != "tag" or "starts" in stated["outputs"]
        self._several = manifest.get("problem_type") == "multi_label_classification"
        self.no_answer_threshold = manifest.get("no_answer_threshold")
        self._refuses_calls = options["long_texts"] == "refuse" and options["refuse"] == "call"
        self._too_long = answers.too_long(self.length)
        self._fingerprint = manifest["manifest_sha256"]

    def fingerprint(self) -> str:
        return self._fingerprint

    def answer(self, texts: Sequence[Sequence[str]], device: int = 0) -> list[answers.Record]:
        columns = {name: tf.constant(column) for name, column in zip(self.inputs, zip(*texts))}
        try:
            with on(self._devices[device]):
                outputs = self._signatures[device][1](**columns)
        except tf.errors.InvalidArgumentError as refusal:
            reasons = [marked.UNMARKED] if self.task == "relation" else []
            reasons += [self._too_long] if self._refuses_calls else []
            found = [reason for reason in reasons if reason in refusal.message]
            if not found:
                raise
            if len(texts) == 1:
                return [answers.refused(found[0])]
            half = len(texts) // 2
            return self.answer(texts[:half], device) + self.answer(texts[half:], device)
        return answers.records({name: value.numpy() for name, value in outputs.items()}, self._several)
