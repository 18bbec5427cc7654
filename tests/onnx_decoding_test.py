"""Text from ONNX artifacts: the tokens, texts and scores of TensorFlow, what is refused, and the command line."""

import json
import unittest
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from tests import helpers
from tests.export import small
from tests.serve import artifacts
from tests.text.varied import SENTENCES
from tfzoo import generate, generation, score, text
from tfzoo.chat import ChatTemplate
from tfzoo.errors import CheckFailed, UserError
from tfzoo.evaluation import likelihood
from tfzoo.export import tokenizer_files
from tfzoo.export.answers import Options
from tfzoo.generation import constraints as of_tensors
from tfzoo.generation import draws as of_tensors_too
from tfzoo.generation import stops
from tfzoo.generation.texts import ModelWriter, decode_text
from tfzoo.models.record import FolderRecord
from tfzoo.onnx_decoding import constraints, draws
from tfzoo.onnx_decoding.graphs import Graphs
from tfzoo.onnx_decoding.likelihood import OnnxScorer
from tfzoo.onnx_decoding.tokens import Tokens
from tfzoo.onnx_decoding.writer import OnnxWriter
from tfzoo.prediction import folders
from tfzoo.serve.decoder import Decoder, Sampling
from tfzoo.serve.loading import Loader
from tfzoo.serve.metrics import Metrics
from tfzoo.text import training
from tfzoo.text.extended import extended
from tfzoo.text.sentencepiece import SentencePiece
from tfzoo.training import runs

PROMPTS = ["de a", "hello, w", "x"]
SAMPLING = dict(do_sample=True, seed=3, temperature=0.8, top_k=20, top_p=0.9, num_return_sequences=2)
WAYS = {
    "greedy": dict(),
    "constrained": dict(repetition_penalty=1.3, presence_penalty=0.2, no_repeat_ngram_size=2, min_new_tokens=3),
    "sampling": SAMPLING,
    "min_p": dict(do_sample=True, seed=4, min_p=0.02, typical_p=0.9),
    "beams": dict(num_beams=4, num_return_sequences=2),
    "groups": dict(num_beams=4, num_beam_groups=2, diversity_penalty=0.5, early_stopping=True, length_penalty=0.5),
    "sampled_beams": dict(num_beams=3, do_sample=True, seed=5),
}


class Case(unittest.TestCase):
    """The families are exported once for all tests of a class."""

    tokenizer: object
    tokenizers: dict = {}  # Of families with another one.

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.shared = helpers.temporary_folder(cls)
        cls.tokenizer = extended(small.byte_level_tokenizer(), chat_templates={"default": artifacts.TEMPLATE})
        cls.made: dict = {}

    def exported(self, family, profile="standard", length=32):
        """Returns (model, folder of its artifact)."""
        if (family, profile) not in self.made:
            sizes = dict(head_dim=8) if profile == "genai" else {}
            tokenizer = self.tokenizers.get(family, self.tokenizer)
            size = tokenizer.vocab_size + 3 * (
                family in self.tokenizers
            )  # Released T5 models have ids without a token.
            model = small.model(family, heads=["lm"], vocab_size=size, **sizes)
            folder = self.shared / f"{family}_{profile}" / "1"
            artifacts.export(model, tokenizer, folder, Options(length, max_new_tokens=12), profile)
            # What a folder would state, so that both read the same special tokens.
            model.record = FolderRecord(generation_config=folders.manifest_of(folder)["generation"])
            self.made[family, profile] = model, folder
        return self.made[family, profile]

    def check(self, family, profile="standard", ways=tuple(WAYS), prompts=PROMPTS):
        model, folder = self.exported(family, profile)
        writer = opened(folder)
        reference = ModelWriter(model, self.tokenizers.get(family, self.tokenizer))
        for way in ways:
            options = WAYS[way] | dict(max_new_tokens=12)
            with self.subTest(family=family, profile=profile, way=way), helpers.op_by_op():
                expected = reference.generate_text(prompts, **options)
                found = writer.generate_text(prompts, **options)
                self.assertEqual([each.token_ids for each in found], [each.token_ids for each in expected])
                self.assertEqual([each.text for each in found], [each.text for each in expected])
                for each, other in zip(found, expected, strict=True):
                    np.testing.assert_allclose(each.scores, other.scores, rtol=2e-5, atol=2e-5)
                    np.testing.assert_allclose(each.sequence_score, other.sequence_score, rtol=2e-5, atol=2e-5)


def opened(folder, variant=None):
    return OnnxWriter(folder, folders.manifest_of(folder), variant)


class SameTextsTest(Case):
    def test_of_a_decoder(self):
        self.check("gpt2")

    def test_of_a_decoder_with_keys_and_values_in_one_buffer(self):
        self.check("gpt2", "genai", ("constrained", "sampling", "beams"))
        self.check("llama", "genai", ("greedy",))

    def test_of_an_encoder_decoder(self):
        self.check("t5", ways=("sampling", "beams"))

    @pytest.mark.faults
    def test_of_every_family_that_writes(self):
        for family in ("llama", "palm", "t5", "bart", "transformer"):
            self.check(family)

    def test_a_long_prompt_is_read_without_its_logits(self):
        for profile in ("standard", "genai"):
            writer = opened(self.exported("gpt2", profile)[1])
            ids = [[5 + i % 200 for i in range(20)], [9, 8, 7]]
            expected = writer.generate_from(ids, max_new_tokens=6)
            calls = []
            run = Graphs.run_in_place if profile == "genai" else Graphs.run

            def heard(graphs, feeds, past, logits, run=run, calls=calls):
                calls.append((feeds["input_ids"].shape()[1], logits))
                return run(graphs, feeds, past, logits)

            with (
                mock.patch("tfzoo.onnx_decoding.graphs._LONG", 4),
                mock.patch.object(Graphs, run.__name__, heard),
            ):
                found = writer.generate_from(ids, max_new_tokens=6)
            self.assertEqual([each.token_ids for each in found], [each.token_ids for each in expected])
            self.assertEqual(calls[:3], [(19, False), (1, True), (1, True)])

    def test_stop_strings_special_tokens_and_a_growing_text(self):
        model, folder = self.exported("gpt2")
        writer = opened(folder)
        reference = ModelWriter(model, self.tokenizer)
        (whole,) = writer.generate_text(["de a"], max_new_tokens=10)
        stop = whole.text[3:5]
        for options in (dict(stop_strings=[stop, "never"]), dict(stop_strings=[stop], skip_special_tokens=False)):
            with helpers.op_by_op():
                expected = reference.generate_text(["de a"], max_new_tokens=10, **options)
            found = writer.generate_text(["de a"], max_new_tokens=10, **options)
            self.assertEqual([each.token_ids for each in found], [each.token_ids for each in expected])
            self.assertLess(len(found[0].token_ids), 10)
        pieces: list[str] = []
        (grown,) = writer.generate_text(["de a"], max_new_tokens=10, on_text=pieces.append)
        self.assertEqual(("".join(pieces), grown), (whole.text, whole))
        self.assertGreater(len(pieces), 3)
        texts = ["a</s>", "a <mask></s> b<mask>", "de"]
        for special in ((), ["</s>"], ["<mask>"], ["</s>", "<mask>"], ()):
            self.assertEqual(writer.encode(texts, special), self.tokenizer.tokenize(texts, special).to_list())

    def test_answers_of_an_encoder_decoder(self):
        model, folder = self.exported("t5")
        predictor = folders.open_folder(folder)
        long = "a text of more than thirty-two tokens, which is cut"
        rows = [[*self.tokenizer.tokenize([text]).to_list()[0][:31], 2] for text in ("de a", long)]
        with helpers.op_by_op():
            reference = ModelWriter(model, self.tokenizer).generate_from(rows, max_new_tokens=12)
        expected = [{"generated_text": one.text} for one in reference]
        expected[1]["truncated"] = True
        self.assertEqual(predictor.answer([("de a",), (long,)]), expected)
        with self.assertRaisesRegex(UserError, "continues texts; use python -m tfzoo.generate"):
            folders.open_folder(self.exported("gpt2")[1])

    def test_options_of_the_artifact_hold_unless_others_are_given(self):
        _, folder = self.exported("gpt2")
        manifest = folders.manifest_of(folder)
        beams = manifest | dict(options=manifest["options"] | dict(search=dict(num_beams=3), max_new_tokens=5))
        plain, searching = OnnxWriter(folder, manifest), OnnxWriter(folder, beams)
        expected = plain.generate_text(PROMPTS, max_new_tokens=5, num_beams=3)
        self.assertEqual(searching.generate_text(PROMPTS), expected)
        self.assertEqual(searching.generate_text(PROMPTS, num_beams=1), plain.generate_text(PROMPTS, max_new_tokens=5))

    def test_what_is_refused(self):
        _, folder = self.exported("gpt2")
        writer = opened(folder)
        for words, options in (
            ("--prefill_chunk: --engine=onnx does not support it", dict(prefill_chunk=2)),
            ("--penalty_alpha: --engine=onnx", dict(penalty_alpha=0.5, top_k=4)),
            ("temperature .* applies only to sampling", dict(temperature=0.5)),
            (r"max_new_tokens \(40\) after a prompt of 3 tokens .* choose at most 29", dict(max_new_tokens=40)),
            ("unknown decoding option", dict(heat=1)),
        ):
            with self.assertRaisesRegex(UserError, words):
                writer.generate_text(["x y"], **options)
        with self.assertRaisesRegex(UserError, "prompt 1 .* is empty"):
            writer.generate_text(["a", ""])
        with self.assertRaisesRegex(UserError, "contains 9999, but"):
            writer.generate_from([[9999]])
        run = Graphs.run

        def broken(*arguments):
            logits, past = run(*arguments)
            return logits * np.nan, past

        with mock.patch.object(Graphs, "run", broken), self.assertRaisesRegex(CheckFailed, "not finite"):
            writer.generate_text(["a"], max_new_tokens=2)


class SentencePieceTest(Case):
    """Models that write texts with the pieces of a SentencePiece model."""

    prompts = ["The quick <think>fox", "été: 9,99 \u6771 </s>", "x  y"]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        t5 = training.train_sentencepiece(SENTENCES, 500)
        llama = training.train_sentencepiece(
            SENTENCES,
            700,
            "bpe",
            ("<unk>", "<s>", "</s>"),
            byte_fallback=True,
            normalization="identity",
            keep_spaces=True,
        )
        cls.tokenizers = {"t5": SentencePiece(t5, sentinels=4)}
        folder = cls.shared / "llama_tokenizer"
        SentencePiece(llama, "llama").save(folder)
        path = folder / "tokenizer_config.json"
        added = {
            "700": {"content": "<think>", "special": False},
            "701": {"content": "<tool>", "special": True, "lstrip": True},
        }
        path.write_text(json.dumps(json.loads(path.read_text()) | {"legacy": False, "added_tokens_decoder": added}))
        cls.tokenizers["llama"] = extended(text.load(folder), chat_templates={"default": artifacts.TEMPLATE})

    def reference(self, family):
        return ModelWriter(self.exported(family)[0], self.tokenizers[family])

    def test_texts(self):
        for family in ("t5", "llama"):
            self.check(family, ways=("greedy", "sampling"), prompts=self.prompts)

    @pytest.mark.faults
    def test_texts_of_every_search(self):
        self.check("t5", prompts=self.prompts)
        self.check("llama", prompts=self.prompts)
        self.check("llama", "genai", ("constrained", "sampling", "beams"), self.prompts)

    def test_special_tokens_stop_strings_and_a_growing_text(self):
        for family in ("t5", "llama"):
            writer, reference = opened(self.exported(family)[1]), self.reference(family)
            name = {"t5": "<extra_id_1>", "llama": "<tool>"}[family]
            texts = [*self.prompts, f"a {name}b", f"{name} {name}</s>a <think>"]
            for special in ((), (name,), (name, "</s>")):
                self.assertEqual(writer.encode(texts, special), reference.encode(texts, special), special)
            with self.assertRaisesRegex(UserError, "special: 'fox' is not one of"):
                writer.encode(["a fox"], ["fox"])
            (whole,) = writer.generate_text(["The fox"], max_new_tokens=10, seed=7, do_sample=True)
            stop = whole.text.strip()[2:4]
            how = dict(max_new_tokens=10, seed=7, do_sample=True, stop_strings=[stop])
            for skip in (True, False):
                found = writer.generate_text(["The fox"], skip_special_tokens=skip, **how)
                with helpers.op_by_op():
                    expected = reference.generate_text(["The fox"], skip_special_tokens=skip, **how)
                self.assertEqual([each[:2] for each in found], [each[:2] for each in expected])
                self.assertLess(len(found[0].token_ids), 10)
            pieces: list[str] = []
            writer.generate_text(["The fox"], max_new_tokens=10, seed=7, do_sample=True, on_text=pieces.append)
            self.assertEqual("".join(pieces), whole.text)

    def test_stop_strings_are_searched_in_the_same_text(self):
        tokens, tokenizer = opened(self.exported("t5")[1]).tokenizer, self.tokenizers["t5"]
        texts, random = stops.token_texts(tokenizer), np.random.default_rng(0)
        special = tokenizer.special_ids
        for _ in range(50):
            ids = [*random.integers(0, tokenizer.vocab_size, 6).tolist(), *random.choice(special, 2).tolist()]
            random.shuffle(ids)
            self.assertEqual(tokens.following(ids), b"".join(texts[i] for i in ids).decode())

    def test_scores(self):
        for family in ("t5", "llama"):
            model, folder = self.exported(family)
            scorer = OnnxScorer(folder, folders.manifest_of(folder))
            ends = [" fox", "x", " \u6771"]
            expected = likelihood.score_continuations(model, self.prompts, ends, self.tokenizers[family])
            for each, other in zip(scorer.continuations(self.prompts, ends), expected, strict=True):
                self.assertEqual(each.token_ids, other.token_ids)
                np.testing.assert_allclose(each.scores, other.scores, rtol=2e-5, atol=2e-5)

    def test_answers_of_an_encoder_decoder(self):
        _, folder = self.exported("t5")
        reference = self.reference("t5")
        predictor = folders.open_folder(folder)
        with helpers.op_by_op():
            expected = reference.generate_text(self.prompts, max_new_tokens=12)
        self.assertEqual(
            predictor.answer([(prompt,) for prompt in self.prompts]),
            [{"generated_text": one.text} for one in expected],
        )

    def test_a_server_sends_the_same_text(self):
        _, folder = self.exported("llama")
        made, servable, reference = Decoder(folder), Loader(Metrics())("m", 1, folder), self.reference("llama")
        how = dict(max_new_tokens=12, temperature=1.0, top_k=0, top_p=1.0)
        for seed in range(4):
            ids = made.ids(["fox", "\u6771", "x  "][seed % 3])
            parts = [part for part, _ in made.write(servable, ids, Sampling(**how, seed=seed), lambda: None)]
            with helpers.op_by_op():
                (expected,) = reference.generate_from([ids], do_sample=True, seed=seed, **how)
            self.assertEqual("".join(parts), expected.text)
            self.assertGreater(sum(map(bool, parts)), 3)
        message = [{"role": "user", "content": "de</s> \u6771"}]
        template = ChatTemplate(artifacts.TEMPLATE, self.tokenizers["llama"])
        self.assertEqual(made.chat_ids(message), template.ids(message, add_generation_prompt=True))


class TextStreamTest(Case):
    def test_parts_are_those_of_the_whole_text_in_tensorflow(self):
        """Of any ids: parts of characters, special tokens, unknown words, and spaces."""
        random = np.random.default_rng(0)
        bytes_too = training.train_sentencepiece(SENTENCES, 700, byte_fallback=True)
        for name, tokenizer, start in (
            ("bytes", self.tokenizer, []),
            ("pieces", SentencePiece(bytes_too, sentinels=4), []),
            ("words", small.tokenizer(), [small.VOCAB.index("the")]),
        ):
            place = self.shared / name / "tokenizer"
            tokenizer_files.write(tokenizer, ("$A", None), place)
            tokens = Tokens(place.parent, {"frame": [{"text": "text", "segment": 0}]})
            size = tokenizer.vocab_size
            spaces = [i for i, piece in enumerate(tokenizer.vocab) if piece in ("\u2581", "\u0120", "<0x20>")]
            often = [*tokenizer.special_ids, *spaces]
            for _ in range(300):
                ids = np.where(random.random(14) < 0.3, random.choice(often, 14), random.integers(0, size, 14)).tolist()
                first = int(random.integers(0, 5))
                before, ids = [*start, *ids[:first]], ids[first:]
                stream = tokens.stream(before)
                parts = [stream.add(i) for i in ids]
                if random.random() < 0.5:
                    parts.append(stream.end())
                else:
                    stream = tokens.stream(before)
                    parts = [stream.add(i, last=n == len(ids)) for n, i in enumerate(ids, 1)]
                self.assertEqual("".join(parts), decode_text(tokenizer, ids, before), (name, before, ids))


class NumPyTest(unittest.TestCase):
    """The functions that have a counterpart in tfzoo.generation; there they are tested against formulas."""

    def setUp(self):
        random = np.random.default_rng(0)
        self.logits = random.normal(scale=2, size=(6, 40)).astype(np.float32)
        self.logits[:, 7] = self.logits[:, 3]  # Equal ones.

    def test_random_numbers(self):
        seeds = np.array([0, 1, -5, 2**31 - 1], np.int32)
        for stream, step in ((0, 0), (3, 17)):
            expected = of_tensors_too.uniform(tf.constant(seeds), stream, step).numpy()
            np.testing.assert_array_equal(draws.uniform(seeds, stream, step), expected)
            expected = of_tensors_too.exponential(tf.constant(seeds), stream, step, 7).numpy()
            np.testing.assert_allclose(draws.exponential(seeds, stream, step, 7), expected, rtol=1e-6)

    def test_filters(self):
        rows = dict(
            temperature=np.array([1, 0.5, 0, 2, 1, 1], np.float32),
            top_k=np.array([0, 3, 5, 100, 1, 8], np.int32),
            top_p=np.array([1, 0.9, 0.5, 0.7, 1e-6, 0.99], np.float32),
            min_p=np.array([0, 0.1, 0.5, 1, 0, 0.01], np.float32),
            typical_p=np.array([1, 0.9, 0.2, 0.5, 1, 0.7], np.float32),
            epsilon_cutoff=np.array([0, 0.1, 0.01, 0.5, 0, 0.02], np.float32),
            eta_cutoff=np.array([0, 0.3, 0.01, 0.5, 0, 0.02], np.float32),
        )
        for names in [[name] for name in rows] + [["temperature", "top_k", "top_p"], list(rows)]:
            for least in (1, 3):
                some = {name: rows[name] for name in names}
                tensors = {name: tf.constant(values) for name, values in some.items()}
                expected = of_tensors_too.filter_logits(tf.constant(self.logits), tensors, least).numpy()
                found = draws.filter_logits(self.logits, some, least)
                np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected), f"{names} {least}")
                np.testing.assert_allclose(found, expected, rtol=1e-6)

    def test_top_prefers_the_lower_index(self):
        values, index = draws.top(np.array([[1, 3, 3, 2, 3]], np.float32), 2)
        self.assertEqual((values.tolist(), index.tolist()), ([[3, 3]], [[1, 2]]))
        numbers = np.array([0, 0.3, 0.999], np.float32)
        weights = np.array([[0, 0.5, 0.5, 0]] * 3, np.float32)
        self.assertEqual(draws.pick(weights, numbers).tolist(), [1, 1, 2])

    def frequencies(self, logits, **options):
        count = 4000
        many = np.repeat(np.array([logits], np.float32), count, axis=0)
        rows = {name: np.full(count, value, np.asarray(value).dtype) for name, value in options.items()}
        rows = {name: row.astype(np.float32) if row.dtype.kind == "f" else row for name, row in rows.items()}
        numbers = draws.uniform(np.arange(count), 0, 0)
        chosen = draws.pick(draws.softmax(draws.filter_logits(many, rows)), numbers)
        return np.bincount(chosen, minlength=len(logits)) / count

    def test_tokens_have_the_probabilities_of_the_softmax(self):
        chances = np.array([0.5, 0.3, 0.15, 0.05])
        logits = np.log(chances)
        squares = chances**2 / (chances**2).sum()
        for expected, options in (
            (chances, {}),
            (squares, dict(temperature=0.5)),
            ([0.625, 0.375, 0, 0], dict(top_k=2)),
            ([0.625, 0.375, 0, 0], dict(top_p=0.75)),
        ):
            np.testing.assert_allclose(self.frequencies(logits, **options), expected, atol=0.03)
        self.assertEqual(self.frequencies(logits, top_p=0.0).tolist(), [1, 0, 0, 0])
        self.assertEqual(self.frequencies([1, 5, 2], temperature=0.0).tolist(), [0, 1, 0])

    def test_constraints(self):
        random = np.random.default_rng(1)
        history = random.integers(0, 6, (6, 12))
        history[:3, :4] = -1
        source = random.integers(0, 6, (6, 5))
        source[0, :2] = -1
        rows = dict(
            repetition_penalty=np.linspace(0.5, 2, 6, dtype=np.float32),
            presence_penalty=np.linspace(-1, 1, 6, dtype=np.float32),
            min_new_tokens=np.arange(6, dtype=np.int32),
            max_new_tokens=np.full(6, 4, np.int32),
        )
        for options in (
            dict(no_repeat_ngram_size=2, encoder_no_repeat_ngram_size=3, encoder_repetition_penalty=1.5),
            dict(
                bad_words_ids=[[3], [1, 2], [0, 5, 4]], sequence_bias=[[[4], 2.0], [[2, 3], -1.5]], eos_token_id=[1, 3]
            ),
            dict(forced_bos_token_id=[5, 6, 7], forced_eos_token_id=2, suppress_tokens=[8], begin_suppress_tokens=[9]),
            dict(exponential_decay_length_penalty=[1, 1.5], eos_token_id=1, begin_suppress_tokens=[9]),
        ):
            static, _ = generation.read_options(**options)
            for step in (0, 3):
                back = of_tensors.looks_back(static)
                tensors = {name: tf.constant(values) for name, values in rows.items()}
                tensors["source"] = tf.constant(source, tf.int32)
                padded = tf.constant(np.pad(history, [(0, 0), (back, 0)], constant_values=-1), tf.int32)
                expected = of_tensors.constrain(static, tensors, padded, step, tf.constant(self.logits)).numpy()
                found = constraints.constrain(static, rows | dict(source=source), history, step, self.logits)
                np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=f"{options} {step}")


class ScoreTest(Case):
    def test_texts_and_continuations(self):
        for family in ("gpt2", "t5"):
            model, folder = self.exported(family)
            scorer = OnnxScorer(folder, folders.manifest_of(folder), batch_size=3)
            contexts, ends = ["de a", "hello ", "a text of many more tokens than fit"], [" x", "you", " end."]
            if family == "gpt2":
                texts = [*contexts, "one more text that is longer than the thirty-two tokens of the model"]
                self.compare(scorer.texts(texts), likelihood.score_texts(model, texts, self.tokenizer))
            else:  # Their encoders do not read contexts that are longer.
                contexts, ends = contexts[:2], ends[:2]
            expected = likelihood.score_continuations(model, contexts, ends, self.tokenizer)
            self.compare(scorer.continuations(contexts, ends), expected)

    def compare(self, found, expected):
        for each, other in zip(found, expected, strict=True):
            self.assertEqual((each.token_ids, each.likeliest), (other.token_ids, other.likeliest))
            np.testing.assert_allclose(each.scores, other.scores, rtol=2e-5, atol=2e-5)


class CommandTest(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        (cls.shared / "run").mkdir()

    def test_both_engines_write_the_same_and_say_which_they_are(self):
        model, folder = self.exported("gpt2")
        flags = ["--prompt=de a", "--max_new_tokens=8", "--do_sample", "--seed=3", "--top_k=9"]
        code, out, err = helpers.run(generate, f"--model_dir={folder}", *flags)
        self.assertEqual((code, err), (0, f"engine: onnx, because {folder} is an ONNX artifact (graphs: float32)\n"))
        load = mock.patch.object(runs, "load", lambda *_: (model, self.tokenizer))
        with load, helpers.op_by_op():
            beside = helpers.run(generate, f"--model_dir={self.shared / 'run'}", *flags)
            # --engine=tensorflow needs no reason.
            silent = helpers.run(generate, f"--model_dir={self.shared / 'run'}", "--engine=tensorflow", *flags)
        reason = f"engine: tensorflow, because {self.shared / 'run'} is not an ONNX artifact\n"
        self.assertEqual((beside, silent), ((0, out, reason), (0, out, "")))
        self.assertEqual(helpers.run(generate, f"--model_dir={folder}", "--engine=onnx", *flags), (0, out, ""))

    def test_tensorflow_is_not_imported(self):
        _, folder = self.exported("gpt2")
        script = (
            "import sys; from tfzoo import cli, generate; "
            f"code = cli.run(generate.main, generate.define_flags, ['--model_dir={folder}', '--prompt=de a']); "
            "sys.exit(code or 'tensorflow' in sys.modules or 'keras' in sys.modules)"
        )
        self.assertEqual(helpers.python("-c", script, check=False).returncode, 0)

    def test_chat(self):
        _, folder = self.exported("gpt2")
        code, out, _ = helpers.run(generate, f"--model_dir={folder}", "--chat", "--max_new_tokens=4", stdin="de\na\n")
        self.assertEqual(code, 0)
        writer = opened(folder)
        messages = [{"role": "user", "content": "de"}]
        (first,) = writer.generate_from([writer.tokenizer.template().ids(messages)], max_new_tokens=4)
        self.assertTrue(out.startswith(first.text + "\n"))

    def test_scores(self):
        model, folder = self.exported("gpt2")
        code, out, err = helpers.run(score, f"--model_dir={folder}", "--text=de a", "--text=hello", "--tokens")
        self.assertEqual(code, 0, err)
        model.record = FolderRecord()
        expected = likelihood.score_texts(model, ["de a", "hello"], self.tokenizer)
        for line, one in zip(out.splitlines(), expected, strict=True):
            record = json.loads(line)
            np.testing.assert_allclose(record["log_likelihood"], one.log_likelihood, rtol=2e-5)
            np.testing.assert_allclose([value for _, value in record["scores"]], one.scores, rtol=2e-5, atol=2e-5)

    def test_what_is_refused_is_one_line(self):
        _, folder = self.exported("gpt2")
        classifier = self.shared / "classifier" / "1"
        artifacts.export(small.model("bert", heads=["classify"]), small.tokenizer(), classifier, Options(16))
        saved = self.shared / "saved" / "1"
        saved.mkdir(parents=True)
        (saved / "manifest.json").write_text((folder / "manifest.json").read_text())
        for words, where, *flags in (
            ("int8_weights: .* contains no variants", folder, "--onnx_variant=int8_weights"),
            (r"does not write text \(heads: classify\)", classifier),
            ("is damaged", saved),
            ("--engine=tensorflow: .* is an ONNX artifact", folder, "--engine=tensorflow"),
            ("--engine=onnx: .* is not an ONNX artifact", self.shared / "run", "--engine=onnx"),
            ("--onnx_variant=int8: .* is not an ONNX artifact", self.shared / "run", "--onnx_variant=int8"),
            ("--weights=int8: does not apply to an ONNX artifact", folder, "--weights=int8"),
            ("--penalty_alpha: --engine=onnx does not support it", folder, "--penalty_alpha=0.5", "--top_k=3"),
            ("--jit_compile: --engine=onnx does not support it", folder, "--jit_compile"),
            ("--assistant_dir: --engine=onnx does not support it", folder, f"--assistant_dir={folder}"),
            ("contains artifacts, but is not one itself", folder.parent),
        ):
            with self.subTest(words):
                code, out, err = helpers.run(generate, f"--model_dir={where}", "--prompt=a", *flags)
                self.assertEqual((code, out), (2, ""))
                lines = [line for line in err.splitlines() if not line.startswith("engine: ")]
                self.assertEqual(len(lines), 1, err)
                self.assertRegex(lines[0], rf"\Aerror: .*{words}")


if __name__ == "__main__":
    unittest.main()
