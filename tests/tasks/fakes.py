"""Rows and models for the tests of tasks: files that are lists, and a model that returns given logits."""

import tempfile
import types

import tensorflow as tf

from tfzoo.data import encoded


def rows_of(task, *rows):
    """Returns the encoded rows of a file with these rows."""
    with tempfile.TemporaryDirectory() as folder:
        return encoded.cached("key", folder, lambda: task.chunks(types.SimpleNamespace(rows=lambda: iter(rows))))


class Logits:
    """A model with one output, given logits [B, ..., C], that checks the names of its inputs."""

    INPUTS = ("token_ids", "segment_ids", "padding_mask")

    def __init__(self, logits, output: str, inputs=INPUTS):
        self.INPUTS, self._outputs = inputs, {output: tf.constant(logits, tf.float32)}

    def __call__(self, inputs, training=False):
        assert {*inputs} == {*self.INPUTS}
        return self._outputs
