"""Open-domain answers: documents that a search found are read with a model that answers questions (Chen et al. 2017).

    [answer] = read(["When was Ada born?"], [[Passage("7", "Ada was born in 1815.", 12.3), ...]], stream, weight=0.5)
    {"answer": "1815", "start": 16, "end": 20, "score": 0.93, "no_answer": 0.01, "id": "7", "total": 0.96}

The answer to a question is that of the document with the highest sum of the answer's score and the document's score,
which is divided by that of the first document (as in tfzoo.retrieval.fusion), with weights that add up to 1 (Yang et
al. 2019, "End-to-End Open-Domain Question Answering with BERTserini", equation 1). Documents whose answer is "" are
passed over, unless that is the answer of all of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

from tfzoo.errors import UserError
from tfzoo.prediction.answers import Record, rounded
from tfzoo.prediction.predictor import Predictor
from tfzoo.prediction.stream import Stream


class Passage(NamedTuple):
    """A document that was found: its id, its text and its score."""

    id: str
    text: str
    score: float


def check(predictor: Predictor, folder: str) -> None:
    """Raises UserError if a predictor does not answer questions."""
    if predictor.task != "span":
        raise UserError(
            f"--reader={folder}: its task is {predictor.task}, which does not answer questions; specify a model "
            "that was fine-tuned with --task=answer"
        )


def read(
    questions: Sequence[str], found: Sequence[Sequence[Passage]], stream: Stream, weight: float = 0.5
) -> list[Record]:
    """Returns the record of each question.

    Args:
      questions: the questions.
      found: the documents of each question, the best first.
      stream: of a predictor with the head span.
      weight: the weight of the answer's score, from 0 to 1; the rest is that of the document's score.
    """
    rows = [(question, each.text) for question, passages in zip(questions, found, strict=True) for each in passages]
    records = iter(stream.answer(rows))
    result = []
    for passages in found:
        best: Record = {"answer": ""}
        highest = max((abs(each.score) for each in passages), default=0.0) or 1.0
        for passage in passages:
            record = next(records)
            if not record.get("answer"):
                continue
            total = weight * record["score"] + (1 - weight) * passage.score / highest
            if "total" not in best or total > best["total"]:
                best = {name: value for name, value in record.items() if name != "answers"}
                best |= {"id": passage.id, "total": total}
        if "total" in best:
            best["total"] = rounded(best["total"])
        result.append(best)
    return result
