"""Small models for tests, in which every weight is random, so that none can be ignored unnoticed."""

import string
from typing import Any

import keras
import numpy as np

import tfzoo
from tfzoo import models
from tfzoo.text.byte_level import ByteLevelBPE
from tfzoo.text.byte_level_model import BYTES
from tfzoo.text.wordpiece import WordPiece

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]"]
LETTERS = list(string.ascii_lowercase)
VOCAB = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), "the", "of", "function", ".", "東", "京", "ω"]
SIZES = dict(vocab_size=len(VOCAB), hidden_size=16, num_heads=2, intermediate_size=32, max_positions=32)
# The family's first model, reduced to SIZES and these.
FAMILIES: dict[str, dict[str, Any]] = {
    "albert": dict(num_layers=3, embedding_size=10),
    "bart": dict(num_layers=2, num_decoder_layers=3),
    "bert": dict(num_layers=2),
    "distilbert": dict(num_layers=2),
    "electra": dict(num_layers=2, embedding_size=10),
    "gpt2": dict(num_layers=2),
    "llama": dict(num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6),
    "palm": dict(num_layers=2, num_heads=4, head_dim=6),
    "performer": dict(num_layers=2, num_features=16),
    "reformer": dict(
        num_layers=2, attention_layers=["local", "lsh"], axial_shape=[4, 8], axial_dims=[6, 10], head_dim=0,
        lsh_chunk_length=4, local_chunk_length=4, num_buckets=[2, 4], num_hashes=2,
    ),
    "roberta": dict(num_layers=2),
    "t5": dict(num_layers=2, num_decoder_layers=3, head_dim=6, relative_buckets=8, relative_distance=20),
    "transformer": dict(num_layers=2, num_decoder_layers=3),
    "xlnet": dict(num_layers=2),
}  # fmt: skip


def tokenizer():
    return WordPiece(VOCAB)


def byte_level_tokenizer():
    """Returns a tokenizer with RoBERTa's special tokens, the letters of all bytes, and two merged pieces."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    return ByteLevelBPE([*special, *BYTES, "Ġa", "de"], [("Ġ", "a"), ("d", "e")], special_tokens=special)


def model(family: str = "bert", *, heads=None, num_labels=3, pool=None, embed=None, dtype=None, **overrides):
    name = next(iter(models.page(family).CONFIGS))
    keras.utils.set_random_seed(0)
    options = dict(heads=heads, num_labels=num_labels, pool=pool, embed=embed, dtype=dtype)
    result = tfzoo.build(name, **options, **(SIZES | FAMILIES[family] | overrides))
    noise = np.random.default_rng(0)
    # Untrained random tensors, such as FAVOR+'s features, get no noise.
    result.set_weights(
        [
            w if w.dtype == np.uint32 or "features" in v.path else w + noise.normal(scale=0.3, size=w.shape)
            for v, w in zip(result.weights, result.get_weights())
        ]
    )
    return result
