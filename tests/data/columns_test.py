"""Which columns of a table are read, and whether it has a header. Without TensorFlow."""

import unittest

from tfzoo.data.columns import Chooser, Wanted, has_header
from tfzoo.errors import UserError

SENTENCES = ["a fine day for it", "they were late again today", "no", "what a long and dull film this is", "so good"]


def chosen(rows, names=None, *, kind="single", needs_pair=None, text=None, pair=None, label=None):
    header = names is not None
    names = names or [str(i) for i in range(len(rows[0]))]
    wanted = Wanted(text, pair, label, kind, needs_pair)
    choice = Chooser("--train_file=a.csv", names, rows, wanted, header).choose()
    return choice.texts, choice.label


def table(*columns):
    """Returns rows of these columns, each repeated to 20 values."""
    return [list(row) for row in zip(*[(list(column) * 20)[:20] for column in columns], strict=True)]


def different(texts):
    return [f"{text} {'x' * (i + 1)}" for i, text in enumerate(list(texts) * 4)]


class HeaderTest(unittest.TestCase):
    def test_headers(self):
        others = [["a fine day", "1"], ["they were late again", "0"], ["so it goes", "1"]]
        for first in (
            ["text", "label"],
            ["Text", "Category"],
            ["v1", "v2"],
            ["Review Text", "Star Rating"],
            ["", "label"],
        ):
            self.assertTrue(has_header([first, *others], ()), first)
        for first in (["so good", "1"], ["so good", "0"], ["so good.", "good"], ["", ""], ["1", "2"], ["a, b", "c"]):
            self.assertFalse(has_header([first, *others], ()), first)

    def test_without_numbers_a_header_is_short(self):
        others = [["hello there my friend", "greet"], ["good bye to you all", "leave"], ["see you on monday", "leave"]]
        self.assertTrue(has_header([["was", "wozu"], *others], ()))
        self.assertFalse(has_header([["until next week", "close"], *others], ()))
        self.assertFalse(has_header([["hi", "greet"], *others], ()))  # A label that recurs.
        self.assertFalse(has_header([["hi", "query"], *others, ["what is it", "query"]], ()))

    def test_what_the_user_specifies_decides(self):
        others = [["a fine day", "1"], ["they were late again", "0"]]
        self.assertTrue(has_header([["a b c.", "2"], *others], ("a b c.", None, None)))
        self.assertFalse(has_header([["was", "wozu"], *others], ("0", None, "1")))
        self.assertTrue(has_header([["text", "label"], *others], ("0", None, "1")))
        self.assertTrue(has_header([["0", "1"], ["x", "y"]], ("0", None, "1")))

    def test_one_column_needs_a_common_name(self):
        self.assertTrue(has_header([["text"], ["one two"], ["three four five"]], ()))
        self.assertFalse(has_header([["hi"], ["one two three"], ["three four five"]], ()))


class ColumnsTest(unittest.TestCase):
    def test_by_name(self):
        rows = table(different(SENTENCES), ["x", "y"], different(SENTENCES), ["1", "2"])
        for names, kind, texts, label in (
            (["text", "category", "notes", "n"], "single", (0,), 1),
            (["premise", "label", "hypothesis", "n"], "single", (0, 2), 1),
            (["#1 String", "Quality", "#2 String", "n"], "single", (0, 2), 1),
            (["Question1", "is_duplicate", "question2", "id"], "single", (0, 2), 1),
            (["sentence1", "genre", "sentence2", "score"], "number", (0, 2), 3),
            (["text", "topic", "title", "label"], "single", (0,), 3),
            (["query", "x", "passage", "y"], "none", (0, 2), None),
            (["source", "x", "target", "y"], "none", (0, 2), None),
            (["source", "x", "target", "label"], "single", (0, 2), 3),
        ):
            self.assertEqual(chosen(rows, names, kind=kind), (texts, label), names)

    def test_triples(self):
        rows = table(different("abc"), different("def"), different("ghi"), different("jkl"))
        names = ["anchor", "positive", "negative", "negative_2"]
        self.assertEqual(chosen(rows, names, kind="none"), ((0, 1, 2, 3), None))
        self.assertEqual(chosen(rows, kind="none", text="1", pair="0,3"), ((1, 0, 3), None))

    def test_a_pair_that_is_not_read(self):
        rows = table(different(SENTENCES), different(SENTENCES), ["1", "2"])
        self.assertEqual(chosen(rows, ["text", "text_pair", "label"], needs_pair=False), ((0,), 2))
        self.assertEqual(chosen(rows, ["text", "text_pair", "label"]), ((0, 1), 2))
        self.assertEqual(chosen(rows, ["text", "words", "label"]), ((0,), 2))
        self.assertEqual(chosen(rows, ["text", "words", "label"], needs_pair=True), ((0, 1), 2))
        with self.assertRaisesRegex(UserError, "^--pair_column=words: this task reads one text per row; omit it$"):
            chosen(rows, ["text", "words", "label"], needs_pair=False, pair="words")

    def test_by_values(self):
        text, other = different(SENTENCES), different(reversed(SENTENCES))
        index = list(map(str, range(20)))
        for rows, kind, expected in (
            (table(text, ["pos", "neg"]), "single", ((0,), 1)),
            (table(["0", "1"], text), "single", ((1,), 0)),
            (table(index, ["World news", "Sports"], text), "single", ((2,), 1)),
            (table(text, other, ["2.5", "4.75", "0"]), "number", ((0, 1), 2)),
            (table(text, index, ["2.5", "4.75", "0"]), "number", ((0,), 2)),
            (table(text, ["a", "b"], [""]), "single", ((0,), 1)),
            (table(text, ["a", "b"], [*text[:5], *[""] * 15]), "single", ((0,), 1)),
            (table(["one two three", "four five"], text, ["a", "b", "not c"]), "single", ((0, 1), 2)),
            (table(["这是一个很好的酒店", "不太满意的服务态度"], ["1", "0"]), "single", ((0,), 1)),
            (table(text, other), "none", ((0, 1), None)),
            (table(text, ["a", "b"]), "none", ((0,), None)),
            (table(SENTENCES[:1]), "none", ((0,), None)),
            ([["a fine day", "good"]], "single", ((0,), 1)),
            ([["no", "negative"], ["a fine day", "positive"], ["what a dull film", "negative"]], "single", ((0,), 1)),
            ([["yes", "1"], ["no", "0"]], "single", ((0,), 1)),
            ([["a", "10"], ["b", "20"]], "single", ((0,), 1)),
            ([["a fine long day out", "very good"], ["what a film", "not good"]], "single", ((0,), 1)),
        ):
            self.assertEqual(chosen(rows, kind=kind), expected, rows[0])

    def test_ambiguous_columns_are_an_error_with_the_flags(self):
        text, other = different(SENTENCES), different(reversed(SENTENCES))
        with self.assertRaises(UserError) as raised:
            chosen(table(text, ["a", "b"], ["c", "d"]))
        self.assertEqual(
            str(raised.exception),
            "--train_file=a.csv: cannot tell which column is the label; specify --label_column (columns: "
            "0 ('a fine day for it x'), 1 ('a'), 2 ('c'))",
        )
        with self.assertRaisesRegex(
            UserError, "is the text; specify --text_column and --pair_column .columns: 'u', 'v'"
        ):
            chosen(table(text, other, ["a", "b"]), ["u", "v", "label"])
        with self.assertRaisesRegex(UserError, "is the text; specify --text_column .columns: 'title', 'body'"):
            chosen(table(text, other, ["a", "b"]), ["title", "body", "label"], needs_pair=False)
        with self.assertRaisesRegex(
            UserError, "is the first and the second text; specify --text_column and --pair_col"
        ):
            chosen(table(text, ["a", "b"]), needs_pair=True)
        self.assertEqual(chosen(table(text, ["a", "b"], ["c", "d"]), label="2"), ((0,), 2))

    def test_columns_that_do_not_exist(self):
        rows = table(different(SENTENCES), ["a", "b"])
        with self.assertRaisesRegex(
            UserError,
            r"^--label_column=lable: is not a column of --train_file=a.csv \(did you mean label\?\); its columns are "
            "'text', 'label'$",
        ):
            chosen(rows, ["text", "label"], label="lable")
        with self.assertRaisesRegex(UserError, "^--text_column=2: is not a column"):
            chosen(rows, text="2")
        with self.assertRaisesRegex(UserError, "cannot be both text and label"):
            chosen(rows, text="1", label="1")
        with self.assertRaisesRegex(UserError, "--label_column=a: .* has two columns of this name"):
            chosen(table(different(SENTENCES), ["a", "b"], ["c", "d"]), ["text", "a", "a"], label="a")
        self.assertEqual(chosen(rows, ["My Text", "Label"], text="my_text", label="label"), ((0,), 1))


if __name__ == "__main__":
    unittest.main()
