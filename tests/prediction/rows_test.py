"""Rows of files."""

import gzip
import io
import subprocess
import sys
import unittest
from unittest import mock

from tests import helpers
from tfzoo.errors import UserError
from tfzoo.prediction.rows import Source


class RowsTest(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)

    def source(self, name: str, content: str | bytes, **options) -> Source:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return Source(str(path), **options)

    def texts(self, source: Source, columns=("text",), optional=None):
        return [row.texts for row in source.rows(columns, optional)]

    def errors(self, source: Source, columns=("text",), optional=None):
        rows = list(source.rows(columns, optional))
        return [(row.where.rpartition("/")[2], row.error) for row in rows if row.error]

    def test_every_line_of_text_is_a_row(self):
        source = self.source("a.txt", "\ufeffone\r\n\n  two \nthree")
        self.assertEqual(self.texts(source), [("one",), ("",), ("  two ",), ("three",)])
        self.assertEqual([row.fields for row in source.rows(["text"])][0], {"text": "one"})

    def test_gzip_and_lone_carriage_returns(self):
        source = self.source("a.txt.gz", gzip.compress(b"one\rtwo\nthree"))
        self.assertEqual(self.texts(source), [("one\rtwo",), ("three",)])

    def test_jsonl(self):
        source = self.source("a.jsonl", '\ufeff{"id": 7, "text": "a"}\n\n{"text": "b", "text_pair": null}\n')
        rows = list(source.rows(["text"], "text_pair"))
        self.assertEqual([(row.texts, row.fields) for row in rows[:1]], [(("a",), {"id": 7, "text": "a"})])
        self.assertEqual([row.where.rpartition("/")[2] for row in rows], ["a.jsonl:1", "a.jsonl:3"])
        pairs = self.source("b.jsonl", '{"text": "a", "text_pair": "b"}\n{"text": "c"}\n')
        self.assertEqual(self.texts(pairs, optional="text_pair"), [("a", "b"), ()])
        self.assertRegex(self.errors(pairs, optional="text_pair")[0][1], "has no 'text_pair'")
        self.assertEqual(self.texts(pairs), [("a",), ("c",)])
        late = self.source("c.jsonl", '{"text": "c"}\n{"text": "a", "text_pair": "b"}\n')
        self.assertRegex(self.errors(late, optional="text_pair")[0][1], "has a 'text_pair', but the first row has none")

    def test_tables_are_read_as_the_csv_module_reads_them(self):
        content = '\ufeffid,text\r\n1,"one\r\nline, ""two"""\r\n\r\n2,three\r\n'
        source = self.source("a.csv", content)
        self.assertEqual(self.texts(source), [('one\r\nline, "two"',), ("three",)])
        rows = list(source.rows(["text"]))
        self.assertEqual([row.where.rpartition("/")[2] for row in rows], ["a.csv:2", "a.csv:5"])
        self.assertEqual(rows[1].fields, {"id": "2", "text": "three"})
        tabs = self.source("a.tsv", "text\tlabel\na, b\t0\n")
        self.assertEqual(self.texts(tabs), [("a, b",)])
        self.assertEqual(self.texts(tabs, ["label"]), [("0",)])

    def test_bad_rows_name_file_and_line(self):
        lines = ['{"text": 3}', '{"texts": "a"}', "{", "[]", '{"text": "\\ud800"}', '{"text": NaN}', '{"text": "fine"}']
        source = self.source("bad.jsonl", "\n".join(lines))
        found = self.errors(source)
        self.assertEqual([where for where, _ in found], [f"bad.jsonl:{i}" for i in range(1, 7)])
        for (_, error), words in zip(
            found, ["3, not a string", "did you mean texts", "not JSON", "not a JSON object", "lone surrogate", "NaN"]
        ):
            self.assertIn(words, error)
        invalid = self.source("bad.txt", b"fine\n\xff\xfe\nfine\n")
        self.assertEqual([where for where, _ in self.errors(invalid)], ["bad.txt:2"])
        ragged = self.source("bad.csv", "text,id\na\nb,1\n")
        self.assertEqual(self.errors(ragged), [("bad.csv:2", "has 1 columns, but the header has 2; correct the row")])
        with self.assertRaisesRegex(UserError, r"bad.jsonl:1: 'text' is 3, not a string.*use --bad_rows=skip"):
            source.scan(["text"])
        self.assertEqual(source.scan(["text"], skip=True).rows, 7)

    def test_what_is_refused(self):
        for name, content, columns, words in (
            ("a.txt", "", ["text"], "contains no rows"),
            ("a.csv", "text\n", ["text"], "contains no rows"),
            ("a.txt", "a\n", ["text", "text_pair"], "a line is only one text"),
            (
                "a.csv",
                "id,texts\n1,a\n",
                ["text"],
                r"a.csv:1: the header has no column 'text' \(did you mean texts\?\)",
            ),
            ("a.csv", "text,text\n1,a\n", ["text"], "two columns 'text'"),
        ):
            with self.assertRaisesRegex(UserError, words):
                list(self.source(name, content).rows(columns))
        damaged = self.source("a.csv", b"text,\xff\na,b\n")
        with self.assertRaisesRegex(UserError, "a.csv:1: the header byte 0xff after 'text,' is not UTF-8"):
            list(damaged.rows(["text"]))
        with self.assertRaisesRegex(UserError, "no such file"):
            Source(str(self.folder / "nowhere.txt"))
        with self.assertRaisesRegex(UserError, "the suffix is not .txt, .jsonl, .csv or .tsv; add --input_format"):
            self.source("a.parquet", "a")

    def test_stdin(self):
        with mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "a"}\n'))):
            self.assertEqual(self.texts(Source("-", "jsonl")), [("a",)])

    def test_scan_hashes_the_file(self):
        source = self.source("a.csv", 'text\n"a\nb"\nc\n')
        scan = source.scan(["text"])
        self.assertEqual(scan.rows, 2)
        done = subprocess.run(["sha256sum", source.path], capture_output=True, text=True, check=True)
        self.assertEqual(scan.sha256, done.stdout.split()[0])


if __name__ == "__main__":
    unittest.main()
