"""Decoding compared with transformers' generate, with a loop without a cache, and with the formulas in the papers."""

import contextlib
import itertools
import json
import pathlib
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

import tfzoo
from tests.helpers import noisy_model, op_by_op
from tfzoo import generate_ids
from tfzoo.errors import CheckFailed, UserError
from tfzoo.generation import constraints, decode, draws, folder, options, stops
from tfzoo.models.record import FolderRecord
from tfzoo.weights import config_fields, huggingface

GOLDEN = pathlib.Path(__file__).parent / "assets" / "golden_generation"
# The others run under `make faults`.
QUICK = ("greedy_min_new_tokens", "beam_several", "beam_constraints", "greedy_forced")
# More for GPT-2.
QUICK_TOO = ("greedy_repetition_penalty", "greedy_no_repeat_ngram", "beam_long", "beam_early", "beam_never")
TINY = dict(vocab_size=23, hidden_size=16, num_layers=2, num_heads=4, intermediate_size=24, max_positions=64)
START = 1


def build(name, seed=0, **overrides):
    return noisy_model(name, seed, **(TINY | overrides))


def outputs_of(model, prompt, tokens):
    """Returns the outputs of a pass without a cache, at the prompt's last token and at all tokens."""
    if hasattr(model, "encode"):
        inputs, skip = dict(token_ids=np.array([prompt]), decoder_token_ids=np.array([[START, *tokens]])), 0
    else:
        inputs, skip = dict(token_ids=np.array([[*prompt, *tokens]])), len(prompt) - 1
    return {name: x.numpy()[0, skip:] for name, x in model(inputs).items() if name != "memory"}


def logits_after(model, prompt, tokens):
    """Returns [V], after a prompt and `tokens`, from a pass over all of them."""
    return outputs_of(model, prompt, tokens)["logits"][-1]


def greedy(model, prompt, count):
    tokens = []
    for _ in range(count):
        tokens.append(int(np.argmax(logits_after(model, prompt, tokens))))
    return tokens


def is_greedy(model, prompt, tokens):
    """Returns whether each token is the likeliest after those before it."""
    return np.array_equal(outputs_of(model, prompt, tokens)["logits"].argmax(-1)[:-1], tokens)


def padded(prompts, sides):
    """Returns prompts in one batch, each padded on its side or on both: (token_ids, padding_mask)."""
    width = max(map(len, prompts)) + 2
    ids, mask = np.full((len(prompts), width), 7), np.zeros((len(prompts), width), bool)
    for row, (prompt, side) in enumerate(zip(prompts, sides, strict=True)):
        begin = {"left": width - len(prompt), "right": 0, "both": 1}[side]
        ids[row, begin : begin + len(prompt)], mask[row, begin : begin + len(prompt)] = prompt, True
    return ids, mask


def softmax(logits):
    e = np.exp(logits - np.max(logits))
    return e / e.sum()


def golden(name):
    model, _ = huggingface.load(GOLDEN / name)
    return model, json.loads((GOLDEN / name / "golden.json").read_text())


def decoder_start(model):
    return dict(decoder_start_token_id=START) if hasattr(model, "encode") else {}


# Most tests decode eagerly, which takes less time than building a graph. Users run a graph, so at least one test of
# each strategy runs both ways.
WAYS = (op_by_op, contextlib.nullcontext)


class GoldenTest(tf.test.TestCase):
    def check(self, name, wanted, way=op_by_op):
        model, record = golden(name)
        prompts = record["prompts"]
        sides = ["right"] * 10 if hasattr(model, "encode") else ["left", "right"] * 5
        ids, mask = padded(prompts, sides)
        self.assertGreaterEqual(len(set(map(len, prompts))), 10)
        for case, expected in record["cases"].items():
            if not wanted(case):
                continue
            with self.subTest(model=name, case=case), way():
                found = generate_ids(
                    model, ids, mask, max_new_tokens=record["max_new_tokens"], return_scores=True, **expected["options"]
                )
                rows = [row[:count].tolist() for row, count in zip(found.token_ids.numpy(), found.lengths.numpy())]
                self.assertEqual(rows, expected["token_ids"])
                for row, count in zip(found.token_ids.numpy(), found.lengths.numpy()):
                    self.assertAllEqual(row[count:], np.zeros_like(row[count:]))
                if "scores" in expected:
                    self.assertAllClose(found.sequence_scores, expected["scores"], 2e-5, 2e-5)

    def test_gpt2_answers_as_transformers_does(self):
        self.check("gpt2", lambda case: case in QUICK + QUICK_TOO)

    def test_llama_does(self):
        self.check("llama", lambda case: case in QUICK)

    def test_t5_does(self):
        self.check("t5", lambda case: case in QUICK)

    def test_bart_does(self):
        self.check("bart", lambda case: case in QUICK)

    @pytest.mark.faults
    def test_all_answer_every_case(self):
        for name in ("gpt2", "llama", "t5", "bart"):
            self.check(name, lambda case: case not in QUICK)

    @pytest.mark.faults
    def test_all_answer_every_case_by_a_graph(self):
        for name in ("gpt2", "llama", "t5", "bart"):
            self.check(name, lambda case: True, contextlib.nullcontext)

    def test_a_graph_gives_the_same(self):
        model, record = golden("gpt2")
        ids, mask = padded(record["prompts"], ["left"] * 10)
        assistant = build("gpt2", vocab_size=model.config.vocab_size, num_layers=1)
        for case, way in (
            ("greedy_no_repeat_ngram", {}),
            ("greedy_no_repeat_ngram", dict(prompt_lookup_num_tokens=2)),
            ("greedy_no_repeat_ngram", dict(assistant_model=assistant, num_assistant_tokens=1)),
            ("beam_constraints", {}),
        ):
            expected = record["cases"][case]
            asked = dict(max_new_tokens=record["max_new_tokens"]) | expected["options"] | way
            with self.subTest(case, **way):
                found = generate_ids(model, ids, mask, **asked)
                width = max(map(len, expected["token_ids"]))
                rows = [row + [0] * (width - len(row)) for row in expected["token_ids"]]
                self.assertAllEqual(found[:, :width], rows)

    def test_a_graph_of_blocks_that_differ(self):
        for name in ("gpt2", "bart_base"):
            model = build(name, num_layers=3, num_decoder_layers=0)
            adapted = model.decoder.stack.blocks[1].mlp.up
            adapted.enable_lora(2)
            adapted.lora_kernel_b.assign(np.random.default_rng(1).normal(0, 1, adapted.lora_kernel_b.shape))
            asked = dict(max_new_tokens=12, return_scores=True) | decoder_start(model)
            with self.subTest(name):
                found = generate_ids(model, [[3, 8, 4], [5, 2, 9]], **asked)
                with op_by_op():
                    expected = generate_ids(model, [[3, 8, 4], [5, 2, 9]], **asked)
                self.assertAllEqual(found.token_ids, expected.token_ids)
                self.assertAllClose(found.scores, expected.scores, 1e-5, 1e-5)

    def test_the_size_of_a_graph_barely_depends_on_the_number_of_layers(self):
        def size(layers):
            model = build("gpt2", num_layers=layers)
            generate_ids(model, [[3, 8]])
            ((graph, *_),) = model._tfzoo_decoders.values()
            definition = graph.graph.as_graph_def()
            return len(definition.node) + sum(len(function.node_def) for function in definition.library.function)

        # Per layer: 16 weights, read twice; 2 calls; 2 caches.
        self.assertLess(size(4) - size(2), 2 * 60)


class FolderTest(tf.test.TestCase):
    """generation_config.json, interpreted as by transformers."""

    def test_logits_are_processed_as_by_transformers(self):
        record = json.loads((GOLDEN / "processors.json").read_text())
        size, most, cases = record["vocab_size"], record["max_new_tokens"], record["cases"]
        self.assertGreater(len(cases), 100)
        for i, case in enumerate(cases):
            static, rows = options.read_options(
                **case["options"], eos_token_id=record["eos_token_id"], max_new_tokens=most
            )
            rows = {name: tf.constant([value], options.ROWS[name][0]) for name, value in rows.items()}
            rows["source"] = tf.constant([case["source"] + [-1] * 2], tf.int32)  # Padding is -1.
            before = most + constraints.looks_back(static)
            history = tf.constant([[-1] * before + case["ids"]], tf.int32)
            if not constraints.needs_history(static, rows):
                history = None
            logits = tf.constant([case["scores"]], tf.float32)
            found = constraints.constrain(static, rows, history, case["step"], logits)
            self.assertEqual(found.shape, [1, size])
            if static.do_sample:
                found = draws.filter_logits(found, {name: rows[name] for name in options.SAMPLING if name in rows})
            expected = [-np.inf if value is None else value for value in case["expected"]]
            self.assertAllClose(found[0], expected, 1e-5, 1e-5, msg=f"case {i}: {case['options']}")

    def test_texts_are_those_of_transformers(self):
        for name in ("gpt2", "bart"):
            model, record = golden(name)
            prompts = record["prompts"]
            ids, mask = padded(prompts, ["right"] * 10 if hasattr(model, "encode") else ["left", "right"] * 5)
            for case, expected in json.loads((GOLDEN / name / "folders.json").read_text()).items():
                model.record = FolderRecord(generation_config=expected["generation_config"])
                if model.is_encoder_decoder:
                    model.record.generation_config["decoder_start_token_id"] = 2
                asked = folder.folder_options(model)
                if least := asked.pop("min_length", None):
                    counts = [1 if model.is_encoder_decoder else len(prompt) for prompt in prompts]
                    asked["min_new_tokens"] = np.maximum(least - np.array(counts), 0)
                with self.subTest(model=name, case=case), op_by_op():
                    found = generate_ids(model, ids, mask, **asked, return_scores=True)
                    rows = [row[:count].tolist() for row, count in zip(found.token_ids.numpy(), found.lengths.numpy())]
                    self.assertEqual(rows, expected["token_ids"])

    @pytest.mark.faults
    def test_a_graph_and_a_draft_give_the_same(self):
        model, record = golden("gpt2")
        ids, mask = padded(record["prompts"], ["left"] * 10)
        case = json.loads((GOLDEN / "gpt2" / "folders.json").read_text())["greedy"]
        asked = {name: value for name, value in case["generation_config"].items() if name != "min_length"}
        least = [max(0, 5 - len(prompt)) for prompt in record["prompts"]]
        for how in ({}, dict(prompt_lookup_num_tokens=2), dict(jit_compile=True)):
            found = generate_ids(model, ids, mask, **asked, min_new_tokens=least, **how)
            width = max(map(len, case["token_ids"]))
            self.assertAllEqual(found[:, :width], [row + [0] * (width - len(row)) for row in case["token_ids"]])

    def refused(self, words, is_encoder_decoder=False, **config):
        record = FolderRecord(generation_config=config)
        model = mock.Mock(record=record, is_encoder_decoder=is_encoder_decoder)
        with self.assertRaises(UserError) as caught:
            folder.folder_options(model), folder.special_ids(model)
        self.assertRegex(str(caught.exception), f"^generation_config.json: .*{words}")
        self.assertNotIn("\n", str(caught.exception))

    def test_what_would_change_the_text_is_refused_by_name(self):
        for key, value in (
            ("guidance_scale", 1.5), ("watermarking_config", {"bias": 2.5}), ("token_healing", True), ("max_time", 3.0),
            ("force_words_ids", [[3]]), ("constraints", [{}]), ("dola_layers", "high"), ("top_h", 0.4),
            ("cache_implementation", "quantized"), ("use_mtp", True),
        ):  # fmt: skip
            self.refused(f"{key} is .*, which tfzoo does not support; remove it", **{key: value})
        self.refused(r"temprature \(0.5\) is an unknown option \(did you mean temperature\?\)", temprature=0.5)
        self.refused("forced_bos_token_id is 3, which transformers applies to a decoder only", forced_bos_token_id=3)

    def test_types_and_ranges_are_checked(self):
        for key, value in (
            ("temperature", "0.5"), ("temperature", True), ("top_k", 2.5), ("num_beams", 0), ("do_sample", 1),
            ("suppress_tokens", 4), ("suppress_tokens", [-1]), ("bad_words_ids", [3]), ("eos_token_id", [1.5]),
            ("eos_token_id", "2"), ("early_stopping", "often"), ("max_length", -1), ("forced_eos_token_id", True),
        ):  # fmt: skip
            self.refused(f"{key} is .*, not .*; correct it", **{key: value})
        for key, value in (("top_p", 1.5), ("top_p", 0), ("repetition_penalty", 0.0), ("eta_cutoff", -0.1)):
            self.refused(rf"{key} \({value}\) must be", **{key: value})
        model = build("gpt2")
        for key, value, words in (
            ("sequence_bias", [[[3]]], "must consist of pairs"),
            ("sequence_bias", [[[], 1.0]], "contains a bias without tokens"),
            ("sequence_bias", {(3,): np.inf}, "below infinity"),
            ("sequence_bias", [[[1.5], 1.0]], "must be token ids"),
            ("exponential_decay_length_penalty", [3], "a number of tokens and a factor"),
            ("exponential_decay_length_penalty", [3, -1.0], "a number of tokens and a factor"),
            ("encoder_repetition_penalty", 0.0, "must be above 0"),
            ("suppress_tokens", [23], "contains 23, but the model's token ids are 0 to 22"),
            ("eos_token_id", 1.5, "must be token ids"),
        ):
            with self.assertRaisesRegex(UserError, f"{key} .*{words}"):
                generate_ids(model, [[3, 4]], **{key: value})

    def test_every_key_of_transformers_is_decided(self):
        known = {*folder._OPTIONS, *folder._SPECIAL, *folder._IGNORED, *folder._REFUSED}
        self.assertEqual(config_fields.GENERATION - known, {"force_bos_token_to_be_generated"})
        self.assertEmpty(set(folder._OPTIONS) & (folder._IGNORED | set(folder._REFUSED)))

    def test_ids_that_are_derived(self):
        def ids(is_encoder_decoder, config, **generation):
            record = FolderRecord(config, generation)
            return folder.special_ids(mock.Mock(record=record, is_encoder_decoder=is_encoder_decoder))

        first = dict(force_bos_token_to_be_generated=True, bos_token_id=4, decoder_start_token_id=2)
        self.assertEqual(ids(True, first), dict(forced_bos_token_id=4, decoder_start_token_id=2))
        self.assertEqual(ids(True, first, eos_token_id=5), dict(eos_token_id=5, decoder_start_token_id=2))
        self.assertEqual(ids(True, {}, bos_token_id=6), dict(decoder_start_token_id=6))
        self.assertEqual(ids(True, dict(model_type="bart"), bos_token_id=6), dict(decoder_start_token_id=2))
        self.assertEqual(ids(False, {}, bos_token_id=6), {})
        self.assertEqual(ids(False, dict(eos_token_id=1), eos_token_id=[2, 3]), dict(eos_token_id=[2, 3]))


class CacheTest(tf.test.TestCase):
    PROMPTS = ([3], [5, 9, 11, 2], [4, 8, 15, 16, 3, 21, 12])

    def test_what_is_decoded_with_a_cache_is_what_is_decoded_without(self):
        relative = dict(relative_buckets=8, relative_distance=12, head_dim=6)
        for name, overrides in (
            ("gpt2", {}),
            ("mistral_7b", dict(num_kv_heads=2, head_dim=6, window=3)),
            ("palm_tiny", dict(head_dim=6)),
            ("llama_tiny", dict(num_kv_heads=2, head_dim=6, attention="lean")),
            ("t5_small", relative),
            ("bart_base", {}),
            ("transformer_base", {}),
        ):
            model = build(name, **overrides)
            encoder = hasattr(model, "encode")
            ids, mask = padded(self.PROMPTS, ["right"] * 3 if encoder else ["both", "right", "left"])
            for chunk in (0, 4) if name in ("gpt2", "mistral_7b") else (0,):
                with self.subTest(model=name, chunk=chunk), op_by_op():
                    found = generate_ids(
                        model,
                        ids,
                        mask,
                        max_new_tokens=5,
                        prefill_chunk=chunk,
                        return_scores=True,
                        **decoder_start(model),
                    )
                for prompt, tokens, scores in zip(self.PROMPTS, found.token_ids.numpy(), found.scores, strict=True):
                    logits = outputs_of(model, prompt, tokens)["logits"][:-1]
                    self.assertAllEqual(tokens, logits.argmax(-1))
                    self.assertAllClose(scores, [np.log(softmax(x).max()) for x in logits], 1e-5, 1e-5)

    @pytest.mark.faults
    def test_a_graph_of_one_layer(self):
        """The inputs of a single layer come directly from the loop, of which TensorFlow's fusion takes another
        output."""
        for name in ("gpt2", "t5_small", "bart_base", "transformer_base"):
            model = build(name, num_layers=1)
            (tokens,) = generate_ids(model, [self.PROMPTS[1]], max_new_tokens=5, **decoder_start(model)).numpy()
            self.assertLen(tokens, 5)
            self.assertTrue(is_greedy(model, self.PROMPTS[1], tokens), name)

    def test_frequencies_that_go_by_the_length_are_those_of_the_whole_text(self):
        """Past the original length, in pieces and at once; without a cache the row has the full length."""
        count = 9
        for scaling in (
            dict(rope_type="dynamic", factor=2.0),
            dict(rope_type="longrope", short_factor=[1.0, 1.2], long_factor=[3.0, 5.0]),
        ):
            scaling |= dict(original_max_position_embeddings=10)
            model = build("llama_tiny", num_kv_heads=2, head_dim=4, rotary_scaling=scaling)
            ids, mask = padded(self.PROMPTS, ["both", "right", "left"])  # One of them stays within the original length.
            dynamic = scaling["rope_type"] == "dynamic"
            for how in ({}, dict(prefill_chunk=4) if dynamic else dict(prompt_lookup_num_tokens=2)):
                with self.subTest(**scaling, **how), op_by_op():
                    found = generate_ids(model, ids, mask, max_new_tokens=count, return_scores=True, **how)
                for prompt, tokens, scores in zip(self.PROMPTS, found.token_ids.numpy(), found.scores, strict=True):
                    logits = outputs_of(model, prompt, tokens)["logits"][:-1]
                    logs = np.log([softmax(x) for x in logits])
                    self.assertAllClose(scores, logs[range(count), tokens], 1e-5, 1e-5)
                    if not how:
                        self.assertAllEqual(tokens, logits.argmax(-1))
            # And they do depend on the length.
            short = outputs_of(model, self.PROMPTS[2], [])["logits"]
            whole = outputs_of(model, self.PROMPTS[2], tokens)["logits"]
            self.assertGreater(abs(whole[0] - short[0]).max(), 1e-3)

    def test_scores_are_the_model_s_log_probabilities(self):
        model = build("llama_tiny", num_kv_heads=1)
        ids, mask = padded(self.PROMPTS, ["left", "both", "right"])
        with op_by_op():
            found = generate_ids(
                model, ids, mask, max_new_tokens=6, return_scores=True, do_sample=True, seed=3, temperature=2.0, top_k=5
            )
        for row, prompt in enumerate(self.PROMPTS):
            tokens = found.token_ids[row].numpy()
            logits = outputs_of(model, prompt, tokens)["logits"].astype(np.float64)
            expected = [np.log(softmax(x))[token] for x, token in zip(logits, tokens)]
            self.assertAllClose(found.scores[row], expected, 1e-5, 1e-5)
            self.assertAllClose(found.sequence_scores[row], sum(expected), 1e-5, 1e-5)

    def test_a_compiled_function_serves_other_sizes_and_again(self):
        model = build("gpt2")
        for prompts, count in ((self.PROMPTS, 5), (self.PROMPTS[1:], 8), (self.PROMPTS, 5)):
            ids, mask = padded(prompts, ["left"] * len(prompts))
            found = generate_ids(model, ids, mask, max_new_tokens=count).numpy()
            self.assertEqual(found.shape, (len(prompts), count))
            self.assertTrue(all(is_greedy(model, *pair) for pair in zip(prompts, found)))
        self.assertLen(model._tfzoo_decoders, 1)
        xla = generate_ids(model, ids, mask, max_new_tokens=5, jit_compile=True)
        self.assertAllEqual(xla, found)

    @pytest.mark.faults
    def test_xla_with_fixed_shapes_as_a_tpu_has_it(self):
        model = build("gpt2")
        ids, mask = padded(self.PROMPTS, ["left"] * len(self.PROMPTS))
        asked = dict(num_beams=3, num_return_sequences=2, no_repeat_ngram_size=2)
        static, _ = options.read_options(**asked, jit_compile=True)

        @tf.function(jit_compile=True, autograph=False)
        def run(ids, mask):
            return decode.decode(model, static, ids, mask, {}, 5)["token_ids"]

        expected = generate_ids(model, ids, mask, max_new_tokens=5, **asked)
        self.assertAllEqual(run(tf.constant(ids), tf.constant(mask)), expected)

    def test_rows_end_where_each_is_told_to(self):
        model = build("gpt2")
        ids, mask = padded(self.PROMPTS, ["left"] * 3)
        with op_by_op():
            found = generate_ids(model, ids, mask, max_new_tokens=[2, 6, 4], pad_token_id=22, return_scores=True)
        self.assertAllEqual(found.lengths, [2, 6, 4])
        for row, (prompt, count) in enumerate(zip(self.PROMPTS, (2, 6, 4))):
            self.assertAllEqual(found.token_ids[row], greedy(model, prompt, count) + [22] * (6 - count))
            self.assertAllEqual(found.scores[row, count:], np.zeros(6 - count))


def filtered(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0):
    """Returns the distribution from which sampling draws, one token at a time, as defined in the papers."""
    p = softmax(logits / temperature)

    def keep(order, mass):
        kept, total = [], 0.0
        for i in order:
            if total >= mass:
                break
            kept.append(i)
            total += p[i]
        return kept

    def only(chosen):
        chosen = np.isin(np.arange(len(p)), list(chosen))
        return np.where(chosen, p, 0) / p[chosen].sum()

    likely = np.argsort(-p, kind="stable")
    if top_k:
        p = only(likely[:top_k])
    if top_p < 1:
        p = only(keep(likely, top_p))
    if min_p:
        p = only(np.flatnonzero(p >= min_p * p.max()))
    if typical_p < 1:
        real = np.flatnonzero(p)
        surprise = -np.log(p[real])
        expected = (p[real] * surprise).sum()
        p = only(keep(real[np.argsort(np.abs(surprise - expected), kind="stable")], typical_p))
    return p


class SamplingTest(tf.test.TestCase):
    def test_threefry_is_the_published_one(self):
        # kat_vectors of Random123, the authors' library: threefry2x32, 20 rounds.
        for counter, key, expected in (
            ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
            ((2**32 - 1, 2**32 - 1), (2**32 - 1, 2**32 - 1), (0x1CB996FC, 0xBB002BE7)),
            ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
        ):
            words = draws.threefry(*([tf.constant(x, tf.uint32) for x in pair] for pair in (key, counter)))
            self.assertEqual(tuple(int(x) for x in words), expected)

    def test_filters_are_those_of_the_papers(self):
        random = np.random.default_rng(0)
        each = [
            dict(temperature=0.6),
            dict(top_k=5),
            dict(top_p=0.7),
            dict(min_p=0.2),
            dict(typical_p=0.6),
            dict(temperature=1.7, top_k=9, top_p=0.8, min_p=0.05, typical_p=0.9),
            dict(top_k=1),
            dict(top_p=1e-6),
            dict(typical_p=1e-6),
            dict(top_k=1000),
        ]
        logits = random.normal(0, 2, (len(each), 17)).astype(np.float32)
        for names in [{name} for name in options.SAMPLING] + [set(options.SAMPLING)]:
            chosen = [row if set(row) <= names else {} for row in each]
            rows = {
                name: tf.constant([row.get(name, options.ROWS[name][1]) for row in chosen], options.ROWS[name][0])
                for name in names
            }
            found = tf.nn.softmax(draws.filter_logits(tf.constant(logits), rows))
            expected = [filtered(x.astype(np.float64), **row) for x, row in zip(logits, chosen)]
            self.assertAllClose(found, expected, 1e-5, 1e-6)
        for heat in (0.0, 1e-38, 1e-31):  # Logits divided by such a small number would not be finite.
            cold = draws.filter_logits(tf.constant(logits), {"temperature": tf.fill([len(each)], heat)})
            self.assertAllEqual(tf.argmax(cold, -1), np.argmax(logits, -1))
            self.assertAllEqual(tf.math.count_nonzero(tf.exp(cold), -1), np.ones(len(each)))

    def test_frequencies_are_those_of_the_filtered_distribution(self):
        model, count, prompt = build("gpt2", vocab_size=12, noise=0.3), 4000, [3, 8, 5]
        kinds = [{}, dict(temperature=0.7, top_k=7), dict(top_p=0.8), dict(min_p=0.1), dict(typical_p=0.8)]
        rows = {
            name: np.repeat([kind.get(name, options.ROWS[name][1]) for kind in kinds], count)
            for name in ("temperature", "top_k", "top_p", "min_p", "typical_p")
        }
        with op_by_op():
            found = generate_ids(
                model,
                np.tile(prompt, (len(kinds) * count, 1)),
                max_new_tokens=1,
                do_sample=True,
                seed=np.arange(len(kinds) * count),
                **rows,
            )
        logits = logits_after(model, prompt, []).astype(np.float64)
        for i, kind in enumerate(kinds):
            tokens = found.numpy()[i * count : (i + 1) * count, 0]
            self.assert_drawn_from(filtered(logits, **kind), np.bincount(tokens, minlength=12), str(kind))

    def assert_drawn_from(self, distribution, counts, what):
        possible = distribution > 0
        self.assertEqual(counts[~possible].sum(), 0, what)
        expected = distribution[possible] * counts.sum()
        order = np.argsort(expected)
        # Rare tokens are merged, so that each cell is expected at least five times.
        cells, observed, last = [0.0], [0], 0
        for i in order:
            if cells[last] >= 5:
                cells, observed, last = [*cells, 0.0], [*observed, 0], last + 1
            cells[last] += expected[i]
            observed[last] += counts[possible][i]
        self.assertGreaterEqual(len(cells), 2, what)
        square = sum((o - e) ** 2 / e for o, e in zip(observed, cells))
        # The probability of a value this large: the upper tail of chi-square with len(cells) - 1 degrees of freedom.
        self.assertGreater(float(tf.math.igammac((len(cells) - 1) / 2, square / 2)), 1e-3, what)

    def test_tokens_are_those_of_the_published_numbers(self):
        """A number in [0, 1) selects a token by the cumulative sums of the filtered probabilities."""
        model, prompts, seeds = build("gpt2"), CacheTest.PROMPTS, [5, -6, 7]
        ids, mask = padded(prompts, ["left"] * 3)
        filters = dict(temperature=1.3, top_k=9, top_p=0.9)
        expected = []
        for prompt, seed in zip(prompts, seeds):
            tokens = []
            for step in range(6):
                key, counter = (tf.constant(x, tf.uint32) for x in ((seed % 2**32, 0), (step, 0)))
                word, _ = draws.threefry(tf.unstack(key), tf.unstack(counter))
                p = filtered(logits_after(model, prompt, tokens).astype(np.float64), **filters)
                tokens.append(int(np.searchsorted(np.cumsum(p), (int(word) >> 8) / 2**24, side="right")))
            expected.append(tokens)
        self.assertNotEqual(expected[0], greedy(model, prompts[0], 6))
        for way in WAYS:
            with way():
                found = generate_ids(model, ids, mask, max_new_tokens=6, do_sample=True, seed=seeds, **filters)
            self.assertAllEqual(found, expected)

    def test_a_row_s_text_is_its_seed_s_whatever_is_beside_it(self):
        model = build("llama_tiny", num_kv_heads=2)
        prompts = [[4, 2], [3, 5, 7, 11], [9], [4, 2]]
        ids, mask = padded(prompts, ["left"] * 4)
        asked = dict(max_new_tokens=8, do_sample=True, temperature=1.5)
        with op_by_op():
            together = generate_ids(model, ids, mask, seed=[1, 2, 3, 1], **asked).numpy()
            alone = [generate_ids(model, [p], seed=s, **asked).numpy()[0] for p, s in zip(prompts, (1, 2, 3))]
            several = generate_ids(model, [prompts[1]], seed=2, num_return_sequences=3, **asked).numpy()
            other = generate_ids(model, ids, mask, seed=[1, 2, 3, 4], **asked).numpy()
        self.assertAllEqual(together[:3], alone)
        self.assertAllEqual(together[0], together[3])
        self.assertAllEqual(several[0], together[1])
        self.assertLen({tuple(row) for row in several}, 3)
        self.assertAllEqual(other[:3], together[:3])
        self.assertNotAllEqual(other[3], together[3])

    def test_beams_are_drawn_as_one_after_another_would_be(self):
        """Each step draws 2 K of the K V texts one after another, without replacement; the K likeliest of them
        continue."""
        size, beams, count, prompt = 5, 2, 4000, [3, 1, 2]
        model = build("gpt2", 4, vocab_size=size, noise=0.3)
        asked = dict(temperature=1.6, top_k=4)
        end = 4

        def continuations(tokens):
            logs = np.log(softmax(logits_after(model, prompt, list(tokens)).astype(np.float64))) / asked["temperature"]
            logs[np.argsort(-logs)[asked["top_k"] :]] = -np.inf
            return logs

        def drawn(chances, places):
            """Returns all ordered draws of this many, with their probabilities."""
            if not places:
                return {(): 1.0}
            found = {}
            for i in np.flatnonzero(chances > 1e-300):
                rest = np.where(np.arange(len(chances)) == i, 0, chances)
                rest = rest / rest.sum() if rest.sum() else rest
                found |= {(i, *more): chances[i] * p for more, p in drawn(rest, places - 1).items()}
            return found or {(): 1.0}

        # A state: (sum, text) of the texts that continue and of those that have ended, with its probability.
        states = {(((0.0, ()),), ()): 1.0}
        for step in range(2):
            following: dict = {}
            for (going, ended), chance in states.items():
                texts = [
                    (total + log, (*text, v)) for total, text in going for v, log in enumerate(continuations(text))
                ]
                for order, p in drawn(softmax(np.array([total for total, _ in texts])), 2 * beams).items():
                    chosen = [texts[i] for i in order]
                    stops = [text[-1] == end or step == 1 for _, text in chosen]
                    done = [(total / (step + 1), text) for (total, text), stop in zip(chosen[:beams], stops) if stop]
                    done = tuple(sorted([*ended, *done], reverse=True)[:beams])
                    alive = sorted((text for text, stop in zip(chosen, stops) if not stop), reverse=True)[:beams]
                    # A search ends when it cannot find better texts.
                    if len(done) == beams and (not alive or alive[0][0] / (step + 1) <= done[-1][0]):
                        alive = []
                    key = (tuple(alive), done)
                    following[key] = following.get(key, 0.0) + chance * p
            states = following
        exact: dict = {}
        for (_, ended), chance in states.items():
            text = ended[0][1]
            exact[text] = exact.get(text, 0.0) + chance
        keys = [*itertools.product(range(size), repeat=2), (end,)]
        distribution = np.array([exact.get(key, 0.0) for key in keys])
        self.assertAllClose(distribution.sum(), 1)
        with op_by_op():
            found = generate_ids(
                model, np.tile(prompt, (count, 1)), max_new_tokens=2, num_beams=beams, do_sample=True,
                seed=np.arange(count), eos_token_id=end, return_scores=True, **asked,
            )  # fmt: skip
        texts = [tuple(row[:n]) for row, n in zip(found.token_ids.numpy().tolist(), found.lengths.numpy())]
        self.assert_drawn_from(distribution, np.array([texts.count(key) for key in keys]), "beams")

    def test_speculation_draws_what_the_model_alone_would(self):
        size, prompt, count = 5, [3, 1, 3, 1], 4000
        model, small = build("gpt2", 1, vocab_size=size, noise=0.35), build("gpt2", 2, vocab_size=size, num_layers=1)
        asked = dict(temperature=1.3, top_k=4)
        exact, first = {}, filtered(logits_after(model, prompt, []), **asked)
        for a, b in itertools.product(range(size), repeat=2):
            if first[a]:
                second = filtered(logits_after(model, prompt, [a]), **asked)
                third = second[b] and filtered(logits_after(model, prompt, [a, b]), **asked)
                exact.update({(a, b, c): first[a] * second[b] * third[c] for c in range(size) if second[b]})
        distribution = np.array([exact.get(key, 0.0) for key in itertools.product(range(size), repeat=3)])
        self.assertAllClose(distribution.sum(), 1)
        asked |= dict(max_new_tokens=3, do_sample=True, seed=np.arange(count))
        for way in (dict(assistant_model=small, num_assistant_tokens=2), dict(prompt_lookup_num_tokens=3)):
            with op_by_op():
                found = generate_ids(model, np.tile(prompt, (count, 1)), **asked, **way).numpy()
            counts = np.bincount(found @ [size**2, size, 1], minlength=size**3)
            self.assert_drawn_from(distribution, counts, str(list(way)))


class StrategyTest(tf.test.TestCase):
    def test_speculation_finds_the_greedy_text(self):
        for name in ("gpt2", "t5_small"):
            model, small = build(name, 1), build(name, 2, num_layers=1)
            ids, mask = padded(CacheTest.PROMPTS, ["right"] * 3)
            asked = dict(max_new_tokens=6, no_repeat_ngram_size=3, eos_token_id=4) | decoder_start(model)
            with op_by_op():
                plain = generate_ids(model, ids, mask, return_scores=True, **asked)
                for way in (dict(assistant_model=small, num_assistant_tokens=2), dict(prompt_lookup_num_tokens=2)):
                    found = generate_ids(model, ids, mask, return_scores=True, **asked, **way)
                    self.assertAllEqual(found.token_ids, plain.token_ids)
                    self.assertAllEqual(found.lengths, plain.lengths)
                    self.assertAllClose(found.scores, plain.scores, 1e-5, 1e-5)

    def test_speculation_reads_the_model_seldom(self):
        model, reads = build("gpt2"), []
        step = type(model).step

        def counted(self, *args):
            reads.append(args[0].shape)
            return step(self, *args)

        with op_by_op(), mock.patch.object(type(model), "step", counted):
            generate_ids(model, [[3, 4]], max_new_tokens=9, assistant_model=model, num_assistant_tokens=3)
        # One token from the prompt; then twice three drafted tokens, all accepted, and one more.
        self.assertEqual([shape for shape in reads if shape[1] == 4], [(1, 4), (1, 4)])

    def states(self, model, prompt, rows):
        """Returns states [N, L, E] of rows of tokens after the prompt, including the prompt if the decoder reads it."""
        if hasattr(model, "encode"):
            inputs = dict(token_ids=[prompt] * len(rows), decoder_token_ids=[[START, *tokens] for tokens in rows])
        else:
            inputs = dict(token_ids=[[*prompt, *tokens] for tokens in rows])
        return model({name: np.array(ids) for name, ids in inputs.items()})["sequence"].numpy()

    def test_contrastive_search_is_the_paper_s(self):
        alpha, width, count = 0.6, 3, 4
        for name in ("gpt2", "t5_small"):
            model = build(name)
            prompts = CacheTest.PROMPTS[1:]
            ids, mask = padded(prompts, ["right"] * 2)
            asked = dict(max_new_tokens=count, penalty_alpha=alpha, top_k=width) | decoder_start(model)
            with op_by_op():
                found = generate_ids(model, ids, mask, **asked)
                self.assertAllEqual(generate_ids(model, ids, mask, prefill_chunk=3, **asked), found)
            if name == "gpt2":
                self.assertAllEqual(generate_ids(model, ids, mask, **asked), found)
            for row, prompt in enumerate(prompts):
                tokens = []
                for _ in range(count):
                    p = softmax(logits_after(model, prompt, tokens))
                    likely = np.argsort(-p)[:width]
                    values = []
                    for v, states in zip(likely, self.states(model, prompt, [[*tokens, v] for v in likely])):
                        states /= np.linalg.norm(states, axis=-1, keepdims=True)
                        values.append(((1 - alpha) * p[v] - alpha * (states[:-1] @ states[-1]).max(), v))
                    tokens.append(int(max(values)[1]))
                self.assertAllEqual(found[row], tokens)
            self.assertNotEqual(tokens, greedy(model, prompt, count))

    def test_groups_of_beams_keep_apart_by_the_paper_s_penalty(self):
        model, count, penalty = build("gpt2"), 4, 1.5
        for prompt in CacheTest.PROMPTS[:2]:
            # Two groups of two: the second is penalised for each beam of the first that has just chosen the token.
            groups = [[(0.0, ())] for _ in range(2)]
            for _ in range(count):
                taken = np.zeros(TINY["vocab_size"])
                for i, beams in enumerate(groups):
                    found = []
                    for total, tokens in beams:
                        logs = np.log(softmax(logits_after(model, prompt, tokens))) - penalty * taken
                        found += [(total + log, (*tokens, v)) for v, log in enumerate(logs)]
                    groups[i] = sorted(found, reverse=True)[:2]
                    for _, tokens in groups[i]:
                        taken[tokens[-1]] += 1
            expected = sorted((beam for beams in groups for beam in beams), reverse=True)
            groups = dict(num_beams=4, num_beam_groups=2, diversity_penalty=penalty, num_return_sequences=4)
            for way in WAYS:
                with way():
                    found = generate_ids(model, [prompt], max_new_tokens=count, return_scores=True, **groups)
                self.assertAllEqual(found.token_ids, [tokens for _, tokens in expected])
                self.assertAllClose(found.sequence_scores, [total / count for total, _ in expected], 1e-4, 1e-4)

    def test_presence_penalty_is_of_new_tokens_and_a_processor_sees_them_all(self):
        model, prompt, seen = build("gpt2"), [5, 9, 5], []

        def processor(token_ids, logits):
            seen.append(token_ids.numpy())
            return tf.where(tf.range(TINY["vocab_size"])[None] == 6, -np.inf, logits)

        with op_by_op():
            found = generate_ids(model, [prompt], max_new_tokens=6, presence_penalty=1.1, logits_processor=processor)
        tokens = []
        for i in range(6):
            logits = logits_after(model, prompt, tokens)
            logits[list(set(tokens))] -= 1.1
            logits[6] = -np.inf
            self.assertEqual([x for x in seen[i][0] if x >= 0], prompt + tokens)
            tokens.append(int(np.argmax(logits)))
        self.assertAllEqual(found[0], tokens)

    def test_a_stop_string_is_found_wherever_tokens_cut_it(self):
        random = np.random.default_rng(0)
        pieces = [b"a", b"b", b"ab", b"ba", b"", b"aab", b"bbab", "é".encode(), "é".encode()[:1], "é".encode()[1:]]
        for string in (b"abab", b"aa", b"b", b"aabaab", "é".encode(), "aé".encode()):
            table = stops.string_table(string, pieces)
            for _ in range(40):
                state, text = 0, b""
                for token in random.integers(0, len(pieces), 12):
                    state, text = table[state, token], text + pieces[token]
                    self.assertEqual(state == len(string), string in text, (string, text))

    def test_a_text_ends_with_its_stop_string(self):
        class Letters:
            vocab_size, special_ids = 23, [0]

            def detokenize(self, ids):
                rows = np.asarray(ids)
                return tf.constant(["".join(chr(97 + i) for i in row if i) for row in rows])

        model, prompt = build("gpt2"), [5, 9, 11, 2]
        plain = greedy(model, prompt, 10)
        stop = "".join(chr(97 + i) for i in plain[3:5])
        place = "".join(chr(97 + i) for i in plain).index(stop) + 2
        with op_by_op():
            found = generate_ids(
                model, [prompt], max_new_tokens=10, stop_strings=stop, tokenizer=Letters(), return_scores=True
            )
        self.assertAllEqual(found.token_ids[0], plain[:place] + [0] * (10 - place))
        self.assertAllEqual(found.lengths, [place])


class ErrorsTest(tf.test.TestCase):
    def test_what_cannot_be_is_said_in_a_line_that_names_it(self):
        model = build("gpt2")
        other = tfzoo.build("gpt2", **(TINY | dict(vocab_size=29)))
        for message, given in (
            ("max_new_tokens (63) after a prompt of 2 tokens", dict(max_new_tokens=63)),
            ("max_new_tokens (0) must be at least 1", dict(max_new_tokens=0)),
            ("temprature: unknown decoding option (did you mean temperature?)", dict(temprature=1)),
            ("top_p (0.0) must be above 0 and at most 1", dict(do_sample=True, top_p=0.0)),
            ("temperature (0.5) applies only to sampling: set do_sample", dict(temperature=0.5)),
            ("num_beam_groups (2) contradicts do_sample", dict(do_sample=True, num_beams=2, num_beam_groups=2)),
            ("temperature (0) leaves nothing to sample", dict(do_sample=True, num_beams=2, temperature=0)),
            ("num_return_sequences (3) must be at most num_beams (2)", dict(num_beams=2, num_return_sequences=3)),
            ("num_return_sequences (2) would return identical texts", dict(num_return_sequences=2)),
            ("early_stopping (True) applies only to beam search", dict(early_stopping=True)),
            ("num_beam_groups (3) must divide num_beams (4)", dict(num_beams=4, num_beam_groups=3)),
            ("penalty_alpha (0.5) requires top_k", dict(penalty_alpha=0.5)),
            ("penalty_alpha (0.5) contradicts num_beams (2)", dict(penalty_alpha=0.5, top_k=2, num_beams=2)),
            ("eos_token_id contains 23, but the model's token ids are 0 to 22", dict(eos_token_id=23)),
            ("seed has 2 values for 1 rows", dict(seed=[1, 2], do_sample=True)),
            ("top_k ('four') must be a whole number for all rows", dict(do_sample=True, top_k="four")),
            ("assistant_model has vocab_size 29", dict(assistant_model=other)),
            ("num_beams (2) contradicts assistant_model", dict(assistant_model=model, num_beams=2)),
            ("stop_strings ('.') require a tokenizer", dict(stop_strings=".")),
            ("num_beams (2.0) must be a whole number", dict(num_beams=2.0)),
            ("num_beams (True) must be a whole number", dict(num_beams=True)),
            ("do_sample ('yes') must be true or false", dict(do_sample="yes")),
            ("length_penalty (nan) must be a finite number", dict(num_beams=2, length_penalty=np.nan)),
            ("diversity_penalty (inf) must be a finite number", dict(num_beams=2, diversity_penalty=np.inf)),
            ("top_k (24) exceeds the model's 23 tokens; choose fewer candidates", dict(penalty_alpha=0.5, top_k=24)),
        ):
            with self.subTest(message), self.assertRaises(UserError) as caught:
                generate_ids(model, [[3, 4]], **given)
            self.assertStartsWith(str(caught.exception), message)

    def test_prompts_are_looked_at(self):
        model = build("gpt2")
        for message, ids, mask in (
            ("token_ids: row 1 is an empty prompt", [[3, 4], [3, 4]], [[1, 1], [0, 0]]),
            ("token_ids[0, 1] is 23", [[3, 23]], None),
            ("token_ids (2,) and padding_mask (2,)", [3, 4], None),
        ):
            with self.subTest(message), self.assertRaises(UserError) as caught:
                generate_ids(model, ids, mask)
            self.assertStartsWith(str(caught.exception), message)
        none = generate_ids(model, np.zeros((0, 4), int), max_new_tokens=5, return_scores=True)
        self.assertEqual((none.token_ids.shape, none.scores.shape, none.lengths.shape), ((0, 5), (0, 5), (0,)))

    def test_models_that_cannot_are_named(self):
        tiny = {name: value for name, value in TINY.items() if name != "max_positions"} | dict(max_positions=16)
        bert = tfzoo.build("bert_tiny", **tiny)
        with self.assertRaisesRegex(UserError, "model 'bert' has no causal decoder"):
            generate_ids(bert, [[3]])
        with self.assertRaisesRegex(UserError, "attention 'favor' has no cache of keys"):
            generate_ids(tfzoo.build("gpt2", **tiny, attention="favor"), [[3]])
        with self.assertRaisesRegex(UserError, "decoder_start_token_id is missing"):
            generate_ids(tfzoo.build("transformer_base", **tiny), [[3]])

    def test_logits_that_are_no_numbers_are_an_error_of_their_row(self):
        model = build("gpt2")
        model.tokens.embeddings.assign(
            tf.tensor_scatter_nd_update(model.tokens.embeddings.value, [[7]], [[np.nan] * 16])
        )
        for way in ({}, dict(num_beams=2), dict(prompt_lookup_num_tokens=2), dict(penalty_alpha=0.5, top_k=2)):
            with op_by_op(), self.assertRaisesRegex(CheckFailed, "row 0: the model's logits are not finite"):
                generate_ids(model, [[3, 7], [3, 4]], max_new_tokens=3, **way)


if __name__ == "__main__":
    tf.test.main()
