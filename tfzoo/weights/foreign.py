"""Models in other libraries' files: google_checkpoints and keras_presets open them, and `load` makes them tfzoo models.

Each has tables like the WEIGHTS of the families' pages, read by the same interpreter (tfzoo.weights.table). Only the
Naming differs: both store kernels as tfzoo does, [I, O]; Keras numbers layers by class and splits heads, [I, H, D].
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tfzoo import config as config_lib
from tfzoo import models, nn
from tfzoo.errors import UserError
from tfzoo.models.record import FolderRecord
from tfzoo.weights import huggingface, table
from tfzoo.weights.tensors import Tensors

ABSENT = "absent: "  # Prefix of the names of variables that these files lack and that are zero in such models.


@dataclasses.dataclass(frozen=True)
class Source:
    """A model in another library's files, in tfzoo's terms. `file` is open: use it as a context manager."""

    kind: str
    where: pathlib.Path
    family: str
    model_type: str  # Hugging Face's.
    config: config_lib.TransformerConfig
    heads: tuple[str, ...]
    num_labels: int
    file: Tensors
    WEIGHTS: Mapping[str, Any]
    naming: table.Naming
    adapt: Callable[[table.Slot, config_lib.TransformerConfig], table.Slot]
    used: frozenset[str]  # Names of the files that were read, except the tokenizer's.
    backbone: str = ""  # KerasHub's class.
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # Further fields of Hugging Face's config.json.


def load(source: Source):
    """Returns the model, and the names of the tensors that it does not use.

    Such tensors are, for example, those of the generator next to a discriminator.

    Raises:
      UserError: file and config do not match, before memory is allocated for weights; or a tensor is damaged.
    """
    page, config = models.page(source.family), source.config
    depth = 1 if config.share_layers else config.num_layers + config.num_decoder_layers
    if depth > len(source.file):
        raise UserError(
            f"{source.where}: num_layers ({depth:,}) exceeds the number of tensors in the files "
            f"({len(source.file):,}); config and weights must belong to the same model"
        )
    arguments = dict(heads=source.heads, num_labels=source.num_labels)
    with nn.shapes_only():
        skeleton = page.Model(config, **arguments)
        slots, _ = _slots(source, skeleton)
        account = table.account(slots, source.file, source, source.where, naming=source.naming)
    with nn.unset_weights():
        model = page.Model(config, **arguments)
    slots, absent = _slots(source, model)
    table.load(slots, source.file, account)
    for variable in absent:
        variable.assign(tf.zeros(variable.shape))
    record = huggingface.encode_config(model, page) | {"model_type": source.model_type}
    model.record = FolderRecord({**record, **source.record})
    return model, account.not_used


def _slots(source, model):
    slots = table.slots(source.WEIGHTS, model, source.naming)
    absent = [variable for slot in slots if slot.name.startswith(ABSENT) for variable in slot.variables]
    return [source.adapt(slot, model.config) for slot in slots if not slot.name.startswith(ABSENT)], absent
