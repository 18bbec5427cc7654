"""Diversity metrics of generated texts, from n-gram counts. A text is a list of words or of tokens."""

import collections
import math
import re
from collections.abc import Hashable, Sequence

Text = Sequence[Hashable]

SPACELESS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""The characters of scripts without spaces (Chinese, Japanese kana), for regular expressions; each one is a word."""
_WORD = re.compile(rf"[{SPACELESS}]|[^\W{SPACELESS}]+(?:'[^\W{SPACELESS}]+)*|[^\w\s]")


def words(text: str) -> list[str]:
    """Splits a text into words and punctuation marks."""
    return _WORD.findall(text)


def plain_words(text: str) -> list[str]:
    """Splits a text into words, without punctuation marks."""
    return [word for word in words(text) if any(map(str.isalnum, word))]


def distinct(texts: Sequence[Text], n: int) -> float:
    """Returns the fraction of distinct n-grams among all n-grams of all texts (Li et al. 2016, section 5.2)."""
    ngrams = [ngram for text in texts for ngram in _ngrams(text, n)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def repetition(texts: Sequence[Text], n: int = 4) -> float:
    """Returns the fraction of repeated n-grams in a text (Welleck et al. 2020, section 6.1), averaged over texts."""
    fractions = []
    for text in texts:
        ngrams = _ngrams(text, n)
        fractions.append(1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0)
    return sum(fractions) / len(fractions) if fractions else 0.0


def bleu(text: Text, references: Sequence[Text], order: int = 4) -> float:
    """Returns the BLEU of one text (Papineni et al. 2002, section 2.3), from 0 to 1.

    If no n-gram of an order matches, 0.1 matches are assumed (Chen and Cherry 2014, method 1), so that one order does
    not make the result 0; orders for which the text is too short are omitted.
    """
    if not text or not references:
        return 0.0
    total, orders = 0.0, 0
    for n in range(1, min(order, len(text)) + 1):
        counts = collections.Counter(_ngrams(text, n))
        maximum: collections.Counter = collections.Counter()
        for reference in references:
            maximum |= collections.Counter(_ngrams(reference, n))
        matches = sum((counts & maximum).values())
        total += math.log((matches or 0.1) / sum(counts.values()))
        orders += 1
    # The reference length closest to that of the text, the shorter one of two.
    nearest = min((abs(len(reference) - len(text)), len(reference)) for reference in references)[1]
    brevity = min(0.0, 1 - nearest / len(text))
    return math.exp(brevity + total / orders)


def self_bleu(texts: Sequence[Text]) -> float:
    """Returns the mean BLEU of each text against all others (Zhu et al. 2018, section 3.2); 1 if all are equal."""
    if len(texts) < 2:
        return 0.0
    return sum(bleu(text, [*texts[:i], *texts[i + 1 :]]) for i, text in enumerate(texts)) / len(texts)


def _ngrams(text: Text, n: int) -> list[tuple]:
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
