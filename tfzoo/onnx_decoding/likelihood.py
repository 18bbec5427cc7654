"""Log-probabilities of texts by an exported decoder or encoder-decoder: what tfzoo.evaluation.likelihood computes with
a model."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfzoo.errors import UserError
from tfzoo.evaluation.windows import (
    Likelihood,
    check_rows,
    rows_of_continuations,
    rows_of_texts,
    score_rows,
)
from tfzoo.onnx_decoding.draws import log_softmax
from tfzoo.onnx_decoding.graphs import open_graphs, padded
from tfzoo.onnx_decoding.tokens import Tokens

_LOGITS = 2**26  # At most so many numbers at once, if a row has no more.


class OnnxScorer:
    """Scores texts with an ONNX artifact.

    Args:
      folder: the artifact.
      manifest: the content of its manifest.json.
      variant: one of its variants; None runs the float32 graphs.
      **windows: length, stride and batch_size of tfzoo.evaluation.windows.score_rows.

    Attributes:
      tokenizer: the Tokens.

    Raises:
      UserError: the artifact does not write text, its tokenizer cannot be read, or it lacks the variant.
    """

    def __init__(
        self, folder: str | os.PathLike, manifest: Mapping[str, Any], variant: str | None = None, **windows: Any
    ):
        folder = pathlib.Path(folder)
        self._graphs, self.tokenizer = open_graphs(folder, manifest, variant), Tokens(folder, manifest)
        self._folder, self._size = folder, manifest["model"]["config"]["vocab_size"]
        limit, positions = manifest["options"]["sequence_length"], manifest["model"]["config"]["positions"]
        if self._graphs.start is not None:
            limit = manifest["model"]["config"]["max_positions"]
        self._windows = {**windows, "max_length": limit, "limits_sources": positions not in ("relative", "none")}

    def texts(self, texts: list[str]) -> list[Likelihood]:
        """Returns the likelihood of each text; see tfzoo.evaluation.likelihood.score_texts."""
        if self._graphs.start is not None:
            raise UserError(f"{self._folder}: is an encoder-decoder: provide a context and a continuation")
        rows, firsts = rows_of_texts(self.tokenizer.before, self.tokenizer.encode(texts), texts)
        return self._scored(rows, firsts)

    def continuations(self, contexts: list[str], continuations: list[str]) -> list[Likelihood]:
        """Returns the likelihood of each continuation; see tfzoo.evaluation.likelihood.score_continuations."""
        tokens, start, sources = self.tokenizer, self._graphs.start, None
        if start is not None:
            sources = [tokens.framed(ids) for ids in tokens.encode(contexts)]
            rows = [[start, *tokens.before, *ids] for ids in tokens.encode(continuations)]
            firsts = [1 + len(tokens.before)] * len(rows)
        else:
            rows, firsts = rows_of_continuations(tokens.before, tokens.bos_id, tokens.encode, contexts, continuations)
        check_rows(rows, firsts, continuations)
        return self._scored(rows, firsts, sources)

    def _scored(self, rows, firsts, sources=None) -> list[Likelihood]:
        return score_rows(self._compute, rows, firsts, sources=sources, **self._windows)

    def _compute(self, ids: Sequence[Sequence[int]], sources: Sequence[Sequence[int]] | None):
        """See tfzoo.evaluation.windows.Compute."""
        table, _ = padded(ids, max(map(len, ids)))
        count = max(1, _LOGITS // (table.shape[1] * self._size))
        scores, best = [], []
        for begin in range(0, len(table), count):
            part = slice(begin, begin + count)
            cross: Mapping[str, Any] = {}
            if sources is not None:
                read, mask = padded(sources[part], max(map(len, sources[part])))
                cross = self._graphs.encode({"input_ids": read, "attention_mask": mask})
            logits = self._graphs.logits(table[part, :-1], cross).astype(np.float32, copy=False)
            targets = table[part, 1:, None]
            scores.append(np.take_along_axis(log_softmax(logits), targets, -1)[..., 0])
            best.append(np.take_along_axis(logits, targets, -1)[..., 0] >= logits.max(-1))
        return np.concatenate(scores), np.concatenate(best)
