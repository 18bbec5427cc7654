"""Atomic writes: a process that is killed at any moment leaves the old content or the new, never a mixture."""

import contextlib
import errno
import fcntl
import hashlib
import os
import pathlib
import re
import shutil
from collections.abc import Iterator

from tfzoo.errors import UserError

PARTIAL = ".partial"  # Files being written are named NAME.PID.partial, and are never read.


# Errors of the file system that are not errors of the program, and their remedies.
_REFUSALS = {
    errno.ENOSPC: "free some disk space",
    errno.EDQUOT: "free some disk space, or raise the quota",
    errno.EFBIG: "raise the file-size limit (ulimit -f)",
    errno.EROFS: "specify a writable folder",
    errno.EACCES: "grant write permission",
    errno.EPERM: "grant write permission",
    errno.EIO: "check the disk",
}


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Context for writing to `path`: converts errors such as a full disk, missing permissions or a removed folder.

    Raises:
      UserError: the file system rejects a write in the block.
    """
    try:
        yield
    except OSError as error:
        remedy = _REFUSALS.get(error.errno or 0)
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EEXIST) and not pathlib.Path(path).parent.is_dir():
            remedy = "its folder was removed or replaced: restore it"
        if remedy is None:
            raise
        raise UserError(f"{path}: cannot be written ({os.strerror(error.errno or 0).lower()}); {remedy}") from None


def check_can_be_made(folder: pathlib.Path, flag: str) -> None:
    """Raises UserError, naming `flag`, if a folder that does not exist yet cannot be created."""
    parent = next(parent for parent in folder.absolute().parents if parent.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise UserError(f"--{flag}={folder}: cannot be created in {parent}; specify a writable folder")


class Lock:
    """The lock of a folder, held by at most one process. The operating system releases it when that process ends."""

    def __init__(self, folder: str | os.PathLike):
        """Acquires the lock.

        Raises:
          UserError: another process holds the lock.
        """
        path = pathlib.Path(folder, LOCK)
        with writing(path):
            self._file = open(path, "a+")  # Never "w": the file contains the process ID of the owner.
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            owner = self._file.read(20).strip()
            self._file.close()
            raise UserError(
                f"{folder}: another process{f' ({owner})' if owner else ''} is writing to this folder; wait until it "
                "ends, or specify another folder"
            ) from None
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def release(self) -> None:
        self._file.close()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_) -> None:
        self.release()


LOCK = "lock"


def _sync(path: pathlib.Path) -> None:
    """Flushes a file's content, or a folder's list of names, to disk, so that it survives a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _partial(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")


@contextlib.contextmanager
def _held(partial: pathlib.Path) -> Iterator[None]:
    """Locks a partial file while it is written, so that `_remove_leftovers` can tell it from that of a dead process."""
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # On a file system without locks, nothing is removed either.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove_leftovers(path: pathlib.Path, folders: bool) -> None:
    """Removes the partial files, or folders, of killed writers of `path`; those of running processes are kept."""
    pattern = re.compile(re.escape(path.name) + r"\.\d+" + re.escape(PARTIAL))
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    for partial in (path.with_name(name) for name in names if pattern.fullmatch(name)):
        if partial.is_dir() != folders or partial.is_symlink():
            continue
        with contextlib.suppress(OSError):  # Another process removes it, or permissions are missing.
            descriptor = os.open(partial, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if folders:
                    shutil.rmtree(partial)
                else:
                    partial.unlink()
            finally:
                os.close(descriptor)


def atomic_write(path: str | os.PathLike, data: bytes | str) -> None:
    """Writes `data` (text as UTF-8) to a file next to `path` and renames it to `path`. Removes leftovers of killed
    writers.

    Raises:
      UserError: the file system rejects the write, as in `writing`.
    """
    path = pathlib.Path(path)
    partial = _partial(path)
    try:
        _remove_leftovers(path, folders=False)
        with writing(path), open(partial, "wb") as file, _held(partial):
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, path)
            _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):  # If it cannot be removed, it could not be written either.
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a new folder next to `path`; when the block ends without an error, it is synced and renamed to `path`.

    Leftovers of killed writers of `path` are removed first.

    Raises:
      FileExistsError: `path` already exists, before or after the block. It remains unchanged.
      UserError: the file system rejects a write, as in `writing`.
    """
    path = pathlib.Path(path)
    if path.exists():
        raise FileExistsError(f"{path} already exists")
    partial = _partial(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            _remove_leftovers(path, folders=True)
            partial.mkdir()
            with _held(partial):
                yield partial
                for folder, _, names in os.walk(partial):
                    for name in names:
                        _sync(pathlib.Path(folder, name))
                    _sync(pathlib.Path(folder))
                try:
                    os.rename(partial, path)
                except OSError as error:  # The target is a nonempty folder.
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                    raise FileExistsError(f"{path} already exists") from None
                _sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_partials(folder: str | os.PathLike) -> None:
    """Removes leftovers of killed writers from `folder`; must not be called while another process writes to it."""
    for partial in pathlib.Path(folder).glob(f"*{PARTIAL}"):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def sha256(path: str | os.PathLike) -> str:
    """Returns the hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_folder(path: str | os.PathLike) -> None:
    """Removes a folder atomically: renames it before deleting it, so that no incomplete folder has its name."""
    path = pathlib.Path(path)
    partial = _partial(path)
    shutil.rmtree(partial, ignore_errors=True)
    os.rename(path, partial)
    shutil.rmtree(partial)
