"""One token after another: the likeliest, or one drawn."""

from typing import Any

import tensorflow as tf

from tfzoo.generation.constraints import constrain, needs_history
from tfzoo.generation.draws import filter_logits, pick, uniform
from tfzoo.generation.options import SAMPLING, Options
from tfzoo.generation.prompt import Prompt


def sample(prompt: Prompt, options: Options, rows, stops, new_tokens) -> dict:
    """Greedy search, or sampling where options.do_sample.

    Args:
      prompt: B rows.
      rows: tensors [B] by names of options.ROWS; with "max_new_tokens", and "seed" where tokens are drawn.
      stops: a Stops.
      new_tokens: N, int or scalar int32.

    Returns:
      token_ids int32 [B, N], scores float32 [B, N], lengths int32 [B], bad bool [B]: see `decode`.
    """
    batch = tf.shape(prompt.logits)[0]
    numbers: Any = None
    if options.do_sample:  # All of them beforehand: on one vector at a time, many small operations would cost more.
        numbers = uniform(rows["seed"][:, None], 0, tf.range(new_tokens)[None])
    filters = {name: rows[name] for name in SAMPLING if name in rows}

    def choose(state, logits):
        """The next token of logits [B, V]."""
        step, history, done = state["step"], state.get("history"), state["done"]
        state["bad"] |= ~done & tf.math.is_nan(tf.reduce_sum(logits, -1))
        allowed = constrain(options, rows, history, step, logits)
        if options.do_sample:
            weights = tf.nn.softmax(filter_logits(allowed, filters))
            token = pick(weights, numbers[:, step])
        else:
            token = tf.argmax(allowed, -1, tf.int32)
        here = (tf.range(new_tokens) == step)[None] & ~done[:, None]
        state["token_ids"] = tf.where(here, token[:, None], state["token_ids"])
        if options.return_scores:
            score = tf.gather(tf.nn.log_softmax(logits), token, batch_dims=1)
            state["scores"] = tf.where(here, score[:, None], state["scores"])
        if history is not None:
            state["history"] = tf.concat([history[:, 1:], token[:, None]], 1)
        state["lengths"] += tf.cast(~done, tf.int32)
        state["found"], stopped = stops.feed(state["found"], token)
        state["done"] = done | stopped | (step + 1 >= rows["max_new_tokens"])
        return state | {"step": step + 1, "token": token}

    def body(state):
        step, token = state["step"], state["token"]
        place = tf.reshape(step - 1, [1, 1])
        sequence, state["tensors"] = prompt.step(state["tensors"], token[:, None], place, prompt.length + place)
        return (choose(state, prompt.model.next_logits(sequence)[:, 0]),)

    state = {
        "step": 0,
        "token_ids": tf.fill([batch, new_tokens], options.pad_token_id),
        "lengths": tf.zeros([batch], tf.int32),
        "done": rows["max_new_tokens"] <= 0,
        "bad": tf.zeros([batch], tf.bool),
        "found": stops.start(batch),
        "tensors": prompt.cache.tensors,
    }
    if options.return_scores:
        state["scores"] = tf.zeros([batch, new_tokens])
    if needs_history(options, rows):
        state["history"] = start_history(prompt.token_ids, new_tokens, options)
    state = choose(state, prompt.logits)
    (state,) = tf.while_loop(lambda state: more(state, new_tokens), body, (state,), parallel_iterations=1)
    return {name: state[name] for name in ("token_ids", "scores", "lengths", "bad") if name in state}


def more(state, new_tokens):
    """Whether a row goes on."""
    return (state["step"] < new_tokens) & ~tf.reduce_all(state["done"])


def start_history(token_ids, new_tokens, options: Options):
    """What `constrain` looks back on: token_ids [B, P] and before them as many places as tokens may follow."""
    longest = max(options.no_repeat_ngram_size, *(len(word) for word in options.bad_words_ids or [()]))
    return tf.pad(token_ids, [[0, 0], [new_tokens + longest, 0]], constant_values=-1)
