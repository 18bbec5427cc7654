"""Byte-level BPE compared with the `tokenizers` library: varied lines, every character, and untrained merges."""

import json
import os
import pathlib
import random
import unicodedata

import keras
import pytest
import tensorflow as tf
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from tests.helpers import printed_in_every_process, temporary_folder
from tests.text.varied import CHINESE, CODE, LONG, SENTENCES, SPECIALS, lines
from tfzoo import text
from tfzoo.errors import UserError
from tfzoo.text import SPLIT_PATTERNS, training
from tfzoo.text.byte_level import ByteLevelBPE
from tfzoo.text.byte_level_model import BYTES
from tfzoo.text.wordpiece import WordPiece

ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def reference(tokenizer: ByteLevelBPE, ignore_merges: bool = False, prefix: bool = False, nfc: bool = False):
    """Returns the library's tokenizer with the same vocabulary and without special tokens."""
    ids = {token: i for i, token in enumerate(tokenizer.vocab)}
    oracle = tokenizers.Tokenizer(models.BPE(ids, tokenizer.merges, ignore_merges=ignore_merges))
    if tokenizer.pattern == "gpt2":
        oracle.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    else:
        split = pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERNS[tokenizer.pattern]), "isolated")
        oracle.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(prefix, use_regex=False)])
    if nfc:
        oracle.normalizer = normalizers.NFC()
    return oracle


def wrong(tokenizer: ByteLevelBPE, oracle: tokenizers.Tokenizer, texts: list[str]) -> list[str]:
    """Returns the texts whose ids differ, in readable form."""
    got = tokenizer.tokenize(texts).to_list()
    encodings = oracle.encode_batch(texts, add_special_tokens=False)
    return [ascii(t) for t, ids, encoding in zip(texts, got, encodings, strict=True) if ids != encoding.ids]


class ByteLevelBPETest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.lines = lines(5000)
        texts = [line for line in lines(800, seed=1) if not any(special in line for special in SPECIALS)]
        names = ("<|begin_of_text|>", "<|end_of_text|>")
        cls.trained = {
            "gpt2": training.train_byte_level(texts, 2500),
            # With few merges, so that hardly any characters are adjacent in a token.
            "roberta": training.train_byte_level([*SENTENCES, *CODE] * 3, 450, ROBERTA),
            "llama3": training.train_byte_level(texts, 2500, names, "llama3"),
            "qwen2": training.train_byte_level(texts, 2500, ("<|endoftext|>", "<|im_start|>"), "qwen2"),
        }
        # Words that no merges produce: with ignore_merges they are tokens nevertheless.
        cls.trained["llama3"][0].extend(["Ġquickzz", "qz1", "ä¸Ńæĸĩåí", "0000"])
        cls.options = {
            "gpt2": dict(special_tokens=["<|endoftext|>"]),
            "roberta": dict(special_tokens=ROBERTA, lstrip=["<mask>"]),
            "llama3": dict(special_tokens=names, pattern="llama3", ignore_merges=True),
            "qwen2": dict(special_tokens=["<|endoftext|>", "<|im_start|>"], pattern="qwen2", nfc=True),
        }

    def setUp(self):
        super().setUp()  # Releases the tables of an earlier test.
        self.all = {name: ByteLevelBPE(*self.trained[name], **options) for name, options in self.options.items()}
        self.gpt2, self.roberta, self.llama3, self.qwen2 = self.all.values()

    def test_a_new_seed_does_not_affect_it(self):
        function = tf.function(self.gpt2.tokenize)
        texts = tf.constant(["a new seed", "新的種子"])
        expected = [self.gpt2.tokenize(texts), function(texts)]
        keras.utils.set_random_seed(1)  # It discards what TensorFlow's kernels own.
        for before, after in zip(expected, [self.gpt2.tokenize(texts), function(texts)], strict=True):
            self.assertAllEqual(before, after)

    def test_ids_offsets_and_texts_equal_the_references(self):
        for name, tokenizer in self.all.items():
            with self.subTest(name=name):
                self.check_against_reference(tokenizer, ignore_merges=name == "llama3", nfc=name == "qwen2")

    def check_against_reference(self, tokenizer: ByteLevelBPE, ignore_merges: bool = False, nfc: bool = False):
        encodings = reference(tokenizer, ignore_merges, nfc=nfc).encode_batch(self.lines)
        ids = tokenizer.tokenize(self.lines)
        got = ids.to_list()
        self.assertEqual([ascii(t) for t, row, e in zip(self.lines, got, encodings) if row != e.ids], [])
        self.assertEqual(ids.dtype, tf.int32)
        back = [t.decode() for t in tokenizer.detokenize(ids).numpy()]
        self.assertEqual(back, [unicodedata.normalize("NFC", t) if nfc else t for t in self.lines])
        if nfc:
            with self.assertRaisesRegex(UserError, "composes"):
                tokenizer.tokenize_with_offsets(self.lines)
            return
        same, starts, ends = (ragged.to_list() for ragged in tokenizer.tokenize_with_offsets(self.lines))
        self.assertEqual(same, got)
        for i, encoding in enumerate(encodings):
            self.assertEqual(list(zip(starts[i], ends[i])), encoding.offsets, ascii(self.lines[i]))

    def test_the_released_vocabularies(self):
        if "TFZOO_DATA" not in os.environ:
            self.skipTest("TFZOO_DATA names no folder with vocab/gpt2 and vocab/roberta-base")
        for name, size in (("gpt2", 50257), ("roberta-base", 50265)):
            with self.subTest(name=name):
                folder = pathlib.Path(os.environ["TFZOO_DATA"], "vocab", name)
                tokenizer = text.load(folder)
                self.assertEqual(tokenizer.vocab_size, size)
                self.check_against_reference(tokenizer)
        self.assertEqual(tokenizer.tokenize(["Hello world"]).to_list(), [[31414, 232]])
        roles = (tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id, tokenizer.unknown_id, tokenizer.mask_id)
        self.assertEqual(roles, (0, 1, 2, 3, 50264))
        special = ("<s>", "</s>", "<mask>", "<pad>", "<unk>")
        released = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        got = tokenizer.tokenize(self.lines, special=special).to_list()
        for line, ids, encoding in zip(self.lines, got, released.encode_batch(self.lines, add_special_tokens=False)):
            self.assertEqual(ids, encoding.ids, ascii(line))

    @pytest.mark.faults
    def test_every_character(self):
        # All characters in this Python's Unicode, but only some from blocks with thousands of one kind.
        large = [(0x3400, 0xA48D), (0xAC00, 0xD7A4), (0x12000, 0x14647), (0x17000, 0x18D09), (0x20000, 0x3134B)]
        characters = [
            chr(c)
            for c in range(0x110000)
            if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")
            and (c % 32 == 0 or not any(first < c < end for first, end in large))
        ]
        self.assertGreater(len(characters), 25_000)
        for name in ("gpt2", "llama3"):  # Qwen2's pattern has the same classes.
            tokenizer = self.all[name]
            oracle = reference(tokenizer, name == "llama3")
            # As a letter, number, sign or space next to others, and as the s of 's.
            texts = [f"a{c}1{c} {c}'{c}" for c in characters]
            self.assertEqual(wrong(tokenizer, oracle, texts), [], name)

    def test_every_short_run_of_spaces_and_character_classes(self):
        rng = random.Random(5)
        alphabet = [*"    \n\n\r\tab1!'s(", "\u3000", "\u00a0", "é", "中", "\u0301", "²", "\x85", "'ll"]
        texts = ["".join(rng.choices(alphabet, k=rng.randint(1, 9))) for _ in range(12_000)]
        for name, tokenizer in self.all.items():
            oracle = reference(tokenizer, name == "llama3", nfc=name == "qwen2")
            self.assertEqual(wrong(tokenizer, oracle, texts), [], name)

    def test_untrained_merges(self):
        # Tokens that are unreachable, that several merges produce, or whose parts are merged differently from their
        # merge.
        rng = random.Random(3)
        unreachable = 0
        for _ in range(25):
            parts = list("abcd") + ["Ġ", "ä", "¸", "Ń"]
            merges: list[tuple[str, str]] = []
            while len(merges) < 40:
                merge = (rng.choice(parts), rng.choice(parts))
                if merge not in merges and len("".join(merge)) < 9:
                    merges.append(merge)
                    parts.append("".join(merge))
            rng.shuffle(merges)
            tokenizer = ByteLevelBPE([*BYTES, *dict.fromkeys(left + right for left, right in merges)], merges)
            texts = [
                "".join(rng.choices(["a", "b", "c", "d", " ", "中"], (4, 4, 4, 4, 1, 2), k=30)) for _ in range(300)
            ]
            texts += ["aaaaaaa", "abab" * 50, "中中", "bcbcbca"]
            oracle = reference(tokenizer)
            self.assertEqual(wrong(tokenizer, oracle, texts), [])
            ordinary = [bytes(BYTES[c] for c in token) for token in tokenizer.vocab[256:]]
            tokens = [b.decode() for b in ordinary if b.decode(errors="replace").encode() == b]
            unreachable += sum(len(row) > 1 for row in tokenizer.tokenize(tokens).to_list())
            self.assertEqual(wrong(tokenizer, oracle, tokens), [])
        self.assertGreater(unreachable, 25)

    def test_two_merges_of_one_token(self):
        # (ab, c) is never used: bc comes before ab. So abc has the rank of (a, bc), after (c, d).
        merges = [("a", "bb"), ("b", "c"), ("ab", "c"), ("c", "d"), ("bc", "d"), ("a", "bc"), ("a", "b"), ("b", "b")]
        tokenizer = ByteLevelBPE([*BYTES, "abb", "bc", "abc", "cd", "bcd", "ab", "bb"], merges)
        texts = ["abcd", "abc", "ab", "xabcdabc", "abb", "bbcd"]
        self.assertEqual(wrong(tokenizer, reference(tokenizer), texts), [])
        self.assertEqual([tokenizer.vocab[i] for i in tokenizer.tokenize(["abcd"]).to_list()[0]], ["a", "bcd"])

    def test_a_word_that_is_a_token_regardless_of_the_merges(self):
        words = ["a quickzz", "qz1", "qz", "xqz1", "10000"]
        got = [[self.llama3.vocab[i] for i in row] for row in self.llama3.tokenize(words).to_list()]
        self.assertEqual(got[0], ["a", "Ġquickzz"])
        off = ByteLevelBPE(self.llama3.vocab, self.llama3.merges, pattern="llama3")
        self.assertNotIn("Ġquickzz", [off.vocab[i] for i in off.tokenize(words).to_list()[0]])
        self.assertEqual(wrong(off, reference(off), words), [])
        self.assertEqual(wrong(self.llama3, reference(self.llama3, True), words), [])

    def test_a_space_before_a_text(self):
        tokenizer = ByteLevelBPE(self.gpt2.vocab, self.gpt2.merges, add_prefix_space=True)
        texts = [t for t in self.lines if len(t) < 1000]
        oracle = reference(tokenizer, prefix=True)
        self.assertEqual(wrong(tokenizer, oracle, texts), [])
        ids, starts, ends = (ragged.to_list() for ragged in tokenizer.tokenize_with_offsets(texts))
        for i, encoding in enumerate(oracle.encode_batch(texts)):
            self.assertEqual(list(zip(starts[i], ends[i])), encoding.offsets, ascii(texts[i]))

    def test_special_tokens_are_plain_text_unless_requested(self):
        for name, tokenizer in self.all.items():
            names = [tokenizer.vocab[i] for i in tokenizer.special_ids]
            texts = [f"a {token}b{token}" for token in names]
            for row in tokenizer.tokenize(texts).to_list():
                self.assertFalse({*row} & {*tokenizer.special_ids}, name)
            for i, row in zip(tokenizer.special_ids, tokenizer.tokenize(texts, special=names).to_list()):
                self.assertEqual(row.count(i), 2)
                self.assertEqual(row[-1], i)
        with self.assertRaisesRegex(UserError, "'<mask>' is not one of"):
            self.gpt2.tokenize(["a"], special=("<mask>",))

    def test_requested_special_tokens_agree_with_the_reference(self):
        for name, tokenizer in self.all.items():
            names = [tokenizer.vocab[i] for i in tokenizer.special_ids]
            oracle = reference(tokenizer, name == "llama3", nfc=name == "qwen2")
            oracle.add_special_tokens(
                [tokenizers.AddedToken(token, lstrip=token == "<mask>", normalized=False) for token in names]
            )
            got = tokenizer.tokenize(self.lines, special=names).to_list()
            for line, ids, encoding in zip(self.lines, got, oracle.encode_batch(self.lines)):
                self.assertEqual(ids, encoding.ids, ascii(line))

    def test_ids_are_equal_alone_in_any_batch_and_in_tf_data(self):
        some = [*self.lines[::10], *LONG]
        want = self.gpt2.tokenize(some).to_list()
        self.assertEqual([self.gpt2.tokenize([line]).to_list()[0] for line in some[:60]], want[:60])
        self.assertEqual(self.gpt2.tokenize(some[::-1]).to_list(), want[::-1])
        dataset = tf.data.Dataset.from_tensor_slices(some).batch(7).map(self.gpt2.tokenize)
        self.assertEqual([row for batch in dataset for row in batch.to_list()], want)

    def test_invalid_utf8_is_replaced(self):
        for broken in (
            b"the\xff fox",
            b"\xed\xa0\x80the",
            b"\xc3(",
            b"fox \xe0\xa4",
            b"\xfe \xff",
            b"\xf4\x90\x80\x80 a",
        ):
            for tokenizer in self.all.values():
                want = tokenizer.tokenize([broken.decode("utf-8", "replace")]).to_list()
                self.assertEqual(tokenizer.tokenize([broken]).to_list(), want, broken)
                self.assertEqual(tokenizer.tokenize([broken, "the"]).to_list()[:1], want)

    def test_no_texts_and_empty_texts(self):
        none = tf.constant([], tf.string)
        for tokenizer in self.all.values():
            self.assertEqual(tokenizer.tokenize(none).to_list(), [])
            special = [tokenizer.vocab[tokenizer.special_ids[0]]]
            self.assertEqual(tokenizer.tokenize(none, special=special).to_list(), [])
            self.assertEqual(tokenizer.detokenize(tokenizer.tokenize(none)).shape, [0])
            self.assertEqual(tokenizer.tokenize(["", ""]).to_list(), [[], []])
        self.assertEqual(
            [r.to_list() for r in self.gpt2.tokenize_with_offsets(["", "a", ""])][1:], [[[], [0], []], [[], [1], []]]
        )
        self.assertEqual([r.to_list() for r in self.gpt2.tokenize_with_offsets(none)], [[], [], []])
        with self.assertRaisesRegex(ValueError, r"shape \[N\]"):
            self.gpt2.tokenize(tf.constant("no batch"))

    def test_detokenize_drops_the_frame_and_replaces_incomplete_characters(self):
        tokenizer = self.roberta
        fox = tokenizer.tokenize([" the fox 中"]).to_list()[0]
        bos, pad, eos, unknown, mask = (tokenizer.vocab.index(token) for token in ROBERTA)
        self.assertEqual((tokenizer.cls_id, tokenizer.sep_id), (bos, eos))
        ids = [[bos, *fox, eos, pad, pad], [bos, mask, unknown, eos] + [pad] * len(fox)]
        for dtype in (tf.int32, tf.int64):
            got = tokenizer.detokenize(tf.constant(ids, dtype)).numpy().tolist()
            self.assertEqual(got, [" the fox 中".encode(), b"<mask><unk>"])
        got = tokenizer.detokenize(tf.ragged.constant([fox[:-1], []], dtype=tf.int32)).numpy().tolist()
        self.assertEqual(got, [" the fox \ufffd".encode(), b""])
        with self.assertRaises(tf.errors.InvalidArgumentError):
            tokenizer.detokenize([[-1]])
        past = [[*fox, tokenizer.vocab_size, 40_000]]  # A model's vocabulary may be larger.
        self.assertEqual(tokenizer.detokenize(past).numpy().tolist(), [" the fox 中".encode()])


class FilesTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.lines = lines(400)
        cls.trained = training.train_byte_level([*SENTENCES, *CHINESE], 700, ROBERTA)
        cls.options = {
            "roberta": dict(special_tokens=ROBERTA, lstrip=["<mask>"]),
            "llama3": dict(special_tokens=["<s>", "</s>"], pattern="llama3", ignore_merges=True, roles={"bos": "<s>"}),
            "qwen2": dict(special_tokens=["<pad>"], pattern="qwen2", nfc=True, rstrip=["<pad>"]),
            "prefix": dict(special_tokens=["<pad>", "<s>"], add_prefix_space=True, roles={"pad": "<pad>"}),
        }

    def setUp(self):
        super().setUp()
        self.folder = temporary_folder(self)

    def test_saved_files_are_read_by_tfzoo_and_the_library(self):
        fingerprints = set()
        for name, options in self.options.items():
            with self.subTest(name=name):
                tokenizer = ByteLevelBPE(*self.trained, **options)
                folder = self.folder / name
                tokenizer.save(folder)
                again = text.load(folder)
                self.assertIsInstance(again, ByteLevelBPE)
                self.assertEqual(again.fingerprint(), tokenizer.fingerprint())
                self.assertEqual((again.vocab, again.merges), (tokenizer.vocab, tokenizer.merges))
                self.assertEqual(again.special_ids, tokenizer.special_ids)
                fingerprints.add(again.fingerprint())
                released = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
                names = [tokenizer.vocab[i] for i in tokenizer.special_ids]
                for line, ids in zip(self.lines, again.tokenize(self.lines, special=names).to_list()):
                    self.assertEqual(ids, released.encode(line, add_special_tokens=False).ids, ascii(line))
                ids = released.encode("the fox").ids
                if name == "roberta":  # Framed as the family does.
                    self.assertEqual((ids[0], ids[-1]), (again.cls_id, again.sep_id))
                self.assertEqual(released.decode(ids).strip(), "the fox")
        self.assertEqual(len(fingerprints), len(self.options))

    def test_vocab_and_merges_alone(self):
        tokenizer = ByteLevelBPE(*self.trained, **self.options["roberta"])
        tokenizer.save(self.folder)
        (self.folder / "tokenizer.json").unlink()
        (self.folder / "tokenizer_config.json").unlink()
        again = text.load(self.folder)
        self.assertEqual(again.fingerprint(), tokenizer.fingerprint())
        oracle = tokenizers.Tokenizer(
            models.BPE.from_file(str(self.folder / "vocab.json"), str(self.folder / "merges.txt"))
        )
        oracle.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.assertEqual(wrong(again, oracle, self.lines), [])

        more = {"<|new|>": again.vocab_size}
        (self.folder / "added_tokens.json").write_text(json.dumps(more))
        (self.folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "<|new|>"}}))
        again = text.load(self.folder)
        self.assertEqual((again.pad_id, again.bos_id), (tokenizer.vocab_size, None))
        self.assertEqual(again.tokenize(["a<|new|>"], special=["<|new|>"]).to_list()[0][-1], again.pad_id)
        (self.folder / "special_tokens_map.json").write_text('{\n"mask_token": "<other>"}')
        with self.assertRaisesRegex(
            UserError, r"special_tokens_map.json, line 2: .*'<other>', which is not in the vocab"
        ):
            text.load(self.folder)

    def test_merges_may_be_pairs_and_tokens_may_be_added(self):
        ByteLevelBPE(*self.trained, special_tokens=ROBERTA).save(self.folder)
        path = self.folder / "tokenizer.json"
        content = json.loads(path.read_text())
        before = text.load(self.folder)
        plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        content["model"]["merges"] = [merge.split(" ") for merge in content["model"]["merges"]]
        content["added_tokens"].append({"id": before.vocab_size, "content": "<|im_start|>", "special": True, **plain})
        path.write_text(json.dumps(content))
        after = text.load(self.folder)
        self.assertEqual(after.tokenize(self.lines).to_list(), before.tokenize(self.lines).to_list())
        ids = after.tokenize(["<|im_start|>"], special=["<|im_start|>"]).to_list()
        self.assertEqual(ids, [[before.vocab_size]])
        self.assertIn(before.vocab_size, after.special_ids)

    def refused(self, message: str, file: str):
        with self.assertRaisesRegex(UserError, message) as caught:
            text.load(self.folder)
        self.assertIn(str(self.folder / file), str(caught.exception))
        self.assertNotIn("\n", str(caught.exception))

    def test_errors_in_vocabularies_name_the_file_and_the_line(self):
        good = {letter: i for i, letter in enumerate(BYTES)} | {"ab": 256}
        (self.folder / "merges.txt").write_text("#version: 0.2\na b\n")

        def text_of(vocab: dict) -> str:
            return json.dumps(vocab, indent=0, ensure_ascii=False)

        for content, message in (
            (text_of(good).replace('"ab"', '"a"'), r"line 258: the key 'a' appears twice"),
            (text_of({**good, "xy": 258}), r"line 259: token 'xy' has id 258, but no token has id 257"),
            (text_of({**good, "xy": 256}), r"line 259: token 'xy' has id 256, which token 'ab' also has"),
            (text_of({**good, "xy": "7"}), r"line 259: token 'xy' has id '7', which is not an integer of at least 0"),
            (text_of({**good, "xy": -1}), r"line 259: token 'xy' has id -1, which is not an integer of at least 0"),
            (text_of({**good, "xy": True}), r"line 259: token 'xy' has id True"),
            (text_of({**good, "": 257}), r"token 257 is empty"),
            (text_of({("zz" if t == "Ġ" else t): i for t, i in good.items()}), r"1 of the 256 bytes .* 0x20"),
            ("{}", "line 1: the file contains no tokens"),
            ("[]", "contains a list, not an object"),
            ('{\n"a": 0,,}', "line 2: is not JSON"),
            ('{"a":' * 100_000, "is nested too deeply"),
        ):
            with self.subTest(message=message):
                (self.folder / "vocab.json").write_text(content)
                self.refused(message, "vocab.json")
        (self.folder / "vocab.json").write_bytes(b"{\n\xff")
        self.refused("line 2: is not UTF-8", "vocab.json")

    def test_errors_in_merges_name_the_file_and_the_line(self):
        good = {letter: i for i, letter in enumerate(BYTES)} | {"ab": 256}
        (self.folder / "vocab.json").write_text(json.dumps(good))
        for content, message in (
            ("#version: 0.2\na b\nb c\n", r"line 3: the merge of 'b' and 'c' uses 'bc', which is not in vocab.json"),
            ("a b\nxyz b\n", r"line 2: the merge of 'xyz' and 'b' uses 'xyz'"),
            ("a b\na b\n", "line 2: the merge of 'a' and 'b' appears twice"),
            ("a b\nab\n", r"line 2: \('ab',\) is not a merge"),
            ("a b c\n", r"line 1: .* is not a merge"),
            ("a  b\n", r"line 1: .* is not a merge"),
        ):
            with self.subTest(message=message):
                (self.folder / "merges.txt").write_text(content)
                self.refused(message, "merges.txt")
        (self.folder / "merges.txt").write_text("#version: 0.2\r\na b\r\n")
        self.assertEqual(text.load(self.folder).tokenize(["ab"]).to_list(), [[256]])

    def test_a_tokenizer_json_that_is_not_supported_is_rejected(self):
        ByteLevelBPE(*self.trained, special_tokens=ROBERTA).save(self.folder)
        for name in ("vocab.json", "merges.txt"):
            (self.folder / name).unlink()
        path = self.folder / "tokenizer.json"
        good = json.loads(path.read_text())
        for change, message in (
            ({"model": {**good["model"], "type": "Unigram"}}, "the pre_tokenizer .ByteLevel. is not supported"),
            ({"pre_tokenizer": {"type": "UnicodeScripts"}}, "the pre_tokenizer 'UnicodeScripts' is not supported"),
            ({"model": {**good["model"], "dropout": 0.1}}, "model.dropout: is 0.1"),
            ({"model": {**good["model"], "vocab": [1]}}, "is not a vocabulary"),
            ({"model": {**good["model"], "merges": ["a zzz"]}}, "merges, number 1: .* uses 'zzz'"),
            ({"normalizer": {"type": "Lowercase"}}, r"normalizer is \['Lowercase'\]"),
            ({"added_tokens": [{"id": 0, "content": "<new>"}]}, "'<s>' and '<new>' both have id 0"),
            (
                {
                    "pre_tokenizer": {
                        "type": "Sequence",
                        "pretokenizers": [
                            {"type": "Split", "pattern": {"Regex": "a(?=b)"}, "behavior": "Isolated", "invert": False},
                            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
                        ],
                    }
                },
                r"'a\(\?=b\)' contains \(\?=...\), which cannot be reproduced exactly",
            ),
        ):
            with self.subTest(message=message):
                path.write_text(json.dumps({**good, **change}))
                self.refused(message, "tokenizer.json")

    def test_bad_arguments(self):
        vocab, merges = self.trained
        for arguments, options, message in (
            ((vocab + ["a"], merges), {}, "vocabulary: token 'a' has ids"),
            ((vocab[:-1], merges), {}, "merges, number .* not in the vocabulary"),
            ((vocab[6:], []), {"unknown": "a"}, r"1 of the 256 bytes have no token \(the first is 0x21\)"),
            ((vocab, merges), {"pattern": "gpt3"}, "pattern: 'gpt3' is not one of gpt2 llama3 qwen2"),
            ((vocab, merges), {"special_tokens": ["<new>"]}, "'<new>' is not in the vocabulary"),
            ((vocab, merges), {"lstrip": ["<mask>"]}, "'<mask>' is not one of special_tokens"),
            ((vocab, merges), {"roles": {"start": "<s>"}}, "'start' is not one of"),
            ((vocab, merges), {"roles": {"bos": "<s>"}}, "the bos token '<s>' is not one of special_tokens"),
        ):
            with self.subTest(message=message), self.assertRaisesRegex(UserError, message):
                ByteLevelBPE(*arguments, **options)

    def test_load_chooses_the_kind_by_the_files(self):
        with self.assertRaisesRegex(UserError, "contains no tokenizer"):
            text.load(self.folder)
        WordPiece([*text.SPECIAL_TOKENS, "a"]).save(self.folder / "bert")
        self.assertIsInstance(text.load(self.folder / "bert"), WordPiece)
        (self.folder / "bert" / "tokenizer.json").write_text('{"model": {"type": "WordPiece"}}')
        with self.assertRaisesRegex(UserError, "is not a vocabulary"):
            text.load(self.folder / "bert")


class TrainByteLevelTest(tf.test.TestCase):
    def test_specials_then_bytes_then_the_frequent_pairs(self):
        vocab, merges = training.train_byte_level(["aab aab", "aab c"], 300, ["<s>", "</s>"])
        self.assertEqual(vocab[:2], ["<s>", "</s>"])
        self.assertEqual({*vocab[2:258]}, {*BYTES})
        self.assertEqual(merges[:2], [("a", "a"), ("aa", "b")])  # By frequency; of equal ones the lower ids first.
        self.assertEqual(vocab[258:], ["aa", "aab", "Ġaab"][: len(vocab) - 258])
        for size in (257, 0):
            with self.assertRaisesRegex(UserError, rf"vocab_size \({size}\) must be at least 258"):
                training.train_byte_level(["a"], size, ["<s>", "</s>"])
        with self.assertRaisesRegex(UserError, "must be distinct"):
            training.train_byte_level(["a"], 300, ["<s>", "<s>"])
        with self.assertRaisesRegex(UserError, "pattern: 'x' is not one of"):
            training.train_byte_level(["a"], 300, pattern="x")

    def test_results_do_not_depend_on_process_or_order(self):
        script = (
            "import json, random, sys\n"
            "from tfzoo.text.training import train_byte_level\n"
            "letters = 'abcdefghijklmnopqrstuvwxyzäöüéèçñ漢字'\n"
            "texts = [''.join(random.Random(i).choices(letters + ' ', k=50)) for i in range(200)]\n"
            "random.Random(int(sys.argv[1])).shuffle(texts)\n"
            "print(json.dumps(train_byte_level(texts, 700, pattern='qwen2')))\n"
        )
        self.assertEqual(len(json.loads(printed_in_every_process(script))[0]), 700)


if __name__ == "__main__":
    tf.test.main()
