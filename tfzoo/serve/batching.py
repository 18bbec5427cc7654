"""Runs requests that arrive together as one batch.

Requests share a batch if they ask for the same outputs of the same signature with inputs of the same types and of the
same shapes but for the first axis: variable lengths are never padded. A batch that has fewer rows than an allowed size
is filled with copies of its last row, whose answers are dropped. If the model refuses a batch, each of its requests is
run alone, so that an invalid request fails no other.
"""

import bisect
import collections
import dataclasses
import os
import pathlib
import queue
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from tfzoo import files
from tfzoo.errors import UserError
from tfzoo.serve import messages
from tfzoo.serve.errors import StatusError, invalid
from tfzoo.serve.metrics import Metrics
from tfzoo.serve.servable import Servable

MODEL_FILE = "batching_params.pbtxt"  # In the folder of a version.


@dataclasses.dataclass(frozen=True)
class Parameters:
    """How requests are batched; the names and defaults are those of TF Serving's BatchingParameters.

    Attributes:
      max_batch_size: the largest number of rows of a request and, without splitting, of a batch.
      batch_timeout: how many seconds a request waits for others.
      max_enqueued_batches: how many full batches of a signature wait for a thread; more requests are refused.
      allowed_batch_sizes: the sizes to which batches are filled; empty allows all.
      splits: whether larger requests are split.
      max_execution_batch_size: the largest number of rows of a batch.
    """

    max_batch_size: int = 1000
    batch_timeout: float = 0.0
    max_enqueued_batches: int = 10
    allowed_batch_sizes: tuple[int, ...] = ()
    splits: bool = False
    max_execution_batch_size: int = 1000


def parameters(config: Any, where: str) -> Parameters:
    """Returns what a messages.BatchingParameters says; `where` is its file's name in errors.

    Raises:
      UserError: the values contradict each other, or variable lengths are to be padded.
    """

    def value(name: str, default: int) -> int:
        number = getattr(config, name).value if config.HasField(name) else default
        if number < 0 or (number == 0 and name != "batch_timeout_micros"):
            raise UserError(f"{where}: {name} is {number}; it must be positive")
        return number

    if config.pad_variable_length_inputs:
        raise UserError(
            f"{where}: pad_variable_length_inputs pads with the first element of an input, which changes answers; "
            "remove it, and let clients pad"
        )
    most = value("max_batch_size", 1000)
    splits = config.enable_large_batch_splitting.value
    execution = value("max_execution_batch_size", most) if splits else most
    sizes = tuple(config.allowed_batch_sizes)
    if list(sizes) != sorted(set(sizes)) or min(sizes, default=1) < 1:
        raise UserError(f"{where}: allowed_batch_sizes entries must be monotonically increasing")
    if sizes and sizes[-1] != execution:
        name = "max_execution_batch_size" if splits else "max_batch_size"
        raise UserError(
            f"{where}: Last entry in allowed_batch_sizes must match {name}; last entry was {sizes[-1]}; expected "
            f"{execution}"
        )
    return Parameters(
        most, value("batch_timeout_micros", 0) / 1e6, value("max_enqueued_batches", 10), sizes, splits, execution
    )


def of_model(folder: pathlib.Path) -> Parameters | None:
    """Returns the parameters in a version's own file; None without one, which means that it is not batched.

    Raises:
      StatusError: the file is not valid.
    """
    path = folder / MODEL_FILE
    if not path.exists():
        return None
    try:
        return parameters(messages.parse_text(files.read_text(path), messages.BatchingParameters, str(path)), str(path))
    except UserError as error:
        raise invalid(str(error)) from None


@dataclasses.dataclass
class _Task:
    """Rows of a request, all or a part. What comes first into `answers` is its answer: outputs, or why it failed."""

    inputs: Mapping[str, np.ndarray]
    rows: int
    deadline: float | None
    arrived: float
    # A Future makes and wakes several locks.
    answers: queue.SimpleQueue[dict[str, np.ndarray] | BaseException] = dataclasses.field(
        default_factory=queue.SimpleQueue
    )

    def result(self) -> dict[str, np.ndarray]:
        """Waits for the answer."""
        answer = self.answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer


@dataclasses.dataclass
class _Batch:
    key: Hashable
    run: Callable[[list[_Task]], None]
    due: float  # The time.monotonic() at which it runs even if it is not full.
    tasks: list[_Task] = dataclasses.field(default_factory=list)
    rows: int = 0


class Scheduler:
    """Threads that run batches, shared by all models.

    Args:
      threads: how many batches run at a time; 0 means as many as there are processors.
      name: of the threads in metrics.
    """

    def __init__(self, metrics: Metrics, threads: int = 0, name: str = ""):
        self.metrics, self._name = metrics, name
        self._open: dict[Hashable, _Batch] = {}
        self._full: collections.deque[_Batch] = collections.deque()
        self._enqueued: collections.Counter[Hashable] = collections.Counter()  # Full batches by key.
        self._condition = threading.Condition()
        self._stopped = False
        for i in range(threads or os.cpu_count() or 1):
            threading.Thread(target=self._work, name=f"batch {i}", daemon=True).start()

    def submit(self, key: Hashable, task: _Task, most: Parameters, run: Callable[[list[_Task]], None]) -> None:
        """Adds a task to the open batch of its key.

        Raises:
          StatusError: too many batches of this key wait.
        """
        with self._condition:
            batch = self._open.get(key)
            if batch is not None and batch.rows + task.rows > most.max_execution_batch_size:
                self._close(batch)
                batch = None
            if batch is None:
                if self._enqueued[key] >= most.max_enqueued_batches:
                    raise StatusError(
                        "UNAVAILABLE", "The batch scheduling queue to which this task was submitted is full"
                    )
                batch = self._open[key] = _Batch(key, run, time.monotonic() + most.batch_timeout)
                self._condition.notify()  # A thread must know when the batch is due.
            batch.tasks.append(task)
            batch.rows += task.rows
            if batch.rows == most.max_execution_batch_size:
                self._close(batch)

    def _close(self, batch: _Batch) -> None:
        del self._open[batch.key]
        self._full.append(batch)
        self._enqueued[batch.key] += 1
        self._condition.notify()

    def _next(self) -> _Batch | None:
        """Waits for a batch that is full or due; None when the scheduler is stopped."""
        with self._condition:
            while not self._stopped:
                if self._full:
                    batch = self._full.popleft()
                    self._enqueued[batch.key] -= 1
                    if not self._enqueued[batch.key]:
                        del self._enqueued[batch.key]
                    return batch
                first = min(self._open.values(), key=lambda batch: batch.due, default=None)
                wait = None if first is None else first.due - time.monotonic()
                if first is not None and wait is not None and wait <= 0:
                    return self._open.pop(first.key)
                self._condition.wait(wait)
        return None

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            now = time.monotonic()
            for task in batch.tasks:
                self.metrics.queuing(self._name).observe((now - task.arrived) * 1e6)
            try:
                batch.run(batch.tasks)
            except BaseException as error:
                for task in batch.tasks:
                    task.answers.put(error)  # Those that were answered before do not read it.

    def stop(self) -> None:
        """Ends the threads. Waiting requests fail."""
        with self._condition:
            self._stopped = True
            for batch in (*self._full, *self._open.values()):
                for task in batch.tasks:
                    task.answers.put(StatusError("UNAVAILABLE", "The server stops"))
            self._condition.notify_all()


class Batched:
    """A Servable that runs another one in batches."""

    def __init__(self, servable: Servable, scheduler: Scheduler, parameters: Parameters):
        self.name, self.version, self.runtime = servable.name, servable.version, servable.runtime
        self.folder = servable.folder
        self.signatures = servable.signatures
        self._servable, self._scheduler, self._parameters = servable, scheduler, parameters

    @property
    def sessions(self) -> Mapping[str, Any]:
        return self._servable.sessions

    def signature_def_map(self) -> bytes:
        return self._servable.signature_def_map()

    def close(self) -> None:
        self._servable.close()

    def run(
        self,
        signature_name: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str] | None = None,
        deadline: float | None = None,
    ) -> dict[str, np.ndarray]:
        signature = self.signatures[signature_name]
        names = tuple(signature.outputs if outputs is None else outputs)
        rows = {len(value) if value.ndim else 0 for value in inputs.values()}
        count = rows.pop() if len(rows) == 1 else 0
        has_rows = all(spec.shape is None or len(spec.shape) for spec in map(signature.outputs.__getitem__, names))
        if not count or not has_rows:  # Rows can be combined only along a common first axis.
            return self._servable.run(signature_name, inputs, names, deadline)
        self._scheduler.metrics.input_size(self.name, signature_name).observe(count)
        most = self._parameters
        if count > most.max_batch_size and not most.splits:
            raise invalid(f"Task size {count} is larger than maximum input batch size {most.max_batch_size}")
        parts = [
            self._submit(signature_name, _sliced(inputs, begin, begin + most.max_execution_batch_size), names, deadline)
            for begin in range(0, count, most.max_execution_batch_size)
        ]
        values = [part.result() for part in parts]
        if len(values) == 1:
            return values[0]
        return {name: np.concatenate([value[name] for value in values]) for name in names}

    def _submit(
        self, signature: str, inputs: Mapping[str, np.ndarray], outputs: tuple[str, ...], deadline: float | None
    ) -> _Task:
        shapes = tuple((name, value.dtype.str, value.shape[1:]) for name, value in sorted(inputs.items()))
        key = (id(self), signature, outputs, shapes)
        task = _Task(inputs, len(next(iter(inputs.values()))), deadline, time.monotonic())
        self._scheduler.submit(key, task, self._parameters, lambda tasks: self._run(signature, outputs, tasks))
        return task

    def _run(self, signature: str, outputs: tuple[str, ...], tasks: list[_Task]) -> None:
        """Runs the tasks whose deadlines have not passed, and gives each its rows."""
        now, live = time.monotonic(), []
        for task in tasks:
            if task.deadline is not None and now >= task.deadline:
                error = StatusError("DEADLINE_EXCEEDED", "Deadline exceeded while the request waited for its batch")
                task.answers.put(error)
            else:
                live.append(task)
        try:
            if live:
                self._answer(signature, outputs, live)
        except StatusError:
            if len(live) == 1:
                raise
            # The model refuses the rows of one request; the others are answered nevertheless.
            for task in live:
                try:
                    self._run(signature, outputs, [task])
                except StatusError as failure:
                    task.answers.put(failure)

    def _answer(self, signature: str, outputs: tuple[str, ...], live: list[_Task]) -> None:
        """Runs the tasks as one batch."""
        count = sum(task.rows for task in live)
        sizes = self._parameters.allowed_batch_sizes
        padding = sizes[bisect.bisect_left(sizes, count)] - count if sizes else 0
        metrics = self._scheduler.metrics
        metrics.processed_size(self.name, signature).observe(count + padding)
        metrics.padding(self.name, signature).observe(padding)
        inputs = {
            name: np.concatenate([task.inputs[name] for task in live] + [live[-1].inputs[name][-1:]] * padding)
            for name in live[0].inputs
        }
        values = self._servable.run(signature, inputs, outputs)
        for value in values.values():
            if not value.ndim:
                raise StatusError("FAILED_PRECONDITION", "Batched output tensor has 0 dimensions")
            if len(value) != count + padding:
                raise StatusError(
                    "FAILED_PRECONDITION",
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the "
                    "input tensors",
                )
        begin = 0
        for task in live:
            task.answers.put(_sliced(values, begin, begin + task.rows))
            begin += task.rows


def _sliced(values: Mapping[str, np.ndarray], begin: int, end: int) -> dict[str, np.ndarray]:
    return {name: value[begin:end] for name, value in values.items()}
