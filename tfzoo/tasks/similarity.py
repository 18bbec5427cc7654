"""Similarity of two texts, from pairs with a score: a bi-encoder, whose cosine of the two vectors is the similarity.

    sentence1,sentence2,score
    A plane is taking off.,An air plane is taking off.,5.0

becomes the two texts [CLS] a plane is taking off . [SEP] and [CLS] an air plane is taking off . [SEP], and label 5.0.

--similarity_loss=cosent (Su 2022, https://kexue.fm/archives/8847) learns the order of the scores. Over all pairs of
rows i, j of a step whose scores are s_i > s_j, with the cosines c and the temperature t:

    log(1 + sum of exp((c_j - c_i) / t))

mse is the squared difference between the cosine and the score, scaled to the range from 0 to 1 (Reimers and Gurevych
2019, section 3). The vectors can be compared without the model, for example in an index. A cross-encoder, which reads
both texts at a time and is slower and often more accurate, is trained with --task=classify --label_type=number.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tfzoo import lazy
from tfzoo.data.labelled import LabelledFile
from tfzoo.errors import UserError
from tfzoo.evaluation import linear, scores
from tfzoo.evaluation.intervals import Weighted
from tfzoo.options import option
from tfzoo.tasks import GROUP
from tfzoo.tasks.bi_encoder import BiEncoder, EmbeddingOptions, shown, unit

tf = lazy.module("tensorflow")

COSENT, MSE = "cosent", "mse"
_MOST_BASELINE_ROWS = 50_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(EmbeddingOptions):
    """The options of the task similarity."""

    similarity_loss: str = option(
        COSENT,
        "cosent learns the order of the scores; mse their values, scaled to the range of the cosine from 0 to 1.",
        group=GROUP,
        choices=(COSENT, MSE),
    )
    score_range: str | None = option(
        None,
        "mse: the lowest and the highest score, such as 0,5; by default those of --train_file.",
        group=GROUP,
    )


class Similarity(BiEncoder):
    """See the module's docstring."""

    name = "similarity"
    Options = Options
    FIGURES = (
        ("Pearson correlation", "pearson", "{:.4f}"),
        ("Spearman correlation", "spearman", "{:.4f}"),
        ("validation loss", "validation_loss", "{:.4f}"),
    )
    best_metric = ("pearson", "max")

    def __init__(self, tokenizer, sequence_length: int, **arguments):
        super().__init__(tokenizer, sequence_length, **arguments)
        self.score_range = _range(self.options.score_range)
        if self.score_range and self.options.similarity_loss != MSE:
            raise UserError(f"--score_range={self.options.score_range}: applies to --similarity_loss=mse; omit it")

    @classmethod
    def default_learning_rate(cls, options, pretrained):
        """See Task; with cosent, a pretrained encoder diverges at 1e-4."""
        cosent = getattr(options, "similarity_loss", COSENT) == COSENT
        return 2e-5 if pretrained and cosent else super().default_learning_rate(options, pretrained)

    @classmethod
    def open_file(cls, options, path, flag, policy):
        file = LabelledFile(path, flag=flag, kind="number", columns=options.columns, needs_pair=True, policy=policy)
        if file.num_texts != 2:
            raise file.error(f"has {file.num_texts} texts in a row; specify one --pair_column")
        return file

    def targets(self):
        return {"label": (np.float32, ())}

    def target_columns(self, rows):
        return {"label": np.array([row.label for row in rows], np.float32)}

    def prepare_training(self, rows):
        """Determines the range of the scores, which mse needs.

        Raises:
          UserError: all scores are equal, or one is outside of --score_range.
        """
        label = np.asarray(rows.columns["label"])
        found = float(label.min()), float(label.max())
        if found[0] == found[1]:
            raise UserError(f"--train_file: all scores are {shown(found[:1])}; provide pairs with different scores")
        low, high = self.score_range = self.score_range or found
        if found[0] < low or found[1] > high:
            raise UserError(
                f"--score_range={self.options.score_range}: the scores of --train_file are from {found[0]:g} to "
                f"{found[1]:g}; widen the range"
            )

    @property
    def compares_rows(self):
        return self.options.similarity_loss == COSENT

    def batch_loss(self, vectors, batch):
        """See the module's docstring; cosent is one number per step, mse a sum over rows."""
        vectors = tf.math.l2_normalize(vectors, -1, 1e-24)
        cosine = tf.reduce_sum(vectors[:, 0] * vectors[:, 1], -1)
        label = batch["label"]
        if self.options.similarity_loss == MSE:
            low, high = self.score_range or (0.0, 1.0)
            error = cosine - (label - low) / (high - low)
            return tf.reduce_sum(tf.square(error)), tf.cast(tf.size(error), tf.float32)
        # Element i, j is that of s_i > s_j.
        difference = (cosine[None, :] - cosine[:, None]) / self.options.temperature
        difference = tf.where(label[:, None] > label[None, :], difference, -1e9)
        exponents = tf.concat([tf.zeros([1]), tf.reshape(difference, [-1])], 0)
        return tf.reduce_logsumexp(exponents), tf.constant(1.0)

    # ------------------------------------------------------------------ Evaluation

    def outcome(self, predictions):
        first, second = unit(predictions["vectors"][:, 0]), unit(predictions["vectors"][:, 1])
        answer = np.sum(first * second, axis=-1, dtype=np.float64)
        return {"number": predictions["number"], "answer": answer, "label": predictions["label"]}

    def score_rows(self, outcome):
        return _correlations(outcome["label"], outcome["answer"])

    def mistakes(self, outcome, count):
        answer, label = outcome["answer"], np.asarray(outcome["label"], np.float64)
        # The scores that the similarities correspond to, by linear regression on this file.
        design = np.stack([answer, np.ones_like(answer)], 1)
        fitted = design @ np.linalg.lstsq(design, label, rcond=None)[0]
        badness = np.abs(fitted - label)
        return [
            {
                "number": int(outcome["number"][i]),
                "gold": f"{label[i]:.3f}",
                "predicted": f"{fitted[i]:.3f}",
                "score": float(answer[i]),
            }
            for i in np.argsort(-badness, kind="stable")[:count]
        ]

    def file_baselines(self, train, held_out):
        train_texts, train_labels = _columns(train, _MOST_BASELINE_ROWS)
        texts, labels = _columns(held_out)
        answers = {
            "tfidf": tfidf_cosines(train_texts, texts),
            "linear": linear.Linear("number").fit(train_texts, train_labels).predict(texts),
        }
        return {name: _correlations(labels, answer)() for name, answer in answers.items()}


def tfidf_vectorizer(train: Sequence[tuple[str, ...]]):
    """Returns a TfidfVectorizer of 2 to 5 characters within words, fitted on the texts of rows; None if no text has two
    characters."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    try:
        return vectorizer.fit(text for row in train for text in row)
    except ValueError:
        return None


def tfidf_cosines(train: list[tuple[str, ...]], pairs: list[tuple[str, ...]]) -> np.ndarray:
    """Returns the cosines of pairs' TF-IDF vectors of 2 to 5 characters within words, float64 [N]; the document
    frequencies are those of other pairs."""
    vectorizer = tfidf_vectorizer(train)
    if vectorizer is None:
        return np.zeros(len(pairs))
    first, second = (vectorizer.transform([pair[i] for pair in pairs]) for i in range(2))
    return np.asarray(first.multiply(second).sum(1)).ravel()


def _correlations(gold: np.ndarray, predicted: np.ndarray) -> Weighted:
    """Returns the correlations of numbers as functions of rows; scores and cosines have different scales."""
    rows = scores.regression_rows(gold, predicted)

    def figures(values, weights):
        return {name: value for name, value in rows.figures(values, weights).items() if name != "mse"}

    return Weighted(rows.values, figures)


def _columns(file, most: int | None = None) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """Returns the texts and the scores of a file's rows: of the first `most` rows, if that is given."""
    texts: list[tuple[str, ...]] = []
    labels: list[float] = []
    for row in file.rows():
        if most is not None and len(texts) >= most:
            break
        texts.append(row.texts)
        labels.append(row.label)
    return texts, np.array(labels, np.float64)


def _range(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = map(float, text.split(","))
        if not -np.inf < low < high < np.inf:
            raise ValueError
    except ValueError:
        raise UserError(f"--score_range={text}: must be two numbers, the lower one first, such as 0,5") from None
    return low, high
