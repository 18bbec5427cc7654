"""Seconds from the command line to the first generated token and to the first training step, compared with importing
TensorFlow and Keras.

    .venv/bin/python benchmarks/start.py [--rounds=5] [--only=generate,train,describe,help]

    import      import tensorflow, keras
    generate    python -m tfzoo.generate --model_dir=FOLDER --prompt=... --stream, until the first text is printed;
                FOLDER is a Hugging Face folder of GPT-2 small's size with random weights and 50,257 tokens
    train       python -m tfzoo.train --flagfile=configs/bert.cfg --log_every=1, until metrics.jsonl has the first
                step; corpus and tokenizer are cached by an earlier run
    describe    python -m tfzoo.describe --model=bert_base
    help        python -m tfzoo.train --help

Each is a new process, and they take turns. "More" is the median over rounds of the difference from the import in the
same round, in seconds of wall-clock time and, after the comma, of CPU time. Below the table are the phases of generate
and train: the stages that they show on a terminal, and what is between them, with the median seconds of each.
"""

import argparse
import contextlib
import functools
import json
import os
import pathlib
import runpy
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import history
from side_by_side import ROOT, environment, markdown, processor, ratios

BEGAN = "START_BEGAN"  # The environment variable with the time at which the process was started.
ROWS = {"generate": "GPT-2 small, first token", "train": "configs/bert.cfg, first step"}
IMPORT = "import tensorflow, keras; print('imported', flush=True)"


def prepare(folder: pathlib.Path) -> None:
    """Writes the Hugging Face folder, in a process of its own."""
    import tfzoo
    from tfzoo.text.byte_level import ByteLevelBPE
    from tfzoo.text.byte_level_model import BYTES

    letters = [chr(i) for i in range(33, 127)]
    pairs = [(a, b) for a in letters for b in letters]
    longer = ((a + b, c) for a, b in pairs for c in letters)
    merges = [*pairs, *(next(longer) for _ in range(50_000 - len(pairs)))]
    vocab = [*BYTES, *map("".join, merges), "<|endoftext|>"]
    tfzoo.save(tfzoo.build("gpt2"), folder, ByteLevelBPE(vocab, merges, special_tokens=["<|endoftext|>"]))


def staged(module: str, arguments: list[str]) -> None:
    """Runs a command of tfzoo, and writes when each stage begins and ends to stderr, as lines of JSON."""
    from tfzoo import progress

    began, stage = float(os.environ[BEGAN]), progress.stage

    def write(*event) -> None:
        print(json.dumps([time.time() - began, time.process_time(), *event]), file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def timed(text: str) -> Iterator[Callable[[], None]]:
        write("begin", text)
        with stage(text) as end:
            yield end
        write("end", text)

    progress.stage = timed
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


class Started:
    """A process that is measured from its start until `done`, and then killed."""

    def __init__(self, *command: str, done: Callable[[subprocess.Popen], bool]):
        with tempfile.TemporaryFile() as events:
            began = time.time()
            process = subprocess.Popen(
                [sys.executable, *command],
                stdout=subprocess.PIPE,
                stderr=events,
                env=environment() | {BEGAN: str(began)},
                cwd=ROOT,
            )
            if not done(process):
                events.seek(0)
                sys.exit(f"{' '.join(command)}: ended too early:\n{events.read().decode()}")
            self.seconds, self.cpu = time.time() - began, cpu_seconds(process.pid)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            events.seek(0)
            lines = [line for line in events.read().decode().splitlines() if line.startswith("[")]
        self.phases = phases([*map(json.loads, lines), (self.seconds, self.cpu, "done", "")])


def cpu_seconds(pid: int) -> float:
    """Returns the CPU seconds of a process that is still running."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def phases(events: list[tuple[float, float, str, str]]) -> dict[str, tuple[float, float]]:
    """Returns the seconds and the CPU seconds of each stage without those of the stages in it, and of what is between
    them."""
    result: dict[str, tuple[float, float]] = {}
    inside, last = ["the interpreter, flags"], (0.0, 0.0)
    for at, cpu, kind, text in events:
        seconds = result.get(inside[-1], (0.0, 0.0))
        result[inside[-1]] = seconds[0] + at - last[0], seconds[1] + cpu - last[1]
        last = at, cpu
        if kind == "begin":
            inside.append(text)
        elif kind == "end":
            inside.pop()
            if len(inside) == 1:
                inside[0] = f"after {text}"
    return result


def printed(process: subprocess.Popen) -> bool:
    """Waits for the first output."""
    assert process.stdout
    return bool(process.stdout.read(1))


def logged(run_dir: pathlib.Path, process: subprocess.Popen) -> bool:
    """Waits for the first step in metrics.jsonl."""
    path = run_dir / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and '"loss"' in path.read_text():
            return True
        time.sleep(0.005)
    return False


def measure(name: str, folder: pathlib.Path) -> Started:
    if name == "import":
        return Started("-c", IMPORT, done=printed)
    if name == "describe":
        return Started("-m", "tfzoo.describe", "--model=bert_base", done=printed)
    if name == "help":
        return Started("-m", "tfzoo.train", "--help", done=printed)
    if name == "generate":
        flags = [f"--model_dir={folder / 'gpt2'}", "--prompt=The first token", "--stream"]
        return Started(__file__, "--staged", "tfzoo.generate", *flags, done=printed)
    run_dir = folder / "run"
    shutil.rmtree(run_dir, ignore_errors=True)
    flags = [f"--run_dir={run_dir}", f"--cache_dir={folder / 'cache'}", "--log_every=1"]
    arguments = ["--flagfile=configs/bert.cfg", *flags]
    return Started(__file__, "--staged", "tfzoo.train", *arguments, done=functools.partial(logged, run_dir))


def main() -> None:
    if sys.argv[1:2] == ["--staged"]:
        sys.path.insert(0, str(ROOT))
        staged(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="generate,train,describe,help")
    parser.add_argument("--prepare", type=pathlib.Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.prepare:
        sys.path.insert(0, str(ROOT))
        prepare(flags.prepare)
        return
    names = ["import", *flags.only.split(",")]
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as temporary:
        folder = pathlib.Path(temporary)
        if "generate" in names:
            subprocess.run([sys.executable, __file__, f"--prepare={folder / 'gpt2'}"], env=environment(), check=True)
        found: dict[str, list[Started]] = {name: [] for name in names}
        for turn in range(1 + flags.rounds):
            for name in names if turn % 2 else names[::-1]:
                started = measure(name, folder)
                if turn:  # The first round fills caches.
                    found[name].append(started)
    print(processor())
    rows = []
    for name, own in found.items():
        pairs = list(zip(own, found["import"]))
        row = [f"{statistics.median(s.seconds for s in own):.2f}", f"{statistics.median(s.cpu for s in own):.2f}"]
        more = (
            statistics.median(s.seconds - base.seconds for s, base in pairs),
            statistics.median(s.cpu - base.cpu for s, base in pairs),
        )
        rows.append([name, *row, "" if name == "import" else f"{more[0]:.2f}, {more[1]:.2f}"])
        if name in ("generate", "train"):
            speeds = ratios([base.seconds for _, base in pairs], [each.seconds for each, _ in pairs])
            history.record("start", ROWS[name], "tfzoo", "import of TensorFlow and Keras", speeds)
    print(markdown(["", "s", "CPU s", "more than import: s, CPU s"], rows))
    for name in {"generate", "train"} & found.keys():
        print(f"\n{name}: s, CPU s")
        for text in found[name][-1].phases:
            both = zip(*(each.phases.get(text, (0.0, 0.0)) for each in found[name]))
            seconds, cpu = map(statistics.median, both)
            print(f"  {seconds:6.2f} {cpu:6.2f}  {text}")


if __name__ == "__main__":
    main()
