"""Bounds the number of requests that run and wait, so that the server refuses what it could only answer too late.

Many requests may wait, because bursts end, and clients would rather wait than try again. While more requests arrive
than the server can answer, a queue does not end; all that it does is to delay every answer. So once the server has
refused a request, none may wait, until fewer arrive than it can answer or none has been refused for a second.
"""

import collections
import contextlib
import math
import threading
import time
from collections.abc import Iterator

from tfzoo.serve.errors import StatusError

_RECENT = 1 / 64  # The weight of a request in the mean duration; a few that were stalled do not count for much.
_OVERLOAD = 1.0  # The seconds after a refusal for which the server may count as overloaded.


class Admission:
    """Lets a number of requests run at a time, and others wait for their turn in the order in which they came.

    Args:
      running: how many run at a time.
      queued: how many more wait at most; others are refused.
      queue_seconds: how long a request may be expected to wait. Half as many as run may wait however long that takes.
        None may wait while the server is overloaded.
    """

    def __init__(self, running: int, queued: int, queue_seconds: float = math.inf):
        self._running, self._queued, self._queue_seconds = running, queued, queue_seconds
        self._fewest = min(queued, (running + 1) // 2)  # How many may wait in any case.
        self._free = running
        self._inside = 0  # Running and waiting.
        self._waiting: collections.deque[threading.Event] = collections.deque()
        self._run_seconds = 0.0  # The mean duration of recent requests, without their waiting.
        self._ended = 0  # How many requests have run.
        self._refused_at = -math.inf
        self._arrivals = 0.0  # The number of recent requests: each counts for exp(-t), t seconds after it arrived.
        self._arrived_at = 0.0
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
            if (error := self._refusal()) is not None:
                raise error
            self._arrived(time.monotonic())
            self._inside += 1
            turn = None if self._free else threading.Event()
            if turn is None:
                self._free -= 1
            else:
                self._waiting.append(turn)
        if turn is not None:
            turn.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
            with self._changed:
                if not turn.is_set():
                    self._waiting.remove(turn)
                    self._leave()
                    raise StatusError("DEADLINE_EXCEEDED", "Deadline exceeded while the request waited for its turn")
        start = time.monotonic()
        try:
            if deadline is not None and start >= deadline:
                raise StatusError("DEADLINE_EXCEEDED", "Deadline exceeded before the request ran")
            yield
        finally:
            with self._changed:
                self._ended += 1
                difference = time.monotonic() - start - self._run_seconds
                self._run_seconds += difference * max(_RECENT, 1 / self._ended)
                if self._waiting:
                    self._waiting.popleft().set()
                else:
                    self._free += 1
                self._leave()

    def refusal(self) -> StatusError | None:
        """Returns the error with which a request would be refused now, or None. A front end asks before it reads a
        request, because refusing it later costs about as much as answering it."""
        with self._changed:
            return self._refusal()

    def _refusal(self) -> StatusError | None:
        if self._is_closed:
            return StatusError("UNAVAILABLE", "The server is stopping; send the request to another one")
        now = time.monotonic()
        if self._free or len(self._waiting) < self._may_wait(now):
            return None
        self._refused_at = now
        self._arrived(now)
        return StatusError("RESOURCE_EXHAUSTED", f"The server is busy with {self._inside} requests; try again later")

    def _may_wait(self, now: float) -> int:
        """Returns how many requests may wait."""
        if now - self._refused_at < _OVERLOAD and self._load(now) > 1:
            return 0
        expected = len(self._waiting) * self._run_seconds / self._running
        return self._queued if expected < self._queue_seconds else self._fewest

    def _arrived(self, now: float) -> None:
        self._arrivals = 1 + self._arrivals * math.exp(self._arrived_at - now)
        self._arrived_at = now

    def _load(self, now: float) -> float:
        """Returns the requests that arrived per second, over those that can be answered per second."""
        return self._arrivals * math.exp(self._arrived_at - now) * self._run_seconds / self._running

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
