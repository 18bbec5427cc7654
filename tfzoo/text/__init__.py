"""Tokenizers that run alike eagerly, in tf.data and in an exported graph, and the training of vocabularies.

`load(folder)` reads any of them from a Hugging Face folder. Each is a `tf.Module` with this interface, N texts at a
time:

    vocab_size                     how many tokens there are; ids are 0 to vocab_size - 1
    special_ids                    sorted ids of the tokens that stand for no text
    pad_id unknown_id bos_id       ids by role, None where the vocabulary has none
    eos_id cls_id sep_id mask_id
    keeps_spaces                   whether texts that are to be joined need a space between them
    adds_bos                       whether its folder says that a decoder's texts begin with bos_id
    tokenizer(texts, pairs=None)   a batch of a model's inputs, with padding, truncation and max_length
    tokenize(texts, special=())    strings [N] -> ids, ragged int32 [N, None]; nothing is added. Special tokens written
                                   in a text are plain text, but for those whose texts `special` holds
    tokenize_with_offsets(texts, special=())
                                   -> ids, starts, ends, where positions in the original text (code points) are exact
    detokenize(ids)                [N, L] or ragged -> strings [N]
    save(folder)                   the released file forms, which `tokenizers` and `transformers` read with the same ids
    frames                         the special tokens around a text, and around two, where its files say so
    added_tokens                   tokens that are found in a text before anything else
    fingerprint()                  hexadecimal; equal exactly if every text has equal ids

Ids do not depend on which texts share a batch. A SavedModel with a tokenizer inside needs `import tensorflow_text`
before it is loaded, and nothing of ours.
"""

import os
import pathlib
from typing import TYPE_CHECKING, Any

from tfzoo.errors import UserError
from tfzoo.text import settings, template
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
_NO_LIMIT = 10**9  # transformers writes 10^30 where there is none.


def find(folder: str | os.PathLike) -> str | None:
    """The form of the tokenizer that a folder in Hugging Face's layout holds; None without one.

    tokenizer.json is tokenizer_json; else vocab.txt is wordpiece, vocab.json with merges.txt byte_level, spiece.model,
    tokenizer.model, sentencepiece.bpe.model or source.spm with vocab.json sentencepiece, and characters.txt characters.
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
    """The tokenizer in a folder in Hugging Face's layout, of the class that its files ask for: see `find`.

    What a tokenizer.json says is compiled, and compared with the `tokenizers` library unless that was done before: see
    tfzoo.text.proof.

    Raises:
      UserError: there is none, it is broken, or it asks for what has no exact form here.
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
        proof.prove_sentencepiece(tokenizer, folder, FILES)
    else:
        from tfzoo.text import proof, tokenizer_json

        tokenizer, record = tokenizer_json.load(folder, kind)
        proof.prove(tokenizer, record, folder, FILES)
        if any((folder / name).is_file() for name in SENTENCEPIECE_FILES):
            proof.note_model_beside(tokenizer, folder, FILES)
    # Elsewhere the frames of the files say so.
    tokenizer.adds_bos = kind == "characters" and template.adds_bos(folder)
    config = settings.read(folder)
    for side, name in (("padding_side", "padding"), ("truncation_side", "truncation")):
        written = (record.get(name) or {}).get("direction", "right")
        setattr(tokenizer, side, config.get(side) or str(written).lower())
    if (most := config.get("model_max_length")) and most < _NO_LIMIT:
        tokenizer.max_length = int(most)
    present = [name for name in FILES if (folder / name).is_file()]
    tokenizer.keep_files({name: (folder / name).read_bytes() for name in present})
    return tokenizer
