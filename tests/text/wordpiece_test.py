"""WordPiece compared with the `tokenizers` library, on varied lines and for every character."""

import json
import os
import pathlib
import unicodedata

import numpy as np
import pytest
import tensorflow as tf
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from tests.helpers import temporary_folder
from tests.text.varied import CHINESE, SENTENCES, lines
from tfzoo.errors import UserError
from tfzoo.text import SPECIAL_TOKENS, load, training
from tfzoo.text.wordpiece import WordPiece


def reference(vocab: list[str], lowercase: bool) -> tokenizers.Tokenizer:
    ids = {token: i for i, token in enumerate(vocab)}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


class WordPieceTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.lines = lines(5000)
        cls.trained = {
            lowercase: WordPiece(training.train_wordpiece([*SENTENCES, *CHINESE] * 3, 1800, lowercase), lowercase)
            for lowercase in (True, False)
        }

    def check_against_reference(self, tokenizer: WordPiece):
        oracle = reference(tokenizer.vocab, tokenizer.lowercase)
        encodings = oracle.encode_batch(self.lines)
        ids, starts, ends = (ragged.to_list() for ragged in tokenizer.tokenize_with_offsets(self.lines))
        self.assertEqual(tokenizer.tokenize(self.lines).to_list(), ids)
        normalizer = oracle.normalizer
        vocab, unknown = tokenizer.vocab, 0
        for i, (line, encoding) in enumerate(zip(self.lines, encodings)):
            self.assertEqual(ids[i], encoding.ids, ascii(line))
            spans = list(zip(starts[i], ends[i]))
            self.assertEqual(spans, encoding.offsets, ascii(line))
            for j, (start, end) in enumerate(spans):
                self.assertLess(start, end)
                if ids[i][j] == tokenizer.unknown_id:
                    unknown += 1
                    continue
                piece = vocab[ids[i][j]].removeprefix("##")
                came_from = normalizer.normalize_str(line[start:end]).replace(" ", "")
                shares_first = j > 0 and spans[j - 1][1] > start
                shares_last = j + 1 < len(spans) and spans[j + 1][0] < end
                if shares_first or shares_last:  # A character, such as a Hangul syllable, in several tokens.
                    self.assertIn(piece, came_from)
                else:
                    self.assertEqual(came_from, piece, ascii(line))
        self.assertGreater(unknown, 100)  # Otherwise the lines would not test the limits.

    def test_ids_and_offsets_of_a_trained_vocabulary_equal_the_references(self):
        for tokenizer in self.trained.values():
            with self.subTest(lowercase=tokenizer.lowercase):
                self.check_against_reference(tokenizer)

    def test_ids_and_offsets_of_berts_vocabularies_equal_the_references(self):
        if "TFZOO_DATA" not in os.environ:
            self.skipTest("TFZOO_DATA names no folder with vocab/bert-base-uncased/vocab.txt")
        for name, lowercase in (("uncased", True), ("cased", False), ("chinese", True), ("chinese", False)):
            with self.subTest(name=name, lowercase=lowercase):
                path = pathlib.Path(os.environ["TFZOO_DATA"], "vocab", f"bert-base-{name}", "vocab.txt")
                self.check_against_reference(WordPiece.from_file(path, lowercase))

    @pytest.mark.faults
    def test_every_character_of_unicode_3_2(self):
        # Newer characters depend on the Unicode version that a library was built with.
        old = unicodedata.ucd_3_2_0
        others = {0x1734, 0x166D, 0x1885, 0x1886}  # Their categories have changed since.
        characters = [
            chr(c) for c in range(0x110000) if c not in others and old.category(chr(c)) not in ("Cn", "Cs", "Co")
        ]
        self.assertGreater(len(characters), 90_000)
        texts = [f"a{c}b" for c in [*characters, "\ue000", "\U000f0001"]]
        for lowercase in (True, False):
            normalizer = normalizers.BertNormalizer(lowercase=lowercase)
            known = sorted({c for text in texts for c in normalizer.normalize_str(text)} - {" "})
            tokenizer = WordPiece([*SPECIAL_TOKENS, *known, *(f"##{c}" for c in known)], lowercase)
            got = tokenizer.tokenize(texts).to_list()
            oracle = reference(tokenizer.vocab, lowercase)
            wrong = [
                ascii(text)
                for text, ids, encoding in zip(texts, got, oracle.encode_batch(texts))
                if ids != encoding.ids
            ]
            self.assertEqual(wrong, [])

    def test_a_word_of_over_100_characters_is_unknown_and_one_of_over_100_bytes_is_not(self):
        tokenizer = self.trained[True]
        thai = "ก" * 100  # 300 bytes.
        unknown = [tokenizer.unknown_id]
        short, long, split = tokenizer.tokenize([thai, thai + "ก", f"{thai},{thai}"]).to_list()
        self.assertNotIn(tokenizer.unknown_id, short)
        self.assertEqual(long, unknown)
        self.assertEqual(split, short + tokenizer.tokenize([","]).to_list()[0] + short)
        # Accents are stripped before the limit is applied.
        self.assertNotIn(tokenizer.unknown_id, tokenizer.tokenize(["e\u0301" * 100]).to_list()[0])

    def test_special_tokens_are_plain_text_unless_requested(self):
        tokenizer = self.trained[True]
        ids = tokenizer.tokenize
        text = ["so [MASK]ing[MASK][CLS] it"]
        so, ing, it = (ids([word]).to_list()[0] for word in ("so", "ing", "it"))
        plain = {word: ids([word]).to_list()[0] for word in ("[MASK]", "[CLS]")}
        self.assertGreaterEqual(len(plain["[MASK]"]), 3)
        self.assertNotIn(tokenizer.mask_id, plain["[MASK]"])
        mask, cls = [tokenizer.mask_id], [tokenizer.cls_id]
        self.assertEqual(ids(text).to_list()[0], so + plain["[MASK]"] + ing + plain["[MASK]"] + plain["[CLS]"] + it)
        self.assertEqual(ids(text, special=("[MASK]",)).to_list()[0], so + mask + ing + mask + plain["[CLS]"] + it)
        self.assertEqual(ids(text, special=("[CLS]", "[MASK]")).to_list()[0], so + mask + ing + mask + cls + it)

        # Deleted characters neither complete nor imitate a special token.
        for fake in ("[MA\U0010fffdSK]", "[MA\0SK]", "[ma\U0010fffdsk]", "[mask]"):
            self.assertEqual(ids([fake], special=("[MASK]",)).to_list()[0], plain["[MASK]"], ascii(fake))
        for code in range(0x10FFF9, 0x10FFFE):
            self.assertEqual(ids([chr(code)], special=("[MASK]",)).to_list()[0], [])
            self.assertEqual(ids([chr(code)]).to_list()[0], [])

        with self.assertRaisesRegex(UserError, r"'\[mask\]' is not one of"):
            ids(["a"], special=("[mask]",))

    def test_requested_special_tokens_agree_with_the_reference(self):
        for tokenizer in self.trained.values():
            oracle = reference(tokenizer.vocab, tokenizer.lowercase)
            oracle.add_special_tokens(["[MASK]"])
            got = tokenizer.tokenize(self.lines, special=("[MASK]",)).to_list()
            for line, ids, encoding in zip(self.lines, got, oracle.encode_batch(self.lines)):
                self.assertEqual(ids, encoding.ids, ascii(line))

    def test_invalid_utf8_is_dropped(self):
        tokenizer = self.trained[True]
        broken = [
            b"the\xff fox",
            b"\xed\xa0\x80the",
            b"\xc3(",
            b"fox\xe0\xa4",
            b"\xef\xbb\xbfthe\xc0\x80 fox",
        ]
        broken += [b"fox \xf4\x90\x80\x80\xf0\x80\x80\x80 dog", b"\x80\x80 dog\xf8 fox"]
        for text in broken:  # One by one, because one invalid text in a batch causes all of it to be repaired.
            decoded = text.decode("utf-8", "replace")
            got = [ragged.to_list() for ragged in tokenizer.tokenize_with_offsets([text])]
            want = [ragged.to_list() for ragged in tokenizer.tokenize_with_offsets([decoded])]
            self.assertEqual(got, want, text)
            self.assertEqual(tokenizer.tokenize([text, "the"]).to_list()[0], got[0][0])
            dropped = text.decode("utf-8", "ignore")
            self.assertEqual(tokenizer.tokenize([dropped]).to_list(), got[0])

    def test_no_texts_and_empty_texts(self):
        tokenizer = self.trained[True]
        none = tf.constant([], tf.string)
        for ragged in (tokenizer.tokenize(none, special=("[MASK]",)), *tokenizer.tokenize_with_offsets(none)):
            self.assertEqual(ragged.to_list(), [])
        self.assertEqual(tokenizer.detokenize(tokenizer.tokenize(none)).shape, [0])
        for ragged in (tokenizer.tokenize(["", ""]), *tokenizer.tokenize_with_offsets(["", ""])):
            self.assertEqual(ragged.to_list(), [[], []])
            self.assertEqual(ragged.dtype, tf.int32)
        with self.assertRaisesRegex(ValueError, r"shape \[N\]"):
            tokenizer.tokenize(tf.constant("no batch"))

    def test_detokenize_round_trip(self):
        for tokenizer in self.trained.values():
            ids = tokenizer.tokenize(self.lines)
            known_rows = [row for row in ids.to_list() if tokenizer.unknown_id not in row]
            self.assertGreater(len(known_rows), 500)
            texts = tokenizer.detokenize(tf.ragged.constant(known_rows, dtype=tf.int32))
            self.assertEqual(tokenizer.tokenize(texts).to_list(), known_rows)
            decoder = tokenizers.decoders.WordPiece(cleanup=False)
            for row, text in zip(known_rows, texts.numpy()):
                self.assertEqual(text.decode(), decoder.decode([tokenizer.vocab[i] for i in row]))

    def test_detokenize_drops_padding_and_frame(self):
        tokenizer = self.trained[True]
        fox = tokenizer.tokenize(["the fox"]).to_list()[0]
        pad, cls, sep, mask = tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id
        ids = [[cls, *fox, sep, pad], [cls, mask, tokenizer.unknown_id, sep] + [pad] * (len(fox) - 1)]
        for dtype in (tf.int32, tf.int64):
            texts = tokenizer.detokenize(tf.constant(ids, dtype))
            self.assertEqual(texts.numpy().tolist(), [b"the fox", b"[MASK] [UNK]"])
        for wrong in (-1, -5):
            with self.assertRaises(tf.errors.InvalidArgumentError):
                tokenizer.detokenize([[wrong]])

    def test_tf_data_gives_the_same_ids(self):
        tokenizer = self.trained[True]
        dataset = tf.data.Dataset.from_tensor_slices(self.lines).batch(100)
        dataset = dataset.map(lambda texts: tokenizer.tokenize(texts, special=("[MASK]",)))
        got = [row for batch in dataset for row in batch.to_list()]
        self.assertEqual(got, tokenizer.tokenize(self.lines, special=("[MASK]",)).to_list())


class VocabularyTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = temporary_folder(self)
        self.path = self.folder / "vocab.txt"
        self.vocab = [*SPECIAL_TOKENS, "a", "##b", "\u2028", "é", "\x85"]

    def test_properties(self):
        tokenizer = WordPiece(["x", "[MASK]", "[PAD]", "##y", "[UNK]", "[SEP]", "[CLS]"], lowercase=False)
        self.assertEqual(tokenizer.vocab_size, 7)
        self.assertEqual(tokenizer.vocab[3], "##y")
        self.assertFalse(tokenizer.lowercase)
        self.assertEqual((tokenizer.pad_id, tokenizer.unknown_id, tokenizer.mask_id), (2, 4, 1))
        self.assertEqual((tokenizer.cls_id, tokenizer.sep_id), (6, 5))
        self.assertEqual(tokenizer.special_ids, [1, 2, 4, 5, 6])
        self.assertEqual(tokenizer.continues.tolist(), [False, False, False, True, False, False, False])
        self.assertEqual(tokenizer.continues.dtype, np.bool_)
        ids = tokenizer.tokenize(["xy [SEP]q[MASK][UNK][PAD][CLS]"], special=SPECIAL_TOKENS)
        self.assertEqual(ids.to_list(), [[0, 3, 5, 4, 1, 4, 2, 6]])

    def test_fingerprint(self):
        one = WordPiece(self.vocab, True).fingerprint()
        self.assertRegex(one, "^[0-9a-f]{64}$")
        self.assertEqual(one, WordPiece(self.vocab, True).fingerprint())
        self.assertNotEqual(one, WordPiece(self.vocab, False).fingerprint())
        self.assertNotEqual(one, WordPiece([*self.vocab, "b"], True).fingerprint())

    def test_save_and_from_folder(self):
        for lowercase in (True, False):
            tokenizer = WordPiece(self.vocab, lowercase)
            tokenizer.save(self.folder)
            again = load(self.folder)
            self.assertEqual(again.vocab, self.vocab)
            self.assertEqual(again.fingerprint(), tokenizer.fingerprint())
            config = json.loads((self.folder / "tokenizer_config.json").read_text())
            self.assertEqual(config["do_lower_case"], lowercase)
            self.assertEqual((config["tokenizer_class"], config["mask_token"]), ("BertTokenizer", "[MASK]"))
        self.assertEqual(sorted(os.listdir(self.folder)), ["tokenizer.json", "tokenizer_config.json", "vocab.txt"])

    def test_a_file_with_windows_line_ends_and_no_last_one(self):
        self.path.write_bytes("\r\n".join(self.vocab).encode())
        self.assertEqual(WordPiece.from_file(self.path, True).vocab, self.vocab)

    def test_invalid_vocabularies_name_the_file_and_the_line(self):
        good = [token.encode() for token in self.vocab]
        for content, message in (
            ([*good, b"a"], "line 11: token 'a' is already on line 6"),
            ([*good[:6], b"", *good[6:]], "line 7: the token is empty"),
            ([*good, b"\xff\xfe"], "line 11: .* is not UTF-8"),
            ([*good, b"x\ry"], "line 11: token .* contains a line break"),
            ([token for token in good if token != b"[UNK]"], r"\[UNK\] not found on lines 1 to 9"),
            ([], r"\[PAD\] \[UNK\] \[CLS\] \[SEP\] \[MASK\] not found"),
            ([*good, b"x" * 300], "line 11: token .* is longer than 256 bytes"),
        ):
            with self.subTest(message=message):
                self.path.write_bytes(b"\n".join(content) + b"\n" * bool(content))
                with self.assertRaisesRegex(UserError, message) as caught:
                    WordPiece.from_file(self.path, True)
                self.assertIn(str(self.path), str(caught.exception))
                self.assertNotIn("\n", str(caught.exception))
        with self.assertRaisesRegex(UserError, "no such file or directory"):
            WordPiece.from_file(self.folder / "none.txt", True)
        with self.assertRaisesRegex(UserError, "^vocabulary, line 6: token 'a' is already on line 5"):
            WordPiece([*SPECIAL_TOKENS[:4], "a", "a"])

    def test_configs_that_are_not_supported_are_rejected(self):
        WordPiece(self.vocab).save(self.folder)
        path = self.folder / "tokenizer_config.json"
        good = json.loads(path.read_text())
        path.write_text(json.dumps({"do_lower_case": False, "mask_token": {"content": "[MASK]"}}))
        self.assertFalse(load(self.folder).lowercase)
        for content, message in (
            (json.dumps({**good, "do_lower_case": "yes"}), "do_lower_case is 'yes'"),
            (json.dumps({**good, "strip_accents": "no"}), "strip_accents is 'no'"),
            (json.dumps({**good, "tokenize_chinese_chars": 1}), "tokenize_chinese_chars is 1"),
            (json.dumps({**good, "mask_token": 7}), "mask_token is 7"),
            ("{", "line 1: is not JSON .Expecting property name"),
            ("[" * 100_000, "is nested too deeply"),
            ('{\n"do_lower_case": true,\n"do_lower_case": true}', "line 3: the key 'do_lower_case' appears twice"),
            ("[]", "contains a list, not an object"),
        ):
            with self.subTest(message=message):
                path.write_text(content)
                with self.assertRaisesRegex(UserError, message) as caught:
                    load(self.folder)
                self.assertIn(str(path), str(caught.exception))
        path.unlink()
        (self.folder / "tokenizer.json").unlink()
        with self.assertRaisesRegex(UserError, "no such file"):
            load(self.folder)


if __name__ == "__main__":
    tf.test.main()
