"""Strings that record for each character whether the template or the user wrote it. To the template they are strings.

The provenance is preserved by string operations. If an operation cannot be followed, the provenance of the result is
UNKNOWN: it is never assumed to be the template's.
"""

import itertools
import re
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jinja2
import jinja2.nodes
import jinja2.runtime
import markupsafe

OWN, USER, UNKNOWN = 0, 1, 2  # The template's; a user's; unknown, one of the two.
LONGEST = 1 << 24  # Characters.
GENERATED = 4  # A further bit: the character is inside {% generation %}.
_GENERATED = bytes(kind | GENERATED for kind in range(256))
# Characters that no filter changes: they are printable and have no case.
_MARKS = [chr(code) for code in range(0x2801, 0x2900)]
# Values for which it does not matter who wrote them.
_SCALARS = (bool, int, float, type(None), jinja2.Undefined)
_ITERATORS = (types.GeneratorType, reversed)
_RUN = re.compile(rb"(?s)(.)\1*")
_CONTEXTS = (jinja2.runtime.Context, jinja2.nodes.EvalContext, jinja2.Environment)


class Text(str):
    """A string with the provenance of each of its characters, one byte each."""

    __slots__ = ("_who",)
    _who: bytes

    def __new__(cls, text: str, who: bytes | int = UNKNOWN) -> "Text":
        self = super().__new__(cls, text)
        self._who = bytes([who]) * len(self) if isinstance(who, int) else who
        return self

    def __str__(self) -> str:
        return self

    def __getitem__(self, key) -> "Text":
        text = str.__getitem__(self, key)
        return Text(text, self._who[key] if isinstance(key, slice) else self._who[key : key + 1 or None])

    def __iter__(self) -> Iterator["Text"]:
        return (self[i] for i in range(len(self)))

    def __add__(self, other):
        return joined([self, other]) if _is_plain(other) else NotImplemented

    def __radd__(self, other):
        return joined([other, self]) if _is_plain(other) else NotImplemented

    def __mul__(self, times):
        return joined(itertools.repeat(self, times)) if isinstance(times, int) else NotImplemented

    __rmul__ = __mul__

    def __mod__(self, values):
        return traced(str.__mod__, self, values)

    def __rmod__(self, form):
        return traced(str.__mod__, form, self) if isinstance(form, str) else NotImplemented

    def join(self, items: Iterable[str]) -> "Text":
        items = list(items)
        return Text(str.join(self, items), self._who.join(map(who, items)))

    def replace(self, old: str, new: str, count: Any = -1) -> "Text":
        text = str.replace(self, old, new, count)
        if not old:  # Inserts between all characters.
            return Text(text)
        return Text(text, who(new).join(map(who, self.split(old, count))))

    def lstrip(self, chars: str | None = None) -> "Text":
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars: str | None = None) -> "Text":
        return self[: len(str.rstrip(self, chars))]

    def strip(self, chars: str | None = None) -> "Text":
        return self.lstrip(chars).rstrip(chars)

    def removeprefix(self, prefix: str) -> "Text":
        return self[len(self) - len(str.removeprefix(self, prefix)) :]

    def removesuffix(self, suffix: str) -> "Text":
        return self[: len(str.removesuffix(self, suffix))]

    def partition(self, sep: str) -> tuple[str, str, str]:
        head, middle, tail = self._pieces(str.partition(self, sep), 0)
        return head, middle, tail

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        head, middle, tail = self._pieces(str.rpartition(self, sep), 0)
        return head, middle, tail

    def split(self, sep: str | None = None, maxsplit: Any = -1) -> list[str]:
        return self._pieces(str.split(self, sep, maxsplit), None if sep is None else len(sep))

    def rsplit(self, sep: str | None = None, maxsplit: Any = -1) -> list[str]:
        return self._pieces(str.rsplit(self, sep, maxsplit), None if sep is None else len(sep))

    def splitlines(self, keepends: Any = False) -> list[str]:
        return self._pieces(str.splitlines(self, keepends), None)

    def _pieces(self, pieces: Sequence[str], gap: int | None) -> list[str]:
        """Locates consecutive pieces of this text.

        Between two pieces there are `gap` characters; None means white space, with which no piece begins.
        """
        located, place = list[str](), 0
        for piece in pieces:
            start = place if gap is not None else self.index(piece, place)
            located.append(self[start : start + len(piece)])
            place = start + len(piece) + (gap or 0)
        return located


def _followed(name: str) -> Callable:
    method = getattr(str, name)

    def follow(self, *args, **kwargs):
        return traced(method, self, *args, **kwargs)

    follow.__name__ = name
    return follow


for _name in (
    "capitalize", "casefold", "center", "expandtabs", "ljust", "lower", "rjust", "swapcase", "title", "translate",
    "upper", "zfill",
):  # fmt: skip
    setattr(Text, _name, _followed(_name))


def _is_plain(value: Any) -> bool:
    """Returns whether `+` treats the value like any string; markupsafe's strings escape what they are added to."""
    return isinstance(value, str) and not isinstance(value, markupsafe.Markup)


def own(text: str) -> Text:
    """Returns text that the template wrote."""
    return Text(text, OWN)


def who(text: str) -> bytes:
    """Returns the provenance of each character."""
    return text._who if isinstance(text, Text) else bytes([UNKNOWN]) * len(text)


def joined(items: Iterable[str]) -> Text:
    """Joins texts.

    Raises:
      OverflowError: the result is so long that a template in an infinite loop must have produced it.
    """
    parts, length = list[str](), 0
    for item in items:
        parts.append(item)
        length += len(item)
        if length > LONGEST:
            raise OverflowError(f"a text of more than {LONGEST} characters")
    return Text("".join(parts), b"".join(map(who, parts)))


def generated(text: str) -> Text:
    """Marks text inside {% generation %}."""
    return Text(text, who(text).translate(_GENERATED))


def shown(value: Any) -> str:
    """Returns what a template prints for a value."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, _SCALARS):
        return own(str(value))
    return traced(str, value) if isinstance(value, dict | list | tuple) else str(value)


def traced(function: Callable, *args, **kwargs) -> Any:
    """Returns a function's result; a string result has its provenance.

    The function is called a second time, with marks around all text that the template did not write. If the result is
    the same text with marks, the marks give the provenance.
    """
    is_iterator = [isinstance(value, _ITERATORS) for value in args]  # These can be read only once.
    args = tuple(list(value) if read else value for value, read in zip(args, is_iterator, strict=True))

    def call(values, keywords):
        return function(*[iter(x) if read else x for x, read in zip(values, is_iterator, strict=True)], **keywords)

    result = call(args, kwargs)
    if type(result) is not str and not (isinstance(result, Text) and any(kind & UNKNOWN for kind in who(result))):
        return result
    try:
        marks = _Marks([*args, *kwargs.values(), result])
        marked = call(map(marks.put, args), {name: marks.put(value) for name, value in kwargs.items()})
        return marks.take(marked, result)
    except Exception:  # The function accepted the text but not the marks, so the provenance is unknown.
        return Text(result, who(result))


class _Marks:
    """Pairs of mark characters that occur in none of the given values."""

    def __init__(self, values: Any):
        used = set[str]()
        kinds = {UNKNOWN}
        for text in _texts(values):
            used.update(text)
            kinds.update(who(text))
        free = (mark for mark in _MARKS if mark not in used)
        self._end = next(free)
        self._begin = {kind: next(free) for kind in sorted(kinds - {OWN})}
        self._kinds = {mark: kind for kind, mark in self._begin.items()}
        self._split = re.compile(f"([{self._end}{''.join(self._kinds)}])")

    def put(self, value: Any) -> Any:
        """Returns a value with marks around the texts in it that are not the template's."""
        if isinstance(value, str):
            text, runs = str.__str__(value), list[str]()
            for run in _RUN.finditer(who(value)):
                kind, part = run[0][0], text[run.start() : run.end()]
                runs.append(part if kind == OWN else f"{self._begin[kind]}{part}{self._end}")
            marked = "".join(runs)
            return markupsafe.Markup(marked) if isinstance(value, markupsafe.Markup) else marked
        if type(value) is dict:
            return {self.put(key): self.put(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)([self.put(item) for item in value])
        if isinstance(value, (*_SCALARS, *_CONTEXTS)):
            return value
        raise TypeError(type(value))  # The texts in it are not known.

    def take(self, marked: Any, text: str) -> Text:
        """Returns `text` with its provenance if `marked` is the same text with marks; otherwise unchanged."""
        parts, kinds, kind = list[str](), list[bytes](), OWN
        for part in self._split.split(marked):
            if part in self._kinds and kind == OWN:
                kind = self._kinds[part]
            elif part == self._end and kind != OWN:
                kind = OWN
            else:
                parts.append(part)
                kinds.append(bytes([kind]) * len(part))
        same = kind == OWN and "".join(parts) == text
        return Text(text, b"".join(kinds) if same else who(text))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from itertools.chain.from_iterable(map(_texts, itertools.chain(value.keys(), value.values())))
    elif isinstance(value, list | tuple):
        yield from itertools.chain.from_iterable(map(_texts, value))
