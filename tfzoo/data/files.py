"""Reads text files as a corpus: .txt and .jsonl, optionally compressed as .gz, with a policy for invalid input.

.txt files have the format of BERT's original data: a blank line ends a document, and each line is a complete paragraph
(or sentence). A file without blank lines is one document. In .jsonl files, each line is a document, an object whose
`text_field` is a string; line breaks in it end paragraphs. In raw mode, a .txt file is one document, verbatim,
including line endings and blank lines.

| problem | strict | replace | skip |
|---|---|---|---|
| invalid UTF-8, NUL, a lone surrogate in JSON | error | U+FFFD | drop the line |
| a line longer than `max_line_bytes` | error | .txt: split; .jsonl: drop the line | drop the line |
| invalid JSON, no `text_field`, not a string | error | drop the line | drop the line |
| a file without text | error | counted | counted |
| a truncated or damaged gzip file | error | keep the text before the damage | drop the file |
| a compressed file instead of text (gzip inside .gz, zstd as .txt) | error | drop the file | drop the file |
| more than `max_bytes`, a decompression bomb | error | error | error |
| no match, no file, a folder, another suffix | error | error | error |

Errors name the file and the line; everything else is counted in the report. Memory contains the documents and one line.
"""

import codecs
import collections
import contextlib
import dataclasses
import glob
import gzip
import hashlib
import io
import json
import os
import re
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tfzoo import json_files
from tfzoo.data import sentences
from tfzoo.data.documents import Corpus, Document, sizes
from tfzoo.errors import UserError
from tfzoo.files import open_file
from tfzoo.json_files import BadJSON

VERSION = 2  # Incremented when the result for the same files changes.
POLICIES = ("strict", "replace", "skip")
MAX_LINE_BYTES = 1 << 20
MAX_BYTES = 2 << 30
HELD_OUT = 0.02
SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")

# gzip compresses text to a fifth, log files to a hundredth, zeros to a thousandth. Small files may be exceptions.
_MAX_RATIO = 200
_RATIO_FROM_BYTES = 1 << 20

# Magic numbers of compressed files, with which no text starts.
_COMPRESSED = re.compile(
    rb"(?P<gzip>\x1f\x8b\x08)|(?P<zstd>\x28\xb5\x2f\xfd)|(?P<xz>\xfd7zXZ\0)"
    rb"|(?P<bzip2>BZh[1-9]1AY&SY)|(?P<zip>PK\x03\x04)"
)


class Bad(Exception):
    """A problem with a line: the kind under which it is counted, its description and the remedy."""

    def __init__(self, kind: str, words: str, remedy: str):
        super().__init__(words)
        self.kind, self.words, self.remedy = kind, words, remedy


class Dropped(Exception):
    """The policy drops the line or the file; the problem is already counted."""


def _is_jsonl(path: str) -> bool:
    return path.removesuffix(".gz").endswith(".jsonl")


class Reader:
    """Reads files one after the other, applies the policy and counts lines and problems."""

    def __init__(
        self,
        policy: str,
        max_line_bytes: int,
        max_bytes: int,
        *,
        text_field: str = "text",
        raw: bool = False,
        split_long: bool = True,
    ):
        """Checks the settings, which `read` explains; `split_long` is whether the policy "replace" splits the long
        lines of text files, which otherwise are dropped.

        Raises:
          UserError: a setting is invalid.
        """
        if policy not in POLICIES:
            raise UserError(f"policy={policy} is unknown; use one of {', '.join(POLICIES)}")
        if max_line_bytes < 16 or max_bytes < max_line_bytes:
            raise UserError(
                f"max_line_bytes={max_line_bytes}, max_bytes={max_bytes}: need 16 <= max_line_bytes <= max_bytes"
            )
        self.text_field, self.policy, self.raw = text_field, policy, raw
        self.max_line_bytes, self.max_bytes, self._split_long = max_line_bytes, max_bytes, split_long
        self.counts = {"files": 0, "lines": 0, "bytes_read": 0}
        self.problems: collections.Counter[str] = collections.Counter()
        self.digest = hashlib.sha256(json.dumps([VERSION, text_field, policy, raw, max_line_bytes]).encode())

    def handle(self, path: str, line: int, bad: Bad) -> None:
        """Counts a problem, or raises it as a UserError under the policy "strict"."""
        if self.policy == "strict":
            raise UserError(f"{path}:{line}: {bad.words}; {bad.remedy}, or use --bad_text=replace or skip")
        self.problems[bad.kind] += 1

    def check_size(self, path: str, read: int, compressed: int | None) -> None:
        """Raises an error, under every policy, for input that would fill the memory."""
        if self.counts["bytes_read"] > self.max_bytes:
            raise UserError(f"{path}: exceeds max_bytes={self.max_bytes} in total; read fewer files or raise the limit")
        if compressed is not None and read > _RATIO_FROM_BYTES and read > _MAX_RATIO * compressed:
            raise UserError(
                f"{path}: {compressed} compressed bytes expand to {read}, more than {_MAX_RATIO} times as many, like "
                "a decompression bomb; decompress the file yourself if it is text"
            )

    def _check_plain(self, path: str, start: bytes) -> None:
        """Raises Dropped or UserError if the text starts like a compressed file."""
        match = _COMPRESSED.match(start)
        if match:
            words, remedy = f"a {match.lastgroup} file, not text", "decompress it"
            if path.endswith(".gz"):
                words, remedy = f"a {match.lastgroup} file inside the gzip file", "decompress it once more"
            self.handle(path, 1, Bad("compressed", words, remedy))
            raise Dropped

    def _lines(self, path: str) -> Iterator[tuple[int, bytes]]:
        """Yields (line number from 1, bytes; in raw mode with the line ending), with at most one line in memory.

        Raises:
          Dropped: the gzip stream is damaged and the policy is to skip the file, or the file is compressed (again).
        """
        number, read = 0, 0
        split_long = self._split_long and self.policy == "replace" and not _is_jsonl(path)
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(open_file(path))
            packed = stack.enter_context(gzip.GzipFile(fileobj=raw)) if path.endswith(".gz") else None
            file: io.BufferedIOBase = packed or raw
            rest = b""  # The part of a too long line that is not yielded yet.
            inside = False  # Whether the next bytes belong to a too long line.
            while True:
                try:
                    piece = file.readline(self.max_line_bytes + 1 - len(rest))
                except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                    words = f"gzip stream damaged or truncated ({error})"
                    self.handle(path, number + 1, Bad("damaged_gzip", words, "download the file again"))
                    if self.policy == "skip":
                        raise Dropped from None
                    piece = b""
                read += len(piece)
                self.counts["bytes_read"] += len(piece)
                self.check_size(path, read, raw.tell() if packed else None)
                self.digest.update(piece)
                if not number:
                    self._check_plain(path, piece)
                piece = rest + piece
                if not piece:
                    return
                if not inside:
                    number += 1
                    self.counts["lines"] += 1
                complete = piece.endswith(b"\n") or len(piece) <= self.max_line_bytes
                if not complete and not inside:
                    words = f"line longer than max_line_bytes={self.max_line_bytes}"
                    self.handle(path, number, Bad("long_lines", words, "raise the limit or break the line"))
                rest = b""
                if split_long and not complete:
                    cut = piece.rfind(b" ") + 1 or len(piece) - 1
                    while 1 < cut < len(piece) and piece[cut] & 0xC0 == 0x80:  # Inside a UTF-8 character.
                        cut -= 1
                    piece, rest = piece[:cut], piece[cut:]
                if (complete and not inside) or split_long:
                    yield number, piece if self.raw else piece.rstrip(b"\r\n")
                inside = not complete

    def clean(self, path: str, number: int, text: str) -> str:
        """Returns text without NUL and lone surrogates; raises Dropped if the policy drops the line."""
        if "\0" in text:
            bad = Bad("nul", "NUL character", "remove it")
        elif any("\ud800" <= c <= "\udfff" for c in text):
            bad = Bad("lone_surrogates", "lone surrogate", "write the complete character")
        else:
            return text
        self.handle(path, number, bad)
        if self.policy == "skip":
            raise Dropped
        return re.sub("[\0\ud800-\udfff]", "\ufffd", text)

    def decoded(self, path: str) -> Iterator[tuple[int, str]]:
        """Yields (line number from 1, line) of a file, without the lines that the policy drops.

        Raises:
          Dropped: the policy drops the rest of the file.
        """
        for number, line in self._lines(path):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                try:
                    text = line.decode()
                except UnicodeDecodeError as error:
                    words = f"invalid UTF-8 (byte 0x{line[error.start]:02x} at {error.start})"
                    self.handle(path, number, Bad("invalid_utf8", words, "convert the file to UTF-8"))
                    if self.policy == "skip":
                        continue
                    text = line.decode(errors="replace")
                yield number, self.clean(path, number, text)
            except Dropped:
                continue

    def _json_text(self, line: str) -> str:
        """Returns the text field of a line; raises Bad if there is none."""
        remedy = "write one JSON object per line"
        try:
            value = json_files.parse(line)
        except BadJSON as error:
            raise Bad("invalid_json", str(error), remedy) from None
        if not isinstance(value, dict):
            raise Bad("not_an_object", f"a JSON {type(value).__name__}, not an object", remedy)
        if self.text_field not in value:
            names = ", ".join(sorted(value))[:80] or "none"
            words = f"no field {self.text_field!r} (fields: {names})"
            raise Bad("no_text_field", words, "specify the field with --text_field")
        if not isinstance(value[self.text_field], str):
            words = f"field {self.text_field!r} is {json.dumps(value[self.text_field])[:40]}, not a string"
            raise Bad("text_not_a_string", words, "write a string or specify another field with --text_field")
        return value[self.text_field]

    def _documents(self, path: str) -> Iterator[list[str]]:
        """Yields each document as its paragraphs."""
        paragraphs: list[str] = []
        for number, line in self.decoded(path):
            if _is_jsonl(path):
                if not line.strip():
                    continue
                try:
                    yield self.clean(path, number, self._json_text(line)).splitlines()
                except Bad as bad:
                    self.handle(path, number, bad)
                except Dropped:
                    continue
            elif line.strip():
                paragraphs.append(line)
            elif paragraphs:
                yield paragraphs
                paragraphs = []
        if paragraphs:
            yield paragraphs

    def read(self, path: str) -> list[Document]:
        """Reads all documents of a file."""
        self.counts["files"] += 1
        documents = []
        try:
            if self.raw:
                lines = [line for _, line in self.decoded(path)]
                if any(line.strip() for line in lines):
                    documents.append(Document(path, lines, separator=""))
            for paragraphs in [] if self.raw else self._documents(path):
                kept = [sentence for paragraph in paragraphs for sentence in sentences.split(paragraph)]
                if kept:
                    documents.append(Document(path, kept))
        except Dropped:
            return []
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error}); check the file") from None
        if not documents:
            bad = Bad("files_without_text", "no text in the file", "add text or omit the file")
            self.handle(path, 1, bad)
        return documents


def paths_of(spec: str, suffixes: Sequence[str] = SUFFIXES) -> list[str]:
    """Returns the files with one of `suffixes` that match a path or glob, sorted by name.

    Raises:
      UserError: no file matches, or one that matches has another suffix or is not a regular file.
    """
    spec = os.path.expanduser(spec)
    if not spec:
        raise UserError("--corpus is empty; specify docstrings, or the path or glob of .txt or .jsonl files")
    if os.path.isdir(spec):
        raise UserError(f"--corpus={spec} is a folder; specify its files, as in --corpus='{spec.rstrip('/')}/*.txt'")
    paths = [spec]
    if not os.path.lexists(spec):
        if not glob.has_magic(spec):
            raise UserError(f"--corpus={spec}: no such file; specify docstrings, or an existing path or glob")
        paths = sorted(path for path in glob.glob(spec, recursive=True) if not os.path.isdir(path))
        if not paths:
            raise UserError(f"--corpus={spec}: no file matches this glob; correct it")
    for path in paths:
        if not path.endswith(tuple(suffixes)):
            raise UserError(f"{path}: its suffix is not one of {', '.join(suffixes)}; convert it or narrow the glob")
        check_regular(path)
    return paths


def check_regular(path: str) -> None:
    """Raises UserError if a path is not that of a regular file."""
    if not os.path.exists(path) or not stat.S_ISREG(os.stat(path).st_mode):
        raise UserError(f"{path}: is not a regular file; specify a file")


def hash_of(text: str) -> bytes:
    """Returns the SHA-256 of a text, by which texts are compared and chosen for the held-out part."""
    return hashlib.sha256(text.encode()).digest()


def text_of(document: Document) -> str:
    """Returns a document's text, whose hash identifies it."""
    return "\n".join(document.sentences)


def _part(documents: list[Document], keys: list[str], share: float, spec: str) -> tuple[list[Document], list[Document]]:
    """Splits into (train, held_out) by a hash of each document's key: adding a document moves no other one."""
    if len(documents) == 1 and documents[0].separator:  # A text without blank lines: its end is held out.
        source, kept = documents[0].source, documents[0].sentences
        if len(kept) < 2:
            raise UserError(
                f"--corpus={spec}: a single sentence cannot be split into training and held-out text; provide more text"
            )
        cut = len(kept) - max(1, round(len(kept) * share))
        return [Document(source, kept[:cut])], [Document(source, kept[cut:])]
    hashes = [int.from_bytes(hash_of(key)) for key in keys]
    limit = share * 2**256
    if not min(hashes) < limit <= max(hashes):  # So few documents that one part would be empty.
        limit = min(hashes) + 1
    chosen = [value < limit for value in hashes]
    if all(chosen):
        raise UserError(
            f"--corpus={spec}: a single text cannot be split into training and held-out text; provide more text"
        )
    return (
        [document for document, held_out in zip(documents, chosen, strict=True) if not held_out],
        [document for document, held_out in zip(documents, chosen, strict=True) if held_out],
    )


def _cut(documents: list[Document], keys: list[str], share: float, spec: str) -> tuple[list[Document], list[Document]]:
    """Splits raw text into (train, held_out) at a character; the files are treated as one sequence."""
    size = sum(len(line) for document in documents for line in document.sentences)
    left = int(size * (1 - share))
    if not 0 < left < size:
        raise UserError(
            f"--corpus={spec}: {size} characters cannot be split into training and held-out text; provide more text"
        )
    train: list[Document] = []
    held_out: list[Document] = []
    for document in documents:
        before, after = [], []
        for line in document.sentences:
            before.append(line[:left])
            after.append(line[left:])
            left = max(left - len(line), 0)
        for part, lines in ((train, before), (held_out, after)):
            if any(lines):
                part.append(dataclasses.replace(document, sentences=[line for line in lines if line]))
    return train, held_out


def assemble(
    spec: str, reader: Reader, keyed: Iterable[tuple[str, Document]], held_out: float, *, raw: bool = False
) -> Corpus:
    """Returns the Corpus of the documents of a source, without duplicates.

    Args:
      spec: the source, for messages.
      reader: that reads the documents while they are iterated over.
      keyed: pairs (key, document). The hash of the key decides whether the document is held out: documents that must
        be in the same part, such as the translations of one text, have the same key.
      held_out: the fraction of the documents to hold out, at least one.
      raw: the end of the text is held out instead.

    Raises:
      UserError: the files contain no text, or too little to hold out a part of it.
    """
    documents: list[Document] = []
    keys: list[str] = []
    seen: set[bytes] = set()
    duplicates = 0
    for key, document in keyed:
        hashed = hash_of(text_of(document))
        duplicates += hashed in seen
        if hashed not in seen:
            seen.add(hashed)
            documents.append(document)
            keys.append(key)
    if not documents:
        raise UserError(
            f"--corpus={spec}: no text in {reader.counts['files']} file(s); specify files that contain text"
        )
    reader.digest.update(repr(held_out).encode())
    train, held_out_documents = (_cut if raw else _part)(documents, keys, held_out, spec)
    report: dict[str, Any] = {**reader.counts, "duplicates": duplicates, "problems": dict(reader.problems)}
    report |= {"train": sizes(train), "held_out": sizes(held_out_documents)}
    return Corpus(spec, reader.digest.hexdigest(), train, held_out_documents, report)


def read(
    spec: str,
    *,
    text_field: str = "text",
    policy: str = "strict",
    raw: bool = False,
    held_out: float = HELD_OUT,
    max_line_bytes: int = MAX_LINE_BYTES,
    max_bytes: int = MAX_BYTES,
) -> Corpus:
    """Reads the files that match `spec`, a path or glob (`**` is supported); see the docstring of this module.

    Duplicate documents are omitted. The fraction `held_out` of the documents is held out, at least one; of a single
    document, and of `raw` text, the end is held out. The fingerprint covers the lines of the files and the settings, so
    that moving or compressing the files does not change it.

    Raises:
      UserError: see the table in the docstring of this module.
    """
    reader = Reader(policy, max_line_bytes, max_bytes, text_field=text_field, raw=raw)

    def documents() -> Iterator[tuple[str, Document]]:
        for path in paths_of(spec):
            if raw and _is_jsonl(path):
                raise UserError(f"{path}: --raw_text reads only .txt files; omit it, or narrow the glob")
            for document in reader.read(path):
                yield text_of(document), document
            reader.digest.update(b"\0")  # Marks the end of a file, which ends a document.

    return assemble(spec, reader, documents(), held_out, raw=raw)
