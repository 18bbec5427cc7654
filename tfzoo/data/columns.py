"""Finds out which columns of a table are the text, the second text of a pair, and the label. Pure functions.

The first row is a header if the user names columns, or if none of its cells is a number or a sentence (more than 40
characters, or with punctuation of sentences), no cell recurs in its column, not all are blank, and

- its cells contain no spaces, and one of them is in `TEXTS`, `LABELS`, or a pair of `PAIRS`; or
- all other cells of a column are numbers, or it is at most half as long as the median in the column of the text.

A table with one column has a header only by the first of these rules. If the user
specifies columns by number, the table has no header, except by the first rule.

The columns are, in this order of precedence: those that the user specifies; those with a common name (`PAIRS`, then
`TEXTS`; `LABELS`); and otherwise by their values in the first rows:

- The label is the only column with numbers (kind "number") or with few distinct values (other kinds): at most half as
  many as rows. Among several of these, it is the only one whose values are mostly single words. If none has few values,
  it is the only column that is not a text. Of two columns, it is the one with shorter values.
- The text is the only column in which most values have several words; if there is none, the one with the longest values
  on average. Two such columns are a pair, if the table has no header or a pair is required.
- Numbers that are all different, as in an index, are not a label, and columns that are mostly blank are ignored.

What these rules do not decide is an error that lists the columns and names the flags.
"""

import dataclasses
import re
import statistics
from collections.abc import Iterable, Sequence
from typing import NoReturn

from tfzoo.errors import UserError, suggest
from tfzoo.json_files import show

# Names in lower case, with everything else than letters and digits as an underscore. Earlier ones are preferred.
PAIRS = (
    ("sentence1", "sentence2"),
    ("sentence_1", "sentence_2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_1", "text_2"),
    ("text_a", "text_b"),
    ("sentence_a", "sentence_b"),
    ("sent1", "sent2"),
    ("1_string", "2_string"),
    ("query", "passage"),
    ("query", "document"),
    ("query", "positive"),
    ("anchor", "positive"),
    ("question", "passage"),
    ("question", "context"),
    ("question", "sentence"),
    ("question", "answer"),
    ("text", "text_pair"),
    ("source", "target"),
)
# A text and another one that is to be written for it. Read only where a row has no label.
WRITTEN = (
    ("source", "translation"),
    ("text", "target"),
    ("text", "translation"),
    ("text", "summary"),
    ("document", "summary"),
    ("article", "summary"),
    ("article", "highlights"),
    ("dialogue", "summary"),
    ("body", "subject"),
    ("input", "target"),
    ("input", "output"),
)
TEXTS = (
    *("text", "sentence", "text_a", "review", "content", "document", "utterance", "tweet", "comment", "question"),
    *("query", "body", "message", "description", "title", "headline", "passage", "input"),
)
LABELS = (
    *("label", "labels", "category", "categories", "class", "classes", "sentiment", "intent", "topic", "topics"),
    *("gold_label", "score", "rating", "stars", "similarity", "relatedness_score", "similarity_score"),
    *("is_duplicate", "polarity", "emotion", "relation", "quality", "tag", "tags", "target", "class_index", "y"),
)
_CERTAIN = {"label", "labels", "gold_label"}  # Decisive also next to another of LABELS.
_NEGATIVE = re.compile(r"(hard_)?neg(ative)?(_?\d+)?")
_MAX_NAME = 40
_NUMBER = re.compile(r"\s*[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?\s*")
_CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]{4}")


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns are read, by name, or by number from 0 if the file has no header; None means to detect it.

    Several second texts, as in triples, are separated by commas in `pair`.
    """

    text: str | None = None
    pair: str | None = None
    label: str | None = None
    delimiter: str | None = None


DETECT_ALL = Columns()


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The columns that the user specifies, by name or number, and what is to be read.

    text, pair, label: None to detect them. kind: of the label, as in LabelledFile. needs_pair: True if a second text is
    required, False if it is not read, None to read it if it is found. pair_flag: the flag that names its column.
    """

    text: str | None
    pair: str | None
    label: str | None
    kind: str
    needs_pair: bool | None
    pair_flag: str = "pair_column"


@dataclasses.dataclass(frozen=True)
class Choice:
    """The numbers of the columns: the texts in order, and the label."""

    texts: tuple[int, ...]
    label: int | None


@dataclasses.dataclass(frozen=True)
class _Column:
    """What the first rows say about a column."""

    mean_length: float
    number: bool  # All values are numbers.
    few: bool  # There are few distinct values.
    several_words: bool  # Most values have several words.
    ignored: bool  # All values are different whole numbers, or most are blank.


def plain(name: str) -> str:
    """Returns a name as in `PAIRS`."""
    return re.sub(r"\W+", "_", name.strip().lower()).strip("_")


def is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None


def has_header(rows: Sequence[Sequence[str]], given: Iterable[str | None]) -> bool:
    """Returns whether the first of these rows is a header; `given` are the columns that the user specifies."""
    first, others = rows[0], rows[1:]
    values = [value for one in given if one is not None for value in one.split(",")]
    if any(not value.strip().isdigit() for value in values) or any(value in first for value in values):
        return True
    if not any(cell.strip() for cell in first) or not all(map(_may_be_name, first)):
        return False
    if any(cell and cell == row[i] for row in others for i, cell in enumerate(first) if i < len(row)):
        return False
    names = set(map(plain, first))
    known = bool(names & {*TEXTS, *LABELS}) or any(names.issuperset(pair) for pair in (*PAIRS, *WRITTEN))
    if known and not any(" " in cell.strip() for cell in first):
        return True
    if values or len(first) == 1 or len(others) < 2:
        return False
    columns = [[row[i] for row in others if i < len(row)] for i in range(len(first))]
    if any(column and all(map(is_number, column)) for column in columns):
        return True
    lengths = [statistics.median(map(len, column)) if column else 0 for column in columns]
    longest = lengths.index(max(lengths))
    return 2 * len(first[longest]) <= lengths[longest]


def _may_be_name(cell: str) -> bool:
    cell = cell.strip()
    return len(cell) <= _MAX_NAME and not is_number(cell) and not re.search(r"[.,!?;。，！？；\n]", cell)


class Chooser:
    """Chooses the columns of one table; see the module's docstring."""

    def __init__(self, where: str, names: Sequence[str], rows: Sequence[Sequence[str]], wanted: Wanted, header: bool):
        """Looks at the first rows.

        Args:
          where: the flag and the file, for messages.
          names: the names of the columns; without a header, their numbers.
          rows: the first rows, without the header.
          wanted: what the user specifies.
          header: whether the columns have names.
        """
        self._where, self._names, self._wanted, self._header = where, list(names), wanted, header
        self._plain = [plain(name) if header else "" for name in names]
        self._examples = rows[0] if rows else [""] * len(names)
        self._columns = [self._describe([row[i] for row in rows if i < len(row)]) for i in range(len(names))]

    def _describe(self, cells: list[str]) -> _Column:
        values = [cell for cell in cells if cell.strip()]
        number = bool(values) and all(map(is_number, values))
        distinct, count = len(set(values)), len(values)
        words = sum(len(value.split()) > 1 or _CJK.search(value) is not None for value in values)
        index = number and count > 2 and distinct == count and all(value.strip().isdigit() for value in values)
        return _Column(
            mean_length=sum(map(len, values)) / max(count, 1),
            number=number,
            few=count > 1 and distinct <= count / 2,
            several_words=words > count / 2,
            ignored=index or 2 * count < len(cells),
        )

    def choose(self) -> Choice:
        """Returns the columns.

        Raises:
          UserError: a column does not exist, is missing, or cannot be determined.
        """
        wanted = self._wanted
        label = self._find(wanted.label, "label_column") if wanted.label is not None else None
        if label is None and len(self._names) > 1:
            label = self._named_label()
        texts = self._texts(label)
        if label is None:
            label = self._label_by_values(texts)
        if not texts:
            texts = self._texts_by_values(label)
        if wanted.kind == "none":
            label = None
        elif label is None:
            self._ambiguous("the label", "--label_column")
        if label in texts:
            raise UserError(
                f"{self._where}: column {self._names[label]!r} cannot be both text and label; specify others"
            )
        return Choice(texts, label)

    def _find(self, value: str, flag: str) -> int:
        if value in self._names:
            if self._names.count(value) > 1:
                raise UserError(f"--{flag}={value}: {self._where} has two columns of this name; rename one")
            return self._names.index(value)
        if value.strip().isdigit() and int(value) < len(self._names):
            return int(value)
        found = [i for i, name in enumerate(self._plain) if name and name == plain(value)]
        if len(found) == 1:
            return found[0]
        hint = suggest(value, self._names)
        raise UserError(f"--{flag}={value}: is not a column of {self._where}{hint}; its columns are {self._list()}")

    def _list(self) -> str:
        if self._header:
            return ", ".join(map(show, self._names[:20]))
        return ", ".join(f"{i} ({show(cell[:30])})" for i, cell in enumerate(self._examples[:20]))

    def _ambiguous(self, what: str, flags: str) -> NoReturn:
        raise UserError(f"{self._where}: cannot tell which column is {what}; specify {flags} (columns: {self._list()})")

    @property
    def _flags(self) -> str:
        """The flags that specify the texts."""
        return "--text_column" + ("" if self._wanted.needs_pair is False else f" and --{self._wanted.pair_flag}")

    @property
    def _pairs(self) -> tuple[tuple[str, str], ...]:
        return PAIRS + (WRITTEN if self._wanted.kind == "none" else ())

    def _named_label(self) -> int | None:
        named = [self._plain.index(name) for name in LABELS if name in self._plain]
        used = {self._names.index(one) for one in (self._wanted.text, self._wanted.pair) if one in self._names}
        named = [i for i in named if i not in used]
        if self._wanted.needs_pair is not False and (self._wanted.kind == "none" or len(named) > 1):
            # The second text of a pair can be named "target".
            seconds = {second for first, second in self._pairs if first in self._plain}
            named = [i for i in named if self._plain[i] not in seconds]
        if self._wanted.kind == "number":
            named = [i for i in named if self._columns[i].number] or named
        if len(named) > 1 and self._plain[named[0]] not in _CERTAIN and self._wanted.kind != "none":
            # A name such as "topic" can also be that of a text.
            fitting = [i for i in named if not self._columns[i].several_words]
            if len(fitting) != 1:
                self._ambiguous("the label", "--label_column")
            named = fitting
        return named[0] if named else None

    def _texts(self, label: int | None) -> tuple[int, ...]:
        """Returns the columns of the texts that the user or their names specify; () if there are none."""
        wanted = self._wanted
        pair = self._pair_columns()
        if wanted.text is not None:
            text = self._find(wanted.text, "text_column")
            if not pair and wanted.needs_pair is not False:
                pair = self._partner(text, label)
            if not pair and wanted.needs_pair:
                self._ambiguous("the second text", f"--{wanted.pair_flag}")
            return (text, *pair)
        if not pair and wanted.needs_pair is not False:
            for one, two in self._pairs:
                if one in self._plain and two in self._plain and self._plain.index(two) != label:
                    first, second = self._plain.index(one), self._plain.index(two)
                    return first, second, *(self._negatives(label) if wanted.kind == "none" else ())
        named = [self._plain.index(name) for name in TEXTS if name in self._plain]
        named = [i for i in named if i != label and i not in pair]
        if not named or (wanted.needs_pair and not pair):
            return ()
        if len(named) > 1 and self._plain[named[0]] not in ("text", "sentence"):
            self._ambiguous("the text", self._flags)
        return (named[0], *pair)

    def _pair_columns(self) -> tuple[int, ...]:
        """Returns the columns that the user specifies for further texts: one, or several separated by commas."""
        value = self._wanted.pair
        if value is None:
            return ()
        if self._wanted.needs_pair is False:
            raise UserError(f"--{self._wanted.pair_flag}={value}: this task reads one text per row; omit it")
        names = [value] if value in self._names else value.split(",")
        return tuple(self._find(name, self._wanted.pair_flag) for name in names)

    def _partner(self, text: int, label: int | None) -> tuple[int, ...]:
        """Returns the second text that belongs to a given first one by their names, or as the only other text."""
        for one, two in self._pairs:
            if self._plain[text] == one and two in self._plain and self._plain.index(two) != label:
                return (self._plain.index(two),)
        if not self._wanted.needs_pair:
            return ()
        others = [i for i in self._long(label) if i != text]
        return tuple(others) if len(others) == 1 else ()

    def _negatives(self, label: int | None) -> tuple[int, ...]:
        return tuple(i for i, name in enumerate(self._plain) if i != label and _NEGATIVE.fullmatch(name))

    def _long(self, label: int | None) -> list[int]:
        """Returns the columns whose values are texts of several words."""
        columns = enumerate(self._columns)
        return [i for i, one in columns if i != label and one.several_words and not one.number and not one.ignored]

    def _label_by_values(self, texts: tuple[int, ...]) -> int | None:
        columns, kind = self._columns, self._wanted.kind
        rest = [i for i, column in enumerate(columns) if i not in texts and not column.ignored]
        if len(rest) == 2 and not texts and kind != "none" and not self._wanted.needs_pair:
            numbers = [i for i in rest if columns[i].number]
            if len(numbers) == 1:
                return numbers[0]
        candidates = [i for i in rest if (columns[i].number if kind == "number" else columns[i].few)]
        if len(candidates) > 1:
            candidates = [i for i in candidates if not columns[i].several_words] or candidates
        if len(candidates) == 1 and (texts or len(rest) > 1):
            return candidates[0]
        if kind == "none":
            return None
        if len(candidates) > 1:
            self._ambiguous("the label", "--label_column")
        if not texts:
            texts = tuple(self._long(None))
            if len(texts) != len(rest) - 1 and len(rest) == 2:
                texts = (self._longest(rest),)
        rest = [i for i in rest if i not in texts]
        return rest[0] if len(rest) == 1 else None

    def _longest(self, among: list[int]) -> int:
        return max(among, key=lambda i: self._columns[i].mean_length)

    def _texts_by_values(self, label: int | None) -> tuple[int, ...]:
        wanted = self._wanted
        pair = self._pair_columns()
        texts = [i for i in self._long(label) if i not in pair]
        if not texts:
            others = [i for i, one in enumerate(self._columns) if i != label and i not in pair and not one.ignored]
            others = [i for i in others if not self._columns[i].number] or others
            texts = [self._longest(others)] if others else []
        if wanted.needs_pair and not pair:
            if wanted.kind == "none" and len(self._columns) == 2:
                return (0, 1)
            if len(texts) != 2:
                self._ambiguous("the first and the second text", self._flags)
            return tuple(texts)
        if len(texts) == 2 and wanted.needs_pair is None and not pair and not self._header:
            return tuple(texts)
        if len(texts) != 1:
            self._ambiguous("the text", self._flags)
        return (texts[0], *pair)
