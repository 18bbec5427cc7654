"""Pieces of text during tokenization, in TensorFlow's stock ops.

Pieces are rewritten and split, and can keep a map from each of their characters to its place in the original text.
"""

import dataclasses
import re
from collections.abc import Callable

import tensorflow as tf

BORDER = b"\xff\xfe\xff\xfe"  # Valid UTF-8 never contains these bytes.

# Unicode white space; RE2's own \s covers ASCII only, without \v.
SPACE = r"\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Pieces of N texts.

    Attributes:
      texts: strings [P], UTF-8.
      rows: int64 [P], ascending; the text that each piece belongs to.
      first: bool [P]; whether the piece is at the beginning of its text.
      starts, ends: int32 [C]; for every code point of the pieces in turn, the range of code points in the original text
        that it came from; None without alignment.
    """

    texts: tf.Tensor
    rows: tf.Tensor
    first: tf.Tensor
    starts: tf.Tensor | None = None
    ends: tf.Tensor | None = None

    @classmethod
    def of(cls, texts: tf.Tensor, aligned: bool = False) -> "Pieces":
        """Returns one piece for each of `texts`, strings [N] of UTF-8."""
        rows = tf.range(tf.size(texts, tf.int64))
        first = tf.ones_like(rows, tf.bool)
        if not aligned:
            return cls(texts, rows, first)
        places = tf.ragged.range(tf.strings.length(texts, unit="UTF8_CHAR")).flat_values
        return cls(texts, rows, first, places, places + 1)

    @property
    def aligned(self) -> bool:
        return self.starts is not None

    def only(self, keep: tf.Tensor) -> "Pieces":
        """Returns the pieces where keep, bool [P], is true."""
        starts = ends = None
        if self.aligned:
            keep_characters = tf.repeat(keep, characters(self.texts))
            starts, ends = tf.boolean_mask(self.starts, keep_characters), tf.boolean_mask(self.ends, keep_characters)
        texts, rows, first = (tf.boolean_mask(values, keep) for values in (self.texts, self.rows, self.first))
        return Pieces(texts, rows, first, starts, ends)

    def each_character(self, rewrite: Callable[[tf.Tensor], tf.Tensor]) -> "Pieces":
        """Rewrites the pieces with a function of strings [P] that treats every code point independently."""
        if not self.aligned:
            return dataclasses.replace(self, texts=rewrite(self.texts))
        # The lengths of the replacements of each character give a map from the new texts to the old.
        distinct, which = tf.unique(tf.strings.unicode_decode(self.texts, "UTF-8").flat_values)
        becomes = rewrite(tf.strings.unicode_encode(distinct[:, tf.newaxis], "UTF-8"))
        counts = tf.gather(characters(becomes), which)
        return dataclasses.replace(
            self, texts=rewrite(self.texts), starts=tf.repeat(self.starts, counts), ends=tf.repeat(self.ends, counts)
        )

    def replace(self, pattern: str, content: str) -> "Pieces":
        """Replaces each match of RE2's `pattern` by `content`.

        The characters of `content` are mapped to the last character of the match, as in the `tokenizers` library.
        """
        texts = tf.strings.regex_replace(self.texts, pattern, escape(content))
        if not self.aligned:
            return dataclasses.replace(self, texts=texts)
        parts = tf.strings.split(tf.strings.regex_replace(self.texts, pattern, BORDER + rb"\0" + BORDER), BORDER)
        is_match = alternate(parts)
        counts = characters(parts.flat_values)
        new = tf.where(is_match, len(content), counts)
        begin = tf.cumsum(counts, exclusive=True)
        place = tf.repeat(tf.where(is_match, begin + counts - 1, begin), new)
        place += tf.where(tf.repeat(is_match, new), 0, tf.ragged.range(new).flat_values)
        starts, ends = tf.gather(self.starts, place), tf.gather(self.ends, place)
        return dataclasses.replace(self, texts=texts, starts=starts, ends=ends)

    def prepend(self, content: str, where: tf.Tensor) -> "Pieces":
        """Prepends `content` to the pieces where `where`, bool [P], is true; these must not be empty.

        The characters of `content` are mapped to the first character of the piece.
        """
        texts = tf.where(where, tf.strings.join([content, self.texts]), self.texts)
        if not self.aligned:
            return dataclasses.replace(self, texts=texts)
        counts = characters(self.texts)
        added = tf.where(where, len(content), 0)
        begin = tf.repeat(tf.cumsum(counts, exclusive=True), counts + added)
        place = tf.ragged.range(counts + added).flat_values - tf.repeat(added, counts + added)
        source = begin + tf.maximum(place, 0)
        return dataclasses.replace(
            self, texts=texts, starts=tf.gather(self.starts, source), ends=tf.gather(self.ends, source)
        )

    def split(self, marked: tf.Tensor, drop_matches: bool = False) -> "Pieces":
        """Splits the pieces at each BORDER in `marked`, which is the texts [P] with BORDERs inserted.

        Empty pieces are dropped. With `drop_matches`, the text between the first and the second BORDER of a piece is
        dropped too, and so on for each further pair.
        """
        parts = tf.strings.split(marked, BORDER)
        texts, owner = parts.flat_values, parts.value_rowids()
        sizes = tf.strings.length(texts)
        before = tf.cumsum(sizes, exclusive=True)
        before -= tf.gather(tf.gather(tf.concat([before, [0]], 0), parts.row_starts()), owner)
        first = tf.gather(self.first, owner) & (before == 0)
        pieces = Pieces(texts, tf.gather(self.rows, owner), first, self.starts, self.ends)
        keep = sizes > 0
        return pieces.only(keep & ~alternate(parts) if drop_matches else keep)

    def offsets(self, starts: tf.RaggedTensor, ends: tf.RaggedTensor) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
        """Returns the offsets of tokens in the original texts.

        Args:
          starts, ends: first byte of each token in its piece and the byte after its last, ragged [P, None]; tokens are
            not empty.
        """
        sizes = tf.cast(tf.strings.length(self.texts), tf.int64)
        first_byte = tf.gather(tf.cumsum(sizes, exclusive=True), starts.value_rowids())
        codes = tf.strings.unicode_decode(self.texts, "UTF-8").flat_values
        # Bytes and characters are counted across the whole batch, so one search serves all pieces.
        consumed = tf.cumsum(1 + tf.add_n([tf.cast(codes >= least, tf.int64) for least in (0x80, 0x800, 0x10000)]))

        def character(byte: tf.Tensor) -> tf.Tensor:
            return tf.searchsorted(consumed, tf.cast(byte, tf.int64) + first_byte, side="right")

        return (
            starts.with_flat_values(tf.gather(self.starts, character(starts.flat_values))),
            ends.with_flat_values(tf.gather(self.ends, character(ends.flat_values - 1))),
        )


def characters(texts: tf.Tensor) -> tf.Tensor:
    """Returns the number of code points of each text: strings [P] -> int32 [P]."""
    return tf.strings.length(texts, unit="UTF8_CHAR")


def escape(content: str) -> str:
    """Returns the replacement string with which regex_replace writes `content`."""
    return content.replace("\\", "\\\\")


def literal(content: str) -> str:
    """Returns RE2's expression that matches a text literally."""
    return re.escape(content).replace("\0", r"\x{0}")


def alternate(parts: tf.RaggedTensor) -> tf.Tensor:
    """Returns bool [P], true for the second, fourth, ... part of each row."""
    place = tf.range(tf.size(parts.flat_values, tf.int64)) - tf.gather(parts.row_starts(), parts.value_rowids())
    return place % 2 == 1
