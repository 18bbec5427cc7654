"""A model for tests of retrieval that needs no TensorFlow, and an interpreter's script that builds an index with it.

    python -m tests.retrieval.encoders INPUT FOLDER BLOCKS

prints "blocked" and waits forever when it has to compute the vectors of block BLOCKS.
"""

import hashlib
import pathlib
import sys
import time
from typing import Any

import numpy as np

from tfzoo.retrieval import build
from tfzoo.retrieval.documents import Source

SIZE = 8
METHODS = ("vectors", "bm25")


def vectors(texts, size: int = SIZE, seed: int = 0) -> np.ndarray:
    """Returns [N, size], a draw from a normal distribution for each text that depends on the text alone."""
    seeds = [int.from_bytes(hashlib.sha256(f"{seed} {text}".encode()).digest()[:8]) for text in texts]
    return np.array([np.random.default_rng(seed).normal(size=size) for seed in seeds]).astype(np.float32)


class Encoder:
    """Stands in for tfzoo.retrieval.encoder.Encoder."""

    source = "/models/fake"
    size = SIZE

    def __init__(self, fingerprint: str = "f" * 64, similarity: str = "cosine", stop_at: int | None = None):
        self.fingerprint, self.similarity, self.calls, self._stop_at = fingerprint, similarity, 0, stop_at

    def documents(self, texts):
        if self.calls == self._stop_at:
            print("blocked", flush=True)
            time.sleep(1e6)
        self.calls += 1
        return vectors(texts)


def plan(path: pathlib.Path, **options) -> build.Plan:
    """Returns a plan with blocks of 4 documents for a .jsonl file with the field id."""
    model = {"weights": "float32", "checkpoint": None, "query_prompt": None, "document_prompt": None}
    values: dict[str, Any] = dict(source=Source(path, id_field="id"), methods=METHODS, block_size=4, model=model)
    return build.Plan(**(values | options))


if __name__ == "__main__":
    input_path, folder, stop_at = sys.argv[1:]
    build.build(pathlib.Path(folder), plan(pathlib.Path(input_path)), lambda: Encoder(stop_at=int(stop_at)))
