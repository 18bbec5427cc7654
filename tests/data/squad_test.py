"""Questions about texts: SQuAD json as a stream, JSON lines, offsets that disagree, bad rows, counts."""

import gzip
import json
import os
import pathlib
import unittest
from unittest import mock

from tests import helpers
from tfzoo.data import squad
from tfzoo.data.squad import Answer, QuestionFile
from tfzoo.errors import UserError

CONTEXT = "Ada was born in 1815. In 1815, Ada slept 😀 well."


def question(id="1", text="When?", answers=(("1815", 16),), **more):
    return {"id": id, "question": text, "answers": [{"text": t, "answer_start": s} for t, s in answers]} | more


def document(*questions, context=CONTEXT):
    return {"data": [{"title": "Ada", "paragraphs": [{"context": context, "qas": list(questions)}]}]}


class QuestionFileTest(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)

    def file(self, content, name="train.json", **options):
        path = self.folder / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return QuestionFile(path, flag="train_file", **options)

    def error(self, content, **options):
        with self.assertRaises(UserError) as caught:
            list(self.file(content, **options).rows())
        return str(caught.exception)

    def test_rows(self):
        places = [("well", 43), ("1815", 16)]
        file = self.file(document(question(answers=places), question("2", answers=(), is_impossible=True)))
        first, second = file.rows()
        self.assertEqual((first.id, first.question, first.context), ("1", "When?", CONTEXT))
        self.assertEqual(first.where, f"{file.path}: question 1")
        # Offsets count code points, of which the emoji is one.
        self.assertEqual(first.answers, (Answer("well", 43), Answer("1815", 16)))
        self.assertEqual(second.answers, ())
        self.assertEqual(file.counts["unanswerable"], 1)
        self.assertEqual(
            file.describe(),
            f"{file.path}: SQuAD json, 2 questions, 1 of them without an answer; scored by the rules of SQuAD",
        )

    def test_offsets_that_disagree(self):
        """The nearest occurrence is used; an answer that does not occur is dropped, and the question kept."""
        cases = [("1815", 15, 16), ("1815", 22, 25), ("1815", 21, 25), ("1815", -1, 16), ("1815", 900, 25)]
        cases += [("1815", None, 16), ("1816", 16, None), ("Ada", 0, 0), ("a.b", 0, None)]
        rows = [question(str(i), answers=[(text, start)]) for i, (text, start, _) in enumerate(cases)]
        for row in rows:
            row["answers"] = [{name: v for name, v in each.items() if v is not None} for each in row["answers"]]
        file = self.file(document(*rows))
        self.assertEqual([row.answers[0].start for row in file.rows()], [place for _, _, place in cases])
        self.assertEqual((file.counts["relocated"], file.counts["dropped"]), (5, 2))
        self.assertIn(
            "7 answer offsets disagree with the text (5 relocated to the nearest occurrence, 2 dropped)",
            file.describe(),
        )

    def test_json_lines(self):
        lines = [
            question(id=1) | {"context": CONTEXT},
            {"question": "When?", "context": CONTEXT, "answers": {"text": ["1815"], "answer_start": [25]}},
            {"question": "Where?", "context": CONTEXT, "answers": {"text": [], "answer_start": []}},
            {"question": "When?", "context": CONTEXT, "answers": [{"text": "slept"}]},
        ]
        file = self.file("\n".join(map(json.dumps, lines)), "train.jsonl")
        rows = list(file.rows())
        self.assertEqual([row.id for row in rows], ["1", *(f"{file.path}:{i}" for i in (2, 3, 4))])
        found = [[answer.start for answer in row.answers] for row in rows]
        self.assertEqual(found, [[16], [25], [], [CONTEXT.index("slept")]])
        self.assertIn("JSON lines, 4 questions, 1 of them", file.describe())

    def test_the_rules_are_those_of_the_language(self):
        chinese = self.file(document(question(text="GPT出生于哪一年？")))
        self.assertEqual(chinese.rules, squad.CMRC)
        self.assertIn("by the rules of CMRC 2018", chinese.describe())
        self.assertEqual(self.file(document(question(text="When was 诸葛亮 born?"))).rules, squad.SQUAD)
        self.assertEqual(self.file(document(question(text="哪一年？")), rules="squad").rules, squad.SQUAD)

    def test_bad_rows(self):
        cases = {
            "missing_field": ({"id": "1", "question": "When?"}, "has no field 'answers'; add it"),
            "not_a_string": (question(text=5), "field 'question' is 5, not a string; write a string"),
            "empty_text": (question(text=" "), "field 'question' is empty; add a text or remove the question"),
            "not_a_list": (question() | {"answers": "1815"}, "'answers' is '1815'; write a list"),
            "not_an_object": (question() | {"answers": ["1815"]}, "'1815' is not a JSON object; correct it"),
            "not_a_number": (question(answers=[("1815", "16")]), "answer_start is '16', not a whole number"),
            "lone_surrogate": (question(text="\ud800"), "contains a lone surrogate"),
            "contradiction": (question(is_impossible=True), "is_impossible is True, but there are 1 answers; correct"),
        }
        for kind, (row, words) in cases.items():
            with self.subTest(kind):
                content = document(question("0"), row)
                message = self.error(content)
                self.assertIn(f"{self.folder / 'train.json'}: question 1: {words}", message)
                self.assertIn("or use --bad_rows=skip", message)
                file = self.file(content, policy="skip")
                self.assertEqual([row.id for row in file.rows()], ["0"])
                self.assertEqual(file.counts[kind], 1)
        file = self.file(document(question("0"), question("0", "Where?"), "text"), policy="skip")
        self.assertEqual(len(list(file.rows())), 1)
        self.assertEqual((file.counts["duplicate_id"], file.counts["not_an_object"]), (1, 1))
        self.assertIn("2 bad rows skipped", file.describe())
        self.assertEqual(len(list(file.rows())), 1)  # The ids of another pass are not duplicates.
        no_id = question()
        del no_id["id"]
        self.assertIn("article 1, paragraph 1, question 1: has no field 'id'; add it", self.error(document(no_id)))
        self.assertIn("article 1: has no field 'paragraphs'", self.error({"data": [{}]}))
        self.assertIn("paragraph 1: 'qas' is 5", self.error({"data": [{"paragraphs": [{"qas": 5}]}]}))
        self.assertIn("question 1: has no field 'context'", self.error(document(question(), context=None)))
        message = self.error('{"question": "a"}\n{"context": 5}', policy="skip", name="train.jsonl")
        self.assertIn("contains no row that can be used", message)

    def test_json_is_read_in_parts(self):
        """Whatever the size of the parts, the rows are the same, and only one article is in memory."""
        articles = [document(question(str(i), text=f"{'x' * i}?"))["data"][0] for i in range(40)]
        content = {"version": 1.25, "other": [1, {"data": "]}"}], "data": articles, "last": {"a": [True, None]}}
        for indent in (None, 1):
            path = self.folder / f"{indent}.json.gz"
            path.write_bytes(gzip.compress(json.dumps(content, indent=indent).encode("utf-8-sig")))
            for size in (1, 7, 1 << 20):
                with mock.patch.object(squad, "_CHUNK", size):
                    rows = list(QuestionFile(path, flag="train_file").rows())
                self.assertEqual([row.id for row in rows], [str(i) for i in range(40)])
        self.assertEqual(list(squad._items(open_text('{"data": []}'), "f")), [])

    def test_what_is_not_squad_json(self):
        for text, words in (
            ('{"data": [1, 2', "train.json, line 1: is not SQuAD json (its end instead of , or ])"),
            ('{"data":\n[{"a": }]}', "line 2: is not SQuAD json (Expecting value)"),
            ('{"data": [{"a": 1, "a": 2}]}', "line 1: is not SQuAD json (the key 'a' appears twice)"),
            ('{"data": [{"a": NaN}]}', "(NaN is not JSON)"),
            ('\n[{"a": 1}]', "line 2: is not SQuAD json ('[' instead of {)"),
            ('{"version": "1"}', 'has no field "data"; specify a file in the format of SQuAD'),
            ('{"data": {}}', "('{' instead of [)"),
            ('{"data": []} {', "(text follows the object)"),
            (f'{{"data": [{"[" * 100_000}', "(is nested too deeply)"),
        ):
            with self.subTest(words):
                self.assertIn(words, self.error(text, policy="skip"))
        with mock.patch.object(squad, "_CHUNK", 3):
            self.assertIn("line 3: is not SQuAD json (Expecting value", self.error('{"data":\n[\n{"a": }]}'))

    @unittest.skipUnless(os.environ.get("TFZOO_DATA"), "TFZOO_DATA is not set")
    def test_cmrc(self):
        folder = pathlib.Path(os.environ["TFZOO_DATA"], "cmrc2018")
        counts = []
        for part in ("dev", "trial"):
            file = QuestionFile(folder / f"cmrc2018_{part}.json", flag="train_file", policy="skip")
            counts.append([len(list(file.rows())), file.counts["relocated"], file.counts["dropped"]])
            self.assertEqual(file.rules, squad.CMRC)
        self.assertEqual(counts, [[3219, 7, 193], [1000, 5, 0]])


def open_text(text):
    import io

    return io.StringIO(text)


if __name__ == "__main__":
    unittest.main()
