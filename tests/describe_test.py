"""The costs of a model, compared with figures computed by hand."""

import json

import pytest
import tensorflow as tf

from tests import helpers
from tfzoo import cli, describe, models
from tfzoo.models import costs


def flops(name, heads=(), length=128, **overrides):
    page, config = models.find(name)
    config = type(config)(**config.__dict__ | overrides)
    return costs.flops_a_token(costs.lay_out(page, config, heads), config, heads, length)


# Runs the command with each of several lists of flags, in one process.
PROGRAM = """
import contextlib, io, json, runpy, sys
results = []
for flags in json.loads(sys.argv[1]):
    sys.argv = ["describe", *flags]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module("tfzoo.describe", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            results.append([end.code, out.getvalue(), err.getvalue()])
found = {"tensorflow", "keras"} & sys.modules.keys()
assert not found, f"describe imports {found}"
print(json.dumps(results))
"""
# Together they change the structure of each part of a model. What a family does not support is an error.
OVERRIDES = (
    "num_layers=1,embedding_size=64,biases=none,norm=rms,positions=rotary,gated_mlp=true",
    "num_layers=3,num_decoder_layers=1,tie_embeddings=false,positions=relative,norm_first=true,head_dim=32",
    "share_layers=true,num_segments=3,embedding_norm=true,positions=learned,position_offset=2,biases=qkv",
    "norm_first=true,parallel_blocks=true,qk_norm=true,num_kv_heads=1,embedding_norm=false,dropout=0.0",
    "attention=favor,window=0,positions=none",
    "attention=lean,causal=true",
    "axial_positions=false,attention_layers=lsh:local:lsh,num_layers=3",
)


class WithoutTensorFlowTest(tf.test.TestCase):
    """The command prints without TensorFlow and Keras what it prints with them."""

    def check(self, cases):
        results = json.loads(helpers.python("-c", PROGRAM, json.dumps(cases)).stdout)
        for flags, result in zip(cases, results, strict=True):
            self.assertEqual(tuple(result), helpers.run(describe, *flags), flags)
        return [code for code, _, _ in results]

    def test_every_family(self):
        cases = []
        for family in models.FAMILIES:
            page = models.page(family)
            flags = [
                f"--heads={','.join(page.Model.HEADS)}",
                "--heads=",
                *(f"--overrides={text}" for text in OVERRIDES),
            ]
            cases += [[f"--model={next(iter(page.CONFIGS))}", flag] for flag in flags]
        codes = iter(self.check(cases))
        for family in models.FAMILIES:
            of_family = [next(codes) for _ in range(2 + len(OVERRIDES))]
            self.assertEqual(of_family[:2], [0, 0], family)
            self.assertGreaterEqual(of_family.count(0), 4, f"{family}: {of_family}")

    def test_the_list_and_errors(self):
        base = "--model=bert_base"
        codes = self.check([[], ["--model=bert_bas"], [base, "--heads=x"], [base, "--overrides=x=1"], ["--nonsense"]])
        self.assertEqual(codes, [0, 2, 2, 2, 2])

    @pytest.mark.faults
    def test_every_size(self):
        names = [name for family in models.FAMILIES for name in models.page(family).CONFIGS]
        self.assertEqual(set(self.check([[f"--model={name}"] for name in names])), {0})


class DescribeTest(tf.test.TestCase):
    def test_flops_of_bert_base(self):
        # Per layer: 4 E^2 for attention, 2 E F for the MLP, L E each for scores and weighted sums; two FLOPs each.
        layer = 2 * (4 * 768**2 + 2 * 768 * 3072) + 4 * 128 * 768
        self.assertEqual(flops("bert_base"), 12 * layer)
        transform, words = 2 * 768**2, 2 * 768 * 30522
        self.assertEqual(flops("bert_base", ("lm",)), 12 * layer + transform + words)

    def test_flops_know_sharing_grouping_gates_and_windows(self):
        self.assertEqual(flops("albert_base_v2"), flops("bert_base") + 2 * 128 * 768)
        attention = 2 * (2 * 4096**2 + 2 * 4096 * 1024)
        seen, mlp, words = 4 * 128 * 4096, 2 * 3 * 4096 * 14336, 2 * 4096 * 128256
        self.assertEqual(flops("llama3_8b", ("lm",)), 32 * (attention + seen + mlp) + words)
        self.assertEqual(flops("mistral_7b", (), 8192), flops("mistral_7b", (), 4096))

    def test_of_an_encoder_decoder_both_sides_count(self):
        e, f = 512, 2048
        encoder, decoder = 2 * (4 * e**2 + 2 * e * f) + 4 * 128 * e, 2 * (8 * e**2 + 2 * e * f) + 2 * 4 * 128 * e
        self.assertEqual(flops("t5_small", ("lm",)), 6 * (encoder + decoder) + 2 * e * 32128)

    def test_learning_from_a_row(self):
        sizes = dict(vocab_size=50, hidden_size=8, num_layers=2, num_heads=2, intermediate_size=12, max_positions=16)
        # Kaplan et al. 2020: 6 FLOPs per matrix element, 12 L E for the attention of a layer. E 8, F 12, V 50.
        layer, words = 4 * 8**2 + 2 * 8 * 12, 8 * 50
        decoder = models.build("gpt2", **sizes)
        self.assertEqual(costs.training_flops(decoder, 10), 10 * (2 * (6 * layer + 12 * 10 * 8) + 6 * words))
        encoder = models.build("bert_tiny", heads=("lm",), **sizes)
        body = 10 * 2 * (6 * layer + 12 * 10 * 8)
        self.assertEqual(costs.training_flops(encoder, 10, predictions=3), body + 3 * 6 * (8**2 + words))
        both = models.build("t5_small", **sizes | dict(num_layers=1, num_decoder_layers=1, head_dim=4))
        source, target = 6 * layer + 12 * 10 * 8, 6 * (layer + 4 * 8**2 + words) + 2 * 12 * 10 * 8
        self.assertEqual(costs.training_flops(both, 10, targets=5), 10 * source + 5 * target)

    def test_the_command(self):
        def run(*arguments):
            code, out, err = helpers.run(describe, *arguments)
            return code, out + err

        code, text = run("--model=bert_base", "--heads=classify")
        self.assertEqual(code, 0)
        self.assertRegex(text, r"encoder/stack/layer_\{\}/mlp/up/kernel +768 x 3,072 +x 12 +28,311,552\n")
        self.assertIn("parameters        109,483,778\n", text)
        self.assertIn("inference memory  418 MiB in float32", text)
        code, text = run()
        self.assertEqual(code, 0)
        for family in models.FAMILIES:
            self.assertRegex(text, f"(?m)^{family}: ")
        self.assertEqual(run("--model=bert_bas")[0], cli.WRONG_USE)

        for flags, message in (
            (["--model=bert_base", "--sequence_length=-4"], "--sequence_length=-4: must be at least 1"),
            (["--model=bert_base", "--sequence_length=0"], "--sequence_length=0: must be at least 1"),
            (["--model=bert_base", "--sequence_length=513"], "must not exceed the model's max_positions (512); use a"),
            (["--model=qwen3_0.6b", "--sequence_length=40961"], "the model's max_positions (40960)"),
            (["--model=gpt2", "--heads=lm,tags"], "--heads=tags: gpt2 has no such head (did you mean tag?); use one"),
        ):
            code, text = run(*flags)
            self.assertEqual(code, cli.WRONG_USE)
            self.assertIn(message, text)
        for name in ("t5_small", "xlnet_base"):  # Relative positions have no maximum length.
            self.assertIn("at length 4,096\n", run(f"--model={name}", "--sequence_length=4096")[1])
        flags = ["--model=bert_tiny", "--overrides=max_positions=600", "--sequence_length=600"]
        self.assertIn("at length 600\n", run(*flags)[1])

    def test_titles_are_whole(self):
        for family in models.FAMILIES:
            title = describe.title(models.page(family))
            self.assertRegex(title, r"^\S.*[.]$")
            self.assertNotIn("\n", title)
        self.assertEqual(
            describe.title(models.page("t5")),
            "T5 (Raffel et al. 2020, https://arxiv.org/abs/1910.10683): an encoder-decoder, pre-norm, with learned "
            "biases for relative positions, unscaled scores and no other biases. Version 1.1, Flan-T5 and mT5 (Xue et "
            "al. 2021) have gated MLPs and an output matrix of their own.",
        )

    def test_a_generator_is_built_and_described_as_one(self):
        self.assertEqual(models.default_heads("electra_small"), ("discriminate",))
        self.assertEqual(models.default_heads("bert_tiny"), ("lm", "next_sentence"))
        sizes = dict(hidden_size=8, num_heads=2, num_layers=1, intermediate_size=8, vocab_size=20, max_positions=8)
        for name in ("electra_small_generator", "electra_base_generator", "electra_large_generator"):
            self.assertEqual(models.build(name, **sizes).head_names, ("lm",))
        self.assertEqual(models.build("electra_small_generator", heads=("tag",), **sizes).head_names, ("tag",))
        _, out, _ = helpers.run(describe, "--model=electra_small_generator")
        self.assertIn("  lm/bias ", out)
        self.assertNotIn("discriminate/", out)


if __name__ == "__main__":
    tf.test.main()
