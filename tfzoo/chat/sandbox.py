"""Runs chat templates in another process, with limits of time and memory; see tfzoo.chat.worker.

One process serves all templates of this process. It is started at the first use, and again after a template exceeded a
limit.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

from tfzoo.chat import worker
from tfzoo.chat.provenance import Text

SECONDS = 10  # Of processor time for one conversation; a usual one takes a millisecond.
MEMORY = 2 << 30  # Bytes.
# The environment of the process: no passwords.
_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")
_SILENCE = 300  # Seconds; the limit of processor time ends a template that computes.


class Invalid(Exception):
    """A source is not a template; `line` is where, or None."""

    def __init__(self, message: str, line: int | None):
        super().__init__(message)
        self.line = line


class Refused(Exception):
    """A template rejects a conversation that it does not support."""


class Failed(Exception):
    """A template fails, or exceeds a limit."""


def check(source: str) -> None:
    """Compiles a template.

    Raises:
      Invalid: it is not one.
    """
    try:
        reply = _ask({"source": source})
    except Failed as error:
        raise Invalid(str(error), None) from None
    if "invalid" in reply:
        raise Invalid(reply["invalid"], reply["line"])


def render(source: str, context: Mapping[str, Any]) -> Text:
    """Returns what a template writes for a context of JSON-like values, whose strings may be texts with provenance.

    Raises:
      Invalid, Refused, Failed: see there.
    """
    reply = _ask({"source": source, "context": worker.encode(dict(context))})
    if "invalid" in reply:
        raise Invalid(reply["invalid"], reply["line"])
    if "refused" in reply:
        raise Refused(reply["refused"])
    if "failed" in reply:
        raise Failed(f"fails with {reply['failed']}")
    return worker.decode(reply["text"])


class _Process:
    """A process of tfzoo.chat.worker. It ends when this one does, because its input is closed then."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            # Without the working directory in its path, in which a file may have the name of a module.
            [sys.executable, "-P", "-c", f"from tfzoo.chat import worker; worker.serve({SECONDS}, {MEMORY})"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _VARIABLES if name in os.environ}
            | {"PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path if path)},
            start_new_session=True,  # Ctrl-C in a terminal is for this process.
        )

    def ask(self, request: bytes) -> bytes:
        """Returns the line that answers a line; an empty one if the process ends or is silent."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(request)
            self._process.stdin.flush()
        except BrokenPipeError:
            return b""
        watch = select.poll()
        watch.register(self._process.stdout, select.POLLIN)
        return self._process.stdout.readline() if watch.poll(1000 * _SILENCE) else b""

    def end(self) -> int:
        """Ends the process; returns its exit code."""
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
        return self._process.returncode


_lock = threading.Lock()
_process: _Process | None = None


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    """Returns the worker's reply.

    Raises:
      Failed: it exceeded a limit, or crashed.
    """
    global _process
    line = json.dumps(request).encode() + b"\n"
    with _lock:
        _process = _process or _Process()
        try:
            reply = _process.ask(line)
        except BaseException:  # Such as Ctrl-C: the reply must not be taken for that of the next request.
            _process.end()
            _process = None
            raise
        if not reply.endswith(b"\n"):
            code = _process.end()
            _process = None
            if code == -signal.SIGXCPU:
                raise Failed(f"needs more than {SECONDS} s of processor time; use another template")
            raise Failed(f"ends its process with code {code}; use another template")
    return json.loads(reply)


def close() -> None:
    """Ends the process; the next template starts another."""
    global _process
    with _lock:
        if _process is not None:
            _process.end()
        _process = None


def _forget() -> None:
    """Leaves the process to the parent of this one, which was forked from it."""
    global _lock, _process
    _lock, _process = threading.Lock(), None


os.register_at_fork(after_in_child=_forget)
