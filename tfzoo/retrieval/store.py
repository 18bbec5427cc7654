"""The folder of an index: files that are memory-mapped, and a manifest with their checksums.

manifest.json    format, number of documents, methods, the model, the options and the SHA-256 of each other file; it is
                 written last, so that a folder without it is not complete
ids.*, texts.*   the ids and texts (tfzoo.retrieval.strings)
vectors.npy      float32 or float16 [N, D], with --method=vectors; of length 1 if they are compared by their cosine
bm25_*           the inverted index (tfzoo.retrieval.bm25), with --method=bm25
build.json       only while the folder is being written: what is complete (tfzoo.retrieval.build)
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from tfzoo import files, json_files
from tfzoo.errors import UserError
from tfzoo.json_files import Field
from tfzoo.retrieval import bm25, strings
from tfzoo.retrieval.bm25 import BM25
from tfzoo.retrieval.strings import Strings

MANIFEST, BUILD = "manifest.json", "build.json"
FORMAT = 1
VECTORS, WORDS = "vectors", "bm25"
METHODS = (VECTORS, WORDS)
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
DTYPES = ("float32", "float16")
_ROWS = 1 << 16  # Vectors that are checked at once.
TEXT_FILES = ("ids.bin", "ids.npy", "texts.bin", "texts.npy")

_NUMBER = Field(int, low=0, required=True)
_TEXT = Field(str, required=True)
_OBJECT = Field(dict, required=True)
_FIELDS = {
    "documents": Field(int, low=1, required=True),
    "methods": Field(list, items=Field(str, choices=METHODS), required=True),
    "files": Field(dict, items=Field(dict), required=True),
    "key": _OBJECT,
}
_FILE_FIELDS = {"bytes": _NUMBER, "sha256": _TEXT}
_VECTORS_FIELDS = {
    "size": Field(int, low=1, required=True),
    "dtype": Field(str, choices=DTYPES, required=True),
    "similarity": Field(str, choices=SIMILARITIES, required=True),
    "fingerprint": _TEXT,
    "source": _TEXT,
    "weights": _TEXT,
    "checkpoint": Field(str),
    "query_prompt": Field(str),
    "document_prompt": Field(str),
}
_WORDS_FIELDS = {"k1": Field(float, low=0, required=True), "b": Field(float, low=0, high=1, required=True)}


@dataclasses.dataclass(frozen=True)
class Store:
    """An opened folder; arrays are memory-mapped.

    Attributes:
      folder: the folder.
      manifest: the content of manifest.json.
      ids, texts: of the documents.
      vectors: [N, D], or None if the index has none.
      words: the inverted index, or None.
    """

    folder: pathlib.Path
    manifest: dict[str, Any]
    ids: Strings
    texts: Strings
    vectors: np.ndarray | None
    words: BM25 | None

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(self.manifest["methods"])


def file_names(methods: tuple[str, ...]) -> list[str]:
    """Returns the names of the files of an index, without the manifest."""
    names = [*TEXT_FILES]
    names += ["vectors.npy"] if VECTORS in methods else []
    names += ["bm25_terms.bin", "bm25_terms.npy", *(f"bm25_{name}.npy" for name in bm25.ARRAYS)] * (WORDS in methods)
    return names


def read_manifest(folder: pathlib.Path, flag: str = "index_dir") -> dict[str, Any]:
    """Returns the manifest after checking its fields.

    Raises:
      UserError: the folder is not an index, is incomplete, or is from another version.
    """
    path = folder / MANIFEST
    if not path.exists():
        if (folder / BUILD).exists():
            raise UserError(f"--{flag}={folder}: is incomplete; run the same tfzoo.index command again")
        problem = "contains no manifest.json" if folder.is_dir() else "no such folder"
        raise UserError(f"--{flag}={folder}: {problem}; specify a folder written by python -m tfzoo.index")
    manifest = json_files.read(path)
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{path}: format is {json_files.show(manifest.get('format'))}, but this version of tfzoo reads {FORMAT}; "
            "build the index again"
        )
    json_files.check(manifest, _FIELDS, path)
    for method, fields in ((VECTORS, _VECTORS_FIELDS), (WORDS, _WORDS_FIELDS)):
        if method in manifest["methods"]:
            json_files.check(manifest, {method: _OBJECT}, path)
            json_files.check(manifest[method], fields, f"{path}: {method}")
    for name, entry in manifest["files"].items():
        json_files.check(entry, _FILE_FIELDS, f"{path}: {name}")
    if WORDS in manifest["methods"] and manifest[WORDS].get("version") != bm25.VERSION:
        raise UserError(f"{path}: was built by a version of tfzoo with other rules for words; build the index again")
    return manifest


def checksums(folder: pathlib.Path, methods: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Returns the size and SHA-256 of each file."""
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": files.sha256(folder / name)}
        for name in file_names(methods)
    }


def open_folder(folder: pathlib.Path, verify: bool = True) -> Store:
    """Opens the folder of an index.

    Args:
      folder: the folder.
      verify: whether to compare the SHA-256 of each file, which reads it; otherwise only sizes are compared.

    Raises:
      UserError: the folder is not an index or is incomplete, or a file is missing or damaged.
    """
    manifest = read_manifest(folder)
    methods = tuple(manifest["methods"])
    for name in file_names(methods):
        path, expected = folder / name, manifest["files"].get(name)
        if expected is None or not path.is_file():
            raise UserError(f"{path}: is missing; restore it, or build the index again")
        if path.stat().st_size != expected["bytes"] or (verify and files.sha256(path) != expected["sha256"]):
            raise UserError(f"{path}: is damaged (it differs from {MANIFEST}); restore it, or build the index again")
    count = manifest["documents"]
    ids, texts = Strings.open(folder, "ids"), Strings.open(folder, "texts")
    vectors = words = None
    if VECTORS in methods:
        vectors = strings.open_array(folder / "vectors.npy", manifest[VECTORS]["dtype"], axes=2)
        if vectors.shape != (count, manifest[VECTORS]["size"]):
            raise strings.damaged(folder / "vectors.npy", f"its shape is {list(vectors.shape)}")
        blocks = (vectors[start : start + _ROWS] for start in range(0, count, _ROWS))
        if verify and not all(np.isfinite(block).all() for block in blocks):
            raise strings.damaged(folder / "vectors.npy", "a number is not finite")
    if WORDS in methods:
        words = BM25.open(folder, manifest[WORDS]["k1"], manifest[WORDS]["b"])
    if not len(ids) == len(texts) == count or (words and len(words.lengths) != count):
        raise UserError(f"{folder / MANIFEST}: documents is {count}, but its files have others; build the index again")
    return Store(folder, manifest, ids, texts, vectors, words)
