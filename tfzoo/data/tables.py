"""Reads tables of text: the delimiter, whether quotes are in use, and rows with the line at which each one starts.

The delimiter of a .tsv file is the tab. Otherwise it is the one that divides most of the first rows into the same
number of columns, at least two: comma, semicolon, tab or vertical bar (.csv), or tab, comma, semicolon or vertical bar
(other suffixes). Earlier ones are preferred.

Quotes are read as Python's csv module reads them, and a quoted field may contain delimiters and line breaks. But many
tab-separated files, such as ChnSentiCorp's, contain texts that begin with a quote and no quoted fields. Read with
quotes, one of these texts would extend over all lines up to the next quote. In a tab-separated file, quotes are
therefore ordinary characters unless each field that begins with a quote also ends with one, with each quote inside it
doubled, and

- more of the rows have the same number of columns than if quotes are ordinary characters;
- or as many, no field contains a line break, and a field contains a doubled quote or all fields of a column are quoted.

The whole file is inspected for this, because such fields can be rare.
"""

import collections
import contextlib
import csv
import dataclasses
from collections.abc import Iterable, Iterator

from tfzoo.data import row_files
from tfzoo.data.row_files import BadRow, open_text
from tfzoo.errors import UserError

NAMES = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "vertical bar", " ": "space"}
_BY_SUFFIX = {".tsv": "\t", ".csv": ",;\t|"}
_OTHERS = "\t,;|"
_SAMPLE_LINES = 1000
_SAMPLE_CHARACTERS = 1 << 20
_SHARE = 0.9  # The fraction of rows that must have the same number of columns.


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How a table is written: the delimiter, None if each line is one text; and whether quotes are in use, None if no
    field begins with one, so that it does not matter."""

    delimiter: str | None
    quotes: bool | None

    def __str__(self) -> str:
        if self.delimiter is None:
            return "one text per line"
        name = NAMES.get(self.delimiter, repr(self.delimiter))
        return f"{name}-separated{', quotes are ordinary characters' if self.quotes is False else ''}"

    def reader(self, lines: Iterable[str]) -> Iterator[list[str]]:
        """Returns the fields of lines; a blank line has none."""
        if self.delimiter is None:
            return map(_whole_line, lines)
        # The limit is a setting of the module, and the default is smaller than many documents.
        csv.field_size_limit(max(csv.field_size_limit(), row_files.MAX_ROW))
        if self.quotes:
            return csv.reader(lines, delimiter=self.delimiter)
        return csv.reader(lines, delimiter=self.delimiter, quoting=csv.QUOTE_NONE)


def _whole_line(line: str) -> list[str]:
    return [line.rstrip("\r\n")] if line.strip() else []


def delimiter_of(value: str) -> str:
    """Returns the delimiter that --delimiter specifies: a character, \\t, or a name such as tab.

    Raises:
      UserError: it is not a character.
    """
    named = {name: character for character, name in NAMES.items()} | {"\\t": "\t"}
    delimiter = named.get(value.lower(), value)
    if len(delimiter) != 1 or delimiter in '\r\n"':
        raise UserError(f"--delimiter={value!r}: is not a single character; use one, such as ',', or tab")
    return delimiter


def sample(path: str) -> tuple[list[str], bool]:
    """Returns the first lines of a file, with their endings, and whether there are more."""
    lines: list[str] = []
    size = 0
    with open_text(path) as text:
        for line in text:
            if len(lines) == _SAMPLE_LINES or size > _SAMPLE_CHARACTERS:
                return lines, True
            lines.append(line)
            size += len(line)
    return lines, False


def parse_sample(lines: list[str], more: bool, dialect: Dialect) -> list[list[str]]:
    """Returns the rows of a sample, without blank lines and without a row that the end of the sample may cut."""
    rows = []
    with contextlib.suppress(csv.Error):  # `rows` reports it.
        for row in dialect.reader(lines):
            if row:
                rows.append(row)
    return rows[:-1] if more and dialect.quotes and len(rows) > 1 else rows


def detect(path: str, delimiter: str | None, *, lines_are_texts: bool = False) -> Dialect:
    """Returns the dialect of a file.

    Args:
      path: the file.
      delimiter: None to detect it.
      lines_are_texts: whether each line of a file that is neither .csv nor .tsv is one text.
    """
    suffix = row_files.suffix(path)
    if delimiter is None and lines_are_texts and suffix not in _BY_SUFFIX:
        return Dialect(None, None)
    if delimiter is None:
        candidates = _BY_SUFFIX.get(suffix, _OTHERS)
        lines, more = sample(path)
        shares = {one: _share(parse_sample(lines, more, Dialect(one, one != "\t"))) for one in candidates}
        delimiter = max(candidates, key=lambda one: shares[one])
        if shares[delimiter] < _SHARE:
            if suffix not in _BY_SUFFIX:
                return Dialect(None, None)
            delimiter = candidates[0]
    return Dialect(delimiter, _uses_quotes(path) if delimiter == "\t" else True)


def _share(rows: list[list[str]]) -> float:
    """Returns the fraction of rows that have the most frequent number of columns; 0 if that is one column."""
    counts = collections.Counter(map(len, rows))
    columns, frequency = counts.most_common(1)[0] if counts else (1, 0)
    return frequency / len(rows) if columns > 1 else 0.0


def _uses_quotes(path: str) -> bool | None:
    """Returns whether quotes are in use in a tab-separated file, by the rule of the module's docstring, or None if no
    field begins with a quote."""
    plain_widths: collections.Counter[int] = collections.Counter()
    found = False
    with open_text(path) as text:
        for line in text:
            if line.strip("\r\n"):
                plain_widths[line.count("\t")] += 1
                found = found or line.startswith('"') or '\t"' in line
    if not found:
        return None
    widths: collections.Counter[int] = collections.Counter()
    quoted: collections.Counter[int] = collections.Counter()  # Column -> its quoted fields.
    doubled = broken = False
    with open_text(path) as text:
        for fields in _quoted_rows(text):
            if fields is None:
                return False
            widths[len(fields)] += 1
            for i, field in enumerate(fields):
                if field.startswith('"'):
                    quoted[i] += 1
                    doubled = doubled or '""' in field[1:-1]
                    broken = broken or "\n" in field or "\r" in field
    share, plain_share = _largest_share(widths), _largest_share(plain_widths)
    if share != plain_share:
        return share > plain_share
    return not broken and (doubled or max(quoted.values()) == widths.total())


def _largest_share(counts: collections.Counter[int]) -> float:
    return max(counts.values()) / counts.total()


def _quoted_rows(lines: Iterable[str]) -> Iterator[list[str] | None]:
    """Yields the fields of each row of a tab-separated file with quoted fields, including the quotes, which the csv
    module does not report; None for a row in which a field that begins with a quote is not a quoted field."""
    lines = iter(lines)
    for line in lines:
        fields: list[str] = []
        rest, size = line, 0
        if not line.strip("\r\n"):
            continue
        while True:
            if not rest.startswith('"'):
                field, tab, rest = rest.partition("\t")
            else:
                end = _end_of_quoted(rest)
                while end < 0:
                    more = next(lines, None)
                    size += len(more or "")
                    if more is None or size > row_files.MAX_ROW:
                        yield None
                        return
                    rest += more
                    end = _end_of_quoted(rest)
                field, after = rest[:end], rest[end:]
                tab, rest = after[:1], after[1:]
                if tab not in ("\t", "\r", "\n", ""):
                    yield None
                    return
            fields.append(field.rstrip("\r\n") if tab != "\t" else field)
            if tab != "\t":
                break
        yield fields


def _end_of_quoted(text: str) -> int:
    """Returns where the quoted field at the start of a text ends, after its closing quote; -1 if it is not closed."""
    at = 1
    while (at := text.find('"', at)) >= 0:
        if not text.startswith('"', at + 1):
            return at + 1
        at += 2
    return -1


def rows(path: str, dialect: Dialect) -> Iterator[tuple[int, list[str] | BadRow]]:
    """Yields (line number from 1 at which the row starts, its fields) without blank lines, one row at a time."""
    with open_text(path) as text:
        yield from rows_of(text, dialect)


def rows_of(lines: Iterable[str], dialect: Dialect) -> Iterator[tuple[int, list[str] | BadRow]]:
    """Yields the rows of lines with their endings, as `rows` does."""
    feed = _Feed(lines)
    reader = dialect.reader(feed)
    while True:
        feed.begin_row()
        start = feed.number + 1
        fields: list[str] | BadRow
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fields = BadRow("invalid_csv", f"is not valid CSV ({error})", "correct the quotes")
        except BadRow as bad:
            fields = bad
        if fields:
            yield start, feed.bad or fields


class _Feed(Iterator[str]):
    """The lines of a file for the csv module: counts them, and checks those of the current row."""

    def __init__(self, lines: Iterable[str]):
        self._lines = iter(lines)
        self.number = 0
        self.bad: BadRow | None = None
        self._size = 0

    def begin_row(self) -> None:
        self.bad, self._size = None, 0

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        self._size += len(line)
        if self._size > row_files.MAX_ROW:
            # The csv module begins a row after an exception.
            words = f"a row of more than {row_files.MAX_ROW:,} characters"
            raise BadRow("row_too_long", words, "close the quote at its beginning or make the text shorter")
        if not line.isascii():
            try:
                row_files.check_utf8(line)
            except BadRow as bad:
                self.bad = self.bad or bad
        return line
