"""Checks of a tokenizer's files before a native library reads them.

SentencePiece and Oniguruma, the library behind `tokenizers`, trust what they read: a wrong normalisation table makes
them read outside their memory, and some regular expressions take time that grows exponentially with a text's length.
"""

import base64
import binascii
import contextlib
import math
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfzoo.errors import UserError, one_line

# A natural table has 225,000 keys of at most 13 bytes, at most 4 in one another, and replacements of at most 33 bytes.
_KEYS = 1_000_000
_KEY_BYTES = 64
_NESTED = 32  # SentencePiece keeps this many matches at one position.
_REPLACEMENT_BYTES = 1_000
_AT_ONCE = 4_096  # States of the trie whose 256 transitions are computed at a time.
_PATTERN_CHARACTERS = 20_000
_GROUPS = 50  # In one another.
_EXPANDED = 10_000  # Characters and classes, once counted repetitions are written out.

_PART = re.compile(
    r"(?P<escaped>\\[pPx]\{[^}]*\}|\\.)|(?P<group>\((?:\?(?:<[=!]|i?[:)]|[^\]]))?)|(?P<inside>\[\^?\]?)"
    r"|(?P<times>[*+?][?+]?|\{(?P<least>\d*)(?P<to>,)?(?P<most>\d*)\})|.",
    re.DOTALL,
)
_GROUP_KINDS = {"(", "(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!", "(?i:", "(?i)"}


def check_charsmap(data: bytes) -> tuple[np.ndarray, bytes]:
    """Checks a precompiled_charsmap, SentencePiece's table of replacements.

    The table is a double array of Darts, a trie whose states are shared by keys with the same rest, followed by the
    replacements. Every state that any text can reach is visited.

    Returns:
      The units of the double array, int64 [U], and the replacements, each of which ends with NUL.

    Raises:
      ValueError: a text would lead outside the table, or the table is larger than any natural one.
    """
    size = int.from_bytes(data[:4], "little")
    if len(data) <= 4 or size % 4 or not size or size + 4 >= len(data):
        raise ValueError(f"its table claims {size} of {len(data)} bytes")
    units, texts = np.frombuffer(data, "<u4", size // 4, 4).astype(np.int64), data[4 + size :]
    # For each state at this depth: where its transitions begin, the number of ways to it, and the most keys on a way.
    places, ways, nested = offset(units[:1]), np.ones(1, np.int64), np.zeros(1, np.int64)
    checked: set[int] = set()
    keys = prefixes = depth = 0
    while len(places):
        if depth > _KEY_BYTES:
            raise ValueError(f"its table has keys of more than {_KEY_BYTES} bytes")
        if ((places | 255) >= len(units)).any():
            raise ValueError("its table contains a position outside itself")
        parents, states = transitions(units, places)
        next_places, is_key = states ^ offset(units[states]), has_value(units[states])
        states, which = np.unique(states, return_inverse=True)
        counted, most = np.zeros(len(states), np.int64), np.zeros(len(states), np.int64)
        np.add.at(counted, which, ways[parents])
        np.maximum.at(most, which, nested[parents] + is_key)
        keys, prefixes = keys + int(ways[parents][is_key].sum()), prefixes + int(counted.sum())
        if max(keys, prefixes) > _KEYS or most.max(initial=0) > _NESTED:
            raise ValueError(f"its table has more than {_KEYS} keys, or more than {_NESTED} in one another")
        if next_places[is_key].max(initial=0) >= len(units):
            raise ValueError("its table contains a position outside itself")
        for begin in set(value(units[next_places[is_key]]).tolist()) - checked:
            end = texts.find(b"\0", begin, begin + _REPLACEMENT_BYTES + 1)
            if end < 0:
                raise ValueError(f"one of its texts has no end within {_REPLACEMENT_BYTES} bytes")
            texts[begin:end].decode()
            checked.add(begin)
        places = np.empty(len(states), np.int64)
        places[which] = next_places
        ways, nested, depth = counted, most, depth + 1
    return units, texts


def offset(units: np.ndarray) -> np.ndarray:
    """Returns the distance, to be combined with a unit's own position by exclusive or, of its transitions."""
    return (units >> 10) << ((units & (1 << 9)) >> 6)


def has_value(units: np.ndarray) -> np.ndarray:
    """Returns whether a key ends at a unit."""
    return (units >> 8) & 1 == 1


def value(units: np.ndarray) -> np.ndarray:
    """Returns the position of a replacement, for a unit that is the first of the transitions of a key's end."""
    return units & 0x7FFFFFFF


def transitions(units: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns, for each transition from states whose transitions begin at `places`, the index of the state in `places`
    and the position of the state that follows. The byte of a transition is the lower 8 bits of the latter's unit."""
    letters, parents, states = np.arange(256), [], []
    for first in range(0, len(places), _AT_ONCE):
        children = places[first : first + _AT_ONCE, None] ^ letters
        parent, letter = np.nonzero(units[children] & (1 << 31 | 255) == letters)
        parents.append(first + parent)
        states.append(children[parent, letter])
    return np.concatenate(parents), np.concatenate(states)


def check_pattern(pattern: str) -> None:
    """Checks a regular expression in Oniguruma's syntax.

    An expression is accepted if each repetition of a group, such as (...)*, repeats something of a fixed length
    without alternatives. The time that others take may grow exponentially: (a+)+, (a|a)*, (a?){30}.

    Raises:
      ValueError: matching may take exponential time or memory.
    """
    if len(pattern) > _PATTERN_CHARACTERS:
        raise ValueError(f"has {len(pattern):,} characters, but at most {_PATTERN_CHARACTERS:,} are allowed")
    _check_group(_PART.finditer(pattern), 0)


def _check_group(parts: Iterator[re.Match], depth: int) -> tuple[int, bool]:
    """Reads a group up to its end.

    Returns:
      The number of characters and classes in it, once counted repetitions are written out, and whether its length
      varies or it has alternatives.
    """
    if depth > _GROUPS:
        raise ValueError(f"has more than {_GROUPS} groups in one another")
    size, varies = 0, False
    item = 0, False  # The same of what precedes, which a quantifier would repeat.
    for match in parts:
        part, before, item = match[0], item, (1, False)
        if part == ")":
            break
        if part == "|":
            varies, item = True, (0, False)
        elif match["escaped"] and part[1] in "gkcCM123456789":
            raise ValueError(f"contains {part}, which is not supported")
        elif match["group"]:
            if part not in _GROUP_KINDS:
                raise ValueError(f"contains {part}, which is not supported")
            item = (0, False) if part == "(?i)" else _check_group(parts, depth + 1)
        elif match["inside"]:
            _skip_class(parts)
        elif match["times"]:
            least, most = _times(match)
            if most > 1 and before[1]:
                raise ValueError(
                    f"repeats a group of varying length or with alternatives (by {part} at character "
                    f"{match.start() + 1}), which may take exponential time"
                )
            written = before[0] * max(1, least if most == math.inf else most)
            size, item = size - before[0], (written, before[1] or least != most)
        size, varies = size + item[0], varies or item[1]
        if size > _EXPANDED:
            raise ValueError(f"has more than {_EXPANDED:,} characters once its repetitions are written out")
    return size, varies


def _skip_class(parts: Iterator[re.Match]) -> None:
    """Reads a character class, which may contain others, up to its end."""
    depth = 1
    for match in parts:
        depth += bool(match["inside"]) - (match[0] == "]")
        if not depth:
            return


def _times(match: re.Match) -> tuple[int, Any]:
    """Returns how often a quantifier repeats at least and at most; math.inf means any number."""
    if match[0][0] != "{":
        return {"*": (0, math.inf), "+": (1, math.inf), "?": (0, 1)}[match[0][0]]
    least = int(match["least"][:9] or 0)
    return least, least if match["to"] is None else int(match["most"][:9] or 0) or math.inf


def check_tokenizer_json(record: dict[str, Any], where: str | os.PathLike) -> None:
    """Checks the regular expressions and the normalisation tables in the content of a tokenizer.json.

    Raises:
      UserError: one of them is refused; the message begins with `where`.
    """
    for name in ("normalizer", "pre_tokenizer", "decoder", "post_processor"):
        for key, text in _leaves(record.get(name)):
            try:
                if key == "Regex":
                    check_pattern(text)
                elif key == "precompiled_charsmap" and text:
                    check_charsmap(base64.b64decode(text, validate=True))
            except (binascii.Error, ValueError) as error:
                what = "precompiled_charsmap is damaged" if key != "Regex" else f"the pattern {text[:80]!r}"
                raise UserError(f"{where}: {name}: {what} ({error}); correct the file, or get it again") from None


def _leaves(value: Any) -> Iterator[tuple[str, str]]:
    """Yields the key and the value of every text in nested objects and lists."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        if isinstance(inner, str):
            yield str(key), inner
        else:
            yield from _leaves(inner)


@contextlib.contextmanager
def library_errors(where: str | os.PathLike) -> Iterator[None]:
    """Turns an error of the `tokenizers` library into a UserError: a plain Exception, or a panic, which is not an
    Exception in Python and before which the library prints a message of its own to stderr."""
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{where}: the tokenizers library fails ({one_line(error, 160)}); get the file again") from None
