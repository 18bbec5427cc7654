"""Stages of a run: at given steps, the sequence length, the batch size or the mixture of the sources changes.

    --steps=10000 --sequence_length=128 --batch_size=32 --stages=9000:sequence_length=512,batch_size=8

makes 9,000 updates with rows of 128 tokens and 1,000 with rows of 512, as in BERT (Devlin et al. 2019, appendix A.2). A
stage keeps the values of the previous one that it does not change. White space separates several stages:

    --stages="1000:batch_size=64 2000:batch_size=128,corpus_weights=3,1"

A stage has its own rows, in an order of its own: its first epoch begins with the stage, wherever the previous stage
ended. Like a run, it ends with a line in the log, an evaluation and a checkpoint. Figures of stages that evaluate other
rows are not compared: the best checkpoint is that of the last stage with an evaluation, among those that evaluate the
same rows.

These are pure functions of the config, and do not import TensorFlow.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfzoo import options
from tfzoo.errors import UserError, suggest

_FORM = re.compile(r"(\d+):(.+)")


@dataclasses.dataclass(frozen=True)
class Stage:
    """The updates from `begin` + 1 to `end`.

    Attributes:
      number: 0 for the first stage.
      begin: number of updates before the stage.
      end: number of updates after the stage.
      last: number of updates of the run.
      config: the TrainConfig of the stage alone: its `steps` are the updates of the stage, and it has no `stages`.
    """

    number: int
    begin: int
    end: int
    last: int
    config: Any

    @property
    def seed(self) -> int:
        """The seed of the order of the rows and of their masks; that of the first stage is the seed of the run."""
        if not self.number:
            return self.config.seed
        return int(np.random.SeedSequence([self.config.seed, self.number]).generate_state(1)[0] >> 1)

    def comparable(self, other: "Stage") -> bool:
        """Returns whether both stages evaluate the same held-out rows, so that their figures can be compared."""
        one, two = self.config, other.config
        return one.sequence_length == two.sequence_length and (
            one.batch_size == two.batch_size or not one.evaluate_batches
        )


def stages_of(config) -> tuple[Stage, ...]:
    """Returns the stages of a run with this TrainConfig; only one without --stages.

    Raises:
      UserError: --stages is malformed, its steps do not ascend or are not below --steps, or a stage changes something
        that cannot change, or to an invalid value.
    """
    changes = _parse(config)
    begins = [0, *(step for step, _ in changes)]
    ends = [*begins[1:], config.steps]
    current = config.replace(stages="")
    configs = [current]
    for step, values in changes:
        try:
            current = current.replace(**values)
        except UserError as error:
            raise at_step(step, error) from None
        configs.append(current)
    return tuple(
        Stage(number, begin, end, ends[-1], config.replace(steps=end - begin))
        for number, (begin, end, config) in enumerate(zip(begins, ends, configs, strict=True))
    )


def stage_at(stages: Sequence[Stage], update: int) -> Stage:
    """Returns the stage of an update, which is numbered from 1; an update beyond the run is of the last stage."""
    return next((stage for stage in stages if update <= stage.end), stages[-1])


def at_step(step: int, error: UserError) -> UserError:
    """Returns the error for something that is invalid from a step on."""
    return UserError(f"--stages: from step {step} on: {error}")


def _parse(config) -> list[tuple[int, dict[str, Any]]]:
    """Returns (step, {name: value}) of each stage after the first one."""
    text, steps = config.stages, config.steps
    found: list[tuple[int, dict[str, Any]]] = []
    for part in text.split():
        match = _FORM.fullmatch(part)
        if match is None:
            raise UserError(
                f"--stages={text}: {part} must have the form STEP:FLAG=VALUE,FLAG=VALUE, such as "
                "9000:sequence_length=512,batch_size=8"
            )
        step, last = int(match[1]), found[-1][0] if found else 0
        if step <= last:
            before = f"is not after step {last} of the previous stage; list the stages in ascending order"
            raise UserError(f"--stages={text}: step {step} {before if found else 'must be at least 1'}")
        if step >= steps:
            raise UserError(
                f"--stages={text}: step {step} is not below --steps ({steps}); raise --steps, or omit that stage"
            )
        values: dict[str, Any] = {}
        for assignment in re.split(r",(?=[a-z_]+=)", match[2]):  # The other commas are within a value.
            name, _, value = assignment.partition("=")
            if name in values:
                raise UserError(f"--stages={text}: step {step} sets {name} twice; omit one of them")
            values[name] = _value(config, name, value)
        found.append((step, values))
    return found


def _value(config, name: str, text: str) -> Any:
    """Returns the value of a flag that a stage changes."""
    fields = {field.name: field for field in options.fields(type(config)) if field.metadata.get("by_stage")}
    listed = ", ".join(fields)
    if name in config.values() and name not in fields:
        raise UserError(
            f"--stages={config.stages}: {name} cannot change during a run, only {listed}; omit it, or start a new run "
            "with --init_from"
        )
    if name not in fields:
        raise UserError(f"--stages={config.stages}: {name} is not one of {listed}{suggest(name, fields)}")
    try:
        return int(text) if fields[name].type is int else text
    except ValueError:
        raise UserError(f"--stages={config.stages}: {name}={text}: must be a whole number") from None
