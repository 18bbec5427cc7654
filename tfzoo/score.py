"""Scores texts with a model: log-likelihood and perplexity, also of continuations in zero-shot tasks.

    python -m tfzoo.score --model_dir=runs/gpt --text="A text."
    python -m tfzoo.score --model_dir=runs/gpt --input=texts.txt --output=scores.jsonl --stride=64
    python -m tfzoo.score --model_dir=flan-t5-small --context="Is rain wet?" --continuation=yes --continuation=no
    python -m tfzoo.score --model_dir=gpt2 --input=pairs.jsonl

--model_dir is a run, the folder of a model, or an exported ONNX artifact, which onnxruntime runs.

--input is a file with one text per line, or a .jsonl file whose records are {"text": ...} or
{"context": ..., "continuation": ...}. Each record is scored in one line of JSON: log_likelihood (natural logarithm),
tokens (the number of tokens scored), perplexity, and for a continuation `greedy`: whether greedy decoding would have
produced it. A decoder scores the first token of a text only if its family puts a special token at the start of texts.

A text longer than --length is read in windows that start --stride tokens apart; each token is scored in the first
window that contains it. Encoder-decoders score only continuations.

    python -m tfzoo.score --ngram=5 --corpus='texts/*.txt'
    python -m tfzoo.score --ngram=6 --corpus=plays.txt --raw_text --tokenizer=characters --held_out=0.1

--ngram estimates an n-gram model with modified Kneser-Ney smoothing from the training part of --corpus and scores its
held-out part, or the texts of --text or --input. The corpus is read, split and tokenized as in tfzoo.train, so that the
result can be compared with that of a model trained with the same flags. Every token of a document is scored.
"""

import dataclasses
import math
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from absl import flags as absl_flags

from tfzoo import cli, engines, options, progress, records
from tfzoo.errors import UserError
from tfzoo.json_files import Field
from tfzoo.model_dir import ModelDir
from tfzoo.options import option
from tfzoo.training import inputs
from tfzoo.training.config import CorpusConfig

_MODEL, _TEXTS, _CORPUS = "Model", "Texts", "Corpus of --ngram"
_WINDOWS = ("length", "stride", "batch_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig(ModelDir):
    """The texts to score, and how to score them."""

    model_dir: str = option(
        "",
        "Run folder, Hugging Face folder, hf://NAME[@REVISION] or exported ONNX artifact; this or --ngram is required.",
        group=_MODEL,
    )
    onnx_variant: str | None = option(
        None, "Variant of the ONNX artifact to run, such as int8_weights; by default the float32 graphs.", group=_MODEL
    )
    ngram: int | None = option(
        None,
        "Score with an n-gram model of this order, estimated from the training part of --corpus; without texts, its "
        "held-out part is scored.",
        group=_MODEL,
        low=1,
        high=20,
    )
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


class _Model:
    """Scores with a trained model. Its methods return Likelihoods."""

    def __init__(self, config: ScoreConfig, windows: dict[str, Any]):
        self._model, self.tokenizer = config.load()
        self._windows = windows

    def texts(self, texts: list[str]):
        from tfzoo.evaluation import likelihood  # Imports TensorFlow.

        return likelihood.score_texts(self._model, texts, self.tokenizer, **self._windows)

    def continuations(self, contexts: list[str], continuations: list[str]):
        from tfzoo.evaluation import likelihood

        return likelihood.score_continuations(self._model, contexts, continuations, self.tokenizer, **self._windows)


def _scorer(config: ScoreConfig) -> Any:
    windows: dict[str, Any] = {name: getattr(config, name) for name in _WINDOWS}
    manifest = engines.onnx_manifest(config, config.onnx_variant)
    if manifest is None:
        return _Model(config, windows)
    from tfzoo.onnx_decoding.likelihood import OnnxScorer

    with progress.stage(f"reading {config.model_dir}"):
        return OnnxScorer(config.folder, manifest, config.onnx_variant, **windows)


class _NGrams:
    """Scores with an n-gram model of a corpus. Its methods return Likelihoods."""

    def __init__(self, order: int, config: CorpusConfig):
        with progress.importing_tensorflow():
            from tfzoo.evaluation.ngram import KneserNey
        with progress.stage(f"reading {config.corpus}"):
            corpus, self.tokenizer = inputs.read_corpus(config)
            train, self._held_out = inputs.tokenized_parts(config, corpus, self.tokenizer)
        for name, part in (("training", train), ("held-out", self._held_out)):
            if not len(part.token_ids):
                raise UserError(f"--corpus={config.corpus}: its {name} part contains no words; provide more text")
        with progress.stage("counting n-grams"):
            self._model = KneserNey(
                train.token_ids, train.document_starts, order=order, vocab_size=self.tokenizer.vocab_size
            )

    def texts(self, texts: list[str]):
        from tfzoo.generation.texts import encode

        rows = encode(self.tokenizer, texts)
        for text, ids in zip(texts, rows, strict=True):
            if not ids:
                raise UserError(f"text {text!r} contains no token; write a longer one")
        return [self._likelihood(ids) for ids in rows]

    def held_out(self):
        return self._likelihood(self._held_out.token_ids, self._held_out.document_starts)

    def _likelihood(self, token_ids, document_starts=None):
        from tfzoo.evaluation.windows import Likelihood

        scores = self._model.score(token_ids, document_starts)
        return Likelihood(list(token_ids), scores.log_probabilities.tolist(), list(scores.likeliest == token_ids))


def define_flags(flags: absl_flags.FlagValues) -> None:
    options.define_flags(flags, ScoreConfig)
    for field in options.fields(CorpusConfig):
        options.define_flag(flags, field)
        setattr(flags[field.name], "group", _CORPUS)  # noqa: B010  (absl's class does not declare it)
    flags["corpus"].help = '"docstrings", or a path or glob of .txt, .jsonl, .txt.gz or .jsonl.gz files.'


def main(flags: absl_flags.FlagValues) -> None:
    config = _read_flags(flags)
    scorer: Any
    if config.ngram is None:
        scorer = _scorer(config)
    else:
        scorer = _NGrams(config.ngram, CorpusConfig(**options.values_of(flags, CorpusConfig)))
    total, count = 0.0, 0
    with records.writer(config.output) as write:
        results = _scored(config, scorer)
        if not (config.text or config.continuation or config.input):
            results = iter([({"corpus": flags.corpus}, scorer.held_out())])
        for record, one in results:
            record |= {"log_likelihood": one.log_likelihood, "tokens": len(one.scores)}
            record["perplexity"] = _perplexity(one.log_likelihood, len(one.scores))
            if "continuation" in record:
                record["greedy"] = all(one.likeliest)
            if config.tokens:
                vocab = scorer.tokenizer.vocab
                record["scores"] = [[vocab[t], s] for t, s in zip(one.token_ids, one.scores, strict=True)]
            write(record)
            total, count = total + one.log_likelihood, count + len(one.scores)
    perplexity = _perplexity(total, count)
    shown = "beyond the range of float64" if perplexity is None else f"{perplexity:,.4f}"
    print(
        f"{count:,} tokens, log-likelihood {total:,.4f}, {-total / count:.4f} nats per token, perplexity {shown}",
        file=sys.stderr,
    )


def _read_flags(flags: absl_flags.FlagValues) -> ScoreConfig:
    """Returns the config after checking that the flags are compatible."""
    config = ScoreConfig(**options.values_of(flags, ScoreConfig))
    cli.only_one(flags, "model_dir", "ngram")
    if config.ngram is None:
        chosen, unused = "model_dir", {field.name for field in options.fields(CorpusConfig)}
    else:
        chosen, unused = "ngram", {"checkpoint", "weights", "onnx_variant", "context", "continuation", *_WINDOWS}
    for name in cli.explicit_flags(flags):
        if name in unused:
            raise UserError(f"--{name}: does not apply to --{chosen}; omit it")
    if config.ngram is None or config.text or config.input:
        cli.only_one(flags, "text", "continuation", "input")
    if (config.context is None) == bool(config.continuation):
        raise UserError("--context and --continuation: must be given together; add the other flag")
    return config


def _scored(config: ScoreConfig, scorer) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yields the texts of each record and their Likelihood."""
    lines: Iterable[tuple[str, dict[str, Any]]] = [("--text", {"text": text}) for text in config.text]
    if config.continuation:
        lines = [("--continuation", {"context": config.context, "continuation": text}) for text in config.continuation]
    if config.input is not None:
        lines = read_input(config.input)
    batches = records.batches(lines, config.batch_size, "text", "compiling and scoring", config.input, config.output)
    for batch, work in batches:
        paired = ["continuation" in record for _, record in batch]
        if any(paired) and not all(paired):
            raise UserError(f"{batch[paired.index(False)][0]}: has no continuation, but other records do; add one")
        if any(paired) and config.ngram is not None:
            raise UserError(f'{batch[0][0]}: has a continuation, which --ngram does not score; write {{"text": ...}}')
        names = ("context", "continuation") if any(paired) else ("text",)
        columns = [[records.text(where, record, name) for where, record in batch] for name in names]
        score = scorer.continuations if any(paired) else scorer.texts
        with work:
            scored = score(*columns)
        yield from ((dict(zip(names, texts, strict=True)), one) for *texts, one in zip(*columns, scored, strict=True))


def read_input(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (FILE:LINE, {"text": ...} or {"context": ..., "continuation": ...}) of each line of --input.

    Raises:
      UserError: as from `records.read`.
    """
    return records.read(path, "text", fields=dict.fromkeys(("text", "context", "continuation"), Field(str)))


def _perplexity(log_likelihood: float, count: int) -> float | None:
    """Returns exp(-log_likelihood / count), or None, which JSON can represent, if it exceeds the range of float64."""
    try:
        return math.exp(-log_likelihood / count)
    except OverflowError:
        return None


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags))
