"""Masked language modelling: the likeliest words for each mask."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfzoo.errors import UserError
from tfzoo.export import vocabulary
from tfzoo.export.answers.base import Answer, ranked, scatter, softmax
from tfzoo.export.interface import Tensor
from tfzoo.export.vocabulary import TOP


class Words(Answer):
    """The TOP likeliest `words` for each mask in a text and their `probabilities` [B, M, TOP], the likeliest first.

    Text i has `num_masks[i]` masks; the rest is filled up with "" and 0. The probabilities are the model's, over the
    whole vocabulary. Masks after the point at which a text was truncated are not counted.
    """

    def __init__(self, model, tokenizer, options):
        super().__init__(model, tokenizer, options)
        if getattr(tokenizer, "mask_id", None) is None:
            raise UserError("the tokenizer has no mask token, which a masked language model requires")
        self.mask = tokenizer.vocab[tokenizer.mask_id]
        self.special = (self.mask,)
        self.vocab, self.readable = readable(tokenizer, model.config.vocab_size)
        self.top = min(TOP, int(self.readable.sum()))
        if not self.top:
            raise UserError("the tokenizer's vocabulary contains no whole words, only special tokens and word pieces")
        axes = ("batch", "masks", self.top)
        self.outputs = {
            "words": Tensor("string", axes),
            "probabilities": Tensor("float32", axes),
            "num_masks": Tensor("int32", ("batch",)),
        }

    def facts(self):
        names = [name for name in ("target_mapping", "permutation_mask") if name in self.model.INPUTS]
        return super().facts() | ({"further_inputs": names} if names else {})

    def answer_reading(self, reading, texts, call):
        token_ids = reading.inputs["token_ids"]
        is_mask = token_ids == self.tokenizer.mask_id
        num_masks = tf.reduce_sum(tf.cast(is_mask, tf.int32), axis=1)
        rows, columns = tf.unstack(tf.cast(tf.where(is_mask), tf.int32), num=2, axis=1)
        positions = scatter(rows, columns, num_masks)
        logits = call(reading.inputs | self._asking(positions, is_mask))["logits"]
        chances = tf.where(tf.constant(self.readable), tf.nn.softmax(tf.cast(logits, tf.float32)), -1.0)
        likeliest, which = tf.math.top_k(chances, self.top)
        present = tf.sequence_mask(num_masks, tf.shape(positions)[1])[:, :, tf.newaxis]
        vocab = tf.constant([word.encode() for word in self.vocab])
        return {
            "words": tf.where(present, tf.gather(vocab, which), ""),
            "probabilities": tf.where(present, likeliest, 0.0),
            "num_masks": num_masks,
        }

    def _asking(self, positions, is_mask) -> dict:
        """Returns the inputs that request words at positions [B, M], where is_mask [B, L] is True."""
        if "target_mapping" in self.model.INPUTS:  # With two-stream attention no token may see a masked one.
            mapping = tf.one_hot(positions, tf.shape(is_mask)[1])
            seen = tf.repeat(~is_mask[:, tf.newaxis], tf.shape(is_mask)[1], axis=1)
            return {"target_mapping": mapping, "permutation_mask": seen}
        return {"masked_positions": positions}

    def expected_of_rows(self, rows, limits):
        top = self.top
        vocab = np.array(self.vocab)
        masks = [[i for i, token in enumerate(row.ids) if token == self.tokenizer.mask_id] for row in rows]
        shape = (len(rows), max(map(len, masks), default=0), top)
        words = np.zeros(shape, vocab.dtype)
        probabilities, decided = np.zeros(shape, np.float32), np.ones(shape, bool)
        for number, (row, places) in enumerate(zip(rows, masks)):
            if not places:
                continue
            is_mask = np.isin(np.arange(row.inputs["token_ids"].shape[1]), places)[None]
            more = self._asking(np.array([places], np.int32), is_mask)
            for column, chance in enumerate(softmax(row.outputs("logits", **more))):
                chance = np.where(self.readable, chance, -1)
                order = np.argsort(-chance, kind="stable")[: top + 1]
                words[number, column] = vocab[order[:top]]
                probabilities[number, column] = chance[order[:top]]
                apart = chance[order[:-1]] > chance[order[1:]] * (1 + 2 * limits.of_probabilities)
                decided[number, column] = ranked(apart, top)
        return {
            "words": {"values": words, "decided": decided},
            "probabilities": probabilities,
            "num_masks": np.array([len(places) for places in masks], np.int32),
        }


def pieces_of(tokenizer: Any) -> list[str]:
    """Returns the text of each token; "" for special tokens."""
    ids = tf.range(tokenizer.vocab_size)[:, tf.newaxis]
    return [text.decode(errors="replace") for text in tokenizer.detokenize(ids).numpy()]


def readable(tokenizer: Any, vocab_size: int) -> tuple[list[str], np.ndarray]:
    """Returns the text of each token, and bool [V]: whether it is a readable word. Special tokens, pieces that continue
    a word, and placeholders such as [unused1] are not."""
    size, pieces = tokenizer.vocab_size, list(tokenizer.vocab)
    continues = getattr(tokenizer, "continues", None)
    texts = pieces if continues is not None else pieces_of(tokenizer)
    shown, words = vocabulary.readable(pieces, texts, continues, tokenizer.special_ids)
    return shown + [""] * (vocab_size - size), np.pad(words, (0, vocab_size - size))
