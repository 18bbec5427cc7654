"""Tokenizers that run alike eagerly, in tf.data and in an exported graph, and the training of vocabularies.

`load(folder)` reads any of them from a Hugging Face folder. Each is a `tf.Module` with this interface, N texts at a
time:

    vocab_size                     how many tokens there are; ids are 0 to vocab_size - 1
    special_ids                    sorted ids of the tokens that stand for no text
    pad_id unknown_id bos_id       ids by role, None where the vocabulary has none (WordPiece, whose roles are
    eos_id cls_id sep_id mask_id   fixed, has only those of BERT)
    tokenize(texts, special=())    strings [N] -> ids, ragged int32 [N, None]; nothing is added. Special tokens written
                                   in a text are plain text, but for those whose texts `special` holds
    tokenize_with_offsets(texts)   -> ids, starts, ends, where positions in the original text (code points) are exact
    detokenize(ids)                [N, L] or ragged -> strings [N]
    save(folder), from_folder(f)   the released file forms, which `tokenizers` and `transformers` read with the same ids
    fingerprint()                  hexadecimal; equal exactly if every text has equal ids

Ids do not depend on which texts share a batch. A SavedModel with a tokenizer inside needs `import tensorflow_text`
before it is loaded, and nothing of ours.
"""

import os
import pathlib
from typing import TYPE_CHECKING

from tfzoo.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # In the order a vocabulary of ours has them.

# What byte-level tokenizers split a text into words by, as tokenizer.json has it.
SPLIT_PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}
_SENTENCEPIECE_FILES = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
_CHARACTERS_FILE = "characters.txt"


def load(folder: str | os.PathLike) -> "tf.Module":
    """The tokenizer in a folder in Hugging Face's layout, of the class that its files ask for.

    vocab.txt is WordPiece; a byte-level tokenizer.json, or vocab.json with merges.txt, ByteLevelBPE; spiece.model,
    tokenizer.model or sentencepiece.bpe.model SentencePiece; characters.txt plain characters.

    Raises:
      UserError: there is none of these, or it is broken.
    """
    folder = pathlib.Path(folder)

    def has(*names: str) -> bool:
        return all((folder / name).is_file() for name in names)

    if has("vocab.txt"):
        from tfzoo.text.wordpiece import WordPiece

        return WordPiece.from_folder(folder)
    if has("vocab.json", "merges.txt") or has("tokenizer.json"):
        from tfzoo.text import byte_level

        if not has("tokenizer.json") or byte_level.is_byte_level(folder / "tokenizer.json"):
            return byte_level.ByteLevelBPE.from_folder(folder)
    if any(has(name) for name in _SENTENCEPIECE_FILES):
        from tfzoo.text.sentencepiece import SentencePiece

        return SentencePiece.from_folder(folder)
    if has(_CHARACTERS_FILE):
        from tfzoo.text.characters import Characters

        return Characters.from_folder(folder)
    if has("tokenizer.json"):
        raise UserError(f"{folder / 'tokenizer.json'}: is not byte-level, and no other form is read from this file")
    raise UserError(
        f"{folder}: holds no tokenizer: no vocab.txt, no tokenizer.json, no vocab.json with merges.txt, "
        f"none of {', '.join(_SENTENCEPIECE_FILES)}, and no {_CHARACTERS_FILE}"
    )
