"""Text from an ONNX decoder, one token at a time: tfzoo.onnx_decoding with the graph of a loaded version.

A request can therefore be streamed, and ends as soon as its client has gone. One text is written at a time per model.
"""

import contextlib
import dataclasses
import pathlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfzoo.chat import ChatTemplate
from tfzoo.errors import CheckFailed, UserError, one_line
from tfzoo.export import manifest as manifests
from tfzoo.generation.options import read_options
from tfzoo.onnx_decoding.graphs import DECODER, Graphs
from tfzoo.onnx_decoding.sample import sample
from tfzoo.onnx_decoding.tokens import Tokens
from tfzoo.serve.errors import StatusError, invalid
from tfzoo.serve.servable import Servable

SIGNATURE = "tokens"


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
      StatusError: the artifact does not write text, or its tokenizer cannot be read.
    """

    def __init__(self, folder: pathlib.Path):
        try:
            manifest = manifests.read(folder, whole=False)
            if "generation" not in manifest:
                raise invalid("the model does not write text")
            self._tokens = Tokens(folder, manifest)
            ends = manifest["generation"].get("eos_token_id", [])
            self._static, _ = read_options(eos_token_id=ends, do_sample=True)
        except UserError as error:
            raise StatusError("FAILED_PRECONDITION", str(error)) from None
        self.length: int = manifest["options"]["sequence_length"]
        self._size = manifest["model"]["config"].get("vocab_size", 0)
        self._in_place = manifest.get("profile") == "genai"
        self._lock = threading.Lock()
        self._template: ChatTemplate | None = None

    def ids(self, text: str) -> list[int]:
        """Returns the ids of a prompt, with the special tokens that the model reads around it."""
        return self._tokens.framed(*self._tokens.encode([text]))

    def chat_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Returns the ids of a conversation up to the beginning of the answer.

        Raises:
          StatusError: the model has no chat template, or it rejects the messages.
        """
        try:
            if self._template is None:
                self._template = self._tokens.template()
            return self._template.ids(messages, add_generation_prompt=True)
        except UserError as error:
            raise invalid(one_line(error)) from None

    def write(
        self, servable: Servable, ids: Sequence[int], sampling: Sampling, check: Callable[[], None]
    ) -> Iterator[tuple[str, bool]]:
        """Yields what each new token adds to the text, which may be nothing, and whether it ended the text.

        The text is that of tfzoo.generate: special tokens are omitted, except those for unknown and masked words.

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
        if max(ids) >= self._size:
            raise invalid(f"the prompt contains the token {max(ids)}, but the model has {self._size}")
        most = min(sampling.max_new_tokens, self.length - len(ids))
        rows = {
            "max_new_tokens": np.array([most]),
            "temperature": np.array([sampling.temperature], np.float32),
            "top_k": np.array([sampling.top_k]),
            "top_p": np.array([sampling.top_p], np.float32),
            "seed": np.array([sampling.seed]),
        }
        check()
        ends, text = self._static.eos_token_id, self._tokens.stream(ids)
        try:
            reading = Graphs({DECODER: servable.sessions[SIGNATURE]}, self._in_place).read([ids], most)
            steps = sample(reading, self._static, rows, lambda written: written[-1] in ends)
            for count, step in enumerate(steps, 1):
                token = int(step.tokens[0])
                if token in ends:
                    yield text.end(), True
                    return
                yield text.add(token, last=count == most), False
                check()
        except CheckFailed as error:
            raise StatusError("INTERNAL", one_line(error)) from None

    @contextlib.contextmanager
    def alone(self, check: Callable[[], None]) -> Iterator[None]:
        """Waits until no other text is being written; `check` is called meanwhile."""
        while not self._lock.acquire(timeout=0.1):
            check()
        try:
            yield
        finally:
            self._lock.release()
