"""Prints a model's layers, parameters, memory and FLOPs per token.

    python -m tfzoo.describe                              # lists all models
    python -m tfzoo.describe --model=bert_base
    python -m tfzoo.describe --model=llama3_8b --overrides=num_layers=4 --sequence_length=4096

The weights are not allocated, so that models of any size can be described. TensorFlow is not imported.
"""

import dataclasses
import sys

from absl import flags as absl_flags

from tfzoo import cli, lazy, standins
from tfzoo import config as config_lib
from tfzoo.errors import UserError, suggest

costs = lazy.module("tfzoo.models.costs")

_UNBOUNDED = ("relative", "none")  # Positions without a maximum length.


def define_flags(flags: absl_flags.FlagValues) -> None:
    def define(kind, name, default, text):
        getattr(absl_flags, f"DEFINE_{kind}")(name, default, text, flag_values=flags)

    define("string", "model", "", "Name of the model, such as bert_base; without it, all models are listed.")
    define(
        "multi_string",
        "overrides",
        [],
        "Model config fields to override, such as num_layers=4,dropout=0.0; may be repeated.",
    )
    define("list", "heads", None, "Heads of the model, such as classify; by default, those of its family.")
    define("integer", "batch_size", 8, "Rows per training step.")
    define("integer", "sequence_length", None, "Tokens per row; by default max_positions, but at most 512.")
    cli.positive(flags, "batch_size", "sequence_length")


def main(flags: absl_flags.FlagValues) -> None:
    from tfzoo import models  # Not needed for --help.

    if not flags.model:
        for family in models.FAMILIES:
            print(f"{family}: {', '.join(models.page(family).CONFIGS)}")
        return
    page, config = models.find(flags.model)
    overrides = config_lib.parse_overrides(",".join(flags.overrides), type(config))
    config = config_lib.from_mapping(dataclasses.asdict(config) | overrides, type(config))
    heads = models.default_heads(flags.model) if flags.heads is None else flags.heads
    for head in heads:
        if head not in page.Model.HEADS:
            near = suggest(head, page.Model.HEADS)
            raise UserError(
                f"--heads={head}: {flags.model} has no such head{near}; use one of {', '.join(page.Model.HEADS)}"
            )
    length = flags.sequence_length or min(512, config.max_positions)
    if config.positions not in _UNBOUNDED and length > config.max_positions:
        raise UserError(
            f"--sequence_length={length}: must not exceed the model's max_positions ({config.max_positions}); "
            f"use a shorter length, or add --overrides=max_positions={length}"
        )
    weights = costs.lay_out(page, config, heads)
    total = costs.count_parameters(weights)

    print(f"{flags.model}: {title(page)}")
    width = max(len(weight.path) for weight in weights)
    for weight in weights:
        copies = f"x {weight.copies}" if weight.copies > 1 else ""
        shape = " x ".join(f"{n:,}" for n in weight.shape)
        print(f"  {weight.path:{width}}  {shape:>16} {copies:>5}  {weight.copies * weight.size:>15,}")
    flops = costs.flops_a_token(weights, config, heads, length)
    activations = costs.activation_bytes(config, flags.batch_size, length)
    print(f"parameters        {total:,}")
    print(f"inference memory  {_bytes(4 * total)} in float32, {_bytes(2 * total)} in bfloat16, for the weights alone")
    print(
        f"training memory   {_bytes(16 * total)} for weights, gradients and AdamW's moments in float32; "
        f"about {_bytes(activations)} more for the activations of a step of {flags.batch_size} x {length:,} tokens"
    )
    print(f"FLOPs per token   {flops:.3g} forward, {3 * flops:.3g} in training, at length {length:,}")


def title(page) -> str:
    """Returns a family's title: the first paragraph of its page's docstring, on one line."""
    return " ".join(page.__doc__.partition("\n\n")[0].split())


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


if __name__ == "__main__":
    with standins.instead_of_tensorflow():
        sys.exit(cli.run(main, define_flags))
