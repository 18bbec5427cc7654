"""Folders that appear under their names together, after another process has replayed them, or not at all."""

import contextlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

from tfzoo import files
from tfzoo.errors import CheckFailed, UserError
from tfzoo.export import verify


def places(
    output_dir: str | os.PathLike, name: str, formats: Sequence[str], version: int | None
) -> dict[str, pathlib.Path]:
    """format -> OUTPUT_DIR/FORMAT/NAME/VERSION, which is not there yet; the next free version where it is None.

    Raises:
      UserError: they cannot be made, or a version is there already.
    """
    output_dir = pathlib.Path(output_dir)
    if not output_dir.exists():
        files.check_can_be_made(output_dir, "output_dir")
    parents = {kind: pathlib.Path(output_dir, kind, name) for kind in formats}
    for path in (output_dir, *(above for parent in parents.values() for above in (parent.parent, parent))):
        if path.exists() and not path.is_dir():
            raise UserError(f"--output_dir={output_dir}: {path} is no folder; name another")
    if version is None:
        version = 1 + max((v for parent in parents.values() for v, _ in _versions(parent)), default=0)
    folders = {kind: parent / str(version) for kind, parent in parents.items()}
    for folder in folders.values():
        if folder.exists():
            raise UserError(f"--version={version}: {folder} exists already; choose another, or leave the flag out")
    return folders


@contextlib.contextmanager
def together(folders: Mapping[str, pathlib.Path]) -> Iterator[dict[str, pathlib.Path]]:
    """Yields folders to write into, which get their names when the block ends. If it fails, none does, and nothing is
    left behind."""
    try:
        with contextlib.ExitStack() as stack:
            # What is entered first ends last: a folder that cannot be named takes back those that were, and then the
            # folders above them.
            for folder in folders.values():
                stack.enter_context(_new_parents(folder.parent))
            written = stack.enter_context(_all_or_none())
            partials = {}
            for kind, folder in folders.items():
                partials[kind] = stack.enter_context(files.atomic_folder(folder))
                written[folder] = _identity(partials[kind])
            yield partials
    except FileExistsError as error:  # Another export was quicker.
        version = next(iter(folders.values())).name
        raise UserError(f"--version={version}: {error}; choose another, or leave the flag out") from None


def remove_older(folders: Mapping[str, pathlib.Path], keep: int) -> None:
    """Removes versions beside `folders` that are older than the newest `keep`, but never these."""
    for folder in folders.values():
        for _, old in sorted(_versions(folder.parent))[:-keep]:
            if old != folder:
                files.remove_folder(old)


def replay(folders: Sequence[pathlib.Path]) -> None:
    """Runs export/verify.py, of which each artifact has a copy, in a process that has nothing of this one.

    Raises:
      CheckFailed: an artifact fails, or cannot be replayed.
    """
    # -P: what stands beside verify.py is ours, and is not to be imported.
    command = [sys.executable, "-P", verify.__file__, *map(os.fspath, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("FAILED", "error:"))]
        why = "; ".join(lines) or (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckFailed(f"nothing published: verify.py ended with code {done.returncode}: {why}")


def _versions(parent: pathlib.Path) -> list[tuple[int, pathlib.Path]]:
    return [(int(path.name), path) for path in parent.glob("*") if path.name.isdecimal()]


def _identity(folder: pathlib.Path) -> tuple[int, int]:
    """What a folder keeps when it is renamed."""
    stated = folder.stat()
    return stated.st_dev, stated.st_ino


@contextlib.contextmanager
def _all_or_none() -> Iterator[dict[pathlib.Path, tuple[int, int]]]:
    """Yields a dict for folders and their `_identity`; if the block fails, removes those that are still the same."""
    written: dict[pathlib.Path, tuple[int, int]] = {}
    try:
        yield written
    except BaseException:
        for folder, identity in written.items():
            if folder.exists() and _identity(folder) == identity:
                files.remove_folder(folder)
        raise


@contextlib.contextmanager
def _new_parents(folder: pathlib.Path) -> Iterator[None]:
    """Makes a folder and those it stands in; takes the new ones away again if the block fails."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in new:
            with contextlib.suppress(OSError):  # Something else has been put in there.
                path.rmdir()
        raise
