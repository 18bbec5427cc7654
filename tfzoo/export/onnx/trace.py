"""ONNX of models that have no functions here: TensorFlow's trace of the whole, through tf2onnx.

Larger and slower than what is emitted, of one length, and in the operators of opset 18, tf2onnx's last.
"""

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx

from tfzoo.errors import UserError
from tfzoo.export import interface
from tfzoo.export.onnx.graph import MAX_BYTES

OPSET = 18


def erfc(ctx, node, name, args):
    """1 - erf(x): ONNX has no Erfc, and tf2onnx would leave it in the graph."""
    del args
    kind, shape = ctx.get_dtype(node.output[0]), ctx.get_shape(node.output[0])
    ctx.remove_node(node.name)
    erf = ctx.make_node("Erf", node.input, shapes=[shape], dtypes=[kind])
    one = ctx.make_const(f"{name}/one", np.array(1, np.float32))
    inputs = [one.output[0], erf.output[0]]
    ctx.make_node("Sub", inputs, outputs=node.output, name=name, shapes=[shape], dtypes=[kind])


def trace(model: keras.Model, length: int, dtype: str = "float32") -> onnx.ModelProto:
    """The graph of a model, under Hugging Face's names, for any number of rows of `length` tokens.

    Raises:
      UserError: it would not fit into a file, or another dtype than float32 is asked for.
    """
    where = f"{model.family} has no emitters in tfzoo/export/onnx, and is traced"
    if dtype != "float32":
        raise UserError(f"{where} in float32 alone: leave {dtype} out of --onnx_variants")
    if 4 * model.count_params() > MAX_BYTES:
        raise UserError(f"{where}: {4 * model.count_params():,} bytes of weights are more than its file holds, 2 GiB")
    ours = interface.inputs_of(model)

    def call(*values):
        inputs = {}
        for name, value in zip(ours, values):
            if ours[name].is_mask:
                inputs[name] = value != 0
            else:  # Gather counts negative ids from the end: they are made too large.
                beyond = tf.fill(tf.shape(value), tf.constant(2**31 - 1, tf.int64))
                inputs[name] = tf.cast(tf.where(value < 0, beyond, value), tf.int32)
        found = model(inputs, training=False)
        outputs: dict[str, tf.Tensor] = {}
        for name, other in interface.onnx_outputs(model).items():
            if name == "span_logits":
                outputs |= {"start_logits": found[name][..., 0], "end_logits": found[name][..., 1]}
            else:
                outputs[other] = found[name]
        return outputs

    axes = {name: value.axis if isinstance(value.axis, int) else length for name, value in ours.items()}
    specs = [tf.TensorSpec([None, axes[name]], tf.int64, value.onnx) for name, value in ours.items()]
    function = tf.function(call, input_signature=specs, autograph=False)
    graph, _ = tf2onnx.convert.from_function(function, specs, opset=OPSET, custom_op_handlers={"Erfc": (erfc, [])})
    for value in [*graph.graph.input, *graph.graph.output]:
        axis = value.type.tensor_type.shape.dim[0]
        axis.Clear()
        axis.dim_param = "batch"
    return graph
