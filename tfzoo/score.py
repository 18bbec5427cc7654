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

import math
import sys
from collections.abc import Iterable
from typing import Any

from absl import flags as absl_flags

from tfzoo import cli, records
from tfzoo.errors import UserError
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
    source = cli.only_one(flags, "text", "continuation", "input")
    if (flags.context is None) != (flags.continuation is None):
        raise UserError("--context and --continuation: are given together")
    model, tokenizer = load_model(flags)
    from tfzoo.evaluation import likelihood  # Imports TensorFlow.

    how: dict[str, Any] = dict(length=flags.length, stride=flags.stride, batch_size=flags.batch_size)
    lines: Iterable[tuple[str, dict[str, Any]]]
    if source == "text":
        lines = [("--text", {"text": text}) for text in flags.text]
    elif source == "continuation":
        lines = [("--continuation", {"context": flags.context, "continuation": text}) for text in flags.continuation]
    else:
        lines = records.read(flags.input, "text")
    total, count = 0.0, 0
    batches = records.batches(lines, flags.batch_size, "text", "compiling and scoring", flags.input, flags.output)
    with records.writer(flags.output) as write:
        for batch, work in batches:
            paired = ["continuation" in record for _, record in batch]
            if any(paired) and not all(paired):
                raise UserError(f"{batch[paired.index(False)][0]}: has no continuation, and others have; write one")
            names = ("context", "continuation") if any(paired) else ("text",)
            columns = [[records.text(where, record, name) for where, record in batch] for name in names]
            score: Any = likelihood.score_continuations if any(paired) else likelihood.score_texts
            with work:
                found = score(model, *columns, tokenizer, **how)
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
