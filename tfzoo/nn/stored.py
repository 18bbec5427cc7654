"""Weight matrices stored in fewer bytes than float32, for inference: bfloat16, or int8 with one scale per row."""

import contextlib
import contextvars

import keras
import ml_dtypes
import numpy as np
import tensorflow as tf

from tfzoo.errors import UserError
from tfzoo.nn.basic import Dense, read
from tfzoo.nn.embedding import TokenEmbedding

DTYPES = ("float32", "bfloat16", "int8")
FEW = 8  # Number of rows up to which XLA is faster row by row (two cores, GPT-2's output matrix).
_compiled = contextvars.ContextVar("compiled", default=False)


class StoredMatrix(keras.layers.Layer):
    """A matrix [O, I] stored as `dtype`. It is read as float32, and products are accumulated in float32.

    int8: a row is its values, from -127 to 127, times the row's float32 scale; the value of largest magnitude is exact.
    """

    def __init__(self, matrix: np.ndarray, dtype: str, **kwargs):
        super().__init__(**kwargs)
        self.scales = None
        if dtype == "int8":
            scales = np.abs(matrix).max(1) / np.float32(127)
            scales[scales == 0] = 1
            matrix = np.rint(matrix / scales[:, None]).astype(np.int8)
            self.scales = self._keep("scales", scales, "float32")
        self.values = self._keep("values", matrix.astype(ml_dtypes.bfloat16) if dtype == "bfloat16" else matrix, dtype)
        self.built = True

    def _keep(self, name, array, dtype):
        variable = self.add_weight(
            shape=array.shape, initializer="zeros", dtype=dtype, trainable=False, autocast=False, name=name
        )
        variable.assign(array)
        return variable

    def product(self, x):
        """Returns x [N, I] times the transposed matrix, [N, O]."""
        values, x32 = read(self.values), tf.cast(x, tf.float32)
        if _compiled.get():  # XLA knows the shapes at compile time and compiles only one branch.
            branches = [lambda: _product(x32, values), lambda: _row(x32, values), lambda: _rows(x32, values)]
            count = tf.shape(x)[0]
            product = tf.switch_case(tf.where(count == 1, 1, tf.where(count <= FEW, 2, 0)), branches)
        else:
            product = _product(x32, values)
        return tf.cast(product if self.scales is None else product * read(self.scales), x.dtype)

    def rows(self, ids):
        """Returns the rows [..., I], float32, of ids int [...]."""
        rows = tf.cast(tf.gather(read(self.values), ids), tf.float32)
        return rows if self.scales is None else rows * tf.gather(read(self.scales), ids)[..., None]


def _product(x, values):
    return tf.matmul(x, tf.cast(values, tf.float32), transpose_b=True)


def _row(x, values):
    """Returns the product of one row, for which XLA reads values as stored and casts them on the fly."""
    from tensorflow.compiler.tf2xla.ops import gen_xla_ops  # Works only under XLA and is not part of the public API.

    # Without a barrier that depends on the loop's input, XLA would cast the values once before a decoding loop.
    return _product(*gen_xla_ops.xla_optimization_barrier([x, values]))


def _rows(x, values):
    return tf.map_fn(lambda row: _row(row[None], values)[0], x)


@contextlib.contextmanager
def compiled_steps(jit_compile: bool):
    """Prepares products inside the context for a loop that XLA compiles.

    Args:
      jit_compile: if False, the context changes nothing.
    """
    token = _compiled.set(jit_compile)
    try:
        yield
    finally:
        _compiled.reset(token)


def store_weights(model: keras.Model, dtype: str) -> None:
    """Converts the matrices of a model's dense layers and its token embeddings to bfloat16 or int8.

    They then take half or a quarter of the memory. The other weights stay as they are; the model can no longer be
    trained or saved.

    Args:
      model: a tfzoo model.
      dtype: one of DTYPES; float32 changes nothing. bfloat16 rounds each weight to 8 bits of precision. int8 has 255
        steps for each output of a layer and for each token.

    Raises:
      UserError: an unknown dtype, or a model whose weights are already stored in another dtype.
    """
    if dtype not in DTYPES:
        raise UserError(f"weights {dtype!r}: must be one of {', '.join(DTYPES)}")
    if dtype == "float32":
        return
    if stored_weights(model):
        raise UserError(
            f"weights {dtype!r}: the weights of {model.name!r} are kept as {stored_weights(model)} already; "
            "load the model again"
        )
    model.__dict__.pop("_tfzoo_decoders", None)  # Cached decoding graphs, which read the original weights.
    for layer in [layer for layer in model._flatten_layers() if isinstance(layer, (Dense, TokenEmbedding))]:
        table = isinstance(layer, TokenEmbedding)
        variable = layer.embeddings if table else layer._kernel
        matrix = variable.numpy()
        stored = StoredMatrix(matrix if table else matrix.T, dtype, name="stored")
        layer._tracker.unlock()  # As Keras does when it quantizes a layer.
        layer._untrack_variable(variable)
        if table:
            layer.embeddings = None
        else:
            layer._kernel = None
        layer.stored = stored
        layer._tracker.lock()


def stored_weights(model: keras.Model) -> str:
    """Returns the dtype that `store_weights` converted a model's matrices to, or "" if it was not applied."""
    kinds = {layer.values.dtype for layer in model._flatten_layers() if isinstance(layer, StoredMatrix)}
    return ", ".join(kinds)
