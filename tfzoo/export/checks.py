"""What a request must hold.

What it does not hold refuses the call, as INVALID_ARGUMENT, with the input's name. Where an export answers row by row,
what is wrong with a row refuses that row alone: its `error` says why, and its other outputs are empty.
"""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf


class Checks:
    """Of one call, while its graph is made.

    by_row: what is wrong with a row refuses the row. What is wrong with the call refuses the call in any case.
    """

    def __init__(self, by_row: bool = False):
        self.by_row = by_row
        self._asserts: list[Any] = []
        self._error: Any = None  # strings [B], "" for a row that holds.

    def call(self, holds, message: str, value) -> None:
        """holds: bool []."""
        self._asserts.append(tf.debugging.Assert(holds, [message, value], summarize=5))

    def same_rows(self, inputs: Mapping[str, Any]) -> None:
        """All inputs have the first one's number of rows."""
        (first, values), *others = inputs.items()
        rows = tf.shape(values)[0]
        for name, value in others:
            found = tf.shape(value)[0]
            self.call(found == rows, f"{name} must have as many rows as {first}, and has", found)

    def rows(self, bad, message: str, values=None) -> None:
        """bad: bool [B], rows that are wrong. values [B]: what is wrong with each, to be shown."""
        if not self.by_row:
            at = tf.where(bad)[:, 0]
            shown = [f"{message}, in row", at]
            if values is not None:
                shown = [f"{message}, and is", tf.gather(values, at), "in row", at]
            self._asserts.append(tf.debugging.Assert(~tf.reduce_any(bad), shown, summarize=5))
            return
        said = tf.constant(message) if values is None else message + ", and is " + tf.strings.as_string(values)
        before = tf.fill(tf.shape(bad), "") if self._error is None else self._error
        self._error = tf.where(bad & (before == ""), said, before)

    def within(self, name: str, ids, size, what: str) -> Any:
        """ids [B, L], which must be from 0 to below `size` -> the same, or 0 in a row that is refused."""
        wrong = (ids < 0) | (ids >= size)
        bad = tf.reduce_any(wrong, 1)
        one_more = [[0, 0], [0, 1]]  # An arg-max of nothing would be an error of its own.
        first = tf.argmax(tf.cast(tf.pad(wrong, one_more), tf.int32), 1, tf.int32)
        self.rows(bad, f"{name} must be {what}", tf.gather(tf.pad(ids, one_more), first, batch_dims=1))
        return self.safe(ids, bad, 0)

    def safe(self, values, bad, instead) -> Any:
        """The values, or, where rows are refused one by one, `instead` in those that are bad: to be computed with."""
        if not self.by_row:
            return values
        return tf.where(tf.reshape(bad, [-1] + [1] * (len(values.shape) - 1)), tf.cast(instead, values.dtype), values)

    def passed(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The same tensors, which are not computed with before all has been checked."""
        with tf.control_dependencies([check for check in self._asserts if check is not None]):
            return {name: tf.identity(value) for name, value in tensors.items()}

    def refused(self, like) -> Any:
        """bool [B], of as many rows as `like` [B, ...] has."""
        return tf.zeros(tf.shape(like)[:1], tf.bool) if self._error is None else self._error != ""

    def answered(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs, empty in rows that were refused, and each row's `error`, where rows are refused one by one."""
        if not self.by_row:
            return dict(outputs)
        bad = self.refused(next(iter(outputs.values())))
        error = tf.fill(tf.shape(bad), "") if self._error is None else self._error
        return {name: self.safe(value, bad, _empty(value.dtype)) for name, value in outputs.items()} | {"error": error}


def _empty(dtype) -> Any:
    return "" if dtype == tf.string else tf.zeros([], dtype)
