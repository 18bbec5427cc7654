"""Greedy search and sampling, one token after another."""

from typing import Any

import tensorflow as tf

from tfzoo.generation.constraints import constrain, looks_back, needs_history
from tfzoo.generation.draws import filter_logits, pick, uniform
from tfzoo.generation.options import SAMPLING, Options
from tfzoo.generation.prompt import Prompt


def sample(prompt: Prompt, options: Options, rows, stops, new_tokens) -> dict:
    """Runs greedy search, or sampling if options.do_sample is set.

    Args:
      prompt: the prompts of B rows.
      options: Options.
      rows: tensors [B] by names of options.ROWS, including "max_new_tokens", and "seed" if tokens are sampled.
      stops: a Stops.
      new_tokens: N, int or scalar int32.

    Returns:
      token_ids int32 [B, N], scores float32 [B, N], lengths int32 [B], bad bool [B]: see `decode`.
    """
    numbers: Any = None
    if options.do_sample:  # All at once: many small operations, one vector at a time, would be slower.
        numbers = uniform(rows["seed"][:, None], 0, tf.range(new_tokens)[None])
    filters = {name: rows[name] for name in SAMPLING if name in rows}

    def choose(state, logits):
        """Returns the state after choosing the next token from logits [B, V]."""
        step, history = state["step"], state.get("history")
        state["bad"] |= ~state["done"] & tf.math.is_nan(tf.reduce_sum(logits, -1))
        allowed = constrain(options, rows, history, step, logits)
        if options.do_sample:
            weights = tf.nn.softmax(filter_logits(allowed, filters))
            token = pick(weights, numbers[:, step])
        else:
            token = tf.argmax(allowed, -1, tf.int32)
        return write(state, token, logits, rows, stops) | {"token": token}

    def body(state):
        step, token = state["step"], state["token"]
        place = tf.reshape(step - 1, [1, 1])
        sequence, state["tensors"] = prompt.step(state["tensors"], token[:, None], place, prompt.length + place)
        return (choose(state, prompt.model.next_logits(sequence)[:, 0]),)

    state = choose(start_state(prompt, options, rows, stops, new_tokens), prompt.logits)
    (state,) = tf.while_loop(lambda state: more(state, new_tokens), body, (state,), parallel_iterations=1)
    return results(state)


def start_state(prompt: Prompt, options: Options, rows, stops, new_tokens) -> dict:
    """Returns the state of B texts before the first token, for `write`, including the cache's tensors."""
    batch = tf.shape(prompt.logits)[0]
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
    return state


def write(state: dict, token, logits, rows, stops) -> dict:
    """Returns the state after a step, which appends token [B], chosen from logits [B, V], to each unfinished text."""
    step, done = state["step"], state["done"]
    here = (tf.range(tf.shape(state["token_ids"])[1]) == step)[None] & ~done[:, None]
    new = {"step": step + 1, "token_ids": tf.where(here, token[:, None], state["token_ids"])}
    if "scores" in state:
        score = tf.gather(tf.nn.log_softmax(logits), token, batch_dims=1)
        new["scores"] = tf.where(here, score[:, None], state["scores"])
    if "history" in state:
        new["history"] = tf.concat([state["history"][:, 1:], token[:, None]], 1)
    new["lengths"] = state["lengths"] + tf.cast(~done, tf.int32)
    new["found"], stopped = stops.feed(state["found"], token)
    new["done"] = done | stopped | (step + 1 >= rows["max_new_tokens"])
    return state | new


def results(state: dict) -> dict:
    """Returns the entries of a state that `decode` returns."""
    return {name: state[name] for name in ("token_ids", "scores", "lengths", "bad") if name in state}


def more(state, new_tokens):
    """Returns whether any row continues."""
    return (state["step"] < new_tokens) & ~tf.reduce_all(state["done"])


def start_history(token_ids, new_tokens, options: Options):
    """Returns the history for `constrain`: token_ids [B, P], with padding before them for all tokens that may
    follow."""
    return tf.pad(token_ids, [[0, 0], [new_tokens + looks_back(options), 0]], constant_values=-1)
