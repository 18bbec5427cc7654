"""Bounds the number of requests that run and wait, so that the server refuses what it could only answer too late."""

import collections
import contextlib
import threading
import time
from collections.abc import Iterator

from tfzoo.serve.errors import StatusError


class Admission:
    """Lets a number of requests run at a time, and others wait for their turn in the order in which they came.

    Args:
      running: how many run at a time.
      queued: how many more wait; others are refused.
    """

    def __init__(self, running: int, queued: int):
        self._free, self._limit = running, running + queued
        self._inside = 0  # Running and waiting.
        self._waiting: collections.deque[threading.Event] = collections.deque()
        self._is_closed = False
        self._changed = threading.Condition()  # Notified when no request is inside.

    @contextlib.contextmanager
    def turn(self, deadline: float | None) -> Iterator[None]:
        """Waits for this request's turn, and takes it until the block ends.

        Raises:
          StatusError: RESOURCE_EXHAUSTED if too many requests wait, DEADLINE_EXCEEDED if the turn comes too late,
            UNAVAILABLE after `close`.
        """
        with self._changed:
            if self._is_closed:
                raise StatusError("UNAVAILABLE", "The server is stopping; send the request to another one")
            if self._inside >= self._limit:
                raise StatusError(
                    "RESOURCE_EXHAUSTED",
                    f"The server is busy with {self._inside} requests, its limit; try again later",
                )
            self._inside += 1
            turn = threading.Event()
            if self._free:
                self._free -= 1
                turn.set()
            else:
                self._waiting.append(turn)
        turn.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        with self._changed:
            if not turn.is_set():
                self._waiting.remove(turn)
                self._leave()
                raise StatusError("DEADLINE_EXCEEDED", "Deadline exceeded while the request waited for its turn")
        try:
            if deadline is not None and time.monotonic() >= deadline:
                raise StatusError("DEADLINE_EXCEEDED", "Deadline exceeded before the request ran")
            yield
        finally:
            with self._changed:
                if self._waiting:
                    self._waiting.popleft().set()
                else:
                    self._free += 1
                self._leave()

    def _leave(self) -> None:
        self._inside -= 1
        if not self._inside:
            self._changed.notify_all()

    def close(self) -> None:
        """Refuses all further requests with UNAVAILABLE."""
        with self._changed:
            self._is_closed = True

    def wait_until_empty(self, seconds: float) -> bool:
        """Waits until no request runs or waits, at most this long; returns whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._inside, seconds)

    def inside(self) -> int:
        """Returns how many requests run and wait."""
        with self._changed:
            return self._inside
