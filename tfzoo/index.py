"""Builds an index of texts for tfzoo.query: the vectors of a model, the words for BM25, or both.

    python -m tfzoo.index --model_dir=all-MiniLM-L6-v2 --input=pages.jsonl --output_dir=indexes/pages
    python -m tfzoo.index --model_dir=runs/mine --input=a.csv --text_field=body --id_field=url --output_dir=indexes/a
    python -m tfzoo.index --input=lines.txt --output_dir=indexes/lines

--input is a .txt file with one text per line, a .jsonl file of objects, or a .csv or .tsv file whose first row names
the columns; or several files, separated by commas. Without --id_field, the id of a document is the number of its line,
as in "pages.jsonl:17" if there are several files. Without --model_dir, the index has no vectors, and TensorFlow is not
imported.

The folder contains the ids and texts, vectors.npy, the inverted index, and manifest.json with the SHA-256 of each
file. If the command is killed, the same command continues after the last block of vectors, and the index becomes the
same byte for byte. An input, model or option that has changed since is refused.
"""

import dataclasses
import os
import pathlib
import sys

from absl import flags as absl_flags

from tfzoo import cli, options, progress
from tfzoo.errors import UserError
from tfzoo.model_dir import ModelDir
from tfzoo.options import option
from tfzoo.retrieval import bm25, build, documents, store

_TEXTS, _INDEX, _MODEL = "Texts", "Index", "Model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexConfig(ModelDir):
    """The texts to index, and how."""

    model_dir: str = option(
        "",
        "Run folder, Hugging Face folder, sentence-transformers folder or hf://NAME[@REVISION]; required for vectors.",
        group=_MODEL,
    )
    query_prompt: str | None = option(
        None, 'Text to put before each query; by default the prompt "query" of the model\'s folder.', group=_MODEL
    )
    document_prompt: str | None = option(
        None, 'Text to put before each document; by default the prompt "document" of the folder.', group=_MODEL
    )
    batch_size: int = option(32, "Texts per batch of the model.", group=_MODEL, low=1)
    input: str = option(
        dataclasses.MISSING, "A .txt, .jsonl, .csv or .tsv file, or several, separated by commas.", group=_TEXTS
    )
    text_field: str = option("text", "The field, or column, with the text.", group=_TEXTS)
    id_field: str | None = option(
        None,
        "The field, or column, with the id; by default the number of the line, after the name of the file if there are "
        "several.",
        group=_TEXTS,
    )
    bad_rows: str = option(
        "strict",
        "What to do with a row that has no text or id, or cannot be read: report an error, or skip and count it.",
        group=_TEXTS,
        choices=documents.POLICIES,
    )
    output_dir: str = option(dataclasses.MISSING, "Folder of the index.", group=_INDEX)
    method: str | None = option(
        None,
        "vectors, bm25 or vectors,bm25; by default both with --model_dir, and bm25 without.",
        group=_INDEX,
    )
    dtype: str = option(
        "float32", "Storage type of the vectors; float16 halves their size.", group=_INDEX, choices=store.DTYPES
    )
    similarity: str | None = option(
        None,
        "How vectors are compared; by default as the model's folder specifies, or by their cosine.",
        group=_INDEX,
        choices=store.SIMILARITIES,
    )
    block_size: int = option(
        build.BLOCK_SIZE, "Documents per block of vectors; a kill loses at most one block.", group=_INDEX, low=1
    )
    k1: float = option(bm25.K1, "BM25's parameter for repeated words.", group=_INDEX, low=0.0)
    b: float = option(bm25.B, "BM25's parameter for the length of documents.", group=_INDEX, low=0.0, high=1.0)

    def plan(self) -> build.Plan:
        """Returns what to build.

        Raises:
          UserError: a method is unknown, or the options are not compatible.
        """
        listed = self.method or ",".join(store.METHODS if self.model_dir else [store.WORDS])
        methods = tuple(method for method in store.METHODS if method in listed.split(","))
        if sorted(methods) != sorted(listed.split(",")):
            raise UserError(f"--method={listed}: must be {store.VECTORS}, {store.WORDS} or {','.join(store.METHODS)}")
        if (store.VECTORS in methods) != bool(self.model_dir):
            remedy = "add the other, or choose another --method" if not self.model_dir else "omit --model_dir"
            raise UserError(f"--method={listed}: --model_dir and the method vectors need each other; {remedy}")
        return build.Plan(
            source=documents.Source(_paths(self.input), self.text_field, self.id_field, self.bad_rows),
            methods=methods,
            similarity=self.similarity,
            dtype=self.dtype,
            block_size=self.block_size,
            k1=self.k1,
            b=self.b,
            model={
                "weights": self.weights,
                "checkpoint": self.checkpoint and os.path.abspath(self.checkpoint),
                "query_prompt": self.query_prompt,
                "document_prompt": self.document_prompt,
            },
        )


def _paths(listed: str) -> list[str]:
    """Returns the files that --input names; a file whose name contains a comma is one file."""
    return [listed] if os.path.exists(listed) else [path.strip() for path in listed.split(",") if path.strip()]


def define_flags(flags: absl_flags.FlagValues) -> None:
    options.define_flags(flags, IndexConfig)


def main(flags: absl_flags.FlagValues) -> None:
    config = IndexConfig(**options.values_of(flags, IndexConfig))
    plan = config.plan()
    _refuse_unused(flags, plan.methods)

    def encoder() -> build.Encodes:
        with progress.importing_tensorflow():
            from tfzoo.retrieval.encoder import Encoder
        with progress.stage(f"reading {config.model_dir}"):
            return Encoder(
                config.model_dir,
                config.checkpoint,
                weights=config.weights,
                query_prompt=config.query_prompt,
                document_prompt=config.document_prompt,
                batch_size=config.batch_size,
            )

    folder = pathlib.Path(os.path.expanduser(config.output_dir))
    manifest = build.build(folder, plan, encoder)
    parts = [f"{manifest['documents']:,} documents"]
    if manifest["input"]["skipped"]:
        parts.append(f"{manifest['input']['skipped']:,} rows skipped")
    if store.VECTORS in plan.methods:
        vectors = manifest[store.VECTORS]
        parts.append(f"vectors of {vectors['size']} {vectors['dtype']} compared by {vectors['similarity']}")
    if store.WORDS in plan.methods:
        parts.append(f"BM25 with k1={plan.k1} and b={plan.b}")
    size = sum(file["bytes"] for file in manifest["files"].values())
    cli.show(f"{folder}: {', '.join(parts)}; {size:,} bytes")


def _refuse_unused(flags: absl_flags.FlagValues, methods: tuple[str, ...]) -> None:
    """Raises UserError for a flag that has no effect on these methods."""
    vectors = ("checkpoint", "weights", "query_prompt", "document_prompt", "batch_size", "dtype", "similarity")
    unused = {store.VECTORS: (*vectors, "block_size"), store.WORDS: ("k1", "b")}
    for method, names in unused.items():
        for name in names:
            if method not in methods and name in cli.explicit_flags(flags):
                raise UserError(f"--{name}: applies only to --method={method}; omit it")


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags))
