"""The score of relations compared with the results of the official program. NumPy only.

The expected values are the output of semeval2010_task8_scorer-v1.2.pl, in percent and with two decimals.
"""

import os
import pathlib
import re
import unittest

import numpy as np

from tfzoo.evaluation import relations

NAMES = (
    "Cause-Effect Component-Whole Content-Container Entity-Destination Entity-Origin Instrument-Agency "
    "Member-Collection Message-Topic Product-Producer"
).split()
LABELS = [name + direction for name in NAMES for direction in ("(e1,e2)", "(e2,e1)")] + ["Other"]
# Gold, predicted: right, a wrong direction, the wrong relation, Other, and relations that gold does not contain.
ROWS = [
    ("Cause-Effect(e1,e2)", "Cause-Effect(e1,e2)"),
    ("Cause-Effect(e1,e2)", "Cause-Effect(e2,e1)"),
    ("Cause-Effect(e2,e1)", "Cause-Effect(e2,e1)"),
    ("Entity-Origin(e1,e2)", "Entity-Origin(e1,e2)"),
    ("Entity-Origin(e2,e1)", "Other"),
    ("Entity-Origin(e1,e2)", "Cause-Effect(e1,e2)"),
    ("Message-Topic(e1,e2)", "Message-Topic(e1,e2)"),
    ("Message-Topic(e2,e1)", "Member-Collection(e2,e1)"),
    ("Other", "Other"),
    ("Other", "Message-Topic(e1,e2)"),
    ("Other", "Product-Producer(e1,e2)"),
    ("Other", "Other"),
]


def indices(labels, names=LABELS):
    return np.array([names.index(label) for label in labels])


class RelationsTest(unittest.TestCase):
    def check(self, found, precision, recall, f1, accuracy):
        for name, value in (("macro_precision", precision), ("macro_recall", recall), ("macro_f1", f1)):
            self.assertAlmostEqual(100 * found[name], value, delta=0.00501, msg=name)
        self.assertAlmostEqual(100 * found["accuracy"], accuracy, delta=0.00501)

    def test_equal_to_the_official_program(self):
        gold, predicted = (indices(column) for column in zip(*ROWS))
        self.check(relations.official(gold, predicted, LABELS), 66.67, 50.00, 52.38, 50.00)
        table = {row.pop("label"): row for row in relations.per_relation(gold, predicted, LABELS)}
        self.assertEqual(list(table), NAMES)
        for name, *expected in (
            ("Cause-Effect", 50.00, 66.67, 57.14, 3),
            ("Entity-Origin", 100.00, 33.33, 50.00, 3),
            ("Message-Topic", 50.00, 50.00, 50.00, 2),
            ("Product-Producer", 0, 0, 0, 0),
        ):
            found = [round(100 * table[name][key], 2) for key in ("precision", "recall", "f1")]
            self.assertEqual([*found, table[name]["support"]], expected, name)

    def test_a_wrong_direction_is_wrong(self):
        gold = indices(["Cause-Effect(e1,e2)"])
        self.check(relations.official(gold, indices(["Cause-Effect(e2,e1)"]), LABELS), 0, 0, 0, 0)
        self.check(relations.official(gold, gold, LABELS), 100, 100, 100, 100)

    def test_other_labels(self):
        labels = ["works_for(e1,e2)", "works_for(e2,e1)", "married_to", "none"]
        gold, predicted = np.array([0, 1, 2, 3, 3]), np.array([0, 0, 2, 3, 2])
        found = relations.official(gold, predicted, labels, other="none")
        self.assertAlmostEqual(found["macro_f1"], (1 / 2 + 2 / 3) / 2)
        self.assertAlmostEqual(found["accuracy"], 3 / 5)
        found = relations.official(gold, predicted, labels)  # Without a class Other, all relations count.
        self.assertAlmostEqual(found["macro_f1"], (1 / 2 + 2 / 3 + 2 / 3) / 3)

    def test_relation_of(self):
        for label, expected in (("A(e1,e2)", "A"), ("A(e2,e1)", "A"), ("A(e1,e1)", "A(e1,e1)"), ("Other", "Other")):
            self.assertEqual(relations.relation_of(label), expected)

    def test_some_rows(self):
        gold, predicted = (indices(column) for column in zip(*ROWS))
        rows = np.array([0, 0, 1, 8, 9])
        found = relations.official_rows(gold, predicted, LABELS)(rows)
        self.assertEqual(found, relations.official(gold[rows], predicted[rows], LABELS))
        self.assertAlmostEqual(found["macro_f1"], 2 * 2 / (3 + 3))  # Message-Topic does not occur in gold.

    def test_what_is_refused(self):
        with self.assertRaisesRegex(ValueError, "range of the 19 labels"):
            relations.official(np.array([19]), np.array([0]), LABELS)

    def test_the_test_file(self):
        path = pathlib.Path(os.environ.get("TFZOO_DATA", ""), "semeval2010-8", "TEST_FILE_FULL.TXT")
        if "TFZOO_DATA" not in os.environ or not path.exists():
            self.skipTest("TFZOO_DATA names no folder with semeval2010-8/TEST_FILE_FULL.TXT")
        lines = path.read_text(encoding="utf-8").splitlines()
        gold = indices(line for line in lines if re.fullmatch(r"Other|[A-Z]\w+-\w+\(e\d,e\d\)", line))
        self.assertEqual(len(gold), 2717)
        rows = np.arange(len(gold))
        predicted = np.where(rows % 3, gold, rows % 19)  # Every third prediction is arbitrary.
        self.check(relations.official(gold, predicted, LABELS), 64.18, 67.47, 65.68, 68.24)


if __name__ == "__main__":
    unittest.main()
