"""Where a text ends: at a token, or as soon as it holds a string."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

_HALF = "\ufffd".encode()  # What half a character is shown as.


class Stops:
    """Tokens that end a text, and strings; both remain in it.

    A string is found however tokens cut it: `tables` has for each an automaton (Knuth, Morris and Pratt 1977), whose
    state is how much of the string the text ends with.
    """

    def __init__(self, eos_token_id: Sequence[int] = (), tables: Sequence[np.ndarray] = ()):
        """tables: int [S, V] each, the state that follows a state and a token; S - 1 is the end."""
        self.eos_token_id, self.tables = tuple(eos_token_id), [tf.constant(table, tf.int32) for table in tables]

    def start(self, batch):
        """The states of `batch` rows, int32 [B, strings]."""
        return tf.zeros([batch, len(self.tables)], tf.int32)

    def feed(self, found, token):
        """found [B, strings], token [B] -> (found after it, bool [B]: whether the text ends with it)."""
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
    """The automaton of one string over a vocabulary: pieces [V], each token's text -> int32 [len(string) + 1, V].

    From its last state, where the string was found, it does not move.
    """
    size = len(string)
    # follow[state, byte]: how much of the string the text ends with, one byte on.
    follow = np.zeros((size + 1, 256), np.int32)
    border = 0  # The state of the string without its first byte: where a mismatch falls back to.
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
    """The text of each token where it follows another, for `string_table`; of special tokens none."""
    ids = np.arange(tokenizer.vocab_size, dtype=np.int32)
    special = set(tokenizer.special_ids)
    # Behind a token that begins a text and shows, whole: what it adds is the token's own text.
    shown = ((int(i), tokenizer.detokenize([[int(i)]]).numpy()[0]) for i in ids if int(i) not in special)
    before, start = next((i, text) for i, text in shown if text.strip() and _HALF not in text)
    texts = tokenizer.detokenize(np.stack([np.full_like(ids, before), ids], 1)).numpy()
    # Where a token holds half a character its bytes are known to the tokenizer alone.
    if any(_HALF in text for text in texts):
        texts = [own if _HALF in text else text for own, text in zip(tokenizer._pieces.numpy(), texts, strict=True)]
    return [b"" if i in special else text.removeprefix(start) for i, text in enumerate(texts)]
