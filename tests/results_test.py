"""evaluation.json: what is read, what is rejected, and the comparison with baselines. Does not need TensorFlow."""

import json
import unittest

from tests import made_run
from tests.helpers import temporary_folder
from tfzoo import evaluate, results
from tfzoo.errors import UserError
from tfzoo.results import Score


class TableTest(unittest.TestCase):
    def test_figures_that_the_task_does_not_name_are_named_and_formatted_as_the_others(self):
        record = {"rows": 4, "step": 2, "baselines": {}, "beaten": True, "classes": [], "mistakes": []}
        record["scores"] = {name: {"value": 0.5} for name in ("accuracy", "micro_f1", "macro_recall", "mrr", "mse/de")}
        lines = evaluate.text_of(record, [("accuracy", "accuracy", "{:.1%}")], 0)[3:]
        expected = ["accuracy 50.0%", "micro F1 50.00%", "macro recall 50.00%", "MRR 0.5000", "MSE (de) 0.5000"]
        self.assertEqual([" ".join(line.split()) for line in lines], expected)


class ReadTest(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        self.path = self.folder / "evaluation.json"

    def refused(self, record, message):
        self.path.write_text(record if isinstance(record, str) else json.dumps(record))
        with self.assertRaises(UserError) as caught:
            results.read(self.path)
        self.assertEqual(str(caught.exception), f"{self.path}{message}")

    def test_a_complete_file(self):
        record = made_run.results()
        self.path.write_text(json.dumps(record))
        found = results.read(self.path)
        self.assertEqual((found.task, found.file, found.rows, found.step), ("classify", "dev.tsv", 872, 600))
        self.assertEqual([score.name for score in found.scores], ["accuracy", "macro_f1", "matthews"])
        self.assertEqual(found.main.name, "accuracy")
        self.assertEqual(found.main.value, record["scores"]["accuracy"]["value"])
        self.assertEqual(found.main.baselines, {"majority": 0.348, "linear": 0.824})
        self.assertEqual(found.scores[2].baselines, {"majority": 0.0})
        self.assertEqual(found.baselines, ("majority", "linear"))
        self.assertEqual(list(found.mistakes), record["mistakes"])
        self.assertEqual(found.title, "Validation: dev.tsv")

    def test_the_least_that_a_file_contains(self):
        self.path.write_text(
            '{"task": "similarity", "scores": {"pearson": {"value": null}}, "confusion": null, "classes": []}'
        )
        found = results.read(self.path)
        self.assertIsNone(found.main)
        self.assertEqual((found.baselines, found.confusion, found.title), ((), {}, "Held-out text"))

    def test_validation_comes_before_test_files(self):
        for name in ("evaluation-b.json", "evaluation-a.json", "evaluation.json", "evaluations.json"):
            (self.folder / name).write_text(json.dumps({"task": "classify", "file": name, "scores": {}}))
        found = results.find(self.folder)
        self.assertEqual([each.file for each in found], ["evaluation.json", "evaluation-a.json", "evaluation-b.json"])
        self.assertEqual([each.validation for each in found], [True, False, False])

    def test_what_is_refused(self):
        good = made_run.results()
        self.refused("{", ", line 1: is not JSON (Expecting property name enclosed in double quotes); correct it, or "
                     "download the file again")  # fmt: skip
        self.refused({"scores": {}}, ": has no task, which must be a string; add it")
        self.refused(good | {"rows": "many"}, ": rows is 'many', not a whole number of at least 0; correct it")
        scores = {"accuracy": {"value": "high"}}
        self.refused(good | {"scores": scores}, ": scores: accuracy: value is 'high', not a number; correct it")
        self.refused(good | {"baselines": {"linear": {"accuracy": "?"}}}, ": baselines: linear: accuracy is '?', not a "
                     "number; correct it")  # fmt: skip
        confusion = {"labels": ["a", "b"], "counts": [[1, 2], [3]]}
        self.refused(good | {"confusion": confusion}, ": confusion: counts must have 2 rows of 2 numbers; correct it")
        self.refused(good | {"mistakes": [{"text": 1}]}, ": mistakes[0]: text is 1, not a string; correct it")
        self.refused(good | {"classes": [{}]}, ": classes[0]: has no label, which must be a string; add it")


class ScoreTest(unittest.TestCase):
    def test_labels(self):
        for name, label in {
            "accuracy": "Accuracy",
            "macro_f1": "Macro F1",
            "matthews": "Matthews correlation",
            "mrr": "MRR",
            "ndcg_at_10": "nDCG at 10",
            "masked_lm_loss/news": "Masked lm loss (news)",
        }.items():
            self.assertEqual(results.label_of(name), label)

    def test_a_model_that_wins(self):
        score = Score("accuracy", 0.891, 0.87, 0.91, {"majority": 0.51, "linear": 0.824})
        self.assertEqual(score.best_baseline, "linear")
        self.assertIs(score.beats_baselines, True)
        self.assertEqual(
            score.verdict(), "The model beats the best baseline, the linear model: accuracy 0.891, compared with 0.824."
        )
        self.assertEqual(score.interval, "0.870 to 0.910")

    def test_a_win_that_may_be_chance(self):
        score = Score("macro_f1", 0.84, 0.82, 0.86, {"linear": 0.83})
        self.assertEqual(
            score.verdict(),
            "The model beats the best baseline, the linear model: macro F1 0.840, compared with 0.830. But the "
            "baseline is within the model's 95% interval: the difference may be due to chance.",
        )

    def test_a_model_that_loses_or_equals(self):
        for value in (0.811, 0.824):
            score = Score("matthews", value, None, None, {"majority": 0.5, "linear": 0.824})
            self.assertIs(score.beats_baselines, False)
            self.assertEqual(
                score.verdict(),
                f"The model does not beat the linear model: Matthews correlation {value}, compared with 0.824.",
            )

    def test_losses_are_better_if_lower(self):
        score = Score("validation_loss", 0.4, baselines={"majority": 0.7, "linear": 0.3})
        self.assertEqual((score.best_baseline, score.beats_baselines), ("linear", False))
        for name in ("masked_lm_perplexity", "causal_loss/news", "mse"):
            self.assertTrue(Score(name, 1.0).lower_is_better, name)
        for name in ("accuracy", "loss_free_accuracy", "f1"):
            self.assertFalse(Score(name, 1.0).lower_is_better, name)

    def test_without_baselines(self):
        score = Score("accuracy", 0.9)
        self.assertEqual((score.best_baseline, score.beats_baselines, score.verdict()), (None, None, ""))
        self.assertEqual((score.show(None), score.show(1234.56), score.interval), ("-", "1,234.6", ""))

    def test_confusions_are_sorted_by_count(self):
        confusion = {"labels": ["a", "b", "c"], "counts": [[5, 1, 4], [0, 9, 0], [2, 0, 0]]}
        self.assertEqual(results.confused(confusion, 2), [("a", "c", 4, 0.4), ("c", "a", 2, 1.0)])


if __name__ == "__main__":
    unittest.main()
