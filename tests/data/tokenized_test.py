"""A corpus as flat arrays: every token of every sentence, correct boundaries, and a verified cache."""

import pathlib
from unittest import mock

import numpy as np
import tensorflow as tf

from tests.helpers import temporary_folder
from tfzoo import text
from tfzoo.data import tokenized
from tfzoo.data.documents import Corpus, Document
from tfzoo.errors import UserError
from tfzoo.text import framing
from tfzoo.text.characters import Characters
from tfzoo.text.wordpiece import WordPiece

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d", "##s", "."]
DOCUMENTS = [
    Document("one", ["a b.", "cs d"]),
    Document("two", ["", "\u200b"]),  # No tokens.
    Document("three", ["", "d", "", "zebra as"]),
    Document("four", []),
]
IDS = [5, 6, 10, 7, 9, 8, 8, 1, 5, 9]


class TokenizeTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.tokenizer = WordPiece(VOCAB)

    def check(self, corpus):
        self.assertAllEqual(corpus.token_ids, IDS)
        self.assertEqual(corpus.token_ids.dtype, np.int32)
        self.assertAllEqual(corpus.sentence_starts, [0, 3, 6, 7, 10])
        self.assertAllEqual(corpus.document_starts, [0, 6, 10])

    def test_borders(self):
        self.check(tokenized.tokenize(DOCUMENTS, self.tokenizer))

    def test_however_many_are_tokenized_at_a_time(self):
        for size in (1, 2, 3, 8):
            with mock.patch.object(tokenized, "_BATCH", size):
                self.check(tokenized.tokenize(DOCUMENTS, self.tokenizer))

    def test_what_stands_between_sentences(self):
        text = "A  line,\n\n  and another.\n"
        characters = Characters(sorted(set(text)))
        raw = [Document("x", text.splitlines(keepends=True), separator="")]
        self.assertEqual(self.text(tokenized.tokenize(raw, characters), characters), text)
        sentences = [Document("x", ["A line,", "and another."])]
        self.assertEqual(self.text(tokenized.tokenize(sentences, characters), characters), "A line, and another.")

    def text(self, corpus, tokenizer):
        return tokenizer.detokenize(corpus.token_ids[None])[0].numpy().decode()

    def test_nothing(self):
        for documents in ([], [Document("x", [])], [Document("x", [""])]):
            corpus = tokenized.tokenize(documents, self.tokenizer)
            self.assertEqual(corpus.token_ids.shape, (0,))
            self.assertAllEqual(corpus.sentence_starts, [0])
            self.assertAllEqual(corpus.document_starts, [0])

    def test_the_cache(self):
        folder = temporary_folder(self)
        self.check(tokenized.cached(DOCUMENTS, self.tokenizer, "f", folder))
        with mock.patch.object(tokenized, "tokenize", side_effect=AssertionError("not from the cache")):
            self.check(tokenized.cached(DOCUMENTS, self.tokenizer, "f", folder))
            for other in (("g", self.tokenizer), ("f", WordPiece([*VOCAB, "e"]))):
                with self.assertRaisesRegex(AssertionError, "not from the cache"):
                    tokenized.cached(DOCUMENTS, other[1], other[0], folder)

    def test_a_damaged_cache_is_made_again(self):
        folder = temporary_folder(self)
        tokenized.cached(DOCUMENTS, self.tokenizer, "f", folder)
        (array,) = pathlib.Path(folder).glob("*/token_ids.npy")
        whole = array.read_bytes()
        for damaged in (whole[:-1] + b"\x01", whole[:-4], b""):
            array.write_bytes(damaged)
            self.check(tokenized.cached(DOCUMENTS, self.tokenizer, "f", folder))
            self.assertEqual(array.read_bytes(), whole)
        (array.parent / "sha256.json").write_text("[]")
        self.check(tokenized.cached(DOCUMENTS, self.tokenizer, "f", folder))


class TokenizerTest(tf.test.TestCase):
    def test_trained_on_the_training_part_and_kept(self):
        folder = temporary_folder(self)
        train = [Document("x", ["apple banana " * 3] * 5)]
        corpus = Corpus("c", "f" * 64, train, [Document("y", ["cherry"] * 50)], {})
        for kind in tokenized.TOKENIZERS:
            with self.subTest(kind):
                tokenizer = tokenized.cached_tokenizer(corpus, kind, 400, True, folder)
                ids = tokenizer.tokenize(tf.constant(["apple banana", "cherry"]))
                self.assertEqual(tokenizer.detokenize(ids)[0], b"apple banana")
                if kind == "wordpiece":
                    self.assertEqual(len(ids[0]), 2)
                    self.assertAllEqual(ids[1], [tokenizer.unknown_id])
                with mock.patch.object(tokenized, "train_tokenizer", side_effect=AssertionError("trained")):
                    again = tokenized.cached_tokenizer(corpus, kind, 400, True, folder)
                    self.assertEqual(again.fingerprint(), tokenizer.fingerprint())
                    with self.assertRaisesRegex(AssertionError, "trained"):
                        tokenized.cached_tokenizer(corpus, kind, 401, True, folder)

    def test_special_tokens_of_a_new_tokenizer(self):
        folder, names = temporary_folder(self), ("<fim_prefix>", "[NLU]")
        corpus = Corpus("c", "f" * 64, [Document("x", ["apple ([ULN]) <mix_ref> banana " * 3] * 5)], [], {})
        for kind in ("byte_level", "sentencepiece"):
            plain, tokenizer, again = (
                tokenized.cached_tokenizer(corpus, kind, 400, True, folder, special) for special in ((), names, names)
            )
            self.assertEqual(again.fingerprint(), tokenizer.fingerprint())
            ids = [tokenizer.vocab.index(name) for name in names]
            self.assertContainsSubset(ids, tokenizer.special_ids)
            self.assertNoCommonElements(names, plain.vocab)
            # Written in a text, they are plain text.
            found = tokenizer.tokenize(tf.constant(["apple [NLU] banana <fim_prefix>"]))
            self.assertNoCommonElements(ids, found[0].numpy().tolist())
            self.assertEqual(tokenizer.detokenize(found)[0], b"apple [NLU] banana <fim_prefix>")

    def test_special_tokens_that_cannot_be(self):
        for kind, special, message in (
            ("wordpiece", ["<x>"], "--special_tokens=<x>: a wordpiece tokenizer .* --tokenizer=byte_level"),
            ("characters", ["<x>"], "a characters tokenizer"),
            ("byte_level", ["<x>", "<x>"], "<x> already exists"),
            ("byte_level", ["<|endoftext|>"], "already exists"),
            ("sentencepiece", ["</s>"], "</s> already exists"),
            ("sentencepiece", ["<extra_id_3>"], "already exists"),
            ("byte_level", ["<x>", ""], "--special_tokens=<x>,: '' must have at least two characters"),
            ("byte_level", ["a b"], "no white space"),
        ):
            with self.assertRaisesRegex(UserError, message):
                tokenized.train_tokenizer(kind, ["a text"], 400, True, special)

    def test_special_tokens_of_xlnet(self):
        tokenizer = tokenized.train_tokenizer("sentencepiece_xlnet", ["Crème brûlée, apple banana. "] * 20, 60, False)
        self.assertEqual(tokenizer.vocab[:7], ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>"])
        self.assertEqual(framing.frame(("$A sep cls:2", None), tokenizer).parts, ("text", 4, 3))
        ids = tokenizer.tokenize(["Crème banana"])
        self.assertNotIn(tokenizer.unknown_id, ids.flat_values.numpy())
        self.assertAllEqual(tokenizer.detokenize(ids), ["Crème banana".encode()])
        folder = temporary_folder(self)
        tokenizer.save(folder)
        self.assertEqual(text.load(folder).fingerprint(), tokenizer.fingerprint())

    def test_sentences_stay_apart_where_spaces_are_kept(self):
        documents = [Document("x", ["One two.", "Three."]), Document("y", ["Four."])]
        for kind in ("byte_level", "characters"):
            tokenizer = tokenized.train_tokenizer(kind, ["One two. Three. Four."], 300, False)
            corpus = tokenized.tokenize(documents, tokenizer)
            texts = tokenizer.detokenize(tf.RaggedTensor.from_row_splits(corpus.token_ids, corpus.document_starts))
            self.assertAllEqual(texts, [b"One two. Three.", b"Four."])


if __name__ == "__main__":
    tf.test.main()
