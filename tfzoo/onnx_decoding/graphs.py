"""The graphs of an exported decoder or encoder-decoder: they read a batch of prompts, then one token of each text at a
time, and keep the keys and values in between.

Keys and values stay in onnxruntime's memory: a step's output is the next step's input. A graph of
--onnx_profile=genai writes them into the buffers from which it reads them, which have room for the longest text.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfzoo import lazy
from tfzoo.errors import UserError
from tfzoo.onnx_decoding.sessions import open_session

onnxruntime = lazy.module("onnxruntime")

DECODER, ENCODER, CROSS = "model", "encoder_model", "decoder_with_past_model"
_PAST, _PRESENT, _LOGITS = "past_key_values", "present", "logits"
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
# Prompts of at least this many tokens are read without their logits, except for the last token: the logits of a long
# prompt take more time and memory than a step.
_LONG = 32


class Graphs:
    """The sessions of an artifact that writes text.

    Args:
      sessions: {name of a graph: its onnxruntime.InferenceSession}.
      in_place: whether the graph writes keys and values into its inputs (--onnx_profile=genai).
      start: the token with which an encoder-decoder's texts begin; None for a decoder.
    """

    def __init__(self, sessions: Mapping[str, Any], in_place: bool = False, start: int | None = None):
        self._sessions, self.in_place, self.start = sessions, in_place, start
        self.session = sessions[DECODER if start is None else CROSS]
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.past = [
            name
            for name in self.inputs
            if name.startswith(_PAST) and name.replace(_PAST, _PRESENT) in self._outputs(self.session)
        ]
        self._without_logits = onnxruntime.RunOptions()
        self._without_logits.only_execute_path_to_fetches = True

    @staticmethod
    def _outputs(session: Any) -> list[str]:
        return [value.name for value in session.get_outputs()]

    def encode(self, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Returns what the decoder reads of an encoder's input: its mask, and keys and values, as OrtValues."""
        session = self._sessions[ENCODER]
        names = [name for name in self._outputs(session) if name.startswith(_PRESENT)]
        values = session.run_with_ort_values(names, _values(feeds))
        found = {name.replace(_PRESENT, _PAST): value for name, value in zip(names, values)}
        return found | _values({"encoder_attention_mask": feeds["attention_mask"]})

    def logits(self, ids: np.ndarray, cross: Mapping[str, Any]) -> np.ndarray:
        """Returns the logits [B, L, V] after each token of ids int64 [B, L], which may be padded at the end; `cross` is
        that of `encode`, or empty."""
        reading = Reading(self, len(ids), cross, room=ids.shape[1])
        return reading.run(ids, np.ones_like(ids), np.broadcast_to(np.arange(ids.shape[1]), ids.shape))

    def read(self, prompts: Sequence[Sequence[int]], room: int) -> "Reading":
        """Reads prompts: a decoder's, or for an encoder-decoder the encoder's inputs.

        Args:
          prompts: the token ids of each prompt, at least one.
          room: the maximum number of tokens that will follow.
        """
        width = max(map(len, prompts))
        if self.start is not None:
            ids, mask = padded(prompts, width, left=False)
            source = np.where(mask > 0, ids, -1)
            cross = self.encode({"input_ids": ids, "attention_mask": mask})
            prompts, width = [[self.start]] * len(prompts), 1
        else:
            cross = {}
        ids, mask = padded(prompts, width, left=not self.in_place)
        reading = Reading(self, len(ids), cross, width + room)
        right, real = padded(prompts, width, left=True)
        reading.history = np.where(real > 0, right, -1)
        reading.source = reading.history if self.start is None else source
        reading.start(ids, mask)
        return reading

    def run(self, feeds: Mapping[str, Any], past: Mapping[str, Any], logits: bool) -> tuple[Any, dict[str, Any]]:
        """Returns the logits [B, L, V], or None, and the new keys and values."""
        names = [name.replace(_PAST, _PRESENT) for name in past]
        names = [_LOGITS, *names] if logits else names
        options = None if logits else self._without_logits
        values = self.session.run_with_ort_values(names, {**feeds, **past}, options)
        found = values.pop(0).numpy() if logits else None
        return found, dict(zip(past, values))

    def run_in_place(self, feeds: Mapping[str, Any], binding: Any, logits: bool) -> Any:
        """The same for a binding of the keys and values, which are overwritten."""
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, value)
        if logits:
            binding.bind_output(_LOGITS)
        self.session.run_with_iobinding(binding, None if logits else self._without_logits)
        return binding.get_outputs()[-1].numpy() if logits else None


class Reading:
    """A batch of texts that the graphs have read.

    Attributes:
      logits: float32 [B, V], those of the next token of each text.
      history: int64 [B, T], the tokens so far including the prompt, the newest last, with -1 before the first.
      source: int64 [B, S], the prompt, or for an encoder-decoder the encoder's input, with -1 for padding.
    """

    logits: np.ndarray
    history: np.ndarray
    source: np.ndarray

    def __init__(self, graphs: Graphs, batch: int, cross: Mapping[str, Any], room: int):
        self._graphs, self._cross = graphs, dict(cross)
        self._mask = np.zeros((batch, 0), np.int64)
        shapes = {name: graphs.inputs[name] for name in graphs.past}
        length = room if graphs.in_place else 0
        self._past = _values(
            {
                name: np.zeros((batch, value.shape[1], length, value.shape[3]), _TYPES[value.type])
                for name, value in shapes.items()
            }
        )
        self._bind()

    def _bind(self) -> None:
        if not self._graphs.in_place:
            return
        self._binding = self._graphs.session.io_binding()
        for name, value in self._past.items():
            self._binding.bind_ortvalue_input(name, value)
            self._binding.bind_ortvalue_output(name.replace(_PAST, _PRESENT), value)

    def start(self, ids: np.ndarray, mask: np.ndarray) -> None:
        """Reads the prompts, ids and mask int64 [B, P], which are padded on the right if keys and values are in one
        buffer, otherwise on the left."""
        counts, last = mask.sum(1), ids.shape[1] - 1
        places = np.arange(len(ids)), (counts - 1 if self._graphs.in_place else np.full_like(counts, last))
        if counts.min() > 1 and last >= _LONG:
            tokens = ids[places]
            first = mask.copy()
            first[places] = 0
            self.run(ids[:, :last], first[:, :last], _positions(mask)[:, :last], logits=False)
            self._next(tokens)
        else:
            self.logits = self.run(ids, mask, _positions(mask))[places].astype(np.float32, copy=False)

    def step(self, tokens: np.ndarray) -> None:
        """Reads the next token of each text, ids [B]."""
        self._next(tokens)
        self.history = np.concatenate([self.history, tokens[:, None]], 1)

    def _next(self, tokens: np.ndarray) -> None:
        ones = np.ones((len(tokens), 1), np.int64)
        logits = self.run(tokens[:, None].astype(np.int64), ones, self._mask.sum(1, keepdims=True))
        self.logits = logits[:, 0].astype(np.float32, copy=False)

    def run(self, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, logits: bool = True) -> Any:
        """Reads tokens int64 [B, L]; mask int64 [B, L] marks those that are not padding, at `positions` [B, L].

        Returns:
          The logits [B, L, V], or None.
        """
        graphs = self._graphs
        if graphs.in_place:  # The next token of a text follows its last one, wherever the others end.
            counts = self._mask.sum(1) + mask.sum(1)
            self._mask = (np.arange(counts.max()) < counts[:, None]).astype(np.int64)
        else:
            self._mask = np.concatenate([self._mask, mask], 1)
        feeds = {"input_ids": ids, "attention_mask": self._mask, "position_ids": positions}
        values = _values({name: value for name, value in feeds.items() if name in graphs.inputs})
        values |= {name: value for name, value in self._cross.items() if name in graphs.inputs}
        if graphs.in_place:
            return graphs.run_in_place(values, self._binding, logits)
        found, self._past = graphs.run(values, self._past, logits)
        return found

    def take(self, rows: np.ndarray) -> None:
        """Continues with these of the texts, int64 [B']; a text may occur several times."""
        if len(rows) == len(self._mask) and (rows == np.arange(len(rows))).all():
            return
        if len(rows) != len(self._mask):  # Otherwise each row keeps its prompt.
            self.source = self.source[rows]
            self._cross = _taken(self._cross, rows)
        self._past = _taken(self._past, rows)
        self._mask, self.history, self.logits = self._mask[rows], self.history[rows], self.logits[rows]
        self._bind()


def open_graphs(
    folder: pathlib.Path, manifest: Mapping[str, Any], variant: str | None = None, threads: int = 0
) -> Graphs:
    """Opens the graphs of an artifact that writes text.

    Args:
      folder: the artifact.
      manifest: the content of its manifest.json.
      variant: one of the manifest's variants; None opens the float32 graphs.
      threads: the number of threads of an operation; 0 lets onnxruntime choose.

    Raises:
      UserError: the artifact does not write text, or lacks the variant.
    """
    names = set(manifest["signatures"])
    cached = any(name.startswith(_PAST) for sides in manifest["signatures"].values() for name in sides["inputs"])
    if "generation" not in manifest or not cached:
        heads = ", ".join(manifest["model"]["heads"]) or "none"
        raise UserError(f"--model_dir={folder}: does not write text (heads: {heads}); use python -m tfzoo.predict")
    for field in ("vocab_size", "max_positions", "positions"):
        if manifest["model"]["config"].get(field) is None:
            raise UserError(f"--model_dir={folder}: manifest.json has no model.config.{field}; export the model again")
    suffix = ""
    if variant is not None:
        has = manifest.get("variants", {})
        if variant not in has:
            raise UserError(
                f"--onnx_variant={variant}: {folder} contains {', '.join(has) or 'no variants'}; choose one of "
                f"them, or export the model with --onnx_variants={variant}"
            )
        suffix = f"_{variant}"
    sessions = {name: open_session(folder / f"{name}{suffix}.onnx", threads=threads) for name in names}
    return Graphs(sessions, manifest.get("profile") == "genai", manifest.get("decoder_start_token_id"))


def _values(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns arrays as OrtValues."""
    make = onnxruntime.OrtValue.ortvalue_from_numpy
    return {name: make(np.ascontiguousarray(value)) for name, value in arrays.items()}


def _taken(values: Mapping[str, Any], rows: np.ndarray) -> dict[str, Any]:
    return _values({name: value.numpy()[rows] for name, value in values.items()})


def _positions(mask: np.ndarray) -> np.ndarray:
    return np.maximum(mask.cumsum(1) - 1, 0)


def padded(rows: Sequence[Sequence[int]], width: int, left: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids and mask int64 [B, width] of rows that are padded on the left, or else on the right."""
    ids, mask = np.zeros((2, len(rows), width), np.int64)
    for i, row in enumerate(rows):
        places = slice(width - len(row), None) if left else slice(0, len(row))
        ids[i, places], mask[i, places] = row, 1
    return ids, mask
