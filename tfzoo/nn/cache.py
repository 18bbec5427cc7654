"""What attention has seen, kept for the tokens to come: keys and values in tensors whose shapes never change.

A row of a cache has M slots, and a step writes its L tokens into some of them. Which slots a token may read says an
attention_mask, and of which place in the text a slot is, `positions`. So one kind of step serves the next piece of a
prompt (L tokens, each seeing those before it), the next token (L = 1), the beams of a search (L beams side by side,
each seeing its own forefathers: nothing is copied when beams part) and a draft to be verified.
"""

from typing import Any

import tensorflow as tf

from tfzoo.nn.mask import Mask


class AttentionCache:
    """Keys and values [B, H, M, D] of one attention, where H counts the heads of keys. Filled by its first use."""

    def __init__(self, room=None, key=None, value=None, write=None):
        """room: slots to keep behind those that the first use fills; None: nothing is ever added, as where a decoder
        reads an encoder's output. write: (cache, new) -> cache with the step's new keys or values."""
        self.room, self.key, self.value, self.write = room, key, value, write

    @property
    def filled(self) -> bool:
        return self.key is not None

    def fill(self, key, value) -> None:
        """key, value [B, H, L, D]: the first tokens, with room behind them."""
        if self.room is not None:
            key, value = (tf.pad(x, [[0, 0], [0, 0], [0, self.room], [0, 0]]) for x in (key, value))
        self.key, self.value = key, value

    def extend(self, key, value):
        """Writes key, value [B, H, L, D] of a step's tokens -> all keys and values, [B, H, M, D]."""
        self.key, self.value = self.write(self.key, key), self.write(self.value, value)
        return self.key, self.value


class Cache:
    """The caches of a stack's layers, and what they share.

    Calling the stack gives the object new tensors; `tensors` and `step` carry them through a tf.while_loop.

    Args:
      num_layers: of the stack.
      room: int or scalar int32, slots for what comes after the first tokens.
      cross: whether its blocks attend to a memory.
    """

    def __init__(self, num_layers: int, room, cross: bool = False):
        self.layers: Any = [AttentionCache(room) for _ in range(num_layers)]
        self.cross: Any = [AttentionCache() if cross else None for _ in range(num_layers)]
        self.memory_masking: Mask | None = None
        self.positions: Any = None  # int32 [B, M], the place in the text of each slot's token, there or yet to come.
        self.reach: Any = None  # int32 [B], how long each text may become, where that is known.

    @property
    def filled(self) -> bool:
        return self.layers[0].filled

    @property
    def tensors(self) -> list:
        """What a step changes."""
        return [x for layer in self.layers for x in (layer.key, layer.value)]

    def step(self, tensors, slots, jit_compile: bool = False) -> "Cache":
        """This cache with other tensors, for a step that writes to `slots`.

        Without XLA the tensors are overwritten, not copied: nothing else may read them from here on.

        Args:
          tensors: as of `tensors`.
          slots: int32 [1 or B, L], where each token's keys and values go.
          jit_compile: whether XLA compiles the step.
        """
        pairs = list(zip(tensors[::2], tensors[1::2], strict=True))
        batch, heads, length, _ = _shape(pairs[0][0])
        rows = tf.reshape(tf.range(batch * heads) * length, [batch, heads, 1]) + slots[:, None, :]
        write = _Writer(tf.reshape(rows, [-1]), jit_compile)
        other = Cache(0, 0)
        other.cross, other.memory_masking = self.cross, self.memory_masking
        other.positions, other.reach = self.positions, self.reach
        other.layers = [AttentionCache(0, key, value, write) for key, value in pairs]
        return other

    def map(self, function) -> "Cache":
        """This cache with function(x) for each tensor x [B, ...], as for rows that are wanted several times."""
        other = Cache(0, 0)
        masking = self.memory_masking
        if masking is not None:
            other.memory_masking = Mask(bias=None if masking.bias is None else function(masking.bias))
        other.positions = function(self.positions)
        other.reach = None if self.reach is None else function(self.reach)
        other.layers, other.cross = (
            [x and AttentionCache(x.room, function(x.key), function(x.value)) for x in layers]
            for layers in (self.layers, self.cross)
        )
        return other


class _Writer:
    """(cache [B, H, M, D], new [B, H, L, D]) -> cache [B, H, M, D], with `new` in the rows of [B H M, D] named."""

    def __init__(self, rows, jit_compile: bool):
        self.rows, self.jit_compile = rows, jit_compile

    def __call__(self, cache, new):
        flat = tf.reshape(cache, [-1, cache.shape[-1]])
        new = tf.reshape(tf.cast(new, cache.dtype), [-1, cache.shape[-1]])
        if self.jit_compile:
            flat = tf.tensor_scatter_nd_update(flat, self.rows[:, None], new)
        else:  # A scatter would copy the cache at each step, and XLA, which does not, lacks this operation.
            flat = tf.raw_ops.InplaceUpdate(x=flat, i=self.rows, v=new)
        return tf.reshape(flat, _shape(cache))


def _shape(x) -> list:
    """x's shape, each dimension an int where it is known beforehand, else a tensor."""
    dynamic = tf.shape(x)
    return [dynamic[i] if size is None else size for i, size in enumerate(x.shape)]
