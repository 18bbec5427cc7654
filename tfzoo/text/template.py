"""What a tokenizer's folder says of texts that a model reads, besides their ids: a chat template, and a beginning."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from tfzoo import files, json_files
from tfzoo.errors import UserError
from tfzoo.text import settings
from tfzoo.text.framing import PAIR, TEXT, Frame
from tfzoo.text.settings import CONFIG_FILE, TOKENIZER_FILE

TEMPLATE_FILE, TEMPLATE_FOLDER, DEFAULT = "chat_template.jinja", "additional_chat_templates", "default"


def read_chat_templates(folder: str | os.PathLike) -> dict[str, tuple[pathlib.Path, str]]:
    """The file and the text of each chat template by its name, which is mostly DEFAULT: chat_template.jinja and
    additional_chat_templates/NAME.jinja; where there are none the chat_template of tokenizer_config.json, a text or a
    list of several.

    Raises:
      UserError: a file cannot be read, or says it wrongly.
    """
    folder = pathlib.Path(folder)
    paths = {path.stem: path for path in sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))}
    if (folder / TEMPLATE_FILE).exists():
        paths[DEFAULT] = folder / TEMPLATE_FILE
    if paths:
        return {name: (path, _read(path)) for name, path in paths.items()}
    path, source = folder / CONFIG_FILE, settings.read(folder).get("chat_template")
    if isinstance(source, str):
        return {DEFAULT: (path, source)}
    found = {}
    for i, item in enumerate(source or []):
        name, text = (item.get("name"), item.get("template")) if isinstance(item, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(text, str):
            raise UserError(f"{path}: chat_template[{i}]: must have a name and a template; correct it")
        found[name] = path, text
    return found


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def write_chat_templates(folder: str | os.PathLike, sources: Mapping[str, str]) -> None:
    """As transformers does: files of their own. Those that are there already are left."""
    if read_chat_templates(folder):
        return
    for name, source in sources.items():
        path = pathlib.Path(folder, TEMPLATE_FILE)
        if name != DEFAULT:
            path = pathlib.Path(folder, TEMPLATE_FOLDER, f"{name}.jinja")
            path.parent.mkdir(exist_ok=True)
        files.atomic_write(path, source)


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
    single = Frame((token_id, TEXT), (0, 0))
    write_frames(folder, {token_id: token}, single, Frame((*single.parts, token_id, PAIR), (0, 0, 0, 0)))


def write_frames(folder: str | os.PathLike, tokens: Mapping[int, str], single: Frame, pair: Frame) -> None:
    """Says in tokenizer.json, where there is one, which special tokens stand around a text, and around two; `tokens`
    has their texts by their ids."""
    path = pathlib.Path(folder, TOKENIZER_FILE)
    if not path.exists():
        return
    record = json_files.read(path)

    def parts(frame: Frame) -> list[dict[str, Any]]:
        return [
            {"Sequence": {"id": "A" if part == TEXT else "B", "type_id": segment}}
            if isinstance(part, str)
            else {"SpecialToken": {"id": tokens[part], "type_id": segment}}
            for part, segment in zip(frame.parts, frame.segments)
        ]

    used = sorted({part for part in (*single.parts, *pair.parts) if isinstance(part, int)})
    record["post_processor"] = {
        "type": "TemplateProcessing",
        "single": parts(single),
        "pair": parts(pair),
        "special_tokens": {tokens[i]: {"id": tokens[i], "ids": [i], "tokens": [tokens[i]]} for i in used},
    }
    files.atomic_write(path, json.dumps(record, ensure_ascii=False))


def _json(record) -> str:
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"
