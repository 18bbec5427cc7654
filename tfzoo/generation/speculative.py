"""Several tokens for one reading of the model's weights: a draft that a smaller model, or the text itself, suggests.

What is kept of a draft makes the texts those of the model alone, drawn with the same probabilities (Leviathan et al.
2023, https://arxiv.org/abs/2211.17192, section 2.3 and appendix A.1).
"""

import tensorflow as tf

from tfzoo.generation.constraints import constrain
from tfzoo.generation.draws import filter_logits, pick, uniform
from tfzoo.generation.options import SAMPLING, Options
from tfzoo.generation.prompt import Prompt
from tfzoo.generation.sample import start_history

NUMBER, DRAFT, ACCEPT = 0, 1, 2  # Streams of random numbers: of a row, each token has one of each.


def speculate(prompt: Prompt, assistant: Prompt | None, options: Options, rows, stops, new_tokens) -> dict:
    """As `sample`, with drafts by `assistant`, which has read the same prompt, or else of what followed the last
    tokens when they came before. Caches need `draft_length(options)` + 1 slots more than new_tokens."""
    length = draft_length(options)
    batch, size = tf.shape(prompt.logits)[0], prompt.logits.shape[-1]
    filters = {name: rows[name] for name in SAMPLING if name in rows}
    ahead = tf.range(length + 1)[None]

    def weights(logits, history, step):
        """Logits [B, V] -> the probabilities [B, V] that `sample` would draw from."""
        allowed = constrain(options, rows, history, step, logits)
        if options.do_sample:
            return tf.nn.softmax(filter_logits(allowed, filters))
        return tf.one_hot(tf.argmax(allowed, -1, tf.int32), size)

    def draws(count):
        """Numbers [B, 3, length + 1], by stream, for the tokens from each row's `count`-th on."""
        if not options.do_sample:
            return tf.fill([batch, 3, length + 1], 0.5)
        streams = tf.constant([NUMBER, DRAFT, ACCEPT])[:, None]
        return uniform(rows["seed"][:, None, None], streams, (count[:, None] + ahead)[:, None])

    def suggest(state, numbers):
        """The assistant's draft: (tokens [B] each, their probabilities [B, V], the cache's tensors)."""
        assert assistant is not None
        count, history, tensors = state["count"], state["history"], state["assistant"]
        # It may not have read the last token but one, where it drafted it last: so both are read.
        place = (count - 1)[:, None]
        places, recent = tf.concat([place - 1, place], 1), history[:, -2:]
        tokens, chances = [], []
        for i in range(length):
            sequence, tensors = assistant.step(tensors, tf.maximum(recent, 0), places, assistant.length + places)
            logits = assistant.model.next_logits(sequence[:, -1:])[:, 0]
            chances.append(weights(logits, history, count + i))
            tokens.append(pick(chances[-1], numbers[:, DRAFT, i]))
            history = _append(history, tokens[-1])
            recent, places = tokens[-1][:, None], places[:, -1:] + 1
        return tokens, chances, tensors

    def look_up(history):
        """What followed the last few tokens where they came before: as `suggest`, with no chance where nothing did."""
        width = tf.shape(history)[1]
        begin = tf.zeros([batch], tf.int32)
        for n in range(1, options.max_matching_ngram_size + 1):  # The longest match counts: it comes last.
            ends = width - n  # Windows whose next token is there.
            same = tf.ones([batch, ends], tf.bool)
            for i in range(n):
                last = history[:, width - n + i][:, None]
                same &= (history[:, i : ends + i] == last) & (last >= 0)
            latest = tf.reduce_max(tf.where(same, tf.range(ends)[None] + n, 0), 1)
            begin = tf.where(latest > 0, latest, begin)
        places = begin[:, None] + ahead[:, :length]
        there = (begin[:, None] > 0) & (places < width)
        found = tf.gather(history, tf.minimum(places, width - 1), batch_dims=1)
        tokens = tf.unstack(tf.where(there, found, 0), num=length, axis=1)
        marks = tf.unstack(tf.cast(there, tf.float32)[:, :, None], num=length, axis=1)
        return tokens, [tf.one_hot(token, size) * mark for token, mark in zip(tokens, marks)], None

    def emit(state, token, logits, active):
        """Writes token [B] behind the texts of `active` rows."""
        here = (tf.range(new_tokens)[None] == state["count"][:, None]) & active[:, None]
        state["bad"] |= active & tf.math.is_nan(tf.reduce_sum(logits, -1))
        state["token_ids"] = tf.where(here, token[:, None], state["token_ids"])
        score = tf.gather(tf.nn.log_softmax(logits), token, batch_dims=1)
        state["scores"] = tf.where(here, score[:, None], state["scores"])
        state["history"] = tf.where(active[:, None], _append(state["history"], token), state["history"])
        state["count"] += tf.cast(active, tf.int32)
        found, stopped = stops.feed(state["found"], token)
        state["found"] = tf.where(active[:, None], found, state["found"])
        state["done"] |= active & (stopped | (state["count"] >= rows["max_new_tokens"]))

    def body(state):
        state = dict(state)
        count, history = state["count"], state["history"]
        numbers = draws(count)
        if assistant is None:
            tokens, chances, _ = look_up(history)
        else:
            tokens, chances, state["assistant"] = suggest(state, numbers)
        read = tf.stack([tf.maximum(history[:, -1], 0), *tokens], 1)
        places = (count - 1)[:, None] + ahead
        sequence, state["tensors"] = prompt.step(state["tensors"], read, places, prompt.length + places)
        logits = prompt.model.next_logits(sequence)
        active = ~state["done"]
        for i in range(length + 1):
            true = weights(logits[:, i], state["history"], state["count"])
            if i == length:
                emit(state, pick(true, numbers[:, NUMBER, i]), logits[:, i], active & ~state["done"])
                break
            token, chance = tokens[i], chances[i]
            ours, theirs = (tf.gather(x, token, batch_dims=1) for x in (true, chance))
            accepted = numbers[:, ACCEPT, i] * theirs < ours
            accepted &= theirs > 0
            rest = tf.maximum(true - chance, 0)
            # Rounding may leave nothing of two distributions that are all but one.
            rest = tf.where(tf.reduce_sum(rest, -1, keepdims=True) > 0, rest, true)
            token = tf.where(accepted, token, pick(rest, numbers[:, NUMBER, i]))
            emit(state, token, logits[:, i], active & ~state["done"])
            active &= accepted
        return (state | {"rounds": state["rounds"] + 1},)

    state = {
        "rounds": 0,
        "count": tf.zeros([batch], tf.int32),
        "token_ids": tf.fill([batch, new_tokens], options.pad_token_id),
        "scores": tf.zeros([batch, new_tokens]),
        "done": rows["max_new_tokens"] <= 0,
        "bad": tf.zeros([batch], tf.bool),
        "found": stops.start(batch),
        "history": start_history(prompt.token_ids, new_tokens, options),
        "tensors": prompt.cache.tensors,
    }
    if assistant is not None:
        state["assistant"] = assistant.cache.tensors
    first = pick(weights(prompt.logits, state["history"], 0), draws(state["count"])[:, NUMBER, 0])
    emit(state, first, prompt.logits, ~state["done"])

    def more(state):
        return ~tf.reduce_all(state["done"])

    (state,) = tf.while_loop(more, body, (state,), parallel_iterations=1)
    return {name: state[name] for name in ("token_ids", "scores", "bad")} | {"lengths": state["count"]}


def draft_length(options: Options) -> int:
    """Tokens of a draft."""
    return options.prompt_lookup_num_tokens or options.num_assistant_tokens


def _append(history, token):
    return tf.concat([history[:, 1:], token[:, None]], 1)
