"""Exceptions for failures that are not internal errors; `cli.run` maps them to exit codes."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A usage or input error; its message is one line with the thing, its value and the remedy (exit code 2)."""


class CheckFailed(Exception):
    """A check of the result failed, such as a NaN loss or an export that does not verify (exit code 4)."""


class WorkerLost(Exception):
    """Another process of the same run was lost; the run resumes when all are restarted (exit code 5)."""


def one_line(error: BaseException, most: int = 500) -> str:
    """Returns the message of another library's exception on one line of at most `most` characters."""
    return " ".join(str(error).split())[:most]


def suggest(name: str, choices: Iterable[str]) -> str:
    """Returns ' (did you mean X?)' for the closest of `choices`, or '' if none is close."""
    close = difflib.get_close_matches(name, list(choices), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
