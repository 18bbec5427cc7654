"""Random numbers and sampling; the numbers of a row depend only on its seed, whatever else is in the batch."""

import math

import tensorflow as tf

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
# Logits divided by a lower temperature would not be finite; the likeliest token has all the weight long before.
COLD = 1e-30


def threefry(keys, counters):
    """Returns two pseudo-random uint32 tensors: Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel Random
    Numbers: As Easy as 1, 2, 3", section 3.3).

    Args:
      keys, counters: two uint32 tensors each; their shapes broadcast.
    """
    keys = [*keys, keys[0] ^ keys[1] ^ tf.constant(0x1BD11BDA, tf.uint32)]
    x, y = counters[0] + keys[0], counters[1] + keys[1]
    for i in range(5):
        for shift in _ROTATIONS[i % 2]:
            x += y
            left, right = (tf.constant(n, tf.uint32) for n in (shift, 32 - shift))
            y = x ^ (tf.bitwise.left_shift(y, left) | tf.bitwise.right_shift(y, right))
        x += keys[(i + 1) % 3]
        y += keys[(i + 2) % 3] + tf.constant(i + 1, tf.uint32)
    return x, y


def uniform(seeds, stream, step):
    """Returns random numbers in [0, 1), float32 with 24 random bits, for int32 tensors whose shapes broadcast."""
    seeds, stream, step = (tf.cast(x, tf.uint32) for x in (seeds, stream, step))
    words, _ = threefry((seeds, stream), (step, tf.zeros_like(step)))
    return tf.cast(tf.bitwise.right_shift(words, tf.constant(8, tf.uint32)), tf.float32) * 2.0**-24


def exponential(seeds, stream, step, count: int):
    """Returns exponentially distributed random numbers with mean 1, float32 [B, count], for int32 seeds [B]."""
    seeds, stream, step = (tf.cast(x, tf.uint32) for x in (seeds[:, None], stream, step))
    places = tf.range((count + 1) // 2)[None]
    words = threefry((seeds, stream), (step, tf.cast(places, tf.uint32)))
    # 32 random bits, never 0. The resolution near 0 matters, since small values decide which candidates are chosen.
    parts = (tf.cast(tf.concat(words, 1)[:, :count], tf.float32) + 0.5) * 2.0**-32
    return -tf.math.log1p(-tf.minimum(parts, 1 - 2.0**-24))


def pick(weights, numbers):
    """Samples indices in proportion to weights.

    Args:
      weights: [..., V], none negative.
      numbers: [...], random numbers in [0, 1).

    Returns:
      int32 [...].
    """
    sums = tf.cumsum(weights, axis=-1)
    # A number of 24 bits below 1 never reaches the total, so the chosen index has a weight above 0.
    return tf.reduce_sum(tf.cast(sums <= numbers[..., None] * sums[..., -1:], tf.int32), -1)


def filter_logits(logits, rows, least: int = 1):
    """Returns logits [B, V] divided by the temperature, with -inf for the tokens that sampling may not choose.

    Args:
      logits: [B, V].
      rows: tensors [B] under the names of the parameters in use, which are applied in this order:
        temperature: 0, or a value close to 0, keeps only the likeliest token.
        top_k: keeps this many of the likeliest tokens, and ties; 0 keeps all.
        top_p: keeps the likeliest tokens that together have this probability (Holtzman et al. 2020, section 3.1).
        min_p: keeps tokens at least min_p times as likely as the likeliest (Nguyen et al. 2024).
        typical_p: keeps the tokens whose information is closest to the entropy and that together have this probability
          (Meister et al. 2023).
        epsilon_cutoff: keeps tokens with at least this probability.
        eta_cutoff: keeps tokens with at least this probability, or its square root times exp(-entropy) if that is less
          (Hewitt et al. 2022, https://arxiv.org/abs/2210.15191, section 4).
      least: the minimum number of likeliest tokens to keep, unless the temperature is 0.
    """
    rows = {name: tf.cast(value, logits.dtype)[:, None] for name, value in rows.items() if name != "top_k"} | {
        name: rows[name][:, None] for name in ("top_k",) if name in rows
    }
    top = tf.reduce_max(logits, -1, keepdims=True)
    if "temperature" in rows:
        heat = rows["temperature"]
        greedy = heat < COLD
        logits = tf.where(greedy, tf.where(logits >= top, logits, -math.inf), logits / tf.where(greedy, 1.0, heat))
        top = tf.reduce_max(logits, -1, keepdims=True)
    if "top_k" in rows or "top_p" in rows:
        logits = tf.cond(
            _excludes(rows),
            lambda: tf.where(
                logits >= _smallest(logits, rows.get("top_k"), rows.get("top_p"), least), logits, -math.inf
            ),
            lambda: logits,
        )
    if "min_p" in rows:
        kept = logits - top >= tf.math.log(rows["min_p"])
        if least > 1:
            kept |= logits >= tf.math.top_k(logits, min(least, logits.shape[-1]))[0][:, -1:]
        logits = tf.where(kept, logits, -math.inf)
    if "typical_p" in rows:
        logits = _typical(logits, rows["typical_p"], least)
    for name in ("epsilon_cutoff", "eta_cutoff"):
        if name in rows:
            logits = _cutoff(logits, rows[name], name == "eta_cutoff", least)
    return logits


def _cutoff(logits, limit, by_entropy: bool, least):
    logs = tf.nn.log_softmax(logits)
    weights = tf.exp(logs)
    if by_entropy:
        entropy = -tf.reduce_sum(tf.math.multiply_no_nan(logs, weights), -1, keepdims=True)
        limit = tf.minimum(limit, tf.sqrt(limit) * tf.exp(-entropy))
    kept = (weights >= limit) | (logits >= tf.math.top_k(logits, min(least, logits.shape[-1]))[0][:, -1:])
    return tf.where(kept, logits, -math.inf)


def _excludes(rows):
    """Returns whether top_k or top_p excludes tokens in any row; if not, the vocabulary need not be sorted."""
    some = tf.constant(False)
    if "top_k" in rows:
        some |= rows["top_k"] > 0
    if "top_p" in rows:
        some |= rows["top_p"] < 1
    if "temperature" in rows:  # The likeliest token alone is kept already.
        some &= rows["temperature"] >= COLD
    return tf.reduce_any(some)


def _smallest(logits, top_k, top_p, least):
    """Returns the smallest logit [B, 1] to keep: of the top_k likeliest that together have top_p, but at least
    `least`."""
    size = logits.shape[-1]
    ordered = tf.sort(logits, axis=-1, direction="DESCENDING")
    smallest = ordered[:, -1:]
    if top_k is not None:
        last = tf.where(top_k > 0, tf.minimum(tf.maximum(top_k, least), size), size) - 1
        smallest = tf.gather(ordered, last, batch_dims=1)
    if top_p is not None:
        chosen = tf.nn.softmax(tf.where(ordered >= smallest, ordered, -math.inf))
        before = tf.cumsum(chosen, axis=-1, exclusive=True)
        kept = tf.reduce_sum(tf.cast(before < top_p, tf.int32), -1, keepdims=True)
        nucleus = tf.gather(ordered, tf.clip_by_value(kept, min(least, size), size) - 1, batch_dims=1)
        smallest = tf.where(top_p < 1, tf.maximum(smallest, nucleus), smallest)
    return smallest


def _typical(logits, mass, least):
    logs = tf.nn.log_softmax(logits)
    weights = tf.exp(logs)
    expected = -tf.reduce_sum(tf.math.multiply_no_nan(logs, weights), -1, keepdims=True)
    distance = tf.abs(-logs - expected)
    nearest, order = tf.math.top_k(-distance, logits.shape[-1])
    sums = tf.cumsum(tf.gather(weights, order, batch_dims=1), axis=-1)
    last = tf.maximum(tf.reduce_sum(tf.cast(sums < mass, tf.int32), -1, keepdims=True), least - 1)
    limit = -tf.gather(nearest, tf.minimum(last, logits.shape[-1] - 1), batch_dims=1)
    return tf.where((distance <= limit) | (mass >= 1), logits, -math.inf)
