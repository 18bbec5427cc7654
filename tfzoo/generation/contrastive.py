"""Contrastive search (Su et al. 2022, https://arxiv.org/abs/2202.06417, section 2.2)."""

import tensorflow as tf

from tfzoo.generation.constraints import constrain
from tfzoo.generation.options import Options
from tfzoo.generation.prompt import Prompt
from tfzoo.generation.sample import more, results, start_state, write


def contrastive_search(prompt: Prompt, options: Options, rows, stops, new_tokens) -> dict:
    """Runs contrastive search; the arguments and the result are those of `sample`. The cache needs K slots per new
    token, where K is options.candidates.

    The model reads the K likeliest tokens v in parallel. The one with the highest
    (1 - alpha) p(v) - alpha max_j cos(h_v, h_j) is chosen, where h_j are the states of all tokens before it. The logits
    of the next step are therefore known already: those of the chosen candidate.
    """
    alpha, width = options.penalty_alpha, options.candidates
    batch, size = tf.shape(prompt.logits)[0], prompt.logits.shape[-1]
    positions = prompt.count[:, None] + tf.range(new_tokens * width)[None] // width
    prompt.cache.positions = tf.concat([prompt.cache.positions[:, : prompt.length], positions], 1)
    states = tf.math.l2_normalize(tf.cast(prompt.sequence, tf.float32), -1)
    # Padding is not similar to anything: it is assigned a value below every cosine.
    real = tf.pad(prompt.token_ids >= 0, [[0, 0], [0, new_tokens]], constant_values=True)

    def body(state):
        state = dict(state)
        step, logits, history = state["step"], state["logits"], state.get("history")
        state["bad"] |= ~state["done"] & tf.math.is_nan(tf.reduce_sum(logits, -1))
        allowed = tf.nn.softmax(constrain(options, rows, history, step, logits))
        likely, candidates = tf.math.top_k(allowed, width)
        numbers = tf.range(width)
        slots = (prompt.length + step * width + numbers)[None]
        chain = tf.one_hot(state["chain"], width, True, False, dtype=tf.bool)  # [B, N, K], the candidates chosen.
        chain = tf.repeat(tf.reshape(chain, [batch, 1, new_tokens * width]), width, axis=1)
        visible = chain | (tf.range(new_tokens * width)[None] == (step * width + numbers)[:, None])[None]
        offsets = tf.fill([1, width], step)
        sequence, state["tensors"] = prompt.step(state["tensors"], candidates, offsets, slots, visible)
        here = tf.math.l2_normalize(tf.cast(sequence, tf.float32), -1)
        cosine = tf.matmul(here, state["states"], transpose_b=True)
        places = tf.range(tf.shape(cosine)[2])
        earlier = real & (places < prompt.length + step)[None]
        similarity = tf.reduce_max(tf.where(earlier[:, None], cosine, -2.0), -1)
        value = (1 - alpha) * likely - alpha * similarity
        best = tf.argmax(tf.where(likely > 0, value, -4.0), -1, tf.int32)
        token = tf.gather(candidates, best, batch_dims=1)
        chosen = tf.gather(sequence, best, batch_dims=1)
        kept = tf.gather(here, best, batch_dims=1)[:, None]
        newest = (places == prompt.length + step)[None, :, None]
        state["states"] = tf.where(newest, kept, state["states"])
        column = (tf.range(new_tokens) == step)[None]
        state["chain"] = tf.where(column, best[:, None], state["chain"])
        state = write(state, token, logits, rows, stops)
        return (state | {"logits": prompt.model.next_logits(chosen[:, None])[:, 0]},)

    state = start_state(prompt, options, rows, stops, new_tokens) | {
        "logits": tf.ensure_shape(prompt.logits, [None, size]),
        "states": tf.pad(states, [[0, 0], [0, new_tokens], [0, 0]]),
        "chain": tf.fill([batch, new_tokens], -1),
    }
    (state,) = tf.while_loop(lambda state: more(state, new_tokens), body, (state,), parallel_iterations=1)
    return results(state)
