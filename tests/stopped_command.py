"""Stops tfzoo.train after a step, as a signal would. Tests that use tests.worlds import `command` into their module."""

import contextlib
from unittest import mock

from tests import helpers


def stop_after(step: int):
    """Returns a callback that stops a run after a step, if the run has such a step."""
    from tfzoo.training import loop

    class Stop(loop.Callback):
        def on_log(self, trainer, record):
            if record["step"] == step:
                trainer.request_stop()

    return Stop()


@contextlib.contextmanager
def stopping(step: int):
    """Within the block, runs of tfzoo.train in this process stop after a step."""
    from tfzoo import train
    from tfzoo.training import loop

    with mock.patch.object(
        train, "Trainer", lambda config, given: loop.Trainer(config, given=given, callbacks=[stop_after(step)])
    ):
        yield


def command(world, argv, stop_at):
    """Runs tfzoo.train in this process, in one of the worlds of tests.worlds."""
    from tfzoo import train

    with stopping(stop_at):
        return dict(zip(("code", "out", "err"), helpers.run(train, *argv), strict=True))
