"""Character tokenizers: nothing is lost, results are equal in every mode, and errors in files are located."""

import tensorflow as tf

from tests.helpers import temporary_folder
from tests.text.varied import lines
from tfzoo import text as tokenizers
from tfzoo.errors import UserError
from tfzoo.text import training
from tfzoo.text.characters import SPECIALS, Characters
from tfzoo.text.wordpiece import WordPiece

ODD = ["\0", "\n", "\r", "\t", "\\", " ", "\u2028", "\x85", "\u200d", "\ufeff", "\U0010ffff", "\ue000", "<", "\u0301"]


class CharactersTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.lines = [*lines(5000), *ODD, *SPECIALS.values(), "a\0b"]
        cls.tokenizer = Characters(training.train_characters(cls.lines, SPECIALS.values()))

    def test_ids_equal_nanogpts(self):
        # The encoding of prepare.py: characters sorted, ids counted from 0.
        text = "First Citizen:\nBefore we proceed"
        vocab = training.train_characters([text])
        self.assertEqual(vocab, sorted(set(text)))
        want = [vocab.index(c) for c in text]
        self.assertEqual(Characters(vocab).tokenize([text]).to_list(), [want])
        tokenizer = Characters(vocab)
        self.assertEqual((tokenizer.pad_id, tokenizer.unknown_id, tokenizer.special_ids), (None, None, []))

    def test_one_id_per_code_point(self):
        ids = {token: i for i, token in enumerate(self.tokenizer.vocab)}
        got = self.tokenizer.tokenize(self.lines)
        self.assertEqual(got.dtype, tf.int32)
        self.assertEqual(got.to_list(), [[ids[c] for c in line] for line in self.lines])
        with_offsets, starts, ends = (r.to_list() for r in self.tokenizer.tokenize_with_offsets(self.lines))
        self.assertEqual(with_offsets, got.to_list())
        self.assertEqual(starts, [list(range(len(line))) for line in self.lines])
        self.assertEqual(ends, [[i + 1 for i in row] for row in starts])

    def test_detokenize_is_the_exact_inverse(self):
        texts = self.tokenizer.detokenize(self.tokenizer.tokenize(self.lines)).numpy()
        self.assertEqual([text.decode() for text in texts], self.lines)

    def test_any_order_of_the_vocabulary(self):
        tokenizer = Characters(["b", "<unk>", "字", "a"])
        self.assertEqual(tokenizer.tokenize(["ab字x"]).to_list(), [[3, 0, 2, 1]])

    def test_unknown_characters(self):
        self.assertEqual(Characters(["a", "<unk>"]).tokenize(["xa\U0010ffff"]).to_list(), [[1, 0, 1]])
        with self.assertRaisesRegex(tf.errors.InvalidArgumentError, "(?s)code point.*120.*no <unk>"):
            Characters(["a", "b"]).tokenize(["ax"])
        function = tf.function(Characters(["a", "b"]).tokenize)
        self.assertEqual(function(tf.constant(["ab"])).to_list(), [[0, 1]])
        with self.assertRaisesRegex(tf.errors.InvalidArgumentError, "no <unk>"):
            function(tf.constant(["ax"]))
        self.assertEqual(Characters(["a", "\ufffd"]).tokenize([b"a\xff"]).to_list(), [[0, 1]])

    def test_special_tokens_are_plain_text_unless_requested(self):
        ids = {token: i for i, token in enumerate(self.tokenizer.vocab)}
        for token in SPECIALS.values():
            plain = self.tokenizer.tokenize([f"a{token}b"]).to_list()[0]
            self.assertEqual(plain, [ids[c] for c in f"a{token}b"])
            requested = self.tokenizer.tokenize([f"a{token}b", "", token], special=(token,)).to_list()
            self.assertEqual(requested, [[ids["a"], ids[token], ids["b"]], [], [ids[token]]])
        with self.assertRaisesRegex(UserError, r"'\[MASK\]' is not one of <pad>"):
            self.tokenizer.tokenize(["a"], special=("[MASK]",))

    def test_detokenize_drops_padding_and_frame(self):
        t = self.tokenizer
        a = t.vocab.index("a")
        ids = [[t.bos_id, a, t.mask_id, t.eos_id, t.pad_id], [t.cls_id, a, t.unknown_id, t.sep_id, a]]
        for dtype in (tf.int32, tf.int64):
            self.assertEqual(t.detokenize(tf.constant(ids, dtype)).numpy().tolist(), [b"a<mask>", b"a<unk>a"])
        self.assertEqual(t.special_ids, [0, 1, 2, 3, 4, 5, 6])
        for wrong in (-1, -5):
            with self.assertRaises(tf.errors.InvalidArgumentError):
                t.detokenize([[wrong]])

    def test_no_texts_and_empty_texts(self):
        for tokenizer in (self.tokenizer, Characters(["a"])):
            none = tokenizer.tokenize(tf.constant([], tf.string))
            self.assertEqual(none.to_list(), [])
            self.assertEqual(tokenizer.detokenize(none).shape, [0])
            empty = tokenizer.tokenize(["", ""])
            self.assertEqual(empty.to_list(), [[], []])
            self.assertEqual(tokenizer.detokenize(empty).numpy().tolist(), [b"", b""])
        with self.assertRaisesRegex(ValueError, r"shape \[N\]"):
            self.tokenizer.tokenize(tf.constant("no batch"))

    def test_tf_data_gives_the_same_ids(self):
        dataset = tf.data.Dataset.from_tensor_slices(self.lines).batch(100).map(self.tokenizer.tokenize)
        got = [row for batch in dataset for row in batch.to_list()]
        self.assertEqual(got, self.tokenizer.tokenize(self.lines).to_list())


class VocabularyTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = temporary_folder(self)
        self.path = self.folder / "characters.txt"

    def test_save_and_from_folder(self):
        vocab = [*training.train_characters(["".join(ODD)], SPECIALS.values())]
        tokenizer = Characters(vocab)
        tokenizer.save(self.folder)
        again = Characters.from_folder(self.folder)
        self.assertEqual(again.vocab, vocab)
        self.assertEqual(again.fingerprint(), tokenizer.fingerprint())
        self.assertNotEqual(Characters([*vocab, "x"]).fingerprint(), tokenizer.fingerprint())
        text = self.path.read_text()
        self.assertLen(text.splitlines(), len(vocab))  # So that every editor counts lines in the same way.
        self.assertIn("\n\\n\n", text)
        self.assertIn("\n\\u{2028}\n", text)
        self.path.write_bytes(text.replace("\n", "\r\n").encode())
        self.assertEqual(Characters.from_folder(self.folder).vocab, vocab)

    def test_a_loaded_tokenizer_is_saved_completely_and_not_over_another(self):
        Characters(["a", "<unk>"]).save(self.folder / "one")
        tokenizers.load(self.folder / "one").save(self.folder / "two")
        self.assertEqual(tokenizers.load(self.folder / "two").vocab, ["a", "<unk>"])
        words = WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"])
        with self.assertRaisesRegex(UserError, r"two/characters.txt: belongs to another tokenizer, .*; remove it, or"):
            words.save(self.folder / "two")
        self.assertEqual(tokenizers.load(self.folder / "two").vocab, ["a", "<unk>"])
        (self.folder / "two" / "characters.txt").unlink()
        words.save(self.folder / "two")
        self.assertEqual(tokenizers.load(self.folder / "two").vocab, words.vocab)

    def test_invalid_vocabularies_name_the_file_and_the_line(self):
        for content, message in (
            (b"a\nb\na\n", "line 3: 'a' is already on line 1"),
            (b"a\n\\u{61}\n", "line 2: 'a' is already on line 1"),
            (b"a\n\nb\n", "line 2: the entry is empty"),
            (b"a\nbc\n", "line 2: 'bc' is neither a character nor one of <pad>"),
            (b"a\n\xff\n", r"line 2: b'\\xff' is not UTF-8"),
            (b"a\n\\x\n", "line 2: .* is not a valid escape"),
            (b"a\n\\u{110000}\n", "line 2: .* is not a valid escape"),
            (b"a\n\\u{D800}\n", "line 2: .* is not a character but half of one"),
            (b"", "contain no characters"),
            (b"<pad>\n", "lines 1 to 1 contain no characters"),
        ):
            with self.subTest(message=message):
                self.path.write_bytes(content)
                with self.assertRaisesRegex(UserError, message) as caught:
                    Characters.from_file(self.path)
                self.assertIn(str(self.path), str(caught.exception))
                self.assertNotIn("\n", str(caught.exception))
        with self.assertRaisesRegex(UserError, "no such file or directory; check the path"):
            Characters.from_file(self.folder / "none.txt")
        with self.assertRaisesRegex(UserError, "^vocabulary, line 2: 'a' is already on line 1"):
            Characters(["a", "a"])

    def test_training(self):
        self.assertEqual(training.train_characters(["ba", "字\n"], ["<pad>"]), ["<pad>", "\n", "a", "b", "字"])
        with self.assertRaisesRegex(UserError, "contain no characters"):
            training.train_characters(["", ""])


if __name__ == "__main__":
    tf.test.main()
