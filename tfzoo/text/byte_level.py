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

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from tfzoo.errors import UserError
from tfzoo.text import byte_level_files
from tfzoo.text.added import AddedToken
from tfzoo.text.byte_level_files import USUAL
from tfzoo.text.byte_level_model import (
    BYTES,
    LATIN_NUL,
    LATIN_WORD_END,
    check_merges,
    check_vocab,
    cuts,
    is_text,
    latin,
    made_by_merges,
    sentencepiece_model,
)
from tfzoo.text.components import pre_tokenizers
from tfzoo.text.components.patterns import LOOKAHEAD
from tfzoo.text.pieces import SPACE, Pieces
from tfzoo.text.settings import ROLES, SPLIT_PATTERNS
from tfzoo.text.tokenizer import Tokenizer, join, regroup, sentencepiece_op, valid_utf8

_SPACE_BUT_LINE_ENDS = SPACE.replace(r"\t-\r", r"\t\x{b}\x{c}")
_SPACE_BUT_PLAIN = SPACE.replace(" ", "")
_PLAIN_SPACES = rf" ?(?:[^{SPACE}] ?|[{_SPACE_BUT_PLAIN}])*"  # No plain space behind white space.
# Bytes that no UTF-8 holds. RE2 takes them for no character, so that they end every match.
_WORD_END, _PIECE_END = b"\xff", b"\xfe"


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
        splits: Sequence[dict[str, Any]] = (),
        ignore_merges: bool = False,
        add_prefix_space: bool = False,
        nfc: bool = False,
        lstrip: Sequence[str] = (),
        rstrip: Sequence[str] = (),
        added_tokens: Sequence[AddedToken] = (),
        unknown: str | None = None,
        name: str = "vocabulary",
    ):
        """`vocab[i]` is the text of token i in GPT-2's letters for bytes (a space is Ġ), "" where there is none;
        `merges` are in order of rank.

        `special_tokens` are those of the vocabulary that stand for no text; `roles` says which of them does what (one
        of ROLES -> its text; None: as the released vocabularies have it). `pattern` is one of SPLIT_PATTERNS, or "" for
        none; `splits`, the members of a tokenizer.json's pre_tokenizer, split a text before. `ignore_merges`: a word
        that is a token is that token, whatever the merges say (Llama 3). `add_prefix_space`: a text that begins with no
        space gets one. `nfc`: texts are composed first (Qwen2). `lstrip`, `rstrip`: the special tokens that, where they
        are asked for, take the white space before or after them (RoBERTa's <mask>). `added_tokens` are found in a
        text, and say all this themselves. Bytes that have no token are left out, as the library does, unless the
        `unknown` token says what they are.

        Raises:
          UserError: a token is repeated, a merge names what is not in the vocabulary, or an option is none; `name` is
            what it calls the vocabulary.
        """
        tokens, merges = list(vocab), list(merges)
        check_vocab(tokens, name, lambda token: "")
        check_merges({*tokens}, merges, lambda i: f"{name}: merges, number {i + 1}", "the vocabulary")
        if pattern and pattern not in SPLIT_PATTERNS:
            raise UserError(f"pattern: {pattern!r} is not one of {' '.join(SPLIT_PATTERNS)}")
        ids = {token: i for i, token in enumerate(tokens) if token}
        for token in special_tokens:
            if token not in ids:
                raise UserError(f"special_tokens: {token!r} is not in the vocabulary; add it")
        for token in (*lstrip, *rstrip):
            if token not in special_tokens:
                raise UserError(f"lstrip, rstrip: {token!r} is not one of special_tokens")
        known = {
            token: AddedToken(token, ids[token], lstrip=token in lstrip, rstrip=token in rstrip)
            for token in special_tokens
        }
        known |= {token.content: token for token in added_tokens}
        special = [token for token in known if known[token].special]
        if roles is None:
            roles = {role: token for token in special for role in USUAL.get(token, ())}
        for role, token in roles.items():
            if role not in ROLES:
                raise UserError(f"roles: {role!r} is not one of {' '.join(ROLES)}")
            if token not in special:
                raise UserError(f"roles: the {role} token {token!r} is not one of special_tokens")

        role_ids = {role: ids[roles[role]] for role in ROLES if role in roles}
        super().__init__("byte_level_bpe", tokens, role_ids, (), list(known.values()))
        self._merges = np.array(merges, dtype=object).reshape(-1, 2)
        self._pattern, self._ignore_merges = pattern, bool(ignore_merges)
        self._add_prefix_space, self._nfc = bool(add_prefix_space), bool(nfc)
        self._before = json.dumps(list(splits))
        self._splits = tuple(pre_tokenizers.compile_one(part, f"{name}: pre_tokenizer") for part in splits)

        ordinary = {i: bytes(BYTES[c] for c in t) for i, t in enumerate(tokens) if t and t not in known and is_text(t)}
        missing = [byte for letter, byte in BYTES.items() if letter not in ids or letter in known]
        if missing and unknown is not None:
            raise UserError(
                f"{name}: {len(missing)} of the 256 bytes have no token (the first is 0x{missing[0]:02x}), and "
                f"unk_token is {unknown!r}; this is only supported without an unk_token"
            )
        self._missing = "".join(rf"\x{{{byte:x}}}" for byte in missing if 0 < byte < 0xF5)
        if 0 in missing:
            self._missing += LATIN_NUL
        made = made_by_merges(self._vocab, ids, merges)
        words = {i: b for i, b in ordinary.items() if i in made or ignore_merges}
        if pattern:
            expression = SPLIT_PATTERNS[pattern].removesuffix(LOOKAHEAD) + r"|\s+"
            self._words = expression.replace(r"[^\s", f"[^{SPACE}").replace(r"\s", f"[{SPACE}]")
            last = SPACE if pattern == "gpt2" else _SPACE_BUT_LINE_ENDS  # The others take \s*[\r\n]+ before.
            self._run_ends = rf"([{SPACE}])([{last}][^{SPACE}])"
        self._cuts = cuts(ordinary.values())
        with tf.init_scope():  # Made once and outside any graph under construction, whoever calls.
            model = sentencepiece_model(len(tokens), {i: (b, made[i]) for i, b in ordinary.items() if i in made})
            self._model = sentencepiece_op(model)
            self._word_table = _table({latin(b): i for i, b in words.items()})
            self._piece_table = _table(self._whole_pieces(words) if pattern else {})
            # What each id adds when ids are joined to text, and how many bytes of a text it came from.
            dropped = self._dropped()
            pieces = [
                b"" if i in dropped else bytes(BYTES[c] for c in t) if is_text(t) else t.encode()
                for i, t in enumerate(tokens)
            ]
            self._pieces = tf.constant(pieces)
            self._lengths = tf.constant([len(ordinary.get(i, b"")) for i in range(len(tokens))], tf.int64)

    def _contents(self) -> dict[str, str | bytes]:
        """tokenizer.json, vocab.json, merges.txt and tokenizer_config.json, which `tfzoo.text.load` and the
        `tokenizers` and `transformers` libraries read."""
        return byte_level_files.contents(
            vocab=self.vocab,
            merges=self.merges,
            special_tokens=list(self._special_tokens()),
            roles={role: self._vocab[i] for role, i in self._role_ids},
            pattern=self._pattern,
            ignore_merges=self._ignore_merges,
            add_prefix_space=self._add_prefix_space,
            nfc=self._nfc,
            lstrip=self._stripping("lstrip"),
            rstrip=self._stripping("rstrip"),
        )

    @property
    def merges(self) -> list[tuple[str, str]]:
        return [(left, right) for left, right in self._merges]

    @property
    def pattern(self) -> str:
        return self._pattern

    @property
    def is_gpt2(self) -> bool:
        """Whether a text becomes ids as in GPT-2: by its pattern and by merges alone, with nothing done before."""
        more = self._ignore_merges or self._add_prefix_space or self._nfc or self._splits or self._missing
        return self._pattern == "gpt2" and not more and all(token.special for token in self._added)

    def fingerprint(self) -> str:
        """A SHA-256 in hexadecimal, equal for equal vocabularies, merges and options."""
        by_role = dict(self._role_ids)
        roles = [self._vocab[by_role[role]] if role in by_role else None for role in ROLES]
        content = [
            self._vocab.tolist(), self._merges.tolist(), self._special, roles, self._pattern,
            self._ignore_merges, self._add_prefix_space, self._nfc,
            self._stripping("lstrip"), self._stripping("rstrip"),
        ]  # fmt: skip
        plain = {(False, False, True)}
        if self._splits or {(t.single_word, t.normalized, t.special) for t in self._added} - plain:
            content += [self._before, [dataclasses.astuple(token) for token in self._added]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _normalize(self, pieces: Pieces) -> Pieces:
        if not self._nfc:
            return pieces
        if pieces.aligned:
            raise UserError(
                "nfc: this tokenizer composes texts before reading them, so it has no offsets; use tokenize"
            )
        return dataclasses.replace(pieces, texts=tf_text.normalize_utf8(pieces.texts, "NFC"))

    def _encode(self, pieces: Pieces) -> tuple:
        """A token that is part of a character's bytes has that character, and so have the others that share it; spaces
        before a word are its first token's."""
        every = tf.size(pieces.rows, tf.int64)
        parts = dataclasses.replace(pieces, rows=tf.range(every))
        for split in self._splits:
            parts = split(parts)
        if self._add_prefix_space:
            parts = parts.prepend(" ", tf.strings.regex_full_match(parts.texts, "(?s)[^ ].*"))
        ids = self._tokenize_words(parts.texts)
        starts = ends = None
        if pieces.aligned:
            if self._missing:
                raise UserError("this tokenizer drops bytes without a token, so it has no offsets; use tokenize")
            last = tf.cumsum(tf.gather(self._lengths, ids.flat_values))
            first = last - tf.gather(self._lengths, ids.flat_values)
            before = tf.gather(
                tf.cumsum(tf.cast(tf.strings.length(parts.texts), tf.int64), exclusive=True), ids.value_rowids()
            )
            starts, ends = parts.offsets(ids.with_flat_values(first - before), ids.with_flat_values(last - before))
        if self._splits:
            ids, starts, ends = (regroup(values, parts.rows, every) for values in (ids, starts, ends))
        return ids, starts, ends

    def _detokenize(self, ids: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
        """ids: int [N, L] or ragged [N, None] -> strings [N], the inverse of `tokenize` for any UTF-8.

        Special tokens are dropped, but for those for unknown and masked words, which stay, as text. Where ids end
        within a character, or make no UTF-8 for another reason, U+FFFD stands.

        Raises:
          tf.errors.InvalidArgumentError: an id is outside the vocabulary.
        """
        return valid_utf8(join(self._pieces, ids))

    def _tokenize_words(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """strings [N] of UTF-8 -> ids int32 [N, None]."""
        if not self._pattern:
            return _look_up(texts, self._piece_table, self._tokenize_words_of)
        # A piece is what stands between two cuts. Each but the first of a text lost its space; the first begins with
        # a _WORD_END instead, so that it is not taken for one of the others.
        pieces = tf.cond(
            tf.reduce_all(tf.strings.regex_full_match(texts, _PLAIN_SPACES)),
            lambda: tf.strings.split(tf.strings.join([_WORD_END, texts]), " "),
            lambda: tf.strings.split(
                tf.strings.join([_WORD_END, tf.strings.regex_replace(texts, f"([^{SPACE}]) ", rb"\1" + _PIECE_END)]),
                _PIECE_END,
            ),
        )
        ids = _look_up(pieces.flat_values, self._piece_table, self._tokenize_pieces)
        return pieces.with_values(ids).merge_dims(1, 2)

    def _tokenize_pieces(self, pieces: tf.Tensor) -> tf.RaggedTensor:
        """Pieces, strings [P] -> ids int32 [P, None]."""
        is_first = tf.strings.substr(pieces, 0, 1) == _WORD_END
        # A piece that was a space is empty, and comes here where the vocabulary has no space.
        rest = tf.strings.substr(tf.where(pieces == "", " ", pieces), 1, np.iinfo(np.int32).max)
        texts = tf.where(is_first, rest, tf.strings.join([" ", pieces]))
        return self._tokenize_words_of(self._with_word_ends(texts))

    def _tokenize_words_of(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Strings [P] in which a _WORD_END stands behind every word -> ids int32 [P, None]."""
        letters = tf.strings.unicode_transcode(texts, "ISO-8859-1", "UTF-8")
        letters = tf.strings.regex_replace(letters, r"\x{0}", LATIN_NUL)
        if self._missing:  # What is before and behind is merged, as in the library.
            letters = tf.strings.regex_replace(letters, f"[{self._missing}]", "")
        if self._cuts:
            letters = tf.strings.regex_replace(letters, self._cuts, rf"\1{LATIN_WORD_END}\2")
        words = tf.strings.split(letters, LATIN_WORD_END)
        ids = _look_up(words.flat_values, self._word_table, self._model.tokenize)
        return words.with_values(ids).merge_dims(1, 2)

    def _with_word_ends(self, texts: tf.Tensor) -> tf.Tensor:
        """Strings [P] with at least one _WORD_END behind every word."""
        texts = tf.strings.regex_replace(texts, self._run_ends, rb"\1" + _WORD_END + rb"\2")
        return tf.strings.regex_replace(texts, self._words, rb"\0" + _WORD_END)

    def _stripping(self, side: str) -> list[str]:
        """The tokens that take the white space on one side."""
        return sorted(token.content for token in self._added if getattr(token, side))

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
