"""Speculative decoding: several tokens per pass over the model's weights, drafted by a smaller model or by lookup in
the text.

Tokens of a draft are accepted such that the texts have the same distribution as those of the model by itself (Leviathan
et al. 2023, https://arxiv.org/abs/2211.17192, section 2.3 and appendix A.1).
"""

import tensorflow as tf
from keras import ops

from tfzoo.generation.constraints import constrain
from tfzoo.generation.draws import filter_logits, pick, uniform
from tfzoo.generation.options import SAMPLING, Options
from tfzoo.generation.prompt import Prompt
from tfzoo.generation.sample import start_history

NUMBER, DRAFT, ACCEPT = 0, 1, 2  # Streams of random numbers; each token of a row has one number of each.


def speculate(prompt: Prompt, assistant: Prompt | None, options: Options, rows, stops, new_tokens) -> dict:
    """Runs speculative decoding; the other arguments and the result are those of `sample`.

    Drafts are made by `assistant`, which has read the same prompt, or if it is None from the tokens that followed an
    earlier occurrence of the last ones. Caches need `draft_length(options)` + 1 slots more than new_tokens.
    """
    search = _Speculation(prompt, assistant, options, rows, stops, new_tokens)
    (state,) = tf.while_loop(
        lambda state: ~tf.reduce_all(state["done"]), search.step, (search.start(),), parallel_iterations=1
    )
    return {name: state[name] for name in ("token_ids", "scores", "bad")} | {"lengths": state["count"]}


def draft_length(options: Options) -> int:
    """Returns the number of tokens in a draft."""
    return options.prompt_lookup_num_tokens or options.num_assistant_tokens


class _Speculation:
    """The parts of speculative decoding that are the same at every step.

    The state is a dict: rounds, int32, the number of steps; per row count, int32 [B], the number of new tokens, and
    done and bad, bool [B]; token_ids and scores [B, N]; history, int32 [B, T], for `constrain`; found, the states of
    `stops`; tensors and assistant, the tensors of the two caches.
    """

    def __init__(self, prompt: Prompt, assistant: Prompt | None, options: Options, rows, stops, new_tokens):
        self.prompt, self.assistant, self.options, self.rows = prompt, assistant, options, rows
        self.stops, self.new_tokens = stops, new_tokens
        self.length = draft_length(options)
        # Python integers if they are static in the graph.
        self.batch, self.size = ops.shape(prompt.logits)[0], prompt.logits.shape[-1]
        self.filters = {name: rows[name] for name in SAMPLING if name in rows}
        self.ahead = tf.range(self.length + 1)[None]

    def start(self) -> dict:
        """Returns the state after the first token, which is chosen from the prompt's logits."""
        prompt, batch = self.prompt, self.batch
        state = {
            "rounds": 0,
            "count": tf.zeros([batch], tf.int32),
            "token_ids": tf.fill([batch, self.new_tokens], self.options.pad_token_id),
            "scores": tf.zeros([batch, self.new_tokens]),
            "done": self.rows["max_new_tokens"] <= 0,
            "bad": tf.zeros([batch], tf.bool),
            "found": self.stops.start(batch),
            "history": start_history(prompt.token_ids, self.new_tokens, self.options),
            "tensors": prompt.cache.tensors,
        }
        if self.assistant is not None:
            state["assistant"] = self.assistant.cache.tensors
        weights = self.weights(prompt.logits, state["history"], 0)
        first = pick(weights, self.draws(state["count"])[:, NUMBER, 0])
        return self.write(state, first, prompt.logits, ~state["done"])

    def step(self, state) -> tuple[dict]:
        """Drafts tokens, reads them in one pass, and keeps those that the model accepts and one more."""
        state = dict(state)
        count, history = state["count"], state["history"]
        numbers = self.draws(count)
        if self.assistant is None:
            tokens, chances = self.look_up(history)
        else:
            tokens, chances, state["assistant"] = self.suggest(state, numbers)
        read = tf.stack([tf.maximum(history[:, -1], 0), *tokens], 1)
        places = (count - 1)[:, None] + self.ahead
        sequence, state["tensors"] = self.prompt.step(state["tensors"], read, places, self.prompt.length + places)
        state = self.judge(state, self.prompt.model.next_logits(sequence), tokens, chances, numbers)
        return (state | {"rounds": state["rounds"] + 1},)

    def judge(self, state, logits, tokens, chances, numbers) -> dict:
        """Returns the state after the accepted tokens of the draft and one token of the model.

        Args:
          state: the state before the draft.
          logits: [B, length + 1, V], the model's logits after the last token and after each token of the draft.
          tokens, chances: for each token of the draft, the token [B] and the probabilities [B, V] it was drawn from.
          numbers: see `draws`.
        """
        active, last = ~state["done"], self.length
        for i in range(last):
            true = self.weights(logits[:, i], state["history"], state["count"])
            token, accepted = _accept(true, tokens[i], chances[i], numbers[:, ACCEPT, i], numbers[:, NUMBER, i])
            state = self.write(state, token, logits[:, i], active & ~state["done"])
            active &= accepted
        true = self.weights(logits[:, last], state["history"], state["count"])
        token = pick(true, numbers[:, NUMBER, last])
        return self.write(state, token, logits[:, last], active & ~state["done"])

    def weights(self, logits, history, step):
        """Returns the probabilities [B, V] from which `sample` would draw, for logits [B, V]."""
        allowed = constrain(self.options, self.rows, history, step, logits)
        if self.options.do_sample:
            return tf.nn.softmax(filter_logits(allowed, self.filters))
        return tf.one_hot(tf.argmax(allowed, -1, tf.int32), self.size)

    def draws(self, count):
        """Returns random numbers [B, 3, length + 1], by stream, for the tokens of each row from number `count` on."""
        if not self.options.do_sample:
            return tf.fill([self.batch, 3, self.length + 1], 0.5)
        streams = tf.constant([NUMBER, DRAFT, ACCEPT])[:, None]
        return uniform(self.rows["seed"][:, None, None], streams, (count[:, None] + self.ahead)[:, None])

    def suggest(self, state, numbers):
        """Returns the assistant's draft: (tokens, [B] each, their probabilities, [B, V] each, the cache's tensors)."""
        assistant = self.assistant
        assert assistant is not None
        count, history, tensors = state["count"], state["history"], state["assistant"]
        # If the assistant drafted the second-to-last token last, it has not read it yet; so the last two are read.
        place = (count - 1)[:, None]
        places, recent = tf.concat([place - 1, place], 1), history[:, -2:]
        tokens, chances = [], []
        for i in range(self.length):
            sequence, tensors = assistant.step(tensors, tf.maximum(recent, 0), places, assistant.length + places)
            logits = assistant.model.next_logits(sequence[:, -1:])[:, 0]
            chances.append(self.weights(logits, history, count + i))
            tokens.append(pick(chances[-1], numbers[:, DRAFT, i]))
            history = _append(history, tokens[-1])
            recent, places = tokens[-1][:, None], places[:, -1:] + 1
        return tokens, chances, tensors

    def look_up(self, history):
        """Returns a draft by lookup: the tokens that followed an earlier occurrence of the last few tokens.

        Returns:
          (tokens, [B] each, their probabilities, [B, V] each), with probabilities of 0 if there is no match.
        """
        width = tf.shape(history)[1]
        begin = tf.zeros([self.batch], tf.int32)
        for n in range(1, self.options.max_matching_ngram_size + 1):  # The longest match comes last and counts.
            ends = width - n  # The number of windows that a token follows.
            same = tf.ones([self.batch, ends], tf.bool)
            for i in range(n):
                last = history[:, width - n + i][:, None]
                same &= (history[:, i : ends + i] == last) & (last >= 0)
            latest = tf.reduce_max(tf.where(same, tf.range(ends)[None] + n, 0), 1)
            begin = tf.where(latest > 0, latest, begin)
        places = begin[:, None] + self.ahead[:, : self.length]
        there = (begin[:, None] > 0) & (places < width)
        followers = tf.gather(history, tf.minimum(places, width - 1), batch_dims=1)
        tokens = tf.unstack(tf.where(there, followers, 0), num=self.length, axis=1)
        marks = tf.unstack(tf.cast(there, tf.float32)[:, :, None], num=self.length, axis=1)
        return tokens, [tf.one_hot(token, self.size) * mark for token, mark in zip(tokens, marks)]

    def write(self, state, token, logits, active) -> dict:
        """Returns the state with token [B], scored by logits [B, V], appended to the texts of `active` rows."""
        here = (tf.range(self.new_tokens)[None] == state["count"][:, None]) & active[:, None]
        score = tf.gather(tf.nn.log_softmax(logits), token, batch_dims=1)
        count = state["count"] + tf.cast(active, tf.int32)
        found, stopped = self.stops.feed(state["found"], token)
        return state | {
            "bad": state["bad"] | (active & tf.math.is_nan(tf.reduce_sum(logits, -1))),
            "token_ids": tf.where(here, token[:, None], state["token_ids"]),
            "scores": tf.where(here, score[:, None], state["scores"]),
            "history": tf.where(active[:, None], _append(state["history"], token), state["history"]),
            "count": count,
            "found": tf.where(active[:, None], found, state["found"]),
            "done": state["done"] | (active & (stopped | (count >= self.rows["max_new_tokens"]))),
        }


def _accept(true, token, chance, number, other):
    """Accepts a drafted token or replaces it.

    Args:
      true, chance: [B, V], the model's probabilities and those from which the draft was drawn.
      token: [B], the drafted token.
      number, other: [B], random numbers: one decides whether to accept, the other draws the replacement.

    Returns:
      (token [B], bool [B], whether the drafted token was accepted).
    """
    true_chance, draft_chance = (tf.gather(x, token, batch_dims=1) for x in (true, chance))
    accepted = number * draft_chance < true_chance
    accepted &= draft_chance > 0
    rest = tf.maximum(true - chance, 0)
    # If two distributions are nearly equal, rounding may leave no difference.
    rest = tf.where(tf.reduce_sum(rest, -1, keepdims=True) > 0, rest, true)
    return tf.where(accepted, token, pick(rest, other)), accepted


def _append(history, token):
    return tf.concat([history[:, 1:], token[:, None]], 1)
