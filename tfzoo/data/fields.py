"""Rows with named fields: files of texts to answer (tfzoo.predict) or to index (tfzoo.index).

| format | a row |
|---|---|
| txt | a line, also an empty one; its only field is the text |
| jsonl | an object in a line; blank lines are not rows |
| csv, tsv | a record below the header, which names the columns; blank lines are not rows |

Lines, bad rows and gzip are those of row_files.py. Tables are read as Python's csv module reads them, with quotes.
Memory holds one row.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tfzoo.data import row_files, tables
from tfzoo.data.row_files import BadRow
from tfzoo.errors import UserError, suggest
from tfzoo.json_files import show

FORMATS = ("txt", "jsonl", "csv", "tsv")
_DELIMITERS = {"csv": ",", "tsv": "\t"}
Record = dict[str, Any]


def format_of(path: str) -> str | None:
    """Returns the format of a file by its suffix, without .gz; None if it is not one of FORMATS."""
    suffix = row_files.suffix(path).removeprefix(".")
    return suffix if suffix in FORMATS else None


def newline_of(form: str) -> str:
    """Returns the argument `newline` with which a file of this format must be opened: a carriage return alone ends a
    line of a table, but is part of a text."""
    return "" if form in _DELIMITERS else "\n"


def records(
    lines: Iterable[str], form: str, name: str, text: str, wanted: Mapping[str, str]
) -> Iterator[tuple[int, Record | BadRow]]:
    """Yields (number of the line where the row begins, its fields, or a BadRow).

    Args:
      lines: of the file, with their endings; bytes that are not UTF-8 are lone surrogates.
      form: one of FORMATS.
      name: of the file, for messages.
      text: the field of the line of a .txt file.
      wanted: {column: the flag that names it}; a table must have these columns.

    Raises:
      UserError: the header of a table lacks one of these columns, or has a column twice.
    """
    if form in _DELIMITERS:
        yield from _table(lines, _DELIMITERS[form], name, wanted)
        return
    for number, line in enumerate(lines, 1):
        if form == "jsonl" and not line.strip():
            continue
        try:
            if form == "jsonl":
                yield number, row_files.json_record(line)
            else:
                row_files.check_utf8(line)
                yield number, {text: line.removesuffix("\n").removesuffix("\r")}
        except BadRow as bad:
            yield number, bad


def text_of(record: Record, field: str, flag: str) -> str:
    """Returns a field that must be a string, perhaps an empty one.

    Args:
      record: the fields of a row.
      field: the name of the field.
      flag: the flag that names another field.

    Raises:
      BadRow: the record has no such field, or it is not a string.
    """
    value = record.get(field)
    if value is None:
        near = suggest(field, record) or f" (fields: {', '.join(record)[:80] or 'none'})"
        raise BadRow("missing_field", f"has no {field!r}{near}", f"add it, or specify its field with --{flag}")
    if not isinstance(value, str):
        raise BadRow("not_a_string", f"{field!r} is {show(value)}, not a string", "write a string")
    try:
        row_files.check_utf8(value)
    except BadRow as bad:
        raise BadRow(bad.kind, f"{field!r} {bad.words}", bad.remedy) from None
    return value


def _table(
    lines: Iterable[str], delimiter: str, name: str, wanted: Mapping[str, str]
) -> Iterator[tuple[int, Record | BadRow]]:
    header: list[str] = []
    for line, row in tables.rows_of(lines, tables.Dialect(delimiter, True)):
        if not header:
            if isinstance(row, BadRow):
                raise UserError(f"{name}:{line}: the header {row.words}; {row.remedy}")
            header = row
            _check_header(f"{name}:{line}", header, wanted)
        elif isinstance(row, BadRow):
            yield line, row
        elif len(row) != len(header):
            words = f"has {len(row)} columns, but the header has {len(header)}"
            yield line, BadRow("other_width", words, "correct the row")
        else:
            yield line, dict(zip(header, row, strict=True))


def _check_header(where: str, header: list[str], wanted: Mapping[str, str]) -> None:
    repeated = next((column for column in header if header.count(column) > 1), None)
    if repeated is not None:
        raise UserError(f"{where}: the header has two columns {repeated!r}; rename one")
    for column, flag in wanted.items():
        if column not in header:
            raise UserError(
                f"{where}: the header has no column {column!r}{suggest(column, header)}; its columns are "
                f"{', '.join(header)[:200]}: specify one with --{flag}"
            )
