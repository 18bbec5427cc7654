"""A corpus as token ids in flat arrays, written once and mapped into memory afterwards."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable

import numpy as np

from tfzoo import files, lazy, text
from tfzoo.data.documents import Corpus, Document
from tfzoo.errors import UserError

tf = lazy.module("tensorflow")

_VERSION = 2  # Part of the cache's key: raise it when the arrays change their meaning.
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
    """Tokenizes sentence by sentence, in order.

    A tokenizer that keeps spaces gets the document's separator before every sentence but the first.
    """
    sentences = [
        (document.separator if i and tokenizer.keeps_spaces else "") + sentence
        for document in documents
        for i, sentence in enumerate(document.sentences)
    ]
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


TOKENIZERS = ("wordpiece", "byte_level", "sentencepiece", "characters")
_SENTINELS = 100  # T5's


def cached_tokenizer(corpus: Corpus, kind: str, vocab_size: int, lowercase: bool, cache_dir: str | os.PathLike):
    """A tokenizer trained on the corpus's training part, or the one kept from the last time.

    Args:
      kind: one of TOKENIZERS.
      vocab_size: at most that many tokens; of characters, all that there are.
      lowercase: of wordpiece: fold case and accents.
    """
    key = hashlib.sha256(f"{_VERSION} {corpus.fingerprint} {kind} {vocab_size} {lowercase}".encode()).hexdigest()[:24]
    folder = pathlib.Path(cache_dir, f"tokenizer-{key}")
    try:
        return text.load(folder)
    except UserError:
        pass
    tokenizer = train_tokenizer(
        kind, (sentence for document in corpus.train for sentence in document.sentences), vocab_size, lowercase
    )
    if folder.exists():
        files.remove_folder(folder)
    try:
        with files.atomic_folder(folder) as partial:
            tokenizer.save(partial)
    except FileExistsError:
        pass  # Another run has just written the same.
    return tokenizer


def train_tokenizer(kind: str, sentences: Iterable[str], vocab_size: int, lowercase: bool):
    """A tokenizer of a kind, one of TOKENIZERS, trained on sentences."""
    from tfzoo.text import training
    from tfzoo.text.byte_level import ByteLevelBPE
    from tfzoo.text.characters import Characters
    from tfzoo.text.sentencepiece import SentencePiece
    from tfzoo.text.wordpiece import WordPiece

    if kind == "wordpiece":
        return WordPiece(training.train_wordpiece(sentences, vocab_size, lowercase), lowercase)
    if kind == "byte_level":
        return ByteLevelBPE(
            *training.train_byte_level(sentences, vocab_size, (END_OF_TEXT,)), special_tokens=(END_OF_TEXT,)
        )
    if kind == "sentencepiece":
        return SentencePiece(training.train_sentencepiece(sentences, vocab_size - _SENTINELS), sentinels=_SENTINELS)
    return Characters(training.train_characters(sentences, ("<unk>",)))  # Held-out text may have others.


END_OF_TEXT = "<|endoftext|>"
