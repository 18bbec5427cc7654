"""What a text may go on with: repetition, forbidden words, lengths, and processors of one's own."""

import math

import tensorflow as tf

FORBIDDEN = -math.inf


def constrain(options, rows, history, step, logits):
    """Logits [B, V] with -inf for tokens that may not follow, and others lowered.

    Args:
      options: Options.
      rows: tensors [B] under the names of parameters.
      history: int32 [B, T], the tokens so far, the newest last, the prompt's among them; -1 where there is none. None
        where `needs_history(options, rows)` is False.
      step: int32 scalar or [B], how many tokens are new.
      logits: of a language model, or log-probabilities.
    """
    size = logits.shape[-1]
    step = tf.broadcast_to(step, tf.shape(logits)[:1])
    if "repetition_penalty" in rows:  # Keskar et al. 2019, section 4.1, with the sign that the rule forgets.
        penalty = tf.cast(rows["repetition_penalty"], logits.dtype)[:, None]
        lower = tf.where(logits < 0, logits * penalty, logits / penalty)
        logits = tf.where(mark(history, history >= 0, size), lower, logits)
    if "presence_penalty" in rows:  # Of new tokens alone, however often they came.
        places = tf.range(tf.shape(history)[1])[None] - tf.shape(history)[1]
        new = (places >= -step[:, None]) & (history >= 0)
        penalty = tf.cast(rows["presence_penalty"], logits.dtype)[:, None]
        logits = tf.where(mark(history, new, size), logits - penalty, logits)
    if options.no_repeat_ngram_size:
        logits = tf.where(_repeats(history, options.no_repeat_ngram_size, size), FORBIDDEN, logits)
    if options.bad_words_ids:
        logits = tf.where(_bad_words(history, options, size), FORBIDDEN, logits)
    if "min_new_tokens" in rows and options.eos_token_id:
        early = (step < rows["min_new_tokens"])[:, None]
        logits = tf.where(early & _one_of(options.eos_token_id, size), FORBIDDEN, logits)
    for place, token in enumerate(options.forced_bos_token_id):
        logits = tf.where((step == place)[:, None], _only(token, size, logits.dtype), logits)
    if options.forced_eos_token_id is not None:
        last = (step == rows["max_new_tokens"] - 1)[:, None]
        logits = tf.where(last, _only(options.forced_eos_token_id, size, logits.dtype), logits)
    for processor in options.logits_processor:
        logits = processor(history, logits)
    return logits


def needs_history(options, rows) -> bool:
    """Whether `constrain` looks at the tokens so far."""
    return bool(
        {"repetition_penalty", "presence_penalty"} & set(rows)
        or options.no_repeat_ngram_size
        or any(len(word) > 1 for word in options.bad_words_ids)
        or options.logits_processor
    )


def mark(ids, marks, size: int):
    """ids int32 [B, T], marks bool [B, T] -> bool [B, size], True for ids that are marked somewhere in their row."""
    batch, length = tf.shape(ids)[0], tf.shape(ids)[1]
    places = tf.maximum(ids, 0) + tf.range(batch)[:, None] * size
    counts = tf.math.unsorted_segment_max(
        tf.reshape(tf.cast(marks, tf.int32), [batch * length]), tf.reshape(places, [-1]), batch * size
    )
    return tf.reshape(counts > 0, [batch, size])


def _repeats(history, n: int, size: int):
    """bool [B, size]: tokens that would make the last n a group of n seen before."""
    length = tf.shape(history)[1]
    windows = length - (n - 1)  # A window is n - 1 tokens and the one that follows.
    same = history[:, n - 1 :] >= 0
    for i in range(n - 1):
        last = history[:, windows + i][:, None]
        same &= (history[:, i : windows + i] == last) & (last >= 0)
    return mark(history[:, n - 1 :], same, size)


def _bad_words(history, options, size: int):
    """bool [B or 1, size]: tokens that would complete a bad word. A token that ends the text is none."""
    words = [word for word in options.bad_words_ids if not (len(word) == 1 and word[0] in options.eos_token_id)]
    banned = _one_of([word[0] for word in words if len(word) == 1], size)
    for n in sorted({len(word) for word in words} - {1}):
        group = tf.constant([word for word in words if len(word) == n], tf.int32)
        same = tf.reduce_all(history[:, None, tf.shape(history)[1] - (n - 1) :] == group[None, :, :-1], -1)
        ends = tf.broadcast_to(group[None, :, -1], tf.shape(same))
        banned |= mark(ends, same, size)
    return banned


def _one_of(ids, size: int):
    return tf.constant([[i in set(ids) for i in range(size)]])


def _only(token: int, size: int, dtype):
    return tf.where(_one_of([token], size), tf.zeros([], dtype), tf.cast(FORBIDDEN, dtype))
