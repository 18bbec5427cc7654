"""Byte-level byte-pair encoding as GPT-2, RoBERTa and BART have it, and with other split patterns Llama 3 and Qwen2,
made of TensorFlow ops alone, so that an exported model reads text.

Source: Sennrich et al. (arXiv:1508.07909) for byte-pair encoding; Radford et al., Language Models are Unsupervised
Multitask Learners (2019), section 2.2, for bytes, and for the pattern that splits a text into words first.

How it goes, and why it is exact:

1. A text is cut before every plain space that follows something other than white space. Each of the patterns ends a
   word there, and what it does on one side does not depend on the other.
2. A piece that is a token of its own is looked up. Of the others each distinct one is split into words by the
   pattern, which RE2 can match once a mark stands wherever the pattern's `\\s+(?!\\S)` would end.
3. A word is cut between two characters if no token holds the last byte of the one followed by the first of the
   other (in GPT-2's vocabulary that takes 95 of 100 Chinese characters apart): nothing is ever merged there.
4. What is then a token of its own is looked up. Each distinct one of the rest goes through a SentencePiece BPE model
   over 256 letters, one for each byte, with the merges' ranks as scores. SentencePiece merges any two pieces that
   together are a piece, not only those the merges list. But a token that the merges make of its own letters is, where
   they make it within a longer word, made by the same steps; the others are never made, and are left out of the
   model. So it merges the same.
"""

import collections
import hashlib
import json
import os
import pathlib
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text
import tokenizers

from tfzoo import files, json_files
from tfzoo.errors import UserError
from tfzoo.text import settings
from tfzoo.text.settings import CONFIG_FILE, ROLES, SPLIT_PATTERNS, TOKENS
from tfzoo.text.special import tokenize_around
from tfzoo.text.tokenizer import Tokenizer, join, sentencepiece_op, strings, valid_utf8

TOKENIZER_FILE, VOCAB_FILE, MERGES_FILE = "tokenizer.json", "vocab.json", "merges.txt"
MAP_FILE, ADDED_FILE = "special_tokens_map.json", "added_tokens.json"
# What the released vocabularies mean by these, where no file says so.
_USUAL = {
    "<s>": ("bos", "cls"), "<pad>": ("pad",), "</s>": ("eos", "sep"), "<unk>": ("unknown",), "<mask>": ("mask",),
    "<|endoftext|>": ("bos", "eos"), "<|begin_of_text|>": ("bos",), "<|end_of_text|>": ("eos",),
}  # fmt: skip

# Unicode's white space: RE2's own \s is ASCII's, without \v.
_SPACE = r"\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"
_SPACE_BUT_LINE_ENDS = _SPACE.replace(r"\t-\r", r"\t\x{b}\x{c}")
_SPACE_BUT_PLAIN = _SPACE.replace(" ", "")
_PLAIN_SPACES = rf" ?(?:[^{_SPACE}] ?|[{_SPACE_BUT_PLAIN}])*"  # No plain space behind white space.
_LOOKAHEAD = r"|\s+(?!\S)|\s+"  # What the patterns end with.

# Bytes that no UTF-8 holds. RE2 takes them for no character, so that they end every match.
_WORD_END, _PIECE_END = b"\xff", b"\xfe"
_LATIN_WORD_END = "\xff"  # What _WORD_END becomes when bytes become letters.
_LATIN_NUL = "\u0100"  # SentencePiece ends a text at NUL.
_LATIN_OTHER = "\u0101"  # Begins the names, in the SentencePiece model, of what is no text.


def _letters() -> dict[str, int]:
    """GPT-2's letters for bytes: those that can be seen stand for themselves, the others are U+0100 and on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


BYTES = _letters()  # Letter -> byte.


class ByteLevelBPE(Tokenizer):
    """Text to token ids and back, the same eagerly, in `tf.data` and in a SavedModel.

    The ids are those of the `tokenizers` library, and the text that comes back is the text that went in. A SavedModel
    with this inside needs `import tensorflow_text` before it is loaded.

    The one exception would be a character that the two libraries' versions of Unicode class otherwise, as a letter or
    a number, or compose otherwise (`nfc`). Between TensorFlow 2.20 and tokenizers 0.23 there is none to split a text
    by among all 1,112,064 code points; in composing there are the combining marks of rare scripts that came after
    Unicode 9, where one stands beside another mark.
    """

    keeps_spaces = True

    def __init__(
        self,
        vocab: Sequence[str],
        merges: Sequence[tuple[str, str]],
        *,
        special_tokens: Sequence[str] = (),
        roles: Mapping[str, str] | None = None,
        pattern: str = "gpt2",
        ignore_merges: bool = False,
        add_prefix_space: bool = False,
        nfc: bool = False,
        lstrip: Sequence[str] = (),
        rstrip: Sequence[str] = (),
    ):
        """`vocab[i]` is the text of token i in GPT-2's letters for bytes (a space is Ġ); `merges` are in order of rank.

        `special_tokens` are those of the vocabulary that stand for no text; `roles` says which of them does what (one
        of ROLES -> its text; None: as the released vocabularies have it). `pattern` is one of SPLIT_PATTERNS.
        `ignore_merges`: a word that is a token is that token, whatever the merges say (Llama 3). `add_prefix_space`:
        a text that begins with no space gets one. `nfc`: texts are composed first (Qwen2). `lstrip`, `rstrip`: the
        special tokens that, where they are asked for, take the white space before or after them (RoBERTa's <mask>).

        Raises:
          UserError: a token is empty or repeated, a byte has none, a merge names what is not in the vocabulary, or
            an option is none.
        """
        tokens, merges = list(vocab), list(merges)
        _check_vocab(tokens, "vocabulary", lambda token: "")
        _check_merges(set(tokens), merges, lambda i: f"merges, number {i + 1}", "the vocabulary")
        if pattern not in SPLIT_PATTERNS:
            raise UserError(f"pattern: {pattern!r} is not one of {' '.join(SPLIT_PATTERNS)}")
        ids = {token: i for i, token in enumerate(tokens)}
        for token in special_tokens:
            if token not in ids:
                raise UserError(f"special_tokens: {token!r} is not in the vocabulary; add it")
        special = {token: ids[token] for token in special_tokens}
        for token in (*lstrip, *rstrip):
            if token not in special:
                raise UserError(f"lstrip, rstrip: {token!r} is not one of special_tokens")
        if roles is None:
            roles = {role: token for token in special for role in _USUAL.get(token, ())}
        for role, token in roles.items():
            if role not in ROLES:
                raise UserError(f"roles: {role!r} is not one of {' '.join(ROLES)}")
            if token not in special:
                raise UserError(f"roles: the {role} token {token!r} is not one of special_tokens")

        role_ids = {role: ids[roles[role]] for role in ROLES if role in roles}
        super().__init__("byte_level_bpe", tokens, role_ids, [*special.values()])
        self._merges = np.array(merges, dtype=object).reshape(-1, 2)
        self._pattern, self._ignore_merges = pattern, bool(ignore_merges)
        self._add_prefix_space, self._nfc = bool(add_prefix_space), bool(nfc)
        self._lstrip, self._rstrip = tuple(sorted(set(lstrip))), tuple(sorted(set(rstrip)))

        ordinary = {i: bytes(BYTES[c] for c in t) for i, t in enumerate(tokens) if t not in special and _is_text(t)}
        made = _made_by_merges(self._vocab, ids, merges)
        words = {i: b for i, b in ordinary.items() if i in made or ignore_merges}
        expression = SPLIT_PATTERNS[pattern].removesuffix(_LOOKAHEAD) + r"|\s+"
        self._words = expression.replace(r"[^\s", f"[^{_SPACE}").replace(r"\s", f"[{_SPACE}]")
        last = _SPACE if pattern == "gpt2" else _SPACE_BUT_LINE_ENDS  # The others take \s*[\r\n]+ before.
        self._run_ends = rf"([{_SPACE}])([{last}][^{_SPACE}])"
        self._cuts = _cuts(ordinary.values())
        with tf.init_scope():  # Made once and outside any graph under construction, whoever calls.
            model = _sentencepiece_model(len(tokens), {i: (b, made[i]) for i, b in ordinary.items() if i in made})
            self._model = sentencepiece_op(model)
            self._word_table = _table({_latin(b): i for i, b in words.items()})
            self._piece_table = _table(self._whole_pieces(words))
            # What each id adds when ids are joined to text, and how many bytes of a text it came from.
            dropped = self._dropped()
            pieces = [
                ordinary[i] if i in ordinary else b"" if i in dropped else t.encode() for i, t in enumerate(tokens)
            ]
            self._pieces = tf.constant(pieces)
            self._lengths = tf.constant([len(ordinary.get(i, b"")) for i in range(len(tokens))], tf.int64)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike) -> "ByteLevelBPE":
        """Reads tokenizer.json, or vocab.json and merges.txt, as Hugging Face's folders have them.

        tokenizer_config.json, special_tokens_map.json and added_tokens.json say which tokens are special; without
        them <|endoftext|>, <s>, <pad>, </s>, <unk> and <mask> are.

        Raises:
          UserError: a file is missing or broken, or asks for what is not built here; the message names the file and
            the line.
        """
        folder = pathlib.Path(folder)
        if (folder / TOKENIZER_FILE).exists():
            return cls(**_from_tokenizer_file(folder))
        return cls(**_from_vocab_and_merges(folder))

    def save(self, folder: str | os.PathLike) -> None:
        """Writes tokenizer.json, vocab.json, merges.txt and tokenizer_config.json, which `from_folder` and the
        `tokenizers` and `transformers` libraries read."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        vocab = {token: i for i, token in enumerate(self._vocab)}
        merges = [f"{left} {right}" for left, right in self._merges]
        roles = {role: self._vocab[i] for role, i in self._role_ids}
        added = [
            {
                "id": vocab[token],
                "content": token,
                "single_word": False,
                "lstrip": token in self._lstrip,
                "rstrip": token in self._rstrip,
                "normalized": False,
                "special": True,
            }
            for token in self._special_tokens()
        ]
        byte_level = {"type": "ByteLevel", "add_prefix_space": self._add_prefix_space, "trim_offsets": False}
        if self._pattern == "gpt2":
            splitter: dict = {**byte_level, "use_regex": True}
        else:
            split = {"Regex": SPLIT_PATTERNS[self._pattern]}
            splitter = {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": split, "behavior": "Isolated", "invert": False},
                    {**byte_level, "use_regex": False},
                ],
            }
        frame: dict = {**byte_level, "use_regex": True}
        if "cls" in roles and "sep" in roles:
            frame = {
                "type": "RobertaProcessing",
                "sep": [roles["sep"], vocab[roles["sep"]]],
                "cls": [roles["cls"], vocab[roles["cls"]]],
                "trim_offsets": False,
                "add_prefix_space": self._add_prefix_space,
            }
        content = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": {"type": "NFC"} if self._nfc else None,
            "pre_tokenizer": splitter,
            "post_processor": frame,
            "decoder": {**byte_level, "use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": self._ignore_merges,
                "vocab": vocab,
                "merges": merges,
            },
        }
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": self._add_prefix_space}
        config |= {ROLES[role]: token for role, token in roles.items()}
        files.atomic_write(folder / TOKENIZER_FILE, json.dumps(content, ensure_ascii=False))
        files.atomic_write(folder / VOCAB_FILE, json.dumps(vocab, ensure_ascii=False))
        files.atomic_write(folder / MERGES_FILE, "".join(f"{line}\n" for line in ["#version: 0.2", *merges]))
        files.atomic_write(folder / CONFIG_FILE, json.dumps(config, indent=2, ensure_ascii=False) + "\n")

    @property
    def merges(self) -> list[tuple[str, str]]:
        return [(left, right) for left, right in self._merges]

    @property
    def pattern(self) -> str:
        return self._pattern

    @property
    def is_gpt2(self) -> bool:
        """Whether a text becomes ids as in GPT-2: by its pattern and by merges alone, with nothing done before."""
        return self._pattern == "gpt2" and not (self._ignore_merges or self._add_prefix_space or self._nfc)

    def fingerprint(self) -> str:
        """A SHA-256 in hexadecimal, equal for equal vocabularies, merges and options."""
        by_role = dict(self._role_ids)
        roles = [self._vocab[by_role[role]] if role in by_role else None for role in ROLES]
        content = [
            self._vocab.tolist(), self._merges.tolist(), self._special, roles, self._pattern,
            self._ignore_merges, self._add_prefix_space, self._nfc, self._lstrip, self._rstrip,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def tokenize(self, texts: tf.Tensor, special: Sequence[str] = ()) -> tf.RaggedTensor:
        """texts: strings [N] -> ids: int32 [N, None], without tokens for beginning and end.

        Bytes that are not UTF-8 become U+FFFD. `special` names special tokens, such as ("<mask>",), that become that
        token where they stand in a text, which is cut there before anything else; any other is plain text.

        Raises:
          UserError: `special` names what is not a special token.
        """
        texts = valid_utf8(strings(texts))
        if not special:
            return self._tokenize(self._prepared(texts))
        for token in sorted({*special} & {*self._lstrip}):
            texts = tf.strings.regex_replace(texts, f"[{_SPACE}]+({re.escape(token)})", r"\1")
        for token in sorted({*special} & {*self._rstrip}):
            texts = tf.strings.regex_replace(texts, f"({re.escape(token)})[{_SPACE}]+", r"\1")
        return tokenize_around(
            texts, special, self._special_tokens(), lambda parts: self._tokenize(self._prepared(parts))
        )

    def tokenize_with_offsets(self, texts: tf.Tensor) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """texts: strings [N] -> (ids, starts, ends), each int32 [N, None]; ids as `tokenize` gives them.

        Token j of text i came from `texts[i][starts[i, j]:ends[i, j]]`, in code points, spaces included. A token
        that is part of a character's bytes has that character, and so have the others that share it.

        Raises:
          UserError: the tokenizer composes texts (nfc), which keeps no map.
        """
        if self._nfc:
            raise UserError("nfc: this tokenizer composes texts before it reads them, so that there are no offsets")
        texts = valid_utf8(strings(texts))
        prepared = self._prepared(texts)
        ids = self._tokenize(prepared)
        # Bytes and characters are counted through the whole batch, so that one search serves all rows.
        byte_ends = tf.cumsum(tf.gather(self._lengths, ids.flat_values))
        byte_starts = byte_ends - tf.gather(self._lengths, ids.flat_values)
        characters = tf.strings.unicode_decode(prepared, "UTF-8")
        codes = characters.flat_values
        widths = 1 + tf.add_n([tf.cast(codes >= least, tf.int64) for least in (0x80, 0x800, 0x10000)])
        consumed = tf.cumsum(widths)
        rows = ids.value_rowids()
        put_before = tf.strings.length(prepared) - tf.strings.length(texts)  # 1 where a space was added, else 0.

        def character(byte: tf.Tensor) -> tf.Tensor:
            found = tf.searchsorted(consumed, byte, side="right", out_type=tf.int64)
            found = tf.cast(found - tf.gather(characters.row_starts(), rows), tf.int32)
            return tf.maximum(found - tf.gather(put_before, rows), 0)  # The added space is at the first character.

        return (
            ids,
            ids.with_flat_values(character(byte_starts)),
            ids.with_flat_values(character(byte_ends - 1) + 1),
        )

    def detokenize(self, ids: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
        """ids: int [N, L] or ragged [N, None] -> strings [N], the inverse of `tokenize` for any UTF-8.

        Special tokens are dropped, but for those for unknown and masked words, which stay, as text. Where ids end
        within a character, or make no UTF-8 for another reason, U+FFFD stands.

        Raises:
          tf.errors.InvalidArgumentError: an id is outside the vocabulary.
        """
        return valid_utf8(join(self._pieces, ids))

    def _prepared(self, texts: tf.Tensor) -> tf.Tensor:
        """What happens to a text before it is split."""
        if self._nfc:
            texts = tf_text.normalize_utf8(texts, "NFC")
        if self._add_prefix_space:
            lacks = tf.strings.regex_full_match(texts, "(?s)[^ ].*")
            texts = tf.where(lacks, tf.strings.join([" ", texts]), texts)
        return texts

    def _tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """strings [N] of UTF-8 -> ids int32 [N, None]."""
        # A piece is what stands between two cuts. Each but the first of a text lost its space; the first begins with
        # a _WORD_END instead, so that it is not taken for one of the others.
        pieces = tf.cond(
            tf.reduce_all(tf.strings.regex_full_match(texts, _PLAIN_SPACES)),
            lambda: tf.strings.split(tf.strings.join([_WORD_END, texts]), " "),
            lambda: tf.strings.split(
                tf.strings.join([_WORD_END, tf.strings.regex_replace(texts, f"([^{_SPACE}]) ", rb"\1" + _PIECE_END)]),
                _PIECE_END,
            ),
        )
        ids = _look_up(pieces.flat_values, self._piece_table, self._tokenize_pieces)
        return pieces.with_values(ids).merge_dims(1, 2)

    def _tokenize_pieces(self, pieces: tf.Tensor) -> tf.RaggedTensor:
        """Pieces, strings [P] -> ids int32 [P, None]."""
        is_first = tf.strings.substr(pieces, 0, 1) == _WORD_END
        texts = tf.where(is_first, tf.strings.substr(pieces, 1, np.iinfo(np.int32).max), tf.strings.join([" ", pieces]))
        letters = tf.strings.unicode_transcode(self._with_word_ends(texts), "ISO-8859-1", "UTF-8")
        letters = tf.strings.regex_replace(letters, r"\x{0}", _LATIN_NUL)
        if self._cuts:
            letters = tf.strings.regex_replace(letters, self._cuts, rf"\1{_LATIN_WORD_END}\2")
        words = tf.strings.split(letters, _LATIN_WORD_END)
        ids = _look_up(words.flat_values, self._word_table, self._model.tokenize)
        return words.with_values(ids).merge_dims(1, 2)

    def _with_word_ends(self, texts: tf.Tensor) -> tf.Tensor:
        """Strings [P] with at least one _WORD_END behind every word."""
        texts = tf.strings.regex_replace(texts, self._run_ends, rb"\1" + _WORD_END + rb"\2")
        return tf.strings.regex_replace(texts, self._words, rb"\0" + _WORD_END)

    def _whole_pieces(self, words: dict[int, bytes]) -> dict[bytes, int]:
        """Those that the pattern leaves whole, as the pieces that `_tokenize` makes of them -> id."""
        split = self._with_word_ends(tf.constant(list(words.values()))).numpy()
        whole = {b: i for (i, b), marked in zip(words.items(), split, strict=True) if marked == b + _WORD_END}
        return {b[1:] if b[:1] == b" " else _WORD_END + b: i for b, i in whole.items()}


def _look_up(
    keys: tf.Tensor, table: tf.lookup.StaticHashTable, otherwise: Callable[[tf.Tensor], tf.RaggedTensor]
) -> tf.RaggedTensor:
    """keys: strings [K] -> ids: int32 [K, None]: the one in the table, or what `otherwise` makes of those that are not
    there, each distinct one once."""
    found = table.lookup(keys)
    is_there = found >= 0
    absent = tf.where(~is_there)
    distinct, which = tf.unique(tf.gather_nd(keys, absent), out_idx=tf.int64)
    made = otherwise(distinct)
    # Rows: first those made, then one for each that was there.
    values = tf.concat([made.flat_values, tf.boolean_mask(found, is_there)], 0)
    row = made.nrows() - 1 + tf.cumsum(tf.cast(is_there, tf.int64))
    row = tf.where(is_there, row, tf.scatter_nd(absent, which, tf.shape(keys, tf.int64)))
    ends = tf.size(made.flat_values, tf.int64) + tf.range(1, tf.reduce_sum(tf.cast(is_there, tf.int64)) + 1)
    rows = tf.RaggedTensor.from_row_splits(values, tf.concat([made.row_splits, ends], 0), validate=False)
    return tf.gather(rows, row)


def _table(ids: Mapping[bytes, int]) -> tf.lookup.StaticHashTable:
    entries = tf.lookup.KeyValueTensorInitializer(
        tf.constant(list(ids) or [b""], tf.string), tf.constant(list(ids.values()) or [-1], tf.int32)
    )
    return tf.lookup.StaticHashTable(entries, default_value=-1)


def _is_text(token: str) -> bool:
    return all(letter in BYTES for letter in token)


def _latin(token: bytes) -> bytes:
    """A token's bytes as letters, each the character of that number."""
    return token.decode("latin-1").replace("\0", _LATIN_NUL).encode()


def _made_by_merges(vocab: np.ndarray, ids: Mapping[str, int], merges: list) -> dict[int, int]:
    """The tokens that the merges make of their own letters -> the rank of the last merge (-1 for a letter)."""
    ranks: dict[str, list[int]] = collections.defaultdict(list)
    for rank, (left, right) in enumerate(merges):
        ranks[left + right].append(rank)
    candidates = [token for token in vocab if token in ranks or len(token) == 1]
    model = tokenizers.Tokenizer(tokenizers.models.BPE(dict(ids), merges))
    made = {}
    for token, encoding in zip(candidates, model.encode_batch_fast(candidates), strict=True):
        if encoding.ids == [ids[token]]:
            if len(ranks[token]) > 1:  # Two merges make it, of which one is used.
                made[ids[token]] = _last_merge(token, {merge: rank for rank, merge in enumerate(merges)})
            else:
                made[ids[token]] = ranks[token][0] if ranks[token] else -1
    return made


def _last_merge(token: str, ranks: Mapping[tuple[str, str], int]) -> int:
    """The rank of the last of the merges that make a token of its letters."""
    parts, last = list(token), -1
    while len(parts) > 1:
        last, i = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(zip(parts, parts[1:])))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return last


def _cuts(tokens: Iterable[bytes]) -> str:
    """An expression over letters for two bytes, its groups, of which the second begins a character, that stand together
    in no token. Empty where there are none."""
    together = np.zeros((256, 256), bool)
    for token in tokens:
        together[list(token[:-1]), list(token[1:])] = True
    # A class of first bytes times a class of second bytes: the largest such product, where those second bytes are
    # together that have the fewest partners. (Several products cut more, but their groups cost what that gains.)
    seconds = np.arange(0xC2, 0xF5)
    partners = together[0x80:0xC0, 0xC2:0xF5].sum(0)
    products = []
    for most in np.unique(partners):
        second = seconds[partners <= most]
        products.append((0x80 + np.flatnonzero(~together[0x80:0xC0, second].any(1)), second))
    first, second = max(products, key=lambda product: product[0].size * product[1].size)
    if not first.size:
        return ""
    classes = ("".join(f"\\x{{{byte:x}}}" for byte in chosen) for chosen in (first, second))
    return "".join(f"([{letters}])" for letters in classes)


def _sentencepiece_model(vocab_size: int, tokens: Mapping[int, tuple[bytes, int]]) -> bytes:
    """A SentencePiece BPE model that merges as the ranks say: id -> (bytes, rank), written as protocol buffer."""

    def number(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + number(value >> 7)

    def field(tag: int, value: int | bytes) -> bytes:
        if isinstance(value, bytes):
            return number(tag << 3 | 2) + number(len(value)) + value
        return number(tag << 3) + number(value)

    normal, unknown, control = 1, 2, 3
    pieces = []
    for i in range(vocab_size + 1):  # The unknown piece, which a model must have, is the last.
        text, rank = tokens.get(i, (b"", 0))
        name = _latin(text) if text else f"{_LATIN_OTHER}{i}".encode()
        kind = normal if text else unknown if i == vocab_size else control
        pieces.append(field(1, field(1, name) + number(2 << 3 | 5) + struct.pack("<f", -rank) + field(3, kind)))
    bpe = field(2, field(3, 2))
    # No normalisation, no space before a text, no fewer spaces, spaces as they are.
    as_is = field(3, field(1, b"identity") + field(3, 0) + field(4, 0) + field(5, 0))
    return b"".join(pieces) + bpe + as_is


def _check_vocab(tokens: list[str], name: str, where: Callable[[str], str]) -> None:
    """Refuses what is no vocabulary; `where` gives ", line 3" for a token."""
    seen: dict[str, int] = {}
    for i, token in enumerate(tokens):
        if not token:
            raise UserError(f"{name}{where(token)}: token {i} is empty; remove it")
        if token in seen:
            raise UserError(f"{name}{where(token)}: token {token!r} is {seen[token]} and {i}; remove one")
        seen[token] = i
    missing = [byte for letter, byte in BYTES.items() if letter not in seen]
    if missing:
        raise UserError(
            f"{name}: {len(missing)} of the 256 bytes have no token, the first is 0x{missing[0]:02x}; "
            "a byte-level vocabulary has one for each"
        )


def _check_merges(vocab: set[str], merges: list, where: Callable[[int], str], name: str) -> None:
    """Refuses merges that are none; `where` gives "FILE, line 3" for a merge."""
    seen: dict[tuple, int] = {}
    for i, merge in enumerate(merges):
        if len(merge) != 2 or not all(isinstance(part, str) and part for part in merge):
            raise UserError(f"{where(i)}: {merge!r} is not a merge of two tokens")
        for part in (*merge, merge[0] + merge[1]):
            if part not in vocab:
                raise UserError(f"{where(i)}: the merge of {merge[0]!r} and {merge[1]!r} names {part!r}, not in {name}")
        if merge in seen:
            raise UserError(f"{where(i)}: the merge of {merge[0]!r} and {merge[1]!r} is there twice; remove it")
        seen[merge] = i


def is_byte_level(path: str | os.PathLike) -> bool:
    """Whether a tokenizer.json holds byte-level byte-pair encoding.

    Raises:
      UserError: the file cannot be read.
    """
    path = pathlib.Path(path)
    content = json_files.read(path)
    model = content.get("model")
    byte_level = any(part.get("type") == "ByteLevel" for part in _parts(content.get("pre_tokenizer"), "pretokenizers"))
    return isinstance(model, dict) and model.get("type", "BPE") == "BPE" and byte_level


def _parts(component: object, name: str) -> list[dict]:
    """The members of a component of a tokenizer.json, which may be missing, one or a sequence."""
    if not isinstance(component, dict):
        return []
    parts = component.get(name, []) if component.get("type") == "Sequence" else [component]
    return [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []


def _from_tokenizer_file(folder: pathlib.Path) -> dict:
    """The arguments of ByteLevelBPE that a tokenizer.json and the files beside it stand for."""
    path = folder / TOKENIZER_FILE
    content = json_files.read(path)
    if not is_byte_level(path):
        raise UserError(f"{path}: is not a byte-level BPE tokenizer (its model and pre_tokenizer say so)")
    model = content["model"]
    for name, allowed in (
        ("dropout", (None, 0.0)),
        ("continuing_subword_prefix", (None, "")),
        ("end_of_word_suffix", (None, "")),
        ("byte_fallback", (None, False)),
        ("ignore_merges", (None, False, True)),
    ):
        if model.get(name) not in allowed:
            raise UserError(f"{path}: model.{name} is {model[name]!r}; only {allowed[-1]!r} is built here")
    normalizers = [part.get("type") for part in _parts(content.get("normalizer"), "normalizers")]
    if normalizers not in ([], ["NFC"]):
        raise UserError(f"{path}: normalizer is {normalizers}; only NFC or none is built here")
    pattern, add_prefix_space = _splitting(path, _parts(content.get("pre_tokenizer"), "pretokenizers"))

    ids = _ids(path, model.get("vocab"), "model.vocab")
    added = content.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise UserError(f"{path}: added_tokens is not a list of tokens")
    for token in added:
        if token.get("single_word"):
            raise UserError(f"{path}: the added token {token.get('content')!r} is single_word, which is not built here")
        _add(ids, path, token.get("content"), token.get("id"))
    special = [token["content"] for token in added]
    tokens = _in_order(ids, path)
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise UserError(f"{path}: model.merges is not a list")
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
    _check_merges(set(tokens), merges, lambda i: f"{path}, merge {i + 1}", "model.vocab")
    roles, named = _roles(folder, ids)
    return {
        "vocab": tokens,
        "merges": merges,
        "special_tokens": [*special, *(token for token in named if token not in special)],
        "roles": roles,
        "pattern": pattern,
        "ignore_merges": bool(model.get("ignore_merges")),
        "add_prefix_space": add_prefix_space,
        "nfc": bool(normalizers),
        "lstrip": [token["content"] for token in added if token.get("lstrip")],
        "rstrip": [token["content"] for token in added if token.get("rstrip")],
    }


def _splitting(path: pathlib.Path, parts: list[dict]) -> tuple[str, bool]:
    """The pattern's name and add_prefix_space that a tokenizer.json's pre_tokenizer stands for."""
    byte_level = parts[-1]
    prefix = byte_level.get("add_prefix_space", True)  # The library's default.
    if len(parts) == 1 and byte_level.get("use_regex", True):
        return "gpt2", bool(prefix)
    if len(parts) == 2 and parts[0].get("type") == "Split" and not byte_level.get("use_regex", True):
        split = parts[0].get("pattern")
        split = split.get("Regex") if isinstance(split, dict) else None
        isolated = parts[0].get("behavior") == "Isolated" and not parts[0].get("invert")
        for name, pattern in SPLIT_PATTERNS.items():
            # A space put before every word would not be one before the text.
            if pattern == split and isolated and not prefix:
                return name, False
    raise UserError(
        f"{path}: pre_tokenizer splits by a pattern that is not built here; known are those of "
        f"{', '.join(SPLIT_PATTERNS)}"
    )


def _from_vocab_and_merges(folder: pathlib.Path) -> dict:
    """The arguments of ByteLevelBPE that a vocab.json, a merges.txt and the files beside them stand for."""
    path = folder / VOCAB_FILE
    content = json_files.read(path)
    ids = _ids(path, content, "the file")
    added: list[str] = []
    lstrip, rstrip = [], []
    if (folder / ADDED_FILE).exists():
        for token, i in json_files.read(folder / ADDED_FILE).items():
            _add(ids, folder / ADDED_FILE, token, i)
            added.append(token)
    config = settings.read(folder)
    for i, token in (config.get("added_tokens_decoder") or {}).items():
        if not isinstance(token, dict) or not i.isdecimal():
            raise UserError(f"{folder / CONFIG_FILE}: added_tokens_decoder has {i!r}: {token!r}, which is no token")
        _add(ids, folder / CONFIG_FILE, token.get("content"), int(i))
        added.append(token["content"])
        lstrip += [token["content"]] if token.get("lstrip") else []
        rstrip += [token["content"]] if token.get("rstrip") else []
    tokens = _in_order(ids, path)

    path = folder / MERGES_FILE
    merges, numbers = [], []
    for number, line in enumerate(_read(path).split("\n"), 1):
        if line.strip("\r") and not line.startswith("#version"):
            merges.append(tuple(line.rstrip("\r").split(" ")))
            numbers.append(number)
    _check_merges(set(tokens), merges, lambda i: f"{path}, line {numbers[i]}", VOCAB_FILE)
    roles, named = _roles(folder, ids)
    special = dict.fromkeys([*added, *named, *(token for token in _USUAL if token in ids)])
    if not lstrip and "<mask>" in special:
        lstrip = ["<mask>"]  # As RoBERTa and BART have it.
    return {
        "vocab": tokens,
        "merges": merges,
        "special_tokens": list(special),
        "roles": roles,
        "add_prefix_space": config.get("add_prefix_space") is True,
        "lstrip": lstrip,
        "rstrip": rstrip,
    }


def _roles(folder: pathlib.Path, ids: Mapping[str, int]) -> tuple[dict[str, str] | None, list[str]]:
    """The roles that the folder's settings name, None without any, and all special tokens they name."""
    roles: dict[str, str] = {}
    named: dict[str, None] = {}
    special_map: dict = {}
    if (folder / MAP_FILE).exists():
        special_map = json_files.read(folder / MAP_FILE)
        json_files.check(special_map, TOKENS, folder / MAP_FILE)
    for path, record in ((folder / MAP_FILE, special_map), (folder / CONFIG_FILE, settings.read(folder))):
        more = record.get("additional_special_tokens")
        values = [(None, value) for value in (more if isinstance(more, list) else [])]
        for role, value in [*((role, record.get(name)) for role, name in ROLES.items()), *values]:
            token = settings.token_text(value)
            if token is None:
                continue
            if not isinstance(token, str) or token not in ids:
                raise UserError(
                    f"{path}, line {json_files.line_of(path, token)}: the special token {token!r} is not in the "
                    "vocabulary"
                )
            named[token] = None
            if role:
                roles[role] = token
    return roles or None, list(named)


def _read(path: pathlib.Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the tokenizer cannot be read ({error.strerror})") from None
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: is not UTF-8 ({content[error.start : error.start + 10]!r})") from None


def _ids(path: pathlib.Path, vocab: object, name: str) -> dict[str, int]:
    if not isinstance(vocab, dict):
        raise UserError(f"{path}: {name} holds no vocabulary (token: id)")
    ids: dict[str, int] = {}
    for token, i in vocab.items():
        _add(ids, path, token, i)
    if not ids:
        raise UserError(f"{path}, line 1: {name} holds no token")
    return ids


def _add(ids: dict[str, int], path: pathlib.Path, token: object, i: object) -> None:
    if not isinstance(token, str) or not isinstance(i, int) or isinstance(i, bool) or i < 0:
        raise UserError(f"{_at(path, token)} has id {i!r}, which is not a number from 0")
    if ids.setdefault(token, i) != i:
        raise UserError(f"{_at(path, token)} has id {i}, and {ids[token]} before")


def _at(path: pathlib.Path, token: object) -> str:
    return f"{path}, line {json_files.line_of(path, token)}: token {token!r}"


def _in_order(ids: Mapping[str, int], path: pathlib.Path) -> list[str]:
    """The tokens by id. Refuses two tokens of one id and ids of no token."""
    tokens: list[str] = []
    for token, i in sorted(ids.items(), key=lambda item: item[1]):
        if i < len(tokens):
            raise UserError(f"{_at(path, token)} has id {i}, as {tokens[i]!r} has")
        if i > len(tokens):
            raise UserError(f"{_at(path, token)} has id {i}, but no token has id {len(tokens)}")
        tokens.append(token)
    _check_vocab(tokens, str(path), lambda token: f", line {json_files.line_of(path, token)}")
    return tokens
