"""Verification that a tokenizer compiled from files gives the results of the library that the files were written for.

For a tokenizer.json that library is `tokenizers`, for a SentencePiece model `sentencepiece`. Ids, offsets and decoded
texts must be equal for lines in many scripts, and for every added token inside and next to words, both with special
tokens recognised in a text and with special tokens as plain text. A success is cached under a hash of the files, of
this code and of the libraries' versions.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import sentencepiece
import tensorflow as tf
import tokenizers
from absl import logging

from tfzoo import files
from tfzoo.errors import UserError, one_line
from tfzoo.text import cache, untrusted
from tfzoo.text.lines import LINES
from tfzoo.text.sentencepiece import SentencePiece
from tfzoo.text.settings import FILES
from tfzoo.text.tokenizer import Tokenizer

# In addition to LINES: composed characters, and lines that distinguish rules which seldom differ.
_LINES = (
    *LINES,
    "spaces\n",
    "{return ~x^0xFF;}\n\n\t\tdone();   \n",
    "0000000000 12 345 6789",
    "9,99, not ``10,5''; 12,345,678, and ²,³, too. 5,",
    "Maßstab – „so“ ẞ",
    "ÉCOLE, e\u0301cole, E\u0301COLE",
    "gün, Iğdır",
    "булок, Ёлка, И\u0306",
    "쓰입니다. \u1112\u1161\u11ab",
    "ひらがな、が、漢字!",
    "標點……　空格",
    "ﬁne ℃ ①②",
    "𠮷𠀀 䶮 ΑΣ",
    "▁under ▁▁ bar▁s",
    "\u0041\u030a \u212b \u2126 \u1e9b\u0323 \uac00\u11a8 a\u0308\u0323",
    "tab\x0bvertical\x0cfeed\x1cfile\x85next\u2028line",
    "control\x01\x02\x7f\x80 chars \ue000 private \ufffd",
)
_AROUND = ("{0}", "a{0}b", " {0} ", "the {0}, {0}{0} and  {0}the", "x  {0}\n{0}. {0}1")
_MOST_ADDED = 1200  # Maximum number of added tokens to test; of a larger number, evenly spaced ones are chosen.


def prove(tokenizer: Tokenizer, record: dict[str, Any], folder: pathlib.Path) -> None:
    """Compares a tokenizer with the library's tokenizer for `record`.

    Args:
      tokenizer: the tokenizer compiled from the folder's files.
      record: the content of tokenizer.json, with the changes that the files next to it make.
      folder: the folder named in errors.

    Raises:
      UserError: a line differs; the message shows the line and both results.
    """
    added = [dataclasses.asdict(token) for token in tokenizer.added_tokens]
    bare = {**record, "post_processor": None, "truncation": None, "padding": None, "added_tokens": added}
    with untrusted.library_errors(folder):
        try:
            library = tokenizers.Tokenizer.from_str(json.dumps(bare))
        except Exception as error:
            raise UserError(
                f"{folder}: the tokenizers library cannot read tokenizer.json ({one_line(error, 160)})"
            ) from None
        _compare(tokenizer, library, _without_special(bare, tokenizer), folder)


def prove_sentencepiece(tokenizer: SentencePiece, folder: pathlib.Path) -> None:
    """Compares TensorFlow's operation with the `sentencepiece` library, unless that was done before.

    The processing that model families add around the operation is verified by tests.

    Raises:
      UserError: a line differs.
    """
    proof_key = key(folder)
    if cache.read(proof_key) is not None:
        return
    library = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.op_model)
    results = tokenizer.op.tokenize(_LINES).to_list()
    for line, ids, expected in zip(_LINES, results, library.encode(list(_LINES))):
        if ids != expected:
            raise _difference(
                folder, f"{line!r} becomes", library.id_to_piece(ids), library.id_to_piece(expected), "sentencepiece"
            )
    cache.write(proof_key, b"")


def note_model_beside(tokenizer: Tokenizer, folder: pathlib.Path, proof_key: str) -> None:
    """Logs that tokenizer.json takes precedence if a SentencePiece model next to it gives different ids.

    Args:
      tokenizer: the tokenizer compiled from tokenizer.json.
      folder: the folder of both.
      proof_key: the result of `key`; the note is cached under a key of its own.
    """
    note_key = hashlib.sha256(f"beside {proof_key}".encode()).hexdigest()
    note = cache.read(note_key)
    if note is None:
        note = b""
        try:
            other = SentencePiece.from_folder(folder)
            pairs = zip(_LINES, tokenizer.tokenize(_LINES).to_list(), other.tokenize(_LINES).to_list())
            line = next((line for line, ids, other_ids in pairs if ids != other_ids), None)
            if line is not None:
                note = f"the SentencePiece model tokenizes {line!r} differently; tokenizer.json is used".encode()
        except UserError as error:
            note = f"tokenizer.json is used; the SentencePiece model next to it cannot be read ({error})".encode()
        cache.write(note_key, note)
    if note:
        logging.info("%s: %s", folder, note.decode())


def _without_special(bare: dict[str, Any], tokenizer: Tokenizer) -> tokenizers.Tokenizer | None:
    """Returns the library's tokenizer for plain text if it would match special tokens of a unigram model as words.

    In tfzoo no text that a user writes becomes a special token. Returns None for other models.
    """
    model, special = bare["model"], {*tokenizer.special_ids, bare["model"].get("unk_id")}
    if not isinstance(model.get("vocab"), list):
        return None
    vocab = [[f"\x01{i}", score] if i in special else [t, score] for i, (t, score) in enumerate(model["vocab"])]
    added = [token for token in bare.get("added_tokens") or [] if not token.get("special")]
    return tokenizers.Tokenizer.from_str(
        json.dumps({**bare, "model": {**model, "vocab": vocab}, "added_tokens": added})
    )


def _compare(tokenizer: Tokenizer, library: tokenizers.Tokenizer, plain_library, folder: pathlib.Path) -> None:
    added = tokenizer.added_tokens
    chosen = added[:: -(-len(added) // _MOST_ADDED)] if added else []
    lines = [*_LINES, *(form.replace("{0}", token.content) for token in chosen for form in _AROUND)]
    special = [token.content for token in added if token.special]
    for recognised in (True, False):
        if not recognised:
            library = plain_library or library
            library.encode_special_tokens = True
        expected = library.encode_batch(lines, add_special_tokens=False)
        results = tokenizer.tokenize(lines, special=special if recognised else ()).to_list()
        mode = "with special tokens recognised" if recognised else "read as plain text"
        for line, ids, encoding in zip(lines, results, expected):
            if ids != encoding.ids:
                raise _difference(folder, f"{line!r}, {mode}, becomes", _named(tokenizer, ids), encoding.tokens)
    plain = [(line, e) for line, e in zip(lines, expected) if not {*e.ids} & {*tokenizer.special_ids}]
    texts = tokenizer._detokenize(tf.ragged.constant([e.ids for _, e in plain], tf.int32)).numpy()
    for (line, encoding), text in zip(plain, texts):
        if text.decode() != (decoded := library.decode(encoding.ids)):
            raise _difference(folder, f"the ids of {line!r} decode to", text.decode(), decoded)
    try:
        _, starts, ends = tokenizer.tokenize_with_offsets(lines)
    except (UserError, tf.errors.InvalidArgumentError):  # The tokenizer reports that it has no offsets.
        return
    for line, first, last, encoding in zip(lines, starts.to_list(), ends.to_list(), expected):
        if (offsets := list(zip(first, last))) != encoding.offsets:
            raise _difference(folder, f"the offsets of {line!r} are", offsets, encoding.offsets)


def _difference(
    folder: pathlib.Path, subject: str, result: Sequence, expected: Sequence, library: str = "tokenizers"
) -> UserError:
    """Returns the error, which shows a few items of both results from just before the first difference."""
    first = next((i for i, (a, b) in enumerate(zip(result, expected)) if a != b), min(len(result), len(expected)))
    begin, end = max(first - 2, 0), first + 6
    return UserError(
        f"{folder}: tfzoo does not reproduce this tokenizer exactly, so it is not used: {subject} "
        f"{result[begin:end]!r} in tfzoo and {expected[begin:end]!r} in the {library} library, from position {begin}; "
        "please report it"
    )


def _named(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    vocab = tokenizer.vocab
    return [vocab[i] if i < len(vocab) else str(i) for i in ids]


def key(folder: pathlib.Path) -> str:
    """Returns the key of a cached proof: a hash of the tokenizer's files, this package's code and the libraries'
    versions."""
    digest = hashlib.sha256(_code().encode())
    for name in FILES:
        path = folder / name
        digest.update(f"{name} {path.exists()}\n".encode())
        if path.exists():
            digest.update(hashlib.sha256(files.read_bytes(path)).digest())
    return digest.hexdigest()


@functools.cache
def _code() -> str:
    """Returns a hash of this package's code and of the libraries' versions, on which a proof depends too."""
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    for name in ("tokenizers", "sentencepiece", "tensorflow-text", "tensorflow"):
        digest.update(f"{name} {importlib.metadata.version(name)}\n".encode())
    return digest.hexdigest()
