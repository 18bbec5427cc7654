"""Heads, which compute a model's outputs from a sequence of hidden states, and pooling."""

from keras import ops

from tfzoo.config import POOLINGS, EmbeddingConfig, Projection, TransformerConfig
from tfzoo.nn.basic import Dense, Dropout, LayerNorm, activation, make_initializer, read
from tfzoo.nn.embedding import TokenEmbedding
from tfzoo.nn.layer import Layer


class Pooler(Layer):
    """BERT's pooler: sequence [B, L, E] -> tanh(Dense(first token)) [B, E] (code of Devlin et al. 2019, A.4)."""

    def __init__(self, config: TransformerConfig, **kwargs):
        super().__init__(**kwargs)
        self.dense = _dense(self, config, config.hidden_size, "dense", "tanh")

    def build(self, input_shape=None):
        self.output_shape = (None, self.dense.units)
        self.dense.build(self.output_shape)

    def call(self, sequence):
        return self.dense(sequence[:, 0])


def pool(how: str, outputs, padding_mask=None, pooling_mask=None):
    """Returns one vector per row, [B, E].

    Args:
      how: "pooled" returns outputs["pooled"]; one of config.POOLINGS pools the real tokens.
      outputs: a dict with "sequence" [B, L, E] and, for "pooled", "pooled" [B, E].
      padding_mask: bool [B, L], True is a real token; None means that all are real.
      pooling_mask: bool [B, L], the real tokens to pool; None means all. Tokens that are not pooled still count as
        positions for "weighted_mean".
    """
    sequence = outputs["sequence"]
    if how == "pooled":
        return outputs["pooled"]
    if padding_mask is None and pooling_mask is None:
        if how in _UNPADDED:
            return _UNPADDED[how](sequence)
        padding_mask = ops.ones(ops.shape(sequence)[:2], "bool")
    real = ops.cast(padding_mask if pooling_mask is None else pooling_mask, "bool")
    if how == "max":
        lowest = -6e4 if sequence.dtype == "float16" else -1e9
        return ops.max(ops.where(ops.expand_dims(real, -1), sequence, ops.cast(lowest, sequence.dtype)), 1)
    if how in ("first", "last"):
        places = ops.expand_dims(ops.arange(ops.shape(real)[1]), 0)
        if how == "first":
            index = ops.argmax(ops.cast(real, "int32"), 1)  # ONNX has no ArgMax of booleans.
        else:
            index = ops.max(ops.where(real, places, 0), 1)
        return gather_positions(sequence, ops.expand_dims(index, 1))[:, 0]
    weights = ops.cast(real, sequence.dtype)
    if how == "weighted_mean":
        places = real if padding_mask is None else ops.cast(padding_mask, "bool")
        weights = weights * ops.cast(ops.cumsum(ops.cast(places, "int32"), 1), sequence.dtype)
    count = ops.maximum(ops.sum(ops.expand_dims(weights, -1), 1), 1)
    return ops.sum(sequence * ops.expand_dims(weights, -1), 1) / (ops.sqrt(count) if how == "mean_sqrt_len" else count)


# For rows without padding, in fewer operations.
_UNPADDED = {
    "first": lambda sequence: sequence[:, 0],
    "last": lambda sequence: sequence[:, -1],
    "mean": lambda sequence: ops.mean(sequence, 1),
}
POOLS = ("pooled", *POOLINGS)


class EmbeddingHead(Layer):
    """Text embeddings: sequence [B, L, E] -> one vector per row [B, D], float32.

    For padding_mask and pooling_mask [B, L] see `pool` (Reimers & Gurevych 2019, https://arxiv.org/abs/1908.10084).
    """

    def __init__(self, config: TransformerConfig, embed: EmbeddingConfig, **kwargs):
        super().__init__(**kwargs)
        self.embed = embed
        self.dense = [
            _dense(
                self,
                config,
                layer.units,
                f"dense_{i}",
                None if layer.activation == "none" else layer.activation,
                use_bias=layer.use_bias,
            )
            for i, layer in enumerate(layer for layer in embed.layers if isinstance(layer, Projection))
        ]

    def build(self, sequence_shape, padding_mask_shape=None, pooling_mask_shape=None):
        self.size = sequence_shape[-1] * len(self.embed.pooling)
        for dense in self.dense:
            dense.build((None, self.size))
            self.size = dense.units
        self.output_shape = (None, self.size)

    def call(self, sequence, padding_mask=None, pooling_mask=None):
        outputs = {"sequence": sequence if sequence.dtype == "float64" else ops.cast(sequence, "float32")}
        vectors = [pool(how, outputs, padding_mask, pooling_mask) for how in self.embed.pooling]
        x, dense = vectors[0] if len(vectors) == 1 else ops.concatenate(vectors, -1), iter(self.dense)
        for layer in self.embed.layers:
            x = normalize(x) if layer == "normalize" else next(dense)(x)
        return ops.cast(x, "float32")


def normalize(x):
    """Divides x [B, E] by its Euclidean norm; vectors shorter than sqrt(SMALLEST) stay close to zero."""
    x = x if x.dtype == "float64" else ops.cast(x, "float32")
    return x / ops.sqrt(ops.maximum(ops.sum(ops.square(x), -1, keepdims=True), SMALLEST))


SMALLEST = 1e-24  # Lower bound on a vector's squared norm.


ROW_HEADS = ("classify", "relation", "next_sentence")  # Heads with one label per row.


def output_of(head: str) -> str:
    """Returns the name of a head's output in a model's outputs."""
    return {"lm": "logits", "embed": "embedding"}.get(head, f"{head}_logits")


class Classifier(Layer):
    """A classification head: pooled [B, E] or a sequence [B, L, E] -> logits [B, C] or [B, L, C], float32.

    Args:
      config: the model's TransformerConfig.
      num_labels: C.
      hidden: the activation of an additional dense layer before the last one; None omits that layer.
      use_bias: whether the last dense layer has a bias.
      dropout: whether dropout precedes each dense layer.
    """

    def __init__(
        self,
        config: TransformerConfig,
        num_labels: int,
        hidden: str | None = None,
        use_bias: bool = True,
        dropout: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.hidden = _dense(self, config, config.hidden_size, "hidden", hidden) if hidden else None
        self.dense = _dense(self, config, num_labels, "dense", use_bias=use_bias)
        self.dropout = Dropout(config.dropout if dropout else 0.0, dtype=self.dtype_policy, name="dropout")

    def build(self, input_shape):
        if self.hidden is not None:
            self.hidden.build(input_shape)
            input_shape = (*input_shape[:-1], self.hidden.units)
        self.dense.build(input_shape)
        self.dropout.build()
        self.output_shape = (*input_shape[:-1], self.dense.units)

    def call(self, x, training=False):
        if self.hidden is not None:
            x = self.hidden(self.dropout(x, training=training))
        return ops.cast(self.dense(self.dropout(x, training=training)), "float32")


class Discriminator(Layer):
    """ELECTRA's discriminator head: sequence [B, L, E] -> logits [B, L], float32 (Clark et al. 2020).

    A logit above 0 predicts that the token differs from the original text's.
    """

    def __init__(self, config: TransformerConfig, **kwargs):
        super().__init__(**kwargs)
        self.hidden = _dense(self, config, config.hidden_size, "hidden", config.activation)
        self.dense = _dense(self, config, 1, "dense")

    def build(self, input_shape):
        self.hidden.build(input_shape)
        self.dense.build(input_shape)
        self.output_shape = (*input_shape[:-1],)

    def call(self, sequence):
        return ops.cast(self.dense(self.hidden(sequence))[..., 0], "float32")


class RelationClassifier(Layer):
    """A relation head: sequence [B, L, E], entity_positions [B, 2] -> logits [B, C], float32.

    It classifies the relation between two marked entities. The states at the two positions, such as those of the
    markers before the entities, are concatenated (Baldini Soares et al. 2019, section 3.2, "entity start").
    """

    def __init__(self, config: TransformerConfig, num_labels: int, **kwargs):
        super().__init__(**kwargs)
        self.classifier = Classifier(config, num_labels, dtype=self.dtype_policy, name="classifier")

    def build(self, sequence_shape, entity_positions_shape=None):
        self.classifier.build((None, 2 * sequence_shape[-1]))
        self.output_shape = self.classifier.output_shape

    def call(self, sequence, entity_positions, training=False):
        pair = gather_positions(sequence, entity_positions)
        return self.classifier(ops.reshape(pair, (-1, 2 * sequence.shape[-1])), training=training)


class MaskedLMHead(Layer):
    """The masked language model head: sequence [B, L, E] -> logits [B, P, V] at masked_positions [B, P], float32.

    Without masked_positions the logits are [B, L, V]. They are the product of norm(activation(Dense(x))) with the token
    embeddings, plus a bias for each token of the vocabulary.
    """

    def __init__(self, config: TransformerConfig, embedding: TokenEmbedding, **kwargs):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.embedding = embedding
        self.transform = _dense(self, config, embedding.hidden_size, "transform", config.activation)
        self.norm = LayerNorm(config.norm_epsilon, dtype=policy, name="norm")

    def build(self, input_shape):
        if not self.embedding.built:
            self.embedding.build()
        self.transform.build(input_shape)
        self.norm.build((*input_shape[:-1], self.embedding.hidden_size))
        self.bias = self.add_weight(shape=(self.embedding.vocab_size,), initializer="zeros", name="bias")
        self.output_shape = (*input_shape[:-1], self.embedding.vocab_size)

    def call(self, sequence, masked_positions=None):
        if masked_positions is not None:
            sequence = gather_positions(sequence, masked_positions)
        logits = self.embedding.attend(self.norm(self.transform(sequence)))
        return ops.cast(logits, "float32") + ops.cast(read(self.bias), "float32")


class LMHead(Layer):
    """The language model head: sequence [B, L, E] -> logits [B, L, V], float32.

    The logits are the product with the token embeddings or, if the config does not tie the two, with a separate matrix.

    Args:
      config: the model's TransformerConfig.
      embedding: the token embedding.
      use_bias: whether to add a bias for each token of the vocabulary.
      train_bias: whether that bias is trained.
      scale: factor on the sequence.
    """

    def __init__(
        self,
        config: TransformerConfig,
        embedding: TokenEmbedding,
        use_bias: bool = False,
        train_bias: bool = True,
        scale: float = 1.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.embedding, self.use_bias, self.train_bias, self.scale = embedding, use_bias, train_bias, scale
        self.dense = None
        if not config.tie_embeddings:
            self.dense = _dense(self, config, config.vocab_size, "dense", use_bias=False)
            self.dense.computes_logits = True

    def build(self, input_shape):
        self.output_shape = (*input_shape[:-1], self.embedding.vocab_size)
        if self.dense is not None:
            self.dense.build(input_shape)
        elif not self.embedding.built:
            self.embedding.build()
        if self.use_bias:
            self.bias = self.add_weight(
                shape=(self.embedding.vocab_size,), initializer="zeros", trainable=self.train_bias, name="bias"
            )

    def call(self, sequence, masked_positions=None):
        if masked_positions is not None:
            sequence = gather_positions(sequence, masked_positions)
        if self.scale != 1.0:
            sequence = sequence * self.scale
        logits = ops.cast(self.embedding.attend(sequence) if self.dense is None else self.dense(sequence), "float32")
        return logits + ops.cast(read(self.bias), "float32") if self.use_bias else logits


def gather_positions(sequence, positions):
    """Returns the states of sequence [B, L, E] at positions [B, P], [B, P, E]."""
    batch, length, hidden = ops.shape(sequence)
    rows = ops.arange(batch, dtype="int32")[:, None] * length + ops.cast(positions, "int32")
    return ops.take(ops.reshape(sequence, (-1, hidden)), rows, axis=0)


def _dense(layer, config, units, name, function=None, use_bias=True):
    return Dense(
        units,
        activation=None if function is None else activation(function),
        use_bias=use_bias,
        kernel_initializer=make_initializer(config),
        dtype=layer.dtype_policy,
        name=name,
    )
