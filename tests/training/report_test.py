"""The two logs of a run, metrics.jsonl and TensorBoard events, agree however the previous process ended."""

import json
import math
import unittest
from unittest import mock

import tensorflow as tf

from tests import helpers
from tfzoo.training import report

FIGURE = ("token accuracy", "accuracy", "{:.2%}")


class TableTest(unittest.TestCase):
    def test_sources_below_their_figure(self):
        figures = {"accuracy": 0.5, "x_perplexity": 9.0, "accuracy/a.txt": 0.25, "accuracy/docstrings": 0.75}
        baselines = {"frequency": {"accuracy": 0.125, "accuracy/a.txt": 0.0625, "x_loss": 0.0}}
        table = report.evaluation_table(20, figures, baselines, [FIGURE, ("perplexity", "x_perplexity", "{:.1f}")])
        self.assertEqual(
            table.splitlines(),
            [
                "step     20, held out        model   most frequent token",
                "  token accuracy            50.00%                12.50%",
                "    a.txt                   25.00%                 6.25%",
                "    docstrings              75.00%                     -",
                "  perplexity                   9.0                   1.0",
            ],
        )


class MetricsLogTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.run_dir = helpers.temporary_folder(self)
        self.plot = self.enterContext(mock.patch.object(report, "plot"))

    def write(self, records, step=0, **how):
        log = report.MetricsLog(self.run_dir, step, FIGURE, **how)
        for record in records:
            log.write(record)
        log.close()

    def events(self):
        """Returns (step, name, value) of all event files, sorted."""
        return sorted(
            (event.step, value.tag, float(tf.make_ndarray(value.tensor)))
            for path in (self.run_dir / "events").iterdir()
            for event in tf.compat.v1.train.summary_iterator(str(path))
            for value in event.summary.value
        )

    def check(self, *expected):
        """Checks that both logs contain exactly these (step, name, value), each once."""
        lines = [json.loads(line) for line in (self.run_dir / "metrics.jsonl").read_text().splitlines()]
        logged = [(line["step"], name, x) for line in lines for name, x in line.items() if name != "step"]
        self.assertEqual(sorted(logged), sorted(expected))
        self.assertEqual(self.events(), sorted(expected))

    def test_what_came_after_the_step_goes(self):
        self.write([{"step": 1, "loss": 4.0}, {"step": 2, "loss": 3.0}, {"step": 2, "accuracy": 0.5}])
        self.write([{"step": 3, "loss": 2.0}, {"step": 4, "loss": 9.0}], step=2)
        self.write([], step=3)
        self.check((1, "loss", 4.0), (2, "loss", 3.0), (2, "accuracy", 0.5), (3, "loss", 2.0))
        self.write([{"step": 4, "loss": 1.0}], step=3)
        self.check((1, "loss", 4.0), (2, "loss", 3.0), (2, "accuracy", 0.5), (3, "loss", 2.0), (4, "loss", 1.0))

    def test_an_evaluation_that_is_made_again(self):
        self.write([{"step": 2, "loss": 3.0}, {"step": 2, "accuracy": 0.5}])
        self.write([{"step": 2, "accuracy": 0.75}], step=2, evaluated=False)
        self.check((2, "loss", 3.0), (2, "accuracy", 0.75))

    def test_a_kill_between_the_two_records_and_within_one(self):
        self.write([{"step": 1, "loss": 4.0}, {"step": 2, "loss": 3.0}])
        (events,) = (self.run_dir / "events").iterdir()
        events.write_bytes(events.read_bytes()[:-3])  # Step 2 is incomplete,
        with open(self.run_dir / "metrics.jsonl", "a") as file:
            file.write('{"step": 3, "los')  # and so is the line of step 3.
        self.write([{"step": 3, "loss": 2.0}], step=2)
        self.check((1, "loss", 4.0), (2, "loss", 3.0), (3, "loss", 2.0))

    def test_the_curve_is_drawn_at_most_every_few_seconds_and_at_the_end(self):
        evaluations = [{"step": step, "accuracy": 0.5} for step in range(1, 5)]
        self.write(evaluations)
        self.assertEqual(self.plot.call_count, 1)
        self.write([{"step": 5, "loss": 1.0}], step=4)
        self.assertEqual(self.plot.call_count, 1)  # It lacks no evaluation.
        with mock.patch.object(report, "PLOT_EVERY", 0.0):
            self.write(evaluations)
        self.assertEqual(self.plot.call_count, 5)

    def test_events_that_are_right_are_left_alone(self):
        self.write([{"step": 1, "loss": 4.0}])
        (events,) = (self.run_dir / "events").iterdir()
        before = events.stat().st_mtime_ns, events.read_bytes()
        self.write([], step=1)
        self.assertEqual((events.stat().st_mtime_ns, events.read_bytes()), before)


class EvaluationTableTest(unittest.TestCase):
    def test_each_baseline_has_a_column(self):
        figures = {"causal_accuracy": 0.25, "causal_perplexity": 20.0}
        baselines = {
            "frequency": {"causal_accuracy": 0.125, "causal_loss": math.log(90)},
            "neighbour": {"causal_accuracy": 0.1875},
            "n-gram": {"causal_accuracy": 0.5, "causal_loss": math.log(10)},
        }
        rows = [("accuracy", "causal_accuracy", "{:.2%}"), ("perplexity", "causal_perplexity", "{:.2f}")]
        header, accuracy, perplexity = report.evaluation_table(7, figures, baselines, rows).splitlines()
        self.assertRegex(header, "^step +7, held out +model +most frequent token +bigram baseline +5-gram baseline$")
        self.assertEqual(accuracy.split(), ["accuracy", "25.00%", "12.50%", "18.75%", "50.00%"])
        self.assertEqual(perplexity.split(), ["perplexity", "20.00", "90.00", "-", "10.00"])
        self.assertEqual(len({len(line) for line in (header, accuracy, perplexity)}), 1)


if __name__ == "__main__":
    tf.test.main()
