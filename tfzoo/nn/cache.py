"""Caches of keys and values for decoding, in tensors whose shapes never change.

A row of a cache has M slots, and a step writes its L tokens into some of them. An attention_mask defines which slots a
token may read, and `positions` defines the position in the text of each slot's token. The same kind of step therefore
handles the next piece of a prompt (L tokens, each attending to those before it), the next token (L = 1), the beams of a
beam search (L beams next to each other, each attending to its own ancestors; nothing is copied when beams split) and a
draft to be verified.
"""

from typing import Any

import tensorflow as tf

from tfzoo.nn.mask import Mask


class AttentionCache:
    """The keys and values [B, H, M, D] of one attention layer with H key heads, filled by its first use."""

    def __init__(self, room=None, key=None, value=None, write=None):
        """Creates a cache.

        Args:
          room: number of slots to add after those that the first use fills; None if nothing is ever added, as in a
            decoder's cross-attention.
          key, value: [B, H, M, D] of a filled cache.
          write: a function (cache, new) -> cache with the step's new keys or values.
        """
        self.room, self.key, self.value, self.write = room, key, value, write

    @property
    def filled(self) -> bool:
        return self.key is not None

    def fill(self, key, value) -> None:
        """Stores the first tokens' key and value, [B, H, L, D], and appends `room` empty slots."""
        if self.room is not None:
            paddings = tf.convert_to_tensor([[0, 0], [0, 0], [0, self.room], [0, 0]])
            key, value = tf.pad(key, paddings), tf.pad(value, paddings)
        self.key, self.value = key, value

    def extend(self, key, value):
        """Writes a step's key and value, [B, H, L, D], and returns all keys and values, [B, H, M, D]."""
        self.key, self.value = self.write(self.key, key), self.write(self.value, value)
        return self.key, self.value


class Cache:
    """The caches of a stack's layers and the state that they share.

    A call of the stack replaces the object's tensors; `tensors` and `step` carry them through a tf.while_loop.

    Args:
      num_layers: number of layers of the stack.
      room: int or scalar int32, number of slots for tokens after the first ones.
      cross: whether the stack's blocks attend to a memory.
    """

    def __init__(self, num_layers: int, room, cross: bool = False):
        self.layers: Any = [AttentionCache(room) for _ in range(num_layers)]
        self.cross: Any = [AttentionCache() if cross else None for _ in range(num_layers)]
        self.memory_masking: Mask | None = None
        self.positions: Any = None  # int32 [B, M], the position of each slot's present or future token.
        self.reach: Any = None  # int32 [B], the length that each text may reach; None if unknown.

    @property
    def filled(self) -> bool:
        return self.layers[0].filled

    @property
    def tensors(self) -> list:
        """The tensors that a step changes."""
        return [x for layer in self.layers for x in (layer.key, layer.value)]

    def step(self, tensors, slots, jit_compile: bool = False) -> "Cache":
        """Returns this cache with other tensors, for a step that writes to `slots`.

        Without XLA the tensors are overwritten in place; nothing else may read them afterwards.

        Args:
          tensors: in the order of the property `tensors`.
          slots: int32 [1 or B, L], the slot of each token's keys and values.
          jit_compile: whether XLA compiles the step.
        """
        pairs = list(zip(tensors[::2], tensors[1::2], strict=True))
        shape = _shape(pairs[0][0])
        batch, heads, length, _ = shape
        rows = tf.reshape(tf.range(batch * heads) * length, [batch, heads, 1]) + slots[:, None, :]
        write = _Writer(tf.reshape(rows, [-1]), tf.stack(shape), jit_compile)
        cache = Cache(0, 0)
        cache.cross, cache.memory_masking = self.cross, self.memory_masking
        cache.positions, cache.reach = self.positions, self.reach
        cache.layers = [AttentionCache(0, key, value, write) for key, value in pairs]
        return cache

    def map(self, function) -> "Cache":
        """Returns this cache with function(x) in place of each tensor x [B, ...], for example to repeat rows."""
        cache = Cache(0, 0)
        masking = self.memory_masking
        if masking is not None:
            cache.memory_masking = Mask(bias=None if masking.bias is None else function(masking.bias))
        cache.positions = function(self.positions)
        cache.reach = None if self.reach is None else function(self.reach)
        cache.layers, cache.cross = (
            [x and AttentionCache(x.room, function(x.key), function(x.value)) for x in layers]
            for layers in (self.layers, self.cross)
        )
        return cache


class _Writer:
    """Writes new [B, H, L, D] to the given rows of cache [B, H, M, D], which are counted in [B H M, D].

    Args:
      rows: int32 [B H L].
      shape: int32 [4], B, H, M, D.
      jit_compile: whether XLA compiles the step.
    """

    def __init__(self, rows, shape, jit_compile: bool):
        self.rows, self.shape, self.jit_compile = rows, shape, jit_compile

    def __call__(self, cache, new):
        flat = tf.reshape(cache, [-1, cache.shape[-1]])
        new = tf.reshape(tf.cast(new, cache.dtype), [-1, cache.shape[-1]])
        if self.jit_compile:
            flat = tf.tensor_scatter_nd_update(flat, self.rows[:, None], new)
        else:  # A scatter would copy the cache at each step. XLA does not copy it, but lacks this operation.
            flat = tf.raw_ops.InplaceUpdate(x=flat, i=self.rows, v=new)
        result = tf.reshape(flat, self.shape)
        result.set_shape(cache.shape)
        return result


def _shape(x) -> list:
    """Returns x's shape; each dimension is an int if it is static, else a tensor."""
    dynamic = tf.shape(x)
    return [dynamic[i] if size is None else size for i, size in enumerate(x.shape)]
