"""The inputs of a fine-tuning run: labelled files, tokenizer and task, with the interface of inputs.Inputs."""

import dataclasses
import hashlib
import json
import pathlib
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging

from tfzoo import config as config_lib
from tfzoo import hub, lazy
from tfzoo.data import encoded, tokenized
from tfzoo.errors import UserError
from tfzoo.tasks.task import Task
from tfzoo.training import inputs as inputs_lib
from tfzoo.training.config import TrainConfig
from tfzoo.training.stages import Stage

by_length = lazy.module("tfzoo.data.by_length")
runs = lazy.module("tfzoo.training.runs")

HELD_OUT = 10  # Without a validation file, one row in so many is held out.


@dataclasses.dataclass(frozen=True)
class TaskRows:
    """The rows of a file as tfzoo.data.by_length reads them."""

    task: Task
    rows: Any  # EncodedRows, or what the task makes of them for training.
    lengths: np.ndarray
    sides: np.ndarray | None = None

    @classmethod
    def of(cls, task: Task, rows: Any) -> "TaskRows":
        return cls(task, rows, task.lengths(rows), task.sides(rows))

    @property
    def SIGNATURE(self):
        return self.task.signature(self.rows)

    def batch(self, indices: np.ndarray, length: Any) -> dict[str, np.ndarray]:
        return self.task.batch(self.rows, indices, length)

    def __len__(self) -> int:
        return len(self.rows)


@dataclasses.dataclass(frozen=True)
class Files:
    """The labelled files of a run. Without a validation file, both parts are read from the training file."""

    train: Any
    held_out: Any

    @classmethod
    def open(cls, config: TrainConfig) -> "Files":
        """Raises UserError if a file cannot be read."""
        train, task = _open(config, "train_file"), config.learner
        if config.validation_file is None:
            return cls(_Part(train, task, held_out=False), _Part(train, task, held_out=True))
        return cls(train, _open(config, "validation_file"))


def open_training_rows(config: TrainConfig) -> Any:
    """Returns the open training file of a run, without the rows that are held out; does not read the validation file.

    Raises:
      UserError: the file cannot be read.
    """
    train = _open(config, "train_file")
    return train if config.validation_file is not None else _Part(train, config.learner, held_out=False)


def _open(config: TrainConfig, flag: str) -> Any:
    path = getattr(config, flag)
    if path is None:
        raise UserError(f"--task={config.task}: requires --{flag}, the labelled file to fine-tune on")
    return config.learner.open_file(config.objective_options, path, flag, config.bad_rows)


class _Part:
    """The training rows of a file without a validation file, or the rows held out from it: one in HELD_OUT, chosen by
    the hash of its texts (Task.unit_of), so that the copies of a row are in the same part, and adding rows moves no
    other one."""

    def __init__(self, file, task: type[Task], held_out: bool):
        self._file, self._task, self._held_out = file, task, held_out

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def rows(self) -> Iterator[Any]:
        for row in self._file.rows():
            digest = hashlib.sha256("\0".join(self._task.unit_of(row)).encode(errors="surrogatepass")).digest()
            if (int.from_bytes(digest[:4]) % HELD_OUT == 0) == self._held_out:
                yield row

    def fingerprint(self) -> str:
        return f"{self._file.fingerprint()} {'held out' if self._held_out else 'training'}"


@dataclasses.dataclass(frozen=True)
class Record:
    """What corpus.json says about the files."""

    fingerprint: str
    report: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class TaskInputs:
    """Training and validation rows, and everything they are made from."""

    stage: Stage
    corpus: Record
    tokenizer: Any
    objective: Task
    page: types.ModuleType
    model_name: str
    model_config: config_lib.TransformerConfig
    files: Files
    train_rows: TaskRows
    held_out_rows: TaskRows

    @property
    def config(self) -> TrainConfig:
        return self.stage.config

    @property
    def _length(self) -> int | None:
        """The number of positions in every batch, or None if it is that of the longest row."""
        return None if self.config.length_batches and not self.page.Model.fixed_length else self.config.sequence_length

    def training_batches(self, context, *, first_step: int, passed_over: int, places) -> Any:
        """See inputs.Inputs.training_batches."""
        return by_length.training_batches(
            self.train_rows,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            first_step=first_step + passed_over,
            num_steps=self.config.steps + passed_over,
            length=self._length,
            places=places,
            context=context,
        )

    def evaluation_batches(self, num_replicas: int, context=None) -> Any:
        """See inputs.Inputs.evaluation_batches."""
        config, share = self.config, self.config.accumulation * num_replicas
        batch_size = -(-min(config.batch_size, len(self.held_out_rows)) // share) * num_replicas
        return by_length.evaluation_batches(
            self.held_out_rows,
            batch_size=batch_size,
            num_batches=config.evaluate_batches * config.accumulation,
            length=self._length,
            **({} if context is None else {"context": context}),
        )

    def evaluated_sources(self, num_replicas: int) -> dict[str, int]:
        return {}

    def baselines(self, batches, num_replicas: int) -> dict[str, dict[str, float]]:
        """Returns the task's baselines on the validation rows."""
        return self.objective.file_baselines(self.files.train, self.files.held_out)

    def epochs(self, num_batches: int) -> dict[str, float]:
        return {}

    def epoch(self, num_batches: int) -> float:
        """Returns how often the training rows have been read after `num_batches` batches."""
        return num_batches * self.config.batch_size / len(self.train_rows)

    def summary(self) -> str:
        config, task = self.config, self.objective
        counts = f"{len(self.train_rows):,} training rows, {len(self.held_out_rows):,} validation rows"
        lines = [
            f"{counts}; {self.epoch(config.steps):.1f} epochs, {config.steps:,} steps",
            self.files.train.describe(),
        ]
        if config.validation_file is not None:
            lines += [self.files.held_out.describe()]
        if task.labels:
            shown = ", ".join(task.labels[:10]) + (", ..." if len(task.labels) > 10 else "")
            lines.append(f"{len(task.labels)} labels: {shown}")
        lines += task.notes()
        for name, rows in (("training", self.train_rows), ("validation", self.held_out_rows)):
            if line := task.truncation(rows.rows, name):
                lines.append(line)
        return "\n  ".join(lines)


def open_inputs(config: TrainConfig, resuming: bool, num_replicas: int) -> list[TaskInputs]:
    """Reads the labelled files and the tokenizer of a fine-tuning run; returns the inputs of its only stage.

    Raises:
      UserError: something cannot be read, or does not fit the model or the task.
    """
    if config.learner.TUNES_A_MODEL and config.init_from is None:
        raise UserError(f"--task={config.task}: tunes an existing model; specify it with --init_from")
    run_dir = pathlib.Path(config.run_dir)
    name, page, model_config = inputs_lib.read_model_config(config, run_dir if resuming else None)
    files = Files.open(config)
    fingerprint = hashlib.sha256(f"{files.train.fingerprint()} {files.held_out.fingerprint()}".encode()).hexdigest()
    labels = config.learner.labels_of(config.objective_options, files.train)
    if labels:
        files.held_out.expect(labels)
    if resuming:
        _check_record(config, run_dir, fingerprint)
    elif config.validation_file is not None:
        for warning in config.learner.repeated_texts(files.train, files.held_out):
            logging.warning("%s; scores on such rows are too good", warning)
    tokenizer = _tokenizer(config, files.train, page, run_dir if resuming else None)
    # As in runs.load: the family determines the special tokens around texts.
    tokenizer.frames, tokenizer.adds_bos = None, False
    model_config = inputs_lib.with_overrides(config, model_config, vocab_size=tokenizer.vocab_size)
    inputs_lib.check_sizes(config, model_config, tokenizer, num_replicas)
    source = run_dir if resuming else config.init_from and hub.folder(config.init_from, "init_from")
    embed, sentence = runs.embedding_of(source) if source else (None, None)
    record = runs.folder_record(source) if source else None
    task = make_task(config, tokenizer, page, labels, config.learner.is_pair(files.train), embed, sentence, record)
    task.check_model(name, page)
    rows = {part: read_rows(config, task, getattr(files, part), flag) for part, flag in _FLAGS.items()}
    task.prepare_training(rows["train"].rows)
    task.prepare_evaluation(files.held_out)
    rows["train"] = TaskRows.of(task, task.training_rows(rows["train"].rows))
    config = config.for_rows(len(rows["train"]))
    report = {part: {"file": getattr(files, part).describe()} | dict(getattr(files, part).counts) for part in _FLAGS}
    return [
        TaskInputs(
            Stage(0, 0, config.steps, config.steps, config),
            Record(fingerprint, report),
            tokenizer,
            task,
            page,
            name,
            model_config,
            files,
            rows["train"],
            rows["held_out"],
        )
    ]


_FLAGS = {"train": "train_file", "held_out": "validation_file"}


def make_task(
    config: TrainConfig, tokenizer, page: types.ModuleType, labels, pair: bool, embed=None, sentence=None, record=None
) -> Task:
    """Creates the task that a config names; the other arguments are those of Task."""
    options = vars(config.objective_options)
    arguments: dict[str, Any] = dict(page=page, labels=labels, pair=pair, embed=embed, sentence=sentence, record=record)
    task = config.learner(tokenizer, config.sequence_length, **arguments, **options)
    task.batch_size = config.batch_size
    return task


def read_rows(config: TrainConfig, task: Task, file, flag: str) -> TaskRows:
    """Returns the encoded rows of an open file, from the cache if possible.

    Raises:
      UserError: a row is unsuitable, or there is none.
    """
    key = [file.fingerprint(), task.name, task.labels, task.pair, config.bad_rows, task.encoding_key()]
    key += [task.page.__name__, config.sequence_length, repr(config.objective_options)]
    rows = encoded.cached(
        json.dumps([*key, task.tokenizer_fingerprint]),
        config.cache_folder,
        lambda: task.chunks(file),
    )
    if not len(rows):
        raise UserError(f"--{flag}={file.path}: contains no usable row; provide labelled rows")
    return TaskRows.of(task, rows)


def _tokenizer(config: TrainConfig, train, page: types.ModuleType, resumed: pathlib.Path | None):
    """Returns the run's tokenizer: that of a resumed run, an existing one, or one trained on the training texts; the
    task adapts the latter two."""
    if resumed:
        return runs.tokenizer_of(resumed)
    task = config.learner
    special_tokens = [token for given in config.special_tokens for token in given.split(",")]
    tokenizer, _ = inputs_lib.existing_tokenizer(config)
    if tokenizer is None:
        tokenizer = _trained_tokenizer(config, train, special_tokens)
    return task.adapted(config.objective_options, tokenizer, special_tokens, page)


def _trained_tokenizer(config: TrainConfig, train, special_tokens: list[str]):
    """Returns a tokenizer trained on the texts of the training file, from the cache if possible."""
    task = config.learner
    texts = (text for row in train.rows() for text in task.texts_of(row))
    return tokenized.cached_tokenizer_of(
        train.fingerprint(), texts, config.tokenizer, config.vocab_size, config.lowercase, config.cache_folder,
        special_tokens,
    )  # fmt: skip


def _check_record(config: TrainConfig, run_dir: pathlib.Path, fingerprint: str) -> None:
    before = inputs_lib.fingerprint_of(run_dir / "corpus.json")
    if before != fingerprint:
        raise UserError(
            f"--train_file={config.train_file}: the labelled files differ from those that this run started with "
            f"(fingerprint {before[:12]}, now {fingerprint[:12]}); restore the files, or specify a new --run_dir"
        )
