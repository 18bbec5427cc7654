"""Generates text with a model: continuations of prompts, answers to them, or a conversation.

    python -m tfzoo.generate --model_dir=runs/gpt --prompt="This function returns"
    python -m tfzoo.generate --model_dir=runs/gpt --input=prompts.txt --output=texts.jsonl --do_sample --top_p=0.9
    python -m tfzoo.generate --model_dir=SmolLM2-135M-Instruct --chat
    python -m tfzoo.generate --model_dir=Qwen3-0.6B --chat --tools=tools.json --template_option=enable_thinking=false
    python -m tfzoo.generate --model_dir=exports/onnx/gpt2/1 --onnx_variant=int8_weights --prompt="Returns the"

--input is a file with one prompt per line, or a .jsonl file of {"prompt": ...}, whose records may override temperature,
top_k, top_p, min_p, typical_p, repetition_penalty, presence_penalty, max_new_tokens, min_new_tokens and seed. A single
text is printed as plain text, on a terminal while it is generated. Several texts are printed, or written to --output,
as one JSON record per line.

The options have the names and meanings of Hugging Face's GenerationConfig. Unspecified options default to those in
generation_config.json in the model's folder.

--model_dir is a run or the folder of a model, which TensorFlow runs, or an exported ONNX artifact, which onnxruntime
runs. Both generate the same texts, if the artifact is not a quantised variant. A line on stderr names the engine.

At most one of --num_beams, --penalty_alpha, --prompt_lookup_num_tokens and --assistant_dir may select the search.
--penalty_alpha and --num_beam_groups do not sample and cannot be combined with --do_sample.
"""

import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags as absl_flags

from tfzoo import cli, engines, hub, json_files, progress
from tfzoo import options as declared
from tfzoo.errors import UserError
from tfzoo.json_files import Field
from tfzoo.model_dir import ModelDir
from tfzoo.options import option

_MODEL, _TEXTS, _ALL = "Model", "Texts", "Tokens"
_SAMPLING, _NEXT, _SEARCHES = (
    "Sampling (requires --do_sample)",
    "Constraints on the next token",
    "Other search methods (at most one)",
)
_DOING = "compiling and generating"
_OF_CHAT = ("system", "chat_template", "tools", "documents", "template_option")
# Arguments of ChatTemplate.ids that are not options of the template.
_NOT_OPTIONS = ("self", "messages", "add_generation_prompt", "continue_final_message")
_EARLY = {"true": True, "false": False, "never": "never"}


def _decoding(help: str, group: str) -> Any:
    """Returns an option that is passed to decoding under the same name; None means the model folder's value."""
    return option(None, help, group=group, decoding=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateConfig(ModelDir):
    """The prompts to continue, and how to continue them."""

    model_dir: str = option(
        dataclasses.MISSING,
        "Run folder, Hugging Face folder, hf://NAME[@REVISION] or ONNX artifact: OUTPUT_DIR/onnx/NAME/VERSION.",
        group=_MODEL,
    )
    engine: str = option(
        "auto",
        "What runs the model: auto takes onnx for an ONNX artifact and tensorflow for every other folder.",
        group=_MODEL,
        choices=engines.ENGINES,
    )
    onnx_variant: str | None = option(
        None, "Variant of the ONNX artifact to run, such as int8_weights; by default the float32 graphs.", group=_MODEL
    )
    prompt: tuple[str, ...] = option(
        (), "A text to continue or to answer. May be repeated for several prompts.", group=_TEXTS
    )
    input: str | None = option(None, "A file of prompts, one per line, or .jsonl.", group=_TEXTS)
    output: str | None = option(None, "The .jsonl file to write.", group=_TEXTS)
    chat: bool = option(
        False,
        "Hold a conversation: each line of the input is a message of the user. /reset starts over; /message followed "
        'by a JSON object adds that message, such as {"role": "tool", "content": "..."}. Not with --output, '
        "--special, --return_scores or --num_return_sequences.",
        group=_TEXTS,
    )
    system: str | None = option(None, "The content of the system message that begins a conversation.", group=_TEXTS)
    chat_template: str | None = option(
        None,
        'The name of one of the chat templates in the model\'s folder; defaults to "tool_use" if it exists and --tools '
        'is given, otherwise to "default".',
        group=_TEXTS,
    )
    tools: str | None = option(
        None, "A .json file with a list of the tools that the model may call, each a JSON schema.", group=_TEXTS
    )
    documents: str | None = option(
        None, "A .json file with a list of documents for the model: objects, usually with title and text.", group=_TEXTS
    )
    template_option: tuple[str, ...] = option(
        (),
        "NAME=VALUE for the chat template, such as enable_thinking=false; the value is JSON or plain text. May be "
        "repeated.",
        group=_TEXTS,
    )
    stream: bool | None = option(
        None,
        "Whether to print the text of a single --prompt, or an answer of --chat, while it is generated; defaults to "
        "true on a terminal. Not with --output, --return_scores or --num_return_sequences.",
        group=_TEXTS,
    )
    batch_size: int = option(8, "Prompts of --input per batch.", group=_TEXTS, low=1)
    special: tuple[str, ...] = option(
        (),
        "A special token, such as <extra_id_0>, to recognise in prompts; special tokens are otherwise plain text. "
        "May be repeated.",
        group=_TEXTS,
    )
    skip_special_tokens: bool = option(True, "Omit special tokens from the texts.", group=_TEXTS)
    return_scores: bool = option(False, "Include each token's log-probability; the output is JSON.", group=_TEXTS)

    max_new_tokens: int | None = _decoding(
        "Maximum number of new tokens; defaults to that of the model's folder, otherwise to 64.", _ALL
    )
    min_new_tokens: int | None = _decoding("Minimum number of new tokens.", _ALL)
    stop_strings: tuple[str, ...] = option(
        (), "End a text as soon as it contains this string. May be repeated.", group=_ALL
    )
    num_return_sequences: int | None = _decoding("Texts per prompt.", _ALL)
    do_sample: bool | None = _decoding("Sample tokens instead of choosing the likeliest.", _ALL)
    jit_compile: bool | None = _decoding("Compile with XLA: slower for the first text, faster for later ones.", _ALL)
    prefill_chunk: int | None = _decoding("Number of prompt tokens to read at a time; 0 reads all in one pass.", _ALL)

    seed: int | None = _decoding(
        "Random seed. The same seed gives the same text, whatever else is in the batch; by default it is random.",
        _SAMPLING,
    )
    temperature: float | None = _decoding(
        "Below 1 sharpens the distribution, above 1 flattens it; 0 chooses the likeliest token.", _SAMPLING
    )
    top_k: int | None = _decoding(
        "Sample from this many of the likeliest tokens (0: all). With --penalty_alpha: the number of candidates.",
        _SAMPLING,
    )
    top_p: float | None = _decoding(
        "Sample from the likeliest tokens that together have at least this probability.", _SAMPLING
    )
    min_p: float | None = _decoding(
        "Sample from the tokens at least this fraction as likely as the likeliest one.", _SAMPLING
    )
    typical_p: float | None = _decoding(
        "Sample from the tokens whose information is closest to the entropy, with at least this total probability.",
        _SAMPLING,
    )

    repetition_penalty: float | None = _decoding("Above 1: makes tokens that have already occurred less likely.", _NEXT)
    presence_penalty: float | None = _decoding(
        "Subtracted from the logits of tokens that have already been generated.", _NEXT
    )
    no_repeat_ngram_size: int | None = _decoding("No n-gram of this many tokens may occur twice.", _NEXT)
    bad_words: tuple[str, ...] = option(
        (), "A word not to generate, at the beginning of a text or after a space. May be repeated.", group=_NEXT
    )

    num_beams: int | None = _decoding("Number of beams; above 1 selects beam search.", _SEARCHES)
    length_penalty: float | None = _decoding(
        "Beam search divides a text's score by its length to this power.", _SEARCHES
    )
    early_stopping: str | None = option(
        None, "When to stop a beam search, as in transformers.", group=_SEARCHES, choices=tuple(_EARLY)
    )
    num_beam_groups: int | None = _decoding(
        "Number of beam groups, which --diversity_penalty makes differ. Not with --do_sample.", _SEARCHES
    )
    diversity_penalty: float | None = _decoding(
        "Penalty for tokens that other beam groups have chosen in the same step.", _SEARCHES
    )
    penalty_alpha: float | None = _decoding(
        "Above 0: contrastive search among --top_k candidates. Not with --do_sample.", _SEARCHES
    )
    prompt_lookup_num_tokens: int | None = _decoding(
        "Above 0: number of tokens to draft at a time by lookup in the prompt; does not change the text.", _SEARCHES
    )
    max_matching_ngram_size: int | None = _decoding(
        "Maximum length of the n-gram that prompt lookup matches.", _SEARCHES
    )
    assistant_dir: str | None = option(
        None, "A smaller model with the same vocabulary that drafts tokens.", group=_SEARCHES
    )
    num_assistant_tokens: int | None = _decoding("Number of tokens that --assistant_dir drafts at a time.", _SEARCHES)


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
                f"--{name}={shown}: {'does not apply to --chat; omit it' if config.chat else 'requires --chat; add it'}"
            )
    writer = engines.open_writer(config, config.engine, config.onnx_variant)
    options = _options(config, writer)
    if config.chat:
        _chat(config, writer, options)
    else:
        _generate(config, writer, options)


def _options(config: GenerateConfig, writer) -> dict[str, Any]:
    """Returns the decoding options that were given."""
    options = {name: getattr(config, name) for name in declared.names_with(GenerateConfig, "decoding")}
    options = {name: value for name, value in options.items() if value is not None}
    if config.stop_strings:
        options["stop_strings"] = config.stop_strings
    if config.early_stopping is not None:
        options["early_stopping"] = _EARLY[config.early_stopping]
    if config.bad_words:
        words = [form for word in config.bad_words for form in (word, f" {word}")]
        options["bad_words_ids"] = sorted({tuple(ids) for ids in writer.encode(words) if ids})
    if config.assistant_dir is not None:
        if not writer.assists:
            raise UserError("--assistant_dir: --engine=onnx does not support it; omit it")
        assistant = str(hub.folder(config.assistant_dir, "assistant_dir"))
        options["assistant_model"], _ = ModelDir(model_dir=assistant, weights=config.weights).load()
    return options


def _generate(config: GenerateConfig, writer, options: dict[str, Any]) -> None:
    from tfzoo import records

    how: dict[str, Any] = dict(special=config.special, skip_special_tokens=config.skip_special_tokens)
    times = options.get("num_return_sequences", 1)
    is_single = len(config.prompt) == 1 and config.output is None and not config.return_scores
    if config.stream and not (is_single and times == 1):
        raise UserError(
            "--stream: requires a single text of a single --prompt, without --output and --return_scores; omit it"
        )
    if is_single and times == 1 and (sys.stdout.isatty() if config.stream is None else config.stream):
        with _growing() as show:
            writer.generate_text(config.prompt, on_text=show, **how, **options)
        print()
        return
    lines: Iterable[tuple[str, dict[str, Any]]] = [("--prompt", {"prompt": text}) for text in config.prompt]
    if config.input is not None:
        lines = read_input(config.input)
    batches = records.batches(lines, config.batch_size, "prompt", _DOING, config.input, config.output)
    with records.writer(config.output) as write:
        for batch, work in batches:
            prompts = [records.text(where, record, "prompt") for where, record in batch]
            row_options = _row_options(batch, options)
            with work:
                answers = writer.generate_text(prompts, **how, **(options | row_options))
            if is_single and len(answers) == 1:
                print(answers[0].text)
                return
            for i, answer in enumerate(answers):
                record = {"prompt": prompts[i // times], "text": answer.text, "tokens": len(answer.token_ids)}
                if config.return_scores:
                    record |= {"token_ids": answer.token_ids, "scores": answer.scores, "score": answer.sequence_score}
                write(record)


def read_input(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (FILE:LINE, {"prompt": ..., and options of this row}) of each line of --input.

    Raises:
      UserError: as from `records.read`.
    """
    from tfzoo import records
    from tfzoo.generation.options import BOUNDS, ROWS

    fields = {"prompt": Field(str, required=True)}
    for name, (dtype, _) in ROWS.items():
        fields[name] = Field(float if issubclass(dtype, np.floating) else int, BOUNDS[name].low, BOUNDS[name].high)
    return records.read(path, "prompt", fields=fields)


def _row_options(batch: Sequence[tuple[str, dict[str, Any]]], options: Mapping[str, Any]) -> dict[str, list]:
    """Returns the options that any record of the batch sets itself, with one value per record.

    Raises:
      UserError: a record lacks such an option, and there is no value for all records.
    """
    from tfzoo.generation import ROWS

    row_options = {
        name: [record.get(name, options.get(name, nothing)) for _, record in batch]
        for name, (_, nothing) in ROWS.items()
        if any(name in record for _, record in batch)
    }
    for name, values in row_options.items():
        if None in values:
            where = batch[values.index(None)][0]
            raise UserError(f"{where}: has no {name}, but other records do; add one, or set --{name}")
    return row_options


def _chat(config: GenerateConfig, writer, options: dict[str, Any]) -> None:
    from tfzoo.chat import ChatTemplate

    folder = config.folder
    if any((folder / name).is_file() for name in ("flags.cfg", "manifest.json")) and (folder / "tokenizer").is_dir():
        folder = folder / "tokenizer"  # Of a run or an artifact.
    template = ChatTemplate.from_folder(folder, writer.tokenizer, writer.encode)
    template_options = _template_options(config)
    beginning: list[dict[str, Any]] = []
    if config.system is not None:
        beginning.append({"role": "system", "content": config.system})
    messages = list(beginning)
    streams, interactive = config.stream is not False, sys.stdin.isatty()
    # An answer is a single text, whatever the folder specifies.
    options = options | dict(num_return_sequences=1, skip_special_tokens=config.skip_special_tokens)
    while True:
        if interactive:
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        turn = line.strip("\r\n")
        if not turn.strip():
            continue
        if turn.strip() == "/reset":
            messages = list(beginning)
            continue
        before = len(messages)
        try:
            messages.append(_message(turn))
            ids = template.ids(messages, **template_options)
            with _growing() as show:
                on_text = show if streams else None
                (answer,) = writer.generate_from([ids], on_text=on_text, **options)
                if not streams:
                    show(answer.text)
        except UserError as error:
            if not interactive:
                raise
            print(f"error: {error}", file=sys.stderr)
            del messages[before:]
            continue
        print(flush=True)
        messages.append({"role": "assistant", "content": _content(writer, ids, answer)})


def _template_options(config: GenerateConfig) -> dict[str, Any]:
    """Returns the arguments of the chat template other than the messages."""
    arguments: dict[str, Any] = dict(chat_template=config.chat_template)
    for name in ("tools", "documents"):
        path = getattr(config, name)
        arguments[name] = None if path is None else json_files.read(path, kind=list)
    for text in config.template_option:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier() or name in (*arguments, *_NOT_OPTIONS):
            raise UserError(f"--template_option={text}: must be NAME=VALUE with a name that the template reads")
        try:
            arguments[name] = json_files.parse(value)
        except json_files.BadJSON:
            arguments[name] = value
    return arguments


def _message(line: str) -> dict[str, Any]:
    """Returns the message in a line of a conversation."""
    command, _, rest = line.strip().partition(" ")
    if command != "/message":
        return {"role": "user", "content": line}
    try:
        message = json_files.parse(rest)
    except json_files.BadJSON as error:
        raise UserError(f"{command} {rest}: {error}; write it as JSON") from None
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise UserError(f"{command} {rest}: must be a JSON object with a role; correct it")
    return message


def _content(writer, prompt: Sequence[int], answer) -> str:
    """Returns the content of an answer's message: the text, including special tokens, such as those around a tool call,
    but not those that end the text."""
    from tfzoo import chat

    special, vocab, ids = set(writer.tokenizer.special_ids), writer.tokenizer.vocab, list(answer.token_ids)
    while ids and ids[-1] in special:
        del ids[-1]
    before = [] if writer.is_encoder_decoder else list(prompt)
    parts = []
    for is_special, group in itertools.groupby(ids, special.__contains__):
        run = list(group)
        if is_special:
            parts += [(vocab[i], True) for i in run]
        else:
            parts.append((writer.decode_text(run, before), False))
        before = run
    return chat.answer(parts)


@contextlib.contextmanager
def _growing() -> Iterator[Callable[[str], None]]:
    """Yields a function that prints a text as it grows; until the first part is there, progress is shown."""
    with progress.stage(_DOING) as end:

        def show(text: str) -> None:
            end()
            print(text, end="", flush=True)

        yield show


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags))
