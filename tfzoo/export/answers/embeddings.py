"""Vectors of texts."""

import numpy as np
import tensorflow as tf

from tfzoo import nn
from tfzoo.errors import UserError
from tfzoo.export.answers.base import Answer
from tfzoo.export.interface import Tensor


class Embeddings(Answer):
    """One vector a text: `embeddings` float32 [B, E], the mean of its tokens' last states unless asked otherwise."""

    def __init__(self, model, tokenizer, options):
        super().__init__(model, tokenizer, options)
        if options.pooling == "pooled" and getattr(model, "pooler", None) is None:
            raise UserError("--pooling=pooled: this model has no pooler; choose mean, first or last")
        self.outputs = {"embeddings": Tensor("float32", ("batch", model.sequence_size))}

    def answer_reading(self, reading, texts, call):
        pooled = nn.pool(self.options.pooling, call(reading.inputs), reading.inputs["padding_mask"])
        return {"embeddings": tf.cast(pooled, tf.float32)}

    def expected_of_rows(self, rows, limits):
        how, size = self.options.pooling, self.model.sequence_size
        vectors = np.zeros((len(rows), size), np.float32)
        for number, row in enumerate(rows):
            if how == "pooled":
                vectors[number] = row.outputs("pooled")
                continue
            states = row.outputs("sequence")[: len(row.ids)]
            if how == "mean":
                vectors[number] = states.mean(0) if len(states) else 0
            else:  # Of a text without tokens there is its padding.
                vectors[number] = row.outputs("sequence")[0 if how == "first" else max(0, len(row.ids) - 1)]
        return {"embeddings": vectors}
