"""Reads texts and the texts that are to be written for them: translations, summaries, answers.

    train.en.gz+train.de.gz     line i of the second file belongs to line i of the first file
    pairs.tsv, pairs.jsonl, ... a table or JSON lines with a column of texts and one of targets (data/labelled.py)

Columns are detected by their names (source and target, text and summary, body and subject, ...; columns.PAIRS and
columns.WRITTEN); two columns without names are a text and its target.
"""

import hashlib
import itertools
import os
from collections.abc import Iterator
from typing import Any

from tfzoo.data import aligned
from tfzoo.data.columns import Columns
from tfzoo.data.labelled import LabelledFile, Row
from tfzoo.data.row_files import BadRow, RowFile, check_utf8, open_text
from tfzoo.errors import UserError


def open_pairs(path: str, *, flag: str, columns: Columns, policy: str) -> RowFile[Row]:
    """Opens a file whose rows have two texts, the source and the target.

    Args:
      path: a table, JSON lines, or FIRST+SECOND.
      flag: the flag that names it, for messages.
      columns: those that the user specifies: `text` of the source, `label` of the target.
      policy: "strict" or "skip", for bad rows.

    Raises:
      UserError: the file cannot be read, or its columns cannot be determined.
    """
    path = os.fspath(path)
    if paths := aligned.two_files(path):
        for name, value in (("text_column", columns.text), ("label_column", columns.label)):
            if value is not None:
                raise UserError(f"--{name}={value}: does not apply to two files of lines ({path}); omit it")
        return LineFiles(path, paths, flag=flag, policy=policy)
    file = LabelledFile(
        path,
        flag=flag,
        kind="none",
        columns=Columns(columns.text, columns.label, None, columns.delimiter),
        needs_pair=True,
        policy=policy,
        pair_flag="label_column",
    )
    if file.num_texts != 2:
        raise file.error(f"has {file.num_texts} texts in a row; specify one --label_column")
    return file


class LineFiles(RowFile[Row]):
    """Two files whose lines correspond to each other. Lines that are empty on both sides are ignored."""

    def __init__(self, path: str, paths: tuple[str, str], *, flag: str, policy: str = "strict"):
        """Opens the files; `path` is FIRST+SECOND, as the user wrote it, and `paths` are the two files.

        Raises:
          UserError: a file is missing, empty, or not a text.
        """
        self._paths = paths
        super().__init__(path, flag=flag, policy=policy)

    def _check_text(self) -> None:
        for path in self._paths:
            RowFile(path, flag=self.flag, policy=self.policy)

    def describe(self) -> str:
        """Returns one line about the files."""
        return f"{self._paths[0]}, {self._paths[1]}: corresponding lines"

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            digests = [RowFile(path, flag=self.flag).fingerprint() for path in self._paths]
            self._fingerprint = hashlib.sha256("+".join(digests).encode()).hexdigest()
        return self._fingerprint

    def _records(self) -> Iterator[tuple[str, Any]]:
        with open_text(self._paths[0]) as first, open_text(self._paths[1]) as second:
            for number, pair in enumerate(itertools.zip_longest(first, second), 1):
                if None in pair:
                    shorter, longer = self._paths if pair[0] is None else self._paths[::-1]
                    more = sum(1 for _ in (first if pair[1] is None else second))
                    words = f"no line corresponds to it: {shorter} has only {number - 1:,} lines, but {longer} has "
                    words += f"{number + more:,}"
                    yield (
                        f"{longer}:{number}",
                        BadRow("different_line_counts", words, "specify files whose lines correspond"),
                    )
                    return
                if pair[0].strip() or pair[1].strip():
                    yield f"{self._paths[0]}:{number}", pair

    def _row(self, where: str, record: tuple[str, str]) -> Row:
        source, target = record
        for text in record:
            check_utf8(text)
        if not source.strip():
            raise BadRow("empty_text", f"is empty, unlike the line of {self._paths[1]}", "add a text or remove both")
        if not target.strip():
            raise BadRow("empty_target", f"its line of {self._paths[1]} is empty", "add a text or remove both")
        return Row(where, (source.strip(), target.strip()), None)


def repeated(train: RowFile[Row], held_out: RowFile[Row]) -> list[str]:
    """Returns a warning if texts of `held_out` also occur in training; [] if none does. White space is compared as a
    single space. The memory contains a digest of each text of `held_out`."""
    known = {_digest(row.texts[0]) for row in held_out.rows()}
    found: dict[bytes, str] = {}
    for row in train.rows():
        digest = _digest(row.texts[0])
        if digest in known:
            found.setdefault(digest, row.where)
    count, example = 0, ""
    for row in held_out.rows() if found else ():
        where = found.get(_digest(row.texts[0]))
        if where is not None:
            count += 1
            example = example or f"{row.where} and {where}"
    rows = f"{count:,} row{'s have' if count != 1 else ' has'}"
    words = f"{rows} the same text as a row of training, for example {example}"
    return [f"--{held_out.flag}={held_out.path}: {words}"] if count else []


def _digest(text: str) -> bytes:
    return hashlib.blake2b(" ".join(text.split()).encode(errors="surrogatepass"), digest_size=16).digest()
