"""Reads questions about texts and their answers: SQuAD json and JSON lines.

SQuAD json (Rajpurkar et al. 2016; 2.0: Rajpurkar et al. 2018), the format of XQuAD, CMRC 2018 and DRCD, too:

    {"data": [{"paragraphs": [{"context": "Ada was born in 1815.", "qas": [
        {"id": "1", "question": "When was Ada born?", "answers": [{"text": "1815", "answer_start": 16}]},
        {"id": "2", "question": "Where was Ada born?", "answers": [], "is_impossible": true}]}]}]}

JSON lines (.jsonl, .ndjson): objects with the fields question, context and answers, and id, which is FILE:LINE by
default. Answers are in the form above, or {"text": ["1815"], "answer_start": [16]}; without answer_start, the first
occurrence of the text is the answer. A question with an empty list of answers has no answer in its context.

Offsets count code points. Where the text at the offset of an answer is another one, the nearest occurrence of the
answer is used ("relocated"). An answer that does not occur in the context at all is "dropped": it is still a right
answer when answers are scored, but nothing is learned from it. Both are counted.

| bad row | |
|---|---|
| missing_field, not_a_string, not_a_list, not_an_object, not_a_number | a field is missing, or is of another type |
| empty_text | a question, context or answer is blank |
| duplicate_id | an earlier question has this id |
| contradiction | is_impossible is true and there are answers, or it is false and there are none |

A file of SQuAD json is read article by article: memory holds one of them. Importing this module does not import
TensorFlow.
"""

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from tfzoo import json_files
from tfzoo.data import row_files
from tfzoo.data.row_files import BadRow, RowFile
from tfzoo.errors import UserError
from tfzoo.json_files import BadJSON, show

SQUAD, CMRC = RULES = ("squad", "cmrc")  # How answers are scored: see tfzoo.evaluation.answers.
_NAMES = {SQUAD: "SQuAD", CMRC: "CMRC 2018"}
_CHUNK = 1 << 20  # Characters that are read at a time.
_OF_NUMBERS = "0123456789+-.eE"
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_LETTER = re.compile(r"[^\W\d_]")


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A right answer: its text, and where it begins in the context, in code points; None if it is dropped."""

    text: str
    start: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class QuestionRow:
    """A question about a text. where: the file and the question. answers: () if the context contains none."""

    where: str
    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]


class QuestionFile(RowFile[QuestionRow]):
    """A file of questions about texts.

    After a complete pass over the rows, `counts` contains, besides those of RowFile, the numbers of questions without
    an answer ("unanswerable"), and of answers that are "relocated" and "dropped".
    """

    def __init__(self, path: str | os.PathLike, *, flag: str, policy: str = "strict", rules: str | None = None):
        """Checks that the file is a text.

        Args:
          path: the file.
          flag: the flag that names it, for messages.
          policy: "strict" or "skip", for bad rows.
          rules: how answers are scored, one of RULES; None selects CMRC if most letters of the questions are Chinese
            characters.

        Raises:
          UserError: the file is missing, empty, or not a text.
        """
        super().__init__(path, flag=flag, policy=policy)
        self._jsonl = row_files.suffix(self.path) in (".jsonl", ".ndjson")
        self._given = rules
        self._ids: set[str] = set()
        self._scanned = False
        self._letters = self._han = 0

    @property
    def rules(self) -> str:
        """How the answers are scored, one of RULES."""
        if self._given is not None:
            return self._given
        self._scan()
        return rules_of(self._letters, self._han)

    def describe(self) -> str:
        """Returns one line about the content of the file.

        Raises:
          UserError: a row is bad and the policy is "strict".
        """
        self._scan()
        form = "JSON lines" if self._jsonl else "SQuAD json"
        counts = self.counts
        words = [f"{self.path}: {form}, {counts['rows']:,} questions"]
        if counts["unanswerable"]:
            words.append(f"{counts['unanswerable']:,} of them without an answer")
        if moved := counts["relocated"] + counts["dropped"]:
            words.append(
                f"{moved:,} answer offsets disagree with the text ({counts['relocated']:,} relocated to the nearest "
                f"occurrence, {counts['dropped']:,} dropped)"
            )
        if self.first:
            words.append(f"{sum(counts[kind] for kind in self.first):,} bad rows skipped")
        return f"{', '.join(words)}; scored by the rules of {_NAMES[self.rules]}"

    def rows(self) -> Iterator[QuestionRow]:
        self._ids.clear()
        self._letters = self._han = 0
        yield from super().rows()
        self._scanned = True

    def _scan(self) -> None:
        if not self._scanned:
            for _ in self.rows():
                pass

    def _records(self) -> Iterator[tuple[str, Any]]:
        if self._jsonl:
            for where, record in row_files.json_records(self.path):
                if isinstance(record, BadRow):
                    yield where, record
                else:
                    yield _place(self.path, record, where), ({"id": where} | record, record.get("context"))
            return
        with row_files.open_text(self.path) as text:
            for number, article in enumerate(_items(text, self.path), 1):
                yield from self._questions(article, number)

    def _questions(self, article: Any, number: int) -> Iterator[tuple[str, Any]]:
        """Yields the questions of an article of SQuAD json: (where, (question, context))."""
        where = f"{self.path}: article {number}"
        paragraphs = _listed(article, "paragraphs")
        if isinstance(paragraphs, BadRow):
            yield where, paragraphs
            return
        for i, paragraph in enumerate(paragraphs, 1):
            place = f"{where}, paragraph {i}"
            questions = _listed(paragraph, "qas")
            if isinstance(questions, BadRow):
                yield place, questions
                continue
            for j, question in enumerate(questions, 1):
                if isinstance(question, dict):
                    yield _place(self.path, question, f"{place}, question {j}"), (question, paragraph.get("context"))
                else:
                    yield f"{place}, question {j}", _not_an_object(question)

    def _row(self, where: str, record: tuple[dict[str, Any], Any]) -> QuestionRow:
        question, context = record
        fields = question if context is None else question | {"context": context}
        texts = [_text(fields, name) for name in ("question", "context")]
        number = fields.get("id")
        id = str(number) if type(number) is int else _text(fields, "id")
        answers = tuple(_located(*each, texts[1]) for each in _answers(fields))
        impossible = fields.get("is_impossible")
        if impossible is not None and bool(impossible) == bool(answers):
            words = f"is_impossible is {show(impossible)}, but there are {len(answers)} answers"
            raise BadRow("contradiction", words, "correct one of them")
        if id in self._ids:
            raise BadRow("duplicate_id", f"an earlier question has the id {show(id)}, too", "make the ids unique")
        self._ids.add(id)
        self._count(texts[0], answers)
        return QuestionRow(where, id, texts[0], texts[1], tuple(answer for answer, _ in answers))

    def _count(self, question: str, answers: tuple[tuple[Answer, bool], ...]) -> None:
        letters, han = letters_of(question)
        self._letters += letters
        self._han += han
        counts = self.counts
        counts["unanswerable"] = counts.get("unanswerable", 0) + (not answers)
        for answer, moved in answers:
            counts["dropped"] = counts.get("dropped", 0) + (answer.start is None)
            counts["relocated"] = counts.get("relocated", 0) + (moved and answer.start is not None)


def letters_of(text: str) -> tuple[int, int]:
    """Returns the number of letters of a text, and of Chinese characters among them."""
    return len(_LETTER.findall(text)), len(_HAN.findall(text))


def rules_of(letters: int, han: int) -> str:
    """Returns the rules for texts with these numbers of letters and of Chinese characters."""
    return CMRC if 2 * han > letters else SQUAD


def _place(path: str, question: Mapping[str, Any], default: str) -> str:
    """Returns the name of a question in messages."""
    id = question.get("id")
    return f"{path}: question {id}" if str(id).strip() and type(id) in (str, int) else default


def _not_an_object(value: Any) -> BadRow:
    return BadRow("not_an_object", f"{show(value)} is not a JSON object", "correct it")


def _listed(record: Any, name: str) -> list[Any] | BadRow:
    """Returns a field that must be a list."""
    if not isinstance(record, dict):
        return _not_an_object(record)
    if name not in record:
        return BadRow("missing_field", f"has no field {name!r}", "add it")
    value = record[name]
    return value if isinstance(value, list) else BadRow("not_a_list", f"{name!r} is {show(value)}", "write a list")


def _text(record: Mapping[str, Any], name: str) -> str:
    """Returns a field that must be a text."""
    value = record.get(name)
    if value is None:
        raise BadRow("missing_field", f"has no field {name!r}", "add it")
    if not isinstance(value, str):
        raise BadRow("not_a_string", f"field {name!r} is {show(value)}, not a string", "write a string")
    row_files.check_utf8(value)
    if not value.strip():
        raise BadRow("empty_text", f"field {name!r} is empty", "add a text or remove the question")
    return value


def _answers(question: Mapping[str, Any]) -> list[tuple[str, int | None]]:
    """Returns (text, offset or None) of the answers of a question."""
    answers = question.get("answers")
    if isinstance(answers, dict) and isinstance(answers.get("text"), list):
        texts, starts = answers["text"], answers.get("answer_start")
        if starts is None:
            starts = [None] * len(texts)
        if not isinstance(starts, list) or len(starts) != len(texts):
            raise BadRow("not_a_list", f"answer_start is {show(starts)}", "write a list with an offset for each text")
        answers = [{"text": text, "answer_start": start} for text, start in zip(texts, starts)]
    found = _listed({"answers": answers} if answers is not None else {}, "answers")
    if isinstance(found, BadRow):
        raise found
    pairs = []
    for answer in found:
        if not isinstance(answer, dict):
            raise _not_an_object(answer)
        start = answer.get("answer_start")
        if start is not None and type(start) is not int:
            raise BadRow("not_a_number", f"answer_start is {show(start)}, not a whole number", "correct it")
        pairs.append((_text(answer, "text"), start))
    return pairs


def _located(text: str, start: int | None, context: str) -> tuple[Answer, bool]:
    """Returns an answer, and whether its offset disagrees with the context."""
    if start is not None and start >= 0 and context.startswith(text, start):
        return Answer(text, start), False
    wanted = min(max(start or 0, 0), len(context))
    after = context.find(text, wanted)
    # Backwards with find, whose time is linear in the worst case; that of rfind is not.
    end = max(wanted + len(text) - 1, 0)
    reverse = context[:end][::-1]
    before = reverse.find(text[::-1])
    places = [] if before < 0 else [len(reverse) - before - len(text)]
    places += [] if after < 0 else [after]
    return Answer(text, min(places, key=lambda at: abs(at - wanted), default=None)), start is not None


# ------------------------------------------------------------------ JSON as a stream


def _items(file: TextIO, path: str) -> Iterator[Any]:
    """Yields the items of the list "data" of the object in a file, one at a time.

    Raises:
      UserError: the file is not such an object.
    """
    text = _Stream(file, path)
    text.expect("{")
    while True:
        name = text.value()
        text.expect(":")
        if name == "data":
            break
        text.value()
        if text.expect(",}") == "}":
            raise UserError(f'{path}: has no field "data"; specify a file in the format of SQuAD')
    text.expect("[")
    if text.next() != "]":
        yield text.value()
        while text.expect(",]") == ",":
            yield text.value()
    else:
        text.expect("]")
    while text.expect(",}") == ",":
        text.value()
        text.expect(":")
        text.value()
    if text.next():
        raise text.error("text follows the object")


class _Stream:
    """A JSON text, of which only the part that is being read is in memory."""

    def __init__(self, file: TextIO, path: str):
        self._file, self._path = file, path
        self._text, self._at, self._line = "", 0, 1
        self._decoder = json.JSONDecoder()

    def error(self, words: str, line: int | None = None) -> UserError:
        return UserError(f"{self._path}, line {line or self._line}: is not SQuAD json ({words}); correct it")

    def _more(self) -> bool:
        """Reads on and returns whether there was more."""
        chunk = self._file.read(_CHUNK)
        self._line += self._text.count("\n", 0, self._at)
        self._text, self._at = self._text[self._at :] + chunk, 0
        return bool(chunk)

    def next(self) -> str:
        """Returns the next character that is not white space; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def expect(self, characters: str) -> str:
        """Reads and returns the next character, which must be one of these."""
        found = self.next()
        if not found or found not in characters:
            self._more()  # Counts the lines.
            raise self.error(f"{show(found) if found else 'its end'} instead of {' or '.join(characters)}")
        self._at += 1
        return found

    def value(self) -> Any:
        """Reads and returns the next value."""
        self.next()
        while True:
            try:
                _, end = self._decoder.raw_decode(self._text, self._at)
            except (json.JSONDecodeError, RecursionError) as error:
                line = self._line + getattr(error, "lineno", 1) - 1
                if len(self._text) - self._at <= row_files.MAX_ROW and self._more():
                    continue
                raise self.error(getattr(error, "msg", "is nested too deeply"), line) from None
            if self._text[end:].strip(_OF_NUMBERS) or not self._more():
                break
            # A number may go on after the end of what is in memory.
        try:
            found = json_files.parse(self._text[self._at : end])
        except BadJSON as error:
            line = self._line + self._text.count("\n", 0, self._at) + max(error.line - 1, 0)
            raise self.error(str(error), line) from None
        self._at = end
        return found
