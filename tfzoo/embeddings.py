"""Embeddings of texts, the same as those of `encode` in sentence-transformers."""

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
    """Returns the vectors of texts.

    Args:
      model, tokenizer: as returned by tfzoo.load, with a head "embed": from a sentence-transformers folder, or from any
        other folder of an encoder or a decoder loaded with heads=("embed",), which takes the mean of the tokens'
        states.
      texts: one text or several. Texts longer than the model reads are truncated.
      prompt_name: the name of the model's prompt to put before each text; None means its default prompt, if it has one.
      prompt: a prompt to use instead.
      batch_size: the number of texts per batch. It affects the vectors only by rounding.

    Returns:
      float32 [N, D], in the order of the texts.

    Raises:
      UserError: the model has no head embed, no tokenizer or no prompt of this name.
    """
    several = [texts] if isinstance(texts, str) else list(texts)
    reader = reader_of(model, tokenizer, prompt_name=prompt_name, prompt=prompt)
    vectors = np.zeros((len(several), model.heads["embed"].size), np.float32)
    order = sorted(range(len(several)), key=lambda i: -len(several[i]))  # Texts of similar length need little padding.
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        vectors[batch] = _compiled(model)(reader.read({TEXT: tf.constant([several[i] for i in batch])}).inputs)
    return vectors


def reader_of(
    model, tokenizer: Any, *, prompt_name: str | None = None, prompt: str | None = None, length: int | None = None
) -> Reader:
    """Returns the Reader of texts according to the model's folder.

    Args:
      model, tokenizer, prompt_name, prompt: see `embed_texts`.
      length: the maximum number of tokens in a text, instead of the folder's.

    Raises:
      UserError: see `embed_texts`.
    """
    if "embed" not in model.heads:
        raise UserError(f"model {model.name!r} has no head embed; load it with heads=('embed',)")
    if tokenizer is None:
        raise UserError(
            f"model {model.name!r} has no tokenizer that tfzoo can read; put the tokenizer's files into its folder"
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
    """Returns how the model's folder specifies that texts are read; by default as in sentence-transformers."""
    return (model.record and model.record.sentence) or SentenceRecord()


def longest(model) -> int:
    """Returns the maximum number of tokens in a text that is read without truncation."""
    config, most = model.config, record_of(model).max_length
    if most is not None and not config.has_position_table:
        return most
    return config.max_positions if most is None else min(most, config.max_positions)


def _compiled(model):
    """Returns a function inputs -> vectors, as a graph that is cached with the model."""
    graphs, stored = model.__dict__.setdefault("_tfzoo_embed", {}), nn.stored_weights(model)
    if stored not in graphs:  # Weights in another storage format are other variables.
        graphs[stored] = tf.function(lambda inputs: model(inputs, training=False)["embedding"], reduce_retracing=True)
    return graphs[stored]
