"""Cheap baselines of fine-tuning: the commonest class, a linear model over TF-IDF features, and a look-up of tags.

They need seconds to about a minute on one core, and a model that does not beat them is not worth serving.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from tfzoo.evaluation.diversity import words

Kind = Literal["single", "several", "number"]

# Limits that keep `Linear.fit` at about a minute: rows, rows times classes, and characters that are read as n-grams.
MAX_ROWS = 50_000
MAX_ROWS_BY_CLASSES = 2_500_000
MAX_CHARACTERS = 4_000_000
_MAX_WORDS = 100  # Of a text, for the overlap of pairs, whose cost is quadratic.
_FREQUENT_FROM = 1_000  # Rows from which n-grams must occur in two rows.


def majority(train_labels: np.ndarray, count: int) -> np.ndarray:
    """Returns the prediction for `count` rows that needs no text.

    Args:
      train_labels: int [N], of which the commonest class is predicted (the lowest of equally common ones); bool [N, C],
        of which the labels that more than half of the rows have; or float [N], of which the mean.
    """
    labels = np.asarray(train_labels)
    if labels.ndim == 2:
        value = labels.mean(0) > 0.5
    elif labels.dtype.kind == "f":
        value = labels.mean()
    else:
        values, counts = np.unique(labels, return_counts=True)
        value = values[counts.argmax()]
    return np.repeat(value[None], count, axis=0)


class Linear:
    """A linear model over TF-IDF features: words 1-2 and characters 1-5, which also serve languages without spaces.

    Term frequencies are sublinear (1 + log). Classes are predicted by L2-regularized logistic regression, one against
    the rest, with C = 3, which was chosen on the validation rows of sst2, trec, banking77 and chnsenticorp; numbers by
    ridge regression. A pair of texts has the features of both, those that they share, those that only one has, and 11
    measures of their overlap; a number of a pair, such as a similarity, is predicted from the overlap alone by gradient
    boosting.

    So that `fit` takes about a minute, at most 50,000 rows are used, or 2,500,000 divided by the number of classes if
    that is less: a sample with a fixed seed. Of each text, n-grams of characters are read from the first 4,000,000
    characters divided by the number of rows, and words from ten times as many.

    Args:
      kind: "single" for one class per row, "several" for any number of labels, "number" for regression.
    """

    def __init__(self, kind: Kind):
        if kind not in ("single", "several", "number"):
            raise ValueError(f"kind is {kind!r}, not single, several or number")
        self.kind = kind
        self._constant: np.ndarray | None = None  # The answer if all training labels are equal.
        self._model: Any = None

    def fit(self, texts: Sequence[Sequence[str]], labels: Any) -> "Linear":
        """Fits rows of one or two texts.

        Args:
          texts: N rows, all of one text or all of two.
          labels: int [N], bool [N, C] or float [N], by kind.
        """
        labels = np.asarray(labels)
        if len(texts) != len(labels) or not len(texts):
            raise ValueError(f"{len(texts)} texts and {len(labels)} labels; both must be equally many, and some")
        rows = self._sample(labels)
        texts, labels = [texts[row] for row in rows], labels[rows]
        self._constant = labels[0] if (labels == labels[0]).all() else None
        if self._constant is not None:
            return self
        self._features = _Features(len(texts[0]), overlap_only=self.kind == "number")
        self._model = _regressor(len(texts[0])) if self.kind == "number" else _classifier()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Labels that all or no rows have, and early stops, are harmless here.
            self._model.fit(self._features.fit(texts), labels.astype(np.int64) if self.kind == "several" else labels)
        return self

    def predict(self, texts: Sequence[Sequence[str]]) -> np.ndarray:
        """Returns the predictions for rows of texts: int [N], bool [N, C] or float [N], by kind."""
        if self._constant is not None:
            return np.repeat(self._constant[None], len(texts), axis=0)
        if self._model is None:
            raise ValueError("call fit first")
        predicted = self._model.predict(self._features.transform(texts))
        return predicted.astype(bool) if self.kind == "several" else predicted

    def _sample(self, labels: np.ndarray) -> np.ndarray:
        """Returns the rows that are used, in order."""
        limit = MAX_ROWS
        if self.kind != "number":
            classes = labels.shape[1] if labels.ndim == 2 else len(np.unique(labels))
            limit = min(limit, MAX_ROWS_BY_CLASSES // classes)
        if len(labels) <= limit:
            return np.arange(len(labels))
        return np.sort(np.random.default_rng(0).choice(len(labels), limit, replace=False))


def _classifier():
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    # Coordinate descent in the dual, the fastest exact solver for many sparse features.
    return OneVsRestClassifier(
        LogisticRegression(C=3, solver="liblinear", dual=True, tol=0.1, max_iter=30, random_state=0)
    )


def _regressor(columns: int):
    if columns == 1:
        from sklearn.linear_model import Ridge

        return Ridge(alpha=1.0, solver="lsqr")
    from sklearn.ensemble import GradientBoostingRegressor

    return GradientBoostingRegressor(n_estimators=200, max_depth=3, learning_rate=0.05, subsample=0.5, random_state=0)


class _Features:
    """Sparse features of rows of one or two texts."""

    def __init__(self, columns: int, overlap_only: bool):
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._columns = columns
        self._overlap_only = overlap_only and columns == 2
        options: dict[str, Any] = {"sublinear_tf": True, "dtype": np.float32}
        self._vectorizers = [
            TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", ngram_range=(1, 2), **options),
            TfidfVectorizer(analyzer="char", ngram_range=(1, 5), **options),
        ]

    def fit(self, texts: Sequence[Sequence[str]]):
        """Learns the vocabulary of rows and returns their features [N, F]."""
        self._lengths = [max(100, 10 * MAX_CHARACTERS // len(texts)), max(50, MAX_CHARACTERS // len(texts))]
        used = []
        for vectorizer, length in zip(self._vectorizers, self._lengths, strict=True):
            vectorizer.min_df = 2 if len(texts) >= _FREQUENT_FROM else 1
            try:
                vectorizer.fit(text[:length] for row in texts for text in row)
            except ValueError:  # The texts contain no words, or none that two of them share.
                continue
            used.append((vectorizer, length))
        self._used = used
        return self.transform(texts)

    def transform(self, texts: Sequence[Sequence[str]]):
        """Returns the features [N, F] of rows."""
        from scipy import sparse

        for row in texts:
            if len(row) != self._columns:
                raise ValueError(f"a row of {len(row)} texts, but others have {self._columns}")
        blocks: list[Any] = [np.ones((len(texts), 1))]  # So that there is always a feature.
        cosines = []
        for vectorizer, length in self._used:
            parts = [vectorizer.transform([row[i][:length] for row in texts]) for i in range(self._columns)]
            if self._columns == 2:
                first, second = parts
                cosines.append(np.asarray(first.multiply(second).sum(1)).ravel())
                parts += [first.minimum(second), abs(first - second)]
            blocks += parts
        if self._columns == 2:
            measures = np.array([_overlap(*row) for row in texts]).reshape(len(texts), -1)
            measures = np.concatenate([np.array(cosines).reshape(-1, len(texts)).T, measures], axis=1)
            if self._overlap_only:
                return measures
            blocks.append(measures)
        return sparse.hstack(blocks).tocsr()


def _overlap(first: str, second: str) -> list[float]:
    """Returns the 9 measures of how far two texts agree that need no training."""
    import difflib

    a, b = (words(text[: 20 * _MAX_WORDS].lower())[:_MAX_WORDS] for text in (first, second))
    pairs = [set(zip(each, each[1:])) for each in (a, b)]
    trigrams = [{text[i : i + 3] for i in range(len(text) - 2)} for text in (" ".join(a), " ".join(b))]
    numbers = [{word for word in each if word.isdigit()} for each in (a, b)]
    return [
        _jaccard(set(a), set(b)),
        len(set(a) & set(b)) / max(1, len(set(a))),
        len(set(a) & set(b)) / max(1, len(set(b))),
        _jaccard(*pairs),
        _jaccard(*trigrams),
        difflib.SequenceMatcher(None, a, b, autojunk=False).ratio(),
        min(len(a), len(b)) / max(1, len(a), len(b)),
        math.log1p(abs(len(a) - len(b))),
        _jaccard(*numbers),
    ]


def _jaccard(first: set, second: set) -> float:
    return len(first & second) / len(first | second) if first or second else 1.0
