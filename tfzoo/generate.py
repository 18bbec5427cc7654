"""Text from a model: what follows a prompt, an answer to it, or a conversation.

python -m tfzoo.generate --model_dir=runs/gpt --prompt="This function returns"
python -m tfzoo.generate --model_dir=runs/gpt --input=prompts.txt --output=texts.jsonl --do_sample --top_p=0.9 --seed=1
python -m tfzoo.generate --model_dir=SmolLM2-135M-Instruct --chat
python -m tfzoo.generate --model_dir=Qwen3-0.6B --chat --tools=tools.json --template_option=enable_thinking=false

--input is a file with a prompt a line, or .jsonl with {"prompt": ...}, where a record may have temperature, top_k,
top_p, min_p, typical_p, repetition_penalty, presence_penalty, max_new_tokens, min_new_tokens and seed of its own. One
text is printed as it is, on a terminal while it grows; several are printed, or written to --output, as JSON, a line
each.

Options have the names and meanings of Hugging Face's GenerationConfig. What is not given is taken from the folder's
generation_config.json.

Of --num_beams, --penalty_alpha, --prompt_lookup_num_tokens and --assistant_dir one at most says how tokens are
searched for; --penalty_alpha and --num_beam_groups draw none, and contradict --do_sample.
"""

import contextlib
import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags as absl_flags

from tfzoo import cli, hub, json_files, progress
from tfzoo import options as declared
from tfzoo.errors import UserError
from tfzoo.model_dir import ModelDir
from tfzoo.options import option

_TEXTS, _ALL = "Texts", "Tokens"
_SAMPLING, _NEXT, _SEARCHES = (
    "Sampling, with --do_sample",
    "What may follow",
    "Other ways to search, one of them at most",
)
_DOING = "compiling and generating"
_OF_CHAT = ("system", "chat_template", "tools", "documents", "template_option")
# Arguments of ChatTemplate.ids that are not the template's.
_NOT_OPTIONS = ("self", "messages", "add_generation_prompt", "continue_final_message")
_EARLY = {"true": True, "false": False, "never": "never"}


def _decoding(help: str, group: str) -> Any:
    """An option that decoding has by the same name; None is the folder's."""
    return option(None, help, group=group, decoding=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateConfig(ModelDir):
    """What is gone on from, and how."""

    prompt: tuple[str, ...] = option(
        (), "What a text begins with, or is the answer to; several prompts by several.", group=_TEXTS
    )
    input: str | None = option(None, "A file of prompts: a line each, or .jsonl.", group=_TEXTS)
    output: str | None = option(None, "A .jsonl file to write.", group=_TEXTS)
    chat: bool = option(
        False,
        "A conversation: each line of the input is a turn; /reset begins anew; /message and a JSON object, such as "
        'a tool\'s {"role": "tool", "content": "..."}, is one of other fields. Not with --output, --special, '
        "--return_scores and --num_return_sequences.",
        group=_TEXTS,
    )
    system: str | None = option(None, "What the conversation's first message, the system's, says.", group=_TEXTS)
    chat_template: str | None = option(
        None,
        'The name of one of the folder\'s chat templates; by default "tool_use", where there is one and --tools is '
        'given, else "default".',
        group=_TEXTS,
    )
    tools: str | None = option(
        None, "A .json file with a list of what the model may call: a JSON schema each.", group=_TEXTS
    )
    documents: str | None = option(
        None, "A .json file with a list of documents for the model: objects, mostly with title and text.", group=_TEXTS
    )
    template_option: tuple[str, ...] = option(
        (), "NAME=VALUE that the chat template knows, such as enable_thinking=false; the value is JSON or text.",
        group=_TEXTS,
    )  # fmt: skip
    stream: bool | None = option(
        None,
        "Whether the text of one --prompt, or an answer of --chat, is printed while it grows; by default on a "
        "terminal. Not with --output, --return_scores and --num_return_sequences.",
        group=_TEXTS,
    )
    batch_size: int = option(8, "Prompts of --input at a time.", group=_TEXTS, low=1)
    special: tuple[str, ...] = option(
        (), "Special tokens, such as <extra_id_0>, that prompts may hold; else plain text.", group=_TEXTS
    )
    skip_special_tokens: bool = option(True, "Leaves special tokens out of the texts.", group=_TEXTS)
    return_scores: bool = option(False, "Each token's log-probability, in JSON.", group=_TEXTS)

    max_new_tokens: int | None = _decoding("The most tokens to add; else the folder's, else 64.", _ALL)
    min_new_tokens: int | None = _decoding("The text does not end before so many.", _ALL)
    stop_strings: tuple[str, ...] = option((), "A text ends as soon as it holds one of these.", group=_ALL)
    num_return_sequences: int | None = _decoding("Texts a prompt.", _ALL)
    do_sample: bool | None = _decoding("Draws tokens; else the likeliest follows.", _ALL)
    jit_compile: bool | None = _decoding("Compiles by XLA: the first text takes longer, the others less.", _ALL)
    prefill_chunk: int | None = _decoding("A prompt is read so many tokens at a time; 0: in one pass.", _ALL)

    seed: int | None = _decoding(
        "The same seed gives the same text, whatever else is in the batch; else each is drawn anew.", _SAMPLING
    )
    temperature: float | None = _decoding("Below 1 sharper, above 1 flatter; 0 takes the likeliest.", _SAMPLING)
    top_k: int | None = _decoding(
        "Among so many of the likeliest (0: all). With --penalty_alpha: the candidates.", _SAMPLING
    )
    top_p: float | None = _decoding("Among the likeliest that together have this probability.", _SAMPLING)
    min_p: float | None = _decoding("Among those at least this part as likely as the likeliest.", _SAMPLING)
    typical_p: float | None = _decoding(
        "Among those nearest to the expected information, together of this probability.", _SAMPLING
    )

    repetition_penalty: float | None = _decoding("Above 1: tokens that were there are less likely.", _NEXT)
    presence_penalty: float | None = _decoding("Taken from the logits of new tokens that were there.", _NEXT)
    no_repeat_ngram_size: int | None = _decoding("No group of so many tokens comes twice.", _NEXT)
    bad_words: tuple[str, ...] = option(
        (), "Words that do not come, each at a text's beginning and behind a space.", group=_NEXT
    )

    num_beams: int | None = _decoding("Above 1: beam search.", _SEARCHES)
    length_penalty: float | None = _decoding("Beam search divides by the length to this power.", _SEARCHES)
    early_stopping: str | None = option(None, "When a beam search ends.", group=_SEARCHES, choices=tuple(_EARLY))
    num_beam_groups: int | None = _decoding(
        "Beams in groups that are kept apart by --diversity_penalty. Not with --do_sample.", _SEARCHES
    )
    diversity_penalty: float | None = _decoding("Between groups of beams.", _SEARCHES)
    penalty_alpha: float | None = _decoding(
        "Above 0: contrastive search, with --top_k candidates. Not with --do_sample.", _SEARCHES
    )
    prompt_lookup_num_tokens: int | None = _decoding(
        "Above 0: so many tokens are guessed at a time from the prompt; the text is the same.", _SEARCHES
    )
    max_matching_ngram_size: int | None = _decoding(
        "How long a place in the prompt must agree to be guessed from, at most.", _SEARCHES
    )
    assistant_dir: str | None = option(
        None, "A smaller model of the same vocabulary, that guesses tokens ahead.", group=_SEARCHES
    )
    num_assistant_tokens: int | None = _decoding("How many tokens --assistant_dir guesses at a time.", _SEARCHES)


def define_flags(flags: absl_flags.FlagValues) -> None:
    declared.define_flags(flags, GenerateConfig)


def main(flags: absl_flags.FlagValues) -> None:
    cli.only_one(flags, "prompt", "input", "chat")
    config = GenerateConfig(**declared.values_of(flags, GenerateConfig))
    for name in ("output", "return_scores", "special", "num_return_sequences") if config.chat else _OF_CHAT:
        value = getattr(config, name)
        if value and (name != "num_return_sequences" or value > 1):
            shown = " ".join(value) if isinstance(value, tuple) else value
            raise UserError(
                f"--{name}={shown}: {'is not for --chat; omit it' if config.chat else 'is for --chat; add it'}"
            )
    model, tokenizer = config.load()
    options = _options(config, tokenizer)
    if config.chat:
        _chat(config, model, tokenizer, options)
    else:
        _generate(config, model, tokenizer, options)


def _options(config: GenerateConfig, tokenizer) -> dict[str, Any]:
    """The options of decoding that were given."""
    from tfzoo.generation import texts

    options = {name: getattr(config, name) for name in declared.names_with(GenerateConfig, "decoding")}
    options = {name: value for name, value in options.items() if value is not None}
    if config.stop_strings:
        options["stop_strings"] = config.stop_strings
    if config.early_stopping is not None:
        options["early_stopping"] = _EARLY[config.early_stopping]
    if config.bad_words:
        words = [form for word in config.bad_words for form in (word, f" {word}")]
        options["bad_words_ids"] = sorted({tuple(ids) for ids in texts.encode(tokenizer, words) if ids})
    if config.assistant_dir is not None:
        assistant = str(hub.folder(config.assistant_dir, "assistant_dir"))
        options["assistant_model"], _ = ModelDir(model_dir=assistant, weights=config.weights).load()
    return options


def _generate(config: GenerateConfig, model, tokenizer, options: dict[str, Any]) -> None:
    from tfzoo import records
    from tfzoo.generation import texts

    how: dict[str, Any] = dict(special=config.special, skip_special_tokens=config.skip_special_tokens)
    times = options.get("num_return_sequences", 1)
    alone = len(config.prompt) == 1 and config.output is None and not config.return_scores
    if config.stream and not (alone and times == 1):
        raise UserError("--stream is for one text of one --prompt, without --output and --return_scores; omit it")
    if alone and times == 1 and (sys.stdout.isatty() if config.stream is None else config.stream):
        with _growing() as show:
            texts.generate_text(model, config.prompt, tokenizer, on_text=show, **how, **options)
        print()
        return
    lines: Iterable[tuple[str, dict[str, Any]]] = [("--prompt", {"prompt": text}) for text in config.prompt]
    if config.input is not None:
        lines = records.read(config.input, "prompt")
    batches = records.batches(lines, config.batch_size, "prompt", _DOING, config.input, config.output)
    with records.writer(config.output) as write:
        for batch, work in batches:
            prompts = [records.text(where, record, "prompt") for where, record in batch]
            own = _own(batch, options)
            with work:
                answers = texts.generate_text(model, prompts, tokenizer, return_scores=True, **how, **(options | own))
            if alone and len(answers) == 1:
                print(answers[0].text)
                return
            for i, answer in enumerate(answers):
                record = {"prompt": prompts[i // times], "text": answer.text, "tokens": len(answer.token_ids)}
                if config.return_scores:
                    record |= {"token_ids": answer.token_ids, "scores": answer.scores, "score": answer.sequence_score}
                write(record)


def _own(batch: Sequence[tuple[str, dict[str, Any]]], options: Mapping[str, Any]) -> dict[str, list]:
    """The options of which a record of the batch has its own, one for each record.

    Raises:
      UserError: a record has none, nor is there one for all.
    """
    from tfzoo.generation import ROWS

    own = {
        name: [record.get(name, options.get(name, nothing)) for _, record in batch]
        for name, (_, nothing) in ROWS.items()
        if any(name in record for _, record in batch)
    }
    for name, values in own.items():
        if None in values:
            where = batch[values.index(None)][0]
            raise UserError(f"{where}: others have a {name} of their own; give it one, or set --{name}")
    return own


def _chat(config: GenerateConfig, model, tokenizer, options: dict[str, Any]) -> None:
    from tfzoo.chat import ChatTemplate
    from tfzoo.generation import texts

    folder = config.folder
    texts.prompt_frame(model, tokenizer)  # That there is a tokenizer.
    template = ChatTemplate.from_folder(folder, tokenizer, functools.partial(texts.encode, tokenizer))
    how = _of_chat(config)
    beginning: list[dict[str, Any]] = []
    if config.system is not None:
        beginning.append({"role": "system", "content": config.system})
    messages = list(beginning)
    grows, here = config.stream is not False, sys.stdin.isatty()
    # An answer is one text, whatever the folder says.
    options = options | dict(num_return_sequences=1, skip_special_tokens=config.skip_special_tokens)
    while True:
        if here:
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        said = line.strip("\r\n")
        if not said.strip():
            continue
        if said.strip() == "/reset":
            messages = list(beginning)
            continue
        before = len(messages)
        try:
            messages.append(_message(said))
            ids = template.ids(messages, **how)
            with _growing() as show:
                on_text = show if grows else None
                (answer,) = texts.generate_from(model, [ids], tokenizer, on_text=on_text, answers=True, **options)
                if not grows:
                    show(answer.text)
        except UserError as error:
            if not here:
                raise
            print(f"error: {error}", file=sys.stderr)
            del messages[before:]
            continue
        print(flush=True)
        messages.append({"role": "assistant", "content": _said(model, tokenizer, ids, answer)})


def _of_chat(config: GenerateConfig) -> dict[str, Any]:
    """What the chat template is told besides the messages."""
    how: dict[str, Any] = dict(chat_template=config.chat_template)
    for name in ("tools", "documents"):
        path = getattr(config, name)
        how[name] = None if path is None else json_files.read(path, kind=list)
    for given in config.template_option:
        name, equals, value = given.partition("=")
        if not equals or not name.isidentifier() or name in (*how, *_NOT_OPTIONS):
            raise UserError(f"--template_option={given}: is not NAME=VALUE with a name of the template's; correct it")
        try:
            how[name] = json_files.parse(value)
        except json_files.BadJSON:
            how[name] = value
    return how


def _message(said: str) -> dict[str, Any]:
    """The message that a line of a conversation is."""
    command, _, rest = said.strip().partition(" ")
    if command != "/message":
        return {"role": "user", "content": said}
    try:
        message = json_files.parse(rest)
    except json_files.BadJSON as error:
        raise UserError(f"{command} {rest}: {error}; write it as JSON") from None
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise UserError(f"{command} {rest}: must be an object with a role; write it as JSON")
    return message


def _said(model, tokenizer, prompt: Sequence[int], answer) -> str:
    """An answer as its message's content: the text, in which special tokens stay that do not end it, such as those
    around a call of a tool."""
    from tfzoo import chat
    from tfzoo.generation import texts

    special, vocab, ids = set(tokenizer.special_ids), tokenizer.vocab, list(answer.token_ids)
    while ids and ids[-1] in special:
        del ids[-1]
    before = [] if model.is_encoder_decoder else list(prompt)
    parts = []
    for is_special, group in itertools.groupby(ids, special.__contains__):
        run = list(group)
        if is_special:
            parts += [(vocab[i], True) for i in run]
        else:
            parts.append((texts.decode_text(tokenizer, run, before), False))
        before = run
    return chat.answer(parts)


@contextlib.contextmanager
def _growing() -> Iterator[Callable[[str], None]]:
    """What prints a growing text; until there is some a terminal is told why."""
    with progress.stage(_DOING) as end:

        def show(text: str) -> None:
            end()
            print(text, end="", flush=True)

        yield show


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags))
