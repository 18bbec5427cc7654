"""Scores of answers that are parts of a text: exact match and F1, by the rules of SQuAD or of CMRC 2018.

"squad" are the rules of the official script of SQuAD 2.0 (Rajpurkar et al. 2018), which for questions with an answer
are those of 1.1 (Rajpurkar et al. 2016, section 6.1): texts are lower-cased, without the ASCII punctuation, the
articles a, an and the, and extra white space. F1 is that of the words, each counted as often as it is in both texts.

"cmrc" are those of the official script of CMRC 2018 (Cui et al. 2019, section 3.2), which are used for DRCD, too: texts
are lower-cased and lose a list of punctuation marks, and F1 is that of the longest common substring of units, which are
Chinese characters, and words and marks of other scripts. The script finds these words with NLTK's tokenizer
(of the Penn Treebank); here, they are separated by the same marks, but contractions and quotes are not divided.

A question has several right answers: its score is the best one over them. A question without a right answer has the
right answer "".
"""

import collections
import difflib
import math
import re
import string
from collections.abc import Iterable, Sequence

import numpy as np

from tfzoo.data import squad
from tfzoo.data.squad import RULES, SQUAD
from tfzoo.evaluation.intervals import Weighted
from tfzoo.evaluation.scores import quotient

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_MARKS = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
# The range of Chinese characters is that of the script, which is narrower than the block of Unicode.
_UNIT = re.compile(
    r"""[\u4e00-\u9fa5]
      | \.\.\.
      | (?: [^\s\u4e00-\u9fa5;@\#$%&?!()\[\]{}<>",.–—]   # A word, with
          | ,(?=\d)                                        # the commas of numbers,
          | \.(?!\.\.)(?!\s*(?:$|[\u4e00-\u9fa5]))         # and periods before more of such text.
        )+
      | \S""",
    re.VERBOSE,
)


def rules_of(questions: Iterable[str]) -> str:
    """Returns the rules for questions: "cmrc" if most of their letters are Chinese characters."""
    letters, han = map(sum, zip((0, 0), *map(squad.letters_of, questions)))
    return squad.rules_of(letters, han)


def normalized(text: str) -> str:
    """Returns a text as the rules "squad" compare it.

    >>> normalized("The  Norman's, a  'test'")
    'normans test'
    """
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def units(text: str) -> list[str]:
    """Returns the units of a text as the rules "cmrc" compare them.

    >>> units("《战国无双3》 by KOEI 2.0版")
    ['战', '国', '无', '双', '3', 'by', 'koei', '2.0', '版']
    """
    return _UNIT.findall(text.lower().translate(_MARKS))


def exact_and_f1(gold: Sequence[str], answer: str, rules: str = SQUAD) -> tuple[float, float]:
    """Scores the answer to a question.

    Args:
      gold: the right answers; none, or only answers that are empty after normalization, mean that "" is right.
      answer: the answer; "" for no answer.
      rules: one of RULES.

    Returns:
      (exact match, F1), each the best over the right answers.

    Raises:
      ValueError: the rules are unknown.
    """
    if rules not in RULES:
        raise ValueError(f"rules {rules!r}: must be one of {', '.join(RULES)}")
    if rules == SQUAD:
        right = [text for text in gold if normalized(text)] or [""]
        scores = _words(right, answer)
    else:
        scores = _characters(list(dict.fromkeys(gold)) or [""], answer)
    return max(exact for exact, _ in scores), max(f1 for _, f1 in scores)


def _words(gold: Sequence[str], answer: str) -> list[tuple[float, float]]:
    """Returns (exact match, F1) of an answer and each right one by the rules "squad"."""
    found = normalized(answer)
    words, scores = found.split(), []
    for text in map(normalized, gold):
        others = text.split()
        common = sum((collections.Counter(others) & collections.Counter(words)).values())
        scores.append((float(text == found), _f1(common, others, words)))
    return scores


def _characters(gold: Sequence[str], answer: str) -> list[tuple[float, float]]:
    """Returns (exact match, F1) of an answer and each right one by the rules "cmrc"."""
    found, characters, scores = _bare(answer), units(answer), []
    matcher: difflib.SequenceMatcher = difflib.SequenceMatcher(None, (), characters, autojunk=False)
    for text in gold:
        others = units(text)
        matcher.set_seq1(others)
        common = matcher.find_longest_match().size
        scores.append((float(_bare(text) == found), _f1(common, others, characters)))
    return scores


def _bare(text: str) -> str:
    return text.lower().strip().translate(_MARKS)


def _f1(common: int, gold: Sequence[str], answer: Sequence[str]) -> float:
    """Returns F1 of two lists with `common` items in common; two empty ones agree."""
    return 2 * common / (len(gold) + len(answer)) if gold or answer else 1.0


def figures_rows(exact: np.ndarray, f1: np.ndarray, has_answer: np.ndarray) -> Weighted:
    """Returns the figures as a function of rows, the questions.

    Args:
      exact, f1: [N], the results of `exact_and_f1`.
      has_answer: bool [N], whether the question has an answer.

    Returns:
      exact_match and f1; if some questions have no answer, also has_answer_exact_match and has_answer_f1, those of the
      questions with an answer, and no_answer_accuracy, the share of the others that are not answered.
    """
    has_answer = np.asarray(has_answer, bool)
    with_parts = not has_answer.all()

    def figures(values: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        exact, f1, has = values.T
        total, answerable = weights.sum(1), weights @ has
        found = {"exact_match": quotient(weights @ exact, total), "f1": quotient(weights @ f1, total)}
        if with_parts:
            found |= {
                "has_answer_exact_match": quotient(weights @ (exact * has), answerable),
                "has_answer_f1": quotient(weights @ (f1 * has), answerable),
                "no_answer_accuracy": quotient(weights @ (exact * (1 - has)), total - answerable),
            }
        return found

    return Weighted(np.stack([exact, f1, has_answer], axis=1).astype(np.float64), figures)


def scores(
    gold: Sequence[Sequence[str]], answers: Sequence[str], rules: str = SQUAD
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (exact, f1, has_answer) of questions, [N] each, for `figures_rows`.

    Args:
      gold: the right answers of each question.
      answers: the answers.
      rules: one of RULES.
    """
    pairs = [exact_and_f1(*each, rules) for each in zip(gold, answers, strict=True)]
    exact, f1 = np.array(pairs, np.float64).reshape(-1, 2).T
    return exact, f1, np.array([len(each) > 0 for each in gold], bool)


def best_threshold(difference: np.ndarray, score: np.ndarray, has_answer: np.ndarray) -> float | None:
    """Returns the threshold of "no answer" with the best mean score.

    A question is answered if its difference is at most the threshold. As in the official script of SQuAD 2.0, every
    threshold that separates two questions is tried; the result is in the middle between the differences of both.

    Args:
      difference: [N], the score of "no answer" minus that of the best answer, such as a difference of logarithms of
        probabilities; infinite for a question for which the model has no answer.
      score: [N], the exact match or F1 of the best answer.
      has_answer: bool [N], whether the question has an answer.

    Returns:
      The threshold; None if all questions have an answer, so that there is nothing to choose.
    """
    has_answer = np.asarray(has_answer, bool)
    if has_answer.all():
        return None
    finite = np.isfinite(difference)
    if not finite.any():
        return 0.0
    order = np.argsort(difference[finite], kind="stable")
    ordered = np.asarray(difference, np.float64)[finite][order]
    # Answering an unanswerable question loses the point for its being left unanswered.
    gains = np.where(has_answer, score, -1.0)[finite][order]
    totals = np.concatenate([[0.0], np.cumsum(gains)])
    ends = np.flatnonzero(np.diff(ordered, append=math.inf) > 0) + 1  # Equal differences are on the same side.
    best = max([0, *ends.tolist()], key=lambda count: totals[count])
    if best == 0:
        return float(ordered[0]) - 1.0
    if best == len(ordered):
        return float(ordered[-1]) + 1.0
    return float(ordered[best - 1] + ordered[best]) / 2
