"""Requests that arrive together share a batch, and each gets the answers to its own rows."""

import pathlib
import threading
import time
import unittest
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import numpy as np

from tfzoo.errors import UserError
from tfzoo.serve import batching, messages
from tfzoo.serve.batching import Batched, Parameters, Scheduler
from tfzoo.serve.errors import StatusError
from tfzoo.serve.metrics import Metrics
from tfzoo.serve.servable import PREDICT, Signature, TensorSpec

FLOAT = np.dtype(np.float32)


class Doubler:
    """A Servable that doubles x, and remembers the sizes of its batches; it runs while `may_run` is set."""

    name, version, runtime, folder = "doubler", 1, "test", pathlib.Path()

    def __init__(self):
        x, y = TensorSpec("x:0", FLOAT, (None, None), 1), TensorSpec("y:0", FLOAT, (None, None), 1)
        total = TensorSpec("t:0", FLOAT, (), 1)
        self.signatures = {"double": Signature("double", PREDICT, {"x": x}, {"y": y, "total": total})}
        self.sessions: Mapping[str, Any] = {}
        self.batches: list[np.ndarray] = []
        self.may_run = threading.Event()
        self.may_run.set()

    def signature_def_map(self):
        return b""

    def close(self):
        pass

    def run(self, signature_name, inputs, outputs=None, deadline=None):
        self.may_run.wait()
        self.batches.append(inputs["x"])
        if (inputs["x"] == 13).any():
            raise StatusError("INVALID_ARGUMENT", "13 is refused")
        values = {"y": inputs["x"] * 2, "total": inputs["x"].sum()}
        return {name: values[name] for name in outputs}


def rows(*values) -> np.ndarray:
    return np.array(values, FLOAT)[:, None]


class BatchingTest(unittest.TestCase):
    def setUp(self) -> None:
        self.metrics = Metrics()
        self.scheduler = Scheduler(self.metrics, threads=1)
        self.addCleanup(self.scheduler.stop)
        self.model = Doubler()
        self.pool = ThreadPoolExecutor(16)
        self.addCleanup(self.pool.shutdown)

    def together(self, parameters: Parameters, requests, deadlines=None, outputs=("y",)):
        """Sends requests while the model is busy with another one, so that they wait for it; returns their futures."""
        batched = Batched(self.model, self.scheduler, parameters)
        self.model.may_run.clear()
        busy = self.pool.submit(batched.run, "double", {"x": np.zeros((1, 99), FLOAT)}, outputs)
        while self.scheduler._open or self.scheduler._full:  # Until its batch runs.
            time.sleep(0.001)
        futures = []
        for i, request in enumerate(requests):
            deadline = (deadlines or {}).get(i)
            futures.append(self.pool.submit(batched.run, "double", {"x": request}, outputs, deadline))
            waiting = lambda: [*self.scheduler._open.values(), *self.scheduler._full]  # noqa: E731
            while sum(len(b.tasks) for b in waiting()) <= i and not futures[-1].done():
                time.sleep(0.001)
        self.model.may_run.set()
        busy.result()
        return futures

    def test_requests_share_a_batch(self) -> None:
        futures = self.together(Parameters(4, max_execution_batch_size=4), [rows(1), rows(2, 3), rows(4), rows(5)])
        answers = [future.result()["y"].ravel().tolist() for future in futures]
        self.assertEqual(answers, [[2], [4, 6], [8], [10]])
        self.assertEqual([batch.ravel().tolist() for batch in self.model.batches[1:]], [[1, 2, 3, 4], [5]])

    def test_lengths_are_never_padded(self) -> None:
        futures = self.together(Parameters(), [np.ones((1, 2), FLOAT), np.ones((1, 3), FLOAT), np.ones((2, 2), FLOAT)])
        self.assertEqual([future.result()["y"].shape for future in futures], [(1, 2), (1, 3), (2, 2)])
        self.assertEqual(sorted(batch.shape for batch in self.model.batches[1:]), [(1, 3), (3, 2)])

    def test_a_batch_is_filled_with_copies_of_its_last_row(self) -> None:
        parameters = Parameters(8, allowed_batch_sizes=(1, 4, 8), max_execution_batch_size=8)
        futures = self.together(parameters, [rows(1), rows(2)])
        self.assertEqual([future.result()["y"].tolist() for future in futures], [[[2]], [[4]]])
        self.assertEqual(self.model.batches[1].ravel().tolist(), [1, 2, 2, 2])
        self.assertIn(
            b':tensorflow:serving:batching_session:padding_size_sum{model_name="doubler",signature="double"} 2.0',
            self.metrics.text(),
        )

    def test_larger_requests_are_refused_or_split(self) -> None:
        batched = Batched(self.model, self.scheduler, Parameters(2, max_execution_batch_size=2))
        with self.assertRaisesRegex(StatusError, "^Task size 3 is larger than maximum input batch size 2$"):
            batched.run("double", {"x": rows(1, 2, 3)}, ("y",))
        batched = Batched(self.model, self.scheduler, Parameters(2, splits=True, max_execution_batch_size=2))
        self.assertEqual(batched.run("double", {"x": rows(1, 2, 3)}, ("y",))["y"].ravel().tolist(), [2, 4, 6])
        self.assertEqual([len(batch) for batch in self.model.batches], [2, 1])

    def test_a_full_queue_refuses(self) -> None:
        parameters = Parameters(1, max_enqueued_batches=2, max_execution_batch_size=1)
        futures = self.together(parameters, [rows(1), rows(2), rows(3), rows(4)])
        errors = [future.exception() for future in futures]
        self.assertEqual([error and error.code for error in errors], [None, None, "UNAVAILABLE", "UNAVAILABLE"])
        self.assertEqual(str(errors[2]), "The batch scheduling queue to which this task was submitted is full")

    def test_a_request_past_its_deadline_is_not_run(self) -> None:
        futures = self.together(Parameters(), [rows(1), rows(2)], {0: time.monotonic() - 1})
        self.assertEqual(futures[0].exception().code, "DEADLINE_EXCEEDED")
        self.assertEqual(futures[1].result()["y"].tolist(), [[4]])
        self.assertEqual(self.model.batches[1].ravel().tolist(), [2])

    def test_an_invalid_request_fails_no_other_of_its_batch(self) -> None:
        futures = self.together(Parameters(), [rows(1), rows(13), rows(2, 3), rows(13)])
        self.assertEqual([str(futures[i].exception()) for i in (1, 3)], ["13 is refused"] * 2)
        self.assertEqual([futures[i].result()["y"].ravel().tolist() for i in (0, 2)], [[2], [4, 6]])
        batches = [batch.ravel().tolist() for batch in self.model.batches[1:]]
        self.assertEqual(batches, [[1, 13, 2, 3, 13], [1], [13], [2, 3], [13]])

    def test_bugs_reach_every_request_of_the_batch(self) -> None:
        with mock.patch.object(self.model, "run", side_effect=ZeroDivisionError):
            batched = Batched(self.model, self.scheduler, Parameters())
            with self.assertRaises(ZeroDivisionError):
                batched.run("double", {"x": rows(1)}, ("y",))

    def test_outputs_without_rows_are_not_batched(self) -> None:
        batched = Batched(self.model, self.scheduler, Parameters(batch_timeout=60))
        self.assertEqual(float(batched.run("double", {"x": rows(1, 2)}, ("y", "total"))["total"]), 3)
        self.assertEqual(batched.run("double", {"x": np.zeros((0, 1), FLOAT)}, ("y",))["y"].shape, (0, 1))


class ParametersTest(unittest.TestCase):
    def test_they_are_those_of_the_file(self) -> None:
        text = """max_batch_size { value: 32 } batch_timeout_micros { value: 5000 } max_enqueued_batches { value: 7 }
          allowed_batch_sizes: 8 allowed_batch_sizes: 32"""
        config = messages.parse_text(text, messages.BatchingParameters, "x")
        self.assertEqual(batching.parameters(config, "x"), Parameters(32, 0.005, 7, (8, 32), False, 32))
        self.assertEqual(batching.parameters(messages.BatchingParameters(), "x"), Parameters())

    def test_contradictions_are_refused(self) -> None:
        for text, message in (
            ("pad_variable_length_inputs: true", "^x: pad_variable_length_inputs pads with the first element"),
            ("allowed_batch_sizes: 8", "must match max_batch_size; last entry was 8; expected 1000$"),
            ("allowed_batch_sizes: 8 allowed_batch_sizes: 4", "must be monotonically increasing$"),
            ("max_batch_size { value: 0 }", "^x: max_batch_size is 0; it must be positive$"),
        ):  # fmt: skip
            with self.assertRaisesRegex(UserError, message):
                batching.parameters(messages.parse_text(text, messages.BatchingParameters, "x"), "x")


if __name__ == "__main__":
    unittest.main()
