"""Prompts that a model has read, from which every strategy continues."""

import dataclasses
from typing import Any

import tensorflow as tf

from tfzoo.nn.cache import Cache


@dataclasses.dataclass
class Prompt:
    """The state before the first new token is chosen. P is the prompts' length, N the maximum number of new tokens.

    Prompts are right-aligned, so that each ends in slot P - 1 and the new tokens of its row follow from slot P on.
    """

    model: Any
    cache: Cache
    token_ids: Any  # int32 [B, P], -1 before a prompt's first token.
    count: Any  # int32 [B], the number of tokens in each prompt.
    sequence: Any  # [B, P, E], the states of the prompt's tokens.
    logits: Any  # [B, V], those of the first new token.
    length: Any  # P
    jit_compile: bool

    def step(self, tensors, token_ids, offsets, slots, visible=None):
        """Reads tokens after the prompt.

        Args:
          tensors: those of the cache.
          token_ids: int32 [B, L].
          offsets: int32 [1 or B, L], each token's position after the prompt; 0 is that of the first new token.
          slots: int32 [1 or B, L], the cache slots for their keys and values.
          visible: bool [B or 1, L, S], which of the S slots after the prompt each token sees, including its own; None
            means all slots up to its own.

        Returns:
          (sequence [B, L, E], the cache's new tensors).
        """
        cache = self.cache.step(tensors, slots, self.jit_compile)
        places = tf.range(tf.shape(cache.positions)[1])
        seen = places >= (self.length - self.count)[:, None]  # [B, M]
        if visible is None:
            visible = seen[:, None] & (places <= slots[..., None])
        else:
            prompt = tf.fill([tf.shape(visible)[0], tf.shape(visible)[1], self.length], True)
            visible = seen[:, None] & tf.concat([prompt, visible], 2)
        position_ids = self.count[:, None] + offsets
        # Rows that have ended are still computed, at positions beyond the table.
        if (limit := table_length(self.model)) is not None:
            position_ids = tf.minimum(position_ids, limit - 1)
        sequence = self.model.step(token_ids, position_ids, visible[:, None], cache)
        return sequence, cache.tensors

    def repeat(self, times: int) -> "Prompt":
        """Returns a Prompt with each row repeated `times` times, consecutively."""
        if times == 1:
            return self

        def repeated(x):
            return tf.repeat(x, times, axis=0)

        names = ("token_ids", "count", "sequence", "logits")
        rows = {name: repeated(getattr(self, name)) for name in names}
        return dataclasses.replace(self, cache=self.cache.map(repeated), **rows)


def table_length(model) -> int | None:
    """Returns the size of the model's table of positions; None if positions are unlimited."""
    config = model.config
    return config.max_positions if config.positions in ("learned", "sinusoidal", "sinusoidal_concat") else None


def read_prompt(model, token_ids, padding_mask, room, options, reach, memory=None, memory_padding_mask=None) -> Prompt:
    """Reads prompts.

    Args:
      model: the decoder.
      token_ids: int32 [B, P].
      padding_mask: bool [B, P]; padding may be anywhere.
      room: the number of cache slots after the prompt.
      options: Options.
      reach: int32 [B], the maximum length of each text including its prompt.
      memory, memory_padding_mask: [B, M, E] and bool [B, M], the output of an encoder.

    Returns:
      A Prompt.
    """
    order = tf.argsort(tf.cast(padding_mask, tf.int32), axis=1, stable=True)  # Padding goes to the front.
    token_ids, mask = (tf.gather(x, order, batch_dims=1) for x in (token_ids, padding_mask))
    chunk = options.prefill_chunk
    if chunk:
        missing = -tf.shape(token_ids)[1] % chunk
        token_ids, mask = (tf.pad(x, [[0, 0], [missing, 0]]) for x in (token_ids, mask))
    length = tf.shape(token_ids)[1]
    count = tf.reduce_sum(tf.cast(mask, tf.int32), 1)
    first = chunk or length
    sequence, cache = model.start(
        token_ids[:, :first], mask[:, :first], length - first + room, memory, memory_padding_mask, reach
    )
    ids = tf.where(mask, token_ids, -1)
    prompt = Prompt(model, cache, ids, count, sequence, None, length, options.jit_compile)
    if chunk:
        prompt = _read_on(prompt, token_ids, mask, room, chunk)
    logits = model.next_logits(prompt.sequence[:, -1:])[:, 0]
    return dataclasses.replace(prompt, logits=logits)


def _read_on(prompt: Prompt, token_ids, mask, room, chunk: int) -> Prompt:
    """Reads the remaining chunks of a prompt after the first."""
    model, cache = prompt.model, prompt.cache
    cache.positions = tf.range(prompt.length + room)[None] - (prompt.length - prompt.count)[:, None]
    cache.positions = tf.maximum(cache.positions, 0)
    places = tf.range(tf.shape(cache.positions)[1])
    seen = places >= (prompt.length - prompt.count)[:, None]

    def body(begin, states, tensors):
        slots = begin + tf.range(chunk)[None]
        step = cache.step(tensors, slots, prompt.jit_compile)
        visible = seen[:, None] & (places <= slots[..., None])
        # A slice of static size; XLA cannot infer the size of [begin : begin + chunk].
        ids, position_ids = (tf.slice(x, [0, begin], [tf.shape(x)[0], chunk]) for x in (token_ids, cache.positions))
        sequence = model.step(ids, position_ids, visible[:, None], step)
        return begin + chunk, states.write(begin // chunk, sequence), step.tensors

    states = tf.TensorArray(prompt.sequence.dtype, prompt.length // chunk, element_shape=prompt.sequence.shape)
    state = (chunk, states.write(0, prompt.sequence), cache.tensors)
    _, states, tensors = tf.while_loop(lambda begin, *_: begin < prompt.length, body, state, parallel_iterations=1)
    pieces = tf.transpose(states.stack(), [1, 0, 2, 3])
    sequence = tf.reshape(pieces, [tf.shape(token_ids)[0], prompt.length, pieces.shape[-1]])
    cache = cache.step(tensors, tf.zeros([1, 1], tf.int32), prompt.jit_compile)
    return dataclasses.replace(prompt, cache=cache, sequence=sequence)
