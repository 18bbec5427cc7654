"""The reaction to non-finite losses, tested without a run."""

import math
import unittest

from tfzoo.training.guard import after_rollback, judge
from tfzoo.training.state import Progress

NAN, INF = math.nan, math.inf


class JudgeTest(unittest.TestCase):
    def test_finite_losses_go_on(self):
        verdict = judge([1.0, 2.0], 4, Progress(in_a_row=1), "stop", 3)
        self.assertEqual((verdict.action, verdict.progress, verdict.nonfinite), ("go_on", Progress(), ()))
        self.assertEqual(judge([], 4, Progress(), "stop", 0).action, "go_on")

    def test_stop_ends_at_the_first(self):
        for loss in (NAN, INF, -INF):
            verdict = judge([1.0, loss, NAN], 4, Progress(), "stop", 3)
            self.assertEqual((verdict.action, verdict.step, verdict.nonfinite), ("stop", 6, ()))
            self.assertEqual(verdict.progress, Progress())

    def test_skip_bears_so_many_in_a_row(self):
        verdict = judge([NAN, 1.0, NAN, NAN], 0, Progress(), "skip", 2)
        self.assertEqual((verdict.action, verdict.nonfinite), ("go_on", (1, 3, 4)))
        self.assertEqual(verdict.progress, Progress(nonfinite=3, in_a_row=2))
        # The next failure exceeds the limit, even in a separate call.
        verdict = judge([NAN], 4, verdict.progress, "skip", 2)
        self.assertEqual((verdict.action, verdict.step), ("stop", 5))
        self.assertEqual(verdict.progress, Progress(nonfinite=3, in_a_row=2))
        self.assertEqual(judge([NAN], 0, Progress(), "skip", 0).action, "stop")

    def test_rollback_goes_back_at_once(self):
        verdict = judge([1.0, NAN, NAN], 6, Progress(), "rollback", 2)
        self.assertEqual((verdict.action, verdict.step, verdict.nonfinite), ("roll_back", 8, (8,)))
        self.assertEqual(verdict.progress, Progress(nonfinite=1, in_a_row=1, failed_at=8))

    def test_what_is_gained_is_beyond_all_that_failed(self):
        """After a failure at 8, finite losses up to 7 change nothing; after another one at 7, the one at 8 counts."""
        progress = Progress(nonfinite=1, in_a_row=1, failed_at=8)
        self.assertEqual(judge([1.0, 1.0], 5, progress, "rollback", 2).progress, progress)
        again = judge([1.0, NAN], 5, progress, "rollback", 2)
        self.assertEqual((again.action, again.step), ("roll_back", 7))
        self.assertEqual(again.progress, Progress(nonfinite=2, in_a_row=2, failed_at=8))
        self.assertEqual(judge([1.0, 1.0, NAN], 5, again.progress, "rollback", 2).action, "stop")
        self.assertEqual(judge([1.0, 1.0, 1.0], 5, again.progress, "rollback", 2).progress.in_a_row, 0)

    def test_after_a_rollback(self):
        saved = Progress(losses=[1.0], best=2.0, best_step=4, passed_over=0, nonfinite=0)
        progress = Progress(losses=[9.0], passed_over=3, nonfinite=5, in_a_row=2, failed_at=8)
        expected = Progress(
            losses=[1.0], best=2.0, best_step=4, passed_over=3 + 8 - 4, nonfinite=5, in_a_row=2, failed_at=8
        )
        self.assertEqual(after_rollback(saved, progress, step=4, failed=8), expected)


if __name__ == "__main__":
    unittest.main()
