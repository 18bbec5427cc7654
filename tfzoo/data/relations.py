"""Reads texts in which two entities are marked, with the relation between them.

SemEval-2010 task 8 (Hendrickx et al. 2010): records with a number, a tab and a text in quotes, in which <e1>...</e1>
and <e2>...</e2> mark the entities; then lines with the relation and a comment, and a blank line. The comment is not
read; it can contain markers, too.

JSON lines: {"text": "The <e1>child</e1> sat in the <e2>cradle</e2>.", "label": "Other"}, or {"text": "The child sat in
the cradle.", "first": [4, 9], "second": [21, 27], "label": "Other"}, whose offsets count code points.

The markers are not part of the text of a row. Importing this module does not import TensorFlow.
"""

import dataclasses
import os
import re
from collections.abc import Iterator
from typing import Any

from tfzoo.data import row_files
from tfzoo.data.columns import DETECT_ALL, Columns
from tfzoo.data.row_files import BadRow, RowFile
from tfzoo.errors import UserError
from tfzoo.json_files import show

_RECORD = re.compile(r'\d+(?=[^\S\t]*+\t)\s++"?(.*)', re.DOTALL)
_MARKER = re.compile(r"</?e[12]>")
_MARKERS = ("<e1>", "</e1>", "<e2>", "</e2>")


@dataclasses.dataclass(frozen=True, slots=True)
class RelationRow:
    """A text with two entities.

    where: FILE:LINE at which the row starts. text: without markers. first, second: (start, end) of the entities in code
    points of the text; the second one can precede the first one. label: the relation; None if the file has none.
    """

    where: str
    text: str
    first: tuple[int, int]
    second: tuple[int, int]
    label: str | None


class RelationFile(RowFile[RelationRow]):
    """A file of texts with two entities each."""

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        flag: str,
        policy: str = "strict",
        columns: Columns = DETECT_ALL,
        labelled: bool = True,
    ):
        """Opens the file and detects its format.

        Args:
          path: the file.
          flag: the flag that names it, for messages.
          policy: "strict" or "skip", for bad rows.
          columns: the fields of JSON lines that the user specifies.
          labelled: whether each row must have a relation; otherwise none is read.

        Raises:
          UserError: the file cannot be read, is empty, or has another format.
        """
        super().__init__(path, flag=flag, policy=policy)
        for name, value in (("pair_column", columns.pair), ("delimiter", columns.delimiter)):
            if value is not None:
                raise UserError(f"--{name}={value}: does not apply to relations; omit it")
        self._labelled = labelled
        self._jsonl = self._is_jsonl()
        self.columns = columns
        if self._jsonl:
            text = self._json_field(columns.text, "text_column", ("text", "sentence", "content"))
            label = self._json_field(columns.label, "label_column", ("label", "relation")) if labelled else None
            self.columns = Columns(text=text, label=label)
        else:
            if columns != DETECT_ALL:
                raise self.error("has SemEval-2010-8's format, without columns; omit --text_column and --label_column")
            with row_files.open_text(self.path) as file:
                line = next(line for line in file if line.strip())
            if not _RECORD.fullmatch(line.lstrip()):
                raise self.error(
                    "its first line is not a number, a tab and a text in quotes; use SemEval-2010-8's format, or JSON "
                    'lines {"text": "A <e1>b</e1> <e2>c</e2>", "label": "..."}'
                )

    def describe(self) -> str:
        """Returns one line about the format that was detected."""
        if not self._jsonl:
            return f"{self.path}: SemEval-2010-8's format"
        label = f", relation = field {self.columns.label}" if self._labelled else ""
        return f"{self.path}: JSON lines; text = field {self.columns.text}{label}"

    def _records(self) -> Iterator[tuple[str, Any]]:
        if self._jsonl:
            yield from row_files.json_records(self.path)
            return
        record: list[str] = []
        start = 0
        with row_files.open_text(self.path) as file:
            for number, line in enumerate(file, 1):
                if record and (not line.strip() or _RECORD.fullmatch(line.lstrip())):
                    yield f"{self.path}:{start}", record
                    record = []
                if line.strip():
                    start = start if record else number
                    record.append(line)
        if record:
            yield f"{self.path}:{start}", record

    def _row(self, where: str, record: Any) -> RelationRow:
        marked, label = self._parts(record)
        if isinstance(record, dict) and ("first" in record or "second" in record):
            text = marked
            first, second = (_offsets(record, name, text) for name in ("first", "second"))
        else:
            text, first, second = _without_markers(marked)
        if first[0] < second[1] and second[0] < first[1]:
            raise BadRow("overlapping_entities", "the two entities overlap", "correct them or remove the row")
        if label is not None:
            self._check_known([label])
        return RelationRow(where, text, first, second, label)

    def _parts(self, record: dict[str, Any] | list[str]) -> tuple[str, str | None]:
        """Returns the text of a record, and its relation."""
        label: Any
        if isinstance(record, dict):
            text = row_files.json_text(record, self.columns.text or "")
            label = record.get(self.columns.label or "") if self._labelled else None
        else:
            for line in record:
                row_files.check_utf8(line)
            match = _RECORD.fullmatch(record[0].lstrip())
            if not match:
                words = f"{show(record[0].strip())} is not a number, a tab and a text in quotes"
                raise BadRow("bad_record", words, "correct the record or the blank lines between records")
            text = match[1].rstrip().removesuffix('"')
            others = [line.strip() for line in record[1:] if not line.startswith("Comment")]
            label = others[0] if others else None
        if not self._labelled:
            return text, None
        if not isinstance(label, str) or not label.strip():
            problem = "no relation" if label is None else f"relation {show(label)}, which is not a text"
            raise BadRow("no_label", f"has {problem}", "add it")
        row_files.check_utf8(label)
        return text, label.strip()


def _without_markers(marked: str) -> tuple[str, tuple[int, int], tuple[int, int]]:
    """Returns a text without markers, and the places of the two entities."""
    parts, places, end, length = [], {}, 0, 0
    for match in _MARKER.finditer(marked):
        part = marked[end : match.start()]
        parts.append(part)
        length += len(part)
        if match[0] in places:
            raise BadRow("bad_markers", f"contains {match[0]} more than once", "mark one entity with it")
        places[match[0]] = length
        end = match.end()
    for marker in _MARKERS:
        if marker not in places:
            raise BadRow("bad_markers", f"contains no {marker}", "mark both entities: <e1>...</e1>, <e2>...</e2>")
    text = "".join([*parts, marked[end:]])
    return text, *(_trimmed(text, places[f"<e{i}>"], places[f"</e{i}>"], f"<e{i}>") for i in (1, 2))  # type: ignore


def _offsets(record: dict[str, Any], name: str, text: str) -> tuple[int, int]:
    """Returns the place of an entity from a JSON field."""
    value = record.get(name)
    if not isinstance(value, list) or len(value) != 2 or any(type(one) is not int for one in value):
        problem = "missing" if value is None else f"{show(value)}, not [start, end]"
        raise BadRow("bad_span", f"field {name!r} is {problem}", "write the offsets of the entity, as [4, 9]")
    if not 0 <= value[0] < value[1] <= len(text):
        words = f"field {name!r} is {value}, which is not within the text of {len(text)} characters"
        raise BadRow("bad_span", words, "correct it; offsets count characters from 0, and the end is exclusive")
    return _trimmed(text, value[0], value[1], name)


def _trimmed(text: str, start: int, end: int, name: str) -> tuple[int, int]:
    """Returns a place without white space at either end."""
    part = text[start:end]
    if not part.strip():
        raise BadRow("bad_markers", f"the entity of {name} is empty", "mark at least one character")
    return start + len(part) - len(part.lstrip()), start + len(part.rstrip())
