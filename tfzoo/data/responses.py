"""Reads conversations as pairs of a context and the answer to it, from the JSON lines of tfzoo.data.messages.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
                  {"role": "user", "content": "Any news?"}, {"role": "assistant", "content": "None."}]}

has the two rows ("Hi", "Hello") and ("Any news?\\nHello\\nHi", "None."). The context is the messages before the answer,
the newest first, each in lines of its own, so that a model that reads only the beginning of a long context reads the
newest messages (Henderson et al. 2020, section 2.3). System messages, and messages without a text, are left out.
Importing this module does not import TensorFlow.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence

from tfzoo.data.messages import Conversation, ConversationFile, contents

SYSTEM = "system"


@dataclasses.dataclass(frozen=True, slots=True)
class Response:
    """An answer of a conversation.

    where: FILE:LINE of the conversation. texts: the context, and the answer. conversation: the texts of all messages.
    """

    where: str
    texts: tuple[str, str]
    conversation: tuple[str, ...]


def context_of(messages: Sequence, count: int) -> str:
    """Returns the last `count` messages with a text as one text, the newest first; without system messages."""
    texts = contents([message for message in messages if message["role"] != SYSTEM])
    return "\n".join(reversed(texts[-count:]))


class ResponseFile:
    """The answers of a file of conversations; other attributes are those of the ConversationFile."""

    def __init__(self, path: str | os.PathLike, *, flag: str, policy: str = "strict", context_messages: int):
        """Opens the file.

        Args:
          path, flag, policy: see RowFile.
          context_messages: the maximum number of messages in a context.

        Raises:
          UserError: the file cannot be read, is empty, or does not contain JSON lines.
        """
        self._file = ConversationFile(path, flag=flag, policy=policy)
        self._context_messages = context_messages

    def __getattr__(self, name: str):
        return getattr(self._file, name)

    def describe(self) -> str:
        """Returns one line about the format."""
        return f"{self._file.describe()}; a row is an answer and up to {self._context_messages} messages before it"

    def rows(self) -> Iterator[Response]:
        """Yields the answers in the order of the file; see RowFile.rows.

        Raises:
          UserError: a conversation is not valid and the policy is "strict", or no answer and context have a text.
        """
        found = False
        for conversation in self._file.rows():
            for row in self._rows(conversation):
                found = True
                yield row
        if not found:
            raise self._file.error("contains no answer with a text to a message with a text; check the file")

    def _rows(self, conversation: Conversation) -> Iterator[Response]:
        messages = conversation.messages
        for i in conversation.learned:
            context, answer = context_of(messages[:i], self._context_messages), messages[i].get("content")
            if context and isinstance(answer, str) and answer.strip():
                yield Response(conversation.where, (context, answer), contents(messages))
