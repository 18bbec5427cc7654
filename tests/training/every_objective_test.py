"""A run of any objective that is stopped and resumed, or divided over two devices or workers, is the same run.

RUNS contains flags for each objective; a new objective needs an entry.
"""

import pathlib
import tempfile
import unittest

import pytest

from tests import helpers, tiny_run
from tests.stopped_command import command  # noqa: F401  (called by tests.worlds)
from tests.worlds import Worlds
from tfzoo.training import registry

_SIZES = "hidden_size=16,num_layers=1,num_heads=2,intermediate_size=32,dropout=0,attention_dropout=0"
# T5 does not scale its scores; a small head size keeps them, and thus rounding, small (`made` in distribution_test.py).
_T5 = dict(
    model="t5_small",
    overrides=_SIZES + ",num_decoder_layers=1,head_dim=4",
    tokenizer="sentencepiece",
    vocab_size=300,
)
PAIRS = "pairs.tsv"  # In place of --corpus: parallel text.
# --objective -> the flags of each of its ways that has a graph of its own.
RUNS: dict[str, list[dict]] = {
    "masked_lm": [
        dict(),
        dict(pairs="sentence_order", mask_unit="span", final_mask_rate=0.4, mask_patterns=2),
        dict(pairs="translation", corpus=PAIRS),
    ],
    "causal": [dict(model="gpt2")],
    "replaced_token": [dict(model="electra_small", overrides=_SIZES + ",embedding_size=8", generator_size=0.5)],
    "span_corruption": [dict(_T5)],
    "permutation": [
        dict(model="xlnet_base", overrides=_SIZES),
        dict(model="xlnet_base", overrides=_SIZES, memory_length=16),
    ],
    "denoise": [dict(model="bart_base", overrides=_SIZES + ",num_decoder_layers=1,max_positions=32")],
    "seq2seq": [dict(_T5, corpus=PAIRS)],
    "prefix_lm": [dict(_T5), dict(model="gpt2")],
    "fill_in_the_middle": [
        dict(
            model="gpt2",
            tokenizer="byte_level",
            vocab_size=300,
            special_tokens="<fim_prefix>,<fim_middle>,<fim_suffix>",
        )
    ],
    "ul2": [dict(_T5)],
}
# `make test` runs those whose step is more than the loss of one model's logits; `make faults` runs all.
SHORT = ("replaced_token",)

worlds = Worlds("tests.training.every_objective_test")


class EveryObjectiveTest(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)

    def train(self, world, run_dir, flags, stop_at=0):
        """Trains, and checks the exit code; the run is stopped after the step `stop_at`."""
        if flags.get("corpus") == PAIRS:
            lines = tiny_run.write_corpus(self.folder / "lines.txt").read_text().split("\n\n")
            pairs = "".join(f"{text}\t{text[::-1]}\n" for text in map(str.strip, lines))
            flags |= {"corpus": self.folder / PAIRS}
            flags["corpus"].write_text(pairs)
        argv = [*tiny_run.flags(self.folder, **flags), f"--run_dir={run_dir}"]
        argv += ["--strategy=mirrored", "--num_devices=2"] if world == "mirrored2" else []
        argv += ["--strategy=multi_worker"] if world == "workers2" else []
        for rank in worlds.run(world, [["command", {"argv": argv, "stop_at": stop_at}]], begun=False):
            self.assertEqual(rank[0]["code"], 3 if stop_at else 0, rank)

    def check(self, flags, world):
        """Trains six steps on one device, and three steps on one device, then three in another world."""
        plain = dict(overrides=_SIZES + ",max_positions=32", batch_size=8, accumulation=1, schedule="constant")
        flags = plain | dict(evaluate_every=6, checkpoint_every=3) | flags
        whole, parts = (pathlib.Path(tempfile.mkdtemp(dir=self.folder), "run") for _ in range(2))
        self.train("one", whole, flags)
        self.train("one", parts, flags, stop_at=3)
        if world == "same":
            self.train("one", parts, flags)
        else:
            self.train(world, parts, flags | {"accumulation": 2})
        one, other = (
            {
                (record["step"], name): value
                for record in tiny_run.records(run_dir)
                for name, value in record.items()
                if name not in ("step", "tokens_per_second", "model_tflops")
            }
            for run_dir in (whole, parts)
        )
        for name in ("loss", registry.find(flags["objective"]).best_metric[0]):
            self.assertIn((6, name), one)
        self.assertEqual(other.keys(), one.keys())
        for (step, name), value in one.items():
            found = other[step, name]
            allowed = 0.0 if world == "same" or name == "padding_share" else 2e-6 * max(1.0, abs(value))
            self.assertLessEqual(abs(found - value), allowed, f"{flags['objective']}, {world}: {name} of step {step}")

    def test_every_objective_has_an_entry(self):
        self.assertEqual(RUNS.keys(), registry.OBJECTIVES.keys())

    def test_two_devices_resume(self):
        for objective in SHORT:
            for flags in RUNS[objective][:1]:
                with self.subTest(objective=objective):
                    self.check(flags | {"objective": objective}, "mirrored2")

    @pytest.mark.faults
    def test_all(self):
        for objective, ways in RUNS.items():
            for flags in ways:
                for world in ("same", "mirrored2", "workers2"):
                    with self.subTest(objective=objective, flags=flags, world=world):
                        self.check(flags | {"objective": objective}, world)


# ---------------------------------------------------------------- Functions that run in the worlds
def import_all():
    """Imports what the runs need, once."""
    import matplotlib.backends.backend_agg
    import matplotlib.figure
    import tqdm

    from tfzoo.data import packing, pairs, parallel, pipeline, segments, tokenized
    from tfzoo.models import bart, bert, electra, gpt2, t5, xlnet
    from tfzoo.training import checkpoint, loop, optimizers, runs

    assert all((matplotlib, tqdm, packing, pairs, parallel, pipeline, segments, tokenized))
    assert all((bart, bert, electra, gpt2, t5, xlnet, checkpoint, loop, optimizers, runs))


if __name__ == "__main__":
    unittest.main()
