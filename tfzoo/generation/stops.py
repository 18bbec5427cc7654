"""Where a text ends: at a token, or as soon as it contains a string."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfzoo.generation.written import HALF

_HALF = HALF.encode()


class Stops:
    """Tokens and strings that end a text; both remain in the text.

    A string is found however it is split into tokens: `tables` contains an automaton for each (Knuth, Morris and Pratt
    1977), whose state is the length of the string's prefix with which the text ends.
    """

    def __init__(self, eos_token_id: Sequence[int] = (), tables: Sequence[np.ndarray] = ()):
        """Prepares the automata.

        Args:
          eos_token_id: ids of tokens that end a text.
          tables: int [S, V] each, the state that follows a state and a token; S - 1 is the final state.
        """
        self.eos_token_id, self.tables = tuple(eos_token_id), [tf.constant(table, tf.int32) for table in tables]

    def start(self, batch):
        """Returns the initial states of `batch` rows, int32 [B, strings]."""
        return tf.zeros([batch, len(self.tables)], tf.int32)

    def feed(self, found, token):
        """Advances the states by one token.

        Args:
          found: int32 [B, strings], the states.
          token: int32 [B].

        Returns:
          (the states after the token, bool [B], whether the text ends with it).
        """
        stopped = tf.zeros_like(token, tf.bool)
        for end in self.eos_token_id:
            stopped |= token == end
        if self.tables:
            states = []
            for i, table in enumerate(self.tables):
                size = table.shape[1]
                states.append(tf.gather(tf.reshape(table, [-1]), found[:, i] * size + token))
                stopped |= states[-1] == table.shape[0] - 1
            found = tf.stack(states, 1)
        return found, stopped


def string_table(string: bytes, pieces: Sequence[bytes]) -> np.ndarray:
    """Returns the automaton of a string over a vocabulary, for `Stops`.

    Args:
      string: the string.
      pieces: [V], the text of each token.

    Returns:
      int32 [len(string) + 1, V]. The final state, in which the string has been found, is never left.
    """
    size = len(string)
    # follow[state, byte]: the state after one more byte.
    follow = np.zeros((size + 1, 256), np.int32)
    border = 0  # The state after the string without its first byte, to which a mismatch falls back.
    for state, byte in enumerate(string):
        follow[state] = follow[border] if state else 0
        follow[state, byte] = state + 1
        border = follow[border, byte] if state else 0
    follow[size] = size
    longest = max(map(len, pieces), default=0)
    letters = np.zeros((longest, len(pieces)), np.int32)
    for token, piece in enumerate(pieces):
        letters[: len(piece), token] = np.frombuffer(piece, np.uint8)
    lengths = np.array([len(piece) for piece in pieces])
    table = np.repeat(np.arange(size + 1, dtype=np.int32)[:, None], len(pieces), axis=1)
    for i in range(longest):
        table = np.where(i < lengths, follow[table, letters[i]], table)
    return table


def token_texts(tokenizer) -> list[bytes]:
    """Returns the text of each token when it follows another one, for `string_table`; b"" for special tokens."""
    ids = np.arange(tokenizer.vocab_size, dtype=np.int32)
    special = set(tokenizer.special_ids)
    # Each token is decoded after a visible token of whole characters; what it adds is its text.
    shown = ((int(i), tokenizer.detokenize([[int(i)]]).numpy()[0]) for i in ids if int(i) not in special)
    before, start = next((i, text) for i, text in shown if text.strip() and _HALF not in text)
    texts = tokenizer.detokenize(np.stack([np.full_like(ids, before), ids], 1)).numpy()
    # If a token contains part of a character, only the tokenizer's vocabulary has its bytes.
    if any(_HALF in text for text in texts):
        texts = [piece if _HALF in text else text for piece, text in zip(tokenizer._pieces.numpy(), texts, strict=True)]
    return [b"" if i in special else text.removeprefix(start) for i, text in enumerate(texts)]
