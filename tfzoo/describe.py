"""What a model is made of, found without giving it memory."""

import dataclasses
import math
from collections.abc import Sequence

import tensorflow as tf

from tfzoo import nn
from tfzoo.config import TransformerConfig
from tfzoo.errors import UserError


def count_parameters(page, config: TransformerConfig, heads: Sequence[str] | None = None) -> int:
    """How many trainable numbers a family's model has, of whatever size.

    Args:
      page: the family's module.
      config: its sizes.
      heads: as for page.Model.
    """
    decoder_layers = config.num_decoder_layers or config.num_layers
    try:
        small = dataclasses.replace(config, num_layers=2, num_decoder_layers=2 if config.num_decoder_layers else 0)
    except UserError:  # It names its layers one by one, for they differ: the whole is laid out.
        small = config
    # Variables of a graph have shapes and no memory.
    with tf.Graph().as_default(), nn.zero_initializers():
        variables = page.Model(small, heads=heads).trainable_variables
    total = 0
    for variable in variables:
        copies = 1
        if small is not config and "/layer_1/" in variable.path:  # It stands for all layers but the first.
            copies = (decoder_layers if "/decoder/" in variable.path else config.num_layers) - 1
        total += copies * math.prod(variable.shape)
    return total
