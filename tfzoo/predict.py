"""Answers every row of a file: labels, entities, spans, words for masks, or embeddings, with probabilities.

    python -m tfzoo.predict --model_dir=runs/mine --input=lines.jsonl --output=answers.jsonl
    python -m tfzoo.predict --model_dir=exports/onnx/bert/1 --input=rows.csv --text_column=body --output=answers.jsonl
    python -m tfzoo.predict --model_dir=runs/tag,runs/relation --input=lines.txt --output=triples.jsonl
    echo "What a day" | python -m tfzoo.predict --model_dir=runs/mine --input=-

--model_dir is a run, a Hugging Face or sentence-transformers folder, or an exported SavedModel or ONNX artifact; all of
them give the same answers. Two of them, separated by a comma, find entities and the relations between them. --input is
a .txt file with one text per line, a .jsonl file, or a .csv or .tsv file with a header. Its fields are text and
text_pair, or question and context for a model that finds answers in a context.

The output has one line of JSON per row, in the order of the input: the fields of the row and the answer, such as
{"text": "What a day", "label": "positive", "score": 0.98, "scores": {"negative": 0.02, "positive": 0.98}}. A field that
is named like one of the answer's, such as a label, becomes input_label.

Lines are appended to OUTPUT.partial, which is renamed to OUTPUT when it is complete. If the program is killed, the same
command continues after the last whole line.
"""

import contextlib
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from absl import flags as absl_flags

from tfzoo import cli, options, progress
from tfzoo.errors import UserError
from tfzoo.model_dir import ModelDir
from tfzoo.options import option
from tfzoo.prediction import answers, folders, triples
from tfzoo.prediction.output import Output, encoded
from tfzoo.prediction.predictor import PAIR, Predictor
from tfzoo.prediction.rows import FORMATS, Row, Source
from tfzoo.prediction.stream import LONG_TEXTS, TRUNCATE, check_average
from tfzoo.prediction.triples import MAX_PAIRS, PairOptions, Triples

_INPUT, _OUTPUT, _MODEL, _PAIRS = "Input", "Output", "Model", "Entities and relations"
# The flags that determine the answers.
_DETERMINING = (
    "text_column pair_column input_format batch_size block_rows long_texts sequence_length pooling prompt_name weights "
    "keep_texts"
).split()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig(ModelDir):
    """The rows to answer, and how."""

    model_dir: str = option(
        dataclasses.MISSING,
        "Run folder, Hugging Face folder, sentence-transformers folder, hf://NAME[@REVISION], or exported SavedModel "
        "or ONNX artifact: OUTPUT_DIR/FORMAT/NAME/VERSION. A model of --task=tag and one of --task=relation, separated "
        "by a comma, find entities and the relations between them.",
        group=_MODEL,
    )
    sequence_length: int | None = option(
        None,
        "Maximum number of tokens of a text; defaults to that of the fine-tuning, or else to the maximum length of the "
        "model, at most 1024. An artifact has its own.",
        group=_MODEL,
        low=1,
    )
    pooling: str | None = option(
        None,
        "How a model without heads pools its token states into one vector per text; defaults to mean.",
        group=_MODEL,
        choices=("mean", "first", "last", "pooled"),
    )
    prompt_name: str | None = option(
        None,
        "The prompt of a sentence-transformers model to put before each text; defaults to the model's default prompt.",
        group=_MODEL,
    )
    num_devices: int = option(
        1,
        "Number of devices that share the rows; 0 uses all GPUs. On a machine without GPUs, this many virtual devices "
        "share the CPU.",
        group=_MODEL,
        low=0,
    )
    input: str = option(dataclasses.MISSING, "A .txt, .jsonl, .csv or .tsv file; - is stdin.", group=_INPUT)
    input_format: str | None = option(
        None, "Format of --input, if not that of its suffix; of stdin by default txt.", group=_INPUT, choices=FORMATS
    )
    text_column: str | None = option(
        None,
        "Field of the text; by default text, or question for a model that finds answers in a context.",
        group=_INPUT,
    )
    pair_column: str | None = option(None, "Field of the second text; by default text_pair, or context.", group=_INPUT)
    bad_rows: str = option(
        "strict",
        'What to do about rows without a text: strict ends with an error; skip answers {"error": ...}.',
        group=_INPUT,
        choices=("strict", "skip"),
    )
    long_texts: str = option(
        TRUNCATE,
        "What a classifier does with a text that is longer than it reads: truncate, or average the answers of "
        "overlapping windows. A model that finds entities always reads windows.",
        group=_INPUT,
        choices=LONG_TEXTS,
    )
    max_pairs: int = option(
        MAX_PAIRS,
        "With two models: how many pairs of entities of a text the relation model reads, those closest to each other.",
        group=_PAIRS,
        low=1,
    )
    ordered_pairs: bool | None = option(
        None,
        "With two models: whether each pair of entities is read in both orders; by default only if the labels have no "
        "directions, such as Part(e1,e2).",
        group=_PAIRS,
    )
    keep_no_relation: bool = option(
        False,
        "With two models: also write the pairs without a relation, whose label is Other, no_relation, NA or None.",
        group=_PAIRS,
    )
    output: str | None = option(None, "The .jsonl file to write; by default stdout.", group=_OUTPUT)
    resume: bool = option(
        True, "Continue the answers of a killed program; --noresume starts from the first row.", group=_OUTPUT
    )
    keep_texts: bool = option(True, "Repeat the texts in the output.", group=_OUTPUT)
    batch_size: int = option(32, "Rows per batch.", group=_OUTPUT, low=1)
    block_rows: int = option(
        2048,
        "Number of rows that are answered together: among them, batches of similar length are formed.",
        group=_OUTPUT,
        low=1,
    )


def define_flags(flags: absl_flags.FlagValues) -> None:
    options.define_flags(flags, PredictConfig)


def main(flags: absl_flags.FlagValues) -> int | None:
    config = PredictConfig(**options.values_of(flags, PredictConfig))
    source = Source(config.input, config.input_format)
    _check_output(config, source)
    predictor = _open(config)
    columns, optional = _columns(config, predictor)
    check_average(predictor.task, columns, config.long_texts)
    answering = _Answering(config, source, predictor, columns, optional)
    if config.output is None:
        answering.to_stdout()
        return None
    return answering.to_file()


def _open(config: PredictConfig) -> Predictor | Triples:
    names = ("checkpoint", "weights", "num_devices", "sequence_length", "pooling", "prompt_name")
    options: dict[str, Any] = {name: getattr(config, name) for name in names}
    if "," not in config.model_dir or os.path.exists(config.model_dir):
        return folders.open_folder(config.model_dir, **options)
    pairs = PairOptions(config.max_pairs, config.ordered_pairs, config.keep_no_relation)
    return triples.open_folders(config.model_dir.split(","), pairs, **options)


def _check_output(config: PredictConfig, source: Source) -> None:
    if config.output is None:
        return
    if not source.is_stdin and os.path.exists(config.output) and os.path.samefile(config.input, config.output):
        raise UserError(f"--output={config.output}: is the input; specify another file")
    if not os.path.isdir(os.path.dirname(os.path.abspath(config.output))):
        raise UserError(f"--output={config.output}: its folder does not exist; create it")


def _columns(config: PredictConfig, predictor: Predictor | Triples) -> tuple[list[str], str | None]:
    """Returns the fields of a row's texts, and the field of a further text that rows may have."""
    columns = list(predictor.inputs)
    columns[0] = config.text_column or columns[0]
    if len(columns) > 1:
        columns[1] = config.pair_column or columns[1]
    elif config.pair_column is not None:
        if not predictor.may_pair:
            raise UserError(f"--pair_column={config.pair_column}: the model reads single texts; omit it")
        columns.append(config.pair_column)
    return columns, PAIR if predictor.may_pair and len(columns) == 1 else None


class _Answering:
    """Answers the rows of a source."""

    def __init__(
        self,
        config: PredictConfig,
        source: Source,
        predictor: Predictor | Triples,
        columns: list[str],
        optional: str | None,
    ):
        self._config, self._source, self._predictor = config, source, predictor
        self._columns, self._optional = columns, optional

    def to_stdout(self) -> None:
        """Prints every block of answers when it is complete."""
        truncated = 0
        for records in self._blocks(0):
            truncated += sum(record.get("truncated") is True for record in records)
            sys.stdout.write(b"".join(map(encoded, records)).decode())
            sys.stdout.flush()
        if truncated:
            print(self._truncated(truncated), file=sys.stderr)

    def to_file(self) -> int:
        """Appends the answers to the output and returns the exit code."""
        config, assert_output = self._config, self._config.output
        assert assert_output is not None
        with progress.stage(f"checking {self._source.name}"):
            made_from: dict[str, Any] = {"model": self._predictor.fingerprint()}
            made_from |= {name: getattr(config, name) for name in _DETERMINING}
            total = None
            if not self._source.is_stdin:
                skip, lists = config.bad_rows == "skip", self._predictor.reads_lists
                scan = self._source.scan(self._columns, self._optional, skip=skip, lists=lists)
                made_from, total = {"input": scan.sha256, **made_from}, scan.rows
        began = time.monotonic()
        # Answers to stdin cannot be continued: whether it has the same rows again is unknown.
        resume = config.resume and not self._source.is_stdin
        with Output(assert_output, made_from, resume) as output:
            before = output.rows
            if before:
                print(f"continuing after {before:,} rows of {output.partial}", file=sys.stderr)
            try:
                with _terminated_as_interrupted(), progress.bar(total or 0, "row") as bar:
                    bar.update(before)
                    for records in self._blocks(before):
                        output.write(records)
                        bar.update(len(records))
                    output.finish()
            except KeyboardInterrupt:
                print(
                    f"stopped; the first {output.rows:,} rows are in {output.partial}, and the same command continues",
                    file=sys.stderr,
                )
                return cli.STOPPED
        seconds = time.monotonic() - began
        print(
            f"wrote {output.path}: {output.rows:,} rows, {(output.rows - before) / max(seconds, 1e-9):,.0f} per second"
            + (f", {output.bad:,} of them errors" if output.bad else "")
            + (f"; {self._truncated(output.truncated)}" if output.truncated else ""),
            file=sys.stderr,
        )
        return cli.DONE

    def _truncated(self, count: int) -> str:
        remedy = "; --long_texts=average reads them whole" if self._predictor.task == "classify" else ""
        return f"{count:,} texts were truncated to {self._predictor.length} tokens{remedy}"

    def _blocks(self, done: int) -> Iterator[list[dict[str, Any]]]:
        """Yields the records of one block after another, without the first `done` rows.

        A block of which some rows are done is computed again, because its batches determine the last digits.
        """
        rows = self._source.rows(self._columns, self._optional, self._predictor.reads_lists)
        skipped = done // self._config.block_rows * self._config.block_rows
        for _ in range(skipped):
            next(rows, None)
        with triples.open_stream(
            self._predictor, self._config.batch_size, self._config.block_rows, self._config.long_texts
        ) as stream:
            left = done - skipped
            for block in stream.blocks(self._checked(rows)):
                yield [self._record(row, answer) for row, answer in block[left:]]
                left = max(0, left - len(block))

    def _checked(self, rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            if not row.error and self._predictor.reads_lists and (problem := self._predictor.problem(row.texts)):
                row = dataclasses.replace(row, texts=(), error=problem)
            if row.error and self._config.bad_rows == "strict":
                raise row.refusal()
            yield row

    def _record(self, row: Row, answer: dict[str, Any]) -> dict[str, Any]:
        """Returns a line of the output: the fields of the row, and its answer."""
        if "error" in answer and not row.error:  # The model refuses the text.
            if self._config.bad_rows == "strict":
                remedy = "shorten it" if "truncated" in answer else "correct it"
                raise UserError(f"{row.where}: {answer['error']}; {remedy}, or add --bad_rows=skip")
            answer = {"error": f"{row.where}: {answer['error']}"}
        kept = dict(row.fields)
        if not self._config.keep_texts:
            for name in (*self._columns, *([self._optional] if self._optional else [])):
                kept.pop(name, None)
        return {f"input_{name}" if name in answers.FIELDS else name: value for name, value in kept.items()} | answer


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Makes SIGTERM raise KeyboardInterrupt, as SIGINT does."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags))
