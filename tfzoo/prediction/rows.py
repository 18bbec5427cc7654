"""The texts to answer: rows of a .txt, .jsonl, .csv or .tsv file or of stdin, read one by one.

| format | a row |
|---|---|
| txt | a line; an empty line is an empty text |
| jsonl | an object in a line; blank lines are skipped |
| csv, tsv | a record below the header, as Python's csv module reads it; blank lines are skipped |

Files may begin with a byte order mark, and lines may end with CRLF. Memory holds one row.
"""

import contextlib
import csv
import dataclasses
import hashlib
import itertools
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tfzoo import json_files
from tfzoo.errors import UserError, suggest
from tfzoo.json_files import BadJSON

FORMATS = ("txt", "jsonl", "csv", "tsv")
STDIN = "-"
_MAX_FIELD = 1 << 30  # Characters of a csv field.
_BOM = b"\xef\xbb\xbf"


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the input.

    Attributes:
      where: FILE:LINE.
      fields: the fields of the record.
      texts: the texts to answer; empty if the row is bad.
      error: what is wrong with a bad row, and the remedy; otherwise "".
    """

    where: str
    fields: dict[str, Any]
    texts: tuple[str, ...] = ()
    error: str = ""

    def refusal(self) -> UserError:
        """Returns the error of a bad row."""
        return UserError(f"{self.where}: {self.error}, or add --bad_rows=skip")


@dataclasses.dataclass(frozen=True)
class Scan:
    """The number of rows of a file, and the SHA-256 of its content."""

    rows: int
    sha256: str


class Source:
    """The rows of a file, or of stdin.

    Args:
      path: the file; "-" is stdin.
      form: one of FORMATS; None means that of the file's suffix, and for stdin txt.

    Raises:
      UserError: there is no such file, or its format is unknown.
    """

    def __init__(self, path: str, form: str | None = None):
        self.path, self.is_stdin = path, path == STDIN
        self.name = "stdin" if self.is_stdin else path
        suffix = pathlib.Path(path).suffix.removeprefix(".")
        self.form = form or ("txt" if self.is_stdin else suffix)
        if self.form not in FORMATS:
            raise UserError(
                f"--input={path}: the suffix is not .txt, .jsonl, .csv or .tsv; add --input_format=jsonl or another one"
            )
        if not self.is_stdin and not os.path.isfile(path):
            problem = "is not a file" if os.path.exists(path) else "no such file"
            raise UserError(f"--input={path}: {problem}; specify a .txt, .jsonl, .csv or .tsv file, or - for stdin")

    def rows(self, columns: Sequence[str], optional: str | None = None) -> Iterator[Row]:
        """Yields the rows.

        Args:
          columns: the fields that contain the texts; a .txt file has only one.
          optional: the field of a further text, which belongs to the texts if the first row has it; then all rows must
            have it.

        Raises:
          UserError: the file cannot be read, or has no column of that name, or no rows.
        """
        return self._rows(columns, optional, lambda line: None)

    def scan(self, columns: Sequence[str], optional: str | None = None, skip: bool = False) -> Scan:
        """Reads the whole file.

        Raises:
          UserError: as `rows`; or a row is bad and `skip` is false.
        """
        digest, count = hashlib.sha256(), 0
        for row in self._rows(columns, optional, digest.update):
            if row.error and not skip:
                raise row.refusal()
            count += 1
        return Scan(count, digest.hexdigest())

    def _rows(self, columns: Sequence[str], optional: str | None, note: Callable[[bytes], object]) -> Iterator[Row]:
        """Yields the rows; `note` receives every line."""
        if self.form == "txt" and len(columns) > 1:
            raise UserError(
                f"--input={self.path}: the model reads {' and '.join(columns)}, but a line is only one text; "
                "write .jsonl, .csv or .tsv"
            )
        read = {"txt": self._text_records, "jsonl": self._json_records}.get(self.form, self._table_records)
        records = read(self._lines(note), columns)
        first = next(records, None)
        if first is None:
            raise UserError(f"--input={self.path}: contains no rows; add some")
        with_pair = optional is not None and first[1].get(optional) is not None
        names = (*columns, optional) if optional is not None and with_pair else tuple(columns)
        for where, fields, error in itertools.chain([first], records):
            if not error:
                error = _problem(fields, names, None if with_pair else optional)
            texts = () if error else tuple(fields[name] for name in names)
            yield Row(where, fields, texts, error)

    def _lines(self, note: Callable[[bytes], object]) -> Iterator[bytes]:
        try:
            with contextlib.nullcontext(sys.stdin.buffer) if self.is_stdin else open(self.path, "rb") as file:
                for number, line in enumerate(file):
                    note(line)
                    yield line if number else line.removeprefix(_BOM)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UserError(f"--input={self.path}: cannot be read ({reason}); make it readable") from None

    def _text_records(self, lines: Iterator[bytes], columns: Sequence[str]) -> Iterator[tuple[str, dict, str]]:
        for number, line in enumerate(lines, 1):
            text = line.removesuffix(b"\n").removesuffix(b"\r").decode(errors="surrogateescape")
            yield f"{self.name}:{number}", {columns[0]: text}, ""

    def _json_records(self, lines: Iterator[bytes], columns: Sequence[str]) -> Iterator[tuple[str, dict, str]]:
        del columns
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{self.name}:{number}"
            try:
                record = json_files.parse(line)
            except BadJSON as error:
                yield where, {}, f"{error}; {error.remedy}"
                continue
            if isinstance(record, dict):
                yield where, record, ""
            else:
                yield where, {}, 'is not a JSON object; write {"text": ...}'

    def _table_records(self, lines: Iterator[bytes], columns: Sequence[str]) -> Iterator[tuple[str, dict, str]]:
        csv.field_size_limit(_MAX_FIELD)
        decoded = (line.decode(errors="surrogateescape") for line in lines)
        table = csv.reader(decoded, delimiter="\t" if self.form == "tsv" else ",")
        header: list[str] = []
        line = 0  # The last line of the previous record.
        while True:
            try:
                record = next(table, None)
            except csv.Error as error:
                raise UserError(f"{self.name}:{line + 1}: is not {self.form} ({error}); correct it") from None
            if record is None:
                return
            where, line = f"{self.name}:{line + 1}", table.line_num
            if not record:
                continue
            if not header:
                header = record
                self._check_header(where, header, columns)
            elif len(record) != len(header):
                yield where, {}, f"has {len(record)} fields, but the header has {len(header)}; correct it"
            else:
                yield where, dict(zip(header, record)), ""

    def _check_header(self, where: str, header: list[str], columns: Sequence[str]) -> None:
        if len(set(header)) < len(header):
            repeated = next(name for name in header if header.count(name) > 1)
            raise UserError(f"{where}: the header has two columns {repeated!r}; rename one")
        for name in columns:
            if name not in header:
                raise UserError(
                    f"{where}: the header has no column {name!r}{suggest(name, header)}; its columns are "
                    f"{', '.join(header)[:200]}: specify one with --text_column or --pair_column"
                )


def _problem(fields: dict[str, Any], names: Sequence[str], excluded: str | None) -> str:
    """Returns what is wrong with the texts of a record, or ""."""
    for name in names:
        value = fields.get(name)
        if value is None:
            near = suggest(name, fields)
            return f"has no {name!r}{near}; add it, or specify its field with --text_column or --pair_column"
        if not isinstance(value, str):
            return f"{name!r} is {json_files.show(value)}, not a string; write a string"
        if any("\ud800" <= character <= "\udfff" for character in value):
            return f"{name!r} is not UTF-8 text; save it as UTF-8"
    if excluded is not None and fields.get(excluded) is not None:
        return f"has a {excluded!r}, but the first row has none; add it to all rows or to none"
    return ""
