"""Tokenizers with further special tokens, another end-of-text token, or chat templates, as fine-tuning needs them."""

import json
import pathlib
import tempfile
import types
from collections.abc import Mapping, Sequence
from typing import Any

from tfzoo import json_files, text
from tfzoo.errors import UserError
from tfzoo.text import settings
from tfzoo.text.settings import CONFIG_FILE, ROLES, TOKENIZER_FILE
from tfzoo.text.token_files import MAP_FILE
from tfzoo.text.tokenizer import Tokenizer


def extended(
    tokenizer: Tokenizer,
    special_tokens: Sequence[str] = (),
    *,
    eos: str | None = None,
    chat_templates: Mapping[str, str] | None = None,
) -> Tokenizer:
    """Returns a tokenizer with further special tokens, whose ids follow those of all others.

    Args:
      tokenizer: the tokenizer.
      special_tokens: special tokens; those that are already in the vocabulary keep their ids.
      eos: the token that ends a text, if it is to be another one; in the vocabulary or in `special_tokens`.
      chat_templates: name -> jinja source of the templates that replace the tokenizer's own; None keeps its own.

    Raises:
      UserError: the tokenizer cannot have further special tokens.
    """
    vocab = tokenizer.vocab
    special = {vocab[i] for i in tokenizer.special_ids}
    adds = any(token not in special for token in special_tokens)
    ends = eos is not None and (tokenizer.eos_id is None or vocab[tokenizer.eos_id] != eos)
    templates = dict(tokenizer.chat_templates if chat_templates is None else chat_templates)
    if not (adds or ends or templates != dict(tokenizer.chat_templates)):
        return tokenizer
    return _rewritten(tokenizer, special_tokens, eos, templates)


def _rewritten(
    tokenizer: Tokenizer, special_tokens: Sequence[str], eos: str | None, templates: Mapping[str, str]
) -> Tokenizer:
    """Returns a tokenizer whose files list the tokens among the added tokens, and `eos` as the end of a text."""
    ids = {token: i for i, token in enumerate(tokenizer.vocab) if token}
    added: dict[int, dict[str, Any]] = {}
    for token in tokenizer.added_tokens:
        added[token.id] = {name: value for name, value in vars(token).items() if name != "id"}
    for content in special_tokens:
        i = ids.setdefault(content, max(ids.values()) + 1)
        flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
        added[i] = {"content": content, **flags, **added.get(i, {}), "special": True}
    texts = {i: content for content, i in ids.items()}
    roles = {name: getattr(tokenizer, f"{role}_id") for role, name in ROLES.items()}
    names = {name: texts[i] for name, i in roles.items() if i is not None} | ({} if eos is None else {"eos_token": eos})
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        tokenizer.save(folder)
        if text.find(folder) == "characters":
            if not added:
                tokenizer.chat_templates = types.MappingProxyType(dict(templates))
                return tokenizer
            raise UserError(
                f"{' '.join(special_tokens)}: a tokenizer of characters cannot have further special tokens; use "
                "--tokenizer=byte_level, or a chat template without them"
            )
        path = folder / CONFIG_FILE
        decoder = {str(i): entry for i, entry in sorted(added.items())}
        config = settings.read(folder) | names | ({"added_tokens_decoder": decoder} if decoder else {})
        config.pop("chat_template", None)  # Templates have files of their own.
        _write(path, config)
        if (path := folder / MAP_FILE).exists():
            _write(path, json_files.read(path) | names)
        if added and (path := folder / TOKENIZER_FILE).exists():
            record = json_files.read(path)
            record["added_tokens"] = [{"id": i, **entry} for i, entry in sorted(added.items())]
            _write(path, record)
        result = text.load(folder)
    result.frames, result.adds_bos = tokenizer.frames, tokenizer.adds_bos
    result.chat_templates = types.MappingProxyType(dict(templates))
    return result


def _write(path: pathlib.Path, record: Any) -> None:
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
