"""The inputs and answers of text signatures, with a module for each head.

Each module computes the answers twice: in TensorFlow's stock ops, and row by row in Python for golden.npz.
"""

from typing import Any

import keras

from tfzoo.errors import UserError
from tfzoo.export.answers.base import Answer, Options
from tfzoo.export.answers.continuations import Continuations, new_tokens_of, search_of
from tfzoo.export.answers.embeddings import Embeddings
from tfzoo.export.answers.entities import Entities
from tfzoo.export.answers.labels import Labels
from tfzoo.export.answers.next_sentence import NextSentence
from tfzoo.export.answers.relations import Relations
from tfzoo.export.answers.spans import Spans
from tfzoo.export.answers.words import Words

# The first of these heads that a model has determines its text signature.
HEADS: dict[str, type[Answer]] = {
    "classify": Labels,
    "tag": Entities,
    "span": Spans,
    "lm": Words,
    "next_sentence": NextSentence,
    "embed": Embeddings,
    "relation": Relations,
}


def check(model: keras.Model, tokenizer: Any, options: Options) -> None:
    """Checks that a model, its tokenizer and the options fit together.

    Raises:
      UserError: the tokenizer has more tokens than the model, or sequence_length is out of range.
    """
    config = model.config
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model's vocab_size is only "
            f"{config.vocab_size}; use the tokenizer that it was trained with"
        )
    length, bounded = options.sequence_length, config.positions in ("learned", "sinusoidal", "sinusoidal_concat")
    if length < 1 or (bounded and length > config.max_positions):
        most = f"from 1 to {config.max_positions}" if bounded else "at least 1"
        raise UserError(f"--sequence_length={length}: must be {most}")


def find(model: keras.Model, tokenizer: Any, options: Options) -> Answer | None:
    """Returns the Answer of a model's text signature; None if the model reads only ids."""
    for head, kind in HEADS.items():
        if head in model.heads and not (head == "lm" and _generates(model)) and (head != "relation" or model.markers):
            return kind(model, tokenizer, options)
    if model.can_generate:
        return Continuations(model, tokenizer, options)
    return Embeddings(model, tokenizer, options) if not model.heads and not model.is_encoder_decoder else None


def _generates(model: keras.Model) -> bool:
    return model.is_encoder_decoder or model.is_causal


__all__ = ["HEADS", "Answer", "Options", "check", "find", "new_tokens_of", "search_of"]
