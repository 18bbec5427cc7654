r"""Byte-level byte-pair encoding of GPT-2, RoBERTa and BART and, with other split patterns, of Llama 3 and Qwen2.

It consists of TensorFlow ops only, so an exported model accepts text.

Source: Sennrich et al. (arXiv:1508.07909) for byte-pair encoding; Radford et al., Language Models are Unsupervised
Multitask Learners (2019), section 2.2, for the use of bytes and for the pattern that first splits a text into words.

How the algorithm works, and why it is exact:

1. A text is cut before every plain space that follows a character other than white space. All split patterns end a
   word there, and matches on one side of the cut do not depend on the other side.
2. A piece that is a token by itself is looked up in a table. Each distinct other piece is split into words by the
   pattern. RE2 can match the pattern once a mark is inserted wherever the pattern's `\s+(?!\S)` would end.
3. A word is cut between two characters if no token contains the last byte of the first followed by the first byte of
   the second, because nothing is ever merged there. (With GPT-2's vocabulary this separates 95 of 100 Chinese
   characters.)
4. Each part that is a token by itself is looked up in a table. Each distinct other part is encoded by a SentencePiece
   BPE model over 256 letters, one per byte, with scores derived from the merges' ranks. SentencePiece merges any two
   pieces whose concatenation is a piece, not only the listed merges. This gives the same result: if the merges produce
   a token from its own letters, they produce it by the same steps within a longer word; all other tokens are never
   produced and are omitted from the model.
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
from tfzoo.text.byte_level_files import USUAL
from tfzoo.text.byte_level_model import (
    BYTES,
    LATIN_NUL,
    LATIN_WORD_END,
    bytes_of,
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
from tfzoo.text.token_files import AddedToken
from tfzoo.text.tokenizer import Tokenizer, join, regroup, sentencepiece_op, valid_utf8

_SPACE_BUT_LINE_ENDS = SPACE.replace(r"\t-\r", r"\t\x{b}\x{c}")
_SPACE_BUT_PLAIN = SPACE.replace(" ", "")
_PLAIN_SPACES = rf" ?(?:[^{SPACE}] ?|[{_SPACE_BUT_PLAIN}])*"  # No plain space after white space.
# Bytes that valid UTF-8 never contains. RE2 does not treat them as characters, so they end every match.
_WORD_END, _PIECE_END = b"\xff", b"\xfe"


class ByteLevelBPE(Tokenizer):
    """Converts text to token ids and back, identically eagerly, in `tf.data` and in a SavedModel.

    The ids equal those of the `tokenizers` library, and detokenizing them returns the original text. A SavedModel that
    contains this tokenizer requires `import tensorflow_text` before it is loaded.

    The only possible difference is a character that the two libraries' Unicode versions classify differently as a
    letter or number, or compose differently (`nfc`). Between TensorFlow 2.20 and tokenizers 0.23, none of the 1,112,064
    code points is split differently; composition differs only for combining marks of rare scripts added after Unicode
    9, where one is next to another mark.

    Args:
      vocab: `vocab[i]` is the text of token i in GPT-2's letters for bytes (a space is Ġ), "" if no token has id i.
      merges: the merges, in order of rank.
      special_tokens: the tokens of the vocabulary that do not represent text.
      roles: role (one of ROLES) -> text of a special token; None uses the roles in the released vocabularies.
      pattern: one of SPLIT_PATTERNS, or "" for none.
      splits: the members of a tokenizer.json's pre_tokenizer that split a text before the pattern does.
      ignore_merges: whether a word that is a token becomes that token regardless of the merges (Llama 3).
      add_prefix_space: whether to add a space to a text that does not begin with one.
      nfc: whether texts are first composed (Unicode NFC; Qwen2).
      lstrip, rstrip: special tokens that, when requested, include the white space before or after them (RoBERTa's
        <mask>).
      added_tokens: tokens that are matched in a text, with their own flags.
      unknown: the unknown token. It is not supported if some bytes have no token; without it, such bytes are
        dropped, as in the library.
      name: the name of the vocabulary in errors.

    Raises:
      UserError: a token is repeated, a merge uses a token that is not in the vocabulary, or an option is invalid.
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
        by_text = {
            token: AddedToken(token, ids[token], lstrip=token in lstrip, rstrip=token in rstrip)
            for token in special_tokens
        }
        by_text |= {token.content: token for token in added_tokens}
        special = [token for token in by_text if by_text[token].special]
        if roles is None:
            roles = {role: token for token in special for role in USUAL.get(token, ())}
        for role, token in roles.items():
            if role not in ROLES:
                raise UserError(f"roles: {role!r} is not one of {' '.join(ROLES)}")
            if token not in special:
                raise UserError(f"roles: the {role} token {token!r} is not one of special_tokens")

        role_ids = {role: ids[roles[role]] for role in ROLES if role in roles}
        super().__init__("byte_level_bpe", tokens, role_ids, (), list(by_text.values()))
        self._merges = np.array(merges, dtype=object).reshape(-1, 2)
        self._pattern, self._ignore_merges = pattern, bool(ignore_merges)
        self._add_prefix_space, self._nfc = bool(add_prefix_space), bool(nfc)
        self._before = json.dumps(list(splits))
        self._splits = tuple(pre_tokenizers.compile_one(part, f"{name}: pre_tokenizer") for part in splits)

        ordinary = {i: bytes_of(t) for i, t in enumerate(tokens) if t and t not in by_text and is_text(t)}
        missing = [byte for letter, byte in BYTES.items() if letter not in ids or letter in by_text]
        if missing and unknown is not None:
            raise UserError(
                f"{name}: {len(missing)} of the 256 bytes have no token (the first is 0x{missing[0]:02x}), and "
                f"unk_token is {unknown!r}; this is only supported without an unk_token"
            )
        self._missing = "".join(rf"\x{{{byte:x}}}" for byte in missing if 0 < byte < 0xF5)
        if 0 in missing:
            self._missing += LATIN_NUL
        ranks = made_by_merges(self._vocab, ids, merges)
        words = {i: b for i, b in ordinary.items() if i in ranks or ignore_merges}
        if pattern:
            expression = SPLIT_PATTERNS[pattern].removesuffix(LOOKAHEAD) + r"|\s+"
            self._words = expression.replace(r"[^\s", f"[^{SPACE}").replace(r"\s", f"[{SPACE}]")
            last = SPACE if pattern == "gpt2" else _SPACE_BUT_LINE_ENDS  # The other patterns match \s*[\r\n]+ first.
            self._run_ends = rf"([{SPACE}])([{last}][^{SPACE}])"
        self._cuts = cuts(ordinary.values())
        with tf.init_scope():  # Created once, outside any graph under construction.
            model = sentencepiece_model(len(tokens), {i: (b, ranks[i]) for i, b in ordinary.items() if i in ranks})
            self._model = sentencepiece_op(model)
            self._word_table = _table({latin(b): i for i, b in words.items()})
            self._piece_table = _table(self._whole_pieces(words) if pattern else {})
            # What each id adds when ids are joined to a text, and the number of bytes of text that it came from.
            dropped = self._dropped()
            pieces = [b"" if i in dropped else bytes_of(t) if is_text(t) else t.encode() for i, t in enumerate(tokens)]
            self._pieces = tf.constant(pieces)
            self._lengths = tf.constant([len(ordinary.get(i, b"")) for i in range(len(tokens))], tf.int64)

    def _contents(self) -> dict[str, str | bytes]:
        """Returns tokenizer.json, vocab.json, merges.txt and tokenizer_config.json.

        `tfzoo.text.load` and the `tokenizers` and `transformers` libraries read them.
        """
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
        """Whether a text becomes ids exactly as in GPT-2: by its pattern and the merges only."""
        has_options = self._ignore_merges or self._add_prefix_space or self._nfc or self._splits or self._missing
        return self._pattern == "gpt2" and not has_options and all(token.special for token in self._added)

    def fingerprint(self) -> str:
        """Returns a SHA-256 in hexadecimal that is equal for equal vocabularies, merges and options."""
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
        """Returns ids, starts and ends of pieces.

        A token that is part of a character's bytes has the offsets of the whole character, as do the others that share
        the character. Spaces before a word belong to the word's first token.
        """
        count = tf.size(pieces.rows, tf.int64)
        parts = dataclasses.replace(pieces, rows=tf.range(count))
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
            ids, starts, ends = (regroup(values, parts.rows, count) for values in (ids, starts, ends))
        return ids, starts, ends

    def _detokenize(self, ids: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
        """Converts ids to texts, the inverse of `tokenize` for any UTF-8.

        Special tokens are dropped, except those for unknown and masked words, which remain as text. Ids that end within
        a character, or otherwise do not form valid UTF-8, give U+FFFD.

        Args:
          ids: int [N, L] or ragged [N, None].

        Returns:
          Strings [N].

        Raises:
          tf.errors.InvalidArgumentError: an id is outside the vocabulary.
        """
        return valid_utf8(join(self._pieces, ids))

    def _tokenize_words(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Converts UTF-8 strings [N] to ids int32 [N, None]."""
        if not self._pattern:
            return _look_up(texts, self._piece_table, self._tokenize_words_of)
        # A piece is the text between two cuts. All but the first piece of a text have lost their leading space; the
        # first begins with a _WORD_END instead, which distinguishes it from the others.
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
        """Converts pieces, strings [P], to ids int32 [P, None]."""
        is_first = tf.strings.substr(pieces, 0, 1) == _WORD_END
        # A piece that was a single space is empty; it gets here if the vocabulary has no token for a space.
        rest = tf.strings.substr(tf.where(pieces == "", " ", pieces), 1, np.iinfo(np.int32).max)
        texts = tf.where(is_first, rest, tf.strings.join([" ", pieces]))
        return self._tokenize_words_of(self._with_word_ends(texts))

    def _tokenize_words_of(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Converts strings [P] with a _WORD_END after every word to ids int32 [P, None]."""
        letters = tf.strings.unicode_transcode(texts, "ISO-8859-1", "UTF-8")
        letters = tf.strings.regex_replace(letters, r"\x{0}", LATIN_NUL)
        if self._missing:  # The neighbours are merged, as in the library.
            letters = tf.strings.regex_replace(letters, f"[{self._missing}]", "")
        if self._cuts:
            letters = tf.strings.regex_replace(letters, self._cuts, rf"\1{LATIN_WORD_END}\2")
        words = tf.strings.split(letters, LATIN_WORD_END)
        ids = _look_up(words.flat_values, self._word_table, self._model.tokenize)
        return words.with_values(ids).merge_dims(1, 2)

    def _with_word_ends(self, texts: tf.Tensor) -> tf.Tensor:
        """Returns strings [P] with at least one _WORD_END after every word."""
        texts = tf.strings.regex_replace(texts, self._run_ends, rb"\1" + _WORD_END + rb"\2")
        return tf.strings.regex_replace(texts, self._words, rb"\0" + _WORD_END)

    def _stripping(self, side: str) -> list[str]:
        """Returns the tokens that include the white space on one side."""
        return sorted(token.content for token in self._added if getattr(token, side))

    def _whole_pieces(self, words: dict[int, bytes]) -> dict[bytes, int]:
        """Returns piece -> id for the words that the pattern does not split, in the form that `_look_up` uses."""
        split = self._with_word_ends(tf.constant(list(words.values()))).numpy()
        whole = {b: i for (i, b), marked in zip(words.items(), split, strict=True) if marked == b + _WORD_END}
        return {b[1:] if b[:1] == b" " else _WORD_END + b: i for b, i in whole.items()}


def _look_up(
    keys: tf.Tensor, table: tf.lookup.StaticHashTable, otherwise: Callable[[tf.Tensor], tf.RaggedTensor]
) -> tf.RaggedTensor:
    """Returns the ids of keys, strings [K], as ragged int32 [K, None].

    A key in the table has the table's id; `otherwise` converts each distinct key that is not in the table once.
    """
    table_ids = table.lookup(keys)
    is_there = table_ids >= 0
    absent = tf.where(~is_there)
    distinct, which = tf.unique(tf.gather_nd(keys, absent), out_idx=tf.int64)
    computed = otherwise(distinct)
    # Rows: first the computed ones, then one for each key in the table.
    values = tf.concat([computed.flat_values, tf.boolean_mask(table_ids, is_there)], 0)
    row = computed.nrows() - 1 + tf.cumsum(tf.cast(is_there, tf.int64))
    row = tf.where(is_there, row, tf.scatter_nd(absent, which, tf.shape(keys, tf.int64)))
    ends = tf.size(computed.flat_values, tf.int64) + tf.range(1, tf.reduce_sum(tf.cast(is_there, tf.int64)) + 1)
    rows = tf.RaggedTensor.from_row_splits(values, tf.concat([computed.row_splits, ends], 0), validate=False)
    return tf.gather(rows, row)


def _table(ids: Mapping[bytes, int]) -> tf.lookup.StaticHashTable:
    entries = tf.lookup.KeyValueTensorInitializer(
        tf.constant(list(ids) or [b""], tf.string), tf.constant(list(ids.values()) or [-1], tf.int32)
    )
    return tf.lookup.StaticHashTable(entries, default_value=-1)
