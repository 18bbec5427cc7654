"""How likely a model finds texts: log-likelihood and perplexity, and of continuations in zero-shot tasks.

python -m tfzoo.score --model_dir=runs/gpt --text="A text."
python -m tfzoo.score --model_dir=runs/gpt --input=texts.txt --output=scores.jsonl --stride=64
python -m tfzoo.score --model_dir=flan-t5-small --context="Is rain wet?" --continuation=yes --continuation=no
python -m tfzoo.score --model_dir=gpt2 --input=pairs.jsonl

--input is a file with a text a line, or .jsonl with {"text": ...}, or with {"context": ..., "continuation": ...}. Each
gives a line of JSON: log_likelihood (natural logarithm), tokens (how many were judged), perplexity, and for a
continuation `greedy`, whether the model would have said just that. A decoder judges the first token of a text only
where its family begins texts with a token of their own.

A text longer than the model's --length is read in windows, --stride tokens apart; each token is judged by the first
that holds it. Encoder-decoders judge continuations.
"""

import itertools
import math
import sys
from typing import Any

from absl import flags as absl_flags

from tfzoo import cli
from tfzoo.errors import CheckFailed, UserError
from tfzoo.generate import define_model_flags, load_model


def define_flags(flags: absl_flags.FlagValues) -> None:
    def define(kind, name, default, text):
        getattr(absl_flags, f"DEFINE_{kind}")(name, default, text, flag_values=flags)

    define_model_flags(flags)
    define("multi_string", "text", None, "A text; several by several.")
    define("string", "context", None, "What a continuation follows.")
    define("multi_string", "continuation", None, "What follows the context; several by several.")
    define("string", "input", None, "A file of texts: a line each, or .jsonl.")
    define("string", "output", None, "A .jsonl file to write.")
    define("bool", "tokens", False, "Also each token, as the tokenizer writes it, and its log-probability.")
    define("integer", "length", None, "Tokens read together; max_positions by default.")
    define("integer", "stride", None, "How far windows are apart; half the length by default.")
    define("integer", "batch_size", 8, "Windows at a time.")
    cli.positive(flags, "batch_size")


def main(flags: absl_flags.FlagValues) -> None:
    given = [name for name in ("text", "continuation", "input") if flags[name].value is not None]
    if len(given) != 1:
        both = " and ".join(f"--{name}" for name in given)
        raise UserError(
            f"{both}: contradict each other; choose one"
            if given
            else "--text, --input or --continuation: give one of them"
        )
    if (flags.context is None) != (flags.continuation is None):
        raise UserError("--context and --continuation: are given together")
    from tfzoo import records  # TensorFlow takes seconds to import, and --help needs none of it.
    from tfzoo.evaluation import likelihood

    model, tokenizer = load_model(flags)
    how: dict[str, Any] = dict(length=flags.length, stride=flags.stride, batch_size=flags.batch_size)
    if flags.text is not None:
        lines = iter([("--text", {"text": text}) for text in flags.text])
    elif flags.continuation is not None:
        pairs = [{"context": flags.context, "continuation": text} for text in flags.continuation]
        lines = iter([("--continuation", pair) for pair in pairs])
    else:
        lines = records.read(flags.input, "text")
    total, count = 0.0, 0
    with records.writer(flags.output) as write:
        while batch := list(itertools.islice(lines, flags.batch_size)):
            paired = ["continuation" in record for _, record in batch]
            if any(paired) and not all(paired):
                raise UserError(f"{batch[paired.index(False)][0]}: has no continuation, and others have; write one")
            names = ("context", "continuation") if any(paired) else ("text",)
            columns = [[records.text(where, record, name) for where, record in batch] for name in names]
            try:
                if any(paired):
                    found = likelihood.score_continuations(model, columns[0], columns[1], tokenizer, **how)
                else:
                    found = likelihood.score_texts(model, columns[0], tokenizer, **how)
            except (UserError, CheckFailed) as error:
                if flags.input is None:
                    raise
                raise type(error)(f"{batch[0][0]} and what follows: {error}") from None
            for i, one in enumerate(found):
                record: dict[str, Any] = {name: column[i] for name, column in zip(names, columns, strict=True)}
                record |= {"log_likelihood": one.log_likelihood, "tokens": len(one.scores)}
                record["perplexity"] = _perplexity(one.log_likelihood, len(one.scores))
                if any(paired):
                    record["greedy"] = all(one.likeliest)
                if flags.tokens:
                    record["scores"] = [[tokenizer.vocab[t], s] for t, s in zip(one.token_ids, one.scores, strict=True)]
                write(record)
                total, count = total + one.log_likelihood, count + len(one.scores)
    perplexity = _perplexity(total, count)
    shown = "beyond float64's range" if perplexity is None else f"{perplexity:,.4f}"
    print(f"{count:,} tokens, log-likelihood {total:,.4f}, perplexity {shown}", file=sys.stderr)


def _perplexity(log_likelihood: float, count: int) -> float | None:
    """exp(-log_likelihood / count); None, which JSON has, where it is too high for a number."""
    try:
        return math.exp(-log_likelihood / count)
    except OverflowError:
        return None


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags))
