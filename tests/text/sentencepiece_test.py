"""SentencePiece compared with the `sentencepiece` library, on varied lines, for real models and tiny ones."""

import functools
import json
import os
import pathlib
import pickle
import random
import re
import unicodedata

import numpy as np
import sentencepiece
import tensorflow as tf

from tests.helpers import temporary_folder
from tests.text.varied import SENTENCES, SPECIALS, lines
from tfzoo.errors import UserError
from tfzoo.text import load, training
from tfzoo.text.sentencepiece import SentencePiece
from tfzoo.text.sentencepiece_files import KINDS
from tfzoo.text.sentencepiece_proto import message_type


def clean(text: str, lowercase: bool, keep_accents: bool) -> str:
    """Returns a text after the preprocessing of XLNet's and ALBERT's released code."""
    text = " ".join(text.split()).replace("``", '"').replace("''", '"')
    if not keep_accents:
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return text.lower() if lowercase else text


def clean_ids(oracle: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
    """Returns the ids of a cleaned text, with the same code's rule for pieces such as "9,"."""
    ids: list[int] = []
    for piece in oracle.encode(text, out_type=str):
        if len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit():
            parts = oracle.encode(piece[:-1].replace("\u2581", ""), out_type=str)
            if piece[0] != "\u2581" and parts[0][0] == "\u2581":
                parts = parts[1:] if len(parts[0]) == 1 else [parts[0][1:], *parts[1:]]
            ids += [oracle.piece_to_id(part) for part in [*parts, ","]]
        else:
            ids.append(oracle.piece_to_id(piece))
    return ids


class SentencePieceTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.lines = lines(5000)
        texts = [line for line in lines(700) if len(line) < 400 and not any(special in line for special in SPECIALS)]
        cls.models = {
            "unigram": training.train_sentencepiece(texts, 1500),
            "unigram with bytes": training.train_sentencepiece(SENTENCES, 900, byte_fallback=True),
            "bpe": training.train_sentencepiece(texts, 1500, "bpe"),
            "llama": training.train_sentencepiece(
                SENTENCES, 900, "bpe", ("<unk>", "<s>", "</s>"), True, "identity", keep_spaces=True
            ),
            "fairseq": training.train_sentencepiece(texts, 1500, specials=("<unk>", "<s>", "</s>")),
            "xlnet": training.train_sentencepiece(
                [*texts, *("7, 1, 19, 9,9, x3,x" for _ in range(50))],
                1500,
                specials=("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>"),
            ),
            "albert": training.train_sentencepiece(
                [clean(text, True, False) for text in [*texts, *("7, 1, 19, 9,9, x3,x" for _ in range(50))]],
                1500,
                specials=("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"),
            ),
        }

    def check_against_reference(self, model: bytes, kind: str = "t5", min_unknown: int = 0):
        tokenizer = SentencePiece(model, kind)
        oracle = sentencepiece.SentencePieceProcessor(model_proto=model)
        want = oracle.encode(self.lines)
        ids, starts, ends = (ragged.to_list() for ragged in tokenizer.tokenize_with_offsets(self.lines))
        self.assertEqual(tokenizer.tokenize(self.lines).to_list(), ids)
        self.assertEqual([ascii(a) for a, b, c in zip(self.lines, ids, want) if b != c], [])
        unknown = sum(tokenizer.unknown_id in row for row in ids)
        self.assertGreaterEqual(unknown, min_unknown)
        protos = oracle.encode(self.lines[:1000], out_type="immutable_proto")
        for line, begin, end, proto in zip(self.lines, starts, ends, protos):
            self.assertEqual(begin, [piece.begin for piece in proto.pieces], ascii(line))
            self.assertEqual(end, [piece.end for piece in proto.pieces], ascii(line))
        texts = tokenizer.detokenize(tf.ragged.constant(ids, dtype=tf.int32)).numpy()
        wrong = [ascii(a) for a, b, c in zip(self.lines, texts, oracle.decode(want)) if b.decode() != c]
        self.assertEqual(wrong, [])

    def test_ids_offsets_and_texts_of_tiny_models_equal_the_librarys(self):
        for name in ("unigram", "unigram with bytes", "bpe", "llama"):
            with self.subTest(name=name):
                has_bytes = name in ("unigram with bytes", "llama")
                self.check_against_reference(
                    self.models[name], "llama" if name == "llama" else "t5", 0 if has_bytes else 100
                )
                tokenizer = SentencePiece(self.models[name], sentinels=0)
                self.assertEqual("<0x41>" in tokenizer.vocab, has_bytes)

    def test_ids_offsets_and_texts_of_released_models_equal_the_librarys(self):
        if "TFZOO_DATA" not in os.environ:
            self.skipTest("TFZOO_DATA names no folder with vocab/t5/spiece.model")
        for name in ("t5/spiece.model", "trax-sentencepiece/sentencepiece.model"):
            with self.subTest(name=name):
                path = pathlib.Path(os.environ["TFZOO_DATA"], "vocab", name)
                self.check_against_reference(path.read_bytes(), min_unknown=100)

    def test_t5_as_released(self):
        if "TFZOO_DATA" not in os.environ:
            self.skipTest("TFZOO_DATA names no folder with vocab/t5/spiece.model")
        tokenizer = SentencePiece.from_file(pathlib.Path(os.environ["TFZOO_DATA"], "vocab/t5/spiece.model"))
        self.assertEqual(tokenizer.vocab_size, 32_100)
        self.assertEqual((tokenizer.pad_id, tokenizer.eos_id, tokenizer.unknown_id), (0, 1, 2))
        self.assertEqual(tokenizer.sentinel_ids[:2] + tokenizer.sentinel_ids[-1:], [32_099, 32_098, 32_000])
        text = "The house is wonderful."  # The example in transformers' documentation of T5.
        self.assertEqual(tokenizer.tokenize([text]).to_list(), [[37, 629, 19, 1627, 5]])
        ids = tokenizer.tokenize(["The <extra_id_0> walks"], special=("<extra_id_0>",)).to_list()
        self.assertEqual(ids, [[37, 32_099, 10_681]])

    def test_xlnets_and_alberts_ids_equal_those_of_their_own_code(self):
        for kind, choices in (("xlnet", ((False, False), (True, True))), ("albert", ((True, False), (False, True)))):
            oracle = sentencepiece.SentencePieceProcessor(model_proto=self.models[kind])
            row = KINDS[kind]
            self.assertEqual(choices[0], (row.lowercase, row.keep_accents))
            for lowercase, keep_accents in choices:
                with self.subTest(kind=kind, lowercase=lowercase, keep_accents=keep_accents):
                    tokenizer = SentencePiece(self.models[kind], kind, lowercase=lowercase, keep_accents=keep_accents)
                    cleaned = [clean(line, lowercase, keep_accents) for line in self.lines]
                    want = [clean_ids(oracle, text) for text in cleaned]
                    got = tokenizer.tokenize(self.lines).to_list()
                    self.assertEqual([ascii(a) for a, b, c in zip(self.lines, got, want) if b != c], [])
                    taken_apart = sum(a != b for a, b in zip(want, oracle.encode(cleaned)))
                    self.assertGreater(taken_apart, 20)
            with self.assertRaisesRegex(UserError, "offsets"):
                tokenizer.tokenize_with_offsets(["a"])

    def test_every_old_character_is_cleaned_as_python_does(self):
        # Characters newer than both Unicode tables may differ, as the docstring says.
        old = unicodedata.ucd_3_2_0
        characters = [chr(c) for c in range(0x110000) if old.category(chr(c)) not in ("Cn", "Cs", "Co")]
        self.assertGreater(len(characters), 90_000)
        texts = [f"a{c}b A{c}" for c in characters]
        for lowercase in (True, False):
            for keep_accents in (True, False):
                tokenizer = SentencePiece(self.models["xlnet"], "xlnet", lowercase=lowercase, keep_accents=keep_accents)
                got = tokenizer._clean(tf.constant(texts)).numpy()
                wrong = [
                    ascii(text)
                    for text, result in zip(texts, got)
                    if result.decode() != clean(text, lowercase, keep_accents)
                ]
                self.assertEqual(wrong, [])

    def test_fairseqs_numbering(self):
        model = self.models["fairseq"]
        oracle = sentencepiece.SentencePieceProcessor(model_proto=model)
        want = [[3 if i == 0 else i + 1 for i in ids] for ids in oracle.encode(self.lines)]
        size = oracle.get_piece_size()
        for kind, total in (("xlm-roberta", size + 2), ("mbart", size + 27)):
            tokenizer = SentencePiece(model, kind)
            self.assertEqual(tokenizer.tokenize(self.lines).to_list(), want)
            self.assertEqual(tokenizer.vocab_size, total)
            roles = (tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id, tokenizer.unknown_id, tokenizer.mask_id)
            self.assertEqual(roles, (0, 1, 2, 3, total - 1))
            self.assertEqual(tokenizer.vocab[:4], ["<s>", "<pad>", "</s>", "<unk>"])
            self.assertEqual(tokenizer.vocab[4], oracle.id_to_piece(3))
            ids = [[0, *want[20], 2, 1, 1]]
            self.assertEqual(tokenizer.detokenize(ids).numpy()[0], tokenizer.detokenize([want[20]]).numpy()[0])
        self.assertEqual(tokenizer.vocab.index("en_XX"), size + 4)  # The fourth language: mBART's 250,004.
        with self.assertRaisesRegex(UserError, "pieces 0 to 2 are <pad> </s> <unk>"):
            SentencePiece(self.models["unigram"], "mbart")

    def test_special_tokens_are_plain_text_unless_requested(self):
        for name, kind in (("unigram", "t5"), ("llama", "llama"), ("xlnet", "xlnet"), ("fairseq", "mbart")):
            tokenizer = SentencePiece(self.models[name], kind)
            for token in (tokenizer.vocab[i] for i in tokenizer.special_ids):
                plain = tokenizer.tokenize([f"so {token} it", token]).to_list()
                token_id = tokenizer.vocab.index(token)
                if token_id != tokenizer.unknown_id:  # The id of < may be the unknown id.
                    self.assertNotIn(token_id, plain[0] + plain[1], (kind, token))
                self.assertGreater(len(plain[1]), 1)
                one, two = tokenizer.tokenize(["so ", " it"]).to_list()
                requested = tokenizer.tokenize([f"so {token} it", token, "", "so "], special=(token,)).to_list()
                self.assertEqual(requested, [[*one, token_id, *two], [token_id], [], one])
        tokenizer = SentencePiece(self.models["unigram"])
        text = ["<extra_id_1></s><extra_id_10><extra_id_1> x"]
        ids = tokenizer.tokenize(text, special=("<extra_id_1>", "<extra_id_10>")).to_list()[0]
        one, ten = tokenizer.sentinel_ids[1], tokenizer.sentinel_ids[10]
        plain, x = (tokenizer.tokenize([part]).to_list()[0] for part in ("</s>", " x"))
        self.assertEqual(ids, [one, *plain, ten, one, *x])
        with self.assertRaisesRegex(UserError, "'<mask>' is not one of"):
            tokenizer.tokenize(["a"], special=("<mask>",))
        none = tf.constant([], tf.string)
        self.assertEqual(tokenizer.tokenize(none, special=("</s>",)).to_list(), [])

    def test_user_defined_symbols_are_matched_in_any_text_as_in_the_library(self):
        path = pathlib.Path(self.get_temp_dir(), "symbols")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES), model_prefix=str(path), vocab_size=600, minloglevel=2,
            user_defined_symbols=["<eop>", "quick b"], hard_vocab_limit=False,
        )  # fmt: skip
        model = path.with_suffix(".model").read_bytes()
        tokenizer = SentencePiece(model)
        self.check_against_reference(model)
        symbol = tokenizer.vocab.index("<eop>")
        self.assertIn(symbol, tokenizer.tokenize(["a<eop>b"]).to_list()[0])

    def test_invalid_utf8_is_replaced(self):
        broken = (b"the\xff fox", b"\xc3(", b"fox\xe0\xa4", b"fox\xf8 dog", b"\xed\xa0\x80the", b"\xc0\x80 fox")
        for name in ("unigram", "llama"):
            tokenizer = SentencePiece(self.models[name], "llama" if name == "llama" else "t5")
            oracle = sentencepiece.SentencePieceProcessor(model_proto=self.models[name])
            for text in broken:
                ids = tokenizer.tokenize([text, "the"]).to_list()[0]
                self.assertEqual(ids, oracle.encode(text), text)
                self.assertEqual(tokenizer.tokenize_with_offsets([text])[0].to_list()[0], ids)
        tokenizer = SentencePiece(self.models["xlnet"], "xlnet")
        for text in broken:
            want = tokenizer.tokenize([text.decode("utf-8", "replace")]).to_list()
            self.assertEqual(tokenizer.tokenize([text]).to_list(), want, text)

    def test_no_texts_and_empty_texts(self):
        for name, kind in (("unigram", "t5"), ("llama", "llama"), ("xlnet", "xlnet")):
            tokenizer = SentencePiece(self.models[name], kind)
            none = tokenizer.tokenize(tf.constant([], tf.string))
            self.assertEqual(none.to_list(), [])
            self.assertEqual(tokenizer.detokenize(none).shape, [0])
            empty = tokenizer.tokenize(["", ""])
            self.assertEqual((empty.to_list(), empty.dtype), ([[], []], tf.int32))
            self.assertEqual(tokenizer.detokenize(empty).numpy().tolist(), [b"", b""])
            with self.assertRaisesRegex(ValueError, r"shape \[N\]"):
                tokenizer.tokenize(tf.constant("no batch"))

    def test_detokenize_drops_padding_and_special_tokens(self):
        tokenizer = SentencePiece(self.models["unigram"])
        fox = tokenizer.tokenize(["the fox"]).to_list()[0]
        pad, eos, sentinel = tokenizer.pad_id, tokenizer.eos_id, tokenizer.sentinel_ids[0]
        for dtype in (tf.int32, tf.int64):
            ids = tf.constant([[pad, sentinel, *fox, eos, pad]], dtype)
            self.assertEqual(tokenizer.detokenize(ids).numpy().tolist(), [b"the fox"])
        self.assertEqual(tokenizer.detokenize([[tokenizer.unknown_id]]).numpy()[0].decode(), " \u2047 ")
        for wrong in (-1, -5):
            with self.assertRaises(tf.errors.InvalidArgumentError):
                tokenizer.detokenize([[wrong]])

    def test_detokenize_any_ids_as_the_library_does(self):
        rng = np.random.default_rng(3)
        for name, kind in (("unigram", "t5"), ("llama", "llama"), ("bpe", "t5"), ("unigram with bytes", "t5")):
            tokenizer = SentencePiece(self.models[name], kind)
            oracle = sentencepiece.SentencePieceProcessor(model_proto=self.models[name])
            ids = rng.integers(0, oracle.get_piece_size(), (300, 12))
            got = [re.sub("\ufffd+", "?", text.decode()) for text in tokenizer.detokenize(ids).numpy()]
            self.assertEqual(got, [re.sub("\ufffd+", "?", text) for text in oracle.decode(ids.tolist())], name)

    def test_nothing_is_lost_by_llamas_rules(self):
        tokenizer = SentencePiece(self.models["llama"], "llama")
        texts = [line for line in self.lines if "\u2581" not in line]  # Which it treats as a space.
        got = tokenizer.detokenize(tokenizer.tokenize(texts)).numpy()
        self.assertEqual([text.decode() for text in got], texts)

    def test_tf_data_gives_the_same_ids(self):
        for name, kind in (("unigram", "t5"), ("xlnet", "xlnet"), ("fairseq", "mbart")):
            tokenizer = SentencePiece(self.models[name], kind)
            dataset = tf.data.Dataset.from_tensor_slices(self.lines).batch(100)
            dataset = dataset.map(functools.partial(tokenizer.tokenize, special=("</s>",)))
            got = [row for batch in dataset for row in batch.to_list()]
            self.assertEqual(got, tokenizer.tokenize(self.lines, special=("</s>",)).to_list())


class ModelFileTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.model = training.train_sentencepiece(SENTENCES, 500)
        cls.xlnet = training.train_sentencepiece(
            SENTENCES, 500, specials=("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>")
        )
        cls.albert = training.train_sentencepiece(
            SENTENCES, 500, specials=("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")
        )
        cls.llama = training.train_sentencepiece(SENTENCES, 800, "bpe", ("<unk>", "<s>", "</s>"), True)

    def setUp(self):
        super().setUp()
        self.folder = temporary_folder(self)
        self.path = self.folder / "spiece.model"

    def models(self):
        return {
            "t5": self.model, "xlnet": self.xlnet, "albert": self.albert, "llama": self.llama,
            "xlm-roberta": self.llama, "mbart": self.llama,
        }  # fmt: skip

    def changed(self, change) -> bytes:
        proto = message_type()()
        proto.ParseFromString(self.model)
        change(proto)
        return proto.SerializeToString()

    def test_roles(self):
        def roles(tokenizer):
            names = ("pad", "unknown", "bos", "eos", "cls", "sep", "mask")
            return [getattr(tokenizer, f"{name}_id") for name in names]

        self.assertEqual(roles(SentencePiece(self.model)), [0, 2, None, 1, None, None, None])
        self.assertEqual(roles(SentencePiece(self.xlnet, "xlnet")), [5, 0, 1, 2, 3, 4, 6])
        self.assertEqual(roles(SentencePiece(self.albert, "albert")), [0, 1, 2, 3, 2, 3, 4])
        self.assertEqual(roles(SentencePiece(self.llama, "llama")), [None, 0, 1, 2, None, None, None])
        self.assertEqual(roles(SentencePiece(self.llama, "xlm-roberta"))[:6], [1, 3, 0, 2, 0, 2])
        tokenizer = SentencePiece(self.model, sentinels=3)
        size = tokenizer.vocab_size
        self.assertEqual(tokenizer.sentinel_ids, [size - 1, size - 2, size - 3])
        self.assertEqual(tokenizer.special_ids, [0, 1, 2, size - 3, size - 2, size - 1])
        self.assertEqual(tokenizer.vocab[-1], "<extra_id_0>")

    def test_marians_ids_are_in_a_separate_file(self):
        library = sentencepiece.SentencePieceProcessor(model_proto=self.model)
        pieces = [library.id_to_piece(i) for i in range(library.get_piece_size())]
        names = ["</s>", "<unk>", *(piece for piece in pieces[3:] if len(piece) < 3), ">>fra<<", "<pad>"]
        vocab = {name: i for i, name in enumerate(dict.fromkeys(names))}
        (self.folder / "source.spm").write_bytes(self.model)
        (self.folder / "target.spm").write_bytes(self.model)
        (self.folder / "vocab.json").write_text(json.dumps(vocab))
        (self.folder / "tokenizer_config.json").write_text('{"tokenizer_class": "MarianTokenizer"}')
        tokenizer = load(self.folder)
        unknown = vocab["<unk>"]
        wanted = [[vocab.get(piece, unknown) for piece in library.encode(line, out_type=str)] for line in SENTENCES]
        self.assertEqual(tokenizer.tokenize(SENTENCES).to_list(), wanted)
        self.assertTrue(any(unknown in ids for ids in wanted))
        coded = tokenizer.tokenize([f">>fra<<{SENTENCES[0]}"]).to_list()[0]
        self.assertEqual(coded, [vocab[">>fra<<"], *wanted[0]])
        self.assertEqual([frame.parts[-1] for frame in tokenizer.frames], [vocab["</s>"]] * 2)
        tokenizer.save(self.folder / "again")
        for name in ("source.spm", "target.spm", "vocab.json"):
            self.assertEqual((self.folder / "again" / name).read_bytes(), (self.folder / name).read_bytes())

    def test_save_and_from_folder(self):
        text = ["The quick brown fox, İstanbul ÉCOLE 3,14"]
        self.assertEqual(sorted(self.models()), sorted({*KINDS} - {"marian"}))  # This kind has more files, see above.
        for kind, model in self.models().items():
            with self.subTest(kind=kind):
                folder = self.folder / kind
                tokenizer = SentencePiece(model, kind)
                tokenizer.save(folder)
                again = SentencePiece.from_folder(folder)
                self.assertEqual(again.fingerprint(), tokenizer.fingerprint())
                self.assertEqual((again.kind, again.model, again.vocab), (kind, model, tokenizer.vocab))
                self.assertEqual(again.tokenize(text).to_list(), tokenizer.tokenize(text).to_list())
        tokenizer = SentencePiece(self.xlnet, "xlnet", lowercase=True, keep_accents=True)
        tokenizer.save(self.folder / "options")
        again = SentencePiece.from_folder(self.folder / "options")
        self.assertEqual(again.fingerprint(), tokenizer.fingerprint())
        tokenizer = SentencePiece(self.llama, "llama", roles={"pad": "</s>"})
        tokenizer.save(self.folder / "pad")
        self.assertEqual(SentencePiece.from_folder(self.folder / "pad").pad_id, 2)
        tokenizer = SentencePiece(self.model, sentinels=7)
        tokenizer.save(self.folder / "seven")
        self.assertLen(SentencePiece.from_folder(self.folder / "seven").sentinel_ids, 7)

    def test_config_json_determines_the_kind_of_an_old_folder(self):
        SentencePiece(self.model).save(self.folder)
        (self.folder / "tokenizer_config.json").write_text('{"model_max_length": 512}')
        with self.assertRaisesRegex(UserError, "has no tokenizer_class"):
            SentencePiece.from_folder(self.folder)
        (self.folder / "config.json").write_text('{"model_type": "t5"}')
        self.assertLen(SentencePiece.from_folder(self.folder).sentinel_ids, 100)

    def test_fingerprint(self):
        tokenizer = SentencePiece(self.model)
        self.assertRegex(tokenizer.fingerprint(), "^[0-9a-f]{64}$")
        self.assertEqual(tokenizer.fingerprint(), SentencePiece(self.model).fingerprint())
        others = [
            SentencePiece(self.model, sentinels=0), SentencePiece(self.xlnet), SentencePiece(self.xlnet, "xlnet"),
            SentencePiece(self.xlnet, "xlnet", lowercase=True), SentencePiece(self.xlnet, "xlnet", keep_accents=True),
        ]  # fmt: skip
        prints = {tokenizer.fingerprint(), *(other.fingerprint() for other in others)}
        self.assertLen(prints, 6)

    def test_files_that_are_not_models(self):
        def drop_unknown(proto):
            proto.pieces[2].type = 1

        def repeat(proto):
            proto.pieces[40].piece = proto.pieces[30].piece

        def empty(proto):
            proto.pieces[40].piece = b""

        def not_utf8(proto):
            proto.pieces[40].piece = b"\xff\xfe"

        def odd_type(proto):
            proto.pieces[40].type = 9

        def piece(text, score=0.0, type_=1):
            def change(proto):
                proto.pieces[40].piece, proto.pieces[40].score, proto.pieces[40].type = text, score, type_

            return change

        def table(side, content):
            def change(proto):
                getattr(proto, side).precompiled_charsmap = content

            return change

        def model_type(proto):
            proto.trainer_spec.model_type = 7

        first_piece, outside = 2 + self.model[1], bytes.fromhex("0400000000feff7f0000")
        for content, message in (
            (b"", "is not a SentencePiece model"),
            (b"[PAD]\n[UNK]\n", r"is not a SentencePiece model \(it begins with b'\[PAD\]"),
            (b'{"version": "1.0"}', "is not a SentencePiece model"),
            (b"\n\n\n\n", "is not a SentencePiece model"),
            (b"\nthe first line is empty\n", "is not a SentencePiece model"),
            (pickle.dumps(["a"]), "is not a SentencePiece model"),
            (b"PK\x03\x04....", "is not a SentencePiece model"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a Git LFS pointer"),
            (self.model[:first_piece], "truncated, or not a SentencePiece model"),
            (self.changed(drop_unknown), "has no unknown piece among its"),
            (self.changed(repeat), "piece 40 .* is the same as piece 30"),
            (self.changed(empty), "piece 40 is empty"),
            (self.changed(not_utf8), "piece 40 .* is not UTF-8"),
            (self.changed(odd_type), "piece 40 .* has type 9"),
            (self.changed(table("normalizer_spec", b"\xff" * 40)), "normalisation table is damaged"),
            # These end the process with SIGSEGV or SIGABRT if a native library reads them.
            (self.changed(table("normalizer_spec", outside)), "normalisation table is damaged .*outside itself"),
            (self.changed(table("denormalizer_spec", outside)), "normalisation table is damaged .*outside itself"),
            (self.changed(piece(b"\0")), "piece 40 .* contains NUL"),
            (self.changed(piece(b"a\0b", type_=4)), "piece 40 .* contains NUL"),
            (self.changed(piece(b"a" * 2_000_000)), "piece 40 .* has more than 1000 bytes"),
            (self.changed(piece(b"~", float("nan"))), "piece 40 .* has the score nan"),
            (self.changed(piece(b"~", float("-inf"))), "piece 40 .* has the score -inf"),
            (self.changed(piece(b"~~~", type_=6)), "piece 40 .* is not of the form <0xFF>"),
            (self.changed(model_type), "model_type is 7"),
            (self.model + b"\x12\x05\xe2\x02\x02\xff\xfe", "is not a SentencePiece model"),  # unk_surface.
        ):
            with self.subTest(message=message):
                self.path.write_bytes(content)
                with self.assertRaisesRegex(UserError, message) as caught:
                    SentencePiece.from_file(self.path)
                self.assertIn(str(self.path), str(caught.exception))
                self.assertNotIn("\n", str(caught.exception))
        with self.assertRaisesRegex(UserError, "no such file or directory"):
            SentencePiece.from_file(self.folder / "none.model")

    def test_a_model_truncated_anywhere_is_rejected(self):
        rng = random.Random(5)
        proto = message_type()()
        proto.ParseFromString(self.model)
        for size in [len(self.model) - 1, 1, 2, 3, *rng.sample(range(len(self.model)), 60), *range(4000, 4040)]:
            with self.assertRaises(UserError):
                SentencePiece(self.model[:size])

    def test_options_that_do_not_apply_to_the_kind(self):
        for arguments, message in (
            ((self.model, "albrt"), r"'albrt' is not one of .*did you mean albert"),
            ((self.llama, "llama", 5), "only t5 has sentinels"),
            ((self.model, "t5", None, True), "neither"),
            ((self.model, "t5", None, None, None, {"start": "<s>"}), "'start' is not one of"),
        ):
            names = ("model", "kind", "sentinels", "lowercase", "keep_accents", "roles")
            with self.assertRaisesRegex(UserError, message):
                SentencePiece(**dict(zip(names, arguments)))
        model = training.train_sentencepiece(SENTENCES, 500, specials=("<pad>", "</s>", "<unk>", "<extra_id_0>"))
        with self.assertRaisesRegex(UserError, "'<extra_id_0>' already exists"):
            SentencePiece(model)
        self.assertEqual(SentencePiece(model, sentinels=0).vocab[3], "<extra_id_0>")

    def test_configs_that_are_not_supported_are_rejected(self):
        SentencePiece(self.xlnet, "xlnet").save(self.folder)
        path = self.folder / "tokenizer_config.json"
        good = json.loads(path.read_text())
        self.assertEqual((good["tokenizer_class"], good["mask_token"]), ("XLNetTokenizer", "<mask>"))
        path.write_text(json.dumps({"tokenizer_class": "XLNetTokenizerFast", "mask_token": {"content": "<mask>"}}))
        self.assertEqual(SentencePiece.from_folder(self.folder).mask_id, 6)
        path.write_text(json.dumps({**good, "mask_token": "[M]"}))  # A new token gets the next id after the last.
        again = SentencePiece.from_folder(self.folder)
        self.assertEqual((again.mask_id, again.vocab[-1]), (again.vocab_size - 1, "[M]"))
        for content, message in (
            (json.dumps({**good, "do_lower_case": "yes"}), "do_lower_case is 'yes'"),
            (json.dumps({**good, "keep_accents": 1}), "keep_accents is 1"),
            (json.dumps({**good, "remove_space": False}), "remove_space is False"),
            (json.dumps({**good, "mask_token": 3}), "mask_token is 3"),
            (json.dumps({**good, "tokenizer_class": "BertTokenizer"}), "tokenizer_class is 'BertTokenizer'"),
            (json.dumps({**good, "tokenizer_class": "T5Tokenizer", "extra_ids": -1}), "extra_ids is -1"),
            ("{", "line 1: is not JSON .Expecting property name"),
            ("[" * 100_000, "is nested too deeply"),
            ("[]", "contains a list, not an object"),
        ):
            with self.subTest(message=message):
                path.write_text(content)
                with self.assertRaisesRegex(UserError, message) as caught:
                    SentencePiece.from_folder(self.folder)
                self.assertIn(str(path), str(caught.exception))
        path.unlink()
        with self.assertRaisesRegex(UserError, "no such file"):
            SentencePiece.from_folder(self.folder)


class TrainingTest(tf.test.TestCase):
    def test_training_is_the_same_in_any_order(self):
        shuffled = list(SENTENCES)
        random.Random(1).shuffle(shuffled)
        for kind in ("unigram", "bpe"):
            model = training.train_sentencepiece(SENTENCES, 500, kind)
            self.assertEqual(model, training.train_sentencepiece(iter(shuffled), 500, kind))
            self.assertEqual(SentencePiece(model).vocab[:3], ["<pad>", "</s>", "<unk>"])
            self.assertLessEqual(SentencePiece(model, sentinels=0).vocab_size, 500)

    def test_a_long_line_is_not_skipped(self):
        model = training.train_sentencepiece(["z" * 3 + "q" * 10_000, "abc"], 20)
        self.assertIn("q", "".join(SentencePiece(model).vocab))

    def test_training_that_is_impossible(self):
        for arguments, message in (
            ((SENTENCES, 5), "no model of 5 pieces"),
            ((["", "\n"], 500), "contain no lines"),
            ((SENTENCES, 500, "word"), "'word' is neither"),
            ((SENTENCES, 500, "bpe", ("<s>",)), "must contain <unk>"),
        ):
            with self.assertRaisesRegex(UserError, message) as caught:
                training.train_sentencepiece(*arguments)
            self.assertNotIn("\n", str(caught.exception))


if __name__ == "__main__":
    tf.test.main()
