"""Constraints on the next token: repetition, forbidden words, lengths, and custom logits processors."""

import math

import numpy as np
import tensorflow as tf

FORBIDDEN = -math.inf


def constrain(options, rows, history, step, logits):
    """Returns logits [B, V] with -inf for tokens that may not follow, and changed values for penalised ones.

    Args:
      options: Options.
      rows: tensors [B] under the names of parameters; "source", int32 [B, S], the encoder's input or the prompt, with
        -1 for padding, if `needs_source(options)`.
      history: int32 [B, T], the tokens so far including the prompt, the newest last, with -1 for padding; None if
        `needs_history(options, rows)` is False.
      step: int32 scalar or [B], the number of new tokens so far.
      logits: logits of a language model, or log-probabilities, [B, V].
    """
    size = logits.shape[-1]
    step = tf.broadcast_to(step, tf.shape(logits)[:1])
    if options.sequence_bias:
        logits += _bias(history, options.sequence_bias, size, logits.dtype)
    if options.encoder_repetition_penalty != 1:
        penalty = tf.constant(1 / options.encoder_repetition_penalty, logits.dtype)
        higher = tf.where(logits < 0, logits * penalty, logits / penalty)
        logits = tf.where(mark(rows["source"], rows["source"] >= 0, size), higher, logits)
    if "repetition_penalty" in rows:  # Keskar et al. 2019, section 4.1, corrected for negative logits.
        penalty = tf.cast(rows["repetition_penalty"], logits.dtype)[:, None]
        lower = tf.where(logits < 0, logits * penalty, logits / penalty)
        logits = tf.where(mark(history, history >= 0, size), lower, logits)
    if "presence_penalty" in rows:  # For new tokens only, however often they occurred.
        places = tf.range(tf.shape(history)[1])[None] - tf.shape(history)[1]
        new = (places >= -step[:, None]) & (history >= 0)
        penalty = tf.cast(rows["presence_penalty"], logits.dtype)[:, None]
        logits = tf.where(mark(history, new, size), logits - penalty, logits)
    if options.no_repeat_ngram_size:
        logits = tf.where(_repeats(history, history, options.no_repeat_ngram_size, size), FORBIDDEN, logits)
    if n := options.encoder_no_repeat_ngram_size:
        source = tf.pad(rows["source"], [[0, 0], [n, 0]], constant_values=-1)
        logits = tf.where(_repeats(source, history, n, size), FORBIDDEN, logits)
    if options.bad_words_ids:
        logits = tf.where(_bad_words(history, options, size), FORBIDDEN, logits)
    if "min_new_tokens" in rows and options.eos_token_id:
        early = (step < rows["min_new_tokens"])[:, None]
        logits = tf.where(early & _one_of(options.eos_token_id, size), FORBIDDEN, logits)
    for place, token in enumerate(options.forced_bos_token_id):
        logits = tf.where((step == place)[:, None], _only([token], size, logits.dtype), logits)
    if options.forced_eos_token_id:
        last = (step == rows["max_new_tokens"] - 1)[:, None]
        logits = tf.where(last, _only(options.forced_eos_token_id, size, logits.dtype), logits)
    if options.exponential_decay_length_penalty and options.eos_token_id:
        begin, factor = options.exponential_decay_length_penalty
        late = tf.cast(tf.maximum(step - begin, 0), logits.dtype)[:, None]
        likelier = logits + tf.abs(logits) * (tf.constant(factor, logits.dtype) ** late - 1)
        changed = _one_of(options.eos_token_id, size) & (late > 0) & tf.math.is_finite(logits)
        logits = tf.where(changed, likelier, logits)
    if options.suppress_tokens:
        logits = tf.where(_one_of(options.suppress_tokens, size), FORBIDDEN, logits)
    if options.begin_suppress_tokens:
        first = (step == len(options.forced_bos_token_id))[:, None]
        logits = tf.where(first & _one_of(options.begin_suppress_tokens, size), FORBIDDEN, logits)
    for processor in options.logits_processor:
        logits = processor(history, logits)
    return logits


def needs_history(options, rows) -> bool:
    """Returns whether `constrain` needs the tokens so far."""
    return bool(
        {"repetition_penalty", "presence_penalty"} & set(rows)
        or options.no_repeat_ngram_size
        or options.encoder_no_repeat_ngram_size > 1
        or any(len(word) > 1 for word in options.bad_words_ids)
        or any(len(ids) > 1 for ids, _ in options.sequence_bias)
        or options.logits_processor
    )


def needs_source(options) -> bool:
    """Returns whether `constrain` needs the encoder's input, or the prompt."""
    return bool(options.encoder_repetition_penalty != 1 or options.encoder_no_repeat_ngram_size)


def looks_back(options) -> int:
    """Returns the maximum number of previous tokens that `constrain` compares at once."""
    sizes = [options.no_repeat_ngram_size, options.encoder_no_repeat_ngram_size]
    return max([*sizes, *map(len, options.bad_words_ids), *(len(ids) for ids, _ in options.sequence_bias)])


def mark(ids, marks, size: int):
    """Returns bool [B, size], True for the ids of ids int32 [B, T] that marks bool [B, T] marks in their row."""
    batch, length = tf.shape(ids)[0], tf.shape(ids)[1]
    places = tf.maximum(ids, 0) + tf.range(batch)[:, None] * size
    counts = tf.math.unsorted_segment_max(
        tf.reshape(tf.cast(marks, tf.int32), [batch * length]), tf.reshape(places, [-1]), batch * size
    )
    return tf.reshape(counts > 0, [batch, size])


def _repeats(among, history, n: int, size: int):
    """Returns bool [B, size]: tokens that would make the last n tokens of `history` an n-gram that is in `among`."""
    windows = tf.shape(among)[1] - (n - 1)  # A window is n - 1 tokens and the one that follows.
    same = among[:, n - 1 :] >= 0
    for i in range(n - 1):
        last = history[:, tf.shape(history)[1] - (n - 1) + i][:, None]
        same &= (among[:, i : windows + i] == last) & (last >= 0)
    return mark(among[:, n - 1 :], same, size)


def _bias(history, biases, size: int, dtype):
    """Returns [1 or B, size], the biases to add to the logits of tokens that complete a group with a bias."""
    alone = np.zeros([1, size], np.float32)
    for ids, bias in biases:
        if len(ids) == 1:
            alone[0, ids[0]] = bias
    total = tf.constant(alone, dtype)
    for n in sorted({len(ids) for ids, _ in biases} - {1}):
        group = tf.constant([ids for ids, _ in biases if len(ids) == n], tf.int32)
        amount = tf.constant([bias for ids, bias in biases if len(ids) == n], dtype)
        batch = tf.shape(history)[0]
        same = tf.reduce_all(history[:, None, tf.shape(history)[1] - (n - 1) :] == group[None, :, :-1], -1)
        places = group[None, :, -1] + tf.range(batch)[:, None] * size
        added = tf.where(same, amount[None], tf.zeros([], dtype))
        sums = tf.math.unsorted_segment_sum(tf.reshape(added, [-1]), tf.reshape(places, [-1]), batch * size)
        total += tf.reshape(sums, [batch, size])
    return total


def _bad_words(history, options, size: int):
    """Returns bool [B or 1, size]: tokens that would complete a bad word. A token that ends the text is never one."""
    words = [word for word in options.bad_words_ids if not (len(word) == 1 and word[0] in options.eos_token_id)]
    banned = _one_of([word[0] for word in words if len(word) == 1], size)
    for n in sorted({len(word) for word in words} - {1}):
        group = tf.constant([word for word in words if len(word) == n], tf.int32)
        same = tf.reduce_all(history[:, None, tf.shape(history)[1] - (n - 1) :] == group[None, :, :-1], -1)
        ends = tf.broadcast_to(group[None, :, -1], tf.shape(same))
        banned |= mark(ends, same, size)
    return banned


def _one_of(ids, size: int):
    return tf.constant(np.isin(np.arange(size), list(ids))[None])


def _only(ids, size: int, dtype):
    return tf.where(_one_of(ids, size), tf.zeros([], dtype), tf.cast(FORBIDDEN, dtype))
