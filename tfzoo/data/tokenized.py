"""A corpus as token ids in flat arrays, written once and mapped into memory afterwards."""

import dataclasses
import hashlib
import json
import os
import pathlib

import numpy as np
import tensorflow as tf

from tfzoo import files
from tfzoo.data.corpus import Corpus, Document
from tfzoo.text.training import train_wordpiece

_VERSION = 1  # Part of the cache's key: raise it when the arrays change their meaning.
_BATCH = 4096  # Sentences tokenized at a time.


@dataclasses.dataclass(frozen=True)
class TokenizedCorpus:
    """Token ids of all documents, one after the other.

    token_ids: int32 [N]. sentence_starts: int64 [S + 1] and document_starts: int64 [D + 1], offsets into
    token_ids in rising order, the last of both being N. Sentences and documents without tokens are left out.
    """

    token_ids: np.ndarray
    sentence_starts: np.ndarray
    document_starts: np.ndarray


def tokenize(documents: list[Document], tokenizer) -> TokenizedCorpus:
    """Tokenizes sentence by sentence, in order."""
    sentences = [sentence for document in documents for sentence in document.sentences]
    encode = tf.function(
        lambda texts: _values_and_lengths(tokenizer.tokenize(texts)),
        input_signature=[tf.TensorSpec([None], tf.string)],
    )
    values, lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    for start in range(0, len(sentences), _BATCH):
        ids, counts = encode(tf.constant(sentences[start : start + _BATCH]))
        values.append(ids.numpy().astype(np.int32))
        lengths.append(counts.numpy().astype(np.int64))
    ends = np.cumsum(np.concatenate(lengths))
    last = np.cumsum([len(document.sentences) for document in documents], dtype=np.int64)
    document_ends = np.concatenate([[0], ends])[last]
    return TokenizedCorpus(
        np.concatenate(values),
        np.unique(np.concatenate([[0], ends])),  # A sentence without tokens ends where it starts.
        np.unique(np.concatenate([[0], document_ends])),
    )


def _values_and_lengths(ragged):
    return ragged.values, ragged.row_lengths()


def cached(documents: list[Document], tokenizer, fingerprint: str, cache_dir: str | os.PathLike) -> TokenizedCorpus:
    """`tokenize`, or what an earlier call with the same fingerprint and tokenizer has left in `cache_dir`.

    What is read back is checked against its checksum, and made again where that fails.
    """
    key = hashlib.sha256(f"{_VERSION} {fingerprint} {tokenizer.fingerprint()}".encode()).hexdigest()[:24]
    folder = pathlib.Path(cache_dir, f"tokenized-{key}")
    names = [field.name for field in dataclasses.fields(TokenizedCorpus)]
    try:
        sums = json.loads((folder / "sha256.json").read_text())
        if all(files.sha256(folder / f"{name}.npy") == sums[name] for name in names):
            return TokenizedCorpus(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names})
    except (OSError, ValueError, KeyError, TypeError):
        pass
    corpus = tokenize(documents, tokenizer)
    if folder.exists():
        files.remove_folder(folder)
    try:
        with files.atomic_folder(folder) as partial:
            for name in names:
                np.save(partial / f"{name}.npy", getattr(corpus, name))
            sums = {name: files.sha256(partial / f"{name}.npy") for name in names}
            (partial / "sha256.json").write_text(json.dumps(sums))
    except FileExistsError:
        pass  # Another run has just written the same.
    return corpus


def cached_vocabulary(corpus: Corpus, vocab_size: int, lowercase: bool, cache_dir: str | os.PathLike) -> list[str]:
    """A WordPiece vocabulary trained on the corpus's training part, or the one kept from the last time."""
    key = hashlib.sha256(f"{_VERSION} {corpus.fingerprint} {vocab_size} {lowercase}".encode()).hexdigest()[:24]
    path = pathlib.Path(cache_dir, f"vocabulary-{key}.json")
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        pass
    sentences = (sentence for document in corpus.train for sentence in document.sentences)
    vocab = train_wordpiece(sentences, vocab_size, lowercase)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.atomic_write(path, json.dumps(vocab, ensure_ascii=False))
    return vocab
