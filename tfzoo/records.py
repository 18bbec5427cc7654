"""Input and output of generate and score: reads lines of text or JSON, and writes lines of JSON."""

import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tfzoo import files, json_files, progress
from tfzoo.errors import CheckFailed, UserError
from tfzoo.json_files import BadJSON, Fields


def read(
    path: str | os.PathLike, field: str, flag: str = "input", fields: Fields | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (FILE:LINE, record) of each line: an object of a .jsonl file, otherwise {field: line}. Blank lines are
    skipped.

    Args:
      path: the file.
      field: the field of a line that is a text.
      flag: the flag that names the file.
      fields: the fields that objects may have; None allows all.

    Raises:
      UserError: the file cannot be read, is not UTF-8 or is empty, a line is not a JSON object, or a field of it is
        unknown or has an invalid value.
    """
    path = pathlib.Path(path)
    try:
        lines = files.read_text(path).split("\n")
    except UserError as error:
        raise UserError(f"--{flag}={error}") from None  # The message begins with the path.
    if not any(map(str.strip, lines)):
        raise UserError(f'--{flag}={path}: contains no {field}; write one per line, or {{"{field}": ...}} in .jsonl')
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r")
        if not line.strip():
            continue
        where = f"{path}:{number}"
        if path.suffix != ".jsonl":
            yield where, {field: line}
            continue
        try:
            record = json_files.parse(line)
        except BadJSON as error:
            raise UserError(f"{where}: {error}; {error.remedy}") from None
        if not isinstance(record, dict):
            raise UserError(f'{where}: is not a JSON object; write {{"{field}": ...}}')
        if fields is not None:
            json_files.check(record, fields, where, closed=True)
        yield where, record


def text(where: str, record: dict[str, Any], field: str) -> str:
    """Returns a string field of a record.

    Raises:
      UserError: the record has no string field of that name.
    """
    value = record.get(field)
    if not isinstance(value, str):
        raise UserError(f"{where}: {field!r} is {'missing' if value is None else 'not a string'}; write a string")
    return value


def batches(
    lines: Iterable[tuple[str, dict[str, Any]]],
    size: int,
    unit: str,
    doing: str,
    source: str | None,
    target: str | None,
) -> Iterator[tuple[list[tuple[str, dict[str, Any]]], contextlib.AbstractContextManager]]:
    """Yields batches of `size` lines, each with a context in which to process it.

    If the lines come from a file, `source`, an error in the context names the first line of its batch. On a terminal,
    the activity `doing` and the number of processed lines are shown, unless the results go to the terminal, because
    there is no `target` file.
    """
    lines = list(lines)
    counted = len(lines) > size and (target is not None or not sys.stdout.isatty())
    with progress.bar(len(lines), unit, shown=counted) as bar:
        for begin in range(0, len(lines), size):
            batch = lines[begin : begin + size]
            # The first batch takes longer than the others.
            yield batch, _work(batch[0][0] if source else "", "" if counted and begin else doing)
            bar.update(len(batch))


@contextlib.contextmanager
def _work(where: str, doing: str) -> Iterator[None]:
    try:
        with progress.stage(doing) if doing else contextlib.nullcontext():
            yield
    except (UserError, CheckFailed) as error:
        if not where:
            raise
        raise type(error)(f"{where} and following lines: {error}") from None


@contextlib.contextmanager
def writer(path: str | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields a function that writes a record as a line: to a file, which is created when the block ends, or, without a
    path, immediately to stdout."""

    def line(record: dict[str, Any]) -> str:
        # Lone surrogates, which JSON can represent and UTF-8 cannot, become question marks.
        return json.dumps(record, ensure_ascii=False).encode(errors="replace").decode() + "\n"

    if path is None:
        yield lambda record: print(line(record), end="", flush=True)
        return
    lines: list[str] = []
    yield lambda record: lines.append(line(record))
    with files.writing(path):
        files.atomic_write(path, "".join(lines))
    print(f"wrote {path}: {len(lines)} lines", file=sys.stderr)
