"""What is read: a corpus is two lists of documents, and a document is a list of sentences.

Imports no TensorFlow, so that reading and cleaning stay cheap to start.
"""

import dataclasses
import os
from typing import Any

from tfzoo.errors import UserError

DOCSTRINGS = "docstrings"
POLICIES = ("strict", "replace", "skip")
MAX_LINE_BYTES = 1 << 20
MAX_BYTES = 2 << 30
HELD_OUT = 0.02


@dataclasses.dataclass(frozen=True)
class Document:
    """Sentences that stood together, in order; `source` is the package or the file they stood in.

    `separator` is what a tokenizer that keeps spaces reads between two of them: nothing in text as it stands, whose
    "sentences" are lines with their ends.
    """

    source: str
    sentences: list[str]
    separator: str = " "


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents to train on and documents to measure on, which share no text.

    `fingerprint` is the hexadecimal SHA-256 of what was read and of the version of the code that cleaned it:
    two corpora of one fingerprint are the same. `report` holds counts, ready for JSON.
    """

    name: str
    fingerprint: str
    train: list[Document]
    held_out: list[Document]
    report: dict[str, Any]


def sizes(documents: list[Document]) -> dict[str, int]:
    """Counts documents, sentences, words (between spaces) and bytes (UTF-8)."""
    sentences = [sentence for document in documents for sentence in document.sentences]
    return {
        "documents": len(documents),
        "sentences": len(sentences),
        "words": sum(len(sentence.split()) for sentence in sentences),
        "bytes": sum(len(sentence.encode()) for sentence in sentences),
    }


def load_corpus(
    spec: str,
    *,
    cache_dir: str | os.PathLike | None,
    text_field: str = "text",
    policy: str = "strict",
    raw: bool = False,
    held_out: float = HELD_OUT,
    max_line_bytes: int = MAX_LINE_BYTES,
    max_bytes: int = MAX_BYTES,
) -> Corpus:
    """Reads the corpus that `spec` names.

    Args:
      spec: "docstrings", for the docstrings of the packages beside this one (`tfzoo.data.docstrings`), or the
        path or glob of .txt or .jsonl files, each also as .gz (`tfzoo.data.files`).
      cache_dir: where the cleaned docstrings are kept for the next time; None keeps nothing.
      text_field: the field of a .jsonl object that holds the text.
      policy: what to do about bad input in files: "strict" raises, "replace" repairs what can be repaired,
        "skip" leaves it out; the last two count it in the report.
      raw: .txt files as they stand, line ends and blank lines included, each a document, for models of characters or
        bytes; their end is held out.
      held_out: what part of the files' text is held out.
      max_line_bytes: the longest line accepted, in bytes.
      max_bytes: the most that is read in all, in bytes after decompression.

    Raises:
      UserError: there is nothing to read, or what there is breaks the policy.
    """
    from tfzoo.data import docstrings, files

    if spec == DOCSTRINGS:
        if raw:
            raise UserError("--raw_text: the docstrings are no files; name some with --corpus")
        return docstrings.read(cache_dir)
    return files.read(
        spec,
        text_field=text_field,
        policy=policy,
        raw=raw,
        held_out=held_out,
        max_line_bytes=max_line_bytes,
        max_bytes=max_bytes,
    )
