"""What a model is made of and what it costs, found without giving it memory."""

import dataclasses
import math
import re
from collections.abc import Sequence

from tfzoo.config import TransformerConfig
from tfzoo.errors import UserError


@dataclasses.dataclass(frozen=True)
class Weight:
    """A variable, and how many layers have one like it."""

    path: str  # Without the model's name; {} stands for a layer's index.
    shape: tuple[int, ...]
    copies: int  # In memory.
    uses: int  # In one pass; more than copies where layers share.

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def lay_out(page, config: TransformerConfig, heads: Sequence[str] | None = None) -> list[Weight]:
    """A family's trainable variables, those of like layers as one, of whatever size.

    Args:
      page: the family's module.
      config: its sizes.
      heads: as for page.Model.
    """
    import tensorflow as tf

    from tfzoo import nn

    decoder_layers = config.resolved_num_decoder_layers
    try:
        small = dataclasses.replace(config, num_layers=2, num_decoder_layers=2 if config.num_decoder_layers else 0)
    except UserError:  # It names its layers one by one, for they differ: the whole is laid out.
        small = config
    # Variables of a graph have shapes and no memory.
    with tf.Graph().as_default(), nn.zero_initializers():
        variables = page.Model(small, heads=heads).trainable_variables
    alike: dict[tuple, list[int]] = {}
    for variable in variables:
        path, copies, uses = variable.path.partition("/")[2], 1, 1
        layers = decoder_layers if path.startswith("decoder/") else config.num_layers
        if small is not config and "/layer_1/" in path:  # It stands for all layers but the first.
            copies = uses = layers - 1
        elif config.share_layers and "/layer_" in path:
            uses = layers
        total = alike.setdefault((re.sub(r"/layer_\d+/", "/layer_{}/", path), tuple(variable.shape)), [0, 0])
        total[0] += copies
        total[1] += uses
    return [Weight(path, shape, *counts) for (path, shape), counts in alike.items()]


def count_parameters(weights: Sequence[Weight]) -> int:
    """How many trainable numbers a model of these has."""
    return sum(weight.copies * weight.size for weight in weights)


def flops_a_token(weights: Sequence[Weight], config: TransformerConfig, heads: Sequence[str], length: int) -> float:
    """Multiplications and additions of one token's forward pass, of `length` tokens that attend to each other.

    Two for each number of a matrix, and for each layer 4 L H D of scores and weighted sums: Kaplan et al. 2020,
    section 2.1, with the output's product. An encoder-decoder's are those of a source and a target token together,
    with as many of either. What is small beside these (norms, softmax) is left out.
    """
    a_row = ("pooler/", "next_sentence/", "classify/", "embed/")  # Once a row, not a token.
    products = sum(w.uses * w.size for w in weights if w.path.endswith("kernel") and not w.path.startswith(a_row))
    tied = "lm" in heads and not any(w.path.startswith("lm/dense") for w in weights)
    products += config.vocab_size * (config.embedding_size or config.hidden_size) if tied else 0
    width = config.num_heads * config.resolved_head_dim
    seen = min(length, config.window or length)
    if config.attention == "favor":
        seen = 2 * config.num_features  # Features of queries and keys, and the two products with them.
    layers = sum(w.uses for w in weights if w.path.endswith("attention/query/kernel"))
    return 2 * products + 4 * seen * width * layers


def training_flops(model, length: int, *, targets: int = 0, predictions: int = 0) -> float:
    """Multiplications and additions that learning from one row takes: 6 N + attention for each token.

    Three times the forward pass, the backward pass being two: 6 for each number of a matrix, and 12 L H D a layer.
    These are the model's, whatever else is computed: rematerialised layers count once. A decoder that reads an
    encoder has its own number of tokens, and a head that answers at few places those alone. A frozen model's are those
    of the forward pass.

    Args:
      model: a built nn.Model.
      length: tokens of a row.
      targets: tokens of an encoder-decoder's decoder; 0 is as many.
      predictions: places whose logits are computed; 0 is all.
    """
    config = model.config
    weights = []
    for variable in model.trainable_variables or model.weights:
        path = variable.path.partition("/")[2]
        layers = config.resolved_num_decoder_layers if path.startswith("decoder/") else config.num_layers
        uses = layers if config.share_layers and "/layer_" in path else 1
        weights.append(Weight(path, tuple(variable.shape), 1, uses))
    body = [weight for weight in weights if not weight.path.startswith("lm/")]
    decoder = [weight for weight in body if weight.path.startswith("decoder/")]
    encoder = [weight for weight in body if not weight.path.startswith("decoder/")]
    count = targets or length
    head = flops_a_token(weights, config, model.head_names, length) - flops_a_token(body, config, (), length)
    total = length * flops_a_token(encoder, config, (), length) + count * flops_a_token(decoder, config, (), length)
    passes = 3 if model.trainable_variables else 1
    return passes * (total + (predictions or (count if decoder else length)) * head)


def activation_bytes(config: TransformerConfig, batch_size: int, length: int) -> float:
    """About what a training step keeps for its backward pass, in float32: Korthikanti et al. 2022, section 4.1.

    In a layer and for a token: about 12 numbers of width E, 2 of the MLP's (3 if it is gated), and 2 for each
    score where scores are kept; and the logits, twice.
    """
    scores = 2 * config.num_heads * length if config.attention == "full" else 0
    layer = 12 * config.hidden_size + (3 if config.gated_mlp else 2) * config.intermediate_size + scores
    layers = config.num_layers + config.num_decoder_layers
    return 4.0 * batch_size * length * (layers * layer + 2 * config.vocab_size)
