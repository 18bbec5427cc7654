"""Stand-ins for TensorFlow and Keras: the families can be imported and their models created without the libraries.

Importing the libraries takes seconds. A model of stand-ins has variables with paths and shapes, and computes nothing.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from typing import Any


class _Anything:
    """Stands for everything in the libraries but layers: it can be read, called, entered and inherited, which has no
    effect."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *args, **kwargs) -> Any:
        return self

    def __mro_entries__(self, bases) -> tuple[type, ...]:
        return ()

    def __iter__(self) -> Iterator:
        return iter(())

    def __bool__(self) -> bool:
        return False

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception) -> None:
        pass


@dataclasses.dataclass(frozen=True)
class _Variable:
    path: str
    shape: tuple[int, ...]


class _Layer:
    """Stands for keras.layers.Layer and keras.Model. Its variables are those that `build` adds, then those of its
    layers: its attributes and the items of lists and dicts among them."""

    built = False
    dtype_policy = variable_dtype = None
    _shapes: dict[str, tuple[int, ...]]

    def __new__(cls, *args, **kwargs):
        layer = super().__new__(cls)
        layer._shapes = {}
        return layer

    def __init__(self, *, dtype: Any = None, name: str | None = None):
        self.name = name

    def add_weight(self, *, shape, name: str, trainable: bool = True, **kwargs) -> None:
        if trainable:
            self._shapes[name] = tuple(shape)

    @property
    def trainable_variables(self) -> list[_Variable]:
        return list(self._variables("", set()))

    def _variables(self, parent: str, seen: set["_Layer"]) -> Iterator[_Variable]:
        seen.add(self)
        for name, shape in self._shapes.items():
            yield _Variable(f"{parent}{self.name}/{name}", shape)
        for value in vars(self).values():
            values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
            for layer in values:
                if isinstance(layer, _Layer) and layer not in seen:
                    yield from layer._variables(f"{parent}{self.name}/", seen)


class _Dense(_Layer):
    def __init__(self, units: int, activation=None, use_bias: bool = True, kernel_initializer=None, **kwargs):
        super().__init__(**kwargs)
        self.units, self.use_bias = units, use_bias

    def build(self, input_shape) -> None:
        self.add_weight(shape=(input_shape[-1], self.units), name="kernel")
        if self.use_bias:
            self.add_weight(shape=(self.units,), name="bias")


@contextlib.contextmanager
def instead_of_tensorflow() -> Iterator[None]:
    """Within the context, importing TensorFlow or Keras imports the stand-ins.

    It is for a process that uses neither library, also later: modules imported in the context keep the stand-ins.
    """
    keras: Any = _Anything()
    keras.Model, keras.layers = _Layer, _Anything()
    keras.layers.Layer, keras.layers.Dense = _Layer, _Dense
    modules: dict[str, Any] = {"tensorflow": _Anything(), "keras": keras, "keras.src.backend.common": _Anything()}
    sys.modules |= modules
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
