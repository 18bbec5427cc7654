"""The model of a tokenizer.json that is not byte-level: from a word to ids.

Byte-pair encoding and unigram models are converted to SentencePiece models, whose operation splits a word in the same
way: tfzoo.text.byte_level explains this for the merges. The operation adds a unigram model's scores in float32, while
the `tokenizers` library uses float64, so of two segmentations whose sums differ only in the last digits it may choose
the other one.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

from tfzoo.errors import UserError
from tfzoo.json_files import show
from tfzoo.text import sentencepiece_proto
from tfzoo.text.byte_level_model import made_by_merges
from tfzoo.text.sentencepiece_proto import BPE, BYTE, CONTROL, NORMAL, UNIGRAM, UNKNOWN
from tfzoo.text.tokenizer import sentencepiece_op

_NOWHERE = "\U0010ffff\U0010fffe\U0010ffff"  # Noncharacters.
_LARGEST_SCORE = 1e9  # Scores are logarithms of probabilities.
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


class WordModel(tf.Module):
    """Converts words to ids."""

    def __init__(
        self, op: Any, whole: Mapping[str, int], found_unknown: int, unknown: int | None, has_bytes: bool, size: int
    ):
        """Creates the model.

        Args:
          op: an operation with tokenize_with_offsets; None if the table is the whole model.
          whole: word -> id of the words that are looked up; they take precedence over the operation.
          found_unknown: the id that the operation, or the table, returns for unknown text.
          unknown: the id that replaces it; None drops unknown text.
          has_bytes: whether unknown characters become their bytes.
          size: ids of the operation from here on belong to no token.
        """
        super().__init__(name="word_model")
        self._op, self._whole, self._found_unknown, self._unknown = op, table(whole), found_unknown, unknown
        self.has_bytes, self._size = has_bytes, size

    @property
    def ends_at_nul(self) -> bool:
        """Whether a NUL has to be a word of its own."""
        return self._op is not None

    def encode(self, words: tf.Tensor) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """Converts words to ids and offsets.

        Args:
          words: strings [W]; none is empty, and a NUL is a word of its own.

        Returns:
          Ids, and starts and ends in bytes, each ragged int32 [W, None].
        """
        sizes, table_ids = tf.strings.length(words), self._whole.lookup(words)
        in_table = tf.ones_like(table_ids, tf.bool) if self._op is None else table_ids >= 0
        columns = [
            tf.RaggedTensor.from_row_lengths(
                tf.boolean_mask(values, in_table), tf.cast(in_table, tf.int64), validate=False
            )
            for values in (table_ids, tf.zeros_like(sizes), sizes)
        ]
        if self._op is not None:
            computed = self._op.tokenize_with_offsets(tf.where(in_table, "", words))
            computed = [values.with_flat_values(tf.cast(values.flat_values, tf.int32)) for values in computed]
            if self.has_bytes:
                computed[2] = _whole_characters(words, *computed[1:])
            columns = [tf.concat(both, 1) for both in zip(computed, columns)]
        ids, starts, ends = columns
        if self._op is not None:
            ids = columns[0] = ids.with_flat_values(
                tf.where(ids.flat_values < self._size, ids.flat_values, self._found_unknown)
            )
        if self._unknown is None:
            keep = ids != self._found_unknown
            return tuple(tf.ragged.boolean_mask(values, keep) for values in columns)
        ids = ids.with_flat_values(tf.where(ids.flat_values == self._found_unknown, self._unknown, ids.flat_values))
        return ids, starts, ends


def _whole_characters(words: tf.Tensor, starts: tf.RaggedTensor, ends: tf.RaggedTensor) -> tf.RaggedTensor:
    """Returns the ends of tokens, so that each byte of a character covers all of it, not only the last byte."""
    empty = starts.flat_values == ends.flat_values
    word, place = tf.gather(words, starts.value_rowids()), starts.flat_values
    first = tf.strings.substr(word, place, tf.ones_like(place))
    byte = tf.reshape(tf.io.decode_raw(tf.where(empty, first, "a"), tf.uint8), [-1])
    width = 1 + tf.add_n([tf.cast(byte >= least, tf.int32) for least in (0xC0, 0xE0, 0xF0)])
    return ends.with_flat_values(tf.where(empty, place + width, ends.flat_values))


def compile_model(record: dict[str, Any], apart: Iterable[int], where: str) -> WordModel:
    """Returns the function of a model; no word becomes one of the ids in `apart`, which do not represent text.

    Raises:
      UserError: the model is damaged or not supported.
    """
    kind = record.get("type") or ("Unigram" if "unk_id" in record else "BPE" if "merges" in record else None)
    makers = {"Unigram": _unigram, "BPE": _bpe, "WordLevel": _word_level}
    if kind not in makers:
        raise UserError(f"{where}: the model {show(kind)} is not supported")
    return makers[kind](record, {*apart}, where)


def is_in_order(vocab: dict[str, int]) -> bool:
    """Returns whether the ids of a vocabulary are 0, 1, 2, ... in the order of its tokens."""
    return [*vocab.values()] == [*range(len(vocab))]


def vocabulary(record: dict[str, Any], where: str) -> dict[str, int]:
    """Returns token -> id of any model.

    Raises:
      UserError: the vocabulary is damaged.
    """
    vocab = record.get("vocab")
    if isinstance(vocab, list) and all(isinstance(item, list) and len(item) == 2 for item in vocab):
        if not all(isinstance(item[0], str) for item in vocab):
            raise UserError(f"{where}.vocab: a token is not a string; get the file again")
        vocab = {item[0]: i for i, item in enumerate(vocab)}
        if len(vocab) < len(record["vocab"]):
            raise UserError(f"{where}.vocab: contains a token twice; get the file again")
    if not isinstance(vocab, dict) or not vocab:
        raise UserError(f"{where}.vocab: is not a vocabulary; get the file again")
    if is_in_order(vocab) and {*map(type, vocab.values())} == {int}:
        return vocab  # Nearly every vocabulary; checking each token takes many times as long.
    ids: dict[int, str] = {}
    for token, i in vocab.items():
        if not isinstance(token, str) or type(i) is not int or i < 0:
            raise UserError(
                f"{where}.vocab: token {show(token)} has id {show(i)}, which is not an integer of at least 0"
            )
        if i in ids:
            raise UserError(f"{where}.vocab: {show(token)} and {show(ids[i])} both have id {i}; get the file again")
        ids[i] = token
    return vocab


def _unigram(record: dict[str, Any], excluded: set[int], where: str) -> WordModel:
    ids, unknown = vocabulary(record, where), record.get("unk_id")
    if not isinstance(record["vocab"], list):
        raise UserError(f"{where}.vocab: contains no scores; get the file again")
    if type(unknown) is not int or not 0 <= unknown < len(ids):
        raise UserError(f"{where}.unk_id: is {show(unknown)}; a model without an unknown token is not supported")
    scores = [item[1] for item in record["vocab"]]
    if not all(isinstance(score, int | float) and abs(score) <= _LARGEST_SCORE for score in scores):
        raise UserError(f"{where}.vocab: a score is not a number up to {_LARGEST_SCORE:g}; get the file again")
    bytes_ = _byte_ids(record, ids, where)
    kinds = [CONTROL if i in excluded else BYTE if i in bytes_ else NORMAL for i in range(len(ids))]
    kinds[unknown] = UNKNOWN
    proto = _proto(*_summable(list(ids), scores, kinds), UNIGRAM, bool(bytes_))
    nul = ids.get("\0", ids["<0x00>"] if bytes_ else unknown)
    return WordModel(sentencepiece_op(proto), {"\0": nul}, unknown, unknown, bool(bytes_), len(ids))


def _summable(tokens: list[str], scores: list[float], kinds: list[int]) -> tuple[list[str], list[float], list[int]]:
    """Returns the vocabulary of a unigram model with scores that float32 adds without rounding.

    The library adds in float64, in which sums of float32's numbers are exact, and of two segmentations with equal sums
    it chooses the one whose last token is longer. Sums of multiples of 2^-15 are exact in float32 as long as they stay
    within 512. The same value is added to every score for each of its characters, which keeps sums near 0 and adds the
    same total to all segmentations of a word. A token that cannot occur in a text ensures this for the score of unknown
    text too, which is the lowest score minus 10.
    """
    normal = [i for i, kind in enumerate(kinds) if kind == NORMAL and tokens[i]]
    if not normal:
        return tokens, scores, kinds
    lowest = min(scores)
    bonus = round(-sum(scores[i] for i in normal) / sum(len(tokens[i]) for i in normal))
    bonus = max(bonus, 0)
    new = [round((score + bonus * len(token)) * 2**15) / 2**15 for token, score in zip(tokens, scores)]
    return [*tokens, _NOWHERE], [*new, round((lowest + bonus) * 2**15) / 2**15], [*kinds, NORMAL]


def _bpe(record: dict[str, Any], excluded: set[int], where: str) -> WordModel:
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if record.get(name):
            raise UserError(f"{where}.{name}: is {show(record[name])}, which is not supported")
    ids, merges = vocabulary(record, where), pairs(record, where)
    for first, second in merges:
        if not {first, second, first + second} <= ids.keys():
            raise UserError(f"{where}.merges: {show(f'{first} {second}')} contains a token without an id; get it again")
    bytes_ = _byte_ids(record, ids, where)
    unknown = ids.get(record.get("unk_token") or "")
    if unknown is not None and not record.get("fuse_unk") and not bytes_:
        raise UserError(f"{where}.fuse_unk: is false; only true is supported")
    size = max(ids.values()) + 1
    ranks = made_by_merges([*ids], ids, merges)
    tokens, scores, kinds = [""] * (size + 1), [0.0] * (size + 1), [CONTROL] * size + [UNKNOWN]
    for token, i in ids.items():
        if i in bytes_:
            tokens[i], kinds[i] = token, BYTE
        elif i in ranks and i not in excluded:
            tokens[i], scores[i], kinds[i] = token, -ranks[i], NORMAL
    proto = _proto(tokens, scores, kinds, BPE, bool(bytes_))
    whole = {token: i for token, i in ids.items() if i not in excluded} if record.get("ignore_merges") else {}
    nul = ids.get("\0", ids["<0x00>"] if bytes_ else size)
    return WordModel(sentencepiece_op(proto), {**whole, "\0": nul}, size, unknown, bool(bytes_), size + 1)


def _word_level(record: dict[str, Any], excluded: set[int], where: str) -> WordModel:
    ids = vocabulary(record, where)
    unknown = ids.get(record.get("unk_token") or "")
    return WordModel(None, {token: i for token, i in ids.items() if i not in excluded}, -1, unknown, False, 0)


def pairs(record: dict[str, Any], where: str) -> list[tuple[str, str]]:
    """Returns the merges of byte-pair encoding, in either notation.

    Raises:
      UserError: a merge is not a pair of tokens.
    """
    merges = record.get("merges")
    if not isinstance(merges, list):
        raise UserError(f"{where}.merges: is not a list; get the file again")
    result = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    for i, merge in enumerate(result):
        if not isinstance(merge, list) or len(merge) != 2 or not all(isinstance(part, str) and part for part in merge):
            raise UserError(f"{where}.merges: number {i + 1} is {show(merges[i])}, not a merge of two tokens")
    return [(first, second) for first, second in result]


def _byte_ids(record: dict[str, Any], ids: Mapping[str, int], where: str) -> set[int]:
    """Returns the ids of the 256 bytes if unknown characters become their bytes, else an empty set."""
    if not record.get("byte_fallback"):
        return set()
    missing = [byte for byte in _BYTES if byte not in ids]
    if missing:
        raise UserError(f"{where}.byte_fallback: is true, but {len(missing)} bytes have no token, such as {missing[0]}")
    return {ids[byte] for byte in _BYTES}


def _proto(tokens: list[str], scores: list[float], kinds: list[int], model: int, byte_fallback: bool) -> bytes:
    """Returns a SentencePiece model as a protocol buffer."""
    pieces, taken = [], {*tokens}
    for i, (token, score, kind) in enumerate(zip(tokens, scores, kinds)):
        if kind in (CONTROL, UNKNOWN):  # Never matched in a text; its name must be unique.
            token = f"\x01{i}"
            while token in taken:
                token += "\x01"
        pieces.append((token.encode(), score, kind))
    return sentencepiece_proto.write(pieces, model, byte_fallback)


def table(ids: Mapping[str, int]) -> tf.lookup.StaticHashTable:
    """Returns a table text -> id, with -1 for other texts."""
    with tf.init_scope():
        keys = tf.constant([key.encode() for key in ids] or [b""])
        values = tf.constant(list(ids.values()) or [-1], tf.int32)
        return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), default_value=-1)
