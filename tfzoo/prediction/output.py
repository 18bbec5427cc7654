"""The file of answers, which a killed program continues.

Lines are appended to OUTPUT.partial, which becomes OUTPUT when it is complete. OUTPUT.partial.json says from what the
answers were computed: a program continues only answers of the same model, input and options. Uses only the standard
library.
"""

import fcntl
import json
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from tfzoo import files, json_files
from tfzoo.errors import UserError

_SYNC_SECONDS = 5
_CHUNK = 1 << 20


def encoded(record: Mapping[str, Any]) -> bytes:
    """Returns a record as a line. Lone surrogates, which JSON can represent and UTF-8 cannot, become question marks."""
    return json.dumps(record, ensure_ascii=False).encode(errors="replace") + b"\n"


class Output:
    """Appends lines to OUTPUT.partial; a context manager that releases the file.

    Args:
      path: OUTPUT.
      made_from: what determines the answers, with a name for each part, such as {"model": SHA-256}.
      resume: whether to continue the partial file of a killed program; False removes it.

    Attributes:
      rows: the number of lines in the file.
      truncated, bad: how many of them are truncated texts, and errors.

    Raises:
      UserError: the partial file was made from something else, another process is writing it, or it cannot be written.
    """

    def __init__(self, path: str | os.PathLike, made_from: Mapping[str, Any], resume: bool = True):
        self.path = pathlib.Path(path)
        self.partial = self.path.with_name(self.path.name + files.PARTIAL)
        self._record = self.partial.with_name(self.partial.name + ".json")
        self.rows = self.truncated = self.bad = 0
        if not self.path.parent.is_dir() or self.path.is_dir():
            problem = "is a folder" if self.path.is_dir() else f"{self.path.parent} is not a folder"
            raise UserError(f"--output={path}: {problem}; specify a file in an existing folder")
        with files.writing(self.partial):
            self._file = open(self.partial, "ab+", opener=files.regular)
        try:
            self._lock()
            if resume and (self._record.exists() or os.path.getsize(self.partial)):
                self._check(made_from)
                self._continue()
            else:
                with files.writing(self.partial):
                    self._file.truncate(0)
                files.atomic_write(self._record, json.dumps(dict(made_from), indent=1) + "\n")
        except BaseException:
            self._file.close()
            raise
        self._synced = time.monotonic()

    def _lock(self) -> None:
        busy = UserError(
            f"{self.partial}: another process is writing this file; wait until it ends, or specify another --output"
        )
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        except OSError:  # A file system without locks.
            return
        # That process may have renamed the file just before it released the lock.
        if not self.partial.exists() or not os.path.samestat(os.fstat(self._file.fileno()), self.partial.stat()):
            raise busy

    def _check(self, made_from: Mapping[str, Any]) -> None:
        again = "add --noresume to remove it and start from the first row"
        if not self._record.exists():
            raise UserError(f"{self.partial}: {self._record.name} is missing, which says what it contains; {again}")
        before = json_files.read(self._record)
        for name, value in made_from.items():
            if before.get(name) != value:
                shown = "" if len(str(value)) > 40 else f" ({before.get(name)}, not {value})"
                raise UserError(
                    f"{self.partial}: was written with another {name}{shown}; repeat the command that wrote it, or "
                    f"{again}"
                )

    def _continue(self) -> None:
        """Counts the lines and removes a torn last one."""
        self._file.seek(0)
        end = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            self.rows += 1
            if b'"truncated": true' in line or b'"error": ' in line:  # Perhaps in the text of the row.
                self._count(json.loads(line))
        with files.writing(self.partial):
            self._file.truncate(end)
        self._file.seek(0, os.SEEK_END)

    def _count(self, record: Mapping[str, Any]) -> None:
        if "error" in record:
            self.bad += 1
        else:
            self.truncated += record.get("truncated") is True

    def write(self, records: list[dict[str, Any]]) -> None:
        """Appends records, which reach the operating system at once and the disk within seconds."""
        with files.writing(self.partial):
            self._file.write(b"".join(map(encoded, records)))
            self._file.flush()
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        self.rows += len(records)
        for record in records:
            self._count(record)

    def finish(self) -> None:
        """Renames the file to OUTPUT."""
        with files.writing(self.path):
            os.fsync(self._file.fileno())
            os.replace(self.partial, self.path)
            self._record.unlink(missing_ok=True)

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
