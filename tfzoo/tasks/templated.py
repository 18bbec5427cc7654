"""What the tasks on conversations share: the chat template, the ids of answers, and their place in a row."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfzoo import lazy
from tfzoo.chat import ChatTemplate, builtin
from tfzoo.data.messages import USER, Message
from tfzoo.errors import UserError
from tfzoo.options import Checked, option
from tfzoo.tasks import GROUP
from tfzoo.tasks.task import Task
from tfzoo.text import framing
from tfzoo.text.template import DEFAULT

tf = lazy.module("tensorflow")
extended = lazy.module("tfzoo.text.extended")  # Imports TensorFlow.
_ROLES = ("system", "developer")  # Of messages that begin a conversation and are kept when its turns are dropped.


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatTemplateOption(Checked):
    """The option of tasks on conversations."""

    chat_template: str | None = option(
        None,
        "How conversations become text: chatml, plain, or a file with a jinja template. By default the template of the "
        "tokenizer's folder; if it has none, chatml, and plain for an encoder-decoder. The run's tokenizer keeps it.",
        group=GROUP,
        decides_rows=True,
    )


@dataclasses.dataclass(frozen=True)
class Turn:
    """An answer and what a model reads before it.

    Attributes:
      prompt, answer: token ids; see ChatTemplate.turn.
      dropped: whether earlier messages were left out.
      cut: whether tokens of the prompt or of the answer were cut off.
    """

    prompt: list[int]
    answer: list[int]
    dropped: bool = False
    cut: bool = False


class TemplatedTask(Task):
    """A task whose rows are conversations."""

    def __init__(self, tokenizer, sequence_length: int, **arguments: Any):
        super().__init__(tokenizer, sequence_length, **arguments)
        if not tokenizer.chat_templates:
            raise UserError(f"--task={self.name}: the tokenizer has no chat template; specify one with --chat_template")
        self._encoders: dict[tuple[str, ...], Callable] = {}
        self.template = ChatTemplate(dict(tokenizer.chat_templates), tokenizer, self._encode)

    @classmethod
    def adapted(cls, options, tokenizer, special_tokens, page):
        """Returns the tokenizer with the chat template, its special tokens, and `special_tokens`; the token that ends a
        turn ends a text."""
        encoder_decoder = page.Model.is_encoder_decoder
        name = options.chat_template
        if name is None and not tokenizer.chat_templates:
            name = builtin.PLAIN if encoder_decoder else builtin.CHATML
        sources: dict[str, str] | None = None
        tokens: tuple[str, ...] = ()
        if name is not None:
            source, tokens = builtin.read("chat_template", name)
            sources = {DEFAULT: source}
        tokenizer = extended.extended(tokenizer, (*special_tokens, *tokens), chat_templates=sources)
        end = ChatTemplate(dict(tokenizer.chat_templates), tokenizer).end_of_turn
        tokenizer = extended.extended(tokenizer, eos=end)
        if encoder_decoder and tokenizer.eos_id != framing.encoder_decoder_ends(tokenizer).end:
            last = tokenizer.vocab[framing.encoder_decoder_ends(tokenizer).end]
            raise UserError(
                f"--chat_template={name}: answers end with {end}, but an encoder-decoder's texts with {last}; use "
                f"--chat_template={builtin.PLAIN}"
            )
        return tokenizer

    @classmethod
    def has_labels(cls, options):
        return False

    def encoding_key(self):
        return f"{super().encoding_key()} {sorted(self._tokenizer.chat_templates.items())}"

    def notes(self):
        end = self.template.end_of_turn
        ends = "the template ends answers with no special token" if end is None else f"answers end with {end}"
        source = self._tokenizer.chat_templates.get(DEFAULT)
        names = [name for name, (text, _) in builtin.BUILT_IN.items() if text == source]
        return [f"chat template: {self.options.chat_template or next(iter(names), 'that of the tokenizer')}; {ends}"]

    def _encode(self, texts: Sequence[str], special: tuple[str, ...] = ()) -> list[list[int]]:
        """Returns the ids of texts in which these special tokens are recognized."""
        if special not in self._encoders:
            self._encoders[special] = tf.function(
                lambda texts: self._tokenizer.tokenize(texts, special),
                input_signature=[tf.TensorSpec([None], tf.string)],
                autograph=False,
            )
        return self._encoders[special](tf.constant([text.encode(errors="replace") for text in texts])).to_list()

    def or_refuse(self, row, file, encode: Callable[[], list]) -> list:
        """Returns the result of `encode` for a row of a file; [] if the chat template does not support the row and bad
        rows are skipped, which is counted.

        Raises:
          UserError: the template does not support the row, and --bad_rows is strict.
        """
        try:
            return encode()
        except UserError as error:
            if file.policy == "strict":
                raise UserError(f"{row.where}: {error}, or use --bad_rows=skip") from None
            file.counts["refused_by_template"] = file.counts.get("refused_by_template", 0) + 1
            return []

    def turn(self, messages: Sequence[Message], room: int, **how: Any) -> Turn:
        """Returns the last message, an answer, and what precedes it, in at most `room` tokens; see `turns`."""
        (found,) = self.turns(messages[:-1], messages[-1:], room, **how)
        return found

    def turns(self, asked: Sequence[Message], answers: Sequence[Message], room: int, **how: Any) -> list[Turn]:
        """Returns answers to the same messages, each with what precedes it, in at most `room` tokens.

        If they are longer, turns are dropped from the left, each beginning with a message of the user; a system message
        at the beginning stays. If a single turn is longer, the answer keeps its beginning and may use half of the room
        and what the prompt leaves, and the prompt keeps its end. What precedes is the same for all answers.

        Args:
          asked: the messages before the answers.
          answers: the answers.
          room: the maximum number of tokens.
          **how: see ChatTemplate.text.

        Raises:
          UserError: the template does not support the messages.
        """

        def encoded(kept: list[Message]) -> list[Turn]:
            both = [self.template.turn([*kept, answer], **how) for answer in answers]
            return [Turn(prompt, answer, dropped=len(kept) < len(asked)) for prompt, answer in both]

        def fits(turns: list[Turn]) -> bool:
            return all(len(turn.prompt) + len(turn.answer) <= room for turn in turns)

        found = _first(_shortened(asked), encoded, fits)
        if fits(found):
            return found
        sizes = [min(len(turn.answer), max(room - len(turn.prompt), (room + 1) // 2)) for turn in found]
        before = min(len(found[0].prompt), room - max(sizes))
        return [
            dataclasses.replace(
                turn, prompt=turn.prompt[len(turn.prompt) - before :], answer=turn.answer[:size], cut=True
            )
            for turn, size in zip(found, sizes, strict=True)
        ]

    def prompt(self, messages: Sequence[Message], room: int) -> tuple[list[int], bool]:
        """Returns what a model reads before it answers messages, in at most `room` tokens, and whether something is
        missing; see `turns`."""
        kept, ids = _first(
            _shortened(messages), lambda kept: (kept, self.template.ids(kept)), lambda found: len(found[1]) <= room
        )
        return ids[max(len(ids) - room, 0) :], len(kept) < len(messages) or len(ids) > room

    def described(self, mistake, row) -> dict[str, Any]:
        others = {name: value for name, value in mistake.items() if name != "number"}
        return {"text": shown(row.messages)} | others


def _shortened(messages: Sequence[Message]) -> list[list[Message]]:
    """Returns the messages, then those without the first turn, without the first two, and so on; the system's messages
    at the beginning stay."""
    begin = next((i for i, message in enumerate(messages) if message["role"] not in _ROLES), 0)
    starts = [begin, *(i for i in range(begin + 1, len(messages)) if messages[i]["role"] == USER)]
    return [[*messages[:begin], *messages[start:]] for start in starts]


def _first(candidates: Sequence[Any], encode: Callable[[Any], Any], fits: Callable[[Any], bool]) -> Any:
    """Returns the encoding of the first candidate that fits, of candidates in descending length, or else of the last;
    encodes only a few of them."""
    found = encode(candidates[0])
    if len(candidates) == 1 or fits(found):
        return found
    low, high = 1, len(candidates) - 1
    best = encode(candidates[high])
    while low < high and fits(best):
        middle = (low + high) // 2
        found = encode(candidates[middle])
        if fits(found):
            best, high = found, middle
        else:
            low = middle + 1
    return best


def shown(messages: Sequence[Mapping[str, Any]]) -> str:
    """Returns the last message of the user, for a report."""
    texts = [message["content"] for message in messages if message["role"] == USER and message.get("content")]
    return texts[-1] if texts else ""
