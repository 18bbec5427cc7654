"""Reads the documents of a corpus that is specified by name, path or glob, or of several such sources.

Does not import TensorFlow, so that reading and cleaning start quickly.
"""

import glob
import os
from typing import Any

from tfzoo import lazy
from tfzoo.data import aligned, catalogues, docstrings, files
from tfzoo.data.documents import Corpus
from tfzoo.errors import UserError

mixture = lazy.module("tfzoo.data.mixture")


def load_corpus(
    spec: str,
    *,
    cache_dir: str | os.PathLike | None,
    text_field: str = "text",
    policy: str = "strict",
    raw: bool = False,
    held_out: float = files.HELD_OUT,
    max_line_bytes: int = files.MAX_LINE_BYTES,
    max_bytes: int = files.MAX_BYTES,
    weights: str | None = None,
    temperature: float = 1.0,
) -> Corpus:
    """Reads the corpus that `spec` names.

    Args:
      spec: one of the following sources, or several of them, separated by commas (`mixture.mix`):
        "docstrings", for the docstrings of installed packages (`tfzoo.data.docstrings`);
        the path or glob of .txt or .jsonl files, optionally compressed as .gz (`tfzoo.data.files`);
        "FIRST+SECOND", two files whose lines correspond, or the path or glob of .tsv files (`tfzoo.data.aligned`);
        "gettext:LANGUAGE" or "gettext:en-LANGUAGE", or the path or glob of .mo files (`tfzoo.data.catalogues`).
      cache_dir: where the cleaned docstrings are cached; None disables the cache.
      text_field: the field of a .jsonl object that contains the text.
      policy: how invalid input in files is handled: "strict" raises an error, "replace" repairs what can be repaired,
        "skip" omits it; the last two count it in the report.
      raw: reads .txt files verbatim, including line endings and blank lines, each as one document, for models of
        characters or bytes; the end of the text is held out.
      held_out: the fraction of the files' text that is held out.
      max_line_bytes: maximum length of a line in bytes.
      max_bytes: maximum total size of a source in bytes, after decompression.
      weights, temperature: the proportions of several sources (`tfzoo.data.mixture`).

    Raises:
      UserError: there is nothing to read, or the input violates the policy.
    """
    options: dict[str, Any] = dict(policy=policy, held_out=held_out, max_line_bytes=max_line_bytes, max_bytes=max_bytes)

    def load(source: str) -> Corpus:
        if source == docstrings.NAME:
            if raw:
                raise UserError(
                    "--raw_text: the docstrings corpus does not consist of text files; specify files with --corpus"
                )
            return docstrings.read(cache_dir)
        for reads, reader in (
            (catalogues.is_catalogue, catalogues.read),
            (aligned.is_table, aligned.read),
            (aligned.two_files, aligned.read),
        ):
            if reads(source):
                if raw:
                    raise UserError(f"--raw_text: does not apply to --corpus={source}; omit it")
                return reader(source, **options)
        return files.read(source, text_field=text_field, raw=raw, **options)

    sources = split_sources(spec)
    numbers = mixture.parse_weights(weights, len(sources), temperature)
    if len(sources) == 1:
        return load(sources[0])
    for source in sources:
        if os.path.isdir(os.path.expanduser(source)):
            raise UserError(
                f"--corpus={spec}: {source} is a folder, which cannot be combined with other sources; specify text "
                "files, as in texts/*.txt"
            )
    return mixture.mix(spec, [load(source) for source in sources], numbers, temperature)


def split_sources(spec: str) -> list[str]:
    """Splits the value of --corpus at its commas, except for those in the name of an existing file.

    Raises:
      UserError: a source is empty, or appears twice.
    """
    pieces, sources = spec.split(","), []
    while pieces:
        # The longest sequence of pieces that exists.
        count = next((n for n in range(len(pieces), 1, -1) if _exists(",".join(pieces[:n]))), 1)
        sources.append(",".join(pieces[:count]))
        del pieces[:count]
    for source in sources:
        if not source.strip() and len(sources) > 1:
            raise UserError(f"--corpus={spec}: a source is empty; remove the comma or specify the source")
        if sources.count(source) > 1:
            raise UserError(
                f"--corpus={spec}: {source} appears twice; specify it once, and its proportion with --corpus_weights"
            )
    return sources


def _exists(spec: str) -> bool:
    """Returns whether a path exists, a glob matches, or both of two aligned files exist."""
    path = os.path.expanduser(spec)
    pair = aligned.two_files(spec)
    if pair:
        return all(map(os.path.lexists, pair))
    return os.path.lexists(path) or (glob.has_magic(path) and bool(glob.glob(path, recursive=True)))
