"""Baselines on made-up texts whose labels depend on what a baseline has to see. No TensorFlow."""

import os
import pathlib
import unittest
import unittest.mock

import numpy as np

from tfzoo.evaluation import linear
from tfzoo.evaluation.linear import Linear, TagLookup

WORDS = "red green blue house tree river stone cloud chair lamp".split()
CHARACTERS = "天地玄黄宇宙洪荒日月盈昃辰宿列张"


class MajorityTest(unittest.TestCase):
    def test_by_hand(self):
        np.testing.assert_array_equal(linear.majority(np.array([2, 0, 2, 1]), 3), [2, 2, 2])
        np.testing.assert_array_equal(linear.majority(np.array([1, 0]), 2), [0, 0])
        np.testing.assert_array_equal(linear.majority(np.array([1.0, 2.0, 6.0]), 2), [3.0, 3.0])
        labels = np.array([[1, 0, 1], [1, 0, 0], [0, 0, 1], [1, 1, 0]], bool)
        np.testing.assert_array_equal(linear.majority(labels, 2), [[True, False, False]] * 2)


class LinearTest(unittest.TestCase):
    def setUp(self):
        self.random = np.random.default_rng(0)

    def sentences(self, count, words=WORDS, length=6, separator=" "):
        return [separator.join(self.random.choice(list(words), length)) for _ in range(count)]

    def accuracy(self, texts, labels):
        """Returns the share of right predictions (of all labels of a row) for the second half of rows."""
        half = len(texts) // 2
        predicted = (
            Linear("several" if labels.ndim == 2 else "single").fit(texts[:half], labels[:half]).predict(texts[half:])
        )
        self.assertEqual((predicted.shape, predicted.dtype), (labels[half:].shape, labels.dtype))
        return (predicted == labels[half:]).reshape(half, -1).all(1).mean()

    def test_words_and_characters(self):
        for options in ({}, {"words": CHARACTERS, "length": 8, "separator": ""}):
            words = list(options.get("words", WORDS))
            texts = self.sentences(1200, **options)
            labels = np.array([(words[0] in text) + 2 * (words[1] in text) for text in texts])
            self.assertGreater(self.accuracy([[text] for text in texts], labels), 0.9)

    def test_the_order_of_words(self):
        pairs = [tuple(self.random.permutation(["red", "green"])) for _ in range(300)]
        labels = np.array([pair[0] == "red" for pair in pairs], int)
        self.assertEqual(self.accuracy([[" ".join(pair)] for pair in pairs], labels), 1.0)

    def test_several_labels(self):
        texts = self.sentences(400)
        labels = np.array([[word in text for word in ("red", "tree")] + [False] for text in texts])  # One is constant.
        texts = [[text] for text in texts]
        self.assertGreater(self.accuracy(texts, labels), 0.9)
        self.assertGreater(self.accuracy(texts, labels[:, :1]), 0.9)

    def test_pairs_are_seen_together(self):
        """Whether two texts are about the same words, none of which says anything by itself."""
        first = self.sentences(600, words=[f"{a} {b}" for a in WORDS for b in WORDS], length=3)
        labels = self.random.integers(2, size=600)
        other = self.sentences(600, words=[f"{a} {b}" for a in WORDS for b in WORDS], length=3)
        second = [
            " ".join(self.random.permutation(a.split())) if same else b for a, b, same in zip(first, other, labels)
        ]
        self.assertGreater(self.accuracy(list(zip(first, second)), labels), 0.95)
        # And each of the texts, of which the first says the label.
        labels = np.array(["red" in text for text in first], int)
        self.assertGreater(self.accuracy(list(zip(first, other)), labels), 0.9)
        self.assertGreater(self.accuracy(list(zip(other, first)), labels), 0.9)

    def test_numbers(self):
        texts = self.sentences(400)
        numbers = np.array([text.split().count("red") - 2.0 * text.split().count("tree") for text in texts])
        model = Linear("number").fit([[text] for text in texts[:200]], numbers[:200])
        predicted = model.predict([[text] for text in texts[200:]])
        self.assertGreater(np.corrcoef(predicted, numbers[200:])[0, 1], 0.9)

    def test_numbers_of_pairs(self):
        first, kept = self.sentences(400), self.random.integers(7, size=400)
        second = [
            " ".join(text.split()[:count] + [f"w{i}" for i in self.random.integers(99, size=6 - count)])
            for text, count in zip(first, kept)
        ]
        pairs = list(zip(first, second))
        predicted = Linear("number").fit(pairs[:200], kept[:200] / 6).predict(pairs[200:])
        self.assertGreater(np.corrcoef(predicted, kept[200:])[0, 1], 0.95)

    def test_constant_labels_and_empty_texts(self):
        texts = [["one"], ["two"]]
        for kind, labels in (("single", [3, 3]), ("several", [[True, False]] * 2), ("number", [0.5, 0.5])):
            predicted = Linear(kind).fit(texts, np.array(labels)).predict([["three"], ["two"], [""]])
            np.testing.assert_array_equal(predicted, [labels[0]] * 3)
        for texts in ([[""], [" "]], [["", ""], [" ", ""]], [["-"], ["一"]]):
            for kind in ("single", "number"):
                predicted = Linear(kind).fit(texts * 4, np.array([0, 1] * 4)).predict(texts)
                self.assertTrue(np.isfinite(predicted).all(), texts)

    def test_limits(self):
        """Only a sample of the rows is read, the same each time, in a number that depends on the classes."""
        read = []

        class Rows(list):
            def __getitem__(self, row):
                read.append(int(row))
                return super().__getitem__(row)

        texts = Rows([[text] for text in self.sentences(40)])
        labels = np.arange(40) % 4
        for name, limit, used in (("MAX_ROWS", 20, 20), ("MAX_ROWS_BY_CLASSES", 60, 15), ("MAX_ROWS", 40, 40)):
            with unittest.mock.patch.object(linear, name, limit):
                read.clear()
                Linear("single").fit(texts, labels)
                first = list(read)
                read.clear()
                Linear("single").fit(texts, labels)
            self.assertEqual(len(set(first)), used)
            self.assertEqual(read, first)
        long = [["red" if i % 2 else "tree", "x" * 300] for i in range(20)]
        swapped = [[" ".join(reversed(row))] for row in long]
        with unittest.mock.patch.object(linear, "MAX_CHARACTERS", 200):  # 100 characters of words, 50 of n-grams.
            predicted = Linear("single").fit(swapped, np.arange(20) % 2).predict(swapped)
        self.assertEqual(len(set(predicted)), 1)  # The word at the end of the text is not read.

    def test_what_is_refused(self):
        with self.assertRaisesRegex(ValueError, "kind is 'classes'"):
            Linear("classes")
        for texts, labels, words in (([], [], "0 texts"), ([["a"]], [0, 1], "1 texts and 2 labels")):
            with self.assertRaisesRegex(ValueError, words):
                Linear("single").fit(texts, np.array(labels))
        with self.assertRaisesRegex(ValueError, "a row of 1 texts, but others have 2"):
            Linear("single").fit([["a", "b"], ["c"]], np.array([0, 1]))
        with self.assertRaisesRegex(ValueError, "call fit first"):
            Linear("single").predict([["a"]])

    def test_trec(self):
        """Every tenth training row, with the other ones fitted; BASELINES of the same model family: 0.892."""
        path = pathlib.Path(os.environ.get("TFZOO_DATA", ""), "trec", "TREC.train")
        if "TFZOO_DATA" not in os.environ or not path.exists():
            self.skipTest("TFZOO_DATA names no folder with trec/TREC.train")
        rows = [line.split(" ", 1) for line in path.read_text(encoding="latin-1").splitlines()]
        texts = [[text] for _, text in rows]
        labels = np.unique([label.split(":")[0] for label, _ in rows], return_inverse=True)[1]
        held_out = np.arange(len(rows)) % 10 == 0
        model = Linear("single").fit([texts[i] for i in np.flatnonzero(~held_out)], labels[~held_out])
        predicted = model.predict([texts[i] for i in np.flatnonzero(held_out)])
        self.assertGreater((predicted == labels[held_out]).mean(), 0.885)


class TagLookupTest(unittest.TestCase):
    def test_entities(self):
        words = [text.split() for text in ("in New York", "The New York Times", "the times", "new york", "may in May")]
        tags = [
            text.split() for text in ("O B-LOC I-LOC", "B-ORG I-ORG I-ORG I-ORG", "O O", "B-LOC I-LOC", "O O B-DATE")
        ]
        model = TagLookup().fit(words, tags)
        found = model.predict([text.split() for text in ("New York in May", "in the New York Times", "York New", "")])
        # May is an entity in half of its occurrences only; the longest entity comes first, regardless of case.
        expected = ["B-LOC I-LOC O O", "O B-ORG I-ORG I-ORG I-ORG", "O O", ""]
        self.assertEqual([" ".join(each) for each in found], expected)

    def test_the_commonest_type_and_entities_without_types(self):
        model = TagLookup().fit([["Paris"], ["Paris"], ["Paris"]], [["B-PER"], ["B-LOC"], ["B-LOC"]])
        self.assertEqual(model.predict([["Paris", "Paris"]]), [["B-LOC", "B-LOC"]])
        model = TagLookup().fit([["a", "b", "c"]], [["B", "I", "O"]])
        self.assertEqual(model.predict([["c", "a", "b"]]), [["O", "B", "I"]])

    def test_plain_tags(self):
        words = ["the can rusts".split(), "you can run".split(), "can the can".split()]
        tags = ["DT NN VB".split(), "PR MD VB".split(), "MD DT MD".split()]
        model = TagLookup().fit(words, tags)
        # Words that occur once: rusts VB, you PR, run VB.
        self.assertEqual(model.predict(["The can flies".split(), ["YOU"]]), [["DT", "MD", "VB"], ["PR"]])

    def test_what_is_refused(self):
        with self.assertRaisesRegex(ValueError, "sentence 1 has 2 words, but 1 tags"):
            TagLookup().fit([["a"], ["b", "c"]], [["O"], ["O"]])
        with self.assertRaisesRegex(ValueError, "call fit first"):
            TagLookup().predict([["a"]])


if __name__ == "__main__":
    unittest.main()
