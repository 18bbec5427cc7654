"""Stopping a run by a signal."""

import os
import signal

from tfzoo import cli

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


class StopOnSignal:
    """Turns the first SIGTERM or SIGINT into a wish to stop; a second one acts at once.

    Before `ready` is set there is nothing to be saved, and the first one acts at once too.
    """

    def __init__(self, alone: bool):
        """alone: there are no other processes to be waited for."""
        self.asked, self.ready, self._alone = "", False, alone
        self._before = {number: signal.getsignal(number) for number in _NUMBERS}
        self.listen()

    def listen(self) -> None:
        """Takes the signals, again where somebody else has taken them since."""
        for number in _NUMBERS:
            signal.signal(number, self._note)

    def release(self) -> None:
        """Gives the signals back to whoever had them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def _note(self, number, frame) -> None:
        if not self.ready:
            why = signal.Signals(number).name
            print(f"stopped by {why} before the first step; there is nothing to save", flush=True)
            if self._alone:
                raise SystemExit(cli.STOPPED)
            os._exit(cli.STOPPED)  # An exception would get lost in TensorFlow, where it waits for other workers.
        self.asked = signal.Signals(number).name
        for each in _NUMBERS:
            signal.signal(each, signal.SIG_DFL)
