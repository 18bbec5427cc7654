"""Embeddings of texts."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfzoo import embeddings, nn
from tfzoo.errors import UserError
from tfzoo.export.answers.base import Answer
from tfzoo.export.interface import Tensor


class Embeddings(Answer):
    """One vector per text: `embeddings` float32 [B, E], from the model's head embed. Without this head they are pooled
    from the last states of the tokens, by default as their mean."""

    def __init__(self, model, tokenizer, options):
        super().__init__(model, tokenizer, options)
        self.how, self.size = options.pooling or "mean", model.sequence_size
        if "embed" in model.heads:
            if options.pooling:
                raise UserError(
                    f"--pooling={options.pooling}: the model's head embed defines the pooling; omit the flag"
                )
            self.how, self.size = "", model.heads["embed"].size
            self.reader = embeddings.reader_of(
                model, tokenizer, prompt_name=options.prompt_name, length=options.sequence_length
            )
        elif options.prompt_name is not None:
            raise UserError(f"--prompt_name={options.prompt_name}: the model has no head embed; omit the flag")
        if self.how == "pooled" and getattr(model, "pooler", None) is None:
            raise UserError("--pooling=pooled: this model has no pooler; choose mean, first or last")
        self.outputs = {"embeddings": Tensor("float32", ("batch", self.size))}

    def answer_reading(self, reading, texts, call):
        outputs = call(reading.inputs)
        vectors = outputs["embedding"] if not self.how else nn.pool(self.how, outputs, reading.inputs["padding_mask"])
        return {"embeddings": tf.cast(vectors, tf.float32)}

    def expected_of_rows(self, rows, limits):
        vectors = np.zeros((len(rows), self.size), np.float32)
        for number, row in enumerate(rows):
            if not self.how or self.how == "pooled":
                vectors[number] = row.outputs(self.how or "embedding")
                continue
            states = row.outputs("sequence")[: len(row.ids)]
            if self.how == "mean":
                vectors[number] = states.mean(0) if len(states) else 0
            else:  # A text without tokens has only padding.
                vectors[number] = row.outputs("sequence")[0 if self.how == "first" else max(0, len(row.ids) - 1)]
        return {"embeddings": vectors}

    def facts(self) -> dict[str, Any]:
        if self.how:
            return super().facts()
        wording, record = self.reader.wording, embeddings.record_of(self.model)
        return super().facts() | {
            "prompt": wording.prompt,
            "lowercase": wording.lowercase,
            **({} if self.model.embed.include_prompt else {"prompt_tokens": self.reader.prompt_length}),
            "similarity": record.similarity or "cosine",
        }
