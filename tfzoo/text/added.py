"""Tokens beside a model's own, which stand for what is written: found in a text before anything else is done to it.

Special tokens, which stand for no text, are plain text in what a user writes, unless the caller asks for them. The
others, such as <think> or a run of spaces, are always found. Of two that begin at one place the longer is meant.

Source: the `tokenizers` library's AddedVocabulary.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import tensorflow as tf

from tfzoo.errors import UserError
from tfzoo.text.components.patterns import RUST_WORD
from tfzoo.text.pieces import BORDER, SPACE, Pieces, alternate, characters, literal


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token that is found in a text.

    special: it stands for no text.
    lstrip, rstrip: it takes the white space before, or behind, it.
    single_word: not within a word.
    normalized: looked for in the text as the tokenizer normalises it.
    """

    content: str
    id: int
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


def check(special: Sequence[str], known: Mapping[str, int]) -> None:
    """Raises UserError where `special` names what is not in `known`, the special tokens' ids by their texts."""
    for token in special:
        if token not in known:
            some = " ".join(list(known)[:12])
            raise UserError(f"special: {token!r} is not one of {some}{' ...' if len(known) > 12 else ''}")


@dataclasses.dataclass(frozen=True)
class Around:
    """What stands around added tokens, and the tokens.

    pieces: what is between them.
    places: int64 [P + T], where each of the pieces and tokens, in order, is among the pieces followed by the tokens.
    counts: int64, how many of both each of the pieces has that were searched.
    ids, starts, ends: of the tokens, int32 [T]; the latter are None without alignment.
    """

    pieces: Pieces
    places: tf.Tensor
    counts: tf.Tensor
    ids: tf.Tensor
    starts: tf.Tensor | None
    ends: tf.Tensor | None

    def merge(self, values: tf.RaggedTensor, tokens: tf.Tensor) -> tf.RaggedTensor:
        """The pieces' values, ragged [P, None], and the tokens', [T], in order, for each of the pieces searched."""
        lengths = tf.concat([values.row_lengths(), tf.ones_like(self.ids, tf.int64)], 0)
        both = tf.RaggedTensor.from_row_lengths(tf.concat([values.flat_values, tokens], 0), lengths, validate=False)
        return tf.RaggedTensor.from_row_lengths(tf.gather(both, self.places), self.counts, validate=False).merge_dims(
            1, 2
        )


def find(pieces: Pieces, tokens: Sequence[AddedToken]) -> Around:
    """Looks for `tokens`, of which there is one at least, in pieces of texts."""
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
    found = tf.boolean_mask(flat, is_token)
    ids = _which(found, tokens)
    ids = tf.where(ids >= 0, ids, _which(_strip(found), tokens))
    before = tf.cumsum(tf.strings.length(flat), exclusive=True)
    before -= tf.gather(tf.gather(tf.concat([before, [0]], 0), parts.row_starts()), owner)
    every = Pieces(
        flat, tf.gather(pieces.rows, owner), tf.gather(pieces.first, owner) & (before == 0), pieces.starts, pieces.ends
    )
    starts = ends = None
    if pieces.aligned:
        count = characters(flat)
        last = tf.boolean_mask(tf.cumsum(count), is_token)
        starts = tf.gather(pieces.starts, last - tf.boolean_mask(count, is_token))
        ends = tf.gather(pieces.ends, last - 1)
    # Texts come first, then tokens: where each part of every row is among them.
    order = tf.cumsum(tf.cast(is_token, tf.int64), exclusive=True)
    number = tf.range(tf.size(order, tf.int64))
    texts = tf.size(order, tf.int64) - tf.size(found, tf.int64)
    places = tf.where(is_token, texts + order, number - order)
    return Around(every.only(~is_token), places, parts.row_lengths(), ids, starts, ends)


def _pattern(token: AddedToken) -> str:
    spaces = f"[{SPACE}]*"
    return (spaces if token.lstrip else "") + literal(token.content) + (spaces if token.rstrip else "")


def _which(texts: tf.Tensor, tokens: Sequence[AddedToken]) -> tf.Tensor:
    """The id of the token that each of the texts, strings [T], is; -1 where it is none."""
    same = texts[:, tf.newaxis] == tf.constant([token.content for token in tokens])
    ids = tf.constant([token.id for token in tokens], tf.int32)
    return tf.where(tf.reduce_any(same, 1), tf.gather(ids, tf.argmax(tf.cast(same, tf.int32), 1)), -1)


def _strip(texts: tf.Tensor) -> tf.Tensor:
    return tf.strings.regex_replace(texts, f"^[{SPACE}]+|[{SPACE}]+$", "")


def _unmark_inside_words(parts: tf.RaggedTensor, is_token: tf.Tensor, tokens: Sequence[AddedToken]) -> tf.Tensor:
    """The parts [P], BORDERs around tokens but those that have to be words of their own and are not."""
    flat = parts.flat_values
    alone = tf.constant([token.content for token in tokens if token.single_word])
    places = tf.range(tf.size(flat, tf.int64))
    begin, end = (tf.gather(edge, parts.value_rowids()) for edge in (parts.row_starts(), parts.row_limits()))

    def beside(*steps: int) -> tf.Tensor:
        near = [tf.where((begin <= places + i) & (places + i < end), tf.roll(flat, -i, 0), "") for i in steps]
        return tf.strings.join(near)

    inside = tf.strings.regex_full_match(beside(-2, -1), f"(?s).*[{RUST_WORD}]")
    inside |= tf.strings.regex_full_match(beside(1, 2), f"(?s)[{RUST_WORD}].*")
    has_to = tf.reduce_any(_strip(flat)[:, tf.newaxis] == alone, axis=1)
    return tf.where(is_token & ~(has_to & inside), tf.strings.join([BORDER, flat, BORDER]), flat)
