"""The compiled form of a byte-level vocabulary and its merges, which tfzoo.text.byte_level explains."""

import collections
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import tokenizers

from tfzoo.errors import UserError
from tfzoo.text import sentencepiece_proto
from tfzoo.text.sentencepiece_proto import BPE, CONTROL, NORMAL, UNKNOWN

# Bytes become letters, each the character with the byte's number, except these.
LATIN_WORD_END = "\xff"  # A byte that valid UTF-8 never contains, used as the end of a word.
LATIN_NUL = "\u0100"  # SentencePiece ends a text at NUL.
LATIN_OTHER = "\u0101"  # Prefix of the names, in the SentencePiece model, of tokens that are not text.


def _letters() -> dict[str, int]:
    """Returns GPT-2's letters for bytes: visible characters represent themselves, others are U+0100 onwards."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


BYTES = _letters()  # Letter -> byte.
_LETTERS = frozenset(BYTES)
_LATIN = str.maketrans({letter: chr(byte) for letter, byte in BYTES.items()})


def is_text(token: str) -> bool:
    return _LETTERS.issuperset(token)


def bytes_of(token: str) -> bytes:
    """Returns the bytes that the letters of a token represent; `is_text` must hold."""
    return token.translate(_LATIN).encode("latin-1")


def latin(token: bytes) -> bytes:
    """Returns a token's bytes as letters, each the character with the byte's number."""
    return token.decode("latin-1").replace("\0", LATIN_NUL).encode()


def made_by_merges(vocab: Iterable[str], ids: Mapping[str, int], merges: list) -> dict[int, int]:
    """Returns id -> rank of the last merge (-1: a letter) of the tokens that the merges make of their letters."""
    ranks: dict[str, list[int]] = collections.defaultdict(list)
    for rank, (left, right) in enumerate(merges):
        ranks[left + right].append(rank)
    candidates = [token for token in vocab if token in ranks or len(token) == 1]
    model = tokenizers.Tokenizer(tokenizers.models.BPE(dict(ids), merges))
    last_ranks = {}
    for token, encoding in zip(candidates, model.encode_batch_fast(candidates), strict=True):
        if encoding.ids == [ids[token]]:
            if len(ranks[token]) > 1:  # Two merges make it, one of which is used.
                last_ranks[ids[token]] = _last_merge(token, {merge: rank for rank, merge in enumerate(merges)})
            else:
                last_ranks[ids[token]] = ranks[token][0] if ranks[token] else -1
    return last_ranks


def _last_merge(token: str, ranks: Mapping[tuple[str, str], int]) -> int:
    """Returns the rank of the last of the merges that produce a token from its letters."""
    parts, last = list(token), -1
    while len(parts) > 1:
        last, i = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(zip(parts, parts[1:])))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return last


def cuts(tokens: Iterable[bytes]) -> str:
    """Returns a regular expression over letters that matches two bytes which are adjacent in no token.

    The two bytes are the expression's groups, and the second begins a character. The expression is empty if there are
    no such bytes.
    """
    tokens = [token for token in tokens if token]
    letters = np.frombuffer(b"".join(tokens), np.uint8)
    ends = np.cumsum([len(token) for token in tokens], dtype=np.int64)
    within = np.delete(np.arange(letters.size), ends - 1)  # The places of all letters but the last of each token.
    together = np.zeros((256, 256), bool)
    together[letters[within], letters[within + 1]] = True
    # A class of first bytes times a class of second bytes: the largest such product in which the second bytes are those
    # with the fewest partners. (Several products cut more, but the cost of their groups outweighs the gain.)
    seconds = np.arange(0xC2, 0xF5)
    partners = together[0x80:0xC0, 0xC2:0xF5].sum(0)
    products = []
    for limit in np.unique(partners):
        second = seconds[partners <= limit]
        products.append((0x80 + np.flatnonzero(~together[0x80:0xC0, second].any(1)), second))
    first, second = max(products, key=lambda product: product[0].size * product[1].size)
    if not first.size:
        return ""
    classes = ("".join(f"\\x{{{byte:x}}}" for byte in chosen) for chosen in (first, second))
    return "".join(f"([{letters}])" for letters in classes)


def sentencepiece_model(vocab_size: int, tokens: Mapping[int, tuple[bytes, int]]) -> bytes:
    """Returns a SentencePiece BPE model, as a protocol buffer, that merges by rank.

    Args:
      vocab_size: number of ids.
      tokens: id -> (bytes, rank).
    """
    pieces = []
    for i in range(vocab_size + 1):  # The unknown piece, which a model must have, comes last.
        text, rank = tokens.get(i, (b"", 0))
        name = latin(text) if text else f"{LATIN_OTHER}{i}".encode()
        pieces.append((name, -rank, NORMAL if text else UNKNOWN if i == vocab_size else CONTROL))
    return sentencepiece_proto.write(pieces, BPE)


def check_vocab(tokens: list[str], name: str, where: Callable[[str], str]) -> None:
    """Raises UserError if a token is repeated; `where` returns a location such as ", line 3" for a token."""
    seen: dict[str, int] = {}
    for i, token in enumerate(tokens):
        if not token:  # No token has this id.
            continue
        if token in seen:
            raise UserError(f"{name}{where(token)}: token {token!r} has ids {seen[token]} and {i}; remove one")
        seen[token] = i


def check_merges(vocab: set[str], merges: list, where: Callable[[int], str], name: str) -> None:
    """Raises UserError if a merge is invalid or repeated; `where` returns a location such as "FILE, line 3"."""
    seen: dict[tuple, int] = {}
    for i, merge in enumerate(merges):
        if len(merge) != 2 or not all(isinstance(part, str) and part for part in merge):
            raise UserError(f"{where(i)}: {merge!r} is not a merge of two tokens")
        for part in (*merge, merge[0] + merge[1]):
            if part not in vocab:
                raise UserError(
                    f"{where(i)}: the merge of {merge[0]!r} and {merge[1]!r} uses {part!r}, which is not in {name}"
                )
        if merge in seen:
            raise UserError(f"{where(i)}: the merge of {merge[0]!r} and {merge[1]!r} appears twice; remove one")
        seen[merge] = i
