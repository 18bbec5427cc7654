"""Reads tokenizer.json, and what stands beside it, as Hugging Face's libraries do.

tokenizer.json says how a text becomes ids. tokenizer_config.json, special_tokens_map.json and added_tokens.json say
which tokens have roles, add tokens, and have the last word on a few options.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from tfzoo import json_files
from tfzoo.errors import UserError
from tfzoo.json_files import Field, show
from tfzoo.text import settings
from tfzoo.text.added import AddedToken
from tfzoo.text.byte_level import ByteLevelBPE
from tfzoo.text.components import pre_tokenizers, processors, word_models
from tfzoo.text.pipeline import Pipeline
from tfzoo.text.settings import CONFIG_FILE, ROLES, SPLIT_PATTERNS
from tfzoo.text.wordpiece import WordPiece

TOKENIZER_FILE = "tokenizer.json"
MAP_FILE, ADDED_FILE = "special_tokens_map.json", "added_tokens.json"
# transformers' own processors of these classes do not look at add_bos_token and add_eos_token.
_OWN_FRAME = (
    "Bert",
    "DistilBert",
    "Electra",
    "T5",
    "Roberta",
    "Bart",
    "XLNet",
    "Albert",
    "XLMRoberta",
    "MBart",
    "Camembert",
)
_COMPONENTS = {"normalizer": Field(dict), "pre_tokenizer": Field(dict), "post_processor": Field(dict)}
_COMPONENTS |= {"decoder": Field(dict), "model": Field(dict, required=True, null=False)}
_COMPONENTS |= {"added_tokens": Field(list, items=Field(dict))}


def load(folder: pathlib.Path):
    """The tokenizer of a folder with a tokenizer.json.

    Raises:
      UserError: a file is damaged, or asks for what has no exact form here.
    """
    path = folder / TOKENIZER_FILE
    record = json_files.read(path)
    json_files.check(record, _COMPONENTS, path)
    config = settings.read(folder)
    ids = dict(word_models.vocabulary(record["model"], f"{path}: model"))
    added = _added_tokens(folder, record, config, ids)
    roles = _roles(folder, config, ids)
    added = [dataclasses.replace(t, special=t.special or t.content in roles.values()) for t in added]
    vocab = [""] * (max(ids.values()) + 1)
    for token, i in ids.items():
        if vocab[i] and vocab[i] != token:
            raise UserError(f"{path}: {show(vocab[i])} and {show(token)} both have id {i}; get the file again")
        vocab[i] = token
    record = _overridden(record, config, folder / CONFIG_FILE)
    maker = _wordpiece if _is_bert(record) else _byte_level if _is_byte_level(record) else _pipeline
    tokenizer = maker(record, vocab, roles, added, path)
    # transformers 5 leaves byte-pair encoding's texts as they are: there a space before a full stop is meant.
    tokenizer.cleans_up = bool(config.get("clean_up_tokenization_spaces")) and record["model"].get("type") != "BPE"
    tokenizer.frames = _frames(record, config, tokenizer, path)
    return tokenizer, record


def _wordpiece(record, vocab, roles, added, path):
    model, normalizer = record["model"], record["normalizer"]
    unknown = model.get("unk_token", "[UNK]")
    if unknown not in vocab:
        raise UserError(
            f"{path}: model.unk_token is {show(unknown)}, which is not in the vocabulary; get the file again"
        )
    return WordPiece(
        vocab,
        normalizer.get("lowercase", True),
        strip_accents=normalizer.get("strip_accents"),
        roles={"unknown": unknown, **roles},
        added_tokens=added,
        max_characters=model.get("max_input_chars_per_word", 100),
        cleanup=bool((record.get("decoder") or {}).get("cleanup", False)),
        name=str(path),
    )


def _byte_level(record, vocab, roles, added, path):
    model, where = record["model"], f"{path}: model"
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(name):
            raise UserError(f"{where}.{name}: is {show(model[name])}, which has no exact form here")
    unknown = model.get("unk_token")
    normalizer = record.get("normalizer") or {}
    kinds = [part.get("type") for part in normalizer.get("normalizers", [normalizer])]
    if kinds not in ([None], ["NFC"], []):
        raise UserError(f"{path}: normalizer is {kinds}; only NFC or none has an exact form before ByteLevel")
    *before, last = pre_tokenizers.parts(record["pre_tokenizer"])
    pattern = "gpt2" if last.get("use_regex", True) else ""
    if not pattern and before and (known := _known_pattern(before[-1])):
        pattern = known
        before.pop()
    return ByteLevelBPE(
        vocab,
        word_models.pairs(model, where),
        roles=roles,
        added_tokens=added,
        pattern=pattern,
        splits=before,
        ignore_merges=bool(model.get("ignore_merges")),
        add_prefix_space=bool(last.get("add_prefix_space", True)),
        nfc=kinds == ["NFC"],
        unknown=unknown if unknown in vocab else None,
        name=str(path),
    )


def _pipeline(record, vocab, roles, added, path):
    return Pipeline(record, vocab, roles=roles, added_tokens=added, name=str(path))


def _known_pattern(part: dict[str, Any]) -> str | None:
    """The name of the pattern by which a pre_tokenizer splits as ByteLevelBPE does faster by itself."""
    given = part.get("pattern")
    expression = given.get("Regex") if isinstance(given, dict) else None
    if part.get("type") != "Split" or part.get("behavior") != "Isolated":
        return None
    return next((name for name, pattern in SPLIT_PATTERNS.items() if pattern == expression), None)


def _is_bert(record: dict[str, Any]) -> bool:
    """Whether WordPiece does all of it: BERT's normaliser, which takes Chinese apart, and its words."""
    model, normalizer = record["model"], record.get("normalizer") or {}
    return (
        model.get("type", "WordPiece") == "WordPiece"
        and model.get("continuing_subword_prefix", "##") == "##"
        and normalizer.get("type") == "BertNormalizer"
        and normalizer.get("clean_text", True)
        and normalizer.get("handle_chinese_chars", True)
        and (record.get("pre_tokenizer") or {}).get("type") == "BertPreTokenizer"
    )


def _is_byte_level(record: dict[str, Any]) -> bool:
    parts = pre_tokenizers.parts(record.get("pre_tokenizer"))
    return record["model"].get("type", "BPE") == "BPE" and bool(parts) and parts[-1].get("type") == "ByteLevel"


def _added_tokens(folder, record, config, ids: dict[str, int]) -> list[AddedToken]:
    """The added tokens of every file, whose ids go into `ids`."""
    path, found = folder / TOKENIZER_FILE, dict[str, AddedToken]()
    for token in record.get("added_tokens") or []:
        _add(found, ids, token, token.get("id"), path)
    for i, token in (config.get("added_tokens_decoder") or {}).items():
        if not i.isdecimal():
            raise UserError(f"{folder / CONFIG_FILE}: added_tokens_decoder has {i!r}, which is not an id; correct it")
        _add(found, ids, token, int(i), folder / CONFIG_FILE)
    if not config.get("added_tokens_decoder") and (folder / ADDED_FILE).exists():
        for token, i in json_files.read(folder / ADDED_FILE).items():
            if token not in found:
                _add(found, ids, {"content": token, "special": False, "normalized": True}, i, folder / ADDED_FILE)
    for name in ("additional_special_tokens", "extra_special_tokens"):
        value = config.get(name)
        for token in (value.values() if isinstance(value, dict) else value) or []:
            _name(found, ids, token)
    for name in ROLES.values():
        if config.get(name) is not None:
            _name(found, ids, config[name])
    return list(found.values())


def _add(found: dict[str, AddedToken], ids: dict[str, int], token: Any, i: Any, path) -> None:
    content = settings.token_text(token)
    if not isinstance(content, str) or not content or type(i) is not int or i < 0:
        raise UserError(f"{path}: the added token {show(token)} with id {show(i)} is not a token; correct it")
    if ids.setdefault(content, i) != i:
        raise UserError(f"{path}: the added token {show(content)} has id {i}, and {ids[content]} before; correct it")
    options = {} if isinstance(token, str) else token
    flags = {name: bool(options.get(name)) for name in ("special", "lstrip", "rstrip", "single_word", "normalized")}
    found[content] = AddedToken(content, i, **flags)


def _name(found: dict[str, AddedToken], ids: dict[str, int], token: Any) -> None:
    """A special token that is named: one that is nowhere yet comes after the last."""
    content = settings.token_text(token)
    if content not in found:
        options = token if isinstance(token, dict) else {}
        _add(found, ids, {**options, "content": content, "special": True}, ids.get(content, max(ids.values()) + 1), "")
    else:
        found[content] = dataclasses.replace(found[content], special=True)


def _roles(folder, config, ids: Mapping[str, int]) -> dict[str, str]:
    """Role -> token; special_tokens_map.json counts where tokenizer_config.json says nothing, as in older folders."""
    path, older = folder / MAP_FILE, {}
    if path.exists():
        older = json_files.read(path)
        json_files.check(older, settings.TOKENS, path)
    roles = {}
    for role, name in ROLES.items():
        for where, record in ((folder / CONFIG_FILE, config), (path, older)):
            token = settings.token_text(record.get(name))
            if token is not None:
                if token not in ids:
                    raise UserError(f"{where}: {name} is {show(token)}, which is not in the vocabulary; correct it")
                roles[role] = token
                break
    return roles


def _overridden(record: dict[str, Any], config: dict[str, Any], path) -> dict[str, Any]:
    """The record, with what tokenizer_config.json has the last word on."""
    record = dict(record)
    normalizer = record.get("normalizer")
    if isinstance(normalizer, dict) and normalizer.get("type") == "BertNormalizer":
        names = {"do_lower_case": "lowercase", "strip_accents": "strip_accents"}
        names |= {"tokenize_chinese_chars": "handle_chinese_chars"}
        given = {ours: config[theirs] for theirs, ours in names.items() if theirs in config}
        record["normalizer"] = {**normalizer, **given}
    prefix = config.get("add_prefix_space")
    if prefix is not None and _is_byte_level(record):
        record["pre_tokenizer"] = _with_prefix(record["pre_tokenizer"], prefix)
    return record


def _with_prefix(part: dict[str, Any], prefix: bool) -> dict[str, Any]:
    if part.get("type") == "Sequence":
        return {**part, "pretokenizers": [_with_prefix(inner, prefix) for inner in part["pretokenizers"]]}
    return {**part, "add_prefix_space": prefix} if part.get("type") == "ByteLevel" else part


def _frames(record, config, tokenizer, path) -> processors.Frames:
    """Which special tokens stand around a text: the file's post_processor, or, where tokenizer_config.json says so and
    transformers' class listens, those that begin and end a text."""
    ids = {token: i for i, token in enumerate(tokenizer.vocab) if token}
    own = str(config.get("tokenizer_class", "")).removesuffix("Fast").removesuffix("Tokenizer") in _OWN_FRAME
    flags = [config.get(name) for name in ("add_bos_token", "add_eos_token")]
    if own or flags == [None, None]:
        return processors.compile_processor(record.get("post_processor"), ids, f"{path}: post_processor")
    bos = [tokenizer.bos_id] if flags[0] and tokenizer.bos_id is not None else []
    eos = [tokenizer.eos_id] if flags[1] and tokenizer.eos_id is not None else []
    return processors.begin_and_end(bos, eos)
