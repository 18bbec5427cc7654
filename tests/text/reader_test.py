"""How a model's texts are framed, truncated, paired and padded."""

import types
from unittest import mock

import numpy as np
import tensorflow as tf

from tests.export import small
from tfzoo import models
from tfzoo.errors import UserError
from tfzoo.text import framing
from tfzoo.text.byte_level import ByteLevelBPE
from tfzoo.text.framing import PAIR, TEXT
from tfzoo.text.reader import Reader

TOKENIZER = small.tokenizer()
BPE = small.byte_level_tokenizer()
ROLES = ("cls", "sep", "bos", "eos")
INPUTS = ("token_ids", "segment_ids", "padding_mask")


def layout(family):
    return models.page(family).Model.LAYOUT


class ReaderTest(tf.test.TestCase):
    def read(self, texts, length=32, inputs=INPUTS, **options):
        frame = framing.frame(layout("bert"), TOKENIZER, len(texts) == 2)
        reader = Reader(TOKENIZER, frame, inputs, length, **options)
        return reader.read(dict(zip((TEXT, PAIR), map(tf.constant, texts))))

    def test_frames(self):
        cls, sep = TOKENIZER.cls_id, TOKENIZER.sep_id
        for family, tokenizer, single, pair, segments in (
            ("bert", TOKENIZER, (cls, TEXT, sep), (cls, TEXT, sep, PAIR, sep), (0, 0, 0, 1, 1)),
            ("roberta", BPE, (0, TEXT, 2), (0, TEXT, 2, 2, PAIR, 2), (0,) * 6),
            ("xlnet", TOKENIZER, (TEXT, sep, cls), (TEXT, sep, PAIR, sep, cls), (0, 0, 1, 1, 2)),
            ("t5", BPE, (TEXT, 2), (TEXT, 2, PAIR, 2), (0, 0, 1, 1)),
        ):
            self.assertEqual(framing.frame(layout(family), tokenizer).parts, single)
            self.assertEqual(framing.frame(layout(family), tokenizer, pair=True), framing.Frame(pair, segments))
        self.assertEqual(framing.frame(layout("llama"), BPE).parts, (0, TEXT))
        self.assertEqual(framing.frame(layout("gpt2"), BPE).parts, (TEXT,))
        with self.assertRaisesRegex(UserError, "text_pair: .*no token to separate"):
            framing.frame(layout("gpt2"), BPE, pair=True)

    def test_omitted_special_tokens(self):
        """Tests omitted tokens.

        These are a bos token that the tokenizer's folder does not request or that does not exist, and tokens of the
        layout that the tokenizer lacks; its end-of-text token, if any, replaces the latter.
        """

        def tokenizer(*special, **options):
            bpe = ByteLevelBPE([*special, *BPE.vocab[5:]], [], special_tokens=special)
            return mock.Mock(
                bpe, frames=None, **{f"{role}_id": getattr(bpe, f"{role}_id") for role in ROLES}, **options
            )

        requested = tokenizer("<s>", "</s>", adds_bos=True)
        self.assertEqual(framing.frame(layout("gpt2"), requested).parts, (0, TEXT))
        for family in ("llama", "gpt2"):
            self.assertEqual(framing.frame(layout(family), tokenizer("</s>", adds_bos=True)).parts, (TEXT,))
        for family in ("bert", "roberta", "xlnet", "bart"):
            bpe = tokenizer("<|endoftext|>", adds_bos=False)
            self.assertEqual(framing.frame(layout(family), bpe).parts, (TEXT, 0))
            self.assertEqual(framing.frame(layout(family), bpe, pair=True).parts, (TEXT, 0, PAIR, 0))
        for family in ("bert", "t5"):
            bpe = tokenizer("<pad>", adds_bos=False)
            self.assertEqual(framing.frame(layout(family), bpe).parts, (TEXT,))
            with self.assertRaisesRegex(UserError, "text_pair: .*no token to separate"):
                framing.frame(layout(family), bpe, pair=True)
        with self.assertRaisesRegex(UserError, "mBART's texts end with the code of their language"):
            framing.frame(layout("bart"), mock.Mock(kind="mbart", frames=None))

    def test_rows_of_a_fixed_length(self):
        reading = self.read([["a", "the function of"]], 8, fixed_length=True)
        self.assertEqual(reading.inputs["token_ids"].shape, [2, 8])
        self.assertAllEqual(tf.reduce_sum(tf.cast(reading.inputs["padding_mask"], tf.int32), 1), [3, 5])

    def test_a_batch(self):
        reading = self.read([["the function", "", "a"], ["of", "the", ""]])
        the, function, of, a = (small.VOCAB.index(word) for word in ("the", "function", "of", "a"))
        rows = [[2, the, function, 3, of, 3], [2, 3, the, 3, 0, 0], [2, a, 3, 3, 0, 0]]
        self.assertAllEqual(reading.inputs["token_ids"], rows)
        segments = [[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 0, 0]]
        self.assertAllEqual(reading.inputs["segment_ids"], segments)
        self.assertAllEqual(reading.inputs["padding_mask"], np.arange(6) < [[6], [4], [4]])
        self.assertAllEqual(reading.of[PAIR], [[0, 0, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0], [0] * 6])

    def test_each_of_two_texts_may_use_half_and_what_the_other_leaves(self):
        texts = [["a " * 20, "b", "a " * 20], ["b", "a " * 20, "b " * 20]]
        reading = self.read(texts, 10)
        lengths = [tf.reduce_sum(tf.cast(reading.of[piece], tf.int32), 1).numpy().tolist() for piece in (TEXT, PAIR)]
        self.assertEqual(lengths, [[6, 1, 4], [1, 6, 3]])
        self.assertAllEqual(reading.truncated, [True, True, True])

    def test_long_texts(self):
        texts = [["a " * 6, "a " * 7]]
        self.assertAllEqual(self.read(texts, 8).truncated, [False, True])
        with self.assertRaisesRegex(UserError, "--sequence_length=2 leaves no room"):
            self.read(texts, 2)

    def test_an_encoder_decoder_reads_the_text_on_both_sides(self):
        names = ("token_ids", "padding_mask", "decoder_token_ids", "decoder_padding_mask")
        inputs = self.read([["a b"]], inputs=names, start_id=TOKENIZER.pad_id).inputs
        self.assertEqual(tuple(inputs), names)
        self.assertAllEqual(inputs["decoder_token_ids"], [[TOKENIZER.pad_id, *inputs["token_ids"][0, :-1]]])
        self.assertAllEqual(inputs["decoder_padding_mask"], inputs["padding_mask"])

    def test_the_start_of_a_decoder_is_real_even_if_the_text_is_empty(self):
        names = ("token_ids", "padding_mask", "decoder_token_ids", "decoder_padding_mask")
        bare = framing.Frame((TEXT,), (0,))
        reader = Reader(TOKENIZER, bare, names, 8, start_id=TOKENIZER.pad_id)
        inputs = reader.read({TEXT: tf.constant(["", "a b"])}).inputs
        self.assertAllEqual(inputs["padding_mask"], [[False, False], [True, True]])
        self.assertAllEqual(inputs["decoder_padding_mask"], [[True, False], [True, True]])

    def test_the_ends_of_encoder_decoders(self):
        roles = {"cls": 5, "sep": 6, "pad": 7, "eos": 8}

        def ends(*names, **others):
            ids = {f"{name}_id": roles[name] for name in names}
            return framing.encoder_decoder_ends(types.SimpleNamespace(**ids, **others))

        self.assertEqual(ends("cls", "sep", "pad"), (6, 5, 6))  # BART.
        self.assertEqual(ends("cls", "sep", "pad", "eos"), (6, 5, 6))
        self.assertEqual(ends("pad", "eos"), (7, None, 8))  # T5 and Marian.
        self.assertEqual(ends("cls", "sep", "pad", "eos", sentinel_ids=[9]), (7, None, 8))
        self.assertEqual(ends("pad"), (7, None, None))
        self.assertEqual(framing.encoder_decoder_ends(TOKENIZER).start, TOKENIZER.sep_id)


if __name__ == "__main__":
    tf.test.main()
