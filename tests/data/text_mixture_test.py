"""Mixture files: their tasks and rows, user errors, and the shares of the tasks. Does not import TensorFlow."""

import json
import unittest

import numpy as np

from tests import helpers
from tfzoo.data import text_mixture
from tfzoo.data.text_mixture import MixtureFile
from tfzoo.errors import UserError

TASKS = ("text_to_text", "translate")


class MixtureFileTest(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)
        (self.folder / "a.en").write_text("one\ntwo\n")
        (self.folder / "a.de").write_text("eins\nzwei\n")
        (self.folder / "b.jsonl").write_text('{"body": "x y", "subject": "z"}\n')

    def open(self, content, policy="strict"):
        path = self.folder / "mix.json"
        path.write_text(json.dumps(content))
        return MixtureFile(path, flag="train_file", policy=policy, tasks=TASKS)

    def test_rows(self):
        entries = {
            "de": {"task": "translate", "file": "a.en+a.de", "prefix": "to German: "},
            "en": {"file": "b.jsonl", "text_column": "subject", "label_column": "body"},
        }
        file = self.open(entries)
        self.assertEqual(file.tasks, {"de": "translate", "en": "text_to_text"})
        rows = [(row.name, row.prefix, row.texts) for row in file.rows()]
        de = [("de", "to German:", ("one", "eins")), ("de", "to German:", ("two", "zwei"))]
        self.assertEqual(rows, [*de, ("en", "", ("z", "x y"))])
        self.assertEqual(file.counts, {"rows": 3})
        self.assertIn("de (translate): ", file.describe())
        before = file.fingerprint()
        self.assertEqual(self.open(entries).fingerprint(), before)
        entries["de"]["prefix"] = "German:"
        self.assertNotEqual(self.open(entries).fingerprint(), before)

    def test_what_is_wrong(self):
        for content, words in (
            ({}, "names no task"),
            ({"a": 3}, "a: is 3, not an object"),
            ({"a": {}}, "file"),
            ({"a": {"file": "b.jsonl", "task": "tag"}}, "task 'tag' is not one of text_to_text, translate; correct it"),
            ({"a/b": {"file": "b.jsonl"}}, "its name contains a slash"),
            ({"a": {"file": "b.jsonl", "prefx": "x"}}, "unknown field 'prefx'; the fields are file, task"),
            ({"a": {"file": "none.jsonl"}}, "none.jsonl: no such file"),
        ):
            with self.subTest(words), self.assertRaisesRegex(UserError, f"mix.json.*{words}|{words}"):
                self.open(content)
        with self.assertRaisesRegex(UserError, "no such file; specify a mixture file"):
            MixtureFile(self.folder / "nothing.json", flag="train_file", policy="strict", tasks=TASKS)

    def test_rates(self):
        """Raffel et al. 2020, section 3.5.2."""
        counts = np.array([900, 90, 10])
        np.testing.assert_allclose(text_mixture.mixing_rates(counts), [0.9, 0.09, 0.01])
        np.testing.assert_allclose(text_mixture.mixing_rates(counts, limit=90), np.array([90, 90, 10]) / 190)
        roots = np.sqrt(np.minimum(counts, 400))
        np.testing.assert_allclose(text_mixture.mixing_rates(counts, 2.0, 400), roots / roots.sum())

    def test_an_epoch(self):
        parts = np.array([0] * 90 + [1] * 10)
        rates = text_mixture.mixing_rates(np.array([90, 10]), limit=30)
        epoch = text_mixture.mixed_epoch(parts, rates)
        self.assertEqual(np.bincount(epoch).tolist(), [1] * 90 + [3] * 10)
        self.assertEqual(text_mixture.mixed_epoch(parts, np.array([0.9, 0.1])).tolist(), list(range(100)))


if __name__ == "__main__":
    unittest.main()
