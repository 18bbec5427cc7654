"""Where training and validation loss diverge, and the places of their plot. Does not need TensorFlow."""

import unittest

from tests import made_run
from tests.helpers import temporary_folder
from tfzoo.training import curves
from tfzoo.training.curves import Axis, Curves
from tfzoo.training.history import History


def made(validation, train=None, **others) -> Curves:
    """Returns the curves of evaluations at steps 100, 200, ... and of two training losses before each."""
    validation = [(100 * (i + 1), value) for i, value in enumerate(validation)]
    train = [1.0 - i / 10 for i in range(len(validation))] if train is None else train
    steps = ((step - 100 + part, loss) for (step, _), loss in zip(validation, train) for part in (50, 100))
    return Curves(list(steps), validation, validation, **others)


class DivergenceTest(unittest.TestCase):
    def test_overfitting(self):
        found = curves.divergence(made([0.9, 0.5, 0.52, 0.6]))
        self.assertEqual((found.step, found.low, found.last_step, found.last), (200, 0.5, 400, 0.6))
        self.assertAlmostEqual(found.train_low, 0.9)
        self.assertAlmostEqual(found.train_last, 0.7)
        self.assertIn("The curves diverge at step 200", curves.summary(made([0.9, 0.5, 0.52, 0.6])))

    def test_the_first_of_equal_minima(self):
        self.assertEqual(curves.divergence(made([0.9, 0.5, 0.5, 0.6])).step, 200)

    def test_a_rise_within_noise(self):
        self.assertIsNone(curves.divergence(made([0.9, 0.500, 0.514])))
        self.assertIsNotNone(curves.divergence(made([0.9, 0.500, 0.516])))
        self.assertIn("does not rise by more than 3%", curves.summary(made([0.9, 0.5, 0.51])))

    def test_a_rise_that_is_over_at_the_end(self):
        self.assertIsNone(curves.divergence(made([0.9, 0.5, 0.7, 0.5])))

    def test_a_loss_that_falls_to_the_end(self):
        self.assertIsNone(curves.divergence(made([0.9, 0.8, 0.7])))
        self.assertIn("lowest at the end, 0.700 at step 300", curves.summary(made([0.9, 0.8, 0.7])))

    def test_a_training_loss_that_does_not_fall(self):
        unstable = made([0.9, 0.5, 0.8], train=[1.0, 0.6, 0.6])
        self.assertIsNone(curves.divergence(unstable))
        self.assertIn("not overfitting", curves.summary(unstable))

    def test_too_few_evaluations(self):
        self.assertIsNone(curves.divergence(made([])))
        self.assertIsNone(curves.divergence(made([0.5])))
        self.assertIn("only one evaluation", curves.summary(made([0.5])))
        self.assertEqual(curves.summary(Curves([(1, 2.0)], [], [])), "No held-out loss has been logged yet.")
        self.assertEqual(curves.summary(Curves([], [], [])), "Nothing has been logged yet.")

    def test_an_evaluation_before_the_first_update(self):
        run = Curves([(50, 1.0), (100, 0.2)], [(0, 0.5), (100, 0.9)], [(0, 0.5), (100, 0.9)])
        found = curves.divergence(run)
        self.assertEqual((found.step, found.train_low, found.train_last), (0, 1.0, 0.6))

    def test_rare_training_losses(self):
        run = Curves([(100, 1.0), (250, 0.5)], [(200, 0.5), (300, 0.9)], [(200, 0.5), (300, 0.9)])
        self.assertEqual(curves.divergence(run).train_low, 1.0)

    def test_a_minimum_of_zero_or_below(self):
        self.assertIsNotNone(curves.divergence(made([0.0, 0.1])))
        self.assertIsNone(curves.divergence(made([-1.0, -0.98])))
        self.assertIsNotNone(curves.divergence(made([-1.0, -0.9])))


class FilesTest(unittest.TestCase):
    def test_a_fine_tuning_run(self):
        run = Curves.of(History.read(made_run.fine_tuning(temporary_folder(self))))
        self.assertEqual((run.name, len(run.train), len(run.validation)), ("validation_loss", 150, 15))
        self.assertEqual(curves.divergence(run).step, 600)

    def test_only_evaluations_of_the_last_stage_are_compared(self):
        run = Curves.of(History.read(made_run.pre_training(temporary_folder(self))))
        self.assertEqual(run.name, "masked_lm_loss")
        self.assertEqual([step for step, _ in run.validation], [500, 1000, 1500, 2000])
        self.assertEqual([step for step, _ in run.comparable], [1500, 2000])
        self.assertEqual(run.stages, [1000])
        self.assertEqual(run.train[0][0], 100)  # The loss of step 50 is NaN.


class PlotTest(unittest.TestCase):
    def test_ticks_are_round_and_cover_the_values(self):
        for values in ([0.0, 1.04], [0, 1, 2, 3, 4.9], [2.31, 2.34], [5.0], [0.0], [-3.0, 4e6], [1e-9, 3e-9]):
            axis = Axis.around(values)
            places = [axis.place(value) for value in values]
            self.assertTrue(all(0 <= place <= 100 for place in places), (values, places))
            self.assertTrue(2 <= len(axis.ticks) <= 8, (values, axis))
            self.assertEqual(len({label for _, label in axis.ticks}), len(axis.ticks))
            for value, label in axis.ticks:
                self.assertAlmostEqual(float(label.replace(",", "")), value, delta=1e-12 + abs(value) * 1e-9)
            self.assertEqual((axis.place(axis.low), axis.place(axis.high)), (0, 100))

    def test_steps_end_where_the_run_ends(self):
        axis = Axis.around([0, 1234], whole=True)
        self.assertEqual((axis.low, axis.high), (0, 1234))
        self.assertEqual([label for _, label in axis.ticks], ["0", "500", "1,000"])
        self.assertEqual([label for _, label in Axis.around([0, 0], whole=True).ticks], ["0", "1"])

    def test_places(self):
        plot = curves.plot(made([1.0, 0.5, 0.75], train=[1.0, 0.5, 0.0]))
        self.assertEqual([label for _, label in plot.y_ticks], ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"])
        self.assertEqual([(left, top) for left, top, _ in plot.dots], [(33.333, 0.0), (66.667, 50.0), (100.0, 25.0)])
        self.assertEqual(plot.train.split()[0], "166.7,0.0")
        self.assertEqual(plot.marker, (66.667, 50.0, "Step 200: the curves diverge"))
        self.assertIn("diverge at step 200", plot.label)

    def test_losses_of_different_kinds_have_two_axes(self):
        plot = curves.plot(made([0.3, 0.2], train=[20.0, 15.0]))
        self.assertTrue(plot.right_ticks)
        self.assertFalse(curves.plot(made([0.9, 0.8])).right_ticks)

    def test_long_curves_are_smoothed_and_thinned(self):
        train = [(step, float(step % 2)) for step in range(1, 5001)]
        plot = curves.plot(Curves(train, [], []))
        self.assertLessEqual(len(plot.raw.split()), 801)
        heights = [float(point.split(",")[1]) for point in plot.train.split()[20:-20]]
        self.assertLess(max(heights) - min(heights), 20)  # Of 1000: the average of alternating 0 and 1.
        self.assertTrue(plot.train.split()[-1].startswith("1000.0,"))

    def test_nothing_to_plot(self):
        self.assertIsNone(curves.plot(Curves([], [], [])))


if __name__ == "__main__":
    unittest.main()
