"""What is read: a corpus is two lists of documents, and a document is a list of sentences."""

import dataclasses
from typing import Any


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
