"""The tokenizer's files next to an ONNX graph: Hugging Face's files and, if the `tokenizers` library supports the
tokenizer, a tokenizer.json that adds the special tokens which the model reads around a text."""

import contextlib
import json
import pathlib
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from tfzoo import files, json_files
from tfzoo.errors import UserError
from tfzoo.text import framing
from tfzoo.text.characters import SPECIALS, Characters
from tfzoo.text.framing import PAIR, TEXT
from tfzoo.text.sentencepiece import SentencePiece
from tfzoo.text.sentencepiece_files import KINDS
from tfzoo.text.settings import CONFIG_FILE, TOKENIZER_FILE
from tfzoo.text.wordpiece import WordPiece


def write(tokenizer: Any, layout: framing.Layout, folder: pathlib.Path) -> None:
    """Writes the tokenizer into `folder` for `tfzoo.text.load` and Hugging Face's libraries."""
    tokenizer.save(folder)
    if isinstance(tokenizer, SentencePiece):
        _name_class(tokenizer, folder / CONFIG_FILE)
    path = folder / TOKENIZER_FILE
    if isinstance(tokenizer, Characters):
        fast = _characters(tokenizer)
    elif path.exists():
        fast = tokenizers.Tokenizer.from_file(str(path))
    else:
        return
    if isinstance(tokenizer, WordPiece) and tokenizer.pad_id is not None:
        fast.enable_padding(pad_id=tokenizer.pad_id, pad_token=tokenizer.vocab[tokenizer.pad_id])
    special = {tokenizer.vocab[i]: i for i in tokenizer.special_ids if tokenizer.vocab[i]}
    templates = {}
    for name, pair in (("single", False), ("pair", True)):
        with contextlib.suppress(UserError):  # There is no token that separates two texts.
            templates[name] = _template(framing.frame(layout, tokenizer, pair), tokenizer)
    if templates:  # The post-processor in the tokenizer's own file belongs to a Hugging Face class, not to this model.
        templates = {"pair": [*templates["single"], "$B:0"], **templates}
        special |= {_name(i): i for i in _others(layout, tokenizer)}
        fast.post_processor = processors.TemplateProcessing(**templates, special_tokens=list(special.items()))
    fast.save(str(path))


def _name_class(tokenizer: SentencePiece, path: pathlib.Path) -> None:
    """Adds the class of a SentencePiece tokenizer to tokenizer_config.json: that of an old folder followed from the
    model_type in its config.json, which is not among the tokenizer's files."""
    config = json_files.read(path)
    if config.get("tokenizer_class") is None:
        config["tokenizer_class"] = KINDS[tokenizer.kind].tokenizer_class
        files.atomic_write(path, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _characters(tokenizer: Characters) -> tokenizers.Tokenizer:
    vocab = {token: i for i, token in enumerate(tokenizer.vocab)}
    fast = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=SPECIALS["unknown"]))
    fast.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    fast.decoder = decoders.Fuse()
    return fast


def _template(frame: framing.Frame, tokenizer: Any) -> list[str]:
    names: dict[int | str, str] = {TEXT: "$A", PAIR: "$B"}
    names |= {part: _name(part) for part in frame.parts if isinstance(part, int)}
    names |= {i: tokenizer.vocab[i] for i in tokenizer.special_ids}
    return [f"{names[part]}:{segment}" for part, segment in zip(frame.parts, frame.segments)]


def _others(layout: framing.Layout, tokenizer: Any) -> list[int]:
    """Returns the ids in the frame of a text that are not special tokens, such as words of a chat template."""
    parts = framing.frame(layout, tokenizer).parts
    return sorted({part for part in parts if isinstance(part, int)} - set(tokenizer.special_ids))


def _name(token_id: int) -> str:
    """Returns the name of such a token in the post-processor, which the text of a token could not be: it may contain
    the characters of the post-processor's notation."""
    return f"token_{token_id}"
