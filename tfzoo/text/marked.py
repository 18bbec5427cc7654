"""Rows of tokens with two marked entities, for the relation between them.

Each entity has a marker before and after it: $ the first one, # the second one, as in R-BERT (Wu and He 2019, section
3.2). Punctuation is in the vocabulary of every tokenizer, with trained embeddings, and serves as well as new special
tokens (Zhou and Chen 2022, section 3.1).

    The $ child $ was wrapped into the # cradle # .

The five parts of a text are tokenized separately, so that markers never merge with what surrounds them. White space
before an entity belongs to the part of the entity, as in the text without markers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from tfzoo.errors import UserError

PARTS = 5  # Before the entities, the one that comes first in the text, between them, the other one, after them.
CANDIDATES = "$#@%&*+=~^|"
UNMARKED = "text must mark two entities, once each, as in <e1>Ann</e1> met <e2>Bob</e2>"  # Why a text is refused.
_SPACES = ("", "▁", "Ġ")  # How a vocabulary writes a space before a token.


def markers(tokenizer: Any) -> tuple[str, str]:
    """Returns the tokens that mark the first and the second entity: the first two of CANDIDATES in the vocabulary.

    Raises:
      UserError: the vocabulary contains fewer than two of them.
    """
    tokens = set(tokenizer.vocab) - {tokenizer.vocab[i] for i in tokenizer.special_ids}
    names = [next((space + each for space in _SPACES if space + each in tokens), None) for each in CANDIDATES]
    found = [name for name in names if name is not None][:2]
    if len(found) < 2:
        raise UserError(
            f"the vocabulary contains fewer than two of the tokens {' '.join(CANDIDATES)}, which mark the entities; "
            "use another tokenizer"
        )
    return found[0], found[1]


def borders(text: str, first: tuple[int, int], second: tuple[int, int]) -> list[int]:
    """Returns the PARTS + 1 borders of the parts of a text.

    Args:
      text: the text without markers.
      first, second: (start, end) of the two entities, in either order.
    """
    found = [0, *sorted((*first, *second)), len(text)]
    for start in (1, 3):
        while found[start] > found[start - 1] and text[found[start] - 1].isspace():
            found[start] -= 1
    return found


class Row(NamedTuple):
    """The tokens of a text with markers, as many as there is room for."""

    ids: list[int]
    places: tuple[int, int]  # Where the markers before the first and the second entity are.
    is_cut: bool


def row(parts: Sequence[Sequence[int]], marker_ids: Sequence[int], is_turned: bool, room: int) -> Row:
    """Returns the tokens of a text whose parts are tokenized.

    Args:
      parts: the token ids of the five parts.
      marker_ids: the ids of the markers of the first and of the second entity.
      is_turned: whether the second entity comes before the first one.
      room: the maximum number of tokens, at least 2.
    """
    before, earlier, between, later, after = parts
    earlier_id, later_id = marker_ids[::-1] if is_turned else marker_ids
    earlier, later = [earlier_id, *earlier, earlier_id], [later_id, *later, later_id]
    counts = [len(part) for part in (before, earlier, between, later, after)]
    rest = kept(counts, room)
    left = [*before[counts[0] - rest.before :], *earlier[: rest.earlier], *between[: rest.left]]
    right = [*between[counts[2] - rest.right :], *later[: rest.later], *after[: rest.after]]
    places = rest.before, len(left) + rest.right
    return Row(left + right, places[::-1] if is_turned else places, sum(rest) < sum(counts))


class Kept(NamedTuple):
    """The tokens that remain of each part: of the part between the entities, the first `left` and the last `right`."""

    before: Any
    earlier: Any
    left: Any
    right: Any
    later: Any
    after: Any


def kept(counts: Sequence[Any], room: int, smaller=min, larger=max) -> Kept:
    """Returns how many tokens remain in a row with `room`, so that both entities do.

    The entities come first, each with at least half of the room if it needs that much, then what is between them, and
    then what is around them. Of the part before, the last tokens remain, of all other parts the first ones.

    Args:
      counts: tokens of the five parts; those of the entities include their markers. Numbers, arrays or tensors.
      room: at least 2.
      smaller, larger: min and max of two such values.
    """
    before, earlier, between, later, after = counts
    earlier = smaller(earlier, larger(room - later, (room + 1) // 2))
    later = smaller(later, room - earlier)
    rest = room - earlier - later
    between = smaller(between, rest)
    rest = rest - between
    before = smaller(before, larger(rest - after, (rest + 1) // 2))
    return Kept(before, earlier, (between + 1) // 2, between // 2, later, smaller(after, rest - before))
