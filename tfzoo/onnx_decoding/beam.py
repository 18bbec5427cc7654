"""Beam search with an ONNX graph: the search of tfzoo.generation.beam, which cites its sources, in NumPy."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from tfzoo.generation.options import SAMPLING, Options
from tfzoo.onnx_decoding.constraints import constrain
from tfzoo.onnx_decoding.draws import exponential, filter_logits, log_softmax, top
from tfzoo.onnx_decoding.graphs import Reading
from tfzoo.onnx_decoding.sample import Ends, check_finite

_LOW = np.float32(-1e9)  # Lower than any score.
_STREAM = 3  # The stream of random numbers by which candidates are drawn, as in tfzoo.generation.beam.


class Text(NamedTuple):
    """A text that a search has found."""

    token_ids: list[int]
    scores: list[float]  # The unmodified log-probability of each token.
    sequence_score: float  # The value by which texts are ranked.


_NONE = Text([], [], float(_LOW))


@dataclasses.dataclass
class _Group:
    """The W beams of a group, for each of B rows.

    Attributes:
      sums: float32 [B, W], the log-probabilities of the beams.
      beams: [B][W], their texts, without ranks.
      ended: [B][up to W], the texts that have ended, the best first.
      open: bool [B], whether the search of a row continues.
    """

    sums: np.ndarray
    beams: list[list[Text]]
    ended: list[list[Text]]
    open: np.ndarray


def beam_search(
    reading: Reading,
    options: Options,
    rows: Mapping[str, np.ndarray],
    ends: Ends,
    check: Callable[[], None] = lambda: None,
) -> list[Text]:
    """Returns num_return_sequences texts per row, the best first.

    Args:
      reading: the prompts.
      options: Options, with num_beams above 1.
      rows: arrays [B] by names of options.ROWS, including "max_new_tokens", and "seed" if tokens are sampled.
      ends: whether a text ends.
      check: called before each step; may raise an error to end the search.

    Raises:
      CheckFailed: the graph's logits are not finite.
    """
    search = _BeamSearch(reading, options, rows, ends)
    while search.goes_on():
        check()
        search.step()
    return search.results()


class _BeamSearch:
    """The state of a search; K is the number of beams, W that of a group."""

    def __init__(self, reading: Reading, options: Options, rows: Mapping[str, np.ndarray], ends: Ends):
        self._reading, self._options, self._rows, self._ends = reading, options, rows, ends
        self._beams, self._width = options.num_beams, options.num_beams // options.num_beam_groups
        self._batch, self._size = reading.logits.shape
        self._each = {name: np.repeat(value, self._beams, axis=0) for name, value in rows.items()}
        self._filters = {name: self._each[name] for name in SAMPLING if name in self._each}
        # Per beam. Among this many candidates at least W continue, even if a text of every beam ends among them.
        self._candidates = max(2, 1 + len(options.eos_token_id))
        self._step = 0
        reading.take(np.repeat(np.arange(self._batch), self._beams))
        self._groups = [self._start() for _ in range(options.num_beam_groups)]

    def _start(self) -> _Group:
        # All beams start with the same text; only the first one counts.
        sums = np.full((self._batch, self._width), _LOW, np.float32)
        sums[:, 0] = 0
        empty = [[_NONE] * self._width for _ in range(self._batch)]
        return _Group(sums, empty, [[] for _ in range(self._batch)], self._rows["max_new_tokens"] > 0)

    def goes_on(self) -> bool:
        """Returns whether any row of any group continues."""
        return any(group.open.any() for group in self._groups)

    def step(self) -> None:
        """Chooses the next token of every beam, and reads it."""
        batch, beams, size = self._batch, self._beams, self._size
        logits = self._reading.logits
        going = np.any([group.open for group in self._groups], 0)
        check_finite(logits.reshape(batch, beams, size), going)
        plain = log_softmax(logits)
        allowed = constrain(self._options, self._each, self._reading.history, self._step, plain)
        if self._options.do_sample:
            allowed = filter_logits(allowed, self._filters, self._candidates)
        if self._options.renormalize_logits:
            allowed = log_softmax(allowed)
        plain, allowed = plain.reshape(batch, beams, size), allowed.reshape(batch, beams, size)
        taken = np.zeros((batch, 1, size), np.float32)  # How many beams of the previous groups chose each token.
        parents, tokens = [], []
        for i, group in enumerate(self._groups):
            here = slice(i * self._width, (i + 1) * self._width)
            now = allowed[:, here] - np.float32(self._options.diversity_penalty) * taken if i else allowed[:, here]
            parent, token = self._advance(group, now, plain[:, here])
            parents.append(parent + i * self._width)
            tokens.append(token)
            for row in range(batch):
                taken[row, 0] += np.bincount(token[row], minlength=size)
        self._step += 1
        if self.goes_on():
            parent = np.concatenate(parents, 1) + beams * np.arange(batch)[:, None]
            self._reading.take(parent.reshape(-1))
            self._reading.step(np.concatenate(tokens, 1).reshape(-1))

    def _advance(self, group: _Group, allowed: np.ndarray, plain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Advances a group by one token; returns the beams that its new beams continue, and their newest tokens, both
        int64 [B, W]. allowed, plain: log-probabilities [B, W, V] with and without constraints."""
        width, length = self._width, self._step + 1
        sums, index = self._draw(group.sums, allowed)
        parent, token = index // self._size, index % self._size
        scores = np.take_along_axis(plain.reshape(self._batch, -1), index, 1)
        penalty = np.float32(length) ** np.float32(self._options.length_penalty)
        parents, tokens = np.zeros((2, self._batch, width), np.int64)
        for row in range(self._batch):
            texts = []
            for p, t, score in zip(parent[row].tolist(), token[row].tolist(), scores[row].tolist()):
                before = group.beams[row][p]
                texts.append(Text([*before.token_ids, t], [*before.scores, score], 0.0))
            last = length >= self._rows["max_new_tokens"][row]
            ended = np.array([last or self._ends(text.token_ids) for text in texts])
            if group.open[row]:
                new = [
                    text._replace(sequence_score=float(sums[row, i] / penalty))
                    for i, text in enumerate(texts[:width])
                    if ended[i] and sums[row, i] / penalty > _LOW
                ]
                # A stable sort: of equal texts, the one that ended earlier comes first.
                group.ended[row] = sorted([*group.ended[row], *new], key=lambda text: -text.sequence_score)[:width]
            (best,), (order,) = top(np.where(ended, sums[row] + _LOW, sums[row])[None], width)
            group.sums[row], group.beams[row] = best, [texts[i] for i in order]
            parents[row], tokens[row] = parent[row, order], token[row, order]
            group.open[row] &= self._promises(group, row, length) and not ended.all()
        return parents, tokens

    def _draw(self, sums: np.ndarray, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the candidates of a group, the best first: their sums and their indices among W V continuations."""
        total = (allowed + sums[:, :, None]).reshape(self._batch, -1)
        count = self._candidates * self._width
        if not self._options.do_sample:
            return top(total, count)
        noise = exponential(self._rows["seed"], _STREAM, self._step, total.shape[1])
        _, index = top(total - np.log(noise), count)
        return np.take_along_axis(total, index, 1), index

    def _promises(self, group: _Group, row: int, length: int) -> bool:
        """Returns whether a continuing beam of a row may become better than the worst text that has ended."""
        options, ended = self._options, group.ended[row]
        if len(ended) < self._width or ended[-1].sequence_score <= _LOW / 2:
            return True
        if options.early_stopping is True:
            return False
        longest = options.early_stopping == "never" and options.length_penalty > 0
        count = np.float32(self._rows["max_new_tokens"][row] if longest else length)
        return bool(group.sums[row, 0] / count ** np.float32(options.length_penalty) > ended[-1].sequence_score)

    def results(self) -> list[Text]:
        """Returns the result of `beam_search`."""
        found = []
        for row in range(self._batch):
            texts = [text for group in self._groups for text in self._filled(group.ended[row])]
            found += sorted(texts, key=lambda text: -text.sequence_score)[: self._options.num_return_sequences]
        return found

    def _filled(self, texts: list[Text]) -> list[Text]:
        return texts + [_NONE] * (self._width - len(texts))
