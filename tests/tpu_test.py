"""What a TPU refuses is in no training step: each is compiled with static shapes, and its HLO read. None runs here."""

import re
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.data.corpora import corpus
from tfzoo import config as config_lib
from tfzoo import models
from tfzoo.data import by_length, pipeline
from tfzoo.data.encoded import EncodedRows
from tfzoo.data.tokenized import TokenizedCorpus
from tfzoo.errors import UserError
from tfzoo.objectives.causal import Causal
from tfzoo.objectives.denoise import Denoise
from tfzoo.objectives.fill_in_the_middle import MARKERS, FillInTheMiddle
from tfzoo.objectives.masked_lm import MaskedLM
from tfzoo.objectives.permutation import Permutation
from tfzoo.objectives.prefix_lm import DecoderPrefixLM, PrefixLM
from tfzoo.objectives.replaced_token import ReplacedToken
from tfzoo.objectives.seq2seq import Seq2Seq
from tfzoo.objectives.shared import TokenTargets
from tfzoo.objectives.span_corruption import SpanCorruption
from tfzoo.objectives.ul2 import UL2
from tfzoo.tasks.classify import Classify
from tfzoo.training import optimizers
from tfzoo.training import step as step_lib
from tfzoo.training.task_inputs import TaskRows

BATCH, LENGTH, WORDS, SENTINELS = 4, 16, 40, 10
FIRST_WORD = 10  # After the special tokens.
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


def tokenizer():
    """What the objectives ask of one: a few special tokens, words, sentinels."""
    names = ("pad_id", "eos_id", "unk_id", "cls_id", "sep_id", "mask_id", "bos_id")
    sentinels = list(range(WORDS - SENTINELS, WORDS))
    return types.SimpleNamespace(
        vocab=[*names, *MARKERS[0], *(f"t{i}" for i in range(FIRST_WORD, WORDS))],
        vocab_size=WORDS,
        special_ids=[*range(FIRST_WORD), *sentinels],
        sentinel_ids=sentinels,
        continues=np.arange(WORDS) % 3 == 0,
        **{name: i for i, name in enumerate(names)},
    )


# --objective -> each way of it that has a graph of its own.
OBJECTIVES: dict[str, list] = {
    "masked_lm": [
        lambda: MaskedLM(tokenizer(), LENGTH),
        lambda: MaskedLM(tokenizer(), LENGTH, mask_unit="span", mask_rate=0.3, pairs="none", pack=False),
        lambda: MaskedLM(tokenizer(), LENGTH, mask_unit="ngram", pairs="none", pack=True),
    ],
    "causal": [lambda: Causal(tokenizer(), LENGTH), lambda: Causal(tokenizer(), LENGTH, pack=False)],
    "replaced_token": [
        lambda: ReplacedToken(tokenizer(), LENGTH),
        lambda: ReplacedToken(tokenizer(), LENGTH, pack=False),
    ],
    "span_corruption": [
        lambda: SpanCorruption(tokenizer(), LENGTH),
        lambda: SpanCorruption(tokenizer(), LENGTH, pack=False),
    ],
    "denoise": [lambda: Denoise(tokenizer(), LENGTH), lambda: Denoise(tokenizer(), LENGTH, pack=False)],
    "seq2seq": [
        lambda: Seq2Seq(tokenizer(), LENGTH),
        lambda: Seq2Seq(tokenizer(), LENGTH, pack=False, label_smoothing=0.0),
    ],
    "prefix_lm": [
        lambda: PrefixLM(tokenizer(), LENGTH),
        lambda: PrefixLM(tokenizer(), LENGTH, pack=False),
        lambda: DecoderPrefixLM(tokenizer(), LENGTH),
        lambda: DecoderPrefixLM(tokenizer(), LENGTH, pack=False),
    ],
    "fill_in_the_middle": [
        lambda: FillInTheMiddle(tokenizer(), LENGTH),
        lambda: FillInTheMiddle(tokenizer(), LENGTH, pack=False),
    ],
    "ul2": [lambda: UL2(tokenizer(), LENGTH), lambda: UL2(tokenizer(), LENGTH, pack=False)],
    "permutation": [
        lambda: Permutation(tokenizer(), LENGTH),
        lambda: Permutation(tokenizer(), LENGTH, memory_length=4),
    ],
}


class Targets(TokenTargets):
    """For families that no objective trains yet."""

    name = PREFIX = "tpu"


def batch_of(objective) -> dict:
    """A training batch as the pipeline makes it; its shapes must be static."""
    if isinstance(objective, Targets):
        ids = np.random.default_rng(0).integers(FIRST_WORD, WORDS, [BATCH, LENGTH]).astype(np.int32)
        return {"token_ids": ids, "targets": ids, "target_weights": np.ones([BATCH, LENGTH], np.float32)}
    parallel = isinstance(objective, Seq2Seq)
    text = corpus([[5, 6], [2, 2], [3, 9]] * 8 if parallel else [[5, 6], [3], [7, 4, 6], [2, 2], [9]] * 8)
    words = np.random.default_rng(0).integers(FIRST_WORD, WORDS - SENTINELS, len(text.token_ids)).astype(np.int32)
    rows = objective.rows(TokenizedCorpus(words, text.sentence_starts, text.document_starts))
    batches = pipeline.training_batches(rows, objective, batch_size=BATCH, seed=0, first_step=0, num_steps=1)
    for name, spec in batches.element_spec.items():
        assert spec.shape.is_fully_defined(), (name, spec)
    return next(iter(batches))


def hlo(by_role, objective, batch, **options) -> str:
    optimizer = optimizers.make_optimizer("adamw", 0.1, step_lib.trainable_variables(by_role), weight_decay=0.1)
    step = tf.function(step_lib.make_replica_step(by_role, optimizer, objective, **options), jit_compile=True)
    arguments = {name: tf.constant(value) for name, value in batch.items()}
    return step.experimental_get_compiler_ir(arguments)(stage="hlo")


def complaints(text: str) -> list[str]:
    return [what for what, pattern in REFUSED.items() if pattern.search(text)]


class TPUTest(tf.test.TestCase):
    def check(self, family, objective, **options):
        page = models.page(family)
        name = next(iter(page.CONFIGS))
        keras.utils.set_random_seed(1)
        _, config = models.find(name)
        sizes = SMALL | SIZES.get(family, {})
        if family in ("performer", "reformer"):
            sizes |= dict(causal=objective.MODEL_KIND[0] == "decoder")
        config = config_lib.from_mapping(vars(config) | sizes, type(config))
        text = hlo(objective.build_models(page, config), objective, batch_of(objective), **options)
        self.assertIn("ENTRY", text)
        self.assertIn("dot(", text)
        self.assertEqual(complaints(text), KNOWN.get(family, []))

    def test_masked_words_and_parts(self):
        self.check("bert", OBJECTIVES["masked_lm"][0](), num_parts=2, clip_norm=1.0, clip_each=1.0)

    @pytest.mark.faults
    def test_smoothed_labels(self):
        self.check("transformer", OBJECTIVES["seq2seq"][0]())

    def test_fine_tuning_with_batches_of_one_shape(self):
        task = Classify(tokenizer(), LENGTH, page=models.page("bert"), labels=("x", "y"), label_smoothing=0.1)
        ids = [np.arange(i, dtype=np.int32) + FIRST_WORD for i in (1, 3, 9, 2)]
        columns = {"label": np.array([0, 1, 1, 0], np.int32), "number": np.arange(4)}
        starts = np.cumsum([0, *map(len, ids)])
        rows = TaskRows.of(task, EncodedRows(columns, {"text": (np.concatenate(ids), starts)}))
        batches = by_length.training_batches(rows, batch_size=4, seed=0, first_step=0, num_steps=1, length=LENGTH)
        for name, spec in batches.element_spec.items():
            self.assertTrue(spec.shape.is_fully_defined(), f"{name}: {spec}")
        _, config = models.find("bert_tiny")
        config = config_lib.from_mapping(vars(config) | SMALL, type(config))
        text = hlo(task.build_models(task.page, config), task, next(iter(batches)), num_parts=2, clip_norm=1.0)
        self.assertEqual(complaints(text), [])

    def test_the_lint_finds_what_it_is_for(self):
        step = tf.function(lambda x: tf.reduce_sum(tf.boolean_mask(x, x > 0)), jit_compile=True)
        text = step.experimental_get_compiler_ir(tf.constant([1.0, -1.0]))(stage="hlo")
        self.assertIn("a dimension of no fixed size", complaints(text))

    @pytest.mark.faults
    def test_every_family_and_every_objective(self):
        seen: dict[str, int] = {}
        for family in models.FAMILIES:
            page, trained = models.page(family), 0
            for name, ways in OBJECTIVES.items():
                for way, make in enumerate(ways):
                    objective = make()
                    try:
                        objective.check_model(next(iter(page.CONFIGS)), page)
                    except UserError:
                        continue  # Nor does the command train it so.
                    trained += 1
                    with self.subTest(family=family, objective=name, way=way):
                        self.check(family, objective, clip_norm=1.0)
                        seen[f"{name} {way}"] = seen.get(f"{name} {way}", 0) + 1
            if not trained:
                with self.subTest(family=family):
                    self.check(family, Targets(None, 0), clip_norm=1.0)
                    seen[family] = 1
        print(f"steps compiled and read: {sum(seen.values())}: {seen}")
        self.assertContainsSubset(
            [f"{name} {way}" for name, ways in OBJECTIVES.items() for way in range(len(ways))], seen
        )


if __name__ == "__main__":
    tf.test.main()
