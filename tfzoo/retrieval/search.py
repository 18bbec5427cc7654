"""Exact search in the folder of an index.

    index = tfzoo.open_index("indexes/pages")
    for result in index.search(["how to resume a run"], top=5)[0]:
        print(result.rank, result.score, result.id, result.text)

The similarities of a query and all documents are matrix products of blocks in float32. The documents that may be among
the best, given the largest possible rounding error of these products, are compared once more in float64. The result
therefore equals that of sorting all documents by their float64 similarities; equal scores are in the order of the
documents. Neither the number of queries nor the size of a block changes a score.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tfzoo import progress
from tfzoo.errors import CheckFailed, UserError
from tfzoo.retrieval import fusion as fusion_lib
from tfzoo.retrieval import store
from tfzoo.retrieval.build import normalized
from tfzoo.retrieval.store import VECTORS, WORDS, Store

HYBRID = "hybrid"
METHODS = (HYBRID, VECTORS, WORDS)

_BLOCK = 1 << 14  # Documents per matrix product.
_MEMORY = 1 << 28  # Bytes of the similarities of a batch of queries and all documents.
_MOST_QUERIES = 256

Encode = Callable[[Sequence[str]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Result:
    """A document that was found: its rank from 1, its score by the method, its id and text."""

    rank: int
    score: float
    id: str
    text: str


def open_index(
    folder: str | os.PathLike,
    *,
    model_dir: str | None = None,
    batch_size: int = 32,
    verify: bool = True,
    encode: Encode | None = None,
) -> "Index":
    """Opens an index that `python -m tfzoo.index` wrote. Its files are memory-mapped.

    Args:
      folder: the folder of the index.
      model_dir: the folder of the model, if it was moved since; it must be the same model. It is loaded when the first
        query needs a vector; BM25 does not import TensorFlow.
      batch_size: the number of queries per batch of the model.
      verify: whether to compare the SHA-256 of each file, which reads the whole index.
      encode: a function queries -> float [N, D] to use instead of the model.

    Raises:
      UserError: the folder is not an index or is incomplete, or a file is missing or damaged.
    """
    opened = store.open_folder(pathlib.Path(folder), verify)
    if encode is None and VECTORS in opened.methods:
        encode = _Model(opened, model_dir, batch_size)
    return Index(opened, encode)


class Index:
    """An index opened for searching."""

    def __init__(self, opened: Store, encode: Encode | None = None):
        self.store = opened
        self._encode = encode
        self._vectors = _Vectors(opened) if opened.vectors is not None else None

    def __len__(self) -> int:
        """Returns the number of documents."""
        return len(self.store.ids)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of searching that the index supports, the default first."""
        single = self.store.methods
        return (HYBRID, *single) if len(single) > 1 else single

    def search(
        self,
        queries: str | Sequence[str],
        *,
        top: int = 10,
        method: str | None = None,
        fusion: str = fusion_lib.WEIGHTED,
        vector_weight: float = fusion_lib.VECTOR_WEIGHT,
    ) -> list[list[Result]]:
        """Returns the best documents of each query, the best first.

        Args:
          queries: one query or several.
          top: the number of documents; fewer are returned if the corpus is smaller. BM25 returns only documents that
            contain a word of the query.
          method: "vectors", "bm25" or "hybrid"; None means hybrid if the index supports it.
          fusion, vector_weight: how hybrid combines both scores: see tfzoo.retrieval.fusion.

        Raises:
          UserError: a query is blank, an argument is invalid, or the model is not that of the index.
        """
        queries = [queries] if isinstance(queries, str) else list(queries)
        method = self._check(queries, top, method, fusion, vector_weight)
        found = []
        for batch, similarities in self._batches(queries, method):
            for i, query in enumerate(batch):
                bm25 = None if method == VECTORS or self.store.words is None else self.store.words.scores(query)
                vectors = None if similarities is None else similarities(i)
                found.append(self._results(*_best(vectors, bm25, top, fusion, vector_weight)))
        return found

    def _check(self, queries: list[str], top: int, method: str | None, fusion: str, vector_weight: float) -> str:
        method = self.methods[0] if method is None else method
        if method not in METHODS:
            raise UserError(f"method={method}: must be one of {', '.join(METHODS)}")
        if method not in self.methods:
            raise UserError(
                f"method={method}: {self.store.folder} was built with --method={','.join(self.store.methods)}; use "
                f"{' or '.join(self.methods)}, or build the index again"
            )
        if fusion not in fusion_lib.FUSIONS:
            raise UserError(f"fusion={fusion}: must be one of {', '.join(fusion_lib.FUSIONS)}")
        if top < 1:
            raise UserError(f"top={top}: must be at least 1")
        if not 0 <= vector_weight <= 1:
            raise UserError(f"vector_weight={vector_weight}: must be from 0 to 1")
        for i, query in enumerate(queries):
            if not query.strip():
                raise UserError(f"query {i + 1} is blank; write a text")
        return method

    def _batches(
        self, queries: list[str], method: str
    ) -> Iterator[tuple[list[str], Callable[[int], "_Similarities"] | None]]:
        """Yields batches of queries, each with a function that returns the similarities of one of them."""
        if method == WORDS or self._vectors is None or self._encode is None:
            yield queries, None
            return
        size = min(max(1, _MEMORY // (4 * len(self))), _MOST_QUERIES)
        for begin in range(0, len(queries), size):
            batch = queries[begin : begin + size]
            yield batch, self._vectors.similarities(np.asarray(self._encode(batch)))

    def _results(self, positions: np.ndarray, scores: np.ndarray) -> list[Result]:
        ids, texts = self.store.ids, self.store.texts
        ranked = enumerate(zip(positions.tolist(), scores.tolist(), strict=True), 1)
        return [Result(rank, score, ids[position], texts[position]) for rank, (position, score) in ranked]


class _Model:
    """The model of an index, which is loaded when it is first called."""

    def __init__(self, opened: Store, model_dir: str | None, batch_size: int):
        self._folder, self._record = opened.folder, opened.manifest[VECTORS]
        self._model_dir, self._batch_size = model_dir, batch_size
        self._encoder: Any = None

    def __call__(self, queries: Sequence[str]) -> np.ndarray:
        if self._encoder is None:
            self._encoder = self._load()
        return self._encoder.queries(queries)

    def _load(self):
        source = self._model_dir or self._record["source"]
        with progress.importing_tensorflow():
            from tfzoo.retrieval.encoder import Encoder
        settings = {name: self._record.get(name) for name in ("weights", "query_prompt", "document_prompt")}
        # A folder that the user specifies instead need not have a checkpoint of that name.
        checkpoint = None if self._model_dir else self._record.get("checkpoint")
        with progress.stage(f"reading {source}"):
            try:
                encoder = Encoder(source, checkpoint, batch_size=self._batch_size, **settings)
            except UserError as error:
                if self._model_dir:
                    raise
                raise UserError(f"{self._folder}: its model: {error}; or specify the folder with --model_dir") from None
        if encoder.fingerprint != self._record["fingerprint"]:
            raise UserError(
                f"{source}: is not the model of {self._folder} (fingerprint {encoder.fingerprint[:12]}, but "
                f"{self._record['fingerprint'][:12]} in {store.MANIFEST}); restore it, or build the index again"
            )
        return encoder


class _Vectors:
    """The vectors of the documents, and how they are compared."""

    def __init__(self, opened: Store):
        self.similarity = opened.manifest[VECTORS]["similarity"]
        self.vectors = opened.vectors
        self._longest: float | None = None

    def similarities(self, queries: np.ndarray) -> Callable[[int], "_Similarities"]:
        """Returns a function that returns the similarities of query i."""
        assert self.vectors is not None
        size = self.vectors.shape[1]
        if queries.ndim != 2 or queries.shape[1] != size:
            raise UserError(
                f"the vectors of queries have the shape {queries.shape}, but those of the index have {size} numbers"
            )
        if not np.isfinite(queries).all():
            raise CheckFailed("the vector of a query is not finite; check the model")
        queries = normalized(queries) if self.similarity == "cosine" else queries
        queries = np.ascontiguousarray(queries, np.float32)
        approximate = np.empty((len(queries), len(self.vectors)), np.float32)
        longest = 0.0
        for begin in range(0, len(self.vectors), _BLOCK):
            block = np.asarray(self.vectors[begin : begin + _BLOCK], np.float32)
            out = approximate[:, begin : begin + len(block)]
            if self.similarity in ("cosine", "dot"):
                np.matmul(queries, block.T, out=out)
                if self._longest is None:
                    longest = max(longest, float(np.sqrt(np.einsum("nd,nd->n", block, block).max())))
            else:
                for row, query in zip(out, queries, strict=True):
                    row[:] = -_distances(block, query, self.similarity)
        self._longest = longest if self._longest is None else self._longest
        return lambda i: _Similarities(self, queries[i], approximate[i])

    def exact(self, query: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Returns float64 similarities; equal vectors have equal similarities, whatever their positions."""
        assert self.vectors is not None
        rows, query = np.asarray(self.vectors[positions], np.float64), query.astype(np.float64)
        if self.similarity in ("cosine", "dot"):
            return (rows * query).sum(-1)
        return -_distances(rows, query, self.similarity)

    def error(self, query: np.ndarray, approximate: np.ndarray) -> float:
        """Returns a bound of the rounding errors of float32 similarities (Higham 2002, section 3.1)."""
        unit = (len(query) + 8) * 2.0**-24
        if self.similarity in ("cosine", "dot"):
            return 1.01 * unit * float(np.linalg.norm(query.astype(np.float64))) * (self._longest or 0.0)
        return 1.01 * unit * float(-approximate.min(initial=0.0))


class _Similarities:
    """The similarities of one query and all documents."""

    def __init__(self, vectors: _Vectors, query: np.ndarray, approximate: np.ndarray):
        self._vectors, self._query, self._approximate = vectors, query, approximate
        self._error = vectors.error(query, approximate)

    def best(self, top: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (positions, similarities) of the most similar documents."""
        positions = _candidates(self._approximate, top, self._error)
        return _first(positions, self._vectors.exact(self._query, positions), top)

    def best_with(self, bm25: np.ndarray, weight: float, top: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (positions, scores) of the best documents by weighted fusion_lib."""
        highest = float(self.best(1)[1][0])
        lowest = -1.0 if self._vectors.similarity == "cosine" else self._lowest()
        scale = dict(lowest=lowest, highest=highest, most=float(bm25.max()), weight=weight)
        approximate = fusion_lib.weighted(self._approximate.astype(np.float64), bm25, **scale)
        error = weight * self._error / ((highest - lowest) or 1.0) + 1e-12
        positions = _candidates(approximate, top, error)
        exact = self._vectors.exact(self._query, positions)
        return _first(positions, fusion_lib.weighted(exact, bm25[positions], **scale), top)

    def _lowest(self) -> float:
        positions = _candidates(-self._approximate, 1, self._error)
        return float(self._vectors.exact(self._query, positions).min())


def _distances(rows: np.ndarray, query: np.ndarray, similarity: str) -> np.ndarray:
    """Returns the Euclidean or Manhattan distances [N] of rows [N, D] from a query [D]."""
    differences = rows - query
    if similarity == "manhattan":
        return np.abs(differences).sum(-1)
    return np.sqrt((differences * differences).sum(-1))


def _candidates(approximate: np.ndarray, top: int, error: float) -> np.ndarray:
    """Returns, in ascending order, the positions of all documents that may be among the `top` best if each score is
    wrong by at most `error`."""
    if top >= len(approximate):
        return np.arange(len(approximate))
    least = np.partition(approximate, len(approximate) - top)[len(approximate) - top]
    return np.flatnonzero(approximate >= np.float64(least) - 2 * error)


def _first(positions: np.ndarray, scores: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the `top` best of documents, whose positions are in ascending order."""
    order = np.argsort(-scores, kind="stable")[:top]
    return positions[order], scores[order]


def _best(
    vectors: _Similarities | None, bm25: np.ndarray | None, top: int, fusion: str, weight: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (positions, scores) of the best documents by whichever scores there are."""
    if vectors is None:
        assert bm25 is not None
        return _best_words(bm25, top)
    if bm25 is None:
        return vectors.best(top)
    if fusion == fusion_lib.WEIGHTED:
        return vectors.best_with(bm25, weight, top)
    depth = max(top, fusion_lib.RRF_DEPTH)
    rankings = [vectors.best(depth)[0], _best_words(bm25, depth)[0]]
    return _first(*fusion_lib.reciprocal_ranks(rankings), top)


def _best_words(bm25: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (positions, scores) of the best documents by BM25, without those that contain no word of the query."""
    positions = np.flatnonzero(bm25)
    positions = positions[_candidates(bm25[positions], top, 0.0)]
    return _first(positions, bm25[positions], top)
