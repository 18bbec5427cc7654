"""A number of requests run at a time, others wait in their order, and more are refused."""

import threading
import time
import unittest
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
        self.assertEqual(str(error), "The server is busy with 5 requests, its limit; try again later")
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


if __name__ == "__main__":
    unittest.main()
