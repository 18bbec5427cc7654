"""Writes SentencePiece models as protocol buffers (sentencepiece_model.proto of google/sentencepiece)."""

import struct
from collections.abc import Iterable

# Types of models and of pieces.
UNIGRAM, BPE, WORD, CHARACTER = MODEL_TYPES = (1, 2, 3, 4)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def write(pieces: Iterable[tuple[bytes, float, int]], model: int, byte_fallback: bool = False) -> bytes:
    """Returns a model that splits a text as it is, without normalisation.

    Args:
      pieces: (name, score, type) of each id.
      model: UNIGRAM or BPE.
      byte_fallback: whether characters without a piece become pieces of their bytes.
    """

    def number(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + number(value >> 7)

    def field(tag: int, value: int | bytes) -> bytes:
        if isinstance(value, bytes):
            return number(tag << 3 | 2) + number(len(value)) + value
        return number(tag << 3) + number(value)

    written = [
        field(1, field(1, name) + number(2 << 3 | 5) + struct.pack("<f", score) + field(3, kind))
        for name, score, kind in pieces
    ]
    trainer = field(2, field(3, model) + (field(35, 1) if byte_fallback else b""))
    # No normalisation, no space before a text, no removal of spaces, no escaping of spaces.
    as_is = field(3, field(1, b"identity") + field(3, 0) + field(4, 0) + field(5, 0))
    return b"".join(written) + trainer + as_is
