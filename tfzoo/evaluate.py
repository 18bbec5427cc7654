"""Evaluates a fine-tuned model on a labelled file.

    python -m tfzoo.evaluate --model_dir=runs/mine --test_file=test.csv
    python -m tfzoo.evaluate --model_dir=runs/mine --test_file=test.csv --against=runs/other

prints the scores with 95% bootstrap intervals next to those of cheap baselines, the scores of each class and the worst
mistakes, and writes evaluation-NAME.json and report.html into the run's folder, where NAME is that of the file. With
--against, both models answer the same rows, and the difference is tested.
"""

import dataclasses
import json
import pathlib
import re
import sys
from typing import Any

from absl import flags as absl_flags

from tfzoo import cli, files, lazy, options, progress, results
from tfzoo.errors import UserError
from tfzoo.options import Checked, option
from tfzoo.tasks import evaluation
from tfzoo.training import page, report
from tfzoo.training.config import TrainConfig

evaluating = lazy.module("tfzoo.training.evaluating")
_MODEL, _FILE, _OUTPUT = "Model", "File", "Output"
_FRACTION = re.compile(r"(accuracy|precision|recall|f1)$")  # Figures that are shown in percent.


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Checked):
    """The model, the file, and what is shown."""

    model_dir: str = option(dataclasses.MISSING, "Folder of a fine-tuned run.", group=_MODEL)
    checkpoint: str | None = option(
        None, "Folder of one of the run's checkpoints; by default best/, or the newest without one.", group=_MODEL
    )
    against: str | None = option(
        None, "Folder of another run of the same task, which is compared with the model on the same rows.", group=_MODEL
    )
    test_file: str = option(dataclasses.MISSING, "Labelled file, with the columns of the training file.", group=_FILE)
    bad_rows: str = option(
        "strict",
        "Handling of unsuitable rows: strict stops with an error, skip omits and counts them.",
        group=_FILE,
        choices=("strict", "skip"),
    )
    text_column: str | None = option(None, "Column with the text, if it differs from the training file's.", group=_FILE)
    pair_column: str | None = option(None, "Column with the second text of a pair.", group=_FILE)
    label_column: str | None = option(None, "Column with the label.", group=_FILE)
    delimiter: str | None = option(None, "Character between the columns.", group=_FILE)
    batch_size: int = option(64, "Rows per batch.", group=_FILE, low=1)
    baselines: bool = option(
        True, "Fit the baselines on the training file of the run, and score them too.", group=_OUTPUT
    )
    mistakes: int = option(5, "Number of mistakes to print.", group=_OUTPUT, low=0, high=evaluation.MISTAKES)


def define_flags(flags: absl_flags.FlagValues) -> None:
    options.define_flags(flags, EvaluateConfig)


def main(flags: absl_flags.FlagValues) -> None:
    config = EvaluateConfig(**options.values_of(flags, EvaluateConfig))
    run_dir = pathlib.Path(config.model_dir)
    tuned = _config_of(config.model_dir, "model_dir")
    other = None if config.against is None else _config_of(config.against, "against")
    if other is not None and other.task != tuned.task:
        raise UserError(f"--against={config.against}: its task is {other.task}, not {tuned.task}; specify another run")
    columns = {name: getattr(config, name) for name in ("text_column", "pair_column", "label_column", "delimiter")}
    columns = {name: value for name, value in columns.items() if value is not None}
    with progress.importing_tensorflow():
        evaluating.load  # noqa: B018  (imports it)
    with progress.stage(f"evaluating {config.model_dir}"):
        mine = evaluating.evaluate(run_dir, tuned, config, columns)
    figures = mine.task.FIGURES
    baselines: dict[str, Any] = {}
    if config.baselines:
        with progress.stage("fitting the baselines"):
            baselines = mine.baselines()
    name = tuned.best_metric or mine.task.best_metric[0]
    record = evaluation.assemble(mine.task, mine.outcome, mine.file, mine.step, baselines, name)
    if other is not None and config.against is not None:
        with progress.stage(f"evaluating {config.against}"):
            theirs = evaluating.evaluate(pathlib.Path(config.against), other, config, columns)
        record["against"] = evaluation.compare(mine.task, mine.outcome, theirs.task, theirs.outcome, config.against)
    path = run_dir / f"evaluation-{pathlib.Path(config.test_file.removesuffix('.gz')).stem}.json"
    files.atomic_write(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    page.write(run_dir)
    cli.show(mine.file.describe())
    cli.show("\n".join(text_of(record, figures, config.mistakes)))
    cli.show(f"wrote {path} and {run_dir / page.NAME}", file=sys.stderr)


def _config_of(folder: str, flag: str) -> TrainConfig:
    """Returns the config of a fine-tuned run."""
    path = pathlib.Path(folder, "flags.cfg")
    if not path.exists():
        raise UserError(
            f"--{flag}={folder}: contains no run (no flags.cfg); specify the --run_dir of a fine-tuning run"
        )
    config = TrainConfig.read(path, folder)
    if config.task is None:
        raise UserError(f"--{flag}={folder}: is a pre-training run, without labels; specify a fine-tuned run")
    return config


def text_of(record: dict[str, Any], figures, mistakes: int) -> list[str]:
    """Returns the lines that describe an evaluation.

    Args:
      record: see tfzoo.tasks.evaluation.
      figures: the FIGURES of the task.
      mistakes: the number of mistakes to show.
    """
    forms = {name: (label, form) for label, name, form in figures}
    baselines = record["baselines"]
    names = [report.BASELINE_LABELS.get(name, name) for name in baselines]
    widths = [max(12, len(name) + 2) for name in names]
    lines = [f"{record['rows']:,} rows, checkpoint of step {record['step']:,}", ""]
    lines.append(f"{'':<24}{'model':>10}{'95% interval':>22}" + "".join(f"{n:>{w}}" for n, w in zip(names, widths)))
    for name, score in record["scores"].items():
        label, form = _form(name, forms)
        interval = f"{form.format(score['low'])} - {form.format(score['high'])}" if "low" in score else ""
        cells = [report.baseline_cell(each, name, form) for each in baselines.values()]
        lines.append(
            f"{label:<24}{form.format(score['value']):>10}{interval:>22}"
            + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths))
        )
    if baselines and not record["beaten"]:
        lines += ["", f"The model does not beat the best baseline in {forms[record['best_metric']][0]}."]
    if "signature" in record:
        lines += ["", f"sacreBLEU's signature: {record['signature']}"]
    if "oracle" in record:
        found = ", ".join("{} {}".format(*_labelled(name, value, forms)) for name, value in record["oracle"].items())
        lines += ["", f"The greedy oracle, which knows the right summaries: {found}"]
    if "against" in record:
        lines += ["", *_comparison(record["against"], forms)]
    if record["classes"]:
        lines += ["", f"{'class':<24}{'precision':>10}{'recall':>10}{'F1':>10}{'rows':>10}"]
        for each in record["classes"]:
            numbers = "".join(f"{each[name]:>10.2%}" for name in ("precision", "recall", "f1"))
            lines.append(f"{each['label'][:23]:<24}{numbers}{each['support']:>10,}")
    for each in record["mistakes"][:mistakes]:
        text = " | ".join(each[name] for name in ("text", "text_pair") if name in each)
        lines += ["", f"{each['where']}: {each['gold']}, but predicted {each['predicted']} ({each['score']:.3f})"]
        lines.append(f"  {text[:200]}")
    return lines


def _form(name: str, forms) -> tuple[str, str]:
    """Returns the label and the format of a figure, or of a figure of a source, FIGURE/NAME."""
    figure, at, source = name.partition("/")
    other = results.in_sentence(results.label_of(figure)), "{:.2%}" if _FRACTION.search(figure) else "{:.4f}"
    label, form = forms.get(figure, other)
    return (f"{label} ({source})" if at else label), form


def _labelled(name: str, value: float, forms) -> tuple[str, str]:
    """Returns the label of a figure, and a value of it as text."""
    label, form = _form(name, forms)
    return label, form.format(value)


def _comparison(against: dict[str, Any], forms) -> list[str]:
    """Returns the lines that compare the model with another."""
    lines = [f"{'against ' + against['run']:<44}{'difference':>12}{'95% interval':>24}{'p':>8}"]
    for name, entry in against["differences"].items():
        label, form = _form(name, forms)
        form = form.replace("{:", "{:+")
        interval = f"{form.format(entry['low'])} to {form.format(entry['high'])}"
        lines.append(f"{label:<44}{form.format(entry['value']):>12}{interval:>24}{entry['p']:>8.3f}")
    return lines


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags))
