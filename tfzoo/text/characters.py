"""Characters as tokens, as in nanoGPT's character-level models: tokens are code points, and nothing is lost.

Source: Karpathy, nanoGPT (data/shakespeare_char/prepare.py): the sorted characters of a corpus.
"""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Sequence

import tensorflow as tf

from tfzoo import files
from tfzoo.errors import UserError
from tfzoo.text.pieces import Pieces
from tfzoo.text.settings import CHARACTERS_FILE, CONFIG_FILE
from tfzoo.text.tokenizer import Tokenizer, join

TOKENIZER_CLASS = "Characters"
# The entries of a vocabulary that are not characters, by role.
SPECIALS = {
    "pad": "<pad>", "unknown": "<unk>", "bos": "<s>", "eos": "</s>", "cls": "<cls>", "sep": "<sep>", "mask": "<mask>",
}  # fmt: skip

_ESCAPE = re.compile(r"\\(?:\\|n|r|t|u\{([0-9a-fA-F]{1,6})\})")
_NAMED = {"\\": "\\\\", "\n": r"\n", "\r": r"\r", "\t": r"\t"}


class Characters(Tokenizer):
    """Converts text to the ids of its characters and back, identically eagerly, in `tf.data` and in a SavedModel.

    A character is a Unicode code point. If every character is in the vocabulary, `detokenize(tokenize(texts))` equals
    `texts` byte for byte. Special tokens in a text are plain text unless they are passed to `tokenize` as `special`.
    """

    keeps_spaces = True

    def __init__(self, vocab: Sequence[str]):
        """Creates the tokenizer; `vocab[i]` is the character, or one of SPECIALS, of token i.

        Raises:
          UserError: an entry is empty, repeated, or neither one character nor one of SPECIALS.
        """
        tokens = list(vocab)
        _check(tokens, "vocabulary")
        ids = {token: i for i, token in enumerate(tokens)}
        super().__init__("characters", tokens, {role: ids[text] for role, text in SPECIALS.items() if text in ids})
        characters = sorted((ord(token), i) for i, token in enumerate(tokens) if len(token) == 1)
        dropped = self._dropped()
        with tf.init_scope():  # Created once, outside any graph under construction.
            self._codes = tf.constant([code for code, _ in characters], tf.int32)
            self._code_ids = tf.constant([i for _, i in characters], tf.int32)
            self._pieces = tf.constant([b"" if i in dropped else token.encode() for i, token in enumerate(tokens)])

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "Characters":
        r"""Reads a vocabulary file.

        The file is UTF-8 with one entry per line; the first line is token 0. The escapes \\ \n \r \t and \u{1F600} (a
        code point in hexadecimal) represent characters that cannot be on a line of their own.

        Raises:
          UserError: the file is missing, is not UTF-8, or is not a valid vocabulary; the message names file and line.
        """
        path = pathlib.Path(path)
        tokens = _read_vocab(path)
        _check(tokens, os.fspath(path))
        return cls(tokens)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike) -> "Characters":
        """Reads characters.txt, which `save` writes, from a folder.

        Raises:
          UserError: as for `from_file`.
        """
        return cls.from_file(pathlib.Path(folder, CHARACTERS_FILE))

    def _contents(self) -> dict[str, str | bytes]:
        """Returns characters.txt and a tokenizer_config.json that names this class."""
        return {
            CHARACTERS_FILE: "".join(f"{_escape(token)}\n" for token in self._vocab),
            CONFIG_FILE: json.dumps({"tokenizer_class": TOKENIZER_CLASS}, indent=2) + "\n",
        }

    def fingerprint(self) -> str:
        """Returns a SHA-256 in hexadecimal that is equal for equal vocabularies."""
        text = "".join(f"{_escape(token)}\n" for token in self._vocab)
        return hashlib.sha256(f"characters\n{text}".encode()).hexdigest()

    def _valid(self, texts: tf.Tensor) -> tf.Tensor:
        return texts  # Decoding replaces invalid bytes.

    def _encode(self, pieces: Pieces) -> tuple:
        """Returns one id per code point; bytes that are not UTF-8 count as U+FFFD.

        Raises:
          tf.errors.InvalidArgumentError: a character is not in the vocabulary, and there is no <unk>.
        """
        ids = self._tokenize_characters(pieces.texts)
        if not pieces.aligned:
            return ids, None, None
        return ids, ids.with_flat_values(pieces.starts), ids.with_flat_values(pieces.ends)

    def _detokenize(self, ids: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
        """Converts ids to texts, the exact inverse of `tokenize`.

        Special tokens are dropped, except <unk> and <mask>, which remain as text.

        Args:
          ids: int [N, L] or ragged [N, None].

        Returns:
          Strings [N].

        Raises:
          tf.errors.InvalidArgumentError: an id is outside the vocabulary.
        """
        return join(self._pieces, ids)

    def _tokenize_characters(self, texts: tf.Tensor) -> tf.RaggedTensor:
        codes = tf.strings.unicode_decode(texts, "UTF-8", errors="replace")
        values = codes.flat_values
        place = tf.minimum(tf.searchsorted(self._codes, values), tf.size(self._codes) - 1)
        is_known = tf.gather(self._codes, place) == values
        ids = tf.gather(self._code_ids, place)
        if self.unknown_id is not None:
            return codes.with_flat_values(tf.where(is_known, ids, self.unknown_id))
        missing = tf.boolean_mask(values, ~is_known)[:1]
        check = tf.debugging.Assert(
            tf.reduce_all(is_known),
            ["code point", missing, "is not in the vocabulary, which has no <unk>"],
        )
        with tf.control_dependencies([] if check is None else [check]):
            return codes.with_flat_values(tf.identity(ids))


def _escape(token: str) -> str:
    if token in _NAMED:
        return _NAMED[token]
    # Characters that an editor would not show, or would treat as a line end, are written by number.
    return token if len(token) > 1 or token == " " or token.isprintable() else rf"\u{{{ord(token):X}}}"


def _read_vocab(path: pathlib.Path) -> list[str]:
    lines = files.read_bytes(path).split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    by_escape = {escaped: character for character, escaped in _NAMED.items()}
    tokens = []
    for number, line in enumerate(lines, 1):
        try:
            text = line.removesuffix(b"\r").decode()
        except UnicodeDecodeError:
            raise UserError(f"{path}, line {number}: {line[:40]!r} is not UTF-8; convert the file") from None
        if text.startswith("\\"):
            match = _ESCAPE.fullmatch(text)
            code = int(match[1], 16) if match and match[1] else 0
            if not match or code > 0x10FFFF:
                raise UserError(
                    f"{path}, line {number}: {text[:20]!r} is not a valid escape; use \\\\ \\n \\r \\t or \\u{{...}}"
                )
            text = chr(code) if match[1] else by_escape[text]
        tokens.append(text)
    return tokens


def _check(tokens: list[str], name: str) -> None:
    """Raises UserError for an invalid vocabulary; lines count from 1, so line i + 1 contains token i."""
    seen: dict[str, int] = {}
    for number, token in enumerate(tokens, 1):
        if not token:
            raise UserError(f"{name}, line {number}: the entry is empty; remove the line")
        if len(token) > 1 and token not in SPECIALS.values():
            raise UserError(
                f"{name}, line {number}: {token[:20]!r} is neither a character nor one of {' '.join(SPECIALS.values())}"
            )
        if 0xD800 <= ord(token[0]) <= 0xDFFF:
            raise UserError(
                f"{name}, line {number}: {token!r} is not a character but half of one (a surrogate); remove it"
            )
        if token in seen:
            raise UserError(f"{name}, line {number}: {token!r} is already on line {seen[token]}; remove one")
        seen[token] = number
    if not any(len(token) == 1 for token in tokens):
        raise UserError(f"{name}: lines 1 to {len(tokens)} contain no characters; train it from a corpus")
