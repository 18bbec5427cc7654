"""Packed text in a folder: written once, checked, and read row by row.

    manifest.json                            what there is and how it was made, with every file's size and SHA-256
    tokenizer/                               the tokenizer's files
    train_ids.npy, held_out_ids.npy          the token ids of each part in the text's order, which baselines count
    train-00000-of-00002.array_record, ...   the rows to train on, in order
    held_out-00000-of-00001.array_record     the rows to measure on

Row i is row i of the `PackedRows` that was written, so that training reads the same rows in the same order as from the
text itself. A record is a row: little-endian int32, first the number of its documents, then the length of each, then
the tokens. Importing this imports no TensorFlow.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from tfzoo import files, json_files
from tfzoo.errors import UserError, one_line

MANIFEST = "manifest.json"
PARTS = ("train", "held_out")
SHARD_ROWS = 65536
_VERSION = 1  # Of the folder's form.


class Rows(Protocol):
    """What can be written: PackedRows."""

    padding_share: float

    def __len__(self) -> int: ...

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]: ...


class StoredRows:
    """Random access to the rows of files; `row(index)` is pure, and one row is in memory at a time."""

    FEATURES = {"token_ids": 1, "document_ids": 1}  # What `row` returns: name -> rank.

    def __init__(self, counts: Mapping[pathlib.Path, int], padding_share: float):
        """counts: how many rows each file holds, in order.

        Raises:
          UserError: a file holds another number of rows.
        """
        self._paths, self._readers = list(counts), []
        for path, count in counts.items():
            reader = _open(path)
            if not reader.ok() or reader.num_records() != count:
                raise UserError(
                    f"{path}: does not contain the {count:,} rows that its manifest lists; pack the text again"
                )
            self._readers.append(reader)
        self._starts = np.cumsum([0, *counts.values()])
        self._lock = threading.Lock()  # A reader has a place where it reads.
        self.padding_share = padding_share
        """What part of all rows is empty."""

    def __len__(self) -> int:
        return int(self._starts[-1])

    def row(self, index: int, numbers=None) -> tuple[np.ndarray, np.ndarray]:
        """One row: token_ids, document_ids int32 [n]; numbers are taken as other rows take them.

        Raises:
          UserError: its record is damaged; names file and record.
        """
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        number = int(index - self._starts[shard])
        with self._lock:
            try:
                self._readers[shard].seek(number)
                record = self._readers[shard].read()
            except Exception as error:  # Damage shows itself in several types of them.
                self._readers[shard] = _open(self._paths[shard])  # After an error a reader reads nothing more.
                why = one_line(error, 200)
                raise UserError(
                    f"{self._paths[shard]}: record {number} cannot be read ({why}); pack the text again"
                ) from None
        values = np.frombuffer(record, "<i4")
        sizes, token_ids = values[1 : values[0] + 1], values[values[0] + 1 :]
        return token_ids, np.repeat(np.arange(1, len(sizes) + 1, dtype=np.int32), sizes)


def _open(path: pathlib.Path) -> ArrayRecordReader:
    return ArrayRecordReader(os.fspath(path), "readahead_buffer_size:0,max_parallelism:0")


def _record(token_ids: np.ndarray, document_ids: np.ndarray) -> bytes:
    sizes = np.bincount(document_ids)[1:]
    return np.concatenate([[len(sizes)], sizes, token_ids]).astype("<i4").tobytes()


def write(
    folder: str | os.PathLike,
    rows: Mapping[str, Rows],
    token_ids: Mapping[str, np.ndarray],
    tokenizer,
    *,
    flags: Mapping[str, Any],
    corpus: Mapping[str, Any],
    shard_rows: int = SHARD_ROWS,
) -> dict[str, Any]:
    """Writes a folder beside its place and renames it there; what killed writers of the same folder left is removed.

    Args:
      rows, token_ids: by part, as PARTS names them.
      tokenizer: has save(folder), fingerprint() and vocab_size.
      flags: the flags of training that the rows were made with, and that training from them must have.
      corpus: of the text: name, fingerprint, report.
      shard_rows: the most rows in a file.

    Returns:
      The manifest.

    Raises:
      UserError: the folder is there already, or cannot be written.
    """
    folder = pathlib.Path(folder)
    try:
        with files.atomic_folder(folder) as partial:
            digest = hashlib.sha256(f"{_VERSION} {tokenizer.fingerprint()}".encode())
            counts: dict[str, int] = {}
            for part in PARTS:
                counts |= _write_shards(partial, part, rows[part], shard_rows, digest)
                ids = token_ids[part]
                np.save(partial / f"{part}_ids.npy", ids.astype(np.min_scalar_type(tokenizer.vocab_size - 1)))
            tokenizer.save(partial / "tokenizer")
            manifest = {
                "version": _VERSION,
                "fingerprint": digest.hexdigest(),
                "flags": dict(flags),
                "corpus": dict(corpus),
                "tokenizer": {"fingerprint": tokenizer.fingerprint(), "vocab_size": tokenizer.vocab_size},
                "parts": {
                    part: {
                        "rows": len(rows[part]),
                        "tokens": len(token_ids[part]),
                        "padding_share": rows[part].padding_share,
                    }
                    for part in PARTS
                },
                "files": {
                    name: {"bytes": (partial / name).stat().st_size, "sha256": files.sha256(partial / name)}
                    | ({"rows": counts[name]} if name in counts else {})
                    for name in sorted(
                        path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file()
                    )
                },
            }
            manifest["sha256"] = _checksum(manifest)
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    except FileExistsError:
        raise UserError(f"--output_dir={folder}: already exists; remove it, or specify a new folder") from None
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--output_dir={folder}: cannot be written ({reason}); specify another folder") from None
    return manifest


def _write_shards(folder: pathlib.Path, part: str, rows: Rows, shard_rows: int, digest) -> dict[str, int]:
    """Writes a part's rows, and says how many each file holds."""
    starts = range(0, len(rows), shard_rows)
    counts = {}
    for number, start in enumerate(starts):
        name = f"{part}-{number:05}-of-{len(starts):05}.array_record"
        indices = range(start, min(start + shard_rows, len(rows)))
        try:
            writer = ArrayRecordWriter(os.fspath(folder / name), "group_size:1")  # A row is read by itself.
            for index in indices:
                record = _record(*rows.row(index))
                digest.update(record)
                writer.write(record)
            writer.close()
        except RuntimeError as error:
            reason = str(error).split(";")[0]
            raise UserError(f"{folder / name}: cannot be written ({reason}); free some disk space") from None
        counts[name] = len(indices)
    return counts


def _checksum(manifest: Mapping[str, Any]) -> str:
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class PackedFolder:
    """A folder that `write` wrote."""

    folder: pathlib.Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "PackedFolder":
        """Reads the manifest alone.

        Raises:
          UserError: there is none, it is damaged, or another version's.
        """
        folder = pathlib.Path(folder).expanduser()
        path = folder / MANIFEST
        if folder.name.endswith(files.PARTIAL):
            raise UserError(
                f"--corpus={folder}: is an incomplete folder of an interrupted command; pack the text again"
            )
        try:
            manifest = json_files.parse(path.read_bytes())
            whole = manifest["sha256"] == _checksum(manifest)
        except FileNotFoundError:
            raise UserError(
                f"--corpus={folder}: is a folder without packed text (no {MANIFEST}); specify its files, as in "
                f"--corpus='{folder}/*.txt', or a folder written by tfzoo.corpus pack"
            ) from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check the file") from None
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise UserError(f"{path}: is damaged or was modified; pack the text again")
        if manifest["version"] != _VERSION:
            raise UserError(
                f"{path}: has version {manifest['version']}, but {_VERSION} is supported; pack the text again"
            )
        return cls(folder, manifest)

    @property
    def fingerprint(self) -> str:
        """Hexadecimal; equal for equal rows and tokenizers."""
        return self.manifest["fingerprint"]

    @property
    def flags(self) -> dict[str, Any]:
        """The flags of training that the rows were made with."""
        return self.manifest["flags"]

    @property
    def report(self) -> dict[str, Any]:
        """Counts of the text that was packed."""
        return self.manifest["corpus"]["report"]

    def verify(self) -> None:
        """Compares every file with its checksum.

        Raises:
          UserError: a file is missing or is not as it was written; names the file.
        """
        for name, wanted in self.manifest["files"].items():
            path = self.folder / name
            try:
                size = path.stat().st_size
                if size != wanted["bytes"]:
                    wrong = f"has {size:,} bytes, but {wanted['bytes']:,} were written"
                elif files.sha256(path) != wanted["sha256"]:
                    wrong = "is damaged or was modified (its SHA-256 differs from the manifest's)"
                else:
                    continue
            except FileNotFoundError:
                wrong = "is missing"
            except OSError as error:
                wrong = f"cannot be read ({error.strerror})"
            raise UserError(f"{path}: {wrong}; restore the original file, or pack the text again")

    @functools.cached_property
    def tokenizer(self):
        """The tokenizer.

        Raises:
          UserError: it is not the one that the rows were made with.
        """
        from tfzoo import text

        tokenizer = text.load(self.folder / "tokenizer")
        self.check_tokenizer(tokenizer, os.fspath(self.folder / "tokenizer"))
        return tokenizer

    def check_tokenizer(self, tokenizer, name: str) -> None:
        """Raises UserError if a tokenizer, called `name`, would give other ids than the rows have."""
        actual, expected = tokenizer.fingerprint(), self.manifest["tokenizer"]["fingerprint"]
        if actual != expected:
            raise UserError(
                f"{name}: is not the tokenizer that {self.folder} was packed with (fingerprint {actual[:12]}, not "
                f"{expected[:12]}); use the folder's own tokenizer, or pack the text again"
            )

    def rows(self, part: str) -> StoredRows:
        """The rows of one of PARTS.

        Raises:
          UserError: a file holds another number of rows than its manifest says.
        """
        counts = {self.folder / name: f["rows"] for name, f in self.manifest["files"].items() if _of(part, name)}
        return StoredRows(counts, self.manifest["parts"][part]["padding_share"])

    def token_ids(self, part: str) -> np.ndarray:
        """The text's token ids [N], mapped; of the smallest type that holds them."""
        return np.load(self.folder / f"{part}_ids.npy", mmap_mode="r")


def _of(part: str, name: str) -> bool:
    return name.startswith(f"{part}-") and name.endswith(".array_record")
