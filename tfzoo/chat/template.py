"""A model's chat template, which converts messages to token ids as transformers 5 does.

Source: Hugging Face (chat_template.jinja, additional_chat_templates, tokenizer_config.json).

A template is a program that comes with the weights. It runs in jinja2's sandbox, in a process with limits of time and
memory (tfzoo.chat.sandbox). It receives messages, tools and documents as they were written. Its output records who
wrote each character: the name of a special token, such as <|im_end|>, is the token if the template wrote it, and plain
text if a user did. So no message can end itself and continue as another's.
"""

import collections
import functools
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from tfzoo.chat import sandbox
from tfzoo.chat.provenance import GENERATED, OWN, UNKNOWN, USER, Text, joined, own, who
from tfzoo.errors import UserError, suggest
from tfzoo.json_files import MAX_DEPTH, show
from tfzoo.text.settings import CONFIG_FILE, ROLES
from tfzoo.text.template import DEFAULT, TEMPLATE_FILE, read_chat_templates

Encode = Callable[..., list[list[int]]]
_TOOL_USE = "tool_use"
# Names of a message's reasoning field; most templates read the first.
_REASONING = ("reasoning_content", "thinking", "reasoning")
_END = "CONTINUE_FINAL_MESSAGE_TAG "  # As in transformers: a template may inspect the text that this ends.
_STRANGE = "\U000f0000"  # No vocabulary contains it.
# Roles of which a template may make a special token, as Phi's makes <|user|>. Any other role is text, because the same
# template would make <|end|> of "end".
_KNOWN_ROLES = frozenset(
    "system user assistant developer tool function model human ipython observation environment critic".split()
)


class ChatTemplate:
    """Converts messages to token ids."""

    def __init__(
        self,
        source: str | Mapping[str, str],
        tokenizer,
        encode: Encode | None = None,
        where: str | Mapping[str, str] = "the chat template",
    ):
        """Compiles the templates.

        Args:
          source: the template, or several by name.
          tokenizer: has `vocab`, `special_ids`, the ids of roles by name, such as `eos_id`, and, for masks,
            `tokenize_with_offsets`.
          encode: a function of texts and of the special tokens to recognise in them (default: none); returns the ids of
            each text, without added special tokens. The default uses the tokenizer.
          where: the name of the template in errors, or a name for each.

        Raises:
          UserError: a source is not a valid template.
        """
        sources = {DEFAULT: source} if isinstance(source, str) else dict(source)
        self._where = {name: where if isinstance(where, str) else where[name] for name in sources}
        for name, text in sources.items():
            try:
                sandbox.check(text)
            except sandbox.Invalid as error:
                raise UserError(
                    f"{self._where[name]}{f', line {error.line}' if error.line else ''}: is not a template ({error}); "
                    "correct it, or get the file again"
                ) from None
        self._sources, self._tokenizer = sources, tokenizer
        self._encode = encode or (lambda texts, special=(): tokenizer.tokenize(_utf8(texts), special).to_list())
        vocab = tokenizer.vocab
        self._special = {vocab[i]: i for i in tokenizer.special_ids if vocab[i]}
        names = {name: getattr(tokenizer, f"{role}_id", None) for role, name in ROLES.items()}
        self._names = {name: own(vocab[i]) for name, i in names.items() if i is not None}
        self._unknown = getattr(tokenizer, "unknown_id", None)
        self._taking = dict[str, tuple[bool, bool]]()
        ordered = sorted(self._special, key=lambda token: (-len(token), token))
        self._pattern = re.compile("|".join(map(re.escape, ordered)) or "(?!)")

    @classmethod
    def from_folder(cls, folder: str | os.PathLike, tokenizer, encode: Encode | None = None) -> "ChatTemplate":
        """Reads chat_template.jinja and additional_chat_templates, or the chat_template of tokenizer_config.json.

        Raises:
          UserError: there is no template, or it cannot be read.
        """
        templates = read_chat_templates(folder)
        if not templates:
            raise UserError(
                f"{folder}: has no chat template ({TEMPLATE_FILE}, or chat_template in {CONFIG_FILE}); use --prompt, "
                "or add the model's own"
            )
        sources = {name: source for name, (_, source) in templates.items()}
        return cls(sources, tokenizer, encode, {name: str(path) for name, (path, _) in templates.items()})

    def ids(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool | None = None, **how) -> list[int]:
        """Returns the ids of a conversation; arguments and errors are those of `text`.

        Raises:
          UserError: in addition, text that is not the template's cannot be separated from special tokens.
        """
        text, where = self._render(messages, add_generation_prompt, **how)
        return self._ids(text, self._found(text, where), where)

    def ids_and_mask(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False, **how
    ) -> tuple[list[int], list[int]]:
        """Returns the ids of a conversation, and a mask of the assistant's texts.

        The mask is 1 for each id inside {% generation %}, which marks the assistant's texts, and 0 otherwise. Arguments
        and errors are those of `text`.

        Raises:
          UserError: in addition, the template has no {% generation %}, or the tokenizer has no offsets.
        """
        text, where = self._render(messages, add_generation_prompt, **how)
        if how.get("continue_final_message"):
            raise UserError("continue_final_message: a mask requires a complete conversation; omit it")
        if not re.search(r"\{%[-+]?\s*generation\b", self._sources[self._choose(**how)]):
            raise UserError(f"{where}: has no {{% generation %}}, so there is no mask; put it around assistants' texts")
        ranges = self._found(text, where)
        ids = self._ids(text, ranges, where)
        return ids, self._mask(text, ranges, ids, where)

    def turn(self, messages: Sequence[Mapping[str, Any]], **how) -> tuple[list[int], list[int]]:
        """Returns what a model reads before it writes the last message, an answer, and what it is to write.

        The first are the ids of the messages before the answer, with the beginning of an answer: those of
        `ids(messages[:-1])`. The second are the ids of the answer, up to and with the token that ends the turn. What a
        template writes after that token, such as a line end, belongs to neither.

        Args:
          messages: a conversation whose last message is an answer.
          **how: see `text`.

        Raises:
          UserError: in addition to the errors of `ids`, a complete answer is not written as it begins, so that it is
            unknown where it starts.
        """
        asked, where = self._render(messages[:-1], True, **how)
        whole, _ = self._render(messages, False, **how)
        start = len(asked) if whole.startswith(asked) else self._start_of_answer(whole, asked, messages, where, **how)
        end = self._end_of_answer(whole, start, where)
        before = self._ids(asked, self._found(asked, where), where)
        if whole.startswith(asked):
            both = whole[:end]
            ids = self._ids(both, self._found(both, where), where)
            if ids[: len(before)] == before:
                return before, ids[len(before) :]
            # A token contains the end of the one and the beginning of the other; a model that answers has not read it.
        rest = whole[start:end]
        names = (name for name in self._special if name not in rest and not self._takes_spaces(name)[1])
        if (lead := next(names, None)) is None:
            return before, self._ids(rest, self._found(rest, where), where)
        rest = joined([own(lead), rest])
        return before, self._ids(rest, self._found(rest, where), where)[1:]

    def _start_of_answer(
        self, whole: Text, asked: Text, messages: Sequence[Mapping[str, Any]], where: str, **how
    ) -> int:
        """Returns where the last message begins in a template that rewrites what precedes a complete answer, such as
        one that shows the system message only in the last message of the user.

        Raises:
          UserError: the text before the answer differs from that with which an answer begins.
        """
        history, _ = self._render(messages[:-1], False, **how)
        other, _ = self._render([*messages[:-1], {"role": messages[-1]["role"], "content": _STRANGE}], False, **how)
        differs = len(os.path.commonprefix([str.__str__(whole), str.__str__(other)]))
        begins = asked[len(history) :] if asked.startswith(history) else None
        if begins:  # The beginning of an answer precedes it in both texts.
            place = whole.rfind(begins, 0, differs)
            start = place + len(begins)
        else:  # The last special token before the answer ends the message before it.
            ends = [end for _, end in self._found(whole, where) if end <= differs]
            place = start = ends[-1] if ends and begins is not None else -1
        if place < 0 or whole[start:differs].strip():
            raise UserError(
                f"{where}: does not write messages[{len(messages) - 1}] after what it writes to begin an answer, so "
                "that the answer cannot be located; use another chat template"
            )
        return start

    def around(self, messages: Sequence[Mapping[str, Any]], mark: str) -> tuple[list[int], list[int]] | None:
        """Returns the ids before and after `mark`, a text that occurs once in the messages, up to the beginning of an
        answer; None if it does not occur once in what the template writes."""
        text, where = self._render(messages, True)
        if text.count(mark) != 1:
            return None
        place = text.index(mark)
        before, after = text[:place], text[place + len(mark) :]
        first = self._ids(before, self._found(before, where), where) if before else []
        lead = next((name for name in self._special if not self._takes_spaces(name)[1]), None)
        if not after or lead is None:
            return first, self._ids(after, self._found(after, where), where) if after else []
        after = joined([own(lead), after])
        return first, self._ids(after, self._found(after, where), where)[1:]

    def encoded(self, text: str) -> list[int]:
        """Returns the ids of a text by itself."""
        return self._tokens(text)

    @functools.cached_property
    def end_of_turn(self) -> str | None:
        """The special token that the template writes after an answer; None if it writes none."""
        try:
            text, where = self._render([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], False)
            after = _after_messages(text, 0)
            return next(
                (str.__str__(text[start:end]) for start, end in self._found(text, where) if start >= after), None
            )
        except UserError:  # The template requires something else, such as a system message.
            return None

    def _end_of_answer(self, text: Text, start: int, where: str) -> int:
        """Returns the end of the answer that starts at `start` and is the last message of a text.

        That is the end of the first `end_of_turn` after the answer's own text, otherwise of the last special token
        after it, otherwise of the text.
        """
        after = _after_messages(text, start)
        ranges = [span for span in self._found(text, where) if span[0] >= after]
        wanted = self.end_of_turn
        ends = [end for begin, end in ranges if str.__str__(text[begin:end]) == wanted]
        return ends[0] if ends else ranges[-1][1] if ranges else len(text)

    def text(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool | None = None,
        *,
        continue_final_message: bool | str = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        **variables,
    ) -> str:
        """Returns a conversation in the template's format.

        Args:
          messages: {"role": "system", "user" or "assistant", "content": its text} each, with the other fields that the
            template reads, such as reasoning_content and tool_calls. Fields that are None are omitted.
          add_generation_prompt: whether the text ends with the beginning of an answer; by default it does, unless the
            last message is to be continued.
          continue_final_message: whether the text ends within the last message; or the name of the field, if not
            content, within which it ends.
          tools: JSON schemas of functions.
          documents: objects, usually with title and text.
          chat_template: the name of one of several templates; by default "tool_use" if it exists and tools are given,
            else "default".
          **variables: further variables of the template, such as enable_thinking.

        Raises:
          UserError: the template rejects the conversation, or fails.
        """
        how = dict(continue_final_message=continue_final_message, tools=tools, documents=documents)
        text, _ = self._render(messages, add_generation_prompt, **how, chat_template=chat_template, **variables)
        return str.__str__(text)

    def _choose(self, chat_template: str | None = None, tools=None, **_) -> str:
        """Returns the name of the template to use."""
        names = self._sources
        if chat_template is None:
            chat_template = _TOOL_USE if tools is not None and _TOOL_USE in names else DEFAULT
            if chat_template not in names:
                raise UserError(
                    f"{next(iter(self._where.values()))}: there is no template called {DEFAULT!r}; specify one of "
                    f"{', '.join(sorted(names))} (chat_template)"
                )
        if chat_template not in names:
            raise UserError(
                f"chat_template={chat_template}: is not one of {', '.join(sorted(names))}"
                f"{suggest(chat_template, names)}"
            )
        return chat_template

    def _render(
        self, messages, add_generation_prompt, *, continue_final_message=False, tools=None, documents=None,
        chat_template=None, **variables,
    ) -> tuple[Text, str]:  # fmt: skip
        """Returns the rendered conversation, and the template's name in errors."""
        name = self._choose(chat_template, tools)
        where = self._where[name]
        if add_generation_prompt is None:
            add_generation_prompt = not continue_final_message
        if add_generation_prompt and continue_final_message:
            raise UserError("add_generation_prompt and continue_final_message: contradict each other; omit one of them")
        conversation = _conversation(messages)
        ended = None
        if continue_final_message:
            field = continue_final_message if isinstance(continue_final_message, str) else "content"
            ended = _leave_open(conversation, field, self._sources[name], where)
        context: dict[str, Any] = {
            **self._names,
            **{key: _data(value, key) for key, value in variables.items()},
            "messages": conversation,
            "tools": _objects(tools, "tools"),
            "documents": _objects(documents, "documents"),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            text = sandbox.render(self._sources[name], context)
        except sandbox.Refused as error:
            raise UserError(f"{where}: rejects the conversation: {error}") from None
        except sandbox.Failed as error:
            raise UserError(f"{where}: {error}") from None
        return (text if ended is None else _cut(text, ended, where)), where

    def _found(self, text: Text, where: str) -> list[tuple[int, int]]:
        """Returns the ranges of the special tokens that the template wrote.

        Raises:
          UserError: the provenance of one cannot be determined.
        """
        ranges = self._written(text, USER)
        if ranges != (unquestioned := self._written(text, USER | UNKNOWN)):
            start, end = min({*ranges} ^ {*unquestioned})
            raise UserError(
                f"{where}: transforms texts so that {text[start:end]!r} may be the template's own or a message's; "
                "remove it from the messages"
            )
        return ranges

    def _written(self, text: Text, others: int) -> list[tuple[int, int]]:
        """Returns the ranges of special tokens none of whose characters has a provenance in `others`."""
        flags = who(text).translate(bytes(int(bool(kind & others)) for kind in range(256)))
        # Text by others is skipped: it can neither form a special token nor break one up.
        return [
            (match.start(), match.end())
            for run in re.finditer(rb"\0+", flags)
            for match in self._pattern.finditer(str.__str__(text), run.start(), run.end())
        ]

    def _ids(self, text: Text, ranges: Sequence[tuple[int, int]], where: str) -> list[int]:
        plain = str.__str__(text)
        names = [plain[start:end] for start, end in ranges]
        if [match.span() for match in self._pattern.finditer(plain)] == ranges:
            ids = self._tokens(plain, names)
            if not self._more(ids, names):
                return ids
        return self._apart(plain, ranges, names, where)

    def _tokens(self, text: str, special: Sequence[str] = ()) -> list[int]:
        return list(self._encode([text], tuple(sorted({*special})))[0]) if special else list(self._encode([text])[0])

    def _more(self, ids: Sequence[int], names: Sequence[str]) -> bool:
        """Returns whether the ids contain special tokens with other names than these, or more of them.

        This can happen because a tokenizer may search for special tokens in texts that it has rewritten.
        """
        special = set(self._special.values()) - {self._unknown}
        counts = collections.Counter(i for i in ids if i in special)
        counts -= collections.Counter(self._special[name] for name in names)
        # Ids that the tokenizer gives to text it does not know do not indicate special tokens.
        return bool(counts) and not {*counts} <= {*self._tokens(_STRANGE)}

    def _apart(self, text: str, ranges: Sequence[tuple[int, int]], names: Sequence[str], where: str) -> list[int]:
        """Returns the ids of a text in which the names of special tokens also occur as text."""
        ids = list[int]()
        borders = [(0, 0), *ranges, (len(text), len(text))]
        done = 0  # Text before this index has been tokenized.
        for i, ((_, start), (end, _)) in enumerate(zip(borders, borders[1:], strict=False)):
            if self._pattern.search(text, start, end):
                ids += self._tokens(text[done:start], names) if done < start else []
                ids += self._plain(text[start:end], names[i - 1] if i else "", names[i] if i < len(names) else "")
                done = end
        ids += self._tokens(text[done:], names) if done < len(text) else []
        if self._more(ids, names):
            raise UserError(f"{where}: the tokenizer reads a message's text as special tokens; remove them from it")
        return ids

    def _plain(self, text: str, before: str, after: str) -> list[int]:
        """Returns the ids of plain text between two special tokens, one or both of which may be absent."""
        text = text.lstrip() if before and self._takes_spaces(before)[1] else text
        text = text.rstrip() if after and self._takes_spaces(after)[0] else text
        # Tokenized after a special token, because no text begins here.
        candidates = (name for name in self._special if before and name not in text and not self._takes_spaces(name)[1])
        lead = next(candidates, None)
        if not text or lead is None:
            return self._tokens(text) if text else []
        return self._tokens(lead + text, [lead])[1:]

    def _takes_spaces(self, name: str) -> tuple[bool, bool]:
        """Returns whether a special token includes the spaces before it, and those after it."""
        if name not in self._taking:
            without, left, right = self._encode([f"x{name}x", f"x {name}x", f"x{name} x"], (name,))
            self._taking[name] = left == without, right == without
        return self._taking[name]

    def _mask(self, text: Text, ranges: Sequence[tuple[int, int]], ids: Sequence[int], where: str) -> list[int]:
        """Returns 1 for each id of which at least one character was generated, else 0."""
        plain, flags = str.__str__(text), [kind & GENERATED for kind in who(text)]
        tokens = self._located(plain, {plain[start:end] for start, end in ranges})
        if [i for i, _, _ in tokens] != ids:  # This is the case if users' texts contain names of special tokens.
            tokens, place = [], 0
            for start, end in [*ranges, (len(plain), len(plain))]:
                tokens += [(i, place + begin, place + stop) for i, begin, stop in self._located(plain[place:start])]
                tokens += [(self._special[plain[start:end]], start, end)] if start < end else []
                place = end
        if [i for i, _, _ in tokens] != ids:
            raise UserError(f"{where}: no mask: this tokenizer has no offsets for texts between special tokens")
        return [int(any(flags[start:end])) for _, start, end in tokens]

    def _located(self, text: str, special: Collection[str] = ()) -> list[tuple[int, int, int]]:
        """Returns the ids of a text with their starts and ends."""
        ragged = self._tokenizer.tokenize_with_offsets(_utf8([text]), tuple(sorted(special)))
        return list(zip(*(x.to_list()[0] for x in ragged), strict=True))


def answer(parts: Sequence[tuple[str, bool]]) -> str:
    """Returns a model's answer as a message's content.

    Args:
      parts: texts, each with whether it is a special token, which it remains.
    """
    return joined([Text(text, OWN if is_token else USER) for text, is_token in parts])


def _after_messages(text: Text, start: int) -> int:
    """Returns the place after the last character from `start` on that the template did not write itself."""
    kinds = who(text)
    return next((i + 1 for i in reversed(range(start, len(text))) if kinds[i] & (USER | UNKNOWN)), start)


def _conversation(messages) -> list[dict[str, Any]]:
    """Returns messages in the form that templates receive."""
    if not messages:
        raise UserError("messages: is empty; give at least one")
    conversation = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise UserError(f"messages[{i}]: is {show(message)}, not an object with role and content; correct it")
        fields = {
            _data(key, where := f"messages[{i}].{key}"): _data(value, where)
            for key, value in message.items()
            if value is not None
        }
        role = fields.get("role")
        if isinstance(role, str) and role in _KNOWN_ROLES:
            fields["role"] = own(str.__str__(role))
        if (thought := next((fields[name] for name in _REASONING if name in fields), None)) is not None:
            fields = {"thinking": thought, **fields, "reasoning_content": thought}
        conversation.append(fields)
    return conversation


def _data(value: Any, where: str, depth: int = 0) -> Any:
    """Returns JSON that is not the template's, in the form that templates receive."""
    if depth > MAX_DEPTH:
        raise UserError(f"{where[:80]}: is nested too deeply (more than {MAX_DEPTH} levels); flatten it")
    if isinstance(value, str):
        return value if isinstance(value, Text) else Text(str(value), USER)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {_data(key, where, depth + 1): _data(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_data(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise UserError(f"{where}: has type {type(value).__name__}, which JSON does not have; use JSON types")


def _objects(values, where: str) -> list[dict] | None:
    """Returns tools or documents in the form that templates receive."""
    if values is None:
        return None
    for i, value in enumerate(values):
        if not isinstance(value, Mapping):
            remedy = "give the JSON schema of the function" if callable(value) else "correct it"
            raise UserError(f"{where}[{i}]: has type {type(value).__name__}, not an object; {remedy}")
    return _data(list(values), where)


def _leave_open(conversation: list[dict[str, Any]], field: str, source: str, where: str) -> str:
    """Marks the end of the last message's field, where `_cut` ends the output; returns the field's text."""
    last, end = conversation[-1], Text(_END, USER)
    ended = last.get(field)
    fields = [name for name in _REASONING if last.get(name) == ended] if field in _REASONING else [field]
    if ended is None or not any(name in source for name in fields):
        problem = "the last message does not have it" if ended is None else f"{where} does not read it"
        raise UserError(f"continue_final_message: {field}: {problem}; specify a field to continue")
    if isinstance(ended, list):
        block = next((x for x in reversed(ended) if isinstance(x, dict) and isinstance(x.get("text"), str)), None)
        if block is None:
            raise UserError(f"continue_final_message: {field}: in the last message it has no text; add one")
        ended = block["text"]
        block["text"] = ended + end
    elif isinstance(ended, str):
        last.update(dict.fromkeys(fields, ended + end))
    else:
        raise UserError(f"continue_final_message: {field}: in the last message it is not text; make it text")
    return ended


def _cut(text: Text, ended: str, where: str) -> Text:
    """Returns the template's text up to the end that `_leave_open` marked."""
    place = text.rfind(_END.strip())
    if place < 0 or ended.strip() not in text:
        raise UserError(f"continue_final_message: {where} omits part or all of the last message; drop the option")
    # Spaces that the template stripped from the end of the message must not precede what follows either.
    return text[:place] if text.startswith(_END, place) else text[:place].rstrip()


def _utf8(texts: Sequence[str]) -> list[bytes]:
    return [text.encode(errors="replace") for text in texts]
