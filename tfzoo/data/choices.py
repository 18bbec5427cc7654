"""Reads questions with several answers to choose from: tables (.csv, .tsv) with a header, and JSON lines.

    startphrase,ending0,ending1,ending2,ending3,label
    On stage a woman takes a seat at the piano. She,sits on a bench.,smiles.,sings.,plays.,3

    {"question": "Where do people sleep?", "choices": ["in a bed", "on a road"], "label": 0}

The context is the field --text_column, or the first of startphrase, sent1, question, context, ctx and others; several
fields are joined with a space. In SWAG's files, which have both, it is sent1, and each ending begins with sent2 (Devlin
et al. 2019, section 4.4). The endings are a list (endings, choices, options), {"text": [...], "label": [...]} as in
ARC, or columns such as ending0, ending1. The label is the position of the right ending, from 0, its letter, its name in
the list of labels, or its text. Rows may have different numbers of endings; empty ones at the end of a table's row do
not count. Importing this module does not import TensorFlow.
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tfzoo.data import row_files, tables
from tfzoo.data.columns import DETECT_ALL, Columns
from tfzoo.data.row_files import BadRow, RowFile
from tfzoo.json_files import show

_CONTEXTS = ("startphrase", "question", "context", "ctx", "premise", "prompt", "query", "text")
_BEFORE_QUESTION = ("passage", "article", "context")
_LISTS = ("endings", "choices", "options", "candidates")
_COLUMN = re.compile(r"(ending|choice|option|candidate|answer)[ _]?([0-9]+|[a-z])", re.IGNORECASE)
_LABELS = ("label", "answerkey", "answer", "correct", "gold")


@dataclasses.dataclass(frozen=True, slots=True)
class ChoiceRow:
    """A context with its endings, of which the one with the number `label` is right; where: FILE:LINE."""

    where: str
    context: str
    endings: tuple[str, ...]
    label: int

    @property
    def texts(self) -> tuple[str, ...]:
        """The context, then the endings."""
        return self.context, *self.endings


@dataclasses.dataclass(frozen=True)
class _Fields:
    """Which fields of a record are read: those of the context, one before each ending, the endings, and the label."""

    context: tuple[str, ...]
    before: str | None
    endings: tuple[str, ...]
    label: str


class ChoiceFile(RowFile[ChoiceRow]):
    """A file of questions with answers to choose from."""

    def __init__(self, path: str | os.PathLike, *, flag: str, columns: Columns = DETECT_ALL, policy: str = "strict"):
        """Opens the file, and finds its columns.

        Args:
          path, flag, policy: see RowFile.
          columns: the columns that the user specifies: several of the context, and those of the endings (`pair`), are
            separated by commas.

        Raises:
          UserError: the file cannot be read, or a column is missing.
        """
        super().__init__(path, flag=flag, policy=policy)
        self._is_json = self._is_jsonl()
        delimiter = None if columns.delimiter is None else tables.delimiter_of(columns.delimiter)
        if self._is_json and delimiter is not None:
            raise self.error(f"--delimiter={columns.delimiter}: does not apply to JSON lines; omit it")
        self._dialect = None if self._is_json else tables.detect(self.path, delimiter)
        first = next((record for _, record in self._records() if isinstance(record, dict)), None)
        if first is None:
            raise self.error("contains no row that can be read; write a header and rows, or JSON lines")
        self._names = list(first)
        self._fields = self._find(columns)

    def _find(self, columns: Columns) -> _Fields:
        names = {name.strip().lower(): name for name in reversed(self._names)}
        given = {"text_column": columns.text, "pair_column": columns.pair, "label_column": columns.label}
        chosen = {flag: tuple(text.split(",")) if text else () for flag, text in given.items()}
        for flag, fields in chosen.items():
            for name in fields:
                if name not in self._names:
                    listed = ", ".join(self._names)[:200]
                    raise self.error(f"has no column {name!r} (columns: {listed}); specify another with --{flag}")
        before = None
        context = chosen["text_column"]
        if not context and "sent1" in names and "sent2" in names:
            context, before = (names["sent1"],), names["sent2"]
        if not context:
            found = [names[name] for name in _CONTEXTS if name in names][:1]
            passage = [names[name] for name in _BEFORE_QUESTION if name in names][:1]
            context = (*passage, *found) if found and found[0].lower() == "question" else tuple(found)
        endings = chosen["pair_column"] or tuple(names[name] for name in _LISTS if name in names)[:1]
        if not endings:
            numbered = [name for name in self._names if _COLUMN.fullmatch(name.strip())]
            kinds = {_COLUMN.fullmatch(name.strip())[1].lower() for name in numbered}  # type: ignore[index]
            endings = tuple(numbered) if len(kinds) == 1 and len(numbered) > 1 else ()
        label = chosen["label_column"] or tuple(names[name] for name in _LABELS if name in names)[:1]
        for what, flag, fields in (
            ("context", "text_column", context),
            ("list of endings or columns ending0, ending1", "pair_column", endings),
            ("label", "label_column", label),
        ):
            if not fields:
                listed = ", ".join(self._names)[:200] or "none"
                raise self.error(f"no column is the {what} (columns: {listed}); specify it with --{flag}")
        return _Fields(context, before, endings, label[0])

    def describe(self) -> str:
        """Returns one line about the format and the columns that were found."""
        fields = self._fields
        form = "JSON lines" if self._dialect is None else str(self._dialect)
        endings = ", ".join(f"{fields.before} + {name}" if fields.before else name for name in fields.endings)
        return (
            f"{self.path}: {form}; context = {' + '.join(fields.context)}, endings = {endings}, label = {fields.label}"
        )

    def _records(self) -> Iterator[tuple[str, Any]]:
        if self._dialect is None:
            yield from row_files.json_records(self.path)
            return
        header: list[str] | None = None
        for line, fields in tables.rows(self.path, self._dialect):
            where = f"{self.path}:{line}"
            if isinstance(fields, BadRow):
                yield where, fields
            elif header is None:
                header = [name.strip() for name in fields]
            elif len(fields) != len(header):
                words = f"has {len(fields)} columns instead of {len(header)}"
                yield where, BadRow("other_columns", words, "correct the row, or quote texts with the delimiter")
            else:
                yield where, dict(zip(header, fields))

    def _row(self, where: str, record: Mapping[str, Any]) -> ChoiceRow:
        fields = self._fields
        context = " ".join(_text(record, name) for name in fields.context)
        endings, names = self._endings(record)
        if len(endings) < 2:
            raise BadRow("one_ending", f"has {len(endings)} endings to choose from", "add others")
        if fields.before is not None:
            endings = [f"{_text(record, fields.before)} {ending}" for ending in endings]
        return ChoiceRow(where, context, tuple(endings), _label(record.get(fields.label), endings, names))

    def _endings(self, record: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """Returns the endings of a record, and their names if it has a list of names."""
        fields = self._fields.endings
        value = record.get(fields[0])
        names: list[str] = []
        if len(fields) > 1 or not isinstance(value, list | dict):
            values = [record.get(name) for name in fields]
            while values and (values[-1] is None or (isinstance(values[-1], str) and not values[-1].strip())):
                values.pop()
        elif isinstance(value, dict):
            values, names = value.get("text") or [], [str(name) for name in value.get("label") or []]
        else:
            values = value
        endings = []
        for i, ending in enumerate(values):
            if not isinstance(ending, str) or not ending.strip():
                raise BadRow("not_a_string", f"ending {i} is {show(ending)}, not a text", "write a text")
            row_files.check_utf8(ending)
            endings.append(ending)
        return endings, names


def _text(record: Mapping[str, Any], name: str) -> str:
    return row_files.json_text(dict(record), name)


def _label(value: Any, endings: list[str], names: list[str]) -> int:
    """Returns the position of the right ending."""
    text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if text in names:
        return names.index(text)
    if re.fullmatch("[0-9]+", text):
        place = int(text)
    elif re.fullmatch("[A-Za-z]", text) and text not in endings:
        place = ord(text.upper()) - ord("A")
    else:
        place = endings.index(text) if text in endings else -1
    if not 0 <= place < len(endings):
        remedy = f"write a number from 0 to {len(endings) - 1}, a letter, or the text of an ending"
        raise BadRow("unknown_label", f"label {show(value)} is none of its {len(endings)} endings", remedy)
    return place
