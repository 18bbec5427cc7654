"""ONNX artifacts read texts with SentencePiece, and marked entities, as TensorFlow does, and give the same answers."""

import json
import pathlib
import unicodedata
import unittest
from unittest import mock

import numpy as np
import pytest
import sentencepiece
import tensorflow as tf

from tests import helpers
from tests.export import small
from tests.prediction.harness import TEXTS, OnnxCase
from tests.text.varied import SENTENCES, lines
from tfzoo import text
from tfzoo.errors import UserError
from tfzoo.export import artifact, publish
from tfzoo.export.answers.words import pieces_of
from tfzoo.prediction import folders
from tfzoo.serve.loading import Loader
from tfzoo.serve.metrics import Metrics
from tfzoo.text import marked, sentencepiece_files, training
from tfzoo.text.libraries import SentencePieceTokenizer, open_tokenizer
from tfzoo.text.sentencepiece import SentencePiece
from tfzoo.text.sentencepiece_files import KINDS
from tfzoo.text.wordpiece import WordPiece

XLNET = ("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>")
ALBERT = ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")
FAIRSEQ = ("<unk>", "<s>", "</s>")
THINK = {"content": "<think>", "special": False, "normalized": False}
# What is added to tokenizer_config.json: tokens that are matched in every text, and a mask with the space before it.
FOX = {**THINK, "content": "own fox", "rstrip": True}
ADDED = {"added_tokens_decoder": {"2000": {**THINK, "lstrip": True}, "2001": FOX}}
LATE = {"added_tokens_decoder": {"2000": {**THINK, "normalized": True}, "2001": {**THINK, "content": "<think>k"}}}
MASK = {"mask_token": {"content": "<mask>", "lstrip": True}}
# Of the models with random weights, that of albert gives nearly all tokens one label.
TAGS = {
    "xlm-roberta": ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"),
    "albert": ("B-PER", "I-PER", "B-LOC", "I-LOC", "ORG"),
}
MARKED = [
    "<e1>the x</e1> of <e2>a</e2>.",
    "the <e2>function</e2> <e1> of </e1>  ",
    "<e1>a</e1><e2>b</e2>",
    "a function, 東京 \u3000<e1>\tnaïve\x1c</e1>\nx\n <e2>Größe\0</e2> [SEP] </s> 9, <e3>",
    "the function of a " * 9 + "<e1>x</e1>" + " of the function" * 12 + "<e2>a b c</e2>" + " x" * 40,
    "x <e1>" + "the function " * 20 + "</e1> <e2>" + "of a " * 20 + "</e2>",
    "the <e2>x</e2> and <e1>" + "the function " * 30 + "</e1> x",
]
UNMARKED = [
    "the x of a",
    "",
    "<e1>a</e1> <e2> \x85\u2003</e2>",
    "<e1>a</e1> <e1>b</e1>",
    "<e1>a</e1> <e2>b</e2> <e1>c</e1>",
    "<e1>a <e2>b</e1> c</e2>",
    "</e1>a<e1> </e2>b<e2>",
    "<e1>a</e1> <e2>b",
]


def train(kind: str) -> bytes:
    """Returns a small model for a kind of tokenizer."""
    sentences = [*SENTENCES, *["the function of a $ b # c, 7, 1, 19, 9,9, x3,x 3,14"] * 20]
    if kind == "albert":
        return training.train_sentencepiece([each.lower() for each in sentences], 600, specials=ALBERT)
    if kind == "llama":
        return training.train_sentencepiece(sentences, 900, "bpe", FAIRSEQ, True, "identity", keep_spaces=True)
    specials = {"xlnet": XLNET, "xlm-roberta": FAIRSEQ, "t5": ("<pad>", "</s>", "<unk>")}[kind]
    return training.train_sentencepiece(sentences, 600, specials=specials)


class SentencePieceTest(unittest.TestCase):
    models: dict[str, bytes]
    lines: list[str]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.models = {kind: train(kind) for kind in ("t5", "llama", "xlm-roberta", "xlnet", "albert")}
        cls.models["t5 with bytes"] = training.train_sentencepiece(SENTENCES, 800, byte_fallback=True)
        cls.models["bpe"] = training.train_sentencepiece(SENTENCES, 600, "bpe")
        inserts = [
            "a <think> b",
            "  <think>",
            "x <think>own fox  fox",
            "<think>kk <think>",
            "the fox <mask>, <mask>[MASK]",
        ]
        cls.lines = [*lines(500), *inserts, ">>fra<< le", ">><<", ">>fra<", ">>", "a >>fra<< b"]

    def folder(self, model: str, kind: str, config=(), **options) -> pathlib.Path:
        folder = helpers.temporary_folder(self) / "tokenizer"
        SentencePiece(self.models[model], kind, **options).save(folder)
        self.configure(folder, config)
        return folder

    def configure(self, folder: pathlib.Path, config) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | dict(config)))

    def check(self, folder: pathlib.Path, has_offsets: bool) -> None:
        one = text.load(folder)
        mask = () if one.mask_id is None else (one.vocab[one.mask_id],)
        other = open_tokenizer(folder, one.fingerprint())
        self.assertIsInstance(other, SentencePieceTokenizer)
        for special in dict.fromkeys(((), mask)):
            wanted = one.tokenize(self.lines, special).to_list()
            found = other.encode(self.lines, special=special)
            wrong = [ascii(a) for a, b, c in zip(self.lines, found, wanted) if list(b.ids) != c]
            self.assertEqual(wrong, [], special)
        self.assertEqual(other.has_offsets, has_offsets)
        if has_offsets:
            ids, starts, ends = (ragged.to_list() for ragged in one.tokenize_with_offsets(self.lines, special))
            for line, encoded, *columns in zip(self.lines, other.encode(self.lines, True, special), ids, starts, ends):
                self.assertEqual([encoded.ids, encoded.offsets], [columns[0], [*zip(*columns[1:])]], ascii(line))
        else:
            with self.assertRaises(UserError):
                one.tokenize_with_offsets(self.lines[:1])
        vocabulary = other.vocabulary()
        self.assertEqual(list(vocabulary.pieces), one.vocab)
        self.assertEqual(sorted(vocabulary.special_ids), one.special_ids)
        self.assertEqual(vocabulary.mask_id, one.mask_id)
        self.assertEqual(vocabulary.texts(), pieces_of(one))
        self.assertEqual(other.pad_id, one.pad_id or 0)
        self.assertEqual([other.id_of(token) for token in (one.vocab[50], "none")], [50, None])
        random = np.random.default_rng(0)
        rows = [*wanted[:400], *random.integers(0, one.vocab_size, (300, 9)).tolist(), []]
        texts = one.detokenize(tf.ragged.constant(rows, tf.int32)).numpy()
        self.assertEqual([vocabulary.decode(row) for row in rows], [each.decode() for each in texts])

    def test_models_alone(self):
        for model in ("t5", "t5 with bytes", "bpe"):
            with self.subTest(model):
                self.check(self.folder(model, "t5"), True)
        self.check(self.folder("llama", "llama"), True)

    def test_added_tokens(self):
        self.check(self.folder("t5", "t5", ADDED), True)
        self.check(self.folder("xlm-roberta", "xlm-roberta", MASK | LATE), True)

    def test_fairseqs_numbering(self):
        self.check(self.folder("xlm-roberta", "xlm-roberta"), True)
        self.check(self.folder("xlm-roberta", "mbart"), True)

    def test_llamas_prefixes(self):
        self.check(self.folder("llama", "llama", {"add_prefix_space": False}), True)
        self.check(self.folder("llama", "llama", {"legacy": False} | ADDED), False)

    def test_cleaned_texts(self):
        for kind, choices in (("xlnet", ((False, False), (True, True))), ("albert", ((True, False), (False, True)))):
            for lowercase, keep_accents in choices:
                with self.subTest(kind, lowercase=lowercase, keep_accents=keep_accents):
                    config = MASK if kind == "xlnet" else {}
                    folder = self.folder(kind, kind, config, lowercase=lowercase, keep_accents=keep_accents)
                    self.check(folder, False)
                    made = sentencepiece_files.read(folder)
                    library = sentencepiece.SentencePieceProcessor(model_proto=made.model)
                    self.assertTrue(made.without_commas(library.encode))

    def test_every_old_character_is_cleaned_alike(self):
        """Characters that Unicode has added since may differ, as the docstring says."""
        old = unicodedata.ucd_3_2_0
        characters = [chr(c) for c in range(0x110000) if old.category(chr(c)) not in ("Cn", "Cs", "Co")]
        texts = [f"a{c}b A{c}" for c in characters]
        folder = self.folder("xlnet", "xlnet", lowercase=True, keep_accents=False)
        tokenizer = SentencePieceTokenizer(folder)
        found = [tokenizer._cleaned(each) for each in texts]
        wanted = [each.decode() for each in text.load(folder)._clean(tf.constant(texts)).numpy()]
        self.assertEqual([ascii(a) for a, b, c in zip(characters, found, wanted) if b != c], [])

    def test_marians_vocabulary(self):
        folder = helpers.temporary_folder(self) / "tokenizer"
        folder.mkdir()
        library = sentencepiece.SentencePieceProcessor(model_proto=self.models["t5"])
        pieces = [library.id_to_piece(i) for i in range(library.get_piece_size())]
        names = ["</s>", "<unk>", *(piece for piece in pieces[3:] if len(piece) < 5), ">>fra<<", "<pad>"]
        (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(dict.fromkeys(names))}))
        for name in ("source.spm", "target.spm"):
            (folder / name).write_bytes(self.models["t5"])
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "MarianTokenizer"}')
        self.check(folder, False)

    def test_every_kind_is_tested(self):
        self.assertEqual({*KINDS}, {"t5", "llama", "xlnet", "albert", "xlm-roberta", "mbart", "marian"})

    def test_what_is_refused(self):
        word = {"added_tokens_decoder": {"2000": {**THINK, "single_word": True}}}
        spaced = {"added_tokens_decoder": {"2000": {**THINK, "lstrip": True}, "2001": {**THINK, "content": "  "}}}
        for config, message in (
            (word, "^--model_dir=.*: the added token '<think>' is matched as a whole word, .* specify the SavedModel"),
            (spaced, "^--model_dir=.*: the added token '  ' begins with white space, which only TensorFlow"),
        ):
            with self.assertRaisesRegex(UserError, message) as caught:
                open_tokenizer(self.folder("t5", "t5", config))
            self.assertNotIn("\n", str(caught.exception))
        folder = self.folder("t5", "t5")
        with self.assertRaisesRegex(UserError, "options that its files do not state; specify the SavedModel"):
            open_tokenizer(folder, SentencePiece(self.models["t5"], prefix="never").fingerprint())
        (folder / "spiece.model").write_bytes(self.models["t5"][:5000])
        with self.assertRaisesRegex(UserError, "spiece.model: is not a SentencePiece model, or is truncated"):
            open_tokenizer(folder)
        (folder / "spiece.model").unlink()
        with self.assertRaisesRegex(
            UserError, "has neither a tokenizer.json nor a SentencePiece model; specify the Sa"
        ):
            open_tokenizer(folder)


class AnswersTest(OnnxCase):
    """The answers of models, and of ONNX artifacts of them."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.pieces = {
            kind: SentencePiece(train(kind), kind) for kind in ("t5", "llama", "xlm-roberta", "xlnet", "albert")
        }

    def model(self, kind, head, **options):
        """Returns a model with a head, of the family of a kind of tokenizer."""
        family = {"xlm-roberta": "roberta"}.get(kind, kind)
        model = small.model(family, heads=(head,), vocab_size=self.pieces[kind].vocab_size, **options)
        if head == "tag":
            model.labels = TAGS[kind]
        elif head == "relation":
            model.markers = marked.markers(self.pieces[kind])
        return model

    def check_kinds(self, kinds, head, texts=None, **options):
        """Compares a model of each kind; returns the last one's records."""
        for kind in kinds:
            model = self.model(kind, head, num_labels=5 if head == "tag" else 3)
            records = self.check(model, self.pieces[kind], texts, **options)
        return records

    def test_parts_with_and_without_offsets(self):
        for kind in ("xlm-roberta", "albert"):
            parts = [each for record in self.check_kinds([kind], "tag") for each in record["entities"]]
            self.assertEqual({"start" in each for each in parts}, {kind == "xlm-roberta"})
        self.check_kinds(["albert"], "span", [("the x", each) for each in TEXTS])

    def test_pairs_for_an_encoder_decoder(self):
        pairs = [(one, other) for one in TEXTS for other in TEXTS]
        self.check_kinds(["t5"], "classify", pairs, text_pair=True)

    def test_masks(self):
        records = self.check_kinds(["albert"], "lm")
        self.assertEqual(len(records[4]["words"]), 1)
        # The graph lacks the inputs with which XLNet is asked for words.
        with self.assertRaisesRegex(UserError, "a program of its own .*target_mapping.*; specify the SavedModel"):
            self.predictors(self.model("xlnet", "lm"), self.pieces["xlnet"])

    def check_relations(self, model, tokenizer):
        records = self.check(model, tokenizer, [(each,) for each in [*MARKED, *UNMARKED]])
        self.assertEqual(records[len(MARKED) :], [{"error": marked.UNMARKED}] * len(UNMARKED))
        for record in records[: len(MARKED)]:
            self.assertLessEqual({"label", "score", "scores"}, {*record})

    def test_relations(self):
        tokenizer = WordPiece([*small.VOCAB, "$", "#"])
        model = small.model("bert", heads=("relation",), vocab_size=tokenizer.vocab_size)
        model.markers = marked.markers(tokenizer)
        self.check_relations(model, tokenizer)
        self.check_relations(self.model("xlm-roberta", "relation"), self.pieces["xlm-roberta"])

    def test_an_artifact_that_does_not_state_its_special_tokens(self):
        with mock.patch("tfzoo.export.answers.base.Answer.facts", lambda self: {"texts": ["text"]}):
            with self.assertRaisesRegex(UserError, "which special tokens are around a text; export the model again"):
                self.predictors(self.model("albert", "embed"), self.pieces["albert"])

    @pytest.mark.faults
    def test_the_other_kinds(self):
        self.check_kinds(("t5", "albert", "xlnet", "llama", "xlm-roberta"), "classify")
        self.check_kinds(["xlm-roberta"], "span", [("the x", each) for each in TEXTS])
        self.check_kinds(("xlm-roberta", "albert"), "embed")
        self.assertEqual(len(self.check_kinds(["xlm-roberta"], "lm")[4]["words"]), 1)
        pairs = [(one, other) for one in TEXTS for other in TEXTS]
        self.check_kinds(("albert", "xlnet"), "classify", pairs, text_pair=True)
        self.check_relations(self.model("albert", "relation"), self.pieces["albert"])
        tokenizer = small.byte_level_tokenizer()
        model = small.model("roberta", heads=("relation",), vocab_size=tokenizer.vocab_size)
        model.markers = marked.markers(tokenizer)
        self.check_relations(model, tokenizer)

    @pytest.mark.faults
    def test_artifacts(self):
        """Real graphs, in the program and in the server."""
        pairs = [(one, other) for one in TEXTS for other in TEXTS]
        for kind, head, texts, options in (
            ("albert", "tag", [(each,) for each in TEXTS], {}),
            ("xlm-roberta", "span", [("the x", each) for each in TEXTS], {}),
            ("t5", "classify", pairs, {"text_pair": True}),
            ("xlm-roberta", "relation", [(each,) for each in MARKED], {}),
            ("xlm-roberta", "relation", [(each,) for each in [*MARKED, *UNMARKED]], {"refuse": "row"}),
        ):
            with self.subTest(kind=kind, head=head, **options):
                model = self.model(kind, head, num_labels=5 if head == "tag" else 3)
                folder = helpers.temporary_folder(self)
                with mock.patch.object(publish, "replay"):
                    made = artifact.export(model, self.pieces[kind], folder, "m", sequence_length=32, **options)
                first, second = (folders.open_folder(made[name]) for name in ("savedmodel", "onnx"))
                self.assertEqual((first.task, first.inputs, first.has_offsets), (
                    second.task, second.inputs, second.has_offsets
                ))  # fmt: skip
                self.assert_near(first.answer(texts), second.answer(texts))
                self.check_served(made, dict(zip(first.inputs, zip(*texts))))
                if head == "relation":  # Without refuse=row, the server refuses a call with such a row.
                    wanted = [{"error": marked.UNMARKED}] * len(UNMARKED)
                    for predictor in (first, second):
                        self.assertEqual(predictor.answer([(each,) for each in UNMARKED]), wanted)

    def check_served(self, made, texts):
        """Compares the outputs of serving_default in the server."""
        one, other = (Loader(Metrics())("m", 1, made[name]) for name in ("savedmodel", "onnx"))
        inputs = {name: np.array([each.encode() for each in column], object) for name, column in texts.items()}
        for name, spec in one.signatures["serving_default"].outputs.items():
            same = other.signatures["serving_default"].outputs[name]
            self.assertEqual((spec.dtype, spec.shape), (same.dtype, same.shape), name)
        found, wanted = (each.run("serving_default", inputs) for each in (other, one))
        self.assertEqual(found.keys(), wanted.keys())
        for name, value in wanted.items():
            if value.dtype.kind == "f":
                np.testing.assert_allclose(found[name], value, atol=3e-5, rtol=0)
            else:
                self.assertEqual(found[name].tolist(), value.tolist(), name)


if __name__ == "__main__":
    unittest.main()
