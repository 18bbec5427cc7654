"""The files of byte-level tokenizers: tokenizer.json, or vocab.json and merges.txt, and the files next to them.

`read` returns the equivalent content of a tokenizer.json, and `contents` returns the files of a tokenizer.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence

from tfzoo import files, json_files
from tfzoo.errors import UserError
from tfzoo.text.byte_level_model import BYTES, check_merges, check_vocab
from tfzoo.text.settings import CONFIG_FILE, ROLES, SPLIT_PATTERNS, TOKENIZER_FILE

VOCAB_FILE, MERGES_FILE = "vocab.json", "merges.txt"
# The roles of these tokens in the released vocabularies, if no file specifies them.
USUAL = {
    "<s>": ("bos", "cls"), "<pad>": ("pad",), "</s>": ("eos", "sep"), "<unk>": ("unknown",), "<mask>": ("mask",),
    "<|endoftext|>": ("bos", "eos"), "<|begin_of_text|>": ("bos",), "<|end_of_text|>": ("eos",),
}  # fmt: skip


def read(folder: pathlib.Path) -> dict:
    """Returns the tokenizer.json content that is equivalent to a folder's vocab.json and merges.txt.

    Raises:
      UserError: a file is missing or damaged.
    """
    path = folder / VOCAB_FILE
    ids = _ids(path, json_files.read(path), "the file")
    tokens = _in_order(ids, path)
    path = folder / MERGES_FILE
    merges, numbers = [], []
    for number, line in enumerate(_read(path).split("\n"), 1):
        if line.strip("\r") and not line.startswith("#version"):
            merges.append(tuple(line.rstrip("\r").split(" ")))
            numbers.append(number)
    check_merges(set(tokens), merges, lambda i: f"{path}, line {numbers[i]}", VOCAB_FILE)
    added = [token for token in USUAL if token in ids]
    # RoBERTa's and BART's <mask> includes the space before it.
    record = content(
        ids,
        [" ".join(merge) for merge in merges],
        added,
        ["<mask>"] if "<mask>" in ids else [],
        [],
        "gpt2",
        False,
        False,
    )
    return {**record, "post_processor": None}


def contents(
    *,
    vocab: Sequence[str],
    merges: Sequence[tuple[str, str]],
    special_tokens: Sequence[str],
    roles: Mapping[str, str],
    pattern: str,
    ignore_merges: bool,
    add_prefix_space: bool,
    nfc: bool,
    lstrip: Sequence[str],
    rstrip: Sequence[str],
) -> dict[str, str | bytes]:
    """Returns the content of tokenizer.json, vocab.json, merges.txt and tokenizer_config.json by file name."""
    ids = {token: i for i, token in enumerate(vocab)}
    lines = [f"{left} {right}" for left, right in merges]
    record = content(ids, lines, special_tokens, lstrip, rstrip, pattern, add_prefix_space, ignore_merges, nfc)
    if "cls" in roles and "sep" in roles:
        record["post_processor"] = {
            "type": "RobertaProcessing",
            "sep": [roles["sep"], ids[roles["sep"]]],
            "cls": [roles["cls"], ids[roles["cls"]]],
            "trim_offsets": False,
            "add_prefix_space": add_prefix_space,
        }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": add_prefix_space}
    config |= {ROLES[role]: token for role, token in roles.items()}
    return {
        TOKENIZER_FILE: json.dumps(record, ensure_ascii=False),
        VOCAB_FILE: json.dumps(ids, ensure_ascii=False),
        MERGES_FILE: "".join(f"{line}\n" for line in ["#version: 0.2", *lines]),
        CONFIG_FILE: json.dumps(config, indent=2, ensure_ascii=False) + "\n",
    }


def content(
    ids: Mapping[str, int],
    merges: Sequence[str],
    special_tokens: Sequence[str],
    lstrip: Sequence[str],
    rstrip: Sequence[str],
    pattern: str,
    add_prefix_space: bool,
    ignore_merges: bool,
    nfc: bool = False,
) -> dict:
    """Returns the content of a tokenizer.json."""
    added = [
        {
            "id": ids[token],
            "content": token,
            "single_word": False,
            "lstrip": token in lstrip,
            "rstrip": token in rstrip,
            "normalized": False,
            "special": True,
        }
        for token in special_tokens
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": False}
    if pattern == "gpt2":
        splitter: dict = {**byte_level, "use_regex": True}
    else:
        split = {"Regex": SPLIT_PATTERNS[pattern]}
        splitter = {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": split, "behavior": "Isolated", "invert": False},
                {**byte_level, "use_regex": False},
            ],
        }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if nfc else None,
        "pre_tokenizer": splitter,
        "post_processor": {**byte_level, "use_regex": True},
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": ids,
            "merges": [*merges],
        },
    }


def _read(path: pathlib.Path) -> str:
    content = files.read_bytes(path)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: is not UTF-8 ({content[error.start : error.start + 10]!r})") from None


def _ids(path: pathlib.Path, vocab: object, name: str) -> dict[str, int]:
    if not isinstance(vocab, dict):
        raise UserError(f"{path}: {name} is not a vocabulary (an object of token: id)")
    ids: dict[str, int] = {}
    for token, i in vocab.items():
        _add(ids, path, token, i)
    if not ids:
        raise UserError(f"{path}, line 1: {name} contains no tokens")
    return ids


def _add(ids: dict[str, int], path: pathlib.Path, token: object, i: object) -> None:
    if not isinstance(token, str) or not isinstance(i, int) or isinstance(i, bool) or i < 0:
        raise UserError(f"{_at(path, token)} has id {i!r}, which is not an integer of at least 0")
    if ids.setdefault(token, i) != i:
        raise UserError(f"{_at(path, token)} has id {i} here, but id {ids[token]} earlier")


def _at(path: pathlib.Path, token: object) -> str:
    return f"{path}, line {json_files.line_of(path, token)}: token {token!r}"


def _in_order(ids: Mapping[str, int], path: pathlib.Path) -> list[str]:
    """Returns the tokens by id. Raises UserError if two tokens share an id or an id has no token."""
    tokens: list[str] = []
    for token, i in sorted(ids.items(), key=lambda item: item[1]):
        if i < len(tokens):
            raise UserError(f"{_at(path, token)} has id {i}, which token {tokens[i]!r} also has")
        if i > len(tokens):
            raise UserError(f"{_at(path, token)} has id {i}, but no token has id {len(tokens)}")
        tokens.append(token)
    check_vocab(tokens, str(path), lambda token: f", line {json_files.line_of(path, token)}")
    if "" in ids:
        raise UserError(f"{path}: token {ids['']} is empty; remove it")
    missing = [byte for letter, byte in BYTES.items() if letter not in ids]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of the 256 bytes have no token (the first is 0x{missing[0]:02x}); "
            "a byte-level vocabulary has one for each byte"
        )
    return tokens
