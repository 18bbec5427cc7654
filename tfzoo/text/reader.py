"""Texts to model inputs: special tokens, truncation, pairs, segments and offsets, in TensorFlow's stock ops.

The Reader works identically eagerly, in tf.data and in an exported graph. It receives the properties of a model that it
needs as arguments and has no access to the model itself.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfzoo.errors import UserError
from tfzoo.text.framing import PAIR, TEXT, Frame


@dataclasses.dataclass(frozen=True)
class Wording:
    """The processing of a text before tokenization: a prompt is prepended, and the result is optionally lower-cased."""

    prompt: str = ""
    lowercase: bool = False

    def worded(self, texts):
        """Applies the wording to strings [B]; returns strings [B]."""
        if self.prompt:
            texts = tf.strings.join([self.prompt, texts])
        return lowered(texts) if self.lowercase else texts

    def worded_text(self, text: str) -> str:
        """Applies the wording to one Python string."""
        text = self.prompt + text
        return "".join(map(str.lower, text)) if self.lowercase else text


def lowered(texts):
    """Returns strings [B] in lower case, character by character: a sigma never takes its final form."""
    for upper, lower in (("Σ", "σ"), ("İ", "i̇")):
        texts = tf.strings.regex_replace(texts, upper, lower)
    # Unicode lower-casing depends on the process's locale, and a Turkish one maps I to ı, so ASCII is lower-cased
    # first.
    return tf.strings.lower(tf.strings.lower(texts), encoding="utf-8")


@dataclasses.dataclass
class Reading:
    """A batch of texts as a model reads it.

    Attributes:
      inputs: the model's inputs by name.
      truncated: bool [B]; whether the text was truncated.
      of: TEXT or PAIR -> bool [B, L], true for the text's own tokens.
      starts, ends: int32 [B, L], code points in the tokens' texts; None for a tokenizer without offsets.
    """

    inputs: dict[str, Any]
    truncated: Any
    of: dict[str, Any]
    starts: Any
    ends: Any


class Reader:
    """Reads texts, or pairs of texts, with a tokenizer.

    Args:
      tokenizer: a tokenizer of tfzoo.text.
      frame: the special tokens around one text, or around two.
      inputs: the names of the model's inputs. Of these, token_ids, segment_ids and padding_mask are returned and, with
        start_id, decoder_token_ids and decoder_padding_mask.
      length: maximum number of tokens in a row, including special tokens; longer texts are truncated.
      fixed_length: whether rows are padded to `length` instead of to the longest row of the batch.
      start_id: the first token that the decoder of an encoder-decoder reads. Both encoder and decoder read the text.
      wording: the processing of the first text before tokenization.
      pools_prompt: False also returns pooling_mask if there is a prompt: it selects the tokens after the prompt.

    Raises:
      UserError: the special tokens leave no room for text.
    """

    def __init__(
        self,
        tokenizer: Any,
        frame: Frame,
        inputs: Sequence[str],
        length: int,
        fixed_length: bool = False,
        start_id: int | None = None,
        wording: Wording = Wording(),
        pools_prompt: bool = True,
    ):
        self.tokenizer, self.frame, self.inputs, self.start_id = tokenizer, frame, inputs, start_id
        self.wording = wording
        self.room = frame.room(length)
        self.static = length if fixed_length else None
        self.has_offsets = has_offsets(tokenizer)
        if self.room < len(frame.texts):
            raise UserError(f"--sequence_length={length} leaves no room for text; use a larger value")
        self.prompt_length = 0 if pools_prompt or not wording.prompt else self._prompt_length()

    def read(self, texts: Mapping[str, Any], special: Sequence[str] = (), offsets: bool = False) -> Reading:
        """Reads a batch.

        Args:
          texts: strings [B] for TEXT and, if the frame contains it, for PAIR.
          special: special tokens that are recognised where they are written in a text.
          offsets: whether to return offsets, if the tokenizer has them.
        """
        offsets = offsets and self.has_offsets
        texts = {**texts, TEXT: self.wording.worded(texts[TEXT])}
        tokens: dict[str, tuple] = {}  # TEXT or PAIR -> ragged ids, starts and ends.
        for piece in self.frame.texts:
            if offsets:
                tokens[piece] = self.tokenizer.tokenize_with_offsets(texts[piece])
            else:
                tokens[piece] = (self.tokenizer.tokenize(texts[piece], special=tuple(special)),)
        lengths = {piece: tf.cast(ids.row_lengths(), tf.int32) for piece, (ids, *_) in tokens.items()}
        kept = self._cut(lengths)
        end, indices, parts = self._place(tokens, lengths, kept, 2 * offsets)
        length = tf.maximum(tf.reduce_max(end), 1) if self.static is None else self.static
        shape = tf.stack([tf.size(end), length])

        def dense(values, fill=0):
            result = tf.tensor_scatter_nd_update(tf.fill(shape, fill), indices, tf.concat(values, 0))
            return tf.ensure_shape(result, [None, self.static])

        ids, *places, segments, pieces = zip(*parts)
        inputs = {
            "token_ids": dense(ids, pad_id(self.tokenizer)),
            "segment_ids": dense(segments),
            "padding_mask": tf.ensure_shape(tf.sequence_mask(end, length), [None, self.static]),
        }
        if self.start_id is not None:  # The decoder reads the text shifted by one step.
            shifted = tf.concat([tf.fill([shape[0], 1], self.start_id), inputs["token_ids"][:, :-1]], 1)
            # The start is real even if the text is empty: without a real token, its state would depend on the padding.
            real = inputs["padding_mask"] | (tf.range(length) == 0)
            real = tf.ensure_shape(real, [None, self.static])
            inputs |= {"decoder_token_ids": shifted, "decoder_padding_mask": real}
        if self.prompt_length:
            inputs["pooling_mask"] = inputs["padding_mask"] & (tf.range(length) >= self.prompt_length)
        of = dense(pieces)
        starts, ends = map(dense, places) if places else (None, None)
        return Reading(
            {name: value for name, value in inputs.items() if name in self.inputs},
            tf.reduce_any([kept[piece] < lengths[piece] for piece in lengths], axis=0),
            {piece: of == 1 + i for i, piece in enumerate(self.frame.texts)},
            starts,
            ends,
        )

    def _prompt_length(self) -> int:
        """Returns the number of a row's tokens up to the end of the prompt.

        As in sentence-transformers, this is the length of the tokenized prompt without the special token after it.
        """
        ids = self.tokenizer.tokenize(self.wording.worded([""]))[0]
        special = len(self.frame.parts) - len(self.frame.texts)
        return min(len(ids), self.room) + special - (not isinstance(self.frame.parts[-1], str))

    def _cut(self, lengths):
        """Returns the lengths after truncation: a text may use half of the room and what the other leaves."""
        kept = {TEXT: tf.minimum(lengths[TEXT], self.room)}
        if PAIR in lengths:
            kept[TEXT] = tf.minimum(lengths[TEXT], tf.maximum(self.room - lengths[PAIR], (self.room + 1) // 2))
            kept[PAIR] = tf.minimum(lengths[PAIR], self.room - kept[TEXT])
        return kept

    def _place(self, tokens, lengths, kept, places: int):
        """Returns the place of every token.

        (Ragged operations would do the same with thousands of nodes.)

        Returns:
          The rows' lengths int32 [B]; every token's row and column, [N, 2]; and, for each part of the frame, every
          token's id, `places` offsets, segment, and the number of its text, 0 for special tokens.
        """
        all_rows = tf.range(tf.size(kept[TEXT]))  # Rows.
        end, rows, columns, parts = tf.zeros_like(all_rows), [], [], []
        for part, segment in zip(self.frame.parts, self.frame.segments):
            if isinstance(part, str):
                row = tf.cast(tokens[part][0].value_rowids(), tf.int32)
                place = tf.range(tf.size(row)) - tf.gather(tf.cumsum(lengths[part], exclusive=True), row)
                keep = place < tf.gather(kept[part], row)
                row, place = tf.boolean_mask(row, keep), tf.boolean_mask(place, keep)
                values = [tf.boolean_mask(ragged.flat_values, keep) for ragged in tokens[part]]
                of, size = 1 + self.frame.texts.index(part), kept[part]
            else:
                row, place, size, of = all_rows, tf.zeros_like(all_rows), tf.ones_like(all_rows), 0
                values = [tf.fill(tf.shape(all_rows), part)] + [tf.zeros_like(all_rows)] * places
            rows.append(row)
            columns.append(tf.gather(end, row) + place)
            parts.append([*values, tf.fill(tf.shape(row), segment), tf.fill(tf.shape(row), of)])
            end += size
        return end, tf.stack([tf.concat(rows, 0), tf.concat(columns, 0)], 1), parts


def pad_id(tokenizer: Any) -> int:
    """Returns the id used for padding: the tokenizer's pad_id, or 0 if it has none."""
    pad = getattr(tokenizer, "pad_id", None)
    return 0 if pad is None else pad


def has_offsets(tokenizer: Any) -> bool:
    """Returns whether `tokenize_with_offsets` can locate tokens in a text."""
    try:
        tokenizer.tokenize_with_offsets(tf.constant(["a"]))
    except UserError:
        return False
    return True
