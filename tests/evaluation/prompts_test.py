"""Templates, drawn examples, calibration and matching by hand."""

import unittest

import numpy as np

from tfzoo.errors import UserError
from tfzoo.evaluation import prompts
from tfzoo.evaluation.prompts import Example, Pool, Template


def template(text="Review: {text}\nSentiment: {label}", words=("bad", "good"), instruction="", pair=False):
    return Template(text, words, instruction, "\n\n", pair)


class TemplateTest(unittest.TestCase):
    def test_the_example(self):
        one = Example(("What a day!",), 1)
        expected = "Review: What a day!\nSentiment: good\n\nReview: Dull.\nSentiment:"
        self.assertEqual(template().prompt(["Dull."], [one]), expected)
        self.assertEqual(template().space, " ")
        self.assertEqual(template(instruction="Rate.").prompt(["Dull."]), "Rate.\n\nReview: Dull.\nSentiment:")

    def test_fields_in_texts_and_pairs(self):
        made = template("{text_pair} {{}} {text} => {label}", pair=True)
        self.assertEqual(made.prompt(["{label}", "b {text}"]), "b {text} {{}} {label} =>")

    def test_what_is_wrong(self):
        for text, pair in (
            ("{label}: {text}", False),
            ("{text} {label}.", False),
            ("{text} {text} {label}", False),
            ("{text} {text_pair} {label}", False),
            ("{text} {label}", True),
        ):
            with self.assertRaisesRegex(UserError, r"^--template=.*: must contain \{text\}.* once, and end with"):
                template(text, pair=pair)
        with self.assertRaisesRegex(UserError, "^--label_words: label 1 .'a'. has the same words as another label"):
            template(words=("a", "a"))

    def test_words_of_labels(self):
        self.assertEqual(prompts.words_of(["0", "1"], "1=very good"), ["0", "very good"])
        for given in ("good", "2=good"):
            with self.assertRaisesRegex(UserError, f"^--label_words={given}: .* is not LABEL=WORDS"):
                prompts.words_of(["0", "1"], given)


class PoolTest(unittest.TestCase):
    rows = [Example((f"{label} {i}",), label) for i in range(6) for label in (0, 1, 2)][:-4]

    def test_examples_are_a_function_of_seed_and_row(self):
        pool, other = Pool(self.rows), Pool(self.rows)
        drawn = {(seed, row): pool.draw(4, seed, row, ["x"]) for seed in range(3) for row in range(20)}
        for (seed, row), examples in reversed(drawn.items()):  # In another order, from another object.
            self.assertEqual(other.draw(4, seed, row, ["x"]), examples)
        self.assertGreater(len({tuple(examples) for examples in drawn.values()}), 50)

    def test_labels_are_balanced_and_examples_are_different(self):
        pool = Pool(self.rows)
        orders = set()
        for row in range(100):
            examples = pool.draw(5, 0, row, ["0 0"])
            self.assertEqual(len({example.texts for example in examples}), 5)
            counts = np.bincount([example.label for example in examples], minlength=3)
            self.assertEqual(sorted(counts.tolist()), [1, 2, 2])
            self.assertNotIn(("0 0",), [example.texts for example in examples])
            orders.add(tuple(example.label for example in examples))
        self.assertGreater(len(orders), 10)
        self.assertEqual(len(pool.draw(100, 0, 0, ["x"])), len(self.rows))
        self.assertEqual(pool.draw(0, 0, 0, ["x"]), [])

    def test_examples_with_words_of_their_own(self):
        rows = [Example((f"{i}",), int(i == 0), (f"a{i}", f"b{i}")) for i in range(4)]
        drawn = Pool(rows).draw(4, 0, 0, ["x"])
        self.assertEqual(sorted(each.texts for each in drawn), [("0",), ("1",), ("2",), ("3",)])
        self.assertEqual(
            template(words=()).prompt(["x"], rows[:1]), "Review: 0\nSentiment: b0\n\nReview: x\nSentiment:"
        )


class ScoresTest(unittest.TestCase):
    def test_calibration_by_the_formula(self):
        """Zhao et al. 2021, section 5: softmax of diag(p_cf)^-1 p, of which the order is that of p / p_cf."""
        generator = np.random.default_rng(0)
        scores, free = generator.normal(size=(5, 3)), generator.normal(size=(5, 2, 3))
        for n, found in enumerate(prompts.calibrated(scores, free)):
            p = np.exp(scores[n]) / np.exp(scores[n]).sum()
            p_free = np.mean([np.exp(each) / np.exp(each).sum() for each in free[n]], axis=0)
            expected = p / p_free
            np.testing.assert_allclose(np.exp(found), expected / expected.sum(), rtol=1e-12)
        # A model that always prefers the first label, whatever the text.
        found = prompts.calibrated(np.array([[-1.0, -3.0], [-1.5, -3.0]]), np.array([[[-1.2, -3.0]]] * 2))
        self.assertEqual(found.argmax(1).tolist(), [0, 1])

    def test_matching(self):
        words = ["good", "very good", "bad"]
        for completion, expected in (
            (" Good", 0),
            ("very  GOOD indeed", 1),
            ("rather bad, not good", 2),
            ("fine", prompts.NO_ANSWER),
            ("", prompts.NO_ANSWER),
        ):
            self.assertEqual(prompts.matched(completion, words), expected, completion)

    def test_figures_by_hand(self):
        # Label 0: precision 1 of 2, recall 1 of 2; label 1: 1 of 1, 1 of 2; label 2 does not occur.
        found = prompts.figures([0, 0, 1, 1], [0, prompts.NO_ANSWER, 0, 1], 3)
        self.assertEqual(found["accuracy"], 0.5)
        self.assertAlmostEqual(found["macro_f1"], (2 * 1 / (2 + 2) + 2 * 1 / (2 + 1)) / 2)


if __name__ == "__main__":
    unittest.main()
