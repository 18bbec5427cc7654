"""What files of tokenizers say by convention: roles of tokens, and tokenizer_config.json. Needs no TensorFlow."""

import os
import pathlib
from typing import Any

from tfzoo import json_files
from tfzoo.json_files import Field, Fields

CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # In the order a vocabulary of ours has them.

# Role -> what tokenizer_config.json calls it.
ROLES = {
    "pad": "pad_token", "unknown": "unk_token", "bos": "bos_token", "eos": "eos_token", "cls": "cls_token",
    "sep": "sep_token", "mask": "mask_token",
}  # fmt: skip

# What byte-level tokenizers split a text into words by, as tokenizer.json has it.
SPLIT_PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}

# A token is written as its text, or as an object with its text as "content".
TOKENS: Fields = {name: (Field(str), Field(dict)) for name in ROLES.values()}
_FIELDS: Fields = {
    "tokenizer_class": Field(str),
    "do_lower_case": Field(bool, null=False),
    "keep_accents": Field(bool, null=False),
    "strip_accents": Field(bool),
    "extra_ids": Field(int, low=0, high=10_000, null=False),
    "add_bos_token": Field(bool),
    "additional_special_tokens": (Field(list), Field(dict)),
    "added_tokens_decoder": Field(dict),
    "chat_template": (Field(str), Field(list)),
    **TOKENS,
}


def read(folder: str | os.PathLike) -> dict[str, Any]:
    """A folder's tokenizer_config.json; an empty object where there is none.

    Raises:
      UserError: it cannot be read, or a field that is read here is of another type.
    """
    path = pathlib.Path(folder, CONFIG_FILE)
    if not path.exists():
        return {}
    record = json_files.read(path)
    json_files.check(record, _FIELDS, path)
    return record


def token_text(value: Any) -> Any:
    """The text of a token as such files write it; None where there is none."""
    return value.get("content") if isinstance(value, dict) else value
