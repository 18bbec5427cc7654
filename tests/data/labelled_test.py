"""Labelled files: formats, labels, bad rows, overlaps. Without TensorFlow."""

import contextlib
import gzip
import hashlib
import json
import os
import pathlib
import tracemalloc
import unittest
from unittest import mock

from tests import helpers
from tfzoo.data import row_files
from tfzoo.data.labelled import Columns, LabelledFile, Row, check_classes, check_overlap, labels_of
from tfzoo.errors import UserError

SST2 = "a dull film , with no end\t0\nit 's good\t1\nthe best of the year\t1\nno , thanks\t0\n"


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)
        self.enterContext(contextlib.chdir(self.folder))

    def open(self, content: str | bytes, name: str = "a.csv", **settings) -> LabelledFile:
        pathlib.Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return LabelledFile(name, **{"flag": "train_file"} | settings)

    def rows(self, *arguments, **settings) -> list[Row]:
        return list(self.open(*arguments, **settings).rows())

    def message(self, *arguments, **settings) -> str:
        with self.assertRaises(UserError) as raised:
            self.rows(*arguments, **settings)
        self.assertNotIn("\n", str(raised.exception))
        return str(raised.exception)


class FormatsTest(Case):
    def test_tab_separated_without_header(self):
        file = self.open(SST2, "train.tsv")
        self.assertEqual(file.describe(), "train.tsv: tab-separated, no header; text = column 0, label = column 1")
        self.assertEqual(file.columns, Columns(text="0", label="1", delimiter="\t"))
        rows = list(file.rows())
        self.assertEqual(rows[0], Row("train.tsv:1", ("a dull film , with no end",), "0"))
        self.assertEqual([row.label for row in rows], ["0", "1", "1", "0"])
        self.assertEqual((file.counts, list(file.rows())), ({"rows": 4}, rows))

    def test_header_and_quoted_line_breaks(self):
        content = '\ufefftext,category\r\n"Where, oh where\r\nis my card?",card_arrival\r\nNo card?,lost\r\n\r\n'
        file = self.open(content)
        self.assertEqual(file.describe(), "a.csv: comma-separated, header; text = text, label = category")
        self.assertEqual(
            list(file.rows()),
            [
                Row("a.csv:2", ("Where, oh where\r\nis my card?",), "card_arrival"),
                Row("a.csv:4", ("No card?",), "lost"),
            ],
        )

    def test_header_with_the_label_first_and_quotes_in_texts(self):
        content = 'label\ttext_a\n1\t"PC卡插槽"为什么我找不到\n0\t"此期间预订酒店\n1\t房间"很"好\n'
        file = self.open(content, "train.tsv")
        self.assertEqual(
            file.describe(),
            "train.tsv: tab-separated, quotes are ordinary characters, header; text = text_a, label = label",
        )
        self.assertEqual(
            [row.texts[0] for row in file.rows()], ['"PC卡插槽"为什么我找不到', '"此期间预订酒店', '房间"很"好']
        )

    def test_pairs_with_a_number(self):
        content = 'A man sings.,"A man, singing.",4.75\nTwo dogs run.,A cat sleeps.,0.0\nIt is late.,It is early.,1.5\n'
        file = self.open(content, kind="number")
        expected = "a.csv: comma-separated, no header; text = column 0, second text = column 1, label = column 2"
        self.assertEqual(file.describe(), expected)
        self.assertEqual(list(file.rows())[0], Row("a.csv:1", ("A man sings.", "A man, singing."), 4.75))
        self.assertIsInstance(next(file.rows()).label, float)

    def test_json_lines(self):
        lines = [
            {"id": 7, "text": "one two", "label": True},
            {"text": "three", "label": 5},
            {"text": "x", "label": " a "},
        ]
        content = "\n".join(map(json.dumps, lines)) + "\n\n"
        for name in ("a.jsonl", "a.txt", "a.jsonl.gz"):
            file = self.open(gzip.compress(content.encode()) if name.endswith("gz") else content, name)
            self.assertEqual(file.describe(), f"{name}: JSON lines; text = field text, label = field label")
            rows = list(file.rows())
            self.assertEqual([row.label for row in rows], ["true", "5", "a"])
            self.assertEqual((rows[2].where, rows[2].texts), (f"{name}:3", ("x",)))

    def test_an_endless_line_of_a_small_gzip_file(self):
        self.enterContext(mock.patch.object(row_files, "MAX_LINE_BYTES", 100_000))
        bomb = gzip.compress(b"text,label\n" + b"x" * (1 << 24))
        message = "a.csv.gz: has a line longer than 100,000 bytes; split it"
        self.assertEqual(self.message(bomb, "a.csv.gz"), message)
        os.makedirs("texts/positive")
        pathlib.Path("texts/positive/a.txt").write_bytes(bomb)
        with self.assertRaisesRegex(UserError, "^texts/positive/a.txt: has a line"):
            list(LabelledFile("texts", flag="train_file").rows())
        for end in ("\n", "\r\n", "\r"):  # A long file of short lines.
            rows = self.rows(gzip.compress((f"a text,x{end}" * 30_000).encode()), "a.csv.gz")
            self.assertEqual(len(rows), 30_000)

    def test_several_labels(self):
        content = "".join(
            json.dumps({"text": f"text {i}", "labels": labels}) + "\n"
            for i, labels in enumerate([["a", "b"], [], ["b", "b"]])
        )
        rows = self.rows(content, "a.jsonl", kind="several")
        self.assertEqual([row.label for row in rows], [("a", "b"), (), ("b",)])
        content = 'text,labels\nx y,"a, b"\nz,\nz z,b;c|d\nw,"[""e, f"", ""g""]"\n'
        rows = self.rows(content, kind="several")
        self.assertEqual([row.label for row in rows], [("a", "b"), (), ("b", "c", "d"), ("e, f", "g")])

    def test_folders(self):
        for name, text in {
            "neg/0_1.txt": "bad",
            "pos/0_9.txt": "good\n",
            "pos/1_8.txt": "fine",
            "pos/.hidden.txt": "no",
            ".cache/x.txt": "no",
            "unsup/0_0.txt": "who knows",
            "urls.txt": "http",
            "pos/notes.md": "no",
        }.items():
            path = pathlib.Path("reviews", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        file = LabelledFile("reviews", flag="train_file")
        self.assertEqual(file.describe(), "reviews: a folder of 4 texts with 3 labels, its subfolders: neg, pos, unsup")
        self.assertEqual(
            list(file.rows()),
            [
                Row("reviews/neg/0_1.txt", ("bad",), "neg"),
                Row("reviews/pos/0_9.txt", ("good\n",), "pos"),
                Row("reviews/pos/1_8.txt", ("fine",), "pos"),
                Row("reviews/unsup/0_0.txt", ("who knows",), "unsup"),
            ],
        )
        before = file.fingerprint()
        self.assertEqual(LabelledFile("reviews/", flag="test_file").fingerprint(), before)
        pathlib.Path("reviews/pos/1_8.txt").rename("reviews/neg/1_8.txt")
        self.assertNotEqual(LabelledFile("reviews", flag="train_file").fingerprint(), before)
        pathlib.Path("reviews/neg/0_1.txt").write_bytes(b"caf\xe9")
        with self.assertRaisesRegex(UserError, "^reviews/neg/0_1.txt: byte 0xe9 after 'caf' is not UTF-8; convert"):
            list(LabelledFile("reviews", flag="train_file").rows())

    def test_files_without_labels(self):
        file = self.open("One, two; three.\n\nlabel\n", "lines.txt", kind="none")
        self.assertEqual(file.describe(), "lines.txt: one text per line, no header; text = column 0")
        self.assertEqual(
            list(file.rows()), [Row("lines.txt:1", ("One, two; three.",), None), Row("lines.txt:3", ("label",), None)]
        )
        self.assertEqual([row.texts for row in self.rows(SST2, "b.tsv", kind="none")][1], ("it 's good",))
        pairs = "one two\tthree four\nfive six\tseven eight\n"
        self.assertEqual(self.rows(pairs, "c.txt", kind="none", needs_pair=True)[0].texts, ("one two", "three four"))

    def test_columns_that_the_user_specifies(self):
        content = "a b c|d e f|x\ng h i|j k l|y\nm n o|p q r|x\n"
        rows = self.rows(content, columns=Columns(text="1", label="2", delimiter="|"), needs_pair=False)
        self.assertEqual([row.texts for row in rows], [("d e f",), ("j k l",), ("p q r",)])
        rows = self.rows(content, columns=Columns(text="1", pair="0", label="2"))
        self.assertEqual(rows[0].texts, ("d e f", "a b c"))

    def test_fingerprint_is_of_the_bytes(self):
        expected = hashlib.sha256(SST2.encode()).hexdigest()
        self.assertEqual(self.open(SST2, "a.tsv").fingerprint(), expected)


class BadRowsTest(Case):
    HEADER = "text,label\nfirst one,a\n"

    def check(self, kind: str, message: str, row: str | bytes, **settings) -> None:
        """Checks a file whose third line is bad: the error, and the count under the policy "skip"."""
        row = row if isinstance(row, bytes) else row.encode()
        content = self.HEADER.encode() + row + b"\nlast one,b\n"
        self.assertEqual(self.message(content, **settings), f"a.csv:3: {message}, or use --bad_rows=skip")
        file = self.open(content, policy="skip", **settings)
        self.assertEqual([row.where for row in file.rows()], ["a.csv:2", "a.csv:4"])
        self.assertEqual((file.counts, file.first), ({"rows": 2, kind: 1}, {kind: "a.csv:3"}))
        self.assertEqual(file.summary(), f"2 rows; skipped: {kind} 1, first at a.csv:3")

    def test_rows_that_do_not_fit(self):
        self.check("too_few_columns", "has 1 column instead of 2; correct the row", "no comma")
        many = "has 3 columns instead of 2; quote texts that contain the delimiter"
        self.check("too_many_columns", many, "well, then,a")
        self.check("empty_text", "its text is empty; add a text or remove the row", "  ,a")
        self.check("empty_label", "its label is empty; add a label or remove the row", "x, ")
        byte = (
            "byte 0xe9 after 'caf' is not UTF-8; convert the file to UTF-8, for example with iconv -f latin1 -t utf-8"
        )
        self.check("invalid_utf8", byte, b"caf\xe9,a")

    def test_more_columns_that_are_empty_are_no_problem(self):
        self.assertEqual(len(self.rows(self.HEADER + "x,b,,\n")), 2)

    def test_numbers(self):
        for value in ("good", "nan", "1e999", '"1,5"', ""):
            shown = value.strip('"')
            message = self.message(f"text,score\nx,1\ny,{value}\n", kind="number")
            self.assertIn(f"a.csv:3: label {shown!r} is not a finite number; correct it", message)

    def test_a_quote_that_is_not_closed(self):
        message = self.message(self.HEADER + '"no end,b\nanother,a\n')
        self.assertEqual(
            message,
            "a.csv:3: has 1 column instead of 2, and contains 2 line breaks within quotes; close the quote or correct "
            "the row, or use --bad_rows=skip",
        )

    def test_json_lines(self):
        good = '{"text": "one", "label": "a"}\n'
        for line, kind, message in (
            ("{", "invalid_json", "is not JSON"),
            ("[1]", "not_an_object", "[1] is not a JSON object; write one JSON object per line"),
            (
                '{"label": "a"}',
                "missing_field",
                "has no field 'text' (fields: label); specify another with --text_column",
            ),
            ('{"text": "x"}', "missing_field", "has no field 'label'"),
            ('{"text": 3, "label": "a"}', "not_a_string", "field 'text' is 3, not a string; write a string"),
            ('{"text": " ", "label": "a"}', "empty_text", "field 'text' is empty"),
            ('{"text": "x", "label": null}', "empty_label", "its label is empty"),
            ('{"text": "x", "label": {"a": 1}}', "not_a_label", "label {'a': 1} is not a text or number"),
            ('{"text": "\\ud800", "label": "a"}', "lone_surrogate", "contains a lone surrogate"),
        ):
            self.assertIn(f"a.jsonl:2: {message}", self.message(good + line + "\n" + good, "a.jsonl"))
            file = self.open(good + line + "\n" + good, "a.jsonl", policy="skip")
            self.assertEqual([row.where for row in file.rows()], ["a.jsonl:1", "a.jsonl:3"])
            self.assertEqual(file.counts[kind], 1)

    def test_unknown_labels(self):
        file = self.open("text,label\nx,a\ny,c\nz,b\n")
        file.expect(["a", "b"])
        with self.assertRaises(UserError) as raised:
            list(file.rows())
        self.assertEqual(
            str(raised.exception),
            "a.csv:3: label 'c' does not occur in training; correct it (labels of training: a, b), or train with this "
            "label, or use --bad_rows=skip",
        )
        file = self.open("text,labels\nx,a\ny,a;c\n", kind="several", policy="skip")
        file.expect(["a", "b"])
        self.assertEqual(([row.label for row in file.rows()], file.counts["unknown_label"]), ([("a",)], 1))

    def test_rows_are_read_only_when_they_are_needed(self):
        content = "text,label\n" + "some text,a\n" * 5000 + "bad row\n"
        rows = self.open(content).rows()
        self.assertEqual([next(rows).where for _ in range(5000)][-1], "a.csv:5001")
        with self.assertRaisesRegex(UserError, "^a.csv:5002: has 1 column"):
            next(rows)

    def test_the_memory_does_not_depend_on_the_number_of_rows(self):
        peaks = []
        for count in (5_000, 20_000):
            file = self.open("text,label\n" + f"{'some text ' * 20},a\n" * count)
            tracemalloc.start()
            for _ in file.rows():
                pass
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        self.assertLess(peaks[1], 1.2 * peaks[0])  # 15,000 more rows are 3 MB of text.
        self.assertLess(peaks[1], 1_000_000)


class BadFilesTest(Case):
    def test_files(self):
        for content, name, message in (
            (b"", "a.csv", "--train_file=a.csv: is empty; specify a file with rows"),
            (b"\xef\xbb\xbf\r\n \n", "a.csv", "--train_file=a.csv: is empty; specify a file with rows"),
            (b"text,label\n", "a.csv", "--train_file=a.csv: contains a header and no rows; add rows"),
            (b"PK\x03\x04", "a.csv", "--train_file=a.csv: is a spreadsheet or zip file; save it as CSV in UTF-8"),
            ("a,1\n".encode("utf-16"), "a.csv", "--train_file=a.csv: is in UTF-16; save it as UTF-8"),
            (b"[]", "a.json", "--train_file=a.json: is one JSON list; write one JSON object per line (.jsonl)"),
            (b"a b\nc d\n", "a.txt", "--train_file=a.txt: its rows have 1 column, too few for a text and a label; "),
            (b"a b\nc d\xf0\n", "a.txt", "a.txt:2: byte 0xf0 after 'c d' is not UTF-8; convert"),
            (
                b"text,label\na,b,c\nd,e,f\n",
                "a.csv",
                "--train_file=a.csv: its header has 2 columns, and its rows have 3",
            ),
            (b"text,label\nx,\n", "a.csv", "a.csv:2: its label is empty"),
        ):
            self.assertIn(message, self.message(content, name))

    def test_no_row_can_be_used(self):
        message = self.message("text,label\nx,\n", policy="skip")
        self.assertEqual(
            message,
            "--train_file=a.csv: contains no row that can be used (0 rows; skipped: empty_label 1, first at a.csv:2); "
            "check the file and its columns",
        )

    def test_paths_and_settings(self):
        with self.assertRaisesRegex(UserError, "^--test_file=no.csv: no such file; specify an existing one$"):
            LabelledFile("no.csv", flag="test_file")
        os.mkdir("empty")
        with self.assertRaisesRegex(UserError, "^--test_file=empty: contains no texts; write them as empty/LABEL/"):
            LabelledFile("empty", flag="test_file")
        with self.assertRaisesRegex(UserError, "^--label_column=x: does not apply to a folder"):
            LabelledFile("empty", flag="test_file", columns=Columns(label="x"))
        with self.assertRaisesRegex(UserError, "^--bad_rows=replace: is not one of strict, skip; use one of them$"):
            self.open(SST2, policy="replace")
        with self.assertRaisesRegex(UserError, "^--delimiter=;: does not apply to JSON lines"):
            self.open('{"text": "a"}', "a.jsonl", columns=Columns(delimiter=";"))
        with self.assertRaisesRegex(ValueError, "kind"):
            self.open(SST2, kind="double")


class LabelsTest(Case):
    def test_labels_are_sorted(self):
        self.assertEqual(labels_of(self.open("a b\t10\nc d\t9\ne f\t9\n", "a.tsv")), ["9", "10"])
        self.assertEqual(labels_of(self.open("a b\tz\nc d\tB\ne f\tz\n", "a.tsv")), ["B", "z"])
        content = '{"text": "a", "label": ["y", "x"]}\n{"text": "b", "label": ["z"]}\n'
        self.assertEqual(labels_of(self.open(content, "a.jsonl", kind="several")), ["x", "y", "z"])

    def test_a_single_class(self):
        file = self.open("text,label\na,x\nb,x\n")
        with self.assertRaises(UserError) as raised:
            check_classes(file, labels_of(file))
        self.assertEqual(
            str(raised.exception),
            "--train_file=a.csv: contains a single class, 'x'; add rows of others, or specify another --label_column",
        )
        check_classes(file, ["x", "y"])

    def test_overlap(self):
        train = self.open("text,label\na  b,x\nc,y\nd,x\n", "train.csv")
        test = self.open("text,label\ne,x\na b ,y\na b,x\nd,x\n", "test.csv")
        other = self.open("text,label\ne,x\nf,y\n", "dev.csv")
        (overlap,) = check_overlap(train, {"test.csv": test, "dev.csv": other})
        self.assertEqual((overlap.name, overlap.rows), ("test.csv", 3))
        self.assertEqual(
            overlap.examples,
            (
                ("train.csv:2", "test.csv:3", ("a b ",)),
                ("train.csv:2", "test.csv:4", ("a b",)),
                ("train.csv:4", "test.csv:5", ("d",)),
            ),
        )
        self.assertEqual(
            str(overlap),
            "test.csv: 3 rows have the same text as a row of training, for example test.csv:3 and train.csv:2",
        )

    def test_pairs_overlap_only_as_a_whole(self):
        train = self.open("text1,text2,label\na,b,x\nc,d,y\n", "train.csv")
        test = self.open("text1,text2,label\na,d,x\nab,,y\na b,c,x\n", "test.csv", policy="skip")
        self.assertEqual(check_overlap(train, {"test": test}), [])


@unittest.skipIf(
    "TFZOO_DATA" not in os.environ, "TFZOO_DATA names no folder with sst2, banking77, chnsenticorp, stsb-multi"
)
class PublicFilesTest(unittest.TestCase):
    def test_rows_and_labels(self):
        for name, kind, rows, labels in (
            ("sst2/train.tsv", "single", 6920, 2),
            ("sst2/test.tsv", "single", 1821, 2),
            ("chnsenticorp/train.tsv", "single", 9600, 2),
            ("chnsenticorp/test.tsv", "single", 1200, 2),
            ("banking77/train.csv", "single", 10003, 77),
            ("banking77/test.csv", "single", 3080, 77),
            ("stsb-multi/stsb-en-train.csv", "number", 5749, None),
            ("stsb-multi/stsb-zh-test.csv", "number", 1379, None),
        ):
            file = LabelledFile(pathlib.Path(os.environ["TFZOO_DATA"], name), flag="train_file", kind=kind)
            found = list(file.rows())
            self.assertEqual((len(found), file.counts), (rows, {"rows": rows}), name)
            if labels:
                self.assertEqual({len(row.texts) for row in found}, {1})
                self.assertEqual(len(labels_of(file)), labels, name)
            else:
                self.assertEqual({len(row.texts) for row in found}, {2})
                self.assertEqual((min(row.label for row in found), max(row.label for row in found)), (0.0, 5.0))

    def test_trec_is_not_utf8(self):
        with self.assertRaisesRegex(UserError, "TREC.train:66: byte 0xf0 after .* is not UTF-8; convert the file"):
            LabelledFile(pathlib.Path(os.environ["TFZOO_DATA"], "trec", "TREC.train"), flag="train_file")


if __name__ == "__main__":
    unittest.main()
