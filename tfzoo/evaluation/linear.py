"""Cheap baselines of fine-tuning: the commonest class, a linear model over TF-IDF features, and a look-up of tags.

They need seconds to about a minute on one core, and a model that does not beat them is not worth serving.
"""

import collections
import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from tfzoo.evaluation import entities
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
    the rest, with C = 10, which was chosen on the validation rows of sst2, trec, banking77 and chnsenticorp; numbers by
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
          texts: N rows, all of one text or all of two; only those of the sample are read.
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
        if self.kind == "several":
            return predicted.astype(bool).reshape(len(texts), -1)  # scikit-learn returns [N] for a single label.
        return predicted

    def _sample(self, labels: np.ndarray) -> np.ndarray:
        """Returns the rows that are used, in order."""
        limit = MAX_ROWS
        if self.kind != "number":
            classes = labels.shape[1] if labels.ndim == 2 else len(np.unique(labels))
            limit = min(limit, MAX_ROWS_BY_CLASSES // classes)
        if len(labels) <= limit:
            return np.arange(len(labels))
        return np.sort(np.random.default_rng(0).choice(len(labels), limit, replace=False))


class TagLookup:
    """Tags words as the training set does: the longest known entities, or for plain tags the commonest tag of a word.

    If the tags are IOB2 tags, a phrase is tagged with its commonest type if more than half of its occurrences in the
    training set are entities, regardless of case; phrases are found from left to right, the longest first (the baseline
    of CoNLL-2003, Tjong Kim Sang and De Meulder 2003, is similar). Otherwise the tag of a word that is unknown, also in
    lower case, is the commonest tag of the words that occur once.
    """

    def __init__(self) -> None:
        self._fitted = False
        self._phrases: dict[tuple[str, ...], str] = {}
        self._longest = 0
        self._tags: dict[str, str] | None = None  # Of plain words; None if the tags are entities.
        self._unknown = entities.OUTSIDE

    def fit(self, words: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]) -> "TagLookup":
        """Reads the words of sentences and their tags."""
        for number, (sentence, its_tags) in enumerate(zip(words, tags, strict=True)):
            if len(sentence) != len(its_tags):
                raise ValueError(f"sentence {number} has {len(sentence)} words, but {len(its_tags)} tags")
        if entities.is_iob2(tags):
            self._fit_entities(words, tags)
        else:
            self._fit_tags(words, tags)
        self._fitted = True
        return self

    def predict(self, words: Sequence[Sequence[str]]) -> list[list[str]]:
        """Returns the tags of the words of sentences."""
        if not self._fitted:
            raise ValueError("call fit first")
        if self._tags is not None:
            known, unknown = self._tags, self._unknown
            return [[known.get(word) or known.get(word.lower(), unknown) for word in sentence] for sentence in words]
        return [self._entities(_lower(sentence)) for sentence in words]

    def _fit_entities(self, words: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]) -> None:
        words = [_lower(sentence) for sentence in words]
        kinds: dict[tuple[str, ...], collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for sentence, its_tags in zip(words, tags, strict=True):
            for kind, begin, end in entities.spans(its_tags):
                kinds[tuple(sentence[begin:end])][kind] += 1
        self._longest = max(map(len, kinds))
        occurrences = collections.Counter(
            phrase
            for sentence in words
            for size in range(1, self._longest + 1)
            for phrase in zip(*(sentence[i:] for i in range(size)))
            if phrase in kinds
        )
        for phrase, counts in kinds.items():
            if 2 * counts.total() > occurrences[phrase]:
                self._phrases[phrase] = counts.most_common(1)[0][0]

    def _fit_tags(self, words: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]) -> None:
        counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for sentence, its_tags in zip(words, tags, strict=True):
            for word, tag in zip(sentence, its_tags, strict=True):
                counts[word][tag] += 1
        self._tags = {word: its_counts.most_common(1)[0][0] for word, its_counts in counts.items()}
        rare = collections.Counter(self._tags[word] for word, its_counts in counts.items() if its_counts.total() == 1)
        common = rare or sum(counts.values(), collections.Counter())
        if common:
            self._unknown = common.most_common(1)[0][0]

    def _entities(self, sentence: Sequence[str]) -> list[str]:
        tags, begin = [entities.OUTSIDE] * len(sentence), 0
        while begin < len(sentence):
            for size in range(min(self._longest, len(sentence) - begin), 0, -1):
                kind = self._phrases.get(tuple(sentence[begin : begin + size]))
                if kind is not None:
                    suffix = "" if kind == entities.UNTYPED else f"-{kind}"
                    tags[begin : begin + size] = [f"B{suffix}", *[f"I{suffix}"] * (size - 1)]
                    begin += size
                    break
            else:
                begin += 1
        return tags


def _lower(words: Sequence[str]) -> list[str]:
    return [word.lower() for word in words]


def _classifier():
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    # Coordinate descent in the dual, the fastest exact solver for many sparse features.
    return OneVsRestClassifier(
        LogisticRegression(C=10, solver="liblinear", dual=True, tol=0.1, max_iter=30, random_state=0)
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
            TfidfVectorizer(tokenizer=words, token_pattern=None, ngram_range=(1, 2), **options),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 5), **options),  # Of words with the spaces around them.
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
        blocks: list[Any] = [sparse.csr_matrix(np.ones((len(texts), 1)))]  # So that there is always a feature.
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
