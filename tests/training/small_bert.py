"""A small BERT and batches of its objective."""

import keras
import numpy as np
import tensorflow as tf

import tfzoo
from tests.nn.formulas import randomize
from tfzoo.objectives.masked_lm import MaskedLM
from tfzoo.text.wordpiece import WordPiece

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwx"]
LENGTH, PREDICTIONS, BATCH = 12, 3, 8


def features(count, seed=0):
    """Returns rows of random tokens with 0 to 3 masked tokens, and a sentence pair in two of three rows."""
    random = np.random.default_rng(seed)
    weights = (np.arange(PREDICTIONS) < random.integers(0, PREDICTIONS + 1, [count, 1])).astype(np.float32)
    return {
        "token_ids": random.integers(5, len(VOCAB), [count, LENGTH]).astype(np.int32),
        "segment_ids": random.integers(0, 2, [count, LENGTH]).astype(np.int32),
        "padding_mask": np.arange(LENGTH) < random.integers(4, LENGTH + 1, [count, 1]),
        "masked_positions": random.integers(0, 4, [count, PREDICTIONS]).astype(np.int32),
        "masked_ids": random.integers(5, len(VOCAB), [count, PREDICTIONS]).astype(np.int32),
        "masked_weights": weights,
        "next_sentence": random.integers(0, 2, [count]).astype(np.int32),
        "next_sentence_weight": (np.arange(count) % 3 > 0).astype(np.float32),
    }


def batches(steps, seed=0):
    return tf.data.Dataset.from_tensor_slices(features(steps * BATCH, seed)).batch(BATCH, drop_remainder=True)


def objective():
    return MaskedLM(WordPiece(VOCAB), LENGTH)


def model(dtype=None, dropout=0.0):
    keras.utils.set_random_seed(1)
    result = tfzoo.build(
        "bert_tiny",
        dtype=dtype,
        vocab_size=len(VOCAB),
        hidden_size=8,
        num_layers=1,
        num_heads=2,
        intermediate_size=12,
        max_positions=LENGTH,
        dropout=dropout,
        attention_dropout=dropout,
    )
    randomize(result)
    return result
