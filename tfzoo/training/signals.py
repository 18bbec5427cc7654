"""Stops a run on a signal."""

import os
import signal

from tfzoo import cli

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


class StopOnSignal:
    """Turns the first SIGTERM or SIGINT into a request to stop; a second signal ends the process immediately.

    Before `ready` is set there is nothing to save, and the first signal also ends the process immediately.

    Args:
      alone: the run has no other processes.

    Attributes:
      asked: the reason of the request to stop; "" if there is none.
      ready: whether there is something to save.
    """

    def __init__(self, alone: bool):
        self.asked, self.ready, self._alone = "", False, alone
        self._before = {number: signal.getsignal(number) for number in _NUMBERS}
        self.listen()

    def listen(self) -> None:
        """Installs the signal handlers, again if they were replaced in the meantime."""
        for number in _NUMBERS:
            signal.signal(number, self._note)

    def release(self) -> None:
        """Restores the previous signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def _note(self, number, frame) -> None:
        if not self.ready:
            why = signal.Signals(number).name
            print(f"stopped by {why} before the first step; there is nothing to save", flush=True)
            if self._alone:
                raise SystemExit(cli.STOPPED)
            os._exit(cli.STOPPED)  # While TensorFlow waits for other workers, an exception would be lost in it.
        self.asked = signal.Signals(number).name
        for each in _NUMBERS:
            signal.signal(each, signal.SIG_DFL)
