"""Tokenizers that run alike eagerly, in tf.data and in an exported graph, and the training of vocabularies.

`load(folder)` reads any of them from a Hugging Face folder. Each is a `tf.Module` with this interface, N texts at a
time:

    vocab_size                     how many tokens there are; ids are 0 to vocab_size - 1
    special_ids                    sorted ids of the tokens that stand for no text
    pad_id unknown_id bos_id       ids by role, None where the vocabulary has none
    eos_id cls_id sep_id mask_id
    keeps_spaces                   whether texts that are to be joined need a space between them
    adds_bos                       whether its folder says that a decoder's texts begin with bos_id
    tokenize(texts, special=())    strings [N] -> ids, ragged int32 [N, None]; nothing is added. Special tokens written
                                   in a text are plain text, but for those whose texts `special` holds
    tokenize_with_offsets(texts)   -> ids, starts, ends, where positions in the original text (code points) are exact
    detokenize(ids)                [N, L] or ragged -> strings [N]
    save(folder), from_folder(f)   the released file forms, which `tokenizers` and `transformers` read with the same ids
    fingerprint()                  hexadecimal; equal exactly if every text has equal ids

Ids do not depend on which texts share a batch. A SavedModel with a tokenizer inside needs `import tensorflow_text`
before it is loaded, and nothing of ours.
"""

import importlib
import os
import pathlib
from typing import TYPE_CHECKING

from tfzoo.errors import UserError
from tfzoo.text import template
from tfzoo.text.settings import SPECIAL_TOKENS, SPLIT_PATTERNS

if TYPE_CHECKING:
    from tfzoo.text.tokenizer import Tokenizer

__all__ = ["SPECIAL_TOKENS", "SPLIT_PATTERNS", "find", "load"]
_SENTENCEPIECE_FILES = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
_CHARACTERS_FILE = "characters.txt"


_CLASSES = {
    "wordpiece": "WordPiece",
    "byte_level": "ByteLevelBPE",
    "sentencepiece": "SentencePiece",
    "characters": "Characters",
}


def find(folder: str | os.PathLike) -> str | None:
    """The kind of tokenizer, and the module of it, that a folder in Hugging Face's layout holds; None without one.

    vocab.txt is wordpiece; a byte-level tokenizer.json, or vocab.json with merges.txt, byte_level; spiece.model,
    tokenizer.model or sentencepiece.bpe.model sentencepiece; characters.txt characters.

    Raises:
      UserError: a tokenizer.json is broken.
    """
    folder = pathlib.Path(folder)

    def has(*names: str) -> bool:
        return all((folder / name).is_file() for name in names)

    if has("vocab.txt"):
        return "wordpiece"
    if has("tokenizer.json"):
        from tfzoo.text import byte_level_files

        if byte_level_files.is_byte_level(folder / "tokenizer.json"):
            return "byte_level"
    elif has("vocab.json", "merges.txt"):
        return "byte_level"
    if any(has(name) for name in _SENTENCEPIECE_FILES):
        return "sentencepiece"
    return "characters" if has(_CHARACTERS_FILE) else None


def load(folder: str | os.PathLike) -> "Tokenizer":
    """The tokenizer in a folder in Hugging Face's layout, of the class that its files ask for: see `find`.

    Raises:
      UserError: there is none, or it is broken.
    """
    folder = pathlib.Path(folder)
    kind = find(folder)
    if kind:
        tokenizer = getattr(importlib.import_module(f"tfzoo.text.{kind}"), _CLASSES[kind]).from_folder(folder)
        tokenizer.adds_bos = template.adds_bos(folder)
        return tokenizer
    if (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder / 'tokenizer.json'}: is not byte-level, and no other form is read from this file")
    raise UserError(
        f"{folder}: holds no tokenizer: no vocab.txt, no tokenizer.json, no vocab.json with merges.txt, "
        f"none of {', '.join(_SENTENCEPIECE_FILES)}, and no {_CHARACTERS_FILE}"
    )
