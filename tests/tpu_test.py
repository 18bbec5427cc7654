"""What a TPU refuses is in no training step: each is compiled with static shapes, and its HLO read. None runs here."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfzoo
from tfzoo import models, nn, optim
from tfzoo.objectives.masked_lm import MaskedLM
from tfzoo.objectives.shared import TokenTargets
from tfzoo.text.wordpiece import WordPiece
from tfzoo.train import make_replica_step

BATCH, LENGTH, WORDS = 4, 8, 40
# Dynamic sizes, and kinds of data that XLA has not.
REFUSED = {
    "a dimension of no fixed size": re.compile(r"\[[^\]]*<=\d"),
    "set-dimension-size": re.compile(r"set-dimension-size"),
    "text": re.compile(r"\bDT_STRING\b|\bstring\["),
    "a call to the host": re.compile(
        r"custom_call_target=\"(?!Sharding|TopK|Qr|.*eigh)[^\"]*(?:callback|py_func|PyFunc)"
    ),
}
SMALL = dict(
    vocab_size=WORDS, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=12, max_positions=32, dropout=0.1
)
# What families need beside SMALL.
SIZES: dict[str, dict] = {
    "albert": dict(embedding_size=8),
    "bart": dict(num_decoder_layers=1),
    "electra": dict(embedding_size=8),
    "llama": dict(num_kv_heads=2),
    "palm": dict(num_kv_heads=1, head_dim=4),
    "reformer": dict(
        num_layers=2,
        attention_layers=["local", "lsh"],
        head_dim=4,
        num_buckets=[2],
        lsh_chunk_length=4,
        local_chunk_length=4,
        axial_shape=[4, 8],
        axial_dims=[4, 4],
    ),
    "t5": dict(num_decoder_layers=1, head_dim=4),
    "transformer": dict(num_decoder_layers=1),
}


KNOWN = {"reformer": ["set-dimension-size"]}  # TopKV2, which its sorting by buckets is, says its static size so.


class Targets(TokenTargets):
    name = "tpu"


def features(page) -> tuple[dict, object]:
    """(a batch, an objective) for a family's kind of model."""
    ids = np.random.default_rng(0).integers(5, WORDS, [BATCH, LENGTH]).astype(np.int32)
    batch = {"token_ids": ids, "targets": ids, "target_weights": np.ones([BATCH, LENGTH], np.float32)}
    if issubclass(page.Model, nn.EncoderDecoderModel):
        batch |= {"decoder_token_ids": ids, "padding_mask": np.ones([BATCH, LENGTH], bool)}
    elif "block_ids" in page.Model.INPUTS:
        blocks = np.repeat([[1, 2]], LENGTH // 2, axis=1).astype(np.int32) * np.ones([BATCH, 1], np.int32)
        batch |= {"block_ids": blocks, "position_ids": np.tile(np.arange(LENGTH, dtype=np.int32), [BATCH, 1])}
    return batch, Targets()


def hlo(model, objective, batch, **options) -> str:
    optimizer = optim.make_optimizer("adamw", 0.1, model.trainable_variables, weight_decay=0.1)
    step = tf.function(make_replica_step(model, optimizer, objective, **options), jit_compile=True)
    arguments = {name: tf.constant(value) for name, value in batch.items()}
    return step.experimental_get_compiler_ir(arguments)(stage="hlo")


def complaints(text: str) -> list[str]:
    return [what for what, pattern in REFUSED.items() if pattern.search(text)]


class TPUTest(tf.test.TestCase):
    def check(self, text, known=()):
        self.assertIn("ENTRY", text)
        self.assertIn("dot(", text)
        self.assertEqual(complaints(text), list(known))

    def test_masked_words_and_parts(self):
        vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(97, 97 + WORDS - 5))]
        objective = MaskedLM(WordPiece(vocab), LENGTH)
        count = 3
        batch = {
            "token_ids": np.full([BATCH, LENGTH], 7, np.int32),
            "segment_ids": np.zeros([BATCH, LENGTH], np.int32),
            "padding_mask": np.ones([BATCH, LENGTH], bool),
            "masked_positions": np.zeros([BATCH, count], np.int32),
            "masked_ids": np.full([BATCH, count], 7, np.int32),
            "masked_weights": np.ones([BATCH, count], np.float32),
            "next_sentence": np.zeros([BATCH], np.int32),
            "next_sentence_weight": np.ones([BATCH], np.float32),
        }
        model = tfzoo.build("bert_tiny", **SMALL)
        self.check(hlo(model, objective, batch, num_parts=2, clip_norm=1.0, clip_each=1.0))

    def test_the_lint_finds_what_it_is_for(self):
        step = tf.function(lambda x: tf.reduce_sum(tf.boolean_mask(x, x > 0)), jit_compile=True)
        text = step.experimental_get_compiler_ir(tf.constant([1.0, -1.0]))(stage="hlo")
        self.assertIn("a dimension of no fixed size", complaints(text))

    @pytest.mark.faults
    def test_every_family(self):
        for family in models.FAMILIES:
            page = models.page(family)
            with self.subTest(family=family):
                keras.utils.set_random_seed(1)
                batch, objective = features(page)
                sizes = SMALL | SIZES.get(family, {})
                model = tfzoo.build(next(iter(page.CONFIGS)), heads=("lm",), **sizes)
                self.check(hlo(model, objective, batch, clip_norm=1.0), KNOWN.get(family, ()))


if __name__ == "__main__":
    tf.test.main()
