"""Conversations as pairs of a context and an answer."""

import json
import unittest

from tests import helpers
from tfzoo.data.responses import ResponseFile
from tfzoo.errors import UserError


def messages(*texts, system=None):
    """Returns messages of a user and an assistant in turn."""
    listed = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *listed]}


class ResponsesTest(unittest.TestCase):
    def rows(self, *records, count=3, policy="strict"):
        path = helpers.temporary_folder(self) / "chats.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        self.file = ResponseFile(path, flag="train_file", policy=policy, context_messages=count)
        return list(self.file.rows())

    def test_an_answer_is_a_row_with_the_newest_message_first(self):
        rows = self.rows(messages("Hi", "Hello", "Any news?", "None.", "Oh", "Bye", system="Be brief."))
        self.assertEqual(
            [row.texts for row in rows],
            [("Hi", "Hello"), ("Any news?\nHello\nHi", "None."), ("Oh\nNone.\nAny news?", "Bye")],
        )
        self.assertEqual({row.where.rpartition("/")[2] for row in rows}, {"chats.jsonl:1"})
        self.assertEqual(len({row.conversation for row in rows}), 1)
        self.assertRegex(self.file.describe(), "a row is an answer and up to 3 messages before it$")
        self.assertEqual(self.file.counts, {"rows": 1})

    def test_what_is_left_out(self):
        unlearned, greeting = messages("a", "b", "c", "d"), messages("", "x")
        unlearned["messages"][1]["weight"] = 0
        greeting["messages"][0] = {"role": "system", "content": "Greet."}
        call = {"role": "assistant", "tool_calls": [{"type": "function"}]}
        with_tool = {"messages": [{"role": "user", "content": "u"}, call, {"role": "tool", "content": "42"}]}
        with_tool["messages"].append({"role": "assistant", "content": "It is 42."})
        rows = self.rows(unlearned, greeting, with_tool, {"prompt": "p", "completion": "q"})
        self.assertEqual([row.texts for row in rows], [("c\nb\na", "d"), ("42\nu", "It is 42."), ("p", "q")])

    def test_bad_rows(self):
        with self.assertRaisesRegex(UserError, "chats.jsonl:2: contains no answer to learn; .*--bad_rows=skip"):
            self.rows(messages("a", "b"), messages("a"))
        rows = self.rows(messages("a", "b"), messages("a"), policy="skip")
        self.assertEqual((len(rows), self.file.counts["no_answer"]), (1, 1))
        call = [{"role": "user", "content": "u"}, {"role": "assistant", "tool_calls": [{"type": "function"}]}]
        with self.assertRaisesRegex(UserError, "^--train_file=.*: contains no answer with a text"):
            self.rows({"messages": call})


if __name__ == "__main__":
    unittest.main()
