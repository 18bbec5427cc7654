"""Every pair of generate's flags either works or is refused in one line, never with a traceback.

make test tries
- each pair on its own, with a stub for the decoder: flags, options and prompts are read and checked;
- the pairs that work, several in a run: the decoder, one operation after another;
- --jit_compile with each flag, several in a run: the decoder as XLA's HLO, where what XLA cannot compile is refused.
make faults tries
- --jit_compile with each flag on its own: the decoder, compiled by XLA;
- the pairs that work, several in a run: the decoder as a graph and compiled by XLA, which must say the same.
"""

import importlib
import itertools
import json
import re
import unittest
from unittest import mock

import keras
import pytest
import tensorflow as tf
from absl import flags as absl_flags

import tfzoo
from tests import helpers
from tfzoo import generate
from tfzoo.generation import texts
from tfzoo.model_dir import ModelDir

CHAT = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
# Each flag with a value other than its default and the flags that it requires, in one way or several.
FLAGS = {
    "prompt": ["--prompt=ab cd ab"],
    "input": ["--input={folder}/prompts.jsonl"],
    "chat": ["--chat"],
    "output": ["--output={folder}/texts.jsonl"],
    "system": ["--chat --system=brief"],
    "chat_template": ["--chat --chat_template=default"],
    "tools": ["--chat --tools={folder}/objects.json"],
    "documents": ["--chat --documents={folder}/objects.json"],
    "template_option": ["--chat --template_option=enable_thinking=false"],
    "stream": ["--stream"],
    "batch_size": ["--batch_size=1"],
    "special": ["--special=</s>"],
    "skip_special_tokens": ["--noskip_special_tokens"],
    "return_scores": ["--return_scores"],
    "weights": ["--weights=int8"],
    "max_new_tokens": ["--max_new_tokens=3"],
    "min_new_tokens": ["--min_new_tokens=2"],
    "seed": ["--seed=3"],
    "prefill_chunk": ["--prefill_chunk=3"],
    "jit_compile": ["--jit_compile"],
    "stop_strings": ["--stop_strings=zz"],
    "bad_words": ["--bad_words=e"],
    "no_repeat_ngram_size": ["--no_repeat_ngram_size=2"],
    "repetition_penalty": ["--repetition_penalty=1.2"],
    "presence_penalty": ["--presence_penalty=0.3"],
    "do_sample": ["--do_sample"],
    "temperature": ["--do_sample --temperature=0.7"],
    "top_k": ["--do_sample --top_k=5", "--penalty_alpha=0.5 --top_k=5"],
    "top_p": ["--do_sample --top_p=0.9"],
    "min_p": ["--do_sample --min_p=0.01"],
    "typical_p": ["--do_sample --typical_p=0.9"],
    "num_return_sequences": ["--do_sample --num_return_sequences=2", "--num_beams=2 --num_return_sequences=2"],
    "num_beams": ["--num_beams=2"],
    "early_stopping": ["--num_beams=2 --early_stopping=true"],
    "length_penalty": ["--num_beams=2 --length_penalty=0.5"],
    "num_beam_groups": ["--num_beams=2 --num_beam_groups=2"],
    "diversity_penalty": ["--num_beams=2 --num_beam_groups=2 --diversity_penalty=0.5"],
    "penalty_alpha": ["--penalty_alpha=0.5 --top_k=5"],
    "prompt_lookup_num_tokens": ["--prompt_lookup_num_tokens=2"],
    "max_matching_ngram_size": ["--prompt_lookup_num_tokens=2 --max_matching_ngram_size=1"],
    "assistant_dir": ["--assistant_dir={folder} --num_assistant_tokens=1"],
    "num_assistant_tokens": ["--assistant_dir={folder} --num_assistant_tokens=1"],
}
# Pairs that contradict each other, as --help says.
SOURCES = ("prompt", "input", "chat")
SEARCHES = ("num_beams", "penalty_alpha", "prompt_lookup_num_tokens", "assistant_dir")
CONTRADICTIONS = {
    frozenset(pair)
    for pair in [
        *itertools.combinations(SOURCES, 2),
        *itertools.combinations(SEARCHES, 2),
        *itertools.product(["do_sample"], ["num_beam_groups", "penalty_alpha"]),
        *itertools.product(["chat"], ["output", "special", "return_scores", "num_return_sequences"]),
        *itertools.product(["stream"], ["input", "output", "return_scores", "num_return_sequences"]),
    ]
}


def arguments(*names: str) -> tuple[list[str], set[frozenset[str]]]:
    """Returns a command line with these flags, and the pairs in it that contradict each other: none, if there is such a
    line."""
    lines = []
    for ways in itertools.product(*(FLAGS[name] for name in names)):
        line = list(dict.fromkeys(f"--{argument}" for way in ways for argument in f" {way}".split(" --")[1:]))
        given = {argument[2:].partition("=")[0] for argument in line}
        given = {name if name in FLAGS else name.removeprefix("no") for name in given}
        if not given & {*SOURCES}:
            line.append(FLAGS["prompt"][0])
        if "max_new_tokens" not in given:
            line.append("--max_new_tokens=2")
        lines.append((line, {pair for pair in CONTRADICTIONS if pair <= given}))
    return min(lines, key=lambda line: len(line[1]))


def search(*names: str) -> set[str]:
    """Returns the flags that determine which decoder runs."""
    given = " ".join(arguments(*names)[0])
    return {name for name in (*SEARCHES, "num_beam_groups") if f"--{name}=" in given}


PAIRS = [pair for pair in itertools.combinations(FLAGS, 2) if not arguments(*pair)[1]]


def runs_of(pairs) -> list[tuple[str, ...]]:
    """Returns few sets of compatible flags such that each pair is in one, decoded as it would be on its own."""
    left, found = {frozenset(pair): search(*pair) for pair in pairs}, []
    flags = [name for name in FLAGS if any(name in pair for pair in left)]
    for pair in pairs:
        if frozenset(pair) not in left:
            continue
        chosen, decoder = list(pair), search(*pair)
        for name in flags:
            new = any(left.get(frozenset((name, other))) == decoder for other in chosen)
            if new and name not in chosen and not arguments(*chosen, name)[1] and search(*chosen, name) == decoder:
                chosen.append(name)
        for each in itertools.combinations(chosen, 2):
            if left.get(frozenset(each)) == decoder:
                del left[frozenset(each)]
        found.append(tuple(chosen))
    return found


class FlagsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        keras.utils.set_random_seed(5)
        cls.folder = helpers.temporary_folder(cls)
        cls.tokenizer = helpers.byte_tokenizer(["<s>", "</s>"], eos="</s>")
        cls.tokenizer.save(cls.folder)
        config = json.loads((cls.folder / "tokenizer_config.json").read_text()) | {"chat_template": CHAT}
        (cls.folder / "tokenizer_config.json").write_text(json.dumps(config))
        (cls.folder / "prompts.jsonl").write_text('{"prompt": "ab cd ab", "seed": 3}\n{"prompt": "e", "seed": 7}\n')
        (cls.folder / "objects.json").write_text('[{"title": "a", "text": "b"}]')
        cls.models = {}
        # Otherwise most of the time would be spent on tokenizing the same texts.
        cls.encode, cls.detokenize = map(remembering, (texts.encode, texts._detokenize))

    def load(self, weights):
        if weights not in self.models:
            sizes = dict(hidden_size=8, num_layers=1, num_heads=1, intermediate_size=8, max_positions=128)
            model = tfzoo.build("gpt2", vocab_size=258, dropout=0, attention_dropout=0, **sizes)
            self.models[weights] = tfzoo.store_weights(model, weights) or model
        return self.models[weights], self.tokenizer

    def run_main(self, line, decoder):
        """Returns (exit code, stdout, stderr) of generate, with `decoder` in place of the function that compiles it."""
        line = [argument.format(folder=self.folder) for argument in line]
        with (
            mock.patch.object(ModelDir, "load", lambda source: self.load(source.weights)),
            mock.patch.object(decode(), "_compiled", decoder),
            mock.patch.object(texts, "encode", self.encode),
            mock.patch.object(texts, "_detokenize", self.detokenize),
        ):
            return helpers.run(generate, f"--model_dir={self.folder}", "--engine=tensorflow", *line, stdin="ab\n")

    def assert_works(self, names, decoder):
        line, contradictions = arguments(*names)
        self.assertFalse(contradictions)
        code, out, err = self.run_main(line, decoder)
        self.assertEqual(code, 0, f"{' '.join(line)}\n{err}")
        said = (self.folder / "texts.jsonl").read_text() if "output" in names else out
        return re.sub(r', "scores?": (\[.*?\]|[^,}]*)', "", said)  # They differ by rounding.

    def test_every_flag_is_here(self):
        flags = absl_flags.FlagValues()
        generate.define_flags(flags)
        # These select the model and what runs it; --checkpoint applies to runs.
        self.assertEqual({*flags} - {"model_dir", "checkpoint", "engine", "onnx_variant"}, {*FLAGS})

    def test_every_pair_works_or_is_refused_in_a_line(self):
        for pair in itertools.combinations(FLAGS, 2):
            line, contradictions = arguments(*pair)
            with self.subTest(" ".join(line)):
                code, out, err = self.run_main(line, stub)
                if not contradictions:
                    self.assertEqual(code, 0, err)
                else:
                    self.assertEqual((code, out), (2, ""), err)
                    self.assertRegex(err, r"\Aerror: .*\n\Z")
                    self.assertTrue(any(name in err for both in contradictions for name in both), err)

    def test_pairs_decode(self):
        for names in runs_of(PAIRS):
            with self.subTest(names):
                self.assert_works(names, decode()._function)

    @pytest.mark.faults
    def test_xla_takes_each_flag(self):
        for names in runs_of([pair for pair in PAIRS if "jit_compile" in pair]):
            with self.subTest(names):
                self.assert_works(names, lowered)

    @pytest.mark.faults
    def test_each_flag_compiled_by_xla(self):
        for pair in PAIRS:
            if "jit_compile" in pair:
                with self.subTest(pair):
                    self.assert_works(pair, decode()._compiled)

    @pytest.mark.faults
    def test_xla_says_the_same_as_a_graph_and_each_operation(self):
        for names in runs_of(PAIRS):
            plain = [name for name in names if name != "jit_compile"]
            expected = self.assert_works(plain, decode()._function)
            for way in (plain, [*plain, "jit_compile"]):
                with self.subTest(way):
                    self.assertEqual(self.assert_works(way, decode()._compiled), expected)


def remembering(function):
    """Returns the function with a cache of its results."""
    known = {}

    def call(tokenizer, *arguments):
        key = repr(arguments)
        if key not in known:
            known[key] = function(tokenizer, *arguments)
        return known[key]

    return staticmethod(call)


def decode():
    return importlib.import_module("tfzoo.generation.decode")


def outputs(options, token_ids, room):
    """Returns outputs of a decoder, of the right shapes."""
    batch, count = len(token_ids) * options.num_return_sequences, len(room)
    ids = tf.fill([batch, count], 70)
    return dict(
        token_ids=ids,
        scores=tf.zeros([batch, count]),
        lengths=tf.fill([batch], count),
        bad=tf.zeros([batch], tf.bool),
    )


def stub(model, options, *_):
    return lambda token_ids, padding_mask, rows, room: outputs(options, token_ids, room)


def lowered(model, options, *others):
    """Compiles as far as HLO, where shapes must be known and each operation must have a kernel."""

    def run(*arguments):
        graph = tf.function(decode()._function(model, options, *others), jit_compile=True, autograph=False)
        hlo = graph.experimental_get_compiler_ir(*arguments)(stage="hlo")
        assert "ENTRY" in hlo
        return outputs(options, arguments[0], arguments[3])

    return run


if __name__ == "__main__":
    unittest.main()
