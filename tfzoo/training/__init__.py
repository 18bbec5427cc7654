"""Training runs: config, inputs, step, optimizers, distribution, checkpoints, the loop, and the run's folder."""

import importlib
from typing import Any

# Imported when first used (PEP 562), so that a single module of this package costs no more than itself.
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
