"""Tokenized texts, specified by the lengths of their sentences or documents. NumPy only."""

import numpy as np

from tfzoo.data.tokenized import TokenizedCorpus

STOP = -9  # The last token of a sentence; the others are their own positions in the corpus.


def corpus(documents):
    """Returns a corpus of documents, which are specified as lists of sentence lengths."""
    sentences = np.cumsum([0, *(length for lengths in documents for length in lengths)])
    borders = np.cumsum([0, *(sum(lengths) for lengths in documents)])
    ids = np.arange(sentences[-1], dtype=np.int32)
    ids[sentences[1:] - 1] = STOP
    return TokenizedCorpus(ids, sentences.astype(np.int64), borders.astype(np.int64))


def random_corpus(count, seed=0, longest=12):
    """Returns documents of fewer than `longest` sentences, each of 2 to 14 tokens."""
    random = np.random.default_rng(seed)
    return corpus([random.integers(2, 15, random.integers(1, longest)).tolist() for _ in range(count)])


def documents(*lengths):
    """Returns a corpus of documents of these lengths, with one sentence each; the tokens are 0, 1, 2, ... in order."""
    text = corpus([[length] for length in lengths])
    text.token_ids[:] = np.arange(len(text.token_ids))
    return text


def random_documents(count, longest, seed=0):
    """Returns documents of 1 to `longest` - 1 tokens, which are 0, 1, 2, ... in order."""
    return documents(*np.random.default_rng(seed).integers(1, longest, count).tolist())


def random_words(count, longest, low, high, seed=0):
    """Returns documents of 1 to `longest` - 1 random tokens from `low` to `high` - 1."""
    random = np.random.default_rng(seed)
    text = documents(*random.integers(1, longest, count).tolist())
    text.token_ids[:] = random.integers(low, high, len(text.token_ids))
    return text
