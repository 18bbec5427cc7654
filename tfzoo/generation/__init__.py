"""Decoding with a cache of keys and values: from token ids to new token ids, eagerly or inside a graph.

`decode` works on tensors inside any tf.function; `generate_ids` calls it compiled and checks its arguments. Each
strategy has a module: sample.py (greedy search and sampling), beam.py, contrastive.py and speculative.py.
constraints.py restricts which tokens may follow, draws.py samples them, and stops.py decides where a text ends.
"""

from tfzoo.generation.decode import Generated, decode, generate_ids
from tfzoo.generation.options import ROWS, Options, read_options
from tfzoo.generation.stops import Stops, string_table

__all__ = [
    "ROWS",
    "Generated",
    "Options",
    "Stops",
    "decode",
    "generate_ids",
    "read_options",
    "string_table",
]
