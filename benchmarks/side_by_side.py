"""Contenders in their own processes that take turns, so that other load on the machine affects all of them equally.

A measuring process receives requests, one line of JSON each, and answers each with one line of JSON. While one process
works, the others sleep. Ratios are medians over rounds of the ratios of neighboring turns within a round.
"""

import contextlib
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_FEATURES = {  # Flags of Linux: what they mean.
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "avx512_fp16": "AVX512-FP16",
    "amx_tile": "AMX",
}
ROOT = pathlib.Path(__file__).resolve().parents[1]


def environment() -> dict[str, str]:
    """Returns an environment in which the scripts of this folder find tfzoo."""
    return {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ, "PYTHONPATH": str(ROOT)}


class Worker:
    """A process that runs a script of this folder, which must call `answer`. BENCH_VERBOSE=1 shows its stderr."""

    def __init__(self, name: str, script: str, *arguments: str, python: str = sys.executable, **variables: str) -> None:
        self.name = name
        self.answers: list[Any] = []  # Filled by the caller with the answers that count.
        self._process = subprocess.Popen(
            [python, script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if "BENCH_VERBOSE" in os.environ else subprocess.DEVNULL,
            text=True,
            env=environment() | variables,
        )

    def ask(self, *question: Any) -> Any:
        """Sends a request and returns the answer; exits if the process has ended."""
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # The read below detects it as well.
            print(json.dumps(question), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended with exit code {self._process.wait()}; run with BENCH_VERBOSE=1 to see why")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


class Clock:
    """Measures the time and the CPU time of all threads from its creation on."""

    def __init__(self):
        self._start = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self._start[0], "cpu": time.process_time() - self._start[1]}


def turns(workers: Sequence[Worker], rounds: int) -> Iterator[Worker]:
    """Yields each worker once per round, in an order that reverses every round."""
    for turn in range(rounds):
        yield from workers if turn % 2 == 0 else workers[::-1]


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Returns the ratio within each round."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Returns the median of the ratios within a round."""
    return statistics.median(ratios(numerators, denominators))


def answer(make: Callable[[], Callable[..., Any]]) -> None:
    """Serves requests in a worker: calls the function that `make` returns with the items of each request."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # Output that libraries print to stdout is not an answer.
    with contextlib.suppress(KeyboardInterrupt):
        reply = make()
        for line in sys.stdin:
            print(json.dumps(reply(*json.loads(line))), file=answers)


def _cpuinfo(field: str) -> str:
    """Returns a field of Linux's description of the first processor; "" if there is none."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    found = re.search(rf"^{field}\s*:\s*(.*)", text, re.MULTILINE)
    return found[1] if found else ""


def features() -> list[str]:
    """Returns the processor's features that decide the speed of matrix products; none are known outside Linux."""
    present = set(_cpuinfo("flags").split())
    return [name for flag, name in _FEATURES.items() if flag in present]


def machine() -> str:
    """Returns the processor's name and the number of cores."""
    return f"{_cpuinfo('model name') or platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def processor() -> str:
    """Returns a line with the processor, its features, those that it lacks, and the machine's load."""
    present = features()
    shown = [f"{'' if name in present else 'no '}{name}" for name in _FEATURES.values()]
    return f"{machine()}: {', '.join(shown)}; load {os.getloadavg()[0]:.1f}"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table in which all columns but the first are right-aligned."""
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
