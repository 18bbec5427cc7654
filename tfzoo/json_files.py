"""Strict reading of JSON from users, and checks of types and ranges. Uses only the standard library.

Python's parser accepts input that other programs reject or interpret differently: duplicate keys, NaN, 1e999, nesting
that causes a RecursionError. This module rejects all of them; errors name the file, the line or field, and the remedy.
"""

import dataclasses
import functools
import json
import math
import os
import re
import reprlib
from collections.abc import Mapping
from typing import Any, NoReturn

from tfzoo import files
from tfzoo.errors import UserError, one_line, suggest

# The largest published tokenizer.json (of Gemma) has 33 MB, 1.7 million parts and six levels.
MAX_BYTES = 64 << 20
MAX_PARTS = 8_000_000  # Brackets, commas and colons, whose number bounds the memory for parsing.
MAX_DEPTH = 64

_AGAIN = "correct it, or download the file again"
_NAMES = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_STRING = r'"[^"\\]*(?:\\.[^"\\]*)*"'

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 160


def show(value: Any) -> str:
    """Returns a value from a file as a short text on one line, for messages."""
    return _REPR.repr(value)


class BadJSON(ValueError):
    """A problem with a JSON text, worded to follow its name; `remedy`, and `line`, which is 0 if it is unknown."""

    def __init__(self, problem: str, remedy: str = _AGAIN, line: int = 0):
        super().__init__(problem)
        self.remedy, self.line = remedy, line

    def at(self, where: str | os.PathLike) -> UserError:
        """Returns the error for a text with the name `where`."""
        return UserError(f"{where}{f', line {self.line}' if self.line else ''}: {self}; {self.remedy}")


def parse(data: bytes | str, *, max_parts: int = MAX_PARTS) -> Any:
    """Parses a JSON text; bytes must be UTF-8, with or without a byte order mark.

    Raises:
      BadJSON: the text is not UTF-8 or not JSON, contains a duplicate key, a number that is not finite, more than
        `max_parts` brackets, commas and colons, or more than MAX_DEPTH levels.
    """
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
    except UnicodeDecodeError as error:
        invalid = error.object[error.start : error.start + 10]
        raise BadJSON(f"is not UTF-8 ({invalid!r})", "save it as UTF-8", _line_at(error.object, error.start)) from None
    if len(text) > max_parts and (parts := sum(map(text.count, "{[,:"))) > max_parts:
        raise BadJSON(f"has {parts} brackets, commas and colons, more than the limit of {max_parts}", "make it smaller")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_float=functools.partial(_finite, text),
            parse_constant=functools.partial(_refuse_constant, text),
        )
        too_deep = _levels(value) > MAX_DEPTH
    except _Repeated as error:
        raise BadJSON(f"the key {show(error.args[0])} appears twice", "remove one", _repeated_line(text)) from None
    except json.JSONDecodeError as error:
        raise BadJSON(f"is not JSON ({error.msg})", line=error.lineno) from None
    except RecursionError:
        too_deep = True
    except BadJSON:
        raise
    except ValueError as error:  # A number with thousands of digits.
        raise BadJSON(f"is not valid JSON ({one_line(error, 100)})") from None
    if too_deep:
        raise BadJSON(f"is nested too deeply (more than {MAX_DEPTH} levels)")
    return value


def read(path: str | os.PathLike, *, kind: type = dict, max_bytes: int = MAX_BYTES) -> Any:
    """Reads a JSON file, whose value must be a `kind`: dict for an object, list, or object for anything.

    Raises:
      UserError: the file cannot be read, is larger than `max_bytes`, is rejected by `parse`, contains a lone surrogate,
        which cannot be written as UTF-8, or another kind.
    """
    data = files.read_bytes(path, max_bytes=max_bytes)
    if not data.strip():
        raise UserError(f"{path}: is empty; {_AGAIN}")
    if data.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: is a Git LFS pointer, not the file; fetch it with git lfs pull")
    try:
        value = parse(data)
    except BadJSON as error:
        raise error.at(path) from None
    if _SURROGATE.search(data) and _has_surrogate(value):
        raise UserError(f"{path}: contains a lone surrogate, which is half of a character; {_AGAIN}")
    if not isinstance(value, kind):
        raise UserError(f"{path}: contains {_NAMES.get(type(value), 'null')}, not {_NAMES[kind]}; {_AGAIN}")
    return value


def parse_object(data: str | bytes, where: str, remedy: str) -> dict[str, Any]:
    """Returns the JSON object in a line of a file of tfzoo.

    Raises:
      UserError: it is not JSON, or not an object; the message begins with `where` and ends with `remedy`.
    """
    try:
        value = parse(data)
    except BadJSON as error:
        raise UserError(f"{where}: {error}; {remedy}") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: is not a JSON object; {remedy}")
    return value


def line_of(path: str | os.PathLike, value: Any) -> int:
    """Returns the first line of a JSON file that contains a string or number, for messages; 1 if there is none."""
    text = files.read_bytes(path).decode("utf-8-sig", errors="replace")
    forms = "|".join(re.escape(json.dumps(value, ensure_ascii=ascii_only)) for ascii_only in (False, True))
    match = re.search(forms, text)
    return _line_at(text, match.start()) if match else 1


@dataclasses.dataclass(frozen=True)
class Field:
    """The allowed values of a field.

    kind: bool, int, float (including whole numbers), str, list or dict.
    low, high: bounds of a number, inclusive.
    choices: the allowed values; empty allows all.
    items: the allowed items of a list, or values of an object.
    required: whether the field must be present.
    null: whether null is equivalent to a missing field, if it is not required.
    """

    kind: type
    low: float | None = None
    high: float | None = None
    choices: tuple = ()
    items: "Field | None" = None
    required: bool = False
    null: bool = True

    def holds(self, value: Any) -> bool:
        kinds: Any = (int, float) if self.kind is float else self.kind
        if not isinstance(value, kinds) or (isinstance(value, bool) and self.kind is not bool):
            return False
        if self.choices and value not in self.choices:
            return False
        if self.items is not None:
            return all(map(self.items.holds, value.values() if isinstance(value, dict) else value))
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        if self.items is not None:
            return f"{_NAMES[self.kind]} in which each {'item' if self.kind is list else 'value'} is {self.items}"
        words = "a whole number" if self.kind is int else _NAMES[self.kind]
        high = None if self.high is not None and self.high > 1e38 else self.high  # The range of float32 says nothing.
        if self.low is not None and high is not None:
            return f"{words} from {self.low:,} to {high:,}"
        return (
            words
            + (f" of at least {self.low:,}" if self.low is not None else "")
            + (f" of at most {high:,}" if high is not None else "")
        )


Fields = Mapping[str, Field | tuple[Field, ...]]


def check(record: Mapping[str, Any], fields: Fields, where: str | os.PathLike, *, closed: bool = False) -> None:
    """Checks an object against a table: name -> Field, or a tuple of alternatives.

    Args:
      record: the object.
      fields: the table.
      where: the file, and the place in it, with which messages begin.
      closed: whether other fields are errors; otherwise, they are not checked.

    Raises:
      UserError: a field is missing, has another type or is out of bounds, or is not in a closed table.
    """
    for name in record.keys() - fields.keys() if closed else ():
        raise UserError(f"{where}: {show(name)} is not one of {', '.join(fields)}{suggest(name, fields)}; remove it")
    for name, allowed in fields.items():
        allowed = allowed if isinstance(allowed, tuple) else (allowed,)
        value, expected = record.get(name), " or ".join(map(str, allowed))
        if name not in record or (value is None and all(field.null for field in allowed)):
            if any(field.required for field in allowed):
                raise UserError(f"{where}: has no {name}, which must be {expected}; add it")
        elif not any(field.holds(value) for field in allowed):
            raise UserError(f"{where}: {name} is {show(value)}, not {expected}; correct it")


def _has_surrogate(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


class _Repeated(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        raise _Repeated(next(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
    return result


def _finite(document: str, text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise BadJSON(f"the number {text[:40]} is too large", line=_constant_line(document, text))
    return value


def _refuse_constant(document: str, text: str) -> NoReturn:
    raise BadJSON(f"{text} is not JSON", "write null or a finite number", _constant_line(document, text))


def _levels(value: Any) -> int:
    """Returns the nesting depth of lists and objects, counted only up to MAX_DEPTH + 1."""
    level: list[Any] = [[value]]
    count = -1
    while level and count <= MAX_DEPTH:
        level = [child for inner in level for child in _inside(inner)]
        count += 1
    return count


def _inside(value: Any) -> list[Any]:
    """Returns the lists and objects in a list or an object; a flat vocabulary is recognized by its set of types."""
    values = value.values() if type(value) is dict else value
    if not {dict, list} & {*map(type, values)}:
        return []
    return [child for child in values if type(child) is dict or type(child) is list]


def _line_at(text: Any, position: int) -> int:
    """Returns the line number of a position in a text or in bytes."""
    return text.count(b"\n" if isinstance(text, bytes) else "\n", 0, position) + 1


def _constant_line(text: str, constant: str) -> int:
    for match in re.finditer(rf"{_STRING}|({re.escape(constant)})", text):
        if match[1]:
            return _line_at(text, match.start())
    return 0


def _repeated_line(text: str) -> int:
    """Returns the line of the first duplicate key of an object."""
    keys_of_parents: list[set[str]] = []
    for match in re.finditer(rf"({_STRING})\s*(:?)|[{{}}]", text):
        if match[0] == "{":
            keys_of_parents.append(set())
        elif match[0] == "}":
            keys_of_parents.pop()
        elif match[2]:
            key = json.loads(match[1])
            if key in keys_of_parents[-1]:
                return _line_at(text, match.start())
            keys_of_parents[-1].add(key)
    return 0
