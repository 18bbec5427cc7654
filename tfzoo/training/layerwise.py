"""Layers that are trained differently: layer-wise decay of the learning rate, and frozen layers.

The layer of a variable follows from its path within the model:

    encoder/stack/layer_3/...   block 3 of a tower, which is encoder or decoder
    encoder/stack/norm/...      the norm after the last block
    encoder/...                 embeddings, including what all blocks share: T5's relative positions, XLNet's initial
                                query state
    classify/...                a head, or the pooler

With --layer_decay=d, a variable has the learning rate of the optimizer times d ** (number of layers above it), where
the layers are the embeddings, the blocks and the head (Clark et al. 2020, https://arxiv.org/abs/2003.10555, appendix B;
Howard and Ruder 2018, https://arxiv.org/abs/1801.06146, section 3.2). In a tower of L blocks:

    heads, pooler, final norm   1
    block i (0 is the lowest)   d ** (L - i)
    embeddings                  d ** (L + 1)

The towers of an encoder-decoder are counted separately, each from its own top. Token embeddings that both share belong
to the encoder. ALBERT's blocks share one set of weights, which counts as one block. Frozen blocks are counted too.

This module does not import TensorFlow.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tfzoo.errors import UserError, suggest

EMBEDDINGS, ABOVE = -1, None  # In place of a block's number.
TOWERS = ("encoder", "decoder")
_BLOCK = re.compile(r"stack/layer_(\d+)/")
_PARTS = ("embeddings", "layers:N")


@dataclasses.dataclass(frozen=True)
class Frozen:
    """What --freeze freezes: the embeddings of each tower, and its first `blocks` blocks."""

    embeddings: bool = False
    blocks: int = 0

    def __contains__(self, place: int | None) -> bool:
        if place is ABOVE:
            return False
        return self.embeddings if place == EMBEDDINGS else place < self.blocks


def parse(text: str) -> Frozen:
    """Returns what a value of --freeze freezes, such as "embeddings,layers:6".

    Raises:
      UserError: a part is neither embeddings nor layers:N, or appears twice.
    """
    found: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, colon, count = part.strip().partition(":")
        valid = name == "embeddings" and not colon
        valid |= name == "layers" and count.isdecimal() and int(count) > 0
        if not valid:
            near = suggest(part.strip(), ("embeddings", "layers"))
            raise UserError(
                f"--freeze={text}: {part.strip()} is not one of {', '.join(_PARTS)}, such as layers:6{near}"
            )
        if name in found:
            raise UserError(f"--freeze={text}: contains {name} twice; omit one of them")
        found[name] = int(count or 0)
    return Frozen("embeddings" in found, found.get("layers", 0))


def check(text: str, model_class: type, config: Any) -> None:
    """Raises UserError if --freeze names more blocks than a tower of a model with this class and config has."""
    counts = {"model": config.num_layers}
    if getattr(model_class, "is_encoder_decoder", False):
        counts = {"encoder": config.num_layers, "decoder": config.resolved_num_decoder_layers}
    if config.share_layers:
        counts = dict.fromkeys(counts, 1)
    tower, count = min(counts.items(), key=lambda pair: pair[1])
    if parse(text).blocks > count:
        shared = ", whose weights all layers share" if config.share_layers else ""
        noun = "block" if count == 1 else "blocks"
        raise UserError(f"--freeze={text}: the {tower} has {count} {noun}{shared}; use at most layers:{count}")


def place(variable) -> tuple[str, int | None]:
    """Returns (tower, number of the block) of a variable; instead of the number, EMBEDDINGS, or ABOVE for what is above
    the blocks."""
    tower, _, path = variable.path.partition("/")[2].partition("/")
    if tower not in TOWERS or path.startswith("stack/norm/"):
        return tower, ABOVE
    block = _BLOCK.match(path)
    return tower, int(block[1]) if block else EMBEDDINGS


def freeze(models: Mapping[str, Any], text: str) -> None:
    """Makes the variables that --freeze names untrainable, in models by role, before an optimizer is created."""
    frozen = parse(text)
    for model in models.values():
        for variable in model.trainable_variables:
            if place(variable)[1] in frozen:
                variable.trainable = False


def rate_factors(models: Mapping[str, Any], variables: Sequence[Any], decay: float) -> list[float]:
    """Returns the factor on the learning rate of each of `variables` with --layer_decay=`decay`.

    Args:
      models: the models by role. A variable that several models share has the factor of the first one.
      variables: variables of these models.
      decay: the factor from one layer to the next lower one.
    """
    factors: dict[int, float] = {}
    for model in models.values():
        places = [place(variable) for variable in model.variables]
        num_blocks: dict[str, int] = {}
        for tower, number in places:
            if number is not ABOVE:
                num_blocks[tower] = max(num_blocks.get(tower, 0), number + 1)
        for variable, (tower, number) in zip(model.variables, places, strict=True):
            layers_above = 0 if number is ABOVE else num_blocks[tower] - number
            factors.setdefault(id(variable), float(decay) ** layers_above)
    return [factors[id(variable)] for variable in variables]
