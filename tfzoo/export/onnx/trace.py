"""ONNX graphs of models that have no emitters: traced by TensorFlow and converted by tf2onnx.

They are larger and slower than emitted graphs, have a fixed length, and use opset 18, the latest that tf2onnx supports.
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
    """Replaces Erfc by 1 - erf(x): ONNX has no Erfc, and tf2onnx would leave it in the graph."""
    del args
    kind, shape = ctx.get_dtype(node.output[0]), ctx.get_shape(node.output[0])
    ctx.remove_node(node.name)
    erf = ctx.make_node("Erf", node.input, shapes=[shape], dtypes=[kind])
    one = ctx.make_const(f"{name}/one", np.array(1, np.float32))
    inputs = [one.output[0], erf.output[0]]
    ctx.make_node("Sub", inputs, outputs=node.output, name=name, shapes=[shape], dtypes=[kind])


def trace(model: keras.Model, length: int, dtype: str = "float32") -> onnx.ModelProto:
    """Returns the graph of a model, under Hugging Face's names, for any number of rows of `length` tokens.

    Raises:
      UserError: the graph does not fit into a file, or the dtype is not float32.
    """
    where = f"{model.family} has no emitters in tfzoo/export/onnx and is traced"
    if dtype != "float32":
        raise UserError(f"{where}, which supports only float32; remove {dtype} from --onnx_variants")
    if 4 * model.count_params() > MAX_BYTES:
        raise UserError(f"{where}: its {4 * model.count_params():,} bytes of weights exceed the 2 GiB limit of a file")
    model_inputs = interface.inputs_of(model)

    def call(*values):
        inputs = {}
        for name, value in zip(model_inputs, values):
            if model_inputs[name].is_mask:
                inputs[name] = value != 0
            else:  # Gather would count negative ids from the end; they are made too large, so that it fails.
                beyond = tf.fill(tf.shape(value), tf.constant(2**31 - 1, tf.int64))
                inputs[name] = tf.cast(tf.where(value < 0, beyond, value), tf.int32)
        computed = model(inputs, training=False)
        outputs: dict[str, tf.Tensor] = {}
        for name, onnx_name in interface.onnx_outputs(model).items():
            if name == "span_logits":
                outputs |= {"start_logits": computed[name][..., 0], "end_logits": computed[name][..., 1]}
            else:
                outputs[onnx_name] = computed[name]
        return outputs

    axes = {name: value.axis if isinstance(value.axis, int) else length for name, value in model_inputs.items()}
    specs = [tf.TensorSpec([None, axes[name]], tf.int64, value.onnx) for name, value in model_inputs.items()]
    function = tf.function(call, input_signature=specs, autograph=False)
    graph, _ = tf2onnx.convert.from_function(function, specs, opset=OPSET, custom_op_handlers={"Erfc": (erfc, [])})
    for value in [*graph.graph.input, *graph.graph.output]:
        axis = value.type.tensor_type.shape.dim[0]
        axis.Clear()
        axis.dim_param = "batch"
    return graph
