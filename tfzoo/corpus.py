"""Prepares text for training: a vocabulary learned from it, or its tokens packed into rows.

    python -m tfzoo.corpus vocabulary --corpus='texts/*.txt' --tokenizer=byte_level --output_dir=vocabularies/mine
    python -m tfzoo.corpus pack --corpus='texts/*.txt' --tokenizer_dir=vocabularies/mine --objective=causal \\
        --output_dir=packed/mine
    python -m tfzoo.train --flagfile=configs/gpt.cfg --corpus=packed/mine --run_dir=runs/mine
"""

import os
import pathlib
import sys
from collections.abc import Iterable

from absl import flags as absl_flags

from tfzoo import cli, files, train
from tfzoo.errors import UserError

# Training's own flags, so that text is read and cut here as it is there.
_TEXT = ("corpus", "text_field", "raw_text", "held_out", "bad_text")
_TOKENIZER = ("tokenizer", "vocab_size", "lowercase")
_ROWS = ("objective", "sequence_length", "mask_rate", "mean_span")
# What rows of packed documents depend on; training from them must have the same.
_DECIDED_BY = {"masked_lm": ("mask_rate",), "causal": (), "span_corruption": ("mask_rate", "mean_span")}


def define_vocabulary_flags(flags: absl_flags.FlagValues) -> None:
    _take(flags, (*_TEXT, "cache_dir", *_TOKENIZER))
    absl_flags.DEFINE_string(
        "output_dir", None, "Folder to write; it must not be there.", required=True, flag_values=flags
    )


def define_pack_flags(flags: absl_flags.FlagValues) -> None:
    _take(flags, (*_TEXT, "cache_dir", *_TOKENIZER, "tokenizer_dir", "vocab_file", *_ROWS))
    absl_flags.DEFINE_string(
        "output_dir", None, "Folder to write; it must not be there.", required=True, flag_values=flags
    )
    absl_flags.DEFINE_integer("shard_rows", 65536, "The most rows in a file.", lower_bound=1, flag_values=flags)


def vocabulary(flags: absl_flags.FlagValues) -> None:
    """Trains a tokenizer on a corpus's training part, and writes its files, for --tokenizer_dir.

    It is the tokenizer that tfzoo.train would train on the spot with the same flags.
    """
    output_dir = _check_output(flags)
    _, tokenizer = _read(flags)
    try:
        with files.atomic_folder(output_dir) as partial:
            tokenizer.save(partial)
    except FileExistsError:
        raise UserError(f"--output_dir={output_dir}: is there already; remove it, or name a new folder") from None
    print(f"{output_dir}: {flags.tokenizer}, {tokenizer.vocab_size:,} tokens")


def pack(flags: absl_flags.FlagValues) -> None:
    """Tokenizes a corpus and packs it into rows, in a folder that tfzoo.train takes as --corpus.

    Training from it sees the same rows in the same order as from the text itself, without reading, cleaning,
    tokenizing and packing it first. The tokenizer's files go with it. masked_lm is packed without sentence pairs.
    """
    output_dir = _check_output(flags)
    from tfzoo.data import packed

    corpus, tokenizer = _read(flags)
    objective = train.make_objective(_as_training(flags), tokenizer)
    rows, token_ids = train.read_rows(flags, corpus, tokenizer, objective, train.cache_folder(flags))
    manifest = packed.write(
        output_dir,
        dict(zip(packed.PARTS, rows, strict=True)),
        dict(zip(packed.PARTS, token_ids, strict=True)),
        tokenizer,
        flags=_decided(flags, tokenizer),
        corpus={"name": corpus.name, "fingerprint": corpus.fingerprint, "report": corpus.report},
        shard_rows=flags.shard_rows,
    )
    listed = manifest["files"].values()
    for part, counts in manifest["parts"].items():
        padding = f"{counts['padding_share']:.1%} of them padding"
        print(f"{part}: {counts['tokens']:,} tokens in {counts['rows']:,} rows, {padding}")
    print(f"{output_dir}: {len(listed)} files, {sum(file['bytes'] for file in listed):,} bytes")


def _take(flags: absl_flags.FlagValues, names: Iterable[str]) -> None:
    """Defines flags as training does."""
    known = absl_flags.FlagValues()
    train.define_flags(known)
    for name in names:
        flags[name] = known[name]
    flags["corpus"].help = '"docstrings", or a path or glob of .txt, .jsonl, .txt.gz, .jsonl.gz.'


def _as_training(flags: absl_flags.FlagValues) -> absl_flags.FlagValues:
    """Training's flags with the values of those of `flags` that it has; rows are packed, and without pairs."""
    training = absl_flags.FlagValues()
    train.define_flags(training)
    for name in set(flags) & set(training):
        training[name].value = flags[name].value
    training["next_sentence"].value, training["pack"].value = False, True
    training.mark_as_parsed()
    return training


def _decided(flags: absl_flags.FlagValues, tokenizer) -> dict:
    """The flags of training that a packed folder has decided."""
    names = [*_TEXT[1:], "objective", "sequence_length", *_DECIDED_BY[flags.objective]]
    decided = {name: flags[name].value for name in names} | {"pack": True}
    if flags.objective == "masked_lm":
        decided["next_sentence"] = False
    kinds = {"WordPiece": "wordpiece", "ByteLevelBPE": "byte_level", "SentencePiece": "sentencepiece"}
    decided["tokenizer"] = kinds.get(type(tokenizer).__name__, "characters")
    if not flags.tokenizer_dir and not flags.vocab_file:
        decided |= {"vocab_size": flags.vocab_size} if flags.tokenizer != "characters" else {}
        decided |= {"lowercase": flags.lowercase} if flags.tokenizer == "wordpiece" else {}
    return decided


def _read(flags: absl_flags.FlagValues):
    """(corpus, tokenizer), as training reads them."""
    return train.read_corpus(_as_training(flags), pathlib.Path(), train.cache_folder(flags), resuming=False)


def _check_output(flags: absl_flags.FlagValues) -> pathlib.Path:
    """Refuses before anything is read what could not be written in the end."""
    output_dir = pathlib.Path(flags.output_dir).expanduser()
    if os.path.lexists(output_dir):
        raise UserError(f"--output_dir={output_dir}: is there already; remove it, or name a new folder")
    files.check_can_be_made(output_dir, "output_dir")
    return output_dir


COMMANDS = {"vocabulary": (vocabulary, define_vocabulary_flags), "pack": (pack, define_pack_flags)}


def main() -> int:
    return cli.run_subcommand(COMMANDS, __doc__)


if __name__ == "__main__":
    sys.exit(main())
