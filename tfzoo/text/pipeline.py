"""Tokenizers from a tokenizer.json, compiled component by component.

They cover the SentencePiece vocabularies of T5, XLM-R, Llama and Gemma, word lists, and others.

Source: the `tokenizers` library, whose ids they reproduce.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfzoo.text.components import decoders, normalizers, pre_tokenizers, word_models
from tfzoo.text.pieces import Pieces
from tfzoo.text.token_files import AddedToken
from tfzoo.text.tokenizer import VALID_UTF8, Tokenizer, regroup, valid_utf8

_FIELDS = ("normalizer", "pre_tokenizer", "model", "decoder")


class Pipeline(Tokenizer):
    """Converts text to token ids and back, identically eagerly, in `tf.data` and in a SavedModel."""

    def __init__(
        self,
        record: dict[str, Any],
        vocab: Sequence[str],
        *,
        roles: Mapping[str, str],
        added_tokens: Sequence[AddedToken] = (),
        name: str = "tokenizer.json",
    ):
        """Creates the tokenizer.

        Args:
          record: the content of a tokenizer.json.
          vocab: `vocab[i]` is the text of token i, "" if no token has id i.
          roles: role -> text of a token.
          added_tokens: tokens that are matched in a text.
          name: the name of the file in errors.

        Raises:
          UserError: a component is damaged or not supported.
        """
        ids = {token: i for i, token in enumerate(vocab) if token}
        super().__init__("pipeline", vocab, {role: ids[token] for role, token in roles.items()}, (), added_tokens)
        self._record = json.dumps({name: record.get(name) for name in _FIELDS}, sort_keys=True)
        inside = {*word_models.vocabulary(record["model"], f"{name}: model").values()}
        excluded = [i for i in self._special if i in inside]
        with tf.init_scope():  # Created once, outside any graph under construction.
            self._normalizers = tuple(normalizers.compile_all(record.get("normalizer"), f"{name}: normalizer"))
            parts = pre_tokenizers.parts(record.get("pre_tokenizer"))
            self._splits = tuple(pre_tokenizers.compile_one(part, f"{name}: pre_tokenizer") for part in parts)
            self._model = word_models.compile_model(record["model"], excluded, f"{name}: model")
            written = {**dict(enumerate(vocab)), **self._as_normalized()}
            decoded = decoders.compile_decoder(record.get("decoder"), [*written.values()], f"{name}: decoder")
            self._strips = decoded.strips
            dropped = self._dropped()
            self._first, self._others = (
                tf.constant([b"" if i in dropped else part for i, part in enumerate(pieces)])
                for pieces in (decoded.first, decoded.others)
            )
            self._is_byte = tf.constant([bool(decoders.BYTE.fullmatch(token)) for token in vocab])
            self._drops = tf.constant([i in dropped for i in range(len(vocab))] + [True])

    @property
    def sentinel_ids(self) -> list[int]:
        """The ids of <extra_id_0>, <extra_id_1>, ... in T5's vocabularies."""
        ids = {token: i for i, token in enumerate(self.vocab)}
        numbered = [ids.get(f"<extra_id_{i}>") for i in range(len(ids))]
        return [i for i in numbered[: numbered.index(None)] if i is not None]

    def fingerprint(self) -> str:
        """Returns a SHA-256 in hexadecimal that is equal for equal vocabularies, components and added tokens."""
        content = [self._record, self._vocab.tolist(), self._role_ids, [dataclasses.astuple(t) for t in self._added]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _detokenize(self, ids: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
        """Converts ids to texts as the library decodes them.

        Padding and special tokens are dropped, except those for unknown and masked words, which remain as text.

        Args:
          ids: int [N, L] or ragged [N, None].

        Returns:
          Strings [N].

        Raises:
          tf.errors.InvalidArgumentError: an id is negative.
        """
        if not isinstance(ids, tf.RaggedTensor):
            ids = tf.RaggedTensor.from_tensor(ids, row_splits_dtype=tf.int64)
        last = tf.size(self._drops, tf.int32) - 1
        ids = ids.with_flat_values(tf.minimum(tf.cast(ids.flat_values, tf.int32), last))
        ids = tf.ragged.boolean_mask(ids, ids.with_flat_values(~tf.gather(self._drops, ids.flat_values)))
        places = tf.range(tf.size(ids.flat_values, tf.int64)) - tf.gather(ids.row_starts(), ids.value_rowids())
        parts = tf.where(places == 0, tf.gather(self._first, ids.flat_values), tf.gather(self._others, ids.flat_values))
        if self._model.has_bytes:
            parts = self._whole_bytes(ids, parts)
        texts = tf.strings.unsorted_segment_join(parts, ids.value_rowids(), ids.nrows())
        for content, start, stop in self._strips:
            texts = tf.strings.regex_replace(texts, f"^(?:{content}){{0,{start}}}", "") if start else texts
            texts = tf.strings.regex_replace(texts, f"(?:{content}){{0,{stop}}}$", "") if stop else texts
        return valid_utf8(texts)

    def _whole_bytes(self, ids: tf.RaggedTensor, parts: tf.Tensor) -> tf.Tensor:
        """Returns the parts with U+FFFD for every byte of a run that is not valid UTF-8, as in the library."""
        rows, is_byte = ids.value_rowids(), tf.gather(self._is_byte, ids.flat_values)
        begins = tf.concat([[True], (rows[1:] != rows[:-1]) | (is_byte[1:] != is_byte[:-1])], 0)[: tf.size(rows)]
        run = tf.cumsum(tf.cast(begins, tf.int32)) - 1
        runs = tf.strings.unsorted_segment_join(parts, run, tf.reduce_max(tf.concat([run, [0]], 0)) + 1)
        broken = ~tf.strings.regex_full_match(runs, VALID_UTF8)
        return tf.where(is_byte & tf.gather(broken, run), "\ufffd", parts)

    def _normalize(self, pieces: Pieces) -> Pieces:
        for normalize in self._normalizers:
            pieces = normalize(pieces)
        return pieces

    def _encode(self, pieces: Pieces) -> tuple:
        count = tf.size(pieces.rows, tf.int64)
        words = dataclasses.replace(pieces, rows=tf.range(count))
        for split in (*self._splits, *([_split_at_nul] if self._model.ends_at_nul else [])):
            words = split(words)
        if not pieces.aligned:
            distinct, which = tf.unique(words.texts)
            ids, _, _ = self._model.encode(distinct)
            return regroup(tf.gather(ids, which), words.rows, count), None, None
        ids, starts, ends = self._model.encode(words.texts)
        starts, ends = words.offsets(starts, ends)
        ids, starts, ends = (regroup(values, words.rows, count) for values in (ids, starts, ends))
        return ids, starts, ends


def _split_at_nul(pieces: Pieces) -> Pieces:
    return pre_tokenizers.split(pieces, r"\x{0}", "Isolated")
