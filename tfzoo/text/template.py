"""Settings of texts in a tokenizer's folder: chat templates, and the special tokens around texts."""

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
    """Returns the file and the text of each chat template by name; the usual name is DEFAULT.

    The templates are chat_template.jinja and additional_chat_templates/NAME.jinja; if there are none, the chat_template
    of tokenizer_config.json, which is a text or a list of several templates.

    Raises:
      UserError: a file cannot be read, or a template is not valid.
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
    templates = {}
    for i, item in enumerate(source or []):
        name, text = (item.get("name"), item.get("template")) if isinstance(item, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(text, str):
            raise UserError(f"{path}: chat_template[{i}]: must have a name and a template; correct it")
        templates[name] = path, text
    return templates


def _read(path: pathlib.Path) -> str:
    return files.read_text(path, max_bytes=json_files.MAX_BYTES)


def write_chat_templates(folder: str | os.PathLike, sources: Mapping[str, str]) -> None:
    """Writes chat templates to files of their own, as transformers does, unless the folder already has templates."""
    if read_chat_templates(folder):
        return
    for name, source in sources.items():
        path = pathlib.Path(folder, TEMPLATE_FILE)
        if name != DEFAULT:
            path = pathlib.Path(folder, TEMPLATE_FOLDER, f"{name}.jinja")
            path.parent.mkdir(exist_ok=True)
        files.atomic_write(path, source)


def adds_bos(folder: str | os.PathLike) -> bool:
    """Returns whether tokenizer_config.json specifies that texts begin with the bos token.

    Raises:
      UserError: the file cannot be read.
    """
    return settings.read(folder).get("add_bos_token") is True


def write_bos(folder: str | os.PathLike, token: str, token_id: int) -> None:
    """Declares in a tokenizer's files that texts begin with a token.

    This is written for tfzoo (tokenizer_config.json) and for transformers, which uses the post_processor of
    tokenizer.json if there is one.
    """
    path = pathlib.Path(folder, CONFIG_FILE)
    files.atomic_write(path, _json(settings.read(folder) | {"add_bos_token": True}))
    single = Frame((token_id, TEXT), (0, 0))
    write_frames(folder, {token_id: token}, single, Frame((*single.parts, token_id, PAIR), (0, 0, 0, 0)))


def write_frames(folder: str | os.PathLike, tokens: Mapping[int, str], single: Frame, pair: Frame) -> None:
    """Writes the special tokens around one text and around two to tokenizer.json, if that file exists.

    Args:
      folder: the tokenizer's folder.
      tokens: id -> text of the special tokens.
      single, pair: the frames of one text and of two.
    """
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
