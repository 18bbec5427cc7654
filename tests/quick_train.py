"""A program that behaves like tfzoo.train without training anything, for tests of programs that start many runs.

    python tests/quick_train.py tune ...    tfzoo.tune with such runs; the same for train --seeds
    python tests/quick_train.py run ...     such a run

A run writes metrics.jsonl and RUN/best, can be stopped and resumed, and fails if its batch size is 13. Its loss is a
function of its flags. RUN.starts counts its starts. TFZOO_TEST_HELD=trial_2:3 holds the run in the folder trial_2 at
step 3 until it is stopped; with TFZOO_TEST_SECONDS, each run takes that long before its last evaluation.
"""

import json
import math
import os
import pathlib
import signal
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # When run as a program, this file could otherwise import only its own folder.

from tests import helpers, tiny_run  # noqa: E402
from tfzoo import cli, files  # noqa: E402

EVALUATE_EVERY = 2


def loss(flags: dict[str, str], step: int) -> float:
    """The smallest is at learning_rate=1e-3 and batch_size=32; it falls with the step, and rises at the last one."""
    distance = abs(math.log10(float(flags["learning_rate"])) + 3) + abs(math.log2(int(flags["batch_size"])) - 5) / 4
    return 1 + distance + int(flags["seed"]) / 8 + 1 / step + (0.5 if step == int(flags["steps"]) else 0)


def wait(seconds: float, stopped: list[int]) -> None:
    """Waits, but not after a signal."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not stopped:
        time.sleep(0.01)


def run(arguments: list[str]) -> int:
    """Does what the run of tfzoo.train does, and returns its exit code."""
    flags = {"seed": "0", "learning_rate": "1e-3", "batch_size": "32", "steps": "6"}
    flags |= dict(argument.removeprefix("--").split("=", 1) for argument in arguments if "=" in argument)
    run_dir = pathlib.Path(flags.pop("run_dir"))
    if flags["batch_size"] == "13":
        print("loading", flush=True)
        print("error: --batch_size=13: brings bad luck; use another", file=sys.stderr)
        return cli.WRONG_USE
    with open(run_dir.with_suffix(".starts"), "a") as starts:
        starts.write("x")
    (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    with files.Lock(run_dir):
        record = run_dir / "flags.cfg"
        if record.exists() and json.loads(record.read_text()) != flags:
            print(f"error: --run_dir={run_dir}: was started with different flags", file=sys.stderr)
            return cli.WRONG_USE
        record.write_text(json.dumps(flags))
        done = max((line["step"] for line in tiny_run.records(run_dir)), default=0)
        print(f"{sys.argv[2:]} from step {done}", flush=True)
        with open(run_dir / "metrics.jsonl", "a") as log:
            for step in range(done + 1, int(flags["steps"]) + 1):
                if os.environ.get("TFZOO_TEST_HELD") == f"{run_dir.name}:{step}":
                    wait(helpers.PATIENCE, stopped)
                if step == int(flags["steps"]) - 1:
                    wait(float(os.environ.get("TFZOO_TEST_SECONDS", 0)), stopped)
                if stopped:
                    return cli.STOPPED
                log.write(json.dumps({"step": step, "loss": 2.0, "learning_rate": 0.1}) + "\n")
                if step % EVALUATE_EVERY == 0:
                    figures = {"masked_lm_loss": loss(flags, step), "masked_lm_accuracy": 1 / loss(flags, step)}
                    log.write(json.dumps({"step": step} | figures) + "\n")
                log.flush()
        values = {line["step"]: line["masked_lm_loss"] for line in tiny_run.records(run_dir) if "loss" not in line}
        best = min(values, key=lambda step: values[step])
        if not (run_dir / "best").is_symlink():
            (run_dir / "best").symlink_to(f"checkpoints/{best:08d}")
    return cli.DONE


if __name__ == "__main__":
    program, rest = sys.argv[1], sys.argv[2:]
    if program == "run":
        sys.exit(run(rest))
    from tfzoo import train, tune
    from tfzoo.training import processes

    processes.COMMAND = (sys.executable, __file__, "run")
    entry = {"tune": tune, "train": train}[program]
    sys.exit(cli.run(entry.main, entry.define_flags, rest))
