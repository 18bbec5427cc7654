"""Delimiters, quotes and rows of tables, compared with Python's csv module. Without TensorFlow."""

import csv
import gzip
import random
import unittest
import unittest.mock

from tests import helpers
from tfzoo.data import tables
from tfzoo.data.row_files import BadRow
from tfzoo.errors import UserError


class TablesTest(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)

    def write(self, content: str | bytes, name: str = "a.csv") -> str:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def rows(self, path: str, delimiter: str | None = None) -> list:
        return list(tables.rows(path, tables.detect(path, delimiter)))

    def fields(self, content, name: str = "a.csv", delimiter: str | None = None) -> list:
        return [fields for _, fields in self.rows(self.write(content, name), delimiter)]

    def test_rows_are_those_of_the_csv_module(self):
        numbers = random.Random(1)
        pieces = ["a", "é", " ", '"', '""', ",", "\t", "\n", "\r\n", "\r", "中", "", "'", "\u2028", "\x0b"]
        for trial in range(300):
            # Also content that no writer would produce.
            content = "".join(numbers.choices(pieces, k=30))
            path = self.write(content)
            with open(path, encoding="utf-8-sig", newline="") as file:
                expected = [row for row in csv.reader(file) if row]
            self.assertEqual([fields for _, fields in self.rows(path, ",")], expected, (trial, content))

    def test_what_the_csv_module_writes(self):
        numbers = random.Random(2)
        pieces = ["word", " ", '"', ",", "\t", "\n", "ü", "中文"]
        for delimiter in ",;|\t":
            written = [["".join(numbers.choices(pieces, k=5)) + "." for _ in range(3)] for _ in range(50)]
            path = self.write("")
            with open(path, "w", encoding="utf-8", newline="") as file:
                csv.writer(file, delimiter=delimiter).writerows(written)
            found = self.rows(path, delimiter)
            self.assertEqual([fields for _, fields in found], written)
            # A row starts after the line breaks of those before.
            starts = [1 + sum(1 + "".join(row).count("\n") for row in written[:i]) for i in range(50)]
            self.assertEqual([line for line, _ in found], starts)

    def test_line_endings_byte_order_mark_blank_lines_and_gzip(self):
        expected = [["a", "b"], ["c\r\nd", "e"]]
        content = '\ufeffa,b\r\n\r\n"c\r\nd",e\r\n\r\n\r\n'
        self.assertEqual(self.fields(content), expected)
        self.assertEqual(self.fields(gzip.compress(content.encode()), "a.csv.gz"), expected)
        self.assertEqual([line for line, _ in self.rows(self.write(content))], [1, 3])

    def test_delimiters(self):
        for name, content, expected in (
            ("a.csv", "x y,1\nz,2\n", ","),
            ("a.csv", "Well, yes;1\nNo;2\nAh, so, so;1\n", ";"),
            ("a.csv", "x\t1\ny\t2\n", "\t"),
            ("a.tsv", "x,1\ny,2\n", "\t"),
            ("a.txt", "x, y\t1\ny, z\t2\n", "\t"),
            ("a.data", "x|1\ny|2\n", "|"),
            ("a.txt", "One sentence, with a comma.\nAnother one.\nA third, but, well.\n", None),
            ("a.csv", "text\nOne, two.\nThree.\n", ","),
        ):
            self.assertEqual(tables.detect(self.write(content, name), None).delimiter, expected, content)

    def test_names_of_delimiters(self):
        for value, expected in (("tab", "\t"), ("\\t", "\t"), ("\t", "\t"), (";", ";"), ("Comma", ","), ("space", " ")):
            self.assertEqual(tables.delimiter_of(value), expected)
        for value in ("", "::", '"', "\n"):
            with self.assertRaisesRegex(UserError, "^--delimiter=.*is not a single character; use one"):
                tables.delimiter_of(value)

    def test_quotes_of_unquoted_tab_separated_text_are_ordinary(self):
        for content in (
            '"quoted" start\t1\nplain\t0\n',  # Not a quoted field.
            'a\t1\n"never closed\t0\nb\t1\n',
            '"it begins here .\t1\nand goes on\t0\nand ends ."\t1\n"',  # The csv module would read one row.
            '"it ""begins"" here .\t1\nand ends ."\t1\nb\t0\n',
            '"A whole sentence."\t1\nAnother.\t0\n',  # Needs no quotes.
            'he said "no"\t1\nb\t0\n',
        ):
            expected = [line.split("\t") for line in content.splitlines()]
            self.assertEqual(self.fields(content, "a.tsv"), expected, content)

    def test_quotes_of_quoted_tab_separated_text(self):
        for content, expected in (
            ('"say ""no"""\t1\nb\t0\n', [['say "no"', "1"], ["b", "0"]]),
            ('"a\tb"\t1\nc\t0\nd\t1\n', [["a\tb", "1"], ["c", "0"], ["d", "1"]]),
            ('"a\nb"\t1\nc\t0\nd\t1\n', [["a\nb", "1"], ["c", "0"], ["d", "1"]]),
            ('"a"\t1\n"c"\t0\n', [["a", "1"], ["c", "0"]]),
            ('"a"\t"1"\r\n"c"\t"0"\r\n', [["a", "1"], ["c", "0"]]),
        ):
            self.assertEqual(self.fields(content, "a.tsv"), expected, content)

    def test_a_quote_far_into_the_file_counts(self):
        lines = "plain text\t0\n" * 3000
        self.assertEqual(len(self.fields(lines + '"PC" card\t1\nlast "one"\t0\n', "a.tsv")), 3002)
        self.assertEqual(self.fields(lines + '"say ""no"""\t1\n', "a.tsv")[-1], ['say "no"', "1"])

    def test_invalid_utf8_is_a_bad_row(self):
        good, bad, last = self.rows(self.write(b'a,1\n"\nna\xefve",2\nc,3\n'))
        self.assertEqual((good, last), ((1, ["a", "1"]), (4, ["c", "3"])))
        self.assertEqual(bad[0], 2)
        self.assertIsInstance(bad[1], BadRow)
        self.assertIn("byte 0xef after 'na' is not UTF-8", bad[1].words)

    def test_a_row_without_end_does_not_fill_the_memory(self):
        path = self.write('a,1\n"' + "never closed\n" * 20)
        with unittest.mock.patch("tfzoo.data.row_files.MAX_ROW", 100):
            rows = self.rows(path)
        self.assertEqual(rows[0], (1, ["a", "1"]))
        self.assertEqual((rows[1][0], rows[1][1].kind), (2, "row_too_long"))
        long = "x" * 200_000  # More than the csv module's default.
        self.assertEqual(self.fields(f"{long},1\n"), [[long, "1"]])

    def test_a_damaged_gzip_file(self):
        data = gzip.compress(random.Random(1).randbytes(5000).hex().encode() + b",1\n")
        path = self.write(data[:-2000], "a.csv.gz")
        with self.assertRaisesRegex(UserError, "gzip stream damaged or truncated .*; create or download it again$"):
            list(tables.rows(path, tables.Dialect(",", True)))


if __name__ == "__main__":
    unittest.main()
