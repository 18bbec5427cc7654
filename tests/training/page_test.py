"""report.html, and the files of a run that it is made of. Does not need TensorFlow.

tests/browser/page_test.py looks at the page in a browser.
"""

import html.parser
import json
import pathlib
import re
import unittest

from tests import made_run
from tests.helpers import temporary_folder
from tfzoo.errors import UserError
from tfzoo.training import page
from tfzoo.training.history import History

VOID = {"meta", "wbr"}


class Document(html.parser.HTMLParser):
    """Collects what the tests look at, and checks that elements are closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open, self._open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


class Case(unittest.TestCase):
    def setUp(self):
        self.run_dir = temporary_folder(self) / "mine"

    def written(self, evaluation: dict | None = None, **flags) -> Document:
        made_run.fine_tuning(self.run_dir, evaluation, **flags)
        return self.document()

    def document(self) -> Document:
        path = page.write(self.run_dir)
        self.assertEqual(path, self.run_dir / "report.html")
        return Document(path.read_text(encoding="utf-8"))


class PageTest(Case):
    def test_a_model_that_wins(self):
        text = self.written().text
        self.assertIn("classify with bert_small", text)
        self.assertIn("The model beats the best baseline, the linear model: accuracy 0.900, compared with 0.824.", text)
        self.assertIn("The curves diverge at step 600", text)
        self.assertIn("Accuracy 0.900 0.867 to 0.933 0.348 0.824", text)
        self.assertIn("872 rows, checkpoint of step 600", text)
        self.assertIn("The validation file also selected the checkpoint", text)
        self.assertIn("--train_file=/data/train.tsv", text)
        self.assertIn("config. rotary_ scaling. factor 8", text)  # A browser may break the name at the spaces.

    def test_a_model_that_loses(self):
        document = self.written(made_run.results(accuracy=0.7, linear=0.83))
        self.assertIn("The model does not beat the linear model: accuracy 0.805, compared with 0.830.", document.text)
        self.assertIn("card loses", [each.get("class") for each in document.all("div")])

    def test_test_files(self):
        made_run.fine_tuning(self.run_dir)
        test = made_run.results(accuracy=0.6) | {"file": "test.tsv"}
        (self.run_dir / "evaluation-test.json").write_text(json.dumps(test))
        text = self.document().text
        self.assertLess(text.index("Validation: dev.tsv"), text.index("Test: test.tsv"))
        self.assertNotIn("also selected the checkpoint", text)

    def test_a_pre_training_run(self):
        made_run.pre_training(self.run_dir)
        text = self.document().text
        self.assertIn("masked_lm with bert_small", text)
        self.assertIn("Masked-token accuracy 34.81% 6.20% 16.50%", text)
        self.assertIn("Perplexity 20.8 652.0 214.9", text)
        self.assertIn("beats the best baseline, the bigram baseline: masked-token accuracy 34.81%", text)

    def test_a_run_that_has_only_begun(self):
        made_run.fine_tuning(self.run_dir)
        for name in ("evaluation.json", "metrics.jsonl", "corpus.json"):
            (self.run_dir / name).unlink()
        text = self.document().text
        self.assertIn("This run has not been evaluated yet.", text)
        self.assertIn("Nothing has been logged yet.", text)

    def test_matrix_and_list_of_confusions(self):
        few = self.written().text
        self.assertIn("Confusion matrix", few)
        self.assertIn("negative 278 14 11 neutral 18 268 14", few)
        many = self.written(made_run.results([f"label_{i}" for i in range(30)], 3000))
        self.assertIn("Most frequent confusions", many.text)
        self.assertIn("Classes, the lowest F1 first", many.text)
        scores = [float(each) for each in re.findall(r"label_ ?\d+ \d\.\d+ \d\.\d+ (\d\.\d+) \d+", many.text)]
        self.assertEqual((len(scores), scores), (30, sorted(scores)))

    def test_a_regression(self):
        evaluation = {
            "task": "similarity",
            "file": "dev.csv",
            "best_metric": "pearson",
            "scores": {"pearson": {"value": 0.85}},
            "classes": [],
            "confusion": None,
            "mistakes": [{"text": "a", "text_pair": "b", "gold": 5, "predicted": 1.25, "where": "dev.csv:2"}],
        }
        text = self.written(evaluation).text
        self.assertIn("No baseline was measured for this score.", text)
        self.assertIn("gold 5 predicted 1.250 dev.csv:2 a b", text)

    def test_a_lone_surrogate_is_refused(self):
        evaluation = made_run.results(["good", "bad", "other"])
        evaluation["mistakes"][0]["text"] = "\ud800"
        with self.assertRaisesRegex(UserError, "evaluation.json: contains a lone surrogate"):
            self.written(evaluation)

    def test_texts_are_escaped(self):
        attack = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'& \x00\x1b \u202e"
        evaluation = made_run.results(["<b>good</b>", '"bad" & worse', "{{ 7 * 7 }}"])
        evaluation["mistakes"][0] |= {"text": attack, "text_pair": attack, "where": "<i>:1"}
        evaluation["file"] = "<u>dev<u>.tsv"
        document = self.written(evaluation, model="<bert>")
        self.assertLessEqual(
            {tag for tag, _ in document.elements} & {"script", "img", "b", "i", "u", "bert"}, {"b"}
        )  # The page itself uses b, without text of its own.
        self.assertIn("<script>alert(1)</script><img src=x onerror=alert(1)>\"'&", document.text)
        for shown in ("<b>good</b>", '"bad" & worse', "{{ 7 * 7 }}", "<i>:1", "Validation: <u>dev<u>.tsv"):
            self.assertIn(shown, document.text)

    def test_long_texts_are_shortened(self):
        evaluation = made_run.results()
        evaluation["mistakes"] = [{"text": "word " * 1000}] * 50
        text = self.written(evaluation).text
        self.assertIn("(the first 600 of 5,000 characters)", text)
        self.assertIn("20 more are in the evaluation's JSON file.", text)

    def test_equal_files_give_equal_bytes(self):
        made_run.fine_tuning(self.run_dir)
        first = page.write(self.run_dir).read_bytes()
        self.assertEqual(page.write(self.run_dir).read_bytes(), first)
        evaluation = made_run.results()
        evaluation["scores"]["accuracy"]["value"] += 0.01
        (self.run_dir / "evaluation.json").write_text(json.dumps(evaluation))
        self.assertNotEqual(page.write(self.run_dir).read_bytes(), first)

    def test_the_file_refers_to_nothing_outside(self):
        self.written()
        text = (self.run_dir / "report.html").read_text()
        without_flags = text.replace("hf://owner/encoder", "")
        for pattern in (
            r"https?:",
            r"//\w",
            r"url\(",
            r"@import",
            r"\bsrc=",
            r"\bhref=",
            r"data:",
            r"<script",
            r"<link",
        ):
            self.assertNotRegex(without_flags, pattern)
        self.assertEqual(text.count("<!DOCTYPE"), 1)

    def test_accessibility(self):
        document = self.written(made_run.results(["a", "b"]))
        self.assertEqual(document.all("html"), [{"lang": "en"}])
        self.assertEqual(len(document.all("h1")), 1)
        # One for each of the 15 evaluations in the plot, and that of the page.
        self.assertEqual(len(document.all("title")), 16)
        self.assertTrue(all(each.get("scope") in ("row", "col") for each in document.all("th")))
        identifiers = [each["id"] for _, each in document.elements if "id" in each]
        self.assertEqual(len(identifiers), len(set(identifiers)))
        for _, attributes in document.elements:
            if "aria-labelledby" in attributes:
                self.assertIn(attributes["aria-labelledby"], identifiers)
        (plot,) = (each for each in document.all("div") if each.get("role") == "img")
        self.assertIn("diverge at step 600", plot["aria-label"])

    def test_contrast(self):
        """WCAG 2.2, 1.4.3: text has a contrast of at least 4.5 with its background, in both color schemes."""
        style = pathlib.Path(page.__file__).with_name("page.html.jinja").read_text()
        schemes = [
            dict(re.findall(r"--([\w-]+): (#\w+);", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)
        ]
        self.assertEqual(len(schemes), 2)
        for scheme in schemes:
            for text, behind in (("text", "page"), ("text", "card"), ("quiet", "page"), ("quiet", "card"),
                                 ("bad", "bad-page"), ("bad", "card"), ("good", "card"), ("text", "code"),
                                 ("quiet", "bad-page"), ("text", "bad-page"), ("validation", "page")):  # fmt: skip
                self.assertGreater(contrast(scheme[text], scheme[behind]), 4.5, (text, behind, scheme))


def contrast(first: str, second: str) -> float:
    def luminance(color):
        color = "".join(2 * digit for digit in color[1:]) if len(color) == 4 else color[1:]
        parts = [int(color[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


class HistoryTest(Case):
    def refused(self, message):
        with self.assertRaises(UserError) as caught:
            page.write(self.run_dir)
        self.assertEqual(str(caught.exception), message)
        self.assertFalse((self.run_dir / "report.html").exists())

    def test_flags(self):
        made_run.fine_tuning(self.run_dir)
        lines = ["--objective=masked_lm", "--lowercase", "--noraw_text", "--overrides=a=1", "--overrides=b=2"]
        (self.run_dir / "flags.cfg").write_text("\n".join([*lines, "--batch_size=64", '--corpus="#1"', "--nopack"]))
        run = History.read(self.run_dir)
        self.assertEqual(
            run.flags,
            (("objective", "masked_lm"), ("lowercase", "true"), ("raw_text", "false"), ("overrides", "a=1"),
             ("overrides", "b=2"), ("batch_size", "64"), ("corpus", "#1"), ("pack", "false")),
        )  # fmt: skip
        self.assertEqual(
            run.given,
            (("overrides", "a=1"), ("overrides", "b=2"), ("batch_size", "64"), ("corpus", "#1"), ("pack", "false")),
        )

    def test_missing_files(self):
        self.run_dir.mkdir()
        self.refused(f"{self.run_dir}: contains no flags.cfg; specify the folder of a training run")
        made_run.fine_tuning(self.run_dir)
        (self.run_dir / "config.json").unlink()
        self.refused(f"{self.run_dir}/config.json: no such file or directory; check the path")

    def test_damaged_files(self):
        again = "correct it, or download the file again"
        no_step = "is not a JSON object with a step; remove the line"
        for name, content, message in (
            ("config.json", "[]", f": contains a list, not an object; {again}"),
            ("config.json", "{}", ": has no models, which must be an object in which each value is an object; add it"),
            ("evaluation.json", '{"task": ', f", line 1: is not JSON (Expecting value); {again}"),
            ("evaluation-x.json", "", f": is empty; {again}"),
            ("corpus.json", "nothing", f", line 1: is not JSON (Expecting value); {again}"),
            ("metrics.jsonl", '{"step": 1}\n{"step"\n{"step": 2}\n', f":2: {no_step}"),
            ("metrics.jsonl", '{"loss": 1}\n', f":1: {no_step}"),
        ):
            made_run.fine_tuning(self.run_dir)
            (self.run_dir / name).write_text(content)
            with self.subTest(name, content=content):
                self.refused(f"{self.run_dir / name}{message}")
            (self.run_dir / name).unlink()
        made_run.pre_training(self.run_dir)
        (self.run_dir / "evaluation.json").unlink()
        (self.run_dir / "baselines.json").write_text('{"frequency": 3}')
        self.refused(f"{self.run_dir}/baselines.json: frequency is 3, not an object in which each value is a number; "
                     "correct it")  # fmt: skip

    def test_a_last_line_without_an_end_is_ignored(self):
        made_run.fine_tuning(self.run_dir)
        with open(self.run_dir / "metrics.jsonl", "a") as file:
            file.write('{"step": 1600, "lo')
        self.assertEqual(History.read(self.run_dir).records[-1]["step"], 1500)

    def test_the_best_evaluation_of_a_pre_training_run(self):
        made_run.pre_training(self.run_dir)
        with open(self.run_dir / "metrics.jsonl", "a") as file:
            later = {"step": 2500, "sequence_length": 256, "batch_size": 16, "masked_lm_loss": 3.5}
            file.write(json.dumps(later | {"masked_lm_accuracy": 0.4}) + "\n")
        (found,) = History.read(self.run_dir).results
        self.assertEqual((found.step, found.main.name), (2000, "masked_lm_accuracy"))
        self.assertAlmostEqual(found.main.value, 0.348, 3)

    def test_origin(self):
        run = History.read(made_run.fine_tuning(self.run_dir))
        origin = run.origin()
        self.assertEqual((origin.run, origin.task, origin.steps), ("mine", "classify", 1500))
        self.assertEqual(origin.data, [("training", "train.tsv"), ("validation", "dev.tsv")])
        self.assertEqual((origin.base_model, origin.languages, origin.counts), ("owner/encoder", (), {"rows": 12000}))
        self.assertNotIn("/data", str(origin.settings))  # Paths of the user's machine are not published.
        self.assertEqual(len(origin.results), 1)
        self.assertEqual(len(run.origin(self.run_dir / "checkpoints" / "00000600").results), 1)
        # The results are those of another checkpoint, or of another model.
        self.assertEqual(run.origin(self.run_dir / "checkpoints" / "00001500").results, [])
        self.assertEqual(run.origin(role="generator").results, [])

    def test_languages_of_a_corpus(self):
        for corpus, languages in {
            "docstrings": ("en",),
            "gettext:en-de": ("en", "de"),
            "gettext:fr,docstrings": ("fr", "en"),
            "texts/*.txt,docstrings": (),
        }.items():
            made_run.pre_training(self.run_dir)
            (self.run_dir / "flags.cfg").write_text(f"--objective=masked_lm\n--corpus={corpus}\n")
            self.assertEqual(History.read(self.run_dir).origin().languages, languages)


if __name__ == "__main__":
    unittest.main()
