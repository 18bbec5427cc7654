"""The graphs against the Keras models, in onnxruntime."""

from typing import Any
from unittest import mock

import keras
import numpy as np
import onnx
import onnxruntime
import tensorflow as tf

from tests.export import small
from tfzoo import nn
from tfzoo.errors import UserError
from tfzoo.export import artifact, onnx_emit
from tfzoo.models import bert

CONFIGS: dict[str, dict[str, Any]] = {
    "as BERT is": {},
    "norm first, no segments": dict(norm_first=True, activation="gelu_tanh", num_segments=0),
    "sinusoidal positions": dict(positions="sinusoidal", activation="relu"),
    "silu": dict(activation="silu", num_layers=1, num_heads=4, norm_epsilon=1e-3),
    "RMS norms, grouped keys, gates, scores as they are": dict(
        norm="rms", num_heads=4, num_kv_heads=2, head_dim=6, gated_mlp=True, scale_scores=False, biases="qkv"
    ),
    "no biases, norms of queries and keys, a scaled sum with an offset": dict(
        biases="none", qk_norm=True, embedding_norm=False, scale_embeddings=True, position_offset=3
    ),
    "narrow embeddings, sines beside cosines, layers shared": dict(
        embedding_size=6, positions="sinusoidal_concat", position_offset=2, share_layers=True, num_layers=3
    ),
    "parallel blocks, no positions": dict(norm_first=True, parallel_blocks=True, positions="none"),
}
UNSUPPORTED: dict[str, dict[str, Any]] = {
    r"RelativeBias .bert/encoder/stack/relative_bias.": dict(positions="relative"),
    r"rotary positions .bert/encoder/stack.": dict(positions="rotary"),
    r"OtherAttention .bert/encoder/stack/layer_0/attention/kernel.": dict(attention="lean"),
}


def inputs(batch, length, segments=2):
    random = np.random.default_rng(1)
    values = {
        "token_ids": random.integers(0, len(small.VOCAB), (batch, length)),
        "segment_ids": random.integers(0, 2, (batch, length)),
        "padding_mask": np.arange(length) < np.linspace(length, 0, batch)[:, None],  # The last row has no token.
    }
    if not segments:
        del values["segment_ids"]
    return values


def run(graph, values):
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    named = {artifact.ONNX_NAMES[name]: value.astype(np.int64) for name, value in values.items()}
    return session.run(["logits"], named)[0]


class EmitTest(tf.test.TestCase):
    def test_every_config_answers_as_keras_does(self):
        for name, overrides in CONFIGS.items():
            with self.subTest(name):
                model = small.model(**overrides)
                graph = onnx_emit.emit(model)
                onnx.checker.check_model(graph, full_check=True)
                for batch, length in ((1, 1), (3, 7), (2, 32)):
                    values = inputs(batch, length, model.config.num_segments)
                    expected = model(values)["logits"]
                    self.assertAllClose(
                        run(graph, values), expected, rtol=0, atol=2e-5 * max(1, np.abs(expected).max())
                    )

    def test_reads_every_input(self):
        graph = onnx_emit.emit(small.model())
        values = inputs(3, 8)
        answer = run(graph, values)
        for name in values:
            other = values | {name: np.roll(values[name], 1, axis=1)}
            self.assertNotAllClose(run(graph, other), answer, atol=1e-3, msg=name)

    def test_names_axes_operators_and_weights(self):
        model = small.model(num_layers=4)
        graph = onnx_emit.emit(model)
        tensors = {value.name: value.type.tensor_type for value in [*graph.graph.input, *graph.graph.output]}
        self.assertEqual(list(tensors), ["input_ids", "attention_mask", "token_type_ids", "logits"])
        for name, tensor in tensors.items():
            axes = [axis.dim_param or axis.dim_value for axis in tensor.shape.dim]
            self.assertEqual(axes, ["batch", "sequence", *([len(small.VOCAB)] if name == "logits" else [])])
        self.assertEqual([(opset.domain, opset.version) for opset in graph.opset_import], [("", 23)])
        self.assertLessEqual(len(graph.graph.node), 93)
        operators = [node.op_type for node in graph.graph.node]
        self.assertEqual(operators.count("Attention"), 4)
        self.assertEqual(operators.count("LayerNormalization"), 10)
        self.assertEqual(operators.count("Gelu"), 5)

        weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
        used = [w for w in model.weights if "pooler" not in w.path and "next_sentence" not in w.path]
        for weight in used:
            self.assertAllEqual(weights.pop(weight.path), weight.numpy())
        self.assertTrue(all(name.startswith("constants/") for name in weights), list(weights))

    def test_ids_out_of_range_fail(self):
        graph = onnx_emit.emit(small.model())
        for name, bad in (("token_ids", -1), ("token_ids", len(small.VOCAB)), ("segment_ids", -1), ("segment_ids", 2)):
            values = inputs(1, 4)
            values[name][0, 2] = bad
            with self.assertRaisesRegex(Exception, "out of data bounds"):
                run(graph, values)
        with self.assertRaisesRegex(Exception, "broadcast"):  # Positions that do not exist.
            run(graph, inputs(1, 33))

    def test_a_model_of_another_precision_is_exported_in_float32(self):
        model = small.model(dtype="mixed_bfloat16")
        graph = onnx_emit.emit(artifact._float32(model))
        values = inputs(2, 8)
        self.assertAllClose(run(graph, values), small.model()(values)["logits"], rtol=0, atol=1e-4)

    def test_a_layer_without_an_emitter_is_named(self):
        class Doubled(nn.LayerNorm):
            def call(self, x):
                return 2 * super().call(x)

        model = small.model()
        block = model.encoder.stack.blocks[1]
        block._tracker.unlock()
        block.mlp_norm = Doubled(name="doubled")
        block.mlp_norm.build((None, None, 16))
        with self.assertRaisesRegex(UserError, r"Doubled .*doubled.* has no ONNX emitter; add one to EMITTERS"):
            onnx_emit.emit(model)

    def test_an_option_without_an_emitter_is_named(self):
        class OtherAttention(nn.FullAttention):
            pass

        for what, overrides in UNSUPPORTED.items():
            with mock.patch.dict("tfzoo.nn.attention.KINDS", lean=OtherAttention):
                model = small.model(**overrides)
            with self.assertRaisesRegex(UserError, f"^{what} has no ONNX emitter; add one to EMITTERS"):
                onnx_emit.emit(model)
        config = small.model().config
        for arguments, what in ((dict(causal=True), "causal attention"), (dict(cross=True), "cross attention")):
            stack = nn.Stack(config, **arguments, name="stack")
            stack.build((None, None, 16))
            with self.assertRaisesRegex(UserError, f"^{what} .*stack.* has no ONNX emitter"):
                onnx_emit.Graph().emit(stack, "x", "mask")

    def test_a_model_without_a_language_model_is_refused(self):
        model = bert.Model(small.model().config, heads=("tag",))
        with self.assertRaisesRegex(UserError, "bert has no head lm"):
            onnx_emit.emit(model)

    def test_an_activation_without_an_emitter_is_named(self):
        model = small.model()
        model.heads["lm"].transform.activation = keras.activations.softsign
        with self.assertRaisesRegex(UserError, "bert/lm/transform has an activation .*softsign"):
            onnx_emit.emit(model)


if __name__ == "__main__":
    tf.test.main()
