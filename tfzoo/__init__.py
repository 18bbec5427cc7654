"""tfzoo: transformer models on TensorFlow and Keras 3, from raw text to a served model."""

import importlib

__version__ = "0.1.0"

# Attributes are imported when first used (PEP 562): `import tfzoo` alone costs nothing.
_ATTRIBUTES = {
    "build": "tfzoo.models",
    "embed_texts": "tfzoo.embeddings",
    "generate_ids": "tfzoo.generation",
    "generate_text": "tfzoo.generation.texts",
    "load": "tfzoo.training.runs",
    "save": "tfzoo.weights.huggingface",
    "store_weights": "tfzoo.nn",
}
__all__ = ["build", "embed_texts", "generate_ids", "generate_text", "load", "save", "store_weights"]


def __getattr__(name: str):
    if name in _ATTRIBUTES:
        return getattr(importlib.import_module(_ATTRIBUTES[name]), name)
    raise AttributeError(f"module 'tfzoo' has no attribute {name!r}")
