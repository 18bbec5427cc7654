"""The files of a run, read for people: flags, config, logged figures, baselines and results of evaluations.

    history = History.read("runs/mine")
    history.given               # (("task", "classify"), ...): the flags that differ from their defaults
    history.results             # Results of the validation and test files, or of the held-out text

Reads no weights and does not import TensorFlow.
"""

import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from absl import flags as absl_flags

from tfzoo import cli, files, hub, json_files, results
from tfzoo.errors import UserError
from tfzoo.json_files import Field
from tfzoo.results import Results, Score
from tfzoo.training import registry, report
from tfzoo.training.config import TrainConfig
from tfzoo.weights import model_card
from tfzoo.weights.model_card import Origin

_CONFIG = {"models": Field(dict, items=Field(dict), required=True)}
# Numbers in a line of metrics.jsonl that are not figures of the model.
_PLACES = ("step", "sequence_length", "batch_size")
_MAX_LOSS = 700.0  # Whose exponential is still a float64.
# Flags that name files, and what the files are used for.
_DATA = {
    "train_file": "training",
    "corpus": "training",
    "validation_file": "validation",
    "test_file": "test",
}
_PATHS = re.compile(r"(_file|_dir|^corpus|^init_from)$")
_CORPUS_LANGUAGE = re.compile(r"docstrings|gettext:([a-z]{2})(?:-([a-z]{2}))?")


@dataclasses.dataclass(frozen=True)
class History:
    """What the files of a run say.

    Attributes:
      run_dir: the run's folder.
      flags: (name, value) of every flag; a repeated flag has several entries.
      given: those that differ from the defaults of this version.
      config: config.json.
      records: the lines of metrics.jsonl.
      results: of the validation file and of the test files; without them, of the best evaluation in metrics.jsonl.
      counts: numbers of the training data in corpus.json, by name.
    """

    run_dir: pathlib.Path
    flags: tuple[tuple[str, str], ...]
    given: tuple[tuple[str, str], ...]
    config: Mapping[str, Any]
    records: tuple[Mapping[str, Any], ...]
    results: tuple[Results, ...]
    counts: Mapping[str, int]

    @classmethod
    def read(cls, run_dir: str | os.PathLike) -> "History":
        """Reads the files; only flags.cfg and config.json are required.

        Raises:
          UserError: one of the two is missing, or a file is damaged; the one-line message names the file.
        """
        folder = pathlib.Path(run_dir).resolve()
        if not (folder / "flags.cfg").exists():
            raise UserError(f"{run_dir}: contains no flags.cfg; specify the folder of a training run")
        arguments = [argument for argument, _ in cli.expand_flagfiles([f"--flagfile={folder / 'flags.cfg'}"])]
        names, defaults = _default_arguments()
        config = json_files.read(folder / "config.json")
        if "models" not in config and "config" in config:  # The format of an earlier version, with a single model.
            config = {"models": {"main": config}}
        json_files.check(config, _CONFIG, folder / "config.json")
        flags = tuple(_split(argument, names) for argument in arguments)
        records = _metrics(folder / "metrics.jsonl")
        found = results.find(folder)
        if not any(each.validation for each in found):
            held_out = _held_out(dict(flags), records, _baselines(folder / "baselines.json"))
            found = [*filter(None, [held_out]), *found]
        return cls(
            run_dir=folder,
            flags=flags,
            given=tuple(flag for flag, argument in zip(flags, arguments, strict=True) if argument not in defaults),
            config=config,
            records=records,
            results=tuple(found),
            counts=_counts(folder / "corpus.json"),
        )

    def flag(self, name: str) -> str:
        """Returns the last value of a flag; "" if it is not in flags.cfg."""
        return dict(self.flags).get(name, "")

    @property
    def task(self) -> str:
        """The task, or the objective of a pre-training run."""
        return self.flag("task") or self.flag("objective")

    @property
    def validation_loss(self) -> str:
        """The name of the held-out loss in `records`; "" if there is none."""
        names = dict.fromkeys(name for record in self.records if "loss" not in record for name in record)
        best_metric = _objective(self.flag("objective")).best_metric[0] if _objective(self.flag("objective")) else ""
        losses = [name for name in ("validation_loss", best_metric) if name.endswith("_loss") and name in names]
        losses += [name for name in names if name.endswith("_loss") and name != "constant_loss"]
        return next(iter(losses), "")

    def origin(self, checkpoint: str | os.PathLike | None = None, role: str | None = None) -> Origin:
        """Returns what a model card states about a model of the run.

        Args:
          checkpoint: the folder of the checkpoint that is used; None for the best or newest one.
          role: which of the run's models; None for the main one.
        """
        roles = list(self.config["models"])
        is_main = role in (None, "main" if "main" in roles else roles[0])
        step = None if checkpoint is None else _step_of(checkpoint)
        flags = dict(self.flags)
        reads_corpus = not flags.get("train_file")
        names = [name for name in _DATA if flags.get(name) and (name != "corpus" or reads_corpus)]
        data = [(_DATA[name], flags[name]) for name in names]
        return Origin(
            run=self.run_dir.name,
            task=self.task,
            data=[(use, ", ".join(pathlib.PurePath(part).name for part in value.split(","))) for use, value in data],
            counts=self.counts,
            steps=max((record["step"] for record in self.records), default=None),
            settings=[(name, value) for name, value in self.given if not _PATHS.search(name)],
            base_model=hub_name(flags.get("init_from", "")),
            languages=_languages(flags.get("corpus", "")) if reads_corpus else (),
            results=[each for each in self.results if is_main and (step is None or each.step in (None, step))],
        )


def origin_of(model_dir: str, checkpoint: str | None = None, role: str | None = None) -> Origin:
    """Returns what a model card states about the model in a run's folder or any other folder.

    Args:
      model_dir: the folder, or hf://OWNER/NAME[@REVISION], whose files have already been downloaded.
      checkpoint, role: see `History.origin`.

    Raises:
      UserError: a file of a run is damaged.
    """
    folder = hub.folder(model_dir)
    if (folder / "flags.cfg").exists():
        return History.read(folder).origin(checkpoint, role)
    return Origin(source=model_dir, base_model=hub_name(model_dir), license=model_card.license_of(folder))


def hub_name(reference: str) -> str:
    """Returns OWNER/NAME of hf://OWNER/NAME[@REVISION]; "" for any other source."""
    return re.sub(r"^hf://?([^@]+).*$", r"\1", reference) if hub.is_reference(reference) else ""


def _step_of(checkpoint: str | os.PathLike) -> int | None:
    name = pathlib.Path(checkpoint).resolve().name
    return int(name) if name.isdecimal() else None


def _languages(corpus: str) -> tuple[str, ...]:
    """Returns the languages of a corpus, if all of its sources state theirs."""
    matches = [_CORPUS_LANGUAGE.fullmatch(source) for source in corpus.split(",")]
    codes: list[str] = []
    for match in matches:
        if match is None:
            return ()
        codes += [code for code in match.groups() if code] or ["en"]  # The documentation of packages is English.
    return tuple(dict.fromkeys(codes))


def _split(argument: str, names: Collection[str]) -> tuple[str, str]:
    """Returns (name, value) of --name=value, --name and --noname; `names` are those of the known flags."""
    name, equals, value = argument.lstrip("-").partition("=")
    if equals:
        return name, value
    return (name[2:], "false") if name.startswith("no") and name not in names else (name, "true")


def _default_arguments() -> tuple[set[str], set[str]]:
    """Returns the names of all flags of tfzoo.train, and their defaults as flags.cfg states them."""
    flags = absl_flags.FlagValues()
    TrainConfig.define_flags(flags)
    return set(flags), {line for name in flags for line in flags[name].serialize().split("\n")}


def _metrics(path: pathlib.Path) -> tuple[dict[str, Any], ...]:
    """Returns the records of metrics.jsonl; a last line without an end, as a killed process leaves it, is ignored.

    Raises:
      UserError: a complete line is not an object with a step.
    """
    records = []
    for number, line in enumerate(files.read_bytes(path).split(b"\n")[:-1] if path.exists() else (), 1):
        try:
            record = json.loads(line)  # json_files rejects NaN, which a training run may log.
        except ValueError:
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise UserError(f"{path}:{number}: is not a JSON object with a step; remove the line")
        records.append(record)
    return tuple(records)


def _baselines(path: pathlib.Path) -> dict[str, dict[str, float]]:
    record = json_files.read(path) if path.exists() else {}
    for name, values in record.items():
        json_files.check({name: values}, {name: Field(dict, items=Field(float))}, path)
        # Perplexities are computed from losses.
        losses = {key: Field(float, high=_MAX_LOSS) for key in values if "_loss" in key}
        json_files.check(values, losses, f"{path}: {name}")
    return record


def _counts(path: pathlib.Path) -> dict[str, int]:
    record = json_files.read(path) if path.exists() else {}
    json_files.check(record, {"report": Field(dict)}, path)
    train = (record.get("report") or {}).get("train")
    names = ("rows", "documents", "sentences", "words", "tokens")
    return {name: train[name] for name in names if type(train.get(name)) is int} if isinstance(train, dict) else {}


def _objective(name: str):
    return registry.find(name) if name in registry.OBJECTIVES else None


def _held_out(
    flags: Mapping[str, str], records: Sequence[Mapping[str, Any]], baselines: Mapping[str, dict[str, float]]
) -> Results | None:
    """Returns the best evaluation in metrics.jsonl, next to the baselines; None if there is no evaluation."""
    evaluated = of_last_stage([record for record in records if "loss" not in record])
    if not evaluated:
        return None
    objective = None if flags.get("task") else _objective(flags.get("objective", ""))
    record, best_metric = evaluated[-1], flags.get("best_metric", "")
    if objective is not None:
        best_metric, direction = objective.best_metric
        sign = 1 if direction == "max" else -1
        record = max(evaluated, key=lambda each: _or_lowest(each.get(best_metric), sign))
    labels = {name: (label.strip(), form) for label, name, form in objective.FIGURES} if objective else {}
    order = [name for figure in labels for name in record if name.partition("/")[0] == figure]
    scores = []
    for name in order or [name for name in record if name not in _PLACES]:
        if not _is_number(record[name]):
            continue
        label, form = labels.get(name.partition("/")[0], ("", ""))
        if label and "/" in name:
            label += f" ({name.partition('/')[2]})"
        found = {each: report.baseline_value(values, name) for each, values in baselines.items()}
        known = {report.BASELINE_LABELS.get(each, each): value for each, value in found.items() if value is not None}
        label = label[:1].upper() + label[1:]
        scores.append(Score(name, record[name], baselines=known, label=label, form=form))
    task = flags.get("task") or flags.get("objective", "")
    # The first figure is the one that loss.png shows; best_metric is a loss, which FIGURES need not contain.
    return Results(task, tuple(scores), best_metric, step=record["step"])


def of_last_stage(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the evaluations that are comparable with the last one: those whose rows have the same size."""
    sizes = ("sequence_length", "batch_size")
    return [each for each in records if all(each.get(size) == records[-1].get(size) for size in sizes)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _or_lowest(value: Any, sign: int) -> float:
    return sign * value if _is_number(value) else -math.inf
