"""Models that write text, behind one interface: SavedModels with the signature `generate`, and ONNX decoders."""

import dataclasses
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from tfzoo.errors import UserError
from tfzoo.export import manifest as manifests
from tfzoo.serve import decoder
from tfzoo.serve.core import REST, Call, Core
from tfzoo.serve.decoder import Decoder, Sampling
from tfzoo.serve.errors import StatusError, invalid
from tfzoo.serve.servable import ModelSpec, Servable, Signature

GENERATE = "generate"
_TEXT = {"generated_text", "num_tokens"}


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a text.

    Attributes:
      text: may be empty.
      tokens: how many tokens have been written so far.
      finish_reason: "stop" or "length" for the last part; otherwise None.
    """

    text: str
    tokens: int
    finish_reason: str | None = None


@dataclasses.dataclass(frozen=True)
class Waiting:
    """Who waits for a text.

    Attributes:
      deadline: the time.monotonic() until which the text must be complete; None if its parts are sent as they come.
      cancelled: set when nobody waits any more.
    """

    deadline: float | None
    cancelled: threading.Event

    def check(self) -> None:
        """Raises an error if nobody waits for the rest of the text."""
        if self.cancelled.is_set():
            raise StatusError("CANCELLED", "The client has disconnected")
        if self.deadline is not None and time.monotonic() > self.deadline:
            text = "The text was not finished in time; ask for fewer tokens, or stream it"
            raise StatusError("DEADLINE_EXCEEDED", text)


class Writer(Protocol):
    """Writes texts with one model."""

    max_new_tokens: int

    def read(self, prompt: str) -> Any:
        """Returns a prompt as `write` reads it."""

    def read_chat(self, messages: Sequence[Mapping[str, str]]) -> Any:
        """Returns a conversation as `write` reads it."""

    def count(self, prompt: Any) -> int | None:
        """Returns the number of tokens of a prompt; None if it is unknown."""

    def write(self, prompt: Any, sampling: Sampling, waiting: Waiting) -> Iterator[Piece]:
        """Yields the parts of the text that follows a prompt, at least one."""


def writer_of(core: Core, spec: ModelSpec) -> Writer:
    """Returns the writer for a model.

    Raises:
      StatusError: the model is not available, or does not write text.
    """
    with core.servable(spec) as servable:
        # The version stays the same, even if a label moves.
        spec = dataclasses.replace(spec, version=servable.version, label=None)
        generate = servable.signatures.get(GENERATE)
        if generate is not None and "text" in generate.inputs and _TEXT <= generate.outputs.keys():
            return _Graph(core, spec, _once(servable, _options))
        tokens = servable.signatures.get(decoder.SIGNATURE)
        if tokens is not None and any(name.startswith("past_key_values") for name in tokens.inputs):
            return _Steps(core, spec, _once(servable, _decoder))
    raise invalid(f"model: {spec.name} does not write text; it needs the signature generate, or to be an ONNX decoder")


_made: "weakref.WeakKeyDictionary[Servable, Any]" = weakref.WeakKeyDictionary()
_making = threading.Lock()


def _once(servable: Servable, make: Callable[[Servable], Any]) -> Any:
    """Returns what `make` reads from the folder of a loaded version, which is read once."""
    with _making:
        if servable not in _made:
            _made[servable] = make(servable)
        return _made[servable]


def _decoder(servable: Servable) -> Decoder:
    return Decoder(servable.folder)


def _options(servable: Servable) -> dict[str, Any]:
    """Returns the options in the manifest of an artifact, or none for other SavedModels."""
    try:
        return manifests.read(servable.folder, whole=False)["options"]
    except UserError:
        return {}


class _Graph:
    """Writes a text in one call of the graph."""

    def __init__(self, core: Core, spec: ModelSpec, options: Mapping[str, Any]):
        self._core, self._spec = core, dataclasses.replace(spec, signature_name=GENERATE)
        self.max_new_tokens = min(options.get("max_new_tokens", 16), core.limits.max_new_tokens)
        self._reads_messages = options.get("messages", False)

    def read(self, prompt: str) -> str:
        if self._reads_messages:
            raise invalid("model: it answers messages; use /v1/chat/completions")
        return prompt

    def read_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        if not self._reads_messages:
            raise invalid("model: it has no chat template; use /v1/completions")
        if len(messages) != 1 or messages[0]["role"] != "user":
            raise invalid("messages: this model reads exactly one message, of the user")
        return messages[0]["content"]

    def count(self, prompt: str) -> None:
        return None

    def write(self, prompt: str, sampling: Sampling, waiting: Waiting) -> Iterator[Piece]:
        waiting.check()
        values = dataclasses.asdict(sampling)

        def read(signature: Signature) -> dict[str, np.ndarray]:
            text = np.array([prompt.encode(errors="replace")], object)
            numbers = {
                name: np.array([values[name]], spec.dtype) for name, spec in signature.inputs.items() if name in values
            }
            return {"text": text, **numbers}

        _, outputs = self._core.predict(self._spec, read, sorted(_TEXT), Call(REST, waiting.deadline))
        count = int(outputs["num_tokens"][0])
        reason = "length" if count >= sampling.max_new_tokens else "stop"
        yield Piece(outputs["generated_text"][0].decode(errors="replace"), count, reason)


class _Steps:
    """Writes token by token."""

    def __init__(self, core: Core, spec: ModelSpec, made: Decoder):
        self._core, self._spec, self._decoder = core, spec, made
        self.max_new_tokens = min(made.length, core.limits.max_new_tokens)

    def read(self, prompt: str) -> list[int]:
        return self._decoder.ids(prompt)

    def read_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        return self._decoder.chat_ids(messages)

    def count(self, prompt: list[int]) -> int:
        return len(prompt)

    def write(self, prompt: list[int], sampling: Sampling, waiting: Waiting) -> Iterator[Piece]:
        call = Call(REST, waiting.deadline)
        with (
            self._decoder.alone(waiting.check),
            self._core.request("Generate", self._spec, call),
            self._core.servable(self._spec) as servable,
        ):
            count, text, ended = 0, "", False
            for text, ended in self._decoder.write(servable, prompt, sampling, waiting.check):
                count += not ended
                if not ended:
                    yield Piece(text, count)
            yield Piece(text if ended else "", count, "stop" if ended else "length")
