"""What a tokenizer's folder says of texts that a model reads, besides their ids: a chat template, and a beginning."""

import json
import os
import pathlib
from typing import Any

from tfzoo import files, json_files
from tfzoo.errors import UserError
from tfzoo.text import settings
from tfzoo.text.settings import CONFIG_FILE

TEMPLATE_FILE, TOKENIZER_FILE = "chat_template.jinja", "tokenizer.json"


def read_chat_template(folder: str | os.PathLike) -> tuple[pathlib.Path, str] | None:
    """The file and the text of a chat template: chat_template.jinja, or the chat_template of tokenizer_config.json (of
    several, "default"); None where there is none.

    Raises:
      UserError: a file cannot be read.
    """
    path = pathlib.Path(folder, TEMPLATE_FILE)
    if path.exists():
        try:
            return path, path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error})") from None
    source = settings.read(folder).get("chat_template")
    if isinstance(source, list):
        named = {item.get("name"): item.get("template") for item in source if isinstance(item, dict)}
        source = named.get("default")
    return (pathlib.Path(folder, CONFIG_FILE), source) if isinstance(source, str) else None


def write_chat_template(folder: str | os.PathLike, source: str) -> None:
    """As transformers does: a file of its own. One that is there already is left."""
    if read_chat_template(folder) is None:
        files.atomic_write(pathlib.Path(folder, TEMPLATE_FILE), source)


def adds_bos(folder: str | os.PathLike) -> bool:
    """Whether tokenizer_config.json says that texts begin with the token for that.

    Raises:
      UserError: it cannot be read.
    """
    return settings.read(folder).get("add_bos_token") is True


def write_bos(folder: str | os.PathLike, token: str, token_id: int) -> None:
    """Says in a tokenizer's files that texts begin with a token: for us, and for transformers, which goes by the
    post_processor of tokenizer.json where there is one."""
    path = pathlib.Path(folder, CONFIG_FILE)
    files.atomic_write(path, _json(settings.read(folder) | {"add_bos_token": True}))
    path = pathlib.Path(folder, TOKENIZER_FILE)
    if not path.exists():
        return
    record = json_files.read(path)
    special: dict[str, Any] = {"SpecialToken": {"id": token, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    record["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, special, second],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }
    files.atomic_write(path, json.dumps(record, ensure_ascii=False))


def _json(record) -> str:
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"
