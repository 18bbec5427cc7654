"""What a command shows while it works: what it is doing, on a terminal only; and nothing of what libraries say to
themselves. Imports the standard library alone.

    with progress.importing_tensorflow():
        from tfzoo.training import runs
    with progress.stage(f"reading {folder}"):
        model, tokenizer = runs.load(folder)
    with progress.bar(len(files), "file") as bar:
        for file in files:
            ...
            bar.update()
"""

import contextlib
import ctypes
import os
import pathlib
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator

# What native libraries write to stderr though nothing is wrong.
_HARMLESS = re.compile(
    rb"failed call to cuInit: .*(\(303\)|CUDA_ERROR_NO_DEVICE)"  # A machine without a driver, or without a GPU.
    rb"|normalizer\.cc\(\d+\) LOG\(INFO\)"  # SentencePiece, of every model without a table of normalisation.
)
# SetMinLogLevel of absl in TensorFlow 2.20. XLA logs by absl, which no environment variable reaches.
_ABSL_LEVEL = "_ZN4absl12lts_2025012714SetMinLogLevelENS0_18LogSeverityAtLeastE"
_LEVEL = "TF_CPP_MIN_LOG_LEVEL"  # 0: all that TensorFlow logs; 1: no notes; 2: no warnings either; 3: no errors.

_stages: list[str] = []  # Those that have begun, the innermost last.
_drawn = False  # Whether the text of one stands in the terminal's line.
_capturing = threading.RLock()  # File descriptor 2 is the process's.


@contextlib.contextmanager
def stage(text: str) -> Iterator[Callable[[], None]]:
    """Shows "TEXT ..." while the block runs, where stderr is a terminal; elsewhere nothing.

    The line is erased when the block ends. A stage inside another takes its place meanwhile. What is yielded erases the
    line earlier: call it before something else is printed.
    """
    if not sys.stderr.isatty():
        yield lambda: None
        return
    _stages.append(text)
    _draw(text)
    try:
        yield lambda: _draw("")
    finally:
        _stages.pop()
        _draw(_stages[-1] if _stages else "")


def _draw(text: str) -> None:
    """Writes a stage's text over the one that stands in the terminal's line; "" leaves other people's lines alone."""
    global _drawn
    if not text and not _drawn:
        return
    try:
        width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        width = 80
    line = f"{text} ..."[: width - 1] if text else ""
    print("\r" + " " * (width - 1) + "\r" + line, end="", file=sys.stderr, flush=True)
    _drawn = bool(text)


def bar(total: int, unit: str, text: str = "", shown: bool = True):
    """tqdm's progress bar on a terminal, erased when it is closed; elsewhere, or where not `shown`, nothing."""
    import tqdm

    return tqdm.tqdm(
        total=total,
        unit=unit,
        desc=text,
        disable=not (shown and sys.stderr.isatty()),
        leave=False,
        dynamic_ncols=True,
        file=sys.stderr,
    )


@contextlib.contextmanager
def importing_tensorflow() -> Iterator[None]:
    """For a block of imports, TensorFlow among them: a stage, after which TensorFlow knows the machine's devices and
    what it logs is errors alone, unless TF_CPP_MIN_LOG_LEVEL asks for more."""
    os.environ.setdefault(_LEVEL, "2")
    with stage("importing TensorFlow"):
        yield
        import tensorflow as tf

        _hush_absl(pathlib.Path(tf.sysconfig.get_lib()))
        with quiet():
            tf.config.list_physical_devices()  # The first to ask loads the drivers.


def _hush_absl(folder: pathlib.Path) -> None:
    for library in folder.glob("libtensorflow_framework.*"):
        with contextlib.suppress(OSError, AttributeError):  # Of another release: its notes are shown.
            ctypes.CDLL(str(library))[_ABSL_LEVEL](min(_level(), 2))


def _level() -> int:
    text = os.environ.get(_LEVEL, "2")
    return int(text) if text.isdecimal() else 0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Native libraries' messages that mean nothing do not reach stderr while the block runs.

    All else that is written meanwhile, Python's messages too, follows when the block ends. So the block is short: a
    call that is known to print. TF_CPP_MIN_LOG_LEVEL below 2 shows everything.
    """
    with contextlib.ExitStack() as stack:
        if _level() >= 2:
            # Where there is no stderr, or no room for a file, nothing is caught: what is printed does no harm.
            with contextlib.suppress(OSError):
                stack.enter_context(_capturing)
                caught = stack.enter_context(tempfile.TemporaryFile())
                sys.stderr.flush()
                kept = os.dup(2)
                stack.callback(_release, kept, caught)
                os.dup2(caught.fileno(), 2)
        yield


def _release(kept: int, caught) -> None:
    """Puts stderr back, and writes to it what was caught and may matter."""
    sys.stderr.flush()
    os.dup2(kept, 2)
    os.close(kept)
    caught.seek(0)
    for line in caught.read().splitlines(keepends=True):
        if not _HARMLESS.search(line):
            os.write(2, line)
