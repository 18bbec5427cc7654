"""Several tokens for one reading of the model's weights: a draft that a smaller model, or the text itself, suggests.

What is kept of a draft makes the texts those of the model alone, drawn with the same probabilities (Leviathan et al.
2023, https://arxiv.org/abs/2211.17192, section 2.3 and appendix A.1).
"""

import tensorflow as tf
from keras import ops

from tfzoo.generation.constraints import constrain
from tfzoo.generation.draws import filter_logits, pick, uniform
from tfzoo.generation.options import SAMPLING, Options
from tfzoo.generation.prompt import Prompt
from tfzoo.generation.sample import start_history

NUMBER, DRAFT, ACCEPT = 0, 1, 2  # Streams of random numbers: of a row, each token has one of each.


def speculate(prompt: Prompt, assistant: Prompt | None, options: Options, rows, stops, new_tokens) -> dict:
    """As `sample`, with drafts by `assistant`, which has read the same prompt, or else of what followed the last
    tokens when they came before. Caches need `draft_length(options)` + 1 slots more than new_tokens."""
    search = _Speculation(prompt, assistant, options, rows, stops, new_tokens)
    (state,) = tf.while_loop(
        lambda state: ~tf.reduce_all(state["done"]), search.step, (search.start(),), parallel_iterations=1
    )
    return {name: state[name] for name in ("token_ids", "scores", "bad")} | {"lengths": state["count"]}


def draft_length(options: Options) -> int:
    """Tokens of a draft."""
    return options.prompt_lookup_num_tokens or options.num_assistant_tokens


class _Speculation:
    """What is the same at every step.

    The state is a dict: rounds int32, the steps made; of each row count int32 [B], its new tokens, done bool [B] and
    bad bool [B]; token_ids and scores [B, N]; history int32 [B, T], of `constrain`; found, of `stops`; tensors and
    assistant, of the caches.
    """

    def __init__(self, prompt: Prompt, assistant: Prompt | None, options: Options, rows, stops, new_tokens):
        self.prompt, self.assistant, self.options, self.rows = prompt, assistant, options, rows
        self.stops, self.new_tokens = stops, new_tokens
        self.length = draft_length(options)
        # Numbers where they are fixed in the graph.
        self.batch, self.size = ops.shape(prompt.logits)[0], prompt.logits.shape[-1]
        self.filters = {name: rows[name] for name in SAMPLING if name in rows}
        self.ahead = tf.range(self.length + 1)[None]

    def start(self) -> dict:
        """The state after the first token, which the prompt's reading decides."""
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
        """Drafts tokens, reads them at once, and keeps those that the model agrees to and one more."""
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
        """The state behind the draft's accepted tokens and one that is the model's own.

        Args:
          logits: [B, length + 1, V], of the model, after the last token and after each of the draft's.
          tokens, chances: [B] and [B, V] each, of the draft.
          numbers: of `draws`.
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
        """Logits [B, V] -> the probabilities [B, V] that `sample` would draw from."""
        allowed = constrain(self.options, self.rows, history, step, logits)
        if self.options.do_sample:
            return tf.nn.softmax(filter_logits(allowed, self.filters))
        return tf.one_hot(tf.argmax(allowed, -1, tf.int32), self.size)

    def draws(self, count):
        """Numbers [B, 3, length + 1], by stream, for the tokens from each row's `count`-th on."""
        if not self.options.do_sample:
            return tf.fill([self.batch, 3, self.length + 1], 0.5)
        streams = tf.constant([NUMBER, DRAFT, ACCEPT])[:, None]
        return uniform(self.rows["seed"][:, None, None], streams, (count[:, None] + self.ahead)[:, None])

    def suggest(self, state, numbers):
        """The assistant's draft: (tokens [B] each, their probabilities [B, V], the cache's tensors)."""
        assistant = self.assistant
        assert assistant is not None
        count, history, tensors = state["count"], state["history"], state["assistant"]
        # It may not have read the last token but one, where it drafted it last: so both are read.
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
        """What followed the last few tokens where they came before: (tokens [B] each, their probabilities [B, V]), with
        no probability where nothing did."""
        width = tf.shape(history)[1]
        begin = tf.zeros([self.batch], tf.int32)
        for n in range(1, self.options.max_matching_ngram_size + 1):  # The longest match counts: it comes last.
            ends = width - n  # Windows whose next token is there.
            same = tf.ones([self.batch, ends], tf.bool)
            for i in range(n):
                last = history[:, width - n + i][:, None]
                same &= (history[:, i : ends + i] == last) & (last >= 0)
            latest = tf.reduce_max(tf.where(same, tf.range(ends)[None] + n, 0), 1)
            begin = tf.where(latest > 0, latest, begin)
        places = begin[:, None] + self.ahead[:, : self.length]
        there = (begin[:, None] > 0) & (places < width)
        found = tf.gather(history, tf.minimum(places, width - 1), batch_dims=1)
        tokens = tf.unstack(tf.where(there, found, 0), num=self.length, axis=1)
        marks = tf.unstack(tf.cast(there, tf.float32)[:, :, None], num=self.length, axis=1)
        return tokens, [tf.one_hot(token, self.size) * mark for token, mark in zip(tokens, marks)]

    def write(self, state, token, logits, active) -> dict:
        """The state with token [B], judged by logits [B, V], behind the texts of `active` rows."""
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
    """A draft's token, or another in its place: (token [B], bool [B], whether it is the draft's).

    Args:
      true, chance: [B, V], the probabilities that the model gives and that the draft was drawn with.
      token: [B], the draft's.
      number, other: [B], random: one decides, the other draws what takes its place.
    """
    ours, theirs = (tf.gather(x, token, batch_dims=1) for x in (true, chance))
    accepted = number * theirs < ours
    accepted &= theirs > 0
    rest = tf.maximum(true - chance, 0)
    # Rounding may leave nothing of two distributions that are all but one.
    rest = tf.where(tf.reduce_sum(rest, -1, keepdims=True) > 0, rest, true)
    return tf.where(accepted, token, pick(rest, other)), accepted


def _append(history, token):
    return tf.concat([history[:, 1:], token[:, None]], 1)
