"""What labels and the tokens of a vocabulary mean for answers: types of entities, words, and their boundaries.

The text signatures of SavedModels (answers/) and the programs that read ONNX graphs share these tables. Importing this
module does not import TensorFlow.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np

TOP = 5  # Number of words per mask.
_SPACED = ("Ġ", "▁")  # How the pieces of byte-level and SentencePiece vocabularies write a space.
_UNUSED = re.compile(r"\[unused\d+\]")


class Tags:
    """The meaning of labels: `kinds[i]` is the index in `names` of the type of label i, or -1 for no entity; `opens[i]`
    is whether label i begins an entity."""

    def __init__(self, labels: Sequence[str]):
        parts = [(label[0], label[2:]) if re.match("[BI]-.", label) else ("I", label) for label in labels]
        self.names = sorted({name for _, name in parts} - {"O"})
        self.kinds = [self.names.index(name) if name in self.names else -1 for _, name in parts]
        self.opens = [letter == "B" for letter, _ in parts]


def boundaries(pieces: Sequence[str], texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns which tokens form words together in a vocabulary that does not mark the pieces that continue a word.

    A piece that does not begin with a space continues a word if there is a letter, digit or mark on both sides of the
    boundary.

    Args:
      pieces: the tokens as they are in the vocabulary.
      texts: the text of each token; "" for special tokens.

    Returns:
      bool [V]: whether a token can continue the word of the token before it; bool [V]: whether the token after it can
      continue the word.
    """
    continues, inside = np.zeros(len(pieces), bool), np.zeros(len(pieces), bool)
    for i, (piece, text) in enumerate(zip(pieces, texts)):
        spaced = piece.startswith(_SPACED) or text[:1].isspace()
        continues[i] = not spaced and _in_word(text[:1])
        inside[i] = _in_word(text[-1:])
    return continues, inside


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "�"  # Part of a character counts too.


def readable(
    pieces: Sequence[str], texts: Sequence[str], continues: Sequence[bool] | None, special_ids: Iterable[int]
) -> tuple[list[str], np.ndarray]:
    """Returns the text of each token, and bool [V]: whether it is a readable word. Special tokens, pieces that continue
    a word, and placeholders such as [unused1] are not.

    Args:
      pieces, texts: see `boundaries`.
      continues: whether each token continues a word, for a vocabulary that marks such pieces; otherwise None.
      special_ids: the ids of the special tokens.
    """
    if continues is not None:
        shown = list(pieces)
        words = np.array([not (c or _UNUSED.fullmatch(t)) for t, c in zip(pieces, continues)], bool)
    else:
        shown = [text.strip() for text in texts]
        marked = any(piece.startswith(_SPACED) for piece in pieces)
        words = np.array(
            [
                bool(text) and "�" not in text and (not marked or piece.startswith(_SPACED))
                for piece, text in zip(pieces, shown)
            ],
            bool,
        )
    words[list(special_ids)] = False
    return shown, words
