import unittest
from unittest import mock

from tfzoo.data import corpus, docstrings, documents, files


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

    def test_sizes(self):
        read = [documents.Document("a", ["One is here.", "Ü."]), documents.Document("b", ["Two."])]
        self.assertEqual(documents.sizes(read), {"documents": 2, "sentences": 3, "words": 5, "bytes": 19})
