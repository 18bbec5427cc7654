"""The decoder of a tokenizer.json: from ids back to a text.

A decoder treats each token independently, except the first token of a text, tokens that are bytes, and the spaces that
it strips from the joined text. So the contribution of each token is computed in advance, as a first token and as a
later one.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from tfzoo.errors import UserError
from tfzoo.json_files import show
from tfzoo.text.byte_level_model import bytes_of, is_text
from tfzoo.text.tokenizer import CLEANED

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclasses.dataclass
class Decoded:
    """The contributions of tokens to a text.

    Attributes:
      first, others: for each token, its contribution as the first token of a text and as a later token.
      strips: (character, maximum number stripped from the beginning of the joined text, and from its end).
    """

    first: list[bytes]
    others: list[bytes]
    strips: tuple[tuple[str, int, int], ...] = ()


def compile_decoder(record: Any, tokens: Sequence[str], where: str) -> Decoded:
    """Returns the contribution of each of the tokens.

    Raises:
      UserError: a decoder is not supported.
    """
    steps = record.get("decoders", []) if record and record.get("type") == "Sequence" else [record] if record else []
    first = later = [token.encode() for token in tokens]
    fused, strips = False, []
    if not record:
        later = [b" " + token for token in later]
    for step in steps:
        kind = step.get("type")
        if kind == "Fuse":
            fused = True
        elif kind == "Strip" and fused:
            strips.append((step.get("content", " "), step.get("start", 0), step.get("stop", 0)))
        elif fused:
            raise UserError(f"{where}: the decoder {show(kind)} after Fuse is not supported")
        else:
            first, later = _apply(step, first, tokens, True, where), _apply(step, later, tokens, False, where)
    return Decoded(first, later, tuple(strips))


def clean_up(text: str) -> str:
    """Returns a text without spaces before punctuation, as BERT's decoding and clean_up_tokenization_spaces do."""
    for written, cleaned in CLEANED:
        text = text.replace(written, cleaned)
    return text


def _apply(step: dict[str, Any], parts: list[bytes], tokens: Sequence[str], first: bool, where: str) -> list[bytes]:
    kind = step.get("type")
    if kind == "ByteFallback":
        matches = [BYTE.fullmatch(token) for token in tokens]
        return [bytes([int(match[1], 16)]) if match else part for match, part in zip(matches, parts)]
    if kind == "ByteLevel":
        return [bytes_of(token) if is_text(token) else token.encode() for token in tokens]
    if kind == "Replace" and isinstance(step.get("pattern"), dict) and "String" in step["pattern"]:
        old, new = step["pattern"]["String"].encode(), step.get("content", "").encode()
        return [part.replace(old, new) for part in parts]
    if kind == "Metaspace":
        mark = step.get("replacement", "\u2581").encode()
        scheme = step.get("prepend_scheme") or ("always" if step.get("add_prefix_space", True) else "never")
        space = b"" if first and scheme != "never" else b" "
        return [part.replace(mark, space) for part in parts]
    if kind == "WordPiece":
        prefix = step.get("prefix", "##")
        texts = [part.decode() for part in parts]
        if not first:
            texts = [t.removeprefix(prefix) if t.startswith(prefix) else f" {t}" for t in texts]
        return [(clean_up(text) if step.get("cleanup", True) else text).encode() for text in texts]
    if kind == "Strip":
        content, start, stop = step.get("content", " "), step.get("start", 0), step.get("stop", 0)
        return [_strip(part.decode(), content, start, stop).encode() for part in parts]
    raise UserError(f"{where}: the decoder {show(kind)} is not supported")


def _strip(text: str, content: str, start: int, stop: int) -> str:
    begin = 0
    while begin < start and text[begin : begin + 1] == content:
        begin += 1
    end = len(text)
    while len(text) - end < stop and text[end - 1 : end] == content and end > 0:
        end -= 1
    return text[begin:end] if begin < end else ""
