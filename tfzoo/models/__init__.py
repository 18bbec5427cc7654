"""The families, one page each, and the way from a name to a model."""

import dataclasses
import importlib
from typing import Any

from tfzoo import config as config_lib
from tfzoo.errors import UserError, suggest

# name -> the module with its CONFIGS and Model. Imported when asked for: listing families costs nothing.
FAMILIES = {"bert": "tfzoo.models.bert"}


def find(name: str):
    """The family's module and the config of a model such as "bert_small".

    Raises:
      UserError: no family has a model of that name; close ones are listed.
    """
    for family, module in FAMILIES.items():
        if name == family or name.startswith(family + "_"):
            page = importlib.import_module(module)
            if name in page.CONFIGS:
                return page, config_lib.from_mapping(page.CONFIGS[name])
            raise UserError(
                f"--model={name}: no such size{suggest(name, page.CONFIGS)}; {family} has {', '.join(page.CONFIGS)}"
            )
    raise UserError(f"--model={name}: no such family; the families are {', '.join(FAMILIES)}")


def build(name: str, *, dtype: Any = None, **overrides):
    """A model with fresh weights: `tfzoo.build("bert_tiny", vocab_size=8000)`.

    Args:
      name: a name in one of the families' CONFIGS.
      dtype: a Keras dtype or policy, such as "mixed_bfloat16".
      **overrides: fields of TransformerConfig that differ from the named config.

    Raises:
      UserError: an unknown name or field, or a value out of bounds.
    """
    page, config = find(name)
    return page.Model(config_lib.from_mapping(dataclasses.asdict(config) | overrides), dtype=dtype)
