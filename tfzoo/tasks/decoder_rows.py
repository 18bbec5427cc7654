"""Rows in which a decoder predicts each next token, and the probabilities of the texts in them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tfzoo import lazy
from tfzoo.objectives import shared

tf = lazy.module("tensorflow")


def write(
    row: Mapping[str, np.ndarray], tokens: np.ndarray, targets: Iterable[Sequence[int] | np.ndarray], begin: int = 0
) -> int:
    """Writes a text into a row, and returns the position after it.

    Args:
      row: "token_ids", "targets", "padding_mask" and "target_weights", [L] each; what is not written is unchanged.
      tokens: the N tokens of the text, of which the last is only a target.
      targets: (first, end) of the tokens that count as targets.
      begin: the position of the first token.
    """
    end = begin + len(tokens) - 1
    row["token_ids"][begin:end], row["targets"][begin:end] = tokens[:-1], tokens[1:]
    row["padding_mask"][begin:end] = True
    for first, last in targets:  # The target of a position is the next token.
        row["target_weights"][begin + max(first - 1, 0) : begin + last - 1] = 1
    return end


def log_probabilities(model, batch: Mapping[str, Any], training: bool):
    """Returns the sum of the log-probabilities of the targets that count, float32 [B, C].

    Args:
      model: a decoder with the head lm.
      batch: "token_ids", "targets" and "target_weights", [B, C, L].
      training: whether the model drops out.
    """
    shape = tf.shape(batch["token_ids"])
    token_ids, targets = (tf.reshape(batch[name], [-1, shape[2]]) for name in ("token_ids", "targets"))
    logits = tf.cast(model({"token_ids": token_ids}, training=training)["logits"], tf.float32)
    losses, _ = shared.cross_entropy(logits, targets)
    return -tf.reduce_sum(tf.reshape(losses, shape) * batch["target_weights"], -1)
