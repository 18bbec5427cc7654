"""One BERT training step beside KerasHub's and Model Garden's: `make bench`, or

    .venv-peers/bin/python benchmarks/train_step.py [--contenders=ours,kerashub,garden] [--precisions=float32]

Every contender lives in a process of its own. They take turns, a few steps each, while the others sleep, so
that what else the machine does meets them all alike; ratios are medians over rounds of neighbouring turns.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

import peers

WORKER = pathlib.Path(__file__).with_name("peers.py")


class Contender:
    """A worker process; `run(n)` lets it train n steps, and waits."""

    def __init__(self, spec: str, precision: str) -> None:
        self.spec = spec
        name, _, inter_op = spec.partition("@")  # Empty: as many as suit it best.
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), name, precision, inter_op],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if "BENCH_VERBOSE" in os.environ else subprocess.DEVNULL,
            text=True,
            env={"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ},
        )
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self.last: dict = {}

    def run(self, steps: int) -> float:
        """Returns the seconds a step took."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.spec} died with code {self.process.wait()}; BENCH_VERBOSE=1 shows why")
        self.last = json.loads(line)
        return self.last["seconds"]

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def measure(specs: list[str], precision: str, rounds: int, steps: int) -> list[Contender]:
    """Runs the contenders in turns; each one's `seconds` gets the time of a step in every round."""
    contenders = []
    for spec in specs:  # One after the other: tracing and compiling are no part of it, and would disturb.
        contenders.append(Contender(spec, precision))
        contenders[-1].run(3)
    for turn in range(rounds):
        order = contenders if turn % 2 == 0 else contenders[::-1]
        for contender in order:
            contender.run(1)  # Wakes its threads and fills the caches.
            contender.seconds.append(contender.run(steps))
            contender.cpu.append(contender.last["cpu"])
    for contender in contenders:
        contender.close()
    return contenders


def report(contenders: list[Contender], precision: str) -> str:
    """A table; its last column says how many times as fast as each contender the first one is."""
    first = contenders[0]
    heads = [
        precision,
        "ms a step",
        "CPU ms",
        "tokens/s",
        "peak GiB",
        "parameters",
        "loss",
        f"{first.spec} is faster by",
    ]
    rows = []
    for contender in contenders:
        step = statistics.median(contender.seconds)
        last = contender.last
        rows.append(
            [
                contender.spec,
                f"{1000 * step:.0f}",
                f"{1000 * statistics.median(contender.cpu):.0f}",
                f"{peers.TOKENS / step:.0f}",
                f"{last['peak'] / 2**30:.2f}",
                f"{last['parameters'] / 1e6:.1f} M",
                f"{last['loss']:.2f}",
                f"{statistics.median(a / b for a, b in zip(contender.seconds, first.seconds)):.3f}",
            ]
        )
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", default="ours,kerashub,garden", help="NAME[:WAY][@INTER_OP_THREADS],...")
    parser.add_argument("--precisions", default="float32,bfloat16")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3, help="steps a turn")
    args = parser.parse_args()
    for precision in args.precisions.split(","):
        contenders = measure(args.contenders.split(","), precision, args.rounds, args.steps)
        print(report(contenders, precision), flush=True)
        print()


if __name__ == "__main__":
    main()
