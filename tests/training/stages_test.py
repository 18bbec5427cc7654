"""Stages: their configs, runs that change at given steps, and such runs interrupted around the change."""

import math
import unittest
from unittest import mock

import numpy as np
import pytest

from tests import helpers, tiny_run
from tfzoo import cli, train
from tfzoo.errors import UserError
from tfzoo.training import TrainConfig, loop, report
from tfzoo.training.stages import Stage, stage_at, stages_of


def config(**values):
    return TrainConfig(run_dir="here", **(dict(steps=100, batch_size=8, sequence_length=16) | values))


class StagesOfTest(unittest.TestCase):
    def test_without_stages(self):
        (stage,) = stages_of(config())
        self.assertEqual(stage, Stage(0, 0, 100, 100, config()))
        self.assertEqual(stage.seed, 0)

    def test_a_stage_keeps_what_it_does_not_change(self):
        first, second, third = stages_of(config(stages="90:sequence_length=32,batch_size=4  95:batch_size=2", seed=7))
        self.assertEqual(
            [(s.number, s.begin, s.end) for s in (first, second, third)], [(0, 0, 90), (1, 90, 95), (2, 95, 100)]
        )
        self.assertEqual(first.config, config(steps=90, seed=7))
        self.assertEqual(second.config, config(steps=5, seed=7, sequence_length=32, batch_size=4))
        self.assertEqual(third.config, config(steps=5, seed=7, sequence_length=32, batch_size=2))
        self.assertEqual(first.seed, 7)
        self.assertEqual(len({first.seed, second.seed, third.seed}), 3)
        for stage in (second, third):
            self.assertTrue(0 <= stage.seed < 2**31)

    def test_a_stage_changes_the_mixture(self):
        _, second = stages_of(config(corpus="a.txt,b.txt", stages="90:corpus_weights=3,1,batch_size=2"))
        self.assertEqual((second.config.corpus_weights, second.config.batch_size), ("3,1", 2))
        first, second = stages_of(config(corpus="a.txt,b.txt", stages="90:corpus_weights=1,0"))
        self.assertTrue(first.comparable(second))

    def test_the_stage_of_an_update(self):
        stages = stages_of(config(stages="90:batch_size=4 95:batch_size=2"))
        found = [stage_at(stages, update).number for update in (0, 1, 90, 91, 95, 96, 100, 101)]
        self.assertEqual(found, [0, 0, 0, 1, 1, 2, 2, 2])

    def test_which_figures_can_be_compared(self):
        first, second, third = stages_of(config(stages="90:sequence_length=32 95:batch_size=2"))
        self.assertFalse(first.comparable(second))
        self.assertFalse(second.comparable(third))  # Other numbers of rows.
        first, second = stages_of(config(stages="90:batch_size=2", evaluate_batches=0))
        self.assertTrue(first.comparable(second))

    def test_what_is_wrong(self):
        form = r"must have the form STEP:FLAG=VALUE,FLAG=VALUE, such as 9000:sequence_length=512,batch_size=8"
        for stages, message in (
            ("x", f"--stages=x: x {form}"),
            ("50", f"--stages=50: 50 {form}"),
            ("-5:batch_size=4", f"--stages=-5:batch_size=4: -5:batch_size=4 {form}"),
            ("0:batch_size=4", ".*: step 0 must be at least 1"),
            ("50:batch_size=4 50:batch_size=2", ".*: step 50 is not after step 50 of the previous stage; list .*"),
            ("100:batch_size=4", r".*: step 100 is not below --steps \(100\); raise --steps, or omit that stage"),
            ("50:batch_size=four", ".*: batch_size=four: must be a whole number"),
            ("50:batch_size", ".*: batch_size=: must be a whole number"),
            ("50:batch_size=0", "--stages: from step 50 on: batch_size=0: must be from 1 to 1000000"),
            ("50:batch_size=4,batch_size=2", ".*: step 50 sets batch_size twice; omit one of them"),
            (
                "50:batchsize=4",
                r".*: batchsize is not one of .*\(did you mean batch_size\?\)",
            ),
            ("50:vocab_size=300", ".*: vocab_size cannot change during a run, only .* a new run with --init_from"),
            ("50:mask_rate=0.3", ".*: mask_rate cannot change during a run, only .*"),
        ):
            with self.subTest(stages), self.assertRaisesRegex(UserError, f"^{message}$"):
                config(stages=stages)


# Three updates with rows of 16 tokens, then three with rows of 24.
FLAGS = dict(stages="3:sequence_length=24,batch_size=2", seed=3, evaluate_every=2, checkpoint_every=2, log_every=2)


class RunTest(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)
        self.enterContext(mock.patch.object(report, "plot"))

    def train(self, name="run", interrupted_at=None, killed=False, **flags):
        """Trains in a folder. At the call `interrupted_at` of `advance` or `evaluate`, the run is asked to stop, or
        fails without saving anything."""
        calls = []
        advance, evaluate = loop.Trainer.advance, loop.Trainer.evaluate

        def counted(action):
            def call(trainer):
                calls.append((action.__name__, trainer.step, trainer.stage.number))
                if calls[-1][:2] == interrupted_at:
                    if killed:
                        raise RuntimeError("killed")
                    trainer.request_stop("the test")
                return action(trainer)

            return call

        argv = [*tiny_run.flags(self.folder, **(FLAGS | flags)), f"--run_dir={self.folder / name}"]
        with (
            mock.patch.object(loop.Trainer, "advance", counted(advance)),
            mock.patch.object(loop.Trainer, "evaluate", counted(evaluate)),
        ):
            code, out, err = helpers.run(train, *argv)
        return code, out, err, calls

    @pytest.mark.faults
    def test_a_run_interrupted_at_the_border_is_the_whole_run(self):
        # At the end of a stage before its evaluation, and before the first update of the next one.
        self.interrupt((("evaluate", 3), False, ("evaluate", 3, 0)), (("advance", 3), True, ("advance", 3, 1)))

    @pytest.mark.faults
    def test_a_run_interrupted_anywhere_is_the_whole_run(self):
        self.interrupt(
            (("advance", 2), False, ("advance", 2, 0)),
            (("advance", 3), False, ("advance", 3, 1)),
            (("advance", 4), False, ("advance", 4, 1)),
            (("evaluate", 3), True, ("advance", 2, 0)),
            (("evaluate", 6), True, ("advance", 4, 1)),
        )

    def interrupt(self, *cases):
        """Compares interrupted runs, (call at which, whether it is killed, first call when it is resumed), with a whole
        one."""
        code, out, err, calls = self.train("whole")
        self.assertEqual(code, cli.DONE, out + err)
        # A stage ends as a run does: with an evaluation.
        evaluated = [(step, stage) for name, step, stage in calls if name == "evaluate"]
        self.assertEqual(evaluated, [(2, 0), (3, 0), (4, 1), (6, 1)])
        self.assertRegex(out, r"from step 3 on, sequence_length=24, batch_size=2: [\d,]+ training tokens in")
        self.assertIn("  in rows of 24 tokens", out)
        records = tiny_run.records(self.folder / "whole")
        trained = [record for record in records if "loss" in record]
        self.assertEqual(
            [(r["step"], r["sequence_length"], r["batch_size"]) for r in trained],
            [(2, 16, 4), (3, 16, 4), (4, 24, 2), (6, 24, 2)],
        )
        self.assertEqual([r["sequence_length"] for r in records if "loss" not in r], [16, 16, 24, 24])
        expected = tiny_run.measured(self.folder / "whole")
        for number, (call, killed, resumed) in enumerate(cases):
            with self.subTest(call=call, killed=killed):
                code, out, err, _ = self.train(f"run {number}", interrupted_at=call, killed=killed)
                self.assertEqual(code, cli.BUG if killed else cli.STOPPED, out + err)
                code, out, err, calls = self.train(f"run {number}")
                self.assertEqual(code, cli.DONE, out + err)
                self.assertEqual(calls[0], resumed)
                self.assertEqual(tiny_run.measured(self.folder / f"run {number}"), expected)

    @pytest.mark.faults
    def test_the_first_stage_is_the_run_without_stages(self):
        self.train("whole")
        code, out, err, _ = self.train("plain", stages="", schedule="constant")
        self.assertEqual(code, cli.DONE, out + err)
        self.train("constant", schedule="constant")
        plain, staged = (tiny_run.measured(self.folder / name) for name in ("plain", "constant"))
        self.assertEqual(plain[2, "loss"], staged[2, "loss"])
        self.assertNotEqual(plain[4, "loss"], staged[4, "loss"])

    @pytest.mark.faults
    def test_a_rollback_over_the_border(self):
        """The run returns to a checkpoint of the previous stage, and goes on from there with later batches."""
        code, out, err, calls = self.train_with_nan(at=5)
        self.assertEqual(code, cli.DONE, out + err)
        self.assertEqual([call for call in calls if call[0] == "advance"][-1][2], 1)
        trained = [record for record in tiny_run.records(self.folder / "run") if "loss" in record]
        self.assertEqual([(r["step"], r["sequence_length"]) for r in trained], [(2, 16), (3, 16), (4, 24), (6, 24)])
        self.assertTrue(all(math.isfinite(record["loss"]) for record in trained))
        self.assertEqual(trained[-1]["nonfinite"], 1)

    def train_with_nan(self, at):
        """The first time that update `at` is made, its loss is not finite, and checkpoints after step 2 are lost."""
        failed = []
        enter = loop.Trainer.enter

        def entered(trainer, stage):
            enter(trainer, stage)
            run_steps = trainer.run_steps

            def failing(iterator, count):
                losses = run_steps(iterator, count).numpy()
                if trainer.step < at <= trainer.step + len(losses) and not failed:
                    failed.append(at)
                    losses[at - trainer.step - 1] = np.nan
                    trainer.checkpoints.wait()
                    trainer.checkpoints.remove_after(2)
                return mock.Mock(numpy=lambda: losses)

            trainer.run_steps = failing

        with mock.patch.object(loop.Trainer, "enter", entered), self.assertLogs("absl", "WARNING"):
            return self.train(on_nonfinite="rollback", keep_checkpoints=9)

    def test_what_is_wrong(self):
        for stages, message in (
            (
                "3:sequence_length=64",
                r"from step 3 on: --sequence_length=64: must not exceed the model's max_positions",
            ),
            ("3:batch_size=3", r"from step 3 on: --accumulation=2: must divide --batch_size \(3\)"),
            ("9:batch_size=2", r"=9:batch_size=2: step 9 is not below --steps \(6\)"),
        ):
            with self.subTest(stages):
                code, _, err, _ = self.train(stages=stages)
                self.assertEqual(code, cli.WRONG_USE, err)
                self.assertRegex(err, rf"^error: --stages:? ?{message}[^\n]*\n$")
        self.train("run")
        code, _, err, _ = self.train("run", stages="4:batch_size=2")
        self.assertEqual(code, cli.WRONG_USE)
        self.assertRegex(
            err, r"was started with different flags: --stages \(3:sequence_length=24,batch_size=2 -> 4:batch_size=2\)"
        )


if __name__ == "__main__":
    unittest.main()
