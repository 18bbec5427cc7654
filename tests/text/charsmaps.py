"""Normalisation tables of SentencePiece: natural ones, and small ones of any shape."""

import io
from collections.abc import Mapping

import sentencepiece


def model(charsmap: bytes) -> bytes:
    """Returns a SentencePiece model of three pieces with a normalisation table."""

    def field(tag: int, value: bytes) -> bytes:
        size = len(value)
        return bytes([tag << 3 | 2, size & 127 | 128, size >> 7 & 127 | 128, size >> 14]) + value

    pieces = [field(1, field(1, name) + bytes([3 << 3, kind])) for name, kind in ((b"<unk>", 2), (b"a", 1), (b"bc", 1))]
    return b"".join(pieces) + field(2, b"") + field(3, field(2, charsmap))


def natural(rule: str) -> tuple[bytes, bytes]:
    """Returns a model trained with a normalisation rule of the library, and the model's table."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on a mat", "dogs and cats"] * 9), model_writer=written, vocab_size=40,
        hard_vocab_limit=False, normalization_rule_name=rule, minloglevel=2, num_threads=1,
    )  # fmt: skip
    content = written.getvalue()
    tag = content.rindex(b"\x0a" + bytes([len(rule)]) + rule.encode() + b"\x12") + len(rule) + 3
    size, shift = 0, 0
    while content[tag] & 128:
        size, tag, shift = size | (content[tag] & 127) << shift, tag + 1, shift + 7
    size |= content[tag] << shift
    return content, content[tag + 1 : tag + 1 + size]


def table(nodes: Mapping[int, Mapping[int, int]], values: Mapping[int, int], texts: bytes = b"x\0") -> bytes:
    """Returns a table whose trie has the transitions {node: {byte: node}} from node 0 and a replacement at some nodes.

    Each node has 256 units of its own.
    """
    units = [1 << 31] * 256 * (len(nodes) + 1)  # A unit that no byte leads to.

    def offset(node: int, position: int) -> int:
        return ((node + 1) * 256 ^ position) << 10 | (node in values) << 8

    units[0] = offset(0, 0)
    for node, edges in nodes.items():
        for letter, child in edges.items():
            position = (node + 1) * 256 ^ letter
            units[position] = offset(child, position) | letter
    for node, text in values.items():
        units[(node + 1) * 256] = 1 << 31 | text
    packed = b"".join(unit.to_bytes(4, "little") for unit in units)
    return len(packed).to_bytes(4, "little") + packed + texts


def chain(length: int, values: Mapping[int, int], texts: bytes = b"x\0") -> bytes:
    return table({i: {97: i + 1} if i < length else {} for i in range(length + 1)}, values, texts)
