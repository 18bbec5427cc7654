"""Predictions in Python: tfzoo.pipeline("runs/mine")(["What a day"])."""

import os
from collections.abc import Sequence
from typing import Any

from tfzoo.errors import UserError
from tfzoo.prediction import folders, triples
from tfzoo.prediction.answers import Record
from tfzoo.prediction.predictor import PAIR
from tfzoo.prediction.stream import LONG_TEXTS, TRUNCATE, check_average
from tfzoo.prediction.triples import MAX_PAIRS, PairOptions

Row = str | tuple[Any, ...] | list[dict[str, Any]]


class Pipeline:
    """Answers texts with the model of a folder, or with two of them; `pipeline` creates it.

    Attributes:
      task: the head that answers, such as "classify"; "triples" if two models do.
      inputs: the names of the texts of a row, such as ("text",).
    """

    def __init__(self, predictor, batch_size: int, long_texts: str):
        if long_texts not in LONG_TEXTS:
            raise UserError(f"long_texts={long_texts}: must be one of {', '.join(LONG_TEXTS)}")
        check_average(predictor.task, predictor.inputs, long_texts)
        self._predictor, self._batch_size, self._long_texts = predictor, batch_size, long_texts
        self.task, self.inputs = predictor.task, predictor.inputs

    def __call__(self, texts: Row | Sequence[Row]) -> Any:
        """Answers a text or several.

        Args:
          texts: a text, a tuple of texts for a model that reads several, or a list of either.

        Returns:
          A record (see tfzoo.prediction.answers), or a list of records in the order of the texts.

        Raises:
          UserError: a row does not have the texts that the model reads, or an artifact refuses a text because it is too
            long.
        """
        one = isinstance(texts, str | tuple)
        if self._predictor.reads_lists and isinstance(texts, list):  # A list of messages is one conversation.
            one = bool(texts) and all(isinstance(each, dict) for each in texts)
        given: Sequence[Any] = [texts] if one else texts
        rows = [self._row(f"texts[{number}]", row) for number, row in enumerate(given)]
        with triples.open_stream(self._predictor, self._batch_size, long_texts=self._long_texts) as stream:
            records: list[Record] = stream.answer(rows)
        for number, record in enumerate(records):
            if "error" in record:
                remedy = "shorten it" if "truncated" in record else "correct it"
                raise UserError(f"texts[{number}]: {record['error']}; {remedy}")
        return records[0] if one else records

    def _row(self, where: str, row: Any) -> tuple[str, ...]:
        """Returns the texts of a row; raises UserError if it does not have those that the model reads."""
        if self._predictor.reads_lists:
            values = row if len(self.inputs) > 1 and isinstance(row, tuple | list) else (row,)
            problem = "" if len(values) == len(self.inputs) else f"is {str(row)[:80]}; pass {', '.join(self.inputs)}"
            if problem := problem or self._predictor.problem(values):
                raise UserError(f"{where}: {problem}")
            return tuple(values)
        texts = (row,) if isinstance(row, str) else tuple(row) if isinstance(row, tuple | list) else ()
        counts = {len(self.inputs), len(self.inputs) + self._predictor.may_pair}
        if len(texts) not in counts or not all(isinstance(text, str) for text in texts):
            names = ", ".join(self.inputs) + (f" and perhaps {PAIR}" if self._predictor.may_pair else "")
            raise UserError(f"{where}: is {str(row)[:80]}, but the model reads {names}; pass strings")
        if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
            raise UserError(f"{where}: contains a lone surrogate; write the complete character")
        return texts


def pipeline(
    model_dir: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    batch_size: int = 32,
    long_texts: str = TRUNCATE,
    max_pairs: int = MAX_PAIRS,
    ordered_pairs: bool | None = None,
    keep_no_relation: bool = False,
    **options: Any,
) -> Pipeline:
    """Returns a callable that answers texts with the model of a folder, as python -m tfzoo.predict does.

        classify = tfzoo.pipeline("runs/mine")
        classify("What a day")                  # {"label": "positive", "score": 0.98, "scores": {...}}
        classify(["What a day", "Oh no"])       # a list of records
        classify([("A premise", "A hypothesis")])

        answer = tfzoo.pipeline("runs/chat")
        answer([{"role": "user", "content": "Hi"}])     # {"answer": "Hello"}, also for "Hi"
        choose = tfzoo.pipeline("runs/choice")
        choose(("She sits and", ["plays.", "sleeps."]))  # {"answer": "plays.", "index": 0, "score": 0.9, ...}

        summarise = tfzoo.pipeline("runs/extract")
        summarise("It rains. We stay at home.")  # {"summary": "It rains.", "sentences": [{"text", "start", ...}]}

        extract = tfzoo.pipeline(["runs/tag", "runs/relation"])
        extract("Ada works for Acme")           # {"entities": [...], "triples": [{"head": {...}, ...}]}

    Args:
      model_dir: a run, a Hugging Face or sentence-transformers folder, hf://NAME[@REVISION], or an exported SavedModel
        or ONNX artifact; or a list of two of them, one that finds entities and one that finds relations between two.
      batch_size: the number of texts computed at a time.
      long_texts: what a classifier does with a text longer than it reads: "truncate", or "average" the answers of
        overlapping windows.
      max_pairs, ordered_pairs, keep_no_relation: with two models, see tfzoo.prediction.triples.PairOptions.
      **options: checkpoint, weights, num_devices, sequence_length, pooling and prompt_name of
        tfzoo.prediction.folders.open_folder.

    Raises:
      UserError: the folder contains no model that answers texts, or an option does not apply to it.
    """
    predictor: Any
    if isinstance(model_dir, str | os.PathLike):
        predictor = folders.open_folder(os.fspath(model_dir), **options)
    else:
        predictor = triples.open_folders(model_dir, PairOptions(max_pairs, ordered_pairs, keep_no_relation), **options)
    return Pipeline(predictor, batch_size, long_texts)
