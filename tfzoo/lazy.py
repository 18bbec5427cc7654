"""Modules that are imported when first used.

TensorFlow takes ten seconds to import. With `tf = lazy.module("tensorflow")` in place of `import tensorflow as tf` a
page's options can be read, and wrong flags be reported, without it.
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
    """A stand-in for the module `name`, which is imported when an attribute is first read."""
    return _Module(name)
