"""Files of questions with answers to choose from, and of conversations and preferences."""

import json
import unittest

from tests import helpers
from tfzoo.data.choices import ChoiceFile
from tfzoo.data.columns import Columns
from tfzoo.data.messages import ConversationFile, PreferenceFile
from tfzoo.errors import UserError


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)

    def file(self, name, content, kind=ChoiceFile, **options):
        path = self.folder / name
        path.write_text(content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content))
        return kind(path, flag="train_file", **options)

    def rows(self, name, content, kind=ChoiceFile, **options):
        return list(self.file(name, content, kind, **options).rows())

    def check_refused(self, cases, kind):
        for row, pattern in cases:
            with self.subTest(pattern), self.assertRaisesRegex(UserError, pattern):
                self.rows("wrong.jsonl", [row], kind)


class ChoicesTest(Case):
    def test_swag(self):
        columns = "video-id,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3,label"
        content = f'{columns}\nv,"A, b. She",A. b.,She,gold,sits.,"falls, twice.",sings.,plays.,3\n'
        file = self.file("swag.csv", content)
        (row,) = file.rows()
        self.assertEqual(row.context, "A. b.")
        self.assertEqual(row.endings, ("She sits.", "She falls, twice.", "She sings.", "She plays."))
        self.assertEqual((row.label, row.where), (3, f"{file.path}:2"))
        self.assertIn("context = sent1, endings = sent2 + ending0, sent2 + ending1", file.describe())
        without = content.replace("sent1,sent2", "x,y")
        (row,) = self.rows("short.csv", without)
        self.assertEqual((row.context, row.endings[0]), ("A, b. She", "sits."))
        given = Columns(text="startphrase", pair="ending0,ending3", label="label")
        (row,) = self.rows("given.csv", content.replace(",3\n", ",1\n"), columns=given)
        self.assertEqual((row.context, row.endings, row.label), ("A, b. She", ("sits.", "plays."), 1))

    def test_json_lines_and_labels(self):
        rows = self.rows(
            "a.jsonl",
            [
                {"question": "Q?", "choices": ["a", "b"], "label": 1},
                {"question": "Q?", "choices": ["a", "b", "c"], "label": "c"},
                {"question": "Q?", "choices": ["x", "y"], "label": "B"},
                {"question": "Q?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "label": "2"},
            ],
        )
        self.assertEqual([row.label for row in rows], [1, 2, 1, 1])
        self.assertEqual([len(row.endings) for row in rows], [2, 3, 2, 2])
        (row,) = self.rows("b.jsonl", [{"passage": "P.", "question": "Q?", "options": ["a", "b"], "answer": "A"}])
        self.assertEqual((row.context, row.label), ("P. Q?", 0))
        (row,) = self.rows("c.jsonl", [{"premise": "P.", "choice1": "a", "choice2": "b", "choice3": None, "label": 1}])
        self.assertEqual(row.endings, ("a", "b"))

    def test_refused(self):
        question = {"question": "Q?", "choices": ["a", "b"], "label": 0}
        self.check_refused(
            [
                (
                    question | {"label": 2},
                    "wrong.jsonl:1: label 2 is none of its 2 endings; write a number from 0 to 1",
                ),
                (question | {"label": -1}, "label -1 is none of its 2 endings"),
                (question | {"choices": ["a"]}, "has 1 endings to choose from"),
                (question | {"choices": ["a", 3]}, "ending 1 is 3, not a text"),
                ({"question": "Q?", "label": 0}, "no column is the list of endings.*specify it with --pair_column"),
                ({"x": "Q?", "choices": ["a", "b"], "label": 0}, "no column is the context"),
            ],
            ChoiceFile,
        )
        rows = self.file("skip.csv", "question,ending0,ending1,label\nq,a,b,0\nq,a,1\nq,a,b,x\n", policy="skip")
        self.assertEqual(len(list(rows.rows())), 1)
        self.assertEqual((rows.counts["other_columns"], rows.counts["unknown_label"]), (1, 1))


class MessagesTest(Case):
    def test_conversations(self):
        user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
        rows = self.rows(
            "a.jsonl",
            [
                {
                    "messages": [answer, user, answer | {"weight": 0}, user, answer | {"name": None}],
                    "tools": [{"x": 1}],
                },
                {"prompt": "a", "completion": "b"},
                {"prompt": [user, answer, user], "completion": [answer]},
            ],
            ConversationFile,
        )
        self.assertEqual([row.learned for row in rows], [(4,), (1,), (1, 3)])
        self.assertEqual(rows[0].messages, (answer, user, answer, user, answer))
        self.assertEqual((rows[0].tools, rows[1].tools), (({"x": 1},), None))
        self.assertEqual(rows[1].messages, (user, answer))
        self.assertEqual(rows[1].texts, ("a", "b"))
        call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
        (row,) = self.rows("b.jsonl", [{"messages": [user, call]}], ConversationFile)
        self.assertNotIn("content", row.messages[1])

    def test_preferences(self):
        user, answer, other = (
            {"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("assistant", "c"))
        )
        wanted = ((user,), answer, other)
        for record in (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            {"prompt": [user], "chosen": [answer], "rejected": [other]},
            {"chosen": [user, answer], "rejected": [user, other]},
            {"prompt": "a", "chosen": [user, answer], "rejected": [user, other]},
        ):
            (row,) = self.rows("a.jsonl", [record], PreferenceFile)
            self.assertEqual((row.prompt, row.chosen, row.rejected), wanted, record)
        self.check_refused(
            [
                ({"prompt": "a", "chosen": "b"}, "has no field 'rejected'"),
                ({"prompt": "a", "chosen": "b", "rejected": "b"}, "are equal; remove the row"),
                ({"chosen": "b", "rejected": "c"}, "has no message before the answers"),
                (
                    {"prompt": "a", "chosen": [user], "rejected": "c"},
                    "the last message of 'chosen' has the role .?user",
                ),
                ({"chosen": [user, answer], "rejected": [answer, other]}, "are answers to different messages"),
                ({"prompt": "a", "chosen": 1, "rejected": "c"}, "field 'chosen' is 1, not a list of messages"),
            ],
            PreferenceFile,
        )


if __name__ == "__main__":
    unittest.main()
