"""Answers of runs whose rows or answers have another form: of chat and preferences to messages, of choice to endings,
and of extract with sentences of a text.

tfzoo.pipeline("runs/chat")([{"role": "user", "content": "Hi"}])       # {"answer": "Hello"}
tfzoo.pipeline("runs/chat")("Hi")                                      # the same
tfzoo.pipeline("runs/swag")(("She sits and", ["plays.", "sleeps."]))   # {"answer": "plays.", "index": 0, ...}
tfzoo.pipeline("runs/extract")("It rains. We stay.")                   # {"summary": "It rains.", "sentences": [...]}
"""

import hashlib
import pathlib
import threading
from collections.abc import Sequence
from typing import Any

from tfzoo import nn
from tfzoo.errors import UserError
from tfzoo.evaluation import answering
from tfzoo.prediction.answers import Record, rounded
from tfzoo.prediction.predictor import Predictor
from tfzoo.training import evaluating
from tfzoo.training.config import TrainConfig

_NEW_TOKENS = 64  # Of an answer, at most.


class _RunPredictor(Predictor):
    """Answers with the task of a run.

    Args:
      folder: the run.
      checkpoint: of its checkpoints; None selects best/, or the newest.
      weights: how the weights are stored.
    """

    reads_lists = True

    def __init__(self, folder: pathlib.Path, checkpoint: str | None, weights: str):
        config = TrainConfig.read(folder / "flags.cfg", str(folder))
        self._task: Any
        self.model, self._task = evaluating.load(folder, config, checkpoint)
        nn.store_weights(self.model, weights)
        self.task, self.length = str(config.task), config.sequence_length
        self._tokenizer: Any = self._task.tokenizer
        self._lock = threading.Lock()

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.task} {self._tokenizer.fingerprint()} {self._task.encoding_key()}".encode())
        for weight in self.model.weights:
            digest.update(weight.path.partition("/")[2].encode())
            digest.update(weight.numpy().tobytes())
        return digest.hexdigest()


class ChatPredictor(_RunPredictor):
    """Answers conversations: lists of messages, or one message of the user, a text."""

    inputs = ("messages",)

    def problem(self, row):
        (messages,) = row
        if isinstance(messages, str):
            return "" if messages.strip() else "the message is empty; write one"
        if not messages or not all(
            isinstance(each, dict) and isinstance(each.get("role"), str) and isinstance(each.get("content"), str)
            for each in messages
        ):
            return 'is not a list of messages; write [{"role": "user", "content": "..."}]'
        try:
            self._task.template.text(messages)
        except UserError as error:
            return str(error)
        return ""

    def answer(self, texts: Sequence[Sequence[Any]], device: int = 0) -> list[Record]:
        conversations = [
            [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
            for (messages,) in texts
        ]
        longest = self.model.config.max_positions
        room = max(longest - _NEW_TOKENS, longest // 2)
        prompts = [self._task.prompt(messages, room) for messages in conversations]
        with self._lock:
            written = answering.answers(self.model, self._tokenizer, [ids for ids, _ in prompts], _NEW_TOKENS)
        return [
            {"answer": text} | ({"truncated": True} if cut else {})
            for text, (_, cut) in zip(written, prompts, strict=True)
        ]


class ChoicePredictor(_RunPredictor):
    """Chooses among the endings of a context: (context, list of endings)."""

    inputs = ("context", "endings")

    def problem(self, row):
        context, endings = row
        if not isinstance(context, str) or not context.strip():
            return "the context is not a text; write one"
        if not isinstance(endings, list | tuple) or len(endings) < 2:
            return "the endings are not a list of at least two texts; write one"
        if not all(isinstance(ending, str) and ending.strip() for ending in endings):
            return "an ending is not a text; write one"
        return ""

    def answer(self, texts: Sequence[Sequence[Any]], device: int = 0) -> list[Record]:
        with self._lock:
            found = self._task.answers(self.model, texts)
        return [
            {**each, "score": rounded(each["score"]), "scores": [rounded(score) for score in each["scores"]]}
            for each in found
        ]


class ExtractPredictor(_RunPredictor):
    """Chooses the sentences of a text that summarise it."""

    inputs = ("text",)

    def problem(self, row):
        (text,) = row
        return "" if isinstance(text, str) and text.strip() else "the text is empty or not a string; write one"

    def answer(self, texts: Sequence[Sequence[Any]], device: int = 0) -> list[Record]:
        with self._lock:
            found = self._task.answers(self.model, [text for (text,) in texts])
        for record in found:
            for sentence in record["sentences"]:
                sentence["score"] = rounded(sentence["score"])
        return found


KINDS: dict[str, type[_RunPredictor]] = {
    "chat": ChatPredictor,
    "preferences": ChatPredictor,
    "choice": ChoicePredictor,
    "extract": ExtractPredictor,
}
