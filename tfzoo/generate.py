"""Text from a model: what follows a prompt, an answer to it, or a conversation.

python -m tfzoo.generate --model_dir=runs/gpt --prompt="This function returns"
python -m tfzoo.generate --model_dir=runs/gpt --input=prompts.txt --output=texts.jsonl --do_sample --top_p=0.9 --seed=1
python -m tfzoo.generate --model_dir=SmolLM2-135M-Instruct --chat

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
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags as absl_flags

from tfzoo import cli, progress
from tfzoo.errors import UserError

_WHOLE = {
    "max_new_tokens": "The most tokens to add; else the folder's, else 64.",
    "min_new_tokens": "The text does not end before so many.",
    "top_k": "Sampling: among so many of the likeliest (0: all); contrastive search: the candidates.",
    "num_beams": "Above 1: beam search.",
    "num_beam_groups": "Beams in groups that are kept apart by --diversity_penalty.",
    "num_return_sequences": "Texts a prompt.",
    "no_repeat_ngram_size": "No group of so many tokens comes twice.",
    "prompt_lookup_num_tokens": "Above 0: so many tokens are guessed at a time from the prompt; the text is the same.",
    "max_matching_ngram_size": "How long a place in the prompt must agree to be guessed from, at most.",
    "num_assistant_tokens": "How many tokens --assistant_dir guesses at a time.",
    "prefill_chunk": "A prompt is read so many tokens at a time; 0: in one pass.",
    "seed": "The same seed gives the same text, whatever else is in the batch; else each is drawn anew.",
}
_REAL = {
    "temperature": "Sampling: below 1 sharper, above 1 flatter; 0 takes the likeliest.",
    "top_p": "Sampling: among the likeliest that together have this probability.",
    "min_p": "Sampling: among those at least this part as likely as the likeliest.",
    "typical_p": "Sampling: among those nearest to the expected information, together of this probability.",
    "repetition_penalty": "Above 1: tokens that were there are less likely.",
    "presence_penalty": "Taken from the logits of new tokens that were there.",
    "diversity_penalty": "Between groups of beams.",
    "length_penalty": "Beam search divides by the length to this power.",
    "penalty_alpha": "Above 0: contrastive search, with --top_k candidates.",
}
_TRUTH = {
    "do_sample": "Draws tokens; else the likeliest follows.",
    "jit_compile": "Compiles by XLA: the first text takes longer, the others less.",
}
_DOING = "compiling and generating"
_EARLY = {"true": True, "false": False, "never": "never"}


def define_model_flags(flags: absl_flags.FlagValues) -> None:
    """What a language model is read from, by `load_model`: the same flags for generate and score."""
    absl_flags.DEFINE_string("model_dir", None, "A run's folder, or one of Hugging Face's.", flag_values=flags)
    absl_flags.DEFINE_string(
        "checkpoint", None, "One of the run's checkpoints; best/ or the newest by default.", flag_values=flags
    )
    absl_flags.DEFINE_enum(
        "weights",
        "float32",
        ["float32", "bfloat16", "int8"],
        "How matrices are kept: rounded, in a half or a quarter of the memory; int8 is faster with --jit_compile.",
        flag_values=flags,
    )
    absl_flags.mark_flags_as_required(["model_dir"], flag_values=flags)


def load_model(flags: absl_flags.FlagValues):
    """The model and the tokenizer of --model_dir, --checkpoint and --weights."""
    return _load(flags.model_dir, flags.checkpoint, flags.weights)


def _load(folder: str, checkpoint: str | None, weights: str):
    with progress.importing_tensorflow():
        from tfzoo import nn
        from tfzoo.training import runs
    with progress.stage(f"reading {folder}"):
        model, tokenizer = runs.load(folder, checkpoint)
        nn.store_weights(model, weights)
    return model, tokenizer


def define_flags(flags: absl_flags.FlagValues) -> None:
    def define(kind, name, default, text):
        getattr(absl_flags, f"DEFINE_{kind}")(name, default, text, flag_values=flags)

    define_model_flags(flags)
    define("multi_string", "prompt", None, "What a text begins with, or is the answer to; several prompts by several.")
    define("string", "input", None, "A file of prompts: a line each, or .jsonl.")
    define("string", "output", None, "A .jsonl file to write.")
    define(
        "bool",
        "chat",
        False,
        "A conversation: each line of the input is a turn; /reset begins anew. Not with --output, --special, "
        "--return_scores and --num_return_sequences.",
    )
    define("string", "system", None, "What the conversation's first message, the system's, says.")
    define(
        "bool",
        "stream",
        None,
        "Whether the text of one --prompt, or an answer of --chat, is printed while it grows; by default on a "
        "terminal. Not with --output, --return_scores and --num_return_sequences.",
    )
    define("integer", "batch_size", 8, "Prompts of --input at a time.")
    define(
        "multi_string", "special", [], "Special tokens, such as <extra_id_0>, that prompts may hold; else plain text."
    )
    define("bool", "skip_special_tokens", True, "Leaves special tokens out of the texts.")
    define("bool", "return_scores", False, "Each token's log-probability, in JSON.")
    define("string", "assistant_dir", None, "A smaller model of the same vocabulary, that guesses tokens ahead.")
    define("multi_string", "stop_strings", None, "A text ends as soon as it holds one of these.")
    define("multi_string", "bad_words", None, "Words that do not come, each at a text's beginning and behind a space.")
    absl_flags.DEFINE_enum("early_stopping", None, list(_EARLY), "When a beam search ends.", flag_values=flags)
    for name, text in _TRUTH.items():
        define("bool", name, None, text)
    for name, text in _WHOLE.items():
        define("integer", name, None, text)
    for name, text in _REAL.items():
        define("float", name, None, text)
    cli.positive(flags, "batch_size")


def main(flags: absl_flags.FlagValues) -> None:
    cli.only_one(flags, "prompt", "input", "chat")
    for name in ("output", "return_scores", "special", "num_return_sequences") if flags.chat else ("system",):
        if flags[name].value and (name != "num_return_sequences" or flags.num_return_sequences > 1):
            remedy = "is not for --chat; omit it" if flags.chat else "is for --chat; add it"
            raise UserError(f"--{name}={flags[name].value}: {remedy}")
    model, tokenizer = load_model(flags)
    options = _options(flags, tokenizer)
    if flags.chat:
        _chat(flags, model, tokenizer, options)
    else:
        _generate(flags, model, tokenizer, options)


def _options(flags: absl_flags.FlagValues, tokenizer) -> dict[str, Any]:
    """The options of decoding that were given."""
    from tfzoo.generation import texts

    names = (*_TRUTH, *_WHOLE, *_REAL, "stop_strings")
    options = {name: flags[name].value for name in names if flags[name].value is not None}
    if flags.early_stopping is not None:
        options["early_stopping"] = _EARLY[flags.early_stopping]
    if flags.bad_words:
        words = [form for word in flags.bad_words for form in (word, f" {word}")]
        options["bad_words_ids"] = sorted({tuple(ids) for ids in texts.encode(tokenizer, words) if ids})
    if flags.assistant_dir is not None:
        options["assistant_model"], _ = _load(flags.assistant_dir, None, flags.weights)
    return options


def _generate(flags: absl_flags.FlagValues, model, tokenizer, options: dict[str, Any]) -> None:
    from tfzoo import records
    from tfzoo.generation import texts

    how: dict[str, Any] = dict(special=flags.special, skip_special_tokens=flags.skip_special_tokens)
    times = options.get("num_return_sequences", 1)
    alone = flags.prompt is not None and len(flags.prompt) == 1 and flags.output is None and not flags.return_scores
    if flags.stream and not (alone and times == 1):
        raise UserError("--stream is for one text of one --prompt, without --output and --return_scores; omit it")
    if alone and times == 1 and (sys.stdout.isatty() if flags.stream is None else flags.stream):
        with _growing() as show:
            texts.generate_text(model, flags.prompt, tokenizer, on_text=show, **how, **options)
        print()
        return
    lines: Iterable[tuple[str, dict[str, Any]]]
    if flags.prompt:
        lines = [("--prompt", {"prompt": text}) for text in flags.prompt]
    else:
        lines = records.read(flags.input, "prompt")
    batches = records.batches(lines, flags.batch_size, "prompt", _DOING, flags.input, flags.output)
    with records.writer(flags.output) as write:
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
                if flags.return_scores:
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


def _chat(flags: absl_flags.FlagValues, model, tokenizer, options: dict[str, Any]) -> None:
    from tfzoo.chat import ChatTemplate
    from tfzoo.generation import texts

    folder = flags.model_dir
    texts.prompt_frame(model, tokenizer)  # That there is a tokenizer.
    template = ChatTemplate.from_folder(folder, tokenizer, functools.partial(texts.encode, tokenizer))
    beginning = [] if flags.system is None else [{"role": "system", "content": flags.system}]
    messages = list(beginning)
    grows, here = flags.stream is not False, sys.stdin.isatty()
    # An answer is one text, whatever the folder says.
    options = options | dict(num_return_sequences=1, skip_special_tokens=flags.skip_special_tokens)
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
        messages.append({"role": "user", "content": said})
        try:
            ids = template.ids(messages)
            with _growing() as show:
                answer = texts.generate_from(model, [ids], tokenizer, on_text=show if grows else None, **options)[0]
                if not grows:
                    show(answer)
        except UserError as error:
            if not here:
                raise
            print(f"error: {error}", file=sys.stderr)
            messages.pop()
            continue
        print(flush=True)
        messages.append({"role": "assistant", "content": answer})


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
