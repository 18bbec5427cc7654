"""A SavedModel for TF Serving's stock ops: text in and words out, or ids in and logits out.

The tokenizer is inside; `import tensorflow_text` before loading. Nothing is jit-compiled and no Python runs.
"""

import os
import re
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from tfzoo.config import TransformerConfig
from tfzoo.errors import UserError
from tfzoo.text.wordpiece import WordPiece

MASK = "[MASK]"
TOP = 5  # Words for each [MASK].
_UNUSED = re.compile(r"\[unused\d+\]")


def readable(tokenizer: WordPiece, vocab_size: int) -> np.ndarray:
    """bool [V]: True for what one would read as a word: no special token, no ## piece, no [unused1]."""
    words = np.zeros(vocab_size, bool)
    words[: tokenizer.vocab_size] = [
        not (c or _UNUSED.fullmatch(t)) for t, c in zip(tokenizer.vocab, tokenizer.continues)
    ]
    words[tokenizer.special_ids] = False
    return words


def check(config: TransformerConfig, tokenizer: WordPiece) -> None:
    """Raises UserError where a tokenizer and a model do not go together."""
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model's vocab_size is "
            f"{config.vocab_size}; export the model with the tokenizer that it was trained with"
        )
    if config.max_positions < 3:
        raise UserError(f"max_positions ({config.max_positions}) leaves no room for text; it must be at least 3")
    if not readable(tokenizer, config.vocab_size).any():
        raise UserError("the tokenizer's vocabulary holds no whole word, only special tokens and pieces")


def save(model: keras.Model, tokenizer: WordPiece, folder: str | os.PathLike) -> None:
    """Writes saved_model.pb, variables/ and assets/ into `folder`; `signatures` says what they answer."""
    module = _MaskedWords(model, tokenizer)
    tf.saved_model.save(
        module,
        os.fspath(folder),
        signatures={
            "serving_default": module.serving_default.get_concrete_function(),
            "tokens": module.tokens.get_concrete_function(),
        },
    )


def signatures(config: TransformerConfig, tokenizer: WordPiece) -> dict:
    """Names, dtypes and shapes, as manifest.json has them."""

    def tensor(dtype: str, *shape: str | int) -> dict:
        return {"dtype": dtype, "shape": list(shape)}

    top = min(TOP, int(readable(tokenizer, config.vocab_size).sum()))
    ids = tensor("int32", "batch", "sequence")
    return {
        "serving_default": {
            "inputs": {"text": tensor("string", "batch")},
            "outputs": {
                "words": tensor("string", "batch", "masks", top),
                "probabilities": tensor("float32", "batch", "masks", top),
                "num_masks": tensor("int32", "batch"),
                "truncated": tensor("bool", "batch"),
            },
        },
        "tokens": {
            "inputs": {
                "token_ids": ids,
                **({"segment_ids": ids} if config.num_segments else {}),
                "padding_mask": tensor("bool", "batch", "sequence"),
            },
            "outputs": {"logits": tensor("float32", "batch", "sequence", config.vocab_size)},
        },
    }


class _MaskedWords(tf.Module):
    """What is saved: the tokenizer, the weights and the two functions."""

    def __init__(self, model: keras.Model, tokenizer: WordPiece):
        super().__init__(name="masked_words")
        config = model.config
        self.tokenizer = tokenizer
        # The weights alone: of a Keras model that is tracked, its training functions would be saved too.
        self.weights = [weight.value for weight in model.weights]
        self._call: Callable[[dict], dict] = lambda inputs: model(inputs, training=False)
        words = readable(tokenizer, config.vocab_size)
        vocab = np.array(tokenizer.vocab + [""] * (config.vocab_size - tokenizer.vocab_size))
        self._words, self._vocab = tf.constant(words), tf.constant(np.char.encode(vocab, "utf-8"))
        self._top = min(TOP, int(words.sum()))
        self._config = config

        def function(body, *inputs):
            return tf.function(body, autograph=False, input_signature=inputs)

        token_ids, segment_ids = (tf.TensorSpec([None, None], tf.int32, n) for n in ("token_ids", "segment_ids"))
        mask = tf.TensorSpec([None, None], tf.bool, "padding_mask")
        self.serving_default = function(self._serving_default, tf.TensorSpec([None], tf.string, "text"))
        if config.num_segments:
            self.tokens = function(self._tokens, token_ids, segment_ids, mask)
        else:
            self.tokens = function(
                lambda token_ids, padding_mask: self._tokens(token_ids, None, padding_mask), token_ids, mask
            )

    def _serving_default(self, text):
        """text [B] -> words, probabilities [B, M, 5]; num_masks, truncated [B]. M: the most masks a text has.

        Text i has its words in words[i, :num_masks[i]], the likeliest first; what follows is "" and 0. The
        probabilities are the model's own, over the whole vocabulary. A text over max_positions - 2 tokens is
        cut there, which `truncated` says; masks beyond that are not counted.
        """
        tokenizer, room = self.tokenizer, self._config.max_positions - 2
        ids = tokenizer.tokenize(text, special=(MASK,))
        truncated = ids.row_lengths() > room
        ends = tf.ones_like(text, tf.int32)[:, tf.newaxis]
        ids = tf.concat([ends * tokenizer.cls_id, ids[:, :room], ends * tokenizer.sep_id], axis=1)
        lengths = ids.row_lengths()
        length = tf.maximum(tf.reduce_max(lengths), 2)  # Of an empty batch the maximum is the lowest integer.
        token_ids = ids.to_tensor(tokenizer.pad_id, shape=tf.stack([-1, length]))

        is_mask = token_ids == tokenizer.mask_id
        num_masks = tf.reduce_sum(tf.cast(is_mask, tf.int32), axis=1)
        grid = tf.zeros_like(token_ids) + tf.range(tf.shape(token_ids)[1])
        positions = tf.ragged.boolean_mask(grid, is_mask).to_tensor(0)
        outputs = self._call(
            {
                "token_ids": token_ids,
                "segment_ids": tf.zeros_like(token_ids),
                "padding_mask": tf.sequence_mask(lengths, length),
                "masked_positions": positions,
            }
        )
        probabilities = tf.where(self._words, tf.nn.softmax(outputs["logits"]), -1.0)
        likeliest, which = tf.math.top_k(probabilities, self._top)
        present = tf.sequence_mask(num_masks, tf.shape(positions)[1])[:, :, tf.newaxis]
        return {
            "words": tf.where(present, tf.gather(self._vocab, which), ""),
            "probabilities": tf.where(present, likeliest, 0.0),
            "num_masks": num_masks,
            "truncated": truncated,
        }

    def _tokens(self, token_ids, segment_ids, padding_mask):
        """token_ids, segment_ids, padding_mask [B, L] -> logits [B, L, V]. Fails on what is out of range."""
        config = self._config
        length = tf.shape(token_ids)[1]
        inputs = {"token_ids": token_ids, "segment_ids": segment_ids, "padding_mask": padding_mask}
        inputs = {name: value for name, value in inputs.items() if value is not None}
        checks = [
            _require(
                (1 <= length) & (length <= config.max_positions),
                f"the length of token_ids must be from 1 to {config.max_positions}, and is",
                length,
            ),
            _in_range("token_ids", token_ids, config.vocab_size),
        ]
        for name in inputs:
            same = tf.reduce_all(tf.shape(inputs[name]) == tf.shape(token_ids))
            checks.append(_require(same, f"{name} must have the shape of token_ids, and has", tf.shape(inputs[name])))
        if segment_ids is not None:
            checks.append(_in_range("segment_ids", segment_ids, config.num_segments))
        with tf.control_dependencies(checks):  # Before anything is looked up, for a message that says what is wrong.
            inputs = {name: tf.identity(value) for name, value in inputs.items()}
        return {"logits": self._call(inputs)["logits"]}


def _require(holds, message: str, value):
    return tf.debugging.Assert(holds, [message, value], summarize=5)


def _in_range(name: str, ids, size: int):
    bad = tf.boolean_mask(ids, (ids < 0) | (ids >= size))
    return _require(tf.size(bad) == 0, f"{name} must be from 0 to {size - 1}, and has", bad)
