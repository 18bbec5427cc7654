"""BERT's WordPiece, which consists of TensorFlow ops only, so an exported model accepts text.

Source: Devlin et al., BERT (arXiv:1810.04805), whose tokenization.py defines the steps: clean, lower-case and strip
accents (uncased only), split at white space, punctuation and CJK characters, then repeatedly take the longest known
piece from the left (Wu et al., arXiv:1609.08144, section 4.1; the linear-time algorithm is Song et al.,
arXiv:2012.15524).
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text
from tensorflow_text.core.pybinds import pywrap_fast_wordpiece_tokenizer_model_builder

from tfzoo import files
from tfzoo.errors import UserError
from tfzoo.text import cache, settings
from tfzoo.text.components.decoders import clean_up
from tfzoo.text.components.normalizers import BERT_DELETED, BERT_SPACES
from tfzoo.text.pieces import Pieces
from tfzoo.text.settings import CONFIG_FILE, ROLES, TOKENIZER_FILE
from tfzoo.text.token_files import AddedToken
from tfzoo.text.tokenizer import Tokenizer, join

VOCAB_FILE = "vocab.txt"
ROLES_OF_BERT = settings.ROLES_OF_CLASS["Bert"]

_MAX_CHARACTERS = 100  # BERT's limit: a longer word is [UNK].
_MAX_TOKEN_BYTES = 256  # tensorflow-text's limit.


class WordPiece(Tokenizer):
    """Converts text to token ids and back, identically eagerly, in `tf.data` and in a SavedModel.

    The ids equal those of BERT's own tokenizer, uncased (lower-cased and without accents) or cased; both split Chinese
    into characters. A SavedModel that contains this tokenizer requires `import tensorflow_text` before it is loaded.

    The only differences are due to Unicode versions. About 700 characters of rare scripts received, or changed, a
    category, a lower case or a decomposition between the versions of the libraries' tables; a line with such a
    character may differ. Compared with the `tokenizers` library, every character of Unicode 3.2 agrees except U+166D,
    U+1734, U+1885 and U+1886; and U+2B820 to U+2B91F, which BERT and tfzoo, but not that library, split off as CJK.
    """

    def __init__(
        self,
        vocab: Sequence[str],
        lowercase: bool = True,
        *,
        strip_accents: bool | None = None,
        roles: Mapping[str, str] | None = None,
        added_tokens: Sequence[AddedToken] = (),
        max_characters: int = _MAX_CHARACTERS,
        cleanup: bool = False,
        name: str = "vocabulary",
    ):
        """Creates the tokenizer.

        Args:
          vocab: `vocab[i]` is the text of token i, "" if no token has id i; pieces that continue a word begin with ##.
          lowercase: whether to lower-case texts.
          strip_accents: whether to strip accents; None follows `lowercase`.
          roles: role -> token, including the unknown token; None uses BERT's five.
          added_tokens: tokens that are matched in a text.
          max_characters: a longer word is unknown.
          cleanup: whether detokenization removes spaces before punctuation.
          name: the name of the vocabulary in errors.

        Raises:
          UserError: a token is repeated, overlong or contains a line break, or the token of a role is missing.
        """
        tokens = list(vocab)
        roles = dict(ROLES_OF_BERT if roles is None else roles)
        _check(tokens, name, roles.values())
        role_ids = {role: tokens.index(token) for role, token in roles.items()}
        super().__init__("wordpiece", tokens, role_ids, added_tokens=added_tokens)
        self._lowercase = bool(lowercase)
        self._strip_accents = self._lowercase if strip_accents is None else bool(strip_accents)
        self._max_characters = max_characters
        self._cleanup = cleanup
        with tf.init_scope():  # Created once, outside any graph under construction.
            # A word must not become a token that is only matched literally in a text. (Gaps get names that are not
            # words.)
            names = [*tokens]
            excluded = {token.id for token in added_tokens} - {role_ids["unknown"]}
            excluded |= {i for i, token in enumerate(tokens) if not token} if "" in tokens else set()
            for i in excluded:
                names[i] = f"[unused {i}]"
            max_bytes = 4 * max_characters  # No word within the limit is longer than this in UTF-8.
            self._model = _fast_wordpiece(names, max_bytes, roles["unknown"])

    @functools.cached_property
    def _begins(self) -> tf.Tensor:
        with tf.init_scope():
            return tf.constant(~self.continues)

    @functools.cached_property
    def _pieces(self) -> tf.Tensor:
        """The text that each id contributes when ids are joined."""
        written = dict(enumerate(self._vocab)) | self._as_normalized()
        pieces = [token[2:] if token.startswith("##") else " " + token for token in written.values()]
        for i in self._dropped():
            pieces[i] = ""
        with tf.init_scope():
            return tf.constant([*map(clean_up, pieces)] if self._cleanup else pieces)

    @classmethod
    def from_file(cls, path: str | os.PathLike, lowercase: bool) -> "WordPiece":
        """Reads a vocab.txt: UTF-8, one token per line; the first line is token 0.

        Raises:
          UserError: the file is missing, is not UTF-8, or is not a valid vocabulary; the message names the file and the
            line.
        """
        return cls(_read_vocab(pathlib.Path(path)), lowercase, name=os.fspath(path))

    def _contents(self) -> dict[str, str | bytes]:
        """Returns tokenizer.json, vocab.txt and tokenizer_config.json, which Hugging Face's BertTokenizer reads."""
        config = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": self._lowercase,
            "strip_accents": None,
            "tokenize_chinese_chars": True,
            **{ROLES[role]: self._vocab[i] for role, i in self._role_ids},
        }
        record = content(self.vocab, {role: self._vocab[i] for role, i in self._role_ids}, config)
        return {
            TOKENIZER_FILE: json.dumps(record, ensure_ascii=False),
            VOCAB_FILE: "".join(f"{token}\n" for token in self._vocab),
            CONFIG_FILE: json.dumps(config, indent=2) + "\n",
        }

    @property
    def lowercase(self) -> bool:
        return self._lowercase

    @functools.cached_property
    def continues(self) -> np.ndarray:
        """bool [V]: True where the token continues a word (its text begins with ##)."""
        return np.array([token.startswith("##") for token in self._vocab])

    def fingerprint(self) -> str:
        """Returns a SHA-256 in hexadecimal that is equal for equal vocabularies and options."""
        text = "".join(f"{token}\n" for token in self._vocab)
        default_options = self._strip_accents == self._lowercase and self._max_characters == _MAX_CHARACTERS
        plain = {AddedToken(self._vocab[i], i) for _, i in self._role_ids}
        options = (
            ""
            if default_options and plain.issuperset(self._added)
            else f"{self._strip_accents} {self._max_characters} {self._added}\n"
        )
        return hashlib.sha256(f"lowercase={self._lowercase}\n{options}{text}".encode()).hexdigest()

    def _normalize(self, pieces: Pieces) -> Pieces:
        """Normalises pieces as BERT does before it splits them. Bytes that are not UTF-8 are dropped.

        Each character is normalised by itself, so offsets are exact. The exception is kept combining marks that follow
        each other out of canonical order: a border between tokens inside such a run may be off by some of the run's
        characters.
        """
        return pieces.each_character(self._normalized)

    def _encode(self, pieces: Pieces) -> tuple:
        ids, starts, ends = self._tokenize_words(pieces.texts)
        if not pieces.aligned:
            return ids, None, None
        return ids, *pieces.offsets(ids.with_flat_values(starts), ids.with_flat_values(ends))

    def _detokenize(self, ids: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
        """Converts ids to texts, with one space between words.

        [PAD], [CLS] and [SEP] are dropped; [UNK] and [MASK] remain as text. Tokenizing the result gives the same ids if
        they came from a text and include none of these.

        Args:
          ids: int [N, L] or ragged [N, None].

        Returns:
          Strings [N].

        Raises:
          tf.errors.InvalidArgumentError: an id is outside the vocabulary.
        """
        return tf.strings.regex_replace(join(self._pieces, ids), "^ ", "")

    def _normalized(self, texts: tf.Tensor) -> tf.Tensor:
        texts = tf.strings.regex_replace(texts, BERT_DELETED, "")
        texts = tf.strings.regex_replace(texts, BERT_SPACES, " ")
        if self._strip_accents:
            texts = tf_text.normalize_utf8(texts, "NFD")
            texts = tf.strings.regex_replace(texts, r"\p{Mn}", "")
        if self._lowercase:
            # BERT lower-cases each character by itself, so it never produces a final sigma. (tensorflow-text's case
            # folding would also map ß to ss, and a full-width comma to a comma.)
            texts = tf.strings.regex_replace(texts, "Σ", "σ")
            # Unicode lower-casing depends on the process's locale, and a Turkish one maps I to ı, so ASCII is
            # lower-cased first.
            texts = tf.strings.lower(tf.strings.lower(texts), encoding="utf-8")
        return texts

    def _tokenize_words(self, normalized: tf.Tensor) -> tuple[tf.RaggedTensor, tf.Tensor, tf.Tensor]:
        """Converts strings [N] to ids int32 [N, None] and the tokens' starts and ends in bytes, int64 [tokens].

        The op limits the length of words in bytes, BERT limits it in characters. So the op gets a limit that no word
        within BERT's limit reaches, and longer words are detected in its result.
        """
        ids, starts, ends = self._model.tokenize_with_offsets(normalized)
        values, starts, ends = ids.flat_values, starts.flat_values, ends.flat_values
        begins = tf.gather(self._begins, values)  # Each word is one token that begins it, followed by any that do not.
        word_starts = tf.boolean_mask(starts, begins)
        word_ends = tf.boolean_mask(ends, tf.concat([begins[1:], tf.ones_like(begins[:1])], 0))
        suspects = tf.where(word_ends - word_starts > self._max_characters)[:, 0]
        counts = ids.row_lengths()

        def replace_long_words() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
            rows = ids.value_rowids()
            start, end = tf.gather(word_starts, suspects), tf.gather(word_ends, suspects)
            lines = tf.gather(normalized, tf.gather(tf.boolean_mask(rows, begins), suspects))
            lengths = tf.strings.length(tf.strings.substr(lines, start, end - start), unit="UTF8_CHAR")
            too_long = tf.scatter_nd(
                suspects[:, tf.newaxis],
                tf.cast(lengths > self._max_characters, tf.int32),
                tf.shape(word_starts, tf.int64),
            )
            word = tf.cumsum(tf.cast(begins, tf.int32)) - 1
            long = tf.gather(too_long, word) > 0
            keep = begins | ~long
            return (
                tf.boolean_mask(tf.where(long, self.unknown_id, values), keep),
                tf.boolean_mask(starts, keep),
                tf.boolean_mask(tf.where(long, tf.gather(word_ends, word), ends), keep),
                tf.math.unsorted_segment_sum(tf.cast(keep, tf.int64), rows, tf.size(counts)),
            )

        values, starts, ends, counts = tf.cond(
            tf.size(suspects) > 0, replace_long_words, lambda: (values, starts, ends, counts)
        )
        return tf.RaggedTensor.from_row_lengths(values, counts, validate=False), starts, ends


def _fast_wordpiece(names: list[str], max_bytes: int, unknown: str) -> tf_text.FastWordpieceTokenizer:
    """Returns tensorflow-text's operation; its automaton is cached, because building it takes most of the time."""

    def make() -> bytes:
        return pywrap_fast_wordpiece_tokenizer_model_builder.build_fast_wordpiece_model(
            names, max_bytes, "##", unknown, False, False
        )

    options = [importlib.metadata.version("tensorflow-text"), str(max_bytes), unknown, *names]
    key = hashlib.sha256("\n".join(options).encode(errors="surrogatepass")).hexdigest()
    model = tf.constant(np.frombuffer(cache.made(key, make), np.uint8))
    return tf_text.FastWordpieceTokenizer(model_buffer=model, token_out_type=tf.int32)


def read(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the tokenizer.json content that is equivalent to BERT's vocab.txt and tokenizer_config.json.

    Raises:
      UserError: a file is missing or damaged.
    """
    path = folder / CONFIG_FILE
    if not path.exists():
        raise UserError(
            f"{path}: no such file, so it is unknown whether the vocabulary is cased; add it, "
            f"or pass {VOCAB_FILE} to WordPiece.from_file"
        )
    config = settings.read(folder)
    tokens = _read_vocab(folder / VOCAB_FILE)
    roles = {role: settings.token_text(config.get(ROLES[role], token)) for role, token in ROLES_OF_BERT.items()}
    _check(tokens, str(folder / VOCAB_FILE), [token for token in ROLES_OF_BERT.values() if token in roles.values()])
    return content(tokens, {role: token for role, token in roles.items() if token in tokens}, config)


def content(tokens: Sequence[str], roles: Mapping[str, str], config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of a tokenizer.json with the options of a tokenizer_config.json."""
    ids = {token: i for i, token in enumerate(tokens) if token}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = sorted({*roles.values()}, key=ids.__getitem__)
    frame = None
    if "cls" in roles and "sep" in roles:
        cls, sep = ({"SpecialToken": {"id": roles[role], "type_id": 0}} for role in ("cls", "sep"))
        first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
        last = {"SpecialToken": {"id": roles["sep"], "type_id": 1}}
        special_tokens = {t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in (roles["cls"], roles["sep"])}
        frame = {"type": "TemplateProcessing", "single": [cls, first, sep], "special_tokens": special_tokens}
        frame["pair"] = [*frame["single"], second, last]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[token], "content": token, **flags} for token in special],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
            "strip_accents": config.get("strip_accents"),
            "lowercase": config.get("do_lower_case", True),  # Also Hugging Face's default.
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": frame,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": False},
        "model": {
            "type": "WordPiece",
            "unk_token": roles["unknown"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": _MAX_CHARACTERS,
            "vocab": ids,
        },
    }


def _read_vocab(path: pathlib.Path) -> list[str]:
    lines = files.read_bytes(path).split(b"\n")  # Not splitlines: tokens such as U+2028 or U+0085 would end a line.
    if lines[-1] == b"":
        lines.pop()
    tokens = []
    for number, line in enumerate(lines, 1):
        try:
            token = line.removesuffix(b"\r").decode()
        except UnicodeDecodeError:
            raise UserError(f"{path}, line {number}: {line[:40]!r} is not UTF-8; convert the file") from None
        if not token:
            raise UserError(f"{path}, line {number}: the token is empty; remove the line")
        tokens.append(token)
    return tokens


def _check(tokens: list[str], name: str, needed: Iterable[str]) -> None:
    """Raises UserError for an invalid vocabulary; lines count from 1, so line i + 1 contains token i."""
    distinct = {*tokens}
    joined = "".join(tokens)
    valid = len(distinct) == len(tokens) and "\n" not in joined and "\r" not in joined
    if not valid or max(map(len, tokens), default=0) > _MAX_TOKEN_BYTES // 4:
        _check_each(tokens, name)
    missing = [token for token in needed if token not in distinct]
    if missing:
        raise UserError(
            f"{name}: {' '.join(missing)} not found on lines 1 to {len(tokens)}; "
            f"a BERT vocabulary has {' '.join(needed)}"
        )


def _check_each(tokens: list[str], name: str) -> None:
    seen: dict[str, int] = {}
    for number, token in enumerate(tokens, 1):
        if not token:
            continue
        if "\n" in token or "\r" in token:
            raise UserError(f"{name}, line {number}: token {token!r} contains a line break; remove it")
        if len(token.encode(errors="replace")) > _MAX_TOKEN_BYTES:
            raise UserError(
                f"{name}, line {number}: token {token[:20]!r}... is longer than {_MAX_TOKEN_BYTES} bytes; remove it"
            )
        if token in seen:
            raise UserError(f"{name}, line {number}: token {token!r} is already on line {seen[token]}; remove one")
        seen[token] = number
