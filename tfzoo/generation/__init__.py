"""Decoding with a cache of keys and values: from token ids to new token ids, eagerly or inside a graph.

`decode.decode` works on tensors inside any tf.function; `generate_ids` calls it compiled and checks its arguments. Each
strategy has a module: sample.py (greedy search and sampling), beam.py, contrastive.py and speculative.py.
constraints.py restricts which tokens may follow, draws.py samples them, and stops.py decides where a text ends.

Importing this package does not import TensorFlow: options.py and written.py are also used by tfzoo.onnx_decoding.
"""

import importlib
from typing import TYPE_CHECKING

from tfzoo.generation.options import ROWS, Options, read_options

if TYPE_CHECKING:
    from tfzoo.generation.decode import Generated, generate_ids
    from tfzoo.generation.stops import Stops, string_table

__all__ = [
    "ROWS",
    "Generated",
    "Options",
    "Stops",
    "generate_ids",
    "read_options",
    "string_table",
]
_MODULES = {"Generated": "decode", "generate_ids": "decode", "Stops": "stops", "string_table": "stops"}


def __getattr__(name: str):
    if name in _MODULES:
        return getattr(importlib.import_module(f"tfzoo.generation.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'tfzoo.generation' has no attribute {name!r}")
