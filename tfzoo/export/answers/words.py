"""Words for masks."""

import re
from typing import Any

import numpy as np
import tensorflow as tf

from tfzoo.errors import UserError
from tfzoo.export.answers.base import Answer, ranked, scatter, softmax
from tfzoo.export.interface import Tensor

TOP = 5  # Words for each mask, and answers to each question.
_UNUSED = re.compile(r"\[unused\d+\]")


class Words(Answer):
    """For each mask in a text the TOP likeliest `words` and their `probabilities` [B, M, TOP], the likeliest first.

    Text i has `num_masks[i]` of them; what follows is "" and 0. The probabilities are the model's own, over the whole
    vocabulary. Masks beyond where a text was cut are not counted.
    """

    def __init__(self, model, tokenizer, options):
        super().__init__(model, tokenizer, options)
        if getattr(tokenizer, "mask_id", None) is None:
            raise UserError("the tokenizer has no mask token, which a masked language model reads")
        self.mask = tokenizer.vocab[tokenizer.mask_id]
        self.special = (self.mask,)
        self.vocab, self.readable = readable(tokenizer, model.config.vocab_size)
        self.top = min(TOP, int(self.readable.sum()))
        if not self.top:
            raise UserError("the tokenizer's vocabulary holds no whole word, only special tokens and pieces")
        axes = ("batch", "masks", self.top)
        self.outputs = {
            "words": Tensor("string", axes),
            "probabilities": Tensor("float32", axes),
            "num_masks": Tensor("int32", ("batch",)),
        }

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
        """What asks the model for the words at positions [B, M], where is_mask [B, L] is True."""
        if "target_mapping" in self.model.INPUTS:  # In two streams no token sees what is to be found.
            mapping = tf.one_hot(positions, tf.shape(is_mask)[1])
            seen = tf.repeat(~is_mask[:, tf.newaxis], tf.shape(is_mask)[1], axis=1)
            return {"target_mapping": mapping, "permutation_mask": seen}
        return {"masked_positions": positions}

    def expected_of_rows(self, rows, limits):
        top = self.top
        vocab = np.array(self.vocab)
        masks = [[i for i, token in enumerate(row.ids) if token == self.tokenizer.mask_id] for row in rows]
        shape = (len(rows), max(map(len, masks), default=0), top)
        found = np.zeros(shape, vocab.dtype)
        probabilities, decided = np.zeros(shape, np.float32), np.ones(shape, bool)
        for number, (row, places) in enumerate(zip(rows, masks)):
            if not places:
                continue
            is_mask = np.isin(np.arange(row.inputs["token_ids"].shape[1]), places)[None]
            more = self._asking(np.array([places], np.int32), is_mask)
            for column, chance in enumerate(softmax(row.outputs("logits", **more))):
                chance = np.where(self.readable, chance, -1)
                order = np.argsort(-chance, kind="stable")[: top + 1]
                found[number, column] = vocab[order[:top]]
                probabilities[number, column] = chance[order[:top]]
                apart = chance[order[:-1]] > chance[order[1:]] * (1 + 2 * limits.of_probabilities)
                decided[number, column] = ranked(apart, top)
        return {
            "words": {"values": found, "decided": decided},
            "probabilities": probabilities,
            "num_masks": np.array([len(places) for places in masks], np.int32),
        }


def pieces_of(tokenizer: Any) -> list[str]:
    """What each token is as text; "" for special ones."""
    ids = tf.range(tokenizer.vocab_size)[:, tf.newaxis]
    return [text.decode(errors="replace") for text in tokenizer.detokenize(ids).numpy()]


def readable(tokenizer: Any, vocab_size: int) -> tuple[list[str], np.ndarray]:
    """Each token as one would read it, and bool [V]: whether one would. Not special tokens, nor what continues a word,
    nor [unused1]."""
    words = np.zeros(vocab_size, bool)
    size = tokenizer.vocab_size
    if hasattr(tokenizer, "continues"):
        texts = list(tokenizer.vocab)
        words[:size] = [not (c or _UNUSED.fullmatch(t)) for t, c in zip(texts, tokenizer.continues)]
    else:
        texts = [text.strip() for text in pieces_of(tokenizer)]
        marked = any(piece.startswith(("Ġ", "▁")) for piece in tokenizer.vocab)
        words[:size] = [
            bool(text) and "�" not in text and (not marked or piece.startswith(("Ġ", "▁")))
            for piece, text in zip(tokenizer.vocab, texts)
        ]
    words[tokenizer.special_ids] = False
    return texts + [""] * (vocab_size - size), words
