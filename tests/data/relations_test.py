"""Relations between marked entities: SemEval-2010-8's format and JSON lines. Without TensorFlow."""

import collections
import contextlib
import json
import os
import pathlib
import re
import unittest

from tests import helpers
from tfzoo.data.columns import Columns
from tfzoo.data.relations import RelationFile, RelationRow
from tfzoo.errors import UserError

SEMEVAL = (
    '1\t"An arrayed <e1>configuration</e1> of antenna <e2>elements</e2>."\r\nComponent-Whole(e2,e1)\r\n'
    "Comment: Not a collection.\r\n\r\n"
    '2\t"The <e1>child</e1> said ""no"" in the <e2>cradle</e2>"\r\nOther\r\nComment: A <e1>child</e1>, <e2>.\r\n\r\n'
)


class RelationsTest(unittest.TestCase):
    def setUp(self):
        self.enterContext(contextlib.chdir(helpers.temporary_folder(self)))

    def open(self, content: str, name: str = "a.txt", **settings) -> RelationFile:
        pathlib.Path(name).write_bytes(content.encode(errors="surrogateescape"))
        return RelationFile(name, **{"flag": "train_file"} | settings)

    def message(self, *arguments, **settings) -> str:
        with self.assertRaises(UserError) as raised:
            list(self.open(*arguments, **settings).rows())
        self.assertNotIn("\n", str(raised.exception))
        return str(raised.exception)

    def test_records(self):
        file = self.open(SEMEVAL)
        self.assertEqual(file.describe(), "a.txt: SemEval-2010-8's format")
        first, second = file.rows()
        text = "An arrayed configuration of antenna elements."
        self.assertEqual(first, RelationRow("a.txt:1", text, (11, 24), (36, 44), "Component-Whole(e2,e1)"))
        self.assertEqual(second.text, 'The child said ""no"" in the cradle')
        self.assertEqual([second.text[slice(*place)] for place in (second.first, second.second)], ["child", "cradle"])
        self.assertEqual((second.where, second.label), ("a.txt:5", "Other"))

    def test_records_without_blank_lines_and_without_relations(self):
        rows = list(self.open(SEMEVAL.replace("\r\n\r\n", "\r\n")).rows())
        self.assertEqual([row.label for row in rows], ["Component-Whole(e2,e1)", "Other"])
        content = '8001\t"<e1>A</e1> <e2>b</e2>."\n8002\t"<e1>C</e1> <e2>d</e2>."\n'
        rows = list(self.open(content, labelled=False).rows())
        self.assertEqual([(row.text, row.label) for row in rows], [("A b.", None), ("C d.", None)])
        self.assertEqual(self.message(content), "a.txt:1: has no relation; add it, or use --bad_rows=skip")

    def test_json_lines(self):
        lines = [
            {"text": "The <e2> cradle </e2> of a <e1>child</e1>", "label": "Other"},
            {"text": "A <e1>😀 child", "first": [7, 13], "second": [0, 2], "label": "x"},
        ]
        file = self.open("\n".join(map(json.dumps, lines)), "a.jsonl")
        self.assertEqual(file.describe(), "a.jsonl: JSON lines; text = field text, relation = field label")
        first, second = file.rows()
        self.assertEqual((first.text, first.first, first.second), ("The  cradle  of a child", (18, 23), (5, 11)))
        self.assertEqual(second.text, "A <e1>😀 child")  # With offsets, a marker is ordinary text.
        self.assertEqual((second.text[slice(*second.first)], second.second), ("child", (0, 1)))
        for first, second in (((0, 4), (4, 8)), ((4, 8), (0, 4))):
            touching = {"text": "bookshop", "first": first, "second": second, "label": "x"}
            (row,) = self.open(json.dumps(touching), "a.jsonl").rows()
            self.assertEqual((row.first, row.second), (first, second))
        content = '{"t": "<e1>a</e1> <e2>b</e2>", "r": "x"}'
        (row,) = self.open(content, "a.jsonl", columns=Columns(text="t", label="r")).rows()
        self.assertEqual(row.label, "x")

    def test_bad_rows(self):
        def line(text: str, label="x", **more) -> str:
            return json.dumps({"text": text, "label": label} | more)

        marked = "<e1>a</e1> <e2>b</e2>"
        for bad, kind, message in (
            (line("<e1>a</e1> b</e2>"), "bad_markers", "contains no <e2>; mark both entities"),
            (line(marked + "<e1>"), "bad_markers", "contains <e1> more than once; mark one entity with it"),
            (line("<e1> </e1> <e2>b</e2>"), "bad_markers", "the entity of <e1> is empty"),
            (line("</e1>a<e1> <e2>b</e2>"), "bad_markers", "the entity of <e1> is empty"),
            (line("<e1>a <e2>b</e2></e1>"), "overlapping_entities", "the two entities overlap"),
            (line("a b", first=[0, 1]), "bad_span", "field 'second' is missing"),
            (line("a b", first=[0, 1], second=[2, 4]), "bad_span", "field 'second' is [2, 4], which is not within the"),
            (line("a b", first=[0, 1], second="b"), "bad_span", "field 'second' is 'b', not [start, end]"),
            (line(marked, None), "no_label", "has no relation; add it"),
            (line(marked, 3), "no_label", "has relation 3, which is not a text"),
        ):
            content = "\n".join([line(marked), bad, line(marked)])
            self.assertIn(f"a.jsonl:2: {message}", self.message(content, "a.jsonl"))
            file = self.open(content, "a.jsonl", policy="skip")
            self.assertEqual(([row.where for row in file.rows()], file.counts[kind]), (["a.jsonl:1", "a.jsonl:3"], 1))

    def test_bad_records(self):
        self.assertIn("a.txt:9: 'x' is not a number, a tab and a text in quotes", self.message(SEMEVAL + "x\n\n"))
        self.assertIn(
            "a.txt:9: byte 0xe9 after", self.message(SEMEVAL + '3\t"caf\udce9 <e1>a</e1> <e2>b</e2>"\nOther\n')
        )
        self.assertIn("its first line is not a number, a tab and a text in quotes; use", self.message("a,b\n"))
        self.assertIn("omit --text_column and --label_column", self.message(SEMEVAL, columns=Columns(text="0")))
        self.assertIn("--delimiter=tab: does not apply", self.message(SEMEVAL, columns=Columns(delimiter="tab")))
        file = self.open(SEMEVAL)
        file.expect(["Other"])
        with self.assertRaisesRegex(UserError, "^a.txt:1: label 'Component-Whole.e2,e1.' does not occur in training"):
            list(file.rows())


@unittest.skipIf("TFZOO_DATA" not in os.environ, "TFZOO_DATA names no folder with semeval2010-8")
class PublicFilesTest(unittest.TestCase):
    def test_records_and_relations(self):
        folder = pathlib.Path(os.environ["TFZOO_DATA"], "semeval2010-8")
        # The numbers of Hendrickx et al. 2010, table 1: all relations and "Other".
        for name, count, other in (("TRAIN_FILE.TXT", 8000, 1410), ("TEST_FILE_FULL.TXT", 2717, 454)):
            rows = list(RelationFile(folder / name, flag="train_file").rows())
            labels = collections.Counter(row.label for row in rows)
            self.assertEqual((len(rows), labels["Other"], len(labels)), (count, other, 19))
            content = (folder / name).read_bytes().decode()
            texts = re.findall(r'^\d+\t"(.*)"\r$', content, re.MULTILINE)
            self.assertEqual([row.text for row in rows], [re.sub("</?e[12]>", "", text) for text in texts])
            for row, text in zip(rows, texts, strict=True):
                for place, marked in ((row.first, "<e1>(.*)</e1>"), (row.second, "<e2>(.*)</e2>")):
                    self.assertIn(row.text[slice(*place)], re.findall(marked, text))
        key = (folder / "TEST_FILE_KEY.TXT").read_text().split("\n")
        without_direction = [line.strip().split("\t")[1] for line in key if line.strip()]
        self.assertEqual([(row.label or "").split("(")[0] for row in rows], without_direction)


if __name__ == "__main__":
    unittest.main()
