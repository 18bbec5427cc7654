"""SentencePiece's normalisation table as the `tokenizers` library applies it, which differs from SentencePiece.

The library processes grapheme clusters (a letter and its accents, a CR LF line end). A cluster of fewer than six bytes
is replaced by the table's entry for its shortest prefix that has one; in any other cluster, each code point is replaced
by its own entry. SentencePiece uses the longest entry at each position instead.

Source: the spm_precompiled library, and Darts (Yata) for the table's double array.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfzoo.text import cache, untrusted
from tfzoo.text.pieces import BORDER, Pieces, alternate, characters

_NONE = b"\xff"  # Means: no entry.
_LONGEST = 5  # Maximum number of bytes of a cluster that is looked up as a whole.
# Characters that extend the previous one: marks, joiners and others in Unicode's Grapheme_Extend and SpacingMark.
_EXTENDS = r"\p{M}\x{200c}\x{200d}\x{ff9e}\x{ff9f}\x{e33}\x{eb3}\x{1f3fb}-\x{1f3ff}\x{e0020}-\x{e007f}"


def read(data: bytes) -> dict[str, str]:
    """Returns the replacements of a precompiled_charsmap: text -> replacement.

    Raises:
      ValueError: the table is damaged.
    """
    if not data:
        return {}
    units, texts = untrusted.check_charsmap(data)
    result: dict[str, str] = {}
    keys, places = [b""], untrusted.offset(units[:1])
    while keys:
        parents, states = untrusted.transitions(units, places)
        unit = units[states]
        keys = [keys[parent] + bytes([letter]) for parent, letter in zip(parents, unit & 255)]
        places = states ^ untrusted.offset(unit)
        ends = np.flatnonzero(untrusted.has_value(unit))
        for i, begin in zip(ends.tolist(), untrusted.value(units[places[ends]]).tolist()):
            result[keys[i].decode()] = texts[begin : texts.index(b"\0", begin)].decode()
    return result


def kept(data: bytes) -> dict[str, str]:
    """Returns the cached result of `read`, which takes a second for T5's 220,000 entries.

    Raises:
      ValueError: the table is damaged.
    """
    key = hashlib.sha256(b"charsmap 2\0" + data).hexdigest()
    return json.loads(cache.made(key, lambda: json.dumps(read(data)).encode()))


class Charsmap(tf.Module):
    """A function of Pieces that applies such replacements as the library does."""

    def __init__(self, rules: Mapping[str, str]):
        super().__init__(name="charsmap")
        with tf.init_scope():
            self._table = tf.lookup.StaticHashTable(
                tf.lookup.KeyValueTensorInitializer(
                    tf.constant([key.encode() for key in rules] or [b""]),
                    tf.constant([value.encode() for value in rules.values()] or [b""]),
                ),
                default_value=_NONE,
            )
        starts = "".join(rf"\x{{{ord(c):x}}}" for c in sorted({key[0] for key in rules}))
        # Matches the characters that may change.
        self._pattern = rf"\r\n|[^\r\n][{_EXTENDS}]+" + (f"|[{starts}]" if starts else "")
        # The shortest prefix is used: an entry of several code points applies only if none of its prefixes is an entry.
        self._longest = max((len(key) for key in rules if len(key.encode()) <= _LONGEST), default=1)

    def __call__(self, pieces: Pieces) -> Pieces:
        marked = tf.strings.regex_replace(pieces.texts, self._pattern, BORDER + rb"\0" + BORDER)
        parts = tf.strings.split(marked, BORDER)
        flat, changes = parts.flat_values, alternate(parts)
        chosen = tf.boolean_mask(flat, changes)
        replacement = self._look_up(chosen, self._longest)
        is_whole = (tf.strings.length(chosen) <= _LONGEST) & (replacement != _NONE)
        letters = tf.strings.unicode_split(chosen, "UTF-8")
        single = self._look_up(letters.flat_values, 1)
        single = letters.with_values(tf.where(single == _NONE, letters.flat_values, single))
        new = tf.where(is_whole, replacement, tf.strings.reduce_join(single, axis=1))
        flat = tf.tensor_scatter_nd_update(flat, tf.where(changes), new)
        texts = tf.strings.reduce_join(parts.with_values(flat), axis=1)
        if not pieces.aligned:
            return dataclasses.replace(pieces, texts=texts)
        # The number of code points that each one becomes. In a cluster that is replaced as a whole, each code point
        # becomes one, as long as there are any, and the last becomes the rest.
        before = characters(parts.flat_values)
        owner, places = tf.repeat(tf.range(tf.size(before)), before), tf.ragged.range(before).flat_values
        counts = tf.tensor_scatter_nd_update(
            tf.ones_like(owner), tf.where(tf.gather(changes, owner)), characters(single.flat_values)
        )
        is_whole = tf.gather(tf.scatter_nd(tf.where(changes), is_whole, tf.shape(changes, tf.int64)), owner)
        old, new = tf.gather(before, owner), tf.gather(characters(flat), owner)
        of_whole = tf.cast(places < new, tf.int32) + tf.where(places == old - 1, tf.maximum(new - old, 0), 0)
        counts = tf.where(is_whole, of_whole, counts)
        return dataclasses.replace(
            pieces, texts=texts, starts=tf.repeat(pieces.starts, counts), ends=tf.repeat(pieces.ends, counts)
        )

    def _look_up(self, texts: tf.Tensor, longest: int) -> tf.Tensor:
        """Returns the replacement for each text's shortest prefix of at most `longest` code points, or _NONE."""
        result = tf.fill(tf.shape(texts), _NONE)
        for length in range(1, longest + 1):
            replacement = self._table.lookup(tf.strings.substr(texts, 0, length, unit="UTF8_CHAR"))
            result = tf.where(result == _NONE, replacement, result)
        return result
