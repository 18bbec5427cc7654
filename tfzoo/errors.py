"""The ways in which a command ends badly without a bug of ours; `cli.run` turns them into exit codes."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Wrong use or wrong input: one line that names the thing, its value and the remedy (exit code 2)."""


class CheckFailed(Exception):
    """A check of the result failed, such as a NaN loss or an export that does not verify (exit code 4)."""


class WorkerLost(Exception):
    """Another process of the same run is gone; started again, all of them go on (exit code 5)."""


def one_line(error: Exception, most: int = 500) -> str:
    """What another library's exception says, on one line of at most so many characters."""
    return " ".join(str(error).split())[:most]


def suggest(name: str, choices: Iterable[str]) -> str:
    """' (did you mean X?)' for the closest of `choices`, '' where none is close."""
    close = difflib.get_close_matches(name, list(choices), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
