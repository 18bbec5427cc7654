"""Reads the documents of a file: .txt, .jsonl, .csv or .tsv, one at a time.

| suffix | a document | its id without `id_field` |
|---|---|---|
| .txt | a line that is not blank | the number of the line |
| .jsonl | a line with an object, whose `text_field` is a string | the number of the line |
| .csv, .tsv | a row after the header, which names the columns | the number of the row's first line |

Quotation marks are read as Python's csv module reads them. Files are UTF-8 with or without a byte order mark; lines end
with LF or CRLF.
"""

import codecs
import csv
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from tfzoo import json_files
from tfzoo.errors import UserError, suggest
from tfzoo.json_files import BadJSON

POLICIES = ("strict", "skip")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SUFFIXES = (".txt", ".jsonl", *_DELIMITERS)


class Document(NamedTuple):
    where: str  # FILE:LINE, for messages.
    id: str
    text: str


class _Bad(Exception):
    """A problem with a row, worded to follow its place, with the remedy."""


@dataclasses.dataclass
class Source:
    """The documents of a file; iterating over it reads the file again.

    Attributes:
      path: the file.
      text_field, id_field: names of fields of .jsonl files, or of columns.
      bad_rows: "strict" raises an error for a row without text or id, "skip" counts it.
      skipped: the number of rows that the last iteration skipped.
    """

    path: pathlib.Path
    text_field: str = "text"
    id_field: str | None = None
    bad_rows: str = "strict"
    skipped: int = 0

    def __iter__(self) -> Iterator[Document]:
        """Yields the documents.

        Raises:
          UserError: the file cannot be read, has another suffix, no document or no column of these names, or a row has
            no text or id or is not UTF-8; the message names the file and the row.
        """
        self.skipped = found = 0
        for line, record in self._records():
            try:
                document = self._document(line, record)
            except _Bad as bad:
                if self.bad_rows == "strict":
                    raise UserError(f"{self.path}:{line}: {bad}, or use --bad_rows=skip") from None
                self.skipped += 1
                continue
            found += 1
            yield document
        if not found:
            skipped = f" ({self.skipped} rows were skipped)" if self.skipped else ""
            raise UserError(f"--input={self.path}: contains no text{skipped}; write one per line or row")

    def _document(self, line: int, record: Any) -> Document:
        if isinstance(record, _Bad):
            raise record
        text = self._value(record, self.text_field)
        if not text.strip():
            raise _Bad(f"{self.text_field!r} is blank; write a text")
        id = str(line) if self.id_field is None else self._value(record, self.id_field)
        return Document(f"{self.path}:{line}", id, text)

    def _value(self, record: dict[str, Any], field: str) -> str:
        value = record.get(field)
        if field == self.id_field and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value:
            problem = "missing" if value is None else "not a string" if not isinstance(value, str) else "empty"
            near = suggest(field, record) if value is None else ""
            raise _Bad(f"{field!r} is {problem}{near}; write a string")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _Bad(f"{field!r} contains a lone surrogate; write the complete character") from None
        return value

    def _records(self) -> Iterator[tuple[int, Any]]:
        """Yields (number of the line, fields); a _Bad takes the place of fields that cannot be read."""
        suffix = self.path.suffix
        if suffix not in _SUFFIXES:
            raise UserError(f"--input={self.path}: its suffix is not one of {', '.join(_SUFFIXES)}; convert the file")
        if suffix == ".txt" and self.id_field is not None:
            raise UserError(f"--id_field={self.id_field}: does not apply to .txt files; omit it")
        if suffix in _DELIMITERS:
            yield from self._rows(_DELIMITERS[suffix])
            return
        for line, text in self._lines():
            text = text if isinstance(text, _Bad) else text.rstrip("\r\n")
            if isinstance(text, str) and not text.strip():
                continue
            yield (
                line,
                _parsed(text)
                if suffix == ".jsonl" and isinstance(text, str)
                else (text if isinstance(text, _Bad) else {self.text_field: text}),
            )

    def _lines(self) -> Iterator[tuple[int, Any]]:
        """Yields (number of the line, its text with the line ending, or a _Bad)."""
        try:
            with open(self.path, "rb") as file:
                for number, line in enumerate(file, 1):
                    try:
                        yield number, (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode()
                    except UnicodeDecodeError as error:
                        yield number, _Bad(f"is not UTF-8 at byte {error.start} of the line; save the file as UTF-8")
        except OSError as error:
            raise UserError(f"--input={self.path}: cannot be read ({(error.strerror or str(error)).lower()})") from None

    def _rows(self, delimiter: str) -> Iterator[tuple[int, Any]]:
        line = 1  # Where the row begins; a row with quoted line breaks has several lines.

        def lines() -> Iterator[str]:
            for number, text in self._lines():
                if isinstance(text, _Bad):  # The row that contains this line cannot be known.
                    raise UserError(f"{self.path}:{number}: {text}")
                yield text

        csv.field_size_limit(1 << 30)
        reader = csv.reader(lines(), delimiter=delimiter, strict=True)
        header: list[str] = []
        try:
            for row in reader:
                if row and not header:
                    header = self._header(row)
                elif row:
                    bad = _Bad(f"has {len(row)} columns, but the header has {len(header)}; correct the row")
                    yield line, dict(zip(header, row, strict=True)) if len(row) == len(header) else bad
                line = reader.line_num + 1
        except csv.Error as error:
            raise UserError(f"{self.path}:{line}: is not valid CSV ({error}); correct the quotation marks") from None

    def _header(self, row: list[str]) -> list[str]:
        for flag, field in (("text_field", self.text_field), ("id_field", self.id_field)):
            if field is not None and row.count(field) != 1:
                problem = "appears twice" if field in row else f"is not a column{suggest(field, row)}"
                raise UserError(
                    f"{self.path}:1: --{flag}={field} {problem}; the first row names the columns: "
                    f"{json_files.show(', '.join(row))}"
                )
        return row


def _parsed(line: str) -> Any:
    try:
        record = json_files.parse(line)
    except BadJSON as error:
        return _Bad(f"{error}; {error.remedy}")
    return record if isinstance(record, dict) else _Bad("is not a JSON object; write one per line")
