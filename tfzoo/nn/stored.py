"""Weight matrices stored in fewer bytes than float32, for inference: bfloat16, or int8 with one scale per row."""

import keras
import ml_dtypes
import numpy as np
import tensorflow as tf

from tfzoo.errors import UserError
from tfzoo.nn.basic import Dense, apart, has_few_rows, is_compiled, read
from tfzoo.nn.embedding import TokenEmbedding

DTYPES = ("float32", "bfloat16", "int8")
FEW = 8  # Number of rows up to which XLA is faster row by row (two cores, GPT-2's output matrix).
EXACT = 64  # The number of largest logits that are rounded as little as weights permit.


class StoredMatrix(keras.layers.Layer):
    """A matrix [O, I] stored as `dtype`, whose products are accumulated in float32.

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

    def product(self, x, logits: bool = False):
        """Returns x [N, I] times the transposed matrix, [N, O].

        Sums are accumulated in float32. In a decoding step that XLA does not compile, bfloat16 is multiplied by
        bfloat16, which rounds x and the result to 8 bits of precision.

        Args:
          x: [N, I].
          logits: whether the EXACT largest results of each row are then computed again without that rounding.
        """
        values = read(self.values)
        if has_few_rows() and not is_compiled() and values.dtype == tf.bfloat16:
            product = tf.matmul(tf.cast(x, tf.bfloat16), values, transpose_b=True)
            product = tf.cast(product, x.dtype)
            return self._exact(x, product) if logits else product
        x32 = tf.cast(x, tf.float32)
        if is_compiled():  # XLA knows the shapes at compile time and compiles only one branch.
            branches = [lambda: _product(x32, values), lambda: _row(x32, values), lambda: _rows(x32, values)]
            count = tf.shape(x)[0]
            product = tf.switch_case(tf.where(count == 1, 1, tf.where(count <= FEW, 2, 0)), branches)
        else:
            product = _product(x32, values)
        return tf.cast(product if self.scales is None else product * read(self.scales), x.dtype)

    def _exact(self, x, product):
        """Returns product [N, O] with the EXACT largest values of each row replaced by unrounded ones."""
        count = min(EXACT, product.shape[1])
        places = tf.math.top_k(product, count, sorted=False)[1]
        rows = tf.cast(self.rows(places), x.dtype)  # [N, EXACT, I]
        exact = tf.reduce_sum(rows * x[:, None], -1)
        indices = tf.stack([tf.broadcast_to(tf.range(tf.shape(x)[0])[:, None], tf.shape(places)), places], -1)
        return tf.tensor_scatter_nd_update(product, indices, exact)

    def rows(self, ids):
        """Returns the rows [..., I], float32, of ids int [...]."""
        values = read(self.values)
        if is_compiled() and has_few_rows():  # As in _row.
            values, ids = apart(values, ids)
        rows = tf.cast(tf.gather(values, ids), tf.float32)
        return rows if self.scales is None else rows * tf.gather(read(self.scales), ids)[..., None]


def _product(x, values):
    return tf.matmul(x, tf.cast(values, tf.float32), transpose_b=True)


def _row(x, values):
    """Returns the product of one row, for which XLA reads values as stored and casts them on the fly."""
    # Without a barrier that depends on the loop's input, XLA would cast the values once before a decoding loop.
    return _product(*apart(x, values))


def _rows(x, values):
    return tf.map_fn(lambda row: _row(row[None], values)[0], x)


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
