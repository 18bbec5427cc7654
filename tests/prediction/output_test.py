"""The file of answers."""

import json
import pathlib
import unittest

from tests import helpers
from tfzoo.errors import UserError
from tfzoo.prediction.output import Output, encoded


class OutputTest(unittest.TestCase):
    def setUp(self):
        self.path = helpers.temporary_folder(self) / "answers.jsonl"
        self.partial = pathlib.Path(f"{self.path}.partial")
        self.made_from = {"model": "a" * 64, "batch_size": 32}

    def test_a_torn_line_is_removed_and_the_rest_counted(self):
        with Output(self.path, self.made_from) as output:
            output.write([{"a": 1}, {"a": 'b "truncated": true', "truncated": True}, {"error": "é"}])
        self.partial.write_bytes(self.partial.read_bytes() + b'{"torn')
        with Output(self.path, self.made_from) as output:
            self.assertEqual((output.rows, output.truncated, output.bad), (3, 1, 1))
            output.write([{"a": "東\ud800"}])
            self.assertFalse(self.path.exists())
            output.finish()
        lines = self.path.read_text().splitlines()
        self.assertEqual([json.loads(line) for line in lines[::3]], [{"a": 1}, {"a": "東?"}])
        self.assertEqual(len(lines), 4)
        self.assertEqual([path.name for path in self.path.parent.iterdir()], ["answers.jsonl"])

    def test_answers_of_something_else_are_not_continued(self):
        with Output(self.path, self.made_from) as output:
            output.write([{"a": 1}])
        for made_from, words in (
            ({**self.made_from, "batch_size": 8}, r"another batch_size \(32, not 8\); .*--noresume"),
            ({**self.made_from, "model": "b" * 64}, "another model; "),
        ):
            with self.assertRaisesRegex(UserError, words):
                Output(self.path, made_from)
        self.assertEqual(self.partial.read_bytes(), encoded({"a": 1}))
        with Output(self.path, {**self.made_from, "batch_size": 8}, resume=False) as output:
            self.assertEqual(output.rows, 0)
        self.assertEqual(self.partial.read_bytes(), b"")

    def test_without_its_record_a_partial_file_is_not_trusted(self):
        self.partial.write_bytes(b"{}\n")
        with self.assertRaisesRegex(UserError, "partial.json is missing.*--noresume"):
            Output(self.path, self.made_from)

    def test_one_process_writes(self):
        with Output(self.path, self.made_from):
            with self.assertRaisesRegex(UserError, "another process is writing"):
                Output(self.path, self.made_from)
        with self.assertRaisesRegex(UserError, "is not a folder"):
            Output(self.path / "x" / "y", self.made_from)


if __name__ == "__main__":
    unittest.main()
