import unittest
from unittest import mock

from tests import helpers
from tfzoo.data import corpus, docstrings, documents, files
from tfzoo.errors import UserError


class LoadCorpusTest(unittest.TestCase):
    def test_docstrings(self):
        with mock.patch.object(docstrings, "read") as read:
            self.assertIs(corpus.load_corpus("docstrings", cache_dir="cache"), read.return_value)
        read.assert_called_once_with("cache")

    def test_files(self):
        with mock.patch.object(files, "read") as read:
            found = corpus.load_corpus(
                "./docstrings", cache_dir="cache", text_field="body", policy="skip", max_line_bytes=99, max_bytes=999
            )
        self.assertIs(found, read.return_value)
        read.assert_called_once_with(
            "./docstrings",
            text_field="body",
            policy="skip",
            max_line_bytes=99,
            max_bytes=999,
            raw=False,
            held_out=0.02,
        )

    def test_sources_are_separated_by_commas(self):
        folder = helpers.temporary_folder(self)
        for name in ("a,b.txt", "c.txt", "d.en", "d.de", "e,f.en"):
            (folder / name).touch()
        names = [str(folder / name) for name in ("a,b.txt", "c.txt", "d.en+" + str(folder / "d.de"), "*,?.txt")]
        for sources in (names[:1], names[1:3], names, ["docstrings", *names, "gettext:de", "none.txt"]):
            self.assertEqual(corpus.split_sources(",".join(sources)), sources)
        aligned = f"{folder}/e,f.en+{folder}/d.de"
        self.assertEqual(corpus.split_sources(f"{aligned},docstrings"), [aligned, "docstrings"])
        self.assertEqual(corpus.split_sources(""), [""])
        for spec, message in (
            ("docstrings,", "a source is empty; remove the comma"),
            ("docstrings,,c.txt", "a source is empty"),
            ("c.txt,docstrings,c.txt", "c.txt appears twice; specify it once"),
        ):
            with self.assertRaisesRegex(UserError, f"^--corpus={spec}: {message}"):
                corpus.split_sources(spec)

    def test_several_sources(self):
        folder = helpers.temporary_folder(self)
        texts = {}
        for name in ("a", "b"):
            texts[name] = [f"{name} {i}." for i in range(300)]
            (folder / f"{name}.txt").write_text("\n\n".join(texts[name]))
        read = self.load(f"{folder}/a.txt,{folder}/b.txt", weights="3,1")
        self.assertEqual(list(read.sources), ["a.txt", "b.txt"])
        for name, alone in read.sources.items():
            expected = self.load(f"{folder}/{name}")
            self.assertEqual((alone.train, alone.held_out), (expected.train, expected.held_out))
        for spec, message in (
            (f"{folder}/a.txt,{folder}", "cannot be combined with other sources; specify text files"),
            (f"{folder}/a.txt,{folder}/c.txt", "c.txt: no such file"),
        ):
            with self.assertRaisesRegex(UserError, message):
                self.load(spec)
        with self.assertRaisesRegex(UserError, "^--corpus_weights=1: has 1 number"):
            self.load(f"{folder}/none.txt,{folder}/b.txt", weights="1")  # Reported before anything is read.

    def test_added_text_moves_no_document_to_the_other_part(self):
        folder = helpers.temporary_folder(self)
        texts = [f"Document {i}." for i in range(1200)]

        def write(name, documents):
            (folder / name).write_text("\n\n".join(documents))

        write("a.txt", texts[:500])
        before = self.load(f"{folder}/a.txt")
        held_out = {document.sentences[0] for document in before.held_out}
        self.assertTrue(3 <= len(held_out) <= 25, held_out)
        write("b.txt", texts[400:])  # Some documents are in both.
        write("c.txt", [*texts[600:], *texts[:500]])
        for spec in (
            f"{folder}/*.txt",
            f"{folder}/c.txt",
            f"{folder}/a.txt,{folder}/b.txt",
            f"{folder}/b.txt,docstrings",
        ):
            with self.subTest(spec), mock.patch.object(docstrings, "read") as read:
                read.return_value = documents.Corpus("docstrings", "0", before.train[:1], before.held_out[:1], {})
                after = self.load(spec)
                parts = [{document.sentences[0] for document in part} for part in (after.train, after.held_out)]
                self.assertFalse(parts[0] & parts[1])
                known = set(texts[:500]) & (parts[0] | parts[1])
                self.assertGreaterEqual(len(known), 100)
                self.assertEqual(known & parts[1], held_out & known)

    def load(self, spec, **options):
        return corpus.load_corpus(spec, cache_dir=None, **options)

    def test_sizes(self):
        read = [documents.Document("a", ["One is here.", "Ü."]), documents.Document("b", ["Two."])]
        self.assertEqual(documents.sizes(read), {"documents": 2, "sentences": 3, "words": 5, "bytes": 19})
