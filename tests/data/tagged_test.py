"""Tagged texts: schemes, CoNLL columns, spans. Without TensorFlow."""

import contextlib
import json
import os
import pathlib
import random
import unittest

from tests import helpers
from tfzoo.data.columns import Columns
from tfzoo.data.tagged import TaggedFile, TaggedRow, iob2, scheme_of, tags_of, words_of
from tfzoo.errors import UserError


def encoded(length: int, entities: list[tuple[int, int, str]], scheme: str) -> list[str]:
    """Returns the tags of a sentence in which words start...end - 1 are an entity, by the schemes' definitions."""
    tags = ["O"] * length
    for start, end, label in entities:
        for i in range(start, end):
            if scheme == "IOB1":
                # B only separates an entity from one of the same type directly before.
                touches = any(other_end == start and other == label for _, other_end, other in entities)
                letter = "B" if i == start and touches else "I"
            elif scheme == "IOB2":
                letter = "B" if i == start else "I"
            else:
                begin, inside, last, single = list({"BIOES": "BIES", "BILOU": "BILU", "BMEWO": "BMEW"}[scheme])
                letter = single if end - start == 1 else begin if i == start else last if i == end - 1 else inside
            tags[i] = f"{letter}-{label}"
    return tags


def random_entities(numbers: random.Random, length: int) -> list[tuple[int, int, str]]:
    entities, at = [], 0
    while (at := at + numbers.choice([0, 0, 1, 2])) < length:
        end = min(length, at + numbers.choice([1, 1, 2, 3]))
        entities.append((at, end, numbers.choice(["PER", "LOC-X"])))
        at = end
    return entities


class SchemesTest(unittest.TestCase):
    def test_every_scheme_is_detected_and_converted(self):
        numbers = random.Random(1)
        sentences = [(length, random_entities(numbers, length)) for length in numbers.choices(range(1, 12), k=200)]
        for scheme, name in (
            ("IOB1", "IOB1"),
            ("IOB2", "IOB2"),
            *((one, "BIOES") for one in ("BIOES", "BILOU", "BMEWO")),
        ):
            tags = [encoded(length, entities, scheme) for length, entities in sentences]
            self.assertEqual(scheme_of(tags), name)
            for (length, entities), one in zip(sentences, tags, strict=True):
                self.assertEqual(iob2(one, name), encoded(length, entities, "IOB2"), one)

    def test_examples(self):
        self.assertEqual(
            iob2("I-PER I-PER B-PER O I-LOC I-PER".split(), "IOB1"), "B-PER I-PER B-PER O B-LOC B-PER".split()
        )
        self.assertEqual(iob2("B-PER E-PER S-PER O".split(), "BIOES"), "B-PER I-PER B-PER O".split())
        self.assertEqual(iob2(["NOUN", "O"], "plain"), ["NOUN", "O"])
        self.assertEqual(iob2([], "IOB2"), [])

    def test_detection(self):
        for tags, scheme in (
            ("O O", "IOB2"),
            ("I-PER O", "IOB1"),
            ("B-PER I-PER O", "IOB2"),
            ("I-PER B-PER", "IOB1"),
            ("I-PER I-LOC", "IOB1"),
            ("I-PER B-LOC", "IOB2"),  # With an error.
            ("I-PER O B-LOC", "IOB2"),  # With an error.
            ("B-PER E-PER", "BIOES"),
            ("U-PER", "BIOES"),
            ("NOUN VERB", "plain"),
            ("B-PER NOUN", "plain"),
            ("B-", "plain"),
        ):
            self.assertEqual(scheme_of([tags.split()]), scheme, tags)

    def test_contradictions(self):
        for tags, scheme in (
            ("O I-PER", "IOB2"),
            ("I-PER", "IOB2"),
            ("B-PER I-LOC", "IOB2"),
            ("B-PER E-PER", "IOB2"),
            ("B-PER NOUN", "IOB2"),
            ("B-PER O", "BIOES"),
            ("B-PER", "BIOES"),
            ("B-PER S-PER", "BIOES"),
            ("I-PER E-PER", "BIOES"),
            ("O E-PER", "BIOES"),
            ("S-PER I-PER", "BIOES"),
            ("B-PER E-LOC", "BIOES"),
            ("B-PER", "IOB3"),
        ):
            with self.assertRaises(ValueError, msg=(tags, scheme)):
                iob2(tags.split(), scheme)


class WordsTest(unittest.TestCase):
    def check(self, text: str, expected: list[str], borders=()) -> None:
        self.assertEqual([text[start:end] for start, end in words_of(text, borders)], expected)

    def test_words(self):
        self.check(" It's 5 p.m.\n", ["It", "'", "s", "5", "p", ".", "m", "."])
        self.check("我爱Paris，真的", ["我", "爱", "Paris", "，", "真", "的"])
        self.check("naïve cafe\u0301 हिन्दी", ["naïve", "cafe\u0301", "हिन्दी"])  # Combining marks stay in their words.
        self.check("a\u3000b\u00a0c", ["a", "b", "c"])
        self.check("NewYork", ["New", "York"], [0, 3, 7])
        self.check("", [])


class Case(unittest.TestCase):
    def setUp(self):
        self.enterContext(contextlib.chdir(helpers.temporary_folder(self)))

    def open(self, content: str | bytes, name: str = "a.conll", **settings) -> TaggedFile:
        pathlib.Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return TaggedFile(name, **{"flag": "train_file"} | settings)

    def rows(self, *arguments, **settings) -> list[TaggedRow]:
        return list(self.open(*arguments, **settings).rows())

    def message(self, *arguments, **settings) -> str:
        with self.assertRaises(UserError) as raised:
            self.rows(*arguments, **settings)
        self.assertNotIn("\n", str(raised.exception))
        return str(raised.exception)


class ColumnsTest(Case):
    CONLL = (
        "-DOCSTART- -X- -X- O\r\n\r\nU.N. NNP I-NP I-ORG\r\nofficial NN I-NP O\r\n\r\n"
        "Ann NNP I-NP I-PER\r\nBob NNP B-NP B-PER\r\n. . O O\r\n"
    )

    def test_columns_separated_by_spaces(self):
        file = self.open(self.CONLL)
        expected = "a.conll: CoNLL columns separated by spaces; word = column 0, tag = column 3; tags in IOB1"
        self.assertEqual(file.describe(), expected)
        first, second = file.rows()
        self.assertEqual(first, TaggedRow("a.conll:3", "U.N. official", ((0, 4), (5, 13)), ("B-ORG", "O")))
        self.assertEqual((second.where, second.tags), ("a.conll:6", ("B-PER", "B-PER", "O")))
        self.assertEqual(tags_of(file), ["O", "B-ORG", "I-ORG", "B-PER", "I-PER"])
        self.assertEqual(file.counts, {"rows": 2})

    def test_parts_of_speech(self):
        file = self.open(self.CONLL, columns=Columns(label="1"))
        self.assertEqual((file.scheme, [row.tags for row in file.rows()][0]), ("plain", ("NNP", "NN")))
        self.assertEqual(tags_of(file), [".", "NN", "NNP"])

    def test_tabs_and_lines_of_white_space(self):
        content = '@ann\tB-person\n"\tO\nNew York\tB-location\n\t\na b\tO\n   \n\n'
        file = self.open(content)
        expected = "a.conll: CoNLL columns separated by tabs; word = column 0, tag = column 1; tags in IOB2"
        self.assertEqual(file.describe(), expected)
        first, second = file.rows()
        self.assertEqual((first.text, first.words), ('@ann " New York', ((0, 4), (5, 6), (7, 15))))
        self.assertEqual((second.where, second.text), ("a.conll:5", "a b"))

    def test_no_spaces_between_chinese_words(self):
        (row,) = self.rows("我 O\n爱 O\n北京 B-LOC\n， O\nAnn B-PER\n说 O\n好 O\n", "a.txt")
        self.assertEqual(row.text, "我爱北京， Ann 说好")
        self.assertEqual(
            [row.text[start:end] for start, end in row.words], ["我", "爱", "北京", "，", "Ann", "说", "好"]
        )

    def test_universal_dependencies(self):
        content = "# text = Im\n1-2\tIm\t_\t_\n1\tIn\tin\tADP\n2\tdem\tder\tDET\n\n# b\n1\t#\t#\tSYM\n1.1\tx\tx\tX\n"
        file = self.open(content, "a.conllu")
        self.assertEqual([(row.text, row.tags) for row in file.rows()], [("In dem", ("ADP", "DET")), ("#", ("SYM",))])

    def test_bad_sentences(self):
        good = "a\tO\nb\tB-PER\n\n"
        for bad, kind, message in (
            ("x\tO\ny\nz\tO\n\n", "too_few_columns", "a.conll:5: has 1 column instead of 2; correct the line"),
            ("x\tO\ny\tb\tO\n\n", "too_many_columns", "a.conll:5: has 3 columns instead of 2; correct the line"),
            ("x\tO\ny\t\n\n", "empty_column", "a.conll:5: the tag is empty"),
            (
                "x\tO\ny\tI-PER\n\n",
                "broken_tags",
                "a.conll:4: tag 'I-PER' after 'O': in IOB2, an entity begins with B-PER",
            ),
            (b"x\tO\ny\xe9\tO\n\n", "invalid_utf8", "a.conll:5: byte 0xe9 after 'y' is not UTF-8"),
        ):
            content = good.encode() + (bad if isinstance(bad, bytes) else bad.encode()) + good.encode()
            self.assertIn(message, self.message(content))
            file = self.open(content, policy="skip")
            self.assertEqual([row.text for row in file.rows()], ["a b", "a b"])
            self.assertEqual(file.counts, {"rows": 2, kind: 1})

    def test_entity_types_that_do_not_occur_in_training(self):
        file = self.open("a\tB-PER\nb\tI-PER\n\nc\tB-LOC\n")
        file.expect(["O", "B-PER"])
        rows = file.rows()
        self.assertEqual(next(rows).tags, ("B-PER", "I-PER"))
        with self.assertRaisesRegex(UserError, "^a.conll:4: label 'LOC' does not occur in training; correct it"):
            next(rows)

    def test_settings(self):
        self.assertIn("column 0 cannot be both the word and its tag", self.message("a\nb\n"))
        self.assertIn("--label_column=5: a.conll has 2 columns", self.message("a O\n", columns=Columns(label="5")))
        self.assertIn("--text_column=word: is not a number", self.message("a O\n", columns=Columns(text="word")))
        self.assertIn("--pair_column=1: tagging reads one text", self.message("a O\n", columns=Columns(pair="1")))
        self.assertIn("a.conll: is empty", self.message("\n"))


class SpansTest(Case):
    def lines(self, *records) -> str:
        return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)

    def test_forms_of_spans(self):
        text = "Dr. Ann Lee-May(😀) in 北京."
        spans = [(4, 11, "PER"), (12, 15, "PER"), (22, 24, "LOC")]
        expected = [
            ("Dr", "O"),
            (".", "O"),
            ("Ann", "B-PER"),
            ("Lee", "I-PER"),
            ("-", "O"),
            ("May", "B-PER"),
            ("(", "O"),
        ]
        expected += [("😀", "O"), (")", "O"), ("in", "O"), ("北", "B-LOC"), ("京", "I-LOC"), (".", "O")]
        as_objects = [{"start": start, "end": end, "label": label} for start, end, label in reversed(spans)]
        with_texts = [
            {"start": start, "end": end, "type": label, "text": text[start:end]} for start, end, label in spans
        ]
        for field, value in (("entities", as_objects), ("spans", with_texts), ("labels", spans), ("label", spans)):
            file = self.open(self.lines({"text": text, field: value}, {"text": "no", field: []}), "a.jsonl")
            self.assertEqual(file.describe(), f"a.jsonl: JSON lines; text = field text, spans = field {field}")
            row, other = file.rows()
            words = [text[start:end] for start, end in row.words]
            self.assertEqual(list(zip(words, row.tags, strict=True)), expected, field)
            self.assertEqual((row.where, row.text, other.tags, file.scheme), ("a.jsonl:1", text, ("O",), "IOB2"))

    def test_words_are_divided_at_the_borders_of_spans(self):
        row, *_ = self.rows(self.lines({"text": "unNewYorker a", "spans": [[2, 9, "LOC"], [9, 11, "X"]]}), "a.jsonl")
        self.assertEqual((row.words, row.tags), (((0, 2), (2, 9), (9, 11), (12, 13)), ("O", "B-LOC", "B-X", "O")))

    def test_bad_spans(self):
        good = {"text": "Ann slept", "spans": [[0, 3, "PER"]]}
        for text, spans, kind, message in (
            ("Ann", [[0, 4, "PER"]], "bad_span", "span [0, 4] is not within the text of 3 characters; correct it"),
            ("Ann", [[2, 2, "PER"]], "bad_span", "span [2, 2] is not within the text"),
            ("Ann", [[-1, 2, "PER"]], "bad_span", "span [-1, 2] is not within the text"),
            ("Ann", [[0, "3", "PER"]], "bad_span", "[0, '3', 'PER'] is not a span; write"),
            ("Ann", [[0, True, "PER"]], "bad_span", "[0, True, 'PER'] is not a span; write"),
            ("Ann", [{"start": 0, "end": 3}], "bad_span", "{'end': 3, 'start': 0} is not a span; write"),
            ("Ann", ["PER"], "bad_span", "'PER' is not a span; write"),
            ("Ann Lee", [[4, 7, "B"], [0, 5, "A"]], "overlapping_spans", "spans of 'A' and 'B' overlap; remove one"),
            ("a b", [[1, 2, "A"]], "span_without_words", "span [1, 2] contains only white space"),
            ("Ann", None, "no_spans", "field 'spans' is missing; write a list of spans, which can be empty"),
            (" ", [], "empty_text", "field 'text' is empty"),
            (
                "Ann",
                [{"start": 0, "end": 2, "label": "A", "text": "Ann"}],
                "span_text_differs",
                "span [0, 2] is 'An', but its text is 'Ann'; correct the offsets",
            ),
        ):
            content = self.lines(good, {"text": text, "spans": spans}, good)
            self.assertIn(f"a.jsonl:2: {message}", self.message(content, "a.jsonl"))
            file = self.open(content, "a.jsonl", policy="skip")
            self.assertEqual((len(list(file.rows())), file.counts), (2, {"rows": 2, kind: 1}))

    def test_fields(self):
        message = self.message(self.lines({"text": "a", "x": []}), "a.jsonl")
        self.assertIn(
            "the first object has no field 'entities' or 'spans' or 'labels' or 'label' (fields: text, x)", message
        )
        self.assertIn("specify it with --label_column", message)
        rows = self.rows(self.lines({"t": "a", "x": [[0, 1, "P"]]}), "a.jsonl", columns=Columns(text="t", label="x"))
        self.assertEqual(rows[0].tags, ("B-P",))


@unittest.skipIf("TFZOO_DATA" not in os.environ, "TFZOO_DATA names no folder with wnut17")
class PublicFilesTest(unittest.TestCase):
    def test_sentences_words_and_entities(self):
        # The numbers of Derczynski et al. 2017, table 2, but 836 entities in the file of 835 in the paper.
        for name, *expected in (
            ("wnut17train.conll", 3394, 62730, 1975),
            ("emerging.dev.conll", 1009, 15733, 836),
            ("emerging.test.annotated", 1287, 23394, 1079),
        ):
            file = TaggedFile(pathlib.Path(os.environ["TFZOO_DATA"], "wnut17", name), flag="train_file")
            rows = list(file.rows())
            tags = [tag for row in rows for tag in row.tags]
            self.assertEqual([len(rows), len(tags), sum(tag.startswith("B-") for tag in tags)], expected)
            self.assertEqual(len(tags_of(file)), 13)


if __name__ == "__main__":
    unittest.main()
