"""What the readers of labelled, tagged and relation files share: lines of UTF-8, bad rows, counts, fingerprints.

A bad row is a row that cannot be used, such as one with too few columns. Under the policy "strict" it is an error that
names the file and the row; under "skip" it is left out and counted (--bad_rows). Problems of a whole file, such as a
missing file or a damaged gzip stream, are errors under both policies.

Files are read as a stream and can be compressed with gzip. A byte order mark is not part of the text.
"""

import collections
import contextlib
import gzip
import io
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TextIO, TypeVar

from tfzoo import files, json_files
from tfzoo.errors import UserError
from tfzoo.json_files import BadJSON, show

POLICIES = ("strict", "skip")
MAX_ROW = 1 << 24  # Characters of a row; a longer row is the result of a quote that is not closed.
MAX_LINE_BYTES = 4 * MAX_ROW

# Magic numbers of files that people mistake for text, with the remedy.
_NOT_TEXT = {
    b"PK\x03\x04": ("a spreadsheet or zip file", "save it as CSV in UTF-8"),
    b"PAR1": ("a Parquet file", "convert it to CSV or JSON lines"),
    b"\x28\xb5\x2f\xfd": ("a zstd file", "decompress it"),
    b"\xfd7zXZ\0": ("an xz file", "decompress it"),
    b"BZh": ("a bzip2 file", "decompress it"),
    b"\xff\xfe": ("in UTF-16", "save it as UTF-8"),
    b"\xfe\xff": ("in UTF-16", "save it as UTF-8"),
    b"version https://git-lfs": ("a Git LFS pointer, not the file", "fetch it with git lfs pull"),
}
_GZIP = b"\x1f\x8b"
_INVALID = re.compile("[\ud800-\udfff]")


class BadRow(Exception):
    """A problem with a row: the kind under which it is counted, its description and the remedy."""

    def __init__(self, kind: str, words: str, remedy: str):
        super().__init__(words)
        self.kind, self.words, self.remedy = kind, words, remedy


def check_utf8(text: str) -> None:
    """Raises BadRow if a text, decoded by `open_text`, contains a byte that is not UTF-8."""
    if not text.isascii() and (match := _INVALID.search(text)):
        byte = ord(match[0]) - 0xDC00
        if not 0x80 <= byte <= 0xFF:  # Of a JSON escape.
            raise BadRow("lone_surrogate", "contains a lone surrogate", "write the complete character")
        before = show(text[max(0, match.start() - 20) : match.start()])
        remedy = "convert the file to UTF-8, for example with iconv -f latin1 -t utf-8"
        raise BadRow("invalid_utf8", f"byte 0x{byte:02x} after {before} is not UTF-8", remedy)


class _Lines(io.BufferedReader):
    """Bytes of a file, which raise UserError inside a line longer than MAX_LINE_BYTES: a few bytes of gzip can contain
    an endless one. `io.TextIOWrapper` reads with `read1`, or with `read` if the whole text is requested."""

    def __init__(self, raw: Any, path: str):
        super().__init__(raw)
        self._path, self._since_end = path, 0

    def read1(self, size: int = -1) -> bytes:
        data = super().read1(size)
        end = max(data.rfind(b"\n"), data.rfind(b"\r"))
        self._since_end = self._since_end + len(data) if end < 0 else len(data) - end
        self._check()
        return data

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size >= 0:
            return super().read(size)
        data = super().read(MAX_LINE_BYTES + 1)
        self._since_end = len(data)
        self._check()
        return data

    def _check(self) -> None:
        if self._since_end > MAX_LINE_BYTES:
            raise UserError(f"{self._path}: has a line longer than {MAX_LINE_BYTES:,} bytes; split it")


@contextlib.contextmanager
def open_text(path: str, newline: str = "") -> Iterator[TextIO]:
    """Opens a file of UTF-8, decompressed if it is a gzip file. Line endings are kept, as the csv module requires, and
    invalid bytes become lone surrogates (PEP 383), which `check_utf8` reports. `newline` is that of `open`.

    Raises:
      UserError: the file cannot be read, its gzip stream is damaged, or it contains a line longer than MAX_LINE_BYTES.
    """
    try:
        with contextlib.ExitStack() as stack:
            file: Any = stack.enter_context(files.open_file(path))
            start = file.read(2)
            file.seek(0)
            if start == _GZIP:
                file = stack.enter_context(gzip.GzipFile(fileobj=file))
            lines: Any = _Lines(file, path)
            yield io.TextIOWrapper(lines, encoding="utf-8-sig", errors="surrogateescape", newline=newline)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: gzip stream damaged or truncated ({error}); create or download it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()}); check the file") from None


def suffix(path: str) -> str:
    """Returns the suffix of a path in lower case, without .gz."""
    return os.path.splitext(path.lower().removesuffix(".gz"))[1]


def json_record(line: str) -> dict[str, Any]:
    """Returns the JSON object of a line.

    Raises:
      BadRow: the line is not a JSON object, or not UTF-8.
    """
    check_utf8(line)
    remedy = "write one JSON object per line"
    try:
        value = json_files.parse(line)
    except BadJSON as error:
        raise BadRow("invalid_json", str(error), remedy) from None
    if not isinstance(value, dict):
        raise BadRow("not_an_object", f"{show(value)} is not a JSON object", remedy)
    return value


def json_records(path: str) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    """Yields (FILE:LINE, JSON object) of each line that is not blank, or (FILE:LINE, BadRow)."""
    with open_text(path) as text:
        for number, line in enumerate(text, 1):
            if line.strip():
                try:
                    yield f"{path}:{number}", json_record(line)
                except BadRow as bad:
                    yield f"{path}:{number}", bad


def json_text(record: dict[str, Any], name: str, flag: str = "text_column") -> str:
    """Returns a field that must be a text.

    Raises:
      BadRow: the record has no such field, or it is not a string, or blank.
    """
    if name not in record:
        names = ", ".join(record)[:80] or "none"
        raise BadRow("missing_field", f"has no field {name!r} (fields: {names})", f"specify another with --{flag}")
    text = record[name]
    if not isinstance(text, str):
        raise BadRow("not_a_string", f"field {name!r} is {show(text)}, not a string", "write a string")
    check_utf8(text)
    if not text.strip():
        raise BadRow("empty_text", f"field {name!r} is empty", "add a text or remove the row")
    return text


Row = TypeVar("Row")


class RowFile(Generic[Row]):
    """A file whose rows are read as a stream; subclasses define `_records` and `_row`."""

    def __init__(self, path: str | os.PathLike, *, flag: str, policy: str = "strict", folder: bool = False):
        """Checks that the file is a text.

        Args:
          path: the file.
          flag: the flag that names it, for messages.
          policy: one of POLICIES.
          folder: whether it may also be a folder.

        Raises:
          UserError: the file is missing, empty, not a regular file, or not a text.
        """
        if policy not in POLICIES:
            raise UserError(f"--bad_rows={policy}: is not one of {', '.join(POLICIES)}; use one of them")
        self.path, self.flag, self.policy = os.path.expanduser(os.fspath(path)), flag, policy
        self.counts: dict[str, int] = {}
        self.first: dict[str, str] = {}
        """For each kind of bad row, where the first one is."""
        self._fingerprint: str | None = None
        self._known: frozenset[str] | None = None
        if not (folder and os.path.isdir(self.path)):
            self._check_text()

    def error(self, words: str) -> UserError:
        """Returns an error about the file as a whole."""
        return UserError(f"--{self.flag}={self.path}: {words}")

    def _check_text(self) -> None:
        if not self.path or not os.path.exists(self.path):
            raise self.error("no such file; specify an existing one")
        if not os.path.isfile(self.path):
            raise self.error("is not a regular file; specify a file")
        try:
            with files.open_file(self.path) as file:
                start = file.read(32)
        except OSError as error:
            raise self.error(f"cannot be read ({(error.strerror or str(error)).lower()}); check the file") from None
        for magic, (words, remedy) in _NOT_TEXT.items():
            if start.startswith(magic):
                raise self.error(f"is {words}; {remedy}")
        with open_text(self.path) as text:
            if not any(line.strip() for line in text):
                raise self.error("is empty; specify a file with rows")

    def _is_jsonl(self) -> bool:
        """Returns whether the file contains JSON lines, by its suffix or its first line."""
        kind = suffix(self.path)
        if kind in (".jsonl", ".ndjson"):
            return True
        if kind in (".csv", ".tsv"):
            return False
        with open_text(self.path) as text:
            start = next(line for line in text if line.strip()).lstrip()
        if kind == ".json" and start.startswith("["):
            raise self.error("is one JSON list; write one JSON object per line (.jsonl)")
        return start.startswith('{"') or start.strip() == "{}"

    def _json_field(self, wanted: str | None, flag: str, names: Sequence[str]) -> str:
        """Returns the field of JSON lines that the user specifies, or the first of `names` that the first object has.

        Raises:
          UserError: no line is an object, or the first one has none of the fields.
        """
        first = next((record for _, record in json_records(self.path) if isinstance(record, dict)), None)
        if first is None:
            raise self.error("contains no JSON object in its lines; write one per line")
        names = names if wanted is None else [wanted]
        found = [name for name in names if name in first]
        if not found:
            fields = " ".join(", ".join(first).split())[:200]
            words = f"the first object has no field {' or '.join(map(repr, names))} (fields: {fields})"
            raise self.error(f"{words}; specify it with --{flag}")
        return found[0]

    def expect(self, labels: Iterable[str]) -> None:
        """Makes rows with another label bad rows, as in a validation file, whose labels must be those of training."""
        self._known = frozenset(labels)

    def _check_known(self, labels: Iterable[Any]) -> None:
        """Raises BadRow if one of these labels is not expected."""
        known = self._known
        if known is None:
            return
        for label in labels:
            if label not in known:
                names = ", ".join(sorted(known)[:10]) + (", ..." if len(known) > 10 else "")
                remedy = f"correct it (labels of training: {names}), or train with this label"
                raise BadRow("unknown_label", f"label {show(label)} does not occur in training", remedy)

    def _records(self) -> Iterator[tuple[str, Any]]:
        """Yields (where, record); a record that cannot be read is a BadRow."""
        raise NotImplementedError

    def _row(self, where: str, record: Any) -> Row:
        """Returns the row of a record, or raises BadRow."""
        raise NotImplementedError

    def rows(self) -> Iterator[Row]:
        """Yields the rows in the order of the file; one row is in memory at a time. May be called repeatedly. `counts`
        then contains the number of rows, and of bad rows by kind.

        Raises:
          UserError: a row is bad and the policy is "strict", or no row is good.
        """
        counts: collections.Counter[str] = collections.Counter(rows=0)
        self.counts, self.first = counts, {}
        for where, record in self._records():
            try:
                if isinstance(record, BadRow):
                    raise record
                row = self._row(where, record)
            except BadRow as bad:
                if self.policy == "strict":
                    raise UserError(f"{where}: {bad.words}; {bad.remedy}, or use --bad_rows=skip") from None
                counts[bad.kind] += 1
                self.first.setdefault(bad.kind, where)
                continue
            counts["rows"] += 1
            yield row
        if not counts["rows"]:
            raise self.error(f"contains no row that can be used ({self.summary()}); check the file and its columns")

    def summary(self) -> str:
        """Returns one line about the last complete pass over the rows: their number, and the bad rows by kind."""
        rows = self.counts.get("rows", 0)
        words = f"{rows:,} row{'s' * (rows != 1)}"
        bad = [f"{kind} {self.counts[kind]:,}, first at {where}" for kind, where in self.first.items()]
        return f"{words}; skipped: {'; '.join(bad)}" if bad else words

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the content in hexadecimal."""
        if self._fingerprint is None:
            self._fingerprint = files.sha256(self.path)
        return self._fingerprint
