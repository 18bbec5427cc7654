"""Exceptions for failures that are not internal errors; `cli.run` maps them to exit codes."""

import difflib
from collections.abc import Iterable


def printable(text: str, keep: str = "") -> str:
    """Returns a text with its unprintable characters escaped, except `keep`: control characters in a user's strings
    could rewrite what a terminal shows, and line breaks what a log says."""
    return "".join(letter if letter.isprintable() or letter in keep else repr(letter)[1:-1] for letter in text)


_LONGEST = 1500  # Characters of a message.


class _Explained(Exception):
    """An exception with a message for the user, on one line: unprintable characters are escaped, and the middle of a
    message that is longer than a value of a file should make it is omitted."""

    def __init__(self, message: str = ""):
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}"
        super().__init__(printable(message))


class UserError(_Explained, ValueError):
    """A usage or input error; its message is one line with the thing, its value and the remedy (exit code 2)."""


class CheckFailed(_Explained):
    """A check of the result failed, such as a NaN loss or an export that does not verify (exit code 4)."""


class WorkerLost(_Explained):
    """Another process of the same run was lost; the run resumes when all are restarted (exit code 5)."""


def one_line(error: BaseException, most: int = 500) -> str:
    """Returns the message of another library's exception on one line of at most `most` characters."""
    return " ".join(str(error).split())[:most]


def suggest(name: str, choices: Iterable[str]) -> str:
    """Returns ' (did you mean X?)' for the closest of `choices`, or '' if none is close."""
    close = difflib.get_close_matches(name, list(choices), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
