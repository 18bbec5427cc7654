"""A corpus as token ids in flat arrays, cached on disk and memory-mapped."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from tfzoo import arrays, files, json_files, lazy, text
from tfzoo.data.documents import Corpus, Document
from tfzoo.errors import UserError

tf = lazy.module("tensorflow")

_VERSION = 2  # Part of the cache key: increment it when the meaning of the arrays changes.
_BATCH = 4096  # Number of sentences tokenized at a time.


@dataclasses.dataclass(frozen=True)
class TokenizedCorpus:
    """The concatenated token ids of all documents.

    token_ids: int32 [N]. sentence_starts: int64 [S + 1] and document_starts: int64 [D + 1], ascending offsets into
    token_ids, each ending with N. Sentences and documents without tokens are omitted.
    """

    token_ids: np.ndarray
    sentence_starts: np.ndarray
    document_starts: np.ndarray


def tokenize(documents: list[Document], tokenizer) -> TokenizedCorpus:
    """Tokenizes all sentences in order.

    For a tokenizer that keeps spaces, the document's separator is inserted before every sentence except the first.
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
    """Returns the result of `tokenize`, from `cache_dir` if an earlier call had the same fingerprint and tokenizer.

    Cached arrays are verified with their checksums, and computed again if they are damaged.
    """
    key = hashlib.sha256(f"{_VERSION} {fingerprint} {tokenizer.fingerprint()}".encode()).hexdigest()[:24]
    folder = pathlib.Path(cache_dir, f"tokenized-{key}")
    names = [field.name for field in dataclasses.fields(TokenizedCorpus)]
    try:
        sums = json_files.read(folder / "sha256.json")
        if all(files.sha256(folder / f"{name}.npy") == sums.get(name) for name in names):
            return TokenizedCorpus(**{name: arrays.open_array(folder / f"{name}.npy") for name in names})
    except UserError:
        pass
    corpus = tokenize(documents, tokenizer)
    if folder.exists():
        files.remove_folder(folder)
    try:
        with files.atomic_folder(folder) as partial:
            for name in names:
                np.save(partial / f"{name}.npy", getattr(corpus, name))
            sums = {name: files.sha256_of_written(partial / f"{name}.npy") for name in names}
            (partial / "sha256.json").write_text(json.dumps(sums))
    except FileExistsError:
        pass  # Another run has just written the same content.
    return corpus


TOKENIZERS = ("wordpiece", "byte_level", "sentencepiece", "sentencepiece_xlnet", "characters")
_SENTINELS = 100  # As in T5.
_XLNET_SPECIALS = ("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>")  # In the released models' order.


def cached_tokenizer(
    corpus: Corpus,
    kind: str,
    vocab_size: int,
    lowercase: bool,
    cache_dir: str | os.PathLike,
    special_tokens: Sequence[str] = (),
):
    """Returns a tokenizer trained on the training part of the corpus, from the cache if possible.

    Args:
      corpus: the text.
      kind: one of TOKENIZERS.
      vocab_size: maximum number of tokens; ignored for characters, which keeps all characters.
      lowercase: for wordpiece, convert to lower case and strip accents.
      cache_dir: the cache folder.
      special_tokens: special tokens in addition to those of the kind.

    Raises:
      UserError: no such tokenizer can be trained; the message names the option.
    """
    sentences = (sentence for document in corpus.train for sentence in document.sentences)
    return cached_tokenizer_of(corpus.fingerprint, sentences, kind, vocab_size, lowercase, cache_dir, special_tokens)


def cached_tokenizer_of(
    fingerprint: str,
    sentences: Iterable[str],
    kind: str,
    vocab_size: int,
    lowercase: bool,
    cache_dir: str | os.PathLike,
    special_tokens: Sequence[str] = (),
):
    """Returns a tokenizer trained on sentences whose fingerprint is given, from the cache if possible; see
    `cached_tokenizer`."""
    content = f"{_VERSION} {fingerprint} {kind} {vocab_size} {lowercase}"
    content += f" {json.dumps(list(special_tokens))}" if special_tokens else ""
    key = hashlib.sha256(content.encode()).hexdigest()[:24]
    folder = pathlib.Path(cache_dir, f"tokenizer-{key}")
    try:
        return text.load(folder)
    except UserError:
        pass
    tokenizer = train_tokenizer(kind, sentences, vocab_size, lowercase, special_tokens)
    if folder.exists():
        files.remove_folder(folder)
    try:
        with files.atomic_folder(folder) as partial:
            tokenizer.save(partial)
    except FileExistsError:
        pass  # Another run has just written the same content.
    return tokenizer


def train_tokenizer(
    kind: str, sentences: Iterable[str], vocab_size: int, lowercase: bool, special_tokens: Sequence[str] = ()
):
    """Trains a tokenizer on sentences; the arguments are those of `cached_tokenizer`."""
    from tfzoo.text import training
    from tfzoo.text.byte_level import ByteLevelBPE
    from tfzoo.text.characters import Characters
    from tfzoo.text.sentencepiece import SentencePiece
    from tfzoo.text.wordpiece import WordPiece

    _check_special_tokens(kind, special_tokens)
    if kind == "wordpiece":
        return WordPiece(training.train_wordpiece(sentences, vocab_size, lowercase), lowercase)
    if kind == "byte_level":
        special = (END_OF_TEXT, *special_tokens)
        return ByteLevelBPE(*training.train_byte_level(sentences, vocab_size, special), special_tokens=special)
    if kind == "sentencepiece":
        special = (*_T5_SPECIALS, *special_tokens)
        model = training.train_sentencepiece(sentences, vocab_size - _SENTINELS, specials=special)
        return SentencePiece(model, sentinels=_SENTINELS)
    if kind == "sentencepiece_xlnet":
        special = (*_XLNET_SPECIALS, *special_tokens)
        model = training.train_sentencepiece(sentences, vocab_size, specials=special)
        return SentencePiece(model, "xlnet", keep_accents=True)  # The text that the pieces were learned from has them.
    return Characters(training.train_characters(sentences, ("<unk>",)))  # Held-out text may contain other characters.


def _check_special_tokens(kind: str, special_tokens: Sequence[str]) -> None:
    """Raises UserError if a newly trained tokenizer of a kind cannot have these special tokens."""
    if not special_tokens:
        return
    flag = f"--special_tokens={','.join(special_tokens)}"
    if kind not in ("byte_level", "sentencepiece"):
        raise UserError(
            f"{flag}: a {kind} tokenizer has a fixed set of special tokens; omit the flag, or use "
            "--tokenizer=byte_level or --tokenizer=sentencepiece"
        )
    usual = (END_OF_TEXT,) if kind == "byte_level" else (*_T5_SPECIALS, "<s>")
    for token in special_tokens:
        if len(token) < 2 or any(c.isspace() for c in token):
            raise UserError(f"{flag}: {token!r} must have at least two characters and no white space")
        if token in usual or special_tokens.count(token) > 1 or token.startswith("<extra_id_"):
            raise UserError(f"{flag}: {token} already exists; list only new tokens, each once")


END_OF_TEXT = "<|endoftext|>"
_T5_SPECIALS = ("<pad>", "</s>", "<unk>")
