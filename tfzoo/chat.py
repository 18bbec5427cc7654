"""Conversations as a model's chat template writes them (Hugging Face: tokenizer_config.json or chat_template.jinja).

A template is a program that came with the weights: jinja2's sandbox runs it. What a user says stays text. Where a
message holds a special token's name, such as <|im_end|>, a mark is put into it before the template sees it, and taken
out before it is tokenized: so no message can end itself and go on as another's.

Imports no TensorFlow: who uses a template says how its texts are tokenized.
"""

import datetime
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from tfzoo.errors import UserError
from tfzoo.text.settings import CONFIG_FILE, ROLES
from tfzoo.text.template import TEMPLATE_FILE, read_chat_template

Encode = Callable[[Sequence[str]], list[list[int]]]
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # Noncharacters, which no text is to hold.


class _Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}, by which templates name what the model says: the text between."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

    def _same(self, caller):
        return caller()


class ChatTemplate:
    """Messages -> token ids."""

    def __init__(self, source: str, tokenizer, encode: Encode, where: str = "the chat template"):
        """
        Args:
          source: the template.
          tokenizer: has `vocab`, `special_ids`, and the ids of roles by name, such as `eos_id`.
          encode: the ids of each text, with nothing around them and special tokens as plain text.
          where: what errors call it.

        Raises:
          UserError: the source is no template.
        """
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        # What transformers gives its templates besides.
        environment.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
        environment.globals["raise_exception"] = self._refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        self._encode, self._where = encode, where
        self._special = {tokenizer.vocab[i]: i for i in tokenizer.special_ids}
        names = {name: getattr(tokenizer, f"{role}_id", None) for role, name in ROLES.items()}
        self._names = {name: tokenizer.vocab[i] for name, i in names.items() if i is not None}
        ordered = sorted(filter(None, self._special), key=lambda token: (-len(token), token))
        self._pattern = re.compile(f"({'|'.join(map(re.escape, ordered))})") if ordered else None
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise UserError(f"{where}, line {getattr(error, 'lineno', '?')}: {error}") from None

    @classmethod
    def from_folder(cls, folder: str | os.PathLike, tokenizer, encode: Encode) -> "ChatTemplate":
        """Reads chat_template.jinja, or the chat_template of tokenizer_config.json (of several, "default").

        Raises:
          UserError: there is none, or it cannot be read.
        """
        found = read_chat_template(folder)
        if found is None:
            raise UserError(
                f"{folder}: has no chat template ({TEMPLATE_FILE}, or chat_template in {CONFIG_FILE}); use --prompt, "
                "or put the model's own there"
            )
        path, source = found
        return cls(source, tokenizer, encode, str(path))

    def ids(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True, **variables) -> list[int]:
        """The ids of a conversation.

        Args:
          messages: {"role": "system", "user" or "assistant", "content": its text} each.
          add_generation_prompt: whether it ends with what an answer begins with.
          **variables: what the template may know besides, such as enable_thinking.

        Raises:
          UserError: the template refuses the conversation, or fails.
        """
        said = "".join(str(message["content"]) for message in messages)
        mark = next((mark for mark in _MARKS if mark not in said), None)
        if mark is None:
            raise UserError("a message holds every noncharacter of U+FDD0 to U+FDEF; leave them out")
        marked = [{**message, "content": self._disarm(message["content"], mark)} for message in messages]
        known: dict[str, Any] = {"tools": None, "documents": None, **self._names, **variables}
        try:
            text = self._template.render(messages=marked, add_generation_prompt=add_generation_prompt, **known)
        except UserError:
            raise
        except Exception as error:  # A program of others', which may do anything wrong.
            raise UserError(f"{self._where}: fails with {type(error).__name__}: {error}") from None
        parts = self._pattern.split(text) if self._pattern else [text]
        # Every second part is a special token's name; what is between is text.
        plain = self._encode([part.replace(mark, "") for part in parts[::2]])
        ids = list(plain[0])
        for name, following in zip(parts[1::2], plain[1:], strict=True):
            ids += [self._special[name], *following]
        return ids

    def _disarm(self, text: str, mark: str) -> str:
        return self._pattern.sub(lambda found: found[0][:1] + mark + found[0][1:], text) if self._pattern else text

    def _refuse(self, words: str):
        raise UserError(f"{self._where}: refuses the conversation: {words}")
