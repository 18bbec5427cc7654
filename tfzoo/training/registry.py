"""The lists of objectives and tasks that a model can be trained on.

Their modules are imported on demand, and do not import TensorFlow.
"""

import importlib
import types
from collections.abc import Collection, Iterator
from typing import Any

from absl import flags as absl_flags

from tfzoo import options
from tfzoo.objectives.objective import Objective

# --objective -> module:class
OBJECTIVES = {
    "masked_lm": "tfzoo.objectives.masked_lm:MaskedLM",
    "causal": "tfzoo.objectives.causal:Causal",
    "replaced_token": "tfzoo.objectives.replaced_token:ReplacedToken",
    "span_corruption": "tfzoo.objectives.span_corruption:SpanCorruption",
    "permutation": "tfzoo.objectives.permutation:Permutation",
    "denoise": "tfzoo.objectives.denoise:Denoise",
    "seq2seq": "tfzoo.objectives.seq2seq:Seq2Seq",
    "prefix_lm": "tfzoo.objectives.prefix_lm:PrefixLM",
    "fill_in_the_middle": "tfzoo.objectives.fill_in_the_middle:FillInTheMiddle",
    "ul2": "tfzoo.objectives.ul2:UL2",
}

# --task -> module:class
TASKS = {
    "classify": "tfzoo.tasks.classify:Classify",
    "tag": "tfzoo.tasks.tag:Tag",
    "relation": "tfzoo.tasks.relation:Relation",
    "similarity": "tfzoo.tasks.similarity:Similarity",
    "embed": "tfzoo.tasks.embed:Embed",
    "respond": "tfzoo.tasks.respond:Respond",
    "rerank": "tfzoo.tasks.rerank:Rerank",
    "text_to_text": "tfzoo.tasks.text_to_text:TextToText",
    "translate": "tfzoo.tasks.translate:Translate",
    "summarise": "tfzoo.tasks.summarise:Summarise",
    "mixture": "tfzoo.tasks.mixture:Mixture",
    "extract": "tfzoo.tasks.extract:Extract",
    "chat": "tfzoo.tasks.chat:Chat",
    "choice": "tfzoo.tasks.choice:Choice",
    "answer": "tfzoo.tasks.answer:Answer",
    "preferences": "tfzoo.tasks.preferences:Preferences",
}


def find(name: str) -> type[Objective]:
    """Returns the class of an objective or task."""
    module, _, cls = (OBJECTIVES | TASKS)[name].partition(":")
    return getattr(importlib.import_module(module), cls)


def every() -> Iterator[tuple[str, type[Objective]]]:
    """Yields (name, class) of every objective and task."""
    return ((name, find(name)) for name in OBJECTIVES | TASKS)


def define_flags(flags: absl_flags.FlagValues, names: Collection[str] | None = None) -> None:
    """Defines a flag for each option of any objective or task; its help text starts with the names of these.

    Args:
      flags: where the flags are defined.
      names: names of the options; None means all.

    Raises:
      ValueError: two of them declare the same option differently.
    """
    readers: dict[str, list[str]] = {}
    declared: dict = {}
    for name, cls in every():
        for field in options.fields(cls.Options):
            readers.setdefault(field.name, []).append(name)
            first = declared.setdefault(field.name, field)
            if (first.type, first.default, first.metadata) != (field.type, field.default, field.metadata):
                raise ValueError(f"--{field.name}: {readers[field.name]} declare it differently; share the declaration")
    for field in declared.values() if names is None else [declared[name] for name in names]:
        options.define_flag(flags, field, prefix=f"{', '.join(readers[field.name])}: ")


def make(
    name: str, objective_options: Any, tokenizer, sequence_length: int, page: types.ModuleType | None = None
) -> Objective:
    """Creates an objective with its options, in its form for the models of a family's module if that is given."""
    cls = find(name) if page is None else find(name).form_for(page)
    return cls(tokenizer, sequence_length, **vars(objective_options))
