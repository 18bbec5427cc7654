"""Memory that was freed but is still held by the process."""

import contextlib
import ctypes
import os


def return_freed() -> None:
    """Makes TensorFlow return the memory of freed tensors to the system; call it before TensorFlow is imported.

    With oneDNN it otherwise keeps the memory for later tensors, so that a process that needs much for a moment, as an
    export does, holds it until it ends.
    """
    os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "true")


def trim() -> None:
    """Returns to the system what the C library keeps for later allocations; does nothing without glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
