"""What came with a model's folder besides its weights; standard library only."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class FolderRecord:
    """The files of a Hugging Face folder that say how its model is used. Treat the mappings as read-only."""

    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # config.json
    generation_config: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # generation_config.json
    chat_templates: Mapping[str, str] = dataclasses.field(default_factory=dict)  # Name -> jinja source.

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes: config.json's id2label in the order of its ids; () where it does not name all."""
        names = self.config.get("id2label")
        if not isinstance(names, Mapping) or any(str(i) not in names for i in range(len(names))):
            return ()
        return tuple(str(names[str(i)]) for i in range(len(names)))
