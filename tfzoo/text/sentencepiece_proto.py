"""Reads and writes SentencePiece models as protocol buffers (sentencepiece_model.proto of google/sentencepiece)."""

import functools
import math
import re
import struct
from collections.abc import Iterable
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from tfzoo.errors import UserError
from tfzoo.text import untrusted

# Types of models and of pieces.
UNIGRAM, BPE, WORD, CHARACTER = MODEL_TYPES = (1, 2, 3, 4)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_LONGEST_PIECE = 1_000  # Bytes. The library recurses once for each.


def write(pieces: Iterable[tuple[bytes, float, int]], model: int, byte_fallback: bool = False) -> bytes:
    """Returns a model that splits a text as it is, without normalisation.

    Args:
      pieces: (name, score, type) of each id.
      model: UNIGRAM or BPE.
      byte_fallback: whether characters without a piece become pieces of their bytes.
    """

    @functools.cache
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


@functools.cache
def message_type() -> type:
    """Returns the protocol buffer message of a model's file, with the fields that are read here.

    The fields are those of SentencePiece's sentencepiece_model.proto. SentencePiece's own generated module requires a
    newer protobuf than TensorFlow's.
    """
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="tfzoo_sentencepiece.proto", package="tfzoo", syntax="proto2")

    def add(name: str, *fields: tuple) -> None:
        kind = file.message_type.add(name=name)
        for number, field_name, type_, default in fields:
            added = kind.field.add(name=field_name, number=number, label=field.LABEL_OPTIONAL)
            if isinstance(type_, str):
                added.type, added.type_name = field.TYPE_MESSAGE, f".tfzoo.{type_}"
                added.label = field.LABEL_REPEATED if default == "repeated" else field.LABEL_OPTIONAL
            else:
                added.type = type_
                if default is not None:
                    added.default_value = default

    add(
        "Piece",
        (1, "piece", field.TYPE_BYTES, None),
        (2, "score", field.TYPE_FLOAT, None),
        (3, "type", field.TYPE_INT32, "1"),
    )
    add(
        "TrainerSpec",
        (3, "model_type", field.TYPE_INT32, "1"),
        (24, "treat_whitespace_as_suffix", field.TYPE_BOOL, None),
        (44, "unk_surface", field.TYPE_STRING, " \u2047 "),
    )
    add(
        "NormalizerSpec",
        (1, "name", field.TYPE_BYTES, None),
        (2, "precompiled_charsmap", field.TYPE_BYTES, None),
        (3, "add_dummy_prefix", field.TYPE_BOOL, "true"),
        (4, "remove_extra_whitespaces", field.TYPE_BOOL, "true"),
        (5, "escape_whitespaces", field.TYPE_BOOL, "true"),
    )
    add(
        "Model",
        (1, "pieces", "Piece", "repeated"),
        (2, "trainer_spec", "TrainerSpec", None),
        (3, "normalizer_spec", "NormalizerSpec", None),
        (5, "denormalizer_spec", "NormalizerSpec", None),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tfzoo.Model"))


def parse(data: bytes, name: str) -> Any:
    """Returns the parsed message of a model's file after the checks that native libraries omit.

    Raises:
      UserError: `data` is not a SentencePiece model, is truncated, has no unknown piece, or has a repeated piece; the
        message calls the model `name`.
    """
    proto = message_type()()
    if data.startswith(b"version https://git-lfs"):
        raise UserError(f"{name}: is a Git LFS pointer, not the model; fetch the file itself (git lfs pull)")
    # The first field of every model is a piece: tag 1, with a length.
    if not data.startswith(b"\x0a"):
        raise UserError(f"{name}: is not a SentencePiece model (it begins with {data[:8]!r}); get the file again")
    try:
        proto.ParseFromString(data)
        if isinstance(proto.trainer_spec.unk_surface, bytes):  # It is not UTF-8.
            raise message.DecodeError
    except message.DecodeError:
        raise UserError(
            f"{name}: is not a SentencePiece model, or is truncated ({len(data)} bytes); get it again"
        ) from None
    if not proto.pieces or not proto.HasField("trainer_spec") or not proto.HasField("normalizer_spec"):
        raise UserError(
            f"{name}: is truncated, or not a SentencePiece model ({len(data)} bytes, {len(proto.pieces)} pieces, no "
            "settings after them); get it again"
        )
    seen: dict[str, int] = {}
    for i, piece in enumerate(proto.pieces):
        try:
            text = piece.piece.decode()
        except UnicodeDecodeError:
            raise UserError(f"{name}: piece {i} ({piece.piece[:20]!r}) is not UTF-8; get the file again") from None
        if not text:
            raise UserError(f"{name}: piece {i} is empty; train the model again")
        if "\0" in text or len(piece.piece) > _LONGEST_PIECE:
            raise UserError(
                f"{name}: piece {i} ({text[:20]!r}) contains NUL or has more than {_LONGEST_PIECE} bytes; train the "
                "model again"
            )
        if not math.isfinite(piece.score):
            raise UserError(f"{name}: piece {i} ({text!r}) has the score {piece.score}; train the model again")
        if text in seen:
            raise UserError(f"{name}: piece {i} ({text!r}) is the same as piece {seen[text]}; train the model again")
        if piece.type not in (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE):
            raise UserError(f"{name}: piece {i} ({text!r}) has type {piece.type}, which SentencePiece does not have")
        if piece.type == BYTE and not re.fullmatch("<0x[0-9A-F]{2}>", text):
            raise UserError(f"{name}: piece {i} ({text!r}) has the type of a byte, but is not of the form <0xFF>")
        seen[text] = i
    unknowns = [i for i, piece in enumerate(proto.pieces) if piece.type == UNKNOWN]
    if len(unknowns) != 1:
        count = "no unknown piece" if not unknowns else f"{len(unknowns)} unknown pieces"
        raise UserError(f"{name}: has {count} among its {len(seen)} pieces; a model has one, usually <unk>")
    if proto.trainer_spec.model_type not in MODEL_TYPES:
        raise UserError(f"{name}: its model_type is {proto.trainer_spec.model_type}, which SentencePiece does not have")
    for charsmap in (proto.normalizer_spec.precompiled_charsmap, proto.denormalizer_spec.precompiled_charsmap):
        try:
            if charsmap:
                untrusted.check_charsmap(charsmap)
        except ValueError as error:
            raise UserError(f"{name}: its normalisation table is damaged ({error}); get the file again") from None
    return proto


def with_prefix(proto: Any, model: bytes, prefix: str | None) -> bytes:
    """Returns the model with add_dummy_prefix set as `prefix` requires."""
    if prefix is None or proto.normalizer_spec.add_dummy_prefix == (prefix != "never"):
        return model
    # The last of a protocol buffer's fields takes precedence: normalizer_spec (3) with add_dummy_prefix (3).
    return model + bytes([3 << 3 | 2, 2, 3 << 3, prefix != "never"])
