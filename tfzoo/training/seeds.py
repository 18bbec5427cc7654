"""The same run with several seeds: python -m tfzoo.train --seeds=3 --run_dir=RUN_DIR ...

    RUN_DIR/seed_0, seed_1, seed_2   the runs
    RUN_DIR/seeds.json               {"seeds": [{"seed": 0, "run_dir": "seed_0", "step": step of the evaluation,
                                     "figures": {...}, "flags": [...]}, ...], "mean": {...}, "deviation": {...}}

Each figure is that of the run's best checkpoint. `deviation` is the standard deviation of the sample, with n - 1 in the
denominator; null for one seed.
"""

import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tfzoo import cli, files, json_files
from tfzoo.errors import UserError
from tfzoo.training import outcomes, processes
from tfzoo.training.config import TrainConfig

RECORD = "seeds.json"


def train(config: TrainConfig, arguments: Sequence[str], count: int) -> int:
    """Trains with the seeds config.seed, config.seed + 1, ...; finished runs are skipped, and others resumed.

    Args:
      config: the configuration of the runs; its run_dir contains their folders.
      arguments: the arguments of tfzoo.train, without run_dir and seed.
      count: number of seeds.

    Returns:
      cli.DONE, or the exit code of the first run that did not end with it.

    Raises:
      UserError: the folder contains something else or cannot be created, or the strategy has several processes.
    """
    folder = pathlib.Path(config.run_dir)
    if config.strategy in ("multi_worker", "parameter_server"):
        raise UserError(f"--seeds={count}: does not apply to --strategy={config.strategy}; start a run for each seed")
    if (folder / RECORD).exists() and not config.resume:
        raise UserError(f"--run_dir={folder}: already contains runs; specify a new folder, or omit --noresume")
    with processes.folder_of_runs(folder, "run_dir", RECORD, "seed_"), processes.Signals() as signals:
        wanted = range(config.seed, config.seed + count)
        entries = {entry["seed"]: entry for entry in _read(folder) if entry["seed"] in wanted}
        for number, seed in enumerate(wanted, 1):
            run_dir = folder / f"seed_{seed}"
            flags = [*arguments, f"--seed={seed}"]
            if entries.get(seed, {}).get("flags") == flags and run_dir.is_dir():
                cli.show(f"seed {seed} ({number} of {count}): finished before")
                continue
            processes.wait_until_free(run_dir, signals)
            if signals.received:
                return cli.STOPPED
            cli.show(f"seed {seed} ({number} of {count}): {run_dir}")
            code, _ = processes.train([*flags, f"--run_dir={run_dir}"], signals)
            if code:
                cli.show(f"seed {seed} {processes.how_it_ended(code)}")
                return code if code > 0 else 128 - code
            step, figures = outcomes.outcome(run_dir)
            entries[seed] = dict(seed=seed, run_dir=run_dir.name, step=step, figures=figures, flags=flags)
            _write(folder, [entries[seed] for seed in wanted if seed in entries])
        found = [entries[seed] for seed in wanted]
        _write(folder, found)
        cli.show(f"\n{table(found, outcomes.forms(config))}\n\nwritten to {folder / RECORD}")
    return cli.DONE


def summary(entries: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, float | None]]:
    """Returns (mean, standard deviation with n - 1) of each figure that all seeds have, by its name."""
    names = [name for name in entries[0]["figures"] if all(name in entry["figures"] for entry in entries)]
    columns = {name: [entry["figures"][name] for entry in entries] for name in names}
    deviations = {name: statistics.stdev(column) if len(column) > 1 else None for name, column in columns.items()}
    return {name: statistics.fmean(column) for name, column in columns.items()}, deviations


def table(entries: Sequence[Mapping[str, Any]], forms: Mapping[str, tuple[str, str]]) -> str:
    """Returns a table with a row for each figure, and a column for each seed, the mean and the standard deviation."""
    means, deviations = summary(entries)
    header = ["held out", *(f"seed {entry['seed']}" for entry in entries), "mean", "deviation"]
    rows = [header]
    for name, mean in means.items():
        label, form = forms.get(name, (name, outcomes.PLAIN))
        numbers = [*(entry["figures"][name] for entry in entries), mean, deviations[name]]
        rows.append([label, *("-" if number is None else form.format(number) for number in numbers)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    return "\n".join(
        "   ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths)))
        for row in rows
    )


def _write(folder: pathlib.Path, entries: Sequence[Mapping[str, Any]]) -> None:
    means, deviations = summary(entries)
    record = {"seeds": entries, "mean": means, "deviation": deviations}
    files.atomic_write(folder / RECORD, json.dumps(record, indent=2) + "\n")


def _read(folder: pathlib.Path) -> list[dict[str, Any]]:
    path = folder / RECORD
    if not path.exists():
        return []
    record = json_files.read(path)
    entry = json_files.Field(dict)
    json_files.check(record, {"seeds": json_files.Field(list, items=entry, required=True)}, path)
    needed = {"seed": json_files.Field(int, required=True), "figures": json_files.Field(dict, required=True)}
    for each in record["seeds"]:
        json_files.check(each, needed, path)
    return record["seeds"]
