"""Contenders in processes of their own that take turns, so that what else the machine does meets them all alike.

A process that measures gets questions, a line of JSON each, and answers each of them by a line of JSON. While one
is asked the others sleep. Ratios are medians over rounds of ratios within a round, of neighbouring turns.
"""

import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]


def environment() -> dict[str, str]:
    """A script of this folder finds tfzoo by it."""
    return {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ, "PYTHONPATH": str(ROOT)}


class Worker:
    """A process that runs a script of this folder, which must call `answer`. BENCH_VERBOSE=1 shows what it says."""

    def __init__(self, name: str, script: str, *arguments: str, python: str = sys.executable, **variables: str) -> None:
        self.name = name
        self.answers: list[Any] = []  # For its user to collect what counts.
        self._process = subprocess.Popen(
            [python, script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if "BENCH_VERBOSE" in os.environ else subprocess.DEVNULL,
            text=True,
            env=environment() | variables,
        )

    def ask(self, *question: Any) -> Any:
        """Its answer; ends this process if that one has ended."""
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # Reading finds out, too.
            print(json.dumps(question), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} died with code {self._process.wait()}; BENCH_VERBOSE=1 shows why")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def turns(workers: Sequence[Worker], rounds: int) -> Iterator[Worker]:
    """Each worker once a round, in an order that reverses every round."""
    for turn in range(rounds):
        yield from workers if turn % 2 == 0 else workers[::-1]


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median of the ratios within a round."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def answer(make: Callable[[], Callable[..., Any]]) -> None:
    """The process's side: calls what `make` returns with each question's items, and answers by what that returns."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # What libraries print is no answer.
    with contextlib.suppress(KeyboardInterrupt):
        reply = make()
        for line in sys.stdin:
            print(json.dumps(reply(*json.loads(line))), file=answers)


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns but the first are numbers."""
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
