"""Publishes folders atomically: all appear under their names after a separate process has replayed them, or none."""

import contextlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tfzoo import files
from tfzoo.errors import CheckFailed, UserError
from tfzoo.export import verify


def places(
    output_dir: str | os.PathLike, name: str, formats: Sequence[str], version: int | None
) -> dict[str, pathlib.Path]:
    """Returns the folder of each format, OUTPUT_DIR/FORMAT/NAME/VERSION, which does not exist yet.

    Args:
      output_dir: the folder in which they will be created.
      name: the name of the served model.
      formats: names of artifact formats.
      version: the version number; None means the next one that is free in all formats.

    Raises:
      UserError: a folder cannot be created, or the version already exists.
    """
    output_dir = pathlib.Path(output_dir)
    if not output_dir.exists():
        files.check_can_be_made(output_dir, "output_dir")
    parents = {kind: pathlib.Path(output_dir, kind, name) for kind in formats}
    for path in (output_dir, *(above for parent in parents.values() for above in (parent.parent, parent))):
        if path.exists() and not path.is_dir():
            raise UserError(f"--output_dir={output_dir}: {path} is not a folder; choose another")
    if version is None:
        version = 1 + max((v for parent in parents.values() for v, _ in _versions(parent)), default=0)
    folders = {kind: parent / str(version) for kind, parent in parents.items()}
    for folder in folders.values():
        if folder.exists():
            raise UserError(f"--version={version}: {folder} already exists; choose another version or omit the flag")
    return folders


@contextlib.contextmanager
def together(folders: Mapping[str, pathlib.Path]) -> Iterator[dict[str, pathlib.Path]]:
    """Yields temporary folders to write into, which are renamed to `folders` when the block ends.

    If the block fails, none is renamed and nothing is left behind.

    Raises:
      UserError: another export has created one of the folders in the meantime.
    """
    try:
        with contextlib.ExitStack() as stack:
            # Contexts end in reverse order: if a folder cannot be renamed, the ones already renamed are removed, and
            # then their new parent folders.
            for folder in folders.values():
                stack.enter_context(_new_parents(folder.parent))
            written = stack.enter_context(_all_or_none())
            partials = {}
            for kind, folder in folders.items():
                partials[kind] = stack.enter_context(files.atomic_folder(folder))
                written[folder] = _identity(partials[kind])
            yield partials
    except FileExistsError as error:  # A concurrent export was faster.
        version = next(iter(folders.values())).name
        raise UserError(f"--version={version}: {error}; choose another version or omit the flag") from None


def remove_older(folders: Mapping[str, pathlib.Path], keep: int) -> None:
    """Removes all but the newest `keep` versions next to `folders`, but never `folders` themselves."""
    for folder in folders.values():
        for _, old in sorted(_versions(folder.parent))[:-keep]:
            if old != folder:
                files.remove_folder(old)


def replay(folders: Sequence[pathlib.Path]) -> None:
    """Replays artifacts in a separate process with verify.py, of which each artifact contains a copy.

    Raises:
      CheckFailed: an artifact fails or cannot be replayed.
    """
    # -P: the files next to verify.py are part of tfzoo and must not be importable.
    command = [sys.executable, "-P", verify.__file__, *map(os.fspath, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("FAILED", "error:"))]
        why = "; ".join(lines) or (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckFailed(f"nothing was published: verify.py exited with code {done.returncode}: {why}")


def replay_large(folder: pathlib.Path) -> dict[str, Any]:
    """Replays an artifact as verify.py does, in a separate process within its limits, and returns what verify.replay
    returns. The answers are compared only once, because loading a large model takes long; `check_files` then shows that
    the artifact has not changed since.

    Raises:
      CheckFailed: the artifact fails or cannot be replayed.
    """
    found = verify.verify_alone(folder, {})
    if "ok" not in found:
        raise CheckFailed(found.get("failed") or f"cannot be replayed: {found['missing']}")
    return found["measured"]


def check_files(folders: Sequence[pathlib.Path]) -> None:
    """Compares the files of artifacts with their manifests.

    Raises:
      CheckFailed: a file differs.
    """
    for folder in folders:
        try:
            verify.check_files(folder, verify.read_manifest(folder)["files"])
        except verify.Failure as failure:
            raise CheckFailed(f"nothing was published: {folder}: {failure}") from failure


def _versions(parent: pathlib.Path) -> list[tuple[int, pathlib.Path]]:
    return [(int(path.name), path) for path in parent.glob("*") if path.name.isdecimal()]


def _identity(folder: pathlib.Path) -> tuple[int, int]:
    """Returns what identifies a folder even after it is renamed."""
    stated = folder.stat()
    return stated.st_dev, stated.st_ino


@contextlib.contextmanager
def _all_or_none() -> Iterator[dict[pathlib.Path, tuple[int, int]]]:
    """Yields a dict to fill with folders and their `_identity`. If the block fails, the folders that still have this
    identity are removed."""
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
    """Creates a folder and its parents; removes the new ones if the block fails."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in new:
            with contextlib.suppress(OSError):  # It is not empty: something else has been put into it.
                path.rmdir()
        raise
