"""Checks of requests, inside the exported graph.

A failed check refuses the call with INVALID_ARGUMENT and a message that names the input. In an export with
--refuse=row, an invalid row is refused by itself: its output `error` gives the reason and its other outputs are empty.
"""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf


class Checks:
    """The checks of one call, collected while its graph is built.

    Args:
      by_row: whether an invalid row is refused by itself. An error of the whole call always refuses the call.
    """

    def __init__(self, by_row: bool = False):
        self.by_row = by_row
        self._asserts: list[Any] = []
        self._error: Any = None  # strings [B], "" for a valid row.

    def call(self, holds, message: str, value) -> None:
        """Refuses the call with `message` and `value` unless `holds`, bool [], is true."""
        self._asserts.append(tf.debugging.Assert(holds, [message, value], summarize=5))

    def same_rows(self, inputs: Mapping[str, Any]) -> None:
        """Requires that all inputs have as many rows as the first one."""
        (first, values), *others = inputs.items()
        rows = tf.shape(values)[0]
        for name, value in others:
            count = tf.shape(value)[0]
            self.call(count == rows, f"{name} must have as many rows as {first}, but has", count)

    def rows(self, bad, message: str, values=None) -> None:
        """Refuses rows, or the call if rows are not refused one by one.

        Args:
          bad: bool [B], True for an invalid row.
          message: the requirement that an invalid row does not meet.
          values: [B], the value to show for each row; None shows none.
        """
        if not self.by_row:
            at = tf.where(bad)[:, 0]
            shown = [f"{message}, in row", at]
            if values is not None:
                shown = [f"{message}, but is", tf.gather(values, at), "in row", at]
            self._asserts.append(tf.debugging.Assert(~tf.reduce_any(bad), shown, summarize=5))
            return
        reason = tf.constant(message) if values is None else message + ", but is " + tf.strings.as_string(values)
        before = tf.fill(tf.shape(bad), "") if self._error is None else self._error
        self._error = tf.where(bad & (before == ""), reason, before)

    def within(self, name: str, ids, size, what: str) -> Any:
        """Requires that ids [B, L] are at least 0 and below `size`; messages call this "NAME must be WHAT".

        Returns:
          The same ids; if rows are refused one by one, with 0 in the refused rows.
        """
        wrong = (ids < 0) | (ids >= size)
        bad = tf.reduce_any(wrong, 1)
        one_more = [[0, 0], [0, 1]]  # The arg-max of an empty row would be an error in itself.
        first = tf.argmax(tf.cast(tf.pad(wrong, one_more), tf.int32), 1, tf.int32)
        self.rows(bad, f"{name} must be {what}", tf.gather(tf.pad(ids, one_more), first, batch_dims=1))
        return self.safe(ids, bad, 0)

    def safe(self, values, bad, instead) -> Any:
        """Returns values that are safe to compute with: if rows are refused one by one, `instead` replaces the values
        of the bad rows."""
        if not self.by_row:
            return values
        return tf.where(tf.reshape(bad, [-1] + [1] * (len(values.shape) - 1)), tf.cast(instead, values.dtype), values)

    def passed(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the same tensors, which become available only after all checks so far have passed."""
        with tf.control_dependencies([check for check in self._asserts if check is not None]):
            return {name: tf.identity(value) for name, value in tensors.items()}

    def refused(self, like) -> Any:
        """Returns bool [B], True for the rows refused so far; `like` [B, ...] gives the number of rows."""
        return tf.zeros(tf.shape(like)[:1], tf.bool) if self._error is None else self._error != ""

    def answered(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the outputs; if rows are refused one by one, emptied in refused rows and with each row's `error`."""
        if not self.by_row:
            return dict(outputs)
        bad = self.refused(next(iter(outputs.values())))
        error = tf.fill(tf.shape(bad), "") if self._error is None else self._error
        return {name: self.safe(value, bad, _empty(value.dtype)) for name, value in outputs.items()} | {"error": error}


def _empty(dtype) -> Any:
    return "" if dtype == tf.string else tf.zeros([], dtype)
