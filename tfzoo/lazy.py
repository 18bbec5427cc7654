"""Modules that are imported on first use.

Importing TensorFlow takes ten seconds. With `tf = lazy.module("tensorflow")` instead of `import tensorflow as tf`, the
options of a module can be read, and wrong flags reported, without importing it.
"""

import importlib
from typing import Any


class _Module:
    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)

    def __repr__(self) -> str:
        return f"<lazy module {self._name!r}>"


def module(name: str) -> Any:
    """Returns a proxy of the module `name`, which is imported when an attribute is first read."""
    return _Module(name)
