"""Reads the documents of a corpus that is specified by name, path or glob.

Does not import TensorFlow, so that reading and cleaning start quickly.
"""

import os

from tfzoo.data import docstrings, files
from tfzoo.data.documents import Corpus
from tfzoo.errors import UserError


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
) -> Corpus:
    """Reads the corpus that `spec` names.

    Args:
      spec: "docstrings", for the docstrings of installed packages (`tfzoo.data.docstrings`), or the path or glob of
        .txt or .jsonl files, optionally compressed as .gz (`tfzoo.data.files`).
      cache_dir: where the cleaned docstrings are cached; None disables the cache.
      text_field: the field of a .jsonl object that contains the text.
      policy: how invalid input in files is handled: "strict" raises an error, "replace" repairs what can be repaired,
        "skip" omits it; the last two count it in the report.
      raw: reads .txt files verbatim, including line endings and blank lines, each as one document, for models of
        characters or bytes; the end of the text is held out.
      held_out: the fraction of the files' text that is held out.
      max_line_bytes: maximum length of a line in bytes.
      max_bytes: maximum total size in bytes, after decompression.

    Raises:
      UserError: there is nothing to read, or the input violates the policy.
    """
    if spec == docstrings.NAME:
        if raw:
            raise UserError(
                "--raw_text: the docstrings corpus does not consist of text files; specify files with --corpus"
            )
        return docstrings.read(cache_dir)
    return files.read(
        spec,
        text_field=text_field,
        policy=policy,
        raw=raw,
        held_out=held_out,
        max_line_bytes=max_line_bytes,
        max_bytes=max_bytes,
    )
