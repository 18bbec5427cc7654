"""tfzoo: transformer models on TensorFlow and Keras 3, from raw text to a served model."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfzoo.embeddings import embed_texts
    from tfzoo.generation import generate_ids
    from tfzoo.generation.texts import generate_text
    from tfzoo.models import build
    from tfzoo.nn import store_weights
    from tfzoo.prediction.pipelines import pipeline
    from tfzoo.preprocess import Preprocessor
    from tfzoo.retrieval.search import open_index
    from tfzoo.training.runs import load
    from tfzoo.weights.huggingface import save

__version__ = "0.1.0"

# Attributes are imported when first used (PEP 562): `import tfzoo` alone costs nothing.
_ATTRIBUTES = {
    "Preprocessor": "tfzoo.preprocess",
    "build": "tfzoo.models",
    "embed_texts": "tfzoo.embeddings",
    "generate_ids": "tfzoo.generation",
    "generate_text": "tfzoo.generation.texts",
    "load": "tfzoo.training.runs",
    "open_index": "tfzoo.retrieval.search",
    "pipeline": "tfzoo.prediction.pipelines",
    "save": "tfzoo.weights.huggingface",
    "store_weights": "tfzoo.nn",
}
__all__ = [
    "Preprocessor",
    "build",
    "embed_texts",
    "generate_ids",
    "generate_text",
    "load",
    "open_index",
    "pipeline",
    "save",
    "store_weights",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str):
    if name in _ATTRIBUTES:
        return getattr(importlib.import_module(_ATTRIBUTES[name]), name)
    raise AttributeError(f"module 'tfzoo' has no attribute {name!r}")
