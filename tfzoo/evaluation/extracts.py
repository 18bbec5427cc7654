"""Baselines of tasks that write: copying a part of the text, or the target of the most similar text of training.

Also the oracle of extractive summaries: the sentences of a text that are most like a given summary.
"""

import collections
import math
from collections.abc import Sequence

import numpy as np

from tfzoo.data import sentences
from tfzoo.evaluation.diversity import plain_words, words
from tfzoo.evaluation.written import is_spaceless

MAX_ROWS = 100_000  # Rows of the translation memory.
_MAX_CHARACTERS = 500  # Of a text, that the translation memory reads.
_MAX_SENTENCES = 100  # Of a text, for TextRank, whose cost is quadratic.
_BLOCK = 64  # Texts that are compared with the memory at a time.
_DAMPING, _ITERATIONS = 0.85, 50


def memory(sources: Sequence[str], targets: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Returns for each text the target of the most similar source: a translation memory.

    Similarity is the cosine of TF-IDF vectors of words and pairs of words (diversity.words: of Chinese and Japanese,
    characters), which is nearer to the right translation than that of n-grams of characters on multi30k's validation
    rows. At most the first MAX_ROWS sources are used, and the first 500 characters of a text.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    sources = [source[:_MAX_CHARACTERS] for source in sources[:MAX_ROWS]]
    vectorizer = TfidfVectorizer(tokenizer=plain_words, token_pattern=None, ngram_range=(1, 2), dtype=np.float32)
    known = vectorizer.fit_transform(sources).T.tocsr()
    found: list[str] = []
    for first in range(0, len(texts), _BLOCK):
        vectors = vectorizer.transform([text[:_MAX_CHARACTERS] for text in texts[first : first + _BLOCK]])
        nearest = np.asarray((vectors @ known).argmax(axis=1)).ravel()
        found += [targets[i] for i in nearest]
    return found


def lead(text: str, count: int) -> str:
    """Returns the first sentences of a text."""
    return join(split(text)[:count])


def text_rank(text: str, count: int) -> str:
    """Returns the most central sentences of a text in their order: TextRank (Mihalcea and Tarau 2004, section 4).

    The similarity of two sentences is the number of words that they share, divided by the sum of the logarithms of
    their numbers of words (section 4.1); PageRank with damping 0.85 ranks them.
    """
    parts = split(text)[:_MAX_SENTENCES]
    if len(parts) <= count:
        return join(parts)
    bags = [collections.Counter(words(part.lower())) for part in parts]
    weights = np.zeros((len(parts), len(parts)))
    for i, one in enumerate(bags):
        for j, other in enumerate(bags[:i]):
            length = math.log(max(one.total(), 1)) + math.log(max(other.total(), 1))
            weights[i, j] = weights[j, i] = len(one.keys() & other.keys()) / length if length else 0.0
    outgoing = weights.sum(axis=1, keepdims=True)
    shares = np.divide(weights, outgoing, out=np.full_like(weights, 1 / len(parts)), where=outgoing > 0)
    rank = np.full(len(parts), 1 / len(parts))
    for _ in range(_ITERATIONS):
        rank = (1 - _DAMPING) / len(parts) + _DAMPING * rank @ shares
    chosen = sorted(np.argsort(-rank, kind="stable")[:count])
    return join([parts[i] for i in chosen])


def oracle(parts: Sequence[str], summary: str, count: int) -> list[int]:
    """Returns the sentences that are most like a summary, ascending: the greedy oracle of Nallapati et al. (2017).

    The sentence that raises ROUGE-1 + ROUGE-2 (F-measures against the summary) the most is added, until none raises it
    or `count` sentences are chosen; of equally good ones, the first. Words are lowercased, and not stemmed.

    Args:
      parts: the sentences of a text.
      summary: its summary.
      count: the maximum number of sentences.
    """
    wanted = _grams(plain_words(summary.lower()))
    listed = [plain_words(part.lower()) for part in parts]
    chosen: list[int] = []
    best = 0.0
    while len(chosen) < min(count, len(parts)):
        others = [sorted([*chosen, i]) for i in range(len(parts)) if i not in chosen]
        scores = [_overlap(_grams([word for i in each for word in listed[i]]), wanted) for each in others]
        if max(scores) <= best:
            break
        best = max(scores)
        chosen = others[scores.index(best)]
    return chosen


def split(text: str) -> list[str]:
    """Returns the sentences of a text."""
    return [text[start:end] for start, end in sentences.spans(text)]


def join(parts: Sequence[str]) -> str:
    """Returns a text of sentences, with spaces between them unless they are mostly Chinese or Japanese."""
    return ("" if is_spaceless(parts) else " ").join(parts)


def _grams(text: Sequence[str]) -> list[collections.Counter]:
    """Returns the counts of the words of a text, and those of its pairs of words."""
    return [collections.Counter(text), collections.Counter(zip(text, text[1:]))]


def _overlap(grams: Sequence[collections.Counter], wanted: Sequence[collections.Counter]) -> float:
    """Returns ROUGE-1 + ROUGE-2."""
    return sum(
        2 * (own & other).total() / max(own.total() + other.total(), 1)
        for own, other in zip(grams, wanted, strict=True)
    )
