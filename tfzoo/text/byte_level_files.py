"""The files of byte-level tokenizers: tokenizer.json, or vocab.json and merges.txt, and what stands beside them.

`read` gives the arguments of tfzoo.text.byte_level.ByteLevelBPE, and `write` takes them.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence

from tfzoo import files, json_files
from tfzoo.errors import UserError
from tfzoo.text import settings
from tfzoo.text.byte_level_model import BYTES, check_merges, check_vocab
from tfzoo.text.settings import CONFIG_FILE, ROLES, SPLIT_PATTERNS, TOKENS

TOKENIZER_FILE, VOCAB_FILE, MERGES_FILE = "tokenizer.json", "vocab.json", "merges.txt"
MAP_FILE, ADDED_FILE = "special_tokens_map.json", "added_tokens.json"
# What the released vocabularies mean by these, where no file says so.
USUAL = {
    "<s>": ("bos", "cls"), "<pad>": ("pad",), "</s>": ("eos", "sep"), "<unk>": ("unknown",), "<mask>": ("mask",),
    "<|endoftext|>": ("bos", "eos"), "<|begin_of_text|>": ("bos",), "<|end_of_text|>": ("eos",),
}  # fmt: skip


def read(folder: pathlib.Path) -> dict:
    """The arguments of ByteLevelBPE that a folder's vocab.json, merges.txt and the files beside them stand for.

    Raises:
      UserError: a file is missing or broken, or asks for what is not built here.
    """
    path = folder / VOCAB_FILE
    content = json_files.read(path)
    ids = _ids(path, content, "the file")
    added: list[str] = []
    lstrip, rstrip = [], []
    if (folder / ADDED_FILE).exists():
        for token, i in json_files.read(folder / ADDED_FILE).items():
            _add(ids, folder / ADDED_FILE, token, i)
            added.append(token)
    config = settings.read(folder)
    for i, token in (config.get("added_tokens_decoder") or {}).items():
        if not isinstance(token, dict) or not i.isdecimal():
            raise UserError(f"{folder / CONFIG_FILE}: added_tokens_decoder has {i!r}: {token!r}, which is no token")
        _add(ids, folder / CONFIG_FILE, token.get("content"), int(i))
        added.append(token["content"])
        lstrip += [token["content"]] if token.get("lstrip") else []
        rstrip += [token["content"]] if token.get("rstrip") else []
    tokens = _in_order(ids, path)

    path = folder / MERGES_FILE
    merges, numbers = [], []
    for number, line in enumerate(_read(path).split("\n"), 1):
        if line.strip("\r") and not line.startswith("#version"):
            merges.append(tuple(line.rstrip("\r").split(" ")))
            numbers.append(number)
    check_merges(set(tokens), merges, lambda i: f"{path}, line {numbers[i]}", VOCAB_FILE)
    roles, named = _roles(folder, ids)
    special = dict.fromkeys([*added, *named, *(token for token in USUAL if token in ids)])
    if not lstrip and "<mask>" in special:
        lstrip = ["<mask>"]  # As RoBERTa and BART have it.
    return {
        "vocab": tokens,
        "merges": merges,
        "special_tokens": list(special),
        "roles": roles,
        "add_prefix_space": config.get("add_prefix_space") is True,
        "lstrip": lstrip,
        "rstrip": rstrip,
    }


def write(
    folder: pathlib.Path,
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
) -> None:
    """Writes tokenizer.json, vocab.json, merges.txt and tokenizer_config.json."""
    ids = {token: i for i, token in enumerate(vocab)}
    lines = [f"{left} {right}" for left, right in merges]
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
    frame: dict = {**byte_level, "use_regex": True}
    if "cls" in roles and "sep" in roles:
        frame = {
            "type": "RobertaProcessing",
            "sep": [roles["sep"], ids[roles["sep"]]],
            "cls": [roles["cls"], ids[roles["cls"]]],
            "trim_offsets": False,
            "add_prefix_space": add_prefix_space,
        }
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if nfc else None,
        "pre_tokenizer": splitter,
        "post_processor": frame,
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
            "merges": lines,
        },
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": add_prefix_space}
    config |= {ROLES[role]: token for role, token in roles.items()}
    files.atomic_write(folder / TOKENIZER_FILE, json.dumps(content, ensure_ascii=False))
    files.atomic_write(folder / VOCAB_FILE, json.dumps(ids, ensure_ascii=False))
    files.atomic_write(folder / MERGES_FILE, "".join(f"{line}\n" for line in ["#version: 0.2", *lines]))
    files.atomic_write(folder / CONFIG_FILE, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _roles(folder: pathlib.Path, ids: Mapping[str, int]) -> tuple[dict[str, str] | None, list[str]]:
    """The roles that the folder's settings name, None without any, and all special tokens they name."""
    roles: dict[str, str] = {}
    named: dict[str, None] = {}
    special_map: dict = {}
    if (folder / MAP_FILE).exists():
        special_map = json_files.read(folder / MAP_FILE)
        json_files.check(special_map, TOKENS, folder / MAP_FILE)
    for path, record in ((folder / MAP_FILE, special_map), (folder / CONFIG_FILE, settings.read(folder))):
        more = record.get("additional_special_tokens")
        values = [(None, value) for value in (more if isinstance(more, list) else [])]
        for role, value in [*((role, record.get(name)) for role, name in ROLES.items()), *values]:
            token = settings.token_text(value)
            if token is None:
                continue
            if not isinstance(token, str) or token not in ids:
                raise UserError(
                    f"{path}, line {json_files.line_of(path, token)}: the special token {token!r} is not in the "
                    "vocabulary"
                )
            named[token] = None
            if role:
                roles[role] = token
    return roles or None, list(named)


def _read(path: pathlib.Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the tokenizer cannot be read ({error.strerror})") from None
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: is not UTF-8 ({content[error.start : error.start + 10]!r})") from None


def _ids(path: pathlib.Path, vocab: object, name: str) -> dict[str, int]:
    if not isinstance(vocab, dict):
        raise UserError(f"{path}: {name} holds no vocabulary (token: id)")
    ids: dict[str, int] = {}
    for token, i in vocab.items():
        _add(ids, path, token, i)
    if not ids:
        raise UserError(f"{path}, line 1: {name} holds no token")
    return ids


def _add(ids: dict[str, int], path: pathlib.Path, token: object, i: object) -> None:
    if not isinstance(token, str) or not isinstance(i, int) or isinstance(i, bool) or i < 0:
        raise UserError(f"{_at(path, token)} has id {i!r}, which is not a number from 0")
    if ids.setdefault(token, i) != i:
        raise UserError(f"{_at(path, token)} has id {i}, and {ids[token]} before")


def _at(path: pathlib.Path, token: object) -> str:
    return f"{path}, line {json_files.line_of(path, token)}: token {token!r}"


def _in_order(ids: Mapping[str, int], path: pathlib.Path) -> list[str]:
    """The tokens by id. Refuses two tokens of one id and ids of no token."""
    tokens: list[str] = []
    for token, i in sorted(ids.items(), key=lambda item: item[1]):
        if i < len(tokens):
            raise UserError(f"{_at(path, token)} has id {i}, as {tokens[i]!r} has")
        if i > len(tokens):
            raise UserError(f"{_at(path, token)} has id {i}, but no token has id {len(tokens)}")
        tokens.append(token)
    check_vocab(tokens, str(path), lambda token: f", line {json_files.line_of(path, token)}")
    if "" in ids:
        raise UserError(f"{path}: token {ids['']} is empty; remove it")
    missing = [byte for letter, byte in BYTES.items() if letter not in ids]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of the 256 bytes have no token, the first is 0x{missing[0]:02x}; "
            "a byte-level vocabulary has one for each"
        )
    return tokens
