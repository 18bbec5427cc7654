"""BERT's objective: masked language modelling and next-sentence prediction (Devlin et al. 2019, section 3.1)."""

import math

import numpy as np
import tensorflow as tf


class MaskedLM:
    """Draws 15% of the tokens to be predicted; of these 80% become [MASK], 10% a random word, 10% stay.

    The number drawn in a row of n tokens is round(0.15 n), at least 1; special tokens are never drawn, and never
    put in. With whole_words all pieces of a word are drawn together (the "whole word masking" of the released
    models of 2019): words in random order, each taken if it still fits, which may leave a short row without any.

    Worked example, with [CLS] 2, [SEP] 3, [MASK] 4, a rate of 0.5 and a seed that happens to draw the first and
    the third token: first [10, 11], second [12, 13] become

        token_ids         [2, 4, 11, 3, 4, 13, 3]
        segment_ids       [0, 0, 0, 0, 1, 1, 1]
        masked_positions  [1, 4]
        masked_ids        [10, 12]

    padded to sequence_length and to the most that can be drawn.
    """

    def __init__(
        self,
        tokenizer,
        sequence_length: int,
        *,
        mask_rate: float = 0.15,
        whole_words: bool = False,
        next_sentence: bool = True,
    ):
        self._tokenizer, self._length = tokenizer, sequence_length
        self._rate, self._whole_words, self._next_sentence = mask_rate, whole_words, next_sentence
        self._predictions = max(1, math.ceil(mask_rate * self.row_tokens))
        words = np.setdiff1d(np.arange(tokenizer.vocab_size), tokenizer.special_ids)
        self._ordinary_ids = tf.constant(words, tf.int32)
        self._continues = tf.constant(tokenizer.continues)

    @property
    def heads(self) -> tuple[str, ...]:
        """What a model must have to be trained by this."""
        return ("lm", "next_sentence") if self._next_sentence else ("lm",)

    @property
    def row_tokens(self) -> int:
        """How many tokens of text fit in a row: [CLS] and two [SEP] take the rest."""
        return self._length - 3

    def prepare(self, example):
        """One example of `data.pipeline.examples` -> features with static shapes (L sequence_length, P predictions).

        token_ids, segment_ids int32 [L], padding_mask bool [L], masked_positions, masked_ids int32 [P],
        masked_weights float32 [P], next_sentence int32 [], next_sentence_weight float32 [].
        """
        tokenizer = self._tokenizer
        first, second = example["first"], example["second"]
        cls, sep = [tokenizer.cls_id], [tokenizer.sep_id]
        # A row that was not cut has one segment and one [SEP].
        ending = tf.concat([second, sep], 0) if self._next_sentence else second[:0]
        ending = ending[: tf.where(tf.size(second) > 0, tf.size(ending), 0)]
        token_ids = tf.concat([cls, first, sep, ending], 0)
        segment_ids = tf.concat([tf.zeros_like(token_ids[: tf.size(first) + 2]), tf.ones_like(ending)], 0)
        positions = self._draw(token_ids, example["seed"])
        drawn_ids = tf.gather(token_ids, positions)

        kind, word = tf.unstack(
            tf.random.stateless_uniform([2, self._predictions], _fold(example["seed"], 1))[:, : tf.size(positions)]
        )
        random_ids = tf.gather(
            self._ordinary_ids, tf.cast(word * tf.cast(tf.size(self._ordinary_ids), tf.float32), tf.int32)
        )
        shown_ids = tf.where(kind < 0.8, tokenizer.mask_id, tf.where(kind < 0.9, random_ids, drawn_ids))
        token_ids = tf.tensor_scatter_nd_update(token_ids, positions[:, None], shown_ids)

        has_pair = tf.logical_and(example["next_sentence"] >= 0, self._next_sentence)
        return {
            "token_ids": _pad(token_ids, self._length, tokenizer.pad_id),
            "segment_ids": _pad(segment_ids, self._length, 0),
            "padding_mask": tf.range(self._length) < tf.size(token_ids),
            "masked_positions": _pad(positions, self._predictions, 0),
            "masked_ids": _pad(drawn_ids, self._predictions, 0),
            "masked_weights": _pad(tf.ones_like(positions, tf.float32), self._predictions, 0.0),
            "next_sentence": tf.maximum(example["next_sentence"], 0),
            "next_sentence_weight": tf.cast(has_pair, tf.float32),
        }

    def _draw(self, token_ids, seed):
        """Positions to be predicted, in rising order: int32 [n], n at most self._predictions."""
        special = tf.reduce_any(token_ids[:, None] == self._tokenizer.special_ids, 1)
        candidates = tf.cast(tf.where(~special)[:, 0], tf.int32)
        count = tf.size(candidates)
        wanted = tf.cast(tf.round(self._rate * tf.cast(count, tf.float32)), tf.int32)
        wanted = tf.minimum(tf.clip_by_value(wanted, 1, self._predictions), count)
        scores = tf.random.stateless_uniform([count], _fold(seed, 0))
        if not self._whole_words:
            return tf.sort(tf.gather(candidates, tf.argsort(scores, stable=True)[:wanted]))
        # A piece that continues shares the score of the piece before it; a special token ends a word.
        begins = ~tf.gather(self._continues, tf.gather(token_ids, candidates))
        begins |= tf.concat([[True], candidates[1:] != candidates[:-1] + 1], 0)[:count]
        word = tf.cumsum(tf.cast(begins, tf.int32)) - 1
        pieces = tf.math.bincount(word, minlength=0)
        by_score = tf.argsort(tf.boolean_mask(scores, begins), stable=True)

        def take(state, index):
            taken, _ = state
            fits = taken + pieces[index] <= wanted
            return tf.where(fits, taken + pieces[index], taken), fits

        _, chosen = tf.scan(take, by_score, (tf.constant(0), tf.constant(False)))
        chosen = tf.scatter_nd(by_score[:, None], tf.cast(chosen, tf.int32), [tf.size(pieces)]) > 0
        return tf.boolean_mask(candidates, tf.gather(chosen, word))

    def loss(self, model, batch, training=True):
        """(sum, weight): cross-entropy in nats over the predicted words, plus that of the pair for each of them.

        With n predicted words in every row the quotient is Devlin et al.'s mean masked-LM loss plus mean
        next-sentence loss. Weighting a row's pair by its words keeps one weight for both, which is what makes sums
        over replicas and microbatches exact.
        """
        outputs = self._forward(model, batch, training)
        weights = batch["masked_weights"]
        words, _ = _cross_entropy(outputs["logits"], batch["masked_ids"])
        loss = tf.reduce_sum(words * weights)
        if self._next_sentence:
            pair, _ = _cross_entropy(outputs["next_sentence_logits"], batch["next_sentence"])
            loss += tf.reduce_sum(pair * batch["next_sentence_weight"] * tf.reduce_sum(weights, 1))
        return loss, tf.reduce_sum(weights)

    def metrics(self, model, batch):
        """masked_lm_loss, masked_lm_accuracy, next_sentence_loss, next_sentence_accuracy, each (sum, weight)."""
        outputs = self._forward(model, batch, training=False)
        words, word_hits = _cross_entropy(outputs["logits"], batch["masked_ids"])
        weights, pair_weights = batch["masked_weights"], batch["next_sentence_weight"]
        result = {
            "masked_lm_loss": (tf.reduce_sum(words * weights), tf.reduce_sum(weights)),
            "masked_lm_accuracy": (tf.reduce_sum(word_hits * weights), tf.reduce_sum(weights)),
        }
        if self._next_sentence:
            pair, pair_hits = _cross_entropy(outputs["next_sentence_logits"], batch["next_sentence"])
            result["next_sentence_loss"] = (tf.reduce_sum(pair * pair_weights), tf.reduce_sum(pair_weights))
            result["next_sentence_accuracy"] = (
                tf.reduce_sum(pair_hits * pair_weights),
                tf.reduce_sum(pair_weights),
            )
        return result

    def _forward(self, model, batch, training):
        return model({name: batch[name] for name in model.INPUTS if name in batch}, training=training)


def _cross_entropy(logits, labels):
    """logits float32 [..., V], labels int [...] -> loss in nats and hits (0 or 1), float32 [...]."""
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    return loss, tf.cast(tf.argmax(logits, -1, labels.dtype) == labels, tf.float32)


def _fold(seed, number: int):
    return tf.random.experimental.stateless_fold_in(seed, number)


def _pad(x, length: int, value):
    padded = tf.pad(x, [[0, length - tf.size(x)]], constant_values=value)
    return tf.ensure_shape(padded, [length])
