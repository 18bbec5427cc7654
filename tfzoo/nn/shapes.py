"""Models whose variables have shapes but no values."""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf
from keras.src.backend.common import global_state  # Keras has no public access to it.

from tfzoo.nn.basic import unset_weights

_WAITING = "uninitialized_variables"


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Within the context, a model of any size is created without memory for its weights: variables have paths, shapes
    and dtypes, and no values. It is twice as fast as creating variables in a graph."""
    waiting = list(global_state.get_global_attribute(_WAITING, []))
    try:
        # In the graph go what layers compute when they are built.
        with tf.Graph().as_default(), keras.StatelessScope(initialize_variables=False), unset_weights():
            yield
    finally:  # Keras would give the variables values at the end of the next such scope.
        global_state.set_global_attribute(_WAITING, waiting)
