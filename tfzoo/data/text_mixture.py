"""Reads a mixture file: JSON that names the files of several text-to-text tasks, which one model learns together.

    {"german": {"task": "translate", "file": "train.en.gz+train.de.gz", "prefix": "translate English to German:"},
     "subject": {"task": "summarise", "file": "mails.jsonl", "prefix": "summarize:", "label_column": "subject"}}

Paths are relative to the folder of the mixture file. The fields of a task are file (text_pairs.py), task (text_to_text
by default), prefix, text_column, label_column and delimiter.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from tfzoo import json_files
from tfzoo.data import aligned, text_pairs
from tfzoo.data.columns import Columns
from tfzoo.errors import UserError
from tfzoo.json_files import Field, Fields

_STRING = Field(str)
_FIELDS: Fields = {
    "file": Field(str, required=True),
    "task": _STRING,
    "prefix": _STRING,
    "text_column": _STRING,
    "label_column": _STRING,
    "delimiter": _STRING,
}


@dataclasses.dataclass(frozen=True, slots=True)
class MixedRow:
    """A row of one of the files. where, texts: as in labelled.Row. name: of its task. prefix: what precedes its
    source."""

    where: str
    texts: tuple[str, ...]
    name: str
    prefix: str


class MixtureFile:
    """The rows of several files, one file after the other.

    Attributes:
      path, flag: of the mixture file.
      names: of the tasks, in the order of the file.
      tasks: name -> the task.
    """

    def __init__(self, path: str | os.PathLike, *, flag: str, policy: str, tasks: Collection[str]):
        """Opens the files; `tasks` are the tasks that are allowed, of which the first is the default.

        Raises:
          UserError: a file cannot be read, or the mixture file is invalid.
        """
        self.path, self.flag = os.path.expanduser(os.fspath(path)), flag
        where = f"--{flag}={self.path}"
        if not os.path.isfile(self.path):
            raise UserError(f"{where}: no such file; specify a mixture file, JSON that names the files of the tasks")
        entries = json_files.read(pathlib.Path(self.path))
        if not entries:
            raise UserError(f"{where}: names no task; add one")
        self._entries: dict[str, Mapping[str, Any]] = {}
        self._files: dict[str, Any] = {}
        self.tasks: dict[str, str] = {}
        for name, entry in entries.items():
            self._entries[name] = _checked(entry, f"{where}: {name}")
            self.tasks[name] = entry.get("task") or next(iter(tasks))
            if self.tasks[name] not in tasks or "/" in name:
                remedy = f"task {self.tasks[name]!r} is not one of {', '.join(tasks)}"
                raise UserError(
                    f"{where}: {name}: {'its name contains a slash' if '/' in name else remedy}; correct it"
                )
            columns = Columns(entry.get("text_column"), None, entry.get("label_column"), entry.get("delimiter"))
            self._files[name] = text_pairs.open_pairs(
                self._path(entry["file"]), flag=flag, columns=columns, policy=policy
            )
        self.names = tuple(self._files)

    def _path(self, given: str) -> str:
        """Returns a path, or FIRST+SECOND, relative to the folder of the mixture file."""
        folder = os.path.dirname(os.path.abspath(self.path))
        whole = os.path.join(folder, os.path.expanduser(given))
        if os.path.exists(whole):
            return whole
        pairs = [given.partition("+")[::2]] if given.count("+") == 1 else [aligned.two_files(given) or (given, "")]
        return "+".join(os.path.join(folder, os.path.expanduser(part)) for part in pairs[0] if part)

    @property
    def counts(self) -> dict[str, int]:
        """The numbers of rows and of bad rows by kind, of all files, after the last pass over them."""
        total: dict[str, int] = {}
        for file in self._files.values():
            for kind, count in file.counts.items():
                total[kind] = total.get(kind, 0) + count
        return total

    def rows(self) -> Iterator[MixedRow]:
        """Yields the rows of one file after the other."""
        for name, file in self._files.items():
            prefix = (self._entries[name].get("prefix") or "").strip()
            for row in file.rows():
                yield MixedRow(row.where, row.texts[:2], name, prefix)

    def describe(self) -> str:
        """Returns lines about the files."""
        lines = [f"{name} ({self.tasks[name]}): {file.describe()}" for name, file in self._files.items()]
        return "\n  ".join([f"{self.path}: {len(lines)} tasks", *lines])

    def fingerprint(self) -> str:
        """Returns a SHA-256 in hexadecimal of the content of all files."""
        entries = {name: {**entry, "file": ""} for name, entry in self._entries.items()}
        digests = {name: file.fingerprint() for name, file in self._files.items()}
        return hashlib.sha256(json.dumps([entries, digests], sort_keys=True).encode()).hexdigest()

    def error(self, words: str) -> UserError:
        """Returns an error about the mixture file."""
        return UserError(f"--{self.flag}={self.path}: {words}")


def _checked(entry: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(entry, dict):
        raise UserError(f'{where}: is {json_files.show(entry)}, not an object; write {{"file": ...}}')
    json_files.check(entry, _FIELDS, where)
    if unknown := entry.keys() - _FIELDS.keys():
        raise UserError(f"{where}: unknown field {sorted(unknown)[0]!r}; the fields are {', '.join(_FIELDS)}")
    return entry


def mixing_rates(counts: np.ndarray, temperature: float = 1.0, limit: int = 0) -> np.ndarray:
    """Returns the share of each task in the rows of training (Raffel et al. 2020, section 3.5.2), float64 [T].

    Args:
      counts: the number of rows of each task, e_m.
      temperature: T: shares are proportional to min(e_m, K) to the power of 1 / T. 1 mixes in proportion to the numbers
        of rows; the higher, the more equally.
      limit: K; 0 means no limit.
    """
    sizes = np.asarray(counts, np.float64)
    weights = np.minimum(sizes, limit or np.inf) ** (1 / temperature)
    return weights / weights.sum()


def mixed_epoch(parts: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Returns the rows of an epoch in which every row occurs at least once, and tasks have the given shares.

    Args:
      parts: int [N], the task of each row.
      rates: [T], the share of each task.

    Returns:
      int64 [M], indices of rows, in the order of the tasks. The task with the fewest repetitions has each of its rows
      once; a row of another task occurs as often as every other one of the task, or once more.
    """
    counts = np.bincount(parts, minlength=len(rates))
    size = np.max(counts / rates)
    epoch = []
    for part, (count, rate) in enumerate(zip(counts, rates, strict=True)):
        rows = np.flatnonzero(parts == part)
        epoch.append(np.resize(rows, max(count, round(size * rate))))
    return np.concatenate(epoch).astype(np.int64)
