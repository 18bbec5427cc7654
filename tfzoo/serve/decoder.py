"""Text from an ONNX decoder, one token at a time: the signature `tokens` of an artifact with its tokenizer.

A request can therefore be streamed, and ends as soon as its client has gone. One text is written at a time per model.
"""

import contextlib
import dataclasses
import json
import pathlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers.decoders import DecodeStream

from tfzoo.chat import ChatTemplate
from tfzoo.errors import UserError, one_line
from tfzoo.export import manifest as manifests
from tfzoo.serve.errors import StatusError, invalid
from tfzoo.serve.servable import Servable
from tfzoo.text import settings, untrusted
from tfzoo.text.components import schema

SIGNATURE = "tokens"
_PAST, _PRESENT = "past_key_values", "present"


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
      max_new_tokens: how many at most.
      temperature: 0 chooses the likeliest token.
      top_k: sample from this many of the likeliest tokens; 0 means all.
      top_p: sample from the likeliest tokens whose probabilities reach this sum.
      seed: of the random numbers.
    """

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int


class Decoder:
    """The tokenizer of an artifact, and the loop that writes text with its graph.

    Args:
      folder: an ONNX artifact of a decoder with the head lm.

    Attributes:
      length: the maximum number of tokens of a prompt and its continuation.

    Raises:
      StatusError: the artifact does not write text, or has no tokenizer.json.
    """

    def __init__(self, folder: pathlib.Path):
        try:
            manifest = manifests.read(folder, whole=False)
            path = folder / "tokenizer" / settings.TOKENIZER_FILE
            if "generation" not in manifest or not path.is_file():
                raise invalid("the model does not write text, or has no tokenizer.json")
            record = schema.read(path)
            with untrusted.library_errors(path):
                self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(record))
        except UserError as error:
            raise StatusError("FAILED_PRECONDITION", str(error)) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._folder, self._path = path.parent, path
        self.length: int = manifest["options"]["sequence_length"]
        ends = manifest["generation"].get("eos_token_id", [])
        self._ends = set(ends if isinstance(ends, list) else [ends])
        self._special = {i: t for i, t in self._tokenizer.get_added_tokens_decoder().items() if t.special}
        self._encoding = threading.Lock()  # encode_special_tokens is a property of the tokenizer.
        self._lock = threading.Lock()
        self._template: ChatTemplate | None = None

    def ids(self, text: str) -> list[int]:
        """Returns the ids of a prompt, with the special tokens that the model reads around it."""
        return self._tokens(text, framed=True)

    def chat_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Returns the ids of a conversation up to the beginning of the answer.

        Raises:
          StatusError: the model has no chat template, or it rejects the messages.
        """
        try:
            if self._template is None:
                self._template = ChatTemplate.from_folder(
                    self._folder, _Vocabulary(self._folder, self._tokenizer), self._encode
                )
            return self._template.ids(messages, add_generation_prompt=True)
        except UserError as error:
            raise invalid(one_line(error)) from None

    def _encode(self, texts: Sequence[str], special: Sequence[str] = ()) -> list[list[int]]:
        """Returns the ids of texts, in which only the names in `special` are special tokens."""
        return [self._encode_one(text, {*special}) for text in texts]

    def _encode_one(self, text: str, special: set[str]) -> list[int]:
        written = {token.content for token in self._special.values() if token.content in text}
        if not special or written <= special:
            return self._tokens(text, as_text=not special)
        # The library recognises all special tokens or none.
        ids: list[int] = []
        for part in re.split(f"({'|'.join(map(re.escape, sorted(special, key=len, reverse=True)))})", text):
            if part in special:
                ids += [i for i, token in self._special.items() if token.content == part]
            elif part:
                ids += self._tokens(part)
        return ids

    def _tokens(self, text: str, as_text: bool = True, framed: bool = False) -> list[int]:
        with self._encoding, untrusted.library_errors(self._path):
            self._tokenizer.encode_special_tokens = as_text
            return self._tokenizer.encode(text, add_special_tokens=framed).ids

    def write(
        self, servable: Servable, ids: Sequence[int], sampling: Sampling, check: Callable[[], None]
    ) -> Iterator[tuple[str, bool]]:
        """Yields the text of each new token, which may be empty, and whether it ended the text.

        Args:
          servable: the loaded version whose folder this is.
          ids: the prompt.
          sampling: how tokens are chosen.
          check: called between tokens; ends the loop by raising an error.

        Raises:
          StatusError: the prompt has no tokens, or leaves no room for a continuation.
        """
        if not ids:
            raise invalid("the prompt has no tokens, so there is nothing to continue")
        if len(ids) >= self.length:
            raise invalid(f"the prompt has {len(ids)} tokens, which leaves no room below the model's {self.length}")
        text, random = DecodeStream(skip_special_tokens=True), np.random.default_rng(sampling.seed)
        seen, new, past = 0, list(ids), self._nothing(servable)
        for _ in range(min(sampling.max_new_tokens, self.length - len(ids))):
            check()
            logits, past = self._step(servable, new, seen, past)
            token = choose(logits, sampling, random)
            if token in self._ends:
                yield "", True
                return
            yield text.step(self._tokenizer, token) or "", False
            seen, new = seen + len(new), [token]

    @contextlib.contextmanager
    def alone(self, check: Callable[[], None]) -> Iterator[None]:
        """Waits until no other text is being written; `check` is called meanwhile."""
        while not self._lock.acquire(timeout=0.1):
            check()
        try:
            yield
        finally:
            self._lock.release()

    def _nothing(self, servable: Servable) -> dict[str, np.ndarray]:
        """Returns keys and values of no tokens."""
        inputs = servable.signatures[SIGNATURE].inputs
        return {
            name: np.zeros([1, spec.shape[1] or 1, 0, spec.shape[3] or 1], spec.dtype)
            for name, spec in inputs.items()
            if name.startswith(_PAST) and spec.shape is not None
        }

    def _step(
        self, servable: Servable, ids: Sequence[int], seen: int, past: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Reads tokens after `seen` others; returns the logits [V] of the next one, and the keys and values of all."""
        total = seen + len(ids)
        feeds = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(seen, total)[None],
        }
        used = {name: value for name, value in feeds.items() if name in servable.signatures[SIGNATURE].inputs}
        values = servable.run(SIGNATURE, {**used, **past})
        return values["logits"][0, -1], {name: values[name.replace(_PAST, _PRESENT)] for name in past}


def choose(logits: np.ndarray, sampling: Sampling, random: np.random.Generator) -> int:
    """Returns a token for logits [V]: temperature first, then top_k, then top_p."""
    if not np.isfinite(logits.max()):
        raise StatusError("INTERNAL", "the model's logits are not finite")
    if not sampling.temperature:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")[: sampling.top_k or None]
    weights = np.exp((logits[order] - logits[order[0]]).astype(np.float64) / sampling.temperature)
    weights /= weights.sum()
    # The token with which the sum reaches top_p is the last one.
    kept = np.cumsum(weights) - weights < sampling.top_p
    kept[0] = True
    return int(random.choice(order[kept], p=weights[kept] / weights[kept].sum()))


class _Vocabulary:
    """What a chat template asks of a tokenizer."""

    def __init__(self, folder: pathlib.Path, tokenizer: tokenizers.Tokenizer):
        size = max(tokenizer.get_vocab().values(), default=-1) + 1
        self.vocab = [tokenizer.id_to_token(i) or "" for i in range(size)]
        self.special_ids = [i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special]
        roles = settings.read(folder)
        for role, name in settings.ROLES.items():
            token = roles.get(name)
            token = token.get("content") if isinstance(token, dict) else token
            setattr(self, f"{role}_id", tokenizer.token_to_id(token) if isinstance(token, str) else None)
