"""The added tokens and the roles of tokens that a folder's files declare.

The files are tokenizer.json, tokenizer_config.json, special_tokens_map.json and added_tokens.json. Does not import
TensorFlow.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfzoo import json_files
from tfzoo.errors import UserError
from tfzoo.json_files import show
from tfzoo.text import settings
from tfzoo.text.settings import CONFIG_FILE, ROLES, TOKENIZER_FILE

MAP_FILE, ADDED_FILE = "special_tokens_map.json", "added_tokens.json"


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token that is matched in a text.

    Attributes:
      content: the token's text.
      id: the token's id.
      special: whether the token does not represent text.
      lstrip, rstrip: whether a match includes the white space before, or after, the token.
      single_word: whether the token is not matched within a word.
      normalized: whether the token is matched in the normalised text, not in the original.
    """

    content: str
    id: int
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


def check_special(special: Sequence[str], known: Mapping[str, int]) -> None:
    """Raises UserError if `special` contains a text that is not a key of `known` (special tokens: text -> id)."""
    for token in special:
        if token not in known:
            examples = " ".join(list(known)[:12])
            raise UserError(f"special: {token!r} is not one of {examples}{' ...' if len(known) > 12 else ''}")


def special_ids(
    vocab: Sequence[str], ids: Iterable[int], role_ids: Mapping[str, int], added: Iterable[AddedToken]
) -> tuple[int, ...]:
    """Returns the sorted ids of the tokens that do not represent text.

    Args:
      vocab: `vocab[i]` is the text of token i, "" if no token has id i.
      ids: ids of such tokens that are neither among the roles nor among the added tokens.
      role_ids: role -> id.
      added: the added tokens.
    """
    gaps = [i for i, token in enumerate(vocab) if not token] if "" in vocab else []
    return tuple(sorted({*ids, *role_ids.values(), *(token.id for token in added if token.special), *gaps}))


def dropped_ids(special: Iterable[int], role_ids: Mapping[str, int]) -> set[int]:
    """Returns the special tokens that detokenization drops.

    These are all but the tokens whose only roles are those for unknown and masked words. GPT-2's <|endoftext|> is the
    unknown token but also ends texts, so it is dropped.
    """
    others = {i for role, i in role_ids.items() if role not in ("unknown", "mask")}
    return {*special} - ({role_ids.get("unknown"), role_ids.get("mask")} - others)


def added_tokens(
    folder: pathlib.Path, record: Mapping[str, Any], config: Mapping[str, Any], ids: dict[str, int]
) -> list[AddedToken]:
    """Returns the added tokens of all files, and adds their ids to `ids`."""
    path, tokens = folder / TOKENIZER_FILE, dict[str, AddedToken]()
    for token in record.get("added_tokens") or []:
        _add(tokens, ids, token, token.get("id"), path)
    for i, token in (config.get("added_tokens_decoder") or {}).items():
        if not i.isdecimal() or len(i) > 9:
            raise UserError(f"{folder / CONFIG_FILE}: added_tokens_decoder has {i!r}, which is not an id; correct it")
        _add(tokens, ids, token, int(i), folder / CONFIG_FILE)
    if not config.get("added_tokens_decoder") and (folder / ADDED_FILE).exists():
        for token, i in json_files.read(folder / ADDED_FILE).items():
            if token not in tokens:
                _add(tokens, ids, {"content": token, "special": False, "normalized": True}, i, folder / ADDED_FILE)
    for name in ("additional_special_tokens", "extra_special_tokens"):
        value = config.get(name)
        for token in (value.values() if isinstance(value, dict) else value) or []:
            _name(tokens, ids, token)
    for name in ROLES.values():
        if config.get(name) is not None:
            _name(tokens, ids, config[name])
    return list(tokens.values())


def _add(tokens: dict[str, AddedToken], ids: dict[str, int], token: Any, i: Any, path) -> None:
    content = settings.token_text(token)
    if not isinstance(content, str) or not content or type(i) is not int or i < 0:
        raise UserError(f"{path}: the added token {show(token)} with id {show(i)} is not valid; correct it")
    if ids.setdefault(content, i) != i:
        raise UserError(
            f"{path}: the added token {show(content)} has id {i} here, but id {ids[content]} earlier; correct it"
        )
    options = {} if isinstance(token, str) else token
    flags = {name: bool(options.get(name)) for name in ("special", "lstrip", "rstrip", "single_word", "normalized")}
    tokens[content] = AddedToken(content, i, **flags)


def _name(tokens: dict[str, AddedToken], ids: dict[str, int], token: Any) -> None:
    """Adds a special token that is given by name; a new one gets the next id after the last."""
    content = settings.token_text(token)
    if not isinstance(content, str) or content not in tokens:
        options = token if isinstance(token, dict) else {}
        _add(tokens, ids, {**options, "content": content, "special": True}, ids.get(content, max(ids.values()) + 1), "")
    else:
        tokens[content] = dataclasses.replace(tokens[content], special=True)


def roles_of(folder: pathlib.Path, config: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, str]:
    """Returns role -> token.

    special_tokens_map.json is used where tokenizer_config.json specifies nothing, as in older folders.
    """
    path, older = folder / MAP_FILE, {}
    if path.exists():
        older = json_files.read(path)
        json_files.check(older, settings.TOKENS, path)
        settings.check_tokens(older, path)
    roles = {}
    for role, name in ROLES.items():
        for where, record in ((folder / CONFIG_FILE, config), (path, older)):
            token = settings.token_text(record.get(name))
            if token is not None:
                if token not in ids:
                    line = json_files.line_of(where, token)
                    raise UserError(f"{where}, line {line}: {name} is {show(token)}, which is not in the vocabulary")
                roles[role] = token
                break
    return roles
