"""Rows of token ids from one or two texts: special tokens, truncation, padding and segments, in numpy.

The rows are those of tfzoo.text.reader.Reader, which does the same with strings in TensorFlow, for exported models.
"""

from collections.abc import Sequence

import numpy as np

from tfzoo.errors import UserError
from tfzoo.text.framing import Frame


class Framer:
    """Puts the token ids of texts into rows.

    Args:
      frame: the special tokens around one text or around two.
      length: maximum number of tokens in a row; longer texts are truncated.
      pad_id: the id of padding.
      start_id: for an encoder-decoder, whose decoder reads the row shifted by one step: the first token of the decoder.

    Raises:
      UserError: the special tokens leave no room for text.
    """

    def __init__(self, frame: Frame, length: int, pad_id: int, start_id: int | None = None):
        self.frame, self.length, self.pad_id, self.start_id = frame, length, pad_id, start_id
        self.room = frame.room(length)
        if self.room < len(frame.texts):
            raise UserError(f"--sequence_length={length} leaves no room for text; use a larger value")
        self.first = next(i for i, part in enumerate(frame.parts) if isinstance(part, str))
        """The position of the first text's first token."""

    def kept(self, *counts):
        """Returns how many tokens of each text remain, for numbers or arrays of them: a text may use half of the room
        and what the other one leaves."""
        if len(counts) == 1:
            return (np.minimum(counts[0], self.room),)
        first = np.minimum(counts[0], np.maximum(self.room - counts[1], (self.room + 1) // 2))
        return first, np.minimum(counts[1], self.room - first)

    def lengths(self, *counts) -> np.ndarray:
        """Returns the number of tokens of rows whose texts have these numbers of tokens, int64 [N] each."""
        return sum(self.kept(*counts)) + (len(self.frame.parts) - len(self.frame.texts))

    def rows(self, texts: Sequence[Sequence[np.ndarray]], length: int) -> dict[str, np.ndarray]:
        """Returns the model inputs for a batch.

        Args:
          texts: for each row, the token ids of its texts.
          length: L, the number of positions in each row, at least the rows' own lengths.

        Returns:
          token_ids, segment_ids int32 [B, L] and padding_mask bool [B, L], for an encoder-decoder also
          decoder_token_ids and decoder_padding_mask.
        """
        ids = np.full((len(texts), length), self.pad_id, np.int32)
        segments, mask = np.zeros_like(ids), np.zeros(ids.shape, bool)
        for row, pieces in enumerate(texts):
            counts = iter(self.kept(*map(len, pieces)))
            waiting, end = iter(pieces), 0
            for part, segment in zip(self.frame.parts, self.frame.segments, strict=True):
                if isinstance(part, str):
                    piece, size = next(waiting), int(next(counts))
                    ids[row, end : end + size] = piece[:size]
                else:
                    size = 1
                    ids[row, end] = part
                segments[row, end : end + size] = segment
                end += size
            mask[row, :end] = True
        inputs = {"token_ids": ids, "segment_ids": segments, "padding_mask": mask}
        if self.start_id is not None:
            shifted = np.concatenate([np.full((len(ids), 1), self.start_id, np.int32), ids[:, :-1]], 1)
            real = mask | (np.arange(length) == 0)  # The start is real even if the text is empty, as in text.reader.
            inputs |= {"decoder_token_ids": shifted, "decoder_padding_mask": real}
        return inputs
