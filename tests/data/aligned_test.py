"""Parallel text from two aligned files, and from files of tab-separated pairs."""

import gzip
import unittest

from tests import helpers
from tfzoo.data import aligned
from tfzoo.data.corpus import load_corpus
from tfzoo.errors import UserError

TEXTS = [f"Text {i}." for i in range(60)]
TRANSLATIONS = [f"Übersetzung {i}。" for i in range(60)]


class AlignedCase(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)

    def write(self, name, lines):
        data = "\n".join(lines).encode() + b"\n" if isinstance(lines, list) else lines
        path = self.folder / name
        path.write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
        return str(path)

    def read(self, spec, **options):
        return load_corpus(spec, cache_dir=None, **options)

    def pairs(self, spec, **options):
        """Returns the pairs of both parts; order and part do not matter here."""
        read = self.read(spec, **options)
        documents = read.train + read.held_out
        self.assertEqual({document.separator for document in documents}, {""})
        return sorted(tuple(document.sentences) for document in documents)

    def refused(self, message, spec, **options):
        with self.assertRaises(UserError) as caught:
            self.read(spec, **options)
        text = str(caught.exception).replace(f"{self.folder}/", "")
        self.assertIn(message, text)
        self.assertNotIn("\n", text)


class TwoFilesTest(AlignedCase):
    def files(self, first=TEXTS, second=TRANSLATIONS, suffix=""):
        return f"{self.write(f'train.en{suffix}', first)}+{self.write(f'train.de{suffix}', second)}"

    def test_lines_correspond(self):
        expected = sorted(zip(TEXTS, TRANSLATIONS, strict=True))
        plain, packed = self.read(self.files()), self.read(self.files(suffix=".gz"))
        self.assertEqual(self.pairs(self.files()), expected)
        self.assertEqual(plain.fingerprint, packed.fingerprint)
        self.assertEqual(plain.report["lines"], 120)
        other = self.read(self.files(second=[*TRANSLATIONS[:-1], "Anders."]))
        self.assertNotEqual(other.fingerprint, plain.fingerprint)

    def test_lines_that_are_empty_on_both_sides_are_ignored_and_duplicates_dropped(self):
        spec = self.files(["One. ", "", "Two.", "Two.", "Two."], [" Eins.", " ", "Zwei.", "Zwei.", "Zwo."])
        self.assertEqual(self.pairs(spec), [("One.", "Eins."), ("Two.", "Zwei."), ("Two.", "Zwo.")])
        self.assertEqual(self.read(spec).report["duplicates"], 1)

    def test_different_numbers_of_lines(self):
        spec = self.files(second=TRANSLATIONS[:50])
        self.refused(
            "train.en:51: no line corresponds to it: train.de has only 50 lines, but train.en has 60; specify files "
            "whose lines correspond, or use --bad_text=replace or skip",
            spec,
        )
        self.assertEqual(self.pairs(spec, policy="skip"), sorted(zip(TEXTS[:50], TRANSLATIONS, strict=False)))
        self.assertEqual(self.read(spec, policy="skip").report["problems"], {"different_line_counts": 1})

    def test_an_empty_side(self):
        spec = self.files(second=[*TRANSLATIONS[:7], " ", *TRANSLATIONS[8:]])
        self.refused("train.de:8: the second text of the pair is empty; add it or remove the pair", spec)
        spec = self.files(first=[*TEXTS[:7], "", *TEXTS[8:]])
        self.refused("train.en:8: the first text of the pair is empty", spec)
        self.assertEqual(len(self.pairs(spec, policy="replace")), 59)

    def test_a_dropped_line_keeps_the_others_aligned(self):
        for line, kind in ((b"\xff\xfe", "invalid_utf8"), (b"a\0b", "nul"), (b"x " * 20, "long_lines")):
            lines = [text.encode() for text in TRANSLATIONS]
            lines[3] = line
            spec = self.files(second=b"\n".join(lines) + b"\n")
            options = dict(max_line_bytes=30, max_bytes=9999)
            self.refused("train.de:4: ", spec, **options)
            for policy in ("skip", "replace"):
                found = dict(self.pairs(spec, policy=policy, **options))
                self.assertEqual(self.read(spec, policy=policy, **options).report["problems"], {kind: 1})
                replaced = policy == "replace" and kind != "long_lines"
                self.assertEqual("\ufffd" in found.pop(TEXTS[3], ""), replaced)
                self.assertEqual(found, {a: b for a, b in zip(TEXTS, TRANSLATIONS, strict=True) if a != TEXTS[3]})

    def test_paths(self):
        first, second = self.write("c++.en", TEXTS), self.write("c++.de", TRANSLATIONS)
        self.assertEqual(aligned.two_files(f"{first}+{second}"), (first, second))
        self.assertEqual(len(self.pairs(f"{first}+{second}")), 60)
        self.refused(
            f"no such file: {first}x; specify FIRST+SECOND".replace(f"{self.folder}/", ""), f"{first}x+{second}"
        )
        self.refused("is not a regular file", f"{first}+{self.folder}")
        text = self.write("a+b.txt", ["One.", "", "Two."])
        self.assertIsNone(aligned.two_files(text))
        self.assertEqual([d.separator for d in self.read(text).train], [" "])

    def test_one_pair_cannot_be_split(self):
        self.refused("a single text cannot be split", self.files(["One.", "One."], ["Eins.", "Ein."]))


class TableTest(AlignedCase):
    def test_pairs(self):
        lines = [f"{a}\t{b}" for a, b in zip(TEXTS, TRANSLATIONS, strict=True)]
        expected = sorted(zip(TEXTS, TRANSLATIONS, strict=True))
        for name, prefix in (("a.tsv", ""), ("a.tsv.gz", ""), ("a.txt", "tsv:")):
            self.assertEqual(self.pairs(prefix + self.write(name, lines)), expected)
        more = self.write("b.tsv", [f"{line}\tCC-BY\t7" for line in lines])
        self.assertEqual(self.pairs(more), expected)
        self.assertEqual(self.pairs(str(self.folder / "*.tsv")), expected)

    def test_invalid_lines(self):
        lines = [f"{a}\t{b}" for a, b in zip(TEXTS, TRANSLATIONS, strict=True)]
        for line, message, kind in (
            ("no tab", "a.tsv:4: no tab; write a text, a tab and its translation", "no_tab"),
            ("\tx", "a.tsv:4: the first text of the pair is empty", "empty_side"),
            ("x\t\ty", "a.tsv:4: the second text of the pair is empty", "empty_side"),
        ):
            path = self.write("a.tsv", [*lines[:3], line, "", *lines[3:]])
            self.refused(message, path)
            self.assertEqual(len(self.pairs(path, policy="skip")), 60)
            self.assertEqual(self.read(path, policy="skip").report["problems"], {kind: 1})

    def test_other_errors(self):
        self.refused("--raw_text: does not apply to --corpus=", self.write("a.tsv", ["a\tb", "c\td"]), raw=True)
        self.refused("no such file", str(self.folder / "none.tsv"))
        self.refused("no text in 1 file(s)", self.write("empty.tsv", b""))
        self.refused("a gzip file, not text", self.write("b.tsv", gzip.compress(b"a\tb")))


class HeldOutTest(AlignedCase):
    def test_translations_of_one_text_are_in_the_same_part(self):
        lines = [f"Text {i}.\tÜbersetzung {i} {j}" for i in range(200) for j in range(3)]
        read = self.read(self.write("a.tsv", lines), held_out=0.2)
        train, held_out = ({document.sentences[0] for document in part} for part in (read.train, read.held_out))
        self.assertFalse(train & held_out)
        self.assertEqual(len(read.held_out), 3 * len(held_out))
        self.assertTrue(20 <= len(held_out) <= 60, len(held_out))

    def test_added_pairs_move_none(self):
        lines = [f"Text {i}.\tÜbersetzung {i}" for i in range(900)]
        whole = self.read(self.write("a.tsv", lines))
        for kept in (lines[:500], lines[::-2]):
            part = self.read(self.write("b.tsv", kept))
            for of_part, of_whole in ((part.train, whole.train), (part.held_out, whole.held_out)):
                texts = [{tuple(document.sentences) for document in documents} for documents in (of_part, of_whole)]
                self.assertLess(texts[0], texts[1])


if __name__ == "__main__":
    unittest.main()
