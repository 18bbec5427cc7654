"""The JSON reader: what it accepts, what it rejects, and its messages. Does not need TensorFlow."""

import json
import os
import unittest

from tests.helpers import temporary_folder
from tfzoo import json_files
from tfzoo.errors import UserError
from tfzoo.json_files import BadJSON, Field


class Case(unittest.TestCase):
    def setUp(self):
        self.path = temporary_folder(self) / "some.json"

    def refused(self, message: str, data: bytes | None = None, **options):
        if data is not None:
            self.path.write_bytes(data)
        with self.assertRaises(UserError) as caught:
            json_files.read(self.path, **options)
        self.assertEqual(str(caught.exception), f"{self.path}{message}")


class ReadTest(Case):
    def test_what_is_json_is_read_as_python_reads_it(self):
        values = {
            "numbers": [0, -1, 1.5, 1e308, 2**70, 1e-999],
            "texts": ["", "\u00e4\U0001f600", 'a "quote" \\ {[:,', "NaN", "1e999"],
            "rest": [None, True, False, {}, []],
            "NaN": {"Infinity": {"numbers": 1}},
        }
        for text in (json.dumps(values), json.dumps(values, indent=2, ensure_ascii=True)):
            for data in (text.encode(), b"\xef\xbb\xbf" + text.encode()):
                self.path.write_bytes(data)
                self.assertEqual(json_files.read(self.path), values)
        self.path.write_text('["x"]')
        self.assertEqual(json_files.read(self.path, kind=list), ["x"])
        self.path.write_text("null")
        self.assertIsNone(json_files.read(self.path, kind=object))

    def test_nesting_up_to_the_limit(self):
        most = json_files.MAX_DEPTH
        for begin, middle, end in (("[", "", "]"), ('{"a":', "1", "}"), ('[{"a":', "[]", "}]")):
            count = most // (begin.count("[") + begin.count("{")) - middle.count("[")
            json_files.parse(begin * count + middle + end * count)
            for depth in (count + 1, 100_000):
                with self.assertRaisesRegex(BadJSON, f"is nested too deeply .more than {most} levels"):
                    json_files.parse(begin * depth + middle + end * depth)
        json_files.parse(json.dumps({"a": "[" * 1000, "b": [[]] * 1000}))

    def test_what_is_refused(self):
        again = "; correct it, or download the file again"
        self.refused(": no such file or directory; check the path")
        for data, message in (
            (b"", f": is empty{again}"),
            (b" \n", f": is empty{again}"),
            (b'{\n"a": 0,,}', f", line 2: is not JSON (Expecting property name enclosed in double quotes){again}"),
            (b'{"a": 1} {"b": 2}', f", line 1: is not JSON (Extra data){again}"),
            (b"[1]", f": contains a list, not an object{again}"),
            (b"true", f": contains true or false, not an object{again}"),
            (b"null", f": contains null, not an object{again}"),
            (b'{"a": 1,\n "a": 1}', ", line 2: the key 'a' appears twice; remove one"),
            # Duplicate within one object; the other objects contain the key once, one of them with an escape sequence.
            (
                b'{"x": "a", "b": [{"a": 1}, {"a": 2,\n"c": {"a": 3, "x": "\\"a\\": 1"},\n"\\u0061": 4}], "a": 5}',
                ", line 3: the key 'a' appears twice; remove one",
            ),
            (b'{"NaN": 1,\n"b": "NaN",\n"c": NaN}', ", line 3: NaN is not JSON; write null or a finite number"),
            (b'{"a": [-Infinity]}', ", line 1: -Infinity is not JSON; write null or a finite number"),
            (b'{"a": "1e999",\n"b": 1e999}', f", line 2: the number 1e999 is too large{again}"),
            (b'{"a": -' + b"9" * 400 + b".0}", f", line 1: the number -{'9' * 39} is too large{again}"),
            (b'{"a":\n"\xff\xfe"}', ", line 2: is not UTF-8 (b'\\xff\\xfe\"}'); save it as UTF-8"),
            ("{}".encode("utf-16"), ", line 1: is not UTF-8 (b'\\xff\\xfe{\\x00}\\x00'); save it as UTF-8"),
            (
                b"version https://git-lfs.github.com/spec/v1\n",
                ": is a Git LFS pointer, not the file; fetch it with git lfs pull",
            ),
        ):
            with self.subTest(data[:40]):
                self.refused(message, data)
        self.refused(
            ": contains a lone surrogate, which is half of a character; correct it, or download the file again",
            b'{"\\uDC00": 1}',
        )
        self.refused(": has 10 bytes, more than the limit of 9; make it smaller", b'{"a": 123}', max_bytes=9)
        with self.assertRaisesRegex(BadJSON, "is not valid JSON .*digits"):
            json_files.parse("1" * 5000)
        with self.assertRaisesRegex(BadJSON, "has 14 brackets, commas and colons, more than the limit of 13"):
            json_files.parse('{"a":[1,2,3,4,5,6,{"b":1}],"c":{}}', max_parts=13)

    def test_what_is_not_a_file(self):
        os.mkfifo(self.path)
        self.refused(": cannot be read (not a regular file); check the path")
        self.path = self.path.with_name("x" * 300)
        self.refused(": cannot be read (file name too long); check the path")

    def test_lines_of_values(self):
        self.path.write_text('{\n"\\u00e4": 1,\n"b": "\u00e4"}', encoding="utf-8")
        self.assertEqual([json_files.line_of(self.path, value) for value in ("\u00e4", "b", "none")], [2, 3, 1])


class CheckTest(Case):
    def test_types_bounds_and_choices(self):
        for field, good, bad, words in (
            (Field(bool), [True, False, None], [0, 1, "true"], "true or false"),
            (Field(int), [0, -3, 2**70], [True, 1.0, "1"], "a whole number"),
            (Field(int, low=1), [1, 10**9], [0, -1], "a whole number of at least 1"),
            (Field(int, low=1, high=2048), [1, 2048], [0, 2049], "a whole number from 1 to 2,048"),
            (Field(float, low=0, high=1), [0, 1, 0.5], [-0.1, 1.5, True, "0"], "a number from 0 to 1"),
            (Field(float, high=1), [-5], [2], "a number of at most 1"),
            (Field(str), ["", "a"], [1, [], {}], "a string"),
            (Field(str, choices=("mean", "first")), ["mean"], ["last", 1], "one of mean, first"),
            (Field(list), [[], [1]], [{}, "a"], "a list"),
            (Field(list, items=Field(str)), [[], ["a"]], [[1], [None]], "a list in which each item is a string"),
            (
                Field(dict, items=Field(int)),
                [{}, {"a": 1}],
                [{"a": "1"}, []],
                "an object in which each value is a whole number",
            ),
            (Field(str, null=False), ["a"], [None], "a string"),
        ):
            for value in good:
                json_files.check({"x": value}, {"x": field}, "FILE")
            json_files.check({}, {"x": field}, "FILE")
            for value in bad:
                with self.assertRaises(UserError) as caught:
                    json_files.check({"y": 0, "x": value}, {"x": field}, "FILE")
                self.assertEqual(str(caught.exception), f"FILE: x is {value!r}, not {words}; correct it")

    def test_several_kinds_and_what_must_be_there(self):
        fields = {"id": (Field(int), Field(list, items=Field(int))), "name": Field(str, required=True)}
        for value in (1, [1, 2], None):
            json_files.check({"id": value, "name": "a"}, fields, "FILE")
        with self.assertRaisesRegex(UserError, "id is 'x', not a whole number or a list in which each item is a whole"):
            json_files.check({"id": "x", "name": "a"}, fields, "FILE")
        for record in ({}, {"name": None}):
            with self.assertRaisesRegex(UserError, "^FILE: has no name, which must be a string; add it$"):
                json_files.check(record, fields, "FILE")

    def test_a_value_of_any_length_is_shown_short_and_on_one_line(self):
        with self.assertRaises(UserError) as caught:
            json_files.check({"x": "a\n" * 10_000}, {"x": Field(int)}, "FILE")
        self.assertLess(len(str(caught.exception)), 250)
        self.assertNotIn("\n", str(caught.exception))


if __name__ == "__main__":
    unittest.main()
