"""Greedy search and sampling, one token after another: tfzoo.generation.sample with an ONNX graph."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tfzoo.errors import CheckFailed
from tfzoo.generation.options import SAMPLING, Options
from tfzoo.onnx_decoding.constraints import constrain
from tfzoo.onnx_decoding.draws import filter_logits, log_softmax, pick, softmax, uniform
from tfzoo.onnx_decoding.graphs import Reading

Ends = Callable[[Sequence[int]], bool]  # The new tokens of a text -> whether it ends with the last of them.


class Step(NamedTuple):
    """The next token of each text."""

    tokens: np.ndarray  # int64 [B]
    scores: np.ndarray  # float32 [B], the unmodified log-probabilities of the tokens.
    active: np.ndarray  # bool [B], whether the text had not ended before; otherwise, the token does not count.


def sample(reading: Reading, options: Options, rows: Mapping[str, np.ndarray], ends: Ends) -> Iterator[Step]:
    """Yields the next token of each text until all have ended: the likeliest, or a sampled one.

    Args:
      reading: the prompts.
      options: Options.
      rows: arrays [B] by names of options.ROWS, including "max_new_tokens", and "seed" if tokens are sampled.
      ends: whether a text ends.

    Raises:
      CheckFailed: the graph's logits are not finite.
    """
    filters = {name: rows[name] for name in SAMPLING if name in rows}
    written: list[list[int]] = [[] for _ in reading.logits]
    active, step = rows["max_new_tokens"] > 0, 0
    while active.any():
        logits = reading.logits
        check_finite(logits, active)
        allowed = constrain(options, rows, reading.history, step, logits)
        if options.do_sample:
            tokens = pick(softmax(filter_logits(allowed, filters)), uniform(rows["seed"], 0, step))
        else:
            tokens = allowed.argmax(-1)
        yield Step(tokens, np.take_along_axis(log_softmax(logits), tokens[:, None], 1)[:, 0], active)
        step, active = step + 1, active & (rows["max_new_tokens"] > step + 1)
        for row, token in enumerate(tokens.tolist()):
            written[row].append(token)
            active[row] = active[row] and not ends(written[row])
        if active.any():
            reading.step(tokens)


def check_finite(logits: np.ndarray, active: np.ndarray) -> None:
    """Checks the logits [B, ..., V] of the texts that have not ended, bool [B].

    Raises:
      CheckFailed: one of them is not finite.
    """
    bad = active & np.isnan(logits.reshape(len(logits), -1).sum(-1))
    if bad.any():
        raise CheckFailed(f"row {int(bad.argmax())}: the graph's logits are not finite; export the model again")
