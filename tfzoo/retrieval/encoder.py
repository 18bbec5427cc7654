"""Vectors of queries and documents from a model's folder."""

import dataclasses
import hashlib
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfzoo import embeddings, hub, nn
from tfzoo.training import runs
from tfzoo.weights import table


class Encoder:
    """A model that returns vectors of texts.

    Attributes:
      source: the model's folder as an absolute path, or hf://NAME@COMMIT.
      fingerprint: hexadecimal; equal for models with the same weights, tokenizer and settings, wherever they are.
      size: the length of a vector.
      similarity: how the model's folder compares vectors; cosine if it does not specify that.
    """

    def __init__(
        self,
        model_dir: str,
        checkpoint: str | None = None,
        *,
        weights: str = "float32",
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        batch_size: int = 32,
    ):
        """Loads the model.

        Args:
          model_dir, checkpoint, weights: as for tfzoo.model_dir.ModelDir.
          query_prompt, document_prompt: texts to put before each query and document; None uses the folder's prompts
            with the names "query" and "document", if it has them.
          batch_size: the number of texts per batch.

        Raises:
          UserError: a file is missing or damaged, or the model has no tokenizer.
        """
        folder = hub.folder(model_dir)
        self.source = hub.pin(model_dir) if hub.is_reference(model_dir) else str(folder.resolve())
        self._model, self._tokenizer = _load(folder, checkpoint, model_dir)
        self._prompts = {"query": query_prompt, "document": document_prompt}
        self._batch_size = batch_size
        embeddings.reader_of(self._model, self._tokenizer)  # Reports a missing tokenizer before anything is written.
        self.size = self._model.heads["embed"].size
        self.similarity = embeddings.record_of(self._model).similarity or "cosine"
        self.fingerprint = _fingerprint(self._model, self._tokenizer)
        nn.store_weights(self._model, weights)
        # The first shape of inputs is compiled as it is; afterwards one graph serves every shape. Without these two
        # calls, the first batch of a resumed run would be computed by another graph than in an uninterrupted run, and
        # differ by rounding.
        self.documents(["a"])
        self.documents(["a longer text than the other", "and another"])

    def documents(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 [N, size]."""
        return self._vectors(texts, "document")

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 [N, size]."""
        return self._vectors(texts, "query")

    def _vectors(self, texts: Sequence[str], kind: str) -> np.ndarray:
        return embeddings.embed_texts(
            self._model,
            list(texts),
            self._tokenizer,
            prompt_name=kind,
            prompt=self._prompts[kind],
            batch_size=self._batch_size,
        )


def _load(folder: pathlib.Path, checkpoint: str | None, model_dir: str):
    model, tokenizer = runs.load(folder, checkpoint)
    if "embed" not in model.heads:
        print(f"{model_dir}: has no head embed; a text's vector is the mean of its tokens' states", file=sys.stderr)
        model, tokenizer = runs.load(folder, checkpoint, heads=("embed",))
    return model, tokenizer


def _fingerprint(model, tokenizer) -> str:
    """Returns a SHA-256 of everything that determines the vectors of texts, except rounding."""
    record = embeddings.record_of(model)
    settings: dict[str, Any] = {
        "config": dataclasses.asdict(model.config),
        "embed": dataclasses.asdict(model.embed),
        "reading": [embeddings.longest(model), record.lowercase, dict(record.prompts), record.default_prompt_name],
        "tokenizer": tokenizer.fingerprint(),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    weights = {table.relative_path(variable): variable for variable in model.variables if not table.is_state(variable)}
    for path in sorted(weights):
        values = np.ascontiguousarray(weights[path].numpy())
        digest.update(f"{path} {values.dtype} {values.shape}\n".encode())
        digest.update(values.view(np.uint8).data if values.size else b"")
    return digest.hexdigest()
