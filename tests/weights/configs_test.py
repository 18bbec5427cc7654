"""config.json: the meaning of missing fields, both spellings of fields, and what is rejected by name."""

import json
import pathlib

import tensorflow as tf

from tfzoo import models
from tfzoo.errors import UserError
from tfzoo.weights import config_fields, huggingface

ASSETS = pathlib.Path(__file__).parents[1] / "assets"
GOLDEN = json.loads((ASSETS / "golden_configs" / "golden.json").read_text())


def record_of(case: str, **fields):
    """Returns a golden folder's config.json with changed fields; None removes a field."""
    record = json.loads((ASSETS / "golden" / case / "config.json").read_text()) | fields
    return {name: value for name, value in record.items() if fields.get(name, ...) is not None}


def decode(record):
    return huggingface.decode_config("config.json", record, models.page(models.model_types()[record["model_type"]]))


def outcome(record):
    """Returns the fields, or "refused"."""
    try:
        return decode(record).resolved()
    except UserError:
        return "refused"


class MissingTest(tf.test.TestCase):
    def test_a_missing_field_has_the_references_default(self):
        """Removes every field of every model_type in turn."""
        self.assertEqual({*GOLDEN}, {kind for kind in models.model_types() if config_fields._known(kind)["defaults"]})
        explicit = 0
        for kind, case in GOLDEN.items():
            page, complete = models.page(models.model_types()[kind]), outcome(case["whole"])
            self.assertEqual(outcome(case["record"]), complete, kind)
            self.assertNotEqual(complete, "refused", kind)
            for name, change in case["without"].items():
                with self.subTest(kind, without=name):
                    self.assertNotEqual(change, "refused")
                    expected, record = case["whole"] | change, {k: v for k, v in case["record"].items() if k != name}
                    result = outcome(record)
                    self.assertEqual(result, outcome(expected))
                    if result == "refused":  # For example, sizes that are no longer consistent.
                        continue
                    explicit += result != complete
                    config = decode(record)
                    own = page.decode_config(expected) if hasattr(page, "decode_config") else {}
                    for ours, theirs in page.CONFIG.items():
                        if ours not in own and expected.get(theirs) is not None:
                            self.assertEqual(config.resolved()[ours], huggingface._decode(ours, expected[theirs]))
        self.assertGreater(explicit, 150)

    def test_defaults_that_depend_on_other_fields(self):
        for case, without, expected in (
            ("llama", "num_key_value_heads", dict(num_kv_heads=4)),
            ("llama", "head_dim", dict(head_dim=4)),
            ("qwen3", "head_dim", dict(head_dim=128)),
            ("mistral", "sliding_window", dict(window=4096)),
            ("llama", "rms_norm_eps", dict(norm_epsilon=1e-6)),
            ("gpt2", "n_inner", dict(intermediate_size=64)),
            ("reformer", "is_decoder", dict(causal=False)),
            ("bert", "type_vocab_size", dict(num_segments=2)),
        ):
            record = record_of(case)
            del record[without]
            found = decode(record).resolved()
            for name, value in expected.items():
                self.assertEqual(found[name], value, (case, without))
        record = record_of("mistral", num_attention_heads=16)
        del record["num_key_value_heads"]
        self.assertEqual(decode(record).num_kv_heads, 8)
        self.assertEqual(decode(record_of("mistral") | {"sliding_window": None}).window, 0)
        self.assertEqual(huggingface._num_labels({"model_type": "bart"}), 3)
        self.assertEqual(huggingface._num_labels({"model_type": "mbart"}), 2)

    def test_every_field_of_the_reference_is_read_or_has_no_effect(self):
        for kind, case in GOLDEN.items():
            page = models.page(models.model_types()[kind])
            for name in set(case["record"]) - {"model_type"}:
                if outcome(case["record"] | {name: "odd"}) != "refused" and not name.endswith("_token_id"):
                    ignored = {*config_fields.IGNORED, *getattr(page, "IGNORED", ())}
                    if kind == "mt5":  # Classes that never tie, regardless of the config.
                        ignored.add("tie_word_embeddings")
                    if kind.startswith("qwen"):  # Only use_sliding_window gives it a meaning.
                        ignored.add("sliding_window")
                    self.assertIn(name, ignored, kind)


class SpellingTest(tf.test.TestCase):
    def test_older_and_newer_names(self):
        newer = record_of("llama_yarn")
        older = {name: value for name, value in newer.items() if name not in ("rope_parameters", "dtype")}
        scaling = dict(newer["rope_parameters"])
        older |= dict(rope_theta=scaling.pop("rope_theta"), torch_dtype="float32")
        older["rope_scaling"] = scaling
        self.assertEqual(decode(older), decode(newer))
        scaling["type"] = scaling.pop("rope_type")
        self.assertEqual(decode(older | {"rope_scaling": scaling}), decode(newer))
        self.assertEqual(decode(newer | older), decode(newer))  # Files that are intended for both.
        self.assertEqual(decode(older | {"rope_scaling": None}).rotary_scaling, {})
        gpt2 = record_of("gpt2")
        renamed = {dict(n_embd="hidden_size", n_layer="num_hidden_layers").get(k, k): v for k, v in gpt2.items()}
        self.assertEqual(decode(renamed), decode(gpt2))
        self.assertEqual(decode(renamed | {"n_embd": 16}), decode(gpt2))

    def test_fields_without_effect(self):
        extra = dict(_name_or_path="x", gradient_checkpointing=False, use_cache=False, chunk_size_feed_forward=3)
        extra |= dict(directionality="bidi", pooler_fc_size=768, classifier_dropout=0.3, max_length=30, nothing=None)
        extra |= dict(add_cross_attention=False, pruned_heads={}, is_decoder=None, sep_token_id=3)
        self.assertEqual(decode(record_of("bert") | extra), decode(record_of("bert")))
        smollm = dict(is_llama_config=True, rope_interleaved=False, pretraining_tp=1, rope_scaling=None)
        self.assertEqual(decode(record_of("llama") | smollm), decode(record_of("llama")))
        qwen = dict(sliding_window=9, max_window_layers=1, layer_types=["full_attention"] * 2)
        self.assertEqual(decode(record_of("qwen2") | qwen), decode(record_of("qwen2")))


class RefusedTest(tf.test.TestCase):
    def refused(self, case, words, **fields):
        with self.assertRaises(UserError) as caught:
            decode(record_of(case) | fields)
        message = str(caught.exception)
        self.assertTrue(message.startswith("config.json: "), message)
        self.assertNotIn("\n", message)
        self.assertRegex(message, words)

    def test_unknown_fields(self):
        self.refused("llama", r"sliding_window is 4, an unknown field for model_type llama", sliding_window=4)
        self.refused("llama", r"logits_scaling is 8.0, .* remove it", logits_scaling=8.0)
        self.refused("bert", r"layer_norm_epsilon is 0.1, .*did you mean layer_norm_eps", layer_norm_epsilon=0.1)
        self.refused(
            "bert", r"add_cross_attention is True, but tfzoo's bert supports only False", add_cross_attention=True
        )
        self.refused("t5", "tie_encoder_decoder is True", tie_encoder_decoder=True)
        self.refused("xlnet", "same_length is True", same_length=True)
        self.refused(
            "llama", r"quantization_config declares quantised weights \('fp8'\).* unquantised weights",
            quantization_config={"quant_method": "fp8"},
        )  # fmt: skip
        self.refused("llama", "quantization declares quantised weights", quantization={"bits": 4})
        self.refused("llama", "rope_interleaved is True", rope_interleaved=True)

    def test_fields_that_contradict_each_other(self):
        yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
        self.refused("qwen2", "rope_scaling contradicts rope_parameters", rope_scaling=yarn)
        self.refused("llama", r"rope_theta is 500.0 and 10000.0; remove one", rope_theta=500.0)
        self.refused("gpt2", "hidden_size is 8 and n_embd is 16, but both name the same field", hidden_size=8)
        self.refused("bart", "num_hidden_layers is 7 and encoder_layers is 2", num_hidden_layers=7)
        self.refused("t5_v1_1", "dense_act_fn is 'relu', but feed_forward_proj is 'gated-gelu'", dense_act_fn="relu")
        self.refused("marian", r"decoder_vocab_size is 9, but vocab_size is 53", decoder_vocab_size=9)
        self.refused("xlnet", r"d_head \(3\) times n_head", d_head=3)
        self.refused("bert", "layer_norm_eps is null; give it a value, or omit it for 1e-12", layer_norm_eps=None)
        self.refused("roberta", "pad_token_id is null", pad_token_id=None)

    def test_layers_of_several_kinds(self):
        mixed = ["full_attention", "sliding_attention"]
        self.refused("qwen3", "layer_types has 'sliding_attention', .* have full_attention", layer_types=mixed)
        self.refused("mistral", "layer_types has 'full_attention', .* have sliding_attention", layer_types=mixed)
        self.refused("qwen2", "layer_types has 1 items, but num_hidden_layers is 2", layer_types=["full_attention"])

    def test_invalid_rotary_scalings(self):
        for words, scaling in (
            ("unknown rope_type 'su'; use one of default, linear", dict(type="su")),
            ("has no factor, which must be a number", dict(type="linear")),
            ("factor is '2', not a number", dict(type="linear", factor="2")),
            ("factor is 0, not a number of at least", dict(type="dynamic", factor=0)),
            (r"betafast \(3\) is not a field of rope_type yarn", dict(type="yarn", factor=2.0, betafast=3)),
            ("low_freq_factor", dict(rope_type="llama3", factor=2.0, high_freq_factor=4.0)),
            (r"low_freq_factor \(4.0\) must be below", dict(rope_type="llama3", factor=2.0, high_freq_factor=4.0)
             | dict(low_freq_factor=4.0)),
            ("short_factor has 1 values", dict(type="longrope", short_factor=[1.0], long_factor=[1.0, 2.0])),
            ("type 'linear' and the rope_type 'yarn'", dict(type="linear", rope_type="yarn", factor=2.0)),
            ("dynamic scaling uses max_position_embeddings", dict(type="dynamic", factor=2.0)
             | dict(original_max_position_embeddings=7)),
            ("full_attention .* is not a field of rope_type default", dict(full_attention=dict(rope_type="default"))),
            ("partial_rotary_factor is 0.5", dict(partial_rotary_factor=0.5)),
        ):  # fmt: skip
            with self.subTest(scaling=scaling):
                self.refused("llama", words, rope_parameters=None, rope_scaling=scaling)
        self.refused("llama", r"rotary_theta \('1'\) must be of type float", rope_parameters={"rope_theta": "1"})

    def test_no_model_type(self):
        for names, kind in ((["Qwen2ForCausalLM"], "qwen2"), (["XLMRobertaModel"], "xlm-roberta"), ([], "bert")):
            with self.assertRaisesRegex(UserError, f'has no model_type; add it, such as "model_type": "{kind}"'):
                huggingface._page("config.json", {"architectures": names})


if __name__ == "__main__":
    tf.test.main()
