"""Scores of tagged words: entities under strict IOB2 rules, and the accuracy of plain tags.

An entity begins with B-TYPE and includes the I-TYPE that follow; other I- tags belong to no entity, as in seqeval's
mode "strict" with the scheme IOB2 (github.com/chakki-works/seqeval). A predicted entity is right if its type and both
of its boundaries are. conlleval (CoNLL-2000) and seqeval's default mode are more lenient: they let an entity begin with
I-.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfzoo.evaluation.intervals import Weighted
from tfzoo.evaluation.scores import quotient, rows_of_counts

OUTSIDE = "O"
UNTYPED = "_"  # The type of entities whose tags are B and I alone.
Tags = Sequence[Sequence[str]]


def spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Returns the entities (type, first word, word after the last) of the IOB2 tags of a sentence, in order.

    Raises:
      ValueError: a tag is neither O nor begins with B- or I-.
    """
    found: list[tuple[str, int, int]] = []
    kind: str | None = None  # Of the entity that the previous word belongs to.
    for position, tag in enumerate(tags):
        prefix, _, its_kind = tag.partition("-")
        if not _is_iob2(tag):
            raise ValueError(f"tag {tag!r} is not an IOB2 tag: O, B-TYPE or I-TYPE")
        its_kind = its_kind or UNTYPED
        if prefix == "B":
            found.append((its_kind, position, position + 1))
            kind = its_kind
        elif prefix == "I" and kind == its_kind:
            found[-1] = (its_kind, found[-1][1], position + 1)
        else:
            kind = None
    return found


def is_iob2(tags: Tags) -> bool:
    """Returns whether all tags of all sentences are IOB2 tags and one of them begins an entity."""
    distinct = {tag for sentence in tags for tag in sentence}
    return all(map(_is_iob2, distinct)) and any(tag.startswith("B") for tag in distinct)


def strict(gold: Tags, predicted: Tags) -> dict[str, float]:
    """Scores the entities of sentences.

    Args:
      gold, predicted: the IOB2 tags of each sentence.

    Returns:
      precision, recall and f1 over the entities of all sentences (micro average).
    """
    return strict_rows(gold, predicted)()


def strict_rows(gold: Tags, predicted: Tags) -> Weighted:
    """Returns `strict` as a function of rows, the sentences."""
    counts = [
        (len(set(a) & set(b)), len(a), len(b)) for a, b in ((spans(a), spans(b)) for a, b in _pairs(gold, predicted))
    ]
    return Weighted(np.array(counts, np.int64).reshape(-1, 3), _figures)


def per_type(gold: Tags, predicted: Tags) -> list[dict[str, Any]]:
    """Returns label, precision, recall, f1 and support of each type of entity, sorted by type."""
    counts: dict[str, np.ndarray] = {}
    for gold_tags, predicted_tags in _pairs(gold, predicted):
        expected, found = spans(gold_tags), spans(predicted_tags)
        for column, entities in enumerate((set(expected) & set(found), expected, found)):
            for entity in entities:
                counts.setdefault(entity[0], np.zeros(3, np.int64))[column] += 1
    kinds = sorted(counts)
    return rows_of_counts(kinds, *np.array([counts[kind] for kind in kinds]).reshape(-1, 3).T)


def accuracy(gold: Tags, predicted: Tags) -> dict[str, float]:
    """Returns {"accuracy": the share of words whose tag is right}, for plain tags such as parts of speech."""
    return accuracy_rows(gold, predicted)()


def accuracy_rows(gold: Tags, predicted: Tags) -> Weighted:
    """Returns `accuracy` as a function of rows, the sentences."""
    counts = [(sum(x == y for x, y in zip(a, b, strict=True)), len(a)) for a, b in _pairs(gold, predicted)]

    def figures(values: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        right, total = (weights @ values).T
        return {"accuracy": quotient(right, total)}

    return Weighted(np.array(counts, np.int64).reshape(-1, 2), figures)


def _is_iob2(tag: str) -> bool:
    return tag in (OUTSIDE, "B", "I") or (tag.startswith(("B-", "I-")) and len(tag) > 2)


def _pairs(gold: Tags, predicted: Tags) -> list[tuple[Sequence[str], Sequence[str]]]:
    """Returns the tags of each sentence, gold and predicted."""
    if len(gold) != len(predicted):
        raise ValueError(f"{len(gold)} sentences of gold tags, but {len(predicted)} of predicted ones")
    for number, (first, second) in enumerate(zip(gold, predicted, strict=True)):
        if len(first) != len(second):
            raise ValueError(f"sentence {number} has {len(first)} gold tags, but {len(second)} predicted ones")
    return list(zip(gold, predicted, strict=True))


def _figures(values: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    right, expected, found = (weights @ values).T
    return {
        "precision": quotient(right, found),
        "recall": quotient(right, expected),
        "f1": quotient(2 * right, expected + found),
    }
