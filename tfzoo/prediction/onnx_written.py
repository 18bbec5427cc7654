"""Texts written by an exported encoder-decoder with onnxruntime: the answers of its SavedModel's serving_default."""

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from tfzoo.errors import UserError
from tfzoo.onnx_decoding.writer import OnnxWriter
from tfzoo.prediction import answers
from tfzoo.prediction.predictor import Predictor


class OnnxWritten(Predictor):
    """Answers texts with the graphs of an ONNX artifact.

    Args:
      folder: the artifact.
      manifest: the content of its manifest.json.

    Raises:
      UserError: the artifact continues texts, or cannot be read.
    """

    task = "lm"

    def __init__(self, folder: str | os.PathLike, manifest: Mapping[str, Any]):
        if "decoder_start_token_id" not in manifest:
            raise UserError(f"--model_dir={folder}: continues texts; use python -m tfzoo.generate")
        self._writer = OnnxWriter(folder, manifest)
        self.inputs, self.length = tuple(manifest["texts"]), self._writer.length
        self._prompt, self._refuses = manifest.get("prompt", ""), manifest["options"]["long_texts"] == "refuse"
        self._room = self.length - len(self._writer.tokenizer.framed(()))
        self._fingerprint = manifest["manifest_sha256"]
        self._lock = threading.Lock()

    def fingerprint(self) -> str:
        return self._fingerprint

    def answer(self, texts: Sequence[Sequence[str]], device: int = 0) -> list[answers.Record]:
        rows = self._writer.encode([self._prompt + text for (text,) in texts])
        framed = [self._writer.tokenizer.framed(ids[: self._room]) for ids in rows]
        with self._lock:
            written = self._writer.generate_from(framed)
        records: list[answers.Record] = []
        for ids, one in zip(rows, written, strict=True):
            if len(ids) <= self._room:
                records.append({"generated_text": one.text})
            elif self._refuses:
                records.append(answers.refused(answers.too_long(self.length)))
            else:
                records.append({"generated_text": one.text, "truncated": True})
        return records
