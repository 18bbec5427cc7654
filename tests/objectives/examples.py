"""Tokenizers without text, and examples and batches of ids, for tests of objectives."""

import types

import numpy as np
import tensorflow as tf

from tests.data.corpora import random_words
from tfzoo.data import pipeline

PAD, BOS, EOS, WORDS = 0, 1, 2, 40
# A WordPiece vocabulary: ids 0-4 special, 5-34 begin a word, 35-54 continue one.
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCAB = [*SPECIAL, *(chr(97 + i % 26) * (1 + i // 26) for i in range(30)), *(f"##{chr(97 + i)}" for i in range(20))]
# Words 3 to 49, then sentinels.
SPAN_WORDS, SENTINELS = 50, 100
SPAN_UNK = 2


def word_tokenizer(bos: int | None = BOS, eos: int | None = EOS, pad: int | None = PAD):
    """Returns a tokenizer with WORDS tokens, some of them special."""
    special = sorted({i for i in (bos, eos, pad) if i is not None})
    vocab = [f"t{i}" for i in range(WORDS)]
    return types.SimpleNamespace(vocab=vocab, vocab_size=WORDS, special_ids=special, bos_id=bos, eos_id=eos, pad_id=pad)


def span_tokenizer(sentinels=SENTINELS):
    """Returns a tokenizer with SPAN_WORDS tokens, then sentinels, the first of which has the last id."""
    pad, eos, unk, size = 0, 1, SPAN_UNK, SPAN_WORDS + SENTINELS
    ids = [size - 1 - i for i in range(sentinels)]
    special = sorted([pad, eos, unk, *ids])
    return types.SimpleNamespace(vocab_size=size, special_ids=special, sentinel_ids=ids, eos_id=eos, pad_id=pad)


def word_corpus(count, longest, seed=0):
    """Returns documents of random tokens of word_tokenizer, none of them special."""
    return random_words(count, longest, 3, WORDS, seed)


def packed_example(*documents, seed=0):
    """Returns a row of documents in the format of PackedRows."""
    return {
        "token_ids": tf.constant(np.concatenate([[], *documents]), tf.int32),
        "document_ids": tf.constant(np.repeat(np.arange(len(documents)) + 1, [len(b) for b in documents]), tf.int32),
        "seed": tf.constant([seed, 2], tf.int32),
    }


def batch_of(objective, corpus):
    """Returns all rows of a corpus as one batch."""
    rows = objective.rows(corpus)
    batches = pipeline.evaluation_batches(rows, objective, batch_size=len(rows), seed=3, num_batches=1)
    return next(batches.as_numpy_iterator())


def check_reading(test, objective, corpus, num_steps, first_step):
    """Checks that batches are the same when reading starts at a later step, and rows when batches have other sizes."""

    def read(first_step, num_steps, batch_size):
        batches = pipeline.training_batches(
            objective.rows(corpus),
            objective,
            batch_size=batch_size,
            seed=3,
            first_step=first_step,
            num_steps=num_steps,
        )
        return list(batches.as_numpy_iterator())

    whole, later, wide = read(0, num_steps, 2), read(first_step, num_steps, 2), read(0, 4, num_steps // 2)
    for one, two in zip(whole[first_step:], later, strict=True):
        for name in one:
            test.assertEqual(one[name].tobytes(), two[name].tobytes(), name)
    for name in whole[0]:
        one, two = (np.concatenate([batch[name] for batch in batches]) for batches in (whole, wide))
        test.assertAllEqual(one, two)


def check_static_shapes(test, objective, row_features, length, target_length):
    """Checks the shapes of an encoder-decoder's features, and that they contain the objective's inputs.

    row_features: the names of the features of a row, all int32 [N].
    """
    signature = dict.fromkeys(row_features, tf.TensorSpec([None], tf.int32)) | {"seed": tf.TensorSpec([2], tf.int32)}
    outputs = tf.function(objective.prepare, input_signature=[signature]).get_concrete_function()
    for name, spec in outputs.structured_outputs.items():
        test.assertEqual(spec.shape, [target_length if "decoder" in name or "target" in name else length], name)
    test.assertLessEqual(set(objective.inputs), set(outputs.structured_outputs))


def pieces(objective, corpus):
    """Returns all pieces of the corpus as tuples of tokens, sorted."""
    rows = objective.rows(corpus)
    found = []
    for i in range(len(rows)):
        tokens, numbers = rows.row(i)
        found += [tuple(tokens[numbers == n].tolist()) for n in range(1, numbers.max() + 1)]
    return sorted(found)


def span_parts(ids, first=SPAN_WORDS + SENTINELS - 1):
    """Returns inputs or targets up to </s> as [(number of the sentinel or None, the tokens after it)]."""
    parts = [(None, [])]
    for i in ids:
        if i >= SPAN_WORDS:
            parts.append((first - i, []))
        else:
            parts[-1][1].append(int(i))
    return parts


def restored(inputs, targets):
    """Returns the document with these inputs and targets, without </s>."""
    spans = dict(span_parts(targets))
    assert spans.pop(None) == [], "targets begin with a sentinel"
    numbers = [number for number, _ in span_parts(inputs)[1:]]
    assert numbers == list(range(len(numbers))) == sorted(spans)[: len(numbers)], "numbered from the first"
    return [word for number, words in span_parts(inputs) for word in (*spans.get(number, ()), *words)]
