"""An independent check: tf2onnx traces what tfzoo emits layer by layer, and its graphs have the same answers."""

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
import tf2onnx

from tests.export import small
from tfzoo import models
from tfzoo.export import golden, interface, verify
from tfzoo.export.answers import Options
from tfzoo.export.onnx import check as onnx_check
from tfzoo.export.onnx import emit as onnx_emit
from tfzoo.export.onnx import trace as onnx_trace
from tfzoo.export.precision import Limits

FAMILIES = [family for family in small.FAMILIES if family != "reformer"]


def converted(model, inputs):
    """Returns tf2onnx's graph of a model for inputs of exactly these shapes; it does not support two free dimensions in
    one reshape."""
    specs = [tf.TensorSpec(value.shape, value.dtype, name) for name, value in inputs.items()]
    names = interface.outputs_of(model)

    @tf.function(input_signature=specs)
    def call(*values):
        outputs = model(dict(zip(inputs, values)), training=False)
        return [outputs[name] for name in names]

    graph, _ = tf2onnx.convert.from_function(
        call, specs, opset=onnx_trace.OPSET, custom_op_handlers={"Erfc": (onnx_trace.erfc, [])}
    )
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
        feed = interface.to_onnx(inputs)
        mine, theirs = run(ours, feed), run(converted(model, inputs), inputs)
        if heads == ("span",):
            mine = [np.stack(mine, -1)]
        for name, one, other in zip(interface.outputs_of(model), mine, theirs, strict=True):
            limit = 2e-5 * max(1, np.abs(want[name]).max())
            self.assertAllClose(one, want[name], rtol=0, atol=limit)
            self.assertAllClose(other, want[name], rtol=0, atol=limit)
            self.assertAllClose(one, other, rtol=0, atol=limit)

    def test_one_family(self):
        self.check("xlnet", ("classify",))

    @pytest.mark.faults
    def test_what_is_traced_answers_as_the_model_does(self):
        for heads in (("lm",), ("classify",), ("span",), ()):
            with self.subTest(heads=heads):
                model = small.model("reformer", heads=heads)
                (graph,) = onnx_emit.emit(model, length=32).values()
                onnx_check.known_operators(graph)
                read, found = verify.load_graphs({"model": graph.SerializeToString()})
                for _, shape in found["model"]["inputs"].values():
                    self.assertEqual(shape, ["batch", 32])
                for _, shape in found["model"]["outputs"].values():
                    self.assertEqual(shape[0], "batch")
                for inputs in golden.token_cases(model, None, Options(32)).values():
                    case = golden.onnx_case(model, inputs, Limits(2e-5))
                    got = read("tokens", case["inputs"])
                    for name, want in case["outputs"].items():
                        verify.compare(got[name], want, {"of": "largest", "allowed": 2e-5})
                for bad in (-1, len(small.VOCAB)):
                    ids = np.full((1, 32), bad)
                    with self.assertRaisesRegex(Exception, "out of data bounds|out of bounds|indices"):
                        read("tokens", {"input_ids": ids, "attention_mask": np.ones_like(ids)})

    @pytest.mark.faults
    def test_every_family_and_head(self):
        for family in FAMILIES:
            for heads in ((), *((head,) for head in models.page(family).Model.HEADS)):
                with self.subTest(family=family, heads=heads):
                    self.check(family, heads)


if __name__ == "__main__":
    tf.test.main()
