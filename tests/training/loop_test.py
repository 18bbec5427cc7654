"""The methods of the training loop, with fakes for model, data and files: no actual training."""

import pathlib
import types
import unittest
from unittest import mock

import numpy as np

from tests import helpers
from tfzoo.errors import CheckFailed, UserError
from tfzoo.training import TrainConfig, Trainer, loop
from tfzoo.training.loop import ADVANCED, ROLLED_BACK, STOPPED, Callback
from tfzoo.training.stages import stages_of
from tfzoo.training.state import Progress


class Workers:
    """A single worker."""

    def any(self, wish):
        return bool(wish)

    def fewest(self, number):
        return number

    def totals(self, *numbers):
        return list(numbers)

    def check_alike(self, **facts):
        pass


class Checkpoints:
    """Stores checkpoints in a dict."""

    def __init__(self):
        self.saved, self.calls = {}, []

    def save(self, step, variables, state, **how):
        self.saved[step] = state
        self.calls.append((step, how["best"], how["interim"]))
        return pathlib.Path(f"{step:08d}")

    def steps(self, interim=True):
        return sorted(self.saved)

    def restore(self, variables, interim=True):
        return max(self.saved.items(), default=None)

    def remove_after(self, step):
        self.saved = {at: state for at, state in self.saved.items() if at <= step}

    def path(self, step):
        return pathlib.Path("no such folder")

    def wait(self):
        pass


class Heard(Callback):
    def __init__(self):
        self.heard = []

    def on_log(self, trainer, record):
        self.heard.append(("log", record["step"], record.get("loss")))

    def on_evaluation(self, trainer, figures):
        self.heard.append(("evaluation", trainer.step, figures["lm_loss"]))

    def on_save(self, trainer, folder):
        self.heard.append(("save", int(folder.name)))


class LoopTest(unittest.TestCase):
    def setUp(self):
        run_dir = helpers.temporary_folder(self)
        (run_dir / "flags.cfg").touch()
        self.enterContext(mock.patch.object(loop, "tf", types.SimpleNamespace(constant=lambda x: x)))
        self.enterContext(mock.patch.object(loop, "optimizers", types.SimpleNamespace(averaged=mock.MagicMock())))
        self.enterContext(mock.patch.object(loop.report, "evaluation_table", lambda *_: ""))
        self.run_dir = run_dir

    def trainer(self, losses, figures=(), **options):
        """Returns a Trainer whose update i (from 1) has losses[i], and whose evaluations return `figures` in turn."""
        defaults = dict(steps=8, log_every=2, evaluate_every=4, checkpoint_every=4, warmup_steps=0)
        config = TrainConfig(run_dir=str(self.run_dir), **(defaults | options))
        trainer = Trainer(config, callbacks=[Heard()])
        trainer.chief, trainer.workers, trainer.checkpoints, trainer.variables = True, Workers(), Checkpoints(), {}
        trainer._least, trainer._flops_per_row, trainer.baselines = 1, 1.0, {}
        trainer.stop = types.SimpleNamespace(asked="", ready=True)
        trainer.bar, trainer.log = mock.MagicMock(), mock.MagicMock()
        trainer.step_seconds = 1e-3
        trainer.schedule = lambda step: 0.1
        trainer.optimizer = types.SimpleNamespace(iterations=np.array(1))
        trainer.optimizer.iterations = types.SimpleNamespace(numpy=lambda: 1)
        trainer.evaluation, trainer.iterator = None, iter(())
        objective = types.SimpleNamespace(best_metric=("lm_loss", "min"), FIGURES=[])
        trainer.inputs = types.SimpleNamespace(objective=objective, epochs=lambda num_batches: {})
        trainer._open_log = mock.MagicMock
        batch = [0]  # Number of the last batch read.

        def run_steps(iterator, count):
            found = []
            for _ in range(count):
                batch[0] += 1
                trainer.counted[batch[0] - 1] = (3, 4)
                found.append(losses[batch[0]] if batch[0] < len(losses) else 1.0)
            return types.SimpleNamespace(numpy=lambda: np.array(found, np.float32))

        def read_on():
            trainer.counted = {}
            batch[0] = trainer.step + trainer.progress.passed_over

        waiting = iter(figures)
        trainer.run_steps, trainer._read_on = run_steps, read_on
        trainer.measure = lambda batches, stopped: None if stopped() else {"lm_loss": next(waiting)}
        read_on()
        return trainer

    def heard(self, trainer):
        return trainer.callbacks[0].heard

    def test_a_whole_run(self):
        trainer = self.trainer([0.0, 1, 3, 1, 1, 1, 1, 5, 7], figures=[2.0, 1.5])
        self.assertTrue(trainer._loop())
        self.assertEqual(
            self.heard(trainer),
            [("log", 2, 2.0), ("log", 4, 1.0), ("evaluation", 4, 2.0), ("save", 4)]
            + [("log", 6, 1.0), ("log", 8, 6.0), ("evaluation", 8, 1.5), ("save", 8)],
        )
        self.assertEqual(trainer.checkpoints.calls, [(4, True, False), (8, True, False)])
        self.assertEqual(trainer.progress, Progress(best=1.5, best_step=8))

    def test_what_is_worse_is_saved_where_it_is_due_alone(self):
        trainer = self.trainer([], figures=[2.0, 3.0, 1.0, 4.0], evaluate_every=2, checkpoint_every=8)
        self.assertTrue(trainer._loop())
        self.assertEqual(trainer.checkpoints.calls, [(2, True, False), (6, True, False), (8, False, False)])
        self.assertEqual((trainer.progress.best, trainer.progress.best_step), (1.0, 6))

    def test_initial_weights_may_be_the_best(self):
        trainer = self.trainer([], figures=[1.0, 2.0], steps=4)
        trainer.progress = Progress(evaluating=True)  # As after --init_from.
        self.assertTrue(trainer._loop())
        self.assertEqual(trainer.checkpoints.calls, [(0, True, False), (4, False, False)])
        self.assertEqual((trainer.progress.best, trainer.progress.best_step), (1.0, 0))
        marked = []
        trainer.checkpoints.path = lambda step: types.SimpleNamespace(is_dir=lambda: True)
        trainer.checkpoints.mark_best = marked.append
        trainer._mark_best()
        self.assertEqual(marked, [0])

    def test_stages(self):
        """The updates of a call are of one stage, each stage ends with an evaluation, and the best is the last's."""
        trainer = self.trainer(
            [], figures=[2.0, 1.0, 4.0, 3.0, 3.5], evaluate_every=4, steps=12, stages="6:sequence_length=256"
        )
        entered = []

        def enter(stage):
            entered.append((trainer.step, stage.number))
            trainer.stage, trainer.counted = stage, {}
            begin = trainer.run_steps

            def run_steps(iterator, count):
                losses = begin(iterator, count)
                # Batches are numbered from the beginning of a stage.
                trainer.counted = {number - stage.begin: places for number, places in trainer.counted.items()}
                return losses

            trainer.run_steps = run_steps

        trainer.enter = enter
        self.assertTrue(trainer._loop())
        self.assertEqual(entered, [(6, 1)])
        evaluated = [(step, figure) for name, step, *figure in self.heard(trainer) if name == "evaluation"]
        self.assertEqual(evaluated, [(4, [2.0]), (6, [1.0]), (8, [4.0]), (12, [3.0])])
        # At step 8, 4.0 is the first figure of the second stage, which is not compared with 1.0.
        self.assertEqual(
            trainer.checkpoints.calls, [(4, True, False), (6, True, False), (8, True, False), (12, True, False)]
        )
        self.assertEqual((trainer.progress.best, trainer.progress.best_step), (3.0, 12))

    def test_a_batch_size_that_changes_what_is_evaluated(self):
        trainer = self.trainer([], figures=[1.0, 4.0, 3.0], stages="4:batch_size=16", evaluate_batches=0)
        trainer.enter = lambda stage: setattr(trainer, "stage", stage)
        trainer.stage = trainer.stages[1]
        trainer.step, trainer.progress = 8, Progress(best=1.0, best_step=4)
        trainer.measure = lambda batches, stopped: {"lm_loss": 2.0}
        self.assertFalse(trainer.evaluate())  # All held-out rows are evaluated: 1.0 remains the best.
        trainer.stages = stages_of(trainer.config.replace(evaluate_batches=50))
        trainer.stage = trainer.stages[1]
        self.assertTrue(trainer.evaluate())

    def test_advance_takes_what_fits(self):
        trainer = self.trainer([])
        self.assertEqual((trainer.advance(), trainer.step), (ADVANCED, 2))
        trainer.step_seconds = loop.CALL_SECONDS
        self.assertEqual((trainer.advance(), trainer.step), (ADVANCED, 3))
        self.assertEqual(trainer.progress, Progress(losses=[1.0], places=[[3, 4]]))
        trainer.stop.asked = "SIGTERM"
        self.assertEqual((trainer.advance(), trainer.step), (STOPPED, 3))

    def test_a_stop_during_an_evaluation_is_remembered(self):
        trainer = self.trainer([], steps=4)
        trainer.measure = lambda batches, stopped: None
        self.assertFalse(trainer._loop())
        self.assertTrue(trainer.progress.evaluating)
        trainer.save(interim=True)
        self.assertEqual(trainer.checkpoints.calls, [(4, False, True)])
        self.assertTrue(trainer.checkpoints.saved[4]["evaluating"])
        # A resumed run starts with it.
        trainer.measure = lambda batches, stopped: {"lm_loss": 1.0}
        self.assertTrue(trainer._loop())
        self.assertEqual(self.heard(trainer)[-2:], [("evaluation", 4, 1.0), ("save", 4)])

    def test_a_callback_may_stop_the_run(self):
        trainer = self.trainer([])
        trainer.callbacks[0].on_log = lambda trainer, record: trainer.request_stop("enough")
        self.assertFalse(trainer._loop())
        self.assertEqual((trainer.step, trainer.stop.asked), (2, "enough"))

    def test_not_finite_ends_it(self):
        trainer = self.trainer([0, 1, np.nan])
        with self.assertRaisesRegex(CheckFailed, "the loss or gradient of step 2 is not finite; .* after step 0"):
            trainer.advance()
        self.assertEqual(trainer.step, 0)

    def test_skipped(self):
        trainer = self.trainer([0, 1, np.nan], on_nonfinite="skip")
        with self.assertLogs("absl", "WARNING"):
            trainer.advance()
        self.assertEqual((trainer.step, trainer.progress.nonfinite), (2, 1))
        self.assertEqual(self.heard(trainer), [("log", 2, 1.0)])

    def test_rolled_back_past_the_batches_that_led_there(self):
        trainer = self.trainer([0, 1, 1, 1, 1, 1, np.nan], figures=[2.0, 1.0], on_nonfinite="rollback")
        with self.assertLogs("absl", "WARNING"):
            self.assertTrue(trainer._loop())
        # Saved at 4, failed at 6: continues from 4 with the batches 7, 8, ...
        self.assertEqual([entry for entry in self.heard(trainer) if entry[0] == "save"], [("save", 4), ("save", 8)])
        self.assertEqual((trainer.progress.passed_over, trainer.progress.nonfinite), (2, 1))
        self.assertEqual(trainer.step, 8)

    def test_rolled_back_with_nothing_to_go_back_to(self):
        trainer = self.trainer([0, np.nan], on_nonfinite="rollback")
        with self.assertLogs("absl", "WARNING"), self.assertRaisesRegex(UserError, "the checkpoints no longer exist"):
            trainer.advance()
        trainer = self.trainer([0, np.nan], on_nonfinite="rollback")
        trainer.save()
        with self.assertLogs("absl", "WARNING"):
            self.assertEqual(trainer.advance(), ROLLED_BACK)
        self.assertEqual((trainer.step, trainer.progress.passed_over), (0, 1))

    def test_a_folder_that_is_gone(self):
        trainer = self.trainer([])
        (self.run_dir / "flags.cfg").unlink()
        with self.assertRaisesRegex(UserError, "no longer contains this run"):
            trainer.save()


if __name__ == "__main__":
    unittest.main()
