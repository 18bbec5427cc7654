"""Texts to the inputs of an ONNX graph, in numpy: the reading and the truncation of tfzoo.text.reader."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfzoo.errors import UserError
from tfzoo.prediction import decoding
from tfzoo.text import framing, marked
from tfzoo.text.framing import PAIR, TEXT
from tfzoo.text.libraries import open_tokenizer

# The graph's inputs -> the attributes of Reading. The decoder of an encoder-decoder reads the text, too.
INPUTS = {
    "input_ids": "ids",
    "attention_mask": "mask",
    "token_type_ids": "segments",
    "pooling_mask": "pooled",
    "entity_positions": "entities",
    "decoder_input_ids": "shifted",
    "decoder_attention_mask": "shifted_mask",
}
_MARKER = re.compile(r"<(/?)e([12])>")


@dataclasses.dataclass
class Reading:
    """A batch of texts as the graph reads it.

    Attributes:
      texts: the texts of each row.
      ids, mask, segments, pooled, shifted, shifted_mask: the graph's inputs, [B, L].
      of: [B, L], 1 + the number of the text that a token belongs to; 0 for special tokens and padding.
      starts, ends: [B, L], code points in the tokens' texts; None for a tokenizer without offsets.
      truncated: bool [B].
      starts_special: whether rows begin with a special token.
      entities: the graph's input [B, 2]: the positions of the markers before the two entities of each row.
      errors: for each row the reason why it is refused, or "".
    """

    texts: Sequence[Sequence[str]]
    ids: np.ndarray
    mask: np.ndarray
    segments: np.ndarray
    pooled: np.ndarray
    shifted: np.ndarray
    shifted_mask: np.ndarray
    of: np.ndarray
    starts: np.ndarray | None
    ends: np.ndarray | None
    truncated: np.ndarray
    starts_special: bool
    entities: np.ndarray
    errors: Sequence[str]


@dataclasses.dataclass
class _Row:
    """The tokens that remain of the texts of a row: `ids` and `offsets` of each text, and the rest of Reading."""

    ids: list[Sequence[int]]
    offsets: list[Sequence[tuple[int, int]]]
    truncated: bool
    entities: tuple[int, int] = (0, 0)
    error: str = ""


class Texts:
    """Reads the texts of rows with the tokenizer of an artifact.

    Args:
      folder: the artifact.
      manifest: the content of its manifest.json.
      task: the head that answers.

    Attributes:
      has_offsets: whether answers have the positions of their parts.
      least: the number of tokens of a text for which there must be room.

    Raises:
      UserError: see text.libraries.open_tokenizer; or the special tokens around a text are unknown.
    """

    least = 1

    def __init__(self, folder: pathlib.Path, manifest: Mapping[str, Any], task: str):
        fingerprint = manifest.get("tokenizer", {}).get("fingerprint")
        self.tokenizer = open_tokenizer(folder / "tokenizer", fingerprint)
        # The mask is recognized where it is written in a text; other special tokens are text.
        mask_id = self.tokenizer.role_ids.get("mask")
        self._special = (self.tokenizer.pieces[mask_id],) if task == "lm" and mask_id is not None else ()
        self.tokenizer.encode([""], special=self._special)  # Raises an error if it cannot be found exactly.
        self.has_offsets = self.tokenizer.has_offsets
        if "frame" in manifest:
            frame = framing.stated(manifest["frame"])
        else:  # Artifacts of earlier versions state it in tokenizer.json alone.
            frame = self.tokenizer.frame(len(manifest["texts"]) > 1)
        self.frame, self.room = frame, frame.room(manifest["options"]["sequence_length"])
        if frame.texts != (TEXT, PAIR)[: len(manifest["texts"])] or self.room < max(self.least, len(frame.texts)):
            raise UserError(
                f"--model_dir={folder}: manifest.json: frame does not fit to texts and sequence_length; export the "
                "model again"
            )
        self._asks_offsets = self.has_offsets and task in ("tag", "span")
        self._prompt, self._lowercase = manifest.get("prompt", ""), manifest.get("lowercase", False)
        self._prompt_tokens = manifest.get("prompt_tokens", 0)
        self._start_id = manifest.get("decoder_start_token_id", 0)

    def vocabulary(self) -> decoding.Vocabulary:
        """Returns the tokens of the tokenizer."""
        return self.tokenizer.vocabulary()

    def read(self, texts: Sequence[Sequence[str]], fixed: int | None = None) -> Reading:
        """Reads rows; `fixed` is the length of rows that all have the same length."""
        texts = [(self._worded(row[0]), *row[1:]) for row in texts]
        rows = self._rows(texts)
        special = len(self.frame.parts) - len(self.frame.texts)
        length = fixed or max(1, special + max((sum(map(len, row.ids)) for row in rows), default=0))
        columns: dict[str, Any] = {
            name: np.zeros((len(rows), length), np.int32) for name in ("segments", "of", "starts", "ends")
        }
        ids, mask = np.full((len(rows), length), self.tokenizer.pad_id), np.zeros((len(rows), length), bool)
        for i, row in enumerate(rows):
            end = 0
            for part, segment in zip(self.frame.parts, self.frame.segments):
                text = self.frame.texts.index(part) if isinstance(part, str) else None
                places = slice(end, end := end + (1 if text is None else len(row.ids[text])))
                if text is None:
                    ids[i, places] = part
                elif row.ids[text]:
                    ids[i, places] = row.ids[text]
                    if row.offsets:
                        columns["starts"][i, places], columns["ends"][i, places] = zip(*row.offsets[text])
                    columns["of"][i, places] = 1 + text
                columns["segments"][i, places] = segment
            mask[i, :end] = True
        shifted = np.concatenate([np.full_like(ids[:, :1], self._start_id), ids[:, :-1]], 1)
        if not self.has_offsets:
            columns |= {"starts": None, "ends": None}
        return Reading(
            texts,
            ids,
            mask,
            pooled=mask & (np.arange(length) >= self._prompt_tokens),
            shifted=shifted,
            shifted_mask=mask | (np.arange(length) == 0),
            truncated=np.array([row.truncated for row in rows], bool),
            starts_special=isinstance(self.frame.parts[0], int),
            entities=np.array([row.entities for row in rows], np.int32).reshape(-1, 2),
            errors=[row.error for row in rows],
            **columns,
        )

    def _rows(self, texts: Sequence[Sequence[str]]) -> list[_Row]:
        """Returns what remains of the texts of each row."""
        flat = self.tokenizer.encode([text for row in texts for text in row], self._asks_offsets, self._special)
        count, rows = len(self.frame.texts), []
        for i in range(len(texts)):
            tokens = flat[i * count : (i + 1) * count]
            lengths = [len(text.ids) for text in tokens]
            kept = _cut(lengths, self.room)
            ids = [text.ids[:size] for text, size in zip(tokens, kept)]
            offsets = [text.offsets[:size] for text, size in zip(tokens, kept)] if self._asks_offsets else []
            rows.append(_Row(ids, offsets, sum(kept) < sum(lengths)))
        return rows

    def _worded(self, text: str) -> str:
        text = self._prompt + text
        return "".join(map(str.lower, text)) if self._lowercase else text


class MarkedTexts(Texts):
    """Reads texts that mark two entities, as tfzoo.export.answers.relations does. See Texts."""

    least = 2

    def __init__(self, folder: pathlib.Path, manifest: Mapping[str, Any], task: str):
        super().__init__(folder, manifest, task)
        self._first = self.frame.parts.index(TEXT)  # The position of the text's first token.
        ids = [self.tokenizer.id_of(marker) for marker in manifest["markers"]]
        if None in ids:
            raise UserError(f"--model_dir={folder}: its vocabulary lacks the markers of entities; export it again")
        self._marker_ids: list[Any] = ids

    def _rows(self, texts: Sequence[Sequence[str]]) -> list[_Row]:
        found = [_parts(text) for (text,) in texts]
        flat = self.tokenizer.encode([part for parts, _ in found if parts for part in parts])
        encoded, rows = iter(flat), []
        for parts, turned in found:
            if not parts:
                rows.append(_Row([[]], [], False, error=marked.UNMARKED))
                continue
            made = marked.row([next(encoded).ids for _ in parts], self._marker_ids, turned, self.room)
            first, second = made.places
            rows.append(_Row([made.ids], [], made.is_cut, (self._first + first, self._first + second)))
        return rows


def texts_of(folder: pathlib.Path, manifest: Mapping[str, Any], task: str) -> Texts:
    """Returns what reads the texts of a task; see Texts."""
    return (MarkedTexts if task == "relation" else Texts)(folder, manifest, task)


def _parts(text: str) -> tuple[list[str], bool]:
    """Returns the five parts of a text, as tfzoo.text.marked.borders divides them, and whether it marks the second
    entity before the first one. A text that does not mark both entities once each has no parts."""
    found = list(_MARKER.finditer(text))
    turned = bool(found) and found[0][2] == "2"
    order = ("2", "2", "1", "1") if turned else ("1", "1", "2", "2")
    if [match.groups() for match in found] != [*zip(("", "/", "", "/"), order)]:
        return [], turned
    ends = [match.span() for match in found]
    borders = [0, *(border for span in ends for border in span), len(text)]
    parts = [text[start:end] for start, end in zip(borders[::2], borders[1::2])]
    if not (parts[1].strip() and parts[3].strip()):
        return [], turned
    for i in range(marked.PARTS - 1):  # White space at the end of a part belongs to the next one.
        bare = parts[i].rstrip()
        parts[i], parts[i + 1] = bare, parts[i][len(bare) :] + parts[i + 1]
    return parts, turned


def _cut(lengths: Sequence[int], room: int) -> list[int]:
    """Returns the lengths after truncation: a text may use half of the room and what the other leaves."""
    if len(lengths) == 1:
        return [min(lengths[0], room)]
    first = min(lengths[0], max(room - lengths[1], (room + 1) // 2))
    return [first, min(lengths[1], room - first)]
