"""Answers of an exported ONNX graph, with numpy, onnxruntime and tokenizers instead of TensorFlow.

tokenizer.json names the special tokens around a text; reading and truncation are those of tfzoo.text.reader, and the
answers those of tfzoo.export.answers.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from tfzoo import json_files
from tfzoo.errors import UserError, one_line
from tfzoo.json_files import Field
from tfzoo.onnx_decoding.sessions import open_session
from tfzoo.onnx_decoding.tokens import frame_of
from tfzoo.prediction import answers, decoding
from tfzoo.prediction.predictor import Predictor, task_of
from tfzoo.text import settings, untrusted
from tfzoo.text.components import schema
from tfzoo.text.settings import MAX_TOKENS

_ADDED = {"content": Field(str, required=True), "special": Field(bool, required=True)}
# The graph's inputs -> the attributes of Reading. The decoder of an encoder-decoder reads the text, too.
_INPUTS = {
    "input_ids": "ids",
    "attention_mask": "mask",
    "token_type_ids": "segments",
    "pooling_mask": "pooled",
    "decoder_input_ids": "shifted",
    "decoder_attention_mask": "shifted_mask",
}


class OnnxPredictor(Predictor):
    """Answers with the graph of an ONNX artifact.

    Args:
      folder: the artifact.
      manifest: the content of its manifest.json.
      num_devices: the number of sessions; on a machine with CUDA, session i computes on GPU i.
      sessions: open sessions of the graph to use instead of opening `num_devices` of them.

    Raises:
      UserError: the artifact does not answer texts, or has no tokenizer.json.
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
        known = {*_INPUTS} - (set() if "decoder_start_token_id" in manifest else {"decoder_input_ids"})
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
        self._texts = _Texts(folder / "tokenizer" / "tokenizer.json", manifest, len(self.inputs) > 1, self.task == "lm")
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
        feeds = {name: getattr(read, _INPUTS[name]).astype(np.int64) for name in self._names}
        try:
            values = session.run(outputs, feeds)
        except Exception as error:  # onnxruntime's errors have no common class.
            raise UserError(f"model.onnx fails ({one_line(error)}); export the model again") from None
        records = self._decode(dict(zip(outputs, values)), read)
        for record, truncated in zip(records, read.truncated):
            if truncated:
                record["truncated"] = True
                if self._refuses:
                    record.clear()
                    record |= {"truncated": True, "error": f"the text is longer than {self.length} tokens"}
        return records


@dataclasses.dataclass
class Reading:
    """A batch of texts as the graph reads it.

    Attributes:
      texts: the texts of each row.
      ids, mask, segments, pooled, shifted, shifted_mask: the graph's inputs, [B, L].
      of: [B, L], 1 + the number of the text that a token belongs to; 0 for special tokens and padding.
      starts, ends: [B, L], code points in the tokens' texts.
      truncated: bool [B].
      starts_special: whether rows begin with a special token.
    """

    texts: Sequence[Sequence[str]]
    ids: np.ndarray
    mask: np.ndarray
    segments: np.ndarray
    pooled: np.ndarray
    shifted: np.ndarray
    shifted_mask: np.ndarray
    of: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    truncated: np.ndarray
    starts_special: bool


class _Texts:
    """Texts to ids with tokenizer.json.

    Args:
      path: tokenizer.json of an artifact.
      manifest: the manifest of the artifact.
      pair: whether rows are pairs of texts.
      masks: whether the mask token is recognized where it is written in a text.
    """

    def __init__(self, path: pathlib.Path, manifest: Mapping[str, Any], pair: bool, masks: bool):
        if not path.is_file():
            raise UserError(
                f"--model_dir={path.parents[1]}: has no tokenizer/{path.name}, because the library tokenizers does not "
                "support this tokenizer; specify the SavedModel of this model"
            )
        record = schema.read(path)
        mask = settings.read(path.parent).get("mask_token")
        mask = mask["content"] if isinstance(mask, dict) else mask
        for token in record.get("added_tokens") or ():
            json_files.check(token, _ADDED, f"{path}: added_tokens")
            # Other special tokens are text where they are written in a text.
            token["special"] = token["special"] and not (masks and token["content"] == mask)
        with untrusted.library_errors(path):
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(record))
        self._path = path
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._record = record
        self.mask_id = None if mask is None else self._tokenizer.token_to_id(mask)
        self._pad_id = (record.get("padding") or {}).get("pad_id", 0)
        self._frame = frame_of(record.get("post_processor") or {}, pair, path)
        self._room = self._frame.room(manifest["options"]["sequence_length"])
        self._prompt, self._lowercase = manifest.get("prompt", ""), manifest.get("lowercase", False)
        self._prompt_tokens, self._start_id = (
            manifest.get("prompt_tokens", 0),
            manifest.get("decoder_start_token_id", 0),
        )

    def vocabulary(self) -> decoding.Vocabulary:
        """Returns the tokens of the tokenizer."""
        ids = [*self._tokenizer.get_vocab().values()]
        size = 1 + max(ids, default=-1)
        if size > MAX_TOKENS:
            raise UserError(f"{self._path}: has the id {size - 1}, but at most {MAX_TOKENS} tokens are supported")
        if len(set(ids)) < len(ids):
            raise UserError(f"{self._path}: two tokens have the same id; export the model again")
        pieces = [self._tokenizer.id_to_token(i) or "" for i in range(size)]
        special = [token["id"] for token in json.loads(self._tokenizer.to_str())["added_tokens"] if token["special"]]
        special += [i for i in (self.mask_id,) if i is not None]
        special += [i for i, piece in enumerate(pieces) if not piece]
        model = self._record["model"]
        continues = None
        if model.get("type") == "WordPiece":
            continues = np.array([piece.startswith(model["continuing_subword_prefix"]) for piece in pieces])
        return decoding.Vocabulary(pieces, continues, special, self.mask_id, self._decoded)

    def _decoded(self, ids: Sequence[int]) -> list[str]:
        return self._tokenizer.decode_batch([[i] for i in ids], skip_special_tokens=True)

    def read(self, texts: Sequence[Sequence[str]], fixed: int | None = None) -> Reading:
        """Reads rows; `fixed` is the length of rows that all have the same length."""
        rows = [(self._worded(row[0]), *row[1:]) for row in texts]
        with untrusted.library_errors(self._path):
            flat = self._tokenizer.encode_batch([text for row in rows for text in row], add_special_tokens=False)
        count = len(self._frame.texts)
        tokens = [flat[i * count : (i + 1) * count] for i in range(len(rows))]
        kept = [_cut([len(text.ids) for text in row], self._room) for row in tokens]
        special = len(self._frame.parts) - count
        length = fixed or max(1, special + max(map(sum, kept), default=0))
        columns = {name: np.zeros((len(rows), length), np.int32) for name in ("segments", "of", "starts", "ends")}
        ids, mask = np.full((len(rows), length), self._pad_id), np.zeros((len(rows), length), bool)
        for row, (encoded, sizes) in enumerate(zip(tokens, kept)):
            end = 0
            for part, segment in zip(self._frame.parts, self._frame.segments):
                if isinstance(part, str):
                    text = self._frame.texts.index(part)
                    places = slice(end, end := end + sizes[text])
                    if sizes[text]:
                        ids[row, places] = encoded[text].ids[: sizes[text]]
                        starts, ends = zip(*encoded[text].offsets[: sizes[text]])
                        columns["starts"][row, places], columns["ends"][row, places] = starts, ends
                    columns["of"][row, places] = 1 + text
                else:
                    places = slice(end, end := end + 1)
                    ids[row, places] = part
                columns["segments"][row, places] = segment
            mask[row, :end] = True
        truncated = np.array([sum(sizes) < sum(len(text.ids) for text in row) for row, sizes in zip(tokens, kept)])
        pooled = mask & (np.arange(length) >= self._prompt_tokens)
        shifted = np.concatenate([np.full_like(ids[:, :1], self._start_id), ids[:, :-1]], 1)
        shifted_mask = mask | (np.arange(length) == 0)
        inputs = dict(ids=ids, mask=mask, pooled=pooled, shifted=shifted, shifted_mask=shifted_mask, **columns)
        return Reading(rows, truncated=truncated, starts_special=isinstance(self._frame.parts[0], int), **inputs)

    def _worded(self, text: str) -> str:
        text = self._prompt + text
        return "".join(map(str.lower, text)) if self._lowercase else text


def _cut(lengths: Sequence[int], room: int) -> list[int]:
    """Returns the lengths after truncation: a text may use half of the room and what the other leaves."""
    if len(lengths) == 1:
        return [min(lengths[0], room)]
    first = min(lengths[0], max(room - lengths[1], (room + 1) // 2))
    return [first, min(lengths[1], room - first)]
