"""OpenAI's /v1/completions and /v1/chat/completions: whole answers, and server-sent events.

A SavedModel writes a text in one call, which arrives as one event; an ONNX decoder writes token by token.
"""

import dataclasses
import itertools
import random
import re
from collections.abc import Iterator
from typing import Any

from tfzoo.json_files import Field, Fields
from tfzoo.serve.core import Core
from tfzoo.serve.decoder import Sampling
from tfzoo.serve.errors import StatusError, invalid
from tfzoo.serve.rest.http import EVENTS, Request, Response, Route
from tfzoo.serve.rest.json_text import dump
from tfzoo.serve.rest.openai_forms import MODEL, answering, error_body, head, model_spec, parameters
from tfzoo.serve.writers import Piece, Waiting, Writer, writer_of

_MAX_CHOICES = 16
_DEFAULT_TOKENS = 16  # OpenAI's, for completions.
_COMMON: Fields = {
    "model": MODEL,
    "max_tokens": Field(int, low=1),
    "temperature": Field(float, low=0.0, high=2.0),
    "top_p": Field(float, low=0.0, high=1.0),
    "top_k": Field(int, low=0),  # Not OpenAI's, but common.
    "seed": Field(int, low=-(2**63), high=2**63 - 1),
    "n": Field(int, low=1, high=_MAX_CHOICES),
    "stop": (Field(str), Field(list, items=Field(str))),
    "stream": Field(bool),
    "stream_options": Field(dict, items=Field(bool)),
}
_TEXT: Fields = {**_COMMON, "prompt": (Field(str, required=True), Field(list, items=Field(str), required=True))}
_CHAT: Fields = {
    **_COMMON,
    "messages": Field(list, items=Field(dict), required=True),
    "max_completion_tokens": Field(int, low=1),
}
# Parameters that would change an answer, and the values with which they do not.
_FIXED: dict[str, tuple] = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "logprobs": (False,),
    "top_logprobs": (0,), "echo": (False,), "best_of": (1,), "suffix": ("",), "tools": ([],),
    "tool_choice": ("none", "auto"), "parallel_tool_calls": (True, False), "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}  # fmt: skip


@dataclasses.dataclass
class _Choice:
    """An answer that is being written."""

    index: int
    finish_reason: str | None = None
    tokens: int = 0


def routes(core: Core) -> list[Route]:
    """Returns the routes."""

    def complete(request: Request) -> Response:
        given = parameters(request, _TEXT, _FIXED)
        prompts = given["prompt"] if isinstance(given["prompt"], list) else [given["prompt"]]
        writer = writer_of(core, model_spec(given["model"]))
        most = given.get("max_tokens", min(_DEFAULT_TOKENS, writer.max_new_tokens))
        return _Answer(core, request, given, writer, most, [writer.read(prompt) for prompt in prompts]).response()

    def chat(request: Request) -> Response:
        given = parameters(request, _CHAT, _FIXED)
        writer = writer_of(core, model_spec(given["model"]))
        most = given.get("max_completion_tokens", given.get("max_tokens", writer.max_new_tokens))
        return _Answer(
            core, request, given, writer, most, [writer.read_chat(_messages(given["messages"]))], True
        ).response()

    return [
        Route("POST", re.compile("/v1/completions"), answering(complete)),
        Route("POST", re.compile("/v1/chat/completions"), answering(chat)),
    ]


def _messages(messages: list[dict]) -> list[dict[str, str]]:
    """Returns messages whose contents are texts."""
    read = []
    for i, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
            content = "".join(str(part.get("text", "")) for part in content)
        if not isinstance(message.get("role"), str) or not isinstance(content, str):
            raise invalid(f"messages[{i}]: must have a role, and a content that is text")
        read.append({"role": message["role"], "content": content})
    if not read:
        raise invalid("messages: must contain at least one message")
    return read


class _Answer:
    """The choices of one request, which are written one after another."""

    def __init__(
        self,
        core: Core,
        request: Request,
        given: dict[str, Any],
        writer: Writer,
        most: int,
        prompts: list,
        is_chat: bool = False,
    ):
        copies = given.get("n", 1)
        if len(prompts) * copies > _MAX_CHOICES:
            raise invalid(f"n: {len(prompts) * copies} answers are more than the limit of {_MAX_CHOICES}")
        if most > core.limits.max_new_tokens:
            raise invalid(f"max_tokens: must be at most {core.limits.max_new_tokens}, the server's limit")
        stop = given.get("stop", [])
        self._stops = [text for text in (stop if isinstance(stop, list) else [stop]) if text]
        self._given, self._writer, self._is_chat = given, writer, is_chat
        self._waiting = Waiting(None if given.get("stream") else request.deadline, request.cancelled)
        seed = given.get("seed", random.getrandbits(31))
        sampling = Sampling(most, given.get("temperature", 1.0), given.get("top_k", 0), given.get("top_p", 1.0), 0)
        jobs = [prompt for prompt in prompts for _ in range(copies)]
        self._jobs = [
            (_Choice(i), prompt, dataclasses.replace(sampling, seed=(seed + i) % 2**31))
            for i, prompt in enumerate(jobs)
        ]
        self._prompt_tokens = None if None in (counts := [writer.count(p) for p in prompts]) else sum(counts)  # type: ignore[arg-type]
        kind, name = ("chatcmpl", "chat.completion") if is_chat else ("cmpl", "text_completion")
        self._head = head(kind, name, given["model"])

    def response(self) -> Response:
        """Returns the answer, or a stream whose first part has been written, so that errors have their status."""
        parts = self._parts()
        if not self._given.get("stream"):
            texts: dict[int, str] = {}
            for choice, text in parts:
                texts[choice.index] = texts.get(choice.index, "") + text
            choices = [self._choice(choice, texts[choice.index]) for choice, _, _ in self._jobs]
            return Response(dump({**self._head, "choices": choices, **self._usage()}))
        first = next(parts)
        return Response(self._events(itertools.chain([first], parts), parts), EVENTS)

    def _parts(self) -> Iterator[tuple[_Choice, str]]:
        """Yields the parts of each choice; the last part of a choice comes with its finish_reason."""
        for choice, prompt, sampling in self._jobs:
            for piece in _until(self._stops, self._writer.write(prompt, sampling, self._waiting)):
                choice.tokens, choice.finish_reason = piece.tokens, piece.finish_reason
                yield choice, piece.text

    def _choice(self, choice: _Choice, text: str) -> dict[str, Any]:
        content = {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        return {"index": choice.index, **content, "logprobs": None, "finish_reason": choice.finish_reason}

    def _usage(self) -> dict[str, Any]:
        """Returns the numbers of tokens, unless the tokenizer is inside the model."""
        if self._prompt_tokens is None:
            return {}
        written = sum(choice.tokens for choice, _, _ in self._jobs)
        numbers = {"prompt_tokens": self._prompt_tokens, "completion_tokens": written}
        return {"usage": {**numbers, "total_tokens": self._prompt_tokens + written}}

    def _events(self, chained: Iterator[tuple[_Choice, str]], parts: Any) -> Iterator[bytes]:
        opening = {**self._head, "object": "chat.completion.chunk"} if self._is_chat else self._head
        begun: set[int] = set()
        try:
            for choice, text in chained:
                if self._is_chat:
                    role = {} if choice.index in begun else {"role": "assistant"}
                    content: dict[str, Any] = {"delta": {**role, "content": text}}
                    begun.add(choice.index)
                else:
                    content = {"text": text}
                one = {"index": choice.index, **content, "logprobs": None, "finish_reason": choice.finish_reason}
                yield _event({**opening, "choices": [one]})
            if (self._given.get("stream_options") or {}).get("include_usage"):
                yield _event({**opening, "choices": [], **self._usage()})
            yield b"data: [DONE]\n\n"
        except StatusError as error:
            yield b"data: " + error_body(error) + b"\n\n"
        finally:
            parts.close()


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + dump(content) + b"\n\n"


def _until(stops: list[str], pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Ends a text before the first of some strings; what could be the beginning of one is held back."""
    held = ""
    for piece in pieces:
        held += piece.text
        places = [place for place in (held.find(stop) for stop in stops) if place >= 0]
        if places:
            yield dataclasses.replace(piece, text=held[: min(places)], finish_reason="stop")
            pieces.close()  # type: ignore[attr-defined]
            return
        ready = len(held) if piece.finish_reason else len(held) - _tail(held, stops)
        if ready or piece.finish_reason:
            yield dataclasses.replace(piece, text=held[:ready])
            held = held[ready:]


def _tail(text: str, stops: list[str]) -> int:
    """Returns the length of the longest end of a text that a string begins with."""
    return max(
        (size for stop in stops for size in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:size])),
        default=0,
    )
