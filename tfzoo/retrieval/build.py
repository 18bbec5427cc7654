"""Writes the folder of an index in stages, so that a killed command continues where it stopped.

1. ids and texts are copied from the file, and build.json is written; a kill repeats this stage.
2. Vectors are computed and appended in blocks, each of which is flushed to disk before build.json counts it; a kill
   loses at most one block. Blocks do not depend on each other, so that the result is the same byte for byte.
3. The inverted index is built; a kill repeats this stage.
4. manifest.json is written, and build.json removed.

build.json records what the index is built from. If the same command is run with another input, model or option, it is
refused, because the result would be a mixture.
"""

import array
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from tfzoo import files, json_files, progress
from tfzoo.errors import CheckFailed, UserError
from tfzoo.json_files import Field
from tfzoo.retrieval import bm25, store, strings
from tfzoo.retrieval.documents import Source
from tfzoo.retrieval.strings import Strings

BLOCK_SIZE = 512


class Encodes(Protocol):
    """What `build` needs of tfzoo.retrieval.encoder.Encoder."""

    source: str
    fingerprint: str
    size: int
    similarity: str

    def documents(self, texts: Sequence[str]) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What to build. The fields are the options of python -m tfzoo.index."""

    source: Source
    methods: tuple[str, ...]
    similarity: str | None = None  # None: as the model's folder specifies.
    dtype: str = "float32"
    block_size: int = BLOCK_SIZE
    k1: float = bm25.K1
    b: float = bm25.B
    model: dict[str, Any] = dataclasses.field(default_factory=dict)  # weights, checkpoint and the prompts.


def build(folder: pathlib.Path, plan: Plan, encoder: Callable[[], Encodes] | None = None) -> dict[str, Any]:
    """Writes or completes an index, and returns its manifest. An index that is complete remains unchanged.

    Args:
      folder: the folder, which is created; if it exists, it must contain an index that the same plan has begun.
      plan: what to build.
      encoder: returns the model of the vectors, after the input has been checked.

    Raises:
      UserError: the folder contains something else, the index was begun with another input, model or option, a row of
        the input is not valid, or two documents have the same id.
      CheckFailed: the model returns vectors that are not finite.
    """
    _check_folder(folder)
    key = _key(plan)
    before = _begun(folder, key, plan)
    model = encoder() if encoder is not None and store.VECTORS in plan.methods else None
    if model is not None:
        key |= {"model": model.fingerprint, "similarity": plan.similarity or model.similarity}
        _compare(folder, before, key, plan)
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with files.Lock(folder):
            return _Build(folder, plan, key, model).run()


def _check_folder(folder: pathlib.Path) -> None:
    if not os.path.lexists(folder):
        files.check_can_be_made(folder, "output_dir")
    elif not folder.is_dir():
        raise UserError(f"--output_dir={folder}: is not a folder; specify a new one")
    elif any(folder.iterdir()) and not any((folder / name).exists() for name in (store.MANIFEST, store.BUILD)):
        # The allowed files are those of a command that was killed in the first stage.
        if not {path.name for path in folder.iterdir()} <= {files.LOCK, *store.TEXT_FILES}:
            raise UserError(f"--output_dir={folder}: contains other files; specify a new folder")


def _key(plan: Plan) -> dict[str, Any]:
    """Returns what the index depends on, by the names of the flags, without the model."""
    with progress.stage(f"reading {plan.source.name}"):
        digests = [files.sha256(path) for path in plan.source.paths]
        digest = digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    reading = {name: getattr(plan.source, name) for name in ("text_field", "id_field", "bad_rows")}
    key = {"input": digest, **reading, "method": ",".join(plan.methods)}
    if store.WORDS in plan.methods:
        key |= {"k1": plan.k1, "b": plan.b, "words": bm25.VERSION}
    if store.VECTORS in plan.methods:
        key |= {"dtype": plan.dtype, "block_size": plan.block_size}
        key |= {name: value for name, value in plan.model.items() if name != "checkpoint"}
    return key


def _begun(folder: pathlib.Path, key: dict[str, Any], plan: Plan) -> dict[str, Any] | None:
    """Returns the key of an index that was begun in this folder, after comparing it; None if there is none."""
    for name in (store.MANIFEST, store.BUILD):
        if (folder / name).exists():
            record = json_files.read(folder / name)
            json_files.check(record, {"key": Field(dict, required=True)}, folder / name)
            _compare(folder, record["key"], key, plan)
            return record["key"]
    return None


def _compare(folder: pathlib.Path, before: dict[str, Any] | None, key: dict[str, Any], plan: Plan) -> None:
    """Raises UserError if an index was begun with other values than those of `key`."""
    remedy = "specify a new --output_dir"
    for name in key if before is not None else ():
        old, new = (before or {}).get(name), key[name]
        if old == new:
            continue
        if name == "input":
            raise UserError(
                f"--input={plan.source.name}: is not the text from which {folder} was begun; restore it, or {remedy}"
            )
        if name == "model":
            raise UserError(
                f"--model_dir: is not the model with which {folder} was begun (fingerprint {new[:12]}, before "
                f"{str(old)[:12]}); restore it, or {remedy}"
            )
        raise UserError(f"--{name}={new}: {folder} was begun with {name}={old}; restore the value, or {remedy}")


class _Build:
    """The stages of one index, whose folder is locked."""

    def __init__(self, folder: pathlib.Path, plan: Plan, key: dict[str, Any], model: Encodes | None):
        self._folder, self._plan, self._key, self._model = folder, plan, key, model
        self._state: dict[str, Any] = {"key": key, "documents": 0, "skipped": 0, "blocks": 0}

    def run(self) -> dict[str, Any]:
        if (self._folder / store.MANIFEST).exists():
            self._clean()
            return store.read_manifest(self._folder, "output_dir")
        path = self._folder / store.BUILD
        if path.exists():
            self._state = json_files.read(path)
            fields = {name: Field(int, low=0, required=True) for name in ("documents", "skipped", "blocks")}
            json_files.check(self._state, fields, path)
        else:
            try:
                self._write_texts()
            except UserError:  # Once the input is corrected, it is another input.
                for name in (*store.TEXT_FILES, files.LOCK):
                    (self._folder / name).unlink(missing_ok=True)
                self._folder.rmdir()
                raise
        texts = Strings.open(self._folder, "texts")
        if self._model is not None:
            self._write_vectors(texts, self._model)
        if store.WORDS in self._plan.methods:
            with progress.bar(len(texts), "text", "indexing words") as bar:
                bm25.write(self._folder, _counted(texts, bar))
        return self._write_manifest()

    def _save(self) -> None:
        files.atomic_write(self._folder / store.BUILD, json.dumps(self._state, indent=2) + "\n")

    def _write_texts(self) -> None:
        source = self._plan.source
        hashes = array.array("Q")
        with (
            progress.stage(f"reading {source.name}"),
            strings.Writer(self._folder, "ids") as ids,
            strings.Writer(self._folder, "texts") as texts,
        ):
            for document in source:
                ids.write(document.id)
                texts.write(document.text)
                if source.id_field is not None:
                    hashes.append(int.from_bytes(hashlib.blake2b(document.id.encode(), digest_size=8).digest()))
        if source.id_field is not None:
            _check_unique(source, np.frombuffer(hashes, np.uint64))
        count = len(Strings.open(self._folder, "ids"))
        self._state |= {"documents": count, "skipped": source.skipped}
        self._save()

    def _write_vectors(self, texts: Strings, model: Encodes) -> None:
        size, dtype = self._plan.block_size, np.dtype(self._plan.dtype)
        blocks = -(-len(texts) // size)
        done = self._state["blocks"]
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": (len(texts), model.size),
        }
        path = self._folder / "vectors.npy"
        mode, title = "r+b" if done else "wb", "embedding"
        with open(path, mode, opener=files.regular) as file, progress.bar(len(texts), "text", title) as bar:
            np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
            # After a kill, the file may end with a part of a block.
            file.seek(min(done * size, len(texts)) * model.size * dtype.itemsize, os.SEEK_CUR)
            file.truncate()
            bar.update(min(done * size, len(texts)))
            for block in range(done, blocks):
                batch = texts[block * size : (block + 1) * size]
                file.write(self._vectors(model, batch).tobytes())
                file.flush()
                os.fsync(file.fileno())
                self._state["blocks"] = block + 1
                self._save()
                bar.update(len(batch))

    def _vectors(self, model: Encodes, texts: list[str]) -> np.ndarray:
        vectors = np.asarray(model.documents(texts), np.float32)
        if self._key["similarity"] == "cosine":
            vectors = normalized(vectors)
        with np.errstate(over="ignore"):
            vectors = vectors.astype(self._plan.dtype)
        if not np.isfinite(vectors).all():
            raise CheckFailed(
                f"the model returns vectors that are not finite in {self._plan.dtype}; check the model, or use "
                "--dtype=float32"
            )
        return vectors

    def _write_manifest(self) -> dict[str, Any]:
        plan, source = self._plan, self._plan.source
        manifest: dict[str, Any] = {
            "format": store.FORMAT,
            "documents": self._state["documents"],
            "methods": list(plan.methods),
            "input": {"name": ",".join(path.name for path in source.paths), "skipped": self._state["skipped"]},
            "key": self._key,
        }
        if self._model is not None:
            model = self._model
            manifest[store.VECTORS] = {
                "size": model.size,
                "dtype": plan.dtype,
                "similarity": self._key["similarity"],
                "source": model.source,
                "fingerprint": model.fingerprint,
                **plan.model,
            }
        if store.WORDS in plan.methods:
            manifest[store.WORDS] = {"k1": plan.k1, "b": plan.b, "version": bm25.VERSION}
        with progress.stage("computing checksums"):
            for name in store.file_names(plan.methods):
                _sync(self._folder / name)
            manifest["files"] = store.checksums(self._folder, plan.methods)
        files.atomic_write(self._folder / store.MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        self._clean()
        return manifest

    def _clean(self) -> None:
        (self._folder / store.BUILD).unlink(missing_ok=True)
        files.remove_partials(self._folder)
        with contextlib.suppress(FileNotFoundError):
            (self._folder / bm25.SPOOL).unlink()


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors [N, D] with the Euclidean norm 1; zeros remain zeros."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def _check_unique(source: Source, hashes: np.ndarray) -> None:
    """Raises UserError if two documents have the same id; hashes limit the memory to 8 bytes per id."""
    values, counts = np.unique(hashes, return_counts=True)
    repeated = set(values[counts > 1].tolist())
    if not repeated:
        return
    seen: dict[str, str] = {}
    for document, hashed in zip(source, hashes.tolist(), strict=True):
        if hashed in repeated:
            if document.id in seen:
                raise UserError(
                    f"{document.where}: the id {json_files.show(document.id)} is also that of {seen[document.id]}; "
                    "give each document an id of its own"
                )
            seen[document.id] = document.where


def _counted(texts: Strings, bar) -> Iterator[str]:
    for text in texts:
        yield text
        bar.update()


def _sync(path: pathlib.Path) -> None:
    with files.open_file(path) as file:
        os.fsync(file.fileno())
