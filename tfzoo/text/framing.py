"""The special tokens that a model's input has around a text or a pair of texts.

A family's page defines its layout: one template for a single text, and one for a pair, which is None if no token
separates two texts.

    ("cls $A sep", "cls $A sep $B:1 sep:1")

$A and $B are the texts. The other words are roles of the tokenizer's special tokens: cls, sep, bos, eos and added_bos,
which is bos if the tokenizer's folder specifies that texts begin with it. A number after a colon is the segment; the
default is 0. A role with a question mark is omitted if the tokenizer has no such token.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tfzoo.errors import UserError

TEXT, PAIR = "text", "text_pair"
Layout = tuple[str, str | None]
# For a tokenizer that lacks a token of its model's layout.
FALLBACK: Layout = ("$A eos?", "$A eos $B:1 eos:1")


@dataclasses.dataclass(frozen=True)
class Frame:
    """The parts of a row, in order.

    Attributes:
      parts: ids of special tokens, and TEXT and PAIR in the places of the texts' tokens.
      segments: the segment of each part.
    """

    parts: tuple[int | str, ...]
    segments: tuple[int, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(part for part in self.parts if isinstance(part, str))

    def room(self, length: int) -> int:
        """Returns the number of text tokens that fit into a row of `length`."""
        return length - (len(self.parts) - len(self.texts))


def stated(parts: Sequence[Mapping[str, Any]]) -> Frame:
    """Returns the frame that the manifest.json of an artifact states."""
    return Frame(tuple(part.get("text", part.get("id")) for part in parts), tuple(part["segment"] for part in parts))


class Ends(NamedTuple):
    """Special tokens of an encoder-decoder; None means that none is added."""

    start: int | None  # The first token that the decoder reads.
    begin: int | None  # The token before each text.
    end: int | None  # The token after each text.


def encoder_decoder_ends(tokenizer: Any) -> Ends:
    """Returns the special tokens with which tfzoo's objectives train encoder-decoders.

    With cls and sep tokens these are BART's: texts are "cls $A sep" on both sides, and the decoder starts with sep.
    Otherwise, and for a tokenizer with sentinels, they are those of T5 and Marian: texts are "$A eos", and the decoder
    starts with padding.
    """
    cls, sep, pad, eos = (getattr(tokenizer, f"{role}_id", None) for role in ("cls", "sep", "pad", "eos"))
    if cls is None or sep is None or len(getattr(tokenizer, "sentinel_ids", ())):
        return Ends(pad, None, eos)
    return Ends(sep, cls, sep)


BARE = (Frame((TEXT,), (0,)), Frame((TEXT, PAIR), (0, 1)))  # No special tokens around one text, or two.


def frame(layout: Layout, tokenizer: Any, pair: bool = False) -> Frame:
    """Returns the frame that a tokenizer's files specify, or else the layout with the tokenizer's ids.

    Args:
      layout: templates for one text and for two.
      tokenizer: the tokenizer, with ids by role.
      pair: whether to return the frame of a pair of texts.

    Raises:
      UserError: no token would separate the two texts of a pair, or a text must end with the code of its language.
    """
    frames = getattr(tokenizer, "frames", None)
    if frames and not tokenizer.adds_bos:
        return frames[pair]
    if getattr(tokenizer, "kind", None) == "mbart":
        raise UserError("mBART's texts end with the code of their language, which tfzoo cannot determine")
    values: dict[str, int | str | None] = {"$A": TEXT, "$B": PAIR}
    values |= {role: getattr(tokenizer, f"{role}_id", None) for role in ("cls", "sep", "bos", "eos")}
    values["added_bos"] = values["bos"] if getattr(tokenizer, "adds_bos", False) else None
    for template in (layout[pair], FALLBACK[pair]):
        if template is None:  # The model does not accept pairs, regardless of the tokenizer.
            break
        parts, complete = [], True
        for word in template.split():
            name, _, segment = word.partition(":")
            part = values[name.removesuffix("?")]
            if part is not None:
                parts.append((part, int(segment or 0)))
            complete &= part is not None or name.endswith("?")
        if complete:
            return Frame(*zip(*parts))
    raise UserError("text_pair: with this tokenizer the model has no token to separate two texts; give one text")
