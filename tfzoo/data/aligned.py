"""Reads parallel text: two files whose lines correspond, or a file of pairs that are separated by a tab.

    train.en.gz+train.de.gz     line i of the second file is the translation of line i of the first file
    pairs.tsv, pairs.tsv.gz     a text, a tab and its translation; further columns are ignored
    tsv:pairs.txt               the same for a file with another suffix

Each pair is a document with two sentences, the text and its translation. Lines that are empty on both sides are
ignored. The policies for invalid input are those of `tfzoo.data.files`, and in addition:

| problem | strict | replace, skip |
|---|---|---|
| a line without a tab, a text without a translation or the reverse | error | drop the pair |
| files with different numbers of lines | error | drop the lines that only one file has |
| a line longer than `max_line_bytes` | error | drop the pair |

If a line is dropped, so is the corresponding line of the other file: the rest remains aligned.
"""

import glob
import os
from collections.abc import Iterator

from tfzoo.data import files
from tfzoo.data.documents import Corpus, Document
from tfzoo.errors import UserError

VERSION = 1  # Incremented when the result for the same files changes.
TABLE = "tsv:"
SUFFIXES = (".tsv", ".tsv.gz")


def is_table(spec: str) -> bool:
    """Returns whether a source is a path or glob of files of tab-separated pairs."""
    return spec.startswith(TABLE) or spec.endswith(SUFFIXES)


def two_files(spec: str) -> tuple[str, str] | None:
    """Returns the paths of FIRST+SECOND; None if `spec` has another form, such as that of a file with "+" in its name.

    If several "+" could separate the paths, the first one that separates existing paths does, or an existing one from
    another.
    """
    path = os.path.expanduser(spec)
    if "+" not in path or os.path.lexists(path) or (glob.has_magic(path) and glob.glob(path, recursive=True)):
        return None
    parts = path.split("+")
    pairs = [("+".join(parts[:n]), os.path.expanduser("+".join(parts[n:]))) for n in range(1, len(parts))]
    return max(pairs, key=lambda pair: sum(map(os.path.lexists, pair)))


def read(spec: str, *, policy: str, held_out: float, max_line_bytes: int, max_bytes: int) -> Corpus:
    """Reads parallel text; `spec` is described in the docstring of this module, and the options in `files.read`.

    Duplicate pairs are omitted. The hash of the first text decides whether a pair is held out, so that all translations
    of a text are in the same part.

    Raises:
      UserError: a file cannot be read, or the input violates the policy.
    """
    reader = files.Reader(policy, max_line_bytes, max_bytes, split_long=False)
    reader.digest.update(f"aligned {VERSION}".encode())
    paths = two_files(spec)
    if paths:
        for path in paths:
            if not os.path.lexists(path):
                raise UserError(f"--corpus={spec}: no such file: {path}; specify FIRST+SECOND, two existing files")
            files.check_regular(path)
        found = _two_files(reader, *paths)
    else:
        suffixes = ("",) if spec.startswith(TABLE) else SUFFIXES
        found = _tables(reader, files.paths_of(spec.removeprefix(TABLE), suffixes))
    keyed = ((document.sentences[0], document) for document in found)
    return files.assemble(spec, reader, keyed, held_out)


def _two_files(reader: files.Reader, first: str, second: str) -> Iterator[Document]:
    """Yields the pairs of two files."""
    sides, ends = [], []
    for path in (first, second):
        before = reader.counts["lines"]
        sides.append(dict(_lines(reader, path)))
        ends.append(reader.counts["lines"] - before)
        reader.digest.update(b"\0")
    if ends[0] != ends[1]:
        longer, shorter = (first, second) if ends[0] > ends[1] else (second, first)
        words = f"no line corresponds to it: {shorter} has only {min(ends):,} lines, but {longer} has {max(ends):,}"
        reader.handle(
            longer, min(ends) + 1, files.Bad("different_line_counts", words, "specify files whose lines correspond")
        )
    for number in sorted(sides[0].keys() & sides[1].keys()):
        yield from _pair(reader, first, number, sides[0][number], sides[1][number], second)


def _tables(reader: files.Reader, paths: list[str]) -> Iterator[Document]:
    """Yields the pairs of tab-separated files."""
    for path in paths:
        for number, line in _lines(reader, path):
            first, tab, rest = line.partition("\t")
            if tab:
                yield from _pair(reader, path, number, first, rest.partition("\t")[0], path)
            elif line.strip():
                reader.handle(path, number, files.Bad("no_tab", "no tab", "write a text, a tab and its translation"))
        reader.digest.update(b"\0")


def _lines(reader: files.Reader, path: str) -> Iterator[tuple[int, str]]:
    """Yields (number, line) of a file, as far as the policy keeps them."""
    reader.counts["files"] += 1
    try:
        yield from reader.decoded(path)
    except files.Dropped:
        return
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check the file") from None


def _pair(reader: files.Reader, path: str, number: int, first: str, second: str, other: str) -> Iterator[Document]:
    """Yields the document of a pair, unless a side is empty. `path` and `other` contain the first and the second."""
    first, second = first.strip(), second.strip()
    if first and second:
        yield Document(path, [first, second], separator="")
    elif first or second:
        empty = other if first else path
        words = f"the {'second' if first else 'first'} text of the pair is empty"
        reader.handle(empty, number, files.Bad("empty_side", words, "add it or remove the pair"))
