"""A transformer block and a stack of them."""

import keras

from tfzoo.config import TransformerConfig
from tfzoo.nn.attention import Attention
from tfzoo.nn.basic import Dense, Dropout, LayerNorm, activation


class MLP(keras.layers.Layer):
    """x [B, L, E] -> down(activation(up(x))) [B, L, E] (Vaswani et al. 2017, section 3.3)."""

    def __init__(self, hidden_size, intermediate_size, activation_name, initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.up = Dense(
            intermediate_size,
            activation=activation(activation_name),
            kernel_initializer=initializer,
            dtype=policy,
            name="up",
        )
        self.down = Dense(hidden_size, kernel_initializer=initializer, dtype=policy, name="down")

    def build(self, input_shape):
        self.up.build(input_shape)
        self.down.build((*input_shape[:-1], self.up.units))

    def call(self, x):
        return self.down(self.up(x))


class Block(keras.layers.Layer):
    """Self-attention and an MLP, each with dropout and a residual sum: x [B, L, E] -> [B, L, E].

    norm_first False: x = norm(x + sublayer(x)), as in 2017. True: x = x + sublayer(norm(x)) (Xiong et al. 2020).
    """

    def __init__(self, config: TransformerConfig, **kwargs):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        initializer = _initializer(config)
        self.norm_first = config.norm_first
        self.attention = Attention(
            config.hidden_size,
            config.num_heads,
            config.attention_dropout,
            initializer,
            dtype=policy,
            name="attention",
        )
        self.self_norm = LayerNorm(config.norm_epsilon, dtype=policy, name="self_norm")
        self.mlp = MLP(
            config.hidden_size,
            config.intermediate_size,
            config.activation,
            initializer,
            dtype=policy,
            name="mlp",
        )
        self.mlp_norm = LayerNorm(config.norm_epsilon, dtype=policy, name="mlp_norm")
        self.self_dropout = Dropout(config.dropout, dtype=policy, name="self_dropout")
        self.mlp_dropout = Dropout(config.dropout, dtype=policy, name="mlp_dropout")

    def build(self, input_shape):
        for layer in (self.attention, self.self_norm, self.mlp, self.mlp_norm):
            layer.build(input_shape)

    def call(self, x, bias=None, training=False):
        if self.norm_first:
            x = x + self.self_dropout(
                self.attention(self.self_norm(x), bias=bias, training=training), training=training
            )
            return x + self.mlp_dropout(self.mlp(self.mlp_norm(x)), training=training)
        x = self.self_norm(x + self.self_dropout(self.attention(x, bias=bias, training=training), training=training))
        return self.mlp_norm(x + self.mlp_dropout(self.mlp(x), training=training))


class Stack(keras.layers.Layer):
    """num_layers Blocks: x [B, L, E] -> [B, L, E]; with norm_first a last norm follows them."""

    def __init__(self, config: TransformerConfig, **kwargs):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.blocks = [Block(config, dtype=policy, name=f"layer_{i}") for i in range(config.num_layers)]
        self.norm = LayerNorm(config.norm_epsilon, dtype=policy, name="norm") if config.norm_first else None

    def build(self, input_shape):
        for block in self.blocks:
            block.build(input_shape)
        if self.norm is not None:
            self.norm.build(input_shape)

    def call(self, x, bias=None, training=False):
        for block in self.blocks:
            x = block(x, bias=bias, training=training)
        return x if self.norm is None else self.norm(x)


def _initializer(config: TransformerConfig):
    return keras.initializers.TruncatedNormal(stddev=config.initializer_range)
