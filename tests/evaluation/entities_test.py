"""Entities compared with the results of seqeval and with values computed by hand. NumPy only.

SEQEVAL was produced by github.com/chakki-works/seqeval at commit cd01b52 with mode="strict" and scheme=IOB2.
"""

import unittest

import numpy as np

from tfzoo.evaluation import entities

# Gold, predicted, and the precision and recall of seqeval.
SEQEVAL = [
    ("O B-PER I-PER", "O I-PER I-PER", 0, 0),  # I- without B- is not an entity.
    ("B-PER I-PER O", "I-PER B-PER O", 0, 0),
    ("B-PER I-PER I-PER", "B-PER I-LOC I-PER", 0, 0),  # The type changes: the entity ends, and I-PER is not one.
    ("B-PER O O", "B-PER I-LOC I-LOC", 1, 1),
    ("B-LOC B-LOC I-LOC", "B-LOC I-LOC I-LOC", 0, 0),  # Adjacent entities.
    ("B-LOC B-LOC I-LOC B-PER", "B-LOC B-LOC I-LOC B-PER", 1, 1),
    ("B-PER I-PER O B-LOC", "B-PER I-PER I-PER B-LOC", 0.5, 0.5),
    ("B-PER I-PER", "B-LOC I-LOC", 0, 0),
    ("O O B-ORG", "O B-ORG I-ORG", 0, 0),
    ("B-PER I-PER O B-PER", "B-PER O I-PER B-PER", 0.5, 0.5),
    ("O O", "O B-PER", 0, 0),
]
GOLD = [gold.split() for gold, *_ in SEQEVAL]
PREDICTED = [predicted.split() for _, predicted, *_ in SEQEVAL]


class SpansTest(unittest.TestCase):
    def test_by_hand(self):
        for tags, expected in (
            ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
            ("B-LOC B-LOC I-LOC", [("LOC", 0, 1), ("LOC", 1, 3)]),
            ("I-PER I-PER O I-PER", []),
            ("B-PER I-LOC I-PER", [("PER", 0, 1)]),
            ("O O B-ORG", [("ORG", 2, 3)]),
            ("B-creative-work I-creative-work", [("creative-work", 0, 2)]),
            ("B I O B I-PER", [("_", 0, 2), ("_", 3, 4)]),
            ("", []),
        ):
            self.assertEqual(entities.spans(tags.split()), expected, tags)

    def test_what_is_refused(self):
        for tag in ("E-PER", "B-", "PER", "b-PER", ""):
            with self.assertRaisesRegex(ValueError, f"tag '{tag}' is not an IOB2 tag"):
                entities.spans(["O", tag])

    def test_is_iob2(self):
        self.assertTrue(entities.is_iob2([["O"], ["B-PER", "I-PER"]]))
        for tags in ([["O", "O"]], [["NN", "VB"]], [["B-PER", "S-PER"]], []):
            self.assertFalse(entities.is_iob2(tags))


class StrictTest(unittest.TestCase):
    def test_each_case_of_seqeval(self):
        for gold, predicted, precision, recall in SEQEVAL:
            found = entities.strict([gold.split()], [predicted.split()])
            f1 = 2 * precision * recall / (precision + recall) if precision else 0
            self.assertEqual(found, {"precision": precision, "recall": recall, "f1": f1}, (gold, predicted))

    def test_all_sentences_together(self):
        found = entities.strict(GOLD, PREDICTED)
        expected = {"precision": 0.42857142857142855, "recall": 0.4, "f1": 0.4137931034482759}  # seqeval's.
        for name, value in expected.items():
            self.assertAlmostEqual(found[name], value)
        # seqeval's classification_report, with six digits.
        report = [
            ("LOC", 0.6, 0.6, 0.6, 5),
            ("ORG", 0.0, 0.0, 0.0, 1),
            ("PER", 0.375, 0.333333, 0.352941, 9),
        ]
        for row, expected in zip(entities.per_type(GOLD, PREDICTED), report, strict=True):
            values = row["label"], *(round(row[name], 6) for name in ("precision", "recall", "f1")), row["support"]
            self.assertEqual(values, expected)

    def test_rows_are_sentences(self):
        rows = np.array([5, 5, 6, 0])
        expected = entities.strict([GOLD[row] for row in rows], [PREDICTED[row] for row in rows])
        self.assertEqual(entities.strict_rows(GOLD, PREDICTED)(rows), expected)
        self.assertAlmostEqual(expected["recall"], 7 / 9)

    def test_no_entities(self):
        self.assertEqual(entities.strict([["O"]], [["O"]]), {"precision": 0.0, "recall": 0.0, "f1": 0.0})
        self.assertEqual(entities.per_type([["O"]], [["O"]]), [])

    def test_what_is_refused(self):
        with self.assertRaisesRegex(ValueError, "1 sentences of gold tags, but 2"):
            entities.strict([["O"]], [["O"], ["O"]])
        with self.assertRaisesRegex(ValueError, "sentence 1 has 2 gold tags, but 1"):
            entities.accuracy([["O"], ["O", "O"]], [["O"], ["O"]])


class AccuracyTest(unittest.TestCase):
    def test_by_hand(self):
        gold, predicted = [["DT", "NN"], ["VB"]], [["DT", "JJ"], ["VB"]]
        self.assertEqual(entities.accuracy(gold, predicted), {"accuracy": 2 / 3})
        self.assertEqual(entities.accuracy_rows(gold, predicted)(np.array([0, 0, 1])), {"accuracy": 3 / 5})


if __name__ == "__main__":
    unittest.main()
