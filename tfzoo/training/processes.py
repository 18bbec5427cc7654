"""Runs of tfzoo.train in processes of their own, one after the other: for programs that train several models.

TensorFlow keeps memory and random state for the lifetime of a process, so a run gets a process of its own. This module
does not import TensorFlow.
"""

import contextlib
import ctypes
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import IO

from absl import flags as absl_flags

from tfzoo import cli, files
from tfzoo.errors import UserError

COMMAND = (sys.executable, "-m", "tfzoo.train")
_POLL = 0.1  # Seconds between two looks at a process.
_PR_SET_PDEATHSIG = 1  # Of Linux's prctl(2).


class Signals:
    """Collects SIGTERM and SIGINT while the context is active, so that they can be forwarded to a run."""

    def __init__(self) -> None:
        self.received: list[int] = []

    def __enter__(self) -> "Signals":
        numbers = (signal.SIGTERM, signal.SIGINT)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame) -> None:
        self.received.append(number)


def arguments(flags: absl_flags.FlagValues, leave_out: Collection[str]) -> list[str]:
    """Returns the explicitly specified flags as arguments, except those in `leave_out`."""
    result = []
    for name, value in cli.explicit_flags(flags).items():
        if name in leave_out:
            continue
        for each in value if isinstance(value, list) else [value]:
            plain = isinstance(each, bool)
            result.append(f"--{'' if each else 'no'}{name}" if plain else f"--{name}={each}")
    return result


def train(
    command: Sequence[str],
    signals: Signals,
    *,
    stop: Callable[[], bool] = lambda: False,
    output: IO | None = None,
) -> tuple[int, bool]:
    """Runs tfzoo.train and waits for its end.

    Signals are forwarded. When this process is killed, the run gets SIGTERM (on Linux) and saves its state.

    Args:
      command: the arguments of tfzoo.train.
      signals: the signals that are forwarded to the run.
      stop: called repeatedly; when it returns True for the first time, the run gets SIGTERM.
      output: receives the output of the run; None: it goes to that of this process.

    Returns:
      (exit code, negative if a signal ended the process; whether `stop` stopped the run).
    """
    sys.stdout.flush()
    forwarded, stopped = 0, False
    process = subprocess.Popen(
        [*COMMAND, *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        # Otherwise Ctrl-C in a terminal would reach the run twice, and a second signal ends it immediately.
        start_new_session=True,
        preexec_fn=_terminated_with(os.getpid()),
    )
    try:
        while process.poll() is None:
            for number in signals.received[forwarded:]:
                process.send_signal(number)
                forwarded += 1
            if not stopped and not forwarded and stop():
                process.terminate()
                stopped = True
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL)
    finally:
        if process.poll() is None:  # An exception in `stop`.
            process.terminate()
            process.wait()
    code = process.returncode
    if forwarded == 1 and code in (-signal.SIGTERM, -signal.SIGINT, cli.INTERRUPTED):
        code = cli.STOPPED  # The signal came before the run was listening, and there was nothing to save.
    return code, stopped


def _terminated_with(parent: int) -> Callable[[], None]:
    """Returns a function for a new process that makes it receive SIGTERM when `parent` ends; only Linux has this."""

    def ask() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # It has already ended.
                os._exit(cli.STOPPED)

    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return ask


def how_it_ended(code: int) -> str:
    """Returns the end of a process in words, from its exit code."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def wait_until_free(run_dir: pathlib.Path, signals: Signals) -> None:
    """Waits until no process writes to a run's folder: the run of a killed program may still be saving its state. A
    signal ends the waiting."""
    told = False
    while run_dir.is_dir() and not signals.received:
        try:
            files.Lock(run_dir).release()
            return
        except UserError as error:
            if not told:
                print(f"waiting: {error}", flush=True)
            told = True
            time.sleep(0.5)


@contextlib.contextmanager
def folder_of_runs(folder: pathlib.Path, flag: str, record: str, entries: str) -> Iterator[None]:
    """Creates and locks the folder of several runs.

    Args:
      folder: the folder.
      flag: the flag that names it.
      record: name of the file that marks such a folder.
      entries: start of the names of the runs' folders, which may exist before the record does.

    Raises:
      UserError: the folder contains something else, cannot be created, or another process holds its lock.
    """
    if folder.exists():
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else [""]
        others = [name for name in names if name != files.LOCK and not name.endswith(files.PARTIAL)]
        if record not in names and not all(name.startswith(entries) for name in others):
            raise UserError(f"--{flag}={folder}: exists but contains no {record}; specify a new folder")
    else:
        files.check_can_be_made(folder, flag)
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with files.Lock(folder):
        files.remove_partials(folder)
        yield
