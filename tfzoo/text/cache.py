"""What is costly to make of a tokenizer's files and is the same every time, kept in the user's cache folder."""

import hashlib
import os
import pathlib
from collections.abc import Callable

from tfzoo import files


def folder() -> pathlib.Path:
    """$XDG_CACHE_HOME/tfzoo/tokenizers, or ~/.cache/tfzoo/tokenizers."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(base, "tfzoo", "tokenizers")


def read(key: str) -> bytes | None:
    """What is kept under a key, 64 hexadecimal digits; None where nothing is, or where it is damaged."""
    try:
        content = (folder() / key).read_bytes()
    except OSError:
        return None
    return content[32:] if hashlib.sha256(content[32:]).digest() == content[:32] else None


def write(key: str, content: bytes) -> None:
    """A folder that cannot be written to keeps nothing."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        files.atomic_write(folder() / key, hashlib.sha256(content).digest() + content)
    except OSError:
        pass


def made(key: str, make: Callable[[], bytes]) -> bytes:
    """What is kept under a key, or else is made, and then kept."""
    content = read(key)
    if content is None:
        content = make()
        write(key, content)
    return content
