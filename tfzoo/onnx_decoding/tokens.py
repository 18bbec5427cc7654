"""What writing texts adds to the tokenizer of an artifact: prompts, text that becomes known token by token, and chat
templates."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tfzoo.chat import ChatTemplate
from tfzoo.errors import UserError
from tfzoo.generation.written import HALF
from tfzoo.text import framing, settings
from tfzoo.text.framing import TEXT
from tfzoo.text.libraries import open_tokenizer


class Tokens:
    """The tokenizer of an artifact that writes text.

    Args:
      folder: the artifact.
      manifest: the content of its manifest.json.

    Attributes:
      vocab: the tokens as they are in the vocabulary, by id.
      special_ids: the ids of special tokens.
      pad_id, unknown_id, bos_id, eos_id, ...: the ids of special tokens by role, or None.

    Raises:
      UserError: see open_tokenizer; or the special tokens around a prompt are unknown.
    """

    bos_id: int | None

    def __init__(self, folder: pathlib.Path, manifest: Mapping[str, Any]):
        place = folder / "tokenizer"
        self._folder = place if place.is_dir() else folder  # onnxruntime-genai looks for it beside the graph.
        self._tokenizer = made = open_tokenizer(self._folder, manifest.get("tokenizer", {}).get("fingerprint"))
        self.vocab, self.special_ids = made.pieces, [*made.special]
        self._visible: tuple[int, str] | None = None
        # Artifacts of earlier versions state the frame in tokenizer.json alone.
        frame = framing.stated(manifest["frame"]) if "frame" in manifest else made.frame(False)
        if TEXT not in frame.parts:
            raise UserError(f"--model_dir={folder}: its frame has no place for a text; export the model again")
        ids = [part for part in frame.parts if isinstance(part, int)]
        place_of_text = frame.parts.index(TEXT)
        self._before, self._after = ids[:place_of_text], ids[place_of_text:]
        for role in settings.ROLES:
            setattr(self, f"{role}_id", made.role_ids.get(role))

    def framed(self, ids: Sequence[int]) -> list[int]:
        """Returns the ids of a text with the special tokens that the model reads around it."""
        return [*self._before, *ids, *self._after]

    @property
    def before(self) -> list[int]:
        """The ids of the special tokens before a text."""
        return list(self._before)

    def encode(self, texts: Sequence[str], special: Sequence[str] = ()) -> list[list[int]]:
        """Returns the ids of texts, in which only the names in `special` are special tokens."""
        texts = [text.encode(errors="replace").decode() for text in texts]
        return [list(found.ids) for found in self._tokenizer.encode(texts, special=special)]

    def detokenize(self, ids: Sequence[int]) -> str:
        """Returns the text of ids without special tokens, except those for unknown and masked words."""
        return self._tokenizer.decode(ids)

    def following(self, ids: Sequence[int]) -> str:
        """Returns the text of ids that follow other tokens, in which stop strings are searched: some tokenizers drop
        the space at a text's beginning. No special token is part of it."""
        special = self._tokenizer.special
        if self._visible is None:  # The first token of whole characters.
            shown = ((i, self.detokenize([i])) for i in range(len(self.vocab)) if i not in special)
            self._visible = next((i, text) for i, text in shown if text.strip() and HALF not in text)
        token, text = self._visible
        return self.detokenize([token, *(i for i in ids if i not in special)]).removeprefix(text)

    def stream(self, before: Sequence[int]) -> "TextStream":
        """Returns the text that tokens add to that of `before`, as they are written."""
        return TextStream(self, before)

    def special_names(self) -> dict[int, str]:
        """Returns the names of special tokens by id."""
        return dict(self._tokenizer.special)

    def template(self) -> ChatTemplate:
        """Returns the chat template of the artifact.

        Raises:
          UserError: there is none, or it cannot be read.
        """
        return ChatTemplate.from_folder(self._folder, self, self.encode)


class TextStream:
    """The text that tokens add to the text before them, in whole characters, as soon as it is known.

    Only the tokens since the last visible text are decoded again for each new one, so that a step takes the same time
    however long the text is.

    Args:
      tokens: the tokenizer.
      before: the ids of the text before.
    """

    def __init__(self, tokens: Tokens, before: Sequence[int]):
        self._decode, self._ids = tokens.detokenize, list(before)
        self._shown = self._decode(self._ids)  # The text of the ids before `_border`, which has been returned.
        self._border = len(self._ids)

    def add(self, token: int, last: bool = False) -> str:
        """Returns the text that is known with one more token; with `last` all of the text that remains."""
        self._ids.append(token)
        text = self._decode(self._ids)
        return "" if text.endswith(HALF) and not last else self._grown(text)

    def end(self) -> str:
        """Returns the text that remains: characters that no token completed."""
        return self._grown(self._decode(self._ids)) if self._border < len(self._ids) else ""

    def _grown(self, text: str) -> str:
        recent = self._ids[self._border :]
        alone = self._decode(recent)
        new = text[len(self._shown) :] if text.startswith(self._shown) else alone
        # Some tokenizers drop the spaces at a text's beginning, so that the tokens before must be visible.
        self._ids, self._shown = (recent, alone) if alone.strip() else (self._ids, text)
        self._border = len(self._ids)
        return new
