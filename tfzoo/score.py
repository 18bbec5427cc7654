"""Scores texts with a model: log-likelihood and perplexity, also of continuations in zero-shot tasks.

python -m tfzoo.score --model_dir=runs/gpt --text="A text."
python -m tfzoo.score --model_dir=runs/gpt --input=texts.txt --output=scores.jsonl --stride=64
python -m tfzoo.score --model_dir=flan-t5-small --context="Is rain wet?" --continuation=yes --continuation=no
python -m tfzoo.score --model_dir=gpt2 --input=pairs.jsonl

--input is a file with one text per line, or a .jsonl file whose records are {"text": ...} or
{"context": ..., "continuation": ...}. Each record is scored in one line of JSON: log_likelihood (natural logarithm),
tokens (the number of tokens scored), perplexity, and for a continuation `greedy`: whether greedy decoding would have
produced it. A decoder scores the first token of a text only if its family puts a special token at the start of texts.

A text longer than --length is read in windows that start --stride tokens apart; each token is scored in the first
window that contains it. Encoder-decoders score only continuations.
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
    """The texts to score, and how to score them."""

    text: tuple[str, ...] = option((), "A text to score. May be repeated.", group=_TEXTS)
    context: str | None = option(None, "The text that precedes --continuation.", group=_TEXTS)
    continuation: tuple[str, ...] = option((), "A continuation of --context to score. May be repeated.", group=_TEXTS)
    input: str | None = option(None, "A file of texts, one per line, or .jsonl.", group=_TEXTS)
    output: str | None = option(None, "The .jsonl file to write.", group=_TEXTS)
    tokens: bool = option(
        False, "Include each token, as it is in the vocabulary, and its log-probability.", group=_TEXTS
    )
    length: int | None = option(None, "Tokens per window; defaults to max_positions.", group=_TEXTS)
    stride: int | None = option(None, "Tokens between window starts; defaults to half of --length.", group=_TEXTS)
    batch_size: int = option(8, "Windows per batch.", group=_TEXTS, low=1)


def define_flags(flags: absl_flags.FlagValues) -> None:
    options.define_flags(flags, ScoreConfig)


def main(flags: absl_flags.FlagValues) -> None:
    cli.only_one(flags, "text", "continuation", "input")
    config = ScoreConfig(**options.values_of(flags, ScoreConfig))
    if (config.context is None) == bool(config.continuation):
        raise UserError("--context and --continuation: must be given together; add the other flag")
    model, tokenizer = config.load()
    from tfzoo.evaluation import likelihood  # Imports TensorFlow.

    window_options: dict[str, Any] = dict(length=config.length, stride=config.stride, batch_size=config.batch_size)
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
                raise UserError(f"{batch[paired.index(False)][0]}: has no continuation, but other records do; add one")
            names = ("context", "continuation") if any(paired) else ("text",)
            columns = [[records.text(where, record, name) for where, record in batch] for name in names]
            score: Any = likelihood.score_continuations if any(paired) else likelihood.score_texts
            with work:
                scored = score(model, *columns, tokenizer, **window_options)
            for i, one in enumerate(scored):
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
    shown = "beyond the range of float64" if perplexity is None else f"{perplexity:,.4f}"
    print(f"{count:,} tokens, log-likelihood {total:,.4f}, perplexity {shown}", file=sys.stderr)


def _perplexity(log_likelihood: float, count: int) -> float | None:
    """Returns exp(-log_likelihood / count), or None, which JSON can represent, if it exceeds the range of float64."""
    try:
        return math.exp(-log_likelihood / count)
    except OverflowError:
        return None


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags))
