"""Tokens added to a model's vocabulary, which are matched literally in a text before any other processing.

Special tokens, which do not represent text, are plain text in what a user writes, unless the caller requests them.
Other added tokens, such as <think> or a run of spaces, are always matched. If two begin at the same place, the longer
one is matched.

Source: the `tokenizers` library's AddedVocabulary.
"""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from tfzoo.text.components.patterns import RUST_WORD
from tfzoo.text.pieces import BORDER, SPACE, Pieces, alternate, characters, literal
from tfzoo.text.token_files import AddedToken


@dataclasses.dataclass(frozen=True)
class Around:
    """The added tokens found in pieces of text, and the pieces between them.

    Attributes:
      pieces: the pieces between the tokens.
      places: int64 [P + T]; for each piece and token in reading order, its index in the pieces followed by the tokens.
      counts: int64; for each piece searched, the number of pieces and tokens in it.
      ids, starts, ends: ids and offsets of the tokens, int32 [T]; the offsets are None without alignment.
    """

    pieces: Pieces
    places: tf.Tensor
    counts: tf.Tensor
    ids: tf.Tensor
    starts: tf.Tensor | None
    ends: tf.Tensor | None

    def merge(self, values: tf.RaggedTensor, tokens: tf.Tensor) -> tf.RaggedTensor:
        """Merges the pieces' values, ragged [P, None], with the tokens', [T], in order, for each piece searched."""
        lengths = tf.concat([values.row_lengths(), tf.ones_like(self.ids, tf.int64)], 0)
        both = tf.RaggedTensor.from_row_lengths(tf.concat([values.flat_values, tokens], 0), lengths, validate=False)
        return tf.RaggedTensor.from_row_lengths(tf.gather(both, self.places), self.counts, validate=False).merge_dims(
            1, 2
        )


def find(pieces: Pieces, tokens: Sequence[AddedToken]) -> Around:
    """Finds `tokens` (at least one) in pieces of text."""
    ordered = sorted(tokens, key=lambda token: (-len(token.content), token.content))
    marked = tf.strings.regex_replace(pieces.texts, "|".join(map(_pattern, ordered)), BORDER + rb"\0" + BORDER)
    # Not tf_text.regex_split: it ends a part at NUL.
    parts = tf.strings.split(marked, BORDER)
    flat, is_token = parts.flat_values, alternate(parts)
    if any(token.single_word for token in tokens):
        marked = tf.strings.reduce_join(parts.with_values(_unmark_inside_words(parts, is_token, tokens)), axis=1)
        parts = tf.strings.split(marked, BORDER)
        flat, is_token = parts.flat_values, alternate(parts)
    owner = parts.value_rowids()
    matches = tf.boolean_mask(flat, is_token)
    ids = _which(matches, tokens)
    ids = tf.where(ids >= 0, ids, _which(_strip(matches), tokens))
    before = tf.cumsum(tf.strings.length(flat), exclusive=True)
    before -= tf.gather(tf.gather(tf.concat([before, [0]], 0), parts.row_starts()), owner)
    all_parts = Pieces(
        flat, tf.gather(pieces.rows, owner), tf.gather(pieces.first, owner) & (before == 0), pieces.starts, pieces.ends
    )
    starts = ends = None
    if pieces.aligned:
        count = characters(flat)
        last = tf.boolean_mask(tf.cumsum(count), is_token)
        starts = tf.gather(pieces.starts, last - tf.boolean_mask(count, is_token))
        ends = tf.gather(pieces.ends, last - 1)
    # In the merged result, texts come first, then tokens: the index of each part of every row among them.
    order = tf.cumsum(tf.cast(is_token, tf.int64), exclusive=True)
    number = tf.range(tf.size(order, tf.int64))
    texts = tf.size(order, tf.int64) - tf.size(matches, tf.int64)
    places = tf.where(is_token, texts + order, number - order)
    return Around(all_parts.only(~is_token), places, parts.row_lengths(), ids, starts, ends)


def _pattern(token: AddedToken) -> str:
    spaces = f"[{SPACE}]*"
    return (spaces if token.lstrip else "") + literal(token.content) + (spaces if token.rstrip else "")


def _which(texts: tf.Tensor, tokens: Sequence[AddedToken]) -> tf.Tensor:
    """Returns the id of the token that equals each of the texts, strings [T]; -1 if there is none."""
    same = texts[:, tf.newaxis] == tf.constant([token.content for token in tokens])
    ids = tf.constant([token.id for token in tokens], tf.int32)
    return tf.where(tf.reduce_any(same, 1), tf.gather(ids, tf.argmax(tf.cast(same, tf.int32), 1)), -1)


def _strip(texts: tf.Tensor) -> tf.Tensor:
    return tf.strings.regex_replace(texts, f"^[{SPACE}]+|[{SPACE}]+$", "")


def _unmark_inside_words(parts: tf.RaggedTensor, is_token: tf.Tensor, tokens: Sequence[AddedToken]) -> tf.Tensor:
    """Returns the parts [P] with BORDERs around tokens, except tokens that must be whole words but are inside one."""
    flat = parts.flat_values
    whole_words = tf.constant([token.content for token in tokens if token.single_word])
    places = tf.range(tf.size(flat, tf.int64))
    begin, end = (tf.gather(edge, parts.value_rowids()) for edge in (parts.row_starts(), parts.row_limits()))

    def beside(*steps: int) -> tf.Tensor:
        neighbours = [tf.where((begin <= places + i) & (places + i < end), tf.roll(flat, -i, 0), "") for i in steps]
        return tf.strings.join(neighbours)

    inside = tf.strings.regex_full_match(beside(-2, -1), f"(?s).*[{RUST_WORD}]")
    inside |= tf.strings.regex_full_match(beside(1, 2), f"(?s)[{RUST_WORD}].*")
    has_to = tf.reduce_any(_strip(flat)[:, tf.newaxis] == whole_words, axis=1)
    return tf.where(is_token & ~(has_to & inside), tf.strings.join([BORDER, flat, BORDER]), flat)
