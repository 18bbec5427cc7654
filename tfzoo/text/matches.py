"""Added tokens in texts, found without TensorFlow as tfzoo.text.added finds them."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

from tfzoo.text.token_files import AddedToken

# Unicode white space, as in tfzoo.text.pieces.
_SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"


@dataclasses.dataclass(frozen=True)
class Piece:
    """A piece of a text, and where it starts."""

    text: str
    start: int


@dataclasses.dataclass(frozen=True)
class Match:
    """An added token in a text: its id, and its start and end with the white space that belongs to it."""

    id: int
    start: int
    end: int


class Matcher:
    """Finds added tokens in pieces of texts, as tfzoo.text.added does.

    Args:
      tokens: the tokens, at least one, for which `unsupported` returns nothing.
    """

    def __init__(self, tokens: Sequence[AddedToken]):
        self._tokens = {token.content: token for token in tokens}
        self._any: Any = _pattern(tokens)
        self._left = _pattern([token for token in tokens if token.lstrip])

    def split(self, piece: Piece) -> Iterator[Piece | Match]:
        """Yields the pieces between the tokens, and the tokens."""
        text, done = piece.text, 0
        while match := self._any.search(text, done):
            start = match.start()
            if self._left is not None:
                # A token to which white space before it belongs begins earlier than any other at the same place.
                begin = done + len(text[done:start].rstrip(_SPACE))
                if begin < start and (left := self._left.match(text, start)):
                    match, start = left, begin
            token, end = self._tokens[match[0]], match.end()
            while token.rstrip and end < len(text) and text[end] in _SPACE:
                end += 1
            yield Piece(text[done:start], piece.start + done)
            yield Match(token.id, piece.start + start, piece.start + end)
            done = end
        yield Piece(text[done:], piece.start + done)


def _pattern(tokens: Sequence[AddedToken]) -> re.Pattern | None:
    """Returns the pattern of the tokens' texts, of which the longest one is matched; None without tokens."""
    contents = sorted((token.content for token in tokens), key=lambda content: (-len(content), content))
    return re.compile("|".join(map(re.escape, contents))) if contents else None


def unsupported(tokens: Sequence[AddedToken]) -> str:
    """Returns which token Matcher does not find exactly as TensorFlow does, and why; "" if it finds all of them."""
    for token in tokens:
        if token.single_word:
            return f"the added token {token.content!r} is matched as a whole word"
        if token.content[0] in _SPACE and any(other.lstrip for other in tokens):
            return f"the added token {token.content!r} begins with white space"
    return ""
