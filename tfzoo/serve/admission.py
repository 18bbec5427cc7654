"""Bounds the number of requests that run and wait, so that the server refuses what it could only answer too late."""

import contextlib
import threading
import time
from collections.abc import Iterator

from tfzoo.serve.errors import StatusError


class Admission:
    """Lets a number of requests run at a time, and others wait.

    Args:
      running: how many run at a time.
      queued: how many more wait; others are refused.
    """

    def __init__(self, running: int, queued: int):
        self._free, self._limit = running, running + queued
        self._inside = 0  # Running and waiting.
        self._condition = threading.Condition()

    @contextlib.contextmanager
    def turn(self, deadline: float | None) -> Iterator[None]:
        """Waits for this request's turn, and takes it until the block ends.

        Raises:
          StatusError: RESOURCE_EXHAUSTED if too many requests wait, DEADLINE_EXCEEDED if the turn comes too late.
        """
        with self._condition:
            if self._inside >= self._limit:
                raise StatusError(
                    "RESOURCE_EXHAUSTED",
                    f"The server is busy with {self._inside} requests, its limit; try again later",
                )
            self._inside += 1
            try:
                wait = None if deadline is None else deadline - time.monotonic()
                if not self._condition.wait_for(lambda: self._free > 0, wait):
                    raise StatusError("DEADLINE_EXCEEDED", "Deadline exceeded while the request waited for its turn")
                if deadline is not None and time.monotonic() >= deadline:
                    raise StatusError("DEADLINE_EXCEEDED", "Deadline exceeded before the request ran")
                self._free -= 1
            except BaseException:
                self._inside -= 1
                raise
        try:
            yield
        finally:
            with self._condition:
                self._free += 1
                self._inside -= 1
                self._condition.notify()

    def inside(self) -> int:
        """Returns how many requests run and wait."""
        with self._condition:
            return self._inside
