"""Data classes of text: a corpus consists of two lists of documents, and a document of a list of sentences."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Document:
    """The sentences of a coherent text, in order; `source` is the package or file that contains it.

    `separator` is inserted between two sentences for tokenizers that keep spaces. It is empty for raw text, whose
    "sentences" are lines including their line endings, and for parallel text, whose two sentences are a text and its
    translation.
    """

    source: str
    sentences: list[str]
    separator: str = " "


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Training documents and held-out documents, which share no text.

    `fingerprint` is the hexadecimal SHA-256 of the input and of the version of the code that cleaned it: two corpora
    with the same fingerprint are equal. `report` contains counts and is JSON-serializable. `sources` are the corpora by
    name that this one combines, if any.
    """

    name: str
    fingerprint: str
    train: list[Document]
    held_out: list[Document]
    report: dict[str, Any]
    sources: dict[str, "Corpus"] = dataclasses.field(default_factory=dict)


def sizes(documents: list[Document]) -> dict[str, int]:
    """Counts documents, sentences, words (between spaces) and bytes (UTF-8)."""
    sentences = [sentence for document in documents for sentence in document.sentences]
    return {
        "documents": len(documents),
        "sentences": len(sentences),
        "words": sum(len(sentence.split()) for sentence in sentences),
        "bytes": sum(len(sentence.encode()) for sentence in sentences),
    }
