"""Reading of regular files only, and atomic writes.

A process that is killed while it writes leaves the old content or the new, never a mixture. Files that users name are
read with `open_file` or `read_bytes`: opening a pipe would wait forever, and a device may be endless.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import io
import os
import pathlib
import re
import shutil
import stat
from collections.abc import Iterator

from tfzoo.errors import UserError

PARTIAL = ".partial"  # Files being written are named NAME.PID.partial, and are never read.
MAX_BYTES = 1 << 30  # Of a file that is read at once.


# Errors of the file system that are not errors of the program, and their remedies.
_REFUSALS = {
    errno.ENOSPC: "free some disk space",
    errno.EDQUOT: "free some disk space, or raise the quota",
    errno.EFBIG: "raise the file-size limit (ulimit -f)",
    errno.EROFS: "specify a writable folder",
    errno.EACCES: "grant write permission",
    errno.EPERM: "grant write permission",
    errno.EIO: "check the disk",
    errno.ELOOP: "replace the symbolic link with what it names",
    errno.EISDIR: "remove the folder of that name, or specify another path",
    errno.ENXIO: "remove it, or specify another path",
    errno.ENAMETOOLONG: "specify a shorter name",
}


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Context for reading `path`: converts errors such as a missing file or missing permissions.

    Raises:
      UserError: the file system rejects a read in the block.
    """
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        problem = reason if error.errno == errno.ENOENT else f"cannot be read ({reason})"
        remedy = _REFUSALS[errno.ELOOP] if error.errno == errno.ELOOP else "check the path"
        raise UserError(f"{path}: {problem}; {remedy}") from None


def refusal(error: OSError) -> str:
    """Returns one line about an error of the file system that is not one of the program; "" for other errors."""
    if isinstance(error, FileNotFoundError) and "No usable temporary directory" in str(error):
        return "no temporary folder can be written; set TMPDIR to a folder that can"
    remedy = _REFUSALS.get(error.errno or 0, "").replace("write permission", "permission")  # It may be a read.
    return f"{error.filename}: {(error.strerror or '').lower()}; {remedy}" if remedy and error.filename else ""


def _check_regular(path: str | os.PathLike, mode: int) -> None:
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode) and not stat.S_ISLNK(mode):  # `open` rejects the other two.
        raise OSError(errno.ENXIO, "Not a regular file", os.fspath(path))


def open_file(path: str | os.PathLike, *, follow: bool = True) -> io.BufferedReader:
    """Opens a regular file for reading bytes.

    Args:
      path: the file.
      follow: whether it may be a symbolic link.

    Raises:
      OSError: as from `open`, or the path is not that of a regular file.
    """
    # Checked before as well, because opening a device may have an effect.
    _check_regular(path, os.stat(path, follow_symlinks=follow).st_mode)
    return open(path, "rb", opener=functools.partial(_open, 0 if follow else os.O_NOFOLLOW))


def regular(path: str, flags: int) -> int:
    """An `opener` for `open` that creates or opens a file of tfzoo's own, and does not follow a symbolic link."""
    return _open(os.O_NOFOLLOW, path, flags)


def _open(more: int, path: str, flags: int) -> int:
    descriptor = os.open(path, flags | more | os.O_NONBLOCK, 0o666)  # Otherwise, opening a pipe waits for a writer.
    try:
        _check_regular(path, os.fstat(descriptor).st_mode)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_bytes(path: str | os.PathLike, *, max_bytes: int = MAX_BYTES, follow: bool = True) -> bytes:
    """Returns the content of a regular file of at most `max_bytes`; `follow` is that of `open_file`.

    Raises:
      UserError: the file cannot be read, is not a regular file, or is larger.
    """
    with reading(path), open_file(path, follow=follow) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise UserError(f"{path}: has {size} bytes, more than the limit of {max_bytes}; make it smaller")
        data = file.read(size)
        if file.read(1):  # Such as a file in /proc, whose size is 0.
            raise UserError(f"{path}: has more bytes than its size, {size}; copy it, and specify the copy")
    return data


def read_text(path: str | os.PathLike, *, max_bytes: int = MAX_BYTES) -> str:
    """Returns the content of a text file in UTF-8, with or without a byte order mark.

    Raises:
      UserError: as from `read_bytes`, or the content is not UTF-8.
    """
    data = read_bytes(path, max_bytes=max_bytes)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8 text") from None


def cache_folder() -> pathlib.Path:
    """Returns the user's cache folder of tfzoo: $XDG_CACHE_HOME/tfzoo, or ~/.cache/tfzoo.

    Raises:
      UserError: the user has no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(base):  # Of an unknown user, expanduser returns the path unchanged.
        raise UserError(f"the cache folder {base} is not an absolute path; set HOME, or XDG_CACHE_HOME")
    return pathlib.Path(base, "tfzoo")


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
        if error.errno is None and re.fullmatch(r"\d+ requested and \d+ written", str(error)):
            remedy = _REFUSALS[errno.ENOSPC]  # This is how NumPy reports a full disk.
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EEXIST) and not pathlib.Path(path).parent.is_dir():
            remedy = "its folder was removed or replaced: restore it"
        if remedy is None:
            raise
        reason = error.strerror or str(error) if error.errno in (None, errno.ENXIO) else os.strerror(error.errno)
        raise UserError(f"{path}: cannot be written ({reason.lower()}); {remedy}") from None


def check_can_be_made(folder: pathlib.Path, flag: str) -> None:
    """Raises UserError, naming `flag`, if a folder that does not exist yet cannot be created."""
    parent = next(parent for parent in folder.absolute().parents if parent.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise UserError(f"--{flag}={folder}: cannot be created in {parent}; specify a writable folder")


def check_not_a_link(path: pathlib.Path) -> None:
    """Raises UserError if a folder of tfzoo's own is a symbolic link, through which other files would be changed."""
    if path.is_symlink():
        raise UserError(f"{path}: is a symbolic link, which is not followed here; {_REFUSALS[errno.ELOOP]}")


class Lock:
    """The lock of a folder, held by at most one process. The operating system releases it when that process ends."""

    def __init__(self, folder: str | os.PathLike):
        """Acquires the lock.

        Raises:
          UserError: another process holds the lock.
        """
        path = pathlib.Path(folder, LOCK)
        with writing(path):
            self._file = open(path, "a+", opener=regular)  # Never "w": the file contains the process ID of the owner.
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
        with writing(path), open(partial, "wb", opener=regular) as file, _held(partial):
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
    """Returns the hexadecimal SHA-256 of a file's content.

    Raises:
      UserError: the file cannot be read, or is not a regular file.
    """
    with reading(path):
        return sha256_of_written(path)


def sha256_of_written(path: str | os.PathLike) -> str:
    """Like `sha256`, for a file that this process has just written: errors stay OSErrors, which `writing` converts."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_folder(path: str | os.PathLike) -> None:
    """Removes a folder atomically: renames it before deleting it, so that no incomplete folder has its name."""
    path = pathlib.Path(path)
    check_not_a_link(path)
    partial = _partial(path)
    shutil.rmtree(partial, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):  # Another process has just removed it.
        os.rename(path, partial)
        shutil.rmtree(partial)
