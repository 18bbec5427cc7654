"""What a model is made of and what it costs, found without giving it memory.

python -m tfzoo.describe                              lists all models
python -m tfzoo.describe --model=bert_base            layers, parameters, memory, FLOPs a token
python -m tfzoo.describe --model=llama3_8b --overrides=num_layers=4 --sequence_length=4096
"""

import dataclasses
import math
import re
import sys
from collections.abc import Sequence

from absl import flags as absl_flags

from tfzoo import cli
from tfzoo import config as config_lib
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
    a_row = ("pooler/", "next_sentence/", "classify/")  # Once a row, not a token.
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
    encoder has its own number of tokens, and a head that answers at few places those alone.

    Args:
      model: a built nn.Model.
      length: tokens of a row.
      targets: tokens of an encoder-decoder's decoder; 0 is as many.
      predictions: places whose logits are computed; 0 is all.
    """
    config = model.config
    weights = []
    for variable in model.trainable_variables:
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
    return 3 * (total + (predictions or (count if decoder else length)) * head)


def activation_bytes(config: TransformerConfig, batch_size: int, length: int) -> float:
    """About what a training step keeps for its backward pass, in float32: Korthikanti et al. 2022, section 4.1.

    In a layer and for a token: about 12 numbers of width E, 2 of the MLP's (3 if it is gated), and 2 for each
    score where scores are kept; and the logits, twice.
    """
    scores = 2 * config.num_heads * length if config.attention == "full" else 0
    layer = 12 * config.hidden_size + (3 if config.gated_mlp else 2) * config.intermediate_size + scores
    layers = config.num_layers + config.num_decoder_layers
    return 4.0 * batch_size * length * (layers * layer + 2 * config.vocab_size)


def define_flags(flags: absl_flags.FlagValues) -> None:
    def define(kind, name, default, text):
        getattr(absl_flags, f"DEFINE_{kind}")(name, default, text, flag_values=flags)

    define("string", "model", "", "A model's name, such as bert_base; none lists them all.")
    define("multi_string", "overrides", [], "Fields of its config that differ, num_layers=4,dropout=0.0; they add up.")
    define("list", "heads", None, "Its heads, such as classify; the family's by default.")
    define("integer", "batch_size", 8, "Rows of a training step.")
    define("integer", "sequence_length", 0, "Tokens in a row; max_positions, at most 512, by default.")
    cli.positive(flags, "batch_size")


def main(flags: absl_flags.FlagValues) -> None:
    from tfzoo import models  # TensorFlow takes seconds to import, and --help needs none of it.

    if not flags.model:
        for family in models.FAMILIES:
            print(f"{family}: {', '.join(models.page(family).CONFIGS)}")
        return
    page, config = models.find(flags.model)
    overrides = config_lib.parse_overrides(",".join(flags.overrides), type(config))
    config = config_lib.from_mapping(dataclasses.asdict(config) | overrides, type(config))
    heads = page.Model.DEFAULT_HEADS if flags.heads is None else flags.heads
    length = flags.sequence_length or min(512, config.max_positions)
    weights = lay_out(page, config, heads)
    total = count_parameters(weights)

    print(f"{flags.model}: {page.__doc__.splitlines()[0]}")
    width = max(len(weight.path) for weight in weights)
    for weight in weights:
        copies = f"x {weight.copies}" if weight.copies > 1 else ""
        shape = " x ".join(f"{n:,}" for n in weight.shape)
        print(f"  {weight.path:{width}}  {shape:>16} {copies:>5}  {weight.copies * weight.size:>15,}")
    flops = flops_a_token(weights, config, heads, length)
    activations = activation_bytes(config, flags.batch_size, length)
    print(f"parameters        {total:,}")
    print(f"memory to serve   {_bytes(4 * total)} in float32, {_bytes(2 * total)} in bfloat16: the weights")
    print(
        f"memory to train   {_bytes(16 * total)} for weights, gradients and AdamW's moments in float32; "
        f"about {_bytes(activations)} more for a step of {flags.batch_size} x {length:,} tokens"
    )
    print(f"FLOPs a token     {flops:.3g} forward, {3 * flops:.3g} in training, at length {length:,}")


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags))
