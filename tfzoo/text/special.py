"""Special tokens written in a text: plain text unless the caller asks for them."""

import re
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from tfzoo.errors import UserError

_BORDER = b"\xff\xfe\xff\xfe"  # No UTF-8 holds these bytes.


def check(special: Sequence[str], known: Mapping[str, int]) -> None:
    """Raises UserError where `special` names what is not in `known`, the special tokens' ids by their texts."""
    for token in special:
        if token not in known:
            some = " ".join(list(known)[:12])
            raise UserError(f"special: {token!r} is not one of {some}{' ...' if len(known) > 12 else ''}")


def tokenize_around(
    texts: tf.Tensor,
    special: Sequence[str],
    known: Mapping[str, int],
    tokenize: Callable[[tf.Tensor], tf.RaggedTensor],
) -> tf.RaggedTensor:
    """texts: strings [N] -> ids: int32 [N, None]. Where one of `special` stands in a text it becomes its token,
    and what stands before, between and after them is tokenized as a text of its own.

    Of two that begin at one place (<s> and <s>x) the longer is meant.

    Raises:
      UserError: `special` names what is not in `known`.
    """
    check(special, known)
    if not special:
        return tokenize(texts)
    names = sorted(set(special), key=lambda token: (-len(token), token))
    pattern = "|".join(re.escape(token) for token in names)
    # Not tf_text.regex_split: it ends a part at NUL.
    parts = tf.strings.split(tf.strings.regex_replace(texts, f"({pattern})", _BORDER + rb"\1" + _BORDER), _BORDER)
    flat = parts.flat_values
    same = flat[:, tf.newaxis] == tf.constant(names)
    is_special = tf.reduce_any(same, axis=1)
    ids = tf.constant([known[token] for token in names], tf.int32)
    chosen = tf.gather(ids, tf.argmax(tf.cast(same, tf.int32), axis=1))
    # Every part has two rows, of which at least one is empty: its tokens ("" has none), and its special token.
    tokens = tokenize(tf.where(is_special, "", flat))
    own = tf.RaggedTensor.from_row_lengths(
        tf.boolean_mask(chosen, is_special), tf.cast(is_special, tf.int64), validate=False
    )
    return parts.with_values(tf.concat([tokens, own], axis=1)).merge_dims(1, 2)
