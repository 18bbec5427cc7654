"""From the name of a corpus to its documents.

Imports no TensorFlow, so that reading and cleaning stay cheap to start.
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
      spec: "docstrings", for the docstrings of the packages beside this one (`tfzoo.data.docstrings`), or the
        path or glob of .txt or .jsonl files, each also as .gz (`tfzoo.data.files`).
      cache_dir: where the cleaned docstrings are kept for the next time; None keeps nothing.
      text_field: the field of a .jsonl object that holds the text.
      policy: what to do about bad input in files: "strict" raises, "replace" repairs what can be repaired,
        "skip" leaves it out; the last two count it in the report.
      raw: .txt files as they stand, line ends and blank lines included, each a document, for models of characters or
        bytes; their end is held out.
      held_out: what part of the files' text is held out.
      max_line_bytes: the longest line accepted, in bytes.
      max_bytes: the most that is read in all, in bytes after decompression.

    Raises:
      UserError: there is nothing to read, or what there is breaks the policy.
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
