"""Folders of python -m tfzoo.index."""

import json
import pathlib
import random

from tests.fuzz.harness import Kind
from tests.fuzz.mutations import damage_one
from tests.retrieval import encoders
from tfzoo import files
from tfzoo.retrieval import build, search, store

_TEXTS = ("A red fox runs.", "The dog sleeps in the house.", "", "A green street, a blue garden.", "A red fox runs.")


def _make(folder: pathlib.Path) -> None:
    documents = folder.with_name("documents.jsonl")
    documents.write_text(
        "".join(json.dumps({"id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(_TEXTS) if text)
    )
    folder.rmdir()
    build.build(folder, encoders.plan(documents), encoders.Encoder)


def _damage(folder: pathlib.Path, draw: random.Random) -> str:
    """Damages a file, mostly with a correct checksum in the manifest, so that the damage gets past that check."""
    damage = damage_one(folder, draw)
    name = damage.partition(":")[0]
    try:
        manifest = json.loads((folder / store.MANIFEST).read_text())
        if name in manifest["files"] and draw.random() < 0.8:
            manifest["files"] |= {
                name: {"bytes": (folder / name).stat().st_size, "sha256": files.sha256(folder / name)}
            }
            (folder / store.MANIFEST).write_text(json.dumps(manifest))
            damage += ", with a correct checksum"
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return damage


def _read(folder: pathlib.Path) -> list:
    index = search.open_index(folder, encode=encoders.vectors)
    found = [index.search(["red fox", "the garden"], top=3, method=method) for method in index.methods]
    return [len(index), *map(repr, found)]


KINDS = {"indexes": Kind(_make, _damage, _read)}
