"""Reads conversations from JSON lines, for tuning on dialogues and instructions, and for preferences between answers.

    {"messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A day."}]}
    {"prompt": "What is it?", "completion": "A day."}
    {"prompt": "What is it?", "chosen": "A day.", "rejected": "No idea."}

The first is OpenAI's format for fine-tuning: a message has further fields that the chat template may read, such as
tool_calls, and an answer with "weight": 0 is not learned. The prompt and the answers are texts or lists of messages;
without a prompt, chosen and rejected are whole conversations that begin alike. Importing this module does not import
TensorFlow.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tfzoo.data import row_files
from tfzoo.data.row_files import BadRow, RowFile
from tfzoo.json_files import show

ASSISTANT, USER = "assistant", "user"
Message = Mapping[str, Any]
_REMEDY = 'write {"role": "user", "content": "..."}'


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation with at least one answer to learn.

    Attributes:
      where: FILE:LINE.
      messages: role and content of each message, and its other fields.
      learned: the indices of the answers to learn, ascending.
      tools: JSON schemas of functions that the model may call; None if the row has none.
    """

    where: str
    messages: tuple[Message, ...]
    learned: tuple[int, ...]
    tools: tuple[Any, ...] | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The contents of the messages, without those of messages that have no text."""
        return contents(self.messages)


@dataclasses.dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to the same messages.

    where: FILE:LINE. prompt: the messages before the answer. chosen: the answer that is preferred to the other one,
    rejected.
    """

    where: str
    prompt: tuple[Message, ...]
    chosen: Message
    rejected: Message

    @property
    def texts(self) -> tuple[str, ...]:
        """The contents of all messages."""
        return contents([*self.prompt, self.chosen, self.rejected])


def contents(messages: Sequence[Message]) -> tuple[str, ...]:
    """Returns the contents of messages that have a text."""
    return tuple(message["content"] for message in messages if isinstance(message.get("content"), str))


class _JSONLines(RowFile):
    """A file of JSON lines."""

    def __init__(self, path: str | os.PathLike, *, flag: str, policy: str = "strict"):
        """Opens the file.

        Raises:
          UserError: the file cannot be read, is empty, or does not contain JSON lines.
        """
        super().__init__(path, flag=flag, policy=policy)
        if not self._is_jsonl():
            raise self.error("is not a file of JSON lines; write one JSON object per line (.jsonl)")

    def _records(self) -> Iterator[tuple[str, Any]]:
        return row_files.json_records(self.path)


class ConversationFile(_JSONLines):
    """A file of conversations: {"messages": [...]}, or {"prompt", "completion"}."""

    def describe(self) -> str:
        """Returns one line about the format."""
        return f"{self.path}: JSON lines of conversations"

    def _row(self, where: str, record: dict[str, Any]) -> Conversation:
        if "messages" in record:
            messages = _messages(record, "messages", USER)
        elif "prompt" in record and "completion" in record:
            messages = [*_messages(record, "prompt", USER), *_messages(record, "completion", ASSISTANT)]
        else:
            names = ", ".join(record)[:80] or "none"
            remedy = 'write {"messages": [...]}, or {"prompt": ..., "completion": ...}'
            raise BadRow("missing_field", f"has no field 'messages' (fields: {names})", remedy)
        tools = record.get("tools")
        if tools is not None and not isinstance(tools, list):
            raise BadRow(
                "not_tools", f"field 'tools' is {show(tools)}, not a list", "list the JSON schemas of functions"
            )
        # An answer to nothing is not learned: it is a greeting that the model would not be asked for.
        learned = [
            i
            for i, message in enumerate(messages)
            if message["role"] == ASSISTANT and i and message.get("weight", 1) != 0
        ]
        if not learned:
            remedy = 'add a message with the role "assistant" after one of the user, or remove the row'
            raise BadRow("no_answer", "contains no answer to learn", remedy)
        kept = tuple({name: value for name, value in message.items() if name != "weight"} for message in messages)
        return Conversation(where, kept, tuple(learned), None if tools is None else tuple(tools))


class PreferenceFile(_JSONLines):
    """A file of preferences: {"prompt", "chosen", "rejected"}, or two conversations that begin alike."""

    def describe(self) -> str:
        """Returns one line about the format."""
        return f"{self.path}: JSON lines of preferences"

    def _row(self, where: str, record: dict[str, Any]) -> Preference:
        for name in ("chosen", "rejected"):
            if name not in record:
                names = ", ".join(record)[:80] or "none"
                remedy = 'write {"prompt": ..., "chosen": ..., "rejected": ...}'
                raise BadRow("missing_field", f"has no field {name!r} (fields: {names})", remedy)
        prompt = _messages(record, "prompt", USER) if "prompt" in record else []
        chosen, rejected = (_messages(record, name, ASSISTANT) for name in ("chosen", "rejected"))
        if prompt and prompt == chosen[: len(prompt)] == rejected[: len(prompt)]:  # Repeated in both conversations.
            prompt = []
        *first, chosen_answer = [*prompt, *chosen]
        *second, rejected_answer = [*prompt, *rejected]
        if first != second:
            remedy = "let both conversations differ in the last message alone"
            raise BadRow("different_prompts", "'chosen' and 'rejected' are answers to different messages", remedy)
        if not first:
            raise BadRow("no_prompt", "has no message before the answers", 'add a field "prompt"')
        for name, message in (("chosen", chosen_answer), ("rejected", rejected_answer)):
            if message["role"] != ASSISTANT:
                words = f"the last message of {name!r} has the role {show(message['role'])}"
                raise BadRow("no_answer", words, 'end it with a message of the role "assistant"')
        if chosen_answer == rejected_answer:
            raise BadRow("equal_answers", "'chosen' and 'rejected' are equal", "remove the row")
        return Preference(where, tuple(first), chosen_answer, rejected_answer)


def _messages(record: Mapping[str, Any], name: str, role: str) -> list[dict[str, Any]]:
    """Returns the messages in a field; a text is one message with this role."""
    value = record[name]
    if isinstance(value, str):
        value = [{"role": role, "content": row_files.json_text(dict(record), name, "train_file")}]
    if not isinstance(value, list) or not value:
        words = f"field {name!r} is {show(value)}, not a list of messages"
        raise BadRow("not_messages", words, f"list its messages: {_REMEDY}")
    return [_message(f"{name}[{i}]", message) for i, message in enumerate(value)]


def _message(where: str, message: Any) -> dict[str, Any]:
    """Returns a message, without fields that are null; raises BadRow if it is not one."""
    if not isinstance(message, dict):
        raise BadRow("not_a_message", f"{where} is {show(message)}, not a message", _REMEDY)
    role = message.get("role")
    if not isinstance(role, str) or not role.strip():
        raise BadRow("no_role", f"the role of {where} is {show(role)}, not a name", _REMEDY)
    content = message.get("content")
    if not (isinstance(content, str) or (content is None and message.get("tool_calls"))):
        raise BadRow("not_a_string", f"the content of {where} is {show(content)}, not a text", _REMEDY)
    _check_utf8(message)
    if content is not None and not content.strip() and not message.get("tool_calls"):
        raise BadRow("empty_text", f"the content of {where} is empty", "add a text or remove the message")
    return {key: value for key, value in message.items() if value is not None}


def _check_utf8(value: Any) -> None:
    """Raises BadRow if a text within a JSON value is not UTF-8."""
    if isinstance(value, str):
        row_files.check_utf8(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            row_files.check_utf8(key)
            _check_utf8(item)
    elif isinstance(value, list):
        for item in value:
            _check_utf8(item)
