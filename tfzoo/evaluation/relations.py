"""The official score of SemEval-2010 task 8 (Hendrickx et al. 2010, section 4), for any relations with directions.

A label that ends in "(e1,e2)" or "(e2,e1)" is a relation with a direction. A prediction is right if the relation and
the direction are: the two directions of a relation are counted together, and a wrong direction is both a false positive
and a false negative of the relation. The score is the mean of F1 over the relations that occur in gold, without Other,
as computed by semeval2010_task8_scorer-v1.2.pl: "(9+1)-way evaluation with directionality taken into account".
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfzoo.evaluation.intervals import Weighted
from tfzoo.evaluation.scores import quotient, rows_of_counts

OTHER = "Other"
_DIRECTION = re.compile(r"\((?:e1,e2|e2,e1)\)$")


def relation_of(label: str) -> str:
    """Returns a label without its direction."""
    return _DIRECTION.sub("", label)


def official(gold: np.ndarray, predicted: np.ndarray, labels: Sequence[str], other: str = OTHER) -> dict[str, float]:
    """Scores one relation per row.

    Args:
      gold, predicted: int [N], indices into `labels`.
      labels: the names of the relations with their directions, and `other`, if there is such a class.
      other: the label of rows without one of the relations.

    Returns:
      macro_f1, the official score; macro_precision and macro_recall; accuracy over all labels, including directions and
      `other`. The official program prints percentages.
    """
    return official_rows(gold, predicted, labels, other)()


def official_rows(gold: np.ndarray, predicted: np.ndarray, labels: Sequence[str], other: str = OTHER) -> Weighted:
    """Returns `official` as a function of rows."""
    relations, relation, values = _values(gold, predicted, labels, other)

    def figures(values: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        right, support, claimed = _counts(values, weights, relation, len(relations))
        occurs = support > 0
        number = occurs.sum(1)

        def macro(each: np.ndarray) -> np.ndarray:
            return quotient((each * occurs).sum(1), number)

        return {
            "macro_f1": macro(quotient(2 * right, support + claimed)),
            "macro_precision": macro(quotient(right, claimed)),
            "macro_recall": macro(quotient(right, support)),
            "accuracy": quotient(weights @ (values[:, 0] == values[:, 1]), weights.sum(1)),
        }

    return Weighted(values, figures)


def per_relation(
    gold: np.ndarray, predicted: np.ndarray, labels: Sequence[str], other: str = OTHER
) -> list[dict[str, Any]]:
    """Returns label (without direction), precision, recall, f1 and support of each relation except `other`."""
    relations, relation, values = _values(gold, predicted, labels, other)
    counts = _counts(values, np.ones((1, len(values))), relation, len(relations))
    return rows_of_counts(relations, *(each[0] for each in counts))


def _values(
    gold: np.ndarray, predicted: np.ndarray, labels: Sequence[str], other: str
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Returns the relations, [C] the index of each label's relation (-1 for `other`), and [N, 2] gold, predicted."""
    values = np.stack([np.asarray(gold, np.int64), np.asarray(predicted, np.int64)], axis=1)
    if values.size and not 0 <= values.min() <= values.max() < len(labels):
        raise ValueError(f"classes must be in the range of the {len(labels)} labels")
    relations = sorted({relation_of(label) for label in labels if label != other})
    relation = [-1 if label == other else relations.index(relation_of(label)) for label in labels]
    return relations, np.array(relation), values


def _counts(values: np.ndarray, weights: np.ndarray, relation: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
    """Returns [R, relations] right predictions, occurrences in gold, and occurrences in predicted."""
    table = np.concatenate([np.eye(size), np.zeros((1, size))])[relation]  # The last row, -1, is that of `other`.
    gold, predicted = table[values[:, 0]], table[values[:, 1]]
    right = gold * (values[:, 0] == values[:, 1])[:, None]
    return weights @ right, weights @ gold, weights @ predicted
