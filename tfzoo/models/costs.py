"""A model's parameters, FLOPs and memory, computed without allocating its weights."""

import dataclasses
import math
import re
from collections.abc import Sequence

from tfzoo.config import TransformerConfig
from tfzoo.errors import UserError


@dataclasses.dataclass(frozen=True)
class Weight:
    """A variable, and the number of layers that have one like it."""

    path: str  # Without the model's name; {} replaces a layer's index.
    shape: tuple[int, ...]
    copies: int  # Number of copies in memory.
    uses: int  # Number of uses in one pass, which exceeds `copies` if layers share weights.

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def lay_out(page, config: TransformerConfig, heads: Sequence[str] | None = None) -> list[Weight]:
    """Returns a family's trainable variables, with those of equal layers merged, for a model of any size.

    Args:
      page: the family's module.
      config: the sizes.
      heads: as for page.Model.
    """
    from tfzoo import nn

    decoder_layers = config.resolved_num_decoder_layers
    try:
        small = dataclasses.replace(config, num_layers=2, num_decoder_layers=2 if config.num_decoder_layers else 0)
    except UserError:  # The config lists its layers individually, because they differ: lay out the full model.
        small = config
    with nn.shapes_only():
        variables = page.Model(small, heads=heads).trainable_variables
    counts_by_kind: dict[tuple, list[int]] = {}
    for variable in variables:
        path, copies, uses = variable.path.partition("/")[2], 1, 1
        layers = decoder_layers if path.startswith("decoder/") else config.num_layers
        if small is not config and "/layer_1/" in path:  # This layer represents all layers but the first.
            copies = uses = layers - 1
        elif config.share_layers and "/layer_" in path:
            uses = layers
        sums = counts_by_kind.setdefault((re.sub(r"/layer_\d+/", "/layer_{}/", path), tuple(variable.shape)), [0, 0])
        sums[0] += copies
        sums[1] += uses
    return [Weight(path, shape, *counts) for (path, shape), counts in counts_by_kind.items()]


def count_parameters(weights: Sequence[Weight]) -> int:
    """Returns the number of trainable parameters of a model with these weights."""
    return sum(weight.copies * weight.size for weight in weights)


def flops_a_token(weights: Sequence[Weight], config: TransformerConfig, heads: Sequence[str], length: int) -> float:
    """Returns the FLOPs of one token's forward pass in a sequence of `length` tokens that attend to each other.

    FLOPs are multiplications and additions: two for each parameter of a matrix, and 4 L H D per layer for scores and
    weighted sums (Kaplan et al. 2020, section 2.1, plus the logits). For an encoder-decoder this is the
    sum for one source and one target token, with `length` tokens on both sides. Small terms (norms, softmax) are
    omitted.
    """
    per_row = ("pooler/", "next_sentence/", "classify/", "embed/")  # Computed once per row, not per token.
    products = sum(w.uses * w.size for w in weights if w.path.endswith("kernel") and not w.path.startswith(per_row))
    tied = "lm" in heads and not any(w.path.startswith("lm/dense") for w in weights)
    products += config.vocab_size * (config.embedding_size or config.hidden_size) if tied else 0
    width = config.num_heads * config.resolved_head_dim
    seen = min(length, config.window or length)
    if config.attention == "favor":
        seen = 2 * config.num_features  # Features of queries and keys, and the two products with them.
    layers = sum(w.uses for w in weights if w.path.endswith("attention/query/kernel"))
    return 2 * products + 4 * seen * width * layers


def training_flops(model, length: int, *, targets: int = 0, predictions: int = 0) -> float:
    """Returns the FLOPs (multiplications and additions) of a training step per row: 6 N + attention for each token.

    The backward pass costs two forward passes: 6 FLOPs for each parameter of a matrix, and 12 L H D per layer. These
    are the model's FLOPs whatever else is computed: recomputed layers count once. A decoder that attends to an encoder
    has its own number of tokens, and a head whose logits are computed at few positions counts those only. For a frozen
    model the result is the FLOPs of the forward pass.

    Args:
      model: a built nn.Model.
      length: tokens per row.
      targets: tokens per row of an encoder-decoder's decoder; 0 means as many as `length`.
      predictions: positions whose logits are computed; 0 means all.
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
    """Returns the approximate size in bytes of what a float32 training step keeps for its backward pass.

    Per layer and token (Korthikanti et al. 2022, section 4.1): about 12 numbers for each of the E hidden units, 2
    (gated: 3) for each MLP unit, and 2 for each score where scores are kept. The logits are counted twice.
    """
    scores = 2 * config.num_heads * length if config.attention == "full" else 0
    layer = 12 * config.hidden_size + (3 if config.gated_mlp else 2) * config.intermediate_size + scores
    layers = config.num_layers + config.num_decoder_layers
    return 4.0 * batch_size * length * (layers * layer + 2 * config.vocab_size)
