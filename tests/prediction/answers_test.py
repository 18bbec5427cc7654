"""Records of answers."""

import unittest

import numpy as np

from tfzoo.prediction import answers
from tfzoo.text import marked


class AnswersTest(unittest.TestCase):
    def test_records_by_hand(self):
        labels = np.array([[b"no", b"ja"]] * 2)
        scores = np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)
        outputs = {"label": np.array([b"ja", b"no"]), "labels": labels, "scores": scores}
        self.assertEqual(
            answers.records(outputs | {"truncated": np.array([False, True])}),
            [
                {"label": "ja", "score": 0.75, "scores": {"no": 0.25, "ja": 0.75}},
                {"label": "no", "score": 0.5, "scores": {"no": 0.5, "ja": 0.5}, "truncated": True},
            ],
        )
        self.assertEqual(
            answers.records(outputs, several=True)[0], {"labels": ["ja"], "scores": {"no": 0.25, "ja": 0.75}}
        )
        self.assertEqual(answers.records({"value": np.array([1 / 3], np.float32)}), [{"value": 0.333333}])
        several = {"labels": np.array([["x", "y"]]), "values": np.array([[1.5, -2]], np.float32)}
        self.assertEqual(answers.records(several), [{"values": {"x": 1.5, "y": -2.0}}])
        written = {"generated_text": np.array([b"a b"]), "num_tokens": np.array([3])}
        self.assertEqual(answers.records(written), [{"generated_text": "a b"}])
        self.assertEqual(answers.records({"embeddings": np.ones((1, 2), np.float32)}), [{"embedding": [1.0, 1.0]}])

    def test_entities_and_words_without_the_padding(self):
        outputs = {
            "types": np.array([["PER", "LOC"], ["LOC", ""]]),
            "texts": np.array([["Ada", "Köln".encode()], ["Rom", ""]], object),
            "scores": np.array([[0.5, 0.25], [1, 0]], np.float32),
            "starts": np.array([[0, 7], [2, 0]]),
            "ends": np.array([[3, 11], [5, 0]]),
            "num_entities": np.array([2, 1]),
        }
        first, second = answers.records(outputs)
        self.assertEqual(first["entities"][1], {"type": "LOC", "text": "Köln", "start": 7, "end": 11, "score": 0.25})
        self.assertEqual(len(second["entities"]), 1)
        without = {name: value for name, value in outputs.items() if name not in ("starts", "ends")}
        self.assertEqual(answers.records(without)[1], {"entities": [{"type": "LOC", "text": "Rom", "score": 1.0}]})
        masks = {
            "words": np.array([[["a", "b"], ["", ""]]]),
            "probabilities": np.array([[[0.5, 0.25], [0, 0]]]),
            "num_masks": np.array([1]),
        }
        found = [{"words": [[{"word": "a", "score": 0.5}, {"word": "b", "score": 0.25}]]}]
        self.assertEqual(answers.records(masks), found)

    def test_spans(self):
        outputs = {
            "answers": np.array([["1815", ""]]),
            "starts": np.array([[8, 0]]),
            "ends": np.array([[12, 0]]),
            "scores": np.array([[0.5, 0.0]]),
            "no_answer": np.array([0.25]),
        }
        part = {"start": 8, "end": 12, "score": 0.5}
        expected = {"answer": "1815", **part, "no_answer": 0.25, "answers": [{"text": "1815", **part}]}
        self.assertEqual(answers.records(outputs), [expected])

    def test_a_refused_row_has_only_the_reason(self):
        errors = ["", answers.too_long(9), marked.UNMARKED]
        outputs = {"value": np.zeros(3), "error": np.array([error.encode() for error in errors])}
        wanted = [
            {"value": 0.0},
            {"truncated": True, "error": "the text is longer than 9 tokens"},
            {"error": errors[2]},
        ]
        self.assertEqual(answers.records(outputs | {"truncated": np.zeros(3, bool)}), wanted)

    def test_averages(self):
        one, other = answers.classified(["a", "b"], [0.8, 0.2]), answers.classified(["a", "b"], [0.1, 0.9])
        self.assertEqual(
            answers.averaged([one, other]), {"label": "b", "score": 0.55, "scores": {"a": 0.45, "b": 0.55}}
        )
        self.assertEqual(answers.averaged([{"value": 1.0}, {"value": 2.0}]), {"value": 1.5})
        several = [{"labels": ["a"], "scores": {"a": 0.9, "b": 0.1}}, {"labels": [], "scores": {"a": 0.2, "b": 0.2}}]
        self.assertEqual(answers.averaged(several), {"labels": ["a"], "scores": {"a": 0.55, "b": 0.15}})


if __name__ == "__main__":
    unittest.main()
