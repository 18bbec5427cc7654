"""Reads texts with tags of their words: CoNLL columns, and JSON lines with spans.

CoNLL columns: each line is a word with its columns, separated by tabs if the first line contains a tab, otherwise by
spaces. The word is the first column and the tag the last one. A blank line, or one of white space, ends a sentence;
-DOCSTART- is skipped. In CoNLL-U files (.conllu), the word is column 1 and the tag column 3 (UPOS); comments and lines
of multiword tokens and empty nodes (1-2, 1.1) are skipped. A text consists of the words joined by spaces, but without a
space between two words of Chinese or Japanese characters.

JSON lines: {"text": "Ann slept", "entities": [{"start": 0, "end": 3, "label": "PER"}]}, or spans as [0, 3, "PER"]. The
field can also be "spans", "labels" or "label", and that of the label "type", "tag", "entity" or "entity_group". Offsets
count code points. Words are runs of characters that are not white space, divided at the borders of spans;
punctuation and symbols, and Chinese and Japanese characters, are single words.

Tags become IOB2: the first word of an entity has B-TYPE, its others I-TYPE, and all other words O (Ramshaw and Marcus
1995; Tjong Kim Sang and Veenstra 1999). `scheme_of` describes the schemes that are recognized.

| bad row | |
|---|---|
| too_few_columns, too_many_columns | a line has another number of columns than the first one |
| broken_tags | tags contradict the scheme: I-PER after O in IOB2 |
| bad_span, overlapping_spans, span_text_differs, span_without_words | a span is not in the text, or not one of words |
| unknown_label | after `expect`: an entity type or tag that does not occur in training |

If a sentence contains a bad line, the whole sentence is a bad row. Importing this module does not import TensorFlow.
"""

import dataclasses
import functools
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tfzoo.data import row_files
from tfzoo.data.columns import DETECT_ALL, Columns
from tfzoo.data.row_files import BadRow, RowFile
from tfzoo.data.tables import delimiter_of
from tfzoo.errors import UserError
from tfzoo.json_files import show

SCHEMES = ("IOB1", "IOB2", "BIOES", "plain")
SPANS = ("entities", "spans", "labels", "label")
_TYPES = ("label", "type", "tag", "entity", "entity_group")
_PREFIXED = re.compile("O|([BIMELSUW])-(.+)", re.DOTALL)
_IDEOGRAPHIC = re.compile(
    "[\u3001-\u303f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff65\U00020000-\U0003134f]+"
)
# BIOES letter -> (whether it continues an entity, whether it ends one); other programs use other letters.
_BIOES = {
    "B": (False, False),
    "I": (True, False),
    "M": (True, False),
    "E": (True, True),
    "L": (True, True),
    "S": (False, True),
    "U": (False, True),
    "W": (False, True),
}


@dataclasses.dataclass(frozen=True, slots=True)
class TaggedRow:
    """A text with tags.

    where: FILE:LINE at which the row starts. words: (start, end) of each word in code points of the text. tags: one per
    word, IOB2 or plain.
    """

    where: str
    text: str
    words: tuple[tuple[int, int], ...]
    tags: tuple[str, ...]


def scheme_of(sentences: Iterable[Sequence[str]]) -> str:
    """Returns the scheme of the tags of these sentences.

    "plain": a tag is neither O nor a letter of a scheme with a type, as B-PER; for example parts of speech.
    "BIOES": a tag has a letter that ends an entity: E or S, or L and U (BILOU), or E and W with M for I (BMEWO).
    "IOB1": an entity begins with I, and none begins with B except directly after another one of its type.
    "IOB2": otherwise.
    """
    begins_with_i = begins_with_b = ends = False
    for tags in sentences:
        letter_before, type_before = "O", ""
        for tag in tags:
            match = _PREFIXED.fullmatch(tag)
            if not match:
                return "plain"
            letter, type_ = match[1] or "O", match[2] or ""
            ends = ends or letter not in "OBI"
            if letter_before == "O" or type_ != type_before:
                begins_with_i = begins_with_i or letter == "I"
                begins_with_b = begins_with_b or letter == "B"
            letter_before, type_before = letter, type_
    if ends:
        return "BIOES"
    return "IOB1" if begins_with_i and not begins_with_b else "IOB2"


def iob2(tags: Sequence[str], scheme: str) -> list[str]:
    """Returns the tags of a sentence in IOB2; "plain" tags as they are.

    Raises:
      ValueError: a tag contradicts the scheme; the message says which.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme {scheme!r} is not one of {', '.join(SCHEMES)}")
    if scheme == "plain":
        return list(tags)
    result: list[str] = []
    before, inside = "O", False  # The tag before; in BIOES, whether its entity is not complete.
    for tag in [*tags, "O"]:  # At the end, an entity must be complete.
        match = _PREFIXED.fullmatch(tag)
        if not match:
            raise ValueError(f"tag {show(tag)} is neither O nor a letter with a type, as in B-PER")
        letter, type_ = match[1] or "O", match[2] or ""
        same = before != "O" and before[2:] == type_
        if scheme == "BIOES":
            continues, complete = _BIOES.get(letter, (False, True))
            if continues != inside or (continues and not same):
                raise ValueError(f"tag {show(tag)} after {show(before)} contradicts BIOES")
            inside = not complete
        else:
            if letter not in "OBI":
                raise ValueError(f"tag {show(tag)} is not one of {scheme}")
            continues = letter == "I" and same
            if scheme == "IOB2" and letter == "I" and not same:
                raise ValueError(f"tag {show(tag)} after {show(before)}: in IOB2, an entity begins with B-{type_}")
        result.append("O" if letter == "O" else f"{'I' if continues else 'B'}-{type_}")
        before = tag
    return result[:-1]


def words_of(text: str, borders: Iterable[int] = ()) -> list[tuple[int, int]]:
    """Returns the words of a text: (start, end) in code points. `borders` are offsets at which words also end."""
    cuts = set(borders)
    words: list[tuple[int, int]] = []
    start: int | None = None
    for i, character in enumerate(text):
        kind = _kind(character)
        if start is not None and (kind != "word" or i in cuts):
            words.append((start, i))
            start = None
        if kind == "single":
            words.append((i, i + 1))
        elif kind == "word" and start is None:
            start = i
    if start is not None:
        words.append((start, len(text)))
    return words


@functools.cache
def _kind(character: str) -> str:
    if character.isspace():
        return "space"
    single = _IDEOGRAPHIC.fullmatch(character) or unicodedata.category(character)[0] in "PS"
    return "single" if single else "word"


class TaggedFile(RowFile[TaggedRow]):
    """A file of tagged texts."""

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        flag: str,
        policy: str = "strict",
        columns: Columns = DETECT_ALL,
    ):
        """Opens the file and detects its format; the whole file is read once to detect the scheme of the tags.

        Args:
          path: the file.
          flag: the flag that names it, for messages.
          policy: "strict" or "skip", for bad rows.
          columns: the columns that the user specifies: numbers for CoNLL columns, fields of JSON lines.

        Raises:
          UserError: the file cannot be read, is empty, or does not have these columns.
        """
        super().__init__(path, flag=flag, policy=policy)
        if columns.pair is not None:
            raise UserError(f"--pair_column={columns.pair}: tagging reads one text per row; omit it")
        self._jsonl = self._is_jsonl()
        self.scheme = "IOB2"
        """The scheme of the tags in the file: one of SCHEMES."""
        self._text, self._tag, self._width = 0, 1, 2
        if self._jsonl:
            if columns.delimiter is not None:
                raise self.error(f"--delimiter={columns.delimiter} does not apply to JSON lines; omit it")
            text = self._json_field(columns.text, "text_column", ("text", "sentence", "content"))
            label = self._json_field(columns.label, "label_column", SPANS)
            self.columns = Columns(text=text, label=label)
        else:
            self._separator = self._find_columns(columns)
            self.columns = Columns(
                text=str(self._text), label=str(self._tag), delimiter="\t" if self._separator == "\t" else " "
            )
            sentences = (record for _, record in self._records() if not isinstance(record, BadRow))
            self.scheme = scheme_of([tag for _, tag in words] for words in sentences)

    def describe(self) -> str:
        """Returns one line about the format that was detected."""
        if self._jsonl:
            return f"{self.path}: JSON lines; text = field {self.columns.text}, spans = field {self.columns.label}"
        separator = "tabs" if self._separator == "\t" else "spaces"
        tags = "plain tags" if self.scheme == "plain" else f"tags in {self.scheme}"
        words = f"word = column {self._text}, tag = column {self._tag}"
        return f"{self.path}: CoNLL columns separated by {separator}; {words}; {tags}"

    def _find_columns(self, columns: Columns) -> str:
        """Sets the numbers of the columns and returns the separator."""
        self._universal = row_files.suffix(self.path) == ".conllu"
        with row_files.open_text(self.path) as text:
            line = next((line for line in text if line.strip() and not self._skipped(line)), "")
        separator = "\t" if "\t" in line.strip() else " "
        if columns.delimiter is not None:
            separator = delimiter_of(columns.delimiter)
        self._width = len(_fields(line, separator))
        text_column, tag_column = (1, 3) if self._universal else (0, self._width - 1)
        self._text = self._number(columns.text, "text_column", text_column)
        self._tag = self._number(columns.label, "label_column", tag_column)
        if self._text == self._tag:
            raise self.error(
                f"its lines have {self._width} column{'s' * (self._width != 1)}, and column {self._tag} cannot be both "
                "the word and its tag; separate the columns with tabs or spaces, or specify --label_column"
            )
        return separator

    def _number(self, value: str | None, flag: str, default: int) -> int:
        if value is not None and not value.isdigit():
            raise UserError(f"--{flag}={value}: is not a number; CoNLL columns are numbered from 0")
        number = default if value is None else int(value)
        if number >= self._width:
            raise UserError(f"--{flag}={number}: {self.path} has {self._width} columns, numbered from 0; correct it")
        return number

    def _skipped(self, line: str) -> bool:
        """Returns whether a line at the start of a sentence is neither a word nor blank."""
        if self._universal and (line.startswith("#") or re.match(r"\d+[-.]\d+\t", line)):
            return True
        return line.startswith("-DOCSTART-")

    def _records(self) -> Iterator[tuple[str, Any]]:
        if self._jsonl:
            yield from row_files.json_records(self.path)
            return
        words: list[tuple[str, str]] = []
        start, bad, bad_line = 0, None, 0
        with row_files.open_text(self.path) as text:
            for number, line in enumerate(text, 1):
                if not line.strip():
                    if words or bad:
                        yield self._sentence(start, words, bad_line, bad)
                    words, bad = [], None
                elif not bad and not self._skipped(line):
                    start = start if words else number
                    try:
                        words.append(self._word(line))
                    except BadRow as error:
                        bad, bad_line = error, number
        if words or bad:
            yield self._sentence(start, words, bad_line, bad)

    def _sentence(self, start: int, words: list[tuple[str, str]], bad_line: int, bad: BadRow | None) -> tuple[str, Any]:
        return (f"{self.path}:{bad_line}", bad) if bad else (f"{self.path}:{start}", words)

    def _word(self, line: str) -> tuple[str, str]:
        row_files.check_utf8(line)
        fields = _fields(line, self._separator)
        if len(fields) != self._width:
            kind = "too_few_columns" if len(fields) < self._width else "too_many_columns"
            words = f"has {len(fields)} column{'s' * (len(fields) != 1)} instead of {self._width}"
            raise BadRow(kind, words, "correct the line, or specify --delimiter=tab")
        word, tag = fields[self._text].strip(), fields[self._tag].strip()
        if not word or not tag:
            raise BadRow("empty_column", f"the {'tag' if word else 'word'} is empty", "correct the line")
        return word, tag

    def _row(self, where: str, record: Any) -> TaggedRow:
        if self._jsonl:
            row = self._spans(where, record)
        else:
            text, words = _joined([word for word, _ in record])
            try:
                tags = iob2([tag for _, tag in record], self.scheme)
            except ValueError as error:
                raise BadRow("broken_tags", str(error), "correct the tags of the sentence") from None
            row = TaggedRow(where, text, tuple(words), tuple(tags))
        if self._known is not None:
            self._check_known(types_of(row.tags, self.scheme))
        return row

    def expect(self, labels: Iterable[str]) -> None:
        """Makes rows with other tags bad rows. Of tags with entity types, only the types are compared, because B-PER
        can occur in training without I-PER."""
        super().expect(types_of(labels, self.scheme))

    def _spans(self, where: str, record: dict[str, Any]) -> TaggedRow:
        text = row_files.json_text(record, self.columns.text or "")
        name = self.columns.label or ""
        values = record.get(name)
        if not isinstance(values, list):
            problem = "missing" if values is None else f"{show(values)}, not a list"
            raise BadRow("no_spans", f"field {name!r} is {problem}", "write a list of spans, which can be empty")
        spans = sorted(_span(value, text) for value in values)
        for (_, end, one), (start, _, other) in zip(spans, spans[1:], strict=False):
            if start < end:
                raise BadRow("overlapping_spans", f"spans of {show(one)} and {show(other)} overlap", "remove one")
        words = words_of(text, [border for start, end, _ in spans for border in (start, end)])
        tags, i = ["O"] * len(words), 0
        for start, end, label in spans:
            while i < len(words) and words[i][0] < start:
                i += 1
            first = i
            while i < len(words) and words[i][1] <= end:
                tags[i] = f"{'B' if i == first else 'I'}-{label}"
                i += 1
            if i == first:
                raise BadRow("span_without_words", f"span [{start}, {end}] contains only white space", "correct it")
        return TaggedRow(where, text, tuple(words), tuple(tags))


def _fields(line: str, separator: str) -> list[str]:
    """Returns the columns of a line; several spaces are one separator."""
    if separator == " ":
        return re.split("[ \t]+", line.strip(" \t\r\n"))
    return line.rstrip("\r\n").split(separator)


def _joined(words: list[str]) -> tuple[str, list[tuple[int, int]]]:
    """Returns the text of words, and where in it each one is."""
    parts: list[str] = []
    places: list[tuple[int, int]] = []
    at, before = 0, False
    for word in words:
        ideographic = _IDEOGRAPHIC.fullmatch(word) is not None
        if parts and not (before and ideographic):
            parts.append(" ")
            at += 1
        parts.append(word)
        places.append((at, at + len(word)))
        at += len(word)
        before = ideographic
    return "".join(parts), places


def _span(value: Any, text: str) -> tuple[int, int, str]:
    """Returns (start, end, label) of a span in JSON."""
    if isinstance(value, list) and len(value) == 3:
        start, end, label = value
        expected = None
    elif isinstance(value, dict):
        start, end, expected = value.get("start"), value.get("end"), value.get("text")
        label = next((value[name] for name in _TYPES if name in value), None)
    else:
        start = end = label = expected = None
    if type(start) is not int or type(end) is not int or not isinstance(label, str) or not label.strip():
        remedy = 'write {"start": 0, "end": 5, "label": "PER"} or [0, 5, "PER"]'
        raise BadRow("bad_span", f"{show(value)} is not a span", remedy)
    if not 0 <= start < end <= len(text):
        words = f"span [{start}, {end}] is not within the text of {len(text)} characters"
        raise BadRow("bad_span", words, "correct it; offsets count characters from 0, and the end is exclusive")
    if isinstance(expected, str) and text[start:end] != expected:
        words = f"span [{start}, {end}] is {show(text[start:end])}, but its text is {show(expected)}"
        raise BadRow("span_text_differs", words, "correct the offsets, which count characters (code points)")
    return start, end, label.strip()


def types_of(tags: Iterable[str], scheme: str) -> list[str]:
    """Returns the distinct entity types of IOB2 tags, or the distinct tags of the scheme "plain", sorted."""
    return sorted({tag if scheme == "plain" else tag[2:] for tag in tags if scheme == "plain" or tag != "O"})


def tags_of(file: TaggedFile) -> list[str]:
    """Returns the tags that a model for this file predicts, from one pass: O first, then B-TYPE and I-TYPE of each type
    in the file, sorted; or its plain tags, sorted.

    Raises:
      UserError: a row is bad under the policy "strict".
    """
    found = types_of({tag for row in file.rows() for tag in row.tags}, file.scheme)
    if file.scheme == "plain":
        return found
    return ["O", *(f"{letter}-{type_}" for type_ in found for letter in "BI")]
