"""tokenizer(texts, ...): converts texts to a batch of model inputs, eagerly."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfzoo.errors import UserError
from tfzoo.text.framing import BARE, PAIR, TEXT, Frame


def inputs(
    tokenizer: Any,
    texts: str | Sequence[str],
    pairs: str | Sequence[str] | None = None,
    *,
    padding: bool | str = True,
    truncation: bool | str = False,
    max_length: int | None = None,
    special_tokens: bool = True,
    segment_ids: bool | None = None,
) -> dict[str, np.ndarray]:
    """Returns a batch of model inputs.

    Args:
      tokenizer: a tokenizer of tfzoo.text.
      texts: one text, or a list of texts. Special tokens written in them are plain text.
      pairs: as many texts; each one follows the text at the same position.
      padding: True or "longest" pads all rows to the longest, "max_length" to max_length; False requires rows of equal
        length. The tokenizer's files specify the side; the default is the right.
      truncation: True or "longest_first" removes tokens from the longer text, "only_first" or "only_second" from that
        text only.
      max_length: maximum number of tokens in a row, including special tokens; None uses the value in the tokenizer's
        files.
      special_tokens: whether to add the special tokens that the tokenizer's files specify.
      segment_ids: whether to return segment_ids; None returns them unless they are all 0.

    Returns:
      A dict with token_ids int32 [B, L], padding_mask bool [B, L] and segment_ids int32 [B, L].

    Raises:
      UserError: an option has an invalid value, or the tokenizer's files do not specify what is needed.
    """
    texts, pairs = _list(texts, "texts"), None if pairs is None else _list(pairs, "pairs")
    if pairs is not None and len(pairs) != len(texts):
        raise UserError(f"pairs: has {len(pairs)} texts, but texts has {len(texts)}; give one for each text")
    _check(padding, ("longest", "max_length"), "padding")
    _check(truncation, ("longest_first", "only_first", "only_second"), "truncation")
    limit = max_length or tokenizer.max_length
    if limit is None and (padding == "max_length" or truncation):
        raise UserError("max_length: the tokenizer's files do not specify it; pass max_length")
    frames = tokenizer.frames if special_tokens else BARE
    if frames is None:
        raise UserError(
            "the tokenizer's files do not specify the special tokens to add around a text; use special_tokens=False"
        )
    frame = frames[pairs is not None]
    ids = {TEXT: tokenizer.tokenize(texts).to_list()}
    if pairs is not None:
        ids[PAIR] = tokenizer.tokenize(pairs).to_list()
    rows = []
    for row in zip(*ids.values()):
        parts = dict(zip(ids, row))
        if truncation and limit is not None:
            _truncate(parts, frame, limit, truncation, tokenizer.truncation_side)
        rows.append(_framed(parts, frame))
    result = _padded(rows, padding, limit, tokenizer)
    if segment_ids is False or (segment_ids is None and not any(frame.segments)):
        del result["segment_ids"]
    return result


def _list(texts: str | Sequence[str], name: str) -> list[str]:
    result = [texts] if isinstance(texts, str) else list(texts)
    if not all(isinstance(text, str) for text in result):
        raise UserError(f"{name}: must be a string or a list of strings")
    return result


def _check(value: bool | str, choices: Sequence[str], name: str) -> None:
    if not isinstance(value, bool) and value not in choices:
        raise UserError(f"{name}: {value!r} is not true, false or one of {', '.join(choices)}")


def _truncate(parts: dict[str, list[int]], frame: Frame, limit: int, how: bool | str, side: str) -> None:
    """Truncates the longer text to the room that the other leaves, then both to half of the room; or one given text."""
    room, kept = frame.room(limit), {name: len(ids) for name, ids in parts.items()}
    excess = sum(kept.values()) - room
    if excess <= 0:
        return
    if how in ("only_first", "only_second") or len(kept) == 1:
        kept[PAIR if how == "only_second" and PAIR in kept else TEXT] -= excess
    else:
        shorter, longer = sorted(kept, key=lambda name: kept[name])
        kept[longer] = max(kept[shorter], room - kept[shorter])
        if sum(kept.values()) > room:
            kept = {shorter: room // 2, longer: room - room // 2}
    if min(kept.values()) < 0:
        raise UserError(f"max_length: {limit} leaves no room for the texts; use a larger value")
    for name, count in kept.items():
        parts[name] = parts[name][:count] if side == "right" else parts[name][len(parts[name]) - count :]


def _framed(parts: dict[str, list[int]], frame: Frame) -> tuple[list[int], list[int]]:
    """Returns the ids and segments of a row."""
    ids, segments = [], []
    for part, segment in zip(frame.parts, frame.segments):
        part_ids = parts[part] if isinstance(part, str) else [part]
        ids += part_ids
        segments += [segment] * len(part_ids)
    return ids, segments


def _padded(rows: list, padding: bool | str, limit: int | None, tokenizer: Any) -> dict[str, np.ndarray]:
    lengths = {len(ids) for ids, _ in rows}
    if not padding and len(lengths) > 1:
        raise UserError(
            f"padding: is off, but the rows have lengths from {min(lengths)} to {max(lengths)}; use padding=True"
        )
    length = limit if padding == "max_length" else max(lengths, default=0)
    length = max(length or 0, max(lengths, default=0))
    pad = tokenizer.pad_id
    if pad is None and lengths - {length}:
        raise UserError("padding: the tokenizer has no pad token; give texts of equal length, or one at a time")
    result = {
        "token_ids": np.full((len(rows), length), pad or 0, np.int32),
        "segment_ids": np.zeros((len(rows), length), np.int32),
        "padding_mask": np.zeros((len(rows), length), bool),
    }
    for i, (ids, segments) in enumerate(rows):
        place = slice(0, len(ids)) if tokenizer.padding_side == "right" else slice(length - len(ids), length)
        result["token_ids"][i, place], result["segment_ids"][i, place] = ids, segments
        result["padding_mask"][i, place] = True
    return result
