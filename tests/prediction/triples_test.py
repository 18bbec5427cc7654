"""Entities and the relations between them, from two models."""

import json
import re
import unittest
from unittest import mock

import tfzoo
from tests import helpers
from tests.export import small
from tfzoo import predict
from tfzoo.errors import UserError
from tfzoo.prediction import answers, folders
from tfzoo.prediction.models import ModelPredictor
from tfzoo.prediction.predictor import Predictor
from tfzoo.prediction.triples import PairOptions, Triples, TripleStream
from tfzoo.text.wordpiece import WordPiece

LABELS = ("Other", "Part(e1,e2)", "Part(e2,e1)")


class Capitals(Predictor):
    """Finds every word that begins with a capital letter, in texts of at most 12 words."""

    task, inputs, length = "tag", ("text",), 12

    def fingerprint(self):
        return "capitals"

    def answer(self, texts, device=0):
        found = []
        for (text,) in texts:
            words = [(match[0], *match.span()) for match in re.finditer(r"[A-Z]\w*", text)]
            record = {"entities": [answers.part(*word, 1.0, type="NAME") for word in words]}
            found.append(record | ({"truncated": True} if len(text.split()) > self.length else {}))
        return found


class Words(Predictor):
    """A relation model that knows the words "has" and "of" between two entities, and reads `length` words."""

    task, inputs = "relation", ("text",)

    def __init__(self, labels=LABELS, length=100, refuses=False):
        self.labels, self.length, self.refuses, self.read = labels, length, refuses, []

    def fingerprint(self):
        return "words"

    def answer(self, texts, device=0):
        found = []
        for (text,) in texts:
            self.read.append(text)
            match = re.fullmatch(r"(?s).*<e([12])>(.*)</e\1>(.*)<e([12])>(.*)</e\4>.*", text)
            assert match and len(re.findall("</?e[12]>", text)) == 4, text
            earlier_is_first, word = match[1] == "1", match[3].strip()
            if len(self.labels) == 2:  # Without directions: the first entity must be what has.
                held = (word == "has" and earlier_is_first) or (word == "of" and not earlier_is_first)
                label = self.labels[held]
            else:
                first_has = (word == "has") == earlier_is_first
                label = self.labels[0] if word not in ("has", "of") else self.labels[1 if first_has else 2]
            record = answers.classified(self.labels, [0.75 if each == label else 0.1 for each in self.labels])
            if len(text.split()) > self.length:
                record["truncated"] = True
                if self.refuses:
                    record = {"truncated": True, "error": "the text is longer"}
            found.append(record)
        return found


def triples(texts, relation=None, **options):
    predictor = Triples([Capitals(), relation or Words()], ["a", "b"], PairOptions(**options))
    with TripleStream(predictor, batch_size=4, block_rows=3) as stream:
        return stream.answer([(text,) for text in texts])


def shown(record):
    return [(each["head"]["text"], each["relation"], each["tail"]["text"]) for each in record["triples"]]


class TripleTest(unittest.TestCase):
    def test_directions_give_head_and_tail(self):
        text = "Car has Wheel and Leaf of Tree"
        (found,) = triples([text])
        self.assertEqual(shown(found), [("Car", "Part", "Wheel"), ("Tree", "Part", "Leaf")])
        head = {"type": "NAME", "text": "Tree", "start": 26, "end": 30}
        tail = {"type": "NAME", "text": "Leaf", "start": 18, "end": 22}
        self.assertEqual(found["triples"][1], {"head": head, "relation": "Part", "tail": tail, "score": 0.75})
        self.assertEqual([each["text"] for each in found["entities"]], ["Car", "Wheel", "Leaf", "Tree"])
        self.assertNotIn("omitted_pairs", found)

    def test_labels_without_directions_are_asked_in_both_orders(self):
        relation = Words(("no_relation", "part"))
        (found,) = triples(["Car has Wheel and Leaf of Tree"], relation)
        self.assertEqual(shown(found), [("Car", "part", "Wheel"), ("Tree", "part", "Leaf")])
        self.assertEqual(len(relation.read), 1 + 2 * 6)
        relation = Words()
        (found,) = triples(["Car has Wheel"], relation, ordered_pairs=True)
        self.assertEqual(relation.read[1:], ["<e1>Car</e1> has <e2>Wheel</e2>", "<e2>Car</e2> has <e1>Wheel</e1>"])
        self.assertEqual(shown(found), [("Car", "Part", "Wheel")])

    def test_pairs_without_a_relation(self):
        texts = ["Car and Wheel", "no names", "", "Car has Wheel"]
        self.assertEqual([shown(each) for each in triples(texts)], [[], [], [], [("Car", "Part", "Wheel")]])
        kept = triples(texts, keep_no_relation=True)
        self.assertEqual(shown(kept[0]), [("Car", "Other", "Wheel")])

    def test_a_limit_keeps_the_closest_pairs(self):
        relation = Words()
        (found,) = triples(["A has B has C with D"], relation, max_pairs=2)
        self.assertEqual(found["omitted_pairs"], 4)
        self.assertEqual(
            relation.read[1:], ["<e1>A</e1> has <e2>B</e2> has C with D", "A has <e1>B</e1> has <e2>C</e2> with D"]
        )

    def test_pairs_that_the_relation_model_cannot_read_are_omitted(self):
        for refuses in (False, True):
            for labels in (LABELS, ("none", "part")):
                relation = Words(labels, length=4, refuses=refuses)
                (found,) = triples(["x x x Car has Wheel and a lot of other words Leaf"], relation)
                self.assertEqual(shown(found), [("Car", labels[1].partition("(")[0], "Wheel")])
                self.assertEqual(found["omitted_pairs"], 2)

    def test_markers_in_a_text_are_not_markers(self):
        (found,) = triples(["<e1> Car has Wheel</e1>"])
        self.assertEqual(shown(found), [("Car", "Part", "Wheel")])

    def test_long_texts_are_read_whole(self):
        text = "one two three four five six. " * 20 + "Car has Wheel " + "and so on. " * 30
        (found,) = triples([text], Words(length=2000))
        (triple,) = found["triples"]
        self.assertEqual(text[triple["head"]["start"] : triple["head"]["end"]], "Car")
        self.assertEqual(text[triple["tail"]["start"] : triple["tail"]["end"]], "Wheel")

    def test_what_is_refused(self):
        with self.assertRaisesRegex(UserError, "^--model_dir=a,b: the tasks of these models are tag, tag; specify one"):
            Triples([Capitals(), Capitals()], ["a", "b"], PairOptions())
        without = Capitals()
        without.has_offsets = False
        with self.assertRaisesRegex(UserError, "^--model_dir=a: its tokenizer cannot locate entities"):
            Triples([without, Words()], ["a", "b"], PairOptions())
        with self.assertRaisesRegex(UserError, "^--model_dir=a,b,c: names 3 folders"):
            tfzoo.pipeline(["a", "b", "c"])
        with self.assertRaisesRegex(UserError, "^--checkpoint=x: does not apply to two models"):
            tfzoo.pipeline(["a", "b"], checkpoint="x")


class ModelsTest(unittest.TestCase):
    """Two small models with random weights."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        tokenizer = WordPiece([*small.VOCAB, "$", "#"])
        tag = small.model("bert", heads=("tag",), num_labels=3, vocab_size=tokenizer.vocab_size)
        tag.labels = ("O", "B-PER", "B-LOC")
        relation = small.model("bert", heads=("relation",), vocab_size=tokenizer.vocab_size)
        relation.labels, relation.markers = LABELS, ("$", "#")
        cls.predictors = {
            "tag": ModelPredictor(lambda: (tag, tokenizer)),
            "relation": ModelPredictor(lambda: (relation, tokenizer)),
        }

    def setUp(self):
        self.enterContext(mock.patch.object(folders, "open_folder", lambda name, **_: self.predictors[name]))

    def test_the_pipeline_and_the_program(self):
        texts = ["the x of a function", "a b c", "x"]
        found = tfzoo.pipeline(["relation", "tag"], keep_no_relation=True)(texts)
        entities = self.predictors["tag"].answer([(text,) for text in texts])
        self.assertGreater(sum(len(each["triples"]) for each in found), 1)
        for text, record, alone in zip(texts, found, entities):
            self.assertEqual(record["entities"], alone["entities"])
            count = len(record["entities"])
            self.assertEqual(len(record["triples"]), count * (count - 1) // 2)
            for triple in record["triples"]:
                first, second = sorted((triple["head"], triple["tail"]), key=lambda each: each["start"])
                marked = (
                    f"{text[: first['start']]}<e1>{first['text']}</e1>{text[first['end'] : second['start']]}"
                    f"<e2>{second['text']}</e2>{text[second['end'] :]}"
                )
                (answer,) = self.predictors["relation"].answer([(marked,)])
                turned = triple["head"]["start"] > triple["tail"]["start"]
                direction = "" if triple["relation"] == "Other" else "(e2,e1)" if turned else "(e1,e2)"
                self.assertEqual(answer["label"], triple["relation"] + direction)
                self.assertAlmostEqual(answer["score"], triple["score"], places=4)
        folder = helpers.temporary_folder(self)
        (folder / "in.txt").write_text("".join(f"{text}\n" for text in texts))
        argv = [f"--input={folder / 'in.txt'}", f"--output={folder / 'out.jsonl'}", "--keep_no_relation"]
        code, _, err = helpers.run(predict, "--model_dir=tag,relation", *argv)
        self.assertEqual(code, 0, err)
        lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
        self.assertEqual([line["text"] for line in lines], texts)
        self.assertEqual(
            [[*map(str, line["triples"])] for line in lines], [[*map(str, each["triples"])] for each in found]
        )


if __name__ == "__main__":
    unittest.main()
