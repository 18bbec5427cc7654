"""Reads labelled texts: tables (.csv, .tsv and others), JSON lines, and folders with one subfolder per label.

| source | rows |
|---|---|
| .csv, .tsv, .txt and others | see tables.py for delimiters and quotes, columns.py for headers and columns |
| .jsonl, .ndjson, or a file whose first line begins with { | one object per line; its fields are the columns |
| a folder | PATH/LABEL/*.txt, one text per file, as in aclImdb; hidden files are ignored |

Files can be compressed with gzip. Labels are texts without white space at either end. Rows are read as a stream: the
memory does not depend on their number. Importing this module does not import TensorFlow.
"""

import collections
import dataclasses
import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from tfzoo import files, json_files
from tfzoo.data import row_files, tables
from tfzoo.data.columns import DETECT_ALL, Choice, Chooser, Columns, Wanted, has_header
from tfzoo.data.row_files import BadRow, RowFile
from tfzoo.errors import UserError
from tfzoo.json_files import BadJSON, show

KINDS = ("single", "several", "number", "none")
MAX_EXAMPLES = 3
_SAMPLE = 1000  # JSON objects from which columns are detected.


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A labelled text, or pair of texts.

    where: FILE:LINE at which the row starts, or the file of a folder. texts: one text, two of a pair, or more. label:
    by the kind of the file.
    """

    where: str
    texts: tuple[str, ...]
    label: str | tuple[str, ...] | float | None


class _Source(Protocol):
    """A format of labelled texts."""

    columns: Columns
    num_texts: int

    def __str__(self) -> str:
        """Returns what was detected, for users."""

    def records(self) -> Iterator[tuple[str, Any]]:
        """Yields (where, record), or (where, BadRow)."""

    def parts(self, record: Any) -> tuple[tuple[str, ...], Any]:
        """Returns the texts and the label as it is written, or raises BadRow."""


class LabelledFile(RowFile[Row]):
    """A file or folder of labelled texts."""

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        flag: str,
        kind: str = "single",
        columns: Columns = DETECT_ALL,
        needs_pair: bool | None = None,
        policy: str = "strict",
        pair_flag: str = "pair_column",
    ):
        """Opens the file, and detects its format and columns.

        Args:
          path: the file or folder.
          flag: the flag that names it, for messages.
          kind: of the label: "single" (a text), "several" (texts: a JSON list, or separated by comma, semicolon or
            vertical bar), "number", or "none" (rows have no label, or it is ignored).
          columns: the columns that the user specifies.
          needs_pair: True requires a second text, False does not read it, None reads it if there is one.
          policy: "strict" or "skip", for bad rows.
          pair_flag: the flag that names the column of the second text, for messages.

        Raises:
          UserError: the file cannot be read, is empty, or its columns cannot be determined.
        """
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
        super().__init__(path, flag=flag, policy=policy, folder=True)
        self.kind = kind
        wanted = Wanted(columns.text, columns.pair, columns.label, kind, needs_pair, pair_flag)
        where = f"--{flag}={self.path}"
        self._source: _Source
        if os.path.isdir(self.path):
            self._source = _Folder(self.path, where, wanted, columns)
        elif self._is_jsonl():
            self._source = _JSONLines(self.path, where, wanted, columns)
        else:
            self._source = _Table(self.path, where, wanted, columns)
        self.columns = self._source.columns

    @property
    def num_texts(self) -> int:
        """The number of texts in each row."""
        return self._source.num_texts

    def describe(self) -> str:
        """Returns one line about the format and the columns that were detected."""
        return f"{self.path}: {self._source}"

    def fingerprint(self) -> str:
        if self._fingerprint is None and isinstance(self._source, _Folder):
            self._fingerprint = self._source.fingerprint()
        return super().fingerprint()

    def _records(self) -> Iterator[tuple[str, Any]]:
        return self._source.records()

    def _row(self, where: str, record: Any) -> Row:
        texts, value = self._source.parts(record)
        for text in texts:
            if not text.strip():
                raise BadRow("empty_text", "its text is empty", "add a text or remove the row")
        label = _label(value, self.kind)
        self._check_known(label if isinstance(label, tuple) else (label,))
        return Row(where, texts, label)


def _label(value: Any, kind: str) -> str | tuple[str, ...] | float | None:
    """Returns a label from the value of a cell or JSON field, or raises BadRow."""
    if kind == "none":
        return None
    if kind == "number":
        return _number(value)
    if kind == "several":
        return tuple(dict.fromkeys(map(_name, _listed(value))))
    return _name(value)


def _number(value: Any) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        number = float(value)
        if not math.isfinite(number):
            raise ValueError
    except (ValueError, OverflowError):
        raise BadRow("not_a_number", f"label {show(value)} is not a finite number", "correct it") from None
    return number


def _name(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        name = str(value).strip()
        row_files.check_utf8(name)
        if name:
            return name
    elif value is not None:
        raise BadRow("not_a_label", f"label {show(value)} is not a text or number", "correct it")
    raise BadRow("empty_label", "its label is empty", "add a label or remove the row")


def _listed(value: Any) -> list[Any]:
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                value = json_files.parse(value)
            except BadJSON as error:
                raise BadRow("not_a_label", f"labels {show(value)}: {error}", "write a JSON list of texts") from None
            return value if isinstance(value, list) else [value]
        return [part for part in re.split("[,;|]", value) if part.strip()]
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


class _Table:
    """Rows of a table."""

    def __init__(self, path: str, where: str, wanted: Wanted, columns: Columns):
        self._path = path
        delimiter = None if columns.delimiter is None else tables.delimiter_of(columns.delimiter)
        given = (columns.text, columns.pair, columns.label)
        whole_lines = wanted.kind == "none" and not wanted.needs_pair and given == (None, None, None)
        self._dialect = tables.detect(path, delimiter, lines_are_texts=whole_lines)
        rows = tables.parse_sample(*tables.sample(path), self._dialect)
        self._header = self._dialect.delimiter is not None and has_header(rows, given)
        names, rows = (rows[0], rows[1:]) if self._header else ([], rows)
        if not rows:
            raise UserError(f"{where}: contains a header and no rows; add rows")
        self._width = self._check_width(where, names, rows, wanted)
        for name in names:
            try:
                row_files.check_utf8(name)
            except BadRow as bad:
                raise UserError(f"{where}: its header: {bad.words}; {bad.remedy}") from None
        self._names = [name.strip() for name in names] or [str(i) for i in range(self._width)]
        self._choice = Chooser(where, self._names, rows, wanted, self._header).choose()
        self.columns = _chosen(self._choice, self._names, self._dialect.delimiter)
        self.num_texts = len(self._choice.texts)

    def _check_width(self, where: str, names: list[str], rows: list[list[str]], wanted: Wanted) -> int:
        """Returns the number of columns: that of the header, or the most frequent one of the first rows."""
        widths = collections.Counter(map(len, rows))
        width = len(names) or widths.most_common(1)[0][0]
        texts = 2 if wanted.needs_pair else 1
        if width < texts + (wanted.kind != "none"):
            for line, fields in tables.rows(self._path, self._dialect):
                if isinstance(fields, BadRow):  # Such as invalid UTF-8; a file in another encoding has another format.
                    raise UserError(f"{self._path}:{line}: {fields.words}; {fields.remedy}")
            needed = " and ".join(["a text", "a second text"][:texts] + ["a label"] * (wanted.kind != "none"))
            raise UserError(
                f"{where}: its rows have {width} column{'s' * (width != 1)}, too few for {needed}; separate the "
                "columns with tabs or commas, or specify --delimiter"
            )
        if width not in widths and len(widths) == 1 and len(rows) > 1:
            raise UserError(
                f"{where}: its header has {width} columns, and its rows have {next(iter(widths))}; correct the header, "
                "or quote texts that contain the delimiter"
            )
        return width

    def __str__(self) -> str:
        header = "header" if self._header else "no header"
        return f"{self._dialect}, {header}; {_roles(self._choice, self._names, '' if self._header else 'column ')}"

    def records(self) -> Iterator[tuple[str, Any]]:
        header = self._header
        for line, fields in tables.rows(self._path, self._dialect):
            if header:
                header = False
            else:
                yield f"{self._path}:{line}", fields

    def parts(self, record: list[str]) -> tuple[tuple[str, ...], Any]:
        width = self._width
        if len(record) != width:
            has = f"has {len(record)} column{'s' * (len(record) != 1)} instead of {width}"
            lines = sum(field.count("\n") for field in record)
            if len(record) < width:
                remedy = "close the quote or correct the row" if lines else "correct the row"
                more = f", and contains {lines} line breaks within quotes" if lines else ""
                raise BadRow("too_few_columns", has + more, remedy)
            if any(field.strip() for field in record[width:]):
                raise BadRow("too_many_columns", has, "quote texts that contain the delimiter")
        choice = self._choice
        label = None if choice.label is None else record[choice.label]
        return tuple([record[i] for i in choice.texts]), label


class _JSONLines:
    """JSON objects, one per line."""

    def __init__(self, path: str, where: str, wanted: Wanted, columns: Columns):
        if columns.delimiter is not None:
            raise UserError(f"--delimiter={columns.delimiter}: does not apply to JSON lines ({where}); omit it")
        self._path, self._pair_flag = path, wanted.pair_flag
        sample: list[dict[str, Any]] = []
        for _, record in self.records():
            if not isinstance(record, BadRow):
                sample.append(record)
            if len(sample) == _SAMPLE:
                break
        if not sample:
            raise UserError(f"{where}: contains no JSON object in its lines; write one per line")
        names = list(dict.fromkeys(name for record in sample for name in record))
        rows = [[_shown(record.get(name)) for name in names] for record in sample]
        self._choice = Chooser(where, names, rows, wanted, True).choose()
        self._names = names
        self.columns = _chosen(self._choice, names, None)
        self.num_texts = len(self._choice.texts)

    def __str__(self) -> str:
        return f"JSON lines; {_roles(self._choice, self._names, 'field ')}"

    def records(self) -> Iterator[tuple[str, Any]]:
        yield from row_files.json_records(self._path)

    def parts(self, record: dict[str, Any]) -> tuple[tuple[str, ...], Any]:
        names, choice = self._names, self._choice
        texts = [
            row_files.json_text(record, names[number], self._pair_flag if i else "text_column")
            for i, number in enumerate(choice.texts)
        ]
        if choice.label is None:
            return tuple(texts), None
        name = names[choice.label]
        if name not in record:
            raise BadRow("missing_field", f"has no field {name!r}", "add it, or specify another with --label_column")
        return tuple(texts), record[name]


def _shown(value: Any) -> str:
    """Returns a value of a JSON field as detection expects it."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "|".join(map(_shown, value))
    return "" if value is None or isinstance(value, dict) else str(value)


class _Folder:
    """Texts in files, in one subfolder per label."""

    def __init__(self, path: str, where: str, wanted: Wanted, columns: Columns):
        for name, value in dataclasses.asdict(columns).items():
            if value is not None:
                flag = name if name == "delimiter" else f"{name}_column"
                raise UserError(f"--{flag}={value}: does not apply to a folder ({where}); omit it")
        if wanted.needs_pair:
            raise UserError(f"{where}: is a folder, which contains single texts; specify a file with pairs")
        self._path, self.columns, self.num_texts = path, columns, 1
        self._labels = [name for name in _visible(path) if os.path.isdir(os.path.join(path, name))]
        self._flat = wanted.kind == "none" and not self._labels
        self._files = [(label, name) for label in self._labels for name in self._texts(label)]
        if self._flat:
            self._files = [("", name) for name in self._texts("")]
        if not self._files:
            raise UserError(f"{where}: contains no texts; write them as {path}/LABEL/*.txt, or specify a file")

    def _texts(self, label: str) -> list[str]:
        return [name for name in _visible(os.path.join(self._path, label)) if name.endswith(".txt")]

    def __str__(self) -> str:
        if self._flat:
            return f"a folder of {len(self._files):,} texts"
        used = list(dict.fromkeys(label for label, _ in self._files))
        names = ", ".join(used[:10]) + (", ..." if len(used) > 10 else "")
        return f"a folder of {len(self._files):,} texts with {len(used)} labels, its subfolders: {names}"

    def records(self) -> Iterator[tuple[str, Any]]:
        for label, name in self._files:
            path = os.path.join(self._path, label, name)
            with row_files.open_text(path) as file:
                text = file.read()
            try:
                row_files.check_utf8(text)
            except BadRow as bad:
                yield path, bad
            else:
                yield path, (text, label)

    def parts(self, record: tuple[str, str]) -> tuple[tuple[str, ...], Any]:
        return (record[0],), record[1]

    def fingerprint(self) -> str:
        """Returns the SHA-256 of relative names and contents."""
        digest = hashlib.sha256()
        for label, name in self._files:
            content = bytes.fromhex(files.sha256(os.path.join(self._path, label, name)))
            digest.update(f"{label}/{name}\0".encode(errors="surrogateescape") + content)
        return digest.hexdigest()


def _visible(folder: str) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def _chosen(choice: Choice, names: list[str], delimiter: str | None) -> Columns:
    text, *others = (names[i] for i in choice.texts)
    label = None if choice.label is None else names[choice.label]
    return Columns(text, ",".join(others) or None, label, delimiter)


def _roles(choice: Choice, names: list[str], noun: str) -> str:
    roles = ["text"] + ["second text", "third text"][: len(choice.texts) - 1]
    roles += [f"text {i}" for i in range(4, len(choice.texts) + 1)]
    numbers = [*choice.texts]
    if choice.label is not None:
        roles.append("label")
        numbers.append(choice.label)
    return ", ".join(f"{role} = {noun}{names[number]}" for role, number in zip(roles, numbers, strict=True))


def labels_of(file: LabelledFile) -> list[str]:
    """Returns the distinct labels of a file, sorted; numerically if all are integers. Reads the file once.

    Raises:
      UserError: a row is bad under the policy "strict".
    """
    labels: set[str] = set()
    for row in file.rows():
        if isinstance(row.label, tuple):
            labels.update(row.label)
        else:
            labels.add(str(row.label))
    if all(re.fullmatch(r"[-+]?\d+", label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def check_classes(file: LabelledFile, labels: list[str]) -> None:
    """Checks that a model can learn from these labels of a training file.

    Raises:
      UserError: there are fewer than two classes, or no label if a text can have several.
    """
    if len(labels) < (1 if file.kind == "several" else 2):
        found = f"a single class, {labels[0]!r}" if labels else "no labels"
        raise file.error(f"contains {found}; add rows of others, or specify another --label_column")


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Rows of a file whose texts also occur in training.

    name: of the file in check_overlap. rows: their number. examples: (where in training, where in the file, the texts)
    of the first ones.
    """

    name: str
    rows: int
    examples: tuple[tuple[str, str, tuple[str, ...]], ...]

    def __str__(self) -> str:
        first, other, _ = self.examples[0]
        rows = f"{self.rows:,} row{'s' * (self.rows != 1)}"
        return f"{self.name}: {rows} have the same text as a row of training, for example {other} and {first}"


def check_overlap(train: LabelledFile, others: Mapping[str, LabelledFile]) -> list[Overlap]:
    """Returns the overlap of a training file with each of the others that has one. White space is compared as a single
    space. Reads the training file once and the others twice; the memory contains a digest per text of the others."""
    digests = {name: {_digest(row.texts) for row in file.rows()} for name, file in others.items()}
    found: dict[str, dict[bytes, str]] = {name: {} for name in others}
    for row in train.rows():
        digest = _digest(row.texts)
        for name, known in digests.items():
            if digest in known:
                found[name].setdefault(digest, row.where)
    overlaps = []
    for name, file in others.items():
        rows = 0
        examples: list[tuple[str, str, tuple[str, ...]]] = []
        for row in file.rows() if found[name] else ():
            where = found[name].get(_digest(row.texts))
            if where is not None:
                rows += 1
                if len(examples) < MAX_EXAMPLES:
                    examples.append((where, row.where, row.texts))
        if rows:
            overlaps.append(Overlap(name, rows, tuple(examples)))
    return overlaps


def _digest(texts: tuple[str, ...]) -> bytes:
    text = "\0".join(" ".join(text.split()) for text in texts)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
