"""Finds out which tokens of one tokenizer represent the text of another tokenizer's tokens.

A model that is trained further with another vocabulary starts from its old embeddings: a token that both vocabularies
have keeps its own, and a new token begins with the mean of those of its old pieces (Gee et al. 2022, Fast Vocabulary
Transfer, arXiv:2402.09977).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfzoo.text.settings import ROLES
from tfzoo.text.tokenizer import Tokenizer

# A text is tokenized after one of these, because it may become other tokens at the beginning of a text: there,
# SentencePiece adds a space, and WordPiece has no piece that continues a word. "" is for tokenizers without the others.
_BEFORE = ("1", "a", "")
_DAMAGED = "\ufffd"  # What detokenization writes for a part of a character.


@dataclasses.dataclass(frozen=True)
class Origin:
    """The old tokens that represent the text of one new token.

    Attributes:
      ids: ids of the old tokens; empty if the old tokenizer cannot represent the text.
      same: whether the only old token is the same token.
    """

    ids: tuple[int, ...] = ()
    same: bool = False


def origins(tokenizer: Tokenizer, old: Tokenizer) -> list[Origin]:
    """Returns the origin of each token of `tokenizer` in the vocabulary of another tokenizer, `old`.

    Two tokens are the same if they represent the same text after another token: WordPiece's `##ing` and GPT-2's `ing`,
    WordPiece's `the`, GPT-2's `Ġthe` and SentencePiece's `▁the`. Special tokens are the same if their names or, if the
    name is missing, one of their roles are the same. The text of all others is tokenized by `old`; unknown pieces are
    left out.
    """
    if tokenizer.vocab == old.vocab[: tokenizer.vocab_size]:
        return [Origin((i,), same=True) for i in range(tokenizer.vocab_size)]
    found: list[Origin | None] = [None] * tokenizer.vocab_size
    texts, by_text, by_name = _texts(tokenizer), *_index(old)
    special, old_special = set(tokenizer.special_ids), set(old.special_ids)
    old_names = {name: i for i, name in enumerate(old.vocab)}
    for i, name in enumerate(tokenizer.vocab):
        if i in special:
            alike = old_names[name] if old_names.get(name) in old_special else _with_role_of(i, tokenizer, old)
            found[i] = Origin() if alike is None else Origin((alike,), same=True)
        else:
            alike = by_name.get((name, texts[i]), by_text.get(texts[i]))
            if alike is not None:
                found[i] = Origin((alike,), same=True)
    rest = [i for i, origin in enumerate(found) if origin is None]
    for i, ids in zip(rest, _pieces([texts[i] for i in rest], old), strict=True):
        found[i] = Origin(ids)
    return [origin or Origin() for origin in found]


def _index(tokenizer: Tokenizer) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """Returns the ids of the tokens that represent text: by text, and by name and text."""
    special, by_text, by_name = set(tokenizer.special_ids), dict[str, int](), dict[tuple[str, str], int]()
    for i, (name, text) in enumerate(zip(tokenizer.vocab, _texts(tokenizer), strict=True)):
        if i not in special:
            by_name[name, text] = i
            if text and _DAMAGED not in text:
                by_text.setdefault(text, i)
    return by_text, by_name


def _texts(tokenizer: Tokenizer) -> list[str]:
    """Returns what each token adds to a text in which it follows another token, such as " the" or "ing"."""
    count, special = tokenizer.vocab_size, set(tokenizer.special_ids)
    alone = [text.decode(errors="replace") for text in tokenizer.detokenize(np.arange(count)[:, None]).numpy()]
    words = [i for i in range(count) if i not in special and alone[i].isascii() and alone[i].isalnum()]
    if not words:
        return alone
    pairs = np.stack([np.full(count, words[0]), np.arange(count)], 1)
    return [text.decode(errors="replace").removeprefix(alone[words[0]]) for text in tokenizer.detokenize(pairs).numpy()]


def _with_role_of(i: int, tokenizer: Tokenizer, old: Tokenizer) -> int | None:
    """Returns the old token that has a role of token i, or None."""
    ids = (getattr(old, f"{role}_id") for role in ROLES if getattr(tokenizer, f"{role}_id") == i)
    return next((each for each in ids if each is not None), None)


def _pieces(texts: Sequence[str], tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """Returns the known tokens of each text where it follows another token."""
    known: dict[int, tuple[int, ...]] = {i: () for i, text in enumerate(texts) if not text or _DAMAGED in text}
    for before in _BEFORE:
        (start,) = _tokenized([before], tokenizer)
        if before and (not start or tokenizer.unknown_id in start):
            continue
        waiting = [i for i in range(len(texts)) if i not in known]
        for i, ids in zip(waiting, _tokenized([before + texts[i] for i in waiting], tokenizer), strict=True):
            if ids[: len(start)] == start:  # Otherwise, the text merges with what precedes it.
                known[i] = tuple(piece for piece in ids[len(start) :] if piece != tokenizer.unknown_id)
    return [known.get(i, ()) for i in range(len(texts))]


def _tokenized(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Returns the ids of each text; none for a text with a character that a tokenizer without <unk> does not have."""
    if not texts:
        return []
    try:
        return tokenizer.tokenize(tf.constant(list(texts))).to_list()
    except tf.errors.InvalidArgumentError:
        half = len(texts) // 2
        return [*_tokenized(texts[:half], tokenizer), *_tokenized(texts[half:], tokenizer)] if half else [[]]
