"""Attention masks: which positions may attend to which."""

import dataclasses
from typing import Any

import keras
from keras import ops


def padding_attention_mask(padding_mask):
    """Returns padding_mask [B, M] bool (True is a real token) as attention_mask [B, 1, 1, M]."""
    return ops.expand_dims(ops.cast(padding_mask, "bool"), (1, 2))


def causal_mask(query_length, key_length, window=0):
    """Returns attention_mask [1, 1, L, M]: the last query attends to every key, each earlier query to one key fewer.

    Args:
      query_length: L.
      key_length: M.
      window: if above 0, the largest number of keys that a query attends to, its own included.
    """
    rows = ops.expand_dims(ops.arange(query_length), 1) + (key_length - query_length)
    keys = ops.expand_dims(ops.arange(key_length), 0)
    allowed = keys <= rows
    if window:
        allowed = ops.logical_and(allowed, keys > rows - window)
    return ops.expand_dims(allowed, (0, 1))


def document_attention_mask(query_documents, key_documents):
    """Returns attention_mask [B, 1, L, M] in which a token attends only to its own document.

    Args:
      query_documents: [B, L], each token's document in a packed row; 0 is padding.
      key_documents: [B, M], likewise.
    """
    return ops.equal(query_documents[:, None, :, None], key_documents[:, None, None, :])


def mask_bias(attention_mask, dtype):
    """Returns the additive bias of a bool attention_mask (True attends): 0, or a large negative number.

    The number is finite, so that a row that may not attend to anything gets equal weights instead of NaN.
    """
    masked = -3e4 if keras.backend.standardize_dtype(dtype) == "float16" else -1e9
    return ops.cast(ops.logical_not(attention_mask), dtype) * masked


@dataclasses.dataclass(frozen=True)
class Mask:
    """The conditions under which a query may attend to a key; all of them must hold.

    Each attention layer applies them in its own way. The class is opaque to Keras, which would refuse a tuple that
    mixes tensors with other values.
    """

    padding_mask: Any = None  # bool [B, M], True is a real token.
    attention_mask: Any = None  # bool [B, 1 or H, L, M], True attends.
    bias: Any = None  # Additive [1 or B, 1 or H, L, M].
    causal: bool = False  # Query i of L attends to keys up to i + (M - L).
    window: int = 0  # If above 0, only to the last `window` of those.
    # Whether the bias excludes all keys that `causal` would exclude.
    folded_causal: bool = dataclasses.field(default=False, compare=False)

    def fold(self, query_length, key_length, dtype) -> "Mask":
        """Returns the mask as one additive bias (None if everything is allowed), which a stack's layers can share."""
        allowed = self.attention_mask
        for part in (
            None if self.padding_mask is None else padding_attention_mask(self.padding_mask),
            causal_mask(query_length, key_length, self.window) if self.causal else None,
        ):
            if part is not None:
                allowed = part if allowed is None else ops.logical_and(allowed, part)
        bias = None if self.bias is None else ops.cast(self.bias, dtype)
        if allowed is not None:
            masked = mask_bias(allowed, dtype)
            bias = masked if bias is None else bias + masked
        return Mask(bias=bias, folded_causal=self.causal or self.folded_causal)
