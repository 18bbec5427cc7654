"""Reads the documents of files: .txt, .jsonl, .csv or .tsv, one at a time; see tfzoo.data.fields.

A document is a row whose text is not blank. Its id is the field `id_field`; without that, it is the number of the line
where the row begins, preceded by the name of the file and a colon if there are several files: "pages.jsonl:17". Blank
lines of a .txt file are not documents.
"""

import collections
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tfzoo.data import fields, row_files
from tfzoo.data.row_files import POLICIES, BadRow, RowFile
from tfzoo.errors import UserError

__all__ = ["POLICIES", "Document", "Source"]


class Document(NamedTuple):
    where: str  # FILE:LINE, for messages.
    id: str
    text: str


class Source:
    """The documents of one file or several; iterating over it reads the files again.

    Args:
      paths: the files, in the order of their documents.
      text_field, id_field: names of fields of .jsonl files, or of columns.
      bad_rows: "strict" raises an error for a row without text or id, "skip" counts it.

    Attributes:
      skipped: the number of rows that the last iteration skipped.

    Raises:
      UserError: a file is missing, empty or not a text, or its suffix is unknown.
    """

    def __init__(
        self,
        paths: str | pathlib.Path | Sequence[str | pathlib.Path],
        text_field: str = "text",
        id_field: str | None = None,
        bad_rows: str = "strict",
    ):
        listed = [paths] if isinstance(paths, str | pathlib.Path) else paths
        self.paths = [pathlib.Path(os.path.expanduser(path)) for path in listed]
        self.text_field, self.id_field, self.bad_rows, self.skipped = text_field, id_field, bad_rows, 0
        prefixes = [""] if len(self.paths) == 1 else _prefixes(self.paths)
        self._files = [_File(path, self, prefix) for path, prefix in zip(self.paths, prefixes, strict=True)]

    @property
    def name(self) -> str:
        """The files, as --input names them."""
        return ",".join(map(str, self.paths))

    def __iter__(self) -> Iterator[Document]:
        """Yields the documents.

        Raises:
          UserError: a file cannot be read, or has no document or no column of these names, or a row has no text or id
            or is not UTF-8; the message names the file and the row.
        """
        self.skipped = 0
        for file in self._files:
            yield from file.rows()
            self.skipped += sum(file.counts.values()) - file.counts["rows"]


class _File(RowFile[Document]):
    """The documents of a file; `prefix` precedes ids that are numbers of lines."""

    def __init__(self, path: pathlib.Path, source: Source, prefix: str):
        form = fields.format_of(str(path))
        if form is None:
            known = ", ".join(f".{name}" for name in fields.FORMATS)
            raise UserError(f"--input={path}: its suffix is not one of {known}; convert the file")
        if form == "txt" and source.id_field is not None:
            raise UserError(f"--id_field={source.id_field}: does not apply to .txt files; omit it")
        super().__init__(path, flag="input", policy=source.bad_rows)
        self._form, self._source, self._prefix = form, source, prefix

    def _records(self) -> Iterator[tuple[str, Any]]:
        source = self._source
        wanted = {source.text_field: "text_field"} | ({source.id_field: "id_field"} if source.id_field else {})
        with row_files.open_text(self.path, fields.newline_of(self._form)) as lines:
            for line, record in fields.records(lines, self._form, self.path, source.text_field, wanted):
                if self._form == "txt" and isinstance(record, dict) and not record[source.text_field].strip():
                    continue
                yield f"{self.path}:{line}", record if isinstance(record, BadRow) else (line, record)

    def _row(self, where: str, record: Any) -> Document:
        line, values = record
        source = self._source
        text = fields.text_of(values, source.text_field, "text_field")
        if not text.strip():
            raise BadRow("empty_text", f"{source.text_field!r} is blank", "write a text")
        if source.id_field is None:
            return Document(where, f"{self._prefix}{line}", text)
        id = values.get(source.id_field)
        if isinstance(id, int) and not isinstance(id, bool):
            return Document(where, str(id), text)
        id = fields.text_of(values, source.id_field, "id_field")
        if not id:
            raise BadRow("empty_id", f"{source.id_field!r} is empty", "write an id")
        return Document(where, id, text)


def _prefixes(paths: Sequence[pathlib.Path]) -> list[str]:
    """Returns the names of files, or their paths if two have the same name, as prefixes of ids."""
    repeated = [path for path, count in collections.Counter(paths).items() if count > 1]
    if repeated:
        raise UserError(f"--input: names {repeated[0]} twice; omit one")
    names = [path.name for path in paths]
    return [f"{name if names.count(name) == 1 else path}:" for name, path in zip(names, paths, strict=True)]
