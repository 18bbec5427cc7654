"""How various generated texts are, by counts of word groups. A text is a list of words, or of tokens."""

import collections
import math
import re
from collections.abc import Hashable, Sequence

Text = Sequence[Hashable]

# Characters of scripts without spaces (Chinese, Japanese's kana) are words of their own.
_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+(?:'[^\W{_ALONE}]+)*|[^\w\s]")


def words(text: str) -> list[str]:
    """A text's words and marks."""
    return _WORD.findall(text)


def distinct(texts: Sequence[Text], n: int) -> float:
    """The part of all texts' groups of n that are distinct (Li et al. 2016, section 5.2): 1 where none comes twice."""
    groups = [group for text in texts for group in _groups(text, n)]
    return len(set(groups)) / len(groups) if groups else 0.0


def repetition(texts: Sequence[Text], n: int = 4) -> float:
    """The part of a text's groups of n that were in it before (Welleck et al. 2020, section 6.1), the texts' mean."""
    parts = []
    for text in texts:
        groups = _groups(text, n)
        parts.append(1 - len(set(groups)) / len(groups) if groups else 0.0)
    return sum(parts) / len(parts) if parts else 0.0


def bleu(text: Text, references: Sequence[Text], order: int = 4) -> float:
    """BLEU of one text (Papineni et al. 2002, section 2.3), from 0 to 1.

    Where no group of n is found, a tenth of one is (Chen and Cherry 2014, method 1), so that one order does not hide
    the others; orders for which the text is too short are left out.
    """
    if not text or not references:
        return 0.0
    total, orders = 0.0, 0
    for n in range(1, min(order, len(text)) + 1):
        counts = collections.Counter(_groups(text, n))
        most: collections.Counter = collections.Counter()
        for reference in references:
            most |= collections.Counter(_groups(reference, n))
        found = sum((counts & most).values())
        total += math.log((found or 0.1) / sum(counts.values()))
        orders += 1
    # The reference of the nearest length, the shorter of two.
    nearest = min((abs(len(reference) - len(text)), len(reference)) for reference in references)[1]
    brevity = min(0.0, 1 - nearest / len(text))
    return math.exp(brevity + total / orders)


def self_bleu(texts: Sequence[Text]) -> float:
    """The mean BLEU of each text against all others (Zhu et al. 2018, section 3.2): 1 where all are alike."""
    if len(texts) < 2:
        return 0.0
    return sum(bleu(text, [*texts[:i], *texts[i + 1 :]]) for i, text in enumerate(texts)) / len(texts)


def _groups(text: Text, n: int) -> list[tuple]:
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
