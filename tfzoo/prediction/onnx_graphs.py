"""Answers of an exported ONNX graph, with numpy, onnxruntime, tokenizers and sentencepiece instead of TensorFlow.

onnx_texts reads the texts, and decoding computes the answers of tfzoo.export.answers.
"""

import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfzoo.errors import UserError, one_line
from tfzoo.onnx_decoding.sessions import open_session
from tfzoo.prediction import answers, decoding, onnx_texts
from tfzoo.prediction.predictor import Predictor, task_of


class OnnxPredictor(Predictor):
    """Answers with the graph of an ONNX artifact.

    Args:
      folder: the artifact.
      manifest: the content of its manifest.json.
      num_devices: the number of sessions; on a machine with CUDA, session i computes on GPU i.
      sessions: open sessions of the graph to use instead of opening `num_devices` of them.

    Attributes:
      locates_parts: whether the parts of texts in answers have the fields start and end.

    Raises:
      UserError: the artifact does not answer texts, or its tokenizer cannot be used.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        manifest: Mapping[str, Any],
        num_devices: int = 1,
        sessions: Sequence[Any] = (),
    ):
        folder = pathlib.Path(folder)
        heads, options = manifest["model"]["heads"], manifest["options"]
        inputs = set(manifest["signatures"].get("model", {}).get("inputs", {"none": None}))
        inputs |= {*manifest.get("further_inputs", ())}
        known = {*onnx_texts.INPUTS} - (set() if "decoder_start_token_id" in manifest else {"decoder_input_ids"})
        if "generation" in manifest or not inputs <= known:
            raise UserError(
                f"--model_dir={folder}: the graph needs a program of its own (inputs: {', '.join(sorted(inputs))}); "
                "specify the SavedModel of this model"
            )
        self.task, self.inputs, self.length = (
            task_of(heads),
            tuple(manifest.get("texts", ())),
            options["sequence_length"],
        )
        if self.task not in decoding.HEADS or not self.inputs:
            raise UserError(
                f"--model_dir={folder}: has no head that answers texts; specify the SavedModel of this model"
            )
        for field in decoding.FIELDS.get(self.task, ()):
            if not manifest.get(field):
                raise UserError(f"--model_dir={folder}: manifest.json has no {field}; export the model again")
        self._texts = onnx_texts.texts_of(folder, manifest, self.task)
        self.locates_parts = self._texts.has_offsets
        self.has_offsets = self.locates_parts or self.task != "tag"
        vocabulary, most = self._texts.vocabulary(), manifest["model"]["config"].get("vocab_size", math.inf)
        if len(vocabulary.pieces) > most:
            raise UserError(
                f"--model_dir={folder}: its tokenizer has {len(vocabulary.pieces)} tokens, more than the model's "
                f"{most}; export the model again"
            )
        self._decode: Callable = decoding.HEADS[self.task](manifest, vocabulary)
        stated = next(iter(manifest["signatures"]["model"]["inputs"].values()))["shape"]
        self._fixed = stated[1] if len(stated) == 2 else None
        self._refuses = options["long_texts"] == "refuse"
        self.no_answer_threshold = manifest.get("no_answer_threshold")
        self.num_devices, self._fingerprint = num_devices, manifest["manifest_sha256"]
        self._sessions = list(sessions) or [open_session(folder / "model.onnx", i) for i in range(num_devices)]
        self._names = [value.name for value in self._sessions[0].get_inputs()]

    def fingerprint(self) -> str:
        return self._fingerprint

    def answer(self, texts: Sequence[Sequence[str]], device: int = 0) -> list[answers.Record]:
        read = self._texts.read(texts, self._fixed if isinstance(self._fixed, int) else None)
        session = self._sessions[device]
        outputs = [value.name for value in session.get_outputs()]
        feeds = {name: getattr(read, onnx_texts.INPUTS[name]).astype(np.int64) for name in self._names}
        try:
            values = session.run(outputs, feeds)
        except Exception as error:  # onnxruntime's errors have no common class.
            raise UserError(f"model.onnx fails ({one_line(error)}); export the model again") from None
        records = self._decode(dict(zip(outputs, values)), read)
        for record, truncated, refusal in zip(records, read.truncated, read.errors):
            if truncated and self._refuses:
                refusal = answers.too_long(self.length)
            if refusal:
                record.clear()
                record |= answers.refused(refusal)
            elif truncated:
                record["truncated"] = True
        return records
