"""Which special tokens stand around a text, or a pair of texts, where a model reads it.

A family's page has its layout: a template for a text, and one for a pair, None where no token parts two texts.

    ("cls $A sep", "cls $A sep $B:1 sep:1")

$A and $B are the texts; the other words are roles of the tokenizer's special tokens: cls, sep, bos, eos, and added_bos,
which is bos where the tokenizer's folder says that texts begin with it. A number behind a colon is the segment, 0 where
there is none. A role with a question mark is left out where the tokenizer has no such token.
"""

import dataclasses
from typing import Any

from tfzoo.errors import UserError

TEXT, PAIR = "text", "text_pair"
Layout = tuple[str, str | None]
# For a tokenizer that lacks a token of its model's layout.
FALLBACK: Layout = ("$A eos?", "$A eos $B:1 eos:1")


@dataclasses.dataclass(frozen=True)
class Frame:
    """What a row is made of, in order.

    parts: ids of special tokens, and TEXT and PAIR where the tokens of these go.
    segments: the segment of each part.
    """

    parts: tuple[int | str, ...]
    segments: tuple[int, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(part for part in self.parts if isinstance(part, str))

    def room(self, length: int) -> int:
        """Tokens of text that a row of `length` has room for."""
        return length - (len(self.parts) - len(self.texts))


BARE = (Frame((TEXT,), (0,)), Frame((TEXT, PAIR), (0, 1)))  # Nothing stands around a text, or two.


def frame(layout: Layout, tokenizer: Any, pair: bool = False) -> Frame:
    """The frame that a tokenizer's files ask for, or else a layout with a tokenizer; of a pair, where asked for.

    Raises:
      UserError: a pair, where nothing would part the two texts, or a text that needs to name its language.
    """
    frames = getattr(tokenizer, "frames", None)
    if frames and not tokenizer.adds_bos:
        return frames[pair]
    if getattr(tokenizer, "kind", None) == "mbart":
        raise UserError("mBART's texts end with the code of their language, which tfzoo cannot determine")
    known: dict[str, int | str | None] = {"$A": TEXT, "$B": PAIR}
    known |= {role: getattr(tokenizer, f"{role}_id", None) for role in ("cls", "sep", "bos", "eos")}
    known["added_bos"] = known["bos"] if getattr(tokenizer, "adds_bos", False) else None
    for template in (layout[pair], FALLBACK[pair]):
        if template is None:  # The model reads no pairs, whatever the tokenizer.
            break
        parts, complete = [], True
        for word in template.split():
            name, _, segment = word.partition(":")
            part = known[name.removesuffix("?")]
            if part is not None:
                parts.append((part, int(segment or 0)))
            complete &= part is not None or name.endswith("?")
        if complete:
            return Frame(*zip(*parts))
    raise UserError("text_pair: with this tokenizer the model has no token to separate two texts; give one text")
