"""Which models and versions a ModelServerConfig asks for."""

import os
import pathlib
from typing import Any

from tfzoo.serve import messages
from tfzoo.serve.errors import StatusError, invalid

PLATFORMS = ("tensorflow", "onnx")


def single(name: str, base_path: str) -> Any:
    """Returns the configuration of one model with the default version policy."""
    config = messages.ModelServerConfig()
    config.model_config_list.config.add(name=name, base_path=base_path, model_platform=PLATFORMS[0])
    return config


def models(config: Any) -> dict[str, Any]:
    """Returns the ModelConfig of each model by its name.

    Raises:
      StatusError: the configuration is not one of models, or a model is listed twice, has a relative path or a platform
        that is not supported.
    """
    if config.WhichOneof("config") != "model_config_list":
        raise invalid(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently "
            "supported"
        )
    result: dict[str, Any] = {}
    for model in config.model_config_list.config:
        if model.name in result:
            raise invalid(f"Illegal to list model {model.name} multiple times in config list")
        if not model.name:
            raise invalid("A model in the config list has no name")
        if not os.path.isabs(model.base_path) or "\0" in model.base_path:
            raise invalid(
                f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}"
            )
        if platform_of(model) not in PLATFORMS:
            raise invalid(f"Model {model.name} requests unsupported platform {model.model_platform}")
        result[model.name] = model
    return result


def platform_of(model: Any) -> str:
    """Returns the platform of a ModelConfig.

    Raises:
      StatusError: it has none.
    """
    if model.model_type and model.model_platform:
        raise invalid(
            "Illegal setting both ModelServerConfig::model_type (deprecated) and ModelServerConfig::model_platform, "
            f"model name is {model.name}"
        )
    platform = "tensorflow" if model.model_type == 1 else model.model_platform
    if not platform:
        raise invalid(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            f"ModelServerConfig::model_platform, model name is {model.name}"
        )
    return platform


def check_platforms(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raises a StatusError if a model has another platform than before."""
    for name in old.keys() & new.keys():
        before, after = platform_of(old[name]), platform_of(new[name])
        if before != after:
            raise invalid(
                f"Illegal to change a model's platform. For model {name} platform was {before} and new platform "
                f"requested is {after}"
            )


def versions(model: Any) -> dict[int, pathlib.Path]:
    """Returns the folders of the versions to serve, by version number.

    Raises:
      OSError: the base path cannot be read.
    """
    numbered = {}
    with os.scandir(model.base_path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.isascii() and entry.name.isdigit() and entry.is_dir() and int(entry.name) < 2**63:
                numbered[int(entry.name)] = pathlib.Path(entry.path)
    policy = model.model_version_policy
    kind = policy.WhichOneof("policy_choice")
    if kind == "all":
        return numbered
    if kind == "specific":
        return {number: numbered[number] for number in policy.specific.versions if number in numbered}
    newest = sorted(numbered)[-max(1, policy.latest.num_versions) :]
    return {number: numbered[number] for number in newest}


def no_versions(model: Any) -> str:
    """Returns the warning for a model of which no version is found."""
    base = pathlib.Path(model.base_path)
    message = f"No versions of servable {model.name} found under base path {base}"
    if any((base / file).exists() for file in ("saved_model.pb", "saved_model.pbtxt", "model.onnx")):
        is_version = base.name.isascii() and base.name.isdigit()
        return f"{message}: it is a version itself; " + (
            f"specify its parent {base.parent}" if is_version else f"move it to {base}/1"
        )
    if model.model_version_policy.WhichOneof("policy_choice") == "specific":
        wanted = ", ".join(str(number) for number in model.model_version_policy.specific.versions)
        return f"{message}: of the specified versions {wanted}, it contains none"
    return f"{message}: a version is a folder whose name is a number, with a SavedModel or an ONNX artifact"


def unavailable_label(name: str, version: int) -> StatusError:
    """Returns the error for a label of a version that is not available."""
    return StatusError(
        "FAILED_PRECONDITION",
        f"Request to assign label to version {version} of model {name}, which is not currently available for inference",
    )
