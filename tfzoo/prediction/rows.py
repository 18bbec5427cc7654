"""The texts to answer: rows of a .txt, .jsonl, .csv or .tsv file or of stdin, one by one; see tfzoo.data.fields."""

import contextlib
import dataclasses
import io
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from tfzoo import files
from tfzoo.data import fields, row_files
from tfzoo.data.fields import FORMATS
from tfzoo.data.row_files import BadRow
from tfzoo.errors import UserError

STDIN = "-"


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
        """Returns the error for a bad row."""
        return UserError(f"{self.where}: {self.error}, or use --bad_rows=skip")


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
        if os.path.isdir(path):
            raise UserError(f"--input={path}: is a folder; specify a .txt, .jsonl, .csv or .tsv file")
        found = form or ("txt" if self.is_stdin else fields.format_of(path))
        if found not in FORMATS:
            raise UserError(
                f"--input={path}: the suffix is not .txt, .jsonl, .csv or .tsv; add --input_format=jsonl or another one"
            )
        self.form: str = found
        if not self.is_stdin and not os.path.isfile(path):
            problem = "is not a file" if os.path.exists(path) else "no such file"
            raise UserError(f"--input={path}: {problem}; specify a .txt, .jsonl, .csv or .tsv file, or - for stdin")

    def rows(self, columns: Sequence[str], optional: str | None = None, lists: bool = False) -> Iterator[Row]:
        """Yields the rows.

        Args:
          columns: the fields that contain the texts; a .txt file has only one.
          optional: the field of a further text, which belongs to the texts if the first row has it; then all rows must
            have it.
          lists: whether the fields may also contain lists, as in JSON.

        Raises:
          UserError: the file cannot be read, or has no column of that name, or no rows.
        """
        if self.form == "txt" and len(columns) > 1:
            raise UserError(
                f"--input={self.path}: the model reads {' and '.join(columns)}, but a line is only one text; "
                "write .jsonl, .csv or .tsv"
            )
        with self._open() as lines:
            records = fields.records(lines, self.form, self.name, columns[0], _flags(columns))
            first = next(records, None)
            if first is None:
                raise UserError(f"--input={self.path}: contains no rows; add some")
            with_pair = isinstance(first[1], dict) and optional is not None and first[1].get(optional) is not None
            names = (*columns, optional) if optional is not None and with_pair else tuple(columns)
            for line, record in itertools.chain([first], records):
                yield _row(f"{self.name}:{line}", record, names, None if with_pair else optional, lists)

    def scan(
        self, columns: Sequence[str], optional: str | None = None, skip: bool = False, lists: bool = False
    ) -> Scan:
        """Reads the whole file.

        Raises:
          UserError: as `rows`; or a row is bad and `skip` is false.
        """
        count = 0
        for row in self.rows(columns, optional, lists):
            if row.error and not skip:
                raise row.refusal()
            count += 1
        return Scan(count, files.sha256(self.path))

    @contextlib.contextmanager
    def _open(self) -> Iterator[TextIO]:
        """Opens the lines of the file, or of stdin, which stays open."""
        newline = fields.newline_of(self.form)
        if not self.is_stdin:
            with row_files.open_text(self.path, newline) as text:
                yield text
            return
        text = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", errors="surrogateescape", newline=newline)
        try:
            yield text
        finally:
            text.detach()


def _flags(names: Sequence[str]) -> dict[str, str]:
    """Returns the flag of each field of a text."""
    return {name: "pair_column" if i else "text_column" for i, name in enumerate(names)}


def _row(where: str, record: dict[str, Any] | BadRow, names: Sequence[str], excluded: str | None, lists: bool) -> Row:
    """Returns the row of a record whose fields `names` are the texts, and which must not have the field `excluded`."""
    try:
        if isinstance(record, BadRow):
            raise record
        texts = tuple(
            record[name] if lists and isinstance(record.get(name), list) else fields.text_of(record, name, flag)
            for name, flag in _flags(names).items()
        )
        if excluded is not None and record.get(excluded) is not None:
            words = f"has a {excluded!r}, but the first row has none"
            raise BadRow("unexpected_pair", words, "add it to all rows or to none")
    except BadRow as bad:
        return Row(where, {} if isinstance(record, BadRow) else record, (), f"{bad.words}; {bad.remedy}")
    return Row(where, record, texts)
