"""Texts to token ids and back with the tokenizer.json of an artifact that writes text."""

import json
import pathlib
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers

from tfzoo.chat import ChatTemplate
from tfzoo.errors import UserError
from tfzoo.text import settings, untrusted
from tfzoo.text.components import schema
from tfzoo.text.framing import PAIR, TEXT, Frame


class Tokens:
    """The tokenizer of an artifact.

    Args:
      folder: the artifact.

    Attributes:
      tokenizer: the tokenizers.Tokenizer.
      vocab: the tokens as they are in the vocabulary, by id.
      special_ids: the ids of special tokens.
      pad_id, unknown_id, bos_id, eos_id, ...: the ids of special tokens by role, or None.

    Raises:
      UserError: the artifact has no tokenizer.json, or the file is not one.
    """

    bos_id: int | None

    def __init__(self, folder: pathlib.Path):
        place = folder / "tokenizer"
        self._folder = place if place.is_dir() else folder  # onnxruntime-genai looks for it beside the graph.
        self._path = self._folder / settings.TOKENIZER_FILE
        if not self._path.is_file():
            raise UserError(
                f"--model_dir={folder}: has no {settings.TOKENIZER_FILE}, because the library tokenizers does not "
                "support this tokenizer; specify the folder of the model"
            )
        record = schema.read(self._path)
        with untrusted.library_errors(self._path):
            self.tokenizer = tokenizers.Tokenizer.from_str(json.dumps(record))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self._encoding = threading.Lock()  # encode_special_tokens is a property of the tokenizer.
        size = max(self.tokenizer.get_vocab().values(), default=-1) + 1
        if size > settings.MAX_TOKENS:
            raise UserError(
                f"{self._path}: has the id {size - 1}, but at most {settings.MAX_TOKENS} tokens are supported"
            )
        self.vocab = [self.tokenizer.id_to_token(i) or "" for i in range(size)]
        self._special = {i: t.content for i, t in self.tokenizer.get_added_tokens_decoder().items() if t.special}
        self.special_ids = list(self._special)
        self._visible: tuple[int, str] | None = None
        frame = frame_of(record.get("post_processor") or {}, False, self._path)
        ids = [part for part in frame.parts if isinstance(part, int)]
        if TEXT not in frame.parts:
            raise UserError(f"{self._path}: post_processor: has no place for a text; export the model again")
        place_of_text = frame.parts.index(TEXT)
        self._before, self._after = ids[:place_of_text], ids[place_of_text:]
        roles = settings.read(self._folder)
        for role, name in settings.ROLES.items():
            token = roles.get(name)
            token = token.get("content") if isinstance(token, dict) else token
            setattr(self, f"{role}_id", self.tokenizer.token_to_id(token) if isinstance(token, str) else None)
        ids_of = {role: getattr(self, f"{role}_id") for role in settings.ROLES}
        others = {i for role, i in ids_of.items() if role not in ("unknown", "mask")}
        self._omitted = {*self._special} - ({ids_of["unknown"], ids_of["mask"]} - others)

    def framed(self, ids: Sequence[int]) -> list[int]:
        """Returns the ids of a text with the special tokens that the model reads around it."""
        return [*self._before, *ids, *self._after]

    @property
    def before(self) -> list[int]:
        """The ids of the special tokens before a text."""
        return list(self._before)

    def encode(self, texts: Sequence[str], special: Sequence[str] = ()) -> list[list[int]]:
        """Returns the ids of texts, in which only the names in `special` are special tokens."""
        return [self._encode_one(text.encode(errors="replace").decode(), {*special}) for text in texts]

    def _encode_one(self, text: str, special: set[str]) -> list[int]:
        written = {name for name in self._special.values() if name in text}
        if not special or written <= special:
            return self._ids(text, as_text=not special)
        # The library recognises all special tokens or none.
        ids: list[int] = []
        for part in re.split(f"({'|'.join(map(re.escape, sorted(special, key=len, reverse=True)))})", text):
            if part in special:
                ids += [i for i, name in self._special.items() if name == part]
            elif part:
                ids += self._ids(part)
        return ids

    def _ids(self, text: str, as_text: bool = True) -> list[int]:
        with self._encoding, untrusted.library_errors(self._path):
            self.tokenizer.encode_special_tokens = as_text
            return self.tokenizer.encode(text, add_special_tokens=False).ids

    def detokenize(self, ids: Sequence[int]) -> str:
        """Returns the text of ids without special tokens, except those for unknown and masked words."""
        return self.tokenizer.decode([i for i in ids if i not in self._omitted], skip_special_tokens=False)

    def following(self, ids: Sequence[int]) -> str:
        """Returns the text of ids that follow other tokens: some tokenizers drop the space at a text's beginning."""
        if self._visible is None:  # The first token of whole characters.
            shown = ((i, self.detokenize([i])) for i in range(len(self.vocab)) if i not in self._special)
            self._visible = next((i, text) for i, text in shown if text.strip() and "\ufffd" not in text)
        token, text = self._visible
        return self.detokenize([token, *ids]).removeprefix(text)

    def special_names(self) -> dict[int, str]:
        """Returns the names of special tokens by id."""
        return dict(self._special)

    def template(self) -> ChatTemplate:
        """Returns the chat template of the artifact.

        Raises:
          UserError: there is none, or it cannot be read.
        """
        return ChatTemplate.from_folder(self._folder, self, self.encode)


def frame_of(post_processor: Mapping[str, Any], pair: bool, path: pathlib.Path) -> Frame:
    """Returns the special tokens around a text, or around two, that tokenizer.json adds; `path` is that file."""
    parts: list[int | str] = []
    segments = []
    special = post_processor.get("special_tokens", {})
    for part in post_processor.get("pair" if pair else "single", ()):
        ((kind, value),) = part.items()
        if kind == "Sequence":
            parts.append(TEXT if value["id"] == "A" else PAIR)
            segments.append(value["type_id"])
        elif value["id"] not in special:
            raise UserError(f"{path}: post_processor: has no ids of {value['id']!r}; export the model again")
        else:
            ids = special[value["id"]]["ids"]
            parts += ids
            segments += [value["type_id"]] * len(ids)
    if not parts:
        raise UserError(f"{path}: has no template of special tokens; export the model again")
    return Frame(tuple(parts), tuple(segments))
