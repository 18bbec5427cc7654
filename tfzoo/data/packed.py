"""A folder of packed text: written once, verified, and read row by row.

    manifest.json                            content and settings of the folder, with every file's size and SHA-256
    tokenizer/                               the tokenizer's files
    train_ids.npy, held_out_ids.npy          the token ids of each part in the order of the text, for the baselines
    train-00000-of-00002.array_record, ...   the training rows, in order
    held_out-00000-of-00001.array_record     the held-out rows

Row i is row i of the `PackedRows` that was written, so that training reads the same rows in the same order as from the
text itself. Each record is one row: little-endian int32, first the number of documents, then the length of each, then
the tokens. Importing this module does not import TensorFlow.
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

from tfzoo import arrays, files, json_files
from tfzoo.errors import UserError, one_line
from tfzoo.json_files import Field, Fields

MANIFEST = "manifest.json"
PARTS = ("train", "held_out")
SHARD_ROWS = 65536
_VERSION = 1  # Of the folder's format.


class Rows(Protocol):
    """The interface of rows that can be written, such as PackedRows."""

    padding_share: float

    def __len__(self) -> int: ...

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]: ...


class StoredRows:
    """Random access to the rows in files; `row(index)` is a pure function, and one row is in memory at a time."""

    FEATURES = {"token_ids": 1, "document_ids": 1}  # What `row` returns: name -> rank.

    def __init__(self, counts: Mapping[pathlib.Path, int], padding_share: float, vocab_size: int):
        """Opens the files.

        Args:
          counts: the number of rows of each file, in order.
          padding_share: the fraction of padding of all rows.
          vocab_size: the number of tokens.

        Raises:
          UserError: a file contains another number of rows.
        """
        self._paths, self._readers, self._vocab_size = list(counts), [], vocab_size
        for path, count in counts.items():
            reader = _open(path) if path.is_file() else None
            if not reader or not reader.ok() or reader.num_records() != count:
                raise UserError(
                    f"{path}: does not contain the {count:,} rows that its manifest lists; pack the text again"
                )
            self._readers.append(reader)
        self._starts = np.cumsum([0, *counts.values()])
        self._lock = threading.Lock()  # A reader has a current position.
        self.padding_share = padding_share
        """The fraction of padding of all rows."""

    def __len__(self) -> int:
        return int(self._starts[-1])

    def row(self, index: int, numbers=None) -> tuple[np.ndarray, np.ndarray]:
        """Returns one row: token_ids, document_ids int32 [n]. `numbers` is unused; other kinds of rows use it.

        Raises:
          UserError: the record is damaged; the message names the file and the record.
        """
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        number = int(index - self._starts[shard])
        with self._lock:
            try:
                self._readers[shard].seek(number)
                record = self._readers[shard].read()
            except Exception as error:  # Damage causes several types of exceptions.
                self._readers[shard] = _open(self._paths[shard])  # A reader is unusable after an error.
                reason = one_line(error, 200)
                raise UserError(
                    f"{self._paths[shard]}: record {number} cannot be read ({reason}); pack the text again"
                ) from None
        values = np.frombuffer(record, "<i4", len(record) // 4)
        count = int(values[0]) if len(values) else -1
        sizes, token_ids = values[1 : count + 1], values[count + 1 :]
        problem = ""
        if len(record) % 4 or not 0 <= count < len(values) or (sizes < 0).any() or sizes.sum() != len(token_ids):
            problem = "its lengths contradict its size"
        elif len(token_ids) and not 0 <= token_ids.min() <= token_ids.max() < self._vocab_size:
            problem = f"a token id is not from 0 to {self._vocab_size - 1}"
        if problem:
            raise UserError(f"{self._paths[shard]}: record {number} is damaged ({problem}); pack the text again")
        return token_ids, np.repeat(np.arange(1, count + 1, dtype=np.int32), sizes)


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
    """Writes a folder atomically; leftovers of killed writers of the same folder are removed.

    Args:
      folder: the folder to write; it must not exist.
      rows, token_ids: by part, with the keys PARTS.
      tokenizer: has save(folder), fingerprint() and vocab_size.
      flags: the training flags with which the rows were created, and with which they must be trained on.
      corpus: name, fingerprint and report of the text.
      shard_rows: maximum number of rows per file.

    Returns:
      The manifest.

    Raises:
      UserError: the folder already exists, or cannot be written.
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
                    name: {"bytes": (partial / name).stat().st_size, "sha256": files.sha256_of_written(partial / name)}
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
    """Writes the rows of a part, and returns the number of rows of each file."""
    starts = range(0, len(rows), shard_rows)
    counts = {}
    for number, start in enumerate(starts):
        name = f"{part}-{number:05}-of-{len(starts):05}.array_record"
        indices = range(start, min(start + shard_rows, len(rows)))
        try:
            writer = ArrayRecordWriter(os.fspath(folder / name), "group_size:1")  # Rows are read individually.
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
    """A folder written by `write`."""

    folder: pathlib.Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "PackedFolder":
        """Opens a folder by reading only its manifest.

        Raises:
          UserError: the manifest is missing, damaged or of another version.
        """
        folder = pathlib.Path(os.path.expanduser(folder))
        path = folder / MANIFEST
        if folder.name.endswith(files.PARTIAL):
            raise UserError(
                f"--corpus={folder}: is an incomplete folder of an interrupted command; pack the text again"
            )
        if not path.exists():
            raise UserError(
                f"--corpus={folder}: is a folder without packed text (no {MANIFEST}); specify its files, as in "
                f"--corpus='{folder}/*.txt', or a folder written by tfzoo.corpus pack"
            )
        content = files.read_bytes(path, max_bytes=json_files.MAX_BYTES)
        try:
            manifest = json_files.parse(content)
            intact = manifest["sha256"] == _checksum(manifest)
        except (ValueError, KeyError, TypeError):
            intact = False
        if not intact:
            raise UserError(f"{path}: is damaged or was modified; pack the text again")
        if manifest.get("version") != _VERSION:
            shown = json_files.show(manifest.get("version"))
            raise UserError(f"{path}: has version {shown}, but {_VERSION} is supported; pack the text again")
        _check_manifest(manifest, path)
        return cls(folder, manifest)

    @property
    def fingerprint(self) -> str:
        """A hexadecimal hash; equal for equal rows and tokenizers."""
        return self.manifest["fingerprint"]

    @property
    def flags(self) -> dict[str, Any]:
        """The training flags with which the rows were created."""
        return self.manifest["flags"]

    @property
    def report(self) -> dict[str, Any]:
        """Counts of the text that was packed."""
        return self.manifest["corpus"]["report"]

    def verify(self) -> None:
        """Compares every file with its checksum.

        Raises:
          UserError: a file is missing, differs from what was written or is not listed in the manifest, or a link leads
            out of the folder; the message names the file.
        """
        listed, root = self.manifest["files"], self.folder.resolve()
        for name, expected in listed.items():
            path = self.folder / name
            if not path.exists():
                problem = "is missing"
            elif not path.resolve().is_relative_to(root):
                problem = "is a link to a file outside of the folder"
            elif (size := path.stat().st_size) != expected["bytes"]:
                problem = f"has {size:,} bytes, but {expected['bytes']:,} were written"
            elif files.sha256(path) != expected["sha256"]:
                problem = "is damaged or was modified (its SHA-256 differs from the manifest's)"
            else:
                continue
            raise UserError(f"{path}: {problem}; restore the original file, or pack the text again")
        present = (path for path in self.folder.rglob("*") if not path.is_dir() or path.is_symlink())
        for name in sorted({path.relative_to(self.folder).as_posix() for path in present} - {MANIFEST, *listed}):
            raise UserError(f"{self.folder / name}: is not listed in {MANIFEST}; remove it, or pack the text again")

    @functools.cached_property
    def tokenizer(self):
        """The tokenizer with which the rows were created.

        Raises:
          UserError: the tokenizer in the folder is another one.
        """
        from tfzoo import text

        tokenizer = text.load(self.folder / "tokenizer")
        self.check_tokenizer(tokenizer, os.fspath(self.folder / "tokenizer"))
        return tokenizer

    def check_tokenizer(self, tokenizer, name: str) -> None:
        """Raises UserError if a tokenizer, called `name` in the message, differs from that of the rows."""
        actual, expected = tokenizer.fingerprint(), self.manifest["tokenizer"]["fingerprint"]
        if actual != expected:
            raise UserError(
                f"{name}: is not the tokenizer that {self.folder} was packed with (fingerprint {actual[:12]}, not "
                f"{expected[:12]}); use the folder's own tokenizer, or pack the text again"
            )

    def rows(self, part: str) -> StoredRows:
        """Returns the rows of one of PARTS.

        Raises:
          UserError: a file does not contain the number of rows that the manifest lists.
        """
        counts = {self.folder / name: f["rows"] for name, f in self.manifest["files"].items() if _of(part, name)}
        record = self.manifest["parts"][part]
        return StoredRows(counts, record["padding_share"], self.manifest["tokenizer"]["vocab_size"])

    def token_ids(self, part: str) -> np.ndarray:
        """Returns the token ids of the text [N], memory-mapped, in the smallest dtype that can represent them.

        Raises:
          UserError: the file does not contain the number of ids that the manifest lists, or another dtype.
        """
        path, vocab_size = self.folder / f"{part}_ids.npy", self.manifest["tokenizer"]["vocab_size"]
        count = self.manifest["parts"][part]["tokens"]
        ids = arrays.open_array(path)
        if ids.shape != (count,) or ids.dtype != np.min_scalar_type(vocab_size - 1):
            raise UserError(f"{path}: does not contain {count:,} ids of {vocab_size:,} tokens; pack the text again")
        return ids


_COUNT = Field(int, low=0, required=True)
_TEXT = Field(str, required=True)
_OBJECT = Field(dict, required=True)
_FIELDS: Fields = {
    "fingerprint": _TEXT,
    "flags": _OBJECT,
    "corpus": _OBJECT,
    "tokenizer": _OBJECT,
    "parts": _OBJECT,
    "files": Field(dict, items=Field(dict), required=True),
}
_TOKENIZER_FIELDS: Fields = {"fingerprint": _TEXT, "vocab_size": Field(int, low=1, high=10_000_000, required=True)}
_PART_FIELDS: Fields = {
    "rows": Field(int, low=1, required=True),
    "tokens": _COUNT,
    "padding_share": Field(float, low=0, high=1, required=True),
}
_FILE_FIELDS: Fields = {"bytes": _COUNT, "sha256": _TEXT, "rows": Field(int, low=1)}


def _check_manifest(manifest: Mapping[str, Any], path: pathlib.Path) -> None:
    """Raises UserError if a manifest with a valid checksum was not written by `write`."""
    json_files.check(manifest, _FIELDS, path)
    json_files.check(manifest["corpus"], {"name": _TEXT, "report": _OBJECT}, f"{path}: corpus")
    json_files.check(manifest["tokenizer"], _TOKENIZER_FIELDS, f"{path}: tokenizer")
    listed = manifest["files"]
    for name, record in listed.items():
        json_files.check(record, _FILE_FIELDS, f"{path}: {json_files.show(name)}")
        if pathlib.PurePosixPath(name).is_absolute() or not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise UserError(f"{path}: lists {json_files.show(name)}, which is not a file in the folder; remove it")
    for part in PARTS:
        json_files.check(manifest["parts"], {part: _OBJECT}, f"{path}: parts")
        record = manifest["parts"][part]
        json_files.check(record, _PART_FIELDS, f"{path}: {part}")
        shards = [name for name in listed if _of(part, name)]
        if sum(listed[name].get("rows") or 0 for name in shards) != record["rows"] or f"{part}_ids.npy" not in listed:
            raise UserError(f"{path}: does not list the files of the {record['rows']:,} rows of {part}; pack again")


def _of(part: str, name: str) -> bool:
    return name.startswith(f"{part}-") and name.endswith(".array_record")
