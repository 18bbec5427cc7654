"""Scores of texts that a model writes: BLEU, chrF, ROUGE, exact match and F1 of words, on a scale from 0 to 100.

Each function returns a score as a function of rows (tfzoo.evaluation.intervals). BLEU and chrF of several rows are
those of the summed n-gram counts of the rows, as sacrebleu.corpus_bleu and sacrebleu.corpus_chrf compute them; the
other scores are means over rows.
"""

import collections
import re
from collections.abc import Sequence

import numpy as np

from tfzoo.evaluation import diversity
from tfzoo.evaluation.intervals import Weighted

TOKENIZERS = ("13a", "zh", "char", "intl", "none")
"""The tokenizers of sacreBLEU that need no further packages."""
_BLEU_ORDER, _CHRF_ORDER, _CHRF_BETA = 4, 6, 2
_SPACELESS = re.compile(f"[{diversity.SPACELESS}]")


def is_spaceless(texts: Sequence[str]) -> bool:
    """Returns whether texts are mostly in a script without spaces between words, such as Chinese: more than three of
    ten characters."""
    characters = "".join("".join(text.split()) for text in texts)
    return 10 * len(_SPACELESS.findall(characters)) > 3 * len(characters)


def bleu_rows(hypotheses: Sequence[str], references: Sequence[str], tokenize: str = "13a") -> Weighted:
    """Returns BLEU (Papineni et al. 2002) as a function of rows: the figure "bleu".

    Args:
      hypotheses, references: N texts each.
      tokenize: one of TOKENIZERS.
    """
    from sacrebleu.metrics import BLEU

    metric = BLEU(tokenize=tokenize, effective_order=True)  # Only the counts are used, not the score of a sentence.
    rows = []
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        score = metric.sentence_score(hypothesis, [reference])
        rows.append([score.sys_len, score.ref_len, *score.counts, *score.totals])
    return Weighted(_table(rows, 2 + 2 * _BLEU_ORDER), lambda values, weights: {"bleu": _bleu(weights @ values)})


def bleu_signature(tokenize: str = "13a") -> str:
    """Returns sacreBLEU's signature, which states how BLEU is computed."""
    from sacrebleu.metrics import BLEU

    metric = BLEU(tokenize=tokenize)
    metric.corpus_score(["a"], [["a"]])
    return str(metric.get_signature())


def _bleu(sums: np.ndarray) -> np.ndarray:
    """Returns BLEU [R] of summed counts [R, 10]: lengths of hypotheses and references, matching n-grams, n-grams.

    If no n-gram of an order matches, the k-th such order has 1 / 2^k matches ("exp" smoothing: Chen and Cherry 2014,
    method 3).
    """
    lengths, reference_lengths = sums[:, 0], sums[:, 1]
    matches, totals = sums[:, 2 : 2 + _BLEU_ORDER], sums[:, 2 + _BLEU_ORDER :]
    missing = np.cumsum((matches == 0) & (totals > 0), axis=1)
    smoothed = np.where(matches > 0, matches, 0.5**missing)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(totals > 0, smoothed / totals, 0.0)
        brevity = np.where(lengths < reference_lengths, np.exp(1 - reference_lengths / lengths), 1.0)
        score = 100 * brevity * np.exp(np.log(precision).mean(axis=1))
    return np.where((matches > 0).any(axis=1) & (lengths > 0), score, 0.0)


def chrf_rows(hypotheses: Sequence[str], references: Sequence[str]) -> Weighted:
    """Returns chrF (Popovic 2015): n-grams of 1 to 6 characters without white space, beta 2. The figure is "chrf"."""
    rows = [_chrf_counts(*pair) for pair in zip(hypotheses, references, strict=True)]
    return Weighted(_table(rows, 3 * _CHRF_ORDER), lambda values, weights: {"chrf": _chrf(weights @ values)})


def chrf_of_each(hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Returns the chrF of each row, float64 [N]."""
    values = chrf_rows(hypotheses, references).values
    return _chrf(values) if len(values) else np.zeros(0)


def _chrf_counts(hypothesis: str, reference: str) -> list[int]:
    """Returns for each order the n-grams of the hypothesis, those of the reference, and the matching ones."""
    texts = ["".join(text.split()) for text in (hypothesis, reference)]
    counts = []
    for n in range(1, _CHRF_ORDER + 1):
        grams = [collections.Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in texts]
        # As in sacreBLEU, n-grams do not count where the reference is too short to have any.
        counts += [grams[0].total() if grams[1] else 0, grams[1].total(), (grams[0] & grams[1]).total()]
    return counts


def _chrf(sums: np.ndarray) -> np.ndarray:
    """Returns chrF [R] of summed counts [R, 18]. Orders that one side is too short for are omitted."""
    of_hypothesis, of_reference, matches = (sums[:, i::3] for i in range(3))
    used = (of_hypothesis > 0) & (of_reference > 0)
    orders = np.maximum(used.sum(axis=1), 1)
    precision = np.where(used, matches / np.maximum(of_hypothesis, 1), 0).sum(axis=1) / orders
    recall = np.where(used, matches / np.maximum(of_reference, 1), 0).sum(axis=1) / orders
    factor = _CHRF_BETA**2
    return 100 * (1 + factor) * precision * recall / np.maximum(factor * precision + recall, 1e-300)


class _Characters:
    """A tokenizer for ROUGE of texts in scripts without spaces; a run of Latin letters or digits is one token."""

    def tokenize(self, text: str) -> list[str]:
        return diversity.plain_words(text.lower())


def rouge_rows(hypotheses: Sequence[str], references: Sequence[str], characters: bool | None = None) -> Weighted:
    """Returns the F-measures of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004): "rouge_1", "rouge_2" and "rouge_l".

    Args:
      hypotheses, references: N texts each.
      characters: True counts the characters of Chinese and Japanese; False counts words, with Porter's stemmer, as the
        package rouge-score does. None decides by the references.
    """
    from rouge_score.rouge_scorer import RougeScorer

    characters = is_spaceless(references) if characters is None else characters
    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(names, use_stemmer=not characters, tokenizer=_Characters() if characters else None)
    rows = []
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        scores = scorer.score(reference, hypothesis)
        rows.append([100 * scores[name].fmeasure for name in names])
    return _means(rows, ("rouge_1", "rouge_2", "rouge_l"))


def match_rows(hypotheses: Sequence[str], references: Sequence[str]) -> Weighted:
    """Returns "exact_match", the share of texts that are equal to their reference, and "token_f1", the F1 of the words
    that both have.

    Case counts, white space only as a separator. Punctuation marks and the characters of Chinese and Japanese are words
    (diversity.words). The F1 of two texts without words is that of their equality.
    """
    rows = []
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        equal = hypothesis.split() == reference.split()
        given, wanted = (collections.Counter(diversity.words(text)) for text in (hypothesis, reference))
        total = given.total() + wanted.total()
        f1 = 2 * (given & wanted).total() / total if total else float(equal)
        rows.append([100.0 * equal, 100.0 * f1])
    return _means(rows, ("exact_match", "token_f1"))


def _means(rows: Sequence[Sequence[float]], names: Sequence[str]) -> Weighted:
    def figures(values: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        means = (weights @ values) / np.maximum(weights.sum(axis=1, keepdims=True), 1)
        return {name: means[:, i] for i, name in enumerate(names)}

    return Weighted(_table(rows, len(names)), figures)


def _table(rows: Sequence[Sequence[float]], columns: int) -> np.ndarray:
    return np.asarray(rows, np.float64).reshape(len(rows), columns)
