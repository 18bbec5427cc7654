"""Decoding with a cache of keys and values: token ids in, new token ids out, the same inside a graph.

`decode` is tensors in, tensors out, for a tf.function of any kind; `generate_ids` calls it compiled and checks what it
is given. Strategies are pages of their own: sample.py (greedy search and sampling), beam.py, contrastive.py,
speculative.py. What may follow says constraints.py, what is drawn draws.py, where a text ends stops.py.
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
