"""Searches for good values of a few flags of tfzoo.train.

    python -m tfzoo.tune --tune_dir=tunes/mine --search=learning_rate=1e-5..1e-3:log --search=batch_size=16,32 \\
        --trials=20 --flagfile=configs/bert.cfg --steps=500

Each trial trains a model in a process of its own, with the other flags of tfzoo.train as specified. Their values are
drawn by Optuna's TPE sampler with the seed --search_seed. When it is started again with the same --tune_dir, the search
continues where it stopped, and the trial that was running is resumed. A trial that fails is recorded with its error.

    TUNE_DIR/trial_0, trial_1, ...   the runs; trial_0.log is the output of the first one
    TUNE_DIR/trials.jsonl            values, state and figures of each trial
    TUNE_DIR/trials.md, tune.png     a table with the best trial first, and plots
    TUNE_DIR/tune.json               what is searched

This requires pip install 'tfzoo[tasks]'.
"""

import dataclasses
import json
import math
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags as absl_flags

from tfzoo import cli, files, json_files, options, progress
from tfzoo.errors import CheckFailed, UserError, suggest
from tfzoo.objectives.objective import direction_of
from tfzoo.options import Checked, option
from tfzoo.training import outcomes, processes
from tfzoo.training.config import TrainConfig
from tfzoo.tuning import report, space, trials
from tfzoo.tuning.trials import DONE, FAILED, PRUNED, RUNNING, Direction, Trial

RECORD = "tune.json"
_HOPELESS = 3  # Consecutive failures from the first trial on that end a search.
_FIXED = ("run_dir", "resume", "cache_dir")  # Flags of tfzoo.train that cannot vary.
_SEARCH = "Search"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneConfig(Checked):
    """What is searched, and for how long."""

    tune_dir: str = option(
        dataclasses.MISSING, "Folder of the search; a search that is already in it is continued.", group=_SEARCH
    )
    search: tuple[str, ...] = option(
        (),
        "A flag of tfzoo.train that varies: NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=A,B,C; NAME may also be "
        "overrides.FIELD. Values that contain commas are separated by white space. May be repeated.",
        group=_SEARCH,
    )
    trials: int = option(20, "Number of trials, including those of earlier starts.", group=_SEARCH, low=1)
    metric: str | None = option(
        None,
        "The held-out figure to optimize, of each run's best checkpoint; by default, the one that selects the best "
        "checkpoint.",
        group=_SEARCH,
    )
    direction: str | None = option(
        None,
        "Whether the smallest or the largest --metric is the best; by default, the smallest of a loss or perplexity, "
        "and the largest of anything else.",
        group=_SEARCH,
        choices=("min", "max"),
    )
    search_seed: int = option(0, "Seed of the search.", group=_SEARCH, low=0, high=2**31 - 1)
    prune: bool = option(
        False,
        "Stop a trial at an evaluation at which its best value is worse than the median of the other trials there, "
        "once five trials have ended.",
        group=_SEARCH,
    )


def define_flags(flags: absl_flags.FlagValues) -> None:
    options.define_flags(flags, TuneConfig)
    TrainConfig.define_flags(flags)
    delattr(flags, "run_dir")  # Each trial has its own.


class Search:
    """A search.

    Args:
      config: the search's configuration.
      arguments: the arguments of tfzoo.train that all trials have in common.

    Raises:
      UserError: an option, or a value that a trial might have, is invalid.
    """

    def __init__(self, config: TuneConfig, arguments: Sequence[str]):
        self.config, self.arguments = config, list(arguments)
        self.folder = pathlib.Path(config.tune_dir)
        if not config.search:
            raise UserError("--search is required: add --search=FLAG=LOW..HIGH or --search=FLAG=A,B,C")
        train_config = _train_config(self.arguments)
        self.dimensions = space.parse(config.search, _kinds(), lambda more: _train_config([*self.arguments, *more]))
        if train_config.strategy in ("multi_worker", "parameter_server"):
            raise UserError(f"--strategy={train_config.strategy}: tfzoo.tune starts a single process; omit it")
        if not train_config.resume:
            raise UserError("--noresume: does not apply to tfzoo.tune, which resumes its trials; omit it")
        if config.trials > trials.combinations(self.dimensions):
            count = int(trials.combinations(self.dimensions))
            raise UserError(f"--trials={config.trials}: the search has only {count} combinations; use at most {count}")
        self.metric, self.direction = _metric(config, train_config)
        self.form = outcomes.forms(train_config).get(self.metric.partition("/")[0], ("", outcomes.PLAIN))[1]
        self.trials: list[Trial] = []

    def run(self) -> int:
        """Makes all trials and shows the result.

        Returns:
          cli.DONE, or cli.STOPPED after a signal.

        Raises:
          UserError: the folder contains another search, or cannot be written.
          CheckFailed: all trials failed.
        """
        with (
            processes.folder_of_runs(self.folder, "tune_dir", RECORD, "trial_"),
            processes.Signals() as signals,
        ):
            self._open()
            while len(self.trials) < self.config.trials or self._unfinished() is not None:
                if signals.received:
                    return self._stopped()
                number = self._unfinished()
                if number is None:
                    number = len(self.trials)
                    values = trials.propose(self.dimensions, self.trials, self.direction, self.config.search_seed)
                    self._put(Trial(number, RUNNING, values))
                trial = self._train(self.trials[number], signals)
                if trial is None:
                    return self._stopped()
                self._put(trial)
                self._show(trial)
                self._give_up_if_hopeless()
            self._summarize()
        return cli.DONE

    # ------------------------------------------------------------------ Its parts

    def _open(self) -> None:
        """Reads the trials of an earlier start."""
        path, record = self.folder / RECORD, self._record()
        if path.exists():
            before = json_files.read(path)
            for name, value in record.items():
                if before.get(name) != value:
                    old, new = _differing(before.get(name), value)
                    raise UserError(
                        f"--tune_dir={self.folder}: was started with {name} {old}, not {new}; keep the original "
                        "flags, or specify a new folder"
                    )
        else:
            files.atomic_write(path, json.dumps(record, indent=2) + "\n")
        self.trials = trials.read(self.folder, self.dimensions)
        if self.trials:
            cli.show(f"continuing after {sum(trial.state != RUNNING for trial in self.trials)} trials")
        if not any(trial.state in (DONE, PRUNED) for trial in self.trials):
            # What made all of them fail may have been repaired.
            self.trials = [dataclasses.replace(trial, state=RUNNING, error="") for trial in self.trials]

    def _record(self) -> dict[str, Any]:
        config = self.config
        search = {"search": list(config.search), "metric": self.metric, "direction": self.direction}
        return search | {"search_seed": config.search_seed, "flags": self.arguments}

    def _unfinished(self) -> int | None:
        """Returns the number of a trial that an earlier start did not finish; None if there is none."""
        return next((trial.trial for trial in self.trials if trial.state == RUNNING), None)

    def _put(self, trial: Trial) -> None:
        """Records a new trial, or the new state of one."""
        self.trials[trial.trial : trial.trial + 1] = [trial]
        trials.write(self.folder, self.trials)

    def _train(self, trial: Trial, signals: processes.Signals) -> Trial | None:
        """Trains a trial. Returns its result, or None if a signal stopped it."""
        run_dir = self.folder / f"trial_{trial.trial}"
        processes.wait_until_free(run_dir, signals)
        if signals.received:
            return None
        others = [other for other in self.trials if other.trial != trial.trial]

        def evaluations() -> list[list[float]]:
            return trials.metric_values(outcomes.evaluations(run_dir), self.metric)

        def pruned_at() -> int:
            return trials.should_be_pruned(evaluations(), others, self.direction) if self.config.prune else 0

        log = run_dir.with_suffix(".log")
        label = f"trial {trial.trial + 1} of {max(self.config.trials, len(self.trials))}: {self._values(trial)}"
        with files.writing(log), open(log, "ab", opener=files.regular) as output:
            start = output.tell()
            with progress.stage(label):
                command = [*self.arguments, *space.arguments(self.dimensions, trial.values), f"--run_dir={run_dir}"]
                code, stopped = processes.train(command, signals, stop=lambda: bool(pruned_at()), output=output)
        if stopped and code in (cli.DONE, cli.STOPPED) and pruned_at():
            found = [one for one in evaluations() if one[0] <= pruned_at()]
            best = (min if self.direction == "min" else max)(found, key=lambda one: one[1])
            return dataclasses.replace(
                trial, state=PRUNED, value=best[1], step=int(best[0]), evaluations=found, figures={}
            )
        if code == cli.STOPPED:
            return None
        if code:
            error = _last_line(log, start) or f"the run {processes.how_it_ended(code)}"
            return dataclasses.replace(trial, state=FAILED, error=error)
        step, figures = outcomes.outcome(run_dir)
        value = figures.get(self.metric, math.nan)
        if not math.isfinite(value):
            error = f"its {self.metric} at step {step} is {figures.get(self.metric, 'missing')}"
            return dataclasses.replace(trial, state=FAILED, error=error)
        return dataclasses.replace(
            trial, state=DONE, value=value, step=step, figures=figures, evaluations=evaluations()
        )

    def _values(self, trial: Trial) -> str:
        return ", ".join(f"{name}={value}" for name, value in trial.values.items())

    def _show(self, trial: Trial) -> None:
        """Prints the result of a trial, and writes the table and the plots."""
        result = f"failed: {trial.error}"
        if trial.value is not None:
            result = f"{self.metric} {self.form.format(trial.value)}"
            result += " (pruned)" if trial.state == PRUNED else ""
        cli.show(f"trial {trial.trial}: {self._values(trial)}: {result}")
        files.atomic_write(self.folder / report.TABLE, self._table() + "\n")
        report.plot(self.folder / report.PLOT, self.trials, self.dimensions, self.metric, self.direction)

    def _table(self) -> str:
        return report.table(self.trials, self.dimensions, self.metric, self.direction, self.form)

    def _give_up_if_hopeless(self) -> None:
        ended = [trial for trial in self.trials if trial.state != RUNNING]
        if all(trial.state == FAILED for trial in ended) and len(ended) >= min(_HOPELESS, self.config.trials):
            last = ended[-1]
            raise CheckFailed(
                f"all {len(ended)} trials failed, the last one with: {last.error.removeprefix('error: ')} "
                f"(its output is in {self.folder / f'trial_{last.trial}.log'})"
            )

    def _summarize(self) -> None:
        best = trials.ranked(self.trials, self.direction)[0]
        command = [*self.arguments, *space.arguments(self.dimensions, best.values), "--run_dir=runs/best"]
        cli.show(f"\n{self._table()}\n")
        cli.show(f"the best model is in {self.folder / f'trial_{best.trial}'}; this command trains it again:")
        cli.show(f"  python -m tfzoo.train {shlex.join(command)}")

    def _stopped(self) -> int:
        cli.show("stopped by a signal; everything is saved, and the same command continues from there")
        return cli.STOPPED


def _train_config(arguments: Sequence[str]) -> TrainConfig:
    """Returns the config of a run with these arguments, and any folder.

    Raises:
      UserError: an argument is invalid.
    """
    flags = absl_flags.FlagValues()
    TrainConfig.define_flags(flags)
    cli.parse(flags, [*arguments, "--run_dir=run"])
    return TrainConfig.from_flags(flags)


def _kinds() -> dict[str, type]:
    """Returns the flags that may vary, and the types of their values; str for everything that is not a number."""
    flags = absl_flags.FlagValues()
    TrainConfig.define_flags(flags)
    kinds: dict[str, type] = {}
    for name in set(flags) - set(_FIXED):
        parser = flags[name].parser
        whole = isinstance(parser, absl_flags.IntegerParser)
        kinds[name] = int if whole else float if isinstance(parser, absl_flags.FloatParser) else str
    return kinds


def _metric(config: TuneConfig, train_config: TrainConfig) -> tuple[str, Direction]:
    """Returns the figure that the search optimizes, and its direction.

    Raises:
      UserError: an evaluation does not have the figure.
    """
    name, direction = outcomes.best_metric(train_config)
    metric = config.metric or name
    known = [name, *outcomes.forms(train_config)]
    if metric.partition("/")[0] not in known:  # NAME/SOURCE is the figure of one of several sources.
        listed = ", ".join(dict.fromkeys(known))
        raise UserError(
            f"--metric={metric}: is not a held-out figure of this run{suggest(metric, known)}; it has {listed}"
        )
    if metric != name:
        direction = direction_of(metric)
    if config.direction == "min":
        direction = "min"
    elif config.direction == "max":
        direction = "max"
    return metric, direction


def _differing(old: Any, new: Any) -> tuple[str, str]:
    """Returns two different values of a record in words; of lists, the items that only one of them contains."""
    if not (isinstance(old, list) and isinstance(new, list)):
        return str(old), str(new)
    if sorted(old) == sorted(new):  # In another order, in which the sampler draws other values.
        return shlex.join(old), shlex.join(new)
    only = [item for item in old if item not in new], [item for item in new if item not in old]
    return shlex.join(only[0]) or "(none)", shlex.join(only[1]) or "(none)"


def _last_line(log: pathlib.Path, start: int) -> str:
    """Returns the last error that a run wrote to its log from a position on, on one line; "" if it wrote nothing."""
    with files.open_file(log, follow=False) as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return " ".join((errors or lines or [""])[-1].split())[:500]


def main(flags: absl_flags.FlagValues) -> int:
    config = TuneConfig(**options.values_of(flags, TuneConfig))
    own = {field.name for field in options.fields(TuneConfig)}
    searched = {spec.partition("=")[0].strip() for spec in config.search}
    # The values of a trial take the place of these; a flag that may be repeated keeps its other values.
    replaced = {name for name in searched if name in flags and not isinstance(flags[name].value, list)}
    search = Search(config, processes.arguments(flags, own | replaced))
    import optuna  # noqa: F401  (reports a missing package before anything starts)

    return search.run()


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags))
