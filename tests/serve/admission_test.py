"""A number of requests run at a time, others wait in their order, and more are refused."""

import threading
import time
import unittest
import unittest.mock
from concurrent.futures import ThreadPoolExecutor

from tfzoo.serve.admission import Admission
from tfzoo.serve.errors import StatusError


class AdmissionTest(unittest.TestCase):
    def setUp(self) -> None:
        self.admission = Admission(running=2, queued=3)
        self.ran: list[int] = []
        self.may_leave = threading.Semaphore(0)
        self.pool = self.enterContext(ThreadPoolExecutor(8))

    def request(self, number: int, deadline: float | None = None) -> None:
        with self.admission.turn(deadline):
            self.ran.append(number)
            self.may_leave.acquire()

    def enter(self, number: int, deadline: float | None = None):
        """Starts a request, and waits until it runs or waits."""
        inside = self.admission.inside()
        future = self.pool.submit(self.request, number, deadline)
        while self.admission.inside() == inside and not future.done():
            time.sleep(0.001)
        return future

    def test_the_order_the_limit_and_the_end(self) -> None:
        futures = [self.enter(i) for i in range(5)]
        error = self.enter(5).exception()
        assert isinstance(error, StatusError)
        self.assertEqual(error.code, "RESOURCE_EXHAUSTED")
        self.assertEqual(str(error), "The server is busy with 5 requests; try again later")
        self.assertEqual(self.ran, [0, 1])
        for count in (3, 4, 5):
            self.may_leave.release()
            while len(self.ran) < count:
                time.sleep(0.001)
        self.assertEqual(self.ran, [0, 1, 2, 3, 4])
        self.admission.close()
        with self.assertRaisesRegex(StatusError, "^The server is stopping"):
            self.request(6)
        self.assertFalse(self.admission.wait_until_empty(0.01))
        self.may_leave.release(2)
        self.assertTrue(self.admission.wait_until_empty(60))
        self.assertEqual([future.result() for future in futures], [None] * 5)

    def test_a_request_whose_deadline_passes_leaves_its_place(self) -> None:
        self.enter(0), self.enter(1)
        late = self.enter(2, time.monotonic() + 0.05)
        last = self.enter(3)
        error = late.exception()
        assert isinstance(error, StatusError)
        self.assertEqual(error.code, "DEADLINE_EXCEEDED")
        self.may_leave.release(3)
        last.result()
        self.assertEqual(self.ran, [0, 1, 3])
        with self.assertRaisesRegex(StatusError, "^Deadline exceeded before the request ran$"):
            self.request(4, time.monotonic() - 1)
        self.assertTrue(self.admission.wait_until_empty(60))

    def test_no_request_is_expected_to_wait_longer_than_the_limit(self) -> None:
        self.admission, clock = Admission(running=2, queued=50, queue_seconds=0.9), Clock(self)
        self.run_alone(100, clock, 0.5)
        for i in range(2 + 4):
            self.enter(i)
        self.assert_refused()  # Two run at a time for 0.5 seconds, so a fifth would wait for 1 second.
        self.leave(6)

    def test_half_as_many_may_wait_as_run_however_long_they_do(self) -> None:
        self.admission, clock = Admission(running=4, queued=50, queue_seconds=0.9), Clock(self)
        self.run_alone(100, clock, 60.0)
        for i in range(4 + 2):
            self.enter(i)
        self.assert_refused()
        self.leave(6)

    def test_none_waits_from_a_refusal_until_a_second_after_the_last(self) -> None:
        clock = self.fill_the_queue(0.6)
        self.assert_refused()
        for remaining in (7, 6, 5, 4, 3, 2):
            self.leave(1)
            self.assertEqual(self.admission.inside(), remaining)
            self.assert_refused()
        self.leave(1)
        self.enter(8)  # It need not wait.
        clock.now += 0.9
        self.assert_refused()
        clock.now += 1.1
        for i in range(6):
            self.enter(9 + i)
        self.assert_refused()
        self.leave(8)

    def test_requests_wait_after_a_refusal_if_few_arrive(self) -> None:
        self.fill_the_queue(0.05)
        self.assert_refused()
        self.leave(1)
        self.enter(8)  # About 30 have arrived within a second, in which 40 can be answered.
        for _ in range(20):
            self.assert_refused()
        self.leave(1)
        self.assert_refused()
        self.leave(7)

    def fill_the_queue(self, seconds: float) -> "Clock":
        """Makes two requests run and six wait, after others that took some seconds each."""
        self.admission, clock = Admission(running=2, queued=6, queue_seconds=100.0), Clock(self)
        self.run_alone(100, clock, seconds)
        for i in range(2 + 6):
            self.enter(i)
        return clock

    def run_alone(self, count: int, clock: "Clock", seconds: float) -> None:
        """Runs requests one after the other, each for some seconds of the clock."""
        for _ in range(count):
            with self.admission.turn(None):
                clock.now += seconds

    def leave(self, count: int) -> None:
        """Ends some of the requests that run, and waits until others have their turns."""
        remaining = self.admission.inside() - count
        self.may_leave.release(count)
        while self.admission.inside() > remaining:
            time.sleep(0.001)

    def assert_refused(self) -> None:
        with self.assertRaisesRegex(StatusError, "^The server is busy"), self.admission.turn(None):
            pass


class Clock:
    """Stands for time.monotonic of the admission until the test ends."""

    def __init__(self, test: unittest.TestCase):
        self.now = 0.0
        test.enterContext(unittest.mock.patch("tfzoo.serve.admission.time", self))

    def monotonic(self) -> float:
        return self.now


if __name__ == "__main__":
    unittest.main()
