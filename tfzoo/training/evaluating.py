"""Loads a fine-tuned run and computes its answers to a labelled file."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfzoo import models
from tfzoo.data import by_length
from tfzoo.errors import UserError
from tfzoo.objectives.objective import MAIN
from tfzoo.tasks.task import Task
from tfzoo.training import checkpoint, runs, step, task_inputs
from tfzoo.training.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """A model's answers to a file.

    Attributes:
      config: of the run.
      task, outcome: the task and the result of its `outcome`.
      file: the open file.
      step: the step of the checkpoint; 0 if it is not known.
    """

    config: TrainConfig
    task: Task
    outcome: dict[str, np.ndarray]
    file: Any
    step: int

    def baselines(self) -> dict[str, dict[str, float]]:
        """Returns the scores of the task's baselines, fitted on the run's training file.

        Raises:
          UserError: the training file cannot be read.
        """
        try:
            train = task_inputs.open_training_rows(self.config)
        except UserError as error:
            raise UserError(f"{error} (the baselines are fitted on it; --nobaselines omits them)") from None
        return self.task.file_baselines(train, self.file)


def load(run_dir: pathlib.Path, config: TrainConfig, checkpoint_dir: str | None = None) -> tuple[Any, Task]:
    """Returns the model of a fine-tuned run, and its task.

    Raises:
      UserError: the run is incomplete or damaged.
    """
    record = runs.task_of(run_dir)
    if record is None or record.name != config.task:
        raise UserError(
            f"--model_dir={run_dir}: config.json does not describe the task {config.task}; restore the file"
        )
    model, tokenizer = runs.load(run_dir, checkpoint_dir)
    labels = model.labels if config.learner.has_labels(config.objective_options) else ()
    embed, sentence = runs.embedding_of(run_dir)
    page, folder = models.page_of(model), runs.folder_record(run_dir)
    task = task_inputs.make_task(config, tokenizer, page, labels, record.pair, embed, sentence, folder)
    task.restore(record)
    return model, task


def evaluate(run_dir: pathlib.Path, config: TrainConfig, how: Any, columns: Mapping[str, str]) -> Evaluated:
    """Returns a run's answers to `how.test_file`.

    Args:
      run_dir, config: the run.
      how: the options of tfzoo.evaluate.
      columns: options of the task that differ from those of the training.
    """
    known = vars(config.objective_options)
    for name, value in columns.items():
        if name not in known:
            raise UserError(f"--{name}={value}: does not apply to the task {config.task}; omit it")
    checkpoint_dir = how.checkpoint if how.model_dir == str(run_dir) else None
    model, task = load(run_dir, config, checkpoint_dir)
    config = config.replace(bad_rows=how.bad_rows, **columns)
    file = config.learner.open_file(config.objective_options, how.test_file, "test_file", how.bad_rows)
    if config.learner.is_pair(file) != task.pair:
        wanted = "pairs of texts" if task.pair else "single texts"
        raise UserError(f"--test_file={how.test_file}: the run was fine-tuned on {wanted}; specify the columns")
    if task.labels:
        file.expect(task.labels)
    rows = task_inputs.read_rows(config, task, file, "test_file")
    task.prepare_evaluation(file, whole=True)
    length = config.sequence_length if type(model).fixed_length or not config.length_batches else None
    roles = {MAIN: model} | {
        role: runs.load_model(run_dir, checkpoint_dir, role) for role in task.ROLES if role != MAIN
    }
    measure = step.make_evaluation(tf.distribute.get_strategy(), roles, task.evaluators())
    measure(by_length.evaluation_batches(rows, batch_size=how.batch_size, length=length))
    return Evaluated(config, task, task.last_outcome, file, _step_of(run_dir, checkpoint_dir))


def _step_of(run_dir: pathlib.Path, checkpoint_dir: str | None) -> int:
    """Returns the step of a checkpoint, by default of best/ or the newest."""
    store = checkpoint.Checkpoints(run_dir / "checkpoints", read_only=True)
    return store.read(store.selected(checkpoint_dir))[0]
