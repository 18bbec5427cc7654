"""Beam search: continues the K likeliest texts in parallel; groups of beams are kept diverse (Vijayakumar et al. 2018,
section 3).

The end of a text and of the search are decided as in transformers' beam search, so that the texts are the same. So is
sampling: the candidates of a step are drawn without replacement, by the probabilities of their texts, and the likeliest
of those drawn continue.
"""

import tensorflow as tf
from keras import ops

from tfzoo.generation.constraints import constrain, needs_history
from tfzoo.generation.draws import exponential, filter_logits
from tfzoo.generation.options import SAMPLING, Options
from tfzoo.generation.prompt import Prompt
from tfzoo.generation.sample import start_history

LOW = -1e9  # Lower than any score.
STREAM = 3  # The stream of random numbers by which candidates are drawn.


def beam_search(prompt: Prompt, options: Options, rows, stops, new_tokens) -> dict:
    """Runs a beam search; the arguments are those of `sample`. The cache needs K slots per new token, where K is
    options.num_beams.

    Returns:
      token_ids, scores, lengths and bad of num_return_sequences texts per row, the best first, and sequence_scores,
      float32 [B R]: each text's log-probability divided by its length to the power of length_penalty.
    """
    beams = options.num_beams
    # Slot t K + k after the prompt contains the t-th new token of beam k.
    positions = prompt.count[:, None] + tf.range(new_tokens * beams)[None] // beams
    prompt.cache.positions = tf.concat([prompt.cache.positions[:, : prompt.length], positions], 1)
    search = _BeamSearch(prompt, options, rows, stops, new_tokens)
    state = search.choose(search.start(), tf.repeat(prompt.logits[:, None], beams, axis=1))
    (state,) = tf.while_loop(search.goes_on, search.step, (state,), parallel_iterations=1)
    return search.results(state)


class _BeamSearch:
    """The parts of a search that are the same at every step. W is the number of beams in a group.

    The state of the search is a dict:
      step: int32, the number of new tokens of every beam.
      bad: bool [B], whether the model's logits were not finite.
      groups: for each group the dict that `start_group` returns.
      ancestors: int32 [B, K, N], the beam that generated the t-th token of the text of beam k.
      tensors: those of the cache.
      history: int32 [B, K, T], if `constrain` needs it.
    """

    def __init__(self, prompt: Prompt, options: Options, rows, stops, new_tokens):
        self.prompt, self.options, self.rows, self.stops, self.new_tokens = prompt, options, rows, stops, new_tokens
        self.beams, self.width = options.num_beams, options.num_beams // options.num_beam_groups
        # Python integers if they are static in the graph.
        self.batch, self.size = ops.shape(prompt.logits)[0], prompt.logits.shape[-1]
        # Parameters for each beam, instead of for each row of the batch.
        self.each = {name: tf.repeat(value, self.beams, axis=0) for name, value in rows.items()}
        self.filters = {name: self.each[name] for name in SAMPLING if name in self.each}
        # Per beam. Among this many candidates at least W continue, even if a text of every beam ends among them.
        self.candidates = max(2, 1 + len(options.eos_token_id))

    def start(self) -> dict:
        """Returns the state before the first token."""
        prompt, options = self.prompt, self.options
        state = {
            "step": 0,
            "bad": tf.zeros([self.batch], tf.bool),
            "groups": [self.start_group() for _ in range(options.num_beam_groups)],
            "ancestors": tf.fill([self.batch, self.beams, self.new_tokens], -1),
            "tensors": prompt.cache.tensors,
        }
        if needs_history(options, self.rows):
            history = start_history(prompt.token_ids, self.new_tokens, options)
            state["history"] = tf.repeat(history[:, None], self.beams, axis=1)
        return state

    def start_group(self) -> dict:
        """Returns a group before the first token.

        Returns:
          For the beams that continue: sums float32 [B, W], their log-probabilities; texts int32 [B, W, N]; scores
          float32 [B, W, N], one per token; found [B, W, strings], the states of `stops`; token int32 [B, W], the newest
          one. For the texts that have ended, the best first: end_sums, divided by length; end_texts, end_scores,
          end_lengths. open: bool [B], whether the search of a row continues.
        """
        batch, width = self.batch, self.width
        texts = tf.fill([batch, width, self.new_tokens], self.options.pad_token_id)
        scores = tf.zeros([batch, width, self.new_tokens])
        lengths, low = tf.zeros([batch, width], tf.int32), tf.fill([batch, width], LOW)
        return {
            "end_sums": low,
            "end_texts": texts,
            "end_scores": scores,
            "end_lengths": lengths,
            # All beams start with the same text; only the first one counts.
            "sums": tf.concat([tf.zeros([batch, 1]), low[:, 1:]], 1),
            "texts": texts,
            "scores": scores,
            "found": self._by_text(self.stops.start(batch * width), width),
            "token": lengths,
            "open": self.rows["max_new_tokens"] > 0,
        }

    def goes_on(self, state):
        """Returns whether any row of any group continues."""
        going = tf.reduce_any(tf.stack([group["open"] for group in state["groups"]]))
        return (state["step"] < self.new_tokens) & going

    def step(self, state) -> tuple[dict]:
        """Reads the newest token of each beam and chooses the next tokens."""
        state, prompt, beams = dict(state), self.prompt, self.beams
        place = state["step"] - 1
        numbers = tf.range(beams)
        state["ancestors"] = _write(state["ancestors"], tf.broadcast_to(numbers, [self.batch, beams]), place)
        visible = tf.one_hot(state["ancestors"], beams, True, False, dtype=tf.bool)
        visible = tf.reshape(visible, [self.batch, beams, self.new_tokens * beams])
        slots = (prompt.length + place * beams + numbers)[None]
        offsets = tf.fill([1, beams], place)
        sequence, state["tensors"] = prompt.step(state["tensors"], _tokens(state), offsets, slots, visible)
        return (self.choose(state, prompt.model.next_logits(sequence)),)

    def choose(self, state, logits) -> dict:
        """Returns the state after a step: logits [B, K, V] decide which beams continue and which texts end."""
        state = dict(state)
        history = state.get("history")
        wrong = tf.math.is_nan(tf.reduce_sum(logits, [1, 2]))
        state["bad"] |= wrong & tf.reduce_any(tf.stack([group["open"] for group in state["groups"]]), 0)
        plain = tf.nn.log_softmax(logits)
        allowed = self._allowed(plain, history, state["step"])
        taken = tf.zeros([self.batch, 1, self.size])  # How many beams of the previous groups chose each token.
        groups, parents = [], []
        for i, group in enumerate(state["groups"]):
            here = slice(i * self.width, (i + 1) * self.width)
            now = allowed[:, here] - self.options.diversity_penalty * taken if i else allowed[:, here]
            group, parent = self.advance(group, now, plain[:, here], state["step"])
            groups.append(group)
            parents.append(parent + i * self.width)
            taken += tf.reduce_sum(tf.one_hot(group["token"], self.size), 1, keepdims=True)
        state["groups"], parent = groups, tf.concat(parents, 1)
        state["ancestors"] = _take(state["ancestors"], parent)
        if history is not None:
            state["history"] = tf.concat([_take(history, parent)[:, :, 1:], _tokens(state)[:, :, None]], 2)
        return state | {"step": state["step"] + 1}

    def _allowed(self, plain, history, step):
        """Returns log-probabilities [B, K, V], -inf for tokens that may not follow."""
        rows = self.batch * self.beams
        seen = None if history is None else tf.reshape(history, [rows, ops.shape(history)[2]])
        allowed = constrain(self.options, self.each, seen, step, tf.reshape(plain, [rows, self.size]))
        if self.options.do_sample:
            allowed = filter_logits(allowed, self.filters, self.candidates)
        if self.options.renormalize_logits:
            allowed = tf.nn.log_softmax(allowed)
        return tf.reshape(allowed, [self.batch, self.beams, self.size])

    def advance(self, group, allowed, plain, step):
        """Advances a group by one token.

        Args:
          group: see `start_group`.
          allowed, plain: log-probabilities [B, W, V] with and without constraints.
          step: the number of new tokens before this one.

        Returns:
          (group, int32 [B, W], the beams that its new beams continue).
        """
        sums, index = self._draw(group["sums"], allowed, step)
        parent, token = index // self.size, index % self.size
        texts = _write(_take(group["texts"], parent), token, step)
        score = tf.gather(tf.reshape(plain, [self.batch, self.width * self.size]), index, batch_dims=1)
        scores = _write(_take(group["scores"], parent), score, step)
        flat = tf.reshape(token, [-1])
        found = tf.reshape(_take(group["found"], parent), [tf.size(flat), len(self.stops.tables)])
        found, ends = self.stops.feed(found, flat)
        found = self._by_text(found, token.shape[1])
        ends = tf.reshape(ends, [self.batch, token.shape[1]]) | (step + 1 >= self.rows["max_new_tokens"])[:, None]
        ended = self._end(group, sums, texts, scores, ends, step)
        sums, order = tf.math.top_k(tf.where(ends, sums + LOW, sums), self.width)
        going = {"sums": sums, "texts": _take(texts, order), "scores": _take(scores, order)}
        going |= {"found": _take(found, order), "token": _take(token, order)}
        going["open"] = group["open"] & self._promises(sums, ended["end_sums"], step) & ~tf.reduce_all(ends, 1)
        return ended | going, _take(parent, order)

    def _draw(self, sums, allowed, step):
        """Returns the candidates of a group, the best first: their sums and their indices among W V continuations."""
        total = tf.reshape(allowed + sums[:, :, None], [self.batch, self.width * self.size])
        count = self.candidates * self.width
        if self.options.do_sample:
            # The highest values of log p - log(e), with e exponentially distributed, are ordered draws without
            # replacement (Kool et al. 2019, https://arxiv.org/abs/1903.06059, section 2.3).
            noise = exponential(self.rows["seed"], STREAM, step, self.width * self.size)
            _, index = tf.math.top_k(total - tf.math.log(noise), count)
            sums = tf.gather(total, index, batch_dims=1)
        else:
            sums, index = tf.math.top_k(total, count)
        return sums, index

    def _end(self, group, sums, texts, scores, ends, step) -> dict:
        """Returns the best among the texts that ended before and the candidates that end at this step."""
        count = sums.shape[1]
        length = tf.cast(step + 1, tf.float32)
        best = tf.range(count)[None] < self.width
        ended = tf.where(ends & best & group["open"][:, None], sums / length**self.options.length_penalty, LOW)
        kept, order = tf.math.top_k(tf.concat([group["end_sums"], ended], 1), self.width)
        new = {"texts": texts, "scores": scores, "lengths": tf.fill([self.batch, count], step + 1)}
        merged = {f"end_{name}": _take(tf.concat([group[f"end_{name}"], x], 1), order) for name, x in new.items()}
        return {"end_sums": kept} | merged

    def _promises(self, sums, ended, step):
        """Returns bool [B], whether a continuing beam may become better than the worst text that has ended."""
        options = self.options
        full = tf.reduce_all(ended > LOW / 2, 1)
        longest = options.early_stopping == "never" and options.length_penalty > 0
        length = tf.cast(self.rows["max_new_tokens"] if longest else step + 1, tf.float32)
        better = ~full | (sums[:, 0] / length**options.length_penalty > ended[:, -1])
        return better & ~full if options.early_stopping is True else better

    def results(self, state) -> dict:
        """Returns the result of `beam_search`."""
        names, times = ("end_sums", "end_texts", "end_scores", "end_lengths"), self.options.num_return_sequences
        sums, texts, scores, lengths = (tf.concat([group[name] for group in state["groups"]], 1) for name in names)
        sums, order = tf.math.top_k(sums, times)
        texts, scores, lengths = (_take(x, order) for x in (texts, scores, lengths))
        return {
            "token_ids": tf.reshape(texts, [self.batch * times, self.new_tokens]),
            "scores": tf.reshape(scores, [self.batch * times, self.new_tokens]),
            "lengths": tf.reshape(lengths, [self.batch * times]),
            "bad": tf.repeat(state["bad"], times),
            "sequence_scores": tf.reshape(sums, [self.batch * times]),
        }

    def _by_text(self, found, count):
        return tf.reshape(found, [self.batch, count, len(self.stops.tables)])


def _take(x, index):  # x [B, N, ...], index [B, K] -> [B, K, ...]
    return tf.gather(x, index, batch_dims=1)


def _write(x, values, place):  # x [B, K, N], values [B, K] -> x with the values in column `place`
    return tf.where(tf.range(tf.shape(x)[2]) == place, values[:, :, None], x)


def _tokens(state):  # [B, K], each beam's newest token
    return tf.concat([group["token"] for group in state["groups"]], 1)
