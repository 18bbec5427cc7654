"""Training runs: config, inputs, step, optimizers, distribution, checkpoints, the loop, and the run's folder."""

import importlib
from typing import Any

# Imported on first use (PEP 562), so that importing one module of this package does not import the others.
_ATTRIBUTES = {
    "Callback": "tfzoo.training.loop",
    "TrainConfig": "tfzoo.training.config",
    "Trainer": "tfzoo.training.loop",
}
__all__ = ["Callback", "TrainConfig", "Trainer"]


def __getattr__(name: str) -> Any:
    if name in _ATTRIBUTES:
        return getattr(importlib.import_module(_ATTRIBUTES[name]), name)
    raise AttributeError(f"module 'tfzoo.training' has no attribute {name!r}")
