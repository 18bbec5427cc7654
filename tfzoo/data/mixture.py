"""Training on several sources in given proportions.

The positions of a run are divided into blocks of BLOCK. In each block, every source has its share of the positions, at
equal distances, so that each batch contains all sources in nearly these proportions. The positions of a source are
numbered consecutively, and its rows are shuffled in epochs of its own (`tfzoo.data.order`). Therefore the source and
the row of a position are a pure function of (seed, position), and a run resumes from one integer.

Shares are proportional to the given weights, or else to size ** (1 / temperature), where the size of a source is its
number of rows. With the temperature 1, all sources are repeated equally often; with higher ones, small sources are
repeated more often (Raffel et al. 2020, section 3.5.2; Conneau et al. 2020, section 3.1: alpha is 1 / temperature).
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfzoo import lazy
from tfzoo.data import files
from tfzoo.data.documents import Corpus, sizes
from tfzoo.errors import UserError

tf = lazy.module("tensorflow")
order = lazy.module("tfzoo.data.order")

BLOCK = 10_000  # A share is rounded to a multiple of 1 / BLOCK, but not to 0.


def parse_weights(text: str | None, num_sources: int, temperature: float = 1.0) -> list[float] | None:
    """Returns the numbers in the value of --corpus_weights, one for each source; None if it is not set.

    A source of weight 0 is not trained on, but its held-out text is evaluated.

    Raises:
      UserError: there is another number of them, one is invalid, or their sum is not positive.
    """
    if text is None:
        return None
    try:
        weights = [float(number) for number in text.split(",")]
    except ValueError:
        raise UserError(f"--corpus_weights={text}: must be numbers separated by commas, such as 3,1") from None
    if len(weights) != num_sources:
        raise UserError(
            f"--corpus_weights={text}: has {len(weights)} number(s), but --corpus has {num_sources} source(s); specify "
            "one number for each source"
        )
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise UserError(f"--corpus_weights={text}: must be finite numbers that are not negative")
    if not 0 < sum(weights) < math.inf:
        raise UserError(f"--corpus_weights={text}: their sum must be positive and finite; raise or lower a number")
    if temperature != 1:
        raise UserError(
            f"--corpus_temperature={temperature}: does not apply with --corpus_weights, which already sets the shares; "
            "omit one of them"
        )
    return weights


def shares_of(sizes: Sequence[int], weights: Sequence[float] | None, temperature: float = 1.0) -> list[float]:
    """Returns each source's share, from 0 to 1: proportional to `weights`, or else to size ** (1 / temperature)."""
    if weights is None:
        weights = [(size / max(sizes)) ** (1 / temperature) for size in sizes]
    total = sum(weights)
    return [weight / total for weight in weights]


def mix(
    spec: str, corpora: Sequence[Corpus], weights: Sequence[float] | None = None, temperature: float = 1.0
) -> Corpus:
    """Returns a Corpus whose `sources` are `corpora`, by name, and whose parts are those of all of them.

    A training document that also is a held-out document of another source is omitted. The name of a source is the last
    component of its path if that is unambiguous. The fingerprint also covers `weights` and `temperature`.

    Raises:
      UserError: two sources contain the same text, or nothing is left of a source.
    """
    names = ["+".join(path.rsplit("/", 1)[-1] for path in corpus.name.split("+")) for corpus in corpora]
    if len(set(names)) < len(names):
        names = [corpus.name for corpus in corpora]
    held_out: dict[bytes, str] = {}
    sources: dict[str, Corpus] = {}
    for name, corpus in zip(names, corpora, strict=True):
        for other, source in sources.items():
            if source.fingerprint == corpus.fingerprint:
                raise UserError(f"--corpus={spec}: {other} and {name} contain the same text; specify it once")
        sources[name] = corpus
        for document in corpus.held_out:
            held_out.setdefault(files.hash_of(files.text_of(document)), name)
    for name, corpus in sources.items():
        sources[name] = _without(corpus, {key for key, other in held_out.items() if other != name}, spec)
    fingerprints = [corpus.fingerprint for corpus in sources.values()]
    fingerprint = hashlib.sha256(repr((fingerprints, weights, temperature)).encode()).hexdigest()
    parts = {
        part: [document for corpus in sources.values() for document in getattr(corpus, part)]
        for part in ("train", "held_out")
    }
    report: dict[str, Any] = {
        "sources": {
            name: {"fingerprint": corpus.fingerprint, "report": corpus.report} for name, corpus in sources.items()
        },
        **{part: sizes(documents) for part, documents in parts.items()},
    }
    return Corpus(spec, fingerprint, parts["train"], parts["held_out"], report, sources)


def _without(corpus: Corpus, held_out: set[bytes], spec: str) -> Corpus:
    """Returns a corpus without the training documents that are held out elsewhere."""
    train = [document for document in corpus.train if files.hash_of(files.text_of(document)) not in held_out]
    count = len(corpus.train) - len(train)
    if not count:
        return corpus
    if not train:
        raise UserError(
            f"--corpus={spec}: all training text of {corpus.name} is held-out text of other sources; omit one of them"
        )
    report = corpus.report | {"held_out_elsewhere": count, "train": sizes(train)}
    left = hashlib.sha256(corpus.fingerprint.encode())
    for document in train:
        left.update(files.hash_of(files.text_of(document)))
    return dataclasses.replace(corpus, fingerprint=left.hexdigest(), train=train, report=report)


class MixedRows:
    """The rows of several sources, one source after the other; `locate` mixes them. `row` and `locate` are pure
    functions."""

    def __init__(self, sources: Mapping[str, Any], shares: Sequence[float]):
        """Assigns positions to sources.

        Args:
          sources: name -> rows, of the same kind and not empty.
          shares: the fraction of the positions of each source, from 0 to 1, with the sum 1.
        """
        self.sources = dict(sources)
        self._rows = list(self.sources.values())
        self.FEATURES = self._rows[0].FEATURES  # As in other rows: what `row` returns.
        self._sizes = np.array([len(rows) for rows in self._rows], np.int64)
        self._starts = np.cumsum([0, *self._sizes[:-1]])
        self._counts = _counts(shares)
        # For each position of a block, its source, and the number of earlier positions with this source.
        places = np.concatenate([(np.arange(count) + 0.5) / max(count, 1) for count in self._counts])
        self._source = np.repeat(np.arange(len(self._counts)), self._counts)[np.argsort(places, kind="stable")]
        self._earlier = np.empty(BLOCK, np.int64)
        for source, count in enumerate(self._counts):
            self._earlier[self._source == source] = np.arange(count)
        self.shares = dict(zip(self.sources, (self._counts / BLOCK).tolist(), strict=True))
        """The fraction of the positions of each source."""
        self.padding_share = float(self._counts @ [rows.padding_share for rows in self._rows]) / BLOCK
        """The fraction of padding of the rows, in these proportions."""

    def __len__(self) -> int:
        return int(self._sizes.sum())

    def row(self, index: int, numbers=None):
        """Returns one row of the source that contains it."""
        source = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._rows[source].row(int(index - self._starts[source]), numbers)

    def locate(self, position, seed: int):
        """Returns (epoch of its source, index) of a global position, int64 scalars, in a graph or eagerly."""
        position = tf.cast(position, tf.int64)
        block, slot = position // BLOCK, position % BLOCK
        source = tf.constant(self._source)[slot]
        number = block * tf.constant(self._counts)[source] + tf.constant(self._earlier)[slot]
        epoch, index = order.epoch_and_index(number, tf.constant(self._sizes)[source], seed)
        return epoch, index + tf.constant(self._starts)[source]

    def epochs(self, num_positions: int) -> dict[str, float]:
        """Returns how often the rows of each source have been read on average after `num_positions` positions."""
        return {
            name: num_positions * share / len(rows)
            for (name, share), rows in zip(self.shares.items(), self._rows, strict=True)
        }


def _counts(shares: Sequence[float]) -> np.ndarray:
    """Returns the number of positions of each source in a block, int64 [S]: its share, rounded so that the sum is BLOCK
    and that no positive share becomes 0."""
    exact = np.array(shares) * BLOCK
    counts = np.where(exact > 0, np.maximum(np.floor(exact), 1), 0)
    while counts.sum() != BLOCK:
        if counts.sum() < BLOCK:
            counts[np.argmax(exact - counts)] += 1
        else:
            counts[np.argmax(np.where(counts > 1, counts - exact, -np.inf))] -= 1
    return counts.astype(np.int64)
