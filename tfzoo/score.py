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

import dataclasses
import math
import sys
from collections.abc import Iterable
from typing import Any

from absl import flags as absl_flags

from tfzoo import cli, options, records
from tfzoo.errors import UserError
from tfzoo.model_dir import ModelDir
from tfzoo.options import option

_TEXTS = "Texts"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig(ModelDir):
    """What is scored, and how."""

    text: tuple[str, ...] = option((), "A text; several by several.", group=_TEXTS)
    context: str | None = option(None, "What a continuation follows.", group=_TEXTS)
    continuation: tuple[str, ...] = option((), "What follows the context; several by several.", group=_TEXTS)
    input: str | None = option(None, "A file of texts: a line each, or .jsonl.", group=_TEXTS)
    output: str | None = option(None, "A .jsonl file to write.", group=_TEXTS)
    tokens: bool = option(False, "Also each token, as the tokenizer writes it, and its log-probability.", group=_TEXTS)
    length: int | None = option(None, "Tokens read together; max_positions by default.", group=_TEXTS)
    stride: int | None = option(None, "How far windows are apart; half the length by default.", group=_TEXTS)
    batch_size: int = option(8, "Windows at a time.", group=_TEXTS, low=1)


def define_flags(flags: absl_flags.FlagValues) -> None:
    options.define_flags(flags, ScoreConfig)


def main(flags: absl_flags.FlagValues) -> None:
    cli.only_one(flags, "text", "continuation", "input")
    config = ScoreConfig(**options.values_of(flags, ScoreConfig))
    if (config.context is None) == bool(config.continuation):
        raise UserError("--context and --continuation: are given together")
    model, tokenizer = config.load()
    from tfzoo.evaluation import likelihood  # Imports TensorFlow.

    how: dict[str, Any] = dict(length=config.length, stride=config.stride, batch_size=config.batch_size)
    lines: Iterable[tuple[str, dict[str, Any]]] = [("--text", {"text": text}) for text in config.text]
    if config.continuation:
        lines = [("--continuation", {"context": config.context, "continuation": text}) for text in config.continuation]
    if config.input is not None:
        lines = records.read(config.input, "text")
    total, count = 0.0, 0
    batches = records.batches(lines, config.batch_size, "text", "compiling and scoring", config.input, config.output)
    with records.writer(config.output) as write:
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
                if config.tokens:
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
