"""A run of any objective that is stopped and resumed, or divided over two devices or workers, is the same run.

RUNS contains flags for each objective; a new objective needs an entry.
"""

import unittest

import pytest

from tests import helpers, tiny_run
from tests.worlds import Worlds
from tfzoo.training import registry

_SIZES = "hidden_size=16,num_layers=1,num_heads=2,intermediate_size=32,dropout=0,attention_dropout=0"
_ENCODER_DECODER = _SIZES + ",num_decoder_layers=1"
# --objective -> the flags of each of its ways that has a graph of its own. Small attention scores: see `made` in
# distribution_test.py.
RUNS: dict[str, list[dict]] = {
    "masked_lm": [dict(model="bert_tiny")],
    "causal": [dict(model="gpt2", overrides=_SIZES + ",max_positions=32")],
    "span_corruption": [
        dict(model="t5_small", overrides=_ENCODER_DECODER + ",head_dim=4", tokenizer="sentencepiece", vocab_size=300)
    ],
}
# Those whose step is more than a loss of logits: two models, memory, sampling. `make faults` tests all.
SHORT = ["causal"]

worlds: Worlds


def setUpModule():
    global worlds
    worlds = Worlds("tests.training.every_objective_test")


def tearDownModule():
    worlds.close()


class EveryObjectiveTest(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)

    def train(self, world, run_dir, **flags):
        argv = [*tiny_run.flags(self.folder, **flags), f"--run_dir={run_dir}"]
        argv += ["--strategy=mirrored", "--num_devices=2"] if world == "mirrored2" else []
        argv += ["--strategy=multi_worker"] if world == "workers2" else []
        for rank in worlds.run(world, [["command", {"argv": argv}]], begun=False):
            self.assertEqual(rank[0]["code"], 0, rank)

    def check(self, flags, world):
        """Trains six steps on one device, and three steps on one device, then three in another world."""
        plain = dict(overrides=_SIZES + ",max_positions=32", batch_size=8, accumulation=1, schedule="constant")
        flags = plain | dict(evaluate_every=6, checkpoint_every=3) | flags
        whole, parts = (self.folder / f"{name}-{flags['objective']}-{world}" for name in ("whole", "parts"))
        self.train("one", whole, **flags)
        self.train("one", parts, **flags | {"steps": 3})
        resumed_in = {"same": "one"}.get(world, world)
        self.train(resumed_in, parts, **flags | ({"accumulation": 2} if world != "same" else {}))
        one, other = (
            {
                (record["step"], name): value
                for record in tiny_run.records(run_dir)
                for name, value in record.items()
                if name not in ("step", "tokens_per_second", "model_tflops")
            }
            for run_dir in (whole, parts)
        )
        self.assertContainsSubset([(6, "loss"), (6, registry.find(flags["objective"]).best_metric[0])], one)
        self.assertEqual({key for key in other if key[0] != 3}, {key for key in one if key[0] != 3})
        for (step, name), value in one.items():
            found = other[step, name]
            allowed = 0.0 if world == "same" or name == "padding_share" else 2e-6 * max(1.0, abs(value))
            self.assertLessEqual(abs(found - value), allowed, f"{flags['objective']}, {world}: {name} of step {step}")

    def assertContainsSubset(self, expected, actual):
        self.assertEqual([key for key in expected if key not in actual], [])

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
    from tests.training import distribution_test

    distribution_test.import_all()


def command(world, argv):
    """Runs tfzoo.train in this process."""
    from tfzoo import train

    return dict(zip(("code", "out", "err"), helpers.run(train, *argv), strict=True))


if __name__ == "__main__":
    unittest.main()
