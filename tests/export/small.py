"""A BERT that is small and noisy enough for tests: every weight is random, so that none of them hides."""

import string

import keras
import numpy as np

import tfzoo
from tfzoo.text.wordpiece import WordPiece

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]"]
LETTERS = list(string.ascii_lowercase)
VOCAB = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), "the", "of", "function", ".", "東", "京", "ω"]


def tokenizer():
    return WordPiece(VOCAB)


def model(**overrides):
    sizes = dict(vocab_size=len(VOCAB), hidden_size=16, num_heads=2, intermediate_size=32, max_positions=32)
    keras.utils.set_random_seed(0)
    result = tfzoo.build("bert_tiny", **(sizes | overrides))
    noise = np.random.default_rng(0)
    result.set_weights([w + noise.normal(scale=0.3, size=w.shape) for w in result.get_weights()])
    return result
