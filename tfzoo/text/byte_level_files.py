"""The files of byte-level tokenizers: tokenizer.json, or vocab.json and merges.txt, and what stands beside them.

`read` gives the arguments of tfzoo.text.byte_level.ByteLevelBPE, and `write` takes them.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence

from tfzoo import files, json_files
from tfzoo.errors import UserError
from tfzoo.text import settings
from tfzoo.text.byte_level_model import check_merges, check_vocab
from tfzoo.text.settings import CONFIG_FILE, ROLES, SPLIT_PATTERNS, TOKENS

TOKENIZER_FILE, VOCAB_FILE, MERGES_FILE = "tokenizer.json", "vocab.json", "merges.txt"
MAP_FILE, ADDED_FILE = "special_tokens_map.json", "added_tokens.json"
# What the released vocabularies mean by these, where no file says so.
USUAL = {
    "<s>": ("bos", "cls"), "<pad>": ("pad",), "</s>": ("eos", "sep"), "<unk>": ("unknown",), "<mask>": ("mask",),
    "<|endoftext|>": ("bos", "eos"), "<|begin_of_text|>": ("bos",), "<|end_of_text|>": ("eos",),
}  # fmt: skip


def read(folder: pathlib.Path) -> dict:
    """The arguments of ByteLevelBPE that a folder's files stand for: those of tokenizer.json where there is one.

    Raises:
      UserError: a file is missing or broken, or asks for what is not built here.
    """
    return _from_tokenizer_file(folder) if (folder / TOKENIZER_FILE).exists() else _from_vocab_and_merges(folder)


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


def is_byte_level(path: str | os.PathLike) -> bool:
    """Whether a tokenizer.json holds byte-level byte-pair encoding.

    Raises:
      UserError: the file cannot be read.
    """
    return _holds_byte_level(json_files.read(path))


def _holds_byte_level(content: dict) -> bool:
    model = content.get("model")
    byte_level = any(part.get("type") == "ByteLevel" for part in _parts(content.get("pre_tokenizer"), "pretokenizers"))
    return isinstance(model, dict) and model.get("type", "BPE") == "BPE" and byte_level


def _parts(component: object, name: str) -> list[dict]:
    """The members of a component of a tokenizer.json, which may be missing, one or a sequence."""
    if not isinstance(component, dict):
        return []
    parts = component.get(name, []) if component.get("type") == "Sequence" else [component]
    return [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []


def _from_tokenizer_file(folder: pathlib.Path) -> dict:
    """The arguments of ByteLevelBPE that a tokenizer.json and the files beside it stand for."""
    path = folder / TOKENIZER_FILE
    content = json_files.read(path)
    if not _holds_byte_level(content):
        raise UserError(f"{path}: is not a byte-level BPE tokenizer (its model and pre_tokenizer say so)")
    model = content["model"]
    for name, allowed in (
        ("dropout", (None, 0.0)),
        ("continuing_subword_prefix", (None, "")),
        ("end_of_word_suffix", (None, "")),
        ("byte_fallback", (None, False)),
        ("ignore_merges", (None, False, True)),
    ):
        if model.get(name) not in allowed:
            raise UserError(f"{path}: model.{name} is {model[name]!r}; only {allowed[-1]!r} is built here")
    normalizers = [part.get("type") for part in _parts(content.get("normalizer"), "normalizers")]
    if normalizers not in ([], ["NFC"]):
        raise UserError(f"{path}: normalizer is {normalizers}; only NFC or none is built here")
    pattern, add_prefix_space = _splitting(path, _parts(content.get("pre_tokenizer"), "pretokenizers"))

    ids = _ids(path, model.get("vocab"), "model.vocab")
    added = content.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise UserError(f"{path}: added_tokens is not a list of tokens")
    for token in added:
        if token.get("single_word"):
            raise UserError(f"{path}: the added token {token.get('content')!r} is single_word, which is not built here")
        _add(ids, path, token.get("content"), token.get("id"))
    special = [token["content"] for token in added]
    tokens = _in_order(ids, path)
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise UserError(f"{path}: model.merges is not a list")
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
    check_merges(set(tokens), merges, lambda i: f"{path}, merge {i + 1}", "model.vocab")
    roles, named = _roles(folder, ids)
    return {
        "vocab": tokens,
        "merges": merges,
        "special_tokens": [*special, *(token for token in named if token not in special)],
        "roles": roles,
        "pattern": pattern,
        "ignore_merges": bool(model.get("ignore_merges")),
        "add_prefix_space": add_prefix_space,
        "nfc": bool(normalizers),
        "lstrip": [token["content"] for token in added if token.get("lstrip")],
        "rstrip": [token["content"] for token in added if token.get("rstrip")],
    }


def _splitting(path: pathlib.Path, parts: list[dict]) -> tuple[str, bool]:
    """The pattern's name and add_prefix_space that a tokenizer.json's pre_tokenizer stands for."""
    byte_level = parts[-1]
    prefix = byte_level.get("add_prefix_space", True)  # The library's default.
    if len(parts) == 1 and byte_level.get("use_regex", True):
        return "gpt2", bool(prefix)
    if len(parts) == 2 and parts[0].get("type") == "Split" and not byte_level.get("use_regex", True):
        split = parts[0].get("pattern")
        split = split.get("Regex") if isinstance(split, dict) else None
        isolated = parts[0].get("behavior") == "Isolated" and not parts[0].get("invert")
        for name, pattern in SPLIT_PATTERNS.items():
            # A space put before every word would not be one before the text.
            if pattern == split and isolated and not prefix:
                return name, False
    raise UserError(
        f"{path}: pre_tokenizer splits by a pattern that is not built here; known are those of "
        f"{', '.join(SPLIT_PATTERNS)}"
    )


def _from_vocab_and_merges(folder: pathlib.Path) -> dict:
    """The arguments of ByteLevelBPE that a vocab.json, a merges.txt and the files beside them stand for."""
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
    return tokens
