"""Texts to vectors, as sentence-transformers' `encode` gives them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfzoo import nn
from tfzoo.errors import UserError
from tfzoo.models.record import SentenceRecord
from tfzoo.text import framing
from tfzoo.text.framing import TEXT
from tfzoo.text.reader import Reader, Wording


def embed_texts(
    model,
    texts: str | Sequence[str],
    tokenizer,
    *,
    prompt_name: str | None = None,
    prompt: str | None = None,
    batch_size: int = 32,
) -> np.ndarray:
    """The vectors of texts.

    Args:
      model, tokenizer: as of tfzoo.load, with a head "embed": of a sentence-transformers folder, or of any other folder
        of an encoder or a decoder with heads=("embed",), which takes the mean of the tokens' states.
      texts: one text or several. What is longer than the model reads is cut.
      prompt_name: which of the model's prompts is written before each; None takes its default one, if it has any.
      prompt: one of the caller's own.
      batch_size: texts that are computed at once. It changes no vector by more than rounding.

    Returns:
      float32 [N, D], in the order of the texts.

    Raises:
      UserError: the model has no such head, no tokenizer or no such prompt.
    """
    several = [texts] if isinstance(texts, str) else list(texts)
    reader = reader_of(model, tokenizer, prompt_name=prompt_name, prompt=prompt)
    vectors = np.zeros((len(several), model.heads["embed"].size), np.float32)
    order = sorted(range(len(several)), key=lambda i: -len(several[i]))  # Texts of like length need little padding.
    for first in range(0, len(order), batch_size):
        some = order[first : first + batch_size]
        vectors[some] = _compiled(model)(reader.read({TEXT: tf.constant([several[i] for i in some])}).inputs)
    return vectors


def reader_of(
    model, tokenizer: Any, *, prompt_name: str | None = None, prompt: str | None = None, length: int | None = None
) -> Reader:
    """What reads texts as the model's folder says; length: tokens of the longest, instead of the folder's."""
    if "embed" not in model.heads:
        raise UserError(f"model {model.name!r} has no head embed; load it with heads=('embed',)")
    if tokenizer is None:
        raise UserError(
            f"model {model.name!r} has no tokenizer beside it that tfzoo reads; put its files into the folder"
        )
    record = record_of(model)
    if prompt is None:
        prompt = record.prompt(prompt_name)
    return Reader(
        tokenizer,
        framing.frame(model.LAYOUT, tokenizer),
        (*model.INPUTS, "pooling_mask"),
        longest(model) if length is None else length,
        model.fixed_length,
        wording=Wording(prompt, record.lowercase),
        pools_prompt=model.embed.include_prompt,
    )


def record_of(model) -> SentenceRecord:
    """What the model's folder says of how texts are read; what sentence-transformers does where it says nothing."""
    return (model.record and model.record.sentence) or SentenceRecord()


def longest(model) -> int:
    """Tokens of the longest text that is read whole."""
    config, most = model.config, record_of(model).max_length
    if most is not None and config.positions in ("relative", "rotary", "none"):
        return most  # There is no table that ends.
    return config.max_positions if most is None else min(most, config.max_positions)


def _compiled(model):
    """inputs -> vectors, as a graph that is kept with the model."""
    kept, stored = model.__dict__.setdefault("_tfzoo_embed", {}), nn.stored_weights(model)
    if stored not in kept:  # Weights that are kept otherwise are other variables.
        kept[stored] = tf.function(lambda inputs: model(inputs, training=False)["embedding"], reduce_retracing=True)
    return kept[stored]
