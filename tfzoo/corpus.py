"""Prepares text for training: trains a tokenizer on it, packs its tokens into rows, or makes labelled files of it.

    python -m tfzoo.corpus vocabulary --corpus='texts/*.txt' --tokenizer=byte_level --output_dir=vocabularies/mine
    python -m tfzoo.corpus pack --corpus='texts/*.txt' --tokenizer_dir=vocabularies/mine --objective=causal \\
        --output_dir=packed/mine
    python -m tfzoo.train --flagfile=configs/gpt.cfg --corpus=packed/mine --run_dir=runs/mine
    python -m tfzoo.corpus labels --output_dir=labelled/packages
"""

import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from absl import flags as absl_flags

from tfzoo import cli, files, options
from tfzoo.data.corpus import split_sources
from tfzoo.data.files import hash_of
from tfzoo.errors import UserError
from tfzoo.training import inputs, registry
from tfzoo.training.config import CorpusConfig, TrainConfig

# The options of tfzoo.train, so that text is read and split in the same way.
_TEXT = ("corpus", "text_field", "raw_text", "held_out", "bad_text")
_TOKENIZER = ("tokenizer", "vocab_size", "lowercase", "special_tokens")
_ROWS = ("objective", "sequence_length")


def define_vocabulary_flags(flags: absl_flags.FlagValues) -> None:
    _define(flags, *_TEXT, "cache_dir", *_TOKENIZER)


def define_pack_flags(flags: absl_flags.FlagValues) -> None:
    _define(flags, *_TEXT, "cache_dir", *_TOKENIZER, "tokenizer_dir", "vocab_file", *_ROWS)
    free = [
        name
        for _, cls in registry.every()
        for name in options.names_with(cls.Options, "decides_rows")
        if cls.PACKED is not None and name not in cls.PACKED
    ]
    registry.define_flags(flags, list(dict.fromkeys(free)))
    absl_flags.DEFINE_integer("shard_rows", 65536, "Maximum number of rows per file.", lower_bound=1, flag_values=flags)


def vocabulary(flags: absl_flags.FlagValues) -> None:
    """Trains a tokenizer on the training part of a corpus and writes its files, for use as --tokenizer_dir.

    The result is the tokenizer that tfzoo.train would train itself with the same flags.
    """
    output_dir = _check_output(flags)
    _, tokenizer = inputs.read_corpus(CorpusConfig(**options.values_of(flags, CorpusConfig)))
    try:
        with files.atomic_folder(output_dir) as partial:
            tokenizer.save(partial)
    except FileExistsError:
        raise UserError(f"--output_dir={output_dir}: already exists; remove it, or specify a new folder") from None
    cli.show(f"{output_dir}: {flags.tokenizer}, {tokenizer.vocab_size:,} tokens")


def pack(flags: absl_flags.FlagValues) -> None:
    """Tokenizes a corpus and packs it into rows, in a folder that tfzoo.train accepts as --corpus.

    Training on this folder reads the same rows in the same order as training on the text itself, but does not have to
    read, clean, tokenize and pack the text first. The folder includes the tokenizer's files. masked_lm is packed
    without sentence pairs.
    """
    output_dir = _check_output(flags)
    from tfzoo.data import packed

    cls = registry.find(flags.objective)
    if cls.PACKED is None:
        raise UserError(
            f"--objective={flags.objective}: rows of this objective cannot be packed in advance; train on the text"
        )
    objective_options = cls.Options(**(options.values_of(flags, cls.Options) | dict(cls.PACKED)))
    config = TrainConfig(run_dir="", objective_options=objective_options, **options.values_of(flags, TrainConfig))
    if len(split_sources(config.corpus)) > 1:
        raise UserError(
            f"--corpus={config.corpus}: several sources cannot be packed in advance; pack one source, or train on the "
            "text"
        )
    corpus, tokenizer = inputs.read_corpus(config)
    objective = inputs.make_objective(config, tokenizer)
    rows, token_ids = inputs.read_rows(config, corpus, tokenizer, objective)
    manifest = packed.write(
        output_dir,
        dict(zip(packed.PARTS, rows, strict=True)),
        dict(zip(packed.PARTS, token_ids, strict=True)),
        tokenizer,
        flags=_decided(config, tokenizer),
        corpus={"name": corpus.name, "fingerprint": corpus.fingerprint, "report": corpus.report},
        shard_rows=flags.shard_rows,
    )
    listed = manifest["files"].values()
    for part, counts in manifest["parts"].items():
        padding = f"{counts['padding_share']:.1%} padding"
        cli.show(f"{part}: {counts['tokens']:,} tokens in {counts['rows']:,} rows, {padding}")
    cli.show(f"{output_dir}: {len(listed)} files, {sum(file['bytes'] for file in listed):,} bytes")


def define_labels_flags(flags: absl_flags.FlagValues) -> None:
    _define(flags, *_TEXT, "cache_dir")
    for name, default, text in (
        ("num_labels", 20, "Number of sources to use as labels: those with the most text."),
        ("rows_per_label", 250, "Maximum number of texts of each source."),
    ):
        absl_flags.DEFINE_integer(name, default, text, lower_bound=2, flag_values=flags)


def labels(flags: absl_flags.FlagValues) -> None:
    """Writes train.tsv, dev.tsv and test.tsv, whose labels are the sources of the texts: the packages of docstrings.

    The files are for trying out fine-tuning without data of one's own. A text consists of up to three sentences. A hash
    of the text decides its file: a tenth of the texts each for dev and test.
    """
    output_dir = _check_output(flags)
    corpus = inputs.read_text(CorpusConfig(**options.values_of(flags, CorpusConfig)))
    texts: dict[str, list[str]] = {}
    for document in corpus.train:
        for first in range(0, len(document.sentences), _SENTENCES):
            text = " ".join(" ".join(document.sentences[first : first + _SENTENCES]).split())
            texts.setdefault(document.source, []).append(text)
    chosen = sorted(texts, key=lambda source: (-len(texts[source]), source))[: flags.num_labels]
    if len(chosen) < 2:
        raise UserError(f"--corpus={flags.corpus}: has a single source, {chosen[0]}; specify several files")
    rows: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    for source in sorted(chosen):
        by_hash = sorted({text: hash_of(text) for text in texts[source]}.items(), key=lambda item: item[1])
        for text, digest in by_hash[: flags.rows_per_label]:
            part = {0: "dev", 1: "test"}.get(digest[-1] % 10, "train")
            rows[part].append(f"{text}\t{source}\n")
    try:
        with files.atomic_folder(output_dir) as partial:
            for part, lines in rows.items():
                (partial / f"{part}.tsv").write_text("text\tlabel\n" + "".join(lines), encoding="utf-8")
    except FileExistsError:
        raise UserError(f"--output_dir={output_dir}: already exists; remove it, or specify a new folder") from None
    counts = ", ".join(f"{len(lines):,} rows in {part}.tsv" for part, lines in rows.items())
    cli.show(f"{output_dir}: {len(chosen)} labels, {counts}")


_SENTENCES = 3  # Of a labelled text.


def _define(flags: absl_flags.FlagValues, *names: str) -> None:
    """Defines the named flags of tfzoo.train, and --output_dir."""
    declared = {field.name: field for field in options.fields(TrainConfig)}
    for name in names:
        options.define_flag(flags, declared[name])
    flags["corpus"].help = flags["corpus"].help.partition(" A folder")[0]
    absl_flags.DEFINE_string(
        "output_dir", None, "Output folder; it must not exist yet.", required=True, flag_values=flags
    )


def _decided(config: TrainConfig, tokenizer) -> dict[str, Any]:
    """Returns the training options that are fixed by a packed folder."""
    values: Mapping[str, Any] = config.values()
    names = [*_TEXT[1:], *_ROWS, *options.names_with(type(config.objective_options), "decides_rows")]
    kinds = {"WordPiece": "wordpiece", "ByteLevelBPE": "byte_level", "SentencePiece": "sentencepiece"}
    decided = {name: values[name] for name in names}
    decided["tokenizer"] = kinds.get(type(tokenizer).__name__, "characters")
    if not config.tokenizer_dir and not config.vocab_file:
        decided["tokenizer"] = config.tokenizer
        decided |= {"vocab_size": config.vocab_size} if config.tokenizer != "characters" else {}
        decided |= {"lowercase": config.lowercase} if config.tokenizer == "wordpiece" else {}
    return decided


def _check_output(flags: absl_flags.FlagValues) -> pathlib.Path:
    """Returns --output_dir after checking, before anything is read, that it can be written."""
    output_dir = pathlib.Path(os.path.expanduser(flags.output_dir))
    if os.path.lexists(output_dir):
        raise UserError(f"--output_dir={output_dir}: already exists; remove it, or specify a new folder")
    files.check_can_be_made(output_dir, "output_dir")
    return output_dir


COMMANDS = {
    "vocabulary": (vocabulary, define_vocabulary_flags),
    "pack": (pack, define_pack_flags),
    "labels": (labels, define_labels_flags),
}


def main() -> int:
    return cli.run_subcommand(COMMANDS, __doc__)


if __name__ == "__main__":
    sys.exit(main())
