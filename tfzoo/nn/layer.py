"""The base class of tfzoo's layers: a Keras layer that can be saved, cloned and recreated from its configuration."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import keras

from tfzoo.config import EmbeddingConfig, Projection, TransformerConfig

PACKAGE = "tfzoo"  # Prefix of the names under which Keras registers the classes.
_dataclasses: dict[str, type] = {cls.__name__: cls for cls in (EmbeddingConfig, Projection)}


class Layer(keras.layers.Layer):
    """A Keras layer whose `get_config` returns the arguments of its constructor call.

    Arguments may be anything that Keras serializes (numbers, strings, lists, layers, initializers) and the dataclasses
    of tfzoo.config. Every subclass is registered with Keras as tfzoo>NAME.
    """

    output_shape: tuple[int | None, ...]  # Set by `build` of a tower or head, for Keras's summary.
    _arguments: dict[str, Any]

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        register(cls, cls.__name__)

    def __new__(cls, *args, **kwargs):
        layer = super().__new__(cls, *args, **kwargs)
        arguments = inspect.signature(cls.__init__).bind(layer, *args, **kwargs).arguments
        arguments = {name: value for name, value in arguments.items() if name not in ("self", "kwargs")}
        # Keras's own __setattr__ would track the values and save a layer among them twice.
        object.__setattr__(layer, "_arguments", arguments)
        return layer

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {name: encode(value) for name, value in self._arguments.items()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]):
        return cls(**{name: decode(value) for name, value in config.items()})


def register(cls: type, name: str) -> None:
    """Registers a tfzoo class with Keras, so that a saved model can refer to it by name.

    Users register their own subclasses.
    """
    if cls.__module__.partition(".")[0] == PACKAGE:
        keras.saving.register_keras_serializable(PACKAGE, name)(cls)


def register_dataclass(cls: type) -> None:
    """Allows instances of a dataclass in the configuration of a layer or model, where its name identifies it."""
    _dataclasses[cls.__name__] = cls


def encode(value: Any) -> Any:
    """Returns a constructor argument in a form that JSON can represent."""
    return _fields(value) if _is_dataclass(value) else keras.saving.serialize_keras_object(value)


def decode(value: Any) -> Any:
    """Returns the value that `encode` encoded.

    Raises:
      ValueError: a dataclass of an unknown name.
    """
    if isinstance(value, Mapping) and "dataclass" in value:
        return _of_fields(value)
    return keras.saving.deserialize_keras_object(value) if isinstance(value, Mapping | list) else value


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _fields(value: Any) -> Any:
    if _is_dataclass(value):
        fields = {field.name: _fields(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"dataclass": type(value).__name__, "fields": fields}
    if isinstance(value, tuple):
        return {"tuple": [_fields(item) for item in value]}
    if isinstance(value, Mapping):
        return {"mapping": {name: _fields(item) for name, item in value.items()}}
    return [_fields(item) for item in value] if isinstance(value, list) else value


def _of_fields(value: Any) -> Any:
    if isinstance(value, list):
        return [_of_fields(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "tuple" in value:
        return tuple(_of_fields(item) for item in value["tuple"])
    if "mapping" in value:
        return {name: _of_fields(item) for name, item in value["mapping"].items()}
    classes = _dataclasses | {cls.__name__: cls for cls in _configs(TransformerConfig)}
    name = value.get("dataclass")
    if name not in classes:
        raise ValueError(f"unknown dataclass {name!r}; known are {', '.join(classes)}; import tfzoo.models first")
    return classes[name](**{name: _of_fields(item) for name, item in value["fields"].items()})


def _configs(cls: Any) -> list[type]:
    """Returns TransformerConfig and its subclasses, which the families' modules define."""
    configs = [cls]
    for subclass in cls.__subclasses__():
        configs += _configs(subclass)
    return configs
