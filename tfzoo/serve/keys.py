"""API keys: bearer tokens of which every request must carry one."""

import hmac
import os
from collections.abc import Sequence

from tfzoo import files
from tfzoo.errors import UserError


def read(path: str) -> tuple[bytes, ...]:
    """Returns the keys in a file, one per line.

    Raises:
      UserError: the file cannot be read, is readable for everybody or contains no key.
    """
    try:
        lines = files.read_bytes(path).splitlines()
    except UserError as error:
        raise UserError(f"--api_key_file={error}") from None
    keys = tuple(line.strip() for line in lines if line.strip())
    is_public = os.stat(path).st_mode & 0o004
    if is_public:
        raise UserError(f"--api_key_file={path}: everybody can read it; chmod o-r {path}")
    if not keys:
        raise UserError(f"--api_key_file={path}: contains no key; write one per line")
    return keys


def is_authorized(header: str, keys: Sequence[bytes]) -> bool:
    """Returns whether the value of an authorization header is a bearer token with one of the keys."""
    kind, _, token = header.partition(" ")
    # Every key is compared, in constant time, so that times tell nothing about keys.
    fits = [hmac.compare_digest(token.encode(errors="replace"), key) for key in keys]
    return kind == "Bearer" and any(fits)
