"""A second opinion: tf2onnx, which traces what tfzoo emits layer by layer, gives graphs with the same answers."""

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
import tf2onnx

from tests.export import small
from tfzoo import models
from tfzoo.export import golden, onnx_check, onnx_emit
from tfzoo.export.answers import Options

OPSET = 18  # tf2onnx 1.17 has no later one.
FAMILIES = [family for family in small.FAMILIES if family != "reformer"]


def erfc(ctx, node, name, args):
    """1 - erf(x): ONNX has no Erfc, and tf2onnx would leave it in the graph."""
    del args
    kind, shape = ctx.get_dtype(node.output[0]), ctx.get_shape(node.output[0])
    ctx.remove_node(node.name)
    erf = ctx.make_node("Erf", node.input, shapes=[shape], dtypes=[kind])
    one = ctx.make_const(f"{name}/one", np.array(1, np.float32))
    inputs = [one.output[0], erf.output[0]]
    ctx.make_node("Sub", inputs, outputs=node.output, name=name, shapes=[shape], dtypes=[kind])


def converted(model, inputs):
    """tf2onnx's graph of a model, for inputs of these very shapes: two free dimensions in one reshape are beyond it."""
    specs = [tf.TensorSpec(value.shape, value.dtype, name) for name, value in inputs.items()]
    names = onnx_emit.outputs_of(model)

    @tf.function(input_signature=specs)
    def call(*values):
        outputs = model(dict(zip(inputs, values)), training=False)
        return [outputs[name] for name in names]

    graph, _ = tf2onnx.convert.from_function(call, specs, opset=OPSET, custom_op_handlers={"Erfc": (erfc, [])})
    onnx_check.known_operators(graph)
    return graph


def run(graph, inputs):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]  # In the order of the function's arguments.
    return session.run(None, dict(zip(names, inputs.values())))


class WitnessTest(tf.test.TestCase):
    def check(self, family, heads):
        model = small.model(family, heads=heads)
        inputs = golden.token_cases(model, None, Options(16))["3x4"]
        want = {name: np.asarray(value) for name, value in model(inputs).items()}
        (ours,) = onnx_emit.emit(model, cache=False).values()
        feed = {onnx_emit.NAMES[name]: value.astype(np.int64) for name, value in inputs.items()}
        mine, theirs = run(ours, feed), run(converted(model, inputs), inputs)
        if heads == ("span",):
            mine = [np.stack(mine, -1)]
        for name, one, other in zip(onnx_emit.outputs_of(model), mine, theirs, strict=True):
            limit = 2e-5 * max(1, np.abs(want[name]).max())
            self.assertAllClose(one, want[name], rtol=0, atol=limit)
            self.assertAllClose(other, want[name], rtol=0, atol=limit)
            self.assertAllClose(one, other, rtol=0, atol=limit)

    def test_one_family(self):
        self.check("xlnet", ("classify",))

    @pytest.mark.faults
    def test_every_family_and_head(self):
        for family in FAMILIES:
            for heads in ((), *((head,) for head in models.page(family).Model.HEADS)):
                with self.subTest(family=family, heads=heads):
                    self.check(family, heads)


if __name__ == "__main__":
    tf.test.main()
