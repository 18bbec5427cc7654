"""models.config: which versions of a model a server loads, and which of them have labels.

A model's entry is edited, and everything else in the file is kept, apart from comments.
"""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf import text_format

from tfzoo import files
from tfzoo.errors import UserError, one_line
from tfzoo.serve import messages

NAME = "models.config"


def read(path: pathlib.Path) -> Any:
    """Returns the messages.ModelServerConfig in a file, or an empty one if the file does not exist.

    Raises:
      UserError: the file cannot be read, is not a ModelServerConfig, or has no model_config_list.
    """
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}); provide a text file") from None
    config = messages.parse_text(text, messages.ModelServerConfig, str(path))
    if config.WhichOneof("config") == "custom_model_config":
        raise UserError(f"{path}: contains custom_model_config; only a model_config_list can be edited")
    return config


def loaded(path: pathlib.Path, name: str) -> set[int]:
    """Returns the versions that a file lists for a model."""
    models = read(path).model_config_list.config
    return {v for model in models if model.name == name for v in model.model_version_policy.specific.versions}


def edit(
    path: pathlib.Path, name: str, platform: str, base_path: str, current: Mapping[str, int], others: Iterable[int] = ()
) -> None:
    """Writes the entry of a model, which loads the version of each label and `others`; the label "" stands for requests
    without one.

    Raises:
      UserError: as in `read`, or the file cannot be written.
    """
    config = read(path)
    models = config.model_config_list.config
    model = next((model for model in models if model.name == name), None) or models.add(name=name)
    model.base_path, model.model_platform = base_path, platform
    model.model_version_policy.specific.versions[:] = sorted({*current.values(), *others})
    model.version_labels.clear()
    model.version_labels.update({label: version for label, version in current.items() if label})
    files.atomic_write(path, text_format.MessageToString(config, descriptor_pool=messages.POOL))
