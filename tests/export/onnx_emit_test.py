"""The graphs in onnxruntime, compared with the Keras models."""

import collections
import pathlib
from collections.abc import Sequence
from typing import Any
from unittest import mock

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf

from tests import helpers
from tests.export import small
from tfzoo import models, nn
from tfzoo.config import POOLINGS, EmbeddingConfig, Projection
from tfzoo.errors import CheckFailed, UserError
from tfzoo.export import artifact, golden, interface, publish, variants, verify
from tfzoo.export.answers import Options
from tfzoo.export.onnx import bodies
from tfzoo.export.onnx import check as onnx_check
from tfzoo.export.onnx import emit as onnx_emit
from tfzoo.export.onnx import graph as onnx_graph
from tfzoo.export.precision import Limits, with_precision
from tfzoo.models import bart, bert, gpt2
from tfzoo.weights import huggingface

REFERENCES = pathlib.Path(__file__).parents[1] / "assets" / "golden"
# Variants of blocks, by configuration.
CONFIGS: dict[str, dict[str, Any]] = {
    "norm first, no segments": dict(norm_first=True, activation="gelu_tanh", num_segments=0),
    "sinusoidal positions, attention in tiles": dict(positions="sinusoidal", activation="relu", attention="lean"),
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
    "distances": dict(positions="relative", relative_buckets=8, relative_distance=12),
    "rotary": dict(positions="rotary"),
}
_WAVES = dict(low_freq_factor=1.0, high_freq_factor=4.0)
_SCALED = dict(factor=4.0, original_max_position_embeddings=8)
# Decoders, whose graphs have cached keys and values.
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "llama": ("llama", {}),
    "a window, norms of queries and keys": ("llama", dict(window=3, qk_norm=True, biases="qkv", num_kv_heads=4)),
    "llama3": ("llama", dict(rotary_scaling=dict(rope_type="llama3") | _WAVES | _SCALED)),
    "yarn": ("llama", dict(rotary_scaling=dict(rope_type="yarn") | _SCALED)),
    "dynamic": ("llama", dict(rotary_scaling=dict(rope_type="dynamic") | _SCALED)),
    "longrope": (
        "llama",
        dict(rotary_scaling=dict(rope_type="longrope", short_factor=[1, 1.5, 2], long_factor=[3, 2, 1]) | _SCALED),
    ),
    "palm": ("palm", {}),
    "bart": ("bart", {}),
    "t5": ("t5", {}),
    "t5, version 1.1": ("t5", dict(gated_mlp=True, activation="gelu_tanh", tie_embeddings=False)),
    "transformer": ("transformer", {}),
}  # fmt: skip
LIMITS = Limits(2e-5)
EMITTED = [family for family in small.FAMILIES if family != "reformer"]


def reader(graphs, shared=False):
    """Returns a function (_, inputs under ONNX's names) -> outputs, which runs graphs as verify.py does."""
    return verify.load_graphs({name: graph.SerializeToString() for name, graph in graphs.items()}, shared)[0]


def ask(graphs, inputs):
    return reader(graphs)("tokens", inputs)


class EmitTest(tf.test.TestCase):
    CASES: Sequence[str] = ("3x8",)

    def check(self, model, **options):
        graphs = onnx_emit.emit(model, **options)
        for graph in graphs.values():
            onnx.checker.check_model(graph, full_check=True)
        cached = any("past" in value.name for graph in graphs.values() for value in graph.graph.input)
        shared = options.get("profile") == "genai"
        run = reader(graphs, shared)
        for name, inputs in golden.token_cases(model, None, Options(sequence_length=32)).items():
            if name not in self.CASES:
                continue
            case = golden.onnx_case(model, inputs, LIMITS, cached, shared)
            got = run("tokens", case["inputs"])
            self.assertEqual(got.keys(), case["outputs"].keys())
            for name, limit in LIMITS.of(got).items():
                verify.compare(got[name], case["outputs"][name], limit)

    def check_families(self, heads_of, profiles):
        for family in EMITTED:
            for heads in heads_of(models.page(family).Model.HEADS, EMITTED.index(family)):
                for profile in profiles:
                    with self.subTest(family=family, heads=heads, profile=profile):
                        self.check(small.model(family, heads=heads), profile=profile, cache=False)

    def test_every_family(self):
        # Each has one head, and every head is in some family; the remaining combinations are below.
        self.check_families(lambda heads, i: [(heads[(i + 1) % len(heads)],)], ["standard"])

    def test_what_blocks_can_be(self):
        for name, overrides in CONFIGS.items():
            with self.subTest(name):
                overrides = dict(num_layers=1) | overrides
                self.check(small.model(**overrides), profile="compat" if len(name) % 2 else "standard")

    def check_decoders(self, names, **options):
        for name in names:
            family, overrides = DECODERS[name]
            with self.subTest(name):
                self.check(small.model(family, **overrides), **options)

    def test_decoders_read_piece_by_piece(self):
        self.check_decoders(["gpt2", "a window, norms of queries and keys", "longrope", "t5"])
        self.check_decoders(["dynamic", "bart"], profile="compat")

    def test_performer_as_a_decoder(self):
        self.check(small.model("performer", causal=True))

    def test_one_buffer_for_keys_and_values(self):
        for name, head_dim, operators in (
            ("gpt2", 8, {"GroupQueryAttention": 2}),
            ("a window, norms of queries and keys", 16, {"GroupQueryAttention": 2, "Split": 2}),
            ("llama3", 16, {"GroupQueryAttention": 2, "SkipSimplifiedLayerNormalization": 4}),
            ("llama", 8, {"GroupQueryAttention": 2, "RotaryEmbedding": 4, "Split": 2}),  # 8 / 2 is not a multiple of 8.
            ("dynamic", 16, {"GroupQueryAttention": 2, "RotaryEmbedding": 4, "Split": 2}),
        ):
            family, overrides = DECODERS[name]
            with self.subTest(name):
                model = small.model(family, **overrides | dict(head_dim=head_dim))
                self.check(model, profile="genai")
                (graph,) = onnx_emit.emit(model, profile="genai").values()
                found = collections.Counter(node.op_type for node in graph.graph.node)
                for operator in ("GroupQueryAttention", "RotaryEmbedding", "Split"):
                    self.assertEqual(found[operator], operators.get(operator, 0), operator)
                self.assertGreaterEqual(
                    found["SkipSimplifiedLayerNormalization"], operators.get("SkipSimplifiedLayerNormalization", 0)
                )

    def test_graphs_to_be_quantised(self):
        model = small.model("llama", head_dim=16, tie_embeddings=True)
        self.check(model, profile="genai", copy_tied=True)
        products = []
        for copy_tied in (False, True):
            (graph,) = onnx_emit.emit(model, profile="genai", copy_tied=copy_tied).values()
            products.append(sum(node.op_type == "MatMul" for node in graph.graph.node))
        self.assertEqual(products, [2 * 5 + 1, 2 * 4 + 1])  # Gate and up are one product.

    def test_what_onnxruntime_genai_cannot_run(self):
        for pattern, model in (
            (
                "requires a decoder that generates text .head lm., but the model is bert with the heads",
                small.model("bert"),
            ),
            ("the model is t5 with", small.model("t5")),
            ("gpt2 with the heads classify;", small.model("gpt2", heads=("classify",))),
            ("a head_dim that is a multiple of 8, but .* has head_dim=6", small.model("llama")),
            (
                "does not support a bias on the attention scores such as .*relative",
                small.model("gpt2", positions="relative"),
            ),
        ):
            with self.assertRaisesRegex(UserError, f"--onnx_profile=genai: .*{pattern}"):
                onnx_emit.emit(model, profile="genai")

    def test_every_pool(self):
        for pool in POOLINGS:
            with self.subTest(pool):
                self.check(small.model("distilbert", heads=("classify",), pool=pool))

    def test_vectors(self):
        layers = (Projection(5, "gelu"), "normalize", Projection(4, "none", False))
        for family, embed in (
            ("bert", EmbeddingConfig(pooling=POOLINGS, layers=layers)),
            ("gpt2", EmbeddingConfig(pooling=("last", "weighted_mean"), include_prompt=False, layers=("normalize",))),
        ):
            model = small.model(family, heads=("embed",), embed=embed)
            for options in (dict(profile="standard"), dict(profile="compat")):
                with self.subTest(family, **options):
                    self.check(model, **options)
            (graph,) = onnx_emit.emit(model).values()
            self.assertEqual([value.name for value in graph.graph.output], ["sentence_embedding"])
            self.assertEqual("pooling_mask" in [value.name for value in graph.graph.input], family == "gpt2")

    def check_references(self, names):
        """The graphs of Hugging Face folders reproduce the outputs of Hugging Face's models."""
        for name in names:
            with self.subTest(name):
                model, _ = huggingface.load(REFERENCES / name)
                golden_file = np.load(REFERENCES / name / "golden.npz")
                (graph,) = onnx_emit.emit(model, cache=False).values()
                inputs = {key: golden_file.get(f"input.{key}") for key in interface.inputs_of(model)}
                shape = inputs["token_ids"].shape
                blank = {"padding_mask": np.ones(shape), "decoder_padding_mask": None, "segment_ids": np.zeros(shape)}
                if "decoder_token_ids" in inputs:
                    blank["decoder_padding_mask"] = np.ones(inputs["decoder_token_ids"].shape)
                feed = {key: blank[key] if value is None else value for key, value in inputs.items()}
                got = ask({"model": graph}, interface.to_onnx(feed))
                for ours, theirs in interface.onnx_outputs(model).items():
                    want = golden_file[f"output.{ours}"]
                    value = np.stack(list(got.values()), -1) if ours == "span_logits" else got[theirs]
                    mask = inputs.get("decoder_padding_mask", inputs["padding_mask"])
                    if mask is not None and want.shape[:2] == mask.shape:
                        value, want = value[mask], want[mask]
                    self.assertAllClose(value, want, rtol=0, atol=2e-5 * max(1, np.abs(want).max()))

    def test_hugging_faces_own_answers(self):
        self.check_references(["bert_classify", "llama_longrope", "t5"])

    def test_reads_every_input(self):
        for family, heads in (("bert", ("relation",)), ("bart", ("classify",))):
            model = small.model(family, heads=heads)
            graphs = onnx_emit.emit(model)
            inputs = golden.onnx_case(model, golden.token_cases(model, None, Options(16))["3x4"], LIMITS)["inputs"]
            answer = ask(graphs, inputs)["logits"]
            for name, value in inputs.items():
                other = inputs | {name: np.roll(value, 1, axis=1)}
                self.assertNotAllClose(ask(graphs, other)["logits"], answer, atol=1e-3, msg=name)

    def test_names_axes_operators_and_weights(self):
        model = small.model(num_layers=4, heads=("lm",))
        (graph,) = onnx_emit.emit(model).values()
        tensors = {value.name: value.type.tensor_type for value in [*graph.graph.input, *graph.graph.output]}
        self.assertEqual(list(tensors), ["input_ids", "token_type_ids", "attention_mask", "logits"])
        for name, tensor in tensors.items():
            axes = [axis.dim_param or axis.dim_value for axis in tensor.shape.dim]
            self.assertEqual(axes, ["batch", "sequence", *([len(small.VOCAB)] if name == "logits" else [])])
        self.assertEqual([(opset.domain, opset.version) for opset in graph.opset_import], [("", 23)])
        self.assertLessEqual(len(graph.graph.node), 95)  # Two of them are evaluated once, when the graph is loaded.
        operators = [node.op_type for node in graph.graph.node]
        self.assertEqual(operators.count("Attention"), 4)
        self.assertEqual(operators.count("LayerNormalization"), 10)
        self.assertEqual(operators.count("Gelu"), 5)

        weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
        for weight in model.weights:
            self.assertAllEqual(weights.pop(weight.path), weight.numpy())
        self.assertTrue(all(name.startswith("constants/") for name in weights), list(weights))

    def test_decoders_have_one_product_for_queries_keys_and_values(self):
        for family, options in (("gpt2", {}), ("llama", dict(num_kv_heads=2))):
            model = small.model(family, **options)
            (graph,) = onnx_emit.emit(model).values()
            weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
            for block in model.decoder.stack.blocks:
                layers = [block.attention.query, block.attention.key, block.attention.value]
                name = f"{block.attention.path}/query_key_value"
                kernels = [layer.kernel.numpy() for layer in layers]
                self.assertAllEqual(weights[f"{name}/kernel"], np.concatenate(kernels, 1))
                if family == "gpt2":
                    biases = [layer.bias.numpy() for layer in layers]
                    self.assertAllEqual(weights[f"{name}/bias"], np.concatenate(biases))

    def test_a_header_is_the_file_without_its_weights(self):
        folder = pathlib.Path(self.get_temp_dir())
        for apart in (False, True):
            (graph,) = onnx_emit.emit(small.model("gpt2", vocab_size=3000), folder if apart else None).values()
            for name, write in (("ours", onnx_graph.write_file), ("theirs", onnx.save)):
                path, copy = folder / f"{name}.onnx", onnx.ModelProto()
                copy.CopyFrom(graph)
                write(copy, path)
                header = onnx_graph.read_header(path)
                whole = onnx.load(path, load_external_data=False)
                self.assertNotEmpty(whole.graph.initializer)
                described = onnx_graph.read_header(path, described=True)
                self.assertLess(max(len(tensor.raw_data) for tensor in described.graph.initializer), 4096)
                onnx.load_external_data_for_model(described, str(folder))
                for tensor, same in zip(described.graph.initializer, onnx.load(path).graph.initializer, strict=True):
                    self.assertEqual(tensor.name, same.name)
                    self.assertAllEqual(onnx.numpy_helper.to_array(tensor), onnx.numpy_helper.to_array(same))
                del whole.graph.initializer[:]
                self.assertEqual(header, whole)

    def test_a_tensor_with_missing_bytes_is_not_valid(self):
        path = pathlib.Path(self.get_temp_dir(), "model.onnx")
        (graph,) = onnx_emit.emit(small.model(vocab_size=3000)).values()
        (tensor, *_) = [tensor for tensor in graph.graph.initializer if len(tensor.raw_data) > 4096]
        for change, pattern in (
            (lambda: setattr(tensor, "raw_data", tensor.raw_data[:-4]), "has 191,996 bytes, but its shape requires"),
            (lambda: tensor.float_data.append(1.0), "TensorProto .* should not have"),
        ):
            onnx.save(graph, path)
            onnx_check.check(path)
            change()
            onnx.save(graph, path)
            with self.assertRaisesRegex(CheckFailed, pattern):
                onnx_check.check(path)
            tensor.raw_data += bytes(-len(tensor.raw_data) % 192_000)

    def test_quantised_graphs_state_no_shapes(self):
        """onnxruntime would fuse them into a slow operator."""
        model, folder = small.model(heads=("lm",)), pathlib.Path(self.get_temp_dir())
        (path,) = onnx_emit.save(model, folder, copy_tied=True)
        variants._quantise("int8", path, folder / "model_int8.onnx", None)
        self.assertEmpty(onnx.load(folder / "model_int8.onnx").graph.value_info)
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(folder / "model_int8.onnx", options, providers=["CPUExecutionProvider"])
        operators = [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]
        self.assertEqual(operators.count("SkipLayerNormalization"), 0)

    def test_every_constant_is_read(self):
        """onnxruntime warns about unused ones."""
        for family in ("roberta", "llama", "t5"):
            for graph in onnx_emit.emit(small.model(family)).values():
                read = {name for node in graph.graph.node for name in node.input}
                self.assertLessEqual({tensor.name for tensor in graph.graph.initializer}, read)

    def test_hugging_faces_names(self):
        graphs = onnx_emit.emit(small.model("t5"))
        self.assertEqual(list(graphs), ["encoder_model", "decoder_with_past_model"])
        parts = [f"{part}.{kind}" for part in ("encoder", "decoder") for kind in ("key", "value")]
        (encoder, decoder) = (
            [[value.name for value in values] for values in (g.graph.input, g.graph.output)] for g in graphs.values()
        )
        self.assertEqual(encoder[0], ["input_ids", "attention_mask"])
        self.assertEqual(encoder[1][0], "last_hidden_state")
        self.assertCountEqual(encoder[1][1:], [f"present.{i}.{part}" for i in range(3) for part in parts[:2]])
        self.assertEqual(decoder[0][:2], ["input_ids", "encoder_attention_mask"])
        self.assertCountEqual(decoder[0][2:], [f"past_key_values.{i}.{part}" for i in range(3) for part in parts])
        self.assertEqual(decoder[1][0], "logits")
        self.assertCountEqual(decoder[1][1:], [f"present.{i}.{part}" for i in range(3) for part in parts[2:]])

        (graph,) = onnx_emit.emit(small.model(heads=("span",))).values()
        self.assertEqual([value.name for value in graph.graph.output], ["start_logits", "end_logits"])
        (graph,) = onnx_emit.emit(small.model(heads=())).values()
        self.assertEqual([value.name for value in graph.graph.output], ["last_hidden_state", "pooler_output"])

    def test_the_compat_profile_has_what_opset_18_has(self):
        for graph in onnx_emit.emit(small.model("llama"), profile="compat").values():
            self.assertEqual([(opset.domain, opset.version) for opset in graph.opset_import], [("", 18)])
            onnx_check.known_operators(graph)
            self.assertNotIn("Attention", {node.op_type for node in graph.graph.node})

    def test_the_reference_implementation_agrees(self):
        onnx_check.check_twin(small.model("llama"))

    def test_unknown_operators_fail(self):
        (graph,) = onnx_emit.emit(small.model(num_layers=1)).values()
        for domain, operator in (("", "Erfc"), ("com.microsoft", "BiasGelu")):
            other = onnx.ModelProto.FromString(graph.SerializeToString())
            other.graph.node[3].op_type, other.graph.node[3].domain = operator, domain
            with self.assertRaisesRegex(ValueError, f"unknown operator .*{operator}"):
                onnx_check.known_operators(other)

    def test_ids_out_of_range_fail(self):
        graphs = onnx_emit.emit(small.model())
        good = {name: np.zeros((1, 4), np.int64) for name in ("input_ids", "token_type_ids", "attention_mask")}
        ask(graphs, good)
        for name, bad in (
            ("input_ids", -1),
            ("input_ids", len(small.VOCAB)),
            ("token_type_ids", -1),
            ("token_type_ids", 2),
        ):
            values = {key: value.copy() for key, value in good.items()}
            values[name][0, 2] = bad
            with self.assertRaisesRegex(Exception, "out of data bounds"):
                ask(graphs, values)
        with self.assertRaisesRegex(Exception, "broadcast"):  # Positions that do not exist.
            ask(graphs, {name: np.zeros((1, 33), np.int64) for name in good})

    def test_a_model_of_another_precision_is_exported_in_float32(self):
        half = small.model(heads=("tag",), dtype="mixed_bfloat16")
        model = with_precision(half, "float32")
        self.assertEqual(model.compute_dtype, "float32")
        self.check(model)
        values = {"token_ids": np.ones((1, 4), np.int32)}
        self.assertAllClose(model(values)["tag_logits"], small.model(heads=("tag",))(values)["tag_logits"], atol=1e-6)

    def test_half_precision(self):
        model = small.model("gpt2")
        case = golden.onnx_case(model, golden.token_cases(model, None, Options(16))["3x4"], LIMITS, True)
        for profile in ("standard", "compat"):
            graphs = onnx_emit.emit(model, dtype="float16", profile=profile)
            kinds = {tensor.data_type for tensor in graphs["model"].graph.initializer if "layer_0" in tensor.name}
            self.assertEqual(kinds, {onnx.TensorProto.FLOAT16})
            got = ask(graphs, case["inputs"])["logits"]
            self.assertEqual(got.dtype, np.float32)
            verify.compare(got, case["outputs"]["logits"], {"of": "largest", "allowed": 1e-2})

    def test_weights_beside_the_graph(self):
        model = small.model(vocab_size=3000)
        folder = self.get_temp_dir()
        (graph,) = onnx_emit.emit(model, folder).values()
        with open(f"{folder}/model.onnx", "wb") as file:
            file.write(graph.SerializeToString())
        self.assertLess(len(graph.SerializeToString()), model.count_params() * 4 / 2)
        inputs = {name: np.ones((1, 4), np.int64) for name in ("input_ids", "token_type_ids", "attention_mask")}
        (whole,) = onnx_emit.emit(model).values()
        run = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"]).run
        self.assertAllEqual(run(["logits"], inputs)[0], ask({"model": whole}, inputs)["logits"])

    def test_what_is_written_is_what_was_emitted(self):
        # A matrix whose size takes three varint bytes.
        model, folder = small.model(vocab_size=3000), self.get_temp_dir()
        (path,) = onnx_emit.save(model, folder)
        (graph,) = onnx_emit.emit(model).values()
        self.assertEqual(onnx.load(path), graph)
        self.assertEqual(path.stat().st_size, graph.ByteSize())

    def test_a_layer_without_an_emitter_is_named(self):
        class Doubled(nn.LayerNorm):
            def call(self, x):
                return 2 * super().call(x)

        model = small.model()
        block = model.encoder.stack.blocks[1]
        block._tracker.unlock()
        block.mlp_norm = Doubled(name="doubled")
        block.mlp_norm.build((None, None, 16))
        with self.assertRaisesRegex(
            UserError, r"Doubled .*doubled.* has no ONNX emitter; add a method onnx_call to its class, or"
        ):
            onnx_emit.emit(model)

    def own(self, kind, **options):
        """Returns a model of a custom class with the weights of its family's small model."""
        model = small.model(kind.family, num_layers=1, **options)
        mine = kind(model.config, heads=model.head_names, labels=model.labels)
        mine.set_weights(model.get_weights())
        return mine

    def test_a_page_of_ones_own(self):
        class Plain(gpt2.Model):
            """A subclass inherits the emitters of the methods that it does not override."""

        (graph,) = onnx_emit.emit(self.own(Plain)).values()
        self.assertIn("past_key_values.0.key", [value.name for value in graph.graph.input])
        self.check(self.own(Plain))

        class Shifted(bert.Model):
            """The subclass defines both."""

            def body(self, inputs, training):
                outputs = super().body(inputs, training)
                return outputs | {"sequence": outputs["sequence"] + 1}

            def onnx_body(self, graph, inputs):
                sequence = graph.emit(self.encoder, inputs["token_ids"], inputs["padding_mask"], inputs["segment_ids"])
                return {"sequence": graph.add("Add", sequence, graph.number(1.0), at=self.name)}

        self.check(self.own(Shifted, heads=("tag",)))
        self.check(self.own(type("Further", (Shifted,), {}), heads=("tag",)))

        class Halved(nn.LayerNorm):
            def call(self, x):
                return super().call(x) / 2

            def onnx_call(self, graph, x):
                return graph.add("Div", graph.emitters[nn.LayerNorm](graph, self, x), graph.number(2.0), at=self.path)

        model = small.model(heads=("tag",))
        block = model.encoder.stack.blocks[1]
        block._tracker.unlock()
        block.mlp_norm = Halved(name="halved")
        block.mlp_norm.build((None, None, 16))
        self.check(model)

    def test_what_a_page_of_ones_own_computes_otherwise_is_traced(self):
        class Body(gpt2.Model):
            def body(self, inputs, training):
                outputs = super().body(inputs, training)
                return {"sequence": outputs["sequence"] + 1}

        class Positions(bert.Model):
            def position_ids(self, inputs):
                return inputs["token_ids"] * 0

        class Answer(bert.Model):
            def answer(self, *arguments):
                return super().answer(*arguments) + 1

        class Both(bart.Model):
            def encode(self, inputs, training=False):
                return super().encode(inputs, training) + 1

        for kind in (Body, Positions, Answer, Both):
            self.assertIsNone(bodies.body_of(self.own(kind)), kind.__name__)
            self.assertIsNotNone(bodies.body_of(self.own(type("Same", kind.__bases__, {}))))

    @pytest.mark.faults
    def test_what_is_traced_is_exported(self):
        class Body(gpt2.Model):
            def body(self, inputs, training):
                return {"sequence": super().body(inputs, training)["sequence"] + 1}

        class Both(bart.Model):
            def encode(self, inputs, training=False):
                return super().encode(inputs, training) + 1

        for kind in (Body, Both):
            with mock.patch.object(publish, "replay"):
                folder = artifact.export(
                    self.own(kind), small.tokenizer(), helpers.temporary_folder(self), formats=["onnx"],
                    sequence_length=8, max_new_tokens=2,
                )["onnx"]  # fmt: skip
            self.assertIn("onnx", verify.verify(folder))

    def test_what_has_no_emitter_is_named(self):
        with self.assertRaisesRegex(UserError, "reformer has no emitters .* remove float16 from --onnx_variants"):
            onnx_emit.emit(small.model("reformer"), dtype="float16")
        with self.assertRaisesRegex(UserError, "--onnx_profile=old"):
            onnx_emit.emit(small.model(), profile="old")
        model = small.model()
        model.heads["lm"].transform.activation = keras.activations.softsign
        with self.assertRaisesRegex(UserError, "bert/lm/transform has an activation .*softsign"):
            onnx_emit.emit(model)


@pytest.mark.faults
class EverythingTest(EmitTest):
    """The same with more models and every shape."""

    CASES = ("1x2", "3x8", "2x32")

    def test_every_family_and_head(self):
        self.check_families(lambda heads, i: [(), heads, *((head,) for head in heads)], ["standard", "compat"])

    def test_every_decoder(self):
        for profile in ("standard", "compat"):
            self.check_decoders(DECODERS, profile=profile)

    def test_every_decoder_in_one_buffer(self):
        for name, (family, overrides) in DECODERS.items():
            if family in ("gpt2", "llama", "palm") and name != "longrope":  # It has factors for heads of 6 numbers.
                for head_dim in (8, 16):
                    with self.subTest(name, head_dim=head_dim):
                        self.check(small.model(family, **overrides | dict(head_dim=head_dim)), profile="genai")

    def test_hugging_faces_own_answers_of_every_family(self):
        other = {"reformer", "reformer_masked", "xlnet_memory", "xlnet_permutation"}
        self.check_references(sorted(path.name for path in REFERENCES.iterdir() if path.name not in other))

    def test_every_reference_implementation(self):
        for family in EMITTED:
            onnx_check.check_twin(small.model(family), "compat" if EMITTED.index(family) % 2 else "standard")


class CheckTest(tf.test.TestCase):
    def test_a_wrong_emitter_fails_the_twin(self):
        def shifted(graph, layer, x):
            return graph.add("Add", layer_norm(graph, layer, x), graph.number(0.01), at=layer.path)

        layer_norm = onnx_emit.EMITTERS[nn.LayerNorm]
        with mock.patch.dict(onnx_emit.EMITTERS, {nn.LayerNorm: shifted}):
            with self.assertRaisesRegex(CheckFailed, "reference implementation does not reproduce the model's answers"):
                onnx_check.check_twin(small.model())

    def test_variants_say_how_far_they_are(self):
        model, folder = small.model("gpt2", hidden_size=32), pathlib.Path(self.get_temp_dir())
        graphs, options = onnx_emit.save(model, folder), Options(16)
        cases = golden.token_cases(model, None, options)
        written = golden.written_cases(model, None, options, LIMITS)
        golden.write(
            folder / "golden.npz",
            {
                "tokens": {n: golden.onnx_case(model, case, LIMITS, True) for n, case in cases.items()},
                "generate": written,
            },
        )
        rows = golden.calibration(model, None, options)
        self.assertTrue(all((row["attention_mask"] == 1).all() and len(row["input_ids"]) == 1 for row in rows))
        limits: dict[str, dict] = {"tokens": LIMITS.of(["logits"]), "generate": {}}
        found = variants.write(model, folder, graphs, variants.VARIANTS, "standard", rows, limits)
        self.assertEqual(tuple(found), variants.VARIANTS)
        far = {name: each["measured"]["tokens/logits"]["difference"] for name, each in found.items()}
        self.assertBetween(far["float16"], 1e-5, 1e-2)
        self.assertLess(far["float16"], far["int8_weights"])
        self.assertLess(far["int8_weights"], min(far["int8"], far["int4_weights"]))
        self.assertLess(far["int8"], far["int8_static"])
        # Without VNNI, onnxruntime adds two products in 16 bits, where they may saturate.
        self.assertLess(far["int8_static"], 0.3 if "avx512_vnni" in helpers.processor_flags() else 0.5)
        tokens = {name: each["measured"]["generate/generated_ids"] for name, each in found.items()}
        self.assertEqual(tokens["float16"], {"equal": 16, "compared": 16})
        self.assertLess(tokens["int4_weights"]["equal"], 16)
        for name, each in found.items():
            self.assertGreater(each["measured"]["tokens/logits"]["equal"], 0.7 * 21, name)
            self.assertGreater(min(each["milliseconds"], each["float32"]["milliseconds"]), 0)
            size = (folder / f"model_{name}.onnx").stat().st_size
            self.assertEqual((each["bytes"], each["float32"]["bytes"]), (size, graphs[0].stat().st_size))
        files = {f"model_{name}.onnx" for name in variants.VARIANTS} | {"golden.npz", "model.onnx"}
        self.assertEqual({path.name for path in folder.iterdir()}, files)

        with (
            mock.patch.dict(variants.MOST, int8=1e-9),
            self.assertRaisesRegex(
                CheckFailed, "--onnx_variants: int8 does not reproduce the float32 answers: .*differs by .*; omit it"
            ),
        ):
            variants.write(model, folder, graphs, ["int8"], "standard", rows, limits)
        with (
            mock.patch.object(variants, "_quantise", side_effect=RuntimeError("no\nsuch")),
            self.assertRaisesRegex(CheckFailed, "int8 does not reproduce the float32 answers: no such; omit it"),
        ):
            variants.write(model, folder, graphs, ["int8"], "standard", rows, limits)
        limits["tokens"]["logits"]["allowed"] = 0.0
        with self.assertRaisesRegex(
            CheckFailed, "the graphs to quantise do not reproduce the model's answers: .*differs"
        ):
            variants.write(model, folder, graphs, ["int8"], "standard", rows, limits)
        # All 9 products with weights, and no other, are quantised.
        for name in ("int8", "int8_weights", "int4_weights"):
            operators = [node.op_type for node in onnx.load(folder / f"model_{name}.onnx").graph.node]
            operator = "MatMulInteger" if name == "int8" else "MatMulNBits"
            self.assertEqual((operators.count(operator), operators.count("MatMul")), (9, 0))
        nodes = onnx.load(folder / "model_int8_static.onnx").graph.node
        dequantised = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
        products = [node for node in nodes if node.op_type == "MatMul"]
        self.assertLen(products, 9)
        self.assertTrue(all(set(node.input) <= dequantised for node in products))

    def test_static_quantisation_reads_texts_as_the_model_does(self):
        tokenizer, options = small.tokenizer(), Options(8, text_pair=True, max_new_tokens=2)
        the, function, of = (small.VOCAB.index(word) for word in ("the", "function", "of"))
        begin, end = small.VOCAB.index("[CLS]"), small.VOCAB.index("[SEP]")

        def rows(family, heads, *texts):
            model = small.model(family, heads=heads, num_layers=1)
            return golden.calibration(model, tokenizer, options, texts)

        (pair,) = rows("bert", ("classify",), "the function\tof", "  ")
        self.assertAllEqual(pair["input_ids"], [[begin, the, function, end, of, end]])
        self.assertAllEqual(pair["token_type_ids"], [[0, 0, 0, 0, 1, 1]])
        (text,) = rows("gpt2", ("lm",), "the function of")
        self.assertAllEqual(text["input_ids"], [[the, function, of]])
        self.assertAllEqual(text["attention_mask"], [[1, 1, 1]])
        (tokens,) = rows("electra", ("discriminate",), "the " * 9)
        self.assertAllEqual(tokens["input_ids"], [[the] * 8])
        self.assertGreaterEqual(len(rows("gpt2", ("lm",))), 3)  # The texts of golden.npz.


if __name__ == "__main__":
    tf.test.main()
