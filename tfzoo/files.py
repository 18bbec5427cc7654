"""Writing files so that a kill at any moment leaves the old content or the new, never a mixture."""

import contextlib
import hashlib
import os
import pathlib
import shutil
from collections.abc import Iterator

PARTIAL = ".partial"  # What is being written is named NAME.PID.partial, and is never read.


def _sync(path: pathlib.Path) -> None:
    """Makes a file's content, or a folder's list of names, survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _partial(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")


def atomic_write(path: str | os.PathLike, data: bytes | str) -> None:
    """Writes `data` (text as UTF-8) beside `path` and renames it into place."""
    path = pathlib.Path(path)
    partial = _partial(path)
    try:
        with open(partial, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a new folder beside `path`; when the block ends well it is synced and renamed to `path`.

    Raises:
      FileExistsError: `path` is there already. It is left as it is.
    """
    path = pathlib.Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for folder, _, names in os.walk(partial):
            for name in names:
                _sync(pathlib.Path(folder, name))
            _sync(pathlib.Path(folder))
        os.rename(partial, path)
        _sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_partials(folder: str | os.PathLike) -> None:
    """Removes what killed writers left in `folder`; call it only while nothing else writes there."""
    for partial in pathlib.Path(folder).glob(f"*{PARTIAL}"):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def sha256(path: str | os.PathLike) -> str:
    """The hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_folder(path: str | os.PathLike) -> None:
    """Removes a folder so that a kill never leaves half of it under its name: renamed first, then deleted."""
    path = pathlib.Path(path)
    partial = _partial(path)
    shutil.rmtree(partial, ignore_errors=True)
    os.rename(path, partial)
    shutil.rmtree(partial)
