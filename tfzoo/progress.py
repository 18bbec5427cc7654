"""Progress output of a command, only on a terminal, and suppression of irrelevant messages of libraries. Imports only
the standard library.

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
import gc
import os
import pathlib
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator

# Messages that native libraries write to stderr although nothing is wrong.
_HARMLESS = re.compile(
    rb"failed call to cuInit: .*(\(303\)|CUDA_ERROR_NO_DEVICE)"  # A machine without a driver, or without a GPU.
    rb"|normalizer\.cc\(\d+\) LOG\(INFO\)"  # SentencePiece, for every model without a normalization table.
)
# SetMinLogLevel of absl in TensorFlow 2.20. XLA logs with absl, which no environment variable controls.
_ABSL_LEVEL = "_ZN4absl12lts_2025012714SetMinLogLevelENS0_18LogSeverityAtLeastE"
_LEVEL = "TF_CPP_MIN_LOG_LEVEL"  # 0: everything; 1: no info messages; 2: no warnings either; 3: no errors.

_stages: list[str] = []  # The active stages, the innermost last.
_drawn = False  # Whether the current line of the terminal contains the text of a stage.
_capturing = threading.RLock()  # File descriptor 2 is shared by all threads.


@contextlib.contextmanager
def stage(text: str) -> Iterator[Callable[[], None]]:
    """Shows "TEXT ..." while the block runs if stderr is a terminal; otherwise shows nothing.

    The line is erased when the block ends. A nested stage temporarily replaces the outer one. The yielded function
    erases the line earlier: call it before printing anything else.
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
    """Replaces the text of a stage in the current line of the terminal; "" erases only the text of a stage."""
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
    """Returns a tqdm progress bar that is erased when it is closed; hidden without a terminal or without `shown`."""
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
    """Context in which a command imports TensorFlow, shown as a stage; see `start_tensorflow`."""
    os.environ.setdefault(_LEVEL, "2")
    with stage("importing TensorFlow"), _keeping_all():
        yield
        start_tensorflow()


@contextlib.contextmanager
def _keeping_all() -> Iterator[None]:
    """Suspends Python's garbage collector for imports, and exempts what they create from later collections.

    The imports create 600,000 objects that stay. Collections during the imports take a quarter of their time, and each
    later collection of old objects would take 0.2 s.
    """
    if "tensorflow" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def start_tensorflow() -> None:
    """Imports TensorFlow. Afterwards, it has detected the devices and logs only errors, unless TF_CPP_MIN_LOG_LEVEL
    requests more."""
    os.environ.setdefault(_LEVEL, "2")
    with _keeping_all():
        import tensorflow as tf

    _hush_absl(pathlib.Path(tf.sysconfig.get_lib()))
    with quiet():
        tf.config.list_physical_devices()  # The first call loads the drivers.


def _hush_absl(folder: pathlib.Path) -> None:
    for library in folder.glob("libtensorflow_framework.*"):
        with contextlib.suppress(OSError, AttributeError):  # Another release: its messages are shown.
            ctypes.CDLL(str(library))[_ABSL_LEVEL](min(_level(), 2))


def _level() -> int:
    text = os.environ.get(_LEVEL, "2")
    return int(text) if text.isdecimal() else 0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppresses irrelevant messages of native libraries on stderr while the block runs.

    All other output to stderr, including that of Python, is delayed until the block ends. Therefore, the block should
    be short: a single call that is known to print. TF_CPP_MIN_LOG_LEVEL below 2 shows everything.
    """
    with contextlib.ExitStack() as stack:
        if _level() >= 2:
            # Without stderr, or without space for a temporary file, nothing is captured: the messages do no harm.
            with contextlib.suppress(OSError):
                stack.enter_context(_capturing)
                captured = stack.enter_context(tempfile.TemporaryFile())
                sys.stderr.flush()
                original = os.dup(2)
                stack.callback(_release, original, captured)
                os.dup2(captured.fileno(), 2)
        yield


def _release(original: int, captured) -> None:
    """Restores stderr, and writes the captured lines to it, except for harmless ones."""
    sys.stderr.flush()
    os.dup2(original, 2)
    os.close(original)
    captured.seek(0)
    for line in captured.read().splitlines(keepends=True):
        if not _HARMLESS.search(line):
            os.write(2, line)
