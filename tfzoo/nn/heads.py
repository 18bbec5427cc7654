"""What turns a sequence of hidden states into answers."""

import keras
from keras import ops

from tfzoo.config import TransformerConfig
from tfzoo.nn.basic import Dense, LayerNorm, activation, read
from tfzoo.nn.embedding import TokenEmbedding


class Pooler(keras.layers.Layer):
    """sequence [B, L, E] -> tanh(Dense(first token)) [B, E] (Devlin et al. 2019, appendix A.4's code)."""

    def __init__(self, hidden_size, initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        self.dense = Dense(
            hidden_size,
            activation="tanh",
            kernel_initializer=initializer,
            dtype=self.dtype_policy,
            name="dense",
        )

    def build(self, input_shape):
        self.dense.build((None, input_shape[-1]))

    def call(self, sequence):
        return self.dense(sequence[:, 0])


class Classifier(keras.layers.Layer):
    """pooled [B, E] -> logits [B, num_classes], float32."""

    def __init__(self, num_classes, initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        self.dense = Dense(num_classes, kernel_initializer=initializer, dtype=self.dtype_policy, name="dense")

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, pooled):
        return ops.cast(self.dense(pooled), "float32")


class MaskedLMHead(keras.layers.Layer):
    """sequence [B, L, E] (masked_positions [B, P]) -> logits [B, P, V], or [B, L, V] without positions; float32.

    norm(activation(Dense(x))) and then the product with the token embeddings, plus a bias for each word.
    """

    def __init__(self, config: TransformerConfig, embedding: TokenEmbedding, **kwargs):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.embedding = embedding
        self.transform = Dense(
            config.hidden_size,
            activation=activation(config.activation),
            kernel_initializer=keras.initializers.TruncatedNormal(stddev=config.initializer_range),
            dtype=policy,
            name="transform",
        )
        self.norm = LayerNorm(config.norm_epsilon, dtype=policy, name="norm")

    def build(self, input_shape):
        self.transform.build(input_shape)
        self.norm.build(input_shape)
        self.bias = self.add_weight(shape=(self.embedding.vocab_size,), initializer="zeros", name="bias")

    def call(self, sequence, masked_positions=None):
        if masked_positions is not None:
            sequence = _gather_positions(sequence, masked_positions)
        logits = self.embedding.attend(self.norm(self.transform(sequence)))
        return ops.cast(logits, "float32") + ops.cast(read(self.bias), "float32")


def _gather_positions(sequence, positions):
    """sequence [B, L, E], positions [B, P] -> [B, P, E]."""
    batch, length, hidden = ops.shape(sequence)
    rows = ops.arange(batch, dtype="int32")[:, None] * length + ops.cast(positions, "int32")
    return ops.take(ops.reshape(sequence, (-1, hidden)), rows, axis=0)
