"""The schedule and the progress of a run."""

import dataclasses
import json
import math
import unittest

from tfzoo.errors import UserError
from tfzoo.training.state import Progress, due, updates_at_once, updates_in


class RecordTest(unittest.TestCase):
    def test_a_record_of_a_checkpoint_is_read_after_its_fields_are_checked(self):
        progress = Progress(losses=[1.5, 2], places=[[3, 4]], best=0.5, best_step=7, evaluating=True)
        record = dataclasses.asdict(progress)
        self.assertEqual(Progress.read(record, "c.json"), progress)
        self.assertEqual(Progress.read({}, "c.json"), Progress())
        for field, value, message in (
            ("losses", ["x"], r"c.json: state: losses is \['x'\], not a list in which each item is a number"),
            ("places", [[1, -1]], "places is .*, not a list in which each item is a list"),
            ("best", "low", "best is 'low', not a number"),
            ("passed_over", -1, "passed_over is -1, not a whole number of at least 0"),
            ("evaluating", 1, "evaluating is 1, not true or false"),
            ("exec", "x", "'exec' is not one of losses, .*; remove it"),
        ):
            with self.assertRaisesRegex(UserError, message):
                Progress.read(record | {field: value}, "c.json")


class ProgressTest(unittest.TestCase):
    def test_the_best_by_either_direction(self):
        for direction, values, best in (("min", [3.0, math.nan, 2.0, 2.0, 2.5], 2), ("max", [0.5, 0.4, 0.6, 0.6], 2)):
            progress = Progress(evaluating=True)
            for step, value in enumerate(values):
                progress = progress.measured(step, value, direction)
                self.assertFalse(progress.evaluating)
            self.assertEqual((progress.best, progress.best_step), (values[best], best))
        self.assertIsNone(Progress().measured(1, math.nan, "min").best)
        self.assertIsNone(Progress().measured(1, math.inf, "max").best)

    def test_the_fraction_of_padding(self):
        self.assertEqual(Progress(places=[[3, 4], [1, 4]]).padding_share(), 0.5)

    def test_a_line_of_the_log_ends_what_it_is_about(self):
        progress = Progress(losses=[1.0], places=[[1, 2]], best=3.0, nonfinite=2)
        self.assertEqual(progress.logged(), Progress(best=3.0, nonfinite=2))

    def test_json_keeps_it(self):
        progress = Progress([1.5], [[3, 4]], 2.0, 4, 1, 2, 1, 8, True)
        self.assertEqual(Progress(**json.loads(json.dumps(dataclasses.asdict(progress)))), progress)


class CadenceTest(unittest.TestCase):
    def test_due(self):
        self.assertEqual([step for step in range(1, 11) if due(step, 4, 10)], [4, 8, 10])

    def test_updates_at_once(self):
        self.assertEqual(updates_at_once(0, 100, (10, 15), 50), 10)
        self.assertEqual(updates_at_once(12, 100, (10, 15), 50), 3)
        self.assertEqual(updates_at_once(12, 100, (10, 15), 2), 2)
        self.assertEqual(updates_at_once(98, 100, (10, 15), 50), 2)
        steps, step = [], 0
        while step < 20:
            step += updates_at_once(step, 20, (6, 8), 5)
            steps.append(step)
        self.assertEqual(steps, [5, 6, 8, 12, 16, 18, 20])

    def test_updates_in(self):
        self.assertEqual([updates_in(5.0, of_each, 1) for of_each in (0.1, 2.0, 5.0, 60.0)], [50, 2, 1, 1])
        self.assertEqual(updates_in(5.0, 60.0, least=3), 3)


if __name__ == "__main__":
    unittest.main()
