"""Functions shared by objectives: documents in a row, random selection, cross-entropy and the frequency baseline.

The documents of a row are numbered: document_ids, int32 [N], contain 1, 2, ... in ascending order, one id per token.
"""

from typing import ClassVar

import numpy as np

from tfzoo import lazy
from tfzoo.objectives.objective import MAIN, Objective

tf = lazy.module("tensorflow")


def fold(seed, number: int):
    """Returns a different seed [2] for each number."""
    return tf.random.experimental.stateless_fold_in(seed, number)


def pad(x, length: int, value):
    """Pads x [N] to the static shape [length]."""
    padded = tf.pad(x, [[0, length - tf.size(x)]], constant_values=value)
    return tf.ensure_shape(padded, [length])


def document_sizes(document_ids):
    """Returns the number of tokens of each document: int32 [D], where D is the number of the last document."""
    return tf.math.bincount(document_ids - 1)


def positions_in(document_ids):
    """Returns the position of each token in its document, from 0: int32 [N]."""
    sizes = document_sizes(document_ids)
    return tf.range(tf.size(document_ids)) - tf.gather(tf.cumsum(sizes, exclusive=True), document_ids - 1)


def frame(token_ids, document_ids, first_id: int | None = None, last_id: int | None = None):
    """Adds a token before and after each document of token_ids, document_ids [N]; None adds no token."""
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
    """Returns indices [N] sorted by document, then by score. scores: float [N], at least -0.5 and below 1."""
    # A single sort by both keys; float64 represents both exactly.
    return tf.argsort(2 * tf.cast(document_ids, tf.float64) + tf.cast(scores, tf.float64), stable=True)


def draw(scores, document_ids, counts):
    """Selects in each document the counts[document - 1] items with the lowest scores: bool [N].

    scores: as in order_by_score. counts: int32 [D].
    """
    order = order_by_score(scores, document_ids)
    # Sorting does not change which document is at which position.
    taken = positions_in(document_ids) < tf.gather(counts, document_ids - 1)
    return tf.scatter_nd(order[:, None], tf.cast(taken, tf.int32), [tf.size(scores)]) > 0


def cross_entropy(logits, labels):
    """Returns the loss in nats and the hits (0 or 1), float32 [...], of logits float32 [..., V], labels int [...]."""
    from tfzoo.nn.losses import log_loss

    loss = tf.reshape(log_loss(tf.reshape(logits, [-1, logits.shape[-1]]), tf.reshape(labels, [-1])), tf.shape(labels))
    return loss, tf.cast(tf.argmax(logits, -1, labels.dtype) == labels, tf.float32)


def forward(model, batch, training):
    """Returns the outputs of a model for those of its inputs that are in the batch."""
    return model({name: batch[name] for name in model.INPUTS if name in batch}, training=training)


class TokenTargets(Objective):
    """An objective with a target for each token: its batches contain `targets` and `target_weights`.

    A subclass sets `PREFIX`, with which the names of its figures start.
    """

    PREFIX: ClassVar[str]

    def outputs(self, model, batch, training):
        """Returns the outputs of the model for a batch."""
        return forward(model, batch, training)

    def loss(self, models, batch, training=True):
        """Returns (sum, weight): the cross-entropy in nats over all targets, and their number."""
        weights = batch["target_weights"]
        words, _ = cross_entropy(self.outputs(models[MAIN], batch, training)["logits"], batch["targets"])
        return tf.reduce_sum(words * weights), tf.reduce_sum(weights)

    def measured(self, batch):
        """Returns the weights [...] of the targets in metrics and baselines; by default, all targets count."""
        return batch["target_weights"]

    def metrics(self, models, batch):
        """Returns PREFIX_loss and PREFIX_accuracy, each as (sum, weight)."""
        weights = self.measured(batch)
        words, hits = cross_entropy(self.outputs(models[MAIN], batch, False)["logits"], batch["targets"])
        return {
            f"{self.PREFIX}_loss": (tf.reduce_sum(words * weights), tf.reduce_sum(weights)),
            f"{self.PREFIX}_accuracy": (tf.reduce_sum(hits * weights), tf.reduce_sum(weights)),
        }

    def baselines(self, train_ids, batches):
        """Returns the figures of the frequency baseline: `frequency_baseline`."""
        batches = [batch | {"target_weights": np.asarray(self.measured(batch))} for batch in batches]
        return frequency_baseline(train_ids, batches, self._tokenizer, self.PREFIX)


def frequency_baseline(train_ids: np.ndarray, batches, tokenizer, name: str) -> dict[str, dict[str, float]]:
    """Returns accuracy and loss (nats), over the batches' targets, of predicting each token with its frequency.

    Ordinary tokens have their frequency (add-one smoothed) in the training text. Special tokens do not occur there and
    have their frequency among the targets, which is at least as good as any estimate.

    Args:
      train_ids: int32 [N], the token ids of the training text.
      batches: the evaluation batches, as dicts of numpy arrays with targets and target_weights.
      tokenizer: of the run.
      name: the prefix of the figures.

    Returns:
      {"frequency": {NAME_loss, NAME_accuracy}}
    """
    size, special = tokenizer.vocab_size, tokenizer.special_ids
    targets = np.concatenate([batch["targets"][batch["target_weights"] > 0] for batch in batches])
    target_frequency = np.bincount(targets, minlength=size) / max(len(targets), 1)
    frequency = np.bincount(train_ids, minlength=size) + 1.0
    frequency[special] = 0
    frequency *= (1 - target_frequency[special].sum()) / max(frequency.sum(), 1)
    frequency[special] = target_frequency[special]
    # target_frequency is 0 wherever frequency is 0.
    loss = -np.sum(target_frequency * np.log(np.maximum(frequency, 1e-300)))
    accuracy = target_frequency[np.argmax(frequency)]
    return {"frequency": {f"{name}_loss": float(loss), f"{name}_accuracy": float(accuracy)}}
