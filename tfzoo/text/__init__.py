"""Tokenizers that give the same ids eagerly, in tf.data and in an exported graph, and the training of vocabularies.

`load(folder)` reads any of them from a Hugging Face folder. Each tokenizer is a `tf.Module` with this interface, for N
texts at a time:

    vocab_size                     number of tokens; ids are 0 to vocab_size - 1
    special_ids                    sorted ids of the special tokens, which do not represent text
    pad_id unknown_id bos_id       ids by role, None if the vocabulary has no such token
    eos_id cls_id sep_id mask_id
    keeps_spaces                   whether texts need a space between them when they are joined
    adds_bos                       whether the folder specifies that a decoder's texts begin with bos_id
    tokenizer(texts, pairs=None)   a batch of model inputs, with padding, truncation and max_length
    tokenize(texts, special=())    strings [N] -> ids, ragged int32 [N, None], without added special tokens. Special
                                   tokens written in a text are plain text, except those listed in `special`
    tokenize_with_offsets(texts, special=())
                                   -> ids, starts, ends, if positions in the original text (code points) are exact
    detokenize(ids)                [N, L] or ragged -> strings [N]
    save(folder)                   writes the released file formats, which `tokenizers` and `transformers` read with the
                                   same ids
    frames                         special tokens added around one text and around two, if the files specify them
    added_tokens                   tokens that are matched in a text before any other processing
    chat_templates                 the formats of conversations by name, if the files specify them
    fingerprint()                  hexadecimal; two are equal if and only if every text has equal ids

Ids do not depend on the other texts in a batch. A SavedModel that contains a tokenizer requires
`import tensorflow_text` before it is loaded, but not tfzoo.
"""

import contextlib
import os
import pathlib
import types
from typing import TYPE_CHECKING, Any

from tfzoo import files
from tfzoo.errors import UserError
from tfzoo.text import cache, settings, template
from tfzoo.text.settings import (
    CHARACTERS_FILE,
    FILES,
    SENTENCEPIECE_FILES,
    SPECIAL_TOKENS,
    SPLIT_PATTERNS,
    TOKENIZER_FILE,
)

if TYPE_CHECKING:
    from tfzoo.text.tokenizer import Tokenizer

__all__ = ["SPECIAL_TOKENS", "SPLIT_PATTERNS", "find", "load"]
_NO_LIMIT = 10**9  # transformers writes 10^30 for no limit.


def find(folder: str | os.PathLike) -> str | None:
    """Returns the format of the tokenizer in a folder with Hugging Face's layout, or None if it contains no tokenizer.

    The formats, in order of precedence: "tokenizer_json" (tokenizer.json), "wordpiece" (vocab.txt), "byte_level"
    (vocab.json with merges.txt), "sentencepiece" (spiece.model, tokenizer.model, sentencepiece.bpe.model, or source.spm
    with vocab.json) and "characters" (characters.txt).
    """
    folder = pathlib.Path(folder)

    def has(*names: str) -> bool:
        return all((folder / name).is_file() for name in names)

    if has(TOKENIZER_FILE):
        return "tokenizer_json"
    if has("vocab.txt"):
        return "wordpiece"
    if has("vocab.json", "merges.txt"):
        return "byte_level"
    if any(has(name) for name in SENTENCEPIECE_FILES) or has("source.spm", "vocab.json"):
        return "sentencepiece"
    return "characters" if has(CHARACTERS_FILE) else None


def load(folder: str | os.PathLike) -> "Tokenizer":
    """Loads the tokenizer from a folder with Hugging Face's layout; `find` determines its format.

    A tokenizer.json is compiled, and compared with the `tokenizers` library unless that was done before: see
    tfzoo.text.proof.

    Args:
      folder: the folder of a model or of its tokenizer.

    Returns:
      A tokenizer with the interface that this module describes.

    Raises:
      UserError: there is no tokenizer, a file is damaged, or the tokenizer cannot be reproduced exactly.
    """
    folder = pathlib.Path(folder)
    kind, record = find(folder), dict[str, Any]()
    if kind is None:
        raise UserError(
            f"{folder}: contains no tokenizer; add {TOKENIZER_FILE}, vocab.txt, vocab.json with merges.txt, "
            f"one of {', '.join(SENTENCEPIECE_FILES)}, or {CHARACTERS_FILE}"
        )
    settings.check_class(folder, has_json=kind == "tokenizer_json")
    if kind == "characters":
        from tfzoo.text.characters import Characters

        tokenizer = Characters.from_folder(folder)
    elif kind == "sentencepiece":
        from tfzoo.text import proof
        from tfzoo.text.sentencepiece import SentencePiece

        tokenizer = SentencePiece.from_folder(folder)
        proof.prove_sentencepiece(tokenizer, folder)
    else:
        from tfzoo.text import proof, tokenizer_json

        key = proof.key(folder)
        proven = cache.read(key)
        content = tokenizer_json.unpack(proven) or tokenizer_json.read(folder, kind)
        tokenizer, record = tokenizer_json.make(content, folder, kind)
        if proven is None:
            proof.prove(tokenizer, record, folder)
            cache.write(key, tokenizer_json.pack(content))
        if any((folder / name).is_file() for name in SENTENCEPIECE_FILES):
            proof.note_model_beside(tokenizer, folder, key)
    # For all other kinds, the frames in the files specify this.
    tokenizer.adds_bos = kind == "characters" and template.adds_bos(folder)
    config = settings.read(folder)
    for side, name in (("padding_side", "padding"), ("truncation_side", "truncation")):
        written = (record.get(name) or {}).get("direction", "right")
        setattr(tokenizer, side, config.get(side) or str(written).lower())
    if (limit := config.get("model_max_length")) and limit < _NO_LIMIT:
        tokenizer.max_length = int(limit)
    present = [name for name in FILES if (folder / name).is_file()]
    tokenizer.keep_files({name: files.read_bytes(folder / name) for name in present})
    with contextlib.suppress(UserError):  # Of no importance unless there is a conversation.
        templates = {name: source for name, (_, source) in template.read_chat_templates(folder).items()}
        tokenizer.chat_templates = types.MappingProxyType(templates)
    return tokenizer
