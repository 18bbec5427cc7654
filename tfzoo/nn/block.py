"""The feed-forward network, the transformer block, and a stack of blocks."""

import dataclasses

import keras
import tensorflow as tf
from keras import ops

from tfzoo.config import TransformerConfig
from tfzoo.nn.attention import Attention
from tfzoo.nn.basic import (
    Dense,
    Dropout,
    activation,
    few_rows,
    is_compiled,
    make_initializer,
    make_norm,
    recomputed,
)
from tfzoo.nn.cache import AttentionCache, Cache
from tfzoo.nn.layer import Layer
from tfzoo.nn.mask import Mask
from tfzoo.nn.position import RelativeBias, rotary_tables


class MLP(Layer):
    """The feed-forward network: x [B, L, E] -> down(activation(up(x))) [B, L, E] (Vaswani et al. 2017, section 3.3).

    With gated_mlp: down(activation(gate(x)) * up(x)) (Shazeer 2020).
    """

    def __init__(self, config: TransformerConfig, **kwargs):
        super().__init__(**kwargs)

        def dense(size, name, function=None, role="kernel"):
            return Dense(
                size,
                activation=function,
                use_bias=config.biases == "all",
                kernel_initializer=make_initializer(config, role),
                dtype=self.dtype_policy,
                name=name,
            )

        function = activation(config.activation)
        self.gate = dense(config.intermediate_size, "gate", function) if config.gated_mlp else None
        self.up = dense(config.intermediate_size, "up", None if config.gated_mlp else function)
        self.down = dense(config.hidden_size, "down", role="residual")

    def build(self, input_shape):
        if self.gate is not None:
            self.gate.build(input_shape)
        self.up.build(input_shape)
        self.down.build((*input_shape[:-1], self.up.units))

    def call(self, x):
        return self.down(self.up(x) if self.gate is None else self.gate(x) * self.up(x))


class Block(Layer):
    """Self-attention, optional cross-attention to a memory, and an MLP: x [B, L, E] -> [B, L, E].

    Each sublayer has dropout and a residual connection:
      norm_first False: x = norm(x + sublayer(x)), as in Vaswani et al. 2017.
      norm_first True: x = x + sublayer(norm(x)) (Xiong et al. 2020).
      parallel_blocks: x + attention(norm(x)) + mlp(norm(x)).
    """

    def __init__(self, config: TransformerConfig, cross: bool = False, **kwargs):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.norm_first, self.parallel = config.norm_first, config.parallel_blocks
        self.attention = Attention(config, dtype=policy, name="attention")
        self.self_norm = make_norm(config, dtype=policy, name="self_norm")
        self.cross_attention = self.cross_norm = self.cross_dropout = None
        if cross:
            self.cross_attention = Attention(config, cross=True, dtype=policy, name="cross_attention")
            self.cross_norm = make_norm(config, dtype=policy, name="cross_norm")
            self.cross_dropout = Dropout(config.dropout, dtype=policy, name="cross_dropout")
        self.mlp = MLP(config, dtype=policy, name="mlp")
        self.mlp_norm = None if self.parallel else make_norm(config, dtype=policy, name="mlp_norm")
        self.self_dropout, self.mlp_dropout = (
            Dropout(config.dropout, dtype=policy, name=name) for name in ("self_dropout", "mlp_dropout")
        )

    def build(self, input_shape):
        for layer in (self.attention, self.self_norm, self.cross_attention, self.cross_norm, self.mlp, self.mlp_norm):
            if layer is not None:
                layer.build(input_shape)
        for dropout in (self.self_dropout, self.cross_dropout, self.mlp_dropout):
            if dropout is not None:
                dropout.build()

    def call(
        self,
        x,
        masking=None,
        rotary=None,
        memory=None,
        memory_masking=None,
        length=None,
        cache=None,
        cross_cache=None,
        training=False,
    ):
        """Applies the block.

        Args:
          x: [B, L, E], or [B L, E] together with `length`.
          masking, memory_masking: Masks over the positions of x and of the memory.
          rotary: the tables that `rotary_tables` returns.
          memory: [B, M, E].
          length: L, required when x is [B L, E].
          cache, cross_cache: AttentionCaches.
          training: whether to apply dropout.
        """

        def attend(x):
            return self.attention(x, masking=masking, rotary=rotary, length=length, cache=cache, training=training)

        def cross(x):
            assert self.cross_attention is not None
            return self.cross_attention(
                x, masking=memory_masking, memory=memory, length=length, cache=cross_cache, training=training
            )

        if self.parallel:
            normal = self.self_norm(x)
            x = x + self.self_dropout(attend(normal), training=training)
            return x + self.mlp_dropout(self.mlp(normal), training=training)
        x = self._residual(x, attend, self.self_norm, self.self_dropout, training)
        if self.cross_attention is not None:
            x = self._residual(x, cross, self.cross_norm, self.cross_dropout, training)
        return self._residual(x, self.mlp, self.mlp_norm, self.mlp_dropout, training)

    def _residual(self, x, sublayer, norm, dropout, training):
        if self.norm_first:
            return x + dropout(sublayer(norm(x)), training=training)
        return norm(x + dropout(sublayer(x), training=training))


class Stack(Layer):
    """A sequence of blocks: x [B, L, E] -> [B, L, E]; with norm_first a final norm follows.

    With the attribute `remat`, a training step keeps only the input of each block and recomputes the rest for the
    gradient.

    Args:
      config: the model's TransformerConfig.
      num_layers: number of blocks; None means config.num_layers.
      causal: whether a position attends only to itself and to earlier positions.
      cross: whether every block also attends to a memory.
    """

    def __init__(
        self,
        config: TransformerConfig,
        num_layers: int | None = None,
        causal: bool = False,
        cross: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.config, self.causal, self.cross, self.remat = config, causal, cross, False
        num_layers = num_layers or config.num_layers
        self.blocks = [
            Block(config, cross, dtype=policy, name=f"layer_{i}")
            for i in range(1 if config.share_layers else num_layers)
        ]
        if config.share_layers:
            self.blocks *= num_layers
        self.relative_bias = None
        if config.positions == "relative":
            self.relative_bias = RelativeBias(config, causal, dtype=policy, name="relative_bias")
        self.norm = make_norm(config, dtype=policy, name="norm") if config.norm_first else None

    def build(self, input_shape):
        for block in dict.fromkeys(self.blocks):
            block.build(input_shape)
        if self.relative_bias is not None:
            self.relative_bias.build()
        if self.norm is not None:
            self.norm.build(input_shape)

    def call(
        self,
        x,
        padding_mask=None,
        attention_mask=None,
        position_ids=None,
        memory=None,
        memory_padding_mask=None,
        memory_attention_mask=None,
        cache=None,
        training=False,
    ):
        """Applies the blocks.

        Args:
          x: [B, L, E].
          padding_mask: bool [B, L], True attends.
          attention_mask: bool [B, 1 or H, L, L], True attends.
          position_ids: int [B, L], for rotary positions.
          memory: [B, M, E], read by blocks with cross-attention.
          memory_padding_mask: bool [B, M].
          memory_attention_mask: bool [B, 1 or H, L, M].
          cache: a Cache. The first call with an empty cache fills it. With a filled cache, x holds a step's tokens, and
            the only mask is attention_mask [B, 1, L, M] over the cache's slots, which also encodes causality.
          training: whether to apply dropout.
        """
        shape = ops.shape(x)
        length = shape[1]
        filled = cache is not None and cache.filled
        if filled:
            masking = self._step_masking(position_ids, attention_mask, cache, x.dtype)
            memory_masking = cache.memory_masking
        else:
            bias = None if self.relative_bias is None else self.relative_bias(query_length=length, key_length=length)
            masking = Mask(padding_mask, attention_mask, bias, self.causal, self.config.window if self.causal else 0)
            memory_masking = Mask(memory_padding_mask, memory_attention_mask)
            if cache is not None:
                cache.memory_masking = memory_masking.fold(length, None, x.dtype)
            if self.config.attention == "full":
                masking = masking.fold(length, length, x.dtype)
                memory_masking = memory_masking.fold(length, None, x.dtype)
        rotary = None
        if self.config.positions == "rotary":
            places = ops.arange(length)[None] if position_ids is None else position_ids
            rotary = rotary_tables(self.config, places, x.dtype, None if cache is None else cache.reach)
        # One token per row: without reshapes in between, TensorFlow fuses the residual sum with the matrix product.
        x = ops.reshape(x, (-1, shape[2]))
        shared = dict(masking=masking, rotary=rotary, memory=memory, memory_masking=memory_masking, length=length)
        once = None
        if cache is not None and not (training or tf.executing_eagerly() or is_compiled()):
            once = _TracedOnce(self.blocks[0], cache, shared)
        with few_rows(filled):
            for i, block in enumerate(self.blocks):
                if self.remat and training and cache is None:
                    x = _recomputed_block(block, x, **shared)
                elif once is not None and once.fits(block):
                    x = once(block, x, cache.layers[i], cache.cross[i])
                else:
                    caches = {} if cache is None else dict(cache=cache.layers[i], cross_cache=cache.cross[i])
                    x = block(x, **shared, **caches, training=training)
        return ops.reshape(x if self.norm is None else self.norm(x), shape)

    def _step_masking(self, position_ids, attention_mask, cache, dtype):
        """Returns a step's Mask: attention_mask [B, 1, L, M], restricted to the window, plus the relative bias."""
        rows, keys = position_ids[:, None, :, None], cache.positions[:, None, None, :]
        if self.config.window:
            attention_mask = ops.logical_and(attention_mask, keys > rows - self.config.window)
        bias = None if self.relative_bias is None else self.relative_bias.at(keys[:, 0] - rows[:, 0])
        return Mask(attention_mask=attention_mask, bias=bias).fold(None, None, dtype)


class _TracedOnce:
    """A stack's blocks as one function of their input, weights and caches, which a graph calls once per block.

    Most of the time until the first token is taken by creating a graph's operations, which are the same for each block.
    TensorFlow inlines the function before it optimizes the graph; what runs is the same.

    Args:
      block: the first block.
      cache: a Cache.
      shared: the arguments that all blocks have in common.
    """

    def __init__(self, block: Block, cache: Cache, shared: dict):
        self.block, self.shared = block, shared
        self.caches = [each for each in (cache.layers[0], cache.cross[0]) if each is not None]
        self.structure = _structure(block)
        self.function = tf.function(self._call, autograph=False)

    def fits(self, block: Block) -> bool:
        """Returns whether a block differs from the first one only in its weights."""
        return block is self.block or _structure(block) == self.structure

    def __call__(self, block: Block, x, cache: AttentionCache, cross_cache: AttentionCache | None):
        """Returns a block's output without dropout, and fills or extends its caches."""
        caches = [each for each in (cache, cross_cache) if each is not None]
        weights = [tf.convert_to_tensor(weight.value) for weight in block.weights]
        x, pairs = self.function(x, weights, [(each.key, each.value) for each in caches])
        for each, (key, value) in zip(caches, pairs, strict=True):
            each.key, each.value = key, value
        return x

    def _call(self, x, weights, pairs):
        caches = [
            AttentionCache(each.room, key, value, each.write)
            for each, (key, value) in zip(self.caches, pairs, strict=True)
        ]
        with keras.StatelessScope(state_mapping=zip(self.block.weights, weights, strict=True)):
            x = self.block(x, **self.shared, **dict(zip(("cache", "cross_cache"), caches)))
        return x, [(each.key, each.value) for each in caches]


def _structure(block: Block) -> list:
    """Returns what blocks that differ only in their weights have in common."""
    layers = [(type(layer), layer.name, layer.dtype_policy.name) for layer in block._flatten_layers(include_self=False)]
    return [layers, [(weight.shape, weight.dtype) for weight in block.weights]]


def _recomputed_block(block, x, masking, memory, **others):
    """Returns the training block(x), recomputed for the gradients of x, the memory and a learned bias."""
    inputs = {"x": x, "memory": memory, "bias": masking.bias}
    inputs = {name: tensor for name, tensor in inputs.items() if tensor is not None}

    def call(*tensors):
        values = dict(zip(inputs, tensors, strict=True))
        masking_with_bias = dataclasses.replace(masking, bias=values.get("bias"))
        return block(values["x"], masking=masking_with_bias, memory=values.get("memory"), **others, training=True)

    return recomputed(call, *inputs.values())
