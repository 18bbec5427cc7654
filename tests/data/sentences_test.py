import unittest

from tfzoo.data import sentences


class Counted(str):
    """A text that counts the characters that are copied from it."""

    copied = 0

    def __getitem__(self, key):
        part = super().__getitem__(key)
        self.copied += len(part)
        return part


class SentencesTest(unittest.TestCase):
    def check(self, *expected, between=" "):
        self.assertEqual(sentences.split(between.join(expected)), list(expected))

    def test_plain(self):
        self.check("One sentence.", "Is it two?", "It is!", "Yes.")

    def test_abbreviations_end_nothing(self):
        self.check(
            "Names, e.g. Anna or Dr. Smith, i.e. People, vs. Things.",
            "See Fig. 3 or No. 5.",
            "Say no.",
            "You may.",
            "Done.",
        )

    def test_etc_ends_before_a_capital_alone(self):
        self.check("Lists, tuples, etc. are sequences, etc.", "So are strings.")

    def test_initials_and_list_numbers(self):
        self.check("J. R. R. Tolkien wrote it.", "So did I.", "He did not.")
        self.check("1. First do this.", "Then that.")

    def test_decimals_versions_and_file_names(self):
        self.check("It takes 1.5 s in NumPy 2.0.", "See README.md and a.b.c.", "Version 3.11.7 is older.")

    def test_closing_quotes_and_brackets(self):
        self.check('He said "Stop."', "(She did not.)", "“Why?”", "It went on.")

    def test_ellipses(self):
        self.check("Well... it depends.", "So it ends...", "Or does it?", "No…", "Yes.")

    def test_numbers_and_code_begin_sentences(self):
        self.check("It is a tensor.", "3 of them are lists.", "`size` is one.", ":func:`f` too.")

    def test_small_letters_begin_none(self):
        self.check("A full stop inc. or approx. here. and no more.")

    def test_chinese(self):
        self.check("今天很好。", "你去吗？", "去！！", "“走吧。”", "他说：“好”。", "（完。）", "对……也许", between="")
        self.check("版本是2.0。", "English。", "好。", between="")

    def test_white_space(self):
        self.assertEqual(sentences.split("  A one.\n\tB two.  "), ["A one.", "B two."])
        self.assertEqual(sentences.split(" \n"), [])

    def test_spans_of_lines_with_equal_sentences(self):
        text = "  Ja. Ja.\r\n\nand more\n他走了。他走了。 Ja."
        places = sentences.spans(text)
        self.assertEqual(places, [(2, 5), (6, 9), (12, 20), (21, 25), (25, 29), (30, 33)])
        self.assertEqual(
            [text[start:end] for start, end in places], ["Ja.", "Ja.", "and more", "他走了。", "他走了。", "Ja."]
        )
        self.assertEqual(sentences.spans(" \n"), [])

    def test_the_work_is_proportional_to_the_length(self):
        """tests/patterns_test.py limits the work of the regular expression itself."""
        for unit in ("Mr. ", "1. ", ". ", "...", ". (", "。", "a.b", "A. ", "x! Y", " `", " :a:", "\n", "no. 5 "):
            for text in (unit * 20_000, "Mr" + unit * 20_000 + "x", "x" * 20_000 + unit * 20_000):
                counted = Counted(text)
                parts = sentences.split(counted)
                self.assertEqual("".join("".join(parts).split()), "".join(text.split()), unit)
                self.assertLess(counted.copied, 4 * len(text), unit)
        self.assertEqual(sentences.split("Mr. " * 100_000), [("Mr. " * 100_000).strip()])
