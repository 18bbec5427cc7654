"""The model families, one module each, and functions that find and build models by name."""

import dataclasses
import importlib
from collections.abc import Sequence
from typing import Any

from tfzoo import config as config_lib
from tfzoo.errors import UserError, suggest
from tfzoo.models import record
from tfzoo.nn.layer import register_dataclass

# Family name -> the module with its CONFIGS and Model.
FAMILIES = {
    "albert": "tfzoo.models.albert",
    "bart": "tfzoo.models.bart",
    "bert": "tfzoo.models.bert",
    "distilbert": "tfzoo.models.distilbert",
    "electra": "tfzoo.models.electra",
    "gpt2": "tfzoo.models.gpt2",
    "llama": "tfzoo.models.llama",
    "palm": "tfzoo.models.palm",
    "performer": "tfzoo.models.performer",
    "reformer": "tfzoo.models.reformer",
    "roberta": "tfzoo.models.roberta",
    "t5": "tfzoo.models.t5",
    "transformer": "tfzoo.models.transformer",
    "xlnet": "tfzoo.models.xlnet",
}


def page(family: str):
    """Returns the module of a family."""
    return importlib.import_module(FAMILIES[family])


def class_of(module, model_class: type | None = None) -> type:
    """Returns the class of a family's models: the module's Model, or the subclass that a user passes.

    Raises:
      UserError: `model_class` is not a subclass of the module's Model.
    """
    if model_class is None:
        return module.Model
    if not (isinstance(model_class, type) and issubclass(model_class, module.Model)):
        raise UserError(f"model_class={model_class!r}: must be a subclass of {module.__name__}.Model")
    return model_class


def page_of(model):
    """Returns the module of a model's family."""
    return page(model.family)


def model_types() -> dict[str, str]:
    """Returns a dict from Hugging Face's model_type to the family that reads it."""
    return dict(sorted((kind, family) for family in FAMILIES for kind in page(family).MODEL_TYPES))


def find(name: str):
    """Returns the family's module and the config of a model such as "bert_small".

    Raises:
      UserError: no family has a model of that name; similar names are suggested.
    """
    for family in FAMILIES:
        module = page(family)
        if name in module.CONFIGS:
            return module, config_lib.from_mapping(module.CONFIGS[name], config_class(module))
    names = [name for family in FAMILIES for name in page(family).CONFIGS]
    raise UserError(f"--model={name}: no such model{suggest(name, names)}; python -m tfzoo.describe lists them")


def default_heads(name: str) -> tuple[str, ...]:
    """Returns the heads that a model such as "bert_small" has by default.

    Raises:
      UserError: as for `find`.
    """
    module, _ = find(name)
    return tuple(getattr(module, "DEFAULT_HEADS", {}).get(name, module.Model.DEFAULT_HEADS))


def config_class(module) -> type[config_lib.TransformerConfig]:
    """Returns the class of a family's config: the module's Config, or TransformerConfig."""
    return getattr(module, "Config", config_lib.TransformerConfig)


def build(
    name: str,
    *,
    heads: Sequence[str] | None = None,
    num_labels: int = 2,
    labels: Sequence[str] | None = None,
    pool: str | None = None,
    embed: config_lib.EmbeddingConfig | None = None,
    dtype: Any = None,
    **overrides,
):
    """Returns a model with newly initialized weights: `tfzoo.build("bert_tiny", vocab_size=8000)`.

    Args:
      name: a name in one of the families' CONFIGS.
      heads: see nn.Model; None means the model's `default_heads`.
      num_labels, labels, pool, embed: see nn.Model.
      dtype: a Keras dtype or policy, such as "mixed_bfloat16".
      **overrides: config fields that replace those of the named config.

    Raises:
      UserError: an unknown name or field, or a value out of range.
    """
    module, config = find(name)
    config = config_lib.from_mapping(dataclasses.asdict(config) | overrides, type(config))
    heads = default_heads(name) if heads is None else heads
    options = dict(num_labels=num_labels, labels=labels, pool=pool, embed=embed, dtype=dtype)
    return module.Model(config, heads=heads, **options)


# Keras can load a saved model only if the modules of its classes have been imported.
for _family in FAMILIES:
    page(_family)
for _class in (record.FolderRecord, record.SentenceRecord):
    register_dataclass(_class)
