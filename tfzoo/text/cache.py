"""A cache, in the user's cache folder, of results that are costly to compute from a tokenizer's files."""

import hashlib
import pathlib
from collections.abc import Callable

from tfzoo import files
from tfzoo.errors import UserError


def folder() -> pathlib.Path:
    """Returns the folder tokenizers/ of `files.cache_folder`."""
    return files.cache_folder() / "tokenizers"


def read(key: str) -> bytes | None:
    """Returns the content stored under a key of 64 hexadecimal digits; None if there is none or it is damaged."""
    try:
        content = files.read_bytes(folder() / key)
    except UserError:
        return None
    return content[32:] if hashlib.sha256(content[32:]).digest() == content[:32] else None


def write(key: str, content: bytes) -> None:
    """Stores content under a key; does nothing if the folder cannot be written."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        files.atomic_write(folder() / key, hashlib.sha256(content).digest() + content)
    except (OSError, UserError):
        pass


def made(key: str, make: Callable[[], bytes]) -> bytes:
    """Returns the content stored under a key, or else computes and stores it."""
    content = read(key)
    if content is None:
        content = make()
        write(key, content)
    return content
