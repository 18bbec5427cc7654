"""Functions shared by objectives: documents in a row, random selection, cross-entropy and baselines.

The documents of a row are numbered: document_ids, int32 [N], contain 1, 2, ... in ascending order, one id per token.
"""

from typing import ClassVar

import numpy as np

from tfzoo import lazy
from tfzoo.objectives.baselines import frequencies, neighbour_baseline
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


def encoder_decoder_features(
    inputs, input_documents, targets, target_documents, lengths, pad_id: int, pack: bool, start_id: int | None = None
):
    """Returns the features of a row of an encoder-decoder; the decoder inputs are the targets of each document shifted
    by one position.

    Args:
      inputs, input_documents: int32 [N], the encoder's tokens.
      targets, target_documents: int32 [M].
      lengths: (L, T), the static lengths of the encoder's and the decoder's rows.
      pad_id: the padding id.
      pack: whether a row can contain several documents.
      start_id: the first decoder input of each document; None means the padding id.

    Returns:
      token_ids int32 [L], padding_mask bool [L], decoder_token_ids, targets int32 [T], target_weights float32 [T];
      with `pack` also document_ids, position_ids int32 [L], decoder_document_ids, decoder_position_ids int32 [T].
    """
    length, target_length = lengths
    start_id = pad_id if start_id is None else start_id
    target_positions = positions_in(target_documents)
    shifted = tf.where(target_positions == 0, start_id, tf.concat([[start_id], targets], 0)[:-1])
    features = {
        "token_ids": pad(inputs, length, pad_id),
        "padding_mask": tf.range(length) < tf.size(inputs),
        "decoder_token_ids": pad(shifted, target_length, pad_id),
        "targets": pad(targets, target_length, pad_id),
        "target_weights": pad(tf.ones_like(targets, tf.float32), target_length, 0.0),
    }
    if pack:
        features |= {
            "document_ids": pad(input_documents, length, 0),
            "position_ids": pad(positions_in(input_documents), length, 0),
            "decoder_document_ids": pad(target_documents, target_length, 0),
            "decoder_position_ids": pad(target_positions, target_length, 0),
        }
    return features


def cross_entropy(logits, labels, smoothing: float = 0.0):
    """Returns the loss in nats and the hits (0 or 1), float32 [...], of logits float32 [..., V], labels int [...].

    smoothing: see nn.losses.log_loss.
    """
    from tfzoo.nn.losses import log_loss

    loss = log_loss(tf.reshape(logits, [-1, logits.shape[-1]]), tf.reshape(labels, [-1]), smoothing)
    return tf.reshape(loss, tf.shape(labels)), tf.cast(tf.argmax(logits, -1, labels.dtype) == labels, tf.float32)


def forward(model, batch, training):
    """Returns the outputs of a model for those of its inputs that are in the batch."""
    return model({name: batch[name] for name in model.INPUTS if name in batch}, training=training)


class TokenTargets(Objective):
    """An objective with a target for each token: its batches contain `targets` and `target_weights`.

    A subclass sets `PREFIX`, with which the names of its figures start.
    """

    PREFIX: ClassVar[str]
    smoothing = 0.0  # Label smoothing of the loss, not of the metrics.

    def outputs(self, model, batch, training):
        """Returns the outputs of the model for a batch."""
        return forward(model, batch, training)

    def loss(self, models, batch, training=True):
        """Returns (sum, weight): the cross-entropy in nats over all targets, and their number."""
        weights = batch["target_weights"]
        logits = self.outputs(models[MAIN], batch, training)["logits"]
        words, _ = cross_entropy(logits, batch["targets"], self.smoothing)
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

    def before_targets(self, batch):
        """Returns the token before each target [...], from which the neighbor baseline predicts it: the input of the
        decoder at its position."""
        return batch["decoder_token_ids" if "decoder_token_ids" in batch else "token_ids"]

    def baselines(self, train_ids, batches):
        """Returns the figures of the frequency and bigram baselines: `frequency_baseline`, `neighbour_baseline`."""
        batches = [
            batch | {"target_weights": np.asarray(self.measured(batch)), "before_targets": self.before_targets(batch)}
            for batch in batches
        ]
        given = train_ids, batches, self._tokenizer, self.PREFIX
        return frequency_baseline(*given) | neighbour_baseline(*given)


def frequency_baseline(train_ids: np.ndarray, batches, tokenizer, name: str) -> dict[str, dict[str, float]]:
    """Returns accuracy and loss (nats), over the batches' targets, of predicting each token with its frequency
    (`frequencies`).

    Args:
      train_ids: int32 [N], the token ids of the training text.
      batches: the evaluation batches, as dicts of numpy arrays with targets and target_weights.
      tokenizer: of the run.
      name: the prefix of the figures.

    Returns:
      {"frequency": {NAME_loss, NAME_accuracy}}
    """
    targets = np.concatenate([batch["targets"][batch["target_weights"] > 0] for batch in batches])
    target_frequency = np.bincount(targets, minlength=tokenizer.vocab_size) / max(len(targets), 1)
    frequency = frequencies(train_ids, targets, tokenizer)
    # target_frequency is 0 wherever frequency is 0.
    loss = -np.sum(target_frequency * np.log(np.maximum(frequency, 1e-300)))
    accuracy = target_frequency[np.argmax(frequency)]
    return {"frequency": {f"{name}_loss": float(loss), f"{name}_accuracy": float(accuracy)}}
