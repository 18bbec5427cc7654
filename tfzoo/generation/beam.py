"""Beam search: the K likeliest texts side by side; with groups, kept apart (Vijayakumar et al. 2018, section 3).

When a text ends, and when a search does, is decided as in transformers' beam search, so that texts are the same. So is
what sampling does to it: the candidates of a step are drawn, by their texts' probabilities and without replacement,
and of those drawn the likeliest go on.
"""

import tensorflow as tf
from keras import ops

from tfzoo.generation.constraints import constrain, needs_history
from tfzoo.generation.draws import exponential, filter_logits
from tfzoo.generation.options import SAMPLING, Options
from tfzoo.generation.prompt import Prompt
from tfzoo.generation.sample import start_history

LOW = -1e9  # Worse than any score.
STREAM = 3  # Of random numbers: those that candidates are drawn by.


def beam_search(prompt: Prompt, options: Options, rows, stops, new_tokens) -> dict:
    """As `sample`, with a cache of K slots for each new token, K being options.num_beams.

    Returns:
      token_ids, scores, lengths, bad, of num_return_sequences texts a row, the best first, and sequence_scores
      float32 [B R]: each text's log-probability divided by its length to the power of length_penalty.
    """
    beams, groups = options.num_beams, options.num_beam_groups
    width = beams // groups
    batch, size = ops.shape(prompt.logits)[0], prompt.logits.shape[-1]  # Numbers where they are fixed in the graph.
    each = {name: tf.repeat(value, beams, axis=0) for name, value in rows.items()}
    filters = {name: each[name] for name in SAMPLING if name in each}
    least = max(2, 1 + len(options.eos_token_id))  # More tokens than can end a text.
    # Slot t K + k behind the prompt holds the t-th new token of beam k.
    behind = prompt.count[:, None] + tf.range(new_tokens * beams)[None] // beams
    prompt.cache.positions = tf.concat([prompt.cache.positions[:, : prompt.length], behind], 1)

    def choose(state, logits):
        """Which beams go on and which texts end, by logits [B, K, V]."""
        state = dict(state)
        step, history = state["step"], state.get("history")
        wrong = tf.math.is_nan(tf.reduce_sum(logits, [1, 2]))
        state["bad"] |= wrong & tf.reduce_any(tf.stack([group["open"] for group in state["groups"]]), 0)
        plain = tf.nn.log_softmax(logits)
        seen = None if history is None else tf.reshape(history, [batch * beams, ops.shape(history)[2]])
        allowed = constrain(options, each, seen, step, tf.reshape(plain, [batch * beams, size]))
        if options.do_sample:
            allowed = filter_logits(allowed, filters, least)
        allowed = tf.reshape(allowed, [batch, beams, size])
        taken = tf.zeros([batch, 1, size])
        next_groups, parents = [], []
        for i, group in enumerate(state["groups"]):
            here = slice(i * width, (i + 1) * width)
            now = allowed[:, here] - options.diversity_penalty * taken if i else allowed[:, here]
            group, parent = advance(group, now, plain[:, here], step)
            next_groups.append(group)
            parents.append(parent + i * width)
            taken += tf.reduce_sum(tf.one_hot(group["token"], size), 1, keepdims=True)
        state["groups"], parent = next_groups, tf.concat(parents, 1)
        state["ancestors"] = _take(state["ancestors"], parent)
        if history is not None:
            state["history"] = tf.concat([_take(history, parent)[:, :, 1:], _tokens(state)[:, :, None]], 2)
        return state | {"step": step + 1}

    def advance(group, allowed, plain, step):
        """One group's next step, by log-probabilities [B, W, V] with and without constraints -> (group, parents)."""
        # Of 2 W candidates and more W at least go on, even if every beam has a text that ends among them.
        total = tf.reshape(allowed + group["sums"][:, :, None], [batch, width * size])
        count = least * width
        if options.do_sample:
            # The highest of log p - log(e), for exponential e, are draws without replacement, in their order (Kool et
            # al. 2019, https://arxiv.org/abs/1903.06059, section 2.3).
            noise = exponential(rows["seed"], STREAM, step, width * size)
            _, index = tf.math.top_k(total - tf.math.log(noise), count)
            sums = tf.gather(total, index, batch_dims=1)
        else:
            sums, index = tf.math.top_k(total, count)
        parent, token = index // size, index % size
        texts = _write(_take(group["texts"], parent), token, step)
        score = tf.gather(tf.reshape(plain, [batch, width * size]), index, batch_dims=1)
        scores = _write(_take(group["scores"], parent), score, step)
        flat = tf.reshape(token, [-1])
        found = _take(group["found"], parent)
        found, ends = stops.feed(tf.reshape(found, [tf.size(flat), len(stops.tables)]), flat)
        found = tf.reshape(found, [batch, count, len(stops.tables)])
        ends = tf.reshape(ends, [batch, count]) | (step + 1 >= rows["max_new_tokens"])[:, None]
        # Texts that end here, among those that did before.
        length = tf.cast(step + 1, tf.float32)
        best = tf.range(count)[None] < width
        ended = tf.where(ends & best & group["open"][:, None], sums / length**options.length_penalty, LOW)
        kept, order = tf.math.top_k(tf.concat([group["end_sums"], ended], 1), width)

        def merged(old, new):
            return _take(tf.concat([old, new], 1), order)

        result = dict(
            end_sums=kept,
            end_texts=merged(group["end_texts"], texts),
            end_scores=merged(group["end_scores"], scores),
            end_lengths=merged(group["end_lengths"], tf.fill([batch, count], step + 1)),
        )
        # Beams that go on.
        sums, order = tf.math.top_k(tf.where(ends, sums + LOW, sums), width)
        result |= dict(sums=sums, texts=_take(texts, order), scores=_take(scores, order), found=_take(found, order))
        result["token"] = _take(token, order)
        # Whether they can still be better than the worst that ended.
        full = tf.reduce_all(kept > LOW / 2, 1)
        if options.early_stopping == "never" and options.length_penalty > 0:
            length = tf.cast(rows["max_new_tokens"], tf.float32)
        promising = ~full | (sums[:, 0] / length**options.length_penalty > kept[:, -1])
        if options.early_stopping is True:
            promising &= ~full
        result["open"] = group["open"] & promising & ~tf.reduce_all(ends, 1)
        return result, _take(parent, order)

    def body(state):
        state = dict(state)
        place = state["step"] - 1
        own = tf.range(beams)
        state["ancestors"] = _write(state["ancestors"], tf.broadcast_to(own, [batch, beams]), place)
        visible = tf.one_hot(state["ancestors"], beams, True, False, dtype=tf.bool)
        visible = tf.reshape(visible, [batch, beams, new_tokens * beams])
        slots = (prompt.length + place * beams + own)[None]
        offsets = tf.fill([1, beams], place)
        sequence, state["tensors"] = prompt.step(state["tensors"], _tokens(state), offsets, slots, visible)
        return (choose(state, prompt.model.next_logits(sequence)),)

    def more(state):
        going = tf.reduce_any(tf.stack([group["open"] for group in state["groups"]]))
        return (state["step"] < new_tokens) & going

    def start_group():
        texts, scores = tf.fill([batch, width, new_tokens], options.pad_token_id), tf.zeros([batch, width, new_tokens])
        lengths = tf.zeros([batch, width], tf.int32)
        low = tf.fill([batch, width], LOW)
        ended = dict(end_sums=low, end_texts=texts, end_scores=scores, end_lengths=lengths)
        # All beams begin alike: only the first counts.
        sums = tf.concat([tf.zeros([batch, 1]), low[:, 1:]], 1)
        found = tf.reshape(stops.start(batch * width), [batch, width, len(stops.tables)])
        going = rows["max_new_tokens"] > 0
        return ended | dict(sums=sums, texts=texts, scores=scores, found=found, token=lengths, open=going)

    state = {
        "step": 0,
        "bad": tf.zeros([batch], tf.bool),
        "groups": [start_group() for _ in range(groups)],
        "ancestors": tf.fill([batch, beams, new_tokens], -1),
        "tensors": prompt.cache.tensors,
    }
    if needs_history(options, rows):
        history = start_history(prompt.token_ids, new_tokens, options)
        state["history"] = tf.repeat(history[:, None], beams, axis=1)
    state = choose(state, tf.repeat(prompt.logits[:, None], beams, axis=1))
    (state,) = tf.while_loop(more, body, (state,), parallel_iterations=1)
    names = ("end_sums", "end_texts", "end_scores", "end_lengths")
    sums, texts, scores, lengths = (tf.concat([group[name] for group in state["groups"]], 1) for name in names)
    times = options.num_return_sequences
    sums, order = tf.math.top_k(sums, times)
    texts, scores, lengths = (_take(x, order) for x in (texts, scores, lengths))
    return {
        "token_ids": tf.reshape(texts, [batch * times, new_tokens]),
        "scores": tf.reshape(scores, [batch * times, new_tokens]),
        "lengths": tf.reshape(lengths, [batch * times]),
        "bad": tf.repeat(state["bad"], times),
        "sequence_scores": tf.reshape(sums, [batch * times]),
    }


def _take(x, index):  # x [B, N, ...], index [B, K] -> [B, K, ...]
    return tf.gather(x, index, batch_dims=1)


def _write(x, values, place):  # x [B, K, N], values [B, K] -> x with them in column `place`
    return tf.where(tf.range(tf.shape(x)[2]) == place, values[:, :, None], x)


def _tokens(state):  # [B, K], each beam's newest token
    return tf.concat([group["token"] for group in state["groups"]], 1)
