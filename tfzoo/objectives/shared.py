"""What objectives have in common: documents in a row, draws, cross-entropy, and guessing by frequency.

A row's documents are numbered: document_ids int32 [N] are 1, 2, ... in rising order, one for each token.
"""

from typing import ClassVar

import numpy as np

from tfzoo import lazy
from tfzoo.objectives.objective import MAIN, Objective

tf = lazy.module("tensorflow")


def fold(seed, number: int):
    """A seed [2] of its own for each number."""
    return tf.random.experimental.stateless_fold_in(seed, number)


def pad(x, length: int, value):
    """x [N] -> [length], a static shape."""
    padded = tf.pad(x, [[0, length - tf.size(x)]], constant_values=value)
    return tf.ensure_shape(padded, [length])


def document_sizes(document_ids):
    """How many tokens each document has: int32 [D], D the last document's number."""
    return tf.math.bincount(document_ids - 1)


def positions_in(document_ids):
    """Each token's place in its document, from 0: int32 [N]."""
    sizes = document_sizes(document_ids)
    return tf.range(tf.size(document_ids)) - tf.gather(tf.cumsum(sizes, exclusive=True), document_ids - 1)


def frame(token_ids, document_ids, first_id: int | None = None, last_id: int | None = None):
    """token_ids, document_ids [N] with a token put before and after each document (None: none)."""
    before, after = int(first_id is not None), int(last_id is not None)
    sizes = document_sizes(document_ids) + before + after
    framed_documents = tf.repeat(tf.range(1, tf.size(sizes) + 1), sizes)
    places = tf.range(tf.size(token_ids)) + before * document_ids + after * (document_ids - 1)
    framed = tf.scatter_nd(places[:, None], token_ids, [tf.size(framed_documents)])
    position = positions_in(framed_documents)
    if first_id is not None:
        framed = tf.where(position == 0, first_id, framed)
    if last_id is not None:
        framed = tf.where(position == tf.gather(sizes, framed_documents - 1) - 1, last_id, framed)
    return framed, framed_documents


def order_by_score(scores, document_ids):
    """Indices [N] by document, and in each document by score. scores: float [N], from -0.5 on and below 1."""
    # One sort does both; float64 holds both exactly.
    return tf.argsort(2 * tf.cast(document_ids, tf.float64) + tf.cast(scores, tf.float64), stable=True)


def draw(scores, document_ids, counts):
    """Of each document the counts[document - 1] items with the least scores: bool [N].

    scores: as of order_by_score. counts: int32 [D].
    """
    order = order_by_score(scores, document_ids)
    # In that order each place has the document that it has in the row.
    taken = positions_in(document_ids) < tf.gather(counts, document_ids - 1)
    return tf.scatter_nd(order[:, None], tf.cast(taken, tf.int32), [tf.size(scores)]) > 0


def cross_entropy(logits, labels):
    """logits float32 [..., V], labels int [...] -> loss in nats and hits (0 or 1), float32 [...]."""
    from tfzoo.nn.losses import log_loss

    loss = tf.reshape(log_loss(tf.reshape(logits, [-1, logits.shape[-1]]), tf.reshape(labels, [-1])), tf.shape(labels))
    return loss, tf.cast(tf.argmax(logits, -1, labels.dtype) == labels, tf.float32)


def forward(model, batch, training):
    """The outputs of one model for those of its inputs that a batch has."""
    return model({name: batch[name] for name in model.INPUTS if name in batch}, training=training)


class TokenTargets(Objective):
    """An objective with a target for each token: its batches hold `targets` and `target_weights`.

    A subclass sets `PREFIX`, which its figures begin with.
    """

    PREFIX: ClassVar[str]

    def loss(self, models, batch, training=True):
        """(sum, weight): cross-entropy in nats over all targets, and their number."""
        weights = batch["target_weights"]
        words, _ = cross_entropy(forward(models[MAIN], batch, training)["logits"], batch["targets"])
        return tf.reduce_sum(words * weights), tf.reduce_sum(weights)

    def measured(self, batch):
        """Weights [...] of the targets that metrics and baselines are about: here all."""
        return batch["target_weights"]

    def metrics(self, models, batch):
        """PREFIX_loss, PREFIX_accuracy, each (sum, weight)."""
        weights = self.measured(batch)
        words, hits = cross_entropy(forward(models[MAIN], batch, training=False)["logits"], batch["targets"])
        return {
            f"{self.PREFIX}_loss": (tf.reduce_sum(words * weights), tf.reduce_sum(weights)),
            f"{self.PREFIX}_accuracy": (tf.reduce_sum(hits * weights), tf.reduce_sum(weights)),
        }

    def baselines(self, train_ids, batches):
        """What guessing by frequency scores: `frequency_baseline`."""
        batches = [batch | {"target_weights": np.asarray(self.measured(batch))} for batch in batches]
        return frequency_baseline(train_ids, batches, self._tokenizer, self.PREFIX)


def frequency_baseline(train_ids: np.ndarray, batches, tokenizer, name: str) -> dict[str, dict[str, float]]:
    """Accuracy and loss (nats) of always giving each token its frequency, over the batches' targets.

    Words have their frequency (add-one smoothed) in the training text. Of special tokens that has none, and they get
    their share of the targets themselves: no less than could be known.

    Args:
      train_ids: int32 [N], the training text.
      batches: the evaluation's, as dicts of numpy arrays with targets and target_weights.

    Returns:
      {"frequency": {NAME_loss, NAME_accuracy}}
    """
    size, special = tokenizer.vocab_size, tokenizer.special_ids
    targets = np.concatenate([batch["targets"][batch["target_weights"] > 0] for batch in batches])
    asked = np.bincount(targets, minlength=size) / max(len(targets), 1)
    frequency = np.bincount(train_ids, minlength=size) + 1.0
    frequency[special] = 0
    frequency *= (1 - asked[special].sum()) / max(frequency.sum(), 1)
    frequency[special] = asked[special]
    # asked is 0 wherever frequency is.
    loss = -np.sum(asked * np.log(np.maximum(frequency, 1e-300)))
    return {"frequency": {f"{name}_loss": float(loss), f"{name}_accuracy": float(asked[np.argmax(frequency)])}}
