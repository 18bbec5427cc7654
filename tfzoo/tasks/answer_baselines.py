"""Answers to questions by rules, without a model: the nearest sentence, and the words near those of the question."""

import collections
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from tfzoo.data import sentences
from tfzoo.data.squad import QuestionRow
from tfzoo.evaluation.diversity import SPACELESS
from tfzoo.retrieval import bm25

_UNIT = re.compile(f"[{SPACELESS}]|[^\\W_{SPACELESS}]+(?:['.,-][^\\W_{SPACELESS}]+)*")
_MARK = re.compile("[。！？；：，、（）.!?;:,()]")
_LENGTHS = {False: (3, 2, 1), True: (6, 5, 4, 3, 2)}  # Of a span, in words or in characters, the best first.
_REACH = {False: 6, True: 10}  # How far from the span words of the question count.


def nearest_sentences(rows: Sequence[QuestionRow]) -> list[str]:
    """Returns for each question the sentence of its context that is most similar to it, by the cosine of their words'
    frequencies, weighted with the inverse document frequency over all sentences (Salton and Buckley 1988)."""
    parts = {row.context: sentences.split(row.context) for row in rows}
    counts = {context: [collections.Counter(bm25.words(each)) for each in parts[context]] for context in parts}
    found_in = collections.Counter(word for each in counts.values() for sentence in each for word in sentence)
    total = sum(map(len, parts.values()))

    def vector(words: Mapping[str, int]) -> dict[str, float]:
        weights = {word: count * math.log(total / found_in[word]) for word, count in words.items() if word in found_in}
        norm = math.sqrt(sum(weight * weight for weight in weights.values())) or 1.0
        return {word: weight / norm for word, weight in weights.items()}

    vectors = {context: [vector(sentence) for sentence in each] for context, each in counts.items()}
    found = []
    for row in rows:
        question = vector(collections.Counter(bm25.words(row.question)))
        scores = [
            sum(weight * each.get(word, 0.0) for word, weight in question.items()) for each in vectors[row.context]
        ]
        found.append(parts[row.context][int(np.argmax(scores))])
    return found


def spans_beside(rows: Sequence[QuestionRow], characters: bool) -> list[str]:
    """Returns for each question the span of its context that is near most words of the question.

    A span has one to three words, or two to six characters of a text without spaces, none of them of the question, and
    does not extend over a punctuation mark. Its score is the sum of the inverse document frequencies of the question's
    words that are at most 6 words (10 characters) before or after it. A character is one of the question's if it is
    next to the same character as there. Of equal scores, the longest and then the first span is returned.

    Args:
      rows: the questions.
      characters: whether the texts have no spaces between words.
    """
    places = {row.context: [match.span() for match in _UNIT.finditer(row.context)] for row in rows}
    units = {context: [context[a:b].lower() for a, b in each] for context, each in places.items()}
    found_in = collections.Counter(unit for each in units.values() for unit in set(each))
    found = []
    for row in rows:
        of_context, place = units[row.context], places[row.context]
        is_asked = _asked(row.question, of_context, characters)
        rarity = [math.log((len(units) + 1) / found_in[unit]) for unit in of_context]
        marks = [bool(_MARK.search(row.context[a[1] : b[0]])) for a, b in zip(place, place[1:], strict=False)]
        first, end = _best_span(np.where(is_asked, rarity, 0.0), is_asked, np.array([*marks, True], bool), characters)
        found.append(row.context[place[first][0] : place[end - 1][1]] if end else "")
    return found


def _asked(question: str, units: Sequence[str], characters: bool) -> np.ndarray:
    """Returns bool [N]: whether each unit of a context is one of the question's."""
    asked = [match[0].lower() for match in _UNIT.finditer(question)]
    if not characters:
        return np.isin(units, asked) if units else np.zeros(0, bool)
    pairs, is_asked = set(zip(asked, asked[1:], strict=False)), np.zeros(len(units), bool)
    for i, pair in enumerate(zip(units, units[1:], strict=False)):
        is_asked[i : i + 2] |= pair in pairs
    return is_asked


def _best_span(weight: np.ndarray, is_asked: np.ndarray, ends: np.ndarray, characters: bool) -> tuple[int, int]:
    """Returns the first and the last unit, exclusive, of the span with the highest score; (0, 0) if there is none.

    Args:
      weight: [N], of the units that are in the question, otherwise 0.
      is_asked: bool [N].
      ends: bool [N], whether a span must end after the unit.
      characters: see `spans_beside`.
    """
    count, reach = len(weight), _REACH[characters]
    sums, asked, borders = (np.concatenate([[0], np.cumsum(values)]) for values in (weight, is_asked, ends))
    best, highest = (0, 0), -1.0
    for length in _LENGTHS[characters]:
        first = np.arange(max(count - length + 1, 0))
        end = first + length
        scores = sums[first] - sums[np.maximum(first - reach, 0)] + sums[np.minimum(end + reach, count)] - sums[end]
        allowed = (asked[end] == asked[first]) & (borders[end - 1] == borders[first])
        scores = np.where(allowed, scores, -1.0)
        if len(scores) and scores.max() > highest:
            highest, at = float(scores.max()), int(scores.argmax())
            best = at, at + length
    return best
