"""What a model's folder contains in addition to its weights; uses only the standard library."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfzoo.errors import UserError


@dataclasses.dataclass(frozen=True)
class SentenceRecord:
    """How texts become the inputs of a sentence-transformers model. Treat the mappings as read-only."""

    max_length: int | None = None  # Maximum number of tokens, special ones included; None: the model's.
    lowercase: bool = False
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)  # Name -> text that is prepended to inputs.
    default_prompt_name: str | None = None  # Name of the prompt that is used by default.
    similarity: str | None = None  # Similarity of vectors: cosine, dot, euclidean or manhattan.
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # config_sentence_transformers.json

    def prompt(self, name: str | None = None) -> str:
        """Returns the prompt of a name, or the default prompt.

        Raises:
          UserError: the model has no prompt of that name.
        """
        name = self.default_prompt_name if name is None else name
        prompts = {"query": "", "document": ""} | dict(self.prompts)  # Every model has these two.
        if name is not None and name not in prompts:
            raise UserError(f"prompt_name {name!r}: the model has no such prompt; it has {', '.join(prompts)}")
        return "" if name is None else prompts[name]


@dataclasses.dataclass(frozen=True)
class FolderRecord:
    """The files of a Hugging Face or sentence-transformers folder that specify how its model is used.

    Treat the mappings as read-only.
    """

    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # config.json
    generation_config: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # generation_config.json
    chat_templates: Mapping[str, str] = dataclasses.field(default_factory=dict)  # Name -> jinja source.
    sentence: SentenceRecord | None = None  # Only for sentence-transformers folders.

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names: config.json's id2label in the order of its ids, or () if it does not name all classes."""
        names = self.config.get("id2label")
        if not isinstance(names, Mapping) or any(str(i) not in names for i in range(len(names))):
            return ()
        return tuple(str(names[str(i)]) for i in range(len(names)))
