"""The two ways in which a command ends badly without a bug of ours; `cli.run` turns them into exit codes."""


class UserError(ValueError):
    """Wrong use or wrong input: one line that names the thing, its value and the remedy (exit code 2)."""


class CheckFailed(Exception):
    """A check of the result failed, such as a NaN loss or an export that does not verify (exit code 4)."""
