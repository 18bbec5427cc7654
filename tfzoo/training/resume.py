"""Checks whether a folder contains a run that can be resumed with a config."""

import pathlib

from absl import logging

from tfzoo import files, hub, options
from tfzoo.errors import UserError
from tfzoo.training.config import FALLING, TrainConfig


def check_run_dir(config: TrainConfig) -> bool:
    """Returns True if the run's folder contains a run that is to be resumed.

    Raises:
      UserError: the folder contains a run although --noresume is set, contains a run that was started with different
        options (the message names them), or is not the folder of a run.
    """
    run_dir = pathlib.Path(config.run_dir)
    record = run_dir / "flags.cfg"
    if record.exists():
        if not config.resume:
            raise UserError(f"--run_dir={run_dir}: already contains a run; specify a new folder, or omit --noresume")
        _compare(TrainConfig.read(record, config.run_dir), config)
        return True
    # flags.cfg is written last: if there are only these files, the run was killed while it started, and starts again.
    early = {"tokenizer", "config.json", "corpus.json", "init_from.json", files.LOCK}
    foreign = run_dir.exists() and (
        not run_dir.is_dir()
        or any(entry.name not in early and not entry.name.endswith(files.PARTIAL) for entry in run_dir.iterdir())
    )
    if foreign:
        raise UserError(f"--run_dir={run_dir}: exists but contains no run (no flags.cfg); specify a new folder")
    if not run_dir.exists():
        files.check_can_be_made(run_dir, "run_dir")
    return False


def pin(config: TrainConfig) -> TrainConfig:
    """Returns the config with what a resumed run started with: the commit of --init_from=hf://NAME[@REVISION], and the
    warmup of a task, which by default depends on the number of its rows. For a new run, the commit is the current one,
    whose files are downloaded.

    Raises:
      UserError: the files cannot be downloaded.
    """
    record = pathlib.Path(config.run_dir) / "flags.cfg"
    source = config.init_from if config.init_from is not None and hub.is_reference(config.init_from) else None
    by_rows = [name for name in ("warmup_steps",) if getattr(config, name) is None]
    if record.exists() and (source or by_rows):
        before = TrainConfig.read(record, config.run_dir)
        config = config.replace(**{name: getattr(before, name) for name in by_rows})
        if source and hub.stands_for(before.init_from, source):
            return config.replace(init_from=before.init_from)
    return config if source is None else config.replace(init_from=hub.pin(source, "init_from"))


def check_steps(config: TrainConfig, step: int) -> None:
    """Raises UserError if a run is already beyond the last step of the config."""
    if step > config.steps:
        raise UserError(
            f"--steps={config.steps}: the run in --run_dir={config.run_dir} is already at step {step}; request at "
            "least that many steps, or specify a new --run_dir"
        )


def _compare(before: TrainConfig, now: TrainConfig) -> None:
    changeable = options.names_with(type(now), "changeable")
    old, new = before.values(), now.values()
    # Of another objective or task, whose options are others, only the common ones are listed.
    changed = [name for name in old if name in new and name not in changeable and old[name] != new[name]]
    if (now.on_nonfinite == "skip") != (before.on_nonfinite == "skip") and now.precision != "float16":
        changed.append("on_nonfinite")  # An optimizer that skips updates has an additional variable.
    if changed:
        listed = ", ".join(f"--{name} ({_shown(old[name])} -> {_shown(new[name])})" for name in changed)
        raise UserError(
            f"--run_dir={now.run_dir}: was started with different flags: {listed}; keep the original values, or "
            "specify a new folder"
        )
    if now.steps not in (None, before.steps) and now.schedule in FALLING:  # None: the number of rows decides.
        logging.warning(
            "--steps changes from %d to %d, and the learning-rate schedule with it", before.steps, now.steps
        )
    if now.accumulation != before.accumulation:
        logging.warning(
            "--accumulation changes from %d to %d: the updates are equivalent, but dropout draws other masks",
            before.accumulation,
            now.accumulation,
        )


def _shown(value: object) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)
