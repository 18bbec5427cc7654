"""Rows to records, in order: batches of rows with similar length, several devices at a time, windows of long texts.

Rows are taken in blocks of a few thousand. The batches of a block are a function of the block alone, so that a program
that continues at a block computes the same numbers; memory holds two blocks.
"""

import collections
import concurrent.futures
import itertools
import queue
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tfzoo.errors import UserError
from tfzoo.prediction import answers, windows
from tfzoo.prediction.answers import Record
from tfzoo.prediction.predictor import Predictor
from tfzoo.prediction.rows import Row
from tfzoo.prediction.windows import Window

Texts = tuple[str, ...]
TRUNCATE, AVERAGE = LONG_TEXTS = ("truncate", "average")
_BLOCKS_AHEAD = 1
_TOKENS_PER_CHARACTER = 8  # Twice those of a character in UTF-8, because the question may use half of a row.


class Stream:
    """Answers rows with a predictor; a context manager that ends its threads.

    Args:
      predictor: what answers.
      batch_size: the number of rows of a batch.
      block_rows: the number of rows among which batches of similar length are formed.
      long_texts: what a classifier does with a text that is longer than it reads: "truncate", or "average" the answers
        of overlapping windows. A tagger always reads windows of the text, a model that answers questions those of the
        context.
    """

    def __init__(self, predictor: Predictor, batch_size: int = 32, block_rows: int = 2048, long_texts: str = TRUNCATE):
        self._predictor, self._batch_size, self._block_rows = predictor, batch_size, block_rows
        self._average = long_texts == AVERAGE
        workers = predictor.num_devices * predictor.in_flight
        self._devices: queue.SimpleQueue[int] = queue.SimpleQueue()
        for worker in range(workers):
            self._devices.put(worker % predictor.num_devices)
        self._pool = concurrent.futures.ThreadPoolExecutor(workers)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(cancel_futures=True)

    def blocks(self, rows: Iterable[Row]) -> Iterator[list[tuple[Row, Record]]]:
        """Yields the rows of one block after another with their answers. A bad row has the answer {"error": reason}."""
        rows = iter(rows)
        begun: collections.deque = collections.deque()
        for block in iter(lambda: list(itertools.islice(rows, self._block_rows)), []):
            begun.append((block, self._begin([row.texts for row in block if not row.error])))
            if len(begun) > _BLOCKS_AHEAD:
                yield self._finish(*begun.popleft())
        while begun:
            yield self._finish(*begun.popleft())

    def answer(self, texts: Sequence[Texts]) -> list[Record]:
        """Answers a list of rows."""
        begun = [
            self._begin(texts[first : first + self._block_rows]) for first in range(0, len(texts), self._block_rows)
        ]
        return [record for block in begun for record in self._records(*block)]

    def _begin(self, texts: Sequence[Texts]) -> tuple[Sequence[Texts], list]:
        return texts, self._submit(texts)

    def _finish(self, block: list[Row], begun: tuple[Sequence[Texts], list]) -> list[tuple[Row, Record]]:
        records = iter(self._records(*begun))
        return [(row, {"error": f"{row.where}: {row.error}"} if row.error else next(records)) for row in block]

    def _submit(self, texts: Sequence[Texts]) -> list[tuple[list[int], concurrent.futures.Future]]:
        """Starts the computation and returns for each batch the indices of its rows, and its records to come."""
        sizes = [sum(len(str(text).encode()) for text in row) for row in texts]
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), -sizes[i]))
        batches = []
        for _, group in itertools.groupby(order, key=lambda i: len(texts[i])):  # One text, or a pair.
            alike = list(group)
            batches += [alike[first : first + self._batch_size] for first in range(0, len(alike), self._batch_size)]
        return [(batch, self._pool.submit(self._answer, [texts[i] for i in batch])) for batch in batches]

    def _answer(self, texts: list[Texts]) -> list[Record]:
        device = self._devices.get()
        try:
            return self._predictor.answer(texts, device)
        finally:
            self._devices.put(device)

    def _collected(self, texts: Sequence[Texts], batches: list) -> list[Record]:
        records: list[Any] = [None] * len(texts)
        for indices, future in batches:
            for i, record in zip(indices, future.result(), strict=True):
                records[i] = record
        return records

    def _records(self, texts: Sequence[Texts], batches: list) -> list[Record]:
        task, records = self._predictor.task, self._collected(texts, batches)
        if task in ("tag", "span") or self._average:
            long = [
                i
                for i, (row, record) in enumerate(zip(texts, records, strict=True))
                if "truncated" in record and (len(row[-1]) > self._least() if task == "span" else len(row) == 1)
            ]
            for i, record in zip(long, self._read_in_windows([texts[i] for i in long])):
                records[i] = record
        return [answers.decided(record, self._predictor.no_answer_threshold) for record in records]

    def _read_in_windows(self, rows: list[Texts]) -> list[Record]:
        """Answers rows whose last text is longer than the predictor reads."""
        predictor, texts = self._predictor, [row[-1] for row in rows]
        overlap = windows.OVERLAP if predictor.has_offsets or predictor.task != "tag" else 0.0
        least = self._least()
        waiting = [
            (i, window) for i, row in enumerate(rows) for window in windows.cut(row[-1], self._room(row), overlap)
        ]
        found: list[list[tuple[Window, Record]]] = [[] for _ in texts]
        while waiting:
            parts = [(*rows[i][:-1], texts[i][slice(*window)]) for i, window in waiting]
            answered = self._collected(parts, self._submit(parts))
            again = []
            for (i, window), record in zip(waiting, answered):
                cut_again = "truncated" in record and window.end - window.start > least
                smaller = windows.halved(texts[i], window, overlap) if cut_again else []
                again += [(i, each) for each in smaller]
                if not smaller:
                    found[i].append((window, record))
            waiting = again
        ordered = [sorted(parts, key=lambda part: part[0]) for parts in found]
        return [_joined(text, parts, predictor.task) for text, parts in zip(texts, ordered)]

    def _least(self) -> int:
        """Returns the number of characters up to which a window is not cut again: a context that is so short fits, and
        was truncated because of the question."""
        return max(1, self._predictor.length // _TOKENS_PER_CHARACTER) if self._predictor.task == "span" else 1

    def _room(self, row: Texts) -> int:
        """Returns about how many tokens a window of the last text of a row may have."""
        length = self._predictor.length
        before = sum(len(text.encode(errors="replace")) for text in row[:-1]) // windows.BYTES_PER_TOKEN
        return max(length - before, length // 2)


def _joined(text: str, parts: list[tuple[Window, Record]], task: str) -> Record:
    read = [window for window, _ in parts]
    records = [record for _, record in parts]
    if task == "span":
        return answers.joined_spans([window.start for window in read], records)
    if task != "tag":
        return answers.averaged(records)
    found = [record.get("entities", []) for record in records]
    if all("start" in entity for entities in found for entity in entities):
        return {"entities": windows.joined(read, found, len(text))}
    return {"entities": [entity for entities in found for entity in entities]}


def check_average(task: str, inputs: Sequence[str], long_texts: str) -> None:
    """Raises UserError if the answers of windows are to be averaged and are none of a classifier of single texts."""
    if long_texts == AVERAGE and (task != "classify" or len(inputs) > 1):
        raise UserError(
            f"--long_texts={AVERAGE}: applies to classifiers of single texts, but the model's task is {task} of "
            f"{' and '.join(inputs)}; omit it"
        )
