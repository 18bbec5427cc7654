"""Pairs of a text and a target: two files of lines, tables and JSON lines. Does not import TensorFlow."""

import gzip
import json
import unittest

from tests import helpers
from tfzoo.data import text_pairs
from tfzoo.data.columns import Columns
from tfzoo.errors import UserError


class TextPairsTest(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)

    def write(self, name, content):
        path = self.folder / name
        data = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    def open(self, path, policy="strict", **columns):
        return text_pairs.open_pairs(str(path), flag="train_file", columns=Columns(**columns), policy=policy)

    def pairs(self, *args, **options):
        return [row.texts for row in self.open(*args, **options).rows()]

    def lines(self, first, second):
        return f"{self.write('a.en.gz', first)}+{self.write('a.de', second)}"

    def test_two_files(self):
        path = self.lines("Hi. \r\n\n\tdog\n", "Hallo.\n\nHund\n")
        self.assertEqual(self.pairs(path), [("Hi.", "Hallo."), ("dog", "Hund")])
        file = self.open(path)
        self.assertEqual([row.where.rpartition(":")[2] for row in file.rows()], ["1", "3"])
        self.assertIn("corresponding lines", file.describe())
        before = file.fingerprint()
        self.write("a.de", "Hallo.\n\nKatze\n")
        self.assertNotEqual(self.open(path).fingerprint(), before)

    def test_bad_lines(self):
        for first, second, words, counts in (
            ("a\n\n", "x\ny\n", "a.en.gz:2: is empty, unlike the line", {"rows": 1, "empty_text": 1}),
            ("a\nb\n", "x\n \n", "a.en.gz:2: its line of .*a.de is empty", {"rows": 1, "empty_target": 1}),
            (b"a\nb\xff\n", "x\ny\n", "a.en.gz:2: byte 0xff", {"rows": 1, "invalid_utf8": 1}),
            (
                "a\nb\nc\n",
                "x\n",
                "a.en.gz:2: no line corresponds to it: .*a.de has only 1 lines, but .*a.en.gz has 3",
                {"rows": 1, "different_line_counts": 1},
            ),
            (
                "a\n",
                "x\ny\n",
                "a.de:2: no line corresponds to it: .*a.en.gz has only 1 lines, but .*a.de has 2",
                {"rows": 1, "different_line_counts": 1},
            ),
        ):
            with self.subTest(words):
                path = self.lines(first, second)
                with self.assertRaisesRegex(UserError, words):
                    self.pairs(path)
                file = self.open(path, policy="skip")
                self.assertEqual(len(list(file.rows())), 1)
                self.assertEqual(dict(file.counts), counts)
        with self.assertRaisesRegex(UserError, "--train_file=.*none: no such file"):
            self.open(f"{self.write('a', 'a')}+{self.folder / 'none'}")
        with self.assertRaisesRegex(UserError, "--label_column=x: does not apply to two files"):
            self.open(self.lines("a", "b"), label="x")

    def test_columns(self):
        self.assertEqual(self.pairs(self.write("a.tsv", "Hi.\t嗨。\nRun\t跑\n")), [("Hi.", "嗨。"), ("Run", "跑")])
        rows = [{"id": 1, "body": "A text.", "subject": "S"}, {"id": 2, "body": "Another text.", "subject": "T"}]
        path = self.write("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        self.assertEqual(self.pairs(path), [("A text.", "S"), ("Another text.", "T")])
        self.assertEqual(self.pairs(path, text="subject", label="body")[0], ("S", "A text."))
        table = self.write("a.csv", "summary,text,title\nshort one,a long text,x\nshort two,another text,y\n")
        self.assertEqual(self.pairs(table)[1], ("another text", "short two"))
        numbered = self.write("b.txt", "Hi.\tHallo.\tby A\nWho are you?\tWer bist du?\tby B\n")
        self.assertEqual(self.pairs(numbered, text="1", label="0")[1], ("Wer bist du?", "Who are you?"))
        with self.assertRaisesRegex(UserError, "--label_column=nothing: is not a column"):
            self.open(path, label="nothing")
        with self.assertRaisesRegex(UserError, "specify --text_column and --label_column"):
            self.open(self.write("c.tsv", "a b c\td e f\tg h i\nj k l\tm n o\tp q r\n"))
        with self.assertRaisesRegex(UserError, "has 3 texts in a row; specify one --label_column"):
            self.open(table, label="summary,title")
        (self.folder / "d.jsonl").write_text('{"text": "a", "target": "b"}\n{"text": "a"}\n')
        with self.assertRaisesRegex(UserError, "d.jsonl:2: has no field 'target'.*--label_column"):
            self.pairs(self.folder / "d.jsonl")

    def test_repeated(self):
        train = self.open(self.write("train.tsv", "a b\tx\nc\ty\n"))
        held_out = text_pairs.open_pairs(
            str(self.write("dev.tsv", "a  b\tz\nd\ty\na b\tx\n")), flag="validation_file", columns=Columns(),
            policy="strict",
        )  # fmt: skip
        (warning,) = text_pairs.repeated(train, held_out)
        self.assertRegex(warning, "--validation_file=.*: 2 rows have the same text as .*dev.tsv:1 and .*train.tsv:1$")
        self.assertEqual(text_pairs.repeated(self.open(self.write("e.tsv", "q\tx\nr\ty\n")), held_out), [])


if __name__ == "__main__":
    unittest.main()
