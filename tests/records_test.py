"""Input of generate, score and query: unknown keys and values of other types are named."""

import json
import unittest

from tests import helpers
from tfzoo import generate, records, score
from tfzoo.errors import UserError
from tfzoo.json_files import Field
from tfzoo.retrieval import measures


class RecordsTest(unittest.TestCase):
    def setUp(self):
        self.path = helpers.temporary_folder(self) / "input.jsonl"

    def refused(self, message, record, read):
        self.path.write_text(json.dumps(record) + "\n")
        with self.assertRaisesRegex(UserError, f"^{self.path}:1: {message}"):
            list(read(str(self.path)))

    def test_unknown_keys_and_wrong_types(self):
        fields = {"text": Field(str, required=True)}
        self.refused(
            "'texts' is not one of text .did you mean text..; remove it", {"text": "a", "texts": 1}, self.read(fields)
        )
        self.refused("text is 3, not a string; correct it", {"text": 3}, self.read(fields))
        self.refused("has no text, which must be a string; add it", {}, self.read(fields))
        self.path.write_text('{"text": "a", "other": 1}\n')
        self.assertEqual(list(records.read(self.path, "text")), [(f"{self.path}:1", {"text": "a", "other": 1})])

    def read(self, fields):
        return lambda path: records.read(path, "text", fields=fields)

    def test_options_of_a_prompt(self):
        for message, record in (
            (r"'temprature' is not one of prompt, .* \(did you mean temperature\?\); remove it", {"temprature": 1}),
            ("temperature is 'hot', not a number of at least 0", {"temperature": "hot"}),
            ("temperature is -1, not a number of at least 0", {"temperature": -1}),
            ("top_k is 1.5, not a whole number from 0 to 2,147,483,647", {"top_k": 1.5}),
            ("seed is 10+, not a whole number from", {"seed": 10**30}),
            ("max_new_tokens is true|max_new_tokens is True", {"max_new_tokens": True}),
            (r"prompt is \['a'\], not a string", {"prompt": ["a"]}),
        ):
            self.refused(message, {"prompt": "x"} | record, generate.read_input)
        self.path.write_text('{"prompt": "a", "seed": -3, "temperature": 0.5}\n')
        self.assertEqual(next(generate.read_input(str(self.path)))[1], {"prompt": "a", "seed": -3, "temperature": 0.5})

    def test_texts_and_queries(self):
        self.refused("'contxt' is not one of text, context, continuation", {"contxt": "a"}, score.read_input)
        self.refused("continuation is 1, not a string", {"context": "a", "continuation": 1}, score.read_input)
        self.refused(
            "'relevnt' is not one of query, relevant, answers", {"query": "a", "relevnt": []}, measures.read_relevant
        )
        self.refused("relevant is .1., not a list in which", {"query": "a", "relevant": [1]}, measures.read_relevant)


if __name__ == "__main__":
    unittest.main()
