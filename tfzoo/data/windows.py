"""The tokens of words, and the division of long texts into windows of tokens that overlap.

Words are given as offsets in a text, such as those of tfzoo.data.tagged, tokens as offsets in the same text. What is
known of a word, such as its tag, is read at its first token (Devlin et al. 2019, section 5.3).
"""

from collections.abc import Sequence

import numpy as np

NO_TOKEN = -1
"""In place of a token: the word has none, such as a control character."""
SHARED = -2
"""In place of a token: the word has none of its own, because it is part of a token of the word before it."""


def first_tokens(words: Sequence[tuple[int, int]], starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Returns the first token of each word, int32 [W]: an index into the tokens, NO_TOKEN or SHARED.

    A token may begin with the white space before a word. No two words have the same first token.

    Args:
      words: (start, end) of each word in the text, in order, without overlaps.
      starts, ends: int [N], where each token begins and ends, in order.
    """
    places = np.full(len(words), NO_TOKEN, np.int32)
    ends = np.maximum.accumulate(ends) if len(ends) else ends
    last = -1  # The first token of the word before that has one.
    for word, token in enumerate(np.searchsorted(ends, [start for start, _ in words], side="right").tolist()):
        end = words[word][1]
        own = max(token, last + 1)
        if own < len(starts) and starts[own] < end:
            places[word] = last = own
        elif token < len(starts) and starts[token] < end:
            places[word] = SHARED
    return places


def window_starts(count: int, room: int, overlap: int) -> np.ndarray:
    """Returns where the windows of a text begin, int64 [at least 1].

    Each window but the last has `room` tokens and begins `room - overlap` after the one before; the last one ends with
    the text and is as long as the others, so that its words have as much context.

    Args:
      count: the number of tokens in the text.
      room: the maximum number of tokens in a window.
      overlap: the number of tokens that two windows share, at least; less than `room`.
    """
    if count <= room:
        return np.zeros(1, np.int64)
    return np.append(np.arange(0, count - room, room - overlap), count - room)


def windows_of(places: np.ndarray, begins: np.ndarray, count: int, room: int) -> np.ndarray:
    """Returns for each word the window in which its first token is furthest from a border, int64 [W], ascending.

    The text's own beginning and end are not borders, because nothing is cut off there. Words without a token of their
    own are in the window of the word before them.

    Args:
      places: the result of `first_tokens`.
      begins: the result of `window_starts`.
      count, room: see there.
    """
    ends = np.minimum(begins + room, count)
    before = places[:, None] - begins + np.where(begins == 0, count, 0)
    after = ends - 1 - places[:, None] + np.where(ends == count, count, 0)
    chosen = np.argmax(np.minimum(before, after), axis=1)
    chosen[places < 0] = 0
    return np.maximum.accumulate(chosen) if len(chosen) else chosen
