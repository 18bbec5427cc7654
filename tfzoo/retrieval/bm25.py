"""BM25: the words of texts, and an inverted index that ranks documents by the words of a query.

The score of document d for query q (Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and
Beyond", equations 3.15 and 2.6; the 1 in the logarithm, which keeps weights positive, is Lucene's):

    sum over words w of q:  log(1 + (N - n_w + 0.5) / (n_w + 0.5)) * f * (k1 + 1) / (f + k1 * (1 - b + b * |d| / avg))

N is the number of documents, n_w of those that contain w, f how often d contains w, |d| the number of words of d and
avg its mean. A word that is repeated in the query counts each time.

Words (`words`) are runs of letters, digits and combining marks after NFKC normalization and lower-casing. Chinese,
Japanese, Korean, Thai, Lao, Khmer and Burmese text, in which spaces do not separate words, gives single characters and
pairs of adjacent characters instead. A run that contains such a character also includes quotation marks and the
brackets of titles, which take part in pairs only, because they show where names begin and end; a word of another script
in the run is kept as well if it is longer than a pair.

The index is three arrays in the form of a sparse matrix by rows (CSR), one row for each word in the order of its UTF-8:

    starts [V + 1] int64, documents [P] int32, counts [P] int32       documents[starts[w]:starts[w + 1]] contain word w
    lengths [N] int32                                                 the number of words of each document
"""

import array
import collections
import dataclasses
import functools
import itertools
import math
import pathlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from tfzoo import files
from tfzoo.retrieval import strings
from tfzoo.retrieval.strings import Strings

K1, B = 1.2, 0.75
VERSION = 1  # Incremented when `words` changes: an index must be searched with the words that it was built from.
ARRAYS = ("starts", "documents", "counts", "lengths")

SPOOL = "bm25_postings.temporary"

_BLOCK = 4096  # Documents whose postings are sorted at a time.
_UNSPACED = (
    "\u0e00-\u0e7f\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer.
    "\u1100-\u11ff\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff\uac00-\ud7af"  # Hangul and kana.
    "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han.
)
_MARKS_OF_NAMES = "《》〈〉「」『』“”"


def words(text: str) -> list[str]:
    """Returns the words of a text, as the docstring of this module defines them.

    >>> words("Élan, 2 of 3!")
    ['élan', '2', 'of', '3']
    >>> words("看GPT-4")
    ['看', 'g', 'p', 't', '看g', 'gp', 'pt', 'gpt', '4']
    """
    run, unspaced, word = _patterns()
    found: list[str] = []
    for match in run.finditer(unicodedata.normalize("NFKC", text).lower()):
        piece = match[0]
        if unspaced.search(piece):
            found += [character for character in piece if character not in _MARKS_OF_NAMES]
            found += map("".join, zip(piece, piece[1:], strict=False))
            found += (other[0] for other in word.finditer(piece) if len(other[0]) > 2)
        else:
            found += word.findall(piece)
    return found


@functools.cache
def _patterns() -> tuple[re.Pattern, re.Pattern, re.Pattern]:
    """Returns patterns of runs, of one character of unspaced text, and of words of other scripts."""
    unspaced = re.compile(f"[{_UNSPACED}]")
    # Letters and digits are \w; vowel signs of Indic scripts and other combining marks are not.
    marks = [chr(code) for code in range(0x300, 0x1F000) if unicodedata.category(chr(code)) in ("Mn", "Mc", "Me")]
    other_marks = "".join(mark for mark in marks if not unspaced.match(mark))
    return (
        re.compile(f"(?:[^\\W_]+|[{''.join(marks)}{_MARKS_OF_NAMES}]+)+"),
        unspaced,
        re.compile(f"(?:[^\\W_{_UNSPACED}]+|[{other_marks}]+)+"),
    )


@dataclasses.dataclass(frozen=True)
class BM25:
    """An inverted index; the arrays are those in the docstring of this module, and may be memory-mapped."""

    terms: Strings
    starts: np.ndarray
    documents: np.ndarray
    counts: np.ndarray
    lengths: np.ndarray
    k1: float = K1
    b: float = B

    @classmethod
    def of(cls, texts: Iterable[str], k1: float = K1, b: float = B) -> "BM25":
        """Returns the index of texts, in memory."""
        terms, arrays = _build(texts, [], lambda _, size: np.empty(size, np.int32))
        return cls(Strings.of(terms), **arrays, k1=k1, b=b)

    @classmethod
    def open(cls, folder: pathlib.Path, k1: float, b: float) -> "BM25":
        """Memory-maps the files that `write` wrote.

        Raises:
          UserError: they are damaged.
        """
        paths = {name: folder / f"bm25_{name}.npy" for name in ARRAYS}
        arrays = {
            name: strings.open_array(path, "int64" if name == "starts" else "int32") for name, path in paths.items()
        }
        index = cls(Strings.open(folder, "bm25_terms"), **arrays, k1=k1, b=b)
        strings.check_ascending(paths["starts"], index.starts, len(index.documents))
        if len(index.starts) != len(index.terms) + 1 or len(index.counts) != len(index.documents):
            raise strings.damaged(paths["starts"], "its length differs from that of the other files")
        for name, low, end in (("documents", 0, len(index.lengths)), ("counts", 1, 2**31), ("lengths", 0, 2**31)):
            values = arrays[name]
            if len(values) and not low <= values.min() <= values.max() < end:
                raise strings.damaged(paths[name], f"a number is not from {low} to {end - 1}")
        return index

    @functools.cached_property
    def _average(self) -> float:
        return max(float(np.mean(self.lengths)), 1e-9)

    def scores(self, query: str) -> np.ndarray:
        """Returns float64 [N], the score of every document; 0 for a document without a word of the query."""
        scores = np.zeros(len(self.lengths))
        for word, repeated in collections.Counter(words(query)).items():
            term = self.terms.find(word)
            if term is None:
                continue
            postings = slice(int(self.starts[term]), int(self.starts[term + 1]))
            documents = self.documents[postings]
            counts = self.counts[postings].astype(np.float64)
            contain = len(documents)
            weight = math.log1p((len(scores) - contain + 0.5) / (contain + 0.5))
            length = self.k1 * (1 - self.b + self.b * self.lengths[documents] / self._average)
            scores[documents] += repeated * weight * counts * (self.k1 + 1) / (counts + length)
        return scores


_Postings = tuple[np.ndarray, np.ndarray, np.ndarray]  # Term ids, documents and counts of a block of documents.


def write(folder: pathlib.Path, texts: Iterable[str]) -> None:
    """Writes the index of texts to bm25_*.npy and bm25_terms.*, with the vocabulary and one block in memory.

    The postings of each block are first appended to a temporary file, and then sorted into their places.
    """
    mapped: dict[str, np.memmap] = {}

    def make(name: str, size: int) -> np.ndarray:
        if not size:  # An array without elements cannot be mapped.
            return np.empty(0, np.int32)
        (folder / f"bm25_{name}.npy").unlink(missing_ok=True)  # It may be a link.
        mapped[name] = np.lib.format.open_memmap(folder / f"bm25_{name}.npy", "w+", np.dtype(np.int32), (size,))
        return mapped[name]

    with _Spool(folder / SPOOL) as spool:
        terms, arrays = _build(texts, spool, make)
    strings.write(folder, "bm25_terms", terms)
    for name in ARRAYS:
        if name in mapped:
            mapped[name].flush()
        else:
            strings.write_array(folder / f"bm25_{name}.npy", arrays[name])


class _Spool:
    """A temporary file of blocks of postings, which can be appended and read from the start, like a list."""

    def __init__(self, path: pathlib.Path):
        self._path, self._file, self._count = path, open(path, "w+b", opener=files.regular), 0

    def append(self, block: _Postings) -> None:
        for values in block:
            np.lib.format.write_array(self._file, values)
        self._count += 1

    def __iter__(self) -> Iterator[_Postings]:
        self._file.seek(0)
        for _ in range(self._count):
            terms, documents, counts = (np.lib.format.read_array(self._file) for _ in range(3))
            yield terms, documents, counts

    def __enter__(self) -> "_Spool":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
        self._path.unlink()


def _build(
    texts: Iterable[str], blocks: Any, make: Callable[[str, int], np.ndarray]
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Returns (terms in the order of their UTF-8, arrays by name).

    Args:
      texts: the documents.
      blocks: an empty list or _Spool for the postings of blocks of documents.
      make: returns an array int32 [size] with a name.
    """
    vocabulary: dict[str, int] = {}
    lengths = array.array("i")
    remaining = iter(texts)
    while block := list(itertools.islice(remaining, _BLOCK)):
        blocks.append(_postings(block, lengths, vocabulary))
    # Terms were numbered as they appeared; the index has them in the order in which `Strings.find` searches.
    order = sorted(vocabulary, key=str.encode)
    place = np.empty(len(order), np.int64)
    place[[vocabulary[term] for term in order]] = np.arange(len(order))
    frequencies = np.zeros(len(order), np.int64)
    for terms, _, _ in blocks:
        np.add.at(frequencies, place[terms], 1)
    starts = np.concatenate([[0], np.cumsum(frequencies)])
    documents, counts = make("documents", int(starts[-1])), make("counts", int(starts[-1]))
    following = starts[:-1].copy()  # Where the next posting of each term goes.
    for terms, of_documents, of_counts in blocks:
        sorting = np.argsort(place[terms], kind="stable")  # Within a term, documents remain in order.
        present, first, number = np.unique(place[terms][sorting], return_index=True, return_counts=True)
        places = np.repeat(following[present] - first, number) + np.arange(len(sorting))
        documents[places], counts[places] = of_documents[sorting], of_counts[sorting]
        following[present] += number
    arrays = {"starts": starts, "documents": documents, "counts": counts, "lengths": np.array(lengths, np.int32)}
    return order, arrays


def _postings(block: list[str], lengths: array.array, vocabulary: dict[str, int]) -> _Postings:
    """Returns the postings of documents, and appends their lengths, and new terms to the vocabulary."""
    terms, counts, sizes = array.array("q"), array.array("i"), []
    first = len(lengths)
    for text in block:
        counted = collections.Counter(words(text))
        terms.extend(vocabulary.setdefault(term, len(vocabulary)) for term in counted)
        counts.extend(counted.values())
        sizes.append(len(counted))
        lengths.append(counted.total())
    documents = np.repeat(np.arange(first, first + len(block), dtype=np.int32), sizes)
    return np.array(terms, np.int64), documents, np.array(counts, np.int32)
