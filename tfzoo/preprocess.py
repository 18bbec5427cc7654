"""Conversion of strings to a model's inputs inside tf.data, for Keras's fit, evaluate and predict."""

from typing import Any

import tensorflow as tf

from tfzoo.errors import UserError
from tfzoo.generation.folder import decoder_start_id
from tfzoo.text import framing
from tfzoo.text.framing import PAIR, TEXT
from tfzoo.text.reader import Reader


class Preprocessor:
    """Converts batches of strings to a model's inputs; intended for `dataset.map`.

        dataset = tf.data.Dataset.from_tensor_slices((texts, labels)).batch(32).map(Preprocessor(model, tokenizer))
        model.fit(dataset)

    An element of the dataset is `texts`, `(texts, labels)` or `(texts, labels, sample_weight)`; `texts` is a batch of
    strings [B], or a tuple of two for pairs. The result has the model's inputs, a dict of tensors [B, L], in place of
    the texts. They include the special tokens that the tokenizer's files, or else the model's family, add around a
    text. The decoder of an encoder-decoder reads the same text.

    Args:
      model, tokenizer: as `tfzoo.load` returns them.
      sequence_length: maximum number of tokens of a row, special tokens included; longer texts are truncated. None
        means the limit in the tokenizer's files, and at most what the model's positions allow.
      fixed_length: whether to pad all rows to sequence_length instead of the longest row of the batch, as XLA and TPUs
        require.

    Raises:
      UserError: there is no tokenizer, it has more tokens than the model, the length is out of range or, when called,
        the texts are not a batch of strings.
    """

    def __init__(self, model, tokenizer: Any, sequence_length: int | None = None, fixed_length: bool = False):
        if tokenizer is None:
            raise UserError(f"model {model.name!r} has no tokenizer; load it from a folder that holds one")
        config = model.config
        if tokenizer.vocab_size > config.vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size:,} tokens, but the model's vocab_size is "
                f"{config.vocab_size:,}; use the model's own tokenizer, or build the model with "
                f"vocab_size={tokenizer.vocab_size}"
            )
        limit = config.max_positions if config.has_position_table else None
        limits = [length for length in (tokenizer.max_length, limit) if length]
        if sequence_length is None:
            sequence_length = min(limits) if limits else config.max_positions
        if sequence_length < 1 or (limit and sequence_length > limit):
            raise UserError(
                f"sequence_length={sequence_length}: must be from 1 to the model's max_positions "
                f"({config.max_positions})"
            )
        self._model, self._tokenizer = model, tokenizer
        self._length, self._fixed = sequence_length, fixed_length or model.fixed_length
        self._readers: dict[bool, Reader] = {}

    def __call__(self, texts: Any, *labels: Any) -> Any:
        """Converts texts to inputs.

        Args:
          texts: strings [B], or a tuple or list of two of these.
          *labels: passed on unchanged.

        Returns:
          The inputs, or (inputs, *labels) if there are labels.
        """
        texts = tuple(texts) if isinstance(texts, tuple | list) and not _are_strings(texts) else (texts,)
        if len(texts) > 2:
            raise UserError(f"texts: has {len(texts)} parts; pass one tensor of texts, or a tuple of two")
        tensors = [tf.convert_to_tensor(text) for text in texts]
        for tensor in tensors:
            if tensor.dtype != tf.string or tensor.shape.rank != 1:
                raise UserError(
                    f"texts: has type {tensor.dtype.name} and shape {tensor.shape}, not strings [B]; call "
                    "dataset.batch before dataset.map"
                )
        inputs = self._reader(len(tensors) == 2).read(dict(zip((TEXT, PAIR), tensors))).inputs
        return (inputs, *labels) if labels else inputs

    def _reader(self, pair: bool) -> Reader:
        if pair not in self._readers:
            model = self._model
            self._readers[pair] = Reader(
                self._tokenizer,
                framing.frame(model.LAYOUT, self._tokenizer, pair),
                tuple(model.input_specs()),
                self._length,
                self._fixed,
                decoder_start_id(model, self._tokenizer) if model.is_encoder_decoder else None,
            )
        return self._readers[pair]


def _are_strings(texts: Any) -> bool:
    return all(isinstance(text, str | bytes) for text in texts)
