"""Which special tokens stand around a text, or a pair of texts, where a model reads it."""

import dataclasses
from typing import Any

from tfzoo.errors import UserError

TEXT, PAIR = "text", "text_pair"


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


def frame(family: str, tokenizer: Any, pair: bool = False) -> Frame:
    """The frame of a family with a tokenizer; of a pair, where asked for.

    With [CLS] and [SEP] it is BERT's, RoBERTa's doubled separator or XLNet's, whose classifier comes last; T5's and
    Marian's texts end with </s>, Llama's begin with what its tokenizer begins with, GPT-2's have nothing around them
    unless the tokenizer's folder asks for it.

    Raises:
      UserError: a pair, where nothing would part the two texts, or a text that needs to name its language.
    """
    cls, sep, bos, eos = (getattr(tokenizer, f"{role}_id", None) for role in ("cls", "sep", "bos", "eos"))
    if getattr(tokenizer, "kind", None) == "mbart":
        raise UserError("mBART's texts end with the code of their language, which is not known here")
    if family in ("gpt2", "llama", "palm"):
        begun = bos is not None and (family == "llama" or getattr(tokenizer, "adds_bos", False))
        before, between, after = ([bos] if begun else []), None, []
    elif family in ("t5", "transformer") or cls is None or sep is None:
        end = [] if eos is None else [eos]
        before, between, after = [], end or None, end
    elif family == "xlnet":
        before, between, after = [], [sep], [sep, cls]
    else:
        before, between, after = [cls], [sep, sep] if family in ("roberta", "bart") else [sep], [sep]
    if not pair:
        segments = [0] * (len(before) + 1 + len(after))
        parts = [*before, TEXT, *after]
    elif between is None:
        raise UserError(f"text_pair: {family} with this tokenizer has no token to part two texts; give it one text")
    else:
        second = 0 if family in ("roberta", "bart") else 1
        segments = [0] * (len(before) + 1 + len(between)) + [second] * (1 + len(after))
        parts = [*before, TEXT, *between, PAIR, *after]
    if family == "xlnet":
        segments[-1] = 2
    return Frame(tuple(parts), tuple(segments))
